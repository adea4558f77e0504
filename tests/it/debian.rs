//! Real input: an unmodified Debian root file system.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::harness::{Bundle, Container, cache, nothing_left, run};

/// Made once for this machine by mmdebstrap from the mirror apt already uses.
fn debian_root() -> PathBuf {
    static ONCE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONCE.lock().expect("no panic while held");
    let root = cache().join("debian-minbase");
    if !root.exists() {
        let tmp = cache().join(format!("debian-minbase.{}", std::process::id()));
        std::fs::create_dir_all(cache()).expect("cache");
        let out = Command::new("mmdebstrap")
            .args(["--quiet", "--mode=root", "--variant=minbase", "bookworm"])
            .arg(&tmp)
            .output()
            .expect("mmdebstrap is not installed");
        assert!(out.status.success(), "mmdebstrap: {}", String::from_utf8_lossy(&out.stderr));
        std::fs::rename(&tmp, &root).expect("rename the root file system");
    }
    root
}

fn bundle(program: &str) -> Bundle {
    Bundle::new(&["bash", "-c", program]).edit(|c| {
        c["root"] = json!({"path": debian_root(), "readonly": true});
        c["process"]["env"] =
            json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"]);
    })
}

#[test]
fn debian_s_own_programs_run() {
    let c = Container::new(bundle("apt-get --version; id; cat /proc/self/status"));
    let out = c.run().ok();
    assert!(out.out.starts_with("apt 2."), "{out:?}");
    assert!(out.out.contains("uid=0(root) gid=0(root)"), "{out:?}");
    assert!(out.out.contains("NSpid:\t") || out.out.contains("Name:\tcat"), "{out:?}");
    nothing_left(&c);
}

#[test]
fn debian_as_a_long_lived_container() {
    let c = Container::up(bundle("trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"));
    c.wait_out("up");
    let out = c
        .exec(
            &["--user", "65534:65534"],
            &["bash", "-c", "id -un; dpkg --print-architecture; cat /etc/debian_version"],
        )
        .ok();
    assert!(out.out.starts_with("nobody\n"), "{out:?}");
    assert_eq!(out.out.lines().count(), 3, "{out:?}");
    c.kill("TERM").ok();
    c.wait_stopped();
    c.delete().ok();
    nothing_left(&c);
    assert_eq!(run(Command::new("true").arg("x")).code, 0);
}
