//! mount(2), for the little that its successors cannot say: `remount`, attributes before mount_setattr(2) (5.12), and
//! options too long for fsconfig(2); and for plain mounts, because it is one call. Knows no paths: what it changes is
//! given by descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::MountFlags;

use super::options::Options;
use super::proc_path;
use crate::linux::sys;

/// An attribute, how statvfs(3) shows it, and its flag.
type Attribute = (u64, u64, MountFlags);

/// statvfs(3) of libc has no name for it yet.
const ST_NOSYMFOLLOW: u64 = 0x2000;

const PLAIN: &[Attribute] = &[
    (sys::MOUNT_ATTR_RDONLY, libc::ST_RDONLY, MountFlags::RDONLY),
    (sys::MOUNT_ATTR_NOSUID, libc::ST_NOSUID, MountFlags::NOSUID),
    (sys::MOUNT_ATTR_NODEV, libc::ST_NODEV, MountFlags::NODEV),
    (sys::MOUNT_ATTR_NOEXEC, libc::ST_NOEXEC, MountFlags::NOEXEC),
    (sys::MOUNT_ATTR_NOSYMFOLLOW, ST_NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
];

const ATIME: &[Attribute] = &[
    (sys::MOUNT_ATTR_NOATIME, libc::ST_NOATIME, MountFlags::NOATIME),
    (sys::MOUNT_ATTR_NODIRATIME, libc::ST_NODIRATIME, MountFlags::NODIRATIME),
    (sys::MOUNT_ATTR_STRICTATIME, 0, MountFlags::STRICTATIME),
];

/// Superblock flags by their fsconfig(2) names.
const SUPERBLOCK: &[(&str, MountFlags)] = &[
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("mand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
    ("lazytime", MountFlags::LAZYTIME),
];

/// fsconfig(2) takes a string of at most 255 bytes, mount(2) a page of them: overlay's `lowerdir` may be that long.
pub fn is_needed(source: Option<&Path>, options: &Options) -> bool {
    let long = |length: usize| length > 255;
    source.is_some_and(|source| long(source.as_os_str().len()))
        || options.data.iter().any(|word| long(word.len()))
}

/// Whether mount(2) says it all, in one call for the ten or so of its successors. Not `ro`: it would make the superblock
/// read-only, which a sysfs shares with all of its network namespace.
pub fn is_enough(options: &Options) -> bool {
    let quoted = |word: &String| word.contains(['"', '\\']);
    !options.is_read_only()
        && options.set_recursive | options.clear_recursive == 0
        && options.propagation.is_empty()
        && !options.tmpcopyup
        && !options.data.iter().any(quoted)
}

/// Mounts a new file system right on `target`, which becomes the current directory: to find it by way of procfs takes as long
/// as some mounts do. What follows has handles, or goes to a directory of its own.
pub fn mount(kind: &str, source: Option<&Path>, options: &Options, target: BorrowedFd<'_>) -> Result<()> {
    let data = CString::new(options.data.join(","))?;
    let source = source.unwrap_or(Path::new("none"));
    // Not where one has no right to search.
    let there = rustix::process::fchdir(target).map_or_else(|_| proc_path(target), |()| ".".to_owned());
    rustix::mount::mount(source, there, kind, flags(options), data.as_c_str())
        .with_context(|| format!("mount the {kind}"))
}

/// `remount`: the options take the place of those of the mount at `target`, of a bind only the mount's own.
pub fn reconfigure(target: BorrowedFd<'_>, options: &Options, bind: bool) -> Result<()> {
    let (bit, data) =
        if bind { (MountFlags::BIND, String::new()) } else { (MountFlags::empty(), options.data.join(",")) };
    rustix::mount::mount_remount(proc_path(target), flags(options) | bit, data).context("remount")
}

/// mount_setattr(2) on an attached mount. A remount replaces all flags, so those that are there are kept by hand.
pub fn set_attributes(mount: BorrowedFd<'_>, set: u64, clear: u64) -> io::Result<()> {
    let have = rustix::fs::fstatvfs(mount)?.f_flag.bits();
    let shown = |table: &[Attribute]| {
        table.iter().filter(|(_, shown, _)| have & shown != 0).fold(0, |all, (attribute, ..)| all | attribute)
    };
    let mut kept = shown(PLAIN) | shown(ATIME);
    if have & (libc::ST_RELATIME | libc::ST_NOATIME) == 0 {
        kept |= sys::MOUNT_ATTR_STRICTATIME;
    }
    let wanted = (kept & !clear) | set;
    let flags = plain(wanted) | atime(set, clear, wanted) | MountFlags::BIND;
    Ok(rustix::mount::mount_remount(proc_path(mount), flags, "")?)
}

fn flags(options: &Options) -> MountFlags {
    let superblock = SUPERBLOCK.iter().filter(|(name, _)| options.superblock.contains(name));
    superblock.fold(plain(options.set) | atime(options.set, options.clear, options.set), |all, (_, flag)| {
        all | *flag
    })
}

fn plain(attributes: u64) -> MountFlags {
    named(PLAIN, attributes)
}

/// mount(2): without one of these flags a remount keeps what there is, and with one all of them are new.
fn atime(set: u64, clear: u64, wanted: u64) -> MountFlags {
    if (set | clear) & (sys::MOUNT_ATTR_ATIME | sys::MOUNT_ATTR_NODIRATIME) == 0 {
        return MountFlags::empty();
    }
    // MOUNT_ATTR_RELATIME is 0: it is what is left when neither of the others is meant.
    let other = wanted & (sys::MOUNT_ATTR_NOATIME | sys::MOUNT_ATTR_STRICTATIME) != 0;
    named(ATIME, wanted) | if other { MountFlags::empty() } else { MountFlags::RELATIME }
}

fn named(table: &[Attribute], attributes: u64) -> MountFlags {
    let chosen = table.iter().filter(|(attribute, ..)| attributes & attribute != 0);
    chosen.fold(MountFlags::empty(), |all, (_, _, flag)| all | *flag)
}

#[cfg(test)]
mod tests {
    use super::super::options;
    use super::*;

    fn of(words: &[&str]) -> MountFlags {
        flags(&options::parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()))
    }

    #[test]
    fn words_are_flags() {
        assert_eq!(
            of(&["ro", "nosuid", "sync"]),
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::SYNCHRONOUS
        );
        assert_eq!(of(&["relatime"]), MountFlags::RELATIME);
        assert_eq!(of(&["nodiratime"]), MountFlags::NODIRATIME | MountFlags::RELATIME);
        assert_eq!(
            of(&["noatime", "strictatime", "nosymfollow"]),
            MountFlags::STRICTATIME | MountFlags::NOSYMFOLLOW
        );
        assert_eq!(of(&["rw", "dev", "defaults", "size=1"]), MountFlags::empty());
    }

    #[test]
    fn long_options_need_it() {
        let with = |data: String| Options { data: vec![data], ..Options::default() };
        assert!(!is_needed(Some(Path::new("overlay")), &with("x".repeat(255))));
        assert!(is_needed(None, &with("x".repeat(256))));
        assert!(is_needed(Some(Path::new(&"x".repeat(256))), &Options::default()));
    }
}
