//! A cgroup directory and everything nested in it: listing its processes and removing it. The same files mean
//! the same in v1 and v2; must not know of controllers.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::Errno;

/// Processes of `dir` and of all cgroups below it, each once.
pub fn pids(dir: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    collect(dir, &mut pids)?;
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

fn collect(dir: &Path, pids: &mut Vec<i32>) -> Result<()> {
    let file = dir.join("cgroup.procs");
    match fs::read_to_string(&file) {
        // A process of a pid namespace that we cannot see reads as 0, and kill(0) would hit our own group.
        Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse().ok()).filter(|&pid: &i32| pid > 0)),
        Err(error) if gone(&error) => return Ok(()),
        // A threaded v2 cgroup has no readable cgroup.procs; its domain above lists the same processes.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    }
    for nested in children(dir)? {
        collect(&nested, pids)?;
    }
    Ok(())
}

/// Cgroups may be removed while we look: reading then ends in ENODEV.
pub fn gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", dir.display())),
    };
    let directory = |e: &fs::DirEntry| e.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries.filter_map(Result::ok).filter(directory).map(|e| e.path()).collect())
}

/// Removes `dir` and what is nested in it, deepest first. A killed process keeps its cgroup busy until its exit
/// is done, so EBUSY is tried again until `deadline`. What is gone already is fine.
pub fn remove(dir: &Path, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_micros(100);
    loop {
        let error = match rmdir(dir) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // The common case, one empty cgroup, was settled above without listing it.
        let nested = children(dir)?;
        if !nested.is_empty() {
            for nested in nested {
                remove(&nested, deadline)?;
            }
            match rmdir(dir) {
                Ok(()) => return Ok(()),
                Err(error) if busy(error) => {}
                Err(error) => return Err(failed(dir, error)),
            }
        } else if !busy(error) {
            return Err(failed(dir, error));
        }
        if Instant::now() >= deadline {
            return Err(failed(dir, error));
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn busy(error: Errno) -> bool {
    error == Errno::BUSY || error == Errno::NOTEMPTY
}

fn rmdir(dir: &Path) -> Result<(), Errno> {
    match rustix::fs::rmdir(dir) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn failed(dir: &Path, error: Errno) -> anyhow::Error {
    anyhow::Error::new(io::Error::from(error)).context(format!("remove cgroup {}", dir.display()))
}
