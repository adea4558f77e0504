//! Fields of the specification that runw does not honour yet: each is refused by its name, so that nobody
//! believes in a limit or a label that is not there. Who builds one removes it here and in `cli::features`.

use anyhow::{Result, bail};
use oci_spec::runtime::{Mount, Spec};

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

/// crun's `idmap=uids=..;gids=..`, which says in a word of its own what the mount's mappings say.
pub fn mount(mount: &Mount) -> Result<()> {
    let inline = |word: &String| word.starts_with("idmap=") || word.starts_with("ridmap=");
    match mount.options().iter().flatten().find(|word| inline(word)) {
        Some(word) => bail!("option {word:?} is not supported, give uidMappings and gidMappings"),
        None => Ok(()),
    }
}

fn refuse(fields: &[(&str, bool)]) -> Result<()> {
    match fields.iter().find(|(_, used)| *used) {
        Some((field, _)) => bail!("{field} is not supported yet"),
        None => Ok(()),
    }
}
