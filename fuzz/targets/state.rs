//! state.json and container ids: a record survives writing and reading, is never taken for another container's, and
//! no id leads out of the state directory.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use runw_fuzz::error;
use runw_fuzz::seam::Status;
use runw_fuzz::state::{FORMAT, Record, check_id};
use serde_json::{Value, json};

runw_fuzz::mutate_json!();

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        id(text);
    }
    let document: Option<Value> = serde_json::from_slice(data).ok();
    let given = document.as_ref().and_then(|document| document["id"].as_str()).unwrap_or("none").to_owned();
    id(&given);
    let path = Path::new("/run/runw/ID/state.json");
    match Record::parse(data, &given, path) {
        Ok(record) => accepted(&record, data),
        Err(failure) => {
            let line = error::line(&failure);
            assert!(line.contains("state.json") && !line.contains(char::is_control), "{line:?}");
        }
    }
    assert!(Record::parse(data, "another", path).is_err() || given == "another");
});

fn id(text: &str) {
    if check_id(text).is_ok() {
        let path = Path::new("/run").join(text);
        assert_eq!(path.parent(), Some(Path::new("/run")), "{text:?}");
        assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(text));
        // What the directory has beside containers.
        assert!(!text.contains('~') && text.len() <= 255);
    }
}

fn accepted(record: &Record, data: &[u8]) {
    assert!(record.format <= FORMAT);
    let path = Path::new("state.json");
    let json = |record: &Record| serde_json::to_value(record).expect("JSON");
    let read =
        |bytes: Vec<u8>| json(&Record::parse(&bytes, &record.id, path).expect("written again it is refused"));
    assert_eq!(read(serde_json::to_vec(record).expect("JSON")), json(record));
    // A newer runw of the same format may say more. In the text: a `Value` does not keep every digit of a number.
    let start = data.iter().position(|byte| *byte == b'{').expect("an object") + 1;
    let newer = [&data[..start], br#""fieldOfTheFuture":[{}],"#, &data[start..]].concat();
    assert_eq!(read(newer), json(record));

    for status in [Status::Creating, Status::Created, Status::Running, Status::Paused, Status::Stopped] {
        let shown = serde_json::to_value(record.document(status)).expect("JSON");
        assert_eq!((&shown["id"], &shown["status"]), (&json!(record.id), &json!(status.as_str())));
        assert!(status != Status::Stopped || shown["pid"] == 0, "{shown}");
        let hooks = serde_json::to_value(record.hook_document(status, None)).expect("JSON");
        assert!(hooks.get("pid").is_none() && hooks["bundle"] == shown["bundle"], "{hooks}");
    }
}
