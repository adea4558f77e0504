//! `runw exec`: runs another process in a container.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Capability, Process, Spec};

use super::create::Console;
use super::{Globals, common};
use crate::bundle::annotations;
use crate::executor::{self, Selection};
use crate::linux::exec::Exec;
use crate::linux::fds::Preserved;
use crate::linux::lifecycle::{self, Handle};
use crate::linux::{foreground, seal, terminal};
use crate::seam::Status;
use crate::state::Entry;
use crate::{bundle, log};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// AF_UNIX socket that receives the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// AF_UNIX socket that receives a pidfd of the process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Current working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    pub tty: bool,
    /// User of the process, numeric
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Additional gid
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File with the process in JSON, as config.json's `process`
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Detach from the process
    #[arg(short, long)]
    pub detach: bool,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Set no_new_privs for the process
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability to the bounding set of the process
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Pass N additional file descriptors to the process (stdio + $LISTEN_FDS + N in total)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Run the process in an existing sub-cgroup of the container's; with controllers, for these only
    /// (cgroup v1, may be repeated)
    #[arg(long, value_name = "[CONTROLLER,..:]PATH")]
    pub cgroup: Vec<String>,
    /// Allow exec in a paused container
    #[arg(long)]
    pub ignore_paused: bool,
    /// Disable the subreaper used to reap reparented processes
    #[arg(long)]
    pub no_subreaper: bool,
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// The command and its arguments, unless --process is given
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    /// Not given: runc keeps the container's gid.
    pub gid: Option<u32>,
}

/// Strictly numeric: what a lenient parser made of `user:group` names was CVE-2026-30892 in crun.
fn parse_user(text: &str) -> Result<User> {
    let id = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // u32::MAX is (uid_t)-1, "no change" for setresuid(2).
        let number = text.parse::<u32>().ok().filter(|id| digits && *id != u32::MAX);
        number.with_context(|| format!("--user: {text:?} is not a numeric id"))
    };
    match text.split_once(':') {
        None => Ok(User { uid: id(text)?, gid: None }),
        Some((uid, gid)) => Ok(User { uid: id(uid)?, gid: Some(id(gid)?) }),
    }
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    seal::ensure()?;
    let entry = globals.root.load(&args.id)?;
    let init = running(&entry, args.ignore_paused)?;
    let spec = common::saved_spec(&entry)?;
    let preserved = Preserved::find(args.preserve_fds)?;
    let mut process = process(&args, &spec, preserved)?;
    let console =
        Console::of(process.terminal().unwrap_or(false), args.console_socket.as_deref(), args.detach)?;
    if let Console::Own(..) = console {
        common::take_terminal_size(&mut process);
    }
    let signals = foreground::block_signals()?;
    if !args.detach && !args.no_subreaper {
        foreground::set_subreaper()?;
    }
    let (ours, theirs) = console.split();
    let running = match enter(&args, globals, &entry, &init, &spec, &process, preserved, theirs) {
        Ok(running) => running,
        Err(error) => {
            signals.restore()?;
            return Err(error);
        }
    };
    tell(&args, &running)?;
    if args.detach {
        common::end(0);
    }
    let master = ours.map(|socket| terminal::receive_master(&socket)).transpose()?;
    let status = foreground::wait(&signals, &running, master, None)?;
    common::end(u8::try_from(status).context("exit status")?)
}

/// Its init.
fn running(entry: &Entry, ignore_paused: bool) -> Result<Handle> {
    let init = entry.record.init;
    let handle = init.map(lifecycle::open).transpose()?.flatten();
    match common::status_of(entry, init.map(|_| handle.is_some()))? {
        Status::Stopped => bail!("cannot exec in a stopped container"),
        Status::Creating => bail!("cannot exec in a container that is being created"),
        Status::Paused if !ignore_paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        _ => handle.context("cannot exec in a stopped container"),
    }
}

#[expect(clippy::too_many_arguments, reason = "what `run` has found out, each used once")]
fn enter(
    args: &Args,
    globals: &Globals,
    entry: &Entry,
    init: &Handle,
    spec: &Spec,
    process: &Process,
    preserved: Preserved,
    console: Option<terminal::Receiver>,
) -> Result<Handle> {
    let cgroup = common::cgroup(entry)?.context("the container has no cgroup")?;
    let root = common::open_directory(&PathBuf::from(format!("/proc/{}/root", init.process.pid)))?;
    let annotations = entry.record.annotations.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut workload = executor::select(&Selection {
        process,
        annotations: &annotations,
        mounts: &[],
        masked: &[],
        hooks: false,
        stale: entry.record.wasm,
        exec: true,
        root: root.as_fd(),
        bundle: &entry.record.bundle,
        memory: common::memory_limit(spec),
        cpus: common::cpus(spec),
        called_as: &common::called_as(globals),
        handler: globals.handler.as_deref(),
        host: common::host(globals),
    })?;
    workload.prepare()?;
    let exec = Exec {
        id: &args.id,
        process,
        linux: spec.linux().as_ref(),
        seccomp_cache: &globals.root.seccomp_cache(),
        seccomp_state: &|| common::hook_state(&entry.record, Status::Running, Some(init.process.pid)),
        init,
        cgroup: &cgroup,
        sub_cgroups: &args.cgroup,
        preserved,
        no_new_keyring: entry.record.no_new_keyring,
        keep_groups: annotations::keeps_groups(spec),
    };
    crate::linux::exec::exec(&exec, console, workload.as_mut())
}

fn tell(args: &Args, running: &Handle) -> Result<()> {
    if let Some(path) = &args.pidfd_socket {
        let socket = terminal::connect(path).context("--pidfd-socket")?;
        common::send_pidfd(&socket, running.process)?;
    }
    args.pid_file.as_deref().map_or(Ok(()), |path| common::write_pid_file(path, running.process.pid))
}

/// `--process`, or the container's own process with what the flags change (runc's `getProcess`).
fn process(args: &Args, spec: &Spec, preserved: Preserved) -> Result<Process> {
    let mut process = match &args.process {
        Some(path) => {
            let (process, warnings) = bundle::parse_process(&bundle::read_argument(path)?)
                .with_context(|| format!("--process {}", path.display()))?;
            warnings.iter().for_each(|warning| log::warn(warning));
            inherit(process, spec)
        }
        None => from_flags(args, spec)?,
    };
    let env = common::environment(process.env().as_ref(), preserved.env());
    process.set_env(Some(env));
    Ok(process)
}

/// What a process file leaves out is the container's own (runc: newProcess): an exec into a confined container must
/// not be unconfined because its caller named nothing.
fn inherit(mut process: Process, spec: &Spec) -> Process {
    let Some(own) = spec.process() else { return process };
    if process.capabilities().is_none() {
        process.set_capabilities(own.capabilities().clone());
    }
    if process.apparmor_profile().is_none() {
        process.set_apparmor_profile(own.apparmor_profile().clone());
    }
    if process.selinux_label().is_none() {
        process.set_selinux_label(own.selinux_label().clone());
    }
    if process.rlimits().is_none() {
        process.set_rlimits(own.rlimits().clone());
    }
    process
}

fn from_flags(args: &Args, spec: &Spec) -> Result<Process> {
    if args.command.is_empty() {
        bail!("process args cannot be empty");
    }
    let mut process = spec.process().clone().context("the container has no process")?;
    process.set_args(Some(args.command.clone()));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    let env = process.env().iter().flatten().chain(&args.env).cloned().collect();
    process.set_env(Some(env));
    process.set_terminal(Some(args.tty));
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(profile) = &args.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &args.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    let mut user = process.user().clone();
    if let Some(User { uid, gid }) = args.user.as_deref().map(parse_user).transpose()? {
        user.set_uid(uid);
        user.set_gid(gid.unwrap_or(user.gid()));
    }
    if !args.additional_gids.is_empty() {
        let gids = user.additional_gids().iter().flatten().chain(&args.additional_gids).copied().collect();
        user.set_additional_gids(Some(gids));
    }
    process.set_user(user);
    add_capabilities(&mut process, &args.cap)?;
    bundle::check_process(&process)?;
    Ok(process)
}

/// To the bounding, effective and permitted sets. Never to the inheritable one (CVE-2022-29162), and so to the ambient one
/// only where the container's own makes it inheritable (runc: exec.go).
fn add_capabilities(process: &mut Process, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut sets = process.capabilities().clone().unwrap_or_default();
    for name in names {
        let short = name.strip_prefix("CAP_").unwrap_or(name);
        let Ok(cap) = Capability::from_str(short) else {
            log::warn(&format!("--cap: ignoring unknown capability {name}"));
            continue;
        };
        let with = |set: &Option<std::collections::HashSet<Capability>>| {
            Some(set.iter().flatten().copied().chain([cap]).collect())
        };
        sets.set_bounding(with(sets.bounding()));
        sets.set_effective(with(sets.effective()));
        sets.set_permitted(with(sets.permitted()));
        if sets.inheritable().as_ref().is_some_and(|inheritable| inheritable.contains(&cap)) {
            sets.set_ambient(with(sets.ambient()));
        }
    }
    process.set_capabilities(Some(sets));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        assert_eq!(parse_user("1000").unwrap(), User { uid: 1000, gid: None });
        assert_eq!(parse_user("0:5").unwrap(), User { uid: 0, gid: Some(5) });
        for text in
            ["", ":", "1:", ":1", "root", "1:x", "-1", "+1", "4294967295", "4294967296", "1:2:3", " 1"]
        {
            assert!(parse_user(text).is_err(), "{text:?}");
        }
    }
}
