//! The root of a container without a mount namespace. It is mounted on the host, with all that the container has mounted
//! below it: `delete` takes that one mount away, which takes the others along.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::{mount, proc_path};
use crate::seam::MountId;

/// STATX_MNT_ID_UNIQUE, missing from rustix.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

pub fn mount_id(mount: BorrowedFd<'_>) -> Result<MountId> {
    let ask = |what| rustix::fs::statx(mount, "", AtFlags::EMPTY_PATH, what).context("statx");
    // One field for both: the newer kind answers for the older.
    let unique = ask(MNT_ID_UNIQUE)?;
    let is_known = unique.stx_mask & MNT_ID_UNIQUE.bits() != 0;
    Ok(MountId { id: ask(StatxFlags::MNT_ID)?.stx_mnt_id, unique: is_known.then_some(unique.stx_mnt_id) })
}

/// Unmounts our own mount and no other. Gone already is done.
pub fn unmount_root(path: &Path, ours: MountId) -> Result<()> {
    let context = || format!("unmount the container's root {}", path.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        top => top.with_context(context)?,
    };
    let found = mount_id(top.as_fd()).with_context(context)?;
    if found == ours {
        return rustix::mount::unmount(proc_path(top.as_fd()), UnmountFlags::DETACH).with_context(context);
    }
    // With our number and another name it is a later mount, and ours is gone.
    let is_below = found.id != ours.id
        && mount::mount_points()?.iter().any(|mount| mount.id == ours.id && mount.point == path);
    ensure!(!is_below, "{}: something else is mounted over it, which has to go first", context());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::open_directory;
    use super::*;

    #[test]
    fn a_mount_that_is_not_ours_stays() {
        let root = || mount_id(open_directory(Path::new("/")).unwrap().as_fd()).unwrap();
        let real = root();
        let later = MountId { id: real.id, unique: Some(real.unique.unwrap_or_default() + 1) };
        unmount_root(Path::new("/"), later).unwrap();
        unmount_root(Path::new("/"), MountId { id: u64::MAX, unique: None }).unwrap();
        unmount_root(Path::new("/nothing/here"), real).unwrap();
        assert_eq!(root(), real);
    }
}
