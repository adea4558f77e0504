//! `maskedPaths`, `readonlyPaths` and the read-only root: after pivot_root, by descriptor, resolved inside `/`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags, makedev};

use super::mount::{Tree, empty_tmpfs};
use super::{Label, inside, slash};
use crate::linux::{fds, sys};

/// `readonlyPaths`, then `maskedPaths`, in runc's order.
pub fn protect(read_only: &[String], masked: &[String], label: Option<Label<'_>>) -> Result<()> {
    let root = slash()?;
    make_read_only(root.as_fd(), read_only)?;
    mask(root.as_fd(), masked, label)
}

/// Files are covered by /dev/null, directories by an empty read-only tmpfs, as runc; what is missing stays so.
fn mask(root: BorrowedFd<'_>, paths: &[String], label: Option<Label<'_>>) -> Result<()> {
    let mut cover: Option<OwnedFd> = None;
    let mut null: Option<OwnedFd> = None;
    for path in paths {
        let context = || format!("linux.maskedPaths: mask {path}");
        let Some(target) = inside::find(root, Path::new(path)).with_context(context)? else {
            continue;
        };
        if !is_directory(&target).with_context(context)? {
            let source = match null.take() {
                Some(null) => null,
                None => open_null_path().with_context(context)?,
            };
            Tree::clone_of_fd(null.insert(source).as_fd())
                .and_then(|tree| tree.attach(target.as_fd()))
                .with_context(context)?;
            continue;
        }
        // One tmpfs for all directories: a superblock each would cost memory for nothing.
        let tree = match &cover {
            Some(first) => Tree::clone_of_fd(first.as_fd()).with_context(context)?,
            None => {
                let tree = empty_tmpfs(label).with_context(context)?;
                tree.set_attributes(false, sys::MOUNT_ATTR_RDONLY, 0).with_context(context)?;
                tree
            }
        };
        tree.attach(target.as_fd()).with_context(context)?;
        cover.get_or_insert(tree.into_fd());
    }
    Ok(())
}

/// The container's null device, open. It cannot be reopened through the handle: there may be no /proc.
pub fn open_null() -> Result<OwnedFd> {
    open_null_path()?;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file =
        rustix::fs::open("/dev/null", flags, Mode::empty()).context("open the container's /dev/null")?;
    // Again: a volume's owner may have been quick.
    verify_null(&file)?;
    rustix::fs::fcntl_setfl(&file, OFlags::RDWR).context("open the container's /dev/null")?;
    Ok(file)
}

/// CVE-2025-31133: what is bound over a masked file must be the null device itself, not what an image put there.
fn open_null_path() -> Result<OwnedFd> {
    let null =
        rustix::fs::open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .context("open the container's /dev/null")?;
    verify_null(&null)?;
    Ok(null)
}

fn verify_null(null: &OwnedFd) -> Result<()> {
    let stat = rustix::fs::fstat(null).context("look at the container's /dev/null")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != makedev(1, 3) {
        bail!("the container's /dev/null is not the null device");
    }
    Ok(())
}

fn make_read_only(root: BorrowedFd<'_>, paths: &[String]) -> Result<()> {
    for path in paths {
        let context = || format!("linux.readonlyPaths: make {path} read-only");
        let Some(target) = inside::find(root, Path::new(path)).with_context(context)? else {
            continue;
        };
        let tree = Tree::clone_recursive_of_fd(target.as_fd()).with_context(context)?;
        tree.set_attributes(false, sys::MOUNT_ATTR_RDONLY, 0).with_context(context)?;
        tree.attach(target.as_fd()).with_context(context)?;
        // With one call.
        fds::close(vec![target, tree.into_fd()]).with_context(context)?;
    }
    Ok(())
}

fn is_directory(fd: &OwnedFd) -> Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}
