//! Which namespaces a process gets: those made with it, those joined by path, and the maps of a new user
//! namespace. Decides and writes maps; the clone and the joins are made by `spawn`.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, LinuxTimeOffset};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;

use super::{kernel_file, sys};

/// CLONE_NEWTIME, missing from the libc crate for this target's `c_int` family.
pub const CLONE_NEWTIME: i32 = 0x80;

/// The CLONE_NEW* bit of a namespace type.
pub fn bit(kind: LinuxNamespaceType) -> i32 {
    match kind {
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::Time => CLONE_NEWTIME,
    }
}

fn listed(linux: Option<&Linux>) -> &[LinuxNamespace] {
    linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default()
}

/// CLONE_NEW* bits of the namespaces that are made for the container: those without a path.
pub fn made(linux: Option<&Linux>) -> i32 {
    let made = listed(linux).iter().filter(|namespace| namespace.path().is_none());
    made.fold(0, |bits, namespace| bits | bit(namespace.typ()))
}

/// A namespace that is there already.
pub struct Joined {
    pub kind: i32,
    pub path: PathBuf,
    pub fd: OwnedFd,
}

/// The namespaces of one process, with the joined ones open.
#[derive(Default)]
pub struct Plan {
    /// CLONE_NEW* bits of the namespaces made anew.
    pub new: i32,
    pub joined: Vec<Joined>,
    /// Network devices are moved into the new network namespace.
    pub fills_network: bool,
}

impl Plan {
    /// Opens the paths with the host's eyes. Joining the user namespace we are in is EINVAL for setns(2), and
    /// naming it means no more than naming nothing: it is left out, as runc does. So is our own mount namespace: a
    /// pivot_root in there would be the host's.
    pub fn of(linux: Option<&Linux>) -> Result<Plan> {
        let fills_network =
            linux.is_some_and(|l| l.net_devices().as_ref().is_some_and(|all| !all.is_empty()));
        let mut plan = Plan { new: made(linux), joined: Vec::new(), fills_network };
        for namespace in listed(linux) {
            let Some(path) = namespace.path() else { continue };
            let (kind, fd) = (bit(namespace.typ()), open(path)?);
            let own = match kind {
                libc::CLONE_NEWUSER => is_same(&fd, "/proc/self/ns/user")?,
                libc::CLONE_NEWNS => is_same(&fd, "/proc/self/ns/mnt")?,
                _ => false,
            };
            if !own {
                plan.joined.push(Joined { kind, path: path.clone(), fd });
            }
        }
        Ok(plan)
    }

    pub fn makes(&self, kind: i32) -> bool {
        self.new & kind != 0
    }

    pub fn joins(&self, kind: i32) -> bool {
        self.joined.iter().any(|joined| joined.kind == kind)
    }

    /// The network namespace of `pid`, also before it has joined it.
    pub fn network_of(&self, pid: i32) -> Result<OwnedFd> {
        match self.joined.iter().find(|joined| joined.kind == libc::CLONE_NEWNET) {
            Some(joined) => joined.fd.try_clone().context("duplicate a namespace handle"),
            None => open(&PathBuf::from(format!("/proc/{pid}/ns/net"))),
        }
    }

    /// The process lives in a user namespace that is not ours.
    pub fn has_user(&self) -> bool {
        self.makes(libc::CLONE_NEWUSER) || self.joins(libc::CLONE_NEWUSER)
    }

    /// The process lives in a mount namespace that is not ours.
    pub fn has_mount(&self) -> bool {
        self.makes(libc::CLONE_NEWNS) || self.joins(libc::CLONE_NEWNS)
    }

    pub fn has_cgroup(&self) -> bool {
        self.makes(libc::CLONE_NEWCGROUP) || self.joins(libc::CLONE_NEWCGROUP)
    }

    /// Where the kernel demands a process between us and the container's: a pid namespace is entered by children
    /// only, and after joining a user namespace (or making one) those of the host can no longer be joined.
    pub fn needs_intermediate(&self) -> bool {
        self.joins(libc::CLONE_NEWPID)
            || self.joins(libc::CLONE_NEWUSER)
            || (self.makes(libc::CLONE_NEWUSER) && !self.joined.is_empty())
    }

    /// What clone3 makes. Time offsets are frozen by the clone, so the child unshares that namespace when they are
    /// due. A cgroup namespace is rooted at its maker's cgroup: with CLONE_INTO_CGROUP alone that is the new one
    /// (seen on 6.18), where v1 hierarchies are joined afterwards it would be the caller's.
    ///
    /// The mqueue of a new ipc namespace belongs to its maker, who is the namespace's root only once the maps are
    /// written.
    pub fn clone_flags(&self, cloned_into_cgroup: bool) -> u64 {
        let mut later = CLONE_NEWTIME | self.first_flags();
        if !cloned_into_cgroup {
            later |= libc::CLONE_NEWCGROUP;
        }
        if self.makes(libc::CLONE_NEWUSER) {
            later |= libc::CLONE_NEWIPC;
        }
        (self.new & !later) as u64
    }

    /// What the process makes as its first act, while its parent, which the clone would hold up, makes the cgroup: a network
    /// namespace takes half a millisecond. Nobody but itself needs them before the first `Go`.
    pub fn first_flags(&self) -> i32 {
        if self.needs_intermediate() {
            return 0;
        }
        let mut kinds = libc::CLONE_NEWNS | libc::CLONE_NEWUTS;
        if !self.fills_network {
            kinds |= libc::CLONE_NEWNET;
        }
        if !self.makes(libc::CLONE_NEWUSER) {
            kinds |= libc::CLONE_NEWIPC;
        }
        self.new & kinds
    }

    /// What is left for unshare(2), but for the time namespace.
    pub fn unshare_flags(&self, cloned_into_cgroup: bool) -> i32 {
        let made = self.clone_flags(cloned_into_cgroup) as i32 | self.first_flags();
        self.new & !CLONE_NEWTIME & !made
    }

    pub fn join(&self) -> Result<()> {
        join(
            self.joined.iter().collect(),
            |joined| joined.kind,
            |Joined { kind, path, fd }| {
                sys::setns(fd.as_fd(), *kind)
                    .with_context(|| format!("join the {} namespace {}", name(*kind), path.display()))
            },
        )
    }
}

/// Joins all of `what`, in runc's order (nsexec.c, join_namespaces): with our own rights as many as they reach, since in
/// the user namespace those of another owner are out of reach; then that; then those that it owns. The mount namespace
/// comes last of its kind, since it changes what `/` and the current directory are.
pub fn join<T>(mut what: Vec<T>, kind: impl Fn(&T) -> i32, join: impl Fn(&T) -> Result<()>) -> Result<()> {
    what.sort_by_key(|one| kind(one) == libc::CLONE_NEWNS);
    let (user, mut others): (Vec<T>, Vec<T>) =
        what.into_iter().partition(|one| kind(one) == libc::CLONE_NEWUSER);
    for user in &user {
        let mut owned = Vec::new();
        for other in others {
            match join(&other) {
                Err(error) if is_denied(&error) => owned.push(other),
                done => done?,
            }
        }
        others = owned;
        join(user)?;
    }
    others.iter().try_for_each(join)
}

/// Whether every id is itself, as in the initial user namespace (user_namespaces(7)); `None` where there is no telling.
pub fn are_ids_our_own() -> Option<bool> {
    let map = kernel_file::read_value("/proc/self/uid_map").ok().filter(|map| !map.is_empty())?;
    Some(map.split_ascii_whitespace().eq(["0", "0", "4294967295"]))
}

pub fn is_denied(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.and_then(std::io::Error::raw_os_error) == Some(libc::EPERM)
}

fn name(kind: i32) -> &'static str {
    match kind {
        libc::CLONE_NEWNS => "mount",
        libc::CLONE_NEWCGROUP => "cgroup",
        libc::CLONE_NEWUTS => "uts",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWPID => "pid",
        libc::CLONE_NEWNET => "network",
        _ => "time",
    }
}

pub fn open(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open namespace {}", path.display()))
}

fn is_same(fd: &OwnedFd, ours: &str) -> Result<bool> {
    let theirs = rustix::fs::fstat(fd).context("stat a namespace")?;
    let ours = rustix::fs::stat(ours).with_context(|| format!("stat {ours}"))?;
    Ok((theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino))
}

/// `linux.uidMappings` and `linux.gidMappings`.
pub fn id_maps(linux: Option<&Linux>) -> (&[LinuxIdMapping], &[LinuxIdMapping]) {
    let uids = linux.and_then(|linux| linux.uid_mappings().as_deref());
    let gids = linux.and_then(|linux| linux.gid_mappings().as_deref());
    (uids.unwrap_or_default(), gids.unwrap_or_default())
}

/// Writes the id maps of the new user namespace of `pid`, once, from outside.
pub fn write_id_maps(pid: i32, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        write_map(pid, "uid_map", uids)?;
        return write_map(pid, "gid_map", gids);
    }
    // user_namespaces(7): without privilege one may map only oneself, and gids only after giving up setgroups;
    // anything more is the business of the set-uid helpers and /etc/subuid.
    if is_only_self(uids, rustix::process::geteuid().as_raw())
        && is_only_self(gids, rustix::process::getegid().as_raw())
    {
        write_proc(pid, "setgroups", "deny")?;
        write_map(pid, "uid_map", uids)?;
        return write_map(pid, "gid_map", gids);
    }
    helper("newuidmap", pid, uids)?;
    helper("newgidmap", pid, gids)
}

/// The host's id for one of the container's; `None` where the maps have none, or only the kernel knows them.
pub fn on_host(id: u32, maps: &[LinuxIdMapping]) -> Option<u32> {
    let within = |map: &&LinuxIdMapping| id.checked_sub(map.container_id()).is_some_and(|by| by < map.size());
    let map = maps.iter().find(within)?;
    map.host_id().checked_add(id - map.container_id())
}

fn is_only_self(maps: &[LinuxIdMapping], id: u32) -> bool {
    matches!(maps, [map] if map.size() == 1 && map.host_id() == id)
}

fn write_map(pid: i32, file: &str, maps: &[LinuxIdMapping]) -> Result<()> {
    let lines: String =
        maps.iter().map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size())).collect();
    write_proc(pid, file, &lines)
}

fn helper(program: &str, pid: i32, maps: &[LinuxIdMapping]) -> Result<()> {
    let ids = maps.iter().flat_map(|m| [m.container_id(), m.host_id(), m.size()]).map(|id| id.to_string());
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(ids)
        .output()
        .with_context(|| format!("run {program}, which maps ids for an unprivileged user"))?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Writes `/proc/PID/timens_offsets` (time_namespaces(7)); possible until the first process enters.
pub fn write_time_offsets(pid: i32, offsets: &HashMap<String, LinuxTimeOffset>) -> Result<()> {
    let lines: String = offsets
        .iter()
        .map(|(clock, offset)| {
            format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0))
        })
        .collect();
    if lines.is_empty() { Ok(()) } else { write_proc(pid, "timens_offsets", &lines) }
}

fn write_proc(pid: i32, file: &str, text: &str) -> Result<()> {
    let path = format!("/proc/{pid}/{file}");
    // One write(2): the kernel takes a map in a single call only.
    fs::write(&path, text).with_context(|| format!("write {:?} to {path}", text.trim_end()))
}

/// Enters the time namespace that this process unshared and whose offsets the parent has written.
pub fn enter_own_time_namespace() -> Result<()> {
    let fd = open(Path::new("/proc/self/ns/time_for_children"))?;
    sys::setns(fd.as_fd(), CLONE_NEWTIME).context("enter the new time namespace")
}

/// Does `work` in the mount namespace of another process, with our own rights, and comes back.
pub fn in_mounts_of<T>(pidfd: BorrowedFd<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    in_mounts(|| sys::setns(pidfd, libc::CLONE_NEWNS).context("enter the container's mount namespace"), work)
}

/// Does `work` where its mounts are seen by nobody, and comes back.
pub fn in_mounts_apart<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let enter = || {
        sys::unshare(libc::CLONE_NEWNS).context("make a mount namespace")?;
        let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags).context("make its mounts private")
    };
    in_mounts(enter, work)
}

/// Back to our root and current directory too, which setns(2) changes.
fn in_mounts<T>(enter: impl FnOnce() -> Result<()>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let here = |path: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("open {path}"))
    };
    let (root, cwd, own) = (here("/")?, here(".")?, open(Path::new("/proc/self/ns/mnt"))?);
    let done = enter().and_then(|()| work());
    sys::setns(own.as_fd(), libc::CLONE_NEWNS).context("go back to our mount namespace")?;
    rustix::process::fchdir(&root).context("go back to our root")?;
    rustix::process::chroot(".").context("go back to our root")?;
    rustix::process::fchdir(&cwd).context("go back to our directory")?;
    done
}

/// Does `work` in that network namespace, and comes back.
pub fn in_network<T>(netns: BorrowedFd<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = open(Path::new("/proc/self/ns/net"))?;
    sys::setns(netns, libc::CLONE_NEWNET).context("enter the container's network namespace")?;
    let done = work();
    sys::setns(own.as_fd(), libc::CLONE_NEWNET).context("go back to our network namespace")?;
    done
}

/// Of the network namespace that we are in: whoever has it can do there what its own rights are.
pub fn socket_for_loopback() -> Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context("socket for the loopback")
}

/// Brings `lo` up, which a new network namespace has down: runc and crun do so for every container.
pub fn loopback_up(socket: BorrowedFd<'_>) -> Result<()> {
    sys::interface_up(socket, c"lo").context("bring the loopback interface up")
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxBuilder, LinuxNamespaceBuilder};

    use super::*;

    fn plan(namespaces: &[(LinuxNamespaceType, Option<&str>)]) -> Plan {
        let namespaces: Vec<_> = namespaces
            .iter()
            .map(|(kind, path)| {
                let builder = LinuxNamespaceBuilder::default().typ(*kind);
                match path {
                    Some(path) => builder.path(*path).build().unwrap(),
                    None => builder.build().unwrap(),
                }
            })
            .collect();
        Plan::of(Some(&LinuxBuilder::default().namespaces(namespaces).build().unwrap())).unwrap()
    }

    #[test]
    fn a_time_namespace_is_never_made_by_the_clone_and_a_cgroup_namespace_only_in_its_cgroup() {
        let plan = plan(&[
            (LinuxNamespaceType::Cgroup, None),
            (LinuxNamespaceType::Time, None),
            (LinuxNamespaceType::Pid, None),
        ]);
        assert_eq!(plan.clone_flags(false), libc::CLONE_NEWPID as u64);
        assert_eq!(plan.clone_flags(true), (libc::CLONE_NEWPID | libc::CLONE_NEWCGROUP) as u64);
    }

    #[test]
    fn a_kubernetes_pod_needs_no_intermediate_process() {
        let plan = plan(&[
            (LinuxNamespaceType::Network, Some("/proc/self/ns/net")),
            (LinuxNamespaceType::Ipc, Some("/proc/self/ns/ipc")),
            (LinuxNamespaceType::Pid, None),
            (LinuxNamespaceType::Mount, None),
        ]);
        assert!(!plan.needs_intermediate());
    }

    #[test]
    fn joining_a_pid_namespace_or_joining_beside_a_new_user_namespace_needs_one() {
        assert!(plan(&[(LinuxNamespaceType::Pid, Some("/proc/self/ns/pid"))]).needs_intermediate());
        assert!(
            plan(&[
                (LinuxNamespaceType::User, None),
                (LinuxNamespaceType::Network, Some("/proc/self/ns/net"))
            ])
            .needs_intermediate()
        );
    }

    #[test]
    fn our_own_user_namespace_is_not_joined() {
        assert!(plan(&[(LinuxNamespaceType::User, Some("/proc/self/ns/user"))]).joined.is_empty());
    }
}
