//! Fields of the specification that runw does not honour yet: each is refused by its name, so that nobody
//! believes in a limit or a label that is not there. Who builds one removes it here and in `cli::features`.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use oci_spec::runtime::{Linux, Mount, Process, Spec};

pub fn platforms(spec: &Spec) -> Result<()> {
    refuse(&[
        ("vm", spec.vm().is_some()),
        ("windows", spec.windows().is_some()),
        ("solaris", spec.solaris().is_some()),
        ("zos", spec.zos().is_some()),
    ])
}

/// oci-spec 0.10 does not know runtime-spec 1.3's `freebsd`, and would drop it.
pub fn unknown_platform(json: &[u8]) -> Result<()> {
    const KEY: &[u8] = b"\"freebsd\"";
    if !json.windows(KEY.len()).any(|word| word == KEY) {
        return Ok(());
    }
    let document: serde_json::Value = serde_json::from_slice(json)?;
    refuse(&[("freebsd", document.get("freebsd").is_some())])
}

pub fn linux(linux: &Linux) -> Result<()> {
    refuse(&[
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())),
    ])?;
    selinux("linux.mountLabel", linux.mount_label())
}

pub fn process(process: &Process) -> Result<()> {
    selinux("selinuxLabel", process.selinux_label())?;
    if process.apparmor_profile().as_deref().is_some_and(|profile| !profile.is_empty()) {
        let enabled =
            std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with(b"Y"));
        ensure!(enabled, "apparmorProfile: apparmor profile specified but apparmor is disabled");
    }
    Ok(())
}

/// crun's `idmap=uids=..;gids=..`, which says in a word of its own what the mount's mappings say.
pub fn mount(mount: &Mount) -> Result<()> {
    let inline = |word: &String| word.starts_with("idmap=") || word.starts_with("ridmap=");
    match mount.options().iter().flatten().find(|word| inline(word)) {
        Some(word) => bail!("option {word:?} is not supported, give uidMappings and gidMappings"),
        None => Ok(()),
    }
}

fn selinux(field: &str, label: &Option<String>) -> Result<()> {
    if label.as_deref().is_none_or(str::is_empty) {
        return Ok(());
    }
    let enabled = Path::new("/sys/fs/selinux/enforce").exists();
    ensure!(
        enabled,
        "{field}: selinux label is specified in config, but selinux is disabled or not supported"
    );
    bail!("{field} is not supported yet")
}

fn refuse(fields: &[(&str, bool)]) -> Result<()> {
    match fields.iter().find(|(_, used)| *used) {
        Some((field, _)) => bail!("{field} is not supported yet"),
        None => Ok(()),
    }
}
