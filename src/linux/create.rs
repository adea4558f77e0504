//! The parent's story of `create`: what is opened and decided before the clone, what the child asks for, and the
//! undoing of everything when any of it fails.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Hooks, LinuxSeccomp, Mount, Process, Spec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::attributes::Attributes;
use super::cgroup::Cgroup;
use super::fds::Preserved;
use super::hooks::{self, Place};
use super::init::{self, Inherited};
use super::lifecycle::Handle;
use super::namespaces::{self, Plan};
use super::rdt::{self, Rdt};
use super::rootfs::{self, IdMaps, Label, Root, Sources};
use super::seccomp::{self, Filter};
use super::spawn::{self, Side, Spawned};
use super::sync::{Channel, Tag};
use super::terminal::{self, Receiver};
use super::{netdev, process, sys};
use crate::log;
use crate::seam::{self, MountId, Status, Workload};

/// A container to be made; everything in it has been validated.
pub struct Create<'a> {
    pub id: &'a str,
    pub spec: &'a Spec,
    pub process: &'a Process,
    pub bundle: &'a Path,
    /// Canonical.
    pub rootfs: &'a Path,
    /// Where compiled seccomp profiles are kept.
    pub seccomp_cache: &'a Path,
    /// Where the start socket is made; without one the container starts as soon as it is ready.
    pub start_socket: Option<&'a Path>,
    pub cgroup: &'a Cgroup,
    pub preserved: Preserved,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    /// Supplementary groups stay as they are.
    pub keep_groups: bool,
    /// The sub-cgroup that the process is moved to.
    pub delegate: Option<&'a str>,
    pub hook_output: &'a hooks::Capture,
    /// The runtime-spec State document for hooks.
    pub hook_state: &'a dyn Fn(Status, Option<i32>) -> Vec<u8>,
}

impl Create<'_> {
    pub fn root<'a>(&'a self, plan: &Plan, talk: Option<&'a Channel>) -> Root<'a> {
        Root {
            spec: self.spec,
            bundle: self.bundle,
            path: self.rootfs,
            cgroup: self.cgroup,
            talk,
            no_pivot: self.no_pivot,
            mount_namespace: plan.has_mount(),
            mounts_are_copies: plan.makes(libc::CLONE_NEWNS),
            user_namespace: plan.has_user(),
            cgroup_namespace: plan.has_cgroup(),
            label: Label::of(self.spec),
        }
    }
}

/// What must be written down, and when.
pub trait Journal {
    /// The process exists: from now on a killed `create` can be cleaned up by its pid, and by the mount that the
    /// process will make on the host.
    fn cloned(&mut self, process: seam::Process, root_mount: Option<MountId>) -> Result<()>;
    /// The process is at work for a while: what `ready` is to write can be prepared.
    fn prepare(&mut self) -> Result<()>;
    /// The container is created. The child waits for this to return before it can be started, or starts.
    fn ready(&mut self) -> Result<()>;
}

/// Makes the container, and returns its init. `console` is where the terminal's master goes. On failure nothing of it is
/// left but what `journal` wrote.
pub fn create(
    create: &Create<'_>,
    console: Option<Receiver>,
    workload: &mut dyn Workload,
    journal: &mut dyn Journal,
) -> Result<Handle> {
    let linux = create.spec.linux().as_ref();
    let filter = linux
        .and_then(|l| l.seccomp().as_ref())
        .map(|profile| seccomp::compile_cached(profile, create.seccomp_cache))
        .transpose()?;
    let attributes = Attributes::of(create.process, linux)?;
    tell(create.spec, filter.as_ref(), &attributes);
    let rdt = rdt::find(create.id, linux)?;
    protect_carried(workload)?;
    let plan = Plan::of(linux)?;
    let privileged = rustix::process::geteuid().is_root();
    let sources = if plan.has_user() { Sources::default() } else { sources(create, false)? };
    let root_mount = if plan.has_mount() { None } else { Some(sources.root_mount()?) };
    let listener = create.start_socket.map(listen).transpose()?;

    let mut making = create.cgroup.begin(linux.and_then(|l| l.resources().as_ref()))?;
    // What an intermediate process makes is where that is, and that may see no cgroups once it has joined a mount namespace.
    let joiner = if plan.needs_intermediate() {
        making.finish()?;
        create.cgroup.joiner_of_init()?
    } else {
        making.joiner()?
    };
    let spawned = match spawn::spawn(&plan, &joiner, privileged)? {
        Side::Child(channel) => {
            let placing = joiner.placing();
            // `init` closes what it does not keep, and who closes a number again may close another's.
            std::mem::forget(joiner);
            let inherited =
                Inherited { plan, placing, sources, attributes, filter, listener, console, privileged };
            init::run(create, inherited, channel, workload)
        }
        Side::Parent(spawned) => spawned,
    };
    let made = if plan.needs_intermediate() { Ok(()) } else { making.finish() };
    made.and_then(|()| making.tasks(joiner.placing()))
        .and_then(|tasks| spawned.channel.send(Tag::Made, &[], &tasks.fds()))
        .map_err(|error| spawned.channel.last_words().unwrap_or(error))
        .inspect_err(|_| spawn::kill_and_reap(&spawned))?;
    log::debug(|| format!("cgroup made: {}", create.cgroup.describe()));
    making.keep();
    drop((sources, listener, console));
    // These three begin as runc's do for the same moments: people, and runc's own tests, look for them.
    log::debug(|| format!("nsexec container setup: init is process {}", spawned.pid));
    let attended = spawned.process().and_then(|process| {
        journal.cloned(process, root_mount)?;
        admit(create, &plan, rdt.as_ref(), &spawned)?;
        let talk = privileged.then_some(&spawned.channel);
        rootfs::give_cgroups(&create.root(&plan, talk), making.base())?;
        attend(create, &spawned, workload, journal)?;
        Ok(process)
    });
    match attended {
        Ok(process) => Ok(spawned.into_handle(process)),
        Err(error) => {
            let error = explain(create, spawned.channel.last_words().unwrap_or(error));
            undo(create, &spawned, rdt.as_ref(), root_mount)?;
            Err(error)
        }
    }
}

/// What of the configuration will be otherwise than it says.
fn tell(spec: &Spec, filter: Option<&Filter>, attributes: &Attributes) {
    filter.iter().for_each(|filter| log::debug(|| filter.describe()));
    attributes.caps.warnings().iter().for_each(|warning| log::warn(warning));
    for name in filter.iter().flat_map(|filter| filter.unknown()) {
        // Engines' profiles are longer than any libseccomp's list; runc skips such names the same way.
        log::debug(|| format!("unknown seccomp syscall {name:?} ignored"));
    }
    for mount in spec.mounts().iter().flatten() {
        for word in rootfs::without_effect(mount) {
            log::warn(&format!("mount {}: option {word:?} has no effect", mount.destination().display()));
        }
    }
}

/// A container with its own user and cgroup namespaces and a writable cgroup mount runs an init system that wants
/// to make cgroups: its root gets the tree (runc does so on cgroup v2 only).
fn delegate(create: &Create<'_>, plan: &Plan) -> Result<()> {
    let writable = |mount: &Mount| {
        let read_only = mount.options().iter().flatten().any(|word| word == "ro");
        mount.typ().as_deref().is_some_and(|kind| kind.starts_with("cgroup")) && !read_only
    };
    let namespaces = libc::CLONE_NEWUSER | libc::CLONE_NEWCGROUP;
    if plan.new & namespaces != namespaces || !create.spec.mounts().iter().flatten().any(writable) {
        return Ok(());
    }
    let maps = create.spec.linux().as_ref().and_then(|l| l.uid_mappings().as_ref());
    let root = maps.into_iter().flatten().find(|map| map.container_id() == 0);
    root.map_or(Ok(()), |map| create.cgroup.delegate(map.host_id()))
}

fn sources(create: &Create<'_>, user_namespace: bool) -> Result<Sources> {
    Sources::open(create.spec, create.rootfs, user_namespace)
}

/// Does for the child what only the parent can before it goes on.
fn admit(create: &Create<'_>, plan: &Plan, rdt: Option<&Rdt<'_>>, spawned: &Spawned) -> Result<()> {
    let pid = spawned.pid;
    let linux = create.spec.linux().as_ref();
    create.cgroup.adopt(pid, linux.and_then(|l| l.resources().as_ref()))?;
    delegate(create, plan)?;
    rdt.map_or(Ok(()), |rdt| rdt.create(pid))?;
    if plan.makes(libc::CLONE_NEWUSER) {
        let (uids, gids) = namespaces::id_maps(linux);
        namespaces::write_id_maps(pid, uids, gids)?;
    }
    process::set_oom_score_adj(pid, create.process)?;
    netdev::move_into(create.spec, plan, pid)?;
    spawned.channel.send(Tag::Go, &[], &[])?;
    log::debug(|| format!("child process in init(): {pid} goes on in its namespaces"));
    Ok(())
}

/// And what comes up until it is ready.
fn attend(
    create: &Create<'_>,
    spawned: &Spawned,
    workload: &mut dyn Workload,
    journal: &mut dyn Journal,
) -> Result<()> {
    journal.prepare()?;
    let pid = spawned.pid;
    let linux = create.spec.linux().as_ref();
    let mut maps = IdMaps::new(linux);
    loop {
        let Some(mut message) = spawned.channel.receive()? else {
            bail!("container init ended before it was ready")
        };
        match message.tag {
            Tag::TimeOffsets => {
                if let Some(offsets) = linux.and_then(|l| l.time_offsets().as_ref()) {
                    namespaces::write_time_offsets(pid, offsets).context("linux.timeOffsets")?;
                }
            }
            Tag::Network => {
                let socket = message.fd().context("no socket of the network namespace came")?;
                namespaces::loopback_up(socket.as_fd())?;
                continue;
            }
            Tag::Sources => {
                let sources = namespaces::in_mounts_of(spawned.pidfd.as_fd(), || sources(create, true))?;
                sources.send(&spawned.channel)?;
            }
            Tag::Bind => {
                let open = || rootfs::open_for_child(create.spec, create.bundle, &mut maps, &message.body);
                let source = namespaces::in_mounts_of(spawned.pidfd.as_fd(), open)?;
                spawned.channel.send(Tag::Source, &[], &[source.as_fd()])?;
                continue;
            }
            Tag::Hooks => host_hooks(create, spawned)?,
            Tag::Limits => process::set_rlimits(pid, create.process)?,
            Tag::Look => {
                send_found(spawned, message.fd(), workload)?;
                continue;
            }
            Tag::SeccompListener => {
                let seccomp = linux.and_then(|l| l.seccomp().as_ref());
                let state = (create.hook_state)(Status::Creating, Some(pid));
                send_listener(seccomp, &state, spawned, &message.body)?;
            }
            Tag::Ready => {
                if let Some(name) = create.delegate {
                    create.cgroup.delegate_below(name, pid)?;
                }
                journal.ready()?;
                log::debug(|| "init: closing the pipe to signal completion: it may be started".to_owned());
                return spawned.channel.send(Tag::Go, &[], &[]);
            }
            Tag::Error => return Err(message.error()),
            tag => bail!("unexpected message {tag:?} from container init"),
        }
        spawned.channel.send(Tag::Go, &[], &[])?;
    }
}

/// What a workload carries into the container is code that other containers share: even root in there may only read
/// it. The descriptors keep their numbers.
pub fn protect_carried(workload: &dyn Workload) -> Result<()> {
    for number in workload.needs().carry {
        if let Some(view) = rootfs::read_only_view(sys::own_fd(number))? {
            sys::replace_fd(view.as_fd(), number, true).context("replace a descriptor")?;
        }
    }
    Ok(())
}

/// The answer to `Look`.
pub fn send_found(spawned: &Spawned, file: Option<OwnedFd>, workload: &mut dyn Workload) -> Result<()> {
    let prepared = workload.prepare_found(file.context("no file came with the question")?)?;
    let view = rootfs::read_only_view(prepared.artifact.as_fd())?;
    let artifact = view.as_ref().unwrap_or(&prepared.artifact);
    spawned.channel.send(Tag::Found, &prepared.note, &[artifact.as_fd()])
}

/// prestart and createRuntime: in the runtime's namespaces, after the container's exist, before pivot_root.
fn host_hooks(create: &Create<'_>, spawned: &Spawned) -> Result<()> {
    let Some(all) = create.spec.hooks() else { return Ok(()) };
    let place = Place {
        while_alive: Some(spawned.pidfd.as_fd()),
        output: Some(create.hook_output),
        ..Place::host(Some(create.bundle))
    };
    run_host_hooks(all, &|status| (create.hook_state)(status, Some(spawned.pid)), place)
}

/// runtime.md has both after step 2, which is when a container counts as `created`. prestart is told so, as by crun: hooks
/// of 1.0 expect it, when they ran in `start`. createRuntime, which is younger, is told what runc tells.
pub fn run_host_hooks(all: &Hooks, state: &dyn Fn(Status) -> Vec<u8>, place: Place<'_>) -> Result<()> {
    hooks::run("prestart", all.prestart().as_ref(), &state(Status::Created), place)?;
    hooks::run("createRuntime", all.create_runtime().as_ref(), &state(Status::Creating), place)
}

/// `linux.seccomp.listenerPath`: the agent gets the descriptor and the container process state (config-linux.md).
pub fn send_listener(
    seccomp: Option<&LinuxSeccomp>,
    state: &[u8],
    spawned: &Spawned,
    number: &[u8],
) -> Result<()> {
    let number = i32::from_ne_bytes(number.try_into().context("bad descriptor number")?);
    let listener = sys::pidfd_getfd(spawned.pidfd.as_fd(), number).context("take the seccomp listener")?;
    let seccomp = seccomp.context("linux.seccomp is missing")?;
    let path = seccomp.listener_path().as_deref().context("linux.seccomp.listenerPath is missing")?;
    let state: serde_json::Value = serde_json::from_slice(state)?;
    let mut document = serde_json::json!({
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": spawned.pid,
        "state": state,
    });
    if let Some(metadata) = seccomp.listener_metadata().as_deref().filter(|text| !text.is_empty()) {
        document["metadata"] = metadata.into();
    }
    let context = || format!("linux.seccomp.listenerPath: {}", path.display());
    let socket = terminal::connect(path)
        .context("failed to connect with seccomp agent specified in the seccomp profile")
        .with_context(context)?;
    terminal::send_master(socket.as_fd(), listener.as_fd(), &document.to_string()).with_context(context)
}

/// The socket `start` sends to, and init reads: a datagram, so that under a seccomp profile init needs no more than
/// read(2). It lives in the child; its path is long, so it is bound through a handle.
fn listen(path: &Path) -> Result<OwnedFd> {
    let context = || format!("make the start socket {}", path.display());
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .with_context(context)?;
    let (address, _directory) = start_address(path)?;
    rustix::net::bind(&socket, &address).with_context(context)?;
    Ok(socket)
}

/// unix(7): an address holds 108 bytes. The directory's handle must live until the address has been used.
pub fn start_address(path: &Path) -> Result<(SocketAddrUnix, OwnedFd)> {
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd;
    let directory = path.parent().context("the start socket needs a directory")?;
    let name = path.file_name().context("the start socket needs a name")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(directory, flags, Mode::empty())
        .with_context(|| format!("open {}", directory.display()))?;
    let short = format!("/proc/self/fd/{}/{}", handle.as_raw_fd(), name.display());
    Ok((SocketAddrUnix::new(short.as_str())?, handle))
}

/// A child that was killed has no words of its own.
fn explain(create: &Create<'_>, error: anyhow::Error) -> anyhow::Error {
    if create.cgroup.was_oom_killed() {
        return error.context("container init was OOM-killed (memory limit too low?)");
    }
    error
}

/// Nothing that was made stays, or the error says so: what is left is found by `delete --force` in the state
/// directory, which then stays too.
fn undo(
    create: &Create<'_>,
    spawned: &Spawned,
    rdt: Option<&Rdt<'_>>,
    root_mount: Option<MountId>,
) -> Result<()> {
    spawn::kill_and_reap(spawned);
    let _ = create.cgroup.signal_all(libc::SIGKILL);
    let removed = create
        .cgroup
        .remove()
        .and_then(|()| rdt.map_or(Ok(()), Rdt::remove))
        .and_then(|()| root_mount.map_or(Ok(()), |ours| rootfs::unmount_root(create.rootfs, ours)));
    removed.map_err(|error| anyhow::Error::new(LeftBehind(format!("{error:#}"))))
}

/// A failed `create` that could not take everything back.
#[derive(Debug)]
pub struct LeftBehind(String);

impl std::fmt::Display for LeftBehind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "container could not be made, and what was made of it could not be removed: {}", self.0)
    }
}

impl std::error::Error for LeftBehind {}
