//! Containers of a user who is not root, in a session with a systemd of the user's own.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{
    Bundle, Container, Kind, Out, differs, pure_v2, run, runtime, runw_only, skip, unique, until,
};

/// Made for tests: what is done in this user's name stays in its home and session.
const USER: &str = "tester";

struct Rootless {
    c: Container,
    uid: u32,
    home: PathBuf,
}

/// None, with a skip, where there is no such user with a systemd of its own.
fn user() -> Option<u32> {
    let text = run(Command::new("id").args(["-u", USER])).out;
    let uid = text.trim().parse().ok().filter(|uid| Path::new(&format!("/run/user/{uid}/bus")).exists());
    if uid.is_none() || !pure_v2() {
        skip("needs cgroup v2 alone and a user `tester` with a systemd of its own (make test-vm)");
        return None;
    }
    uid
}

/// As the user, in the cgroup of whoever runs the tests.
fn plainly(uid: u32, command: &Command) -> Command {
    let mut plain = Command::new("setpriv");
    plain.args([
        "--reuid",
        USER,
        "--regid",
        USER,
        "--init-groups",
        "env",
        "--ignore-environment",
        "--chdir=/",
    ]);
    plain.arg(format!("PATH={}", std::env::var("PATH").expect("PATH")));
    plain.arg(format!("XDG_RUNTIME_DIR=/run/user/{uid}"));
    plain.arg(command.get_program()).args(command.get_args());
    plain
}

/// As a service of the user's systemd, whose cgroup is in the user's own tree; a container outlives it.
fn as_user(uid: u32, command: &Command) -> Command {
    let mut service = Command::new("systemd-run");
    service.args(["--user", "--quiet", "--pipe", "--wait", "--collect", "-p", "KillMode=process"]);
    service.arg(command.get_program()).args(command.get_args());
    plainly(uid, &service)
}

impl Rootless {
    /// What the runtime's own `spec --rootless` says, changed by `edit`.
    fn new(bundle: Bundle, edit: impl FnOnce(&mut Value)) -> Option<Rootless> {
        let uid = user()?;
        let home = bundle.outside("home");
        chown(&home, Some(uid), Some(uid)).expect("give it to the user");
        std::fs::set_permissions(&home, PermissionsExt::from_mode(0o700)).expect("chmod");
        run(&mut plainly(uid, Command::new(runtime()).args(["spec", "--rootless", "--bundle"]).arg(&home)))
            .ok();
        let text = std::fs::read(home.join("config.json")).expect("what spec wrote");
        let mut config: Value = serde_json::from_slice(&text).expect("JSON");
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = bundle.config["process"]["args"].clone();
        edit(&mut config);
        Some(Rootless { c: Container::new(bundle.edit(|c| *c = config)), uid, home })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(runtime());
        command.arg("--root").arg(self.home.join("state")).args(words);
        command
    }

    fn call(&self, words: &[&str]) -> Out {
        run(&mut plainly(self.uid, &self.command(words)))
    }

    /// What moves a process into the container's cgroup: the kernel wants the way there to be the user's.
    fn call_from_within(&self, words: &[&str]) -> Out {
        run(&mut as_user(self.uid, &self.command(words)))
    }

    fn run(&self, flags: &[&str], verb: &[&str]) -> Out {
        let bundle = self.c.bundle.path().to_str().expect("utf-8");
        self.call_from_within(&[flags, verb, &["--bundle", bundle, &self.c.id]].concat())
    }

    #[track_caller]
    fn up(&self, flags: &[&str]) {
        // Its output would keep the session's pipe open.
        let log = self.home.join("log");
        let log = log.to_str().expect("utf-8");
        let out = self.run(&[flags, &["--log", log]].concat(), &["run", "--detach"]);
        assert_eq!(out.code, 0, "{out:?} {:?}", std::fs::read_to_string(log));
    }

    fn state(&self) -> Value {
        let out = self.call(&["state", &self.c.id]).ok();
        serde_json::from_str(&out.out).expect("JSON")
    }

    fn exec(&self, line: &str) -> String {
        self.call_from_within(&["exec", &self.c.id, "/bin/sh", "-c", line]).ok().out
    }

    /// Where its init is, seen from outside.
    fn cgroup(&self) -> PathBuf {
        let text =
            std::fs::read_to_string(format!("/proc/{}/cgroup", self.state()["pid"])).expect("its cgroup");
        let path = text.trim().strip_prefix("0::/").expect("a path of cgroup v2");
        Path::new("/sys/fs/cgroup").join(path)
    }

    fn user_cgroup(&self) -> PathBuf {
        PathBuf::from(format!("/sys/fs/cgroup/user.slice/user-{0}.slice/user@{0}.service", self.uid))
    }

    fn ends(&self) {
        self.call(&["kill", &self.c.id, "KILL"]).ok();
        until("it has stopped", || self.state()["status"] == "stopped");
        self.call(&["delete", &self.c.id]).ok();
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        self.call(&["delete", "--force", &self.c.id]);
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

#[test]
fn spec_rootless_is_a_bundle_that_runs() {
    let Some(r) = Rootless::new(Bundle::sh("id -u; cat /proc/self/uid_map; echo err >&2; exit 3"), |_| {})
    else {
        return;
    };
    let out = r.run(&[], &["run"]);
    let words: Vec<&str> = out.out.split_whitespace().collect();
    let uid = r.uid.to_string();
    assert_eq!((out.code, words), (3, vec!["0", "0", &uid, "1"]), "{:?}", out.err);
}

#[test]
fn a_user_s_container_lives_its_life() {
    let Some(r) = Rootless::new(Bundle::sh("exec sleep 1000"), |_| {}) else { return };
    r.up(&[]);
    let state = r.state();
    assert_eq!((&state["status"], &state["id"]), (&json!("running"), &json!(r.c.id)));
    assert_eq!(r.exec("id -u; cat /proc/1/comm"), "0\nsleep\n");
    let owner =
        std::fs::metadata(format!("/proc/{}", state["pid"])).map(|m| std::os::unix::fs::MetadataExt::uid(&m));
    assert_eq!(owner.expect("its init"), r.uid);
    r.ends();
    assert_eq!(r.call(&["state", &r.c.id]).code, 1);
}

/// The user's systemd makes a scope with the limits, and hands them to the kernel.
#[test]
fn limits_are_in_a_scope_of_the_user_s_systemd() {
    let limits = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 50}, "cpu": {"quota": 50_000, "period": 100_000}});
    let path = unique("rootless");
    let edit = |c: &mut Value| {
        c["linux"]["resources"] = limits;
        c["linux"]["cgroupsPath"] = json!(format!("user.slice:runw-test:{path}"));
    };
    let Some(r) = Rootless::new(Bundle::sh("exec sleep 1000"), edit) else { return };
    r.up(&["--systemd-cgroup"]);
    let dir = r.cgroup();
    assert_eq!(dir, r.user_cgroup().join(format!("user.slice/runw-test-{path}.scope")));
    let files = ["memory.max", "pids.max", "cpu.max"].map(|name| read(&dir.join(name)));
    assert_eq!(files, ["67108864", "50", "50000 100000"]);
    let mut show = Command::new("systemctl");
    show.args(["--user", "show", &format!("runw-test-{path}.scope"), "-p", "MemoryMax,TasksMax"]);
    let shown = run(&mut plainly(r.uid, &show)).ok().out;
    assert!(shown.contains("MemoryMax=67108864") && shown.contains("TasksMax=50"), "{shown}");
    let update = ["--systemd-cgroup", "update", "--pids-limit", "40", r.c.id.as_str()];
    r.call_from_within(&update).ok();
    assert_eq!(read(&dir.join("pids.max")), "40");
    let out = r.call_from_within(&[
        "--systemd-cgroup",
        "exec",
        &r.c.id,
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=200M",
        "count=1",
    ]);
    assert_eq!(out.code, 137, "{out:?}");
    r.ends();
    until("the scope is gone", || !dir.exists());
}

/// cgroup-v2.rst, "Delegation": the user's systemd owns its tree, and a cgroup can be made in it by hand.
#[test]
fn limits_are_in_a_cgroup_that_was_delegated() {
    let limits = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 50}});
    for path in [None, Some(unique("delegated"))] {
        let edit = |c: &mut Value| {
            c["linux"]["resources"] = limits.clone();
            c["linux"]["cgroupsPath"] = json!(path);
        };
        let Some(r) = Rootless::new(Bundle::sh("exec sleep 1000"), edit) else { return };
        r.up(&[]);
        let dir = r.cgroup();
        // Beside the service that called it, which has processes and so cannot hand anything down.
        let name = path.as_ref().unwrap_or(&r.c.id);
        assert_eq!(dir, r.user_cgroup().join("app.slice").join(name));
        assert_eq!(["memory.max", "pids.max"].map(|name| read(&dir.join(name))), ["67108864", "50"]);
        let both = r.exec("cat /proc/1/cgroup /proc/self/cgroup");
        assert_eq!(both, "0::/\n0::/\n");
        r.ends();
        assert!(!dir.exists());
    }
}

/// runc's words: a limit cannot be had where no cgroup can be made, and is not left out in silence.
#[test]
fn a_limit_without_a_cgroup_is_refused_and_without_limits_none_is_needed() {
    if differs(Kind::Crun, "it warns and goes on") {
        return;
    }
    for (limit, code) in [(json!({"memory": {"limit": 64 << 20}}), 1), (json!({}), 0)] {
        let edit = |c: &mut Value| c["linux"]["resources"] = limit.clone();
        let Some(r) = Rootless::new(Bundle::sh("true"), edit) else { return };
        let bundle = r.c.bundle.path().to_str().expect("utf-8");
        let out = run(&mut plainly(r.uid, &r.command(&["run", "--bundle", bundle, &r.c.id])));
        assert_eq!(out.code, code, "{out:?}");
        assert!(code == 0 || out.err.contains("rootless needs no limits + no cgrouppath"), "{out:?}");
    }
}

#[test]
fn a_wasm_guest_of_a_user_runs() {
    if runw_only("wasm") {
        return;
    }
    let Some(r) = Rootless::new(Bundle::wasm("probe.wasm", &["say", "hello", "exit", "5"]), |_| {}) else {
        return;
    };
    let out = r.run(&[], &["run"]);
    assert_eq!((out.code, out.out.as_str()), (5, "hello\n"), "{out:?}");
}
