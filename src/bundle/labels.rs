//! Profiles and labels of the security modules: asked for where the kernel has no such module they would be dropped in
//! silence, and the container run unconfined. The words are runc's.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use oci_spec::runtime::{Linux, Process, Spec};
use rustix::fs::StatVfsMountFlags;

pub fn process(process: &Process) -> Result<()> {
    let given = |label: &Option<String>| label.as_deref().is_some_and(|label| !label.is_empty());
    if given(process.selinux_label()) {
        selinux("selinuxLabel")?;
    }
    if given(process.apparmor_profile()) {
        let enabled =
            std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with(b"Y"));
        ensure!(enabled, "apparmorProfile: apparmor profile specified but apparmor is disabled");
    }
    Ok(())
}

/// runc does not look, and the mount fails on the option the kernel does not know.
pub fn mounts(linux: &Linux) -> Result<()> {
    match linux.mount_label().as_deref() {
        None | Some("") => Ok(()),
        Some(_) => selinux("linux.mountLabel"),
    }
}

/// crun's annotation, as which of the four options of mount(8) `linux.mountLabel` is given.
pub const CONTEXT_TYPE: &str = "run.oci.mount_context_type";

pub fn context_type(spec: &Spec) -> Result<()> {
    let word = spec.annotations().as_ref().and_then(|all: &HashMap<_, _>| all.get(CONTEXT_TYPE));
    let known = ["context", "fscontext", "defcontext", "rootcontext"];
    ensure!(
        word.is_none_or(|word| known.contains(&word.as_str())),
        "annotations: {CONTEXT_TYPE} is none of {}",
        known.join(", ")
    );
    Ok(())
}

fn selinux(field: &str) -> Result<()> {
    ensure!(
        selinux_enabled(),
        "{field}: selinux label is specified in config, but selinux is disabled or not supported"
    );
    Ok(())
}

/// As go-selinux asks: a read-only selinuxfs means the label is somebody else's business (a container's own), and the
/// label `kernel` that no policy is loaded.
fn selinux_enabled() -> bool {
    const SELINUX_MAGIC: i64 = 0xf97c_ff8c;
    let path = "/sys/fs/selinux";
    let mounted = rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type & 0xffff_ffff == SELINUX_MAGIC);
    let writable = rustix::fs::statvfs(path).is_ok_and(|fs| !fs.f_flag.contains(StatVfsMountFlags::RDONLY));
    let policy = std::fs::read("/proc/self/attr/current").is_ok_and(|label| !label.starts_with(b"kernel\0"));
    mounted && writable && policy
}
