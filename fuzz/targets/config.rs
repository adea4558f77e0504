//! config.json: what is accepted keeps what the rest of runw relies on, what is refused is refused in one line.

#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Spec;
use runw_fuzz::{bundle, error};
use serde_json::Value;

runw_fuzz::mutate_json!();

fuzz_target!(|data: &[u8]| match bundle::accept(data) {
    Ok((spec, warnings)) => {
        accepted(&spec);
        assert!(warnings.iter().all(|warning| !warning.is_empty()));
    }
    Err(failure) => {
        let line = error::line(&failure);
        assert!(!line.is_empty() && !line.contains(char::is_control), "{line:?}");
        assert!(line.len() <= 1000 + 16 * data.len(), "{} bytes of message for {}", line.len(), data.len());
    }
});

fn accepted(spec: &Spec) {
    let bytes = serde_json::to_vec(spec).expect("it was JSON");
    // Every later verb reads the configuration again, and `update` writes it.
    let (again, _) = bundle::accept(&bytes).unwrap_or_else(|failure| {
        panic!("written again it is refused: {}\n{}", error::line(&failure), String::from_utf8_lossy(&bytes))
    });
    assert!(again == *spec, "written again it is another:\n{spec:#?}\n{again:#?}");

    let mut document: Value = serde_json::from_slice(&bytes).expect("JSON");
    facts(&document);
    document.as_object_mut().expect("an object").remove("annotations");
    assert!(!has_nul(&document), "{document}");
}

/// What nobody after `bundle` looks at again.
fn facts(document: &Value) {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let list =
        |pointer: &str| document.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let keys = |pointer: &str| -> Vec<String> {
        document
            .pointer(pointer)
            .and_then(Value::as_object)
            .map(|o| o.keys().cloned().collect())
            .unwrap_or_default()
    };
    assert!(!text("/root/path").is_empty());
    assert!(text("/process/cwd").starts_with('/'));
    assert!(!list("/process/args").is_empty());
    assert!(text("/hostname").len() <= 64 && text("/domainname").len() <= 64);
    for entry in list("/process/env") {
        assert!(entry.as_str().is_some_and(|entry| entry.find('=').is_some_and(|at| at > 0)), "{entry}");
    }
    for id in ["/process/user/uid", "/process/user/gid"] {
        let id = document.pointer(id).and_then(Value::as_u64).unwrap_or_default();
        assert!(id < u64::from(u32::MAX), "-1 would keep root's");
    }
    for mount in list("/mounts") {
        assert!(mount["destination"].as_str().is_some_and(|path| path.starts_with('/')), "{mount}");
    }
    for key in keys("/linux/resources/unified") {
        assert!(!key.contains('/') && !key.contains(".."), "a file of another cgroup: {key:?}");
    }
    for key in keys("/linux/sysctl") {
        let path = key.replace('.', "/");
        assert!(["net/", "kernel/", "fs/mqueue/"].iter().any(|start| path.starts_with(start)), "{key:?}");
        assert!(!path.contains("//"), "{key:?}");
    }
    for field in ["/linux/maskedPaths", "/linux/readonlyPaths"] {
        assert!(list(field).iter().all(|path| path.as_str().is_some_and(|path| path.starts_with('/'))));
    }
    assert!(!text("/linux/cgroupsPath").split('/').any(|part| part == ".."));
    let kinds: Vec<Value> =
        list("/linux/namespaces").iter().map(|namespace| namespace["type"].clone()).collect();
    let different: HashSet<&str> = kinds.iter().filter_map(Value::as_str).collect();
    assert_eq!(different.len(), kinds.len(), "{kinds:?}");
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        _ => false,
    }
}
