//! The second look at a document that did not parse: takes out the values that runc knows only to warn about.
//! Only capability names are such values, because the kernel's list grows (runc: "ignoring unknown or
//! unavailable capabilities").

use std::str::FromStr;

use oci_spec::runtime::Capability;
use serde_json::Value;

/// The document without unknown capability names and a warning for each; `None` when there was none of them,
/// so the first error stands.
pub fn without_unknown(bytes: &[u8]) -> Option<(Vec<u8>, Vec<String>)> {
    let mut document: Value = serde_json::from_slice(bytes).ok()?;
    // `exec --process` reads a process on its own.
    let process =
        if document.get("process").is_some() { document.get_mut("process")? } else { &mut document };
    let sets = process.get_mut("capabilities")?.as_object_mut()?;
    let mut warnings = Vec::new();
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
    if warnings.is_empty() {
        return None;
    }
    Some((serde_json::to_vec(&document).ok()?, warnings))
}

/// Asks the very parser that failed.
fn known(name: &str) -> bool {
    serde_json::from_value::<Capability>(Value::String(name.to_owned())).is_ok()
        || Capability::from_str(name).is_ok()
}
