//! Every system call of the container's own process, from the clone to the moment it waits for `start`, made to fail
//! in turn, and the runtime killed right before each.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use serde_json::json;

use crate::harness::{
    Bundle, COLD, Call, ConsoleSocket, Container, Out, Verdict, cap, each, hybrid, long, nothing_left,
    runw_only, skip, supervised, with_cache,
};

/// A kind of container whose making takes other steps than that of the others.
struct Scene {
    name: &'static str,
    bundle: fn() -> Bundle,
    flags: &'static [&'static str],
    terminal: bool,
}

fn plain() -> Bundle {
    Bundle::sparse(&["/bin/sleep", "100"])
}

/// As many steps as one container can have.
fn rich() -> Bundle {
    let bundle = plain();
    let dir = bundle.outside("shared");
    std::fs::write(dir.join("file"), "x").expect("write");
    bundle
        .bind(&dir, "/mnt/dir", &["rbind", "ro", "rslave"])
        .bind(&dir.join("file"), "/mnt/file", &["bind", "nosuid"])
        .mount("/etc", "tmpfs", Path::new("tmpfs"), &["tmpcopyup", "mode=755"])
        .mount("/sys/fs/cgroup", "cgroup", Path::new("cgroup"), &["ro"])
        .namespace("time", None)
        .edit(|c| {
            c["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 5, "nanosecs": 0}});
            c["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
            c["linux"]["rootfsPropagation"] = json!("shared");
            c["linux"]["devices"] = json!([{"path": "/dev/own", "type": "c", "major": 1, "minor": 3}]);
            c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]});
            c["hostname"] = json!("host");
            c["domainname"] = json!("domain");
            c["root"]["readonly"] = json!(true);
            c["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [5, 6]});
            c["process"]["capabilities"] = cap(&["CAP_KILL", "CAP_CHOWN"]);
            c["process"]["noNewPrivileges"] = json!(false);
        })
}

fn user_namespace() -> Bundle {
    plain().user_namespace().namespace("uts", Some(Path::new("/proc/self/ns/uts"))).edit(|c| {
        c.as_object_mut().expect("object").remove("hostname");
    })
}

fn host_mounts() -> Bundle {
    let bundle = plain();
    let dir = bundle.outside("shared");
    bundle.bind(&dir, "/mnt", &["rbind", "ro"]).without_namespace("mount").edit(|c| {
        let linux = c["linux"].as_object_mut().expect("object");
        linux.remove("maskedPaths");
        linux.remove("readonlyPaths");
    })
}

fn wasm() -> Bundle {
    Bundle::sparse(&["/app.wasm", "sleep", "100"]).guest("probe.wasm")
}

fn component() -> Bundle {
    Bundle::sparse(&["/app.wasm", "sleep", "100"]).guest("probe-component.wasm")
}

const SCENES: &[Scene] = &[
    Scene { name: "rich", bundle: rich, flags: &[], terminal: true },
    Scene { name: "user namespace", bundle: user_namespace, flags: &[], terminal: false },
    Scene { name: "no pivot", bundle: plain, flags: &["--no-pivot"], terminal: false },
    Scene { name: "wasm", bundle: wasm, flags: &[], terminal: false },
    Scene { name: "component", bundle: component, flags: &[], terminal: false },
    Scene { name: "host mounts", bundle: host_mounts, flags: &[], terminal: false },
];

impl Scene {
    /// Creates with a judge of the calls; the calls of the container's process come back, too.
    fn create(&self, decide: impl FnMut(&Call) -> Verdict + Send + 'static) -> (Container, Out, Vec<Call>) {
        let (c, out, mut calls) = self.supervised(decide);
        calls.retain(|call| !call.by_runtime);
        (c, out, calls)
    }

    /// With the calls of all processes.
    fn supervised(
        &self,
        decide: impl FnMut(&Call) -> Verdict + Send + 'static,
    ) -> (Container, Out, Vec<Call>) {
        let mut bundle = (self.bundle)();
        let mut flags: Vec<String> = self.flags.iter().map(|f| f.to_string()).collect();
        let console = self.terminal.then(|| ConsoleSocket::new(bundle.path()));
        if let Some(console) = &console {
            bundle.config["process"]["terminal"] = json!(true);
            flags.extend(["--console-socket".to_owned(), console.path.to_string_lossy().into_owned()]);
        }
        let c = Container::new(bundle);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let (mut running, calls) = supervised(&mut c.create_command(&flags), decide);
        let out = running.wait();
        let calls = calls.lock().expect("calls").clone();
        // An engine holds the terminal as long as the container lives; its end would be a SIGHUP.
        std::mem::forget(console);
        (c, out, calls)
    }

    /// The calls that a create which nobody disturbs makes in its child.
    fn calls(&self) -> Vec<Call> {
        // The first may compile; the confined child's calls are not the container's.
        self.create(|_| Verdict::Pass).1.ok();
        let (c, out, calls) = self.create(|_| Verdict::Pass);
        out.ok();
        assert_eq!(c.status(), "created");
        calls
    }
}

/// Calls whose failure is no failure of a step: memory that was asked to go, and a descriptor that the kernel closes
/// whatever it answers.
const IGNORED: &[&str] = &["close", "munmap", "madvise", "futex"];

/// The places to fail: numbers of calls, at most `most` of a name.
fn picks(calls: &[Call], most: usize) -> Vec<usize> {
    let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (n, call) in calls.iter().enumerate().filter(|(_, call)| !IGNORED.contains(&call.name.as_str())) {
        by_name.entry(&call.name).or_default().push(n);
    }
    let spread = |all: Vec<usize>| -> Vec<usize> {
        let take = all.len().min(most);
        (0..take).map(|i| all[i * (all.len() - 1) / (take - 1).max(1)]).collect()
    };
    let mut all: Vec<usize> = by_name.into_values().flat_map(spread).collect();
    all.sort_unstable();
    all
}

/// A judge that gives `verdict` on the child's `n`th call.
fn on_call(
    n: usize,
    verdict: impl Fn(&Call) -> Verdict + Send + 'static,
) -> impl FnMut(&Call) -> Verdict + Send + 'static {
    let mut count = 0;
    move |call| {
        if call.by_runtime {
            return Verdict::Pass;
        }
        count += 1;
        if count == n + 1 { verdict(call) } else { Verdict::Pass }
    }
}

fn errno_for(call: &Call) -> i32 {
    match call.name.as_str() {
        "mmap" | "mremap" | "brk" | "mprotect" => libc::ENOMEM,
        _ => libc::EIO,
    }
}

/// What a container can be made without, by design; everything else that fails must fail create.
const TOLERATED: &[&str] = &[
    // Has no failure that its caller can see.
    "umask",
    "getegid",
    "geteuid",
    "getpid",
    "prlimit64",
    // Sizes of buffers, and what std does to find them.
    "statx",
    "lseek",
    // The caller's CPUs are kept then; runc goes on, too.
    "sched_setaffinity",
    // PR_CAPBSET_READ: a capability that the kernel does not confirm is not given.
    "prctl",
    // No null device to be had in the container: stdio that is the host's stays so, as in runc. The first bytes of
    // argv[0] unreadable: it is left to execve. No passwd: HOME is "/".
    "open",
    "openat2",
    "fcntl",
    "read",
    // Owner of the standard streams unknown: left as it is. What a guest's mount is unknown: it is covered.
    "fstat",
    "fstatfs",
    // The way back to the cwd after loading: "/" then (executor/wasm/guest.rs).
    "fchdir",
    // --no-pivot: what cannot be unmounted is covered.
    "umount2",
    // Asked for the version: a kernel without Landlock has none.
    "landlock_create_ruleset",
    // The allocator has two ways to more memory.
    "mmap",
    "brk",
    "mremap",
];

fn sweep(scene: &Scene, most: usize) {
    if runw_only("such a promise") {
        return;
    }
    let calls = scene.calls();
    let passed = Mutex::default();
    each(&picks(&calls, if long() { usize::MAX } else { most }), |n| fail_call(scene, *n, &passed));
    println!("{}: passed {:?}", scene.name, passed.into_inner().expect("passed"));
}

fn fail_call(scene: &Scene, n: usize, passed: &Mutex<BTreeMap<String, usize>>) {
    let (c, out, seen) = scene.create(on_call(n, |call| Verdict::Fail(errno_for(call))));
    // The numbers shift a little between runs (sizes of buffers, randomized names): then nothing failed.
    let Some(call) = seen.get(n) else {
        out.ok();
        return;
    };
    let failed = &call.name;
    let what = format!("{}: call {n}, {failed} {:x?}", scene.name, call.args);
    println!("{what}: {}", out.err.trim());
    if out.code == 0 {
        // A plain mount, the only one with a type of file system, is made by fsopen(2) then.
        let other_way = failed == "mount" && call.args[2] != 0;
        let tolerated = other_way || TOLERATED.iter().chain(IGNORED).any(|name| name == failed);
        assert!(tolerated, "created all the same: {what}");
        assert!(
            // After its last word init only waits: for the runtime's answer, and for `start`.
            c.status() == "created" || failed == "read",
            "{what}: {}",
            c.status()
        );
        *passed.lock().expect("passed").entry(failed.clone()).or_insert(0) += 1;
        c.call(&["delete", "--force", &c.id]).ok();
    } else {
        out.refused(&[]);
        // wasmtime and rand panic on what cannot happen to them (sigaction with good arguments): one line more, and all
        // else as for any error.
        let library = |line: &&str| line.contains("internal error") && line.contains("/.cargo/registry/");
        let lines: Vec<_> = out.err.trim().lines().filter(|line| !library(line)).collect();
        assert_eq!(lines.len(), 1, "{what}: {out:?}");
        let bare = ["failed: input/output error", "failed: cannot allocate memory"];
        assert!(!bare.iter().any(|bare| lines[0].contains(bare)), "{what}: names no step: {out:?}");
    }
    nothing_left(&c);
}

/// The runtime dies right before each of the child's calls; `delete --force` must find all that was made.
fn kill_sweep(scene: &Scene) {
    if runw_only("such a promise") {
        return;
    }
    let calls = scene.calls();
    each(&picks(&calls, if long() { usize::MAX } else { 1 }), |&n| {
        let (c, out, seen) = scene.create(on_call(n, |_| Verdict::KillRuntime));
        // A child that is not waited for may have made the call after create's end.
        let what = format!("{}: killed at call {n}, {:?}", scene.name, seen.get(n).map(|call| &call.name));
        println!("{what}");
        let deleted = c.call(&["delete", "--force", &c.id]);
        assert_eq!(deleted.code, 0, "{what}: {out:?} {deleted:?}");
        nothing_left(&c);
    });
}

/// An exec that fails at any step fails alone.
#[test]
fn each_call_of_an_exec_fails() {
    if runw_only("such a promise") {
        return;
    }
    let c = Container::up(rich().edit(|c| c["process"]["terminal"] = json!(false)));
    let init = c.pid();
    let words = ["--user", "7:8", "--cwd", "/mnt"];
    let exec = |decide: Box<dyn FnMut(&Call) -> Verdict + Send>| {
        let (mut running, calls) = supervised(&mut c.exec_command(&words, &["/bin/echo", "ran"]), decide);
        let out = running.wait();
        let calls: Vec<Call> =
            calls.lock().expect("calls").iter().filter(|call| !call.by_runtime).cloned().collect();
        (out, calls)
    };
    let (out, mut calls) = exec(Box::new(|_| Verdict::Pass));
    assert_eq!(out.ok().out, "ran\n");
    // What comes after the execve is the program's.
    calls.truncate(calls.iter().rposition(|call| call.name == "execve").expect("execve") + 1);
    let mut passed = BTreeMap::new();
    for n in picks(&calls, if long() { usize::MAX } else { 2 }) {
        let (out, seen) = exec(Box::new(on_call(n, |call| Verdict::Fail(errno_for(call)))));
        let what = format!("exec: call {n}, {} {:x?}", seen[n].name, seen[n].args);
        println!("{what}: {} {}", out.code, out.err.trim());
        if out.code == 0 {
            assert_eq!(out.out, "ran\n", "{what}: {out:?}");
            *passed.entry(seen[n].name.clone()).or_insert(0) += 1;
        } else {
            assert_eq!((out.code, out.out.as_str()), (255, ""), "{what}: {out:?}");
            assert_eq!(out.err.trim().lines().count(), 1, "{what}: {out:?}");
        }
        assert_eq!(c.status(), "running", "{what}");
        let alone = || {
            std::fs::read_to_string(c.cgroup("pids").join("cgroup.procs"))
                .is_ok_and(|p| p.trim() == init.to_string())
        };
        crate::harness::until(&format!("nothing but init in the cgroup after {what}"), alone);
    }
    println!("exec: passed {passed:?}");
}

/// A cgroup v2 that hands controllers down takes no process (EBUSY): an init system inside has moved itself below it.
/// The exec goes to where that is, as runc's does.
#[test]
fn an_exec_that_its_cgroup_does_not_take_goes_to_init_s() {
    if runw_only("such a judge") {
        return;
    }
    if !hybrid() {
        return skip("no v2 tree beside v1 controllers");
    }
    let c = Container::up(Bundle::sh("exec sleep 100"));
    let nested = c.cgroup("unified").join("nested");
    std::fs::create_dir(&nested).expect("mkdir");
    std::fs::write(nested.join("cgroup.procs"), c.pid().to_string()).expect("move init");
    let mut clones = 0;
    let busy = move |call: &Call| {
        let clone = call.by_runtime && call.name == "clone3";
        clones += usize::from(clone);
        if clone && clones == 1 { Verdict::Fail(libc::EBUSY) } else { Verdict::Pass }
    };
    let command = &["/bin/grep", "^0:", "/proc/self/cgroup"];
    let (mut running, _) = supervised(&mut c.exec_command(&[], command), busy);
    let out = running.wait().ok();
    assert!(out.out.trim_end().ends_with("/nested"), "{out:?}");
}

#[test]
fn each_call_of_a_rich_container_fails() {
    sweep(&SCENES[0], 2);
}

#[test]
fn each_call_in_a_user_namespace_fails() {
    sweep(&SCENES[1], 1);
}

#[test]
fn each_call_without_pivot_fails() {
    sweep(&SCENES[2], 1);
}

#[test]
fn each_call_of_a_wasm_container_fails() {
    sweep(&SCENES[3], 1);
}

#[test]
fn each_call_of_a_component_s_container_fails() {
    sweep(&SCENES[4], 1);
}

#[test]
fn each_call_without_a_mount_namespace_fails() {
    sweep(&SCENES[5], 1);
}

#[test]
fn a_rich_container_killed_at_each_call_leaves_nothing() {
    kill_sweep(&SCENES[0]);
}

#[test]
fn a_user_namespace_killed_at_each_call_leaves_nothing() {
    kill_sweep(&SCENES[1]);
}

#[test]
fn a_container_without_pivot_killed_at_each_call_leaves_nothing() {
    kill_sweep(&SCENES[2]);
}

#[test]
fn a_wasm_container_killed_at_each_call_leaves_nothing() {
    kill_sweep(&SCENES[3]);
}

#[test]
fn a_component_s_container_killed_at_each_call_leaves_nothing() {
    kill_sweep(&SCENES[4]);
}

#[test]
fn without_a_mount_namespace_one_killed_at_each_call_leaves_nothing() {
    kill_sweep(&SCENES[5]);
}

/// The container's first process is a clone of the runtime: it would have no other thread, but the locks that one
/// held.
#[test]
fn the_runtime_has_one_thread() {
    if runw_only("such a promise") {
        return;
    }
    for scene in SCENES {
        // Also what compiles, in a process of its own, is made by one thread.
        for _ in 0..2 {
            let (_, out, calls) = scene.supervised(|_| Verdict::Pass);
            out.ok();
            assert!(calls.iter().any(|call| call.by_runtime && call.name == "clone3"), "{}", scene.name);
            let other = calls.iter().find(|call| call.by_runtime && !call.by_main_thread);
            assert!(other.is_none(), "{}: {other:?}", scene.name);
        }
    }
    // That a thread would be seen: the compiler has some.
    let c = Container::new(Bundle::wasm("rust-p1.wasm", &[]));
    let mut cold = with_cache(&c.run_command(&[]), COLD);
    let (mut running, calls) = supervised(&mut cold, |_| Verdict::Pass);
    running.wait().ok();
    assert!(calls.lock().expect("calls").iter().any(|call| !call.by_runtime && !call.by_main_thread));
}

/// Linux before 5.12 has no mount_setattr(2). What it would have made private or a slave must not stay a peer of the
/// host's mounts, or everything mounted in the container appears there.
#[test]
fn without_mount_setattr_nothing_is_mounted_on_the_host() {
    if runw_only("such a fallback") {
        return;
    }
    let bundle = Bundle::sh("echo ran; touch /x /mnt/x 2>/dev/null && echo wrote; exit 0")
        .edit(|c| c["root"]["readonly"] = json!(true));
    let dir = bundle.outside("shared");
    std::fs::create_dir(dir.join("below")).expect("mkdir");
    let tmpfs = Path::new("tmpfs");
    let c =
        Container::new(bundle.bind(&dir, "/mnt", &["rbind", "ro"]).mount("/mnt/below", "tmpfs", tmpfs, &[]));
    // Other tests' mounts may be there.
    let line = r#"mount --make-rshared / && "$@"; echo status $?; grep -F "$0" /proc/self/mountinfo"#;
    let command = c.run_command(&[]);
    let mut shell = Command::new("unshare");
    shell
        .args(["-m", "sh", "-c", line])
        .arg(c.bundle.path())
        .arg(command.get_program())
        .args(command.get_args());
    let (mut running, _) = supervised(&mut shell, |call| match call.name.as_str() {
        "mount_setattr" => Verdict::Fail(libc::ENOSYS),
        _ => Verdict::Pass,
    });
    let out = running.wait();
    assert!(out.out.contains("ran\nstatus 0"), "{out:?}");
    assert!(out.out.trim_end().ends_with("status 0"), "mounts of the container are on the host: {out:#?}");
    nothing_left(&c);
}
