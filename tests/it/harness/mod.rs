//! What every test needs: the runtime under test, bundles, containers that clean up, deadlines, loud skips.
//! Nothing here knows what a right answer is.

mod bundle;
mod command;
mod container;
mod criu;
mod faults;
mod guests;
mod leftovers;
mod network;
mod socket;
mod steps;
mod systemd;

pub use bundle::{Bundle, cap, id_map, script};
pub use command::{COLD, Out, Running, run, run_script, spawn, spawn_with_stdin, with_cache};
pub use container::Container;
pub use criu::criu_path;
pub use faults::{Call, Verdict, supervised};
pub use guests::{compiled, guest};
pub use leftovers::nothing_left;
pub use network::{Reply, TlsServer, ask, at, dial, get, name_server, own_address, reply, sent};
pub use socket::ConsoleSocket;
pub use steps::instructions;
pub use systemd::Systemd;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Runw,
    Runc,
    Crun,
}

pub fn runtime() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var_os("RUNW_TEST_RUNTIME") {
        Some(path) if Path::new(&path).ends_with("crun") && hybrid() => without_unified(Path::new(&path)),
        Some(path) => path.into(),
        None => env!("CARGO_BIN_EXE_runw").into(),
    })
}

/// crun 1.8 refuses hybrid cgroups: as a control it is called with the v2 tree unmounted, in a mount namespace of
/// the call's own.
fn without_unified(crun: &Path) -> PathBuf {
    let dir = std::env::temp_dir().join(unique("peer"));
    std::fs::create_dir(&dir).expect("a directory for the wrapper");
    let body = format!(
        "exec unshare -m /bin/sh -c 'umount /sys/fs/cgroup/unified; exec \"$0\" \"$@\"' {} \"$@\"",
        crun.display()
    );
    script(&dir.join("crun"), &body);
    dir.join("crun")
}

pub fn kind() -> Kind {
    match runtime().file_name().and_then(|n| n.to_str()) {
        Some("runc") => Kind::Runc,
        Some("crun") => Kind::Crun,
        _ => Kind::Runw,
    }
}

/// cgroup v2 alone, with its controllers.
pub fn pure_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// v1 controllers with a v2 tree beside them.
pub fn hybrid() -> bool {
    Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists()
}

pub fn cache() -> PathBuf {
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
    std::env::var_os("RUNW_TEST_CACHE").map_or_else(|| PathBuf::from(home).join(".cache/runw"), PathBuf::from)
}

/// The long form of a test, asked for by `make test-all`.
pub fn long() -> bool {
    std::env::var_os("RUNW_TEST_LONG").is_some()
}

/// A test that cannot run says so past libtest's capture, and in the file that `make test` counts.
pub fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("skipped {name}: {reason}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("RUNW_TEST_SKIPS") {
        let mut file =
            std::fs::OpenOptions::new().create(true).append(true).open(path).expect("open the skip file");
        file.write_all(line.as_bytes()).expect("record a skip");
    }
}

/// True when this test must not judge the runtime under test: a peer that is known to differ, and why.
pub fn differs(peer: Kind, why: &str) -> bool {
    let yes = kind() == peer;
    if yes {
        skip(&format!("{peer:?} differs: {why}"));
    }
    yes
}

/// True when only runw can be asked (the peers have no such thing).
pub fn runw_only(what: &str) -> bool {
    let yes = kind() != Kind::Runw;
    if yes {
        skip(&format!("{:?} has no {what}", kind()));
    }
    yes
}

/// A name no other test, and no other run on this machine, has.
pub fn unique(what: &str) -> String {
    static N: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}-{what}", std::process::id(), N.fetch_add(1, Ordering::Relaxed))
}

/// So many seconds; RUNW_TEST_PATIENCE times as many where that is set, for machines that emulate their processor.
pub fn patience(seconds: u32) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| match std::env::var("RUNW_TEST_PATIENCE") {
        Ok(text) => text.parse().expect("RUNW_TEST_PATIENCE is a number"),
        Err(_) => 1,
    });
    Duration::from_secs(u64::from(seconds * factor))
}

/// Polls until `ready` says yes; panics with `what` when it does not in a minute, which a crowded machine may need.
pub fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience(60);
    while !ready() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `job` for each of many cases. One run tells all that is wrong: what each panicked with has been printed by then.
#[track_caller]
pub fn each<T: Sync>(cases: &[T], job: impl Fn(&T) + Sync) {
    // The long form has thousands, and most of a case is waiting for a turn on the CPU.
    let workers = if long() { 4 } else { 1 };
    let (next, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(case))).is_err() {
                wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    let wrong = wrong.into_inner();
    assert_eq!(wrong, 0, "{wrong} of {} cases went wrong, see above", cases.len());
}

pub fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|s| !s.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}
