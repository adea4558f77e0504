//! Stopping and waking a whole cgroup: v1's freezer.state and v2's cgroup.freeze.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::limits::{read_line, write_file};
use crate::linux::kernel_file;

const PATIENCE: Duration = Duration::from_secs(10);

/// v1. A task that forks or joins while the kernel freezes leaves the state at FREEZING, and it stays there until
/// somebody writes again; now and then it must be thawed first. runc's loop and numbers.
pub fn set_v1(dir: &Path, frozen: bool) -> Result<()> {
    let file = dir.join("freezer.state");
    let write = |state: &str| {
        write_file(&file, state).with_context(|| format!("write {state} to {}", file.display()))
    };
    if !frozen {
        return write("THAWED");
    }
    let result = freeze_v1(&file, &write);
    if result.is_err() {
        // Left half frozen, the container could neither run nor be killed.
        let _ = write("THAWED");
    }
    result
}

fn freeze_v1(file: &Path, write: &dyn Fn(&str) -> Result<()>) -> Result<()> {
    for round in 0..1000 {
        if round % 50 == 49 {
            let _ = write("THAWED");
            sleep(Duration::from_millis(10));
        }
        write("FROZEN")?;
        if round % 25 == 24 {
            sleep(Duration::from_micros(10));
        }
        match read_line(file)?.as_str() {
            "FROZEN" => return Ok(()),
            "FREEZING" => {}
            state => bail!("unexpected state {state} while freezing {}", file.display()),
        }
    }
    bail!("unable to freeze {}", file.display())
}

/// The cgroup's own state: frozen through an ancestor is not ours to report or to thaw.
pub fn is_frozen_v1(dir: &Path) -> bool {
    let read = |name| kernel_file::read_value(dir.join(name)).unwrap_or_default();
    read("freezer.state").trim() != "THAWED" && read("freezer.self_freezing").trim() == "1"
}

/// v2: cgroup.events says when it is done, and notifies pollers with POLLPRI (cgroup-v2.rst).
pub fn set_v2(dir: &Path, frozen: bool) -> Result<()> {
    let file = dir.join("cgroup.freeze");
    let write = |state: &str| {
        write_file(&file, state).with_context(|| format!("write {state} to {}", file.display()))
    };
    if !frozen {
        return write("0");
    }
    write("1")?;
    let result = wait_frozen(&dir.join("cgroup.events"));
    if result.is_err() {
        let _ = write("0");
    }
    result
}

fn wait_frozen(path: &Path) -> Result<()> {
    let name = path.display();
    let mut events = File::open(path).with_context(|| format!("open {name}"))?;
    let deadline = Instant::now() + PATIENCE;
    let mut text = String::new();
    loop {
        text.clear();
        events.rewind().with_context(|| format!("rewind {name}"))?;
        events.read_to_string(&mut text).with_context(|| format!("read {name}"))?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("unable to freeze: {name} still says not frozen after {} s", PATIENCE.as_secs());
        }
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).with_context(|| format!("poll {name}")),
        }
    }
}

pub fn is_frozen_v2(dir: &Path) -> bool {
    read_line(&dir.join("cgroup.freeze")).is_ok_and(|state| state == "1")
}
