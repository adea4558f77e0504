//! Hooks: where, in which order, with what state, environment and patience.

use serde_json::{Value, json};

use crate::harness::{Bundle, Container, Kind, differs, kind, nothing_left, runw_only, script, until};

const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Hooks of every kind that append their name and stdin to one log, on the host or inside.
fn logging_bundle() -> Bundle {
    let bundle = Bundle::sh("echo program >>/log/order; exec sleep 100");
    let log = bundle.outside("log");
    let path = bundle.path().join("hook");
    // createContainer and startContainer run in the container's namespaces; only startContainer's root is inside.
    script(&path, "echo $1 >>$2/order; cat >$2/$1.json");
    script(&bundle.rootfs().join("hook"), "echo $1 >>$2/order; cat >$2/$1.json");
    let log_text = log.to_str().expect("utf-8").to_owned();
    let hook_text = path.to_str().expect("utf-8").to_owned();
    bundle.bind(&log, "/log", &["rbind", "rw"]).edit(|c| {
        c["hooks"] = json!({});
        for name in KINDS {
            let inside = name == "startContainer";
            let hook = if inside { "/hook" } else { hook_text.as_str() };
            let dir = if inside { "/log" } else { log_text.as_str() };
            c["hooks"][name] =
                json!([{"path": hook, "args": ["hook", name, dir], "env": ["PATH=/bin:/usr/bin"]}]);
        }
    })
}

fn state_given(c: &Container, name: &str) -> Value {
    let text = std::fs::read_to_string(c.bundle.path().join("log").join(format!("{name}.json")))
        .expect("hook input");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name} got no JSON ({e}): {text}"))
}

/// It is brought up by the runtime, while the container's process goes on.
#[test]
fn a_create_container_hook_finds_the_loopback_up() {
    let bundle = Bundle::sh("true");
    let (hook, told) = (bundle.path().join("hook"), bundle.path().join("told"));
    script(&hook, "ip -o link show lo >$1");
    let [path, told_text] = [&hook, &told].map(|path| path.to_str().expect("utf-8"));
    let hook = json!({"path": path, "args": ["hook", told_text], "env": ["PATH=/usr/sbin:/usr/bin"]});
    let c = Container::new(bundle.edit(|c| c["hooks"] = json!({"createContainer": [hook]})));
    c.run().ok();
    let told = std::fs::read_to_string(told).expect("what the hook has seen");
    assert!(told.contains("LOOPBACK,UP"), "{told}");
}

#[test]
fn order_and_state_of_all_six() {
    if differs(Kind::Crun, "1.8 shows the bundle as / inside") {
        return;
    }
    let mut c = Container::new(logging_bundle());
    let order = |c: &Container| -> Vec<String> {
        let text = std::fs::read_to_string(c.bundle.path().join("log/order")).unwrap_or_default();
        // runc 1.1 runs poststart at create already.
        let early = |l: &&str| kind() != Kind::Runc || *l != "poststart";
        text.lines().filter(early).map(str::to_owned).collect()
    };
    c.create();
    assert_eq!(order(&c), ["prestart", "createRuntime", "createContainer"]);
    let pid = c.pid();
    c.start();
    let wanted: &[&str] = if kind() == Kind::Runc {
        &["program", "startContainer"]
    } else {
        &["poststart", "program", "startContainer"]
    };
    until("poststart and the program", || order(&c).len() == 3 + wanted.len());
    let mut after_start = order(&c)[3..].to_vec();
    assert_eq!(
        after_start.iter().filter(|n| *n != "poststart").collect::<Vec<_>>(),
        ["startContainer", "program"]
    );
    after_start.sort();
    assert_eq!(after_start, wanted);
    c.kill("KILL").ok();
    c.wait_stopped();
    c.delete().ok();
    assert_eq!(order(&c).last().map(String::as_str), Some("poststop"));
    let want = [
        // runc: `creating`; crun, and the conformance suite: `created`.
        ("prestart", "created"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("startContainer", "created"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ];
    for (name, status) in want {
        let state = state_given(&c, name);
        assert_eq!(state["id"], c.id.as_str(), "{name}");
        assert_eq!(state["bundle"], c.bundle.path().to_str().expect("utf-8"), "{name}");
        if kind() == Kind::Runw || (kind() == Kind::Runc && !["prestart", "poststart"].contains(&name)) {
            assert_eq!(state["status"], status, "{name}");
        }
        if ["prestart", "createRuntime", "poststart"].contains(&name) {
            assert_eq!(state["pid"], pid, "{name}");
        }
    }
}

fn one_hook(kind: &str, hook: Value) -> Bundle {
    Bundle::sh("echo ran").edit(|c| {
        c["hooks"] = json!({});
        c["hooks"][kind] = json!([hook]);
    })
}

#[test]
fn the_environment_is_the_hook_s_own() {
    let bundle = Bundle::sh("true");
    let out = bundle.path().join("env");
    let body = format!("env | grep -v -e ^PWD= -e ^SHLVL= -e ^_= | sort >{}", out.display());
    let path = bundle.path().join("hook");
    script(&path, &body);
    let c = Container::new(bundle.edit(|c| {
        c["hooks"] = json!({"createRuntime": [{"path": path, "env": ["PATH=/bin:/usr/bin", "ONLY=this"]}]});
    }));
    c.run().ok();
    assert_eq!(std::fs::read_to_string(out).expect("env"), "ONLY=this\nPATH=/bin:/usr/bin\n");
}

/// runc's hooks.bats, "startContainer hook should inherit process environment".
#[test]
fn a_hook_in_the_container_has_the_program_s_environment() {
    if differs(Kind::Crun, "1.8 gives it its own") {
        return;
    }
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-euc", "test $ONE = two; test $HOME = /there; echo yes >/told"]});
    let bundle = Bundle::sh("true").edit(|c| {
        c["process"]["env"] = json!(["PATH=/bin", "ONE=two"]);
        c["hooks"] = json!({"startContainer": [hook]});
    });
    std::fs::write(bundle.rootfs().join("etc/passwd"), "root:x:0:0:root:/there:/bin/sh\n").expect("write");
    let c = Container::new(bundle);
    c.run().ok();
    assert_eq!(std::fs::read_to_string(c.bundle.rootfs().join("told")).expect("told"), "yes\n");
}

#[test]
fn a_failing_hook_fails_create_and_undoes_it() {
    if differs(Kind::Crun, "1.8 exits 255") {
        return;
    }
    for name in ["prestart", "createRuntime", "createContainer"] {
        let mut c = Container::new(one_hook(
            name,
            json!({"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]}),
        ));
        let out = c.create_with(&[]);
        assert_eq!(out.code, 1, "{name}: {out:?}");
        if kind() == Kind::Runw {
            assert!(out.err.contains(name) || out.err.contains("hook"), "{name}: {out:?}");
        }
        nothing_left(&c);
    }
}

#[test]
fn a_failing_start_container_hook_fails_start() {
    // runc's rule: the container is stopped then, and delete removes it.
    let mut c = Container::new(one_hook("startContainer", json!({"path": "/bin/false"})));
    c.create();
    c.call(&["start", &c.id]);
    c.wait_stopped();
    assert!(!c.out().contains("ran"), "the program ran after a failed hook");
    c.delete().ok();
    nothing_left(&c);
}

#[test]
fn a_failing_poststop_hook_does_not_keep_the_container() {
    let c = Container::new(one_hook("poststop", json!({"path": "/bin/false"})));
    c.run();
    c.call(&["delete", "--force", &c.id]);
    nothing_left(&c);
}

#[test]
fn a_hook_that_hangs_is_killed_in_time() {
    let mut c = Container::new(one_hook(
        "createRuntime",
        json!({"path": "/bin/sleep", "args": ["sleep", "50"], "timeout": 1}),
    ));
    let started = std::time::Instant::now();
    assert_eq!(c.create_with(&[]).code, 1);
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    nothing_left(&c);
}

#[test]
fn a_hook_that_is_not_there() {
    if differs(Kind::Crun, "1.8 exits 255") {
        return;
    }
    let mut c = Container::new(one_hook("createRuntime", json!({"path": "/no/such/hook"})));
    c.create_with(&[]).refused(&["/no/such/hook"]);
    nothing_left(&c);
}

#[test]
fn hooks_of_one_kind_run_in_order() {
    let bundle = Bundle::sh("true");
    let log = bundle.path().join("order");
    let hook =
        |n: u32| json!({"path": "/bin/sh", "args": ["sh", "-c", format!("echo {n} >>{}", log.display())]});
    let hooks = json!({"createRuntime": [hook(1), hook(2), hook(3)]});
    let c = Container::new(bundle.edit(|c| c["hooks"] = hooks));
    c.run().ok();
    assert_eq!(std::fs::read_to_string(&log).expect("order"), "1\n2\n3\n");
}

#[test]
fn a_hook_may_use_the_network_namespace_by_pid() {
    // What CNI plug-ins called from prestart do.
    let bundle = Bundle::sh("ip link show; exec true");
    let path = bundle.path().join("hook");
    script(
        &path,
        r#"pid=$(grep -o '"pid": *[0-9]*' | grep -o '[0-9]*'); nsenter -t $pid -n ip link add dummy7 type dummy 2>/dev/null || nsenter -t $pid -n ip link add name dummy7 type bridge 2>/dev/null || echo none >$(dirname $0)/none"#,
    );
    let c = Container::new(bundle.edit(|c| {
        c["hooks"] = json!({"prestart": [{"path": path, "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]}]})
    }));
    let out = c.run().ok();
    if c.bundle.path().join("none").exists() {
        return crate::harness::skip(
            "this kernel makes neither dummy nor bridge interfaces, or ip is missing",
        );
    }
    assert!(out.out.contains("dummy7"), "{out:?}");
}

/// config.md: a hook in the container's namespaces is told the pid that is seen there, one outside the host's.
#[test]
fn each_hook_is_told_a_pid_of_its_own_namespace() {
    if differs(Kind::Crun, "1.8 tells none or 0 inside") {
        return;
    }
    let mut c = Container::new(logging_bundle());
    c.create();
    let pid = c.pid();
    c.start();
    until("startContainer", || c.bundle.path().join("log/startContainer.json").exists());
    until("its state", || {
        std::fs::read_to_string(c.bundle.path().join("log/order")).is_ok_and(|t| t.contains("program"))
    });
    for (name, wanted) in
        [("prestart", pid), ("createRuntime", pid), ("createContainer", 1), ("startContainer", 1)]
    {
        assert_eq!(state_given(&c, name)["pid"], wanted, "{name}");
    }
    c.call(&["delete", "--force", &c.id]).ok();
    assert!(state_given(&c, "poststop")["pid"].as_i64().unwrap_or(0) == 0);
}

/// In the bundle, in the container's root before it is entered, and where the program will be.
#[test]
fn the_directory_of_each() {
    if differs(Kind::Crun, "1.8 has its own places") {
        return;
    }
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    let log = c.bundle.path().join("log");
    let outside = |name: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo {name} $(pwd) >>{}", log.display())]}]);
    c.bundle.config["process"]["cwd"] = json!("/tmp");
    c.bundle.config["hooks"] = json!({
        "prestart": outside("prestart"), "createRuntime": outside("createRuntime"),
        "createContainer": outside("createContainer"), "poststart": outside("poststart"), "poststop": outside("poststop"),
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "pwd >/where"]}],
    });
    c.bundle.save();
    let bundle = c.bundle.path().to_str().expect("utf-8").to_owned();
    c.create().start();
    let where_inside = c.bundle.rootfs().join("where");
    until("startContainer", || std::fs::read_to_string(&where_inside).is_ok_and(|t| !t.is_empty()));
    assert_eq!(std::fs::read_to_string(where_inside).expect("where"), "/tmp\n");
    c.call(&["delete", "--force", &c.id]).ok();
    let text = std::fs::read_to_string(&log).expect("the log");
    let wanted = [
        format!("prestart {bundle}"),
        format!("createRuntime {bundle}"),
        format!("createContainer {bundle}/rootfs"),
        format!("poststart {bundle}"),
        format!("poststop {bundle}"),
    ];
    if kind() == Kind::Runw {
        assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
    } else {
        // runc runs them where it was called, which engines make the bundle.
        assert!(text.contains(&wanted[2]), "{text}");
    }
}

/// runtime.md, step 13: the others run all the same, and the container is gone.
#[test]
fn every_poststop_hook_runs_whatever_became_of_the_one_before() {
    if differs(Kind::Runc, "1.1 stops at the first") {
        return;
    }
    let bundle = Bundle::sh("true");
    let log = bundle.path().join("log");
    let say = |word: &str, status: u8| json!({"path": "/bin/sh", "args": ["sh", "-c", format!("echo {word} >>{}; echo why {word} >&2; exit {status}", log.display())]});
    let hooks = json!({"poststop": [say("one", 3), {"path": "/no/such/hook"}, say("three", 0)]});
    let mut c = Container::new(bundle.edit(|c| c["hooks"] = hooks));
    c.create().start();
    c.wait_stopped();
    let out = c.delete().ok();
    assert_eq!(std::fs::read_to_string(&log).expect("the log"), "one\nthree\n");
    if kind() == Kind::Runw {
        for words in [
            "poststop hook #0: exit status 3, stdout: , stderr: why one",
            "poststop hook #1: start /no/such/hook",
        ] {
            assert!(out.err.contains(words), "{out:?}");
        }
    }
    nothing_left(&c);
}

#[test]
fn a_failing_poststart_hook_ends_what_run_has_started() {
    if runw_only("poststart hooks in start") {
        return;
    }
    let bundle = Bundle::sh("exec sleep 100").edit(|c| {
        c["hooks"] = json!({"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", "echo said; exit 9"]}]});
    });
    let c = Container::new(bundle);
    c.run().refused(&["poststart hook #0", "exit status 9, stdout: said"]);
    nothing_left(&c);
}

#[test]
fn a_failing_poststart_hook_is_warned_of_by_start() {
    if runw_only("poststart hooks in start") {
        return;
    }
    // runtime.md, step 9: the others run, and so does the container.
    let bundle = Bundle::sh("exec sleep 100");
    let second = bundle.path().join("second");
    let touch = format!("echo $$ >{}", second.display());
    let mut c = Container::new(bundle.edit(|c| {
        c["hooks"] = json!({"poststart": [{"path": "/bin/false"}, {"path": "/bin/sh", "args": ["sh", "-c", touch]}]});
    }));
    c.create();
    let out = c.call(&["start", &c.id]).ok();
    assert!(
        out.err.contains("level=warning") && out.err.contains("poststart hook #0: exit status 1"),
        "{out:?}"
    );
    assert!(second.exists());
    assert_eq!(c.status(), "running");
}

/// What a hook says is nobody's output; of one that fails the error tells it.
#[test]
fn what_a_hook_says_is_told_when_it_fails() {
    if differs(Kind::Crun, "1.8 lets it write to its own output") {
        return;
    }
    for name in ["prestart", "createRuntime", "createContainer", "startContainer"] {
        let quiet = Container::new(one_hook(
            name,
            json!({"path": "/bin/sh", "args": ["sh", "-c", "echo loud; echo louder >&2"]}),
        ));
        let out = quiet.run().ok();
        assert_eq!((out.out.as_str(), out.err.as_str()), ("ran\n", ""), "{name}");
        let failing = Container::new(one_hook(
            name,
            json!({"path": "/bin/sh", "args": ["sh", "-c", "echo loud; echo louder >&2; exit 5"]}),
        ));
        let out = failing.run();
        assert_ne!(out.code, 0, "{name}: {out:?}");
        for words in ["exit status 5", "stdout: loud", "stderr: louder"] {
            assert!(out.err.contains(words), "{name}: {words:?} is not in {out:?}");
        }
        assert!(!out.out.contains("ran"), "{name}: {out:?}");
    }
}

/// The hook is killed, as by runc and crun, and not waited for longer than that by a process it left behind.
#[test]
fn a_timeout_ends_the_hook_and_not_what_it_left_behind() {
    if differs(Kind::Runc, "1.1 waits for all that hold the hook's pipes") {
        return;
    }
    let bundle = Bundle::sh("true");
    let left = bundle.path().join("left");
    let script = format!("sleep 31.7 & echo $! >{}; sleep 32.7", left.display());
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1});
    let mut c = Container::new(bundle.edit(|c| c["hooks"] = json!({"createRuntime": [hook]})));
    let began = std::time::Instant::now();
    let out = c.create_with(&[]);
    assert!(out.code == 1 || kind() == Kind::Crun, "{out:?}");
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    if kind() == Kind::Runw {
        out.refused(&["createRuntime hook #0", "hook ran past specified timeout of 1.0s"]);
    }
    let pid = std::fs::read_to_string(left).expect("a pid").trim().parse().expect("a pid");
    assert!(crate::harness::alive(pid));
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill what is left");
    nothing_left(&c);
}
