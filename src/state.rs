//! The state directory: container ids, one directory and one lock per container, `state.json`, and the two
//! documents made from it (runc's `state`, the runtime-spec state that hooks read). Knows no process and no
//! kernel object beyond files: whether a container runs is `linux::lifecycle`'s question.
//!
//! ```text
//! ROOT/ID/            0700, flock'ed by whoever changes the container
//!         state.json  Record, replaced as a whole
//!         config.json the bytes of the bundle's config.json that create read
//!         start.sock  there while init waits for start
//! ```

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::seam::{MountId, Process, Status};

pub const STATE: &str = "state.json";
pub const CONFIG: &str = "config.json";
pub const START_SOCKET: &str = "start.sock";
const STATE_TEMP: &str = "state.json.tmp";
const CONFIG_TEMP: &str = "config.json.tmp";

/// Raised when an older runw could no longer understand a record. Fields that may be missing get a serde
/// default instead, and unknown ones are ignored, so this is for changes of meaning only.
pub const FORMAT: u32 = 1;

/// How long a command waits for another that holds the container's lock. A stopped (SIGSTOP, debugger) or hung
/// runw keeps its lock, and a caller such as the kubelet must get an answer instead of hanging with it.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The texts callers match on (native-peers 1.5, 1.8).
pub const NOT_EXIST: &str = "container does not exist";
pub const EXISTS: &str = "container with given ID already exists";

/// What is known of a container, as kept in `state.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub format: u32,
    pub oci_version: String,
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339 with nanoseconds, UTC.
    pub created: String,
    /// The uid that owns the container: the effective uid of `create`.
    pub owner: u32,
    /// False until `create` has succeeded.
    #[serde(default)]
    pub created_done: bool,
    #[serde(default)]
    pub init: Option<Process>,
    /// The root of a container without a mount namespace: it and all that is mounted in it is the host's.
    #[serde(default)]
    pub root_mount: Option<MountId>,
    /// The names of the standard streams that `create` gave to a container without a terminal, for `checkpoint`.
    #[serde(default)]
    pub descriptors: Vec<String>,
    /// It runs in a process of ours, which CRIU cannot dump.
    #[serde(default)]
    pub wasm: bool,
    /// `create --no-new-keyring`, which an exec must know.
    #[serde(default)]
    pub no_new_keyring: bool,
    /// `linux::cgroup::Cgroup`, opaque here; none until planned.
    #[serde(default)]
    pub cgroup: Option<Box<RawValue>>,
}

impl Record {
    /// What can be said of a container whose `create` has only just begun.
    pub fn new(id: &str) -> Record {
        Record {
            format: FORMAT,
            id: id.to_owned(),
            created: crate::log::timestamp(SystemTime::now(), true),
            owner: rustix::process::geteuid().as_raw(),
            ..Record::default()
        }
    }

    /// The record of container `id`; `path` is where the bytes are from.
    pub fn parse(bytes: &[u8], id: &str, path: &Path) -> Result<Record> {
        // The format first and alone: a newer record need not have the fields we know.
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let context = || format!("{} cannot be understood", path.display());
        let Versioned { format } = serde_json::from_slice(bytes).with_context(context)?;
        ensure!(
            format <= FORMAT,
            "{} has format {format}, made by a newer runw; this one knows formats up to {FORMAT}",
            path.display()
        );
        let record: Record = serde_json::from_slice(bytes).with_context(context)?;
        ensure!(record.id == id, "{} is of container {}, not {id}", path.display(), record.id);
        Ok(record)
    }

    /// runc's `state` and `list` object. `pid` is 0 once stopped, as engines expect.
    pub fn document(&self, status: Status) -> Document<'_> {
        let pid = if status == Status::Stopped { 0 } else { self.init.map_or(0, |init| init.pid) };
        Document {
            oci_version: &self.oci_version,
            id: &self.id,
            pid,
            status,
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations: &self.annotations,
            owner: user_name(self.owner),
        }
    }

    /// The runtime-spec's State, which hooks read from standard input. `pid` is left out when there is no
    /// process (config.md: poststop).
    pub fn hook_document(&self, status: Status, pid: Option<i32>) -> HookDocument<'_> {
        HookDocument {
            oci_version: &self.oci_version,
            id: &self.id,
            status,
            pid,
            bundle: &self.bundle,
            annotations: &self.annotations,
        }
    }
}

/// Key order is runc's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<'a> {
    oci_version: &'a str,
    pub id: &'a str,
    pub pid: i32,
    pub status: Status,
    pub bundle: &'a Path,
    rootfs: &'a Path,
    pub created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    pub owner: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookDocument<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

/// runc's rule, the regular expression `^[\w+-\.]+$` (a range from `+` to `.`), and NAME_MAX.
pub fn check_id(id: &str) -> Result<()> {
    ensure!(!id.is_empty(), "container id cannot be empty");
    // Before the length: what is not an id at all should not be echoed.
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+'..='.');
    ensure!(id.chars().all(valid) && id != "." && id != "..", "invalid container ID format");
    ensure!(id.len() <= 255, "invalid container ID format: {} characters, at most 255 can be used", id.len());
    Ok(())
}

/// The directory given by `--root`.
#[derive(Clone, Debug)]
pub struct Root {
    pub dir: PathBuf,
}

impl Root {
    pub fn new(dir: PathBuf) -> Root {
        Root { dir }
    }

    /// Compiled seccomp profiles, shared by all containers. The `~` keeps the name from ever being an id.
    pub fn seccomp_cache(&self) -> PathBuf {
        self.dir.join("seccomp~cache")
    }

    /// Takes the id for a new container. The caller holds the container's lock until the Entry is dropped.
    pub fn reserve(&self, id: &str) -> Result<Entry> {
        check_id(id)?;
        let dir = self.dir.join(id);
        // mkdir is the one atomic claim of the name: of two creates exactly one gets past here.
        let claim = || DirBuilder::new().mode(0o700).create(&dir);
        let claimed = match claim() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let context = || format!("cannot make the state directory {}", self.dir.display());
                DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).with_context(context)?;
                claim()
            }
            claimed => claimed,
        };
        match claimed {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(EXISTS),
            made => made.with_context(|| format!("cannot make {}", dir.display()))?,
        }
        let mut entry = Entry { dir, record: Record::new(id), handle: None, locked: false };
        let claimed = entry.take_lock().and_then(|()| {
            // A delete may have removed our directory and another create made it again before we had the lock:
            // then two of us wait for the same one, and who comes first has written its record.
            ensure!(!entry.dir.join(STATE).exists(), EXISTS);
            // Whatever the umask is: config.json holds secrets, and its hooks are run as our user.
            std::fs::set_permissions(&entry.dir, std::fs::Permissions::from_mode(0o700))?;
            Ok(())
        });
        if let Err(error) = claimed {
            let _ = std::fs::remove_dir(&entry.dir);
            return Err(error.context(format!("cannot take container {id}")));
        }
        Ok(entry)
    }

    /// The container as it was last saved; not locked.
    pub fn load(&self, id: &str) -> Result<Entry> {
        check_id(id)?;
        let dir = self.dir.join(id);
        let record = read_record(&dir, id)?;
        Ok(Entry { dir, record, handle: None, locked: false })
    }

    pub fn load_locked(&self, id: &str) -> Result<Entry> {
        check_id(id)?;
        let mut entry =
            Entry { dir: self.dir.join(id), record: Record::new(id), handle: None, locked: false };
        entry.lock()?;
        Ok(entry)
    }

    /// Every id that has a directory, sorted. A root that does not exist yet holds no container.
    pub fn ids(&self) -> Result<Vec<String>> {
        let context = || format!("cannot read the state directory {}", self.dir.display());
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(context)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.with_context(context)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if check_id(&name).is_ok() && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                ids.push(name);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

/// One container's directory.
#[derive(Debug)]
pub struct Entry {
    pub dir: PathBuf,
    pub record: Record,
    /// The directory itself, since it was locked first. Close-on-exec, but a clone inherits it: the child must close it,
    /// or the lock lives as long as the child does.
    handle: Option<File>,
    locked: bool,
}

impl Entry {
    /// Waits (not for ever) until no other runw changes this container, then reads the record; of one that was locked
    /// before only its `create` changes that, and another container's directory is another one.
    pub fn lock(&mut self) -> Result<()> {
        if !self.locked {
            let known = self.handle.is_some();
            self.take_lock()?;
            if !known {
                self.record = read_record(&self.dir, &self.record.id)?;
            }
        }
        Ok(())
    }

    /// Whether another process holds the lock now: a `create` without a lock holder was killed.
    pub fn busy(&self) -> bool {
        if self.locked {
            return false;
        }
        let Ok(dir) = File::open(&self.dir) else { return false };
        rustix::fs::flock(&dir, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    }

    pub fn unlock(&mut self) {
        if let Some(dir) = &self.handle {
            let _ = rustix::fs::flock(dir, FlockOperation::Unlock);
        }
        self.locked = false;
    }

    /// Replaces `state.json`. No fsync: the record describes processes, and none outlives a power failure; the
    /// rename alone keeps it whole when runw is killed.
    pub fn save(&self) -> Result<()> {
        self.stage()?.commit()
    }

    /// Writes a new state.json beside the one in use; `Staged::commit` puts it in its place.
    pub fn stage(&self) -> Result<Staged> {
        let bytes = serde_json::to_vec(&self.record).context("cannot write the state as JSON")?;
        Staged::write(self.dir.join(STATE), self.dir.join(STATE_TEMP), &bytes)
    }

    /// Keeps the bytes of config.json that the container was made from.
    pub fn keep_config(&self, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(CONFIG);
        write_private(&path, bytes).with_context(|| format!("cannot save {}", path.display()))
    }

    /// `stage`, for config.json.
    pub fn stage_config(&self, bytes: &[u8]) -> Result<Staged> {
        Staged::write(self.dir.join(CONFIG), self.dir.join(CONFIG_TEMP), bytes)
    }

    /// Removes the directory. Gone already is done.
    pub fn remove(self) -> Result<()> {
        // What every container has. Whatever else there is, what follows removes.
        let usual = [STATE, CONFIG].map(|name| std::fs::remove_file(self.dir.join(name)));
        if usual.iter().all(std::io::Result::is_ok) && std::fs::remove_dir(&self.dir).is_ok() {
            return Ok(());
        }
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }

    fn take_lock(&mut self) -> Result<()> {
        let known = self.handle.is_some();
        let opened = self.handle.take().map_or_else(|| File::open(&self.dir), Ok);
        let dir = match opened {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(NOT_EXIST),
            dir => dir.with_context(|| format!("cannot open {}", self.dir.display()))?,
        };
        let taken = self.lock_directory(&dir);
        self.locked = taken.is_ok();
        // The one that was locked first stays the one that is meant, whatever has its name by now.
        if known || self.locked {
            self.handle = Some(dir);
        }
        taken
    }

    fn lock_directory(&self, dir: &File) -> Result<()> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::WOULDBLOCK) => bail!(
                    "container {} is being changed by another runw, which did not finish in {} s",
                    self.record.id,
                    LOCK_PATIENCE.as_secs()
                ),
                Err(Errno::INTR) => {}
                Err(error) => {
                    return Err(anyhow!(error))
                        .with_context(|| format!("cannot lock {}", self.dir.display()));
                }
            }
        }
        // The holder we waited for may have been a delete, and a create may since have made a directory of the
        // same name: only the lock of the directory the path names now is worth anything.
        let same = |now: std::fs::Metadata, held: std::fs::Metadata| {
            (now.dev(), now.ino()) == (held.dev(), held.ino())
        };
        let current = std::fs::symlink_metadata(&self.dir).ok().zip(dir.metadata().ok());
        ensure!(current.is_some_and(|(now, held)| same(now, held)), NOT_EXIST);
        Ok(())
    }
}

/// Whatever the umask is.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file?.write_all(bytes)
}

/// A file that is written, and takes effect only when what it tells of has happened.
#[derive(Debug)]
pub struct Staged {
    temp: PathBuf,
    path: PathBuf,
}

impl Staged {
    fn write(path: PathBuf, temp: PathBuf, bytes: &[u8]) -> Result<Staged> {
        let staged = Staged { temp, path };
        let written = write_private(&staged.temp, bytes);
        written.with_context(|| format!("cannot write {}", staged.temp.display()))?;
        Ok(staged)
    }

    /// ext4 writes out at once what rename(2) puts in the place of another file (ext4.rst, auto_da_alloc), and whoever
    /// removes it next waits for the disk: exchanged, neither happens.
    /// What was there before goes with this value.
    pub fn commit(&mut self) -> Result<()> {
        let exchange = RenameFlags::EXCHANGE;
        if rustix::fs::renameat_with(CWD, &self.temp, CWD, &self.path, exchange).is_ok() {
            return Ok(());
        }
        // There is no old one, or the file system cannot exchange them (rename(2): EINVAL).
        std::fs::rename(&self.temp, &self.path)
            .with_context(|| format!("cannot replace {}", self.path.display()))?;
        self.temp.clear();
        Ok(())
    }
}

impl Drop for Staged {
    /// What was not put in its place, or what was there before. If it stays it is overwritten by the next, or removed with
    /// the directory.
    fn drop(&mut self) {
        if !self.temp.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.temp);
        }
    }
}

/// Reads `state.json`. A `create` killed before its first save leaves only the directory; its record is then
/// what the name tells, so that `delete --force` can remove it.
fn read_record(dir: &Path, id: &str) -> Result<Record> {
    let path = dir.join(STATE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            let meta = std::fs::symlink_metadata(dir).ok().filter(std::fs::Metadata::is_dir);
            return Ok(unfinished(id, &meta.ok_or_else(|| anyhow!(NOT_EXIST))?));
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    Record::parse(&bytes, id, &path)
}

fn unfinished(id: &str, dir: &std::fs::Metadata) -> Record {
    let made = dir.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    Record { created: crate::log::timestamp(made, true), owner: dir.uid(), ..Record::new(id) }
}

/// The owner's name, or `#UID` as runc prints. /etc/passwd is read by hand: a static glibc would load the NSS
/// libraries of the host for getpwuid.
fn user_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_in(&passwd, uid).map_or_else(|| format!("#{uid}"), str::to_owned)
}

fn name_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
