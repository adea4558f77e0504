//! crun's `run.oci.*` annotations that engines rely on, with their meaning there. Any other of that name is warned
//! about, so that nobody believes in what does not happen. `run.oci.handler` is the executor's, which reads it itself.

use std::collections::HashMap;
use std::path::{Component, Path};

use anyhow::{Result, ensure};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, Spec};

pub const HOOKS_STDOUT: &str = "run.oci.hooks.stdout";
pub const HOOKS_STDERR: &str = "run.oci.hooks.stderr";
pub const PIDFD_RECEIVER: &str = "run.oci.pidfd_receiver";
const DELEGATE: &str = "run.oci.delegate-cgroup";
const KEEP_GROUPS: &str = "run.oci.keep_original_groups";
const SECCOMP_RECEIVER: &str = "run.oci.seccomp.receiver";

/// `run.oci.systemd.subgroup` names a part of what the systemd driver makes, which reads it itself; with cgroupfs crun
/// too leaves it be.
const KNOWN: &[&str] = &[
    HOOKS_STDOUT,
    HOOKS_STDERR,
    PIDFD_RECEIVER,
    DELEGATE,
    KEEP_GROUPS,
    SECCOMP_RECEIVER,
    "run.oci.handler",
    "run.oci.mount_context_type",
    "run.oci.systemd.subgroup",
];

/// `process.user.additionalGids` and setgroups(2) are left alone: crun takes anything but "0" for yes.
pub fn keeps_groups(spec: &Spec) -> bool {
    value(spec, KEEP_GROUPS).is_some_and(|value| value != "0")
}

/// The sub-cgroup that the container's process is moved to and may manage.
pub fn delegated(spec: &Spec) -> Option<&str> {
    value(spec, DELEGATE).filter(|name| !name.is_empty())
}

pub fn value<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(name).map(String::as_str)
}

pub fn check(spec: &Spec) -> Result<()> {
    if let Some(name) = delegated(spec) {
        let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(plain, "annotation {DELEGATE}: {name:?} is not a path below the container's cgroup");
    }
    for name in [HOOKS_STDOUT, HOOKS_STDERR, PIDFD_RECEIVER, SECCOMP_RECEIVER] {
        ensure!(value(spec, name) != Some(""), "annotation {name}: an empty path");
    }
    Ok(())
}

pub fn unknown(annotations: Option<&HashMap<String, String>>) -> Vec<String> {
    let unknown = |name: &&String| name.starts_with("run.oci.") && !KNOWN.contains(&name.as_str());
    let mut names: Vec<&String> = annotations.into_iter().flat_map(HashMap::keys).filter(unknown).collect();
    names.sort();
    names.iter().map(|name| format!("annotation {name} is not supported and has no effect")).collect()
}

/// crun's older spelling of `linux.seccomp.listenerPath`, which wins.
pub fn settle_seccomp(spec: &mut Spec) {
    let Some(receiver) = value(spec, SECCOMP_RECEIVER).map(Into::into) else { return };
    let Some(linux) = spec.linux_mut() else { return };
    if let Some(mut profile) = linux.seccomp().clone().filter(wants_receiver) {
        profile.set_listener_path(Some(receiver));
        linux.set_seccomp(Some(profile));
    }
}

fn wants_receiver(profile: &LinuxSeccomp) -> bool {
    let notifies = |action: LinuxSeccompAction| action == LinuxSeccompAction::ScmpActNotify;
    let rules = profile.syscalls().iter().flatten();
    let unset = profile.listener_path().as_deref().is_none_or(|path| path.as_os_str().is_empty());
    unset && (notifies(profile.default_action()) || rules.into_iter().any(|rule| notifies(rule.action())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(annotations: &[(&str, &str)]) -> Spec {
        let map: HashMap<String, String> =
            annotations.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let mut spec = Spec::default();
        spec.set_annotations(Some(map));
        spec
    }

    #[test]
    fn values_mean_what_they_mean_to_crun() {
        for (value, want) in [("1", true), ("", true), ("yes", true), ("0", false)] {
            assert_eq!(keeps_groups(&spec(&[(KEEP_GROUPS, value)])), want, "{value:?}");
        }
        assert!(!keeps_groups(&spec(&[])));
        assert_eq!(delegated(&spec(&[(DELEGATE, "")])), None);
        assert_eq!(delegated(&spec(&[(DELEGATE, "a/b")])), Some("a/b"));
        for bad in ["..", "/a", "a/../..", "./a"] {
            assert!(check(&spec(&[(DELEGATE, bad)])).is_err(), "{bad}");
        }
        assert!(check(&spec(&[(HOOKS_STDOUT, "")])).is_err());
        assert!(check(&spec(&[(DELEGATE, "a"), (HOOKS_STDERR, "/x")])).is_ok());
    }

    #[test]
    fn what_is_not_known_is_said() {
        let spec =
            spec(&[("run.oci.handler", "wasm"), ("run.oci.zeta", ""), ("run.oci.alpha", ""), ("other", "")]);
        let said = unknown(spec.annotations().as_ref());
        assert_eq!(said.len(), 2);
        assert!(said[0].contains("run.oci.alpha") && said[1].contains("run.oci.zeta"));
    }
}
