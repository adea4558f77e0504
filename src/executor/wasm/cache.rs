//! Compiled code on the host's disk, written by runw alone. A directory that others could have touched is
//! refused; a wrong or torn entry is a miss and goes away. Entries never change once named: they are written
//! under another name, synced, renamed, and later only unlinked, because running guests have them mapped.
//!
//! An entry is the code, a note for people, the note's length (u32, little-endian), the digest of its name and of
//! all before it, and the seal.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// Ends every entry, after the digest; a new layout gets a new word.
const SEAL: &[u8; 8] = b"runw-cw2";
const TRAILER: u64 = 32 + SEAL.len() as u64;
const TEMPORARY: &str = ".tmp-";
/// An entry's mtime says when it was last used, to this precision: not every start writes an inode.
const TOUCH_AFTER: u64 = 3600;

pub struct Cache {
    dir: OwnedFd,
    limit: u64,
}

/// What is counted: how often compiled code was found, and how often it had to be made.
#[derive(Clone, Copy, Debug)]
pub enum Counter {
    Hits,
    Misses,
}

impl Counter {
    fn file(self) -> &'static str {
        match self {
            Counter::Hits => "hits",
            Counter::Misses => "misses",
        }
    }
}

/// An entry, for those who look after the cache.
pub struct Held {
    pub key: String,
    pub size: u64,
    pub used: SystemTime,
}

/// Held while one key is compiled; the file goes with it.
pub struct Lock<'a> {
    cache: &'a Cache,
    name: String,
    _file: OwnedFd,
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // Before the descriptor closes: whoever waits on this inode sees that it lost its name, and opens anew.
        let _ = rustix::fs::unlinkat(&self.cache.dir, &self.name, AtFlags::empty());
    }
}

impl Cache {
    pub fn open(path: &Path, limit: u64) -> Result<Cache> {
        let make =
            |path: &Path, mode: u32| match DirBuilder::new().mode(mode).recursive(mode != 0o700).create(path)
            {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => Ok(()),
            };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut dir = rustix::fs::open(path, flags, Mode::empty());
        if matches!(dir, Err(Errno::NOENT)) {
            let named = || format!("make {} for compiled code", path.display());
            make(path.parent().unwrap_or(Path::new("/")), 0o755).with_context(named)?;
            make(path, 0o700).with_context(named)?;
            dir = rustix::fs::open(path, flags, Mode::empty());
        }
        let dir = dir.with_context(|| format!("open {} for compiled code", path.display()))?;
        Cache::trusted(dir, path, limit)
    }

    /// Only if it is there.
    pub fn existing(path: &Path, limit: u64) -> Result<Option<Cache>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(dir) => Cache::trusted(dir, path, limit).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("open {}", path.display())),
        }
    }

    fn trusted(dir: OwnedFd, path: &Path, limit: u64) -> Result<Cache> {
        let stat = rustix::fs::fstat(&dir).context("fstat")?;
        let me = rustix::process::geteuid().as_raw();
        ensure!(
            stat.st_uid == me,
            "{} belongs to uid {}, not to {me}: code is run from it",
            path.display(),
            stat.st_uid
        );
        let mode = stat.st_mode & 0o7777;
        ensure!(mode & 0o077 == 0, "{} has mode {mode:04o}, not 0700: code is run from it", path.display());
        Ok(Cache { dir, limit })
    }

    fn open_entry(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, name, flags, Mode::empty())
    }

    /// The verified artifact of a key. Every way in which an entry can be wrong is a miss.
    pub fn find(&self, key: &str) -> Option<OwnedFd> {
        let file = match self.open_entry(key) {
            Ok(file) => file,
            Err(Errno::NOENT) => return None,
            Err(_) => {
                let _ = rustix::fs::unlinkat(&self.dir, key, AtFlags::empty());
                return None;
            }
        };
        if let Some(stat) = verified(&file, key) {
            touch(&file, &stat);
            return Some(file);
        }
        let _ = rustix::fs::unlinkat(&self.dir, key, AtFlags::empty());
        None
    }

    /// Waits until nobody else compiles this key.
    pub fn lock(&self, key: &str) -> Result<Lock<'_>> {
        let name = format!("{key}.lock");
        loop {
            let file = self.lock_file(&name, FlockOperation::LockExclusive)?.context("flock")?;
            let held = rustix::fs::fstat(&file).context("fstat")?;
            let named = rustix::fs::statat(&self.dir, &name, AtFlags::SYMLINK_NOFOLLOW);
            if named.is_ok_and(|named| named.st_ino == held.st_ino) {
                return Ok(Lock { cache: self, name, _file: file });
            }
        }
    }

    /// One of as many places as there are CPUs: more compilations at once only make each slower.
    pub fn slot(&self) -> Result<OwnedFd> {
        let places = std::thread::available_parallelism().map_or(1, usize::from);
        for place in 0..places {
            if let Some(file) =
                self.lock_file(&format!("cpu-{place}.slot"), FlockOperation::NonBlockingLockExclusive)?
            {
                return Ok(file);
            }
        }
        let place = std::process::id() as usize % places;
        self.lock_file(&format!("cpu-{place}.slot"), FlockOperation::LockExclusive)?.context("flock")
    }

    /// `None` when somebody else holds it and we did not want to wait.
    fn lock_file(&self, name: &str, how: FlockOperation) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, name, flags, Mode::from_raw_mode(0o600))
            .with_context(|| format!("open {name} in the cache"))?;
        loop {
            match rustix::fs::flock(&file, how) {
                Ok(()) => return Ok(Some(file)),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error).context("flock"),
            }
        }
    }

    /// Makes an entry with what `write` puts into the file. The caller holds the key's lock.
    pub fn store(
        &self,
        key: &str,
        note: &[u8],
        write: impl FnOnce(&OwnedFd) -> Result<()>,
    ) -> Result<OwnedFd> {
        let temporary = format!("{TEMPORARY}{key}");
        // What a killed runw left behind.
        let _ = rustix::fs::unlinkat(&self.dir, &temporary, AtFlags::empty());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, &temporary, flags, Mode::from_raw_mode(0o600))
            .context("make a file in the cache")?;
        // Opened anew and read-only, since nothing that could write the entry may reach the container; and before it
        // is named, since from then on others may evict it.
        let done = write(&file).and_then(|()| seal(&file, key, note)).and_then(|()| {
            let found = self.open_entry(&temporary).context("open the cache entry just written")?;
            verified(&found, key).context("the cache entry just written cannot be read back")?;
            rustix::fs::renameat(&self.dir, &temporary, &self.dir, key).context("rename in the cache")?;
            Ok(found)
        });
        match done {
            Ok(_) => self.evict(key),
            Err(_) => drop(rustix::fs::unlinkat(&self.dir, &temporary, AtFlags::empty())),
        }
        done
    }

    /// Unlinks what was used longest ago until the rest fits. Best effort: a full cache is no reason to fail.
    fn evict(&self, keep: &str) {
        let Ok(files) = self.files() else { return };
        for (name, stat) in &files {
            // What a killed runw left behind.
            if name.starts_with(TEMPORARY) && now().saturating_sub(stat.st_mtime as u64) > TOUCH_AFTER {
                self.remove(name);
            }
        }
        let mut held = entries(files);
        held.sort_by_key(|entry| entry.used);
        let mut total: u64 = held.iter().map(|entry| entry.size).sum();
        for entry in held {
            if total <= self.limit {
                return;
            }
            if entry.key != keep && self.remove(&entry.key) {
                total -= entry.size;
            }
        }
    }

    /// True when it is gone, whoever removed it.
    pub fn remove(&self, key: &str) -> bool {
        matches!(rustix::fs::unlinkat(&self.dir, key, AtFlags::empty()), Ok(()) | Err(Errno::NOENT))
    }

    /// What has an entry's name, in no order and not verified.
    pub fn held(&self) -> Result<Vec<Held>> {
        Ok(entries(self.files()?))
    }

    fn files(&self) -> Result<Vec<(String, Stat)>> {
        let dir = rustix::fs::Dir::read_from(&self.dir).context("read the cache")?;
        let file = |entry: rustix::fs::DirEntry| {
            let name = entry.file_name().to_str().ok()?.to_owned();
            // One that is gone already is none.
            let stat = rustix::fs::statat(&self.dir, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some((name, stat))
        };
        Ok(dir.flatten().filter_map(file).collect())
    }

    /// The note of an entry; `None` when it is wrong. Changes nothing.
    pub fn note(&self, key: &str) -> Option<Vec<u8>> {
        let file = self.open_entry(key).ok()?;
        let end = (verified(&file, key)?.st_size as u64).checked_sub(TRAILER + 4)?;
        let mut length = [0; 4];
        exactly(&file, &mut length, end).ok()?;
        let length = u32::from_le_bytes(length);
        let mut note = vec![0; length as usize];
        exactly(&file, &mut note, end.checked_sub(length.into())?).ok()?;
        Some(note)
    }

    /// Best effort, without locks: each event is a byte appended, the count is the file's length, and holes take
    /// the place of what was written.
    pub fn count(&self, what: Counter) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&self.dir, what.file(), flags, Mode::from_raw_mode(0o600)) else {
            return;
        };
        let _ = rustix::io::write(&file, &[0]);
        if matches!(what, Counter::Misses) {
            for what in [Counter::Hits, Counter::Misses] {
                self.hollow(what);
            }
        }
    }

    pub fn counted(&self, what: Counter) -> u64 {
        let stat = rustix::fs::statat(&self.dir, what.file(), AtFlags::SYMLINK_NOFOLLOW);
        stat.map_or(0, |stat| stat.st_size as u64)
    }

    fn hollow(&self, what: Counter) {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::openat(&self.dir, what.file(), flags, Mode::empty()) {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(&file, punch, 0, self.counted(what).max(1));
        }
    }
}

fn entries(files: Vec<(String, Stat)>) -> Vec<Held> {
    let entry = |(key, stat): (String, Stat)| {
        let used = UNIX_EPOCH + Duration::new(stat.st_mtime as u64, stat.st_mtime_nsec as u32);
        is_key(&key).then_some(Held { key, size: stat.st_size as u64, used })
    };
    files.into_iter().filter_map(entry).collect()
}

/// The name of an entry: everything that decides the compiler's output.
pub fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_key(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn touch(file: &OwnedFd, stat: &Stat) {
    if now().saturating_sub(stat.st_mtime as u64) > TOUCH_AFTER {
        let time = Timespec { tv_sec: now() as i64, tv_nsec: 0 };
        // Only the order of eviction suffers if this fails.
        let _ = rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time });
    }
}

/// Appends digest and seal, and makes the file what `verified` accepts.
fn seal(file: &OwnedFd, key: &str, note: &[u8]) -> Result<()> {
    let size = rustix::fs::fstat(file).context("fstat")?.st_size as u64;
    ensure!(size > 0, "the compiler wrote nothing");
    let length = u32::try_from(note.len()).context("a note of more than 4 GiB")?;
    append(file, &[note, &length.to_le_bytes()].concat(), size)?;
    let size = size + note.len() as u64 + 4;
    let digest = digest(file, key, size).context("read back compiled code")?;
    append(file, &[&digest[..], SEAL].concat(), size)?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(0o444)).context("chmod in the cache")?;
    rustix::fs::fsync(file).context("sync the cache")
}

fn append(file: &OwnedFd, bytes: &[u8], size: u64) -> Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        match rustix::io::pwrite(file, &bytes[at..], size + at as u64) {
            Ok(0) => bail!("the cache's file system is full"),
            Ok(count) => at += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("write to the cache"),
        }
    }
    Ok(())
}

fn exactly(file: &OwnedFd, bytes: &mut [u8], mut at: u64) -> rustix::io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(file, &mut bytes[done..], at) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => (done, at) = (done + count, at + count as u64),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Owner, mode, and the digest over key and contents, so that not even a renamed entry passes for another.
fn verified(file: &OwnedFd, key: &str) -> Option<Stat> {
    let stat = rustix::fs::fstat(file).ok()?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let ours = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o7777 == 0o444;
    let size = (stat.st_size as u64).checked_sub(TRAILER).filter(|_| regular && ours)?;
    let mut trailer = [0; TRAILER as usize];
    exactly(file, &mut trailer, size).ok()?;
    (trailer[32..] == SEAL[..] && digest(file, key, size).ok()?[..] == trailer[..32]).then_some(stat)
}

fn digest(file: &OwnedFd, key: &str, size: u64) -> rustix::io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(key);
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    while at < size {
        let want = buffer.len().min((size - at) as usize);
        exactly(file, &mut buffer[..want], at)?;
        hash.update(&buffer[..want]);
        at += want as u64;
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::testing::{Scratch, scratch};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn cache(name: &str, limit: u64) -> (Cache, std::path::PathBuf, Scratch) {
        let scratch = scratch(name);
        let dir = scratch.join("a/cache");
        (Cache::open(&dir, limit).unwrap(), dir, scratch)
    }

    fn put(cache: &Cache, name: &str, text: &[u8]) -> String {
        let key = key(&[name.as_bytes()]);
        let _lock = cache.lock(&key).unwrap();
        cache.store(&key, name.as_bytes(), |file| Ok(rustix::io::write(file, text).map(drop)?)).unwrap();
        key
    }

    /// Writes to an entry as only somebody with the directory's owner's powers could.
    fn forge(dir: &Path, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(dir.join(key)).unwrap();
        change(&mut bytes);
        std::fs::remove_file(dir.join(key)).unwrap();
        std::fs::write(dir.join(key), bytes).unwrap();
        std::fs::set_permissions(dir.join(key), std::fs::Permissions::from_mode(0o444)).unwrap();
    }

    #[test]
    fn what_was_stored_is_found_read_only() {
        let (cache, dir, _scratch) = cache("cache-store", 1 << 20);
        assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o700);
        let key = put(&cache, "a", b"code");
        let found = cache.find(&key).unwrap();
        assert!(rustix::io::write(&found, b"x").is_err());
        let mut start = [0; 4];
        rustix::io::pread(&found, &mut start, 0).unwrap();
        assert_eq!(&start, b"code");
        let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [key.as_str()], "no temporary and no lock stays");
    }

    #[test]
    fn wrong_entries_are_misses_and_go_away() {
        let (cache, dir, _scratch) = cache("cache-wrong", 1 << 20);
        let other = put(&cache, "other", b"other code");
        let key = put(&cache, "a", b"code");
        let wrongs: [(&str, &dyn Fn()); 7] = [
            ("poisoned", &|| forge(&dir, &key, |bytes| bytes[0] ^= 1)),
            ("truncated", &|| forge(&dir, &key, |bytes| bytes.truncate(bytes.len() - 1))),
            ("empty", &|| forge(&dir, &key, Vec::clear)),
            ("another key's", &|| std::fs::rename(dir.join(&other), dir.join(&key)).unwrap()),
            ("writable", &|| {
                std::fs::set_permissions(dir.join(&key), std::fs::Permissions::from_mode(0o644)).unwrap();
            }),
            ("a link", &|| {
                std::fs::rename(dir.join(&key), dir.join("target")).unwrap();
                symlink("target", dir.join(&key)).unwrap();
            }),
            ("somebody's", &|| {
                // Only root can give files away; elsewhere this case cannot exist either.
                if rustix::process::geteuid().is_root() {
                    chown(dir.join(&key), Some(12345), None).unwrap();
                } else {
                    std::fs::remove_file(dir.join(&key)).unwrap();
                }
            }),
        ];
        for (what, spoil) in wrongs {
            put(&cache, "a", b"code");
            assert!(cache.find(&key).is_some());
            spoil();
            assert!(cache.find(&key).is_none(), "{what}");
            assert!(std::fs::symlink_metadata(dir.join(&key)).is_err(), "{what} stayed");
        }
    }

    #[test]
    fn a_directory_that_others_may_touch_is_refused() {
        let (_, dir, _scratch) = cache("cache-dir", 1);
        for mode in [0o755, 0o770, 0o701] {
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(Cache::open(&dir, 1).err().unwrap().to_string().contains("mode"));
        }
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
        let link = dir.with_file_name("link");
        symlink(&dir, &link).unwrap();
        assert!(Cache::open(&link, 1).is_err());
        if rustix::process::geteuid().is_root() {
            chown(&dir, Some(12345), None).unwrap();
            assert!(Cache::open(&dir, 1).err().unwrap().to_string().contains("belongs to uid 12345"));
        }
    }

    #[test]
    fn a_failed_compilation_leaves_nothing() {
        let (cache, dir, _scratch) = cache("cache-failed", 1 << 20);
        let failed = cache.store(&key(&[b"a"]), b"", |file| {
            rustix::io::write(file, b"half")?;
            bail!("no")
        });
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    }

    #[test]
    fn the_entry_used_longest_ago_goes_first() {
        let (cache, dir, _scratch) = cache("cache-evict", 2 * (1000 + TRAILER + 5) + 500);
        let keys = ["a", "b", "c"].map(|name| {
            let key = put(&cache, name, &[7; 1000]);
            if name != "c" {
                let age = if name == "a" { 10 * TOUCH_AFTER } else { 20 * TOUCH_AFTER };
                let time = SystemTime::now() - std::time::Duration::from_secs(age);
                std::fs::File::open(dir.join(&key)).unwrap().set_modified(time).unwrap();
            }
            key
        });
        assert_eq!(keys.each_ref().map(|key| cache.find(key).is_some()), [true, false, true]);
        // Finding "a" was a use, so it is "c" that goes next.
        let hours_ago = SystemTime::now() - std::time::Duration::from_secs(3 * TOUCH_AFTER / 4);
        std::fs::File::open(dir.join(&keys[2])).unwrap().set_modified(hours_ago).unwrap();
        put(&cache, "d", &[7; 1000]);
        assert_eq!(keys.each_ref().map(|key| cache.find(key).is_some()), [true, false, false]);
    }

    #[test]
    fn a_note_is_read_from_a_right_entry_only() {
        let (cache, dir, _scratch) = cache("cache-note", 1 << 20);
        let key = put(&cache, "the note", b"code");
        assert_eq!(cache.note(&key).as_deref(), Some(&b"the note"[..]));
        let held: Vec<_> = cache.held().unwrap().into_iter().map(|held| (held.key, held.size)).collect();
        assert_eq!(held, [(key.clone(), 4 + 8 + 4 + TRAILER)]);
        forge(&dir, &key, |bytes| bytes[6] ^= 1);
        assert_eq!(cache.note(&key), None);
        assert!(dir.join(&key).exists(), "whoever only looks changes nothing");
    }

    #[test]
    fn counts_are_exact_under_concurrency_and_take_no_room() {
        let (cache, dir, _scratch) = cache("cache-count", 1 << 20);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        cache.count(Counter::Hits);
                    }
                    cache.count(Counter::Misses);
                });
            }
        });
        assert_eq!((cache.counted(Counter::Hits), cache.counted(Counter::Misses)), (8000, 8));
        cache.count(Counter::Misses);
        assert_eq!((cache.counted(Counter::Hits), cache.counted(Counter::Misses)), (8000, 9));
        use std::os::unix::fs::MetadataExt;
        assert!(std::fs::metadata(dir.join("hits")).unwrap().blocks() <= 8, "at most the last block");
    }

    /// Each ends with its own code in hand, whoever evicts what.
    #[test]
    fn the_limit_holds_when_many_store_at_once() {
        let limit = 3 * (1000 + TRAILER + 16);
        let (_, dir, _scratch) = cache("cache-limit", limit);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let dir = &dir;
                scope.spawn(move || {
                    let cache = Cache::open(dir, limit).unwrap();
                    for round in 0..20 {
                        put(&cache, &format!("{thread}-{round}"), &[7; 1000]);
                    }
                });
            }
        });
        let held = Cache::open(&dir, limit).unwrap().held().unwrap();
        let total: u64 = held.iter().map(|entry| entry.size).sum();
        assert!(total <= limit && !held.is_empty(), "{total}");
    }

    #[test]
    fn many_at_once_compile_once() {
        let (_, dir, _scratch) = cache("cache-many", 1 << 20);
        let key = key(&[b"image"]);
        let compiled = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let cache = Cache::open(&dir, 1 << 20).unwrap();
                    let _lock = cache.lock(&key).unwrap();
                    if cache.find(&key).is_none() {
                        let _slot = cache.slot().unwrap();
                        compiled.fetch_add(1, Ordering::SeqCst);
                        cache
                            .store(&key, b"", |file| Ok(rustix::io::write(file, b"code").map(drop)?))
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(compiled.load(Ordering::SeqCst), 1);
    }
}
