//! Translated filters kept on disk: libseccomp takes several milliseconds for an engine's default profile, which is
//! more than the rest of a start. A forged entry would be a container without seccomp, so one is only believed when
//! it and its directory are ours alone; anything odd is a miss, never an error.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use sha2::{Digest, Sha256};

use super::{Filter, compile, parse_program};

/// To be raised when the translation or the format changes.
const FORMAT: &str = "runw seccomp 1";

/// Far above the handful of profiles of one host; reached, the cache starts anew.
const MAX_ENTRIES: usize = 256;

/// 4096 instructions of 8 bytes, and the names that were unknown.
const MAX_SIZE: u64 = 128 * 1024;

/// `compile` by way of the cache in `dir`, which is made if need be (its parent must exist).
pub fn compile_cached(profile: &LinuxSeccomp, dir: &Path) -> Result<Filter> {
    let (Ok(key), Ok(dir)) = (key(profile), open_dir(dir)) else {
        return compile(profile);
    };
    if let Ok(filter) = load(dir.as_fd(), &key) {
        return Ok(filter);
    }
    let filter = compile(profile)?;
    // A full or read-only file system must not keep a container from starting.
    let _ = store(dir.as_fd(), &key, &filter);
    Ok(filter)
}

/// Everything the translation depends on. The kernel too: libseccomp asks it which actions it knows.
fn key(profile: &LinuxSeccomp) -> Result<String> {
    let library = libseccomp::ScmpVersion::current()?;
    let kernel = rustix::system::uname();
    let mut hash = Sha256::new();
    for part in [
        FORMAT.as_bytes(),
        env!("CARGO_PKG_VERSION").as_bytes(),
        library.to_string().as_bytes(),
        kernel.release().to_bytes(),
        kernel.machine().to_bytes(),
        &serde_json::to_vec(profile)?,
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {
            let _ = rustix::fs::mkdir(path, Mode::from_raw_mode(0o700));
            rustix::fs::open(path, flags, Mode::empty())?
        }
        result => result?,
    };
    ensure_ours(dir.as_fd(), FileType::Directory)?;
    Ok(dir)
}

/// Owned by us and writable by nobody else, whoever made it.
fn ensure_ours(file: BorrowedFd<'_>, kind: FileType) -> Result<u64> {
    let stat = rustix::fs::fstat(file)?;
    ensure!(FileType::from_raw_mode(stat.st_mode) == kind, "not a {kind:?}");
    ensure!(stat.st_uid == rustix::process::geteuid().as_raw(), "owned by uid {}", stat.st_uid);
    ensure!(stat.st_mode & 0o022 == 0, "writable by others");
    Ok(stat.st_size as u64)
}

fn load(dir: BorrowedFd<'_>, key: &str) -> Result<Filter> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, key, flags, Mode::empty())?;
    ensure!(ensure_ours(file.as_fd(), FileType::RegularFile)? <= MAX_SIZE, "too large");
    let mut bytes = Vec::new();
    File::from(file).take(MAX_SIZE).read_to_end(&mut bytes)?;
    decode(&bytes, key)
}

fn store(dir: BorrowedFd<'_>, key: &str, filter: &Filter) -> Result<()> {
    make_room(dir)?;
    // One process at a time has this pid, and a leftover of an earlier one is replaced.
    let temporary = format!("tmp.{}", std::process::id());
    let _ = rustix::fs::unlinkat(dir, &temporary, AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, &temporary, flags, Mode::from_raw_mode(0o600))?;
    let written = File::from(file).write_all(&encode(filter, key));
    // No fsync: an entry torn by a crash does not match its digest.
    let placed = written.and_then(|()| Ok(rustix::fs::renameat(dir, &temporary, dir, key)?));
    if placed.is_err() {
        let _ = rustix::fs::unlinkat(dir, &temporary, AtFlags::empty());
    }
    placed.context("cannot write the seccomp cache")
}

fn make_room(dir: BorrowedFd<'_>) -> Result<()> {
    let names =
        Dir::read_from(dir)?.map(|entry| Ok(entry?.file_name().to_owned())).collect::<Result<Vec<_>>>()?;
    if names.len() > MAX_ENTRIES {
        for name in names {
            // "." and ".." are directories, which this leaves alone.
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
    }
    Ok(())
}

/// sha256 of the key and the rest | flags | number of instructions | instructions | unknown names, one a line.
fn encode(filter: &Filter, key: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(8 + 8 * filter.program.len());
    body.extend((filter.flags as u32).to_ne_bytes());
    body.extend((filter.program.len() as u32).to_ne_bytes());
    for step in &filter.program {
        body.extend(step.code.to_ne_bytes());
        body.extend([step.jt, step.jf]);
        body.extend(step.k.to_ne_bytes());
    }
    body.extend(filter.unknown.join("\n").as_bytes());
    let mut bytes = digest(key, &body);
    bytes.extend(body);
    bytes
}

fn decode(bytes: &[u8], key: &str) -> Result<Filter> {
    let (seal, body) = bytes.split_at_checked(32).context("too short")?;
    // With the key in it, an entry that was given another's name is a miss.
    ensure!(seal == digest(key, body), "digest does not match");
    let (head, rest) = body.split_first_chunk::<8>().context("too short")?;
    let [f0, f1, f2, f3, n0, n1, n2, n3] = *head;
    let size = u32::from_ne_bytes([n0, n1, n2, n3]) as usize * 8;
    let (program, names) = rest.split_at_checked(size).context("too short")?;
    let unknown = std::str::from_utf8(names)?.lines().map(str::to_owned).collect();
    let flags = libc::c_ulong::from(u32::from_ne_bytes([f0, f1, f2, f3]));
    Ok(Filter { program: parse_program(program), flags, unknown })
}

fn digest(key: &str, body: &[u8]) -> Vec<u8> {
    Sha256::new().chain_update(key).chain_update(body).finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    const PROFILE: &str = r#"{"defaultAction":"SCMP_ACT_ERRNO","flags":["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls":[{"names":["read","write","no_such_call","nor_this"],"action":"SCMP_ACT_ALLOW"}]}"#;

    fn profile() -> LinuxSeccomp {
        serde_json::from_str(PROFILE).unwrap()
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("runw-seccomp-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    fn same(a: &Filter, b: &Filter) -> bool {
        let steps =
            |filter: &Filter| filter.program.iter().map(|s| (s.code, s.jt, s.jf, s.k)).collect::<Vec<_>>();
        steps(a) == steps(b) && a.flags == b.flags && a.unknown == b.unknown
    }

    #[test]
    fn the_second_time_comes_from_the_cache_and_is_the_same() {
        let dir = scratch("same");
        let plain = compile(&profile()).unwrap();
        assert!(same(&plain, &compile_cached(&profile(), &dir).unwrap()));
        let key = key(&profile()).unwrap();
        let handle = open_dir(&dir).unwrap();
        assert!(same(&plain, &load(handle.as_fd(), &key).unwrap()));
        assert!(same(&plain, &compile_cached(&profile(), &dir).unwrap()));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        let mut other = profile();
        other.set_default_errno_ret(Some(38));
        assert!(!same(&plain, &compile_cached(&other, &dir).unwrap()));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_torn_renamed_or_writable_entry_is_a_miss() {
        let dir = scratch("torn");
        let plain = compile_cached(&profile(), &dir).unwrap();
        let name = key(&profile()).unwrap();
        let path = dir.join(&name);
        let whole = std::fs::read(&path).unwrap();
        let handle = open_dir(&dir).unwrap();
        for cut in [0, 31, 39, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(load(handle.as_fd(), &name).is_err(), "cut at {cut}");
            assert!(same(&plain, &compile_cached(&profile(), &dir).unwrap()));
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        let mut flipped = whole.clone();
        flipped[60] ^= 1;
        assert!(decode(&flipped, &name).is_err());
        assert!(decode(&whole, &"0".repeat(64)).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(load(handle.as_fd(), &name).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_directory_others_can_write_or_a_symlink_is_not_used() {
        let dir = scratch("open");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        compile_cached(&profile(), &dir).unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
        let link = scratch("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        compile_cached(&profile(), &link).unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        compile_cached(&profile(), Path::new("/proc/nowhere/seccomp")).unwrap();
        std::fs::remove_file(&link).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_full_cache_starts_anew() {
        let dir = scratch("full");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
        for number in 0..MAX_ENTRIES + 1 {
            std::fs::write(dir.join(number.to_string()), "").unwrap();
        }
        compile_cached(&profile(), &dir).unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
