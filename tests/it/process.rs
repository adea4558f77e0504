//! What `process` says of the program: ids, capabilities, limits, seccomp, environment. The program itself is asked
//! through its /proc/self/status.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, Container, Kind, cap, differs, kind, nothing_left, run, runw_only};

const STATUS: &str = "cat /proc/self/status";

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|l| l.starts_with(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("{name} is not in {status}")).split_once(':').expect("a colon").1.trim()
}

#[track_caller]
fn status_of(bundle: Bundle) -> String {
    Container::new(bundle).run().ok().out
}

#[test]
fn user_and_groups() {
    let status = status_of(Bundle::sh(STATUS).edit(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7, 1001]});
    }));
    assert_eq!(field(&status, "Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(field(&status, "Gid"), "1001\t1001\t1001\t1001");
    assert_eq!(field(&status, "Groups"), "5 7 1001");
}

#[test]
fn no_groups_of_the_caller_remain() {
    let status = status_of(Bundle::sh(STATUS));
    assert!(["", "0"].contains(&field(&status, "Groups")), "{status}");
}

/// In a user namespace that its maker may not give groups (user_namespaces(7)) setgroups(2) fails for everybody:
/// no harm where none are asked for.
#[test]
fn where_groups_are_denied_only_none_can_be_had() {
    if runw_only("a container without a user namespace of its own in another") {
        return;
    }
    let run_denied = |groups: &[u32]| {
        let c = Container::new(Bundle::sh("cat /proc/self/setgroups; id -u").edit(|c| {
            c["process"]["user"]["additionalGids"] = json!(groups);
            // devpts has gid 5, and a sysfs wants a network of its own: neither is to be had here.
            c["mounts"]
                .as_array_mut()
                .expect("mounts")
                .retain(|m| m["type"] == "proc" || m["type"] == "tmpfs");
        }));
        let command = c.command(&["--cgroup-manager", "disabled", "run", "--bundle"]);
        let mut unshare = Command::new("unshare");
        unshare.args(["-U", "-r", "-m"]).arg(command.get_program()).args(command.get_args());
        run(unshare.arg(c.bundle.path()).arg(&c.id))
    };
    assert_eq!(run_denied(&[]).ok().out, "deny\n0\n");
    run_denied(&[5]).refused(&["process.user.additionalGids", "rootless"]);
}

#[test]
fn umask_is_set() {
    let bundle = Bundle::sh("umask; touch /tmp/f; stat -c %a /tmp/f")
        .edit(|c| c["process"]["user"]["umask"] = json!(0o27));
    assert_eq!(Container::new(bundle).run().ok().out, "0027\n640\n");
}

#[test]
fn umask_defaults_to_022() {
    assert_eq!(Container::new(Bundle::sh("umask")).run().ok().out, "0022\n");
}

#[test]
fn the_five_capability_sets_are_each_their_own() {
    let status = status_of(Bundle::sh(STATUS).edit(|c| {
        c["process"]["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN", "CAP_NET_RAW"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
            "effective": ["CAP_CHOWN"],
            "inheritable": ["CAP_KILL", "CAP_NET_RAW"],
            "ambient": ["CAP_NET_RAW"],
        });
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    }));
    // Not root: execve keeps permitted and effective only as far as the ambient set goes.
    assert_eq!(field(&status, "CapBnd"), "0000000000202021");
    assert_eq!(field(&status, "CapInh"), "0000000000002020");
    assert_eq!(field(&status, "CapAmb"), "0000000000002000");
    assert_eq!(field(&status, "CapPrm"), "0000000000002000");
    assert_eq!(field(&status, "CapEff"), "0000000000002000");
}

#[test]
fn root_s_capabilities_end_at_the_bounding_set() {
    let status = status_of(
        Bundle::sh(STATUS).edit(|c| c["process"]["capabilities"] = cap(&["CAP_KILL", "CAP_CHOWN"])),
    );
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000021", "{set}");
    }
}

#[test]
fn absent_capability_sets_are_empty() {
    let status = status_of(Bundle::sh(STATUS).edit(|c| c["process"]["capabilities"] = json!({})));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
}

#[test]
fn no_new_privileges() {
    for wanted in [true, false] {
        let status = status_of(Bundle::sh(STATUS).edit(|c| c["process"]["noNewPrivileges"] = json!(wanted)));
        assert_eq!(field(&status, "NoNewPrivs"), if wanted { "1" } else { "0" });
    }
}

fn may_raise_limits() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    u64::from_str_radix(field(&status, "CapEff"), 16).expect("hex") & (1 << 24) != 0
}

/// Values that differ for each kind and are never above what this process itself may set.
fn wanted_limits(i: usize, label: &str) -> (u64, u64) {
    let own = std::fs::read_to_string("/proc/self/limits").expect("limits");
    let line = own.lines().find(|l| l.starts_with(label)).expect("a limit");
    let ceiling =
        line[label.len()..].split_whitespace().nth(1).and_then(|w| w.parse().ok()).unwrap_or(u64::MAX);
    let roomy = 1_000_000_000 + 10 * i as u64;
    let hard = if label == "Max open files" { 2000 } else { roomy };
    let hard = if may_raise_limits() { hard } else { hard.min(ceiling) };
    (hard.saturating_sub(5), hard)
}

fn seccomp(action: &str, errno: Option<u32>, names: &[&str]) -> Value {
    let mut rule = json!({"names": names, "action": action});
    if let Some(errno) = errno {
        rule["errnoRet"] = json!(errno);
    }
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]})
}

#[test]
fn seccomp_filters_with_and_without_new_privileges() {
    for nnp in [true, false] {
        let status = status_of(Bundle::sh("mkdir /tmp/x 2>&1; cat /proc/self/status").edit(|c| {
            c["process"]["noNewPrivileges"] = json!(nnp);
            c["linux"]["seccomp"] = seccomp("SCMP_ACT_ERRNO", Some(95), &["mkdir", "mkdirat"]);
        }));
        assert_eq!(field(&status, "Seccomp"), "2");
        assert!(status.contains("Operation not supported") || status.contains("Not supported"), "{status}");
    }
}

#[test]
fn a_filter_forbids_what_only_the_runtime_would_call() {
    // Docker's profiles before 2021 know no close_range; runtime-tools forbids getcwd.
    for nnp in [true, false] {
        let bundle = Bundle::sh("echo alive; ls /proc/self/fd | wc -l").edit(|c| {
            c["process"]["noNewPrivileges"] = json!(nnp);
            c["linux"]["seccomp"] = seccomp("SCMP_ACT_KILL_PROCESS", None, &["close_range"]);
            // The shell calls this one, too, and can do without.
            let getcwd = json!({"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"});
            c["linux"]["seccomp"]["syscalls"].as_array_mut().expect("rules").push(getcwd);
        });
        if !nnp && kind() != Kind::Runw {
            // Theirs call getcwd after the filter.
            continue;
        }
        assert_eq!(Container::new(bundle).run().ok().out, "alive\n4\n", "noNewPrivileges {nnp}");
    }
}

#[test]
fn seccomp_kills() {
    let bundle = Bundle::sh("mkdir /tmp/x; echo status $?")
        .edit(|c| c["linux"]["seccomp"] = seccomp("SCMP_ACT_KILL_PROCESS", None, &["mkdir", "mkdirat"]));
    assert_eq!(Container::new(bundle).run().ok().out.lines().last(), Some("status 159"));
}

#[test]
fn seccomp_compares_arguments() {
    let bundle = Bundle::sh("kill -0 1 && echo zero; kill -USR1 $$ || echo refused").edit(|c| {
        c["process"]["capabilities"] = cap(&["CAP_KILL"]);
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]}],
        });
    });
    assert_eq!(Container::new(bundle).run().ok().out, "zero\nrefused\n");
}

#[test]
fn an_unknown_syscall_name_in_the_filter_is_ignored() {
    let bundle = Bundle::sh("echo alive")
        .edit(|c| c["linux"]["seccomp"] = seccomp("SCMP_ACT_ERRNO", None, &["no_such_call_ever", "mkdir"]));
    assert_eq!(Container::new(bundle).run().ok().out, "alive\n");
}

#[test]
fn rlimits_of_every_kind() {
    let kinds = [
        ("CPU", "Max cpu time"),
        ("FSIZE", "Max file size"),
        ("DATA", "Max data size"),
        ("STACK", "Max stack size"),
        ("CORE", "Max core file size"),
        ("RSS", "Max resident set"),
        ("NPROC", "Max processes"),
        ("NOFILE", "Max open files"),
        ("MEMLOCK", "Max locked memory"),
        ("AS", "Max address space"),
        ("LOCKS", "Max file locks"),
        ("SIGPENDING", "Max pending signals"),
        ("MSGQUEUE", "Max msgqueue size"),
        ("NICE", "Max nice priority"),
        ("RTPRIO", "Max realtime priority"),
        ("RTTIME", "Max realtime timeout"),
    ];
    let limits: Vec<Value> = kinds
        .iter()
        .enumerate()
        .map(|(i, (name, label))| {
            let (soft, hard) = wanted_limits(i, label);
            json!({"type": format!("RLIMIT_{name}"), "soft": soft, "hard": hard})
        })
        .collect();
    let text =
        status_of(Bundle::sh("cat /proc/self/limits").edit(|c| c["process"]["rlimits"] = json!(limits)));
    for (i, (_, label)) in kinds.iter().enumerate() {
        let line = text.lines().find(|l| l.starts_with(label)).unwrap_or_else(|| panic!("{label}: {text}"));
        let (soft, hard) = wanted_limits(i, label);
        let words: Vec<&str> = line[label.len()..].split_whitespace().collect();
        assert_eq!(words[..2], [soft.to_string(), hard.to_string()], "{line}");
    }
}

#[test]
fn a_rlimit_may_be_infinite() {
    let text = status_of(Bundle::sh("cat /proc/self/limits").edit(|c| {
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": u64::MAX, "hard": u64::MAX}]);
    }));
    let line = text.lines().find(|l| l.starts_with("Max core")).expect("core");
    assert_eq!(line.split_whitespace().filter(|w| *w == "unlimited").count(), 2, "{line}");
}

#[test]
fn cwd_is_entered_and_made() {
    let bundle =
        Bundle::sh("pwd; ls -d /made/on/the/way").edit(|c| c["process"]["cwd"] = json!("/made/on/the/way"));
    assert_eq!(Container::new(bundle).run().ok().out, "/made/on/the/way\n/made/on/the/way\n");
}

#[test]
fn env_is_exactly_the_spec_s_in_order() {
    let c = Container::new(Bundle::new(&["/bin/env"]).env(&[
        "PATH=/bin",
        "Z=1",
        "A=2",
        "EMPTY=",
        "SPACE=a b",
        "EQ=a=b",
        "HOME=/somewhere",
    ]));
    let out = c.run().ok().out;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines, ["PATH=/bin", "Z=1", "A=2", "EMPTY=", "SPACE=a b", "EQ=a=b", "HOME=/somewhere"]);
}

#[test]
fn home_comes_from_passwd_when_it_is_not_given() {
    if differs(Kind::Crun, "1.8 sets none for a user it does not find") {
        return;
    }
    for (uid, home) in [(0, "/root"), (1000, "/home"), (4242, "/")] {
        let c = Container::new(Bundle::new(&["/bin/env"]).env(&["PATH=/bin"]).edit(|c| {
            c["process"]["user"] = json!({"uid": uid, "gid": uid});
        }));
        let out = c.run().ok().out;
        assert!(out.lines().any(|l| l == format!("HOME={home}")), "{uid}: {out}");
    }
}

#[test]
fn path_of_the_container_finds_the_program() {
    let bundle = Bundle::new(&["tool", "x"]).env(&["PATH=/nowhere:/opt/tools:/bin"]);
    std::fs::create_dir_all(bundle.rootfs().join("opt/tools")).expect("mkdir");
    crate::harness::script(&bundle.rootfs().join("opt/tools/tool"), "echo $0 $1");
    assert_eq!(Container::new(bundle).run().ok().out, "/opt/tools/tool x\n");
}

#[test]
fn a_relative_program_starts_at_cwd() {
    let bundle = Bundle::new(&["./tool"]).edit(|c| c["process"]["cwd"] = json!("/tmp"));
    crate::harness::script(&bundle.rootfs().join("tmp/tool"), "pwd");
    assert_eq!(Container::new(bundle).run().ok().out, "/tmp\n");
}

#[test]
fn hostname_and_domainname() {
    let c = Container::new(Bundle::sh("hostname; cat /proc/sys/kernel/domainname").edit(|c| {
        c["hostname"] = json!("inside");
        c["domainname"] = json!("of.example");
    }));
    let out = c.run().ok().out;
    assert_eq!(out.lines().next(), Some("inside"));
    if kind() == Kind::Runw {
        assert_eq!(out.lines().nth(1), Some("of.example"), "runc 1.1 and crun 1.8 know no domainname");
    }
}

#[test]
fn sysctls_are_set() {
    let c =
        Container::new(Bundle::sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax").edit(|c| {
            c["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"});
        }));
    assert_eq!(c.run().ok().out, "1\n4096\n");
}

#[test]
fn a_sysctl_of_the_host_is_refused() {
    for name in ["kernel.panic", "vm.swappiness", "net/ipv4/../../kernel/panic"] {
        let before = std::fs::read("/proc/sys/kernel/panic").expect("panic");
        let c = Container::new(Bundle::sh("true").edit(|c| {
            c["linux"]["sysctl"] = json!({});
            c["linux"]["sysctl"][name] = json!("77");
        }));
        let out = c.run();
        assert_eq!(std::fs::read("/proc/sys/kernel/panic").expect("panic"), before);
        assert_eq!(out.code, 1, "{name}: {out:?}");
        nothing_left(&c);
    }
}

#[test]
fn oom_score_adj() {
    // Going below one's own score, and raising a hard limit, need CAP_SYS_RESOURCE, which a root may lack.
    let scores: &[i32] = if may_raise_limits() { &[-500, 0, 731] } else { &[731] };
    for &score in scores {
        let c = Container::new(
            Bundle::sh("cat /proc/self/oom_score_adj").edit(|c| c["process"]["oomScoreAdj"] = json!(score)),
        );
        assert_eq!(c.run().ok().out.trim(), score.to_string());
    }
}

#[test]
fn signals_are_not_ignored_or_blocked() {
    let status = status_of(Bundle::sh("exec cat /proc/self/status"));
    for set in ["SigBlk", "SigIgn"] {
        // Real-time signals are the callers' business: some sandboxes leave 32 blocked in everything they start.
        let bits = u64::from_str_radix(field(&status, set), 16).expect("hex") & 0x7fff_ffff;
        assert_eq!(bits, 0, "{set} in {status}");
    }
}

#[test]
fn the_program_is_pid_1_and_leads_its_session() {
    let c =
        Container::new(Bundle::sh("echo $$; cut -d' ' -f5,6 /proc/self/stat; cut -d' ' -f5,6 /proc/1/stat"));
    let out = c.run().ok().out;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines[0], lines[2]), ("1", "1 1"), "{out}");
}

#[test]
fn personality_is_applied() {
    if differs(Kind::Runc, "1.1 knows no personality")
        || differs(Kind::Crun, "uname -m is not shown by LINUX32 here")
    {
        return;
    }
    let c = Container::new(
        Bundle::sh("uname -m").edit(|c| c["linux"]["personality"] = json!({"domain": "LINUX32"})),
    );
    assert_eq!(c.run().ok().out, "i686\n");
}

#[test]
fn a_personality_is_the_whole_container_s_and_flags_are_warned_of() {
    if differs(Kind::Runc, "1.1 knows no personality") || differs(Kind::Crun, "other words for flags") {
        return;
    }
    let bundle = Bundle::sh("exec sleep 100");
    let mut c = Container::new(bundle.edit(|c| {
        c["linux"]["personality"] = json!({"domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE"]});
    }));
    let out = c.create_with(&[]).ok();
    assert!(out.err.contains("ignoring unsupported personality flags"), "{out:?}");
    c.start();
    assert_eq!(c.sh("uname -m"), "i686\n");
}

#[test]
fn scheduler_and_io_priority() {
    if differs(Kind::Runc, "1.1 knows neither") || differs(Kind::Crun, "1.8 knows neither") {
        return;
    }
    let c = Container::new(Bundle::sh("cut -d' ' -f19,41 /proc/self/stat; ionice").edit(|c| {
        c["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
        c["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    }));
    let out = c.run().ok().out;
    assert!(out.starts_with("7 3\n"), "{out}");
    assert!(out.contains("best-effort: prio 6"), "{out}");
}

#[test]
fn scheduler_and_io_priority_of_an_exec() {
    if differs(Kind::Runc, "1.1 knows neither") || differs(Kind::Crun, "1.8 knows neither") {
        return;
    }
    let c = Container::up(Bundle::sh("exec sleep 100"));
    let mut process = c.bundle.config["process"].clone();
    process["args"] = json!(["/bin/sh", "-c", "cut -d' ' -f18,19,40,41 /proc/self/stat; ionice"]);
    process["scheduler"] = json!({"policy": "SCHED_IDLE"});
    process["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    process["capabilities"] = json!({});
    let out = exec_process(&c, &process).ok().out;
    assert!(out.starts_with("20 0 0 5\n") && out.contains("idle"), "{out}");
    process["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": 40});
    let out = exec_process(&c, &process);
    assert!(out.err.contains("invalid scheduler.nice: 40 when scheduler.policy is SCHED_OTHER"), "{out:?}");
    // The specification's own spelling, and with it a policy that only the privileged may have.
    process["scheduler"] =
        json!({"policy": "SCHED_OTHER", "nice": -5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    process["args"] = json!(["/bin/sh", "-c", "read -r stat </proc/$$/stat; set -- $stat; echo ${19}"]);
    let out = exec_process(&c, &process).ok().out;
    assert_eq!(out, "-5\n");
}

fn exec_process(c: &Container, process: &Value) -> crate::harness::Out {
    let path = c.bundle.path().join("process.json");
    std::fs::write(&path, process.to_string()).expect("write the process");
    c.exec(&["--process", path.to_str().expect("UTF-8")], &[])
}

#[test]
fn cpu_affinity_of_an_exec() {
    if differs(Kind::Runc, "1.1 knows none") || differs(Kind::Crun, "1.8 knows none") {
        return;
    }
    let cpus = "grep Cpus_allowed_list /proc/self/status | cut -f2";
    let c = Container::up(
        Bundle::sh("exec sleep 100")
            .edit(|c| c["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"})),
    );
    let all = std::fs::read_to_string("/proc/self/status").expect("status");
    let all = field(&all, "Cpus_allowed_list").to_owned();
    if all == "0" {
        return println!("SKIPPED: one CPU tells no affinity from another");
    }
    // Init is not concerned, an exec is; the final list may be left out or empty.
    let init = std::fs::read_to_string(format!("/proc/{}/status", c.pid())).expect("status");
    assert_eq!(field(&init, "Cpus_allowed_list"), all);
    assert_eq!(c.sh(cpus), "1\n");
    let mut process = c.bundle.config["process"].clone();
    process["args"] = json!(["/bin/sh", "-c", cpus]);
    process["execCPUAffinity"] = json!({"initial": "0", "final": ""});
    assert_eq!(exec_process(&c, &process).ok().out, format!("{all}\n"));
    process["execCPUAffinity"] = json!({"final": "1000"});
    let out = exec_process(&c, &process);
    assert!(out.code == 255 && out.err.contains("error setting final affinity"), "{out:?}");
    process["execCPUAffinity"] = json!({"initial": "5000"});
    let out = exec_process(&c, &process);
    assert!(out.code == 255 && out.err.contains("process.execCPUAffinity.initial"), "{out:?}");
}

#[test]
fn a_container_is_not_kept_on_its_caller_s_cpus() {
    if differs(Kind::Runc, "1.1 keeps them") || differs(Kind::Crun, "keeps them") {
        return;
    }
    let c = Container::new(Bundle::sh("grep Cpus_allowed_list /proc/self/status | cut -f2"));
    let run = c.run_command(&[]);
    let mut pinned = std::process::Command::new("taskset");
    pinned.args(["-c", "0"]).arg(run.get_program()).args(run.get_args());
    let all = std::fs::read_to_string("/proc/self/status").expect("status");
    let out = crate::harness::run(&mut pinned).ok().out;
    assert_eq!(out.trim(), field(&all, "Cpus_allowed_list"));
}

#[test]
fn a_memory_policy_is_the_whole_container_s() {
    if differs(Kind::Runc, "1.1 knows none") || differs(Kind::Crun, "1.8 knows none") {
        return;
    }
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        return println!("SKIPPED: a kernel without NUMA shows no memory policy");
    }
    let maps = "head -n 1 /proc/self/numa_maps | cut -d' ' -f2";
    let with = |policy: Value| {
        Bundle::sh(&format!("{maps}; exec sleep 100")).edit(|c| c["linux"]["memoryPolicy"] = policy)
    };
    let c = Container::up(with(json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]})));
    c.wait_out("bind=static:0\n");
    assert_eq!(c.sh(maps), "bind=static:0\n");
    // A node that is not there, and none at all.
    for (nodes, wanted) in [("900", "linux.memoryPolicy: set_mempolicy"), ("", "requires at least one node")]
    {
        let c = Container::new(with(json!({"mode": "MPOL_INTERLEAVE", "nodes": nodes})));
        let out = c.run();
        assert!(out.code == 1 && out.err.contains(wanted), "{nodes:?}: {out:?}");
        nothing_left(&c);
    }
}

#[test]
fn capabilities_that_cannot_be_had_are_warned_about() {
    if differs(Kind::Runc, "1.1 says nothing") || differs(Kind::Crun, "1.8 says nothing") {
        return;
    }
    let caps = |c: &mut Value| {
        c["capabilities"] = cap(&["CAP_KILL", "CAP_CHOWN"]);
        c["capabilities"]["inheritable"] = json!(["CAP_KILL"]);
        c["capabilities"]["ambient"] = json!(["CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"]);
    };
    let want = ["CHOWN", "NET_RAW"].map(|name| {
        format!("process.capabilities.ambient: can't raise ambient capability CAP_{name}: only what is permitted and")
    });
    let has_all = |text: &str| want.iter().all(|line| text.contains(line.as_str()));
    let c =
        Container::new(Bundle::sh("cat /proc/self/status; exec sleep 100").edit(|c| caps(&mut c["process"])));
    let out = c.run_with(&["--detach"]).ok();
    assert!(out.err.contains("level=warning") && has_all(&out.err), "{out:?}");
    let mut process = c.bundle.config["process"].clone();
    process["args"] = json!(["/bin/cat", "/proc/self/status"]);
    let out = exec_process(&c, &process).ok();
    assert!(has_all(&out.err), "{out:?}");
    assert_eq!(field(&out.out, "CapAmb"), "0000000000000020");
}

/// Images reopen /dev/stdout as their own user.
#[test]
fn standard_streams_belong_to_the_user() {
    let out =
        Container::new(Bundle::sh("stat -L -c %u /proc/self/fd/1; echo reopened >>/dev/stdout").edit(|c| {
            c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        }));
    let out = out.run().ok().out;
    assert!(out.starts_with("1000\n") && out.contains("reopened"), "{out}");
}

/// Only the user may enter it, and only root would be asked first.
#[test]
fn cwd_may_be_the_user_s_alone() {
    let bundle = Bundle::sh("pwd").edit(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        c["process"]["cwd"] = json!("/home/me");
        // Without CAP_DAC_OVERRIDE root itself may not enter what is another's.
        c["process"]["capabilities"] = json!({});
    });
    let home = bundle.rootfs().join("home/me");
    std::fs::create_dir_all(&home).expect("a home");
    std::os::unix::fs::chown(&home, Some(1000), Some(1000)).expect("chown");
    std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
    assert_eq!(Container::new(bundle).run().ok().out, "/home/me\n");
}

#[test]
fn each_container_has_a_session_keyring_of_its_own() {
    let Ok(keys) = std::fs::read_to_string("/proc/keys") else {
        return crate::harness::skip("no /proc/keys");
    };
    let unmasked = |text: &str| Bundle::sh(text).edit(|c| c["linux"]["maskedPaths"] = json!([]));
    let c = Container::up(unmasked("cat /proc/keys; exec sleep 100"));
    // runc's name for it begins with "_ses.", crun's is the bare id.
    let own = format!("{}: empty", c.id);
    c.wait_out(&own);
    assert!(c.sh("cat /proc/keys").contains(&own));
    assert!(!keys.contains(&own));
    let bare = Container::new(unmasked("cat /proc/keys"));
    let out = bare.run_with(&["--no-new-keyring"]).ok().out;
    assert!(!out.contains(&format!("{}: empty", bare.id)), "{out}");
}
