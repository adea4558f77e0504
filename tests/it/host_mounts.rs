//! A container without a mount namespace: what it mounts is mounted on the host, and goes with it. runc and crun leave
//! it there, and runc makes every mount of the host a slave: they are not asked.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{Bundle, Container, nothing_left, runw_only, spawn, until};

fn bundle(text: &str) -> Bundle {
    on_host(Bundle::sh(text))
}

fn on_host(bundle: Bundle) -> Bundle {
    bundle.without_namespace("mount").edit(|c| {
        let linux = c["linux"].as_object_mut().expect("object");
        linux.remove("maskedPaths");
        linux.remove("readonlyPaths");
    })
}

fn only_runw() -> bool {
    runw_only("a container without a mount namespace that leaves nothing on the host")
}

/// Lines of mountinfo below the bundle, and how many of them hand mounts on.
fn mounts(c: &Container) -> Vec<String> {
    let dir = c.bundle.path().to_string_lossy().into_owned();
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    text.lines().filter(|line| line.contains(&dir)).map(str::to_owned).collect()
}

#[test]
fn its_mounts_are_the_host_s_and_go_with_it() {
    if only_runw() {
        return;
    }
    let b = bundle("readlink /proc/self/ns/mnt; cat /mnt/file; ls /; echo kept >/mnt/new; exec sleep 100");
    let dir = b.outside("shared");
    std::fs::write(dir.join("file"), "bound\n").expect("write");
    let c = Container::up(b.bind(&dir, "/mnt", &["rbind"]));
    c.wait_out("usr");
    let ours = std::fs::read_link("/proc/self/ns/mnt").expect("link");
    assert!(c.out().starts_with(&format!("{}\nbound\n", ours.display())), "{}", c.out());
    assert!(!c.out().contains("boot"), "the host's root: {}", c.out());
    assert!(mounts(&c).len() >= 5, "root, proc, dev, sys and the bind: {:#?}", mounts(&c));
    until("written", || dir.join("new").exists());
    assert_eq!(
        c.exec(&[], &["/bin/sh", "-c", "cat /mnt/file; echo /*"]).ok().out.lines().next(),
        Some("bound")
    );
    let host_root = std::fs::metadata("/").expect("stat");
    let seen = c.exec(&[], &["stat", "-c", "%d:%i", "/"]).ok().out;
    use std::os::unix::fs::MetadataExt;
    assert_ne!(seen.trim(), format!("{}:{}", host_root.dev(), host_root.ino()), "exec is in the host's root");
    c.kill("KILL").ok();
    c.wait_stopped();
    c.delete().ok();
    nothing_left(&c);
    assert_eq!(std::fs::read_to_string(dir.join("file")).expect("the bind's source"), "bound\n");
    assert!(c.bundle.rootfs().join("bin/busybox").exists(), "the image");
}

#[test]
fn run_leaves_nothing_either() {
    if only_runw() {
        return;
    }
    let c = Container::new(bundle("echo ran; exit 3"));
    let out = c.run();
    assert_eq!((out.code, out.out.as_str()), (3, "ran\n"), "{out:?}");
    nothing_left(&c);
}

#[test]
fn a_create_that_fails_takes_its_mounts_back() {
    if only_runw() {
        return;
    }
    // The last step before the program that can fail: all is mounted by then.
    let mut c = Container::new(bundle("true").edit(|c| c["process"]["args"] = json!(["/no/such/program"])));
    c.create_with(&[]).refused(&["no such file or directory"]);
    nothing_left(&c);
    let hook = json!({"createRuntime": [{"path": "/bin/false"}]});
    let mut c = Container::new(bundle("true").edit(|c| c["hooks"] = hook));
    c.create_with(&[]).refused(&["createRuntime"]);
    nothing_left(&c);
}

#[test]
fn what_a_killed_create_has_mounted_is_found_by_delete() {
    if only_runw() {
        return;
    }
    let mut b = bundle("true");
    let pid = b.path().join("hook");
    let hook = format!("echo $$ >{}; exec sleep 47.3", pid.display());
    b.config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]});
    let c = Container::new(b);
    let mut creating = spawn(&mut c.create_command(&[]));
    let read = || std::fs::read_to_string(&pid).unwrap_or_default();
    until("mounted, and the hook", || read().ends_with('\n'));
    assert!(mounts(&c).iter().any(|line| line.contains("/dev/pts")), "{:#?}", mounts(&c));
    for pid in [creating.pid().to_string(), read().trim().to_owned()] {
        assert!(Command::new("kill").args(["-9", &pid]).status().expect("kill").success());
    }
    creating.wait();
    assert!(!mounts(&c).is_empty());
    c.call(&["delete", "--force", &c.id]).ok();
    nothing_left(&c);
}

/// A shared mount hands its children on: with the container's among them, they would be in every namespace of the host
/// for good.
#[test]
fn nothing_is_handed_on_and_nothing_of_the_host_changes() {
    if only_runw() {
        return;
    }
    let c = Container::new(bundle("true"));
    c.bundle.save();
    let runw = |words: &str| {
        format!("{} --root {} {words} {}", crate::harness::runtime().display(), c.root().display(), c.id)
    };
    let script = format!(
        r#"set -e
        mount --make-rshared /
        table() {{ cut -d' ' -f 1-7 /proc/self/mountinfo; }}
        table >$T/before
        unshare --mount --propagation slave sh -c 'touch $T/up; exec sleep 100' & other=$!
        until [ -e $T/up ]; do :; done
        {create}
        grep -c "$T/rootfs/" /proc/self/mountinfo >$T/made
        grep "$T/rootfs/" /proc/$other/mountinfo >$T/handed || true
        {delete}
        table >$T/after
        grep "$T/rootfs" /proc/$other/mountinfo >$T/stays || true
        kill -9 $other; cmp $T/before $T/after"#,
        create = runw(&format!("create --bundle {}", c.bundle.path().display())),
        delete = runw("delete"),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).env("T", c.bundle.path());
    let status = command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).status();
    let read = |name: &str| std::fs::read_to_string(c.bundle.path().join(name)).unwrap_or_default();
    let status = status.expect("unshare");
    assert!(status.success(), "{:?} {}\n{}", status.signal(), read("before"), read("after"));
    assert!(read("made").trim().parse::<u32>().expect("a number") >= 3, "{}", read("made"));
    assert_eq!((read("handed").as_str(), read("stays").as_str()), ("", ""));
    nothing_left(&c);
}

#[test]
fn what_is_mounted_over_its_root_is_not_taken_for_it() {
    if only_runw() {
        return;
    }
    let mut c = Container::new(bundle("true"));
    c.create();
    let over = c.bundle.rootfs();
    let mount = |words: &[&str]| {
        assert!(Command::new("mount").args(words).arg(&over).status().expect("mount").success());
    };
    mount(&["-t", "tmpfs", "tmpfs"]);
    c.call(&["delete", &c.id]).refused(&["something else is mounted over it"]);
    assert!(mounts(&c).iter().any(|line| line.contains(" - tmpfs ") && line.contains("rootfs ")));
    assert!(Command::new("umount").arg(&over).status().expect("umount").success());
    c.delete().ok();
    nothing_left(&c);

    // Unmounted by somebody else, and another mount in its place, which may have its number.
    c.create();
    assert!(
        Command::new("umount")
            .arg("--recursive")
            .arg("--lazy")
            .arg(&over)
            .status()
            .expect("umount")
            .success()
    );
    mount(&["-t", "tmpfs", "tmpfs"]);
    c.call(&["delete", "--force", &c.id]).ok();
    assert_eq!(mounts(&c).len(), 1, "{:#?}", mounts(&c));
    assert!(Command::new("umount").arg(&over).status().expect("umount").success());
    nothing_left(&c);
}

#[test]
fn what_takes_a_mount_namespace_is_refused_without() {
    if only_runw() {
        return;
    }
    let masked = Bundle::sh("true").without_namespace("mount");
    let over = bundle("true").mount("/", "tmpfs", Path::new("tmpfs"), &[]);
    for (bundle, words) in [
        (masked, "unable to restrict sys entries without a private MNT namespace"),
        (bundle("true").user_namespace(), "linux.namespaces: a user namespace needs a mount namespace"),
        (over, "destination / needs a mount namespace"),
    ] {
        let mut c = Container::new(bundle);
        c.create_with(&[]).refused(&[words]);
        nothing_left(&c);
    }
    // The one we are in, by its path, is none of the container's own.
    let own = Bundle::sh("true").namespace("mount", Some(Path::new("/proc/self/ns/mnt")));
    let mut c = Container::new(own);
    c.create_with(&[]).refused(&["without a private MNT namespace"]);
    nothing_left(&c);
    let own = bundle("echo in").namespace("mount", Some(Path::new("/proc/self/ns/mnt")));
    let c = Container::new(own);
    assert_eq!(c.run().ok().out, "in\n");
    nothing_left(&c);
}

#[test]
fn a_wasm_guest_sees_the_container_s_files() {
    if only_runw() {
        return;
    }
    let b = on_host(Bundle::wasm("probe.wasm", &["read", "/etc/own"]));
    std::fs::create_dir_all(b.rootfs().join("etc")).expect("mkdir");
    std::fs::write(b.rootfs().join("etc/own"), "mine\n").expect("write");
    let c = Container::new(b);
    let out = c.run().ok().out;
    assert!(out.contains("mine"), "{out}");
    nothing_left(&c);
}

#[test]
fn a_read_only_root_and_a_terminal() {
    if only_runw() {
        return;
    }
    let b = bundle("touch /x 2>&1; touch /dev/x && echo dev; tty").edit(|c| {
        c["root"]["readonly"] = json!(true);
        c["process"]["terminal"] = json!(true);
    });
    let console = crate::harness::ConsoleSocket::new(b.path());
    let mut c = Container::new(b);
    c.create_with(&["--console-socket", &console.path.to_string_lossy()]).ok();
    let (mut master, _) = console.receive();
    c.start();
    let said = crate::harness::ConsoleSocket::read_to_end(&mut master);
    assert!(
        said.contains("Read-only file system") && said.contains("dev") && said.contains("/dev/"),
        "{said}"
    );
    c.wait_stopped();
    c.delete().ok();
    nothing_left(&c);
    assert!(!c.bundle.rootfs().join("x").exists());
}
