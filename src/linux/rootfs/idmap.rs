//! Idmapped bind mounts: a user namespace made for the mapping alone, put on a tree that is attached nowhere yet
//! (mount_setattr(2) refuses others). By the parent. That a mount's mappings are in order has
//! been checked by `bundle`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Mount};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::mount::Tree;
use super::options;
use crate::linux::namespaces;
use crate::linux::sys::{self, Cloned};

type Maps<'a> = (&'a [LinuxIdMapping], &'a [LinuxIdMapping]);

/// The user namespaces of a container's mounts. A Kubernetes pod has dozens of mounts with one mapping, and a
/// namespace costs a process.
pub struct IdMaps<'a> {
    linux: Option<&'a Linux>,
    made: Vec<(Maps<'a>, OwnedFd)>,
}

/// Mappings alone mean `idmap` (config.md).
pub fn is_wanted(mount: &Mount) -> bool {
    let (uids, gids) = maps_of(mount);
    let option = mount.options().iter().flatten().any(|word| word == "idmap" || word == "ridmap");
    option || !uids.is_empty() || !gids.is_empty()
}

fn maps_of(mount: &Mount) -> Maps<'_> {
    let (uids, gids) = (mount.uid_mappings().as_deref(), mount.gid_mappings().as_deref());
    (uids.unwrap_or_default(), gids.unwrap_or_default())
}

impl<'a> IdMaps<'a> {
    pub fn new(linux: Option<&'a Linux>) -> IdMaps<'a> {
        IdMaps { linux, made: Vec::new() }
    }

    /// Maps the mount's tree, if it asks for that.
    pub fn apply(&mut self, tree: &Tree, mount: &'a Mount) -> Result<()> {
        if !is_wanted(mount) {
            return Ok(());
        }
        let recursive = options::of(mount).idmap_recursive;
        let own = maps_of(mount);
        if own.0.is_empty()
            && let Some(path) = self.joined()
        {
            return tree.set_idmap(recursive, namespaces::open(path)?.as_fd());
        }
        let maps = if own.0.is_empty() { namespaces::id_maps(self.linux) } else { own };
        tree.set_idmap(recursive, self.namespace(maps)?.as_fd())
    }

    /// The user namespace that the container joins, whose mappings only the kernel knows.
    fn joined(&self) -> Option<&'a Path> {
        let user =
            |namespace: &&oci_spec::runtime::LinuxNamespace| namespace.typ() == LinuxNamespaceType::User;
        self.linux?.namespaces().as_ref()?.iter().find(user)?.path().as_deref()
    }

    fn namespace(&mut self, maps: Maps<'a>) -> Result<&OwnedFd> {
        let index = match self.made.iter().position(|(have, _)| *have == maps) {
            Some(index) => index,
            None => {
                let fd = user_namespace(maps).context("make a user namespace for the mapping")?;
                self.made.push((maps, fd));
                self.made.len() - 1
            }
        };
        Ok(&self.made[index].1)
    }
}

/// A namespace outlives the process it was made with as long as somebody has it open.
fn user_namespace((uids, gids): Maps<'_>) -> Result<OwnedFd> {
    let parent = rustix::process::getpid();
    match sys::clone3(libc::CLONE_NEWUSER as u64, None, false).context("clone")? {
        Cloned::Child => wait_to_be_killed(parent),
        Cloned::Parent { pid, pidfd } => {
            let made = namespaces::write_id_maps(pid, uids, gids)
                .and_then(|()| namespaces::open(Path::new(&format!("/proc/{pid}/ns/user"))));
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).context("reap the process")?;
            made
        }
    }
}

/// Touches nothing: memory and descriptors are a copy of the parent's, which may be gone before it can kill us.
fn wait_to_be_killed(parent: rustix::process::Pid) -> ! {
    let armed = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_ok();
    while armed && rustix::process::getppid() == Some(parent) {
        rustix::event::pause();
    }
    sys::exit_now(1)
}
