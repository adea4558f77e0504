//! The child's story of `create`: from the clone to the start of its workload. Read it with the timeline in
//! docs/architecture.md; the parent's story is in `create`.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use oci_spec::runtime::Hooks;

use super::attributes::{self, Attributes};
use super::cgroup::{Placing, Tasks};
use super::create::Create;
use super::enter::{self, Entering, Proc};
use super::hooks::{self, Place};
use super::namespaces::Plan;
use super::rootfs::{self, Label, Sources};
use super::seccomp::Filter;
use super::sync::{Channel, Tag};
use super::terminal::Receiver;
use super::{fds, pid1, process, spawn, sys};
use crate::seam::{Status, Workload};

/// What the child has of its parent's.
pub struct Inherited {
    pub plan: Plan,
    pub placing: Placing,
    pub sources: Sources,
    pub attributes: Attributes,
    pub filter: Option<Filter>,
    /// The start socket.
    pub listener: Option<OwnedFd>,
    /// Where the terminal's master goes.
    pub console: Option<Receiver>,
    /// The runtime is root on this host.
    pub privileged: bool,
}

/// Never returns: the process becomes the workload or ends.
pub fn run(create: &Create<'_>, inherited: Inherited, channel: Channel, workload: &mut dyn Workload) -> ! {
    let ended = match close_inherited(create, &inherited, &channel, workload) {
        // Not given away: where a guest ran it is closed already, and `exit_now` drops nothing.
        Ok(()) => live(create, inherited, &channel, workload),
        Err(error) => {
            channel.send_error(&error);
            Err(())
        }
    };
    match ended {
        Ok(status) => sys::exit_now(status),
        Err(()) => sys::exit_now(1),
    }
}

/// Closes what the parent holds: its lock on the container above all, which would otherwise live as long as we do.
fn close_inherited(
    create: &Create<'_>,
    inherited: &Inherited,
    channel: &Channel,
    workload: &dyn Workload,
) -> Result<()> {
    let mut keep = inherited.sources.fds();
    keep.extend(inherited.plan.joined.iter().map(|joined| joined.fd.as_raw_fd()));
    keep.extend(inherited.console.iter().map(AsRawFd::as_raw_fd));
    keep.extend(inherited.listener.iter().map(AsRawFd::as_raw_fd));
    keep.push(channel.fd());
    keep.extend(create.hook_output.fds());
    keep.extend(workload.needs().carry);
    fds::close_all_but(create.preserved.end(), &keep)
}

/// The error has been told to whoever waits when this returns `Err`.
fn live(
    create: &Create<'_>,
    inherited: Inherited,
    channel: &Channel,
    workload: &mut dyn Workload,
) -> Result<i32, ()> {
    let Inherited { plan, placing, sources, attributes, filter, listener, console, privileged } = inherited;
    // They can only be opened once the kernel has made, and locked, the container's copies of their mounts.
    let sources = if privileged && plan.has_user() { None } else { Some(sources) };
    let mut entering = Entering {
        process: create.process,
        attributes: &attributes,
        filter: filter.as_ref(),
        proc: None,
        area: None,
        talk: listener.as_ref().map(AsRawFd::as_raw_fd),
        channel,
        first_free_fd: create.preserved.end(),
        unprivileged: !privileged,
        others_mount: !plan.has_mount(),
        keep_groups: create.keep_groups,
        hooks_first: has_start_hooks(create),
        hold: start_hooks_output(create),
    };
    let made = prepare(create, plan, placing, sources, console, &mut entering, workload)
        // Answered when state.json says `created`; a runtime that is gone by then means nobody wants us.
        .and_then(|()| channel.send(Tag::Ready, &[], &[]))
        .and_then(|()| channel.expect_plain(Tag::Go));
    if let Err(error) = made {
        channel.send_error(&error);
        return Err(());
    }
    if let Some(listener) = listener {
        wait_for_start(&listener).map_err(drop)?;
    }
    let env = workload.env().or(create.process.env().as_deref()).unwrap_or_default();
    let started = start_hooks(create, env).inspect_err(|error| enter::report(rustix::stdio::stderr(), error));
    started.map_err(drop)?;
    entering.run(workload, None).map_err(drop)
}

fn prepare(
    create: &Create<'_>,
    plan: Plan,
    placing: Placing,
    sources: Option<Sources>,
    console: Option<Receiver>,
    entering: &mut Entering<'_>,
    workload: &mut dyn Workload,
) -> Result<()> {
    let channel = entering.channel;
    let tasks = Tasks::from(channel.expect(Tag::Made)?.fds);
    tasks.enter().context("join the cgroup")?;
    tasks.close()?;
    // The parent has written the id maps.
    channel.expect(Tag::Go)?;
    attributes::reset_affinity();
    rustix::process::setsid().context("setsid")?;
    spawn::settle(&plan, placing, !entering.unprivileged, channel)?;
    if rustix::process::getpid().is_init() {
        // A created container ends by SIGTERM like a running one, which pid 1 does by handlers only; the execve puts
        // the default actions back.
        pid1::end_while_created().context("handle signals")?;
    }
    entering.proc = Some(Proc::open(workload)?);
    if !create.no_new_keyring {
        // After the ids: it belongs to the container's root.
        entering.join_session_keyring(create.id)?;
    }

    enter_root(create, &plan, sources, console, entering)?;
    drop(plan);
    set_names(create)?;
    process::write_sysctls(create.spec)?;
    let linux = create.spec.linux().as_ref();
    let read_only = linux.and_then(|l| l.readonly_paths().as_deref()).unwrap_or_default();
    let masked = linux.and_then(|l| l.masked_paths().as_deref()).unwrap_or_default();
    rootfs::protect(read_only, masked, Label::of(create.spec))?;

    if workload.undecided() {
        enter::look(channel, workload)?;
    }
    entering.drop_privileges(workload)
}

/// Mounts, hooks and pivot_root, in the order the runtime-spec gives them (runtime.md, "Lifecycle").
fn enter_root(
    create: &Create<'_>,
    plan: &Plan,
    sources: Option<Sources>,
    console: Option<Receiver>,
    entering: &Entering<'_>,
) -> Result<()> {
    let channel = entering.channel;
    let root = create.root(plan, (!entering.unprivileged).then_some(channel));
    // Modes in config.json are meant as they are written.
    rustix::process::umask(rustix::fs::Mode::empty());
    let sources = sources.map_or_else(|| Sources::receive(channel), Ok)?;
    let mounted = root.mount(sources)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));

    let spec_hooks = create.spec.hooks().as_ref();
    let are_due = |hooks: &Hooks| {
        // Of the last the parent has nothing to do, but they find all in place that it does meanwhile (`lo`).
        hooks.prestart().is_some() || hooks.create_runtime().is_some() || hooks.create_container().is_some()
    };
    if spec_hooks.is_some_and(are_due) {
        channel.send(Tag::Hooks, &[], &[])?;
        channel.expect(Tag::Go)?;
    }
    if let Some(list) = spec_hooks.and_then(|hooks| hooks.create_container().as_ref()) {
        let state = (create.hook_state)(Status::Creating, Some(own_pid()));
        let env = create.process.env().as_deref();
        let place = Place {
            directory: Some(create.rootfs),
            env: Some(env.unwrap_or_default()),
            output: Some(create.hook_output),
            ..Place::default()
        };
        hooks::run("createContainer", Some(list), &state, place)?;
    }
    root.enter(&mounted)?;
    process::reopen_null()?;
    rootfs::create_cwd(create.process.cwd())?;
    if let Some(slave) = enter::set_up_terminal(create.process, console.as_ref())? {
        rootfs::bind_console(slave.as_fd())?;
    }
    root.finish(&mounted)?;
    if create.process.user().umask().is_some() {
        process::set_umask(create.process);
    }
    Ok(())
}

/// config.md, "POSIX-platform Hooks": a hook in the container's namespaces is told the pid that is seen there.
fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn set_names(create: &Create<'_>) -> Result<()> {
    if let Some(name) = create.spec.hostname().as_deref().filter(|name| !name.is_empty()) {
        sys::set_hostname(name).context("hostname")?;
    }
    if let Some(name) = create.spec.domainname().as_deref().filter(|name| !name.is_empty()) {
        sys::set_domainname(name).context("domainname")?;
    }
    Ok(())
}

/// Blocks until `start` sends its datagram, with read(2) alone.
fn wait_for_start(listener: &OwnedFd) -> Result<()> {
    let mut word = [0; 8];
    loop {
        match rustix::io::read(listener, &mut word) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(drop).context("wait for start"),
        }
    }
}

/// While it waits, init holds a file of the host's for no other reason.
fn start_hooks_output(create: &Create<'_>) -> Vec<RawFd> {
    if has_start_hooks(create) { create.hook_output.fds() } else { Vec::new() }
}

fn has_start_hooks(create: &Create<'_>) -> bool {
    create.spec.hooks().as_ref().is_some_and(|hooks| hooks.start_container().is_some())
}

/// `env`: the program's, HOME included, as in runc (hooks.bats: "startContainer hook should inherit process environment").
fn start_hooks(create: &Create<'_>, env: &[String]) -> Result<()> {
    let list = create.spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref());
    if list.is_none() {
        return Ok(());
    }
    let state = (create.hook_state)(Status::Created, Some(own_pid()));
    let place = Place { env: Some(env), output: Some(create.hook_output), ..Place::default() };
    hooks::run("startContainer", list, &state, place)
}
