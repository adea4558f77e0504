//! exec applies everything a process says, in every namespace of the container, and fails as callers expect.

use std::path::PathBuf;

use serde_json::json;

use crate::harness::{
    Bundle, ConsoleSocket, Container, Kind, alive, cap, differs, kind, run, runw_only, skip, spawn,
    spawn_with_stdin, until,
};

fn up() -> Container {
    Container::up(Bundle::sh("exec sleep 100"))
}

fn process_file(c: &Container, process: &serde_json::Value) -> PathBuf {
    let path = c.bundle.path().join("process.json");
    std::fs::write(&path, process.to_string()).expect("write process.json");
    path
}

#[test]
fn a_process_file_may_be_a_pipe() {
    let c = up();
    let pipe = c.bundle.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).expect("mkfifo");
    let text = json!({"args": ["/bin/echo", "piped"], "cwd": "/"}).to_string();
    // Opening it waits for the reader.
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::write(pipe, text)
    });
    let out = run(&mut c.exec_command(&["--process", pipe.to_str().expect("utf-8")], &[])).ok().out;
    writer.join().expect("the writer").expect("write to the pipe");
    assert_eq!(out, "piped\n");
}

#[test]
fn output_and_exit_status() {
    let c = up();
    for code in [0, 1, 42, 126, 255] {
        let out = c.exec(&[], &["/bin/sh", "-c", &format!("echo out; echo err >&2; exit {code}")]);
        assert_eq!((out.code, out.out.as_str(), out.err.as_str()), (code, "out\n", "err\n"));
    }
    assert_eq!(c.exec(&[], &["/bin/sh", "-c", "kill -9 $$"]).code, 137);
    assert_eq!(c.status(), "running");
}

#[test]
fn every_namespace_is_the_container_s() {
    for bundle in [
        Bundle::sh("exec sleep 100"),
        Bundle::sh("exec sleep 100").user_namespace().namespace("cgroup", None),
    ] {
        let c = Container::up(bundle);
        let init = c.sh("for n in pid net ipc uts mnt cgroup user; do readlink /proc/1/ns/$n; done");
        let own = c.sh("for n in pid net ipc uts mnt cgroup user; do readlink /proc/self/ns/$n; done");
        assert_eq!(init, own);
        assert_eq!(own.lines().count(), 7);
        assert_ne!(c.sh("echo $$").trim(), "1");
    }
}

#[test]
fn it_is_in_the_container_s_cgroup() {
    let c = up();
    assert_eq!(c.sh("cat /proc/self/cgroup"), c.sh("cat /proc/1/cgroup"));
    let text = c.sh("cat /proc/self/cgroup");
    assert!(text.lines().filter(|l| l.contains(&c.id)).count() >= 8, "{text}");
}

#[test]
fn flags_user_cwd_and_env() {
    let c = up();
    let out = c.exec(
        &["--user", "1000:1001", "--cwd", "/tmp", "--env", "A=1", "--env", "B=two words"],
        &["/bin/sh", "-c", "id -u; id -g; pwd; echo $A $B; echo $HOME"],
    );
    assert_eq!(out.ok().out, "1000\n1001\n/tmp\n1 two words\n/home\n");
}

#[test]
fn additional_groups() {
    if differs(Kind::Crun, "no --additional-gids") {
        return;
    }
    let c = up();
    let out = c.exec(
        &["--user", "1000", "--additional-gids", "5", "--additional-gids", "7"],
        &["/bin/sh", "-c", "grep Groups /proc/self/status"],
    );
    assert_eq!(out.ok().out.split_whitespace().collect::<Vec<_>>(), ["Groups:", "5", "7"]);
}

#[test]
fn capabilities_default_to_the_container_s() {
    let c = Container::up(
        Bundle::sh("exec sleep 100").edit(|c| c["process"]["capabilities"] = cap(&["CAP_KILL", "CAP_CHOWN"])),
    );
    let out = c.sh("grep Cap /proc/self/status");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(out.contains(&format!("{set}:\t0000000000000021")), "{set}: {out}");
    }
}

#[test]
fn a_capability_may_be_added() {
    if differs(Kind::Crun, "1.8 replaces the set") {
        return;
    }
    let c = Container::up(
        Bundle::sh("exec sleep 100").edit(|c| c["process"]["capabilities"] = cap(&["CAP_KILL"])),
    );
    let out = c.exec(&["--cap", "CAP_NET_RAW"], &["/bin/sh", "-c", "grep Cap /proc/self/status"]).ok().out;
    assert!(out.contains("CapEff:\t0000000000002020"), "{out}");
    assert!(out.contains("CapBnd:\t0000000000002020"), "{out}");
}

#[test]
fn a_process_file_says_it_all() {
    let c = Container::up(Bundle::sh("exec sleep 100"));
    let file = process_file(
        &c,
        &json!({
            "args": ["/bin/sh", "-c", "id -u; id -g; pwd; umask; ulimit -n; grep -e CapEff -e NoNewPrivs -e Groups /proc/self/status; env; cat /proc/self/oom_score_adj"],
            "cwd": "/tmp",
            "env": ["PATH=/bin", "ONLY=this"],
            "user": {"uid": 1000, "gid": 1001, "umask": 0o27, "additionalGids": [9]},
            "capabilities": cap(&["CAP_NET_RAW"]),
            "noNewPrivileges": true,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}],
            "oomScoreAdj": 444,
        }),
    );
    let out = c.exec_command(&["--process", file.to_str().expect("utf-8")], &[]);
    let mut command = out;
    let out = run(&mut command).ok().out;
    let head: Vec<&str> = out.lines().take(5).collect();
    assert_eq!(head[..3], ["1000", "1001", "/tmp"], "{out}");
    if kind() == Kind::Runw {
        assert_eq!(head[3], "0027", "{out}");
    }
    // The Go of runc 1.1 raises the soft limit now and then, in a race with its own prlimit.
    assert!(head[4] == "77" || kind() == Kind::Runc, "{out}");
    for line in ["CapEff:\t0000000000002000", "NoNewPrivs:\t1", "ONLY=this", "PATH=/bin"] {
        assert!(out.lines().any(|l| l == line), "{line} is not in {out}");
    }
    assert!(out.lines().any(|l| l.split_whitespace().eq(["Groups:", "9"])), "{out}");
    if kind() == Kind::Runw {
        assert_eq!(out.lines().last(), Some("444"), "{out}");
    }
}

#[test]
fn seccomp_of_the_container_holds_for_exec() {
    let c = Container::up(Bundle::sh("exec sleep 100").edit(|c| {
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    }));
    let out = c.exec(&[], &["/bin/sh", "-c", "grep Seccomp: /proc/self/status; mkdir /tmp/x && echo made"]);
    assert!(out.out.contains("Seccomp:\t2") && !out.out.contains("made"), "{out:?}");
}

#[test]
fn no_new_privileges_follow() {
    let c =
        Container::up(Bundle::sh("exec sleep 100").edit(|c| c["process"]["noNewPrivileges"] = json!(false)));
    assert!(c.sh("grep NoNewPrivs /proc/self/status").contains('0'));
    let out = c.exec(&["--no-new-privs"], &["/bin/sh", "-c", "grep NoNewPrivs /proc/self/status"]).ok();
    assert!(out.out.contains('1'), "{out:?}");
}

#[test]
fn stdin_reaches_the_program() {
    let c = up();
    let out =
        spawn_with_stdin(&mut c.exec_command(&[], &["/bin/sh", "-c", "cat; echo end"]), b"given\n").wait();
    assert_eq!(out.ok().out, "given\nend\n");
}

#[test]
fn detached_with_a_pid_file() {
    let c = up();
    let file = c.bundle.path().join("exec.pid");
    c.exec(&["--detach", "--pid-file", file.to_str().expect("utf-8")], &["/bin/sleep", "100"]).ok();
    let pid: i32 = std::fs::read_to_string(file).expect("pid file").trim().parse().expect("a number");
    let command = || std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    until("the program runs", || command().starts_with("/bin/sleep"));
    assert_eq!(
        std::fs::read_link(format!("/proc/{pid}/ns/pid")).expect("ns"),
        std::fs::read_link(format!("/proc/{}/ns/pid", c.pid())).expect("ns")
    );
    c.call(&["delete", "--force", &c.id]).ok();
    until("it dies with the container", || !alive(pid));
}

#[test]
fn what_cannot_start_is_255() {
    if differs(Kind::Crun, "own number and texts") {
        return;
    }
    let c = up();
    for argv in ["no-such", "/no/such", "/etc/passwd"] {
        let out = c.exec(&[], &[argv]);
        assert_eq!(out.code, 255, "{argv}: {out:?}");
        assert!(out.err.contains(argv), "{argv}: {out:?}");
    }
    assert_eq!(c.status(), "running");
    assert_eq!(c.sh("set -- /proc/[0-9]*; echo $#"), "2\n", "sleep, sh");
}

#[test]
fn a_broken_process_file() {
    let c = up();
    for text in ["", "{", "{\"args\": 1}", "[]"] {
        let path = c.bundle.path().join("broken.json");
        std::fs::write(&path, text).expect("write");
        let out = run(&mut c.exec_command(&["--process", path.to_str().expect("utf-8")], &[]));
        if kind() == Kind::Runw {
            assert_eq!(out.code, 255, "{text}: {out:?}");
        }
        assert_ne!(out.code, 0, "{text}: {out:?}");
    }
}

#[test]
fn a_user_is_numeric() {
    let c = up();
    for user in ["root", "1000:", "-1", "1000:x", "99999999999"] {
        let out = c.exec(&["--user", user], &["/bin/true"]);
        if kind() == Kind::Runw || user == "root" && kind() == Kind::Runc {
            assert_ne!(out.code, 0, "{user}: {out:?}");
        }
    }
}

#[test]
fn signals_to_a_foreground_exec_are_forwarded() {
    let c = up();
    let mut command =
        c.exec_command(&[], &["/bin/sh", "-c", "trap 'exit 33' TERM; echo up; while :; do sleep 0.05; done"]);
    let mut running = crate::harness::spawn(&mut command);
    until("up", || running.out().contains("up"));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(running.pid()).expect("pid"),
        rustix::process::Signal::TERM,
    )
    .expect("kill");
    assert_eq!(running.wait().code, 33);
}

#[test]
fn preserved_descriptors() {
    let c = up();
    let file = c.bundle.path().join("given");
    std::fs::write(&file, "through 3\n").expect("write");
    let command = c.exec_command(&["--preserve-fds", "1"], &["/bin/cat", "/proc/self/fd/3"]);
    let mut shell = std::process::Command::new("/bin/sh");
    shell
        .arg("-c")
        .arg(r#"exec 3<"$0"; exec "$@""#)
        .arg(&file)
        .arg(command.get_program())
        .args(command.get_args());
    assert_eq!(run(&mut shell).ok().out, "through 3\n");
}

#[test]
fn many_at_once() {
    let c = up();
    let all: Vec<_> = (0..12)
        .map(|i| {
            crate::harness::spawn(
                &mut c.exec_command(&[], &["/bin/sh", "-c", &format!("echo {i}; exit {i}")]),
            )
        })
        .collect();
    for (i, mut one) in all.into_iter().enumerate() {
        let out = one.wait();
        assert_eq!(
            (out.code, out.out.trim().to_owned()),
            (i32::try_from(i).expect("small"), i.to_string()),
            "{out:?}"
        );
    }
}

#[test]
fn before_start_too() {
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    c.create();
    if differs(Kind::Crun, "1.8 refuses a created container") {
        return;
    }
    assert_eq!(c.sh("echo in; ls -d /proc/1").lines().next(), Some("in"));
    assert_eq!(c.status(), "created");
}

#[test]
fn in_a_sub_cgroup() {
    if differs(Kind::Crun, "1.8 makes it on v2 only") {
        return;
    }
    let c = up();
    std::fs::create_dir(c.cgroup("pids").join("sub")).expect("mkdir");
    let out = c.exec(&["--cgroup", "pids:sub"], &["/bin/sh", "-c", "grep pids /proc/self/cgroup"]).ok();
    assert!(out.out.trim().ends_with(&format!("{}/sub", c.id)), "{out:?}");
    c.call(&["delete", "--force", &c.id]).ok();
    crate::harness::nothing_left(&c);
}

#[test]
fn in_several_sub_cgroups() {
    if differs(Kind::Crun, "1.8 takes one path for all") {
        return;
    }
    let c = up();
    for (controller, sub) in [("pids", "a"), ("memory", "b")] {
        std::fs::create_dir(c.cgroup(controller).join(sub)).expect("mkdir");
    }
    let show = ["/bin/sh", "-c", "cat /proc/self/cgroup"];
    let out = c.exec(&["--cgroup", "pids:a", "--cgroup", "memory:b"], &show).ok();
    for (controller, path) in [("pids", "/a"), ("memory", "/b"), ("freezer", "")] {
        let line = out.out.lines().find(|l| l.contains(controller)).expect("a v1 hierarchy");
        assert!(line.ends_with(&format!("{}{path}", c.id)), "{line}");
    }
    for (flags, wanted) in [
        (["--cgroup", "a", "--cgroup", "pids:a"], "missing <controller>: prefix"),
        (["--cgroup", "pids:a", "--cgroup", "pids:b"], "specified multiple times"),
        (["--cgroup", "pids:a", "--cgroup", "warp:b"], "unknown controller warp"),
    ] {
        let out = c.exec(&flags, &show);
        assert!(out.code == 255 && out.err.contains(wanted), "{out:?}");
    }
}

#[test]
fn a_frozen_container_refuses() {
    if runw_only("pause here; it stands in for a freezer held by the operator") || !c_freezer() {
        return;
    }
    let c = up();
    std::fs::write(c.cgroup("freezer").join("freezer.state"), "FROZEN").expect("freeze");
    until("frozen", || c.limit("freezer", "freezer.state") == "FROZEN");
    let out = c.exec(&[], &["/bin/true"]);
    let status = c.status();
    std::fs::write(c.cgroup("freezer").join("freezer.state"), "THAWED").expect("thaw");
    assert!(out.code == 255 && out.err.contains("cannot exec in a paused container"), "{out:?}");
    assert_eq!(status, "paused");
}

#[test]
fn a_paused_container_takes_an_exec_that_ignores_it() {
    if differs(Kind::Crun, "it has no --ignore-paused") || !c_freezer() {
        return;
    }
    let c = up();
    c.call(&["pause", &c.id]).ok();
    let mut waiting = spawn(&mut c.exec_command(&["--ignore-paused"], &["/bin/echo", "late"]));
    // Frozen as it joins, on v1: it goes on when the container does.
    until("it has joined", || c.limit("freezer", "cgroup.procs").lines().count() > 1);
    assert_eq!(c.status(), "paused");
    c.call(&["resume", &c.id]).ok();
    assert_eq!(waiting.wait().ok().out, "late\n");
}

/// fdinfo(5) of a pidfd.
fn pid_behind(socket: &ConsoleSocket) -> String {
    use std::os::fd::AsRawFd;
    let (pidfd, _) = socket.receive();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    info.lines().find_map(|line| line.strip_prefix("Pid:")).expect("a pidfd").trim().to_owned()
}

#[test]
fn pidfds_go_to_the_sockets_that_are_named() {
    if runw_only("--pidfd-socket: it came with runc 1.2") {
        return;
    }
    let bundle = Bundle::sh("exec sleep 100");
    let socket = ConsoleSocket::new(bundle.path());
    let path = socket.path.to_str().unwrap().to_owned();
    let mut c = Container::new(bundle);
    c.create_with(&["--pidfd-socket", &path]).ok();
    assert_eq!(pid_behind(&socket), c.pid().to_string());
    c.start();
    let pid_file = c.bundle.path().join("pid");
    let flags = ["--detach", "--pidfd-socket", &path, "--pid-file", pid_file.to_str().unwrap()];
    c.exec(&flags, &["/bin/sleep", "100"]).ok();
    assert_eq!(pid_behind(&socket), std::fs::read_to_string(pid_file).unwrap());
    let out = c.exec(&["--pidfd-socket", "/nonexistent.sock"], &["/bin/true"]);
    assert!(out.code == 255 && out.err.contains("--pidfd-socket"), "{out:?}");
}

fn c_freezer() -> bool {
    std::path::Path::new("/sys/fs/cgroup/freezer").exists()
}

/// A label that this host cannot give is an error, as in runc; never a process without one.
#[test]
fn profiles_and_labels_of_modules_that_are_off() {
    if std::path::Path::new("/sys/module/apparmor").exists()
        || std::path::Path::new("/sys/fs/selinux").exists()
    {
        return skip("this kernel has a security module of the kind");
    }
    if differs(Kind::Crun, "1.8 has words of its own") {
        return;
    }
    let c = up();
    let process = |field: &str| {
        let mut process = c.bundle.config["process"].clone();
        process[field] = json!("x");
        process_file(&c, &process)
    };
    let label = "selinux label is specified in config, but selinux is disabled or not supported";
    for out in [
        c.exec(&["--process-label", "x"], &["/bin/true"]),
        c.exec(&["--process", process("selinuxLabel").to_str().expect("UTF-8")], &[]),
    ] {
        assert!(out.code != 0 && out.err.contains(label), "{out:?}");
    }
    for out in [
        c.exec(&["--apparmor", "x"], &["/bin/true"]),
        c.exec(&["--process", process("apparmorProfile").to_str().expect("UTF-8")], &[]),
    ] {
        assert!(out.code != 0 && out.err.contains("apparmor"), "{out:?}");
    }
}
