//! What a review of runw found open, held shut: a container that reaches for the host's files, an unprivileged
//! neighbour on the host, and the corners where a caller used to runc would be surprised.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Bundle, ConsoleSocket, Container, Kind, Out, Running, cap, differs, guest, kind, nothing_left, run,
    runtime, runw_only, script, skip, spawn, unique, until,
};

/// Every one that matters on the way out of a container.
const ALL: [&str; 14] = [
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_CHOWN",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_LINUX_IMMUTABLE",
];

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Length, mode, owner and bytes of the host's files that a wasm container holds open or runs from; not the cache's
/// counts, which every start changes.
fn host_files() -> BTreeMap<PathBuf, (u32, u32, Vec<u8>)> {
    let mut todo = vec![PathBuf::from("/var/cache/runw"), runtime().to_owned(), "/dev/null".into()];
    let mut found = BTreeMap::new();
    while let Some(path) = todo.pop() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        if path.ends_with("hits") || path.ends_with("misses") {
            continue;
        }
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).expect("list").flatten().map(|entry| entry.path()));
            continue;
        }
        // What others add to the cache's statistics meanwhile is no harm either.
        if path.ends_with("hits") || path.ends_with("misses") {
            continue;
        }
        let bytes = if meta.is_file() { std::fs::read(&path).expect("read") } else { Vec::new() };
        found.insert(path, (meta.mode(), meta.uid(), bytes));
    }
    found
}

/// Other tests compile and use the cache at the same time: new files are no harm, changed ones are.
#[track_caller]
fn unharmed(before: &BTreeMap<PathBuf, (u32, u32, Vec<u8>)>) {
    let after = host_files();
    for (path, (mode, uid, bytes)) in before {
        let Some(now) = after.get(path) else { continue };
        assert_eq!((now.0, now.1), (*mode, *uid), "mode and owner of {}", path.display());
        assert!(now.2 == *bytes, "bytes of {}", path.display());
    }
}

/// The cache's file that `pid` has open, by device and inode: a detached view of it has no path to compare.
fn open_cache_files(pid: i32) -> usize {
    let ids = |path: &Path| path.metadata().ok().map(|meta| meta.ino());
    let known: Vec<u64> =
        host_files().keys().filter(|p| p.starts_with("/var/cache")).filter_map(|p| ids(p)).collect();
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("fds").flatten();
    fds.filter_map(|fd| ids(&fd.path())).filter(|ino| known.contains(ino)).count()
}

/// Writes at the end and in place, and chmods, all that pid 1 has; a failure of one is no end.
const SPOIL: &str = "for f in /proc/1/fd/* /proc/1/exe /proc/1/map_files/*; do case $f in */fd/[012]) continue;; esac; \
    (echo spoilt >>$f) 2>&1; (echo spoilt 1<>$f) 2>&1; chmod 777 $f 2>&1; chown 7 $f 2>&1; done; echo tried";

#[test]
fn a_wasm_container_s_root_cannot_change_shared_code() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::wasm("probe.wasm", &["say", "up", "sleep", "100"]).edit(|c| {
        c["process"]["capabilities"] = cap(&ALL);
        c["process"]["noNewPrivileges"] = json!(false);
        c["linux"]["maskedPaths"] = json!([]);
    });
    let mut c = Container::new(bundle);
    c.create();
    let before = host_files();
    assert!(open_cache_files(c.pid()) > 0, "init holds no compiled code to attack");
    let out = c.sh(SPOIL);
    assert!(out.contains("tried"), "{out}");
    assert!(out.contains("Read-only file system"), "nothing was refused as read-only: {out}");
    unharmed(&before);
    c.start().wait_out("up");
    let out = c.sh(SPOIL);
    assert!(out.contains("tried"), "{out}");
    unharmed(&before);
}

/// The image's /dev/null leads to a descriptor of runw's own: the code, the start socket, a procfs handle.
#[test]
fn a_null_device_that_is_a_link_to_our_descriptors() {
    if runw_only("wasm") {
        return;
    }
    for number in 3..12 {
        let bundle = Bundle::wasm("probe.wasm", &["say", "up"]).edit(|c| {
            c["mounts"]
                .as_array_mut()
                .expect("mounts")
                .retain(|m| !m["destination"].as_str().is_some_and(|d| d.starts_with("/dev")));
            c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        });
        symlink(format!("/proc/self/fd/{number}"), bundle.rootfs().join("dev/null")).expect("plant");
        let c = Container::new(bundle);
        let before = host_files();
        let mut command = c.run_command(&[]);
        // With the host's null device as stdio, which is what gets reopened.
        let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let code = ended.expect("run").code();
        assert!(matches!(code, Some(0 | 1)), "fd {number}: {code:?}");
        unharmed(&before);
        nothing_left(&c);
    }
}

/// `line` runs as root in a mount namespace of its own and ends in `exec "$@"`, the command.
fn inside_mounts(line: &str, dir: &Path, command: &Command) -> Out {
    run(Command::new("unshare")
        .args(["-m", "sh", "-ec", line])
        .arg(dir)
        .arg(command.get_program())
        .args(command.get_args()))
}

#[test]
fn a_user_namespace_cannot_undo_the_host_s_mounts() {
    if differs(Kind::Crun, "the wrapper has a mount namespace of its own") {
        return;
    }
    let bundle = Bundle::sh(
        "mount -t tmpfs none /tmp && mount -o remount,bind,ro none /tmp && mount -o remount,bind,rw none /tmp && echo able; \
         mount -o remount,bind,rw none /vol && echo REMOUNTED; (echo x >/vol/file) && echo WRITTEN; \
         umount /tree/sub && echo UNCOVERED; cat /tree/sub/hidden; echo end",
    )
    .user_namespace();
    for name in ["vol", "tree"] {
        std::fs::create_dir(bundle.rootfs().join(name)).expect("a mount point");
    }
    let source = bundle.outside("source");
    std::fs::create_dir_all(source.join("tree/sub")).expect("mkdir");
    std::fs::create_dir_all(source.join("vol")).expect("mkdir");
    std::fs::write(source.join("tree/sub/hidden"), "SECRET\n").expect("write");
    std::fs::set_permissions(source.join("vol"), PermissionsExt::from_mode(0o777)).expect("chmod");
    let bundle = bundle
        .bind(&source.join("vol"), "/vol", &["bind"])
        .bind(&source.join("tree"), "/tree", &["rbind"])
        .edit(|c| c["process"]["capabilities"] = cap(&ALL));
    let c = Container::new(bundle);
    let line = "mount --bind $0/vol $0/vol; mount -o remount,bind,ro $0/vol; mount -t tmpfs none $0/tree/sub; exec \"$@\"";
    let out = inside_mounts(line, &source, &c.run_command(&[])).ok();
    assert!(out.out.starts_with("able\n"), "CAP_SYS_ADMIN is not there to be misused: {out:?}");
    assert_eq!(out.out, "able\nend\n", "{out:?}");
    assert!(out.err.contains("Invalid argument"), "umount must fail with EINVAL: {out:?}");
    nothing_left(&c);
}

/// Whether uid 65534 may do it.
fn nobody(argv: &[&str]) -> Out {
    run(Command::new("setpriv").args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).args(argv))
}

#[test]
fn the_state_directory_is_its_owner_s() {
    if runw_only("a promise on its file names") {
        return;
    }
    let c = Container::new(Bundle::sh("sleep 100"));
    // The harness's own directory would hide it.
    let root = c.root();
    std::fs::set_permissions(root.parent().expect("parent"), PermissionsExt::from_mode(0o755))
        .expect("chmod");
    let command = c.create_command(&[]);
    let line = "umask 0; exec \"$0\" \"$@\"";
    run(Command::new("sh").args(["-c", line]).arg(command.get_program()).args(command.get_args())).ok();
    let dir = root.join(&c.id);
    let mode = |path: &Path| path.symlink_metadata().expect("stat").mode() & 0o777;
    let check = || {
        assert_eq!(mode(&dir), 0o700);
        for name in ["config.json", "state.json"] {
            assert_eq!(mode(&dir.join(name)) & 0o077, 0, "{name}");
        }
        for name in ["config.json", "state.json", "start.sock"] {
            let out = nobody(&["stat", text(&dir.join(name))]);
            assert!(out.err.contains("Permission denied"), "{name}: {out:?}");
        }
    };
    check();
    let update = c.command(&["update", "--pids-limit", "44", &c.id]);
    run(Command::new("sh").args(["-c", line]).arg(update.get_program()).args(update.get_args())).ok();
    check();
    // Nor is what was left lying about by an earlier run.
    nobody(&["ls", text(&dir)]).ok_is_denied();
}

trait Denied {
    fn ok_is_denied(&self);
}

impl Denied for Out {
    #[track_caller]
    fn ok_is_denied(&self) {
        assert_ne!(self.code, 0, "{self:?}");
        assert!(self.err.contains("Permission denied"), "{self:?}");
    }
}

#[test]
fn only_its_owner_starts_it_and_only_once() {
    let mut c = Container::new(Bundle::sh("echo ran; exec sleep 100"));
    c.create();
    if kind() == Kind::Runw {
        std::fs::set_permissions(c.root().parent().expect("parent"), PermissionsExt::from_mode(0o755))
            .expect("chmod");
        let socket = c.root().join(&c.id).join("start.sock");
        let send = "socket(S, AF_UNIX, SOCK_DGRAM, 0) or die; send(S, 'start', 0, sockaddr_un(shift)) or die \"$!\\n\"";
        nobody(&["perl", "-MSocket", "-e", send, text(&socket)]).ok_is_denied();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!((c.status().as_str(), c.out().as_str()), ("created", ""));
    }
    c.start();
    assert_eq!(c.status(), "running");
    c.call(&["start", &c.id]).refused(&["cannot start", "already running container"]);
    c.wait_out("ran");
    assert_eq!(c.out(), "ran\n");
    c.call(&["start", &c.id]).refused(&["cannot start", "already running container"]);
}

/// Of many starts at once one wins, and the others say why they did not.
#[test]
fn many_starts_at_once() {
    if runw_only("lock: a second start of 1.1 hangs") {
        return;
    }
    let mut c = Container::new(Bundle::sh("echo ran; exec sleep 100"));
    c.create();
    let mut all: Vec<Running> = (0..6).map(|_| spawn(&mut c.command(&["start", &c.id]))).collect();
    let outs: Vec<Out> = all.iter_mut().map(Running::wait).collect();
    c.wait_out("ran");
    assert_eq!(outs.iter().filter(|out| out.code == 0).count(), 1, "{outs:#?}");
    for out in outs.iter().filter(|out| out.code != 0) {
        out.refused(&["cannot start an already running container"]);
    }
    assert_eq!(c.out(), "ran\n");
}

/// An image without a mounted /proc cannot talk runw out of dropping its caller's groups.
#[test]
fn a_forged_setgroups_file_keeps_no_groups() {
    let bundle = Bundle::sh("id -G").edit(|c| {
        c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/proc");
    });
    std::fs::create_dir_all(bundle.rootfs().join("proc/self")).expect("mkdir");
    std::fs::write(bundle.rootfs().join("proc/self/setgroups"), "deny\n").expect("write");
    let c = Container::new(bundle);
    let command = c.run_command(&[]);
    let out = run(Command::new("setpriv")
        .args(["--groups", "4242,4243"])
        .arg(command.get_program())
        .args(command.get_args()));
    if kind() == Kind::Runw {
        assert_eq!(out.ok().out, "0\n");
    } else {
        // They write their labels and limits through the container's /proc, and refuse one that is none.
        assert!(out.code != 0 || out.out == "0\n", "{out:?}");
    }
    nothing_left(&c);
}

/// The common case in an uncommon container: stdio is the null device, masked paths and cwd are missing.
#[test]
fn a_container_without_proc() {
    let bundle = Bundle::sh("pwd >/out; read x || echo end >>/out").edit(|c| {
        c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/proc");
        c["process"]["cwd"] = json!("/made/for/me");
        c["root"]["readonly"] = json!(false);
    });
    let c = Container::new(bundle);
    let mut command = c.run_command(&[]);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("run");
    if kind() != Kind::Runw {
        skip("the peers need a /proc");
        return;
    }
    assert!(status.success());
    let out = std::fs::read_to_string(c.bundle.rootfs().join("out")).expect("its output");
    assert_eq!(out, "/made/for/me\nend\n");
    let mut running = Container::new(Bundle::sh("exec sleep 100").edit(|c| {
        c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/proc");
    }));
    running.create().start();
    assert_eq!(running.sh("echo inside"), "inside\n");
}

#[test]
fn what_may_be_mounted_on_proc() {
    let on = |destination: &str, mount: Value, procfs: bool| {
        let bundle = Bundle::sh("cat /proc/uptime").edit(|c| {
            let mounts = c["mounts"].as_array_mut().expect("mounts");
            mounts.retain(|m| procfs || m["destination"] != "/proc");
            let mut mount = mount;
            mount["destination"] = json!(destination);
            mounts.push(mount);
        });
        let c = Container::new(bundle);
        let out = c.run();
        nothing_left(&c);
        out
    };
    let source = tempfile::tempdir().expect("a directory");
    std::fs::write(source.path().join("file"), "mine\n").expect("write");
    let bind = json!({"type": "bind", "source": source.path(), "options": ["bind"]});
    let tmpfs = json!({"type": "tmpfs", "source": "tmpfs"});
    let file = json!({"type": "bind", "source": source.path().join("file"), "options": ["bind"]});
    if !differs(Kind::Crun, "1.8 checks neither") {
        // runc 1.1 lets the mount pass and fails by what is missing in it.
        let words: &[&str] = if kind() == Kind::Runw { &["not of type proc"] } else { &["/proc"] };
        on("/proc", bind.clone(), false).refused(words);
        on("/proc", tmpfs.clone(), false).refused(words);
        on("/proc/sys", bind, true).refused(&["/proc/sys"]);
        if kind() == Kind::Runw {
            // runc 1.1 judges binds only.
            on("/proc/sys", tmpfs, true).refused(&["/proc/sys"]);
        }
    }
    assert_eq!(on("/proc/uptime", file, true).ok().out, "mine\n");
}

#[test]
fn a_process_file_inherits_what_it_does_not_say() {
    let bundle = Bundle::sh("exec sleep 100").edit(|c| {
        c["process"]["capabilities"] = cap(&["CAP_KILL"]);
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 77}]);
    });
    let c = Container::up(bundle);
    let path = c.bundle.path().join("process.json");
    let args = ["/bin/sh", "-c", "ulimit -n; grep -E 'CapEff|CapBnd' /proc/self/status"];
    let process = json!({"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]});
    std::fs::write(&path, process.to_string()).expect("write");
    let out = c.exec(&["--process", text(&path)], &[]);
    let kill = "0000000000000020";
    if kind() == Kind::Crun {
        skip("Crun differs: 1.8 gives a process file nothing of the container's");
        return;
    }
    // runc 1.1 takes its capabilities only: the limits of runw's are the safer reading.
    let limit =
        if kind() == Kind::Runc { out.out.lines().next().unwrap_or_default() } else { "77" }.to_owned();
    assert_eq!(out.ok().out, format!("{limit}\nCapEff:\t{kill}\nCapBnd:\t{kill}\n"));
}

/// state.json as a create leaves it that was killed before it had made anything, in a cgroup that is another's.
#[test]
fn a_half_made_container_does_not_take_another_s_cgroup_along() {
    if runw_only("this state.json") {
        return;
    }
    let c = Container::up(Bundle::sh("echo up; exec sleep 100"));
    c.wait_out("up");
    let own = std::fs::read(c.root().join(&c.id).join("state.json")).expect("state.json");
    let mut record: Value = serde_json::from_slice(&own).expect("JSON");
    let id = unique("half");
    record["id"] = json!(id);
    record["init"] = Value::Null;
    record["createdDone"] = json!(false);
    assert!(!record["cgroup"].is_null(), "{record}");
    let dir = c.root().join(&id);
    std::fs::create_dir(&dir).expect("mkdir");
    std::fs::write(dir.join("state.json"), record.to_string()).expect("write");
    c.call(&["delete", "--force", &id]).ok();
    assert!(!dir.exists());
    assert_eq!(c.status(), "running");
    assert_eq!(c.sh("echo alive"), "alive\n");
}

#[test]
fn hooks_in_the_container_see_nothing_of_our_environment() {
    if differs(Kind::Crun, "1.8 gives its hooks its own environment") {
        return;
    }
    let bundle = Bundle::sh("exec sleep 100").env(&["PATH=/bin", "FROM_SPEC=1"]);
    let log = bundle.outside("log");
    let hook = bundle.path().join("hook");
    script(&hook, &format!("/usr/bin/env >{}/$1", text(&log)));
    script(&bundle.rootfs().join("hook"), "/bin/env >/log/$1");
    let bundle = bundle.bind(&log, "/log", &["rbind", "rw"]).edit(|c| {
        let one = |path: &str, name: &str| json!([{"path": path, "args": ["hook", name]}]);
        c["hooks"] = json!({
            "prestart": one(text(&hook), "prestart"),
            "createRuntime": one(text(&hook), "createRuntime"),
            "createContainer": one(text(&hook), "createContainer"),
            "startContainer": one("/hook", "startContainer"),
        });
    });
    let mut c = Container::new(bundle);
    run(c.create_command(&[]).env("HOSTSECRET", "mine")).ok();
    c.start();
    until("the last hook", || {
        std::fs::read_to_string(log.join("startContainer")).is_ok_and(|t| t.contains("PWD"))
    });
    let saw = |name: &str| std::fs::read_to_string(log.join(name)).expect("a hook's log");
    for (name, host) in
        [("prestart", true), ("createRuntime", true), ("createContainer", false), ("startContainer", false)]
    {
        assert_eq!(saw(name).contains("HOSTSECRET"), host, "{name}: {}", saw(name));
        assert!(!saw(name).contains("_RUNW"), "{name}: {}", saw(name));
    }
}

#[test]
fn a_link_planted_for_the_pid_file_is_not_followed() {
    let c = Container::new(Bundle::sh("exec sleep 100"));
    let dir = c.bundle.outside("pids");
    let target = c.bundle.path().join("target");
    std::fs::write(&target, "precious").expect("write");
    for name in [".pid", ".pid.tmp", "pid.tmp"] {
        symlink(&target, dir.join(name)).expect("plant");
    }
    let command = c.create_command(&["--pid-file", text(&dir.join("pid"))]);
    // The shell's pid becomes the runtime's: the worst guess.
    let line = "ln -s $0/target $0/pids/.pid.$$ && exec \"$@\"";
    let out = run(Command::new("sh")
        .args(["-c", line])
        .arg(c.bundle.path())
        .arg(command.get_program())
        .args(command.get_args()));
    assert_eq!(std::fs::read_to_string(&target).expect("read"), "precious", "{out:?}");
    if out.code == 0 {
        let pid = std::fs::read_to_string(dir.join("pid")).expect("the pid file");
        assert_eq!(pid, c.pid().to_string());
    } else {
        nothing_left(&c);
    }
}

/// Links nobody could have guessed do no harm.
#[test]
fn a_pid_file_beside_planted_links() {
    let c = Container::new(Bundle::sh("exec sleep 100"));
    let dir = c.bundle.outside("pids");
    let target = c.bundle.path().join("target");
    std::fs::write(&target, "precious").expect("write");
    symlink(&target, dir.join("pid")).expect("plant");
    run(&mut c.create_command(&["--pid-file", text(&dir.join("pid"))])).ok();
    assert_eq!(std::fs::read_to_string(&target).expect("read"), "precious");
    assert_eq!(std::fs::read_to_string(dir.join("pid")).expect("read"), c.pid().to_string());
}

fn seccomp(bundle: Bundle, privileges: bool, names: &[&str], action: &str) -> Bundle {
    bundle.edit(|c| {
        c["process"]["noNewPrivileges"] = json!(!privileges);
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": names, "action": action}],
        });
    })
}

#[test]
fn a_profile_without_sockets() {
    let names = ["sendmsg", "recvmsg", "accept4", "accept", "sendto", "recvfrom", "socket"];
    for privileges in [false, true] {
        let sh = |text: &str| seccomp(Bundle::sh(text), privileges, &names, "SCMP_ACT_ERRNO");
        let c = Container::up(sh("echo up; exec sleep 100"));
        c.wait_out("up");
        assert_eq!(c.sh("echo inside"), "inside\n");
        drop(c);
        assert_eq!(Container::new(sh("exit 7")).run().code, 7);
        let c = Container::new(sh("nc -w 1 127.0.0.1 9; ping -c 1 127.0.0.1"));
        let out = c.run();
        assert!(out.err.contains("Operation not permitted"), "the profile is not in force: {out:?}");
        if kind() == Kind::Runw {
            let wasm = Bundle::wasm("probe.wasm", &["say", "up"]);
            let out = Container::new(seccomp(wasm, privileges, &names, "SCMP_ACT_ERRNO")).run().ok();
            assert_eq!(out.out, "up\n");
        }
    }
}

/// Answers every question with EXDEV: what runw's own init asked would fail by it.
const AGENT: &str = "while (1) { my $n = \"\\0\" x 80; ioctl(STDIN, 0xc0502100, $n) or exit 0; \
    my ($id) = unpack('Q', $n); my $r = pack('QqlL', $id, 0, -18, 0); ioctl(STDIN, 0xc0182101, $r); }";

#[test]
fn a_notify_agent_that_is_asked_for_sendmsg() {
    if differs(Kind::Crun, "1.8 sends another document") {
        return;
    }
    for privileges in [false, true] {
        let names = ["sendmsg", "recvmsg", "mkdir", "mkdirat"];
        let bundle = seccomp(
            Bundle::sh("mkdir /tmp/new; test -d /tmp/new; echo $?"),
            privileges,
            &names,
            "SCMP_ACT_NOTIFY",
        );
        let socket = ConsoleSocket::new(bundle.path());
        let bundle = bundle.edit(|c| {
            c["linux"]["seccomp"]["listenerPath"] = json!(socket.path);
            c["linux"]["seccomp"]["listenerMetadata"] = json!("meta");
        });
        let c = Container::new(bundle);
        let mut running = c.spawn_run(&[]);
        let (listener, document) = socket.receive();
        let document: Value = serde_json::from_str(&document).expect("JSON");
        assert_eq!(document["metadata"], "meta", "{document}");
        assert_eq!(document["state"]["id"], json!(c.id), "{document}");
        let mut agent =
            Command::new("perl").args(["-e", AGENT]).stdin(Stdio::from(listener)).spawn().expect("perl");
        let out = running.wait();
        let _ = agent.kill();
        let _ = agent.wait();
        assert_eq!((out.code, out.out.as_str()), (0, "1\n"), "{out:?}");
        assert!(out.err.contains("Invalid cross-device link"), "{out:?}");
        nothing_left(&c);
    }
}

#[test]
fn a_created_container_ends_by_sigterm() {
    for bundle in [Bundle::sh("echo ran"), Bundle::sh("echo ran").without_namespace("pid")] {
        let mut c = Container::new(bundle);
        c.create();
        c.kill("TERM").ok();
        c.wait_stopped();
        assert_eq!(c.out(), "");
        c.delete().ok();
        nothing_left(&c);
    }
    if kind() == Kind::Runw {
        let mut c = Container::new(Bundle::wasm("probe.wasm", &["say", "ran"]));
        c.create();
        c.kill("TERM").ok();
        c.wait_stopped();
        c.delete().ok();
        nothing_left(&c);
    }
}

#[test]
fn kill_all_without_cgroups() {
    if runw_only("--cgroup-manager") {
        return;
    }
    let bundle = Bundle::sh("echo up; sleep 100 & exec sleep 100").edit(|c| {
        let mounts = c["mounts"].as_array_mut().expect("mounts");
        // There is no cgroup to show.
        mounts.retain(|m| m["destination"] != "/sys/fs/cgroup");
    });
    let c = Container::new(bundle);
    let disabled = ["--cgroup-manager", "disabled"];
    let bundle = text(c.bundle.path()).to_owned();
    let words: Vec<&str> =
        disabled.iter().copied().chain(["run", "-d", "--bundle", &bundle, &c.id]).collect();
    c.call(&words).ok();
    assert_eq!(c.status(), "running");
    let words: Vec<&str> = disabled.iter().copied().chain(["kill", "--all", &c.id, "KILL"]).collect();
    c.call(&words).ok();
    c.wait_stopped();
    c.delete().ok();
    nothing_left(&c);
}

#[test]
fn a_very_low_limit_of_descriptors() {
    if differs(Kind::Crun, "1.8 sets the limits before it is done itself") {
        return;
    }
    let limit =
        |c: &mut Value| c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 8, "soft": 8}]);
    let shown = Bundle::sh("ulimit -n; echo $HOME").env(&["PATH=/bin"]).edit(limit);
    let shown = shown.edit(|c| c["process"]["user"] = json!({"uid": 1000, "gid": 1000}));
    // HOME is read from a file, which the limit must not have kept from being opened.
    assert_eq!(Container::new(shown).run().ok().out, "8\n/home\n");
    let c = Container::up(Bundle::sh("exec sleep 100").edit(limit));
    assert_eq!(c.sh("ulimit -n"), "8\n");
}

#[test]
fn a_program_that_cannot_be_executed() {
    let bundle = || {
        let bundle = Bundle::new(&["/text"]);
        std::fs::write(bundle.rootfs().join("text"), "no interpreter\n").expect("write");
        std::fs::set_permissions(bundle.rootfs().join("text"), PermissionsExt::from_mode(0o755))
            .expect("chmod");
        bundle
    };
    let c = Container::new(bundle());
    let mut created = spawn(&mut c.create_command(&[]));
    created.wait().ok();
    let out = c.call(&["start", &c.id]);
    if differs(Kind::Crun, "1.8 waits for the execve in start") {
        return;
    }
    out.ok();
    c.wait_stopped();
    assert!(created.err().to_lowercase().contains("exec format error"), "{}", created.err());
    c.delete().ok();
    nothing_left(&c);

    let c = Container::new(bundle());
    let out = c.run();
    assert_ne!(out.code, 0, "{out:?}");
    assert!(out.err.to_lowercase().contains("exec format error"), "{out:?}");
    nothing_left(&c);
}

#[test]
fn an_unknown_option_of_a_bind_mount() {
    let bundle = Bundle::sh("cat /vol/file");
    let source = bundle.outside("source");
    std::fs::write(source.join("file"), "mine\n").expect("write");
    let c = Container::new(bundle.bind(&source, "/vol", &["rbind", "nocopy"]));
    assert_eq!(c.run().ok().out, "mine\n");
}

#[track_caller]
fn deleted_soon(c: &Container) {
    let began = Instant::now();
    c.call(&["delete", "--force", &c.id]).ok();
    assert!(began.elapsed() < Duration::from_secs(20), "delete took {:?}", began.elapsed());
    nothing_left(c);
}

#[test]
fn a_hook_that_hangs_does_not_keep_a_container_from_being_deleted() {
    let bundle = Bundle::sh("echo ran").edit(|c| {
        c["hooks"] = json!({"startContainer": [{"path": "/bin/sleep", "args": ["sleep", "30"]}]});
    });
    let mut c = Container::new(bundle);
    c.create();
    if kind() == Kind::Runc {
        // 1.1 waits in `start` until the execve.
        let _start = spawn(&mut c.command(&["start", &c.id]));
        std::thread::sleep(Duration::from_millis(300));
        deleted_soon(&c);
        return;
    }
    c.start();
    std::thread::sleep(Duration::from_millis(300));
    deleted_soon(&c);
    assert_eq!(c.out(), "");
}

/// While it hangs, its `create` holds the container's lock.
#[test]
fn a_hook_that_hangs_in_create() {
    if runw_only("this promise: a state file is written late by the peers") {
        return;
    }
    for name in ["createRuntime", "createContainer"] {
        let bundle = Bundle::sh("echo ran").edit(|c| {
            c["hooks"][name] = json!([{"path": "/bin/sleep", "args": ["sleep", "30.77"]}]);
        });
        let c = Container::new(bundle);
        let mut creating = spawn(&mut c.create_command(&[]));
        let state = c.root().join(&c.id).join("state.json");
        until("a process", || {
            let record = std::fs::read(&state).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
            record.is_some_and(|record| !record["init"].is_null())
        });
        std::thread::sleep(Duration::from_millis(200));
        let began = Instant::now();
        c.call(&["delete", "--force", &c.id]).ok();
        assert!(began.elapsed() < Duration::from_secs(20), "{name}: delete took {:?}", began.elapsed());
        assert_ne!(creating.wait().code, 0, "{name}");
        nothing_left(&c);
    }
}

/// `start` waits for its hook, and nobody has to wait for `start`.
#[test]
fn a_hook_that_hangs_in_start() {
    if runw_only("poststart hooks in start") {
        return;
    }
    let bundle = Bundle::sh("exec sleep 100").edit(|c| {
        c["hooks"] = json!({"poststart": [{"path": "/bin/sleep", "args": ["sleep", "30.78"], "timeout": 2}]});
    });
    let mut c = Container::new(bundle);
    c.create();
    let mut starting = spawn(&mut c.command(&["start", &c.id]));
    until("running", || c.status() == "running");
    c.call(&["delete", "--force", &c.id]).ok();
    // Its cleaning up must not mistake whoever has the id now.
    c.create();
    starting.wait().ok();
    assert_eq!(c.status(), "created");
    // `run` ends the container for it, but not another's.
    c.delete().ok();
    let mut running = spawn(&mut c.run_command(&["--detach"]));
    until("running", || c.call(&["state", &c.id]).out.contains("running"));
    c.call(&["delete", "--force", &c.id]).ok();
    c.create();
    running.wait().refused(&["poststart"]);
    assert_eq!(c.status(), "created");
}

/// Everything of one ordinary user, reached through setpriv.
struct Rootless {
    dir: tempfile::TempDir,
}

const USER: &str = "1000";

impl Rootless {
    /// None, with a skip, where ordinary users get no user namespace.
    fn new() -> Option<Rootless> {
        let dir = tempfile::Builder::new().prefix("runw-rootless-").tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        // The build directory may be closed to others.
        std::fs::copy(runtime(), dir.path().join("runtime")).expect("copy the runtime");
        for name in ["home", "run", "bundle"] {
            std::fs::create_dir(dir.path().join(name)).expect("mkdir");
        }
        std::fs::set_permissions(dir.path().join("run"), PermissionsExt::from_mode(0o700)).expect("chmod");
        let donor = Bundle::sh("true");
        let copied = Command::new("cp").arg("-a").arg(donor.rootfs()).arg(dir.path().join("bundle")).status();
        assert!(copied.expect("cp").success());
        std::fs::copy(guest("probe.wasm"), dir.path().join("bundle/rootfs/app.wasm")).expect("copy");
        let user = Rootless { dir };
        user.give();
        let able = run(user.as_user(Path::new("unshare")).args(["-Ur", "true"])).code == 0;
        if !able {
            skip("this machine gives no user namespaces to ordinary users");
        }
        able.then_some(user)
    }

    fn give(&self) {
        for name in ["home", "run", "bundle"] {
            let owner = format!("{USER}:{USER}");
            let path = self.dir.path().join(name);
            let given = Command::new("chown").args(["-hR", &owner]).arg(path).status();
            assert!(given.expect("chown").success());
        }
    }

    fn as_user(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.dir.path().join("home"));
        command.env("XDG_RUNTIME_DIR", self.dir.path().join("run")).current_dir(self.bundle());
        command
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.as_user(&self.dir.path().join("runtime"));
        command.args(words);
        command
    }

    fn call(&self, words: &[&str]) -> Out {
        run(&mut self.command(words))
    }

    /// `spec --rootless`, with these arguments.
    fn spec(&self, args: &[&str]) {
        let path = self.bundle().join("config.json");
        let _ = std::fs::remove_file(&path);
        self.call(&["spec", "--rootless"]).ok();
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("config.json is JSON");
        assert_eq!(config["linux"]["uidMappings"][0]["hostID"], 1000, "{config}");
        config["process"]["args"] = json!(args);
        config["process"]["terminal"] = json!(false);
        config["root"]["readonly"] = json!(false);
        std::fs::write(&path, config.to_string()).expect("write");
    }

    fn status(&self, id: &str) -> String {
        let state: Value = serde_json::from_str(&self.call(&["state", id]).ok().out).expect("state is JSON");
        state["status"].as_str().expect("status").to_owned()
    }
}

#[test]
fn an_ordinary_user_s_containers() {
    let Some(user) = Rootless::new() else { return };
    if differs(Kind::Crun, "1.8 refuses hybrid cgroups") {
        return;
    }
    let wasm = kind() == Kind::Runw;
    user.spec(&["/bin/sh", "-c", "id -u; cat /proc/self/uid_map"]);
    let out = user.call(&["run", &unique("rootless")]).ok().out;
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["0", "0", USER, "1"]);
    if wasm {
        user.spec(&["/app.wasm", "say", "from wasm"]);
        assert_eq!(user.call(&["run", &unique("rootless")]).ok().out, "from wasm\n");
    }
    let kinds: &[&[&str]] = &[&["/bin/sh", "-c", "exec sleep 100"], &["/app.wasm", "sleep", "100"]];
    for args in kinds.iter().take(if wasm { 2 } else { 1 }) {
        user.spec(args);
        let id = unique("rootless");
        let pid_file = user.bundle().join("pid");
        user.call(&["create", "--pid-file", text(&pid_file), &id]).ok();
        assert_eq!(user.status(&id), "created");
        user.call(&["start", &id]).ok();
        assert_eq!(user.status(&id), "running");
        assert_eq!(user.call(&["exec", &id, "/bin/sh", "-c", "id -u"]).ok().out, "0\n", "{args:?}");
        if wasm {
            let out = user.call(&["exec", &id, "/app.wasm", "say", "exec"]);
            assert_eq!(out.ok().out, "exec\n", "{args:?}");
        }
        user.call(&["kill", &id, "KILL"]).ok();
        until("stopped", || user.status(&id) == "stopped");
        user.call(&["delete", &id]).ok();
        user.call(&["state", &id]).refused(&["does not exist"]);
    }
}

/// A cgroup that was handed to this user, on every hierarchy; gone when dropped.
struct Delegated(Vec<PathBuf>);

impl Delegated {
    fn new(name: &str) -> Delegated {
        let made = std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten().filter_map(|hierarchy| {
            let dir = hierarchy.path().join(name);
            std::fs::create_dir(&dir).ok()?;
            let given = Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(&dir).status();
            given.expect("chown").success().then_some(dir)
        });
        Delegated(made.collect())
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for dir in &self.0 {
            let _ = std::fs::remove_dir(dir.join("sub"));
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// CVE-2023-25809: without a cgroup namespace the host's cgroups can be seen, and must not be writable.
#[test]
fn a_rootless_container_cannot_write_its_user_s_cgroups() {
    let Some(user) = Rootless::new() else { return };
    if differs(Kind::Crun, "1.8 refuses hybrid cgroups") {
        return;
    }
    let name = unique("runw-test-delegated");
    let delegated = Delegated::new(&name);
    // The control: outside a container the user may.
    for dir in &delegated.0 {
        run(user.as_user(Path::new("mkdir")).arg(dir.join("sub"))).ok();
        std::fs::remove_dir(dir.join("sub")).expect("rmdir");
    }
    let line = format!(
        "for d in /sys/fs/cgroup/{name} /sys/fs/cgroup/*/{name}; do mkdir $d/sub && echo MADE $d; done; echo end"
    );
    user.spec(&["/bin/sh", "-c", &line]);
    let out = user.call(&["run", &unique("rootless")]).ok();
    assert_eq!(out.out, "end\n", "{out:?}");
    assert!(out.err.contains("Read-only file system"), "no cgroup was there to be written: {out:?}");
    assert!(!delegated.0.is_empty() && delegated.0.iter().all(|dir| !dir.join("sub").exists()));
}

/// None of this file's containers may give the host's null device to anybody.
#[test]
fn the_host_s_null_device_stays_its_owner_s() {
    if differs(Kind::Crun, "1.8 gives the caller's stdio to the container's root, /dev/null included") {
        return;
    }
    let bundle = Bundle::sh("true").user_namespace();
    let c = Container::new(bundle);
    let null = || File::options().read(true).write(true).open("/dev/null").expect("/dev/null");
    let owner = || Path::new("/dev/null").metadata().map(|meta| (meta.uid(), meta.gid())).expect("stat");
    let before = owner();
    let status = c.run_command(&[]).stdin(null()).stdout(null()).stderr(null()).status();
    assert!(status.expect("run").success());
    assert_eq!(owner(), before);
}
