//! A mount of type `cgroup`: the container sees its own cgroup, as runc shows it. On v2 one mount; on v1 and hybrid a
//! tmpfs with a directory for each hierarchy.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::Mount;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::mount::{Tree, apply, is_bind, is_cgroup, new_filesystem, propagate, set_attached};
use super::options::{self, Options};
use super::sources::lacks_privilege;
use super::{Root, inside};
use crate::linux::cgroup::{Base, V1Mount};
use crate::linux::sync::{Channel, Tag};
use crate::linux::{fds, sys};

pub fn mount(root: &Root<'_>, at: BorrowedFd<'_>, mount: &Mount, options: &Options) -> Result<()> {
    let target = inside::directory(at, mount.destination())?;
    if let Some((parents, _, talk)) = of_parent(root)
        && std::ptr::eq(parents, mount)
        && let Some(whole) = talk.cgroups()?
    {
        return Tree::from_fd(whole).attach(target.as_fd());
    }
    let v1 = root.cgroup.v1_mounts()?;
    if v1.is_empty() {
        return unified(root, options)?.attach(target.as_fd());
    }
    let tmpfs = directory(root, options)?;
    tmpfs.attach(target.as_fd())?;
    fill(root, &Base::open()?, &tmpfs, &v1, options)?;
    // One call gives all of them the attributes, where the kernel can.
    if tmpfs.is_complete() {
        return tmpfs.set_attributes(true, options.set, options.clear);
    }
    if options.is_read_only() {
        set_attached(tmpfs.fd(), sys::MOUNT_ATTR_RDONLY).context("make the cgroup directory read-only")?;
    }
    Ok(())
}

/// The mount that the parent makes while the process makes those before it, for it has nothing else to do, and v1's takes a fifth
/// of all calls: the first of its kind, if both would make the same.
fn of_parent<'a>(root: &Root<'a>) -> Option<(&'a Mount, Options, &'a Channel)> {
    if !root.mounts_are_copies || root.user_namespace || root.cgroup_namespace || !root.cgroup.has_v1() {
        return None;
    }
    let mounts = root.spec.mounts().iter().flatten().filter(|mount| is_cgroup(mount) && !is_bind(mount));
    let (first, options) =
        mounts.map(|mount| (mount, options::of(mount))).find(|(_, options)| !options.remount)?;
    // A word for it changes what the process's namespace has made of each mount's.
    options.propagation.is_empty().then_some((first, options, root.talk?))
}

/// The parent's half of it: makes the mount, attached to nothing, and sends it.
pub fn give(root: &Root<'_>, base: &Base) -> Result<()> {
    let Some((mount, options, talk)) = of_parent(root) else { return Ok(()) };
    let whole = match apart(root, base, &options) {
        // Before 6.15 nothing could be mounted on what is mounted nowhere; and a root of a user namespace may mount in the
        // container's mount namespace, but not in its own.
        Err(error) if error.downcast_ref() == Some(&Errno::INVAL) || lacks_privilege(&error) => None,
        whole => whole.with_context(|| format!("mount {}", mount.destination().display()))?,
    };
    let fds: Vec<_> = whole.iter().map(Tree::fd).collect();
    talk.send(Tag::Cgroups, &[], &fds)
}

fn apart(root: &Root<'_>, base: &Base, options: &Options) -> Result<Option<Tree>> {
    let tmpfs = directory(root, options)?;
    // Before 5.12 attributes are set by a path, and nothing here has one.
    if !tmpfs.is_complete() {
        return Ok(None);
    }
    fill(root, base, &tmpfs, &root.cgroup.v1_mounts()?, options)?;
    // Clones of the parent's mounts are their peers, where they are shared.
    tmpfs.set_all(options.set, options.clear, root.bind_propagation()?)?;
    Ok(Some(tmpfs))
}

fn directory(root: &Root<'_>, options: &Options) -> Result<Tree> {
    let label = root.label.and_then(|label| label.option("tmpfs"));
    let data = ["mode=755".to_owned()].into_iter().chain(label).collect();
    let tmpfs = new_filesystem("tmpfs", Some(Path::new("tmpfs")), &Options { data, ..Options::default() })?;
    let quiet = sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOEXEC;
    tmpfs.set_attributes(false, quiet, 0)?;
    propagate(&tmpfs, options)?;
    Ok(tmpfs)
}

fn fill(root: &Root<'_>, base: &Base, tmpfs: &Tree, v1: &[V1Mount], options: &Options) -> Result<()> {
    let together = tmpfs.is_complete();
    let each = if together { Options { set: 0, clear: 0, ..options.clone() } } else { options.clone() };
    let mount = |hierarchy: &V1Mount| {
        mount_hierarchy(root, base, tmpfs.fd(), hierarchy, &each)
            .with_context(|| format!("cgroup hierarchy {}", hierarchy.name))
    };
    // One call closes their handles.
    fds::close(v1.iter().map(mount).collect::<Result<_>>()?)
}

fn mount_hierarchy(
    root: &Root<'_>,
    base: &Base,
    top: BorrowedFd<'_>,
    v1: &V1Mount,
    options: &Options,
) -> Result<OwnedFd> {
    rustix::fs::mkdirat(top, &v1.name, Mode::from_raw_mode(0o755))?;
    let tree = if root.cgroup_namespace {
        let data = v1.options.clone();
        new_filesystem("cgroup", Some(Path::new("cgroup")), &Options { data, ..Options::default() })?
    } else {
        Tree::clone_below(base.at(&v1.path), false)?
    };
    apply(&tree, options)?;
    tree.attach_at(top, &v1.name)?;
    for link in &v1.links {
        rustix::fs::symlinkat(&v1.name, top, link)?;
    }
    Ok(tree.into_fd())
}

fn unified(root: &Root<'_>, options: &Options) -> Result<Tree> {
    let own = root.cgroup.shown_v2();
    let tree = if root.cgroup_namespace {
        match new_filesystem("cgroup2", Some(Path::new("cgroup")), &Options::default()) {
            Ok(tree) => tree,
            // In a user namespace without a cgroup namespace of its own the mount is refused; runc binds then.
            Err(error) => match own {
                Some(path) => Tree::clone_of(&path, true).map_err(|_| error)?,
                None => return Err(error),
            },
        }
    } else {
        match own {
            Some(path) => Tree::clone_of(&path, true)?,
            // Without a cgroup of its own it is in its caller's, and sees what there is; never to be written to.
            None => {
                let tree = Tree::clone_of(Path::new("/sys/fs/cgroup"), true)?;
                tree.set_attributes(true, sys::MOUNT_ATTR_RDONLY, 0)?;
                tree
            }
        }
    };
    apply(&tree, options)?;
    Ok(tree)
}
