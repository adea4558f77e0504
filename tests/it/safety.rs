//! The sequence under attack: killed at any point, made to fail at any step, raced, and overwritten from inside.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Bundle, Container, Kind, cap, differs, each, kind, long, nothing_left, run, runtime, runw_only, skip,
    spawn,
};

/// True, with a skip, when strace cannot inject here.
fn no_strace() -> bool {
    let probe =
        run(Command::new("strace").args(["-o", "/dev/null", "-e", "inject=getppid:error=EIO", "/bin/true"]));
    let no = probe.code != 0;
    if no {
        skip("strace cannot inject on this machine");
    }
    no
}

/// The runtime's own process under strace with one injection. Not its children (`-f` hangs on create), which is
/// just what is wanted: the runtime fails or dies, the container's process must follow by itself.
fn injected(c: &Container, what: &str) -> crate::harness::Out {
    let command = c.create_command(&[]);
    let mut strace = Command::new("timeout");
    strace.args(["-s", "KILL", "30", "strace", "-q", "-o"]).arg(c.bundle.path().join("trace"));
    strace.arg("-e").arg(format!("inject={what}"));
    spawn(strace.arg(command.get_program()).args(command.get_args())).wait()
}

fn plain() -> Bundle {
    Bundle::sparse(&["/bin/sleep", "100"])
}

/// How many system calls, all of them or of one name, a create that succeeds makes.
fn count_calls(bundle: Bundle, name: &str) -> usize {
    let c = Container::new(bundle);
    let command = c.create_command(&[]);
    let trace = c.bundle.path().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-q", "-e"]).arg(format!("trace={name}")).arg("-o").arg(&trace);
    spawn(strace.arg(command.get_program()).args(command.get_args())).wait().ok();
    std::fs::read_to_string(trace).expect("trace").lines().filter(|l| l.contains('(')).count()
}

#[test]
fn killed_at_any_moment_delete_force_cleans_up() {
    if runw_only("such a promise: 1.1 leaves cgroups behind") {
        return;
    }
    let points: u64 = if long() { 400 } else { 30 };
    each(&Vec::from_iter(0..points), |i| {
        let c = Container::new(plain());
        let mut running = spawn(&mut c.create_command(&[]));
        std::thread::sleep(Duration::from_micros(i * 40_000 / points));
        let _ = running.child.kill();
        let _ = running.child.wait();
        c.call(&["delete", "--force", &c.id]).ok();
        nothing_left(&c);
    });
}

#[test]
fn killed_at_each_system_call_delete_force_cleans_up() {
    if runw_only("such a promise: 1.1 leaves cgroups behind") || no_strace() {
        return;
    }
    let total = count_calls(plain(), "all");
    let step = if long() { 1 } else { (total / 40).max(1) };
    each(&Vec::from_iter((1..=total).step_by(step)), |n| {
        let c = Container::new(plain());
        injected(&c, &format!("all:signal=SIGKILL:when={n}"));
        let out = c.call(&["delete", "--force", &c.id]);
        assert_eq!(out.code, 0, "killed at call {n} of {total}: {out:?}");
        nothing_left(&c);
    });
}

/// Whatever may fail between the first look at the bundle and the last word to the caller.
const CALLS: &str = "mkdir mkdirat openat open openat2 write writev pwrite64 clone3 clone socketpair pipe2 sendmsg \
    sendto recvmsg recvfrom read rename renameat renameat2 open_tree move_mount mount_setattr mount \
    fsopen fsmount prlimit64 bind listen connect socket chmod fchmod fchmodat flock seccomp poll \
    ppoll pidfd_open unlink unlinkat fsync ftruncate bpf statfs fstatfs readlink readlinkat \
    getdents64 setns unshare symlinkat";

#[test]
fn each_call_of_the_runtime_made_to_fail() {
    if runw_only("such a promise") || no_strace() {
        return;
    }
    let most = if long() { usize::MAX } else { 3 };
    for name in CALLS.split_whitespace() {
        let total = count_calls(plain(), name);
        // First, last and middle calls say most; `make test-all` takes each.
        let picks: Vec<usize> =
            if total <= most { (1..=total).collect() } else { vec![1, total / 2 + 1, total] };
        each(&picks, |n| {
            let c = Container::new(plain());
            let out = injected(&c, &format!("{name}:error=EIO:when={n}"));
            assert_ne!(out.code, 137, "{name} {n} of {total} made create hang: {out:?}");
            if out.code == 0 {
                // It can do without that call; then the container must be whole.
                assert_eq!(c.status(), "created", "{name} {n} of {total}");
                c.call(&["delete", "--force", &c.id]).ok();
            }
            nothing_left(&c);
        });
    }
}

type Edit = fn(&mut Value);

/// Each breaks one step that the container's own process takes, from its first to its last.
fn broken_steps() -> Vec<(&'static str, Edit)> {
    fn mount(c: &mut Value, m: Value) {
        c["mounts"].as_array_mut().expect("mounts").push(m);
    }
    vec![
        ("id maps", |c| {
            c["linux"]["namespaces"].as_array_mut().expect("ns").push(json!({"type": "user"}));
            c["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 10}, {"containerID": 5, "hostID": 5, "size": 10}]);
            c["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 10}]);
        }),
        ("a mount", |c| {
            mount(
                c,
                json!({"destination": "/x", "type": "tmpfs", "source": "t", "options": ["size=nonsense"]}),
            )
        }),
        ("a mount on a file", |c| {
            mount(c, json!({"destination": "/etc/passwd/x", "type": "tmpfs", "source": "t"}))
        }),
        ("a bind on the wrong kind", |c| {
            mount(
                c,
                json!({"destination": "/etc", "type": "bind", "source": "/etc/passwd", "options": ["bind"]}),
            )
        }),
        ("a device", |c| {
            c["linux"]["devices"] = json!([{"path": "/etc/passwd/dev", "type": "c", "major": 1, "minor": 3}])
        }),
        ("a device type", |c| {
            c["linux"]["devices"] = json!([{"path": "/dev/x", "type": "z", "major": 1, "minor": 3}])
        }),
        ("a sysctl", |c| c["linux"]["sysctl"] = json!({"net.ipv4.no_such_thing": "1"})),
        ("a sysctl's value", |c| c["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "nonsense"})),
        ("the host name", |c| c["hostname"] = json!("x".repeat(65))),
        ("a read-only path below a file", |c| c["linux"]["readonlyPaths"] = json!(["/etc/passwd/x"])),
        ("a rlimit", |c| {
            c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 20, "hard": 10}])
        }),
        ("the cwd", |c| c["process"]["cwd"] = json!("/etc/passwd")),
        ("the user", |c| {
            c["linux"]["namespaces"].as_array_mut().expect("ns").push(json!({"type": "user"}));
            c["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 10}]);
            c["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 10}]);
            c["process"]["user"] = json!({"uid": 4242, "gid": 0});
        }),
        ("the program", |c| c["process"]["args"] = json!(["/no/such/program"])),
        ("the createContainer hook", |c| c["hooks"] = json!({"createContainer": [{"path": "/bin/false"}]})),
        ("an AppArmor profile", |c| c["process"]["apparmorProfile"] = json!("no-such-profile")),
        ("an SELinux label", |c| c["process"]["selinuxLabel"] = json!("system_u:system_r:no_such_t:s0")),
    ]
}

#[test]
fn each_step_of_the_container_made_to_fail() {
    let mut passed = Vec::new();
    for (step, f) in broken_steps() {
        let mut c = Container::new(Bundle::sh("exec sleep 100").edit(f));
        let out = c.create_with(&[]);
        if out.code == 0 {
            passed.push(step);
            c.call(&["delete", "--force", &c.id]).ok();
        } else {
            assert_eq!(out.code, 1, "{step}: {out:?}");
            assert!(!out.err.trim().is_empty(), "{step} failed in silence");
        }
        nothing_left(&c);
    }
    // What one can run all the same: a path that cannot exist needs no protection. The rest must not pass with runw.
    let may_pass = ["a read-only path below a file"];
    if kind() == Kind::Runw {
        passed.retain(|s| !may_pass.contains(s));
        assert!(passed.is_empty(), "created all the same: {passed:?}");
    }
}

#[test]
fn two_creates_of_one_id_exactly_one_wins() {
    if differs(Kind::Runc, "1.1 has no lock between its check and its mkdir")
        || differs(Kind::Crun, "1.8 has the same race")
    {
        return;
    }
    for _ in 0..if long() { 50 } else { 6 } {
        let c = Container::new(Bundle::sh("exec sleep 100"));
        let all: Vec<_> = (0..6).map(|_| spawn(&mut c.create_command(&[]))).collect();
        let outs: Vec<_> = all.into_iter().map(|mut r| r.wait()).collect();
        assert_eq!(outs.iter().filter(|o| o.code == 0).count(), 1, "{outs:#?}");
        for out in outs.iter().filter(|o| o.code != 0) {
            out.refused(&["container with given ID already exists"]);
        }
        assert_eq!(c.status(), "created");
        assert_eq!(c.call(&["start", &c.id]).code, 0);
        c.call(&["delete", "--force", &c.id]).ok();
        nothing_left(&c);
    }
}

#[test]
fn delete_races_with_delete() {
    let c = Container::up(Bundle::sh("exec sleep 100"));
    let all: Vec<_> = (0..4).map(|_| spawn(&mut c.command(&["delete", "--force", &c.id]))).collect();
    for mut one in all {
        let out = one.wait();
        assert!(out.code == 0 || kind() != Kind::Runw, "{out:?}");
    }
    nothing_left(&c);
}

/// Every way a container's root has to open the runtime for writing.
const OVERWRITE: &str = "for p in /proc/[0-9]*; do \
    (echo broken >$p/exe) 2>/dev/null && echo wrote $p; \
    (exec 3<$p/exe; echo broken >/proc/self/fd/3) 2>/dev/null && case $(readlink $p/exe) in */busybox) ;; *) echo wrote fd of $p;; esac; \
    done; echo tried";

#[test]
fn the_binary_cannot_be_overwritten_from_inside() {
    let before = std::fs::read(runtime()).expect("the runtime's file");
    let everything = cap(&[
        "CAP_SYS_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
        "CAP_CHOWN",
    ]);
    // While the runtime itself is pid 1, waiting for start.
    let mut c = Container::new(
        Bundle::sh("exec sleep 100").edit(|c| c["process"]["capabilities"] = everything.clone()),
    );
    c.create();
    if kind() == Kind::Runw {
        nothing_leads_to_the_binary(c.pid());
    }
    if kind() != Kind::Crun {
        let out = c.exec(&[], &["/bin/sh", "-c", OVERWRITE]);
        assert!(out.out.contains("tried"), "{out:?}");
    }
    c.start();
    // While exec enters: the image's program is a script whose interpreter is the process's own exe (CVE-2019-5736).
    let trap = c.bundle.rootfs().join("bin/trap");
    crate::harness::script(&trap, "");
    std::fs::write(&trap, "#!/proc/self/exe\n").expect("write");
    for _ in 0..5 {
        let mut exec = spawn(&mut c.exec_command(&[], &["/bin/trap"]));
        let attack = c.exec(&[], &["/bin/sh", "-c", OVERWRITE]);
        assert!(attack.out.contains("tried"), "{attack:?}");
        exec.wait();
    }
    assert!(std::fs::read(runtime()).expect("the runtime's file") == before, "the runtime was overwritten");
}

/// The waiting init runs from a mount that nobody can write to or change, all that is mapped of it included. Who tries
/// here is root on the host, and so has more rights than any container.
fn nothing_leads_to_the_binary(pid: i32) {
    let process = Path::new("/proc").join(pid.to_string());
    let mapped = std::fs::read_dir(process.join("map_files")).expect("map_files");
    let mut files: Vec<_> = mapped.map(|entry| entry.expect("map_files").path()).collect();
    assert!(files.len() >= 3, "{files:?}");
    files.push(process.join("exe"));
    for file in files {
        let refused = OpenOptions::new().append(true).open(&file).expect_err("opened to write");
        // ETXTBSY, which comes first, is only for as long as somebody executes it.
        let kinds = [ErrorKind::ReadOnlyFilesystem, ErrorKind::ExecutableFileBusy];
        assert!(kinds.contains(&refused.kind()), "{}: {refused}", file.display());
        // The mount is asked first.
        let refused = OpenOptions::new().write(true).truncate(true).open(&file).expect_err("truncated");
        assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem, "{}: {refused}", file.display());
        the_mount_stays_read_only(&file);
    }
}

/// Every way the kernel has to make a mount writable, to get a writable one of it, or to put it where it can be found.
fn the_mount_stays_read_only(file: &Path) {
    use rustix::mount::{self, MountFlags, MoveMountFlags, OpenTreeFlags};
    let handle = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(file).expect("a handle");
    let mounted = rustix::fs::fstatvfs(&handle).expect("fstatvfs");
    assert!(mounted.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{}", file.display());
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let from_handle = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let place = tempfile::NamedTempFile::new().expect("a file");
    let attempts = [
        ("mount_setattr", make_writable(handle.as_fd())),
        ("remount", mount::mount_remount(file, MountFlags::BIND, c"")),
        ("bind", mount::mount_bind(file, place.path())),
        ("open_tree", mount::open_tree(&handle, "", clone | OpenTreeFlags::AT_EMPTY_PATH).map(drop)),
        ("move_mount", mount::move_mount(&handle, "", rustix::fs::CWD, place.path(), from_handle)),
    ];
    for (what, came) in attempts {
        assert_eq!(came, Err(rustix::io::Errno::INVAL), "{what} of {}", file.display());
    }
    // The control: a mount of the same file that still has a handle.
    let tree = mount::open_tree(rustix::fs::CWD, runtime(), clone).expect("open_tree");
    assert_eq!(make_writable(tree.as_fd()), Ok(()));
}

fn make_writable(mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let clear = libc::mount_attr { attr_set: 0, attr_clr: MOUNT_ATTR_RDONLY, propagation: 0, userns_fd: 0 };
    // SAFETY: the string ends in NUL, and the structure is as large as is said.
    let done = unsafe {
        let (size, fd) = (size_of_val(&clear), mount.as_raw_fd());
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), libc::AT_EMPTY_PATH, &raw const clear, size)
    };
    if done == 0 {
        Ok(())
    } else {
        Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap())
    }
}

/// Where the kernel cannot seal by a mount.
#[test]
fn without_a_sealing_mount_it_is_a_sealed_memfd() {
    if runw_only("how runw seals itself") || no_strace() {
        return;
    }
    for call in ["open_tree:error=EPERM:when=1", "mount_setattr:error=ENOSYS:when=1"] {
        let c = Container::new(plain());
        let out = injected(&c, call);
        assert_eq!(out.code, 0, "{call}: {out:?}");
        let exe = format!("/proc/{}/exe", c.pid());
        let name = std::fs::read_link(&exe).expect("exe");
        assert_eq!(name, Path::new("/memfd:runw (deleted)"), "{call}");
        let written = OpenOptions::new().append(true).open(&exe).and_then(|mut file| file.write_all(b"x"));
        assert!(written.is_err(), "{call}");
        c.call(&["delete", "--force", &c.id]).ok();
    }
}

/// A neighbour in the same pid namespace takes a descriptor of the waiting init's exe and writes when it is gone.
#[test]
fn a_neighbour_cannot_keep_the_binary_for_later() {
    let before = std::fs::read(runtime()).expect("the runtime's file");
    let caps =
        cap(&["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_KILL"]);
    let neighbour =
        Container::up(Bundle::sh("exec sleep 100").edit(|c| c["process"]["capabilities"] = caps.clone()));
    let ns = format!("/proc/{}/ns/pid", neighbour.pid());
    let mut victim =
        Container::new(Bundle::sh("exec sleep 100").namespace("pid", Some(std::path::Path::new(&ns))));
    victim.create();
    let line = "for p in /proc/[0-9]*; do [ $p = /proc/1 ] || [ $p = /proc/$$ ] || exec 3<$p/exe; done 2>/dev/null; echo holding; \
                sleep 1; (echo broken >/proc/self/fd/3) 2>&1; echo done";
    let mut attack = spawn(&mut neighbour.exec_command(&[], &["/bin/sh", "-c", line]));
    crate::harness::until("the attacker holds the file", || attack.out().contains("holding"));
    victim.call(&["delete", "--force", &victim.id]);
    assert!(attack.wait().out.contains("done"));
    assert!(std::fs::read(runtime()).expect("the runtime's file") == before, "the runtime was overwritten");
}

/// The control of both: the same lines do overwrite a program that is not protected.
#[test]
fn an_unprotected_binary_is_overwritten_from_inside() {
    let caps =
        cap(&["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_KILL"]);
    let c = Container::up(Bundle::sh("exec sleep 100").edit(|c| c["process"]["capabilities"] = caps.clone()));
    // busybox looks at the beginning of its name.
    let victim = c.bundle.path().join("busybox-victim");
    std::fs::copy("/bin/busybox", &victim).expect("copy");
    // A program of the host's in the container's pid namespace, as a runtime that joins it.
    let joined = format!("--pid=/proc/{}/ns/pid", c.pid());
    let mut nsenter = Command::new("nsenter");
    let mut guest = spawn(nsenter.arg(joined).arg("--").arg(&victim).args(["sleep", "100"]));
    let line = "until [ -n \"$p\" ]; do p=$(grep -lx busybox-victim /proc/[0-9]*/comm); p=${p%/comm}; done 2>/dev/null; \
        exec 3<$p/exe; kill -9 ${p#/proc/}; until (echo broken >/proc/self/fd/3) 2>/dev/null; do :; done";
    c.exec(&[], &["/bin/timeout", "20", "/bin/sh", "-c", line]).ok();
    guest.wait();
    assert_eq!(std::fs::read(&victim).expect("read"), b"broken\n");
}

#[test]
fn a_wasm_init_cannot_be_overwritten_or_read() {
    if runw_only("wasm") {
        return;
    }
    let before = std::fs::read(runtime()).expect("the runtime's file");
    let c = Container::up(Bundle::wasm("probe.wasm", &["say", "up", "sleep", "100"]));
    c.wait_out("up");
    let out = c.exec(&["--cap", "CAP_SYS_PTRACE", "--cap", "CAP_SYS_ADMIN"], &["/bin/sh", "-c", OVERWRITE]);
    assert!(out.out.contains("tried"), "{out:?}");
    assert!(std::fs::read(runtime()).expect("the runtime's file") == before, "the runtime was overwritten");
    let environ = c.sh("cat /proc/1/environ 2>/dev/null | tr -d '\\0'");
    assert_eq!(environ, "");
}

#[test]
fn state_that_is_torn_does_not_stop_delete_force() {
    if runw_only("such a promise") {
        return;
    }
    for torn in ["", "{", "{}", "null"] {
        let mut c = Container::new(Bundle::sh("exec sleep 100"));
        c.create();
        let file = c.root().join(&c.id).join("state.json");
        let whole = std::fs::read(&file).expect("state.json");
        std::fs::write(&file, torn).expect("tear");
        let listed = c.call(&["list", "-q"]);
        assert_eq!(listed.code, 0, "one torn state fails the whole list: {listed:?}");
        assert_eq!(c.call(&["state", &c.id]).code, 1);
        std::fs::write(&file, whole).expect("mend");
        c.call(&["delete", "--force", &c.id]).ok();
        nothing_left(&c);
    }
}
