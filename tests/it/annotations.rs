//! crun's `run.oci.*` annotations: those that engines rely on do what they do there, any other is named.

use std::os::unix::net::UnixListener;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{
    Bundle, ConsoleSocket, Container, Kind, differs, hybrid, kind, nothing_left, run, runw_only, script, skip,
};

fn annotated(bundle: Bundle, pairs: Value) -> Bundle {
    bundle.edit(|c| c["annotations"] = pairs)
}

/// runc reads none of them.
fn no_annotations() -> bool {
    differs(Kind::Runc, "it does not know crun's annotations")
}

#[test]
fn groups_of_the_caller_are_kept_when_asked() {
    if no_annotations() {
        return;
    }
    let groups = |value: &str| {
        let c = Container::new(annotated(
            Bundle::new(&["/bin/id", "-G"]).edit(|c| c["process"]["user"] = json!({"uid": 0, "gid": 0})),
            json!({"run.oci.keep_original_groups": value}),
        ));
        let mut command = std::process::Command::new("setpriv");
        command.args(["--groups", "4711,4712"]).arg(crate::harness::runtime());
        command.arg("--root").arg(c.root()).args(["run", "--bundle"]).arg(c.bundle.path()).arg(&c.id);
        let out = run(&mut command).ok().out;
        out.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let kept = groups("1");
    assert!(["4711", "4712"].iter().all(|gid| kept.iter().any(|other| other == gid)), "{kept:?}");
    assert_eq!(groups("0"), ["0"]);
}

#[test]
fn an_exec_keeps_groups_too() {
    if no_annotations() {
        return;
    }
    let c =
        Container::up(annotated(Bundle::sh("exec sleep 100"), json!({"run.oci.keep_original_groups": "1"})));
    let mut command = std::process::Command::new("setpriv");
    command.args(["--groups", "4711"]).arg(crate::harness::runtime());
    command.arg("--root").arg(c.root()).args(["exec", &c.id, "id", "-G"]);
    let out = run(&mut command).ok().out;
    assert!(out.split_whitespace().any(|gid| gid == "4711"), "{out}");
}

#[test]
fn what_hooks_say_goes_to_the_files() {
    if no_annotations() {
        return;
    }
    let bundle = Bundle::sh("true");
    let (out, err) = (bundle.path().join("hooks.out"), bundle.path().join("hooks.err"));
    std::fs::write(&out, "before\n").unwrap();
    let hook = bundle.path().join("hook");
    script(&hook, "echo $1; echo bad $1 >&2");
    script(&bundle.rootfs().join("hook"), "echo $1; echo bad $1 >&2");
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    let bundle = bundle.edit(|c| {
        for name in kinds {
            let path = if name == "startContainer" { Path::new("/hook") } else { &hook };
            c["hooks"][name] = json!([{"path": path, "args": ["hook", name]}]);
        }
    });
    let pairs = json!({"run.oci.hooks.stdout": out, "run.oci.hooks.stderr": err});
    let mut c = Container::new(annotated(bundle, pairs));
    c.create();
    // A waiting init holds a file of the host's for its hooks' sake only (fds.rs: otherwise none).
    c.start();
    c.wait_stopped();
    c.delete().ok();
    let lines = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let mut wanted: Vec<String> = kinds.iter().map(|name| (*name).to_owned()).collect();
    wanted.sort();
    let bad: Vec<String> = wanted.iter().map(|name| format!("bad {name}")).collect();
    assert_eq!(lines(&err), bad);
    wanted.push("before".into());
    wanted.sort();
    assert_eq!(lines(&out), wanted);
}

#[test]
fn a_file_for_hooks_that_cannot_be_is_refused_by_name() {
    if no_annotations() {
        return;
    }
    let mut c =
        Container::new(annotated(Bundle::sh("true"), json!({"run.oci.hooks.stdout": "/nonexistent/x"})));
    c.create_with(&[]).refused(&["/nonexistent/x"]);
    nothing_left(&c);
}

#[test]
fn the_pidfd_goes_to_the_receiver() {
    if no_annotations() {
        return;
    }
    let bundle = Bundle::sh("exec sleep 100");
    let socket = ConsoleSocket::new(bundle.path());
    let mut c = Container::new(annotated(bundle, json!({"run.oci.pidfd_receiver": socket.path})));
    c.create();
    let (pidfd, _) = socket.receive();
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap();
    assert_eq!(pid.trim(), c.pid().to_string());
}

#[test]
fn the_seccomp_receiver_is_a_listener_path() {
    if no_annotations() || differs(Kind::Crun, "1.8 sends another message to a receiver of the annotation's")
    {
        return;
    }
    let bundle = Bundle::new(&["/bin/mkdir", "/tmp/x"]);
    let path = bundle.path().join("agent");
    let listener = UnixListener::bind(&path).unwrap();
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let bundle = annotated(bundle, json!({"run.oci.seccomp.receiver": path}))
        .edit(|c| c["linux"]["seccomp"] = profile.clone());
    let mut c = Container::new(bundle);
    c.create();
    let (mut agent, _) = listener.accept().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut agent, &mut text).unwrap();
    let state: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&state["state"]["id"], &state["fds"]), (&json!(c.id), &json!(["seccompFd"])));
    drop(c);
    // Without a rule that notifies there is nothing to receive.
    let mut c =
        Container::new(annotated(Bundle::sh("true"), json!({"run.oci.seccomp.receiver": "/nonexistent"})));
    c.create();
}

#[test]
fn a_delegated_cgroup_is_cgroup_v2_s() {
    if no_annotations() {
        return;
    }
    let mut c = Container::new(annotated(
        Bundle::sh("exec sleep 100"),
        json!({"run.oci.delegate-cgroup": "mine/own"}),
    ));
    let out = c.create_with(&[]);
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        out.ok();
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).unwrap();
        assert_eq!(text.trim(), format!("0::/runw-test/{}/mine/own", c.id));
        c.start();
        c.exec(&[], &["true"]).ok();
        assert_eq!(c.call(&["ps", "-f", "json", &c.id]).ok().out.trim(), format!("[{}]", c.pid()));
        c.call(&["delete", "--force", &c.id]).ok();
        nothing_left(&c);
        return;
    }
    // crun 1.8 takes hybrid, with its v2 tree away, for v1.
    out.refused(&["delegate-cgroup not supported on cgroup v1"]);
    nothing_left(&c);
    if hybrid() {
        skip("a delegated cgroup itself: no pure cgroup v2 here");
    }
}

#[test]
fn bad_values_are_refused_by_name() {
    if kind() != Kind::Runw {
        return skip("only runw judges them");
    }
    for (name, value) in [
        ("run.oci.delegate-cgroup", "../up"),
        ("run.oci.delegate-cgroup", "/abs"),
        ("run.oci.hooks.stderr", ""),
        ("run.oci.pidfd_receiver", ""),
        ("run.oci.pidfd_receiver", "/nonexistent/socket"),
    ] {
        let mut c = Container::new(annotated(Bundle::sh("true"), json!({name: value})));
        c.create_with(&[]).refused(&[if value.starts_with("/nonexistent") { value } else { name }]);
        nothing_left(&c);
    }
}

#[test]
fn others_are_named_in_a_warning() {
    if runw_only("such warnings") {
        return;
    }
    let pairs = json!({"run.oci.magic": "1", "run.oci.systemd.subgroup": "x", "org.systemd.property.TimeoutStopUSec": "uint64 1", "com.example": "1"});
    let c = Container::new(annotated(Bundle::sh("true"), pairs));
    let out = c.run().ok();
    assert!(out.err.contains("annotation run.oci.magic is not supported and has no effect"), "{out:?}");
    assert_eq!(out.err.lines().count(), 1, "{out:?}");
}
