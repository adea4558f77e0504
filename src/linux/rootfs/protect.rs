//! `maskedPaths`, `readonlyPaths` and the read-only root: after pivot_root, by descriptor, resolved inside `/`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags, makedev};

use super::mount::{Tree, empty_tmpfs, is_missing};
use super::open_directory;
use crate::linux::sys::{self, MountAttr};

/// Files are covered by /dev/null, directories by an empty read-only tmpfs, as runc; what is missing stays so.
pub fn mask_paths(paths: &[String]) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let root = open_directory(Path::new("/"))?;
    let mut cover: Option<OwnedFd> = None;
    for path in paths {
        let context = || format!("mask {path}");
        let target = match pathrs::RootRef::from_fd(root.as_fd()).resolve(path) {
            Ok(handle) => OwnedFd::from(handle),
            Err(error) if is_missing(&error) => continue,
            Err(error) => return Err(error).with_context(context),
        };
        if !is_directory(&target)? {
            Tree::clone_of_fd(null()?.as_fd())?.attach(target.as_fd()).with_context(context)?;
            continue;
        }
        // One tmpfs for all directories: a superblock each would cost memory for nothing.
        let tree = match &cover {
            Some(first) => Tree::clone_of_fd(first.as_fd())?,
            None => {
                let tree = empty_tmpfs()?;
                tree.set_attributes(false, sys::MOUNT_ATTR_RDONLY, 0)?;
                tree
            }
        };
        tree.attach(target.as_fd()).with_context(context)?;
        cover.get_or_insert(tree.into_fd());
    }
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
        let context = || format!("make {path} read-only");
        let target = match pathrs::RootRef::from_fd(root.as_fd()).resolve(path) {
            Ok(handle) => OwnedFd::from(handle),
            Err(error) if is_missing(&error) => continue,
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
    let handle = pathrs::RootRef::from_fd(root.as_fd()).resolve(path)?;
    let attr = MountAttr { set: sys::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    sys::mount_setattr(handle.as_fd(), false, &attr)
        .with_context(|| format!("make {} read-only", path.display()))
}

fn is_directory(fd: &OwnedFd) -> Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}
