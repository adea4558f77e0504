//! From `config.json` to a Spec that the rest of runw may trust. What we do not accept is refused here, by name
//! and before any side effect; a field that nobody honours is never dropped in silence. Touches nothing but the
//! files it reads.

pub mod annotations;
mod attributes;
mod checks;
mod idmap;
mod labels;
mod lenient;
pub mod namespaces;
mod nul;
mod process;
mod unsupported;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use serde::de::DeserializeOwned;

/// Real configurations are 10 to 100 KB (Kubernetes with hundreds of mounts and a seccomp profile: below 1 MB).
/// Parsed JSON takes some ten times its size, in a process that often has to fit a small cgroup.
const MAX_CONFIG: u64 = 16 << 20;

/// A bundle directory that was found fit to run.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Absolute and without symlinks.
    pub dir: PathBuf,
    pub spec: Spec,
    /// Absolute and without symlinks.
    pub rootfs: PathBuf,
    /// The bytes of config.json as read, once.
    pub config: Vec<u8>,
    /// What was dropped and should be said (unknown capabilities).
    pub warnings: Vec<String>,
}

impl Bundle {
    /// `config` is crun's `--config`, relative to the current directory.
    pub fn load(dir: &Path, config: Option<&Path>) -> Result<Bundle> {
        let dir = directory(dir).with_context(|| format!("bundle {}", dir.display()))?;
        let path = config.map_or_else(|| dir.join("config.json"), Path::to_path_buf);
        let bytes = read_json(&path)?;
        let name = path.file_name().unwrap_or_default().display().to_string();
        let (mut spec, warnings) = accept(&bytes).context(name.clone())?;
        let rootfs = rootfs(&dir, &spec)?;
        strip_root(&mut spec, &rootfs);
        namespaces::mounts_of_the_host(&spec).context(name)?;
        Ok(Bundle { dir, spec, rootfs, config: bytes, warnings })
    }
}

/// What a config.json says, if all of it can be honoured, and what must be said about it.
pub fn accept(bytes: &[u8]) -> Result<(Spec, Vec<String>)> {
    let (mut spec, mut warnings): (Spec, _) = parse(bytes)?;
    unsupported::unknown_platform(bytes)?;
    if let Some(rdt) = spec.linux_mut().as_mut().and_then(|linux| linux.intel_rdt_mut().as_mut()) {
        lenient::monitoring(bytes, rdt)?;
    }
    settle(&mut spec, &mut warnings)?;
    warnings.extend(annotations::unknown(spec.annotations().as_ref()));
    checks::spec(&spec)?;
    Ok((spec, warnings))
}

/// A config.json that `create` has accepted before, read again: nothing is checked twice, nothing said twice.
pub fn reload(path: &Path) -> Result<Spec> {
    let (mut spec, mut warnings): (Spec, _) = parse(&read_json(path)?)?;
    settle(&mut spec, &mut warnings)?;
    Ok(spec)
}

/// What `exec` made of flags: the same rules as for config.json's `process`.
pub fn check_process(process: &Process) -> Result<()> {
    process::check(process)
}

/// The file of `exec --process`: the same rules as for config.json's `process`.
pub fn parse_process(bytes: &[u8]) -> Result<(Process, Vec<String>)> {
    let (process, warnings): (Process, _) = parse(bytes)?;
    process::check(&process)?;
    Ok((process, warnings))
}

/// The limits of `update`, as config.json's `linux.resources`.
pub fn parse_resources(bytes: &[u8]) -> Result<LinuxResources> {
    let resources = strict(bytes)?;
    nul::refuse(bytes)?;
    Ok(resources)
}

/// Reads a whole JSON file, and only a regular file of sensible size: a FIFO in a bundle would block us for
/// ever, hence O_NONBLOCK and the look at the type.
pub fn read_json(path: &Path) -> Result<Vec<u8>> {
    read_file(&open(path, nonblocking())?).with_context(|| format!("cannot read {}", path.display()))
}

/// A file that the caller names on the command line may be a pipe, a shell's `<(...)` for one, as with runc.
pub fn read_argument(path: &Path) -> Result<Vec<u8>> {
    read_limited(open(path, 0)?, 0).with_context(|| format!("cannot read {}", path.display()))
}

fn open(path: &Path, flags: i32) -> Result<File> {
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        // runc's words.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("JSON specification file {} not found", path.display())
        }
        file => file.with_context(|| format!("cannot open {}", path.display())),
    }
}

fn nonblocking() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits() as i32
}

fn read_file(file: &File) -> Result<Vec<u8>> {
    let meta = file.metadata()?;
    ensure!(meta.is_file(), "not a regular file");
    ensure!(
        meta.len() <= MAX_CONFIG,
        "{} bytes are more than the {} MiB that are read",
        meta.len(),
        MAX_CONFIG >> 20
    );
    // Again by count: the file may grow meanwhile.
    read_limited(file, meta.len() as usize + 1)
}

/// All that `reader` has (standard input, for one), if that is no more than a configuration may have.
pub fn read_limited(reader: impl Read, expected: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(expected);
    reader.take(MAX_CONFIG + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MAX_CONFIG, "more than the {} MiB that are read", MAX_CONFIG >> 20);
    Ok(bytes)
}

/// Parses once; only what fails is looked at again, with what runc would accept mended.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, Vec<String>)> {
    let first = match strict(bytes) {
        Ok(value) => {
            nul::refuse(bytes)?;
            return Ok((value, Vec::new()));
        }
        Err(error) => error,
    };
    match lenient::mend(bytes) {
        Some((value, warnings)) => {
            let parsed = strict(&value)?;
            nul::refuse(&value)?;
            Ok((parsed, warnings))
        }
        None => Err(first),
    }
}

/// Errors name the field: `process.args[1]: invalid type: integer ...`. To know its name costs as much as the parsing, so
/// only what fails is parsed that way.
fn strict<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = anyhow::Error::new(error.into_inner());
        // serde_path_to_error's names for the document itself, and for nothing that has a name.
        if path == "." || path == "?" { inner } else { inner.context(path) }
    })?;
    json.end()?;
    Ok(value)
}

/// Whether a document has the text in it; one that is not all UTF-8 may. Not memchr's search: that first asks the processor
/// what it is, in a dozen instructions that leave a virtual machine each.
fn may_hold(json: &[u8], text: &str) -> bool {
    std::str::from_utf8(json).map_or(true, |json| json.contains(text))
}

/// Gives the spellings that engines use for one thing one form, so that nobody after us meets the others.
fn settle(spec: &mut Spec, warnings: &mut Vec<String>) -> Result<()> {
    let maps =
        spec.linux().as_ref().map(|linux| (linux.uid_mappings().clone(), linux.gid_mappings().clone()));
    let (uids, gids) = maps.unwrap_or_default();
    let container = (uids.as_deref().unwrap_or_default(), gids.as_deref().unwrap_or_default());
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        let destination = mount.destination();
        if destination.is_relative() && !destination.as_os_str().is_empty() {
            let absolute = Path::new("/").join(destination);
            // runc's rule since 1.0.0-rc: deprecated, and taken as relative to the root.
            let text = "relative destination path is deprecated, using it as relative to /";
            warnings.push(format!("mounts[{index}].destination {destination:?}: {text}"));
            mount.set_destination(absolute);
        }
        idmap::settle(mount, container).with_context(|| format!("mounts[{index}]"))?;
    }
    annotations::settle_seccomp(spec);
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    if let Some(flags) =
        linux.personality().as_ref().and_then(|p| p.flags().as_ref()).filter(|f| !f.is_empty())
    {
        // As runc: Linux has flags, the specification defines none yet.
        warnings.push(format!("linux.personality: ignoring unsupported personality flags: {flags:?}"));
    }
    let devices = linux.resources().as_ref().and_then(|resources| resources.devices().as_ref());
    for access in devices.into_iter().flatten().filter_map(|device| device.access().as_deref()) {
        if access.contains(|letter| !"rwm".contains(letter)) {
            // As runc, which takes them in silence.
            warnings.push(format!(
                "linux.resources.devices: access {access:?}: ignoring other letters than r, w, m"
            ));
        }
    }
    let namespaces = linux.namespaces().clone().map(|mut namespaces| {
        for namespace in &mut namespaces {
            let path = namespace.path().clone().filter(|path| !path.as_os_str().is_empty());
            namespace.set_path(path);
        }
        namespaces
    });
    linux.set_namespaces(namespaces);
    Ok(())
}

/// A destination may be written as the host sees it, root and all: runc takes the root off (LexicallyStripRoot).
fn strip_root(spec: &mut Spec, rootfs: &Path) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        // Of a root that is `/` every path is below, and means itself.
        if let Ok(inside) = mount.destination().strip_prefix(rootfs) {
            let inside = Path::new("/").join(inside);
            mount.set_destination(inside);
        }
    }
}

fn rootfs(dir: &Path, spec: &Spec) -> Result<PathBuf> {
    let root = spec.root().as_ref().context("root is required")?;
    let path = dir.join(root.path());
    directory(&path).with_context(|| format!("root.path {}", path.display()))
}

/// The directory's canonical path. The kernel has it, where realpath(3) asks about each name.
fn directory(path: &Path) -> Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // As a rule it is what was given, and that takes no look into /proc.
    if is_plain(path) && openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).is_ok() {
        return Ok(path.to_owned());
    }
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?)
}

/// Absolute, each name of it given once and going down.
fn is_plain(path: &Path) -> bool {
    let down = path.components().all(|component| component != Component::ParentDir);
    path.is_absolute() && down && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str()
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
