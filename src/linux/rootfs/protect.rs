//! `maskedPaths`, `readonlyPaths` and the read-only root: after pivot_root, by descriptor, resolved inside `/`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, makedev, openat2};
use rustix::io::Errno;

use super::mount::{Tree, empty_tmpfs, set_attached};
use super::open_directory;
use crate::linux::sys;

/// Files are covered by /dev/null, directories by an empty read-only tmpfs, as runc; what is missing stays so.
pub fn mask_paths(paths: &[String]) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let root = open_directory(Path::new("/"))?;
    // One tmpfs for all directories: a superblock each would cost memory for nothing.
    let mut cover: Option<OwnedFd> = None;
    for path in paths {
        let context = || format!("linux.maskedPaths: mask {path}");
        match resolve(&root, Path::new(path)) {
            Ok(target) => mask(&target, &mut cover).with_context(context)?,
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(error).with_context(context),
        }
    }
    Ok(())
}

fn mask(target: &OwnedFd, cover: &mut Option<OwnedFd>) -> Result<()> {
    if !is_directory(target)? {
        return Tree::clone_of_fd(null()?.as_fd())?.attach(target.as_fd());
    }
    let tree = match cover {
        Some(first) => Tree::clone_of_fd(first.as_fd())?,
        None => {
            let tree = empty_tmpfs()?;
            tree.set_attributes(false, sys::MOUNT_ATTR_RDONLY, 0)?;
            tree
        }
    };
    tree.attach(target.as_fd())?;
    cover.get_or_insert(tree.into_fd());
    Ok(())
}

/// CVE-2025-31133: what is bound over a masked file must be the null device itself, not what an image put there.
pub fn null() -> Result<OwnedFd> {
    let null =
        rustix::fs::open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .context("open the container's /dev/null")?;
    let stat = rustix::fs::fstat(&null)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != makedev(1, 3) {
        bail!("the container's /dev/null is not the null device");
    }
    Ok(null)
}

pub fn protect_paths(paths: &[String]) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let root = open_directory(Path::new("/"))?;
    for path in paths {
        let context = || format!("linux.readonlyPaths: make {path} read-only");
        let target = match resolve(&root, Path::new(path)) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(error).with_context(context),
        };
        let tree = Tree::clone_recursive_of_fd(target.as_fd()).with_context(context)?;
        tree.set_attributes(false, sys::MOUNT_ATTR_RDONLY, 0).with_context(context)?;
        tree.attach(target.as_fd()).with_context(context)?;
    }
    Ok(())
}

/// The mount at `path` (a mount point) becomes read-only and keeps its other attributes.
pub fn set_read_only(path: &Path) -> Result<()> {
    let root = open_directory(Path::new("/"))?;
    let context = || format!("make {} read-only", path.display());
    let target = resolve(&root, path).with_context(context)?;
    set_attached(target.as_fd(), sys::MOUNT_ATTR_RDONLY).with_context(context)
}

/// `path` after pivot_root. Not by pathrs, which wants a /proc to name things in its errors and panics where the
/// container has none.
pub fn resolve(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // openat2(2): EAGAIN when something was renamed meanwhile.
    for _ in 0..32 {
        match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

fn is_directory(fd: &OwnedFd) -> Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}
