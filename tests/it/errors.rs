//! What a person or an engine did wrong: one clear line, the exit status callers expect, nothing left behind.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, Container, Kind, differs, kind, nothing_left, run, runw_only};

/// One change to the configuration.
type Edit = fn(&mut Value);

/// `create` must fail, say every word, and leave nothing.
#[track_caller]
fn refused(bundle: Bundle, words: &[&str]) {
    let mut c = Container::new(bundle);
    let out = c.create_with(&[]);
    out.refused(words);
    one_line(&out.err);
    nothing_left(&c);
}

/// runw's own promise; the peers sometimes print a warning first.
#[track_caller]
fn one_line(err: &str) {
    if kind() == Kind::Runw {
        assert_eq!(err.trim_end().lines().count(), 1, "more than one line: {err}");
    }
}

#[test]
fn unknown_container() {
    if differs(Kind::Crun, "1.8 says that its status file is missing") {
        return;
    }
    let c = Container::new(Bundle::sh("true"));
    for words in [
        vec!["state", "no-such"],
        vec!["start", "no-such"],
        vec!["kill", "no-such", "TERM"],
        vec!["delete", "no-such"],
    ] {
        let out = c.call(&words);
        out.refused(&["does not exist"]);
        one_line(&out.err);
    }
    let out = c.exec(&[], &["true"]);
    assert!(out.code != 0 && out.err.contains("does not exist"), "{out:?}");
}

#[test]
fn a_taken_id() {
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    c.create();
    let pid = c.pid();
    let again = run(&mut c.create_command(&[]));
    let words: &[&str] =
        if kind() == Kind::Crun { &["already exists"] } else { &["container with given ID already exists"] };
    again.refused(words);
    assert_eq!((c.status().as_str(), c.pid()), ("created", pid), "the first container was touched");
}

#[test]
fn ids_that_could_be_paths() {
    if differs(Kind::Crun, "1.8 takes any id without a slash") {
        return;
    }
    let long = "x".repeat(300);
    let c = Container::new(Bundle::sh("true"));
    for id in ["../x", "a/b", "", "with space", ".", "..", "new\nline", "é", long.as_str()] {
        if kind() == Kind::Runc && id.len() == 300 {
            continue; // runc fails at mkdir, with ENAMETOOLONG in its text
        }
        for verb in ["create", "run"] {
            let mut command = c.command(&[verb]);
            let out = run(command.arg("--bundle").arg(c.bundle.path()).arg(id));
            assert_eq!(out.code, 1, "{id:?}: {out:?}");
            assert!(out.err.contains("id") || out.err.contains("ID"), "{id:?}: {out:?}");
        }
        if !id.is_empty() {
            assert_ne!(c.call(&["state", id]).code, 0, "{id:?}");
            assert_ne!(c.call(&["delete", id]).code, 0, "{id:?}");
        }
    }
    let entries: Vec<_> = std::fs::read_dir(c.root()).into_iter().flatten().flatten().collect();
    assert!(entries.is_empty(), "{entries:?}");
}

#[test]
fn a_good_id_with_every_allowed_sign() {
    if differs(Kind::Crun, "1.8 takes any id") {
        return;
    }
    let bundle = Bundle::sh("echo fine");
    let mut c = Container::new(bundle);
    c.id = format!("A.b_c+d-e.{}", c.id);
    assert_eq!(c.run().ok().out, "fine\n");
}

#[test]
fn wrong_state() {
    if differs(Kind::Crun, "own texts") {
        return;
    }
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    c.create().start();
    let again = c.call(&["start", &c.id]);
    assert_eq!(again.code, 1, "{again:?}");
    let delete = c.delete();
    assert_eq!(delete.code, 1, "{delete:?}");
    if kind() != Kind::Crun {
        assert!(delete.err.contains("that is not stopped: running"), "{delete:?}");
    }
    assert_eq!(c.status(), "running", "a refused delete touched the container");
    c.kill("KILL").ok();
    c.wait_stopped();
    let kill = c.kill("TERM");
    let phrase = if kind() == Kind::Crun { "is not running" } else { "container not running" };
    kill.refused(&[phrase]);
    let exec = c.exec(&[], &["true"]);
    assert_ne!(exec.code, 0, "{exec:?}");
    if kind() != Kind::Crun {
        assert!(exec.err.contains("cannot exec in a stopped container"), "{exec:?}");
    }
    assert_eq!(c.call(&["start", &c.id]).code, 1);
    c.delete().ok();
}

/// Engines unmount a bundle as soon as they think it is done with.
#[test]
fn a_vanished_bundle_is_in_nobody_s_way() {
    if differs(Kind::Crun, "its exec reads the bundle")
        || differs(Kind::Runc, "1.1.5's exec reads the bundle")
    {
        return;
    }
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    c.create().start();
    std::fs::remove_file(c.bundle.path().join("config.json")).unwrap();
    let moved = c.bundle.path().join("moved");
    std::fs::rename(c.bundle.rootfs(), &moved).unwrap();
    assert_eq!(c.status(), "running");
    c.exec(&[], &["true"]).ok();
    c.call(&["update", "--pids-limit", "77", &c.id]).ok();
    c.call(&["events", "--stats", &c.id]).ok();
    c.call(&["ps", &c.id]).ok();
    c.call(&["pause", &c.id]).ok();
    c.call(&["resume", &c.id]).ok();
    c.kill("KILL").ok();
    c.wait_stopped();
    c.delete().ok();
    nothing_left(&c);
}

/// Paused is a state of its own for each verb.
#[test]
fn a_paused_container() {
    if differs(Kind::Crun, "own texts") {
        return;
    }
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    c.create().start();
    c.call(&["pause", &c.id]).ok();
    c.call(&["start", &c.id]).refused(&["cannot start"]);
    c.call(&["pause", &c.id]).refused(&["container not running"]);
    let exec = c.exec(&[], &["true"]);
    assert_eq!(exec.code, 255, "{exec:?}");
    assert!(exec.err.contains("cannot exec in a paused container"), "{exec:?}");
    c.delete().refused(&["that is not stopped: paused"]);
    c.call(&["update", "--pids-limit", "66", &c.id]).ok();
    assert_eq!(c.status(), "paused");
    c.call(&["resume", &c.id]).ok();
    c.call(&["resume", &c.id]).refused(&["container not paused"]);
    c.exec(&[], &["true"]).ok();
}

#[test]
fn a_signal_that_is_none() {
    if differs(Kind::Crun, "1.8 takes some of these in silence") {
        return;
    }
    let c = Container::up(Bundle::sh("exec sleep 100"));
    for signal in ["NOSUCH", "SIGNOSUCH", "9999", "-1"] {
        assert_eq!(c.call(&["kill", &c.id, signal]).code, 1, "{signal}");
    }
    assert_eq!(c.status(), "running");
}

#[test]
fn missing_bundle_and_config() {
    let c = Container::new(Bundle::sh("true"));
    let out = run(c.command(&["create", "--bundle", "/no/such/bundle"]).arg(&c.id));
    out.refused(&["/no/such/bundle"]);
    one_line(&out.err);
    let empty = tempfile::tempdir().expect("tempdir");
    let out = run(c.command(&["create", "--bundle"]).arg(empty.path()).arg(&c.id));
    out.refused(&["config.json"]);
    one_line(&out.err);
    nothing_left(&c);
}

#[test]
fn missing_rootfs() {
    let bundle = Bundle::sh("true").edit(|c| c["root"]["path"] = json!("no-such-rootfs"));
    refused(bundle, &["no-such-rootfs"]);
    // A file where a directory must be.
    let bundle = Bundle::sh("true").edit(|c| c["root"]["path"] = json!("config.json"));
    let mut c = Container::new(bundle);
    assert_eq!(c.create_with(&[]).code, 1);
    nothing_left(&c);
}

#[test]
fn config_that_is_no_json() {
    let texts: [&[u8]; 6] =
        [b"", b"{", b"[]", b"null", b"{\"ociVersion\": \"1.0.2\", \"process\"", b"\xff\xfe{}"];
    for text in texts {
        if text == b"null" && kind() == Kind::Runc {
            continue; // runc 1.1 panics
        }
        let mut c = Container::new(Bundle::sh("true"));
        std::fs::write(c.bundle.path().join("config.json"), text).expect("write");
        let out = c.create_with(&[]);
        assert_eq!(out.code, 1, "{:?}: {out:?}", String::from_utf8_lossy(text));
        one_line(&out.err);
        nothing_left(&c);
    }
}

/// Every one of these is a field with a wrong type or value; the message must name it.
fn broken_fields() -> Vec<(&'static str, Edit, &'static str)> {
    vec![
        ("process.args is a string", |c| c["process"]["args"] = json!("sh"), "args"),
        ("process.args is empty", |c| c["process"]["args"] = json!([]), "args"),
        ("process is a number", |c| c["process"] = json!(7), "process"),
        ("process.cwd is relative", |c| c["process"]["cwd"] = json!("tmp"), "cwd"),
        ("process.env holds a number", |c| c["process"]["env"] = json!([1]), "env"),
        ("process.user.uid is negative", |c| c["process"]["user"]["uid"] = json!(-1), "uid"),
        (
            "process.rlimits names nothing",
            |c| {
                c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOSUCH", "soft": 1, "hard": 1}]);
            },
            "RLIMIT_NOSUCH",
        ),
        (
            "root is missing",
            |c| {
                c.as_object_mut().expect("object").remove("root");
            },
            "root",
        ),
        ("mounts is an object", |c| c["mounts"] = json!({}), "mounts"),
        (
            "linux.namespaces names nothing",
            |c| {
                c["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "nosuch"}]);
            },
            "nosuch",
        ),
        (
            "a namespace twice",
            |c| {
                c["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}, {"type": "pid"}]);
            },
            "pid",
        ),
        (
            "linux.rootfsPropagation names nothing",
            |c| c["linux"]["rootfsPropagation"] = json!("nosuch"),
            "ropagation",
        ),
        (
            "hostname without uts namespace",
            |c| {
                c["hostname"] = json!("x");
                c["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}]);
            },
            "hostname",
        ),
    ]
}

#[test]
fn config_with_broken_fields() {
    for (what, f, word) in broken_fields() {
        let mut c = Container::new(Bundle::sh("true").edit(f));
        let out = c.create_with(&[]);
        if kind() == Kind::Runw {
            assert_eq!(out.code, 1, "{what}: {out:?}");
            assert!(out.err.contains(word), "{what}: {word} is not named in {out:?}");
            one_line(&out.err);
        } else if out.code == 0 {
            // The peers let some pass; runw is held to more here, and to the clean-up everywhere.
            c.call(&["delete", "--force", &c.id]);
        }
        nothing_left(&c);
    }
}

#[test]
fn unknown_versions() {
    for version in ["2.0.0", "", "x.y.z", "0.9"] {
        let mut c = Container::new(Bundle::sh("true").edit(|c| c["ociVersion"] = json!(version)));
        let out = c.create_with(&[]);
        if kind() == Kind::Runw {
            assert_eq!(out.code, 1, "{version:?}: {out:?}");
            assert!(out.err.contains("ociVersion"), "{version:?}: {out:?}");
        }
        c.call(&["delete", "--force", &c.id]);
        nothing_left(&c);
    }
}

#[test]
fn nul_bytes_in_what_becomes_a_c_string() {
    let fields: [(&str, Edit); 5] = [
        ("args", |c| c["process"]["args"] = json!(["/bin/sh", "a\u{0}b"])),
        ("env", |c| c["process"]["env"] = json!(["A=b\u{0}c"])),
        ("cwd", |c| c["process"]["cwd"] = json!("/tmp\u{0}x")),
        ("hostname", |c| c["hostname"] = json!("a\u{0}b")),
        ("destination", |c| c["mounts"][0]["destination"] = json!("/proc\u{0}x")),
    ];
    for (field, f) in fields {
        if kind() != Kind::Runw && (field == "hostname" || field == "env" || kind() == Kind::Crun) {
            continue; // the peers cut at the NUL
        }
        let c = Container::new(Bundle::sh("true").edit(f));
        let out = c.run();
        assert_eq!(out.code, 1, "{field}: {out:?}");
        if kind() == Kind::Runw {
            assert!(out.err.contains(field), "{field}: {out:?}");
        }
        nothing_left(&c);
    }
}

#[test]
fn fifty_mebibytes_of_json() {
    let mut c = Container::new(Bundle::sh("true"));
    let path = c.bundle.path().join("config.json");
    let mut text = b"{\"ociVersion\": \"1.0.2\", \"annotations\": {\"x\": \"".to_vec();
    text.resize(50 << 20, b'y');
    text.extend_from_slice(b"\"}, \"process\": [");
    std::fs::write(&path, &text).expect("write");
    let out = c.create_with(&[]);
    assert_eq!(out.code, 1);
    assert!(out.err.len() < 4096, "the message repeats the input: {} bytes", out.err.len());
    nothing_left(&c);
}

#[test]
fn config_json_that_is_no_file() {
    let mut c = Container::new(Bundle::sh("true"));
    let path = c.bundle.path().join("config.json");
    std::fs::remove_file(&path).expect("unlink");
    std::fs::create_dir(&path).expect("mkdir");
    c.create_with(&[]).refused(&["config.json"]);
    nothing_left(&c);
}

#[test]
fn a_program_that_is_not_there() {
    let cases: [(&str, &[&str]); 3] = [
        ("no-such-program", &["no-such-program", "not found in $PATH"]),
        ("/no/such/program", &["/no/such/program", "no such file or directory"]),
        ("/etc/passwd", &["/etc/passwd", "permission denied"]),
    ];
    for (program, words) in cases {
        let mut c = Container::new(Bundle::new(&[program]));
        // runc and runw look for the program at create, so that the engine's create fails; crun does too.
        let out = c.create_with(&[]);
        assert_eq!(out.code, 1, "{program}: {out:?}");
        for word in words {
            let told = out.err.to_lowercase().contains(&word.to_lowercase());
            assert!(told || kind() == Kind::Crun, "{word:?} is not in {out:?}");
        }
        one_line(&out.err);
        nothing_left(&c);
    }
}

#[test]
fn cwd_that_is_not_there_and_cannot_be_made() {
    let bundle = Bundle::sh("true").edit(|c| c["process"]["cwd"] = json!("/etc/passwd/x"));
    let mut c = Container::new(bundle);
    assert_eq!(c.create_with(&[]).code, 1);
    nothing_left(&c);
}

#[test]
fn a_bind_source_that_is_not_there() {
    let bundle = Bundle::sh("true").bind(std::path::Path::new("/no/such/source"), "/mnt", &["rbind"]);
    let mut c = Container::new(bundle);
    c.create_with(&[]).refused(&["/no/such/source"]);
    nothing_left(&c);
}

#[test]
fn a_namespace_path_that_is_none() {
    for path in ["/no/such/ns", "/dev/null", "/proc/self/ns/uts"] {
        let bundle = Bundle::sh("true").namespace("network", Some(std::path::Path::new(path)));
        let mut c = Container::new(bundle);
        let out = c.create_with(&[]);
        assert_eq!(out.code, 1, "{path}: {out:?}");
        if kind() == Kind::Runw {
            assert!(out.err.contains(path), "{path}: {out:?}");
        }
        nothing_left(&c);
    }
}

#[test]
fn tty_misuse() {
    if differs(Kind::Crun, "own texts") {
        return;
    }
    let mut c = Container::new(Bundle::sh("true").edit(|c| c["process"]["terminal"] = json!(true)));
    c.create_with(&[]).refused(&["cannot allocate tty", "without setting console socket"]);
    let mut c = Container::new(Bundle::sh("true"));
    c.create_with(&["--console-socket", "/no/such.sock"]).refused(&["cannot use console socket"]);
}

#[test]
fn flags_that_are_none() {
    let c = Container::new(Bundle::sh("true"));
    for words in [
        vec!["create", "--no-such-flag", "x"],
        vec!["no-such-verb"],
        vec!["create"],
        vec!["kill"],
        vec!["state"],
    ] {
        let out = c.call(&words);
        assert_ne!(out.code, 0, "{words:?}: {out:?}");
        assert!(!format!("{}{}", out.out, out.err).is_empty(), "{words:?} failed in silence");
    }
}

#[test]
fn the_log_is_what_engines_parse() {
    if differs(Kind::Crun, "1.8 says that its status file is missing") {
        return;
    }
    let c = Container::new(Bundle::sh("true"));
    for _ in 0..2 {
        let mut command = Command::new(crate::harness::runtime());
        command.arg("--root").arg(c.root()).arg("--log").arg(c.log_path()).args([
            "--log-format",
            "json",
            "state",
            "no-such",
        ]);
        assert_eq!(run(&mut command).code, 1);
    }
    let text = std::fs::read_to_string(c.log_path()).expect("log");
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("a JSON line")).collect();
    assert_eq!(lines.len(), 2, "one line for each failure, appended: {text}");
    for line in lines {
        assert_eq!(line["level"], "error");
        assert!(line["msg"].as_str().is_some_and(|m| m.contains("does not exist")), "{line}");
        assert!(line["time"].as_str().is_some_and(|t| t.contains('T')), "{line}");
    }
}

#[test]
fn the_log_as_text() {
    if differs(Kind::Crun, "1.8 says that its status file is missing") {
        return;
    }
    let c = Container::new(Bundle::sh("true"));
    let mut command = c.command(&[""; 0]);
    command.arg("--log").arg(c.log_path()).args(["state", "no-such"]);
    assert_eq!(run(&mut command).code, 1);
    let text = std::fs::read_to_string(c.log_path()).expect("log");
    assert!(text.contains("does not exist"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn the_systemd_driver_works_or_refuses_clearly() {
    if runw_only("such a promise") || std::path::Path::new("/run/systemd/system").exists() {
        return;
    }
    let mut c = Container::new(Bundle::sh("true").edit(|c| c["linux"]["cgroupsPath"] = json!("a.slice:b:c")));
    let mut command = c.command(&["--systemd-cgroup", "create", "--bundle"]);
    let out = run(command.arg(c.bundle.path()).arg(&c.id));
    out.refused(&["systemd"]);
    nothing_left(&c);
    c.bundle.config["linux"]["cgroupsPath"] = json!("/x");
}

#[test]
fn a_kernel_that_says_no_is_told_by_name() {
    if runw_only("a message that names the setting") {
        return;
    }
    refused(
        Bundle::sh("true").edit(|c| c["linux"]["sysctl"] = json!({"kernel.no_such": "1"})),
        &["kernel.no_such"],
    );
    refused(
        Bundle::sh("true").mount("/mnt", "nosuchfs", std::path::Path::new("none"), &[]),
        &["/mnt", "nosuchfs"],
    );
}

#[test]
fn an_unknown_capability_is_warned_about_and_not_fatal() {
    if !matches!(kind(), Kind::Runw) {
        return;
    }
    let c = Container::new(
        Bundle::sh("true").edit(|c| c["process"]["capabilities"]["bounding"] = json!(["CAP_NO_SUCH"])),
    );
    let out = c.run().ok();
    assert!(out.err.contains("level=warning") && out.err.contains("CAP_NO_SUCH"), "{out:?}");
}
