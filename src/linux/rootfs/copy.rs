//! A directory's content copied by descriptor, for `tmpcopyup`: nothing is followed, nothing leaves the two trees.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};

/// Copies what is in `from` into the directory `to`.
pub fn content(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let from =
        rustix::fs::openat(from, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let to =
        rustix::fs::openat(to, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            one(from.as_fd(), to.as_fd(), name).with_context(|| name.to_string_lossy().into_owned())?;
        }
    }
    Ok(())
}

fn one(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = rustix::fs::openat(from, name, flags, Mode::empty())?;
            let into = rustix::fs::openat(to, name, flags, Mode::empty())?;
            content(below.as_fd(), into.as_fd())?;
            // After what is in it: a set-group-ID directory gives its group away.
            rustix::fs::fchown(&into, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
            Ok(rustix::fs::fchmod(&into, mode)?)
        }
        FileType::RegularFile => file(from, to, name, &stat, mode),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target.as_c_str(), to, name)?;
            owner(to, name, &stat)
        }
        kind => {
            rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
            owner(to, name, &stat)
        }
    }
}

fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat, mode: Mode) -> Result<()> {
    let source =
        rustix::fs::openat(from, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let target = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    let (mut source, mut target) = (File::from(source), File::from(target));
    std::io::copy(&mut source, &mut target)?;
    rustix::fs::fchown(&target, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(&target, mode)?;
    let time = |tv_sec: i64, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec as _ };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::futimens(&target, &times)?;
    Ok(())
}

fn owner(at: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
