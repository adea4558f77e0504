//! What is opened before the child exists, with the host's eyes: the root, the sources of bind mounts and, for a
//! user namespace, device nodes, each as a detached tree. Without privilege the child opens them itself.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Mount, Spec};

use super::devices;
use super::idmap::{self, IdMaps};
use super::mount::{Tree, is_bind};
use super::options;

/// The opened sources; those that are missing are opened by path when their turn comes.
#[derive(Default)]
pub struct Sources {
    root: Option<OwnedFd>,
    binds: HashMap<usize, OwnedFd>,
    devices: HashMap<PathBuf, OwnedFd>,
}

impl Sources {
    /// A container without a mount namespace of its own, or a caller who may not clone mounts, opens nothing here.
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
            if is_bind(mount) {
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

    /// All of them, for the child that closes everything else.
    pub fn fds(&self) -> Vec<RawFd> {
        self.root
            .iter()
            .chain(self.binds.values())
            .chain(self.devices.values())
            .map(AsRawFd::as_raw_fd)
            .collect()
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

/// A bind's source; a relative one is relative to the bundle, as in runc.
pub fn open_bind(mount: &Mount, bundle: &Path) -> Result<Tree> {
    let source = mount.source().as_deref().context("a bind mount needs a source")?;
    let options = options::parse(mount.options().as_deref().unwrap_or_default())?;
    Tree::clone_of(&bundle.join(source), options.bind == Some(true))
}

fn lacks_privilege(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<rustix::io::Errno>(),
        Some(&rustix::io::Errno::PERM | &rustix::io::Errno::ACCESS)
    )
}
