//! Fields of the specification that runw does not honour yet: each is refused by its name, so that nobody
//! believes in a limit or a label that is not there. Who builds one removes it here and in `cli::features`.

use anyhow::{Result, bail};
use oci_spec::runtime::Spec;

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
    #[derive(serde::Deserialize)]
    struct Document {
        freebsd: Option<serde::de::IgnoredAny>,
    }
    // JSON may write each letter as an escape. What has neither is not parsed a second time.
    if !super::may_hold(json, "freebsd") && !super::may_hold(json, "\\u00") {
        return Ok(());
    }
    let document: Document = serde_json::from_slice(json)?;
    refuse(&[("freebsd", document.freebsd.is_some())])
}

fn refuse(fields: &[(&str, bool)]) -> Result<()> {
    match fields.iter().find(|(_, used)| *used) {
        Some((field, _)) => bail!("{field} is not supported yet"),
        None => Ok(()),
    }
}
