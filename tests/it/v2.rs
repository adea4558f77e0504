//! cgroup v2 alone, with its controllers: every limit is read back from the container's own files and seen to hold.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{
    Bundle, Container, Kind, Out, differs, kind, nothing_left, pure_v2, runw_only, skip, spawn,
    spawn_with_stdin, until,
};

/// True, with a skip, where v1 has the controllers.
fn no_v2() -> bool {
    let no = !pure_v2();
    if no {
        skip("needs cgroup v2 alone (make test-vm)");
    }
    no
}

fn limited(bundle: Bundle, resources: Value) -> Bundle {
    bundle.edit(|c| {
        for (key, value) in resources.as_object().expect("an object") {
            c["linux"]["resources"][key] = value.clone();
        }
    })
}

fn sleeper(resources: Value) -> Container {
    Container::up(limited(Bundle::sh("exec sleep 1000"), resources))
}

fn file(c: &Container, name: &str) -> String {
    c.limit("", name)
}

#[track_caller]
fn has(c: &Container, wanted: &[(&str, &str)]) {
    let found: Vec<(&str, String)> = wanted.iter().map(|(name, _)| (*name, file(c, name))).collect();
    let wanted: Vec<(&str, String)> =
        wanted.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    assert_eq!(found, wanted);
}

fn update(c: &Container, resources: &Value) -> Out {
    let mut command = c.command(&["update", "--resources", "-", &c.id]);
    spawn_with_stdin(&mut command, resources.to_string().as_bytes()).wait()
}

/// A whole disk, which `io.max` wants.
fn a_disk() -> (u64, u64) {
    let devices = std::fs::read_dir("/sys/block").expect("/sys/block").flatten();
    let real = devices.map(|d| d.path()).find(|d| d.join("device").exists()).expect("a disk");
    let text = std::fs::read_to_string(real.join("dev")).expect("dev");
    let (major, minor) = text.trim().split_once(':').expect("major:minor");
    (major.parse().expect("a number"), minor.parse().expect("a number"))
}

/// runc before 1.3.2 and crun before 1.23 convert linearly.
fn weight(ours: &'static str, theirs: &'static str) -> &'static str {
    if kind() == Kind::Runw { ours } else { theirs }
}

#[test]
fn every_limit_is_in_its_file() {
    if no_v2() {
        return;
    }
    let (major, minor) = a_disk();
    let throttle = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let c = sleeper(json!({
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 200_000, "burst": 10_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 50},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
        "blockIO": {"throttleReadBpsDevice": throttle(1 << 20), "throttleWriteBpsDevice": throttle(2 << 20),
            "throttleReadIOPSDevice": throttle(300), "throttleWriteIOPSDevice": throttle(400)},
        "unified": {"memory.high": "50331648", "cgroup.max.depth": "3"},
    }));
    has(
        &c,
        &[
            ("memory.max", "67108864"),
            ("memory.swap.max", "33554432"),
            ("memory.low", "33554432"),
            ("memory.high", "50331648"),
            ("cpu.weight", weight("59", "20")),
            ("cpu.max", "50000 200000"),
            ("cpu.max.burst", "10000"),
            ("cpuset.cpus", "0"),
            ("cpuset.mems", "0"),
            ("pids.max", "50"),
            ("hugetlb.2MB.max", "4194304"),
            ("hugetlb.2MB.rsvd.max", "4194304"),
            ("io.max", &format!("{major}:{minor} rbps=1048576 wbps=2097152 riops=300 wiops=400")),
            ("cgroup.max.depth", "3"),
        ],
    );
    assert_eq!(c.sh("grep Cpus_allowed_list /proc/self/status").split_whitespace().nth(1), Some("0"));
    c.call(&["delete", "--force", &c.id]).ok();
    nothing_left(&c);
}

#[test]
fn swap_equal_to_limit_is_no_swap_at_all_and_unlimited_is_max() {
    if no_v2() {
        return;
    }
    let c = sleeper(json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}}));
    has(&c, &[("memory.max", "67108864"), ("memory.swap.max", "0")]);
    let c =
        sleeper(json!({"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}}));
    has(
        &c,
        &[("memory.max", "max"), ("memory.swap.max", "max"), ("pids.max", "max"), ("cpu.max", "max 100000")],
    );
}

#[test]
fn an_idle_container_is_below_every_weight() {
    if no_v2() {
        return;
    }
    let c = sleeper(json!({"cpu": {"idle": 1}}));
    has(&c, &[("cpu.idle", "1")]);
}

#[test]
fn limits_hold() {
    if no_v2() {
        return;
    }
    let c = sleeper(json!({"pids": {"limit": 4}, "memory": {"limit": 24 << 20, "swap": 24 << 20},
        "cpu": {"quota": 10_000, "period": 100_000}}));
    let out = c.exec(&[], &["/bin/sh", "-c", "sleep 9 & sleep 9 & sleep 9 & sleep 9 & echo all"]);
    assert!(!out.out.contains("all") && out.err.contains("fork"), "{out:?}");
    let counted = |name: &str, key: &str| {
        let text = file(&c, name);
        let count = text.lines().find_map(|line| line.strip_prefix(key)).expect("the counter");
        count.trim().parse::<u64>().expect("a number")
    };
    assert!(counted("pids.events", "max ") > 0);
    assert_eq!(counted("memory.events", "oom_kill "), 0);
    let out = c.exec(&[], &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    assert_eq!((out.code, counted("memory.events", "oom_kill ")), (137, 1), "{out:?}");
    let mut busy = spawn(&mut c.exec_command(&[], &["/bin/sh", "-c", "echo up; while :; do :; done"]));
    until("it runs", || busy.out().contains("up"));
    let before = counted("cpu.stat", "nr_throttled ");
    until("it is throttled", || counted("cpu.stat", "nr_throttled ") > before + 3);
    c.call(&["delete", "--force", &c.id]).ok();
    assert_eq!(busy.wait().code, 137);
}

#[test]
fn update_changes_the_files_and_leaves_the_rest() {
    if no_v2() {
        return;
    }
    let c = sleeper(json!({"memory": {"limit": 64 << 20}, "cpu": {"quota": 20_000, "period": 50_000}}));
    for (flags, name, wanted) in [
        (&["--memory", "134217728"][..], "memory.max", "134217728"),
        (&["--memory-reservation", "16777216"], "memory.low", "16777216"),
        (&["--memory", "134217728", "--memory-swap", "201326592"], "memory.swap.max", "67108864"),
        (&["--memory", "134217728", "--memory-swap", "134217728"], "memory.swap.max", "0"),
        (&["--cpu-share", "1024"], "cpu.weight", weight("100", "39")),
        (&["--cpu-quota", "30000", "--cpu-period", "100000"], "cpu.max", "30000 100000"),
        (&["--cpuset-cpus", "0"], "cpuset.cpus", "0"),
        (&["--cpuset-mems", "0"], "cpuset.mems", "0"),
        (&["--pids-limit", "20"], "pids.max", "20"),
    ] {
        c.call(&[&["update"], flags, &[c.id.as_str()]].concat()).ok();
        assert_eq!(file(&c, name), wanted, "{flags:?}");
    }
    if !differs(Kind::Crun, "it has no `update -r` of these") {
        update(&c, &json!({"pids": {"limit": 21}, "unified": {"memory.high": "50331648"}})).ok();
        has(&c, &[("pids.max", "21"), ("memory.high", "50331648")]);
    }
    has(&c, &[("memory.max", "134217728"), ("memory.low", "16777216"), ("cpu.max", "30000 100000")]);
}

#[test]
fn a_limit_below_usage_is_refused_where_that_is_asked_for() {
    if no_v2() || differs(Kind::Crun, "it does not check") {
        return;
    }
    let text = "head -c 20000000 /dev/zero | tail -c 19999999 | sleep 1000";
    let c = Container::up(limited(Bundle::sh(text), json!({"memory": {"limit": 64 << 20}})));
    until("it uses memory", || file(&c, "memory.current").parse::<u64>().is_ok_and(|n| n > 15_000_000));
    for memory in [json!({"limit": 8 << 20}), json!({"limit": 4 << 20, "swap": 8 << 20})] {
        let mut memory = memory.clone();
        memory["checkBeforeUpdate"] = json!(true);
        update(&c, &json!({"memory": memory})).refused(&["rejecting memory", "<= usage"]);
        has(&c, &[("memory.max", "67108864")]);
    }
    assert_eq!(c.status(), "running");
    // The limit that is above is taken, asked to check or not.
    update(&c, &json!({"memory": {"limit": 60 << 20, "checkBeforeUpdate": true}})).ok();
    has(&c, &[("memory.max", "62914560")]);
}

#[test]
fn controllers_are_handed_down_a_new_path() {
    if no_v2() {
        return;
    }
    let c = Container::new(limited(Bundle::sh("exec sleep 1000"), json!({"memory": {"limit": 64 << 20}})));
    let top = PathBuf::from("/sys/fs/cgroup/runw-test").join(&c.id);
    let mut c = c;
    c.bundle.config["linux"]["cgroupsPath"] = json!(format!("/runw-test/{}/a/b", c.id));
    c.bundle.save();
    c.create().start();
    let read = |path: &Path| std::fs::read_to_string(path).expect("a cgroup file").trim().to_owned();
    for dir in [&top, &top.join("a")] {
        assert_eq!(
            read(&dir.join("cgroup.subtree_control")),
            read(&dir.join("cgroup.controllers")),
            "{dir:?}"
        );
    }
    assert_eq!(read(&top.join("a/b/memory.max")), "67108864");
    assert_eq!(read(&top.join("a/b/cgroup.subtree_control")), "");
    c.call(&["delete", "--force", &c.id]).ok();
    assert!(!top.join("a/b").exists());
    std::fs::remove_dir(top.join("a")).expect("nobody is in it");
    std::fs::remove_dir(top).expect("nobody is in it");
}

#[test]
fn what_the_kernel_refuses_names_its_field() {
    if no_v2() || runw_only("fields in its messages") {
        return;
    }
    for (resources, field) in [
        (json!({"unified": {"memory.max": "much"}}), "memory.max"),
        (json!({"unified": {"nosuch.max": "1"}}), "nosuch.max"),
        (json!({"cpu": {"cpus": "999"}}), "cpu.cpus"),
        (
            json!({"blockIO": {"throttleReadBpsDevice": [{"major": 250, "minor": 77, "rate": 1}]}}),
            "throttleReadBpsDevice",
        ),
        (json!({"memory": {"swappiness": 3}}), "memory.swappiness"),
        (json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}), "hugepageLimits"),
        (json!({"rdma": {"mlx5_1": {"hcaHandles": 1}}}), "rdma"),
    ] {
        let c = Container::new(limited(Bundle::sh("true"), resources));
        let out = c.run();
        out.refused(&[field]);
        assert_eq!(out.err.trim().lines().count(), 1, "{out:?}");
        nothing_left(&c);
    }
}

/// runc's starter has one where it would else show the host's whole tree.
#[test]
fn spec_asks_for_a_cgroup_namespace() {
    if no_v2() {
        return;
    }
    let c = Container::new(Bundle::sh("cat /proc/self/cgroup; ls -d /sys/fs/cgroup/system.slice"));
    let namespaces = c.bundle.config["linux"]["namespaces"].as_array().expect("namespaces");
    assert!(namespaces.contains(&json!({"type": "cgroup"})), "{namespaces:?}");
    assert_eq!(c.run().out, "0::/\n");
}

/// cgroup-v2.rst, "Threads": a domain controller cannot be had below a threaded cgroup.
#[test]
fn a_threaded_cgroup_takes_no_domain_controller() {
    if no_v2() || differs(Kind::Crun, "its own words") {
        return;
    }
    let mut c =
        Container::new(limited(Bundle::sh("exec sleep 1000"), json!({"memory": {"limit": 64 << 20}})));
    let top = PathBuf::from("/sys/fs/cgroup/runw-test").join(&c.id);
    std::fs::create_dir_all(top.join("threaded")).expect("a cgroup");
    std::fs::write(top.join("threaded/cgroup.type"), "threaded").expect("make it threaded");
    c.bundle.config["linux"]["cgroupsPath"] = json!(format!("/runw-test/{}/c", c.id));
    c.bundle.save();
    let out = c.create_with(&[]);
    out.refused(&["cannot enter cgroupv2", "with domain controllers"]);
    assert!(!top.join("c").exists() || kind() != Kind::Runw);
    for dir in ["c", "threaded", ""] {
        let _ = std::fs::remove_dir(top.join(dir));
    }
    nothing_left(&c);
}

#[test]
fn a_wasm_guest_is_held_by_memory_and_cpu_limits() {
    if no_v2() || runw_only("wasm") {
        return;
    }
    let limits =
        json!({"memory": {"limit": 48 << 20, "swap": 48 << 20}, "cpu": {"quota": 20_000, "period": 100_000}});
    let grow = |limits: Value| {
        let c = Container::new(limited(Bundle::wasm("probe.wasm", &["say", "up", "grow", "200"]), limits));
        let out = c.run();
        nothing_left(&c);
        out
    };
    // Known to the executor, which refuses; behind its back the kernel kills.
    let out = grow(limits.clone()).ok();
    assert!(out.out.starts_with("up\ngrow: refused at "), "{out:?}");
    let out = grow(json!({"unified": {"memory.max": "50331648", "memory.swap.max": "0"}}));
    assert_eq!((out.code, out.out.as_str()), (137, "up\n"), "{out:?}");
    let c = Container::up(limited(Bundle::wasm("probe.wasm", &["say", "up", "spin"]), limits));
    c.wait_out("up");
    has(&c, &[("memory.max", "50331648"), ("cpu.max", "20000 100000")]);
    until("it is throttled", || !file(&c, "cpu.stat").contains("nr_throttled 0"));
}
