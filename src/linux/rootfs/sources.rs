//! What is opened with the host's eyes: the root, the sources of bind mounts and, for a user namespace, device nodes,
//! each as a detached tree. Without privilege the child opens them itself.
//!
//! The root is opened before the child exists, each bind at its turn, since its source may be what a mount before it
//! has put there: by the child, or by the parent for it. With a user namespace all is opened in the child's mount
//! namespace, on the copies that the kernel locked when it made that: a clone of a host's mount carries no lock, and the
//! container's root could make it writable or look under it (mount_namespaces(7); runc: mountSourceOpenTree).

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Mount, Spec};
use rustix::io::Errno;

use super::devices;
use super::idmap::{self, IdMaps};
use super::mount::Tree;
use super::{Root, options, shared};
use crate::linux::sync::{Channel, Tag};
use crate::seam::MountId;

/// The opened root and devices; those that are missing are opened by path when their turn comes.
#[derive(Default)]
pub struct Sources {
    root: Option<OwnedFd>,
    devices: HashMap<PathBuf, OwnedFd>,
}

impl Sources {
    /// A caller who may not clone mounts opens nothing here.
    pub fn open(spec: &Spec, root: &Path, user_namespace: bool) -> Result<Sources> {
        let mut sources = Sources::default();
        match Tree::clone_of(root, true) {
            Ok(tree) => sources.root = Some(tree.into_fd()),
            Err(error) if lacks_privilege(&error) => return Ok(sources),
            Err(error) => return Err(error),
        }
        if user_namespace {
            sources.devices.extend(devices::apart(spec, root)?);
            for path in devices::paths(spec) {
                if sources.devices.contains_key(&path) {
                    continue;
                }
                // A node that is missing here is an error when the container's is made, not before.
                if let Ok(tree) = Tree::clone_of(&path, false) {
                    sources.devices.insert(path, tree.into_fd());
                }
            }
        }
        Ok(sources)
    }

    /// The parent's half of handing them over.
    pub fn send(&self, channel: &Channel) -> Result<()> {
        let root = self.root.iter().map(|fd| (vec![ROOT], fd));
        let devices =
            self.devices.iter().map(|(path, fd)| ([&[DEVICE], path.as_os_str().as_bytes()].concat(), fd));
        for (name, fd) in root.chain(devices) {
            channel.send(Tag::Source, &name, &[fd.as_fd()])?;
        }
        Ok(())
    }

    /// The child's half: asks, and takes what comes until `Go`.
    pub fn receive(channel: &Channel) -> Result<Sources> {
        let mut sources = Sources::default();
        channel.send(Tag::Sources, &[], &[])?;
        loop {
            let mut message = channel.receive()?.context("the runtime went away")?;
            let fd = match (message.tag, message.fd()) {
                (Tag::Go, _) => return Ok(sources),
                (Tag::Source, Some(fd)) => fd,
                (tag, _) => bail!("unexpected message {tag:?} among the sources"),
            };
            match message.body.split_first() {
                Some((&ROOT, _)) => sources.root = Some(fd),
                Some((&DEVICE, path)) => {
                    sources.devices.insert(OsStr::from_bytes(path).into(), fd);
                }
                _ => bail!("unknown source"),
            }
        }
    }

    /// All of them, for the child that closes everything else.
    pub fn fds(&self) -> Vec<RawFd> {
        self.root.iter().chain(self.devices.values()).map(AsRawFd::as_raw_fd).collect()
    }

    /// What names the root once the child has attached it.
    pub fn root_mount(&self) -> Result<MountId> {
        let root =
            self.root.as_ref().context("a container without a mount namespace needs root's privileges")?;
        shared::mount_id(root.as_fd())
    }

    pub fn take_root(&mut self) -> Option<OwnedFd> {
        self.root.take()
    }

    pub fn take_device(&mut self, path: &Path) -> Option<OwnedFd> {
        self.devices.remove(path)
    }
}

/// What a `Source` message is of.
const ROOT: u8 = b'r';
const DEVICE: u8 = b'd';

/// The source of the bind that is number `index` among `mounts`, at its turn. It is the parent's to open where this
/// process has lost its rights to a user namespace, or must not have those that an id mapping takes.
pub fn bind(root: &Root<'_>, mount: &Mount, index: usize) -> Result<Tree> {
    let mapped = idmap::is_wanted(mount);
    match root.talk {
        Some(parent) if mapped || root.user_namespace => {
            parent.send(Tag::Bind, &index.to_ne_bytes(), &[])?;
            let fd = parent.expect(Tag::Source)?.fd().context("no source came with the answer")?;
            Ok(Tree::from_fd(fd))
        }
        None if mapped => bail!("id-mapped mounts are not supported for rootless containers"),
        _ => open_bind(mount, root.bundle),
    }
}

/// The parent's half of it: the body of `Bind` names the mount.
pub fn open_for_child<'a>(
    spec: &'a Spec,
    bundle: &Path,
    maps: &mut IdMaps<'a>,
    body: &[u8],
) -> Result<OwnedFd> {
    let index = usize::from_ne_bytes(body.try_into()?);
    let mount = spec.mounts().as_ref().and_then(|all| all.get(index)).context("there is no such mount")?;
    let tree = open_bind(mount, bundle).and_then(|tree| maps.apply(&tree, mount).map(|()| tree));
    tree.map(Tree::into_fd).with_context(|| format!("mount {}", mount.destination().display()))
}

/// A relative source is relative to the bundle, as in runc.
pub fn open_bind(mount: &Mount, bundle: &Path) -> Result<Tree> {
    let source = mount.source().as_deref().context("a bind mount needs a source")?;
    Tree::clone_of(&bundle.join(source), options::of(mount).bind == Some(true))
}

/// What the source says if it is a link.
pub fn symlink(mount: &Mount, bundle: &Path) -> Result<Option<CString>> {
    let source = bundle.join(mount.source().as_deref().context("a bind mount needs a source")?);
    match rustix::fs::readlink(&source, Vec::new()) {
        Err(Errno::INVAL) => Ok(None),
        other => other.map(Some).with_context(|| format!("read the link {}", source.display())),
    }
}

pub fn lacks_privilege(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(&Errno::PERM | &Errno::ACCESS))
}
