//! pause, resume, ps, update and events, against the kernel's own files; what holds for runc holds for runw.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{
    Bundle, Container, Kind, differs, kind, pure_v2, run, runtime, runw_only, skip, spawn, spawn_with_stdin,
    until,
};

fn sleeper(resources: Value) -> Container {
    Container::up(Bundle::sh("exec sleep 100").edit(|c| {
        for (key, value) in resources.as_object().expect("an object") {
            c["linux"]["resources"][key] = value.clone();
        }
    }))
}

/// True, with a skip, when this machine has no such v1 controller.
fn no_v1(controller: &str) -> bool {
    let no = !Path::new("/sys/fs/cgroup").join(controller).join("tasks").exists();
    if no {
        skip(&format!("no v1 {controller} controller"));
    }
    no
}

#[test]
fn pause_stops_and_resume_wakes() {
    let c = Container::up(Bundle::sh("while :; do echo tick; sleep 0.02; done"));
    c.wait_out("tick");
    c.call(&["pause", &c.id]).ok();
    assert_eq!(c.status(), "paused");
    let before = c.out().len();
    std::thread::sleep(std::time::Duration::from_millis(150));
    assert_eq!(c.out().len(), before, "it still runs");
    if kind() != Kind::Crun {
        c.call(&["pause", &c.id]).refused(&["container not running"]);
    }
    c.call(&["resume", &c.id]).ok();
    assert_eq!(c.status(), "running");
    until("it runs again", || c.out().len() > before);
    if kind() != Kind::Crun {
        c.call(&["resume", &c.id]).refused(&["container not paused"]);
    }
}

#[test]
fn a_created_container_can_be_paused_and_a_stopped_one_not() {
    if differs(Kind::Crun, "it calls a paused container created") {
        return;
    }
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    c.create();
    c.call(&["pause", &c.id]).ok();
    assert_eq!(c.status(), "paused");
    c.call(&["resume", &c.id]).ok();
    assert_eq!(c.status(), "created");
    c.start();
    c.kill("KILL").ok();
    c.wait_stopped();
    c.call(&["pause", &c.id]).refused(&["container not running"]);
    c.call(&["resume", &c.id]).refused(&["container not paused"]);
    c.delete().ok();
    for verb in ["pause", "resume", "ps", "update", "events"] {
        c.call(&[verb, &c.id]).refused(&["container does not exist"]);
    }
}

#[test]
fn a_paused_container_dies_of_sigkill_and_of_delete() {
    if differs(Kind::Crun, "it leaves a killed container frozen, which on v1 then never dies") {
        return;
    }
    let c = sleeper(json!({}));
    c.call(&["pause", &c.id]).ok();
    c.kill("KILL").ok();
    c.wait_stopped();
    let c = sleeper(json!({}));
    c.call(&["pause", &c.id]).ok();
    c.call(&["delete", "--force", &c.id]).ok();
    crate::harness::nothing_left(&c);
}

#[test]
fn ps_shows_the_containers_processes_only() {
    if differs(Kind::Crun, "it prints pids only, whatever the options") {
        return;
    }
    let c = sleeper(json!({}));
    let pid = c.pid();
    assert_eq!(
        c.call(&["ps", "--format", "json", &c.id]).ok().out.split_whitespace().collect::<String>(),
        format!("[{pid}]")
    );
    let mut exec = spawn(&mut c.exec_command(&[], &["/bin/sleep", "101"]));
    let pids = || -> Vec<i32> {
        serde_json::from_str(&c.call(&["ps", "-f=json", &c.id]).ok().out).expect("a list of pids")
    };
    until("two processes", || pids().len() == 2);
    // What ps itself says of these processes, and nothing else.
    for options in [&["-ef"][..], &["-o", "pid,comm", "-A"], &["aux"]] {
        let mut words = vec!["ps", c.id.as_str()];
        if options != ["-ef"] {
            words.extend(options);
        }
        let table = c.call(&words).ok().out;
        let ps = run(std::process::Command::new("ps").args(options)).ok().out;
        let heading = ps.lines().next().expect("a heading");
        let column = heading.split_whitespace().position(|w| w == "PID").expect("PID");
        let ours = ps
            .lines()
            .filter(|l| pids().iter().any(|pid| l.split_whitespace().nth(column) == Some(&pid.to_string())));
        let stable = |text: String| {
            text.lines().map(|l| l.split_whitespace().nth(column).map(str::to_owned)).collect::<Vec<_>>()
        };
        assert_eq!(table.lines().next(), Some(heading));
        assert_eq!(stable(table), stable(format!("{heading}\n{}", ours.collect::<Vec<_>>().join("\n"))));
    }
    c.call(&["ps", &c.id, "-o", "comm"]).refused(&["couldn't find PID field in ps output"]);
    c.call(&["ps", &c.id, "--no-such-option"]).refused(&["exit status", "unknown gnu long option"]);
    c.call(&["ps", "-f", "xml", &c.id]).refused(&["invalid format option"]);
    c.kill("KILL").ok();
    c.wait_stopped();
    assert_eq!(exec.wait().code, 137);
    assert_eq!(c.call(&["ps", "-f", "json", &c.id]).ok().out, "null\n");
    assert_eq!(c.call(&["ps", &c.id]).ok().out.lines().count(), 1);
}

#[test]
fn update_by_flags() {
    if no_v1("memory") || no_v1("cpu") || no_v1("pids") || no_v1("cpuset") {
        return;
    }
    let c = sleeper(json!({"memory": {"limit": 64 << 20}, "cpu": {"quota": 20_000, "period": 50_000}}));
    for (flags, controller, file, want) in [
        (&["--memory", "128m"][..], "memory", "memory.limit_in_bytes", (128 << 20).to_string()),
        (&["--memory=33554432"], "memory", "memory.limit_in_bytes", (32 << 20).to_string()),
        (&["--memory-reservation", "16MiB"], "memory", "memory.soft_limit_in_bytes", (16 << 20).to_string()),
        (&["--cpu-share", "512"], "cpu", "cpu.shares", "512".into()),
        (&["--cpu-period", "100000"], "cpu", "cpu.cfs_period_us", "100000".into()),
        (&["--cpu-quota", "30000"], "cpu", "cpu.cfs_quota_us", "30000".into()),
        (&["--cpu-quota", "-1"], "cpu", "cpu.cfs_quota_us", "-1".into()),
        (&["--cpuset-cpus", "0"], "cpuset", "cpuset.cpus", "0".into()),
        (&["--cpuset-mems", "0"], "cpuset", "cpuset.mems", "0".into()),
        (&["--pids-limit", "20"], "pids", "pids.max", "20".into()),
        (&["--pids-limit", "-1"], "pids", "pids.max", "max".into()),
    ] {
        if kind() == Kind::Crun && flags.iter().any(|f| f.ends_with('m') || f.ends_with("iB") || *f == "-1") {
            continue;
        }
        c.call(&[&["update"], flags, &[c.id.as_str()]].concat()).ok();
        assert_eq!(c.limit(controller, file), want, "{flags:?}");
    }
    c.call(&["update", &c.id]).ok();
    c.call(&["pause", &c.id]).ok();
    c.call(&["update", "--pids-limit", "9", &c.id]).ok();
    assert_eq!((c.limit("pids", "pids.max"), c.status()), ("9".into(), "paused".into()));
    c.call(&["resume", &c.id]).ok();
}

#[test]
fn update_by_file_and_standard_input() {
    if differs(Kind::Crun, "it takes a swap of 0 for a limit") {
        return;
    }
    if no_v1("memory") || no_v1("cpu") || no_v1("pids") {
        return;
    }
    let c = sleeper(json!({"memory": {"limit": 64 << 20}}));
    // The template of runc's help, where 0 and "" leave things as they are.
    let text = json!({"memory": {"limit": 96 << 20, "reservation": 0, "swap": 0},
        "cpu": {"shares": 300, "quota": 0, "period": 0, "realtimeRuntime": 0, "realtimePeriod": 0, "cpus": "", "mems": ""},
        "blockIO": {"weight": 0}, "pids": {"limit": 11}});
    let file = c.bundle.path().join("update.json");
    std::fs::write(&file, text.to_string()).expect("write");
    c.call(&["update", "--resources", file.to_str().expect("utf-8"), &c.id]).ok();
    assert_eq!(c.limit("memory", "memory.limit_in_bytes"), (96 << 20).to_string());
    assert_eq!((c.limit("cpu", "cpu.shares"), c.limit("pids", "pids.max")), ("300".into(), "11".into()));
    let text = br#"{"pids": {"limit": 12}, "devices": [{"allow": true, "access": "rwm"}], "unknown": 1}"#;
    let before = c.limit("devices", "devices.list");
    spawn_with_stdin(&mut c.command(&["update", "-r", "-", &c.id]), text).wait().ok();
    assert_eq!(c.limit("pids", "pids.max"), "12");
    assert_eq!(c.limit("devices", "devices.list"), before);
    assert_eq!(c.limit("cpu", "cpu.shares"), "300");
}

#[test]
fn memory_and_swap_grow_and_shrink_together() {
    if no_v1("memory") || !Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists() {
        return skip("no swap accounting");
    }
    let c = sleeper(json!({"memory": {"limit": 32 << 20, "swap": 64 << 20}}));
    let now = || {
        let mib = |file| c.limit("memory", file).parse::<u64>().expect("a number") >> 20;
        (mib("memory.limit_in_bytes"), mib("memory.memsw.limit_in_bytes"))
    };
    let update = |memory: &str, swap: &str| {
        c.call(&["update", &format!("--memory={memory}"), &format!("--memory-swap={swap}"), &c.id])
    };
    for (memory, swap) in [(128, 256), (256, 512), (512, 512), (32, 64), (48, 60)] {
        update(&(memory << 20).to_string(), &(swap << 20).to_string()).ok();
        assert_eq!(now(), (memory, swap));
    }
    // Above the swap limit alone, and swap below the memory limit: the kernel refuses both.
    assert_eq!(c.call(&["update", "--memory", "104857600", &c.id]).code, 1);
    assert_eq!(c.call(&["update", "--memory-swap", "1048576", &c.id]).code, 1);
    assert_eq!(now(), (48, 60));
    if kind() != Kind::Crun {
        c.call(&["update", "--memory", "-1", &c.id]).ok();
        let (memory, swap) = now();
        assert!(memory > 1 << 40 && swap > 1 << 40, "{memory} {swap}");
    }
}

#[test]
fn update_refuses_what_is_wrong() {
    if differs(Kind::Crun, "it exits with 64, and takes some of these") {
        return;
    }
    if no_v1("pids") || no_v1("memory") {
        return;
    }
    let c = sleeper(json!({"pids": {"limit": 7}}));
    let id = c.id.as_str();
    for flags in [
        &["--memory", "-5"][..],
        &["--memory", "abc"],
        &["--cpu-quota", "x"],
        &["--cpu-share", "1"],
        &["--cpu-share", "-1"],
        &["--cpu-period", "10"],
        &["--cpuset-cpus", "999"],
        &["--l3-cache-schema", "L3:0=f"],
        &["--mem-bw-schema", "MB:0=10"],
        &["--resources", "/nonexistent"],
        &["--nosuch"],
    ] {
        let mut words = vec!["update", "--pids-limit", "8"];
        words.extend(flags);
        words.push(id);
        c.call(&words).refused(&[]);
    }
    for text in [
        "",
        "{",
        "[]",
        r#"{"memory": {"limit": "x"}}"#,
        r#"{"memory": {"limit": 1.5}}"#,
        r#"{"pids": {"limit": 8}, "unified": {"memory.max": "1"}}"#,
    ] {
        let out = spawn_with_stdin(&mut c.command(&["update", "-r", "-", id]), text.as_bytes()).wait();
        assert!(out.code == 1 && !out.err.is_empty(), "{text:?}: {out:?}");
    }
    if kind() == Kind::Runw {
        // runc sets what comes before the bad value and warns that its state may be inconsistent.
        assert_eq!(c.limit("pids", "pids.max"), "7");
        assert_eq!(stored(&c)["pids"]["limit"], 7);
        let out =
            spawn_with_stdin(&mut c.command(&["update", "-r", "-", id]), br#"{"memory": {"limit": "x"}}"#)
                .wait();
        assert!(out.err.contains("--resources -: memory.limit: invalid type: string"), "{out:?}");
    }
    c.kill("KILL").ok();
    c.wait_stopped();
    c.call(&["update", "--pids-limit", "8", id]).refused(&["container not running"]);
}

fn stored(c: &Container) -> Value {
    let text = std::fs::read(c.root().join(&c.id).join("config.json")).expect("config.json");
    serde_json::from_slice::<Value>(&text).expect("JSON")["linux"]["resources"].clone()
}

#[test]
fn a_limit_below_use_is_refused_and_nothing_changes() {
    if no_v1("memory") || no_v1("cpu") {
        return;
    }
    if differs(Kind::Crun, "its own words") {
        return;
    }
    let c =
        Container::up(Bundle::sh("head -c 20000000 /dev/zero | tail -c 19999999 | sleep 100").edit(|c| {
            c["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
            c["linux"]["resources"]["cpu"] = json!({"shares": 300});
        }));
    until("it uses memory", || {
        c.limit("memory", "memory.usage_in_bytes").parse::<u64>().is_ok_and(|n| n > 15_000_000)
    });
    let out = c.call(&["update", "--cpu-share", "600", "--memory", "4k", &c.id]);
    out.refused(&["unable to set memory limit to 4096 (current usage: "]);
    assert_eq!(c.limit("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(c.status(), "running");
    if kind() == Kind::Runw {
        // runc leaves 600 behind and says so.
        assert_eq!(c.limit("cpu", "cpu.shares"), "300");
        assert_eq!(stored(&c)["cpu"]["shares"], 300);
        assert_eq!(stored(&c)["memory"]["limit"], 64 << 20);
        assert!(!c.root().join(&c.id).join("config.json.tmp").exists());
    }
}

#[test]
fn what_was_updated_is_remembered() {
    if runw_only("stored spec of this form") || no_v1("cpu") {
        return;
    }
    let c = sleeper(json!({"memory": {"limit": 64 << 20}}));
    c.call(&["update", "--memory=80m", "--cpu-quota=20000", "--cpu-period=50000", &c.id]).ok();
    c.call(&["update", "--cpu-share=99", &c.id]).ok();
    let resources = stored(&c);
    assert_eq!(resources["memory"], json!({"limit": 80 << 20}));
    assert_eq!(resources["cpu"], json!({"quota": 20_000, "period": 50_000, "shares": 99}));
    // The stored spec is still one that exec and delete can read.
    assert_eq!(c.sh("echo here"), "here\n");
}

/// Every key that runc 1.1.5 prints on this kind of machine, whatever it has counted.
const KEYS: &[&str] = &[
    "/cpu/usage/total",
    "/cpu/usage/percpu/0",
    "/cpu/usage/percpu_kernel/0",
    "/cpu/usage/percpu_user/0",
    "/cpu/usage/kernel",
    "/cpu/usage/user",
    "/cpu/throttling",
    "/cpuset/cpus/0",
    "/cpuset/cpu_exclusive",
    "/cpuset/mems/0",
    "/cpuset/mem_hardwall",
    "/cpuset/mem_exclusive",
    "/cpuset/memory_migrate",
    "/cpuset/memory_spread_page",
    "/cpuset/memory_spread_slab",
    "/cpuset/memory_pressure",
    "/cpuset/sched_load_balance",
    "/cpuset/sched_relax_domain_level",
    "/memory/usage/limit",
    "/memory/usage/usage",
    "/memory/usage/max",
    "/memory/usage/failcnt",
    "/memory/swap/limit",
    "/memory/swap/failcnt",
    "/memory/kernel/limit",
    "/memory/kernel/failcnt",
    "/memory/kernelTCP/limit",
    "/memory/kernelTCP/failcnt",
    "/memory/raw/rss",
    "/memory/raw/total_pgfault",
    "/memory/raw/hierarchical_memory_limit",
    "/pids/current",
    "/pids/limit",
    "/blkio",
    "/hugetlb",
    "/intel_rdt",
    "/network_interfaces",
];

#[test]
fn stats_have_runcs_schema() {
    if kind() == Kind::Crun {
        return skip("crun has no events");
    }
    if no_v1("memory") || no_v1("cpuacct") || no_v1("pids") || no_v1("cpuset") {
        return;
    }
    let c = sleeper(json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 9}}));
    c.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done");
    let out = c.call(&["events", "--stats", &c.id]).ok().out;
    assert_eq!(out.lines().count(), 1, "{out}");
    assert!(
        out.starts_with(&format!(r#"{{"type":"stats","id":"{}","data":{{"cpu":{{"usage":{{"total":"#, c.id)),
        "{out}"
    );
    let event: Value = serde_json::from_str(&out).expect("JSON");
    let data = &event["data"];
    for key in KEYS {
        assert!(data.pointer(key).is_some(), "{key} is not in {data}");
    }
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert_eq!((&data["pids"]["current"], &data["pids"]["limit"]), (&json!(1), &json!(9)));
    assert_eq!(
        data["cpuset"]["cpus"].as_array().map(Vec::len),
        Some(std::thread::available_parallelism().expect("cpus").get())
    );
    let user = data["cpu"]["usage"]["user"].as_u64().expect("user")
        + data["cpu"]["usage"]["kernel"].as_u64().expect("kernel");
    assert_eq!(user % 10_000_000, 0, "clock ticks in nanoseconds: {data}");
    assert_eq!(data["network_interfaces"], Value::Null);
    c.kill("KILL").ok();
    c.wait_stopped();
    c.call(&["events", "--stats", &c.id]).refused(&["is not running"]);
}

/// The same container, runw's stats and runc's: the same document but for what goes on counting.
#[test]
fn stats_are_what_runc_says_of_the_same_cgroup() {
    if runw_only("peer to compare with") || (!pure_v2() && no_v1("memory")) {
        return;
    }
    if !std::process::Command::new("runc").arg("--version").output().is_ok_and(|out| out.status.success()) {
        return skip("no runc");
    }
    let keys = |runtime: &str| -> Vec<String> {
        let c = Container::new(Bundle::sh("exec sleep 100"));
        let root = c.bundle.path().join("peer");
        let call = |words: &[&str]| {
            let mut command = std::process::Command::new(runtime);
            command.arg("--root").arg(&root).args(words);
            run(&mut command)
        };
        let bundle = c.bundle.path().to_str().expect("utf-8");
        call(&["run", "--detach", "--bundle", bundle, &c.id]).ok();
        let out = call(&["events", "--stats", &c.id]);
        call(&["delete", "--force", &c.id]).ok();
        let event: Value = serde_json::from_str(&out.ok().out).expect("JSON");
        let mut keys = Vec::new();
        paths(&event, String::new(), &mut keys);
        keys
    };
    let (ours, theirs) = (keys(runtime().to_str().expect("UTF-8")), keys("runc"));
    // A counter that happens to be 0 is left out by both; those are not the question.
    let counted = |key: &&String| {
        !key.contains("/usage/usage")
            && !key.contains("/max")
            && !key.contains("/cache")
            && !key.contains("blkio")
    };
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (ours.iter().filter(counted).collect(), theirs.iter().filter(counted).collect());
    // runc tells the pressure since 1.2, and with 1.1 not of huge pages on cgroup v2.
    let newer = |key: &&&String| pure_v2() && (key.contains("/psi/") || key.contains("/hugetlb/"));
    let differ: Vec<_> = ours
        .iter()
        .filter(|k| !theirs.contains(k) && !newer(k))
        .chain(theirs.iter().filter(|k| !ours.contains(k)))
        .collect();
    assert!(differ.iter().all(|key| key.ends_with("/usage")), "{differ:?}");
}

/// The document's keys; of lists the first member only.
fn paths(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| paths(value, format!("{at}/{key}"), out))
        }
        Value::Array(items) => items.iter().take(1).for_each(|value| paths(value, format!("{at}[]"), out)),
        _ => out.push(at),
    }
}

#[test]
fn events_tell_of_memory_running_out_and_end_with_the_container() {
    if kind() == Kind::Crun {
        return skip("crun has no events");
    }
    if !pure_v2() && no_v1("memory") {
        return;
    }
    let bundle = Bundle::sh(
        "while ! [ -e /go ]; do sleep 0.05; done; dd if=/dev/zero of=/dev/null bs=200M count=1; exec sleep 100",
    );
    let c = Container::up(
        bundle.edit(|c| c["linux"]["resources"]["memory"] = json!({"limit": 24 << 20, "swap": 24 << 20})),
    );
    let mut events = spawn(&mut c.command(&["events", "--interval=50ms", &c.id]));
    until("stats", || events.out().contains(r#"{"type":"stats","id":"#));
    assert!(!events.out().contains(r#""type":"oom""#), "{}", events.out());
    std::fs::write(c.bundle.rootfs().join("go"), "").expect("touch");
    let line = format!("{{\"type\":\"oom\",\"id\":\"{}\"}}\n", c.id);
    until("the oom event", || events.out().contains(&line));
    let stats = || events.out().matches(r#""type":"stats""#).count();
    let before = stats();
    until("stats go on", || stats() > before);
    c.call(&["delete", "--force", &c.id]).ok();
    let out = events.wait();
    assert_eq!(out.code, 0, "{out:?}");
    assert!(out.out.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{out:?}");
}

#[test]
fn events_end_when_nobody_reads() {
    if kind() == Kind::Crun {
        return skip("crun has no events");
    }
    let c = sleeper(json!({}));
    let command = c.command(&["events", "--interval=20ms", &c.id]);
    let line = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> = line.map(|word| word.to_str().expect("utf-8")).collect();
    let out =
        run(std::process::Command::new("sh")
            .args(["-c", &format!("timeout 10 {} | head -n 2", line.join(" "))]));
    assert_eq!(out.clone().ok().out.lines().count(), 2, "{out:?}");
    assert!(c.call(&["events", "--interval=x", &c.id]).code == 1);
    c.call(&["events", "--interval=0s", &c.id]).refused(&["duration interval must be greater than 0"]);
}
