//! What an image or an unlucky moment may do to the sequence: names planted where runw would look, kills while a hook
//! or the compiler works.

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use serde_json::{Value, json};

use crate::harness::{
    Bundle, ConsoleSocket, Container, Kind, Verdict, alive, cap, differs, nothing_left, run, runw_only,
    script, skip, spawn, supervised, until, with_cache,
};

fn call_with_cache(command: &Command, cache: &Path) -> Command {
    with_cache(command, &["--bind", cache.to_str().expect("utf-8")])
}

fn private_cache() -> tempfile::TempDir {
    let cache = tempfile::tempdir().expect("tempdir");
    std::fs::set_permissions(cache.path(), PermissionsExt::from_mode(0o700)).expect("chmod");
    cache
}

/// The runtime dies while a hook of each kind runs. A hook outside the container is its author's to end.
#[test]
fn killed_while_a_hook_runs_delete_force_cleans_up() {
    if runw_only("such a promise") {
        return;
    }
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"] {
        let bundle = Bundle::sh("exec sleep 100");
        let mark = bundle.outside("mark");
        let inside = kind == "startContainer";
        let body = format!(
            "touch {}/here; exec sleep 3",
            if inside { "/tmp" } else { mark.to_str().expect("utf-8") }
        );
        let path = if inside { bundle.rootfs().join("hook") } else { bundle.path().join("hook") };
        script(&path, &body);
        let here = if inside { bundle.rootfs().join("tmp/here") } else { mark.join("here") };
        let hook = if inside { "/hook".to_owned() } else { path.to_string_lossy().into_owned() };
        let c = Container::new(bundle.edit(|c| {
            c["hooks"] = json!({});
            c["hooks"][kind] = json!([{"path": hook, "env": ["PATH=/bin:/usr/bin"]}]);
        }));
        let mut running = if kind.contains("start") && kind != "prestart" {
            spawn(&mut c.run_command(&["--detach"]))
        } else {
            spawn(&mut c.create_command(&[]))
        };
        until(&format!("the {kind} hook runs"), || here.exists());
        running.child.kill().expect("kill");
        running.child.wait().expect("wait");
        c.call(&["delete", "--force", &c.id]).ok();
        nothing_left(&c);
    }
}

/// glibc would load these by name, as root; opening one of them would block for ever.
#[test]
fn name_service_files_of_the_image_are_never_opened() {
    if runw_only("such a promise") {
        return;
    }
    let native = Bundle::new(&["/bin/echo", "ran"]).env(&["PATH=/bin"]);
    let wasm = Bundle::wasm("probe.wasm", &["say", "ran"]).env(&[]);
    for bundle in [native, wasm] {
        let bundle = bundle.edit(|c| c["process"]["user"] = json!({"uid": 1000, "gid": 1000}));
        let root = bundle.rootfs();
        for dir in ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64"] {
            std::fs::create_dir_all(root.join(dir)).expect("mkdir");
            for name in ["libnss_x.so.2", "libnss_files.so.2", "libc.so.6", "gconv/gconv-modules"] {
                std::fs::create_dir_all(root.join(dir).join(name).parent().expect("parent")).expect("mkdir");
                fifo(&root.join(dir).join(name));
            }
        }
        for name in
            ["etc/nsswitch.conf", "etc/ld.so.cache", "etc/resolv.conf", "etc/localtime", "etc/host.conf"]
        {
            fifo(&root.join(name));
        }
        assert_eq!(Container::new(bundle).run().ok().out.trim(), "ran");
    }
}

fn fifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).expect("mkfifo");
}

/// An image whose kernel directories are links to a directory of the host.
#[test]
fn dev_and_sys_of_the_image_that_are_links_lead_nowhere() {
    if runw_only("such a promise: 1.1 follows some of them") {
        return;
    }
    for (name, mounted) in [("dev", true), ("dev", false), ("sys", true), ("sys", false), ("proc", false)] {
        let host = tempfile::tempdir().expect("tempdir");
        let bundle = Bundle::sh("true").edit(|c| {
            let below = format!("/{name}");
            if !mounted {
                let mounts = c["mounts"].as_array_mut().expect("mounts");
                mounts.retain(|m| !m["destination"].as_str().is_some_and(|d| d.starts_with(&below)));
            }
        });
        std::fs::remove_dir(bundle.rootfs().join(name)).expect("rmdir");
        symlink(host.path(), bundle.rootfs().join(name)).expect("symlink");
        let c = Container::new(bundle);
        let out = c.run();
        assert!(!out.err.contains("panic") && !out.err.contains("internal error"), "{name}: {out:?}");
        let inside: Vec<_> = std::fs::read_dir(host.path()).expect("read").flatten().collect();
        assert!(inside.is_empty(), "/{name} led out: {inside:?} {out:?}");
        nothing_left(&c);
    }
}

/// Nothing of the sequence may need a /proc of the container's own, not even to say what is wrong.
#[test]
fn a_container_without_any_proc_is_made() {
    if runw_only("such a promise") {
        return;
    }
    for cwd in ["/", "/new/directory"] {
        let c = Container::new(Bundle::sh("pwd").edit(|c| {
            let mounts = c["mounts"].as_array_mut().expect("mounts");
            mounts.retain(|m| m["destination"] != "/proc");
            c["process"]["cwd"] = json!(cwd);
        }));
        assert_eq!(c.run().ok().out.trim(), cwd);
        nothing_left(&c);
    }
}

/// Where confined compilations of this process would be counted.
fn compile_cgroup(pid: i32) -> bool {
    ["memory/", ""].iter().any(|h| Path::new(&format!("/sys/fs/cgroup/{h}runw-compile/{pid}")).exists())
}

#[test]
fn a_kill_while_compiling_leaves_nothing_that_the_next_create_does_not_remove() {
    if runw_only("wasm") {
        return;
    }
    let cache = private_cache();
    let first = Container::new(Bundle::wasm("go.wasm", &[]));
    let mut running = spawn(&mut call_with_cache(&first.create_command(&[]), cache.path()));
    let pid = running.pid();
    let temporary = || names(cache.path()).iter().any(|name| name.starts_with(".tmp-"));
    until("it compiles", || compile_cgroup(pid) && temporary());
    running.child.kill().expect("kill");
    running.child.wait().expect("wait");
    first.call(&["delete", "--force", &first.id]).ok();
    nothing_left(&first);

    let second = Container::new(Bundle::wasm("go.wasm", &[]));
    let mut next = spawn(&mut call_with_cache(&second.create_command(&[]), cache.path()));
    next.wait().ok();
    assert_eq!(second.status(), "created");
    assert!(!compile_cgroup(pid) && !compile_cgroup(next.pid()), "a compilation's cgroup stayed");
    let left = names(cache.path());
    let artifacts = left.iter().filter(|name| name.len() == 64).count();
    assert!(artifacts == 1 && !temporary(), "{left:?}");
    assert!(!alive(pid));
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("cache").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn ten_creates_of_one_new_image_compile_once() {
    if runw_only("wasm") {
        return;
    }
    let cache = private_cache();
    let watch =
        inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).expect("inotify");
    inotify::add_watch(&watch, cache.path(), inotify::WatchFlags::CREATE).expect("watch");
    let all: Vec<_> = (0..10).map(|_| Container::new(Bundle::wasm("hello.wasm", &[]))).collect();
    let running: Vec<_> =
        all.iter().map(|c| spawn(&mut call_with_cache(&c.create_command(&[]), cache.path()))).collect();
    for mut one in running {
        one.wait().ok();
    }
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch.as_fd(), &mut buffer);
    let mut compiled = 0;
    while let Ok(event) = events.next() {
        let temporary = event.file_name().is_some_and(|name| name.to_bytes().starts_with(b".tmp-"));
        compiled += usize::from(temporary);
    }
    assert_eq!(compiled, 1, "{:?}", names(cache.path()));
    assert_eq!(names(cache.path()).iter().filter(|name| name.len() == 64).count(), 1);
}

/// Seen from inside, a wasm init is its guest: no word of runw's command line or environment.
#[test]
fn a_wasm_init_s_procfs_tells_nothing_of_runw() {
    if runw_only("wasm") {
        return;
    }
    let c = Container::new(Bundle::wasm("probe.wasm", &["say", "up", "sleep", "100"]).env(&["GUEST=1"]));
    let mut running = spawn(c.run_command(&["--detach"]).env("RUNW_SECRET", "hunter2"));
    running.wait().ok();
    until("the guest runs", || running.out().contains("up"));
    let read = "tr '\\0' ' ' </proc/1/environ";
    // It is not dumpable, so this takes a capability that containers do not have.
    let denied = c.exec(&[], &["/bin/sh", "-c", read]);
    assert!(denied.code != 0 && denied.err.contains("Permission denied"), "{denied:?}");
    let environ = c.exec(&["--cap", "CAP_SYS_PTRACE"], &["/bin/sh", "-c", read]).ok().out;
    assert_eq!(environ.trim(), "");
    let command = c.sh("tr '\\0' ' ' </proc/1/cmdline");
    assert_eq!(command.trim(), "/app.wasm say up sleep 100");
    let own = c.sh("tr '\\0' '\\n' </proc/self/environ");
    assert!(!own.contains("hunter2") && !own.contains("_RUNW"), "{own}");
}

/// CVE-2024-21626: a directory of the host that the caller has left open is no place to start from.
#[test]
fn a_cwd_of_a_leaked_descriptor() {
    if differs(Kind::Crun, "1.8 has the hole: this test walks through it") {
        return;
    }
    let leak = |command: &Command| {
        let line = "exec 3</ 4</root 5</ 6</ 7</ 8</ 9</; exec \"$@\"";
        let mut shell = Command::new("/bin/sh");
        run(shell.args(["-c", line, "sh"]).arg(command.get_program()).args(command.get_args()))
    };
    // The control: to a plain program the same descriptors are a way to the host's root.
    let mut naive = Command::new("/bin/sh");
    naive.args(["-c", "cd /proc/self/fd/7 && test -e proc/1 && echo led out"]);
    assert_eq!(leak(&naive).ok().out, "led out\n");

    let host = Path::new("/").metadata().expect("stat");
    let seen = "stat -c '%d %i' . && ls -d etc && echo ran";
    let is_host = format!("{} {}", MetadataExt::dev(&host), host.ino());
    let up = Container::up(Bundle::sh("exec sleep 100"));
    for number in 3..14 {
        let cwd = format!("/proc/self/fd/{number}");
        let c = Container::new(Bundle::sh(seen).edit(|c| c["process"]["cwd"] = json!(cwd)));
        let exec = up.exec_command(&["--cwd", &cwd], &["/bin/sh", "-c", seen]);
        for out in [leak(&c.run_command(&[])), leak(&exec)] {
            assert!(!out.out.contains("ran") && !out.out.contains(&is_host), "{cwd}: {out:?}");
            assert_ne!(out.code, 0, "{cwd}: {out:?}");
        }
        nothing_left(&c);
    }
}

/// CVE-2025-52565: the terminal goes on the container's /dev/console, wherever an image would have it.
#[test]
fn a_console_that_is_a_link() {
    if runw_only("such a promise") {
        return;
    }
    let host = tempfile::tempdir().expect("tempdir");
    std::fs::write(host.path().join("file"), "host\n").expect("write");
    let targets = [host.path().join("file"), host.path().join("new"), "/proc/sysrq-trigger".into()];
    for target in targets.iter().chain([&"/etc/passwd".into()]) {
        let text = "stat -c %F /etc/passwd; test -c /etc/passwd || cat /etc/passwd; grep -c console /proc/self/mountinfo";
        let bundle = Bundle::sh(text).edit(|c| {
            c["process"]["terminal"] = json!(true);
            let mounts = c["mounts"].as_array_mut().expect("mounts");
            mounts.retain(|m| m["destination"] != "/dev");
        });
        symlink(target, bundle.rootfs().join("dev/console")).expect("symlink");
        let before = std::fs::read(bundle.rootfs().join("etc/passwd")).expect("read");
        let mut c = Container::new(bundle);
        let socket = ConsoleSocket::new(c.bundle.path());
        let out = c.create_with(&["--console-socket", text_of(&socket.path)]);
        let (name, told) = (target.display(), &out.err);
        assert!(out.code == 0 || told.contains("/dev/console"), "{name}: {out:?}");
        assert_eq!(std::fs::read_to_string(host.path().join("file")).expect("read"), "host\n", "{name}");
        assert!(!host.path().join("new").exists(), "{name} was made on the host");
        let after = std::fs::read(c.bundle.rootfs().join("etc/passwd")).expect("read");
        assert!(after == before, "{name}: a file of the image was changed");
        c.call(&["delete", "--force", &c.id]).ok();
        nothing_left(&c);
    }
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// CVE-2025-52881: an image with files that look like a procfs. What runw writes to goes to the kernel or nowhere.
#[test]
fn files_that_look_like_proc_are_never_written() {
    if runw_only("such a promise: the peers need a /proc") {
        return;
    }
    let look = "mkdir /p; mount -t proc proc /p && cat /p/sys/net/ipv4/ip_forward /p/self/oom_score_adj";
    let bundle = Bundle::sh(look).edit(|c| {
        let mounts = c["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|m| m["destination"] != "/proc");
        c["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        c["process"]["oomScoreAdj"] = json!(77);
        c["process"]["capabilities"] = cap(&["CAP_SYS_ADMIN"]);
        c["linux"]["maskedPaths"] = json!([]);
        c["linux"]["readonlyPaths"] = json!([]);
    });
    let proc = bundle.rootfs().join("proc");
    let fakes =
        ["sys/net/ipv4/ip_forward", "self/oom_score_adj", "self/attr/exec", "self/attr/apparmor/exec"];
    for fake in
        fakes.iter().chain(&["self/setgroups", "thread-self/attr/exec", "self/fd/3", "1/oom_score_adj"])
    {
        std::fs::create_dir_all(proc.join(fake).parent().expect("parent")).expect("mkdir");
        std::fs::write(proc.join(fake), "fake\n").expect("write");
    }
    let c = Container::new(bundle);
    assert_eq!(c.run().ok().out, "1\n77\n");
    for fake in fakes {
        assert_eq!(std::fs::read_to_string(proc.join(fake)).expect("read"), "fake\n", "{fake}");
    }
    nothing_left(&c);
}

/// state.json names a process that has died, and its pid is another's now.
#[test]
fn a_recycled_pid_is_no_container() {
    if runw_only("this state.json") {
        return;
    }
    let mut bystander = Command::new("sleep").arg("100").spawn().expect("sleep");
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    c.create();
    let file = c.root().join(&c.id).join("state.json");
    let own = std::fs::read(&file).expect("state.json");
    let mut record: Value = serde_json::from_slice(&own).expect("JSON");
    assert!(record["init"]["start_time"].as_u64().is_some_and(|time| time > 0), "{record}");
    record["init"]["pid"] = json!(bystander.id());
    let write = |record: &Value| std::fs::write(&file, record.to_string()).expect("write");
    write(&record);
    let state = c.state();
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(0)));
    c.kill("KILL").refused(&["not running"]);
    assert_eq!(c.exec(&[], &["/bin/true"]).code, 255);
    for verb in ["start", "pause", "resume"] {
        assert_ne!(c.call(&[verb, &c.id]).code, 0, "{verb}");
    }
    assert!(alive(bystander.id().cast_signed()));
    // The control: with the time that belongs to it the same record does mean the bystander.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", bystander.id())).expect("stat");
    let time = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)).expect("field 22");
    record["init"]["start_time"] = json!(time.parse::<u64>().expect("a number"));
    write(&record);
    c.kill("KILL").ok();
    until("the bystander dies", || bystander.try_wait().expect("wait").is_some());

    record["init"]["start_time"] = json!(1);
    record["init"]["pid"] = json!(std::process::id());
    write(&record);
    c.call(&["delete", "--force", &c.id]).ok();
}

/// `unified` names files of the cgroup, which are written as root.
#[test]
fn unified_keys_stay_in_the_cgroup() {
    if differs(Kind::Crun, "1.8 leaves its cgroups behind when it refuses") {
        return;
    }
    let up = Container::up(Bundle::sh("exec sleep 100"));
    let target = up.bundle.path().join("target");
    std::fs::write(&target, "precious").expect("write");
    let climb = format!("..{}", "/..".repeat(12)) + text_of(&target);
    for key in [climb.as_str(), text_of(&target), "memory/../x", "../cgroup.procs", "memory.", "..", "/"] {
        let c = Container::new(Bundle::sh("true").edit(|c| {
            c["linux"]["resources"]["unified"] = json!({key: "spoilt"});
        }));
        let out = c.run();
        assert!(out.code != 0 && out.err.contains("unified"), "{key}: {out:?}");
        nothing_left(&c);
        let file = up.bundle.path().join("resources.json");
        std::fs::write(&file, json!({"unified": {key: "spoilt"}}).to_string()).expect("write");
        let out = up.call(&["update", "--resources", text_of(&file), &up.id]);
        assert!(out.code != 0 && out.err.contains("unified"), "update {key}: {out:?}");
        assert_eq!(std::fs::read_to_string(&target).expect("read"), "precious", "{key}");
    }
}

/// CVE-2022-29162, CVE-2022-27650, CVE-2025-27612: what an exec'd program has, its children do not inherit.
#[test]
fn exec_gives_no_inheritable_capabilities() {
    let names = ["CAP_KILL", "CAP_CHOWN"];
    let bundle = Bundle::sh("exec sleep 100").edit(|c| {
        c["process"]["capabilities"] = json!({"bounding": names, "effective": names, "permitted": names});
    });
    let c = Container::up(bundle);
    let sets = |flags: &[&str]| {
        let out = c.exec(flags, &["/bin/sh", "-c", "grep -E 'Cap(Inh|Prm|Amb)' /proc/self/status"]).ok().out;
        out.lines().filter_map(|line| line.split('\t').nth(1)).map(str::to_owned).collect::<Vec<_>>()
    };
    let zero = "0000000000000000";
    assert_eq!(sets(&[]), [zero, "0000000000000021", zero]);
    let added = sets(&["--cap", "CAP_NET_RAW"]);
    assert_eq!(added[0], zero, "{added:?}");
    assert_ne!(added[1], zero, "{added:?}");
}

/// What a process of the container can learn of another. `$1` is its directory in /proc.
const REACH: &str = "reach() { for f in exe cwd root fd/0 fd/3 ns/mnt; do readlink $1/$f >/dev/null 2>&1 && echo REACHED $f; done; \
    for f in environ maps mem auxv; do (exec 9<$1/$f) 2>/dev/null && echo REACHED $f; done; \
    for f in $1/root/* $1/cwd/* $1/fd/3/*; do [ -e $f ] && echo REACHED $f; done; };";

/// CVE-2016-9962: a process that waits in the container, with our memory and descriptors, is closed to its root.
#[test]
fn a_waiting_init_is_out_of_reach() {
    if runw_only("such a promise between create and start") {
        return;
    }
    let wasm = Bundle::wasm("probe.wasm", &["sleep", "100"]);
    for bundle in [Bundle::sh("exec sleep 100"), wasm, powerful_inside()] {
        let mut c = Container::new(bundle);
        c.create();
        let reach = |pid: &str| c.sh(&format!("{REACH} reach /proc/{pid}; true"));
        // The control: of itself a process sees all of that.
        assert!(reach("$$").lines().count() >= 9, "{}", reach("$$"));
        assert_eq!(reach("1"), "");
    }
}

/// The same of one that enters a running container, stopped right before its execve.
#[test]
fn a_joining_process_is_out_of_reach() {
    if runw_only("such a promise") {
        return;
    }
    for bundle in [Bundle::sh("exec sleep 100"), powerful_inside()] {
        joining_is_out_of_reach(&Container::up(bundle));
    }
}

/// Root of a user namespace may look at everything that belongs to it.
fn powerful_inside() -> Bundle {
    let all = cap(&["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]);
    Bundle::sh("exec sleep 100").user_namespace().edit(|c| c["process"]["capabilities"] = all)
}

fn joining_is_out_of_reach(c: &Container) {
    // All but init, the shell itself, and what that shell starts.
    let line = format!(
        "{REACH} for p in /proc/[0-9]*; do case $p in /proc/1|/proc/$$) ;; *) echo found; reach $p;; esac; done; true"
    );
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let mut look = c.exec_command(&[], &["/bin/sh", "-c", &line]);
    let mut command = c.exec_command(&[], &["/bin/echo", "entered"]);
    let (mut running, _) = supervised(&mut command, move |call| {
        if !call.by_runtime && call.name == "execve" {
            told.lock().expect("lock").push(run(&mut look));
        }
        Verdict::Pass
    });
    assert_eq!(running.wait().ok().out, "entered\n");
    let seen = seen.lock().expect("lock");
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].clone().ok().out, "found\n");
}

/// Whatever stands where a program, a passwd file or a search path is looked for: nobody waits, nobody is fooled.
#[test]
fn an_image_full_of_traps() {
    if runw_only("such a promise: 1.1.5 refuses the passwd file") {
        return;
    }
    let bundle = || {
        let bundle = Bundle::sh("exec sleep 100").env(&["PATH=/fifo:/traps:/huge:/loop:/bin/echo:/bin"]);
        let root = bundle.rootfs();
        for name in ["fifo", "traps/tool", "bin/pipe"] {
            std::fs::create_dir_all(root.join(name).parent().expect("parent")).expect("mkdir");
            fifo(&root.join(name));
        }
        std::fs::set_permissions(root.join("bin/pipe"), PermissionsExt::from_mode(0o755)).expect("chmod");
        std::fs::set_permissions(root.join("traps/tool"), PermissionsExt::from_mode(0o755)).expect("chmod");
        symlink("loop", root.join("loop")).expect("symlink");
        symlink("busybox", root.join("bin/tool")).expect("symlink");
        // Begins as wasm does and is larger than anybody reads.
        let huge = std::fs::File::create(root.join("bin/huge")).expect("create");
        std::io::Write::write_all(&mut &huge, b"\0asm\x01\0\0\0").expect("write");
        huge.set_len(1 << 40).expect("a sparse file");
        let passwd = std::fs::File::create(root.join("etc/passwd")).expect("create");
        passwd.set_len(1 << 40).expect("a sparse file");
        bundle
    };
    let began = Instant::now();
    let c = Container::up(bundle());
    assert_eq!(c.sh("echo $HOME"), "/\n");
    for program in
        ["/bin/pipe", "pipe", "/bin/huge", "huge", "tool", "/loop", "/dev/null", "/dev/zero", "/fifo"]
    {
        let out = c.exec(&[], &[program]);
        assert!(out.code != 0 && out.err.lines().count() == 1, "{program}: {out:?}");
        let fresh = Container::new(bundle().edit(|c| c["process"]["args"] = json!([program])));
        let out = fresh.run();
        assert!(out.code != 0 && !out.err.trim().is_empty(), "{program}: {out:?}");
        nothing_left(&fresh);
    }
    std::fs::remove_file(c.bundle.rootfs().join("etc/passwd")).expect("rm");
    for target in ["/fifo", "/dev/zero", "/proc/self/fd/3", "/proc/kmsg", "/etc/passwd"] {
        symlink(target, c.bundle.rootfs().join("etc/passwd")).expect("symlink");
        assert_eq!(c.sh("echo $HOME"), "/\n", "{target}");
        std::fs::remove_file(c.bundle.rootfs().join("etc/passwd")).expect("rm");
    }
    assert!(began.elapsed() < Duration::from_secs(50), "it took {:?}", began.elapsed());
}

/// Everything below `dir`, with its bytes.
fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut todo, mut found) = (vec![dir.to_owned()], Vec::new());
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().expect("stat");
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).expect("read").flatten().map(|entry| entry.path()));
        }
        found.push((
            path.clone(),
            if meta.is_file() { std::fs::read(&path).expect("read") } else { Vec::new() },
        ));
    }
    found.sort();
    found
}

/// CVE-2025-24965: a handler that writes its notes into the image writes where the image's links lead.
#[test]
fn a_wasm_container_leaves_nothing_in_its_image() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::wasm("probe.wasm", &["say", "ran"]);
    // These are mount points; runc makes them, too, where they are missing.
    for name in ["dev/pts", "dev/shm", "dev/mqueue"] {
        std::fs::create_dir_all(bundle.rootfs().join(name)).expect("mkdir");
    }
    let before = tree(&bundle.rootfs());
    let c = Container::new(bundle);
    assert_eq!(c.run().ok().out, "ran\n");
    assert_eq!(tree(&c.bundle.rootfs()), before);
}

/// A container with cgroups of its own, on every hierarchy.
fn with_cgroups(text: &str) -> Bundle {
    Bundle::sh(text).namespace("cgroup", None).edit(|c| {
        let mounts = c["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|m| m["destination"] != "/sys/fs/cgroup");
        mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}));
    })
}

/// On v1 a frozen process does not even die of SIGKILL, and a container may freeze itself where nobody looks.
#[test]
fn a_container_that_freezes_itself_dies_all_the_same() {
    if differs(Kind::Runc, "1.1.5 thaws the container's own cgroup only")
        || differs(Kind::Crun, "1.8 was never seen to do better")
    {
        return;
    }
    if !Path::new("/sys/fs/cgroup/freezer").exists() {
        skip("v2 kills what is frozen");
        return;
    }
    let text = "cd /sys/fs/cgroup/freezer && mkdir -p a/b && echo 1 >a/b/cgroup.procs && echo FROZEN >a/b/freezer.state";
    for how in [&["kill", "KILL"][..], &["kill", "--all", "KILL"], &["delete", "--force"]] {
        let c = Container::up(with_cgroups(text));
        let state = c.cgroup("freezer").join("a/b/freezer.state");
        until("it is frozen", || std::fs::read_to_string(&state).is_ok_and(|text| text.trim() == "FROZEN"));
        let mut words = how.to_vec();
        words.insert(if how[0] == "kill" { how.len() - 1 } else { how.len() }, &c.id);
        c.call(&words).ok();
        if how[0] == "kill" {
            c.wait_stopped();
            c.delete().ok();
        }
        nothing_left(&c);
    }
}

/// A container that may make cgroups makes them deeper than a path is long: it dies, and is deleted, as any other.
#[test]
fn cgroups_without_end() {
    if differs(Kind::Runc, "1.1.5 leaves them") || differs(Kind::Crun, "1.8 was never seen to do better") {
        return;
    }
    let dig = "cd /sys/fs/cgroup/pids && i=0; n=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; \
        while [ $i -lt 90 ]; do mkdir $n && cd -P $n || break; i=$((i+1)); done; (echo 0 >cgroup.procs; exec sleep 100) & echo dug $i; wait";
    let c = Container::up(with_cgroups(dig));
    c.wait_out("dug");
    assert!(c.out().contains("dug 90"), "{}", c.out());
    assert!(c.call(&["ps", "--format", "json", &c.id]).ok().out.matches(',').count() >= 1);
    c.call(&["kill", "--all", &c.id, "KILL"]).ok();
    c.wait_stopped();
    c.delete().ok();
    nothing_left(&c);
}

/// A running container has put files of its own where a procfs was, and a fifo where terminals came from.
#[test]
fn exec_into_a_container_that_forged_its_proc() {
    if runw_only("such a promise: the peers need a /proc") {
        return;
    }
    let files =
        "self/setgroups self/attr/exec self/attr/apparmor/exec thread-self/attr/exec self/oom_score_adj";
    let text = format!(
        "mount -t tmpfs none /proc && mkdir -p /proc/self/attr/apparmor /proc/thread-self/attr && \
         for f in {files}; do echo deny >/proc/$f; done; umount /dev/pts && mkfifo /dev/pts/ptmx && echo up; exec sleep 100"
    );
    let c = Container::up(Bundle::sh(&text).edit(|c| c["process"]["capabilities"] = cap(&["CAP_SYS_ADMIN"])));
    c.wait_out("up");
    let show = format!("id -G; cd /proc; cat {files}");
    let out = c.exec(&["--user", "1000", "--additional-gids", "5"], &["/bin/sh", "-c", &show]).ok().out;
    assert_eq!(out, format!("0 5\n{}", "deny\n".repeat(5)));
    let socket = ConsoleSocket::new(c.bundle.path());
    let out = c.exec(&["--tty", "--console-socket", text_of(&socket.path)], &["/bin/true"]);
    assert!(out.code == 255 && out.err.contains("/dev/pts"), "{out:?}");
    assert_eq!(c.status(), "running");
}
