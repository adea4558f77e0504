//! A neighbour that shares a volume or an image exchanges a directory for a link while `create` works. Whatever
//! `create` finds, nothing of the host is touched, and what is hidden stays hidden.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;
use std::os::unix::fs::symlink;

use crate::harness::{Bundle, Container, Kind, differs, long, nothing_left, runw_only};

/// Exchanges two names as fast as it can until it is dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Swapper {
    fn new(one: PathBuf, two: PathBuf) -> Swapper {
        let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, count) = (stop.clone(), swaps.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).expect("exchange");
                count.fetch_add(1, Ordering::Relaxed);
                // Both states must last long enough to be seen by what takes two looks.
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        Swapper { stop, swaps, thread: Some(thread) }
    }

    fn swaps(&self) -> u32 {
        self.swaps.load(Ordering::Relaxed)
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn rounds() -> u32 {
    if long() { 200 } else { 25 }
}

/// A volume in which `a` is now a directory and now a link to `target`.
fn volume(bundle: &Bundle, target: &Path) -> (PathBuf, Swapper) {
    let volume = bundle.outside("volume");
    std::fs::create_dir_all(volume.join("a/b")).expect("mkdir");
    symlink(target, volume.join("link")).expect("symlink");
    let swapper = Swapper::new(volume.join("a"), volume.join("link"));
    (volume, swapper)
}

/// The control: who looks up a path of the volume by name is led out before long.
fn a_naive_mkdir_is_led_out(volume: &Path, victim: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    for n in 0.. {
        let made = format!("naive{n}");
        let _ = std::fs::create_dir(volume.join("a").join(&made));
        if victim.join(&made).exists() {
            std::fs::remove_dir(victim.join(&made)).expect("rmdir");
            return;
        }
        assert!(Instant::now() < deadline, "the exchange never met a mkdir");
    }
}

/// CVE-2021-30465, CVE-2019-18837, CVE-2024-45310: a mount target, and the directories made for it.
#[test]
fn a_mount_target_that_is_exchanged_leads_nowhere() {
    if differs(Kind::Runc, "1.1.5 makes files outside, in the first rounds of this test")
        || differs(Kind::Crun, "1.8 is older than the last of its fixes")
    {
        return;
    }
    let victim = tempfile::tempdir().expect("tempdir");
    let bundle = Bundle::sh("cat /proc/self/mountinfo");
    let (volume, swapper) = volume(&bundle, victim.path());
    a_naive_mkdir_is_led_out(&volume, victim.path());
    let bundle = bundle
        .bind(&volume, "/vol", &["rbind", "rw"])
        .mount("/vol/a/b", "tmpfs", Path::new("tmpfs"), &[])
        .mount("/vol/a/new/dir", "tmpfs", Path::new("tmpfs"), &[])
        .bind(Path::new("/etc/hostname"), "/vol/a/file", &["bind", "ro"]);
    let c = Container::new(bundle);
    let before = swapper.swaps();
    let mut made = 0;
    for round in 0..rounds() {
        let out = c.run();
        made += u32::from(out.code == 0);
        let led_out: Vec<_> = std::fs::read_dir(victim.path()).expect("read").flatten().collect();
        assert!(led_out.is_empty(), "round {round}: {led_out:?} {out:?}");
        nothing_left(&c);
    }
    assert!(swapper.swaps() - before > rounds(), "only {} exchanges", swapper.swaps() - before);
    assert!(made > 0, "no create went through, so nothing was tried");
}

/// CVE-2019-16884, CVE-2019-19921: a mount that is checked while it goes to the volume must not then cover /proc.
#[test]
fn a_mount_target_that_becomes_proc() {
    if differs(Kind::Crun, "1.8 has no such check") {
        return;
    }
    let bundle = Bundle::sh(
        "echo ran; grep -c ^ /proc/self/attr/current /proc/self/status >/dev/null || echo COVERED; \
         grep -E ' /proc(/self)? ' /proc/self/mountinfo",
    );
    let (volume, _swapper) = volume(&bundle, Path::new("/proc"));
    let bundle = bundle
        .bind(&volume, "/vol", &["rbind", "rw"])
        .mount("/vol/a", "tmpfs", Path::new("tmpfs"), &[])
        .mount("/vol/a/self", "tmpfs", Path::new("tmpfs"), &[]);
    let c = Container::new(bundle);
    for round in 0..rounds() {
        let out = c.run();
        assert!(!out.out.contains("COVERED"), "round {round}: {out:?}");
        if out.code == 0 {
            let mounts: Vec<&str> = out.out.lines().filter(|line| line.contains(" /proc")).collect();
            assert!(mounts.len() == 1 && mounts[0].contains(" - proc "), "round {round}: {out:?}");
        }
        nothing_left(&c);
    }
}

/// CVE-2025-31133: a shared image exchanges its /dev/null for a link while paths are masked with it.
#[test]
fn a_null_device_that_is_exchanged_masks_all_the_same() {
    if runw_only("such a promise: 1.1.5 and 1.8 have the hole") {
        return;
    }
    let bundle = Bundle::sh("echo ran; cat /secret; echo planted >/secret").edit(|c| {
        c["linux"]["maskedPaths"] = json!(["/secret"]);
        let mounts = c["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|m| !m["destination"].as_str().is_some_and(|d| d.starts_with("/dev")));
    });
    let (root, dev) = (bundle.rootfs(), bundle.rootfs().join("dev"));
    std::fs::write(root.join("secret"), "SECRET\n").expect("write");
    std::fs::write(root.join("victim"), "untouched\n").expect("write");
    let device = rustix::fs::makedev(1, 3);
    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o666));
    rustix::fs::mknodat(CWD, dev.join("null"), kind, mode, device).expect("mknod");
    symlink("/victim", dev.join("link")).expect("symlink");
    let c = Container::new(bundle);
    let swapper = Swapper::new(dev.join("null"), dev.join("link"));
    let (mut ran, mut refused) = (0, 0);
    for round in 0..rounds() {
        let out = c.run();
        ran += u32::from(out.out.contains("ran"));
        refused += u32::from(out.code != 0 && !out.out.contains("ran"));
        assert!(!out.out.contains("SECRET"), "round {round}: {out:?}");
        let victim = std::fs::read_to_string(root.join("victim")).expect("read");
        assert_eq!(victim, "untouched\n", "round {round}: {out:?}");
        let host = std::fs::symlink_metadata("/dev/null").expect("stat");
        assert_eq!(std::os::unix::fs::MetadataExt::rdev(&host), device, "round {round}");
        nothing_left(&c);
    }
    assert!(swapper.swaps() > rounds());
    assert!(ran + refused == rounds() && (ran > 0 || refused > 0), "{ran} ran, {refused} were refused");
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: the place of /proc itself, in an image that is shared.
#[test]
fn a_proc_that_is_exchanged_is_proc_or_nothing() {
    let elsewhere = tempfile::tempdir().expect("tempdir");
    let bundle = Bundle::sh("echo ran; cat /proc/self/comm; grep ' /proc ' /proc/self/mountinfo");
    let root = bundle.rootfs();
    symlink(elsewhere.path(), root.join("link")).expect("symlink");
    let c = Container::new(bundle);
    let swapper = Swapper::new(root.join("proc"), root.join("link"));
    for round in 0..rounds() {
        let out = c.run();
        if out.out.contains("ran") {
            // Whoever is quick may have put the link back in its place; what is mounted is a procfs somewhere inside.
            let fooled = out.out.contains("/proc ") && !out.out.contains(" - proc ");
            assert!(!fooled, "round {round}: {out:?}");
        }
        let led_out: Vec<_> = std::fs::read_dir(elsewhere.path()).expect("read").flatten().collect();
        assert!(led_out.is_empty(), "round {round}: {led_out:?} {out:?}");
        nothing_left(&c);
    }
    assert!(swapper.swaps() > rounds());
}
