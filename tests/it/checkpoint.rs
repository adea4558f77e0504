//! Checkpoint and restore through CRIU. What works is what works under runc on the same kernel.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{
    Bundle, ConsoleSocket, Container, Kind, Out, Running, alive, criu_path, differs, kind, nothing_left, run,
    runw_only, script, skip, spawn, unique, until,
};

/// Counts in /tmp/n, a line for each number, and on its standard output. The file is never empty again: a process may be stopped
/// anywhere. Without children: one that is just ending is "in unexpected state" to CRIU.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i; echo $i >>/tmp/n; \
    j=0; while [ $j -lt 40000 ]; do j=$((j+1)); done; done";

fn no_criu() -> bool {
    let none = criu_path().is_none();
    if none {
        skip("no CRIU that works here");
    }
    none
}

/// A command of the runtime with CRIU on its PATH. Without a stream that CRIU cannot dump: a file of the host's.
fn call(c: &Container, words: &[&str]) -> Command {
    let mut command = c.command(words);
    command.env("PATH", criu_path().expect("CRIU"));
    command
}

fn up(bundle: Bundle) -> Container {
    let c = Container::new(bundle);
    let mut command = c.run_command(&["--detach"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().expect("run").success());
    c
}

fn images(c: &Container) -> PathBuf {
    c.bundle.path().join("images")
}

fn with_images<'a>(verb: &'a str, c: &Container, flags: &[&'a str]) -> Vec<String> {
    let mut words = vec![verb.to_owned(), "--image-path".into(), images(c).display().to_string()];
    words.extend(["--work-path".into(), c.bundle.path().join("work").display().to_string()]);
    words.extend(flags.iter().map(|flag| (*flag).to_owned()));
    words
}

fn checkpoint(c: &Container, flags: &[&str]) -> Out {
    let words = with_images("checkpoint", c, flags);
    let words: Vec<&str> = words.iter().map(String::as_str).chain([c.id.as_str()]).collect();
    run(&mut call(c, &words))
}

fn restore_command(c: &Container, flags: &[&str]) -> Command {
    let bundle = c.bundle.path().display().to_string();
    let words = with_images("restore", c, flags);
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["--bundle", &bundle, &c.id]).collect();
    let mut command = call(c, &words);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Detached, with /dev/null for its streams; what it says is in `restore.err`.
fn restore(c: &Container, flags: &[&str]) -> Out {
    let err = c.bundle.path().join("restore.err");
    let flags: Vec<&str> = flags.iter().copied().chain(["--detach"]).collect();
    let mut command = restore_command(c, &flags);
    command.stderr(std::fs::File::create(&err).expect("restore.err"));
    let code = command.status().expect("restore").code().unwrap_or(-1);
    Out { code, out: String::new(), err: std::fs::read_to_string(err).expect("restore.err") }
}

/// Whether the machine is what stopped CRIU, under any runtime.
fn criu_said(c: &Container, text: &str) -> bool {
    std::fs::read_to_string(c.bundle.path().join("work/dump.log")).is_ok_and(|log| log.contains(text))
}

fn count(c: &Container) -> u64 {
    let text = std::fs::read_to_string(c.bundle.rootfs().join("tmp/n")).unwrap_or_default();
    text.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0)
}

fn counts_on(c: &Container, from: u64) {
    until("it counts on", || count(c) > from + 3);
}

#[test]
fn a_container_goes_on_where_it_was() {
    if no_criu() {
        return;
    }
    let c = up(Bundle::sh(COUNTER));
    counts_on(&c, 0);
    let old = c.pid();
    checkpoint(&c, &[]).ok();
    nothing_left(&c);
    let stopped_at = count(&c);
    assert!(stopped_at >= 4 && !alive(old));
    let streams: Vec<String> =
        serde_json::from_slice(&std::fs::read(images(&c).join("descriptors.json")).unwrap()).unwrap();
    assert_eq!(streams, ["/dev/null"; 3]);

    let pid_file = c.bundle.path().join("pid");
    restore(&c, &["--pid-file", pid_file.to_str().unwrap()]).ok();
    counts_on(&c, stopped_at);
    let state = c.state();
    assert_eq!((&state["status"], &state["bundle"]), (&json!("running"), &json!(c.bundle.path())));
    assert_eq!(std::fs::read_to_string(pid_file).unwrap(), c.pid().to_string());
    // It is a container like any other.
    assert_eq!(c.call(&["exec", &c.id, "cat", "/proc/1/comm"]).ok().out.trim(), "sh");
    c.call(&["pause", &c.id]).ok();
    assert_eq!(c.status(), "paused");
    c.call(&["resume", &c.id]).ok();
    let pids: Vec<i32> = serde_json::from_str(&c.call(&["ps", "-f", "json", &c.id]).ok().out).unwrap();
    assert!(pids.contains(&c.pid()));
    c.kill("KILL").ok();
    c.wait_stopped();
    c.call(&["delete", &c.id]).ok();
    nothing_left(&c);
}

#[test]
fn it_can_be_left_running_and_be_dumped_while_paused() {
    if no_criu() {
        return;
    }
    let c = up(Bundle::sh(COUNTER));
    let pid = c.pid();
    checkpoint(&c, &["--leave-running"]).ok();
    assert_eq!((c.status().as_str(), c.pid()), ("running", pid));
    counts_on(&c, count(&c));
    c.call(&["pause", &c.id]).ok();
    checkpoint(&c, &[]).ok();
    nothing_left(&c);
    let from = count(&c);
    restore(&c, &[]).ok();
    counts_on(&c, from);
}

#[test]
fn its_pipes_become_those_of_the_restore() {
    if no_criu() {
        return;
    }
    let c = Container::new(Bundle::sh(COUNTER));
    let (mut first, writer) = std::io::pipe().unwrap();
    let mut command = c.run_command(&["--detach"]);
    command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(writer);
    assert!(command.status().unwrap().success());
    drop(command);
    counts_on(&c, 0);
    checkpoint(&c, &[]).ok();
    let mut said = String::new();
    // All writers are gone: this ends.
    first.read_to_string(&mut said).unwrap();
    let last: u64 = said.lines().last().unwrap().parse().unwrap();

    let (mut second, writer) = std::io::pipe().unwrap();
    let mut command = restore_command(&c, &["--detach"]);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    assert!(command.status().unwrap().success());
    drop(command);
    counts_on(&c, last);
    c.kill("KILL").ok();
    let mut said = String::new();
    second.read_to_string(&mut said).unwrap();
    let next: u64 = said.lines().next().unwrap().parse().unwrap();
    assert!(next == last + 1 || next == last, "{last} was followed by {next}");
}

#[test]
fn its_terminal_comes_over_the_new_console_socket() {
    if no_criu() {
        return;
    }
    let c = Container::new(
        Bundle::sh("while read line; do echo got $line; done")
            .edit(|c| c["process"]["terminal"] = json!(true)),
    );
    let sockets = [c.bundle.outside("first"), c.bundle.outside("second")].map(|dir| ConsoleSocket::new(&dir));
    let flag = |socket: &ConsoleSocket| socket.path.display().to_string();
    let mut command = c.run_command(&["--detach", "--console-socket", &flag(&sockets[0])]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success());
    let (master, _) = sockets[0].receive();
    checkpoint(&c, &[]).ok();
    drop(master);
    restore(&c, &["--console-socket", &flag(&sockets[1])]).ok();
    let (mut master, _) = sockets[1].receive();
    std::io::Write::write_all(&mut master, b"hello\n").unwrap();
    let mut said = String::new();
    let mut buffer = [0; 256];
    until("the shell answers on the new terminal", || {
        let read = master.read(&mut buffer).expect("the terminal");
        said.push_str(&String::from_utf8_lossy(&buffer[..read]));
        said.contains("got hello")
    });
}

#[test]
fn a_foreground_restore_ends_as_the_container_does() {
    if no_criu() {
        return;
    }
    let c = up(Bundle::sh("trap 'exit 7' TERM; touch /tmp/ready; while :; do sleep 0.05; done"));
    until("it is ready", || c.bundle.rootfs().join("tmp/ready").exists());
    checkpoint(&c, &[]).ok();
    let mut child = restore_command(&c, &[]).stderr(Stdio::null()).spawn().unwrap();
    let running = || c.call(&["state", &c.id]).out.contains("\"status\": \"running\"");
    until("it runs again", running);
    // Signals are passed on.
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(7));
    nothing_left(&c);
}

/// A process that keeps namespaces for others to join.
fn keeper(flags: &[&str]) -> Running {
    let running =
        spawn(Command::new("unshare").args(flags).args(["sh", "-c", "ip link set lo up; exec sleep 1000"]));
    until("the keeper is in its namespaces", || {
        std::fs::read(format!("/proc/{}/cmdline", running.pid())).is_ok_and(|line| line.starts_with(b"sleep"))
    });
    running
}

fn namespace_of(pid: i32, kind: &str) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/ns/{kind}")).unwrap().ino()
}

#[test]
fn a_network_namespace_of_the_engine_s_is_joined_again() {
    if no_criu() {
        return;
    }
    let (first, second) = (keeper(&["--net"]), keeper(&["--net"]));
    let path = |keeper: &Running| PathBuf::from(format!("/proc/{}/ns/net", keeper.pid()));
    let mut c = up(Bundle::sh(COUNTER).namespace("network", Some(&path(&first))));
    checkpoint(&c, &[]).ok();
    // As an engine does it: the restored container's namespace is another one.
    let namespaces = c.bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.iter_mut().find(|n| n["type"] == "network").unwrap()["path"] = json!(path(&second));
    c.bundle.save();
    let from = count(&c);
    restore(&c, &[]).ok();
    counts_on(&c, from);
    assert_eq!(namespace_of(c.pid(), "net"), namespace_of(second.pid(), "net"));
}

#[test]
fn connections_need_leave_and_survive() {
    if no_criu() {
        return;
    }
    let net = keeper(&["--net"]);
    let path = PathBuf::from(format!("/proc/{}/ns/net", net.pid()));
    let talk = "(while :; do sleep 1; done) | nc -l -p 4321 >/tmp/heard & \
                sleep 0.5; (while :; do echo x; sleep 0.1; done) | nc 127.0.0.1 4321 & wait";
    let c = up(Bundle::sh(talk).namespace("network", Some(&path)));
    let heard = || std::fs::metadata(c.bundle.rootfs().join("tmp/heard")).map_or(0, |m| m.len());
    until("they talk", || heard() > 6);
    checkpoint(&c, &[]).refused(&["criu failed"]);
    assert_eq!(c.status(), "running");
    let out = checkpoint(&c, &["--tcp-established"]);
    if criu_said(&c, "sockets: Can't get") {
        return skip("this kernel does not tell all that CRIU asks of a TCP connection");
    }
    out.ok();
    let before = heard();
    restore(&c, &["--tcp-established"]).ok();
    until("they talk on", || heard() > before + 6);
}

#[test]
fn locks_need_leave() {
    if no_criu() {
        return;
    }
    let code = r#"
        #include <fcntl.h>
        #include <sys/file.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            int fd = open("/tmp/lock", O_CREAT | O_RDWR, 0600);
            if (flock(fd, LOCK_EX | LOCK_NB)) return 9;
            if (argc > 1) return 0;
            close(open("/tmp/ready", O_CREAT | O_RDWR, 0600));
            for (;;) pause();
        }"#;
    let c = up(Bundle::new(&["/bin/lock"]).program("lock", code));
    until("it holds the lock", || c.bundle.rootfs().join("tmp/ready").exists());
    checkpoint(&c, &[]).refused(&["criu failed"]);
    assert_eq!(c.status(), "running");
    checkpoint(&c, &["--file-locks"]).ok();
    restore(&c, &["--file-locks"]).ok();
    let taken = c.call(&["exec", &c.id, "/bin/lock", "try"]);
    assert_eq!(taken.code, 9, "{taken:?}");
}

#[test]
fn binds_are_made_again_and_their_places_too() {
    if no_criu() || differs(Kind::Crun, "crun is not built with CRIU on Debian 12") {
        return;
    }
    let bundle = Bundle::sh(COUNTER);
    let (data, other) = (bundle.outside("data"), bundle.outside("other"));
    std::fs::write(data.join("word"), "bound").unwrap();
    std::fs::create_dir(data.join("inner")).unwrap();
    std::fs::write(other.join("word"), "within").unwrap();
    std::os::unix::fs::symlink("real", bundle.rootfs().join("link")).unwrap();
    std::fs::create_dir(bundle.rootfs().join("real")).unwrap();
    let mut c = up(bundle
        .bind(&data, "/link/data", &["rbind", "ro"])
        .bind(&other, "/link/data/inner", &["bind"])
        .bind(&data.join("word"), "/etc/word", &["bind", "ro"]));
    counts_on(&c, 0);
    checkpoint(&c, &[]).ok();
    // A root file system that has none of the mount points, as an engine unpacks it anew.
    for made in ["real/data", "etc/word"] {
        let made = c.bundle.rootfs().join(made);
        let removed = if made.is_dir() { std::fs::remove_dir(&made) } else { std::fs::remove_file(&made) };
        removed.unwrap();
    }
    // Engines keep a container's files elsewhere on another machine.
    let moved = c.bundle.path().join("moved");
    std::fs::rename(&other, &moved).unwrap();
    let mounts = c.bundle.config["mounts"].as_array_mut().unwrap();
    let inner = mounts.iter_mut().find(|m| m["destination"] == "/link/data/inner").unwrap();
    inner["source"] = json!(moved);
    c.bundle.save();
    restore(&c, &[]).ok();
    let cat = |path: &str| c.call(&["exec", &c.id, "cat", path]).ok().out;
    assert_eq!((cat("/real/data/word").as_str(), cat("/real/data/inner/word").as_str()), ("bound", "within"));
    assert_eq!(cat("/etc/word"), "bound");
    let written = c.call(&["exec", &c.id, "sh", "-c", "echo x >/real/data/word"]);
    assert!(written.err.contains("Read-only"), "{written:?}");
    drop(c.call(&["delete", "--force", &c.id]).ok());
    nothing_left(&c);
}

#[test]
fn hooks_fill_the_new_namespaces() {
    if no_criu() {
        return;
    }
    let bundle = Bundle::sh(COUNTER);
    let log = bundle.outside("log");
    let hook = bundle.path().join("hook");
    script(&hook, "cat >$2/$1.json; readlink /proc/self/ns/net >$2/$1.ns");
    let entry = |name: &str| json!([{"path": hook, "args": ["hook", name, log]}]);
    let c = up(bundle.edit(|c| {
        c["hooks"] = json!({"prestart": entry("prestart"), "createRuntime": entry("createRuntime")})
    }));
    checkpoint(&c, &[]).ok();
    for name in ["prestart", "createRuntime"] {
        std::fs::remove_file(log.join(format!("{name}.json"))).unwrap();
    }
    restore(&c, &[]).ok();
    for name in ["prestart", "createRuntime"] {
        let state: Value =
            serde_json::from_slice(&std::fs::read(log.join(format!("{name}.json"))).unwrap()).unwrap();
        assert_eq!((&state["id"], &state["pid"]), (&json!(c.id), &json!(c.pid())), "{name}");
    }
}

#[test]
fn a_failing_hook_fails_the_restore_and_leaves_nothing() {
    if no_criu() {
        return;
    }
    let mut c = up(Bundle::sh(COUNTER));
    checkpoint(&c, &[]).ok();
    let hook = c.bundle.path().join("hook");
    script(&hook, "echo no network today >&2; exit 3");
    c.bundle.config["hooks"] = json!({"prestart": [{"path": hook}]});
    c.bundle.save();
    restore(&c, &[]).refused(&["hook", "no network today"]);
    nothing_left(&c);
}

#[test]
fn it_comes_back_in_the_cgroup_and_under_the_limits_of_its_bundle() {
    if no_criu() {
        return;
    }
    let mut c = up(Bundle::sh(COUNTER));
    checkpoint(&c, &[]).ok();
    c.id = unique("again");
    c.bundle.id.clone_from(&c.id);
    c.bundle.config["linux"]["cgroupsPath"] = json!(format!("/runw-test/{}", c.id));
    c.bundle.config["linux"]["resources"]["pids"] = json!({"limit": 123});
    c.bundle.save();
    restore(&c, &[]).ok();
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).unwrap();
    for line in text.lines() {
        assert!(line.ends_with(&format!("/runw-test/{}", c.id)), "{text}");
    }
    let limit = ["/sys/fs/cgroup/pids/runw-test", "/sys/fs/cgroup/runw-test"]
        .iter()
        .find_map(|dir| std::fs::read_to_string(Path::new(dir).join(&c.id).join("pids.max")).ok());
    assert_eq!(limit.unwrap().trim(), "123");
}

#[test]
fn user_and_cgroup_namespaces_come_back() {
    if no_criu() {
        return;
    }
    let c = up(Bundle::sh(COUNTER).namespace("cgroup", None));
    counts_on(&c, 0);
    checkpoint(&c, &[]).ok();
    let from = count(&c);
    restore(&c, &[]).ok();
    counts_on(&c, from);
    let own = c.call(&["exec", &c.id, "cat", "/proc/1/cgroup"]).ok().out;
    assert!(own.lines().all(|line| line.ends_with(":/")), "{own}");
    drop(c);

    let c = up(Bundle::sh("while :; do sleep 0.05; done").user_namespace());
    let out = checkpoint(&c, &[]);
    if criu_said(&c, "Can't get rlimit") {
        return skip("CRIU needs CAP_SYS_RESOURCE to dump a user namespace");
    }
    out.ok();
    // CRIU reads them again as the namespace's root.
    let opened = Command::new("chmod").args(["-R", "a+rX"]).arg(images(&c)).status().unwrap();
    assert!(opened.success());
    restore(&c, &[]).ok();
    assert_eq!(c.call(&["exec", &c.id, "id", "-u"]).ok().out.trim(), "0");
    assert_eq!(std::fs::metadata(format!("/proc/{}", c.pid())).unwrap().uid(), 100_000);
}

#[test]
fn the_annotation_s_configuration_wins() {
    if no_criu() {
        return;
    }
    let bundle = Bundle::sh(COUNTER);
    let config = bundle.path().join("criu.conf");
    std::fs::write(&config, "log-file=by-annotation.log\n").unwrap();
    let c = up(bundle.edit(|c| c["annotations"] = json!({"org.criu.config": config})));
    checkpoint(&c, &[]).ok();
    assert!(c.bundle.path().join("work/by-annotation.log").exists());
}

#[test]
fn pre_dump_does_what_the_kernel_can() {
    if no_criu() {
        return;
    }
    let c = up(Bundle::sh(COUNTER));
    let mut check = Command::new("criu");
    check.args(["check", "--feature", "mem_dirty_track"]).env("PATH", criu_path().unwrap());
    let can = check.output().unwrap().status.success();
    let before = with_images("checkpoint", &c, &["--pre-dump"]);
    let before: Vec<String> = before.iter().map(|word| word.replace("/images", "/before")).collect();
    let before: Vec<&str> = before.iter().map(String::as_str).chain([c.id.as_str()]).collect();
    let out = run(&mut call(&c, &before));
    if !can {
        out.refused(&["CRIU is missing features"]);
        assert_eq!(c.status(), "running");
        return skip("the rest of it: this kernel does not track memory");
    }
    out.ok();
    assert_eq!(c.status(), "running");
    checkpoint(&c, &["--parent-path", "../before"]).ok();
    let from = count(&c);
    restore(&c, &[]).ok();
    counts_on(&c, from);
}

#[test]
fn what_cannot_be_dumped_is_refused_and_goes_on() {
    if no_criu() {
        return;
    }
    let mut c = Container::new(Bundle::sh(COUNTER));
    c.create();
    checkpoint(&c, &[]).refused(&["Container cannot be checkpointed in created state"]);
    c.start();
    // Its output is a file of the host's.
    checkpoint(&c, &[]).refused(&["criu failed: type", "log file:"]);
    assert_eq!(c.status(), "running");
    counts_on(&c, count(&c));
    checkpoint(&c, &["--parent-path", "/abs"]).refused(&["--parent-path must be relative"]);
    checkpoint(&c, &["--parent-path", "../nowhere"]).refused(&["invalid --parent-path", "no such file"]);
    checkpoint(&c, &["--manage-cgroups-mode", "some"]).refused(&["nvalid manage cgroups mode"]);
    checkpoint(&c, &["--page-server", "nowhere"]).refused(&["Use --page-server ADDRESS:PORT"]);
    checkpoint(&c, &["--empty-ns", "pid"]).refused(&["pid"]);
    if kind() == Kind::Runw {
        checkpoint(&c, &["--lazy-pages", "--status-fd", "77"]).refused(&["invalid --status-fd argument 77"]);
        checkpoint(&c, &["--network-lock", "some"]).refused(&["unknown network lock method"]);
    }
    c.kill("KILL").ok();
    c.wait_stopped();
    checkpoint(&c, &[]).refused(&["Container cannot be checkpointed in stopped state"]);
}

#[test]
fn a_restore_that_cannot_be_leaves_nothing() {
    if no_criu() {
        return;
    }
    let c = Container::new(Bundle::sh(COUNTER));
    restore(&c, &[]).refused(&["no such file or directory"]);
    nothing_left(&c);
    // runc has made it.
    std::fs::create_dir_all(images(&c)).unwrap();
    std::fs::write(images(&c).join("descriptors.json"), "[]").unwrap();
    restore(&c, &[]).refused(&["criu failed: type"]);
    nothing_left(&c);
    std::fs::write(images(&c).join("descriptors.json"), "{").unwrap();
    restore(&c, &[]).refused(&[if kind() == Kind::Runw { "descriptors.json" } else { "unexpected end" }]);
    nothing_left(&c);
    drop(c);
    let c = up(Bundle::sh(COUNTER));
    checkpoint(&c, &["--leave-running"]).ok();
    restore(&c, &[]).refused(&["container with given ID already exists"]);
    assert_eq!(c.status(), "running");
}

#[test]
fn without_criu_it_says_so() {
    if kind() != Kind::Runw {
        return skip("only runw is asked for its words");
    }
    let c = up(Bundle::sh(COUNTER));
    let words = with_images("checkpoint", &c, &[]);
    let words: Vec<&str> = words.iter().map(String::as_str).chain([c.id.as_str()]).collect();
    let out = run(c.command(&words).env("PATH", "/nonexistent"));
    out.refused(&["criu: executable file not found in $PATH"]);
    assert_eq!(c.status(), "running");
}

#[test]
fn a_wasm_container_is_refused() {
    if runw_only("wasm") {
        return;
    }
    let mut c = Container::new(Bundle::wasm("probe.wasm", &["spin"]));
    c.create().start();
    let out = c.call(&["checkpoint", "--image-path", c.bundle.path().join("i").to_str().unwrap(), &c.id]);
    out.refused(&["a WebAssembly container cannot be checkpointed"]);
    assert!(!c.bundle.path().join("i").exists());
}

/// podman's probes (libpod/oci_conmon_common.go, supportsCheckpoint and its restore's).
#[test]
fn engines_find_it() {
    let c = Container::new(Bundle::sh("true"));
    c.call(&["checkpoint", "--help"]).ok();
    c.call(&["restore", "--lsm-mount-context"]).refused(&["flag needs an argument"]);
}

/// What CRIU says in its log of what it was told to do (criu/config.c, check_options).
#[test]
fn what_is_passed_on_reaches_criu() {
    if no_criu() {
        return;
    }
    let work = |c: &Container, name: &str| std::fs::read_to_string(c.bundle.path().join("work").join(name));
    let dump = [
        ("--tcp-established", "Will dump/restore TCP connections"),
        ("--link-remap", "Will allow link remaps on FS"),
        ("--tcp-skip-in-flight", "Will skip in-flight TCP connections"),
    ];
    let c = up(Bundle::sh(COUNTER));
    counts_on(&c, 0);
    for (flag, said) in dump {
        if flag != "--tcp-established" && kind() == Kind::Runc {
            continue; // They came with runc 1.2.
        }
        checkpoint(&c, &["--leave-running", flag]).ok();
        let log = work(&c, "dump.log").unwrap();
        assert!(log.contains(said), "{flag}: {log}");
    }
    for (flag, said) in [
        ("--tcp-established", "Will dump/restore TCP connections"),
        ("--tcp-close", "Will drop all TCP connections on restore"),
    ] {
        if flag == "--tcp-close" && kind() == Kind::Runc {
            continue; // It came with runc 1.3.
        }
        // Anew each time: CRIU takes an open file only at the size it had, and the container went on writing.
        checkpoint(&c, &[]).ok();
        let log = work(&c, "dump.log").unwrap();
        assert!(dump.iter().all(|(_, said)| !log.contains(said)), "{log}");
        let from = count(&c);
        restore(&c, &[flag]).ok();
        let log = work(&c, "restore.log").unwrap();
        assert!(log.contains(said), "{flag}: {log}");
        counts_on(&c, from);
    }
}

#[test]
fn every_way_to_manage_cgroups_brings_it_back_into_its_own() {
    if no_criu() || differs(Kind::Runc, "1.1.5 passes the mode on at checkpoint only, and knows no `ignore`")
    {
        return;
    }
    for mode in ["soft", "full", "strict", "ignore"] {
        let c = up(Bundle::sh(COUNTER).edit(|c| c["linux"]["resources"]["pids"] = json!({"limit": 50})));
        counts_on(&c, 0);
        checkpoint(&c, &["--manage-cgroups-mode", mode]).ok();
        let from = count(&c);
        let flags = ["--manage-cgroups-mode", mode];
        // Its cgroup is made first, which is what CRIU's `strict` forbids.
        let flags = if mode == "strict" {
            restore(&c, &flags).refused(&["Abort restore of existing cgroups"]);
            nothing_left(&c);
            &[]
        } else {
            &flags[..]
        };
        restore(&c, flags).ok();
        counts_on(&c, from);
        let inside = std::fs::read_to_string(c.cgroup("pids").join("cgroup.procs")).unwrap();
        assert!(inside.lines().any(|pid| pid == c.pid().to_string()), "{mode}: {inside}");
        assert_eq!(c.limit("pids", "pids.max"), "50", "{mode}");
        c.call(&["delete", "--force", &c.id]).ok();
        nothing_left(&c);
    }
}

/// Open, with another name, and the name it was opened by gone.
const REMAPPED: &str = r#"
    #include <fcntl.h>
    #include <unistd.h>
    int main(void) {
        int fd = open("/tmp/opened", O_CREAT | O_RDWR, 0600);
        if (link("/tmp/opened", "/tmp/other") || unlink("/tmp/opened")) return 9;
        for (;;) { write(fd, "x", 1); usleep(20000); }
    }"#;

#[test]
fn a_file_whose_name_is_gone_needs_leave_to_be_linked() {
    if no_criu() || differs(Kind::Runc, "1.1.5 has no --link-remap") {
        return;
    }
    let c = up(Bundle::new(&["/bin/remap"]).program("remap", REMAPPED));
    let written = || std::fs::metadata(c.bundle.rootfs().join("tmp/other")).map_or(0, |file| file.len());
    until("it writes", || written() > 3);
    checkpoint(&c, &[]).refused(&["criu failed"]);
    assert_eq!(c.status(), "running");
    checkpoint(&c, &["--link-remap"]).ok();
    let before = written();
    restore(&c, &[]).ok();
    until("it writes on, into the same file", || written() > before + 3);
}

#[test]
fn memory_that_was_restored_is_dropped_from_the_images_when_asked() {
    if no_criu() || differs(Kind::Runc, "restore --auto-dedup opens the images for reading only in 1.1") {
        return;
    }
    let held = |c: &Container| std::fs::metadata(images(c).join("pages-1.img")).unwrap().blocks();
    let c = up(Bundle::sh(COUNTER));
    counts_on(&c, 0);
    checkpoint(&c, &[]).ok();
    let before = held(&c);
    let from = count(&c);
    restore(&c, &["--auto-dedup"]).ok();
    counts_on(&c, from);
    assert!(before > 0 && held(&c) < before, "{before} blocks, then {}", held(&c));
}

#[test]
fn memory_goes_to_a_page_server() {
    if no_criu() {
        return;
    }
    let c = up(Bundle::sh(COUNTER));
    counts_on(&c, 0);
    let pages = c.bundle.outside("pages");
    // CRIU takes no 0 for "any": one that is free now.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut server = Command::new("criu");
    server.args(["page-server", "--address", "127.0.0.1", "--port", &port, "-v4", "-o", "server.log"]);
    server.arg("--images-dir").arg(&pages).env("PATH", criu_path().unwrap());
    let mut server = spawn(&mut server);
    let log = || std::fs::read_to_string(pages.join("server.log")).unwrap_or_default();
    until("the page server listens", || log().contains("Starting page server"));
    checkpoint(&c, &["--page-server", &format!("127.0.0.1:{port}")]).ok();
    server.wait().ok();
    assert!(!images(&c).join("pages-1.img").exists());
    for file in std::fs::read_dir(&pages).unwrap().map(Result::unwrap) {
        if file.file_name().to_str().unwrap().starts_with("page") {
            std::fs::copy(file.path(), images(&c).join(file.file_name())).unwrap();
        }
    }
    let from = count(&c);
    restore(&c, &[]).ok();
    counts_on(&c, from);
}

#[test]
fn a_pid_namespace_of_the_engine_s_is_joined_again() {
    if no_criu() {
        return;
    }
    let keep = || {
        let keeper =
            spawn(Command::new("unshare").args(["--pid", "--fork", "--kill-child", "sleep", "1000"]));
        let pid = keeper.pid();
        let children =
            move || std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        until("the keeper has made its namespace", || !children().is_empty());
        let path = PathBuf::from(format!("/proc/{}/ns/pid", children().trim()));
        (keeper, path)
    };
    let (first, second) = (keep(), keep());
    let mut c = up(Bundle::sh(COUNTER).namespace("pid", Some(&first.1)));
    counts_on(&c, 0);
    checkpoint(&c, &[]).ok();
    let namespaces = c.bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.iter_mut().find(|n| n["type"] == "pid").unwrap()["path"] = json!(second.1);
    c.bundle.save();
    let from = count(&c);
    restore(&c, &[]).ok();
    counts_on(&c, from);
    assert_eq!(namespace_of(c.pid(), "pid"), std::fs::metadata(&second.1).unwrap().ino());
}

#[test]
fn security_labels_of_a_restore_reach_criu() {
    if no_criu() || differs(Kind::Runc, "1.1.5 asks its own LSM first") {
        return;
    }
    if Path::new("/sys/kernel/security/apparmor").exists() || Path::new("/sys/fs/selinux").exists() {
        return skip("what CRIU says to a label is known without a security module only");
    }
    let c = up(Bundle::sh(COUNTER));
    counts_on(&c, 0);
    checkpoint(&c, &[]).ok();
    for (profile, said) in [("apparmor:x", "apparmor"), ("selinux:x", "selinux")] {
        restore(&c, &["--lsm-profile", profile]).refused(&["criu failed"]);
        let log = std::fs::read_to_string(c.bundle.path().join("work/restore.log")).unwrap();
        assert!(log.to_lowercase().contains(&format!("{said} lsm specified but")), "{log}");
        nothing_left(&c);
    }
    let from = count(&c);
    restore(&c, &["--lsm-mount-context", "system_u:object_r:container_file_t:s0"]).ok();
    counts_on(&c, from);
}

#[test]
fn network_devices_are_moved_again_into_the_new_namespace() {
    if no_criu() || runw_only("linux.netDevices") {
        return;
    }
    let host = keeper(&["--net"]);
    let within = |command: &Command| {
        let mut inside = Command::new("nsenter");
        inside
            .args(["-t", &host.pid().to_string(), "--net"])
            .arg(command.get_program())
            .args(command.get_args());
        inside.env("PATH", criu_path().unwrap());
        inside
    };
    let ip = |words: &str| run(&mut within(Command::new("ip").args(words.split(' ')))).code;
    let device = || ip("link add d0 type veth peer name d1") == 0 && ip("addr add 10.98.0.1/24 dev d0") == 0;
    if !device() {
        return skip("no veth");
    }
    let c = Container::new(
        Bundle::sh(COUNTER).edit(|c| c["linux"]["netDevices"] = json!({"d0": {"name": "e0"}})),
    );
    let mut create = within(&c.run_command(&["--detach"]));
    create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(create.status().unwrap().success());
    let address = || c.call(&["exec", &c.id, "ip", "-o", "addr", "show", "e0"]).ok().out;
    assert!(address().contains("10.98.0.1/24"));
    checkpoint(&c, &[]).ok();
    let from = count(&c);
    let again = |c: &Container| {
        let mut command = within(&restore_command(c, &["--detach"]));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(c.bundle.path().join("restore.err")).unwrap());
        command.status().unwrap().success()
    };
    // It has gone with the namespace it was in: an engine makes another.
    assert!(!again(&c));
    let err = std::fs::read_to_string(c.bundle.path().join("restore.err")).unwrap();
    assert!(err.contains("linux.netDevices.d0"), "{err}");
    nothing_left(&c);
    assert!(
        device() && again(&c),
        "{}",
        std::fs::read_to_string(c.bundle.path().join("restore.err")).unwrap()
    );
    counts_on(&c, from);
    assert!(address().contains("10.98.0.1/24"));
    c.call(&["delete", "--force", &c.id]).ok();
}
