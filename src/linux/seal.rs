//! The binary protects itself (CVE-2019-5736): before it touches a container it runs from a read-only view of itself,
//! so that nothing in the container can write to it through `/proc/PID/exe`. The view shares the page cache; a
//! memfd copy, which is private memory for as long as a wasm container lives, is the last resort.

use std::ffi::{CString, OsString};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

use super::sys;
use crate::log;

/// Set for the sealed copy alone, and taken away by it. Whoever can set it can run any program anyway.
const MARK: &str = "_RUNW_SEALED";

/// Verbs whose process becomes, or makes, one inside a container.
const VERBS: [&str; 3] = ["create", "exec", "run"];

/// Spares the first process to parse what the sealed one will parse again. A word that only looks like such a verb
/// costs a needless seal; a failure is the verb's own to report.
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
    if std::env::var_os(MARK).is_some_and(|mark| mark == std::process::id().to_string().as_str()) {
        sys::forget_env(MARK);
        SEALED.store(true, Relaxed);
        return Ok(());
    }
    let exe = std::fs::read_link("/proc/self/exe").context("read /proc/self/exe")?;
    // Held until the execve closes all of them.
    let (sealed, _holds) = match overlay(&exe) {
        Ok((file, holds)) => (file, Some(holds)),
        Err(_) => (copy()?, None),
    };
    let argv = std::env::args_os().map(cstring).collect::<Result<Vec<_>>>()?;
    let mut env = std::env::vars_os()
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

/// As runc >= 1.2: an overlay without an upper layer cannot be written to by anybody, whatever is remounted. It
/// wants two lower layers; any directory that has nothing to do with ours will do for the second.
fn overlay(exe: &Path) -> Result<(OwnedFd, [OwnedFd; 2])> {
    let (directory, name) = exe.parent().zip(exe.file_name()).context("no directory")?;
    let second = ["/run", "/tmp", "/sys", "/usr"].iter().map(Path::new);
    let second = second
        .into_iter()
        .find(|other| other.is_dir() && !directory.starts_with(other) && !other.starts_with(directory));
    let lower = format!("{}:{}", escape(directory)?, second.context("no second layer")?.display());
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "lowerdir", lower)?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let file = rustix::fs::openat(&mount, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    // The name may have been given to another file since we were started.
    let (ours, theirs) = (rustix::fs::stat("/proc/self/exe")?, rustix::fs::fstat(&file)?);
    anyhow::ensure!(ours.st_size == theirs.st_size && ours.st_mtime == theirs.st_mtime, "not the same file");
    Ok((file, [context, mount]))
}

/// overlayfs.rst: a colon in a layer's path is escaped, and so is the backslash.
fn escape(path: &Path) -> Result<String> {
    let text = path.to_str().context("not UTF-8")?;
    Ok(text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,"))
}

fn copy() -> Result<OwnedFd> {
    let mut exe = std::fs::File::open(PathBuf::from("/proc/self/exe")).context("open /proc/self/exe")?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_layers_path_is_escaped() {
        assert_eq!(escape(Path::new("/a:b/c\\d,e")).unwrap(), "/a\\:b/c\\\\d\\,e");
        assert!(escape(Path::new(std::ffi::OsStr::from_bytes(b"/\xff"))).is_err());
    }
}
