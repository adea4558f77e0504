//! Paths inside `/` after pivot_root, by openat2(2). Not by pathrs as before it: in a container without a procfs on
//! /proc, whatever fails in there panics (0.2.6, `ProcfsBase::into_path`), and a missing masked path is no error at
//! all.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::open_directory;

/// A handle on what is at `path`; `None` when nothing is.
pub fn find(path: &Path) -> Result<Option<OwnedFd>> {
    let root = open_directory(Path::new("/"))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(found) => return Ok(Some(found)),
            // openat2(2): a rename or mount elsewhere on the system during the walk; to be tried again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            // A seccomp profile around us that is older than the call: pathrs walks by itself.
            Err(Errno::NOSYS | Errno::PERM) => return walk(&root, path),
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        }
    }
}

fn walk(root: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>> {
    match pathrs::RootRef::from_fd(root.as_fd()).resolve(path) {
        Ok(handle) => Ok(Some(handle.into())),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_missing(error: &pathrs::error::Error) -> bool {
    use pathrs::error::ErrorKind;
    matches!(error.kind(), ErrorKind::OsError(Some(code))
        if code == Errno::NOENT.raw_os_error() || code == Errno::NOTDIR.raw_os_error())
}

/// The directory at `path`, made with its parents if it is missing.
pub fn directory(path: &Path) -> Result<OwnedFd> {
    if let Some(found) = find(path)? {
        return Ok(found);
    }
    let context = || format!("make {}", path.display());
    let (parent, name) = path.parent().zip(path.file_name()).with_context(context)?;
    let parent = directory(parent)?;
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).with_context(context),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&parent, name, flags, Mode::empty()).with_context(context)
}

/// The file at `path`, made empty if it is missing.
pub fn file(path: &Path) -> Result<OwnedFd> {
    if let Some(found) = find(path)? {
        return Ok(found);
    }
    let context = || format!("make {}", path.display());
    let (parent, name) = path.parent().zip(path.file_name()).with_context(context)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory(parent)?, name, flags, Mode::from_raw_mode(0o644)).with_context(context)
}
