//! NUL bytes: legal in JSON as `\u0000`, while every string of a configuration ends up as a C string somewhere
//! (a path, an argument, a mount option), where what follows the NUL would be lost in silence.

use anyhow::{Result, bail};
use serde_json::Value;

/// Names the first field that holds one. Annotations are excepted: they are data for others, and never reach
/// the kernel as they are.
pub fn refuse(json: &[u8]) -> Result<()> {
    // A raw NUL is no JSON, so without this escape there is nothing to look for, and the document is not
    // parsed a second time.
    if !super::may_hold(json, "\\u0000") {
        return Ok(());
    }
    let mut document: Value = serde_json::from_slice(json)?;
    if let Some(top) = document.as_object_mut() {
        top.remove("annotations");
    }
    match find(&document) {
        Some(path) => bail!("{}: strings must not contain NUL bytes", path.trim_start_matches('.')),
        None => Ok(()),
    }
}

fn find(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then(String::new),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(at, item)| Some(format!("[{at}]{}", find(item)?)))
        }
        Value::Object(fields) => fields.iter().find_map(|(name, field)| {
            if name.contains('\0') {
                return Some(format!(".{name}"));
            }
            Some(format!(".{name}{}", find(field)?))
        }),
        _ => None,
    }
}
