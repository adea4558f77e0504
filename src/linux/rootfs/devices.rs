//! Device nodes and the symlinks that every container has in /dev, made by descriptor (CVE-2026-41579: an image's
//! /dev may be a symlink; here it leads nowhere but inside the root).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;

use super::mount::{Tree, is_bind, new_filesystem};
use super::options::Options;
use super::{Root, Sources, inside, open_directory};
use crate::linux::namespaces;

struct Node {
    path: PathBuf,
    kind: FileType,
    device: u64,
    mode: Mode,
    uid: u32,
    gid: u32,
}

/// runc's specconv.AllowedDevices that have a path (runtime-spec config-linux.md, "Default Devices").
const DEFAULTS: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/zero", 1, 5),
    ("/dev/urandom", 1, 9),
];

/// A bind of the host's /dev is left as it is (runc: needsSetupDev).
pub fn needs_setup(spec: &Spec) -> bool {
    !spec
        .mounts()
        .iter()
        .flatten()
        .any(|mount| is_bind(mount) && normal(mount.destination()) == Path::new("/dev"))
}

fn normal(path: &Path) -> PathBuf {
    path.components().collect()
}

/// /dev/ptmx is a link to the container's own whatever is asked for (runc: createDevices).
fn own(spec: &Spec) -> impl Iterator<Item = &LinuxDevice> {
    let all = spec.linux().iter().flat_map(|l| l.devices().iter().flatten());
    all.filter(|device| normal(device.path()) != Path::new("/dev/ptmx"))
}

/// The paths of all nodes to be made.
pub fn paths(spec: &Spec) -> Vec<PathBuf> {
    let own = own(spec).map(|device| device.path().clone());
    own.chain(DEFAULTS.iter().map(|(path, ..)| PathBuf::from(path))).collect()
}

fn nodes(spec: &Spec) -> Result<Vec<Node>> {
    let mut nodes = own(spec).map(node).collect::<Result<Vec<_>>>()?;
    for (path, major, minor) in DEFAULTS {
        let path = PathBuf::from(path);
        if !nodes.iter().any(|node| node.path == path) {
            let device = makedev(*major, *minor);
            let mode = Mode::from_raw_mode(0o666);
            nodes.push(Node { path, kind: FileType::CharacterDevice, device, mode, uid: 0, gid: 0 });
        }
    }
    Ok(nodes)
}

fn node(device: &LinuxDevice) -> Result<Node> {
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => {
            bail!("linux.devices: {}: type a is for cgroup rules only", device.path().display())
        }
    };
    let number = |number: i64| {
        u32::try_from(number)
            .with_context(|| format!("linux.devices: {}: bad number", device.path().display()))
    };
    Ok(Node {
        path: device.path().clone(),
        kind,
        device: makedev(number(device.major())?, number(device.minor())?),
        mode: Mode::from_raw_mode(device.file_mode().unwrap_or(0o666) & 0o7777),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

pub fn create(root: &Root<'_>, at: BorrowedFd<'_>, sources: &mut Sources) -> Result<()> {
    let mut parents = inside::Parents::of(at);
    let mut maker: Option<(&Path, Owner)> = None;
    let nodes = nodes(root.spec)?;
    for node in &nodes {
        let context = || format!("device {}", node.path.display());
        if root.user_namespace {
            // mknod(2): nodes made in a user namespace would be useless.
            bind(at, node, sources.take_device(&node.path)).with_context(context)?;
            continue;
        }
        match make(&mut parents, node, &mut maker) {
            Err(error) if matches!(error.downcast_ref(), Some(&Errno::PERM | &Errno::ACCESS)) => {
                bind(at, node, None).with_context(context)?;
            }
            other => other.with_context(context)?,
        }
    }
    Ok(())
}

/// The nodes of `linux.devices` for a user namespace, as detached mounts. mknod(2) in there would make nodes that nobody can
/// open, so they are made on a file system of the host's root (as in crun; runc binds what the host has at the path,
/// whatever device that is). Those that cannot be made, and whose owner has no id on the host, are not among them.
pub fn apart(spec: &Spec, root: &Path) -> Result<Vec<(PathBuf, OwnedFd)>> {
    let nodes = own(spec).map(node).collect::<Result<Vec<_>>>()?;
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let (uids, gids) = namespaces::id_maps(spec.linux().as_ref());
    namespaces::in_mounts_apart(|| {
        let tmpfs = new_filesystem("tmpfs", Some(Path::new("tmpfs")), &Options::default())?;
        // open_tree(2) clones only what is mounted somewhere (until Linux 6.15).
        tmpfs.attach(open_directory(root)?.as_fd())?;
        let mut made = Vec::new();
        for mut node in nodes {
            let owner = namespaces::on_host(node.uid, uids).zip(namespaces::on_host(node.gid, gids));
            let Some(owner) = owner else { continue };
            (node.uid, node.gid) = owner;
            let context = || format!("device {}", node.path.display());
            let name = made.len().to_string();
            match make_at(tmpfs.fd(), OsStr::new(&name), &node, None) {
                Err(Errno::PERM | Errno::ACCESS) => continue,
                other => other.with_context(context)?,
            }
            rustix::fs::chmodat(tmpfs.fd(), &name, node.mode, AtFlags::empty()).with_context(context)?;
            let fd = rustix::fs::openat(tmpfs.fd(), &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            made.push((node.path, Tree::clone_of_fd(fd.as_fd())?.into_fd()));
        }
        Ok(made)
    })
}

/// User and group.
type Owner = (u32, u32);

/// `maker` is whose the last one was, and in which directory.
fn make<'a>(
    parents: &mut inside::Parents<'_>,
    node: &'a Node,
    maker: &mut Option<(&'a Path, Owner)>,
) -> Result<()> {
    let (directory, name) = parents.get(&node.path)?;
    let parent = node.path.parent().unwrap_or(Path::new("/"));
    let maker = match maker.take().filter(|(last, _)| *last == parent) {
        Some(same) => maker.insert(same).1,
        None => maker.insert((parent, maker_in(directory)?)).1,
    };
    match make_at(directory, name, node, Some(maker)) {
        // One that is there already is the image's or the engine's business, as in runc.
        Err(Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

/// mknod(2): what we make in this directory is ours, and of its group if it says so.
fn maker_in(directory: BorrowedFd<'_>) -> rustix::io::Result<Owner> {
    let stat = rustix::fs::fstat(directory)?;
    let hands_on = Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID);
    let gid = if hands_on { stat.st_gid } else { rustix::process::getegid().as_raw() };
    Ok((rustix::process::geteuid().as_raw(), gid))
}

/// `maker`: whose it is then, if that is known.
fn make_at(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    node: &Node,
    maker: Option<Owner>,
) -> rustix::io::Result<()> {
    rustix::fs::mknodat(directory, name, node.kind, node.mode, node.device)?;
    if maker == Some((node.uid, node.gid)) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn bind(at: BorrowedFd<'_>, node: &Node, source: Option<OwnedFd>) -> Result<()> {
    let tree = match source {
        Some(fd) => Tree::from_fd(fd),
        None => Tree::clone_of(&node.path, false)?,
    };
    let target = inside::file(at, &node.path)?;
    tree.attach(target.as_fd())
}

/// /dev/ptmx is the devpts instance's own, never the host's.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

pub fn link_defaults(at: BorrowedFd<'_>) -> Result<()> {
    let mut parents = inside::Parents::of(at);
    let (directory, name) = parents.get(Path::new("/dev/ptmx"))?;
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error).context("remove /dev/ptmx"),
    }
    link(directory, "pts/ptmx", name)?;
    for (target, path) in LINKS {
        let (directory, name) = parents.get(Path::new(path))?;
        link(directory, target, name)?;
    }
    if Path::new("/proc/kcore").exists() {
        let (directory, name) = parents.get(Path::new("/dev/core"))?;
        link(directory, "/proc/kcore", name)?;
    }
    Ok(())
}

fn link(at: BorrowedFd<'_>, target: &str, name: &OsStr) -> Result<()> {
    match rustix::fs::symlinkat(target, at, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("symlink {}", name.display())),
    }
}
