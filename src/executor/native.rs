//! A native program: found at create as runc finds it (Go's `exec.LookPath`, run with the container user's
//! credentials), executed at start. The texts are runc's, since moby and podman derive exit codes from them.

use std::ffi::{CStr, CString};
use std::io;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use super::Execve;

pub struct Native {
    argv: Vec<String>,
    env: Vec<String>,
    execve: Execve,
    call: Option<Call>,
}

/// The three arguments of execve, made at create so that start allocates nothing that could fail.
struct Call {
    path: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
}

/// `PATH` as runc sees it after setenv of each entry in turn: the last one.
pub fn search_path(env: &[String]) -> Option<&str> {
    env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="))
}

impl Native {
    pub fn new(argv: Vec<String>, env: Vec<String>, execve: Execve) -> Native {
        Native { argv, env, execve, call: None }
    }

    pub fn ready(&mut self) -> Result<()> {
        let path = look_path(self.argv.first().context("process.args is empty")?, search_path(&self.env))?;
        self.call = Some(Call {
            path: CString::new(path).context("process.args[0] contains a NUL byte")?,
            argv: c_strings(&self.argv, "process.args")?,
            env: c_strings(&self.env, "process.env")?,
        });
        Ok(())
    }

    pub fn run(&mut self) -> Result<i32> {
        let call = self.call.as_ref().context("internal: run before ready")?;
        let argv: Vec<&CStr> = call.argv.iter().map(CString::as_c_str).collect();
        let env: Vec<&CStr> = call.env.iter().map(CString::as_c_str).collect();
        let error = (self.execve)(&call.path, &argv, &env);
        bail!("exec {}: {}", call.path.to_string_lossy(), reason(&error))
    }
}

fn c_strings(list: &[String], field: &str) -> Result<Vec<CString>> {
    list.iter()
        .enumerate()
        .map(|(at, text)| {
            CString::new(text.as_str()).map_err(|_| anyhow!("{field}[{at}] contains a NUL byte"))
        })
        .collect()
}

fn look_path(name: &str, path: Option<&str>) -> Result<String> {
    if name.contains('/') {
        executable(name).map_err(|text| anyhow!("exec: {name:?}: {text}"))?;
        return Ok(name.to_owned());
    }
    // Go's filepath.SplitList: an empty PATH has no elements, an empty element is ".".
    for dir in path.unwrap_or_default().split(':').filter(|_| path.is_some_and(|path| !path.is_empty())) {
        let candidate = format!("{}/{name}", if dir.is_empty() { "." } else { dir.trim_end_matches('/') });
        if executable(&candidate).is_ok() {
            if !candidate.starts_with('/') {
                bail!("exec: {name:?}: cannot run executable found relative to current directory");
            }
            return Ok(candidate);
        }
    }
    bail!("exec: {name:?}: executable file not found in $PATH")
}

/// Go's findExecutable. EACCES and not the mode bits alone: a file on a noexec mount has them.
fn executable(path: &str) -> std::result::Result<(), String> {
    let stat = rustix::fs::stat(path).map_err(|error| format!("stat {path}: {}", reason(&error.into())))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err("is a directory".to_owned());
    }
    match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // EPERM: a seccomp profile that does not know faccessat2 (Go looks at the bits then).
        Ok(()) | Err(Errno::NOSYS | Errno::PERM) if stat.st_mode & 0o111 != 0 => Ok(()),
        Ok(()) | Err(Errno::NOSYS | Errno::PERM) => Err("permission denied".to_owned()),
        Err(error) => Err(reason(&error.into())),
    }
}

/// An errno as Go prints it: lower case and without the number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}
