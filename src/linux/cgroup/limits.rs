//! A limit as data - which file of which controller gets which value for which field - and the one writer that
//! applies such lists. What a field means in v1 and v2 stands in `v1` and `v2`.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::linux::kernel_file;

/// One value for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Below `linux.resources`, as in config.json: `memory.limit`.
    pub field: String,
    pub controller: &'static str,
    pub file: String,
    pub value: String,
    pub missing: Missing,
    /// The kernel judges this value together with another one (quota with period, limit with limit plus swap)
    /// and may say EINVAL until that is written: then it is tried again at the end.
    pub paired: bool,
}

/// What to do when the file does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    Refuse,
    /// The value asks for what a kernel without the file does anyway.
    Fine,
    Instead {
        file: String,
        value: String,
    },
}

impl Write {
    pub fn new(
        field: impl Into<String>,
        controller: &'static str,
        file: impl Into<String>,
        value: impl ToString,
    ) -> Write {
        Write {
            field: field.into(),
            controller,
            file: file.into(),
            value: value.to_string(),
            missing: Missing::Refuse,
            paired: false,
        }
    }

    pub fn optional(mut self) -> Write {
        self.missing = Missing::Fine;
        self
    }

    pub fn instead(mut self, file: &str, value: impl ToString) -> Write {
        self.missing = Missing::Instead { file: file.to_owned(), value: value.to_string() };
        self
    }

    pub fn paired(mut self) -> Write {
        self.paired = true;
        self
    }
}

/// `apply` or `replace`.
pub type Apply = fn(&[Write], &dyn Fn(&Write) -> Result<PathBuf>) -> Result<()>;

/// Writes the list in its order; `dir` says where a controller's files are.
pub fn apply(writes: &[Write], dir: &dyn Fn(&Write) -> Result<PathBuf>) -> Result<()> {
    let mut again = Vec::new();
    for write in writes {
        let dir = dir(write)?;
        match put(&dir, write) {
            Err(error) if write.paired && error.raw_os_error() == Some(libc::EINVAL) => {
                again.push((dir, write))
            }
            result => result.map_err(|error| explain(&dir, write, error))?,
        }
    }
    for (dir, write) in again {
        put(&dir, write).map_err(|error| explain(&dir, write, error))?;
    }
    Ok(())
}

/// `apply` to limits that are in force: when one is refused, those already written are what they were. A file with
/// a line for each device or key cannot be written back like that; what it got before another failed stays.
pub fn replace(writes: &[Write], dir: &dyn Fn(&Write) -> Result<PathBuf>) -> Result<()> {
    let mut before = Vec::new();
    for write in writes {
        let dir = dir(write)?;
        let names = match &write.missing {
            Missing::Instead { file, .. } => vec![&write.file, file],
            _ => vec![&write.file],
        };
        let old = names.into_iter().find_map(|name| {
            let text = kernel_file::read(dir.join(name)).ok()?;
            Some((dir.join(name), text.trim().to_owned()))
        });
        before.extend(old.filter(|(_, text)| !text.is_empty() && text.lines().count() == 1));
    }
    let result = apply(writes, dir);
    if result.is_err() {
        // Twice: of a pair (limit and limit plus swap) one may be refused until the other is back.
        for _ in 0..2 {
            for (path, value) in before.iter().rev() {
                let _ = write_file(path, value);
            }
        }
    }
    result
}

fn put(dir: &Path, write: &Write) -> io::Result<()> {
    match (write_file(&dir.join(&write.file), &write.value), &write.missing) {
        (Err(error), Missing::Fine) if error.kind() == ErrorKind::NotFound => Ok(()),
        (Err(error), Missing::Instead { file, value }) if error.kind() == ErrorKind::NotFound => {
            write_file(&dir.join(file), value)
        }
        (result, _) => result,
    }
}

/// Never O_CREAT: in a cgroup directory that turns "no such file" into "permission denied".
pub fn write_file(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn explain(dir: &Path, write: &Write, error: io::Error) -> anyhow::Error {
    let file = dir.join(&write.file);
    let what = format!("linux.resources.{}: write {:?} to {}", write.field, write.value, file.display());
    // EBUSY: the memory in use cannot be reclaimed below the new limit. runc's words.
    if error.raw_os_error() == Some(libc::EBUSY) && write.file == "memory.limit_in_bytes" {
        let read = |name| kernel_file::read(dir.join(name)).unwrap_or_default();
        let (usage, peak) = (read("memory.usage_in_bytes"), read("memory.max_usage_in_bytes"));
        return anyhow!(error).context(format!(
            "{what}: unable to set memory limit to {} (current usage: {}, peak usage: {})",
            write.value,
            usage.trim(),
            peak.trim()
        ));
    }
    anyhow!(error).context(what)
}

/// Reads a one-line file.
pub fn read_line(path: &Path) -> Result<String> {
    let text = kernel_file::read_value(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim().to_owned())
}
