//! What engines and scripts parse is runc's text: the same life led under runw and under the host's runc, and every output
//! compared, but for pids and times. (trixie's runc is compared with in tests/engines/inside/ctr.py.)

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, Container, Out, run, runtime, runw_only, skip, spawn, until};

/// A runtime with a root of its own.
struct Peer {
    program: PathBuf,
    root: PathBuf,
}

impl Peer {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(words);
        command
    }

    fn call(&self, words: &[&str]) -> Out {
        run(&mut self.command(words))
    }

    fn text(&self, words: &[&str]) -> String {
        self.call(words).ok().out
    }
}

/// The same for runw and for runc; `None`, and said, where there is no runc.
fn both<T>(c: &Container, job: impl Fn(&Peer) -> T) -> Option<(T, T)> {
    if runw_only("text to compare with runc's") {
        return None;
    }
    if !Command::new("runc").arg("--version").output().is_ok_and(|out| out.status.success()) {
        skip("no runc to compare with");
        return None;
    }
    let of = |program: &Path| {
        let peer = Peer { program: program.into(), root: c.root().join(program.file_name().unwrap()) };
        let seen = job(&peer);
        peer.call(&["delete", "--force", &c.id]);
        seen
    };
    Some((of(runtime()), of(Path::new("runc"))))
}

/// Without what differs between two containers: the values of these keys.
fn masked(text: &str) -> String {
    let mut rest = text;
    let mut out = String::new();
    while let Some((at, key)) =
        ["\"pid\":", "\"created\":"].iter().filter_map(|key| Some((rest.find(key)? + key.len(), *key))).min()
    {
        // A stopped container's pid is 0, and that is not masked.
        let value = rest[at..].find([',', '\n', '}']).map_or(rest.len(), |end| at + end);
        let mask = if rest[at..value].trim() == "0" { " 0" } else { " _" };
        assert!(key != "\"created\":" || rest[at..value].trim_end().ends_with("Z\""), "{rest}");
        out.push_str(&rest[..at]);
        // The space after the colon is a matter of the format, and stays.
        out.push_str(&mask[usize::from(!rest[at..].starts_with(' '))..]);
        rest = &rest[value..];
    }
    out + rest
}

/// A table's cells by its header's columns, which must be where the header says; pids and times masked.
fn cells(table: &str) -> Vec<Vec<String>> {
    let header = table.lines().next().unwrap_or_default();
    let starts: Vec<usize> = (0..header.len())
        .filter(|&at| header.as_bytes()[at] != b' ' && (at == 0 || header.as_bytes()[at - 1] == b' '))
        .collect();
    let cell = |line: &str, at: usize| {
        assert!(starts[at] == 0 || line.as_bytes()[starts[at] - 1] == b' ', "{table}");
        let end = starts.get(at + 1).copied().unwrap_or(line.len());
        let text = line[starts[at]..end].trim_end();
        match header[starts[at]..].split(' ').next() {
            Some("PID") if text != "0" && text != "PID" => "_".to_owned(),
            Some("CREATED") if text.ends_with('Z') => "_".to_owned(),
            _ => text.to_owned(),
        }
    };
    table.lines().map(|line| (0..starts.len()).map(|at| cell(line, at)).collect()).collect()
}

#[test]
fn state_and_list_in_every_status() {
    let pairs = json!({"com.example.b": "2", "com.example.a": "<1> & \"2\"\n", "é": "ü"});
    let c = Container::new(Bundle::sh("exec sleep 100").edit(|c| c["annotations"] = pairs));
    let bundle = c.bundle.path().to_str().unwrap();
    let second = format!("{}-with-a-longer-name", c.id);
    let seen = both(&c, |peer| {
        let mut seen =
            vec![peer.text(&["list"]), peer.text(&["list", "-f", "json"]), peer.text(&["list", "-q"])];
        let id = c.id.as_str();
        let steps: [&[&str]; 5] = [
            &["create", "--bundle", bundle, id],
            &["start", id],
            &["pause", id],
            &["resume", id],
            &["kill", id, "KILL"],
        ];
        for step in steps {
            peer.call(step).ok();
            if step[0] == "kill" {
                until("it stops", || peer.text(&["state", id]).contains("stopped"));
            }
            seen.push(masked(&peer.text(&["state", id])));
            seen.push(masked(&peer.text(&["list", "--format", "json"])));
            seen.push(peer.text(&["list", "--quiet"]));
            seen.push(format!("{:?}", cells(&peer.text(&["list"]))));
        }
        // Two, one of them stopped.
        let mut config = c.bundle.config.clone();
        config["linux"]["cgroupsPath"] = json!(format!("/runw-test/{second}"));
        config["root"]["path"] = json!(c.bundle.rootfs());
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("config.json"), config.to_string()).unwrap();
        peer.call(&["create", "--bundle", other.path().to_str().unwrap(), &second]).ok();
        let place = other.path().display().to_string();
        seen.push(masked(&peer.text(&["list", "-f", "json"])).replace(&place, "OTHER"));
        seen.push(peer.text(&["list", "-q"]));
        let table = format!("{:?}", cells(&peer.text(&["list"])));
        seen.push(table.replace(&place, "OTHER"));
        peer.call(&["delete", "--force", &second]).ok();
        seen
    });
    let Some((ours, theirs)) = seen else { return };
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
}

#[test]
fn ps_in_every_form() {
    let c = Container::new(Bundle::sh("sleep 100 & exec sleep 200"));
    let bundle = c.bundle.path().to_str().unwrap();
    let seen = both(&c, |peer| {
        let file = std::fs::File::create(c.bundle.path().join("out")).unwrap();
        let mut detached = peer.command(&["run", "--detach", "--bundle", bundle, &c.id]);
        detached.stdin(std::process::Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        assert!(detached.status().unwrap().success());
        until("both run", || peer.text(&["ps", &c.id]).lines().count() == 3);
        let json = peer.text(&["ps", "--format", "json", &c.id]);
        let pids: Vec<i32> = serde_json::from_str(&json).unwrap();
        let words = |text: &str| -> Vec<Vec<String>> {
            let mask = |word: &str| {
                let number = word.bytes().all(|b| b.is_ascii_digit() || b == b':');
                if number { "_".to_owned() } else { word.to_owned() }
            };
            text.lines().map(|line| line.split_whitespace().map(mask).collect()).collect()
        };
        let table = peer.text(&["ps", &c.id]);
        let wanted = peer.text(&["ps", &c.id, "-o", "pid,ppid,comm"]);
        // The form of the list, whatever the numbers.
        let form = json.replace(|c: char| c.is_ascii_digit(), "");
        (pids.len(), form, words(&table), table.lines().next().unwrap().to_owned(), words(&wanted))
    });
    let Some((ours, theirs)) = seen else { return };
    assert_eq!(ours, theirs);
}

/// The document's keys in their order.
fn keys(text: &str) -> Vec<&str> {
    let parts: Vec<&str> = text.split('"').collect();
    (1..parts.len()).step_by(2).filter(|&at| parts[at + 1].starts_with(':')).map(|at| parts[at]).collect()
}

#[test]
fn events_are_lines_with_runcs_keys_in_runcs_order() {
    if !Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists() {
        return skip("no memory controller on v1");
    }
    let bundle = Bundle::sh(
        "while ! test -e /go; do sleep 0.05; done; (head -c 256000000 /dev/zero | tail) ; sleep 100",
    )
    // Room for runc's own init, which is a Go program.
    .edit(|c| c["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20}));
    let c = Container::new(bundle);
    let path = c.bundle.path().to_str().unwrap();
    let seen = both(&c, |peer| {
        let go = c.bundle.rootfs().join("go");
        let _ = std::fs::remove_file(&go);
        let file = std::fs::File::create(c.bundle.path().join("out")).unwrap();
        let mut detached = peer.command(&["run", "--detach", "--bundle", path, &c.id]);
        detached.stdin(std::process::Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        assert!(detached.status().unwrap().success());
        let stats = peer.text(&["events", "--stats", &c.id]);
        let events = spawn(&mut peer.command(&["events", "--interval", "100ms", &c.id]));
        until("stats come by themselves", || events.out().lines().count() > 1);
        std::fs::write(&go, "").unwrap();
        until("memory runs out", || events.out().contains("oom"));
        let oom = events.out().lines().find(|line| line.contains("oom")).unwrap().to_owned();
        let stream = events.out().lines().next().unwrap().to_owned() + "\n";
        (stats, stream, oom)
    });
    let Some((ours, theirs)) = seen else { return };
    assert_eq!(ours.2, theirs.2);
    for (ours, theirs) in [(&ours.0, &theirs.0), (&ours.1, &theirs.1)] {
        let start = format!("{{\"type\":\"stats\",\"id\":\"{}\",\"data\":{{", c.id);
        assert!(ours.starts_with(&start) && theirs.starts_with(&start), "{ours}\n{theirs}");
        assert_eq!(ours.lines().count(), 1);
        assert_eq!(ours.ends_with("}\n"), theirs.ends_with("}\n"));
        let (ours, theirs) = (keys(ours), keys(theirs));
        // What counts nothing yet is left out by both: the order is that of what both have.
        let common = |keys: &[&str], other: &[&str]| -> Vec<String> {
            let mut seen = Vec::new();
            for key in keys.iter().filter(|key| other.contains(key)) {
                if !seen.contains(&(*key).to_owned()) {
                    seen.push((*key).to_owned());
                }
            }
            seen
        };
        assert_eq!(common(&ours, &theirs), common(&theirs, &ours));
    }
}

#[test]
fn features_have_all_that_runcs_have() {
    let c = Container::new(Bundle::sh("true"));
    let Some((ours, theirs)) = both(&c, |peer| peer.text(&["features"])) else { return };
    let (text, read) = (ours.clone(), |text: &str| serde_json::from_str::<Value>(text).unwrap());
    let indent = |text: &str| text.lines().nth(1).map(|line| line.len() - line.trim_start().len());
    assert_eq!((indent(&text), text.ends_with("}\n")), (indent(&theirs), theirs.ends_with("}\n")));
    fn within(theirs: &Value, ours: &Value, at: &str) {
        match (theirs, ours) {
            (Value::Object(theirs), Value::Object(ours)) => {
                for (key, value) in
                    theirs.iter().filter(|(key, _)| !key.starts_with("org.opencontainers.runc."))
                {
                    let at = format!("{at}.{key}");
                    within(value, ours.get(key).unwrap_or_else(|| panic!("{at} is missing")), &at);
                }
            }
            (Value::Array(theirs), Value::Array(ours)) => {
                for value in theirs {
                    assert!(ours.contains(value), "{at}: {value} is missing");
                }
            }
            // Versions are each one's own.
            (Value::String(_), Value::String(_)) => {}
            _ => assert_eq!(theirs, ours, "{at}"),
        }
    }
    within(&read(&theirs), &read(&ours), "");
}

#[test]
fn spec_writes_runcs_configuration() {
    let c = Container::new(Bundle::sh("true"));
    for rootless in [false, true] {
        let seen = both(&c, |peer| {
            let dir = tempfile::tempdir().unwrap();
            let flags: &[&str] = if rootless { &["spec", "--rootless"] } else { &["spec"] };
            run(peer.command(flags).current_dir(dir.path())).ok();
            let text = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
            let mut config: Value = serde_json::from_str(&text).unwrap();
            // runc 1.2 took the ambient set out, since nothing in it could be inherited.
            config["process"]["capabilities"].as_object_mut().unwrap().remove("ambient");
            (config, text.lines().take(12).map(str::to_owned).collect::<Vec<_>>())
        });
        let Some((ours, theirs)) = seen else { return };
        assert_eq!(ours, theirs);
    }
}
