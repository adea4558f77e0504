//! What an image or an unlucky moment may do to the sequence: names planted where runw would look, kills while a hook
//! or the compiler works.

use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::inotify;
use serde_json::json;

use crate::harness::{Bundle, Container, alive, nothing_left, runw_only, script, spawn, until, with_cache};

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
