//! What init and an exec'd process share in the child, from the terminal to the moment the workload runs. The order
//! is runc's (standard_init_linux.go, setns_init_linux.go) and each step says why it stands where it does.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags};

use super::attributes::Attributes;
use super::seccomp::Filter;
use super::sync::{Channel, Tag};
use super::{fds, guest_filter, guest_landlock, guest_tree, labels, pid1, process, sys, terminal};
use crate::seam::{Granted, Prepared, Workload};

/// Handles on this process's own procfs directory, taken while the host's procfs can be seen: the container may
/// have none, or one that an image or a volume has a hand in.
pub struct Proc {
    dir: OwnedFd,
    guest: Option<Guest>,
}

/// What only a workload in this process needs.
struct Guest {
    fd: OwnedFd,
    area: pid1::Area,
}

impl Proc {
    pub fn open(workload: &dyn Workload) -> Result<Proc> {
        let open = |path: &str| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("open {path}"))
        };
        let dir = open("/proc/self")?;
        let guest = if workload.undecided() || workload.needs().in_process {
            Some(Guest { area: pid1::Area::remember(dir.as_fd())?, fd: open("/proc/self/fd")? })
        } else {
            None
        };
        Ok(Proc { dir, guest })
    }
}

/// One process about to become its workload.
pub struct Entering<'a> {
    pub process: &'a Process,
    pub attributes: &'a Attributes,
    pub filter: Option<&'a Filter>,
    pub proc: Option<Proc>,
    pub area: Option<pid1::Area>,
    pub channel: &'a Channel,
    pub first_free_fd: RawFd,
    /// What waits for `start`, or reports a failed execve.
    pub talk: Option<RawFd>,
    /// The caller is unprivileged: only a dumpable process is its own for /proc/PID and setns(2), which `exec` needs.
    pub unprivileged: bool,
    /// The container is running, or its mounts are the host's: others may mount in it while we look.
    pub others_mount: bool,
    /// crun's annotation: the caller's supplementary groups stay.
    pub keep_groups: bool,
    /// startContainer hooks run in this process's place before a guest does: with the container's root, and with
    /// what it may do.
    pub hooks_first: bool,
    /// Descriptors that outlive the wait for `start`.
    pub hold: Vec<RawFd>,
}

impl Entering<'_> {
    fn proc_self(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.proc.as_ref().context("internal: no procfs handle")?.dir.as_fd())
    }

    pub fn join_session_keyring(&self, id: &str) -> Result<()> {
        labels::with_label_of_keys(self.process, self.proc_self()?, || process::join_session_keyring(id))
    }

    fn no_new_privileges(&self, workload: &dyn Workload) -> bool {
        self.process.no_new_privileges().unwrap_or(false) || workload.needs().in_process
    }

    /// From no_new_privs to the filter; afterwards nothing of the host can be reached.
    pub fn drop_privileges(&mut self, workload: &mut dyn Workload) -> Result<()> {
        let needs = workload.needs();
        let no_new_privileges = self.no_new_privileges(workload);
        let granted = match self.proc.as_ref().and_then(|proc| proc.guest.as_ref()) {
            // While mounts can still be made.
            Some(guest) if needs.guest_tree => Granted {
                tree: Some(self.guest_tree().context("build the guest's file tree")?),
                proc_fd: Some(guest.fd.try_clone().context("duplicate the handle on /proc/self/fd")?),
            },
            _ => Granted::default(),
        };
        let moved = match &granted.tree {
            // Before a profile that may forbid it.
            Some(tree) if !self.hooks_first => Some(self.move_in(tree)?),
            _ => None,
        };
        labels::apparmor(self.process, needs.in_process, self.proc_self()?)?;
        // Only now: a low limit is the workload's, not ours (runc: procReady).
        if !process::set_own_rlimits(self.process)? {
            self.channel.send(Tag::Limits, &[], &[])?;
            self.channel.expect(Tag::Go)?;
        }
        if no_new_privileges {
            sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).context("process.noNewPrivileges")?;
        }
        if !needs.in_process {
            labels::selinux_at_exec(self.process, self.proc_self()?)?;
        }
        self.attributes.apply()?;
        fds::close_on_exec_from(self.first_free_fd)?;
        let in_cwd = moved.map_or_else(|| process::enter_cwd(self.process), Ok)?;
        if !no_new_privileges {
            // A profile may forbid what closes descriptors (Docker's before 2021 knows no close_range), and a native
            // program, the only kind that comes here, opens no more of them. It may forbid getcwd(2) just as well.
            self.close_all_but_needed(workload)?;
            // seccomp(2): without no_new_privs loading needs CAP_SYS_ADMIN, which is about to go.
            self.load_filter()?;
        }
        let own = self.attributes.caps;
        let caps = if needs.in_process && !self.hooks_first { own.of_a_guest() } else { own };
        process::take_on(self.process, &caps, self.proc_self()?, in_cwd, self.keep_groups)?;
        if self.unprivileged {
            sys::prctl(libc::PR_SET_DUMPABLE, 1).context("become dumpable")?;
        }
        workload.ready(granted)?;
        if needs.in_process {
            // Only now: under the container's label neither we nor the kernel could read or map compiled code.
            labels::selinux_now(self.process, self.proc_self()?)?;
        }
        self.area = self.proc.take().and_then(|proc| proc.guest).map(|guest| guest.area);
        if no_new_privileges {
            self.close_all_but_needed(workload)?;
            if needs.in_process && !self.hooks_first {
                // Before a profile that does not know these calls.
                guest_landlock::restrict(&workload.network())?;
            }
            // As late as can be: the less the process still has to do, the tighter the profile may be.
            self.load_filter()?;
        }
        Ok(())
    }

    /// The guest's files become the root: to whoever breaks out of the engine no path leads to the container's /proc
    /// and /dev, and with its own /proc/self/mem a process undoes any limit that is not the kernel's. The cwd is judged
    /// as any process's is, and left, since it lies outside.
    fn move_in(&self, tree: &OwnedFd) -> Result<bool> {
        let in_cwd = process::enter_cwd(self.process)?;
        rustix::process::fchdir(tree).context("enter the guest's file tree")?;
        rustix::process::chroot(".").context("make the guest's file tree the root")?;
        Ok(in_cwd)
    }

    /// While it waits the process holds nothing that leads out of the container: not what libraries keep (pathrs caches
    /// a procfs of its own), and our procfs handles no longer than they are needed.
    fn close_all_but_needed(&self, workload: &dyn Workload) -> Result<()> {
        let guest = self.proc.iter().filter_map(|proc| proc.guest.as_ref()).map(|guest| guest.fd.as_raw_fd());
        let ours = self.proc.iter().map(|proc| proc.dir.as_raw_fd()).chain(guest);
        let talk = self.talk.into_iter().chain([self.channel.fd()]).chain(self.hold.iter().copied());
        let keep: Vec<RawFd> = workload.keeps().into_iter().chain(talk).chain(ours).collect();
        fds::close_all_but(self.first_free_fd, &keep)
    }

    fn guest_tree(&self) -> Result<OwnedFd> {
        if self.others_mount {
            guest_tree::build_in_running(self.proc_self()?)
        } else {
            guest_tree::build(self.proc_self()?)
        }
    }

    /// The notify descriptor goes to the parent at once, by its number: the only call this takes is write(2), which
    /// alone is never notified (runc's protocol for the same reason).
    fn load_filter(&self) -> Result<()> {
        let Some(filter) = self.filter else { return Ok(()) };
        if let Some(listener) = filter.load()? {
            self.channel.send(Tag::SeccompListener, &listener.as_raw_fd().to_ne_bytes(), &[])?;
            self.channel.expect_plain(Tag::Go)?;
        }
        Ok(())
    }

    /// The last steps in our own code. `talk` reports a failed execve to an exec's parent, and goes with the execve,
    /// or here when the workload runs in this process; without it the error goes to the workload's stderr, as runc's
    /// init says it. Returns only on failure, or with the guest's status.
    pub fn run(&mut self, workload: &mut dyn Workload, talk: Option<OwnedFd>) -> Result<i32> {
        let told = |error: &anyhow::Error| match &talk {
            Some(talk) => report(talk.as_fd(), error),
            None => report(rustix::stdio::stderr(), error),
        };
        if !workload.needs().in_process {
            return workload.run().inspect_err(told);
        }
        let keep: Vec<RawFd> =
            workload.keeps().into_iter().chain(talk.as_ref().map(AsRawFd::as_raw_fd)).collect();
        self.become_guest(&keep, workload).inspect_err(told)?;
        // End of file is what says "it runs".
        drop(talk);
        workload.run()
    }

    /// Nothing of runw's is left in the process that the guest could be made to use: no descriptor, no argument,
    /// no environment.
    fn become_guest(&mut self, keep: &[RawFd], workload: &dyn Workload) -> Result<()> {
        let area = self.area.context("internal: memory areas were not remembered")?;
        fds::close_all_but(self.first_free_fd, keep)?;
        let argv = self.process.args().iter().flatten().map(|arg| std::ffi::CString::new(arg.as_str()));
        let argv = argv.collect::<Result<Vec<_>, _>>().context("process.args")?;
        pid1::become_init(&area, &argv, rustix::process::getpid().is_init(), workload.stop())?;
        let network = workload.network();
        if self.hooks_first {
            self.attributes.caps.of_a_guest().apply()?;
            guest_landlock::restrict(&network)?;
        }
        guest_filter::load(&network)
    }
}

/// To an exec's parent, or on the workload's stderr.
pub fn report(to: BorrowedFd<'_>, error: &anyhow::Error) {
    let _ = rustix::io::write(to, format!("{}\n", crate::error::line(error)).as_bytes());
}

/// `process.terminal`: a terminal of the container's devpts becomes ours, its master goes to the socket.
pub fn set_up_terminal(process: &Process, receiver: Option<&terminal::Receiver>) -> Result<Option<OwnedFd>> {
    if !process.terminal().unwrap_or(false) {
        return Ok(None);
    }
    let receiver = receiver.context("process.terminal: no console socket")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let devpts =
        rustix::fs::open("/dev/pts", flags, Mode::empty()).context("process.terminal: open /dev/pts")?;
    let side = |side: u64| u16::try_from(side).unwrap_or(u16::MAX);
    let size = process.console_size().map(|size| (side(size.height()), side(size.width())));
    let pty = terminal::open_pty(devpts.as_fd(), size, process.user().uid())?;
    receiver.give(pty.master.as_fd())?;
    terminal::make_controlling(pty.slave.as_fd())?;
    Ok(Some(pty.slave))
}

/// argv[0] could be judged by nobody before: it is on a tmpfs, or a hook put it there.
pub fn look(channel: &Channel, workload: &mut dyn Workload) -> Result<()> {
    let Some(file) = workload.look()? else { return Ok(()) };
    channel.send(Tag::Look, &[], &[file.as_fd()])?;
    let mut found = channel.expect(Tag::Found)?;
    let artifact = found.fd().context("no artifact came with the parent's answer")?;
    workload.adopt(Prepared { artifact, note: found.body });
    Ok(())
}
