//! Limits as the kernel has them: every value is read back from the container's own cgroup files (v1 and hybrid).

use serde_json::{Value, json};

use crate::harness::{
    Bundle, Container, Kind, differs, kind, nothing_left, pure_v2, run, runw_only, skip, until,
};

fn limited(resources: Value) -> Bundle {
    Bundle::sh("exec sleep 100").edit(|c| {
        for (key, value) in resources.as_object().expect("an object") {
            c["linux"]["resources"][key] = value.clone();
        }
    })
}

/// True, with a skip, when this machine has no such v1 controller.
fn no_v1(controller: &str) -> bool {
    let no = !std::path::Path::new("/sys/fs/cgroup").join(controller).join("tasks").exists();
    if no {
        skip(&format!("no v1 {controller} controller"));
    }
    no
}

#[test]
fn memory() {
    if no_v1("memory") {
        return;
    }
    let c = Container::up(limited(
        json!({"memory": {"limit": 64 << 20, "reservation": 32 << 20, "swappiness": 7}}),
    ));
    assert_eq!(c.limit("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(c.limit("memory", "memory.soft_limit_in_bytes"), (32 << 20).to_string());
    assert_eq!(c.limit("memory", "memory.swappiness"), "7");
}

#[test]
fn memory_limit_kills_with_137() {
    if no_v1("memory") {
        return;
    }
    let bundle = limited(json!({"memory": {"limit": 24 << 20}}));
    let c = Container::new(bundle.edit(|c| {
        c["process"]["args"] =
            json!(["/bin/sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1; echo status $?"])
    }));
    let out = c.run();
    assert!(out.out.contains("status 137") || out.code == 137, "{out:?}");
    nothing_left(&c);
}

#[test]
fn disabling_the_oom_killer() {
    if no_v1("memory") {
        return;
    }
    let c = Container::up(limited(json!({"memory": {"limit": 64 << 20, "disableOOMKiller": true}})));
    assert!(c.limit("memory", "memory.oom_control").contains("oom_kill_disable 1"));
}

#[test]
fn cpu() {
    if no_v1("cpu") {
        return;
    }
    let c = Container::up(limited(json!({"cpu": {"shares": 512, "quota": 25_000, "period": 50_000}})));
    assert_eq!(c.limit("cpu", "cpu.shares"), "512");
    assert_eq!(c.limit("cpu", "cpu.cfs_quota_us"), "25000");
    assert_eq!(c.limit("cpu", "cpu.cfs_period_us"), "50000");
}

#[test]
fn pids() {
    if differs(Kind::Crun, "1.8 cannot write a limit of -1") {
        return;
    }
    if no_v1("pids") {
        return;
    }
    let c = Container::up(limited(json!({"pids": {"limit": 5}})));
    assert_eq!(c.limit("pids", "pids.max"), "5");
    let out = c.exec(&[], &["/bin/sh", "-c", "sleep 9 & sleep 9 & sleep 9 & sleep 9 & sleep 9 & echo all"]);
    assert!(!out.out.contains("all") && out.err.contains("fork"), "{out:?}");
    let c = Container::up(limited(json!({"pids": {"limit": -1}})));
    assert_eq!(c.limit("pids", "pids.max"), "max");
}

#[test]
fn cpuset() {
    if no_v1("cpuset") {
        return;
    }
    let c = Container::up(limited(json!({"cpu": {"cpus": "0", "mems": "0"}})));
    assert_eq!(c.limit("cpuset", "cpuset.cpus"), "0");
    assert_eq!(c.limit("cpuset", "cpuset.mems"), "0");
    assert_eq!(c.sh("grep Cpus_allowed_list /proc/self/status").split_whitespace().nth(1), Some("0"));
}

#[test]
fn cpuset_is_filled_down_a_new_path() {
    if no_v1("cpuset") {
        return;
    }
    let c = Container::up(Bundle::sh("exec sleep 100").edit(|c| {
        let path = c["linux"]["cgroupsPath"].as_str().expect("path").to_owned();
        c["linux"]["cgroupsPath"] = json!(format!("{path}/a/b"));
    }));
    assert!(
        !std::fs::read_to_string(c.cgroup("cpuset").join("a/b/cpuset.cpus"))
            .expect("cpuset")
            .trim()
            .is_empty()
    );
    c.call(&["delete", "--force", &c.id]).ok();
    for controller in ["cpuset", "pids", "memory"] {
        assert!(!c.cgroup(controller).join("a/b").exists(), "{controller}");
        let _ = std::fs::remove_dir(c.cgroup(controller).join("a"));
    }
    remove_everywhere(&c);
}

/// The levels above the container's own are the caller's: they stay, as with runc, and the test takes them away.
fn remove_everywhere(c: &Container) {
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
        let top = c.cgroup(&hierarchy.file_name().to_string_lossy());
        let _ = std::fs::remove_dir(top.join("a"));
        let _ = std::fs::remove_dir(top);
    }
}

#[test]
fn blkio() {
    if no_v1("blkio") {
        return;
    }
    let device = std::fs::read_dir("/sys/block").expect("/sys/block").flatten().find_map(|d| {
        let text = std::fs::read_to_string(d.path().join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        (major != "7").then(|| (major.parse::<i64>().ok(), minor.parse::<i64>().ok()))
    });
    let Some((Some(major), Some(minor))) = device else { return skip("no block device") };
    let rate = |n: u64| json!([{"major": major, "minor": minor, "rate": n}]);
    let c = Container::up(limited(json!({"blockIO": {
        "throttleReadBpsDevice": rate(1_000_001), "throttleWriteBpsDevice": rate(1_000_002),
        "throttleReadIOPSDevice": rate(1003), "throttleWriteIOPSDevice": rate(1004)}})));
    for (file, value) in
        [("read_bps", 1_000_001), ("write_bps", 1_000_002), ("read_iops", 1003), ("write_iops", 1004)]
    {
        let text = c.limit("blkio", &format!("blkio.throttle.{file}_device"));
        assert_eq!(text, format!("{major}:{minor} {value}"), "{file}");
    }
}

#[test]
fn hugetlb() {
    if no_v1("hugetlb") {
        return;
    }
    let c = Container::up(limited(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]})));
    assert_eq!(c.limit("hugetlb", "hugetlb.2MB.limit_in_bytes"), (4 << 20).to_string());
}

#[test]
fn network_class_and_priority_are_set_or_refused() {
    if kind() != Kind::Runw || std::path::Path::new("/sys/fs/cgroup/net_cls").exists() {
        return skip("the controller is there, or a peer drops it in silence");
    }
    let mut c = Container::new(limited(json!({"network": {"classID": 1_048_577}})));
    let out = c.create_with(&[]);
    assert!(out.code == 1 && (out.err.contains("net_cls") || out.err.contains("classID")), "{out:?}");
    nothing_left(&c);
}

#[test]
fn devices_are_denied_but_for_the_allowed() {
    if no_v1("devices") {
        return;
    }
    let bundle = limited(json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]}));
    let c =
        Container::up(bundle.edit(|c| c["process"]["capabilities"] = crate::harness::cap(&["CAP_MKNOD"])));
    let list = c.limit("devices", "devices.list");
    assert!(list.contains("c 10:229 rw"), "{list}");
    assert!(list.contains("c 1:3 rwm") || list.contains("c 1:3 rw"), "{list}");
    assert!(!list.lines().any(|l| l.starts_with('a')), "{list}");
    let out = c.exec(&[], &["/bin/sh", "-c", "mknod /tmp/kmsg c 1 11; head -c1 /tmp/kmsg; echo status $?; head -c1 /dev/zero >/dev/null && echo zero"]);
    assert!(out.out.contains("status 1") && out.out.contains("zero"), "{out:?}");
    assert!(out.err.contains("ot permitted"), "{out:?}");
}

#[test]
fn every_hierarchy_is_joined_and_left() {
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    c.create();
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).expect("cgroup");
    for line in text.lines() {
        // crun leaves the unified tree of a hybrid machine alone.
        assert!(line.ends_with(&c.id) || (kind() == Kind::Crun && line.starts_with("0::")), "{line}");
    }
    c.call(&["delete", "--force", &c.id]).ok();
    nothing_left(&c);
}

#[test]
fn nested_cgroups_of_the_guest_are_removed() {
    let c = Container::up(Bundle::sh("exec sleep 100"));
    for controller in ["pids", "memory", "unified"] {
        let dir = c.cgroup(controller).join("x/y");
        if c.cgroup(controller).exists() {
            std::fs::create_dir_all(&dir).expect("mkdir");
        }
    }
    c.call(&["delete", "--force", &c.id]).ok();
    nothing_left(&c);
}

#[test]
fn a_cgroup_that_holds_others_is_refused() {
    if kind() == Kind::Crun {
        return skip("Crun differs: 1.8 joins it");
    }
    let first = Container::up(Bundle::sh("exec sleep 100"));
    let path = first.bundle.config["linux"]["cgroupsPath"].clone();
    let mut second = Container::new(Bundle::sh("exec sleep 100").edit(|c| c["linux"]["cgroupsPath"] = path));
    let out = second.create_with(&[]);
    if kind() == Kind::Runw {
        assert_eq!(out.code, 1, "{out:?}");
    }
    if out.code == 0 {
        second.call(&["delete", "--force", &second.id]);
        return skip("runc 1.1 warns only");
    }
    nothing_left(&second);
    assert_eq!(first.status(), "running");
}

#[test]
fn without_a_cgroups_path_the_id_is_the_name() {
    let mut c = Container::new(Bundle::sh("exec sleep 100").edit(|c| {
        c["linux"].as_object_mut().expect("linux").remove("cgroupsPath");
    }));
    c.create();
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).expect("cgroup");
    let least = if pure_v2() { 1 } else { 8 };
    assert!(text.lines().filter(|l| l.contains(&c.id)).count() >= least, "{text}");
    c.call(&["delete", "--force", &c.id]).ok();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
        let found = run(std::process::Command::new("find").arg(hierarchy.path()).args(["-name", &c.id]));
        assert_eq!(found.out, "");
    }
}

#[test]
fn bad_limits_are_told_and_undone() {
    if no_v1("memory") || kind() == Kind::Crun {
        return;
    }
    for resources in
        [json!({"cpu": {"period": 1}}), json!({"cpu": {"cpus": "4000"}}), json!({"memory": {"limit": 1}})]
    {
        let mut c = Container::new(limited(resources.clone()));
        let out = c.create_with(&[]);
        assert_eq!(out.code, 1, "{resources}: {out:?}");
        nothing_left(&c);
    }
}

#[test]
fn fork_bombs_end_with_delete() {
    let c = Container::up(limited(json!({"pids": {"limit": 60}})).edit(|c| {
        c["process"]["args"] =
            json!(["/bin/sh", "-c", "bomb() { bomb | bomb & }; bomb; echo lit; while :; do sleep 1; done"]);
    }));
    until("lit", || c.out().contains("lit"));
    c.call(&["delete", "--force", &c.id]).ok();
    nothing_left(&c);
}

/// What the kernel has of the default devices, whatever the configuration says of others: runc's list.
#[test]
fn the_default_devices_are_runc_s() {
    if no_v1("devices") || differs(Kind::Crun, "1.8 has a list of its own") {
        return;
    }
    const DEFAULT: [&str; 11] = [
        "b *:* m",
        "c *:* m",
        "c 10:200 rwm",
        "c 136:* rwm",
        "c 1:3 rwm",
        "c 1:5 rwm",
        "c 1:7 rwm",
        "c 1:8 rwm",
        "c 1:9 rwm",
        "c 5:0 rwm",
        "c 5:2 rwm",
    ];
    for devices in [
        json!([]),
        json!([{"allow": false, "access": "rwm"}]),
        json!([{"allow": false, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]),
    ] {
        let c = Container::up(limited(json!({"devices": devices})));
        let list = c.limit("devices", "devices.list");
        let mut lines: Vec<&str> = list.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, DEFAULT, "{devices}");
    }
    let c = Container::up(limited(json!({"devices": [{"allow": true, "access": "rwm"}]})));
    assert_eq!(c.limit("devices", "devices.list"), "a *:* rwm");
}

#[test]
fn cpu_burst_and_idle() {
    if differs(Kind::Runc, "1.1.5 knows neither") || differs(Kind::Crun, "1.8 knows no burst") {
        return;
    }
    if no_v1("cpu") || !std::path::Path::new("/sys/fs/cgroup/cpu/cpu.idle").exists() {
        return;
    }
    let burst = json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 20_000, "idle": 0}});
    let c = Container::up(limited(burst));
    assert_eq!(c.limit("cpu", "cpu.cfs_burst_us"), "20000");
    let c = Container::up(limited(json!({"cpu": {"idle": 1}})));
    assert_eq!(c.limit("cpu", "cpu.idle"), "1");
    let mut c = Container::new(limited(json!({"cpu": {"quota": 50_000, "burst": 60_000}})));
    // The kernel judges the two together.
    c.create_with(&[]).refused(&["linux.resources.cpu."]);
    nothing_left(&c);
}

/// A limit of a controller that this machine lacks is named, and v2's own keys are none of v1's.
#[test]
fn limits_that_cannot_be_set_are_named() {
    if runw_only("names of fields in its messages") || no_v1("pids") {
        return;
    }
    let all = [
        (
            "hugetlb",
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}),
            "linux.resources.hugepageLimits[2MB]",
        ),
        ("rdma", json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}), "linux.resources.rdma[mlx5_1]"),
        (
            "net_prio",
            json!({"network": {"priorities": [{"name": "lo", "priority": 3}]}}),
            "linux.resources.network.priorities",
        ),
    ];
    for (controller, resources, field) in all {
        if std::path::Path::new("/sys/fs/cgroup").join(controller).exists() {
            continue;
        }
        let mut c = Container::new(limited(resources));
        c.create_with(&[]).refused(&[field, controller]);
        nothing_left(&c);
    }
    for (unified, words) in [
        (json!({"pids.max": "5"}), &["linux.resources.unified", "cgroup v1"][..]),
        (json!({"../pids.max": "5"}), &["linux.resources.unified", "no slashes"]),
        (json!({"/etc/x.y": "5"}), &["linux.resources.unified", "no slashes"]),
    ] {
        let mut c = Container::new(limited(json!({"unified": unified})));
        c.create_with(&[]).refused(words);
        nothing_left(&c);
    }
}

#[test]
fn a_frozen_cgroup_is_refused() {
    if no_v1("freezer") || differs(Kind::Crun, "1.8 joins it, and hangs") {
        return;
    }
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    let dir = c.cgroup("freezer");
    std::fs::create_dir_all(&dir).expect("a cgroup");
    std::fs::write(dir.join("freezer.state"), "FROZEN").expect("freeze");
    let out = c.create_with(&[]);
    assert_eq!(out.code, 1, "{out:?}");
    assert!(out.err.contains("frozen"), "{out:?}");
    if kind() == Kind::Runw {
        out.refused(&["container's cgroup unexpectedly frozen", "freezer"]);
        // It is not ours, so it stays as it was.
        assert_eq!(c.limit("freezer", "freezer.state"), "FROZEN");
    }
    let _ = std::fs::write(dir.join("freezer.state"), "THAWED");
    let _ = std::fs::remove_dir(&dir);
    nothing_left(&c);
}

#[test]
fn an_empty_cgroup_that_is_there_is_used_and_removed() {
    if no_v1("pids") {
        return;
    }
    let c = Container::new(limited(json!({"pids": {"limit": 7}})));
    std::fs::create_dir_all(c.cgroup("pids").join("old/one")).expect("a cgroup");
    let mut c = c;
    c.create().start();
    assert_eq!(c.limit("pids", "pids.max"), "7");
    c.call(&["delete", "--force", &c.id]).ok();
    nothing_left(&c);
}

/// Before that limits were dropped without a word.
#[test]
fn without_cgroups_limits_are_warned_of() {
    if runw_only("a manager that is disabled") {
        return;
    }
    for (resources, warned) in [(json!({"pids": {"limit": 7}}), true), (json!({}), false)] {
        let c = Container::new(limited(resources).edit(|c| c["process"]["args"] = json!(["/bin/true"])));
        let mut command = c.command(&["--cgroup-manager", "disabled", "run", "--bundle"]);
        let out = run(command.arg(c.bundle.path()).arg(&c.id)).ok();
        assert_eq!(out.err.contains("linux.resources: no limit is set"), warned, "{out:?}");
    }
}
