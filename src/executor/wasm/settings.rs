//! The operator's settings, read only once a wasm workload was chosen. Every key is optional, an unknown one is
//! an error, and a file that others could have written is refused: it names where code is loaded from.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

/// In seconds.
const DAY: u64 = 86_400;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    pub wasm: Wasm,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Wasm {
    pub enabled: bool,
    /// Where compiled code is kept; `None` is /var/cache/runw, or the user's own when rootless.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of compiled code kept.
    pub cache_size: u64,
    /// Bytes a compilation may use.
    pub compile_memory: u64,
    /// Seconds of CPU time a compilation may take.
    pub compile_deadline: u64,
}

#[allow(clippy::derivable_impls)]
impl Default for Settings {
    fn default() -> Self {
        Settings { wasm: Wasm::default() }
    }
}

impl Default for Wasm {
    fn default() -> Self {
        Wasm {
            enabled: true,
            cache_dir: None,
            cache_size: 1 << 30,
            compile_memory: 1 << 30,
            compile_deadline: 60,
        }
    }
}

/// Where the file is: rootless users have their own.
pub fn usual_path(rootless: bool) -> Option<PathBuf> {
    if !rootless {
        return Some(PathBuf::from("/etc/runw/config.json"));
    }
    home_dir("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("runw/config.json"))
}

/// Where compiled code goes unless the settings say otherwise. Never below /run or the state root: those are
/// often noexec, and code is mapped from here.
pub fn cache_dir(settings: &Settings, rootless: bool) -> Result<PathBuf> {
    match &settings.wasm.cache_dir {
        Some(dir) => Ok(dir.clone()),
        None if !rootless => Ok(PathBuf::from("/var/cache/runw")),
        None => home_dir("XDG_CACHE_HOME", ".cache")
            .map(|dir| dir.join("runw"))
            .context("rootless wasm needs XDG_CACHE_HOME or HOME for compiled code"),
    }
}

/// The XDG base directory rules: a relative value counts as unset.
fn home_dir(variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(below_home)))
}

/// Missing means all defaults.
pub fn read(path: &Path) -> Result<Settings> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(Settings::default()),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    trusted(&file, path)?;
    let mut text = String::new();
    file.take(1 << 20).read_to_string(&mut text).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

fn trusted(file: &File, path: &Path) -> Result<()> {
    let stat = file.metadata().with_context(|| format!("stat {}", path.display()))?;
    let me = rustix::process::geteuid().as_raw();
    ensure!(stat.is_file(), "{} is not a regular file", path.display());
    ensure!(
        stat.uid() == 0 || stat.uid() == me,
        "{} belongs to uid {}, not to us",
        path.display(),
        stat.uid()
    );
    ensure!(
        stat.mode() & 0o022 == 0,
        "{} is writable by others (mode {:04o})",
        path.display(),
        stat.mode() & 0o7777
    );
    Ok(())
}

fn parse(text: &str) -> Result<Settings> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let settings: Settings = serde_path_to_error::deserialize(&mut reader)?;
    reader.end()?;
    if settings.wasm.cache_dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
        bail!("wasm.cacheDir must be absolute");
    }
    ensure!(
        (1..=DAY).contains(&settings.wasm.compile_deadline),
        "wasm.compileDeadline must be from 1 to {DAY}"
    );
    ensure!(settings.wasm.compile_memory >= 64 << 20, "wasm.compileMemory must be at least 64 MiB");
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn every_key_is_optional() {
        assert_eq!(parse("{}").unwrap(), Settings::default());
        let settings = parse(r#"{"wasm":{"enabled":false,"cacheDir":"/c","compileDeadline":5}}"#).unwrap();
        assert!(!settings.wasm.enabled);
        assert_eq!(settings.wasm.cache_dir.as_deref(), Some(Path::new("/c")));
        assert_eq!((settings.wasm.compile_deadline, settings.wasm.cache_size), (5, 1 << 30));
    }

    #[test]
    fn unknown_and_impossible_values_are_errors_that_name_the_key() {
        assert!(format!("{:#}", parse(r#"{"wasm":{"cacheSiz":1}}"#).unwrap_err()).contains("cacheSiz"));
        assert!(format!("{:#}", parse(r#"{"wasm":{"cacheDir":"c"}}"#).unwrap_err()).contains("cacheDir"));
        assert!(parse(r#"{"wasm":{"compileDeadline":0}}"#).is_err());
        assert!(parse(r#"{"wasm":{"compileDeadline":18446744073709551615}}"#).is_err());
        assert!(parse("{} x").is_err());
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let dir = crate::executor::testing::scratch("settings");
        let path = dir.join("config.json");
        std::fs::write(&path, "{}").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o622)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("writable by others"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path).unwrap(), Settings::default());
        assert_eq!(read(&dir.join("none")).unwrap(), Settings::default());
    }
}
