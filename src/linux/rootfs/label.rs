//! `linux.mountLabel`: the SELinux label of what is mounted anew for a container. Binds keep their own, as in runc:
//! relabelling a volume is the engine's business.

use std::os::fd::BorrowedFd;
use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags, XattrFlags};

/// The label, and the mount option that says it.
#[derive(Clone, Copy)]
pub struct Label<'a> {
    option: &'a str,
    label: &'a str,
}

impl<'a> Label<'a> {
    pub fn of(spec: &'a Spec) -> Option<Label<'a>> {
        let label = spec.linux().as_ref()?.mount_label().as_deref().filter(|label| !label.is_empty())?;
        // crun's annotation; `bundle` has seen that it is one of the four.
        let option = spec.annotations().as_ref().and_then(|all| all.get("run.oci.mount_context_type"));
        Some(Label { option: option.map_or("context", String::as_str), label })
    }

    /// The option for a new file system of this kind. The kernel labels procfs and sysfs by itself and takes no option
    /// there; an mqueue has its label set once it is there; cgroup file systems runc leaves alone.
    pub fn option(&self, kind: &str) -> Option<String> {
        let takes = !matches!(kind, "proc" | "sysfs" | "mqueue" | "cgroup" | "cgroup2");
        // fsconfig(2) takes a value of its own: commas need no quotes, and quotes would be part of the label.
        takes.then(|| format!("{}={}", self.option, self.label))
    }

    /// On the root directory of a mount (runc: SetFileLabel).
    pub fn set(&self, mount: BorrowedFd<'_>) -> Result<()> {
        let context = || format!("linux.mountLabel: set {}", self.label);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(mount, Path::new("."), flags, Mode::empty()).with_context(context)?;
        rustix::fs::fsetxattr(&root, "security.selinux", self.label.as_bytes(), XattrFlags::empty())
            .with_context(context)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(annotations: Value, label: &str) -> Spec {
        let spec = json!({"ociVersion": "1.0.0", "annotations": annotations, "linux": {"mountLabel": label}});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn which_file_systems_take_it_and_how() {
        let spec = spec(json!({}), "u:object_r:t:s0:c1,c2");
        let label = Label::of(&spec).unwrap();
        for kind in ["tmpfs", "devpts", "overlay", "ext4"] {
            assert_eq!(label.option(kind).as_deref(), Some("context=u:object_r:t:s0:c1,c2"), "{kind}");
        }
        for kind in ["proc", "sysfs", "mqueue", "cgroup", "cgroup2"] {
            assert_eq!(label.option(kind), None, "{kind}");
        }
    }

    #[test]
    fn the_annotation_chooses_the_option_and_no_label_is_none() {
        let annotations = json!({"run.oci.mount_context_type": "rootcontext"});
        let named = spec(annotations.clone(), "u:r:t:s0");
        assert_eq!(Label::of(&named).unwrap().option("tmpfs").as_deref(), Some("rootcontext=u:r:t:s0"));
        assert!(Label::of(&spec(annotations, "")).is_none());
    }
}
