//! The binary protects itself (CVE-2019-5736): before it touches a container it runs from a read-only view of itself,
//! so that nothing in the container can write to it through `/proc/PID/exe`. The view is a mount, which shares the page
//! cache, and is made before anything else (first.rs). Where there can be none (before Linux 5.12, or without privileges),
//! it is a copy in a memfd, which is private memory for as long as a wasm container lives.

use std::ffi::{CString, OsString};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, Mode, SealFlags};

use super::sys;
use crate::log;

/// The variable that the sealed copy alone has, with its pid, and takes away. Whoever can set it can run any program anyway.
pub(super) const MARK: &str = "_RUNW_SEALED";

/// Verbs whose process becomes, or makes, one inside a container.
pub(super) const VERBS: [&str; 3] = ["create", "exec", "run"];

/// What first.rs could not do. It spares the first process to parse what the sealed one will parse again; a failure is
/// the verb's own to report.
pub fn before_parsing(args: &[OsString]) {
    if args.iter().skip(1).any(|word| VERBS.iter().any(|verb| word == verb)) {
        let _ = ensure();
    }
}

/// Whether we are the sealed copy.
static SEALED: AtomicBool = AtomicBool::new(false);

/// Returns in the sealed process only; the first call replaces this process by it.
pub fn ensure() -> Result<()> {
    if SEALED.load(Relaxed) {
        // The log was not open when it began.
        log::debug(|| {
            let copy = std::fs::read_link("/proc/self/exe").unwrap_or_default();
            let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
            let words = words.collect::<Vec<_>>().join(" ");
            format!("runs from a sealed copy of itself, {}: {words}", copy.display())
        });
        return Ok(());
    }
    if std::env::var(MARK).is_ok_and(|pid| pid.parse() == Ok(std::process::id())) {
        sys::forget_env(MARK);
        SEALED.store(true, Relaxed);
        return Ok(());
    }
    let sealed = copy()?;
    let argv = std::env::args_os().map(cstring).collect::<Result<Vec<_>>>()?;
    // Another's mark: only the first of two would be seen.
    let mut env = std::env::vars_os()
        .filter(|(key, _)| key != MARK)
        .map(|(mut key, value)| {
            key.push("=");
            key.push(value);
            cstring(key)
        })
        .collect::<Result<Vec<_>>>()?;
    env.push(CString::new(format!("{MARK}={}", std::process::id()))?);
    let argv: Vec<_> = argv.iter().map(CString::as_c_str).collect();
    let env: Vec<_> = env.iter().map(CString::as_c_str).collect();
    Err(sys::execveat(sealed.as_fd(), &argv, &env)).context("run the sealed copy of runw")
}

fn copy() -> Result<OwnedFd> {
    let mut exe = std::fs::File::open("/proc/self/exe").context("open /proc/self/exe")?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut memory = std::fs::File::from(rustix::fs::memfd_create("runw", flags).context("memfd_create")?);
    std::io::copy(&mut exe, &mut memory).context("copy runw")?;
    memory.seek(SeekFrom::Start(0))?;
    rustix::fs::fchmod(&memory, Mode::from_raw_mode(0o555))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&memory, seals).context("seal the copy of runw")?;
    Ok(memory.into())
}

fn cstring(text: OsString) -> Result<CString> {
    let bytes = text.into_vec();
    CString::new(bytes).context("a NUL byte in our own arguments")
}
