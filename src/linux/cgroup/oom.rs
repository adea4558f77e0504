//! Being told when the kernel runs a container out of memory: v1's eventfd on memory.oom_control, v2's counter in
//! memory.events. Must not report anything itself.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::limits::write_file;
use super::{Cgroup, tree};

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// The time is over.
    Nothing,
    OutOfMemory,
    /// The cgroup was removed, or on v2 its last process is gone.
    Gone,
}

pub enum OomWatch {
    V1 {
        event: OwnedFd,
        /// The registration holds as long as this is open.
        _oom_control: File,
        event_control: PathBuf,
    },
    V2 {
        memory_events: File,
        cgroup_events: File,
        kills: u64,
    },
}

impl Cgroup {
    pub fn watch_oom(&self) -> Result<OomWatch> {
        match (self.v1_path("memory"), self.v2_path()) {
            (Some(dir), _) => watch_v1(dir),
            (None, Some(dir)) if self.v1.is_empty() => watch_v2(dir),
            _ => bail!("the container has no memory cgroup to watch"),
        }
    }
}

/// Documentation/admin-guide/cgroup-v1/memory.rst, section 10: `<eventfd> <fd of memory.oom_control>`.
fn watch_v1(dir: &Path) -> Result<OomWatch> {
    let path = dir.join("memory.oom_control");
    let oom_control = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let event = eventfd(0, EventfdFlags::CLOEXEC).context("eventfd")?;
    let event_control = dir.join("cgroup.event_control");
    let line = format!("{} {}", event.as_raw_fd(), oom_control.as_raw_fd());
    write_file(&event_control, &line)
        .with_context(|| format!("write {line:?} to {}", event_control.display()))?;
    Ok(OomWatch::V1 { event, _oom_control: oom_control, event_control })
}

fn watch_v2(dir: &Path) -> Result<OomWatch> {
    let open = |name: &str| {
        let path = dir.join(name);
        File::open(&path).with_context(|| format!("open {}", path.display()))
    };
    let (mut memory_events, cgroup_events) = (open("memory.events")?, open("cgroup.events")?);
    let kills = counter(&mut memory_events, "oom_kill")?.unwrap_or(0);
    Ok(OomWatch::V2 { memory_events, cgroup_events, kills })
}

impl OomWatch {
    pub fn wait(&mut self, patience: Duration) -> Result<Happened> {
        let patience = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        match self {
            OomWatch::V1 { event, event_control, .. } => {
                if !ready(&mut [PollFd::new(event, PollFlags::IN)], &patience)? {
                    return Ok(Happened::Nothing);
                }
                let _ = rustix::io::read(&*event, &mut [0; 8]).context("read the eventfd")?;
                // The removal of the cgroup is told in the same way.
                Ok(if event_control.exists() { Happened::OutOfMemory } else { Happened::Gone })
            }
            OomWatch::V2 { memory_events, cgroup_events, kills } => {
                // Read first: kernfs tells what changed since the last read (POLLPRI).
                if counter(cgroup_events, "populated")?.unwrap_or(0) == 0 {
                    return Ok(Happened::Gone);
                }
                let Some(now) = counter(memory_events, "oom_kill")? else { return Ok(Happened::Gone) };
                if now <= *kills {
                    let fds = [&*memory_events, cgroup_events];
                    let mut fds = fds.map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI));
                    let told = ready(&mut fds, &patience)?;
                    // What it was is seen by the next wait, which reads.
                    return if told { self.wait(Duration::ZERO) } else { Ok(Happened::Nothing) };
                }
                *kills = now;
                Ok(Happened::OutOfMemory)
            }
        }
    }
}

fn ready(fds: &mut [PollFd<'_>], patience: &Timespec) -> Result<bool> {
    match poll(fds, Some(patience)) {
        Ok(count) => Ok(count > 0),
        // The caller's clock decides what is left of the time.
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error).context("wait for events of the cgroup"),
    }
}

/// `None` when the cgroup is gone.
fn counter(file: &mut File, key: &str) -> Result<Option<u64>> {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    match read {
        Err(error) if tree::gone(&error) => return Ok(None),
        read => read.with_context(|| format!("read {key} of the cgroup's events"))?,
    };
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok();
    Ok(text.lines().find_map(value))
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempTree;
    use super::*;

    #[test]
    fn v2_counts_kills() {
        let tree = TempTree::new(&[
            ("memory.events", "low 0\noom 4\noom_kill 2\n"),
            ("cgroup.events", "populated 1\nfrozen 0\n"),
        ]);
        let write = |name: &str, text: &str| std::fs::write(tree.path().join(name), text).unwrap();
        let mut watch = watch_v2(tree.path()).unwrap();
        let mut wait = || watch.wait(Duration::from_millis(1)).unwrap();
        assert_eq!(wait(), Happened::Nothing);
        write("memory.events", "low 0\noom 5\noom_kill 3\n");
        assert_eq!(wait(), Happened::OutOfMemory);
        assert_eq!(wait(), Happened::Nothing);
        write("cgroup.events", "populated 0\nfrozen 0\n");
        assert_eq!(wait(), Happened::Gone);
    }
}
