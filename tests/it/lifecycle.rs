//! create, start, state, kill, delete, run: statuses, exit codes, files, descriptors and environment.

use std::os::fd::AsRawFd;
use std::process::Command;

use serde_json::Value;

use crate::harness::{
    Bundle, Container, Kind, alive, differs, guest, kind, nothing_left, run, runtime, runw_only, skip,
    spawn_with_stdin, unique, until,
};

#[test]
fn version_names_program_and_spec() {
    let out = run(Command::new(runtime()).arg("--version")).ok();
    assert!(out.out.lines().next().is_some_and(|l| l.contains("version ")), "{}", out.out);
    assert!(out.out.lines().any(|l| l.starts_with("spec: ")), "{}", out.out);
    assert!(out.out.lines().any(|l| l.starts_with("commit: ")) || kind() == Kind::Runc, "{}", out.out);
}

#[test]
fn help_lists_every_verb() {
    let out = run(Command::new(runtime()).arg("--help")).ok();
    for verb in ["create", "start", "state", "kill", "delete", "run", "list", "exec", "spec"] {
        assert!(out.out.contains(verb), "{verb} is not in {}", out.out);
    }
}

#[test]
fn run_passes_output_and_exit_status() {
    for code in [0, 1, 42, 126, 255] {
        let c = Container::new(Bundle::sh(&format!("echo out; echo err >&2; exit {code}")));
        let out = c.run();
        assert_eq!((out.code, out.out.as_str(), out.err.as_str()), (code, "out\n", "err\n"));
        nothing_left(&c);
    }
}

#[test]
fn run_reports_a_signal_as_128_plus() {
    // Not pid 1's child but the init itself: pid 1 of a namespace only dies by signals from outside.
    let c = Container::new(Bundle::sh("echo up; exec sleep 100"));
    let mut running = c.spawn_run(&[]);
    until("up", || running.out().contains("up"));
    c.kill("KILL").ok();
    assert_eq!(running.wait().code, 137);
    nothing_left(&c);
}

#[test]
fn every_status_in_order() {
    let mut c = Container::new(Bundle::sh("echo ran; exec sleep 100"));
    c.create();
    let state = c.state();
    assert_eq!(state["status"], "created");
    assert!(alive(c.pid()));
    assert_eq!(c.out(), "", "the program ran before start");
    c.start().wait_out("ran");
    assert_eq!(c.status(), "running");
    c.kill("KILL").ok();
    c.wait_stopped();
    assert_eq!(c.state()["pid"], 0);
    c.delete().ok();
    nothing_left(&c);
}

#[test]
fn state_says_what_engines_read() {
    if differs(Kind::Crun, "1.8 prints rootfs as it was given") {
        return;
    }
    let mut c =
        Container::new(Bundle::sh("sleep 100").edit(|c| c["annotations"] = serde_json::json!({"a.b": "c"})));
    c.create();
    let state = c.state();
    assert_eq!(state["id"], c.id.as_str());
    assert_eq!(state["bundle"], c.bundle.path().to_str().expect("utf-8"));
    assert_eq!(state["rootfs"], c.bundle.rootfs().to_str().expect("utf-8"));
    assert_eq!(state["annotations"]["a.b"], "c");
    let created = state["created"].as_str().expect("created");
    assert!(created.len() >= 20 && created.contains('T') && created.ends_with('Z'), "{created}");
    assert!(state["ociVersion"].as_str().is_some_and(|v| v.starts_with("1.")), "{state}");
}

#[test]
fn list_shows_each_container() {
    let mut c = Container::new(Bundle::sh("sleep 100"));
    c.create();
    let table = c.call(&["list"]).ok().out;
    assert!(table.lines().any(|l| l.contains(&c.id) && l.contains("created")), "{table}");
    let quiet = c.call(&["list", "-q"]).ok().out;
    assert_eq!(quiet.trim(), c.id);
    let json: Value = serde_json::from_str(&c.call(&["list", "--format", "json"]).ok().out).expect("json");
    assert_eq!(json[0]["id"], c.id.as_str());
    assert_eq!(json[0]["status"], "created");
}

#[test]
fn an_empty_list() {
    let c = Container::new(Bundle::sh("true"));
    std::fs::create_dir_all(c.root()).expect("mkdir");
    assert_eq!(c.call(&["list", "-q"]).ok().out.trim(), "");
    if kind() != Kind::Crun {
        assert_eq!(c.call(&["list", "--format", "json"]).ok().out.trim(), "null");
    }
}

#[test]
fn pid_file_holds_the_init() {
    let mut c = Container::new(Bundle::sh("sleep 100"));
    let file = c.bundle.path().join("pid");
    c.create_with(&["--pid-file", file.to_str().expect("utf-8")]).ok();
    let text = std::fs::read_to_string(&file).expect("pid file");
    assert_eq!(text.trim().parse::<i32>().expect("a number"), c.pid());
}

#[test]
fn run_detached_returns_at_once() {
    let c = Container::new(Bundle::sh("sleep 100"));
    let file = c.bundle.path().join("pid");
    c.run_with(&["--detach", "--pid-file", file.to_str().expect("utf-8")]).ok();
    assert_eq!(c.status(), "running");
    assert!(alive(c.pid()));
}

#[test]
fn run_keep_leaves_the_container_for_delete() {
    if differs(Kind::Crun, "1.8 has no --keep") {
        return;
    }
    let c = Container::new(Bundle::sh("exit 5"));
    assert_eq!(c.run_with(&["--keep"]).code, 5);
    assert_eq!(c.status(), "stopped");
    c.delete().ok();
    nothing_left(&c);
}

#[test]
fn kill_speaks_every_spelling() {
    for signal in ["TERM", "SIGTERM", "15"] {
        let c = Container::up(Bundle::sh(
            "trap 'echo caught; exit 0' TERM; echo up; while :; do sleep 0.05; done",
        ));
        c.wait_out("up");
        c.kill(signal).ok();
        c.wait_out("caught").wait_stopped();
    }
}

#[test]
fn kill_defaults_to_sigterm() {
    let c =
        Container::up(Bundle::sh("trap 'echo caught; exit 0' TERM; echo up; while :; do sleep 0.05; done"));
    c.wait_out("up");
    c.call(&["kill", &c.id]).ok();
    c.wait_out("caught").wait_stopped();
}

#[test]
fn kill_all_reaches_every_process() {
    let c = Container::up(Bundle::sh("sleep 1000 & sleep 1001 & echo up; wait"));
    c.wait_out("up");
    let pid = c.pid();
    c.call(&["kill", "--all", &c.id, "KILL"]).ok();
    until("init dies", || !alive(pid));
    c.wait_stopped();
    c.delete().ok();
    nothing_left(&c);
}

#[test]
fn delete_force_ends_a_running_container() {
    let c = Container::up(Bundle::sh("trap '' TERM; sleep 1000 & echo up; wait"));
    c.wait_out("up");
    c.call(&["delete", "--force", &c.id]).ok();
    nothing_left(&c);
}

#[test]
fn delete_of_a_created_container() {
    let mut c = Container::new(Bundle::sh("true"));
    c.create();
    c.call(&["delete", "--force", &c.id]).ok();
    nothing_left(&c);
}

#[test]
fn delete_force_of_nothing_is_fine() {
    if differs(Kind::Crun, "1.8 exits 1") {
        return;
    }
    let c = Container::new(Bundle::sh("true"));
    c.call(&["delete", "--force", "no-such"]).ok();
}

#[test]
fn the_id_can_be_used_again() {
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    for _ in 0..3 {
        c.create().start();
        c.call(&["delete", "--force", &c.id]).ok();
    }
    nothing_left(&c);
}

#[test]
fn the_program_reads_stdin() {
    let c = Container::new(Bundle::sh("cat; echo end"));
    let out = spawn_with_stdin(&mut c.run_command(&[]), b"through a pipe\n").wait();
    assert_eq!(out.out, "through a pipe\nend\n");
}

#[test]
fn foreground_run_forwards_signals() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::USR1, rustix::process::Signal::HUP]
    {
        let c = Container::new(Bundle::sh(
            "trap 'exit 11' TERM; trap 'exit 12' USR1; trap 'exit 13' HUP; echo up; while :; do sleep 0.05; done",
        ));
        let mut running = c.spawn_run(&[]);
        until("up", || running.out().contains("up"));
        let pid = rustix::process::Pid::from_raw(running.pid()).expect("pid");
        rustix::process::kill_process(pid, signal).expect("kill");
        let want = match signal {
            rustix::process::Signal::TERM => 11,
            rustix::process::Signal::USR1 => 12,
            _ => 13,
        };
        assert_eq!(running.wait().code, want, "{signal:?}");
        nothing_left(&c);
    }
}

#[test]
fn preserve_fds_keeps_what_was_asked_for() {
    let c = Container::new(Bundle::sh("cat <&3; echo tail"));
    let file = c.bundle.path().join("given");
    std::fs::write(&file, "through fd 3\n").expect("write");
    let mut command = c.run_command(&["--preserve-fds", "1"]);
    let out = run(with_fd3(&mut command, &file));
    assert_eq!(out.ok().out, "through fd 3\ntail\n");
}

#[test]
fn listen_fds_reach_the_program() {
    if differs(Kind::Crun, "1.8 passes the descriptor without LISTEN_FDS") {
        return;
    }
    let c = Container::new(Bundle::sh("echo fds=$LISTEN_FDS pid=$LISTEN_PID me=$$; cat <&3"));
    let file = c.bundle.path().join("given");
    std::fs::write(&file, "a socket would be here\n").expect("write");
    let mut command = c.run_command(&[]);
    command.env("LISTEN_FDS", "1");
    let out = run(with_fd3(&mut command, &file)).ok();
    assert!(out.out.contains("fds=1"), "{out:?}");
    assert!(out.out.contains("pid=1 me=1"), "{out:?}");
    assert!(out.out.contains("a socket would be here"), "{out:?}");
}

/// sd_listen_fds(3): the variables may have been meant for a process that started ours.
#[test]
fn listen_fds_of_another_process_are_not_passed_on() {
    if differs(Kind::Crun, "1.8 does not look at LISTEN_PID") {
        return;
    }
    for pid in ["LISTEN_PID=1", "LISTEN_PID="] {
        let c = Container::new(Bundle::sh("echo fds=$LISTEN_FDS; ls -l /proc/self/fd"));
        let file = c.bundle.path().join("given");
        std::fs::write(&file, "").expect("write");
        let command = c.run_command(&[]);
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", r#"exec 3<"$0"; exec env "$@""#]).arg(&file).args(["LISTEN_FDS=1", pid]);
        shell.arg(command.get_program()).args(command.get_args());
        let out = run(&mut shell).ok().out;
        assert!(out.starts_with("fds=\n") && !out.contains("given"), "{pid}: {out}");
    }
}

/// Lets the shell put `file` on descriptor 3 of the runtime: std can hand over only 0, 1 and 2.
fn with_fd3<'a>(command: &'a mut Command, file: &std::path::Path) -> &'a mut Command {
    let mut shell = Command::new("/bin/sh");
    shell
        .arg("-c")
        .arg(r#"LISTEN_PID=$$; export LISTEN_PID; exec 3<"$0"; exec "$@""#)
        .arg(file)
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    *command = shell;
    command
}

#[test]
fn the_runtime_environment_stays_outside() {
    let c = Container::new(Bundle::sh("env"));
    let out = run(c.run_command(&[]).env("SECRET_OF_THE_HOST", "x")).ok();
    assert!(!out.out.contains("SECRET_OF_THE_HOST"), "{}", out.out);
}

#[test]
fn no_pivot_still_confines() {
    let c = Container::new(Bundle::sh("ls /; cd /; cd ..; pwd; ls"));
    let out = c.run_with(&["--no-pivot"]).ok();
    assert!(out.out.contains("busybox") || out.out.contains("proc"), "{out:?}");
    assert!(!out.out.contains("boot"), "{out:?}");
}

#[test]
fn init_belongs_to_the_caller_s_subreaper() {
    // This process is not a subreaper: the orphaned init must belong to whoever adopts orphans here, not to runw.
    let mut c = Container::new(Bundle::sh("sleep 100"));
    c.create();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", c.pid())).expect("stat");
    let parent: i32 = stat
        .rsplit(')')
        .next()
        .expect("stat")
        .split_whitespace()
        .nth(1)
        .expect("ppid")
        .parse()
        .expect("ppid");
    let command = std::fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
    let name = runtime().file_name().and_then(|n| n.to_str()).expect("name").to_owned();
    assert_ne!(command.trim(), name, "init {} is still a child of the runtime", c.pid());
}

#[test]
fn spec_writes_once_and_refuses_to_overwrite() {
    let dir = tempfile::tempdir().expect("tempdir");
    run(Command::new(runtime()).arg("spec").current_dir(dir.path())).ok();
    let before = std::fs::read(dir.path().join("config.json")).expect("config.json");
    let again = run(Command::new(runtime()).arg("spec").current_dir(dir.path()));
    assert_eq!(again.code, 1, "{again:?}");
    assert_eq!(std::fs::read(dir.path().join("config.json")).expect("config.json"), before);
}

#[test]
fn the_config_of_spec_runs_unmodified_but_for_the_terminal() {
    let c = Container::new(Bundle::sh("echo alive").edit(|c| {
        c["root"]["readonly"] = serde_json::json!(true);
    }));
    assert_eq!(c.run().ok().out, "alive\n");
}

#[test]
fn features_is_json_with_the_sections_engines_read() {
    if differs(Kind::Crun, "1.8 has no features") {
        return;
    }
    let out = run(Command::new(runtime()).arg("features")).ok();
    let json: Value = serde_json::from_str(&out.out).expect("json");
    for key in ["ociVersionMin", "ociVersionMax", "hooks", "mountOptions", "linux"] {
        assert!(json.get(key).is_some(), "{key} is not in {json}");
    }
    for key in ["namespaces", "capabilities", "cgroup", "seccomp"] {
        assert!(json["linux"].get(key).is_some(), "linux.{key} is not in {json}");
    }
}

#[test]
fn config_flag_takes_another_file() {
    if differs(Kind::Runc, "no --config") {
        return;
    }
    let c = Container::new(Bundle::sh("echo other"));
    let other = c.bundle.path().join("other.json");
    std::fs::rename(c.bundle.path().join("config.json"), &other).expect("rename");
    assert_eq!(c.run_with(&["--config", other.to_str().expect("utf-8")]).ok().out, "other\n");
}

#[test]
fn one_dash_flags_of_go_are_understood() {
    if differs(Kind::Crun, "argp wants two dashes") {
        return;
    }
    let mut command = Command::new(runtime());
    let c = Container::new(Bundle::sh("echo dash"));
    command.arg("-root").arg(c.root()).args(["run", "-bundle"]).arg(c.bundle.path()).arg(&c.id);
    assert_eq!(run(&mut command).ok().out, "dash\n");
}

#[test]
fn bundle_defaults_to_the_working_directory() {
    let c = Container::new(Bundle::sh("echo here"));
    let out = run(c.command(&["run", &c.id]).current_dir(c.bundle.path())).ok();
    assert_eq!(out.out, "here\n");
}

#[test]
fn an_init_survives_the_terminal_of_create_going_away() {
    let mut c = Container::new(Bundle::sh("echo up; exec sleep 100"));
    c.create().start().wait_out("up");
    assert!(alive(c.pid()));
}

#[test]
fn regex_kill_and_delete_of_crun() {
    if differs(Kind::Runc, "no --regex") || (kind() == Kind::Crun && runw_only("a working --regex in 1.8")) {
        return;
    }
    let c = Container::up(Bundle::sh("exec sleep 100"));
    let pattern = format!("^{}$", c.id);
    c.call(&["kill", "--regex", &pattern, "KILL"]).ok();
    c.wait_stopped();
    c.call(&["delete", "--regex", &pattern]).ok();
    nothing_left(&c);
}

#[test]
fn stdio_may_be_a_socket() {
    // What a shim hands over can be anything; only that the program gets the very same one counts.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("socketpair");
    let c = Container::new(Bundle::sh("readlink /proc/self/fd/0"));
    // Detached: in the foreground runc puts pipes of its own between.
    let inode = std::fs::read_link(format!("/proc/self/fd/{}", theirs.as_raw_fd())).expect("readlink");
    let mut command = c.run_command(&["--detach"]);
    let file = c.bundle.path().join("out");
    command.stdin(std::os::fd::OwnedFd::from(theirs)).stdout(std::fs::File::create(&file).expect("file"));
    assert!(command.status().expect("run").success());
    c.wait_stopped();
    assert_eq!(std::fs::read_to_string(&file).expect("out").trim(), inode.to_str().expect("utf-8"));
    drop(ours);
}

/// What is written runs as it is.
#[test]
fn spec_makes_a_bundle_for_a_module() {
    if runw_only("`spec --wasm`") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, module) in [("m\"x.wasm", "hello.wasm"), ("c.wasm", "hello-component.wasm")] {
        let bundle = dir.path().join(module);
        std::fs::create_dir(&bundle).unwrap();
        let file = dir.path().join(name);
        std::fs::copy(guest(module), &file).unwrap();
        let mut spec = Command::new(runtime());
        spec.args(["spec", "--bundle"]).arg(&bundle).arg("--wasm").arg(&file);
        run(&mut spec).ok();
        let id = unique("spec");
        let mut command = Command::new(runtime());
        command.arg("--root").arg(dir.path().join("root")).args(["run", "--bundle"]).arg(&bundle).arg(&id);
        let out = run(&mut command).ok();
        assert!(out.out.to_lowercase().contains("hello"), "{out:?}");
        run(&mut spec).refused(&["exists. Remove it first"]);
    }
    let mut spec = Command::new(runtime());
    spec.current_dir(dir.path()).args(["spec", "--wasm", "/bin/busybox"]);
    run(&mut spec).refused(&["--wasm /bin/busybox", "not a WebAssembly module or component"]);
    let mut spec = Command::new(runtime());
    spec.current_dir(dir.path()).args(["spec", "--wasm", "/nonexistent.wasm"]);
    run(&mut spec).refused(&["--wasm /nonexistent.wasm", "no such file"]);
    assert!(!dir.path().join("config.json").exists() && !dir.path().join("rootfs").exists());
}

#[test]
fn shells_learn_every_verb() {
    if runw_only("completions") {
        return;
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = run(Command::new(runtime()).args(["completion", shell])).ok().out;
        for word in
            ["checkpoint", "restore", "update", "memory-reservation", "console-socket", "no-subreaper"]
        {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
    let script = run(Command::new(runtime()).args(["completion", "bash"])).out;
    // bash itself is asked: `runw che<TAB>`.
    let ask = "COMP_WORDS=(runw che); COMP_CWORD=1; _runw runw che runw; echo ${COMPREPLY[*]}";
    let out = run(Command::new("bash").args(["-c", &format!("{script}\n{ask}")]));
    assert_eq!(out.out.trim(), "checkpoint", "{out:?}");
    run(Command::new(runtime()).args(["completion", "csh"])).refused(&["bash, zsh or fish"]);
}

/// Every flag that the help of an installed peer names.
#[test]
fn every_flag_of_the_peers_is_known() {
    if runw_only("union of flags") {
        return;
    }
    // `spec` writes where it is called.
    let dir = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for peer in ["runc", "crun"] {
        let help = |words: &[&str]| {
            Command::new(peer)
                .args(words)
                .output()
                .ok()
                .map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
        };
        if help(&["--version"]).is_none() {
            skip(&format!("the flags of {peer}, which is not installed"));
            continue;
        }
        for verb in [
            "",
            "checkpoint",
            "create",
            "delete",
            "events",
            "exec",
            "features",
            "kill",
            "list",
            "pause",
            "ps",
            "restore",
            "resume",
            "run",
            "spec",
            "start",
            "state",
            "update",
        ] {
            let words: Vec<&str> = [verb, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
            let text = help(&words).unwrap_or_default();
            // Only lines that list options; `-f value, --format value` and `-b, --bundle=DIR`.
            let lines = text.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
            let flags = lines.flat_map(|line| {
                line.split("  ").next().unwrap_or_default().split(", ").map(|flag| {
                    let end = flag.find([' ', '=', '[']).unwrap_or(flag.len());
                    flag[..end].to_owned()
                })
            });
            for flag in flags.filter(|flag| flag.starts_with('-')).collect::<Vec<_>>() {
                let words: Vec<&str> = [verb, &flag].into_iter().filter(|word| !word.is_empty()).collect();
                let out = run(Command::new(runtime()).args(words).current_dir(dir.path()));
                assert!(!out.err.contains("provided but not defined"), "{peer} {verb} {flag}: {}", out.err);
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "only {seen} flags were found");
}
