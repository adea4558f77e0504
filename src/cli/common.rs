//! What several verbs need, and none owns.

use std::collections::HashSet;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::{BoxBuilder, Process, Spec};
use rustix::fs::{Mode, OFlags};

use super::{CgroupManager, Globals};
use crate::bundle::{self, annotations};
use crate::executor::Host;
use crate::linux::cgroup::{Cgroup, Driver};
use crate::linux::hooks::{self, Place};
use crate::linux::{confine, lifecycle, rdt, rootfs, sys, terminal};
use crate::log;
use crate::seam::{self, Status};
use crate::state::{CONFIG, Entry, Record, START_SOCKET};

pub fn driver(globals: &Globals) -> Driver {
    match globals.cgroup_manager {
        CgroupManager::Cgroupfs => Driver::Cgroupfs,
        CgroupManager::Systemd => Driver::Systemd,
        CgroupManager::Disabled => Driver::Disabled,
    }
}

/// What `linux` lends to the executors.
pub fn host(globals: &Globals) -> Host<'static> {
    Host {
        confine: &confine::run,
        execve: sys::execve,
        exit: sys::exit_now,
        rootless: globals.rootless,
        settings: None,
    }
}

pub const SIGKILL: i32 = 9;

/// The name runw was called by.
pub fn called_as(globals: &Globals) -> String {
    globals.argv0.to_string_lossy().into_owned()
}

pub fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}

/// Bytes; the specification's -1 means no limit.
pub fn memory_limit(spec: &Spec) -> Option<u64> {
    let resources = spec.linux().as_ref()?.resources().as_ref()?;
    resources
        .memory()
        .as_ref()?
        .limit()
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|limit| *limit > 0)
}

/// CPUs that the quota is worth, rounded up.
pub fn cpus(spec: &Spec) -> Option<u64> {
    // The kernel's own period where only a quota is given.
    const PERIOD: u64 = 100_000;
    let cpu = spec.linux().as_ref()?.resources().as_ref()?.cpu().as_ref()?;
    let quota = u64::try_from(cpu.quota()?).ok().filter(|quota| *quota > 0)?;
    let period = cpu.period().filter(|period| *period > 0).unwrap_or(PERIOD);
    Some(quota.div_ceil(period))
}

/// The runtime-spec State document, as hooks read it.
pub fn hook_state(record: &Record, status: Status, pid: Option<i32>) -> Vec<u8> {
    // Strings, numbers and a map of strings: there is nothing in it that could fail to become JSON.
    serde_json::to_vec(&record.hook_document(status, pid)).unwrap_or_default()
}

/// crun's annotations for what hooks say.
pub fn hook_output(record: &Record) -> Result<hooks::Capture> {
    let path = |name| record.annotations.get(name).map(String::as_str);
    hooks::Capture::open(path(annotations::HOOKS_STDOUT), path(annotations::HOOKS_STDERR))
}

/// The container's cgroup as `create` planned it; none when create was killed before it did.
pub fn cgroup(entry: &Entry) -> Result<Option<Cgroup>> {
    let planned = entry.record.cgroup.as_ref().map(|planned| serde_json::from_str(planned.get()));
    planned.transpose().context("the cgroup in state.json cannot be understood")
}

/// What the container is doing now.
pub fn status(entry: &Entry) -> Result<Status> {
    status_of(entry, entry.record.init.map(lifecycle::alive))
}

/// As `status`, for who knows whether init runs.
pub fn status_of(entry: &Entry, alive: Option<bool>) -> Result<Status> {
    Ok(lifecycle::status(&lifecycle::Known {
        alive,
        created: entry.record.created_done,
        waiting: entry.dir.join(START_SOCKET).exists(),
        busy: alive.is_none() && entry.busy(),
        cgroup: cgroup(entry)?.as_ref(),
    }))
}

/// A container that nobody else changes until the entry goes, and what it is doing.
pub fn hold(globals: &Globals, id: &str) -> Result<(Entry, Status)> {
    let entry = globals.root.load_locked(id)?;
    let status = status(&entry)?;
    Ok((entry, status))
}

pub fn set_frozen(entry: &Entry, frozen: bool) -> Result<()> {
    cgroup(entry)?.context("the container has no cgroup")?.set_frozen(frozen)
}

/// The spec as `create` read it: the bundle may have changed, or gone, since.
pub fn saved_spec(entry: &Entry) -> Result<Spec> {
    bundle::reload(&entry.dir.join(CONFIG))
}

/// By temp file and rename: whoever waits for the file must never read half a number.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let context = || format!("write pid file {}", path.display());
    let name = path.file_name().with_context(context)?;
    let mut temp = std::ffi::OsString::from(".");
    temp.push(name);
    temp.push(format!(".{}", std::process::id()));
    let temp = path.with_file_name(temp);
    // O_EXCL: the directory may be everybody's, and a link planted there is not followed (runc does the same).
    let mut file = std::fs::File::create_new(&temp).with_context(context)?;
    let written = file.write_all(pid.to_string().as_bytes()).and_then(|()| std::fs::rename(&temp, path));
    written.inspect_err(|_| drop(std::fs::remove_file(&temp))).with_context(context)
}

/// runc's `--pidfd-socket`: one descriptor, named as runc names it.
pub fn send_pidfd(socket: &OwnedFd, process: seam::Process) -> Result<()> {
    let pidfd = lifecycle::open(process)?.context("the process is gone")?.pidfd;
    terminal::send_master(socket.as_fd(), pidfd.as_fd(), "pidfd").context("send the pidfd")
}

/// What a process gets: of a name that comes twice the last value, as with runc (env.go). The C library's getenv, and
/// others, would find the first.
pub fn environment(own: Option<&Vec<String>>, more: Vec<String>) -> Vec<String> {
    let all: Vec<String> = own.into_iter().flatten().cloned().chain(more).collect();
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut seen = HashSet::new();
    let mut last: Vec<String> = all.into_iter().rev().filter(|entry| seen.insert(name(entry))).collect();
    last.reverse();
    last
}

/// A terminal of ours begins with the size of the caller's: set later, it would greet the process with a SIGWINCH.
pub fn take_terminal_size(process: &mut Process) {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let size = streams.into_iter().find_map(|stream| rustix::termios::tcgetwinsize(stream).ok());
    if let (Some(size), None) = (size, process.console_size()) {
        let (height, width): (u64, u64) = (size.ws_row.into(), size.ws_col.into());
        process.set_console_size(BoxBuilder::default().height(height).width(width).build().ok());
    }
}

/// The verb is done. What it has in memory goes with the process: to take it apart first, piece by piece, is time that the
/// caller would wait for.
pub fn end(status: u8) -> ! {
    sys::exit_now(status.into())
}

/// Removes what a stopped container holds, then runs its poststop hooks, whose failure is only told (runtime-spec
/// runtime.md, step 12).
pub fn destroy(entry: Entry) -> Result<()> {
    // A create that was killed early has no spec, and so no hooks.
    let spec = saved_spec(&entry).ok();
    destroy_made_of(entry, spec.as_ref())
}

/// As `destroy`, for who has the spec.
pub fn destroy_made_of(entry: Entry, spec: Option<&Spec>) -> Result<()> {
    match (self::cgroup(&entry)?, entry.record.init) {
        (Some(cgroup), Some(_)) => {
            if !cgroup.remove_empty() {
                // Without a pid namespace init's death leaves the others alive.
                cgroup.signal_all(SIGKILL)?;
                cgroup.remove()?;
            }
        }
        // A create that was killed before it had a process may not have made the cgroup: it may be another's.
        (Some(cgroup), None) => cgroup.remove_if_empty(),
        (None, _) => {}
    }
    if let Some(mount) = entry.record.root_mount {
        rootfs::unmount_root(&entry.record.rootfs, mount)?;
    }
    let linux = spec.and_then(|spec| spec.linux().as_ref());
    // Without resctrl there is no group of it left either; without an init none was made.
    if let (Some(_), Ok(Some(rdt))) = (entry.record.init, rdt::find(&entry.record.id, linux)) {
        rdt.remove()?;
    }
    let state = hook_state(&entry.record, Status::Stopped, None);
    let record = entry.record.clone();
    entry.remove()?;
    if let Some(spec) = spec {
        poststop(&record, spec, &state);
    }
    Ok(())
}

/// Runs the hooks of a container that is gone; their failure is only told.
pub fn poststop(record: &Record, spec: &Spec, state: &[u8]) {
    let Some(list) = spec.hooks().as_ref().and_then(|hooks| hooks.poststop().as_ref()) else { return };
    let directory = Some(record.bundle.as_path()).filter(|bundle| bundle.is_dir());
    match hook_output(record) {
        Ok(output) => {
            let place = Place { output: Some(&output), ..Place::host(directory) };
            hooks::run_all("poststop", Some(list), state, place);
        }
        Err(error) => log::warn(&format!("{error:#}")),
    }
}

/// The ids that `--regex` means, or the one id given.
pub fn matching(globals: &Globals, id: &str, regex: bool) -> Result<Vec<String>> {
    if !regex {
        return Ok(vec![id.to_owned()]);
    }
    let pattern = regex_lite::Regex::new(id).with_context(|| format!("invalid regular expression {id:?}"))?;
    Ok(globals.root.ids()?.into_iter().filter(|id| pattern.is_match(id)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_name_is_the_process_s() {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let own = list(&["A=1", "B=1", "A=", "AB=x=y"]);
        let env = environment(Some(&own), list(&["C=1", "B=2"]));
        assert_eq!(env, ["A=", "AB=x=y", "C=1", "B=2"]);
        assert!(environment(None, Vec::new()).is_empty());
    }
}
