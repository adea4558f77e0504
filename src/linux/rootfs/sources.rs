//! What is opened with the host's eyes: the root, the sources of bind mounts and, for a user namespace, device nodes,
//! each as a detached tree. Without privilege the child opens them itself.
//!
//! The root and id-mapped sources are opened before the child exists, the other binds by the child at their turn. With
//! a user namespace all is opened in the child's mount namespace, on the copies that the kernel locked when it made
//! that: a clone of a host's mount carries no lock, and the container's root could make it writable or look under it
//! (mount_namespaces(7); runc: mountSourceOpenTree).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Mount, Spec};

use super::devices;
use super::idmap::{self, IdMaps};
use super::mount::{Tree, is_bind};
use super::{options, shared};
use crate::linux::sync::{Channel, Tag};
use crate::seam::MountId;

/// The opened sources; those that are missing are opened by path when their turn comes.
#[derive(Default)]
pub struct Sources {
    root: Option<OwnedFd>,
    binds: HashMap<usize, OwnedFd>,
    devices: HashMap<PathBuf, OwnedFd>,
}

impl Sources {
    /// A caller who may not clone mounts opens nothing here.
    pub fn open(spec: &Spec, bundle: &Path, root: &Path, user_namespace: bool) -> Result<Sources> {
        let mut sources = Sources::default();
        match Tree::clone_of(root, true) {
            Ok(tree) => sources.root = Some(tree.into_fd()),
            Err(error) if lacks_privilege(&error) => {
                if spec.mounts().iter().flatten().any(idmap::is_wanted) {
                    bail!("id-mapped mounts are not supported for rootless containers");
                }
                return Ok(sources);
            }
            Err(error) => return Err(error),
        }
        let mut maps = IdMaps::new(spec.linux().as_ref());
        for (index, mount) in spec.mounts().iter().flatten().enumerate() {
            // Linux 6.8 and later list mounts by their age, and a clone has its age from here: those that the child can
            // open at their turn wait for it, so that mountinfo has the order of `mounts`, as under runc.
            let early = user_namespace || idmap::is_wanted(mount);
            if is_bind(mount) && early && !options::of(mount).remount {
                let tree = open_bind(mount, bundle)
                    .and_then(|tree| maps.apply(&tree, mount).map(|()| tree))
                    .with_context(|| format!("mount {}", mount.destination().display()))?;
                sources.binds.insert(index, tree.into_fd());
            }
        }
        if user_namespace {
            for path in devices::paths(spec) {
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
        let binds = self.binds.iter().map(|(index, fd)| ([&[BIND], &index.to_ne_bytes()[..]].concat(), fd));
        let devices =
            self.devices.iter().map(|(path, fd)| ([&[DEVICE], path.as_os_str().as_bytes()].concat(), fd));
        for (name, fd) in root.chain(binds).chain(devices) {
            channel.send(Tag::Source, &name, Some(fd.as_fd()))?;
        }
        Ok(())
    }

    /// The child's half: asks, and takes what comes until `Go`.
    pub fn receive(channel: &Channel) -> Result<Sources> {
        let mut sources = Sources::default();
        channel.send(Tag::Sources, &[], None)?;
        loop {
            let message = channel.receive()?.context("the runtime went away")?;
            let fd = match (message.tag, message.fd) {
                (Tag::Go, _) => return Ok(sources),
                (Tag::Source, Some(fd)) => fd,
                (tag, _) => bail!("unexpected message {tag:?} among the sources"),
            };
            match message.body.split_first() {
                Some((&ROOT, _)) => sources.root = Some(fd),
                Some((&BIND, index)) => {
                    sources.binds.insert(usize::from_ne_bytes(index.try_into()?), fd);
                }
                Some((&DEVICE, path)) => {
                    sources.devices.insert(OsStr::from_bytes(path).into(), fd);
                }
                _ => bail!("unknown source"),
            }
        }
    }

    /// All of them, for the child that closes everything else.
    pub fn fds(&self) -> Vec<RawFd> {
        self.root
            .iter()
            .chain(self.binds.values())
            .chain(self.devices.values())
            .map(AsRawFd::as_raw_fd)
            .collect()
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

    pub fn take_bind(&mut self, index: usize) -> Option<OwnedFd> {
        self.binds.remove(&index)
    }

    pub fn take_device(&mut self, path: &Path) -> Option<OwnedFd> {
        self.devices.remove(path)
    }
}

/// What a `Source` message is of.
const ROOT: u8 = b'r';
const BIND: u8 = b'b';
const DEVICE: u8 = b'd';

/// A bind's source; a relative one is relative to the bundle, as in runc.
pub fn open_bind(mount: &Mount, bundle: &Path) -> Result<Tree> {
    let source = mount.source().as_deref().context("a bind mount needs a source")?;
    Tree::clone_of(&bundle.join(source), options::of(mount).bind == Some(true))
}

fn lacks_privilege(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<rustix::io::Errno>(),
        Some(&rustix::io::Errno::PERM | &rustix::io::Errno::ACCESS)
    )
}
