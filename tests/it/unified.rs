//! What cgroup v2 does without controllers: joining, the cgroup namespace, freezing, killing, the device filter. On a
//! hybrid machine each call of the runtime sees /sys/fs/cgroup/unified in the place of /sys/fs/cgroup, in a mount
//! namespace of its own; on a machine with cgroup v2 alone (v2.rs) nothing need be done.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::harness::{
    Bundle, Container, Kind, Out, cap, differs, hybrid, kind, pure_v2, run, skip, spawn, until,
};

struct Unified {
    c: Container,
}

impl Unified {
    /// None, with a skip, where there is no v2 tree.
    /// With a cgroup namespace, as engines make it on v2.
    fn new(bundle: Bundle) -> Option<Unified> {
        Unified::as_it_is(bundle.namespace("cgroup", None))
    }

    fn as_it_is(bundle: Bundle) -> Option<Unified> {
        if !hybrid() && !pure_v2() {
            skip("no cgroup v2");
            return None;
        }
        if hybrid() && differs(Kind::Crun, "the wrapper that makes it a control here hides the v2 tree") {
            return None;
        }
        // The limits of spec's default are none; v2 without controllers could not take any.
        Some(Unified { c: Container::new(bundle) })
    }

    fn inside(&self, command: &Command) -> Command {
        let line = r#"mount --bind /sys/fs/cgroup/unified /mnt && umount -l /sys/fs/cgroup && mount --move /mnt /sys/fs/cgroup && exec "$0" "$@""#;
        let mut shell = Command::new("env");
        if hybrid() {
            shell.args(["unshare", "-m", "sh", "-c", line]);
        }
        shell.arg(command.get_program()).args(command.get_args());
        shell
    }

    fn call(&self, words: &[&str]) -> Out {
        run(&mut self.inside(&self.c.command(words)))
    }

    #[track_caller]
    fn up(&self) {
        let file = self.c.bundle.path().join("out");
        let mut command = self.inside(&self.c.run_command(&["--detach"]));
        let err = std::fs::File::create(self.c.bundle.path().join("err")).expect("file");
        let status = command
            .stdin(std::process::Stdio::null())
            .stdout(std::fs::File::create(file).expect("file"))
            .stderr(err)
            .status();
        let text = std::fs::read_to_string(self.c.bundle.path().join("err")).expect("err");
        assert!(status.expect("run").success(), "{text}");
    }

    fn cgroup(&self) -> PathBuf {
        self.c.cgroup("unified")
    }

    fn status(&self) -> String {
        let state: serde_json::Value =
            serde_json::from_str(&self.call(&["state", &self.c.id]).ok().out).expect("json");
        state["status"].as_str().expect("status").to_owned()
    }

    fn procs(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.cgroup().join("cgroup.procs")).unwrap_or_default();
        text.lines().map(|l| l.parse().expect("a pid")).collect()
    }
}

impl Drop for Unified {
    fn drop(&mut self) {
        let id = self.c.id.clone();
        self.call(&["delete", "--force", &id]);
    }
}

#[test]
fn it_joins_in_a_namespace_of_its_own_and_leaves() {
    let Some(u) = Unified::new(Bundle::sh("exec sleep 100")) else { return };
    u.up();
    assert_eq!(u.procs().len(), 1);
    let own = u.call(&["exec", &u.c.id, "/bin/cat", "/proc/self/cgroup"]).ok().out;
    assert!(own.lines().any(|l| l == "0::/"), "the cgroup namespace is not rooted at the container: {own}");
    u.call(&["delete", "--force", &u.c.id]).ok();
    assert!(!u.cgroup().exists());
}

#[test]
fn exec_joins_too() {
    let Some(u) = Unified::new(Bundle::sh("exec sleep 100")) else { return };
    u.up();
    let id = u.c.id.clone();
    let mut exec = spawn(&mut u.inside(&u.c.command(&["exec", &id, "/bin/sleep", "100"])));
    let runs_sleep =
        |pid: &&i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
    until("two processes in the cgroup", || u.procs().iter().filter(runs_sleep).count() == 2);
    u.call(&["delete", "--force", &id]).ok();
    assert_eq!(exec.wait().code, 137);
}

#[test]
fn a_frozen_container_is_paused_and_can_be_killed() {
    let Some(u) = Unified::new(Bundle::sh("exec sleep 100")) else { return };
    u.up();
    std::fs::write(u.cgroup().join("cgroup.freeze"), "1").expect("freeze");
    let frozen =
        || std::fs::read_to_string(u.cgroup().join("cgroup.events")).is_ok_and(|t| t.contains("frozen 1"));
    until("frozen", frozen);
    assert_eq!(u.status(), "paused");
    u.call(&["delete", "--force", &u.c.id]).ok();
    assert!(!u.cgroup().exists());
}

#[test]
fn pause_resume_and_ps() {
    let Some(u) = Unified::new(Bundle::sh("exec sleep 100")) else { return };
    u.up();
    let id = u.c.id.clone();
    u.call(&["pause", &id]).ok();
    assert_eq!(u.status(), "paused");
    let events = std::fs::read_to_string(u.cgroup().join("cgroup.events")).expect("cgroup.events");
    assert!(events.contains("frozen 1"), "{events}");
    u.call(&["resume", &id]).ok();
    assert_eq!(u.status(), "running");
    assert_eq!(u.call(&["ps", "-f", "json", &id]).ok().out, format!("[{}]\n", u.procs()[0]));
}

#[test]
fn stats_are_given_for_what_is_counted() {
    let Some(u) = Unified::new(Bundle::sh("exec sleep 100")) else { return };
    u.up();
    let out = u.call(&["events", "--stats", &u.c.id]).ok().out;
    let event: serde_json::Value = serde_json::from_str(&out).expect("json");
    // Time is counted without any controller.
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().is_some_and(|n| n > 0), "{out}");
    if kind() == Kind::Runw && hybrid() {
        u.call(&["update", "--pids-limit", "5", &u.c.id]).refused(&["pids.limit", "not available"]);
    }
}

#[test]
fn kill_all_reaches_every_process() {
    let Some(u) = Unified::new(Bundle::sh("sleep 1000 & sleep 1001 & sleep 1002; true")) else { return };
    u.up();
    until("four processes", || u.procs().len() == 4);
    u.call(&["kill", "--all", &u.c.id, "KILL"]).ok();
    until("none is left", || u.procs().is_empty());
    u.call(&["delete", &u.c.id]).ok();
    assert!(!u.cgroup().exists());
}

#[test]
fn a_pid_namespace_of_the_host_is_swept() {
    let Some(u) =
        Unified::new(Bundle::sh("sleep 1000 & sleep 1001 & exec sleep 1002").without_namespace("pid"))
    else {
        return;
    };
    u.up();
    until("three processes", || u.procs().len() == 3);
    u.call(&["delete", "--force", &u.c.id]).ok();
    until("none is left", || u.procs().is_empty());
    // runc 1.1 does not wait for the dying members before it removes the directory.
    assert!(!u.cgroup().exists() || kind() == Kind::Runc);
    let _ = std::fs::remove_dir(u.cgroup());
}

#[test]
fn the_device_filter_holds() {
    let bundle = Bundle::sh("exec sleep 100").edit(|c| {
        c["process"]["capabilities"] = cap(&["CAP_MKNOD"]);
        c["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}]);
    });
    let Some(u) = Unified::new(bundle) else { return };
    u.up();
    let line = "mknod /tmp/kmsg c 1 11; head -c1 /tmp/kmsg >/dev/null || echo refused; head -c1 /dev/zero >/dev/null && echo zero";
    let out = u.call(&["exec", &u.c.id, "/bin/sh", "-c", line]).out;
    assert_eq!(out, "refused\nzero\n");
}

#[test]
fn the_cgroup_mount_shows_the_container_only() {
    let mut bundle =
        Bundle::sh("cat /sys/fs/cgroup/cgroup.procs; stat -fc %T /sys/fs/cgroup; exec sleep 100");
    let has = bundle.config["mounts"].as_array().expect("mounts").iter().any(|m| m["type"] == "cgroup");
    if !has {
        bundle = bundle.mount(
            "/sys/fs/cgroup",
            "cgroup",
            std::path::Path::new("cgroup"),
            &["nosuid", "noexec", "nodev", "ro"],
        );
    }
    let Some(u) = Unified::new(bundle) else { return };
    u.up();
    let read = || std::fs::read_to_string(u.c.bundle.path().join("out")).unwrap_or_default();
    until("output", || read().lines().count() >= 2);
    let text = read();
    assert!(text.lines().any(|l| l == "1"), "{text}");
    assert!(kind() != Kind::Runw || !text.contains("tmpfs"), "{text}");
}

/// Without a cgroup namespace the mount is a bind of the container's own directory.
#[test]
fn the_cgroup_mount_without_a_namespace() {
    if differs(Kind::Runc, "it binds the whole tree, and what is made in it is made on the host") {
        return;
    }
    let script = "cat /sys/fs/cgroup/cgroup.procs; stat -fc %T /sys/fs/cgroup; ls -d /sys/fs/cgroup/runw-test; \
        mkdir /sys/fs/cgroup/mine && echo made; echo end; exec sleep 100";
    for (options, made) in [(&["nosuid", "noexec", "nodev", "ro"][..], false), (&["nosuid", "rw"], true)] {
        let bundle = Bundle::sh(script).edit(|c| {
            c["mounts"].as_array_mut().expect("mounts").retain(|m| m["type"] != "cgroup");
        });
        let bundle = bundle.mount("/sys/fs/cgroup", "cgroup", std::path::Path::new("cgroup"), options);
        let Some(u) = Unified::as_it_is(bundle.without_namespace("cgroup")) else { return };
        u.up();
        let read = || std::fs::read_to_string(u.c.bundle.path().join("out")).unwrap_or_default();
        until("output", || read().contains("end"));
        let text = read();
        assert!(text.lines().any(|l| l == "1"), "{text}");
        assert!(!text.contains("/sys/fs/cgroup/runw-test"), "{text}");
        assert_eq!(text.contains("made"), made, "{text}");
        u.call(&["delete", "--force", &u.c.id]).ok();
        assert!(!u.cgroup().exists(), "the nested one went with it");
    }
}

#[test]
fn a_used_or_frozen_cgroup_is_refused() {
    let Some(first) = Unified::new(Bundle::sh("exec sleep 100")) else { return };
    first.up();
    let path = first.c.bundle.config["linux"]["cgroupsPath"].clone();
    let second = Bundle::sh("true").edit(|c| c["linux"]["cgroupsPath"] = path);
    let Some(second) = Unified::new(second) else { return };
    let create = |u: &Unified| run(&mut u.inside(&u.c.create_command(&[])));
    if !differs(Kind::Runc, "1.1 warns only") {
        create(&second).refused(&["container's cgroup is not empty: 1 process(es) found"]);
    }
    assert_eq!(first.status(), "running");
    let Some(frozen) = Unified::new(Bundle::sh("true")) else { return };
    std::fs::create_dir_all(frozen.cgroup()).expect("a cgroup");
    std::fs::write(frozen.cgroup().join("cgroup.freeze"), "1").expect("freeze");
    let out = create(&frozen);
    assert!(out.code != 0 && out.err.contains("frozen"), "{out:?}");
    let _ = std::fs::remove_dir(frozen.cgroup());
}

/// What is allowed is what this container asks for, not what was asked for where its cgroup was used before.
#[test]
fn devices_of_v2_are_what_this_container_may() {
    // Only opened: what reading them gives is the host's business.
    let line = "mknod /tmp/kmsg c 1 11; (: </tmp/kmsg) && echo kmsg; mknod /tmp/mem c 1 2; \
        (: </tmp/mem) 2>&1 | grep -c ermitted; head -c1 /dev/zero >/dev/null && echo zero";
    for (rules, wanted) in [
        (
            json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]),
            "kmsg\n1\nzero\n",
        ),
        (
            json!([{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "rw"},
            {"allow": false, "type": "c", "major": 1, "minor": 2, "access": "rw"}]),
            "1\nzero\n",
        ),
        (json!([]), "1\nzero\n"),
    ] {
        let bundle = Bundle::sh("exec sleep 100").edit(|c| {
            c["process"]["capabilities"] = cap(&["CAP_MKNOD", "CAP_SYSLOG", "CAP_SYS_RAWIO"]);
            c["linux"]["resources"]["devices"] = rules.clone();
        });
        let Some(u) = Unified::new(bundle) else { return };
        u.up();
        assert_eq!(u.call(&["exec", &u.c.id, "/bin/sh", "-c", line]).out, wanted, "{rules}");
    }
}

#[test]
fn nested_cgroups_go_with_the_container() {
    let Some(u) = Unified::new(Bundle::sh("exec sleep 100")) else { return };
    u.up();
    std::fs::create_dir_all(u.cgroup().join("a/b")).expect("nested cgroups");
    std::fs::create_dir(u.cgroup().join("c")).expect("a nested cgroup");
    u.call(&["delete", "--force", &u.c.id]).ok();
    assert!(!u.cgroup().exists());
}
