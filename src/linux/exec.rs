//! `exec`: one more process in a container that is there, under everything its `process` says.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Linux, LinuxSeccomp, Process};
use rustix::fs::{Mode, OFlags};

use super::attributes::{Affinity, Attributes};
use super::cgroup::Cgroup;
use super::enter::{self, Entering, Proc};
use super::fds::{self, Preserved};
use super::lifecycle::{self, Handle};
use super::namespaces::{self, CLONE_NEWTIME};
use super::seccomp::{self, Filter};
use super::spawn::{self, Side, Spawned};
use super::sync::{Channel, Tag};
use super::terminal::Receiver;
use super::{create, process, rdt, rootfs, sys};
use crate::log;
use crate::seam::{self, Workload};

/// A process to be run in a container.
pub struct Exec<'a> {
    pub id: &'a str,
    pub process: &'a Process,
    /// The container's own, for what holds of all its processes.
    pub linux: Option<&'a Linux>,
    /// Where compiled profiles are kept.
    pub seccomp_cache: &'a Path,
    /// The container's State document for a seccomp agent: the pid in it is init's, as in runc.
    pub seccomp_state: &'a dyn Fn() -> Vec<u8>,
    /// The container's init, whose namespaces are joined.
    pub init: &'a Handle,
    pub cgroup: &'a Cgroup,
    /// `--cgroup`.
    pub sub_cgroups: &'a [String],
    pub preserved: Preserved,
    pub no_new_keyring: bool,
    /// Supplementary groups stay as they are.
    pub keep_groups: bool,
}

impl Exec<'_> {
    fn seccomp(&self) -> Option<&LinuxSeccomp> {
        self.linux.and_then(|linux| linux.seccomp().as_ref())
    }
}

/// Runs it, and returns its process when its execve has succeeded (a wasm guest: when it is about to run).
pub fn exec(exec: &Exec<'_>, console: Option<Receiver>, workload: &mut dyn Workload) -> Result<Handle> {
    let filter =
        exec.seccomp().map(|profile| seccomp::compile_cached(profile, exec.seccomp_cache)).transpose()?;
    let attributes = Attributes::of(exec.process, exec.linux)?;
    attributes.caps.warnings().iter().for_each(|warning| log::warn(warning));
    let affinity = Affinity::of(exec.process.exec_cpu_affinity().as_ref())?;
    create::protect_carried(workload)?;
    let found = namespaces_to_join(exec.init.process.pid, exec.linux)
        .and_then(|kinds| Ok((kinds, root_to_enter(exec.init.process.pid, kinds)?)));
    // Or those were the namespaces, and the root, of whoever has the pid now.
    ensure!(lifecycle::is_unreaped(exec.init.pidfd.as_fd()), "cannot exec in a stopped container");
    let (kinds, root) = found?;
    // Reports a failed execve: end of file means there is nothing to report.
    let (read, talk) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("pipe")?;
    let unprivileged = !rustix::process::geteuid().is_root();
    let joined = join_in_parent(exec.init.pidfd.as_fd(), kinds)?;
    affinity.enter_initial()?;
    let cloned = clone(exec);
    if !matches!(cloned, Ok(Side::Child(_))) {
        leave_pid_namespace(joined)?;
    }
    let spawned = match cloned? {
        Side::Child(channel) => {
            drop(read);
            let in_user_namespace = kinds & libc::CLONE_NEWUSER != 0;
            let kinds = kinds & !joined;
            let inherited = Inherited {
                kinds,
                root,
                in_user_namespace,
                unprivileged,
                attributes,
                affinity,
                filter,
                console,
            };
            child(exec, inherited, &channel, talk, workload)
        }
        Side::Parent(spawned) => spawned,
    };
    drop((talk, console, root));
    match attend(exec, &spawned, read, workload) {
        Ok(process) => Ok(spawned.into_handle(process)),
        Err(error) => {
            let told = spawned.channel.last_words();
            spawn::kill_and_reap(&spawned);
            Err(told.unwrap_or(error))
        }
    }
}

/// The pid namespace is joined by the parent, for its child only (pid_namespaces(7)): that is one process fewer than
/// an intermediate one would be. The unprivileged must enter the user namespace that owns it before they may.
fn join_in_parent(init: BorrowedFd<'_>, kinds: i32) -> Result<i32> {
    let mut done = 0;
    if kinds & libc::CLONE_NEWUSER != 0 && !rustix::process::geteuid().is_root() {
        sys::setns(init, libc::CLONE_NEWUSER).context("join the user namespace")?;
        done |= libc::CLONE_NEWUSER;
    }
    if kinds & libc::CLONE_NEWPID != 0 {
        sys::setns(init, libc::CLONE_NEWPID).context("join the pid namespace")?;
        done |= libc::CLONE_NEWPID;
    }
    Ok(done)
}

/// What we start from now on (a compile) is the host's again. Having entered its user namespace there is no way back.
fn leave_pid_namespace(joined: i32) -> Result<()> {
    if joined != libc::CLONE_NEWPID {
        return Ok(());
    }
    let ours = rustix::fs::open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    sys::setns(ours.as_fd(), libc::CLONE_NEWPID).context("go back to our pid namespace")
}

fn clone(exec: &Exec<'_>) -> Result<Side> {
    // CVE-2016-9962: until its execve the process is in sight of the container with our memory and descriptors.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).context("become non-dumpable")?;
    let busy = |error: &anyhow::Error| {
        error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) == Some(libc::EBUSY)
    };
    match spawn::clone(0, &exec.cgroup.joiner(exec.sub_cgroups)?) {
        // A cgroup v2 that hands controllers down takes no process; the container's init has moved below it.
        Err(error) if exec.sub_cgroups.is_empty() && busy(&error) => {
            spawn::clone(0, &exec.cgroup.joiner_beside(exec.init.process.pid)?)
        }
        cloned => cloned,
    }
}

/// The namespaces that are init's and not ours: setns(2) refuses to join the user namespace one is in, and joining
/// any other again would only cost. To ask for each costs as much; what was made for the container is not ours.
fn namespaces_to_join(init: i32, linux: Option<&Linux>) -> Result<i32> {
    const KINDS: [(&str, i32); 8] = [
        ("user", libc::CLONE_NEWUSER),
        ("mnt", libc::CLONE_NEWNS),
        ("pid", libc::CLONE_NEWPID),
        ("net", libc::CLONE_NEWNET),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
        ("time", CLONE_NEWTIME),
    ];
    let made = namespaces::made(linux) & !libc::CLONE_NEWUSER;
    let mut kinds = made;
    for (name, kind) in KINDS.into_iter().filter(|(_, kind)| made & kind == 0) {
        // The link's text has the number; to follow it takes twice as long.
        let of = |who: &str| rustix::fs::readlink(format!("/proc/{who}/ns/{name}"), Vec::new());
        let ours = match of("self") {
            // A kernel without this kind of namespace.
            Err(rustix::io::Errno::NOENT) => continue,
            other => other.with_context(|| format!("read our {name} namespace"))?,
        };
        if of(&init.to_string()).with_context(|| format!("read the container's {name} namespace"))? != ours {
            kinds |= kind;
        }
    }
    Ok(kinds)
}

/// One call for all; but if the user namespace does not own them all, one by one.
fn join(init: BorrowedFd<'_>, kinds: i32) -> Result<()> {
    let enter = |kinds: &i32| sys::setns(init, *kinds).context("join the container's namespaces");
    match enter(&kinds) {
        Err(error) if namespaces::is_denied(&error) && kinds & libc::CLONE_NEWUSER != 0 => {
            let each = (0..32).map(|bit| 1 << bit).filter(|kind| kinds & kind != 0);
            namespaces::join(each.collect(), |kind| *kind, enter)
        }
        done => done,
    }
}

/// Without a mount namespace to join the container's root is only where init has it.
fn root_to_enter(init: i32, kinds: i32) -> Result<Option<OwnedFd>> {
    if kinds & libc::CLONE_NEWNS != 0 {
        return Ok(None);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{init}/root"), flags, Mode::empty());
    root.map(Some).context("open the container's root")
}

/// Does for the child what only the parent can, until its workload runs, and says who it is.
fn attend(
    exec: &Exec<'_>,
    spawned: &Spawned,
    talk: OwnedFd,
    workload: &mut dyn Workload,
) -> Result<seam::Process> {
    // runc's words for the same moments (exec.bats).
    let pid = spawned.pid;
    // While it waits: a child of a caller that ignores SIGCHLD is gone from /proc when it ends.
    let process = spawned.process()?;
    log::debug(|| format!("nsexec container setup: {pid} is the process in the container's cgroup"));
    process::set_oom_score_adj(pid, exec.process)?;
    if let Some(rdt) = rdt::find(exec.id, exec.linux)? {
        rdt.join(pid)?;
    }
    spawned.channel.send(Tag::Go, &[], &[])?;
    log::debug(|| format!("child process in init(): {pid} joins the container's namespaces"));
    loop {
        let Some(mut message) = spawned.channel.receive()? else {
            bail!("the process ended before it was ready")
        };
        match message.tag {
            Tag::Look => create::send_found(spawned, message.fd(), workload)?,
            Tag::SeccompListener => {
                let state = (exec.seccomp_state)();
                create::send_listener(exec.seccomp(), &state, spawned, &message.body)?;
                spawned.channel.send(Tag::Go, &[], &[])?;
            }
            Tag::Limits => {
                process::set_rlimits(pid, exec.process)?;
                spawned.channel.send(Tag::Go, &[], &[])?;
            }
            Tag::Ready => break,
            Tag::Error => return Err(message.error()),
            tag => bail!("unexpected message {tag:?} from the process"),
        }
    }
    log::debug(|| format!("setns_init: about to exec: {pid} is ready"));
    let mut text = Vec::new();
    std::fs::File::from(talk).read_to_end(&mut text).context("wait for the process")?;
    if text.is_empty() { Ok(process) } else { bail!("{}", String::from_utf8_lossy(&text).trim_end()) }
}

/// What the child has of its parent's.
struct Inherited {
    /// Namespaces that are still to be joined.
    kinds: i32,
    root: Option<OwnedFd>,
    /// The user namespace is not the host's.
    in_user_namespace: bool,
    unprivileged: bool,
    attributes: Attributes,
    affinity: Affinity,
    filter: Option<Filter>,
    console: Option<Receiver>,
}

fn child(
    exec: &Exec<'_>,
    inherited: Inherited,
    channel: &Channel,
    talk: OwnedFd,
    workload: &mut dyn Workload,
) -> ! {
    let mut entering = Entering {
        process: exec.process,
        attributes: &inherited.attributes,
        filter: inherited.filter.as_ref(),
        proc: None,
        area: None,
        talk: Some(talk.as_raw_fd()),
        channel,
        first_free_fd: exec.preserved.end(),
        unprivileged: inherited.unprivileged,
        others_mount: true,
        keep_groups: exec.keep_groups,
        hooks_first: false,
        hold: Vec::new(),
    };
    let ready = prepare(exec, &inherited, &talk, &mut entering, workload)
        .and_then(|()| channel.send(Tag::Ready, &[], &[]));
    if let Err(error) = ready {
        channel.send_error(&error);
        sys::exit_now(1);
    }
    let status = entering.run(workload, Some(talk)).unwrap_or(1);
    sys::exit_now(status)
}

fn prepare(
    exec: &Exec<'_>,
    inherited: &Inherited,
    talk: &OwnedFd,
    entering: &mut Entering<'_>,
    workload: &mut dyn Workload,
) -> Result<()> {
    inherited.affinity.settle()?;
    let mut keep = workload.needs().carry;
    keep.extend(
        inherited.console.iter().map(AsRawFd::as_raw_fd).chain(inherited.root.iter().map(AsRawFd::as_raw_fd)),
    );
    keep.extend([exec.init.pidfd.as_raw_fd(), talk.as_raw_fd(), entering.channel.fd()]);
    fds::close_all_but(exec.preserved.end(), &keep)?;
    entering.channel.expect(Tag::Go)?;
    rustix::process::setsid().context("setsid")?;
    entering.proc = Some(Proc::open(workload)?);
    if inherited.kinds != 0 {
        join(exec.init.pidfd.as_fd(), inherited.kinds)?;
    }
    if let Some(root) = &inherited.root {
        rustix::process::fchdir(root).context("enter the container's root")?;
        rootfs::become_root()?;
    }
    if inherited.in_user_namespace {
        spawn::become_namespace_root()?;
    }
    if !exec.no_new_keyring {
        entering.join_session_keyring(exec.id)?;
    }
    enter::set_up_terminal(exec.process, inherited.console.as_ref())?;
    process::set_umask(exec.process);
    if workload.undecided() {
        enter::look(entering.channel, workload)?;
    }
    entering.drop_privileges(workload)
}
