//! What must hold of a process, config.json's and the one of `exec --process` alike.

use std::collections::HashSet;

use anyhow::{Result, bail, ensure};
use oci_spec::runtime::Process;

use super::{attributes, labels};

const CHECKS: &[fn(&Process) -> Result<()>] = &[
    args,
    cwd,
    env,
    user,
    rlimits,
    console,
    oom_score,
    attributes::scheduler,
    attributes::io_priority,
    labels::process,
];

pub fn check(process: &Process) -> Result<()> {
    CHECKS.iter().try_for_each(|check| check(process))
}

fn args(process: &Process) -> Result<()> {
    let given = process.args().as_ref().is_some_and(|args| !args.is_empty());
    ensure!(given, "args must not be empty");
    Ok(())
}

fn cwd(process: &Process) -> Result<()> {
    ensure!(!process.cwd().as_os_str().is_empty(), "cwd property must not be empty");
    ensure!(process.cwd().is_absolute(), "cwd {:?} must be an absolute path", process.cwd());
    Ok(())
}

fn env(process: &Process) -> Result<()> {
    for (index, entry) in process.env().iter().flatten().enumerate() {
        match entry.split_once('=') {
            None => bail!("env[{index}]: invalid environment variable {entry:?}: missing '='"),
            Some(("", _)) => {
                bail!("env[{index}]: invalid environment variable {entry:?}: name cannot be empty")
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// (uid_t)-1 means "leave as it is" to setresuid(2): the process would stay root.
fn user(process: &Process) -> Result<()> {
    let user = process.user();
    ensure!(user.uid() != u32::MAX, "user.uid {} is not a user id", user.uid());
    ensure!(user.gid() != u32::MAX, "user.gid {} is not a group id", user.gid());
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    ensure!(!groups.contains(&u32::MAX), "user.additionalGids: {} is not a group id", u32::MAX);
    if let Some(umask) = user.umask() {
        ensure!(umask <= 0o777, "user.umask {umask:#o} is more than 0777");
    }
    Ok(())
}

/// config.md: of two entries of one type the runtime must generate an error.
fn rlimits(process: &Process) -> Result<()> {
    let mut seen = HashSet::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let name = limit.typ().to_string();
        let (soft, hard) = (limit.soft(), limit.hard());
        ensure!(soft <= hard, "rlimits[{index}]: {name} soft {soft} is above hard {hard}");
        ensure!(seen.insert(name.clone()), "rlimits[{index}]: {name} is given twice");
    }
    Ok(())
}

/// struct winsize holds 16 bits.
fn console(process: &Process) -> Result<()> {
    let Some(size) = process.console_size() else { return Ok(()) };
    for (name, value) in [("height", size.height()), ("width", size.width())] {
        ensure!(value <= u64::from(u16::MAX), "consoleSize.{name} {value} is more than {}", u16::MAX);
    }
    Ok(())
}

fn oom_score(process: &Process) -> Result<()> {
    if let Some(score) = process.oom_score_adj() {
        ensure!((-1000..=1000).contains(&score), "oomScoreAdj {score} is not between -1000 and 1000");
    }
    Ok(())
}
