//! Namespaces, new and joined, and the id maps.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::{Bundle, Container, Kind, Running, differs, nothing_left, spawn, until};

const FILES: [(&str, &str); 7] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
    ("user", "user"),
];

fn link(pid: &str, file: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{file}")).expect("a namespace link")
}

fn link_of(c: &Container, file: &str) -> PathBuf {
    link(&c.pid().to_string(), file)
}

#[test]
fn asked_for_namespaces_are_new_and_others_the_host_s() {
    let c = Container::up(Bundle::sh("exec sleep 100").namespace("cgroup", None));
    for (kind, file) in FILES {
        let same = link_of(&c, file) == link("self", file);
        assert_eq!(same, kind == "user", "{kind}");
    }
    let c = Container::up(Bundle::sh("exec sleep 100").without_namespace("ipc").without_namespace("network"));
    for (kind, file) in FILES {
        let same = link_of(&c, file) == link("self", file);
        let shared = ["user", "ipc", "network", "cgroup"].contains(&kind)
            && !(kind == "cgroup" && c.bundle.config["linux"]["namespaces"].to_string().contains("cgroup"));
        assert_eq!(same, shared, "{kind}");
    }
}

/// A process in new namespaces of the given kinds, waiting to be joined.
fn host_of_namespaces(flags: &[&str]) -> (Running, i32) {
    let running = spawn(Command::new("unshare").args(flags).args(["sh", "-c", "echo up; exec sleep 100"]));
    until("unshare", || running.out().contains("up"));
    let pid = running.pid();
    (running, pid)
}

#[test]
fn namespaces_are_joined_by_path() {
    for (kind, file, flag) in
        [("network", "net", "-n"), ("ipc", "ipc", "-i"), ("uts", "uts", "-u"), ("cgroup", "cgroup", "-C")]
    {
        let (_host, pid) = host_of_namespaces(&[flag]);
        let path = format!("/proc/{pid}/ns/{file}");
        let mut bundle = Bundle::sh("exec sleep 100").namespace(kind, Some(Path::new(&path)));
        if kind == "uts" {
            bundle.config.as_object_mut().expect("object").remove("hostname");
        }
        let c = Container::up(bundle);
        assert_eq!(link_of(&c, file), link(&pid.to_string(), file), "{kind}");
    }
}

#[test]
fn a_pid_namespace_is_joined() {
    // The namespace of another container: its init must stay pid 1 and see the joiner.
    let owner = Container::up(Bundle::sh("exec sleep 100"));
    let path = format!("/proc/{}/ns/pid", owner.pid());
    let c = Container::up(Bundle::sh("echo me $$; exec sleep 100").namespace("pid", Some(Path::new(&path))));
    c.wait_out("me ");
    assert!(!c.out().contains("me 1\n"), "{}", c.out());
    assert_eq!(link_of(&c, "pid"), link_of(&owner, "pid"));
    c.kill("KILL").ok();
    c.wait_stopped();
    assert_eq!(owner.status(), "running");
}

#[test]
fn a_pod_shares_network_ipc_and_uts() {
    let pause = Container::up(Bundle::sh("exec sleep 100").edit(|c| c["hostname"] = json!("the-pod")));
    let path = |file: &str| PathBuf::from(format!("/proc/{}/ns/{file}", pause.pid()));
    let mut bundle = Bundle::sh("hostname; ls /sys/class/net");
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        bundle = bundle.namespace(kind, Some(&path(file)));
    }
    bundle.config.as_object_mut().expect("object").remove("hostname");
    let out = Container::new(bundle).run().ok().out;
    assert_eq!(out, "the-pod\nlo\n");
}

#[test]
fn without_a_pid_namespace() {
    let c = Container::up(Bundle::sh("sleep 1000 & echo $$; wait").without_namespace("pid"));
    until("a pid", || c.out().ends_with('\n'));
    assert_eq!(c.out().trim(), c.pid().to_string());
    c.call(&["kill", "--all", &c.id, "KILL"]).ok();
    c.wait_stopped();
    c.call(&["delete", "--force", &c.id]).ok();
    nothing_left(&c);
}

/// runc's kill.bats, "kill KILL [host pidns + init gone]".
#[test]
fn without_a_pid_namespace_kill_reaches_those_whose_init_is_gone() {
    if differs(Kind::Runc, "1.1 says that it does not run")
        || differs(Kind::Crun, "1.8 says that it does not run")
    {
        return;
    }
    let c = Container::up(Bundle::sh("exec sleep 100").without_namespace("pid"));
    c.exec(&["--detach"], &["/bin/sleep", "1000"]).ok();
    let others = || std::fs::read_to_string(c.cgroup("pids").join("cgroup.procs")).unwrap_or_default();
    assert_eq!(others().lines().count(), 2, "{}", others());
    assert!(Command::new("kill").args(["-9", &c.pid().to_string()]).status().expect("kill").success());
    c.wait_stopped();
    assert_eq!(others().lines().count(), 1, "{}", others());
    c.call(&["kill", &c.id, "TERM"]).refused(&["container not running"]);
    c.kill("KILL").ok();
    until("an empty cgroup", || others().is_empty());
    c.kill("KILL").refused(&["container not running"]);
    c.delete().ok();
    nothing_left(&c);
}

#[test]
fn a_user_namespace_maps_ids() {
    let bundle =
        Bundle::sh("id -u; cat /proc/self/uid_map /proc/self/gid_map; touch /tmp/f; stat -c %u /tmp/f")
            .user_namespace();
    std::os::unix::fs::chown(bundle.rootfs().join("tmp"), Some(100_000), Some(100_000)).expect("chown");
    let c = Container::new(bundle);
    let out = c.run().ok().out;
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536", "0", "100000", "65536", "0"]);
    assert_eq!(std::fs::metadata(c.bundle.rootfs().join("tmp/f")).expect("stat").uid(), 100_000);
    nothing_left(&c);
}

#[test]
fn several_maps_and_another_user() {
    let bundle = Bundle::sh("id -u; id -g; cat /proc/self/uid_map").user_namespace().edit(|c| {
        c["linux"]["uidMappings"] = json!([
            {"containerID": 0, "hostID": 100_000, "size": 1000}, {"containerID": 1000, "hostID": 300_000, "size": 500}]);
        c["linux"]["gidMappings"] = c["linux"]["uidMappings"].clone();
        c["process"]["user"] = json!({"uid": 1001, "gid": 1002});
    });
    let out = Container::new(bundle).run().ok().out;
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["1001", "1002", "0", "100000", "1000", "1000", "300000", "500"]);
}

#[test]
fn root_of_a_user_namespace_has_power_only_inside() {
    let bundle = Bundle::sh("mount -t tmpfs t /mnt && echo mounted; cat /proc/self/status | grep CapEff; hostname new && hostname")
        .user_namespace()
        .edit(|c| c["process"]["capabilities"] = crate::harness::cap(&["CAP_SYS_ADMIN"]));
    let out = Container::new(bundle).run().ok().out;
    assert!(out.contains("mounted") && out.contains("0000000000200000") && out.contains("new\n"), "{out}");
}

#[test]
fn a_user_namespace_without_maps_is_refused() {
    let mut c = Container::new(Bundle::sh("true").namespace("user", None));
    assert_eq!(c.create_with(&[]).code, 1);
    nothing_left(&c);
}

#[test]
fn a_user_namespace_is_joined() {
    if differs(Kind::Runc, "1.1 wants mappings in the configuration even when it joins") {
        return;
    }
    let owner = Container::up(Bundle::sh("exec sleep 100").user_namespace());
    let path = |file: &str| PathBuf::from(format!("/proc/{}/ns/{file}", owner.pid()));
    let bundle =
        Bundle::sh("id -u; cat /proc/self/uid_map; exec sleep 100").namespace("user", Some(&path("user")));
    let c = Container::up(bundle);
    c.wait_out("65536");
    assert_eq!(link_of(&c, "user"), link_of(&owner, "user"));
}

/// runc's userns.bats, "join external namespaces [wrong userns owner]".
#[test]
fn a_network_that_the_joined_user_namespace_does_not_own() {
    if differs(Kind::Runc, "1.1 cannot") || differs(Kind::Crun, "1.8 was not asked") {
        return;
    }
    let owner = Container::up(Bundle::sh("exec sleep 100").user_namespace());
    let (_host, pid) = host_of_namespaces(&["-n"]);
    let (user, net) = (format!("/proc/{}/ns/user", owner.pid()), format!("/proc/{pid}/ns/net"));
    // A sysfs shows the network, and takes rights over it.
    let stays =
        |mount: &serde_json::Value| !mount["destination"].as_str().is_some_and(|at| at.starts_with("/sys"));
    let bundle = Bundle::sh("exec sleep 100")
        .namespace("user", Some(Path::new(&user)))
        .namespace("network", Some(Path::new(&net)))
        .edit(|c| c["mounts"].as_array_mut().expect("a list").retain(stays));
    let c = Container::up(bundle);
    for (file, pid) in [("user", owner.pid().to_string()), ("net", pid.to_string())] {
        assert_eq!(link_of(&c, file), link(&pid, file));
        let path = format!("/proc/self/ns/{file}");
        let seen = c.exec(&[], &["readlink", &path]).ok().out;
        assert_eq!(Path::new(seen.trim()), link(&pid, file), "exec");
    }
}

#[test]
fn a_time_namespace_with_offsets() {
    if differs(Kind::Runc, "1.1 knows no time namespace")
        || differs(Kind::Crun, "1.8 sets the offsets from 1.0.2-dev on only")
    {
        return;
    }
    let c = Container::new(Bundle::sh("cat /proc/self/timens_offsets; cut -d. -f1 /proc/uptime").namespace("time", None).edit(|c| {
        c["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 7_000, "nanosecs": 0}, "boottime": {"secs": 1_000_000, "nanosecs": 0}});
    }));
    let out = c.run().ok().out;
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words[..6], ["monotonic", "7000", "0", "boottime", "1000000", "0"], "{out}");
    assert!(words[6].parse::<u64>().expect("uptime") > 1_000_000, "{out}");
}

#[test]
fn a_cgroup_namespace_is_rooted_at_the_container() {
    let c = Container::new(Bundle::sh("cat /proc/self/cgroup").namespace("cgroup", None));
    let out = c.run().ok().out;
    assert!(out.lines().all(|l| l.ends_with(":/")), "{out}");
}

#[test]
fn a_new_network_has_a_loopback_that_is_up() {
    let out = Container::new(
        Bundle::sh("ip addr show lo; ping -c1 -w2 127.0.0.1 >/dev/null && echo pong").edit(|c| {
            c["process"]["capabilities"] = crate::harness::cap(&["CAP_NET_RAW"]);
        }),
    )
    .run()
    .ok()
    .out;
    assert!(out.contains("UP") && out.contains("127.0.0.1/8") && out.contains("pong"), "{out}");
}

/// A terminal or pipe may be given to the container's user; a device node of the host may not.
#[test]
fn the_host_s_dev_null_keeps_its_owner() {
    if differs(Kind::Crun, "1.8 hands it to the container's root") {
        return;
    }
    let c = Container::new(Bundle::sh("echo x >/dev/null").user_namespace());
    let null = || {
        std::process::Stdio::from(
            std::fs::File::options().read(true).write(true).open("/dev/null").expect("open"),
        )
    };
    let before = std::fs::metadata("/dev/null").expect("stat").uid();
    assert!(
        c.run_command(&["--detach"])
            .stdin(null())
            .stdout(null())
            .stderr(null())
            .status()
            .expect("run")
            .success()
    );
    c.wait_stopped();
    assert_eq!(std::fs::metadata("/dev/null").expect("stat").uid(), before);
}
