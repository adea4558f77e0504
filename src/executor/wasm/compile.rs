//! From bytes to an artifact of the cache, compiling in a confined child when there is none. In the parent no
//! engine is made: everything of wasmtime here runs inside the job.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;

use super::cache::{self, Cache, Counter};
use super::kept::Note;
use super::settings::{self, Settings};
use super::{Kind, engine, load, plain};
use crate::executor::Host;
use crate::executor::select::Verdict;
use crate::log;
use crate::seam::{Confine, ConfineLimits};

/// Cranelift recurses over what the guest nests; rayon's own 2 MiB is less than a main thread has.
const COMPILER_STACK: usize = 8 << 20;

pub struct Compiled {
    pub artifact: OwnedFd,
    pub kind: Kind,
    /// Just now; else it was in the cache.
    pub made: bool,
}

/// What decides the code, besides the engine.
struct Source<'a> {
    bytes: &'a [u8],
    kind: Kind,
    /// Code that counts what it does.
    fuel: bool,
    name: &'a str,
}

/// The verified artifact for these bytes.
pub fn compiled(bytes: &[u8], form: Verdict, name: &str, fuel: bool, host: &Host) -> Result<Compiled> {
    let settings = operator(host)?;
    ensure!(settings.wasm.enabled, "{name:?} is WebAssembly, which this host's operator has turned off");
    let kind = match form {
        Verdict::Core => Kind::Core,
        Verdict::Component => Kind::of_component(bytes),
        Verdict::Text => kind_of_text(bytes),
    };
    let dir = settings::cache_dir(&settings, host.rootless)?;
    let cache = Cache::open(&dir, settings.wasm.cache_size)?;
    let source = Source { bytes, kind, fuel, name };
    let (artifact, made) = find_or_make(&cache, &source, host.confine, &settings)
        .with_context(|| format!("compile {name:?}"))?;
    cache.count(if made { Counter::Misses } else { Counter::Hits });
    if load::is_noexec(&artifact)? {
        log::warn(&format!(
            "{} is on a noexec file system: each container copies its compiled code instead of sharing it",
            dir.display()
        ));
    }
    Ok(Compiled { artifact, kind, made })
}

fn find_or_make(
    cache: &Cache,
    source: &Source<'_>,
    confine: &Confine,
    settings: &Settings,
) -> Result<(OwnedFd, bool)> {
    let key = cache::key(&[
        source.bytes,
        &[source.kind.code(), u8::from(source.fuel)],
        engine::VERSION.as_bytes(),
        engine::CONFIGURATION,
        engine::cpu().as_bytes(),
    ]);
    if let Some(artifact) = cache.find(&key) {
        return Ok((artifact, false));
    }
    let _lock = cache.lock(&key)?;
    // Whoever held the lock before us compiled it.
    if let Some(artifact) = cache.find(&key) {
        return Ok((artifact, false));
    }
    let _slot = cache.slot()?;
    let limits =
        ConfineLimits { memory: settings.wasm.compile_memory, deadline: settings.wasm.compile_deadline };
    let note = Note::of(source.bytes, source.kind, source.fuel, source.name).bytes();
    let made = cache.store(&key, &note, |file| {
        confine(&limits, &[file.as_raw_fd()], &mut || compile(source, file.as_fd()))
    });
    Ok((made?, true))
}

pub fn operator(host: &Host) -> Result<Settings> {
    let path = host.settings.map(PathBuf::from).or_else(|| settings::usual_path(host.rootless));
    path.map_or_else(|| Ok(Settings::default()), |path| settings::read(&path))
}

/// The confined child's work.
fn compile(source: &Source<'_>, into: BorrowedFd<'_>) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .stack_size(COMPILER_STACK)
        .build_global()
        .context("start compiler threads")?;
    let engine = engine::engine(source.kind.profile(), source.fuel)?;
    let code = match source.kind {
        Kind::Core => engine.precompile_module(source.bytes),
        Kind::Component | Kind::Concurrent => engine.precompile_component(source.bytes),
    }
    .map_err(plain)?;
    let mut rest = code.as_slice();
    while !rest.is_empty() {
        match rustix::io::write(into, rest) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("write compiled code"),
        }
    }
    Ok(())
}

/// The first keyword of wat text after blanks and comments. A wrong guess is the parser's error, not a danger.
fn kind_of_text(bytes: &[u8]) -> Kind {
    let text = String::from_utf8_lossy(bytes);
    let mut rest = text.trim_start();
    loop {
        if rest.starts_with(";;") {
            rest = rest.split_once('\n').map_or("", |(_, after)| after).trim_start();
        } else if rest.starts_with("(;") {
            rest = rest.split_once(";)").map_or("", |(_, after)| after).trim_start();
        } else {
            break;
        }
    }
    let word = rest.strip_prefix('(').unwrap_or_default().trim_start();
    if word.starts_with("component") { Kind::of_component(bytes) } else { Kind::Core }
}
