//! What must hold of a config.json before anything is made for it, one small function per concern, in the
//! spirit of runc's libcontainer/configs/validate: an error found here costs nothing to undo. Looks, never
//! changes.

use std::collections::HashMap;
use std::path::{Component, Path};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{
    Hook, Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, LinuxSeccompAction, Spec,
};

use super::{annotations, attributes, labels, namespaces, process, unsupported};

const CHECKS: &[fn(&Spec) -> Result<()>] =
    &[version, unsupported::platforms, root, has_process, linux, labels::context_type, names, mounts, hooks];

const LINUX_CHECKS: &[fn(&Linux) -> Result<()>] = &[
    labels::mounts,
    closid,
    namespaces::listed_once_and_there,
    namespaces::user,
    namespaces::time,
    namespaces::paths_need_mount,
    namespaces::sysctl,
    namespaces::net_devices,
    attributes::memory_policy,
    hidden_paths,
    propagation,
    devices,
    cgroups_path,
    unified,
    seccomp,
];

pub fn spec(spec: &Spec) -> Result<()> {
    annotations::check(spec)?;
    CHECKS.iter().try_for_each(|check| check(spec))
}

fn linux(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    LINUX_CHECKS.iter().try_for_each(|check| check(linux))
}

/// Minor versions only add to the specification, so those up to the newest we know of are understood, or what
/// they add is refused by name. Pre-releases as written by runc and containerd (`1.0.2-dev`) are included.
fn version(spec: &Spec) -> Result<()> {
    let text = spec.version();
    ensure!(!text.is_empty(), "ociVersion is required");
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let numbers: Option<Vec<u32>> = core.split('.').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some([1, 0..=3, _]) => Ok(()),
        Some([_, _, _]) => bail!("ociVersion {text:?} is not supported, only 1.0.0 to 1.3.x are"),
        _ => bail!("ociVersion {text:?} is not a semantic version"),
    }
}

fn root(spec: &Spec) -> Result<()> {
    let root = spec.root().as_ref().context("root is required")?;
    ensure!(!root.path().as_os_str().is_empty(), "root.path must not be empty");
    Ok(())
}

fn has_process(spec: &Spec) -> Result<()> {
    let wanted = spec.process().as_ref().context("process property must not be empty")?;
    process::check(wanted).context("process")
}

fn names(spec: &Spec) -> Result<()> {
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else { continue };
        // __NEW_UTS_LEN: sethostname(2) and setdomainname(2) answer EINVAL beyond it.
        ensure!(name.len() <= 64, "{field}: {} bytes are more than the 64 Linux allows", name.len());
        let private =
            spec.linux().as_ref().is_some_and(|linux| namespaces::has(linux, LinuxNamespaceType::Uts));
        ensure!(private, "unable to set {field} without a private UTS namespace");
    }
    Ok(())
}

fn mounts(spec: &Spec) -> Result<()> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let field = format!("mounts[{index}]");
        ensure!(!mount.destination().as_os_str().is_empty(), "{field}.destination must not be empty");
        namespaces::mount(mount, spec.linux().as_ref()).context(field)?;
    }
    Ok(())
}

fn hooks(spec: &Spec) -> Result<()> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    #[allow(deprecated, reason = "prestart is deprecated by the specification, and what engines still send")]
    let kinds = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, list) in kinds {
        for (index, hook) in list.iter().flatten().enumerate() {
            check_hook(hook).with_context(|| format!("hooks.{kind}[{index}]"))?;
        }
    }
    Ok(())
}

/// config.md, POSIX-platform hooks: the path is absolute, a timeout greater than zero.
fn check_hook(hook: &Hook) -> Result<()> {
    ensure!(hook.path().is_absolute(), "path {:?} must be absolute", hook.path());
    if let Some(timeout) = hook.timeout() {
        ensure!(timeout > 0, "timeout {timeout} must be greater than zero");
    }
    for entry in hook.env().iter().flatten() {
        ensure!(entry.contains('='), "env: invalid environment variable {entry:?}: missing '='");
    }
    Ok(())
}

fn hidden_paths(linux: &Linux) -> Result<()> {
    for (field, paths) in [("maskedPaths", linux.masked_paths()), ("readonlyPaths", linux.readonly_paths())] {
        for path in paths.iter().flatten() {
            ensure!(Path::new(path).is_absolute(), "linux.{field}: {path:?} must be absolute");
        }
    }
    Ok(())
}

fn propagation(linux: &Linux) -> Result<()> {
    const WORDS: &[&str] =
        &["", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];
    let word = linux.rootfs_propagation().as_deref().unwrap_or_default();
    ensure!(WORDS.contains(&word), "linux.rootfsPropagation {word:?} is not known");
    Ok(())
}

fn devices(linux: &Linux) -> Result<()> {
    let mut seen: HashMap<&Path, &LinuxDevice> = HashMap::new();
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let field = || format!("linux.devices[{index}]");
        let path = device.path();
        ensure!(path.is_absolute(), "{}.path {path:?} must be absolute", field());
        // `a` (all) is a word of the device cgroup, not a kind of node.
        ensure!(device.typ() != LinuxDeviceType::A, "{}.type \"a\" is no kind of device", field());
        for (name, number) in [("major", device.major()), ("minor", device.minor())] {
            ensure!(u32::try_from(number).is_ok(), "{}.{name} {number} is out of range", field());
        }
        let node = |device: &LinuxDevice| (device.typ(), device.major(), device.minor());
        if let Some(other) = seen.insert(path, device) {
            ensure!(node(other) == node(device), "{}: {path:?} is already another device", field());
        }
    }
    Ok(())
}

/// The name becomes a directory of resctrl; the words are runc's.
fn closid(linux: &Linux) -> Result<()> {
    let closid = linux.intel_rdt().as_ref().and_then(|rdt| rdt.clos_id().as_deref()).unwrap_or_default();
    ensure!(
        !matches!(closid, "." | "..") && !closid.contains('/'),
        "linux.intelRdt: invalid intelRdt.ClosID {closid:?}"
    );
    Ok(())
}

/// runc cleans such paths and goes on; nobody means them, so we name them.
fn cgroups_path(linux: &Linux) -> Result<()> {
    let Some(path) = linux.cgroups_path() else { return Ok(()) };
    let climbs = path.components().any(|part| part == Component::ParentDir);
    ensure!(!climbs, "linux.cgroupsPath {path:?} must not contain \"..\"");
    Ok(())
}

/// The keys are file names in a cgroup directory we write to as root.
fn unified(linux: &Linux) -> Result<()> {
    let unified = linux.resources().as_ref().and_then(|resources| resources.unified().as_ref());
    for key in unified.into_iter().flat_map(HashMap::keys) {
        let file_name = !key.contains('/') && key.find('.').is_some_and(|dot| dot > 0) && !key.contains("..");
        ensure!(
            file_name,
            "linux.resources.unified: {key:?} must be a file name of a controller (no slashes)"
        );
    }
    Ok(())
}

/// What no filter can mean (seccomp_unotify(2): the listener's descriptor is sent with write and sendmsg, so
/// runc refuses these too); the rest is libseccomp's to judge.
fn seccomp(linux: &Linux) -> Result<()> {
    let Some(seccomp) = linux.seccomp() else { return Ok(()) };
    let notify = LinuxSeccompAction::ScmpActNotify;
    ensure!(
        seccomp.default_action() != notify,
        "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action"
    );
    let mut notifies = false;
    for (index, rule) in seccomp.syscalls().iter().flatten().enumerate() {
        let field = format!("linux.seccomp.syscalls[{index}]");
        ensure!(!rule.names().is_empty(), "{field}.names must not be empty");
        if rule.action() == notify {
            notifies = true;
            let write = rule.names().iter().any(|name| name == "write");
            ensure!(!write, "{field}: SCMP_ACT_NOTIFY cannot be used for the write syscall");
        }
        let args = rule.args().iter().flatten();
        for arg in args {
            ensure!(arg.index() <= 5, "{field}.args: index {} is out of range, syscalls have 6", arg.index());
        }
    }
    let set = |path: &Path| !path.as_os_str().is_empty();
    let listener = seccomp.listener_path().as_deref().is_some_and(set);
    ensure!(listener || !notifies, "linux.seccomp.listenerPath is required with SCMP_ACT_NOTIFY");
    let metadata = seccomp.listener_metadata().as_deref().is_some_and(|text| !text.is_empty());
    ensure!(listener || !metadata, "linux.seccomp.listenerMetadata is set without listenerPath");
    Ok(())
}
