//! The second look at a document that did not parse: mends what runc accepts and our parser does not. Capability
//! names the kernel's list has outgrown (runc warns: "ignoring unknown or unavailable capabilities"), a process
//! without `user`, which config.md does not require, scheduler flags by the specification's names where oci-spec
//! 0.10 has others, and an empty CPU list, which config.md takes for none. Nothing else: other errors stand.

use anyhow::{Context, Result};
use oci_spec::runtime::{Capability, LinuxIntelRdt};
use serde_json::{Map, Value, json};

/// The mended document and what must be said about it; `None` when there was nothing to mend.
pub fn mend(bytes: &[u8]) -> Option<(Vec<u8>, Vec<String>)> {
    let mut document: Value = serde_json::from_slice(bytes).ok()?;
    // `exec --process` reads a process on its own.
    let whole = document.get("process").is_some();
    let process = if whole { document.get_mut("process")? } else { &mut document }.as_object_mut()?;
    let mut warnings = Vec::new();
    if let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) {
        drop_unknown(sets, &mut warnings);
    }
    let userless = process.get("user").is_none_or(Value::is_null);
    if userless {
        process.insert("user".into(), json!({}));
    }
    let respelled = respell_scheduler_flags(process);
    let emptied = drop_empty_affinity(process);
    if warnings.is_empty() && !userless && !respelled && !emptied {
        return None;
    }
    Some((serde_json::to_vec(&document).ok()?, warnings))
}

/// enableCMT and enableMBM, which oci-spec 0.10 knows by other names, and drops.
pub fn monitoring(bytes: &[u8], rdt: &mut LinuxIntelRdt) -> Result<()> {
    let document: Value = serde_json::from_slice(bytes)?;
    let flag = |name: &str| -> Result<Option<bool>> {
        let value = document["linux"]["intelRdt"].get(name).cloned().unwrap_or_default();
        serde_json::from_value(value).with_context(|| format!("linux.intelRdt.{name}"))
    };
    #[allow(deprecated, reason = "deprecated by runtime-spec 1.3, and what older engines send")]
    rdt.set_enable_cmt(flag("enableCMT")?).set_enable_mbm(flag("enableMBM")?);
    Ok(())
}

fn respell_scheduler_flags(process: &mut Map<String, Value>) -> bool {
    const NAMES: [(&str, &str); 2] = [
        ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
        ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
    ];
    let flags = process.get_mut("scheduler").and_then(|s| s.get_mut("flags")).and_then(Value::as_array_mut);
    let mut changed = false;
    for flag in flags.into_iter().flatten() {
        if let Some((_, theirs)) = NAMES.iter().find(|(name, _)| flag == name) {
            *flag = json!(theirs);
            changed = true;
        }
    }
    changed
}

fn drop_empty_affinity(process: &mut Map<String, Value>) -> bool {
    let Some(affinity) = process.get_mut("execCPUAffinity").and_then(Value::as_object_mut) else {
        return false;
    };
    let before = affinity.len();
    affinity.retain(|_, list| list != "");
    affinity.len() != before
}

fn drop_unknown(sets: &mut Map<String, Value>, warnings: &mut Vec<String>) {
    for (set, names) in sets {
        let Some(names) = names.as_array_mut() else { continue };
        names.retain(|name| {
            let unknown = name.as_str().filter(|name| !known(name));
            if let Some(name) = unknown {
                warnings.push(format!("process.capabilities.{set}: ignoring unknown capability {name:?}"));
            }
            unknown.is_none()
        });
    }
}

/// Asks the very parser that failed.
fn known(name: &str) -> bool {
    serde_json::from_value::<Capability>(Value::String(name.to_owned())).is_ok()
}
