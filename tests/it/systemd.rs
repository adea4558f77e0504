//! The systemd cgroup driver, with a real systemd of the test's own. cgroup v2 has no controllers on a hybrid machine:
//! what limits become is seen in the unit's properties there, and in the cgroup's files on v1.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{
    Bundle, Container, Kind, Out, Systemd, alive, criu_path, differs, kind, nothing_left, pure_v2, run,
    runw_only, skip, until,
};

/// A container whose calls are made where systemd is.
struct Unit<'a> {
    systemd: &'a Systemd,
    c: Container,
    /// In the default slice, as the name is the engine's.
    name: String,
}

impl<'a> Unit<'a> {
    fn of(systemd: &'a Systemd, bundle: Bundle) -> Unit<'a> {
        let id = bundle.id.clone();
        let path = format!("test-deep.slice:engine:{id}");
        let c = Container::new(bundle.edit(|c| c["linux"]["cgroupsPath"] = json!(path)));
        Unit { systemd, c, name: format!("engine-{id}.scope") }
    }

    fn command(&self, words: &[&str]) -> Command {
        let all: Vec<&str> = ["--systemd-cgroup"].iter().chain(words).copied().collect();
        self.systemd.inside(&self.c.command(&all))
    }

    fn call(&self, words: &[&str]) -> Out {
        run(&mut self.command(words))
    }

    fn up(self) -> Self {
        let bundle = self.c.bundle.path().to_str().unwrap().to_owned();
        // Not its streams: CRIU cannot dump a file of the host's.
        let log = self.c.bundle.path().join("log");
        let log_flag = log.to_str().unwrap();
        let words = ["--log", log_flag, "run", "--detach", "--bundle", &bundle, &self.c.id];
        let mut command = self.command(&words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success(), "{:?}", std::fs::read_to_string(log));
        self
    }

    fn dir(&self) -> String {
        format!("test.slice/test-deep.slice/{}", self.name)
    }

    fn show(&self, properties: &str) -> Vec<String> {
        self.systemd.show(&self.name, properties)
    }

    fn sh(&self, text: &str) -> String {
        self.call(&["exec", &self.c.id, "/bin/sh", "-c", text]).ok().out
    }

    fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.call(&["state", &self.c.id]).ok().out).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }

    fn is_gone(&self) {
        until("systemd has no such unit", || self.show("LoadState") == ["LoadState=not-found"]);
        assert_eq!(self.systemd.read(&format!("{}/cgroup.procs", self.dir())), None);
        nothing_left(&self.c);
    }
}

impl Drop for Unit<'_> {
    fn drop(&mut self) {
        self.call(&["delete", "--force", &self.c.id]);
    }
}

fn sleeper() -> Bundle {
    Bundle::sh("sleep 1000")
}

#[test]
fn a_container_is_a_scope_of_the_slice_it_names() {
    let Some(systemd) = Systemd::boot("v2") else { return };
    let unit = Unit::of(&systemd, sleeper().namespace("cgroup", None)).up();
    let want = ["ActiveState=active", "Delegate=yes", "DefaultDependencies=no", "Slice=test-deep.slice"];
    let mut shown = unit.show("ActiveState,Delegate,DefaultDependencies,Slice");
    shown.sort_by_key(|line| want.iter().position(|want| want == line));
    assert_eq!(shown, want);
    assert_eq!(unit.show("ControlGroup"), [format!("ControlGroup=/{}", unit.dir())]);
    let inside = systemd.read(&format!("{}/cgroup.procs", unit.dir())).expect("the scope's cgroup");
    assert_eq!(inside.lines().count(), 1, "{inside}");
    // The root of its cgroup namespace, for init and whoever joins.
    assert_eq!(unit.sh("grep -h ^0: /proc/1/cgroup /proc/self/cgroup"), "0::/\n0::/\n");
    unit.call(&["pause", &unit.c.id]).ok();
    assert_eq!(unit.status(), "paused");
    assert_eq!(systemd.read(&format!("{}/cgroup.freeze", unit.dir())).as_deref(), Some("1"));
    unit.call(&["resume", &unit.c.id]).ok();
    unit.call(&["kill", &unit.c.id, "KILL"]).ok();
    until("it stops", || unit.status() == "stopped");
    unit.call(&["delete", &unit.c.id]).ok();
    unit.is_gone();
}

fn limited(systemd: &Systemd) -> Unit<'_> {
    let resources = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "memory": {"limit": 64 << 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
        "pids": {"limit": 50},
    });
    Unit::of(systemd, sleeper().edit(|c| c["linux"]["resources"] = resources)).up()
}

impl Unit<'_> {
    /// A file of a v1 hierarchy: `memory/memory.limit_in_bytes`.
    fn file(&self, path: &str) -> String {
        let (controller, name) = path.split_once('/').unwrap();
        self.systemd.read(&format!("{controller}/{}/{name}", self.dir())).unwrap_or_default()
    }

    fn files(&self) -> [String; 5] {
        let names = [
            "memory/memory.limit_in_bytes",
            "cpu/cpu.shares",
            "cpu/cpu.cfs_quota_us",
            "cpuset/cpuset.cpus",
            "pids/pids.max",
        ];
        names.map(|name| self.file(name))
    }

    fn limits(&self) -> Vec<String> {
        self.show("MemoryLimit,CPUShares,CPUQuotaPerSecUSec,TasksMax,DevicePolicy,AllowedCPUs")
    }

    fn is_in_all_hierarchies(&self) {
        for hierarchy in ["memory", "cpu", "cpuset", "devices", "freezer", "pids", "systemd"] {
            assert_eq!(self.file(&format!("{hierarchy}/cgroup.procs")).lines().count(), 1, "{hierarchy}");
        }
    }
}

fn properties(memory: u64, shares: u64, tasks: u64) -> [String; 6] {
    [
        "AllowedCPUs=0".to_owned(),
        "CPUQuotaPerSecUSec=500ms".to_owned(),
        format!("CPUShares={shares}"),
        "DevicePolicy=strict".to_owned(),
        format!("MemoryLimit={}", memory << 20),
        format!("TasksMax={tasks}"),
    ]
}

#[test]
fn limits_of_v1_are_properties_of_the_unit_and_in_the_cgroups_files() {
    let Some(systemd) = Systemd::boot("v1") else { return };
    if differs(Kind::Crun, "hybrid cgroups are refused by 1.8") {
        return;
    }
    let unit = limited(&systemd);
    assert_eq!(unit.limits(), properties(64, 512, 50));
    assert_eq!(unit.files(), ["67108864", "512", "50000", "0", "50"]);
    let devices = unit.file("devices/devices.list");
    assert!(devices.contains("c 1:3 rwm") && !devices.contains("a *:*"), "{devices}");
    // systemd takes the devices of runc's from it, by the properties that it gets later.
    if kind() == Kind::Runw {
        unit.is_in_all_hierarchies();
    }
    unit.call(&["delete", "--force", &unit.c.id]).ok();
    unit.is_gone();
}

#[test]
fn an_update_changes_unit_and_files_or_neither() {
    let Some(systemd) = Systemd::boot("v1") else { return };
    if differs(Kind::Crun, "hybrid cgroups are refused by 1.8") {
        return;
    }
    let unit = limited(&systemd);
    let flags = ["--memory", "32m", "--memory-swap", "-1", "--pids-limit", "40", "--cpu-share", "256"];
    let words: Vec<&str> = ["update"].into_iter().chain(flags).chain([unit.c.id.as_str()]).collect();
    unit.call(&words).ok();
    assert_eq!(unit.limits(), properties(32, 256, 40));
    assert_eq!(unit.files(), ["33554432", "256", "50000", "0", "40"]);
    // runc leaves what came before the limit that the kernel refuses.
    if kind() == Kind::Runw {
        unit.is_in_all_hierarchies();
        let bad = ["update", "--pids-limit", "30", "--cpuset-cpus", "4000", &unit.c.id];
        unit.call(&bad).refused(&["cpuset"]);
        assert_eq!(unit.limits(), properties(32, 256, 40));
        assert_eq!(unit.files()[4], "40");
    }
}

/// None, with a skip, where v1 has the controllers: the v2 tree of a test's own systemd has none.
fn with_controllers() -> Option<Systemd> {
    if !pure_v2() {
        skip("needs cgroup v2 alone (make test-vm)");
        return None;
    }
    Systemd::boot("v2")
}

fn limited_v2(systemd: &Systemd) -> Unit<'_> {
    let resources = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 200_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 50},
        "unified": {"memory.high": "50331648"},
    });
    // A shell: a sleep that CRIU has interrupted is over.
    let bundle = Bundle::sh("while :; do sleep 1; done");
    Unit::of(systemd, bundle.edit(|c| c["linux"]["resources"] = resources)).up()
}

impl Unit<'_> {
    fn shown_v2(&self) -> Vec<String> {
        self.show(
            "MemoryMax,MemorySwapMax,MemoryLow,MemoryHigh,CPUWeight,CPUQuotaPerSecUSec,CPUQuotaPeriodUSec,\
             TasksMax,AllowedCPUs,AllowedMemoryNodes,DevicePolicy",
        )
    }

    fn files_v2(&self) -> Vec<String> {
        let names = [
            "memory.max",
            "memory.swap.max",
            "memory.low",
            "memory.high",
            "cpu.weight",
            "cpu.max",
            "pids.max",
            "cpuset.cpus",
            "cpuset.mems",
        ];
        names.map(|name| self.systemd.read(&format!("{}/{name}", self.dir())).unwrap_or_default()).to_vec()
    }
}

/// As `limited_v2` asks for them, but for what an update changes.
fn properties_v2(memory: u64, weight: u64, tasks: u64) -> [String; 11] {
    [
        "AllowedCPUs=0".to_owned(),
        "AllowedMemoryNodes=0".to_owned(),
        "CPUQuotaPerSecUSec=250ms".to_owned(),
        "CPUQuotaPeriodUSec=200ms".to_owned(),
        format!("CPUWeight={weight}"),
        "DevicePolicy=strict".to_owned(),
        "MemoryHigh=50331648".to_owned(),
        "MemoryLow=33554432".to_owned(),
        format!("MemoryMax={}", memory << 20),
        "MemorySwapMax=33554432".to_owned(),
        format!("TasksMax={tasks}"),
    ]
}

fn values_v2(memory: u64, weight: u64, tasks: u64) -> Vec<String> {
    let (memory, weight, tasks) = ((memory << 20).to_string(), weight.to_string(), tasks.to_string());
    let all = [&memory, "33554432", "33554432", "50331648", &weight, "50000 200000", &tasks, "0", "0"];
    all.map(str::to_owned).to_vec()
}

/// runc before 1.3.2 and crun before 1.23 convert shares linearly.
fn weight(ours: u64, theirs: u64) -> u64 {
    if kind() == Kind::Runw { ours } else { theirs }
}

#[test]
fn limits_of_v2_are_properties_of_the_unit_and_in_the_cgroup_s_files() {
    let Some(systemd) = with_controllers() else { return };
    if differs(Kind::Crun, "it gives systemd fewer properties") {
        return;
    }
    let unit = limited_v2(&systemd);
    assert_eq!(unit.shown_v2(), properties_v2(64, weight(59, 20), 50));
    assert_eq!(unit.files_v2(), values_v2(64, weight(59, 20), 50));
    // It writes again what it knows: what it was not told would be gone now.
    run(systemd.inside(Command::new("systemctl").arg("daemon-reload")).stdin(Stdio::null())).ok();
    assert_eq!(unit.files_v2(), values_v2(64, weight(59, 20), 50));
    unit.call(&["delete", "--force", &unit.c.id]).ok();
    unit.is_gone();
}

#[test]
fn an_update_on_v2_changes_unit_and_files_or_neither() {
    let Some(systemd) = with_controllers() else { return };
    if differs(Kind::Crun, "it gives systemd fewer properties") {
        return;
    }
    let unit = limited_v2(&systemd);
    let flags = ["--memory", "32m", "--memory-swap", "64m", "--pids-limit", "40", "--cpu-share", "256"];
    let words: Vec<&str> = ["update"].into_iter().chain(flags).chain([unit.c.id.as_str()]).collect();
    unit.call(&words).ok();
    let changed = || {
        assert_eq!(unit.shown_v2(), properties_v2(32, weight(35, 10), 40));
        assert_eq!(unit.files_v2(), values_v2(32, weight(35, 10), 40));
    };
    changed();
    // runc leaves what came before the limit that is refused.
    if kind() == Kind::Runw {
        let bad = ["update", "--pids-limit", "30", "--cpuset-cpus", "4000", &unit.c.id];
        unit.call(&bad).refused(&["cpuset"]);
        changed();
    }
}

#[test]
fn a_container_comes_back_into_its_scope_and_under_its_limits() {
    let Some(systemd) = with_controllers() else { return };
    let Some(path) = criu_path() else { return skip("no CRIU that works here") };
    if differs(Kind::Crun, "it is not built with CRIU") {
        return;
    }
    let unit = limited_v2(&systemd);
    let (id, dir) = (unit.c.id.clone(), unit.c.bundle.path().to_owned());
    let [images, work, bundle] = ["images", "work", ""].map(|name| dir.join(name).display().to_string());
    let paths = ["--image-path", &images, "--work-path", &work];
    let checkpoint: Vec<&str> = ["checkpoint"].iter().chain(&paths).copied().chain([id.as_str()]).collect();
    run(unit.command(&checkpoint).env("PATH", path)).ok();
    unit.is_gone();
    let restore = ["restore", "--detach"].iter().chain(&paths).copied().chain(["--bundle", &bundle, &id]);
    let mut restore = unit.command(&restore.collect::<Vec<_>>());
    let err = std::fs::File::create(dir.join("err")).unwrap();
    restore.env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(err);
    let status = restore.status().unwrap();
    assert!(status.success(), "{}", std::fs::read_to_string(dir.join("err")).unwrap());
    assert_eq!(unit.status(), "running");
    assert_eq!(unit.show("ActiveState,Slice"), ["ActiveState=active", "Slice=test-deep.slice"]);
    assert_eq!(unit.shown_v2(), properties_v2(64, weight(59, 20), 50));
    assert_eq!(unit.files_v2(), values_v2(64, weight(59, 20), 50));
    assert_eq!(unit.sh("cat /proc/1/comm"), "sh\n");
    unit.call(&["delete", "--force", &id]).ok();
    unit.is_gone();
}

#[test]
fn annotations_become_properties_of_the_unit() {
    let Some(systemd) = Systemd::boot("v2") else { return };
    let pairs = json!({
        "org.systemd.property.TimeoutStopSec": "uint64 7",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        "org.systemd.property.RuntimeMaxUSec": "uint64 90000000",
    });
    let unit = Unit::of(&systemd, sleeper().edit(|c| c["annotations"] = pairs)).up();
    let want = ["CollectMode=inactive-or-failed", "RuntimeMaxUSec=1min 30s", "TimeoutStopUSec=7s"];
    assert_eq!(unit.show("TimeoutStopUSec,CollectMode,RuntimeMaxUSec"), want);

    for (name, value, said) in [
        ("org.systemd.property.CollectMode", "nonsense", "CollectMode"),
        ("org.systemd.property.a", "1", "org.systemd.property.a"),
        ("org.systemd.property.NoSuchThing", "true", "NoSuchThing"),
    ] {
        let bad = Unit::of(&systemd, sleeper().edit(|c| c["annotations"] = json!({name: value})));
        let bundle = bad.c.bundle.path().to_str().unwrap().to_owned();
        let out = bad.call(&["create", "--bundle", &bundle, &bad.c.id]);
        out.refused(&[said]);
        bad.is_gone();
    }
}

#[test]
fn a_sub_group_is_made_when_it_is_named() {
    let Some(systemd) = Systemd::boot("v2") else { return };
    if differs(Kind::Runc, "it has no such annotation") {
        return;
    }
    let bundle = sleeper().without_namespace("cgroup");
    let bundle = bundle.edit(|c| c["annotations"] = json!({"run.oci.systemd.subgroup": "inner"}));
    let unit = Unit::of(&systemd, bundle).up();
    assert_eq!(systemd.read(&format!("{}/cgroup.procs", unit.dir())).as_deref(), Some(""));
    let inside = systemd.read(&format!("{}/inner/cgroup.procs", unit.dir())).expect("the sub-cgroup");
    assert_eq!(inside.lines().count(), 1);
    assert!(unit.sh("grep ^0: /proc/self/cgroup").trim_end().ends_with(&format!("{}/inner", unit.name)));
    unit.call(&["delete", "--force", &unit.c.id]).ok();
    unit.is_gone();
}

#[test]
fn the_default_unit_is_named_after_the_container() {
    let Some(systemd) = Systemd::boot("v2") else { return };
    let mut unit = Unit::of(&systemd, sleeper());
    unit.c.bundle.config["linux"]["cgroupsPath"] = Value::Null;
    unit.c.bundle.save();
    let prefix = ["runw", "runc", "crun"][kind() as usize];
    unit.name = format!("{prefix}-{}.scope", unit.c.id);
    let unit = unit.up();
    assert_eq!(unit.show("ActiveState,Slice"), ["ActiveState=active", "Slice=system.slice"]);
}

#[test]
fn a_unit_is_not_taken_from_who_has_it() {
    let Some(systemd) = Systemd::boot("v2") else { return };
    if differs(Kind::Runc, "1.1.5 only warns of a cgroup in use") {
        return;
    }
    let first = Unit::of(&systemd, sleeper()).up();
    let mut second = Unit::of(&systemd, sleeper());
    second.c.bundle.config["linux"]["cgroupsPath"] = first.c.bundle.config["linux"]["cgroupsPath"].clone();
    second.c.bundle.save();
    let bundle = second.c.bundle.path().to_str().unwrap().to_owned();
    assert_ne!(second.call(&["create", "--bundle", &bundle, &second.c.id]).code, 0);
    assert_eq!(first.status(), "running");
    nothing_left(&second.c);
}

#[test]
fn a_joined_pid_namespace_and_a_cgroup_namespace_go_together() {
    let Some(systemd) = Systemd::boot("v2") else { return };
    let first = Unit::of(&systemd, sleeper()).up();
    let state: Value = serde_json::from_str(&first.call(&["state", &first.c.id]).ok().out).unwrap();
    let path = format!("/proc/{}/ns/pid", state["pid"]);
    let bundle = sleeper().namespace("pid", Some(path.as_ref())).namespace("cgroup", None);
    let second = Unit::of(&systemd, bundle).up();
    assert_eq!(second.sh("grep ^0: /proc/self/cgroup"), "0::/\n");
    second.call(&["delete", "--force", &second.c.id]).ok();
    second.is_gone();
    assert_eq!(first.status(), "running");
}

#[test]
fn paths_that_name_no_unit_are_refused() {
    let Some(systemd) = Systemd::boot("v2") else { return };
    if runw_only("the same refusals: some are systemd's") {
        return;
    }
    for path in ["/a/b", "a:b", "a:b:c:d", "a/b.slice:c:d", "a--b.slice:c:d", "a.slice:../x:d", "a:b:c"] {
        let mut unit = Unit::of(&systemd, sleeper());
        unit.c.bundle.config["linux"]["cgroupsPath"] = json!(path);
        unit.c.bundle.save();
        let bundle = unit.c.bundle.path().to_str().unwrap().to_owned();
        unit.call(&["create", "--bundle", &bundle, &unit.c.id])
            .refused(&["linux.cgroupsPath", path.split(':').next().unwrap()]);
        nothing_left(&unit.c);
    }
}

#[test]
fn a_container_whose_systemd_is_gone_can_be_deleted() {
    let Some(systemd) = Systemd::boot("v2") else { return };
    if runw_only("a promise about it") {
        return;
    }
    if systemd.is_the_machine_s() {
        return skip("the machine cannot do without its systemd");
    }
    let unit = Unit::of(&systemd, sleeper()).up();
    let pid = systemd.outside(&unit.name);
    assert!(!pid.is_empty());
    let c = &unit.c;
    // As after a reboot of systemd's machine: nobody answers.
    systemd.kill();
    until("the container has died with it", || !pid.iter().any(|pid| alive(*pid)));
    let out = c.call(&["delete", "--force", &c.id]).ok();
    assert!(out.err.contains("level=warning") && out.err.contains("dbus"), "{out:?}");
    nothing_left(c);
}
