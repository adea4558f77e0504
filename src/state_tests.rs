use super::*;

/// A directory of its own below the target's or the system's temporary directory, removed at the end.
struct Temp(Root);

impl Temp {
    fn new(name: &str) -> Temp {
        let dir = std::env::temp_dir().join(format!("runw-state-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Temp(Root::new(dir))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0.dir);
    }
}

#[test]
fn ids() {
    let long = "x".repeat(255);
    for id in ["a", "a-b_c.d+e,f", "...", "-", "0", long.as_str()] {
        check_id(id).unwrap();
    }
    assert_eq!(check_id("").unwrap_err().to_string(), "container id cannot be empty");
    let long = "x".repeat(300);
    for id in [".", "..", "../x", "a/b", "a b", "a\0", "ä", "a\n", "*", long.as_str()] {
        assert!(check_id(id).unwrap_err().to_string().starts_with("invalid container ID format"), "{id:?}");
    }
}

#[test]
fn reserve_save_load_remove() {
    let temp = Temp::new("cycle");
    let root = &temp.0;
    assert_eq!(root.ids().unwrap(), Vec::<String>::new());
    assert_eq!(root.load("a").unwrap_err().to_string(), NOT_EXIST);
    let mut entry = root.reserve("a").unwrap();
    assert_eq!(root.reserve("a").unwrap_err().to_string(), EXISTS);
    assert_eq!(std::fs::metadata(&entry.dir).unwrap().permissions().mode() & 0o777, 0o700);
    entry.record.init = Some(Process { pid: 7, start_time: 8 });
    entry.record.annotations.insert("k".into(), "v".into());
    entry.save().unwrap();
    let other = root.load("a").unwrap();
    assert_eq!(serde_json::to_value(&other.record).unwrap(), serde_json::to_value(&entry.record).unwrap());
    assert!(other.busy());
    entry.unlock();
    assert!(!other.busy());
    assert_eq!(root.ids().unwrap(), ["a"]);
    entry.remove().unwrap();
    other.remove().unwrap();
    assert_eq!(root.load("a").unwrap_err().to_string(), NOT_EXIST);
}

#[test]
fn of_two_reserves_one_wins() {
    let temp = Temp::new("race");
    for round in 0..50 {
        let id = format!("c{round}");
        let wins: usize = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..4).map(|_| scope.spawn(|| temp.0.reserve(&id).is_ok())).collect();
            tries.into_iter().map(|t| usize::from(t.join().unwrap())).sum()
        });
        assert_eq!(wins, 1);
    }
}

#[test]
fn a_lock_outlived_by_its_directory_is_worth_nothing() {
    let temp = Temp::new("gone");
    let holder = temp.0.reserve("a").unwrap();
    let mut waiter = temp.0.load("a").unwrap();
    let waited = std::thread::spawn(move || waiter.lock());
    std::thread::sleep(Duration::from_millis(50));
    std::fs::remove_dir_all(&holder.dir).unwrap();
    let again = temp.0.reserve("a").unwrap();
    drop(holder);
    assert_eq!(waited.join().unwrap().unwrap_err().to_string(), NOT_EXIST);
    drop(again);
}

#[test]
fn a_lock_is_taken_again_of_the_same_directory_only() {
    let temp = Temp::new("again");
    let mut entry = temp.0.reserve("a").unwrap();
    entry.save().unwrap();
    entry.unlock();
    temp.0.load_locked("a").unwrap();
    entry.lock().unwrap();
    assert!(!entry.busy() && temp.0.load("a").unwrap().busy());
    entry.unlock();
    temp.0.load_locked("a").unwrap().remove().unwrap();
    let another = temp.0.reserve("a").unwrap();
    another.save().unwrap();
    for _ in 0..2 {
        assert_eq!(entry.lock().unwrap_err().to_string(), NOT_EXIST);
    }
    another.remove().unwrap();
    let mut entry = temp.0.reserve("a").unwrap();
    entry.unlock();
    std::fs::remove_dir_all(&entry.dir).unwrap();
    assert_eq!(entry.lock().unwrap_err().to_string(), NOT_EXIST);
}

#[test]
fn a_create_killed_early_can_be_loaded() {
    let temp = Temp::new("torn");
    let dir = temp.0.dir.join("a");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(STATE_TEMP), "{\"for").unwrap();
    let entry = temp.0.load("a").unwrap();
    assert_eq!((entry.record.id.as_str(), entry.record.init, entry.record.created_done), ("a", None, false));
    assert!(!entry.busy());
    entry.remove().unwrap();
    assert!(!dir.exists());
}

#[test]
fn records_that_are_not_ours() {
    let temp = Temp::new("foreign");
    let dir = temp.0.dir.join("a");
    std::fs::create_dir_all(&dir).unwrap();
    for (text, want) in [
        ("{\"format\": 999}", "has format 999, made by a newer runw; this one knows formats up to 1"),
        ("{", "cannot be understood"),
        ("", "cannot be understood"),
        ("{\"format\": 1}", "cannot be understood"),
    ] {
        std::fs::write(dir.join(STATE), text).unwrap();
        let error = format!("{:#}", temp.0.load("a").unwrap_err());
        assert!(error.contains(want) && error.contains("state.json"), "{text}: {error}");
    }
    let other = serde_json::to_vec(&Record::new("b")).unwrap();
    std::fs::write(dir.join(STATE), other).unwrap();
    assert!(temp.0.load("a").unwrap_err().to_string().contains("is of container b, not a"));
    // Fields of a later runw that keeps the format are ignored.
    let mut newer = serde_json::to_value(Record::new("a")).unwrap();
    newer["later"] = 1.into();
    std::fs::write(dir.join(STATE), newer.to_string()).unwrap();
    temp.0.load("a").unwrap();
}

#[test]
fn documents_are_runcs() {
    let record = Record {
        oci_version: "1.0.2-dev".into(),
        bundle: "/b".into(),
        rootfs: "/b/rootfs".into(),
        created: "2026-11-21T08:08:38.669977322Z".into(),
        owner: 0,
        init: Some(Process { pid: 26034, start_time: 1 }),
        ..Record::new("xrunc")
    };
    // As `runc state` 1.1.5 printed it, apart from the owner, which it leaves empty there.
    let runc = r#"{
  "ociVersion": "1.0.2-dev",
  "id": "xrunc",
  "pid": 26034,
  "status": "running",
  "bundle": "/b",
  "rootfs": "/b/rootfs",
  "created": "2026-11-21T08:08:38.669977322Z",
  "owner": "root"
}"#;
    assert_eq!(serde_json::to_string_pretty(&record.document(Status::Running)).unwrap(), runc);
    assert_eq!(record.document(Status::Stopped).pid, 0);
    let hook = serde_json::to_string(&record.hook_document(Status::Created, Some(5))).unwrap();
    assert_eq!(hook, r#"{"ociVersion":"1.0.2-dev","id":"xrunc","status":"created","pid":5,"bundle":"/b"}"#);
    let hook = serde_json::to_string(&record.hook_document(Status::Stopped, None)).unwrap();
    assert!(!hook.contains("pid"), "{hook}");
}

#[test]
fn names() {
    let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nme:x:1000:1000::/:\n";
    assert_eq!(name_in(passwd, 1000), Some("me"));
    assert_eq!(name_in(passwd, 5), None);
}

/// Creates and forced deletes of one id, all at once: nobody ever holds a container that another holds too.
#[test]
fn creates_and_deletes_at_once() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let temp = Temp::new("stress");
    let (owners, won) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let own = |held: &Entry| {
        assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0, "two owners of {}", held.dir.display());
        std::thread::yield_now();
        owners.fetch_sub(1, Ordering::SeqCst);
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..200 {
                    if let Ok(entry) = temp.0.reserve("a") {
                        entry.save().unwrap();
                        own(&entry);
                        won.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
            scope.spawn(|| {
                for _ in 0..200 {
                    if let Ok(mut entry) = temp.0.load("a")
                        && entry.lock().is_ok()
                    {
                        own(&entry);
                        entry.remove().unwrap();
                    }
                }
            });
        }
    });
    assert!(won.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_record_is_whole_and_there_while_it_is_saved() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    let temp = Temp::new("whole");
    let mut entry = temp.0.reserve("a").unwrap();
    entry.save().unwrap();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while done.load(Ordering::SeqCst) == 0 {
                let record = temp.0.load("a").unwrap().record;
                assert!(record.annotations.get("round").is_none_or(|round| round.len() == 8000));
                seen += 1;
            }
            seen
        });
        for round in 0..500 {
            entry.record.annotations.insert("round".into(), format!("{round:08000}"));
            entry.save().unwrap();
        }
        done.store(1, Ordering::SeqCst);
        assert!(reader.join().unwrap() > 0);
    });
    assert!(!entry.dir.join(STATE_TEMP).exists());
    assert_eq!(temp.0.load("a").unwrap().record.annotations["round"], format!("{:08000}", 499));
}
