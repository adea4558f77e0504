//! Namespaces, and the fields that only mean something with one: id mappings, time offsets, sysctls.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType as Kind, Mount, Spec};

/// The kernel's limit on lines of a map (user_namespaces(7)).
const MAX_MAPPINGS: usize = 340;

/// Whether the container has a namespace of this kind, new or joined.
pub fn has(linux: &Linux, kind: Kind) -> bool {
    find(linux, kind).is_some()
}

/// The same, but one that we are in ourselves does not count.
fn has_own(linux: &Linux, kind: Kind) -> bool {
    let id = |path: &Path| path.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
    let ours = || id(&Path::new("/proc/self/ns").join(kind.to_string()));
    has(linux, kind) && joined(linux, kind).is_none_or(|path| id(path).is_none() || id(path) != ours())
}

fn find(linux: &Linux, kind: Kind) -> Option<&LinuxNamespace> {
    linux.namespaces().iter().flatten().find(|namespace| namespace.typ() == kind)
}

/// Engines write `"path": ""` for a new namespace.
fn joined(linux: &Linux, kind: Kind) -> Option<&Path> {
    find(linux, kind)?.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}

/// A new one of the container's own.
pub fn is_private(linux: &Linux, kind: Kind) -> bool {
    has(linux, kind) && joined(linux, kind).is_none()
}

pub fn listed_once_and_there(linux: &Linux) -> Result<()> {
    let mut seen = HashSet::new();
    for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let kind = namespace.typ();
        let field = format!("linux.namespaces[{index}]");
        // oci-spec displays the name of the link in /proc/PID/ns. These five no kernel that runs containers is without.
        let usual = [Kind::Pid, Kind::Network, Kind::Mount, Kind::Ipc, Kind::Uts].contains(&kind);
        let known = usual || Path::new("/proc/self/ns").join(kind.to_string()).exists();
        ensure!(known, "{field}: {kind} namespaces aren't enabled in the kernel");
        if let Some(path) = joined(linux, kind) {
            ensure!(path.is_absolute(), "{field}.path {path:?} must be absolute");
            path.metadata().with_context(|| format!("{field}.path {}", path.display()))?;
        }
        ensure!(seen.insert(kind), "{field}: the {kind} namespace is given twice");
    }
    Ok(())
}

pub fn user(linux: &Linux) -> Result<()> {
    let maps = [("linux.uidMappings", linux.uid_mappings()), ("linux.gidMappings", linux.gid_mappings())];
    let given = |map: &Option<Vec<LinuxIdMapping>>| map.as_ref().is_some_and(|map| !map.is_empty());
    if !has(linux, Kind::User) {
        let none = maps.iter().all(|(_, map)| !given(map));
        ensure!(none, "user namespace mappings specified, but user namespace isn't enabled in the config");
        return Ok(());
    }
    for (field, map) in maps {
        // A joined one has its mappings already; containerd repeats them.
        let needed = joined(linux, Kind::User).is_none();
        ensure!(
            given(map) || !needed,
            "user namespaces enabled, but no namespace path nor {field} specified"
        );
        mappings(map.as_deref().unwrap_or_default()).context(field)?;
    }
    Ok(())
}

/// Idmapped mounts (config.md, "mounts"; the texts are runc's): mappings, the option that says so, or both. The
/// option alone means the container's own.
pub fn mount(mount: &Mount, linux: Option<&Linux>) -> Result<()> {
    let uids = mount.uid_mappings().as_deref().unwrap_or_default();
    let gids = mount.gid_mappings().as_deref().unwrap_or_default();
    let word = |names: [&str; 2]| mount.options().iter().flatten().any(|word| names.contains(&word.as_str()));
    if uids.is_empty() && gids.is_empty() && !word(["idmap", "ridmap"]) {
        return Ok(());
    }
    ensure!(
        mount.typ().as_deref() == Some("bind") || word(["bind", "rbind"]),
        "id-mapped mounts are only supported for bind-mounts"
    );
    let both = !uids.is_empty() && !gids.is_empty();
    let container = uids.is_empty() && gids.is_empty() && linux.is_some_and(|linux| has(linux, Kind::User));
    ensure!(both || container, "id-mapped mounts must have both uid and gid mappings specified");
    mappings(uids).context("uidMappings")?;
    mappings(gids).context("gidMappings")
}

/// The kernel answers all of these with a bare EINVAL.
fn mappings(map: &[LinuxIdMapping]) -> Result<()> {
    ensure!(map.len() <= MAX_MAPPINGS, "{} entries are more than the {MAX_MAPPINGS} Linux allows", map.len());
    let range = |start: u32, size: u32| u64::from(start)..u64::from(start) + u64::from(size);
    for (index, one) in map.iter().enumerate() {
        ensure!(one.size() > 0, "[{index}].size must not be 0");
        for (name, start) in [("containerID", one.container_id()), ("hostID", one.host_id())] {
            let end = range(start, one.size()).end;
            ensure!(end <= u64::from(u32::MAX), "[{index}]: {name} and size go beyond the last id");
        }
        let overlaps = |a: u32, b: u32, other: &LinuxIdMapping| {
            let (a, b) = (range(a, one.size()), range(b, other.size()));
            a.start < b.end && b.start < a.end
        };
        for (other_index, other) in map[..index].iter().enumerate() {
            let overlap = overlaps(one.container_id(), other.container_id(), other)
                || overlaps(one.host_id(), other.host_id(), other);
            ensure!(!overlap, "[{index}] overlaps [{other_index}]");
        }
    }
    Ok(())
}

pub fn time(linux: &Linux) -> Result<()> {
    let Some(offsets) = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty()) else {
        return Ok(());
    };
    ensure!(
        has(linux, Kind::Time),
        "time namespace offsets specified, but time namespace isn't enabled in the config"
    );
    ensure!(
        joined(linux, Kind::Time).is_none(),
        "time namespace enabled, but both namespace path and time offsets specified -- you may only provide one"
    );
    for (clock, offset) in offsets {
        // time_namespaces(7): these two have offsets.
        ensure!(
            ["monotonic", "boottime"].contains(&clock.as_str()),
            "linux.timeOffsets: unknown clock {clock:?}"
        );
        let nanos = offset.nanosecs().unwrap_or_default();
        ensure!(nanos < 1_000_000_000, "linux.timeOffsets.{clock}.nanosecs {nanos} is a second or more");
    }
    Ok(())
}

/// They would hide files of the host from everybody.
pub fn paths_need_mount(linux: &Linux) -> Result<()> {
    let some = |paths: &Option<Vec<String>>| paths.as_ref().is_some_and(|paths| !paths.is_empty());
    let restricted = some(linux.masked_paths()) || some(linux.readonly_paths());
    ensure!(
        !restricted || has_own(linux, Kind::Mount),
        "unable to restrict sys entries without a private MNT namespace"
    );
    Ok(())
}

/// Without a mount namespace the host's is mounted in.
pub fn mounts_of_the_host(spec: &Spec) -> Result<()> {
    let linux = spec.linux().as_ref();
    if linux.is_some_and(|linux| has_own(linux, Kind::Mount)) {
        return Ok(());
    }
    // user_namespaces(7): to mount takes capabilities in the namespace that owns the mounts.
    let user = linux.is_some_and(|linux| has(linux, Kind::User));
    ensure!(!user, "linux.namespaces: a user namespace needs a mount namespace of its own");
    // The container's root must stay the mount that `delete` knows.
    let over_root = spec.mounts().iter().flatten().position(|mount| mount.destination() == Path::new("/"));
    over_root.map_or(Ok(()), |index| bail!("mounts[{index}].destination / needs a mount namespace"))
}

/// Only sysctls that belong to a namespace of the container (runc's list): any other is the host's.
pub fn sysctl(linux: &Linux) -> Result<()> {
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    for key in linux.sysctl().iter().flatten().map(|(key, _)| key) {
        let name = dotted(key);
        // The name becomes a path below /proc/sys.
        let plain =
            !name.is_empty() && name.split('.').all(|part| !part.is_empty() && part != "/" && part != "//");
        ensure!(plain && !name.contains("/../"), "linux.sysctl: {key:?} is not a sysctl name");
        if IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.") {
            ensure!(
                has(linux, Kind::Ipc),
                "linux.sysctl: sysctl {key:?} is not allowed in the hosts ipc namespace"
            );
        } else if name.starts_with("net.") {
            ensure!(
                has_own(linux, Kind::Network),
                "linux.sysctl: sysctl {key:?} not allowed in host network namespace"
            );
        } else if name == "kernel.domainname" && has(linux, Kind::Uts) {
        } else if name == "kernel.hostname" && has(linux, Kind::Uts) {
            bail!(
                "linux.sysctl: sysctl {key:?} is not allowed as it conflicts with the OCI \"hostname\" field"
            );
        } else {
            bail!("linux.sysctl: sysctl {key:?} is not in a separate kernel namespace");
        }
    }
    Ok(())
}

/// Interfaces to be moved into the container (the texts are runc's).
pub fn net_devices(linux: &Linux) -> Result<()> {
    let Some(devices) = linux.net_devices().as_ref().filter(|devices| !devices.is_empty()) else {
        return Ok(());
    };
    ensure!(
        has_own(linux, Kind::Network),
        "linux.netDevices: unable to move network devices without a private NET namespace"
    );
    ensure!(
        rustix::process::geteuid().is_root(),
        "linux.netDevices: network devices are not supported for rootless containers"
    );
    let mut names = HashSet::new();
    for (name, device) in devices {
        let new_name = device.name().as_deref().filter(|new| !new.is_empty()).unwrap_or(name);
        for name in [name, new_name] {
            ensure!(is_interface_name(name), "linux.netDevices: invalid network device name {name:?}");
        }
        ensure!(names.insert(new_name), "linux.netDevices: two devices would be {new_name:?}");
    }
    Ok(())
}

/// The kernel's dev_valid_name.
fn is_interface_name(name: &str) -> bool {
    let plain = |c: char| c != '/' && c != ':' && !c.is_ascii_whitespace() && c != '\u{b}';
    !name.is_empty() && name.len() < 16 && name != "." && name != ".." && name.chars().all(plain)
}

/// `net/ipv4/conf/eth0.1/x` and `net.ipv4.conf.eth0/1.x` are the same (sysctl.d(5)): the first separator tells
/// which form it is, and in the other form the two characters change places.
fn dotted(key: &str) -> String {
    if key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'/') {
        let swap = |c| match c {
            '/' => '.',
            '.' => '/',
            c => c,
        };
        return key.chars().map(swap).collect();
    }
    key.to_owned()
}
