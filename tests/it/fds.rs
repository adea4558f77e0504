//! What a container's first process holds open: nothing it was not given.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Bundle, Container, run, runw_only, until};

fn open_fds(pid: i32) -> Vec<(u32, PathBuf)> {
    let mut all: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("fd directory")
        .flatten()
        .map(|e| {
            (
                e.file_name().to_string_lossy().parse().expect("a number"),
                std::fs::read_link(e.path()).expect("link"),
            )
        })
        .collect();
    all.sort();
    all
}

/// The caller leaks descriptors, as engines do.
fn leaky(command: &Command, dir: &std::path::Path) -> crate::harness::Out {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(r#"exec 3<"$0" 5</etc/passwd 7>/dev/null 9</; exec "$@""#).arg(dir);
    run(shell.arg(command.get_program()).args(command.get_args()))
}

#[test]
fn a_native_program_starts_with_three() {
    let c = Container::new(Bundle::sh("exec sleep 100"));
    leaky(&c.run_command(&["--detach"]), c.bundle.path()).ok();
    until("the program runs", || {
        std::fs::read_to_string(format!("/proc/{}/comm", c.pid())).is_ok_and(|t| t.trim() == "sleep")
    });
    let fds = open_fds(c.pid());
    assert_eq!(fds.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 1, 2], "{fds:?}");
}

#[test]
fn a_native_exec_starts_with_three() {
    let c = Container::up(Bundle::sh("exec sleep 100"));
    let file = c.bundle.path().join("pid");
    leaky(
        &c.exec_command(&["--detach", "--pid-file", file.to_str().expect("utf-8")], &["/bin/sleep", "99"]),
        c.bundle.path(),
    )
    .ok();
    let pid: i32 = std::fs::read_to_string(file).expect("pid file").trim().parse().expect("a number");
    until("the program runs", || {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|t| t.trim() == "sleep")
    });
    let fds = open_fds(pid);
    assert_eq!(fds.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 1, 2], "{fds:?}");
}

#[test]
fn the_waiting_init_holds_no_host_directory() {
    if runw_only("such a promise between create and start") {
        return;
    }
    let mut c = Container::new(Bundle::sh("exec sleep 100"));
    leaky(&c.create_command(&[]), c.bundle.path()).ok();
    let fds = open_fds(c.pid());
    for (n, path) in &fds {
        let dir = std::fs::metadata(format!("/proc/{}/fd/{n}", c.pid())).is_ok_and(|m| m.is_dir());
        assert!(!dir, "{n} is the directory {}: {fds:?}", path.display());
    }
    c.start();
}

/// Every descriptor of a wasm init is of a kind on this list, and none shows a way out.
#[test]
fn a_wasm_init_s_descriptors_are_each_accounted_for() {
    if runw_only("wasm") {
        return;
    }
    for guest in ["probe.wasm", "probe-component.wasm"] {
        let bundle = Bundle::wasm(guest, &["say", "up", "sleep", "100"]);
        let rootfs = std::fs::metadata(bundle.rootfs()).expect("stat");
        let c = Container::new(bundle);
        let log = c.bundle.path().join("out");
        let mut command = c.run_command(&["--detach"]);
        command.stdout(std::fs::File::create(&log).expect("file"));
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(r#"exec 3<"$0" 5</etc/passwd 9</; exec "$@""#).arg(c.bundle.path());
        shell.arg(command.get_program()).args(command.get_args()).stdin(std::process::Stdio::null());
        assert!(shell.stdout(std::fs::File::create(&log).expect("file")).status().expect("run").success());
        until("the guest runs", || std::fs::read_to_string(&log).is_ok_and(|t| t.contains("up")));
        let pid = c.pid();
        for (n, path) in open_fds(pid).into_iter().filter(|(n, _)| *n > 2) {
            account(pid, n, &path.to_string_lossy(), (rootfs.dev(), rootfs.ino()), &c);
        }
        let environ = std::fs::read(format!("/proc/{pid}/environ")).expect("environ");
        assert!(environ.iter().all(|b| *b == 0), "{}", String::from_utf8_lossy(&environ));
    }
}

fn account(pid: i32, n: u32, path: &str, rootfs: (u64, u64), c: &Container) {
    let meta = std::fs::metadata(format!("/proc/{pid}/fd/{n}")).expect("stat a descriptor");
    let kernel_object =
        ["anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[timerfd]", "anon_inode:[signalfd]"];
    if kernel_object.contains(&path) || path.starts_with("socket:[") {
        return;
    }
    let root = c.root().to_string_lossy().into_owned();
    assert!(!path.starts_with(&root), "{n} is in the state directory: {path}");
    if meta.is_dir() {
        assert_eq!((meta.dev(), meta.ino()), rootfs, "{n} is a directory that is not the guest tree: {path}");
        return;
    }
    let flags = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{n}")).expect("fdinfo");
    let read_only =
        flags.lines().any(|l| l.starts_with("flags:") && l.trim_end().ends_with(|d| "04".contains(d)));
    assert!(
        meta.is_file() && read_only && meta.mode() & 0o222 == 0,
        "{n} is not the artifact: {path} {flags}"
    );
}
