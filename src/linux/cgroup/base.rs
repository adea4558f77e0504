//! The directory that the machine's hierarchies are mounted below. A path to it goes through sysfs, whose lock every new
//! network namespace takes for writing, again and again: the path costs as much as the rest of a look-up.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::CWD;

use super::paths::DEFAULT_MOUNT;

/// `/sys/fs/cgroup`, open where there is one.
pub struct Base(Option<File>);

impl Base {
    pub fn open() -> Result<Base> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        match File::options().read(true).custom_flags(flags).open(DEFAULT_MOUNT) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Base(None)),
            base => Ok(Base(Some(base.with_context(|| format!("open {DEFAULT_MOUNT}"))?))),
        }
    }

    /// Where to look the path up, and what of it is left to look up there.
    pub fn at<'a>(&'a self, path: &'a Path) -> (BorrowedFd<'a>, &'a Path) {
        match (&self.0, path.strip_prefix(DEFAULT_MOUNT)) {
            (Some(base), Ok(inner)) if !inner.as_os_str().is_empty() => (base.as_fd(), inner),
            _ => (CWD, path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn only_what_is_below_is_looked_up_from_there() {
        let base = Base(Some(File::open("/").unwrap()));
        let (at, inner) = base.at(Path::new("/sys/fs/cgroup/memory/a"));
        assert_eq!((at.as_raw_fd(), inner), (base.0.as_ref().unwrap().as_raw_fd(), Path::new("memory/a")));
        for path in ["/sys/fs/cgroup", "/sys/fs/cgroup2/a", "/cgroup/memory/a"] {
            let (at, whole) = base.at(Path::new(path));
            assert_eq!((at.as_raw_fd(), whole), (CWD.as_raw_fd(), Path::new(path)));
        }
        let (at, whole) = Base(None).at(Path::new("/sys/fs/cgroup/memory"));
        assert_eq!((at.as_raw_fd(), whole), (CWD.as_raw_fd(), Path::new("/sys/fs/cgroup/memory")));
    }
}
