//! `runw create`: makes a container that waits for `start`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Process, Spec};

use super::{Globals, common};
use crate::bundle::{Bundle, annotations};
use crate::executor::{self, Selection};
use crate::linux::cgroup::Cgroup;
use crate::linux::create::{Create, Journal, LeftBehind};
use crate::linux::fds::Preserved;
use crate::linux::lifecycle::Handle;
use crate::linux::notify::Proxy;
use crate::linux::terminal::{self, Receiver};
use crate::linux::{criu, notify, seal};
use crate::log;
use crate::seam::{self, MountId, Status, Workload};
use crate::state::{Entry, START_SOCKET, Staged};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Name of the new container, unique on this host
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// What `create` and `run` share.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// Path to the root of the bundle directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Read this file instead of the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// AF_UNIX socket that receives the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// AF_UNIX socket that receives a pidfd of the container's init process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Do not use pivot_root, for a rootfs on top of a ramdisk
    #[arg(long)]
    pub no_pivot: bool,
    /// Do not create a new session keyring; the container inherits the caller's
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N in total)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Disable the subreaper used to reap reparented processes (run without --detach)
    #[arg(long)]
    pub no_subreaper: bool,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    seal::ensure()?;
    let bundle = load(&args.common, &args.id, globals)?;
    let console = Console::decide(&bundle.spec, args.common.console_socket.as_deref(), true)?;
    make(&args.common, &args.id, &bundle, console.into_child(), Starter::Another, globals)
        .map(std::mem::forget)?;
    // Which unlocks it.
    common::end(0)
}

pub(super) fn load(args: &Common, id: &str, globals: &Globals) -> Result<Bundle> {
    let mut bundle = Bundle::load(&args.bundle, args.config.as_deref())?;
    bundle.warnings.iter().for_each(|warning| log::warn(warning));
    if notify::manager().is_some() {
        notify::offer(&mut bundle.spec, &globals.root.dir.join(id))?;
    }
    Ok(bundle)
}

/// A container that is made, or has started, and still locked.
pub(super) struct Made {
    pub entry: Entry,
    pub init: Handle,
    /// If it has started, and a manager wants to know more.
    pub notify: Option<Proxy>,
}

/// Who starts the container.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Starter {
    Us,
    /// `start`, by the start socket.
    Another,
}

/// What is settled before anything is made.
struct Decided<'a> {
    bundle: &'a Bundle,
    process: Process,
    preserved: Preserved,
    workload: Box<dyn Workload>,
    starter: Starter,
}

impl Decided<'_> {
    fn of<'a>(args: &Common, bundle: &'a Bundle, starter: Starter, globals: &Globals) -> Result<Decided<'a>> {
        let preserved = Preserved::find(args.preserve_fds)?;
        let process = process(&bundle.spec, preserved)?;
        let workload = choose(&process, bundle, globals)?;
        Ok(Decided { bundle, process, preserved, workload, starter })
    }
}

pub(super) fn make(
    args: &Common,
    id: &str,
    bundle: &Bundle,
    console: Option<Receiver>,
    starter: Starter,
    globals: &Globals,
) -> Result<Made> {
    let decided = Decided::of(args, bundle, starter, globals)?;
    reserved(id, bundle, globals, |entry| fill(entry, args, decided, console, globals))
}

/// Takes the id, and everything back when the container cannot be made.
pub(super) fn reserved(
    id: &str,
    bundle: &Bundle,
    globals: &Globals,
    make: impl FnOnce(&mut Entry) -> Result<(Handle, Option<Proxy>)>,
) -> Result<Made> {
    let mut entry = globals.root.reserve(id)?;
    match make(&mut entry) {
        Ok((init, notify)) => Ok(Made { entry, init, notify }),
        // What could not be removed must be found again.
        Err(error) if error.is::<LeftBehind>() => Err(error),
        Err(error) => {
            let state = common::hook_state(&entry.record, Status::Stopped, None);
            let record = entry.record.clone();
            // The error at hand is the one to be told; what stays behind is `delete --force`'s.
            let _ = entry.remove();
            common::poststop(&record, &bundle.spec, &state);
            Err(error)
        }
    }
}

fn fill(
    entry: &mut Entry,
    args: &Common,
    decided: Decided<'_>,
    console: Option<Receiver>,
    globals: &Globals,
) -> Result<(Handle, Option<Proxy>)> {
    let Decided { bundle, process, preserved, mut workload, starter } = decided;
    let spec = &bundle.spec;
    entry.record.no_new_keyring = args.no_new_keyring;
    let cgroup = begin(entry, bundle, globals)?;
    let delegate = annotations::delegated(spec);
    delegate.map_or(Ok(()), |_| cgroup.can_delegate_below())?;
    let mut notify = None;
    if notify::manager().is_some() {
        notify::make_directory(&entry.dir)?;
        notify = if starter == Starter::Us { Proxy::listen(&entry.dir)? } else { None };
    }
    let hook_output = common::hook_output(&entry.record)?;
    workload.prepare()?;
    entry.record.wasm = workload.needs().in_process;
    let record = entry.record.clone();
    let start_socket = entry.dir.join(START_SOCKET);
    let create = Create {
        id: &record.id,
        spec,
        process: &process,
        bundle: &bundle.dir,
        rootfs: &bundle.rootfs,
        seccomp_cache: &globals.root.seccomp_cache(),
        start_socket: (starter == Starter::Another).then_some(&start_socket),
        cgroup: &cgroup,
        preserved,
        no_pivot: args.no_pivot,
        no_new_keyring: args.no_new_keyring,
        keep_groups: annotations::keeps_groups(spec),
        delegate,
        hook_output: &hook_output,
        hook_state: &|status, pid| common::hook_state(&record, status, pid),
    };
    let receiver = args.pidfd_socket.as_deref();
    let receiver = receiver.or(annotations::value(spec, annotations::PIDFD_RECEIVER).map(Path::new));
    let pidfd_socket = receiver.map(terminal::connect).transpose().context("--pidfd-socket")?;
    let mut pages = Pages { entry, bundle, done: None, pid_file: args.pid_file.as_deref(), pidfd_socket };
    let init = crate::linux::create::create(&create, console, workload.as_mut(), &mut pages)?;
    Ok((init, notify))
}

/// Writes down what will be made, before anything is, so that a `create` that is killed can be cleaned up.
pub(super) fn begin(entry: &mut Entry, bundle: &Bundle, globals: &Globals) -> Result<Cgroup> {
    let spec = &bundle.spec;
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let annotations = spec.annotations().as_ref();
    let cgroup =
        Cgroup::plan(&entry.record.id, path, common::driver(globals), globals.rootless, annotations)?;
    entry.record.oci_version = spec.version().clone();
    entry.record.bundle.clone_from(&bundle.dir);
    entry.record.rootfs.clone_from(&bundle.rootfs);
    entry.record.annotations =
        spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    entry.record.cgroup = Some(serde_json::value::to_raw_value(&cgroup)?);
    entry.save()?;
    Ok(cgroup)
}

fn process(spec: &Spec, preserved: Preserved) -> Result<Process> {
    let mut process = spec.process().clone().context("process is required")?;
    let env = common::environment(process.env().as_ref(), preserved.env());
    process.set_env(Some(env));
    Ok(process)
}

fn choose(process: &Process, bundle: &Bundle, globals: &Globals) -> Result<Box<dyn Workload>> {
    let spec = &bundle.spec;
    let linux = spec.linux().as_ref();
    let early = spec.hooks().as_ref().is_some_and(|hooks| {
        let prestart = hooks.prestart().is_some();
        prestart || hooks.create_runtime().is_some() || hooks.create_container().is_some()
    });
    let none = std::collections::HashMap::new();
    let root = common::open_directory(&bundle.rootfs)?;
    executor::select(&Selection {
        process,
        annotations: spec.annotations().as_ref().unwrap_or(&none),
        mounts: spec.mounts().as_deref().unwrap_or_default(),
        masked: linux.and_then(|l| l.masked_paths().as_deref()).unwrap_or_default(),
        hooks: early,
        stale: false,
        exec: false,
        root: root.as_fd(),
        bundle: &bundle.dir,
        memory: common::memory_limit(spec),
        cpus: common::cpus(spec),
        called_as: &common::called_as(globals),
        handler: globals.handler.as_deref(),
        host: common::host(globals),
    })
}

/// What is written down while the container is made.
pub(super) struct Pages<'a> {
    pub entry: &'a mut Entry,
    pub bundle: &'a Bundle,
    /// The record of a container that is created. What it takes the place of goes when nobody waits for us any more.
    pub done: Option<Staged>,
    pub pid_file: Option<&'a Path>,
    pub pidfd_socket: Option<OwnedFd>,
}

impl Journal for Pages<'_> {
    fn cloned(&mut self, process: seam::Process, root_mount: Option<MountId>) -> Result<()> {
        let first = self.entry.record.init.replace(process).is_none();
        self.entry.record.root_mount = root_mount;
        // A restore comes twice: for CRIU, and for what CRIU has made.
        if first {
            // Nobody asks for it before the record says that there is a process.
            self.entry.keep_config(&self.bundle.config)?;
        }
        self.entry.save()
    }

    fn prepare(&mut self) -> Result<()> {
        if !has_terminal(&self.bundle.spec) {
            self.entry.record.descriptors = criu::standard_streams();
        }
        self.entry.record.created_done = true;
        self.done = Some(self.entry.stage()?);
        Ok(())
    }

    /// state.json first: whoever sees the pid file may ask for the state at once (conmon, containerd's shim).
    fn ready(&mut self) -> Result<()> {
        self.done.as_mut().context("internal: the record is not prepared")?.commit()?;
        let init = self.entry.record.init.context("no init process")?;
        if let Some(socket) = &self.pidfd_socket {
            common::send_pidfd(socket, init)?;
        }
        self.pid_file.map_or(Ok(()), |path| common::write_pid_file(path, init.pid))
    }
}

fn has_terminal(spec: &Spec) -> bool {
    spec.process().as_ref().is_some_and(|process| process.terminal().unwrap_or(false))
}

/// Where the terminal's master goes.
pub(super) enum Console {
    None,
    /// The engine's socket.
    Socket(Receiver),
    /// To ourselves, over this pair: (ours, the child's).
    Own(OwnedFd, Receiver),
}

impl Console {
    /// runc's rules and words (utils_linux.go, `checkTerminal`).
    pub fn decide(spec: &Spec, socket: Option<&Path>, detach: bool) -> Result<Console> {
        Console::of(has_terminal(spec), socket, detach)
    }

    pub fn of(terminal: bool, socket: Option<&Path>, detach: bool) -> Result<Console> {
        match socket {
            None if terminal && detach => {
                bail!("cannot allocate tty if runw will detach without setting console socket")
            }
            Some(_) if !terminal || !detach => {
                bail!("cannot use console socket if runw will not detach or allocate tty")
            }
            Some(path) => Ok(Console::Socket(Receiver::engine(path).context("--console-socket")?)),
            None if terminal => {
                let (ours, theirs) = terminal::pair()?;
                Ok(Console::Own(ours, theirs))
            }
            None => Ok(Console::None),
        }
    }

    pub fn into_child(self) -> Option<Receiver> {
        self.split().1
    }

    /// (ours, the child's)
    pub fn split(self) -> (Option<OwnedFd>, Option<Receiver>) {
        match self {
            Console::None => (None, None),
            Console::Socket(socket) => (None, Some(socket)),
            Console::Own(ours, theirs) => (Some(ours), Some(theirs)),
        }
    }
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
