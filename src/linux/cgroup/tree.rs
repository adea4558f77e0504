//! A cgroup directory and everything nested in it: listing its processes and removing it. The same files mean
//! the same in v1 and v2; must not know of controllers.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::linux::kernel_file;

/// Processes of `dir` and of all cgroups below it, each once.
pub fn pids(dir: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    let enter = |here: BorrowedFd<'_>| match read(here, "cgroup.procs") {
        // A process of a pid namespace that we cannot see reads as 0, and kill(0) would hit our own group.
        Ok(text) => {
            pids.extend(text.lines().filter_map(|l| l.parse().ok()).filter(|&pid: &i32| pid > 0));
            Ok(())
        }
        // A threaded v2 cgroup has no readable cgroup.procs; its domain above lists the same processes.
        Err(error) if gone(&error) || error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error),
    };
    let walked = walk(dir, enter, |_, _| Ok(()));
    walked.with_context(|| format!("list the processes of cgroup {}", dir.display()))?;
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// Writes to the file `name` of `dir` and of all cgroups below it.
pub fn write_all(dir: &Path, name: &str, value: &str) -> Result<()> {
    let enter = |here: BorrowedFd<'_>| {
        let written = rustix::fs::openat(here, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::write(&file, value.as_bytes()));
        match written {
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            Err(error) => Err(error.into()),
        }
    };
    let walked = walk(dir, enter, |_, _| Ok(()));
    walked.with_context(|| format!("write {value} to each {name} of cgroup {}", dir.display()))
}

fn read(dir: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    kernel_file::read_open(file)
}

/// Cgroups may be removed while we look: reading then ends in ENODEV.
pub fn gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// `enter`s `dir` and every cgroup below it, and `leave`s each but `dir` itself (parent, name) when all in it are done.
///
/// A container that may make cgroups can nest them deeper than a path may be long or descriptors go (v1 knows no
/// limit), and must not become one that cannot be deleted. So names are kept, and one descriptor.
fn walk(
    dir: &Path,
    mut enter: impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
    mut leave: impl FnMut(BorrowedFd<'_>, &OsStr) -> io::Result<()>,
) -> io::Result<()> {
    let Some(mut here) = open(CWD, dir.as_os_str())? else { return Ok(()) };
    enter(here.as_fd())?;
    let mut todo = children(here.as_fd())?;
    let mut above: Vec<(OsString, Vec<OsString>)> = Vec::new();
    loop {
        if let Some(name) = todo.pop() {
            let Some(nested) = open(here.as_fd(), &name)? else { continue };
            enter(nested.as_fd())?;
            let inner = children(nested.as_fd())?;
            above.push((name, std::mem::replace(&mut todo, inner)));
            here = nested;
        } else {
            let Some((name, rest)) = above.pop() else { return Ok(()) };
            here = rustix::fs::openat(&here, "..", DIRECTORY, Mode::empty())?;
            leave(here.as_fd(), &name)?;
            todo = rest;
        }
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::openat(at, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT | Errno::NODEV) => Ok(None),
        other => Ok(Some(other?)),
    }
}

fn children(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = match entry {
            Err(Errno::NOENT | Errno::NODEV) => break,
            entry => entry?,
        };
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Removes `dir` and what is nested in it, deepest first. A killed process keeps its cgroup busy until its exit
/// is done, so EBUSY is tried again until `deadline`. What is gone already is fine.
pub fn remove(dir: &Path, deadline: Instant) -> Result<()> {
    let context = || format!("remove cgroup {}", dir.display());
    let mut pause = Duration::from_micros(100);
    // The common case, one empty cgroup, is settled without listing it.
    while let Err(error) = rmdir(CWD, dir.as_os_str()) {
        let nested = |parent: BorrowedFd<'_>, name: &OsStr| match rmdir(parent, name) {
            Err(error) if !busy(error) => Err(error.into()),
            _ => Ok(()),
        };
        walk(dir, |_| Ok(()), nested).with_context(context)?;
        match rmdir(CWD, dir.as_os_str()) {
            Ok(()) => return Ok(()),
            Err(error) if !busy(error) => return Err(io::Error::from(error)).with_context(context),
            Err(_) if Instant::now() < deadline => {}
            Err(_) => return Err(io::Error::from(error)).with_context(context),
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

fn busy(error: Errno) -> bool {
    error == Errno::BUSY || error == Errno::NOTEMPTY
}

/// Gone already is done.
pub fn rmdir(at: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
