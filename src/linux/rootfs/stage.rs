//! The root for a restore. CRIU mounts what was dumped but makes no mount points: they are made here, in a mount
//! namespace that is CRIU's alone.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::FileType;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use super::mount::{Tree, is_bind};
use super::{inside, open_directory, options, proc_path, sources};

/// Mounts the root on `at`, with every mount point of the specification in it.
pub fn stage(spec: &Spec, bundle: &Path, root: &Path, at: &Path) -> Result<()> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).context("set the propagation of the mount namespace")?;
    attach(root, at)?;
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    for mount in mounts.iter().filter(|mount| is_needed(mount, mounts)) {
        make_place(mount, bundle, at).with_context(|| format!("mount {}", mount.destination().display()))?;
    }
    // The binds were there only for places inside of them; with them goes the root, and comes again without.
    rustix::mount::unmount(at, UnmountFlags::DETACH).context("unmount the staged root")?;
    attach(root, at)
}

fn attach(root: &Path, at: &Path) -> Result<()> {
    Tree::clone_of(root, true)?
        .attach(open_directory(at)?.as_fd())
        .with_context(|| format!("mount the root {} on {}", root.display(), at.display()))
}

/// A tmpfs comes back with all that was in it, and a cgroup mount brings its own.
fn is_needed(mount: &Mount, all: &[Mount]) -> bool {
    let is = |mount: &Mount, start: &str| mount.typ().as_deref().is_some_and(|kind| kind.starts_with(start));
    let below = |tmpfs: &Mount| {
        mount.destination() != tmpfs.destination() && mount.destination().starts_with(tmpfs.destination())
    };
    !is(mount, "cgroup") && !all.iter().any(|other| is(other, "tmpfs") && !is_bind(other) && below(other))
}

fn make_place(mount: &Mount, bundle: &Path, at: &Path) -> Result<()> {
    let root = open_directory(at)?;
    if !is_bind(mount) {
        return inside::directory(root.as_fd(), mount.destination()).map(drop);
    }
    if options::of(mount).copy_symlink && sources::symlink(mount, bundle)?.is_some() {
        return Ok(());
    }
    let tree = sources::open_bind(mount, bundle)?;
    let target = if tree.is_directory()? {
        inside::directory(root.as_fd(), mount.destination())?
    } else {
        inside::file(root.as_fd(), mount.destination())?
    };
    tree.attach(target.as_fd())
}

/// `path` of a container, its links resolved inside `root`. What is not there (it lies in a mount) stays as written.
pub fn place_in(root: &Path, path: &Path) -> Result<PathBuf> {
    let root = open_directory(root)?;
    for found in path.ancestors() {
        let Some(handle) = inside::find(root.as_fd(), found)? else { continue };
        let rest = path.strip_prefix(found).context("not an ancestor")?;
        let place = place_of(root.as_fd(), handle.as_fd())?;
        return Ok(if rest.as_os_str().is_empty() { place } else { place.join(rest) });
    }
    Ok(path.to_owned())
}

/// The same, for what is there and not a directory.
pub fn file_place_in(root: &Path, path: &Path) -> Result<Option<PathBuf>> {
    let root = open_directory(root)?;
    let Some(handle) = inside::find(root.as_fd(), path)? else { return Ok(None) };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode);
    Ok(if kind == FileType::Directory { None } else { Some(place_of(root.as_fd(), handle.as_fd())?) })
}

/// By the kernel's own names for both.
fn place_of(root: BorrowedFd<'_>, handle: BorrowedFd<'_>) -> Result<PathBuf> {
    let name = |fd| -> Result<PathBuf> {
        let link = rustix::fs::readlink(proc_path(fd), Vec::new())?;
        Ok(PathBuf::from(OsStr::from_bytes(link.to_bytes())))
    };
    let (root, place) = (name(root)?, name(handle)?);
    let rest = place.strip_prefix(&root);
    Ok(Path::new("/").join(rest.with_context(|| format!("{} is outside of the root", place.display()))?))
}
