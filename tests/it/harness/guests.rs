//! Guests are built from `tests/guests` by its own script and cached outside the tree.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::{runtime, spawn};

pub fn guest(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        // Built where there are toolchains.
        if let Some(dir) = std::env::var_os("RUNW_TEST_GUESTS") {
            return dir.into();
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guests/build.py");
        let out = Command::new(script).stderr(Stdio::inherit()).output().expect("run tests/guests/build.py");
        assert!(out.status.success(), "tests/guests/build.py failed");
        PathBuf::from(String::from_utf8(out.stdout).expect("a path").trim())
    });
    dir.join(name)
}

/// Has a guest compiled that takes longer than a test waits for one command, so that all who start it find it in
/// the cache: a language's engine is much code, and the machine may be busy.
pub fn compiled(name: &str) {
    let mut warm = Command::new(runtime());
    warm.args(["cache", "warm"]).arg(guest(name));
    spawn(&mut warm).wait_within(600).ok();
}
