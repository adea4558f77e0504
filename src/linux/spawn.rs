//! The clone: one process in its cgroup and namespaces, an intermediate one only where the kernel demands it.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use super::cgroup::{Joiner, Placing};
use super::lifecycle::Handle;
use super::namespaces::{self, CLONE_NEWTIME, Plan};
use super::sync::{Channel, Tag};
use super::{foreground, kernel_file, sys};
use crate::seam::Process;

/// The process as its parent holds it.
pub struct Spawned {
    /// Ours to wait for, so nobody else's before that.
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub channel: Channel,
}

impl Spawned {
    /// As everybody else may know it. /proc is asked, which is slow: when the process has something to do meanwhile.
    pub fn process(&self) -> Result<Process> {
        Ok(Process { pid: self.pid, start_time: start_time(self.pid)? })
    }

    pub fn into_handle(self, process: Process) -> Handle {
        Handle { process, pidfd: self.pidfd }
    }
}

pub enum Side {
    Parent(Spawned),
    /// In the namespaces that need no more than a clone or `Plan::first_flags`, and where `Placing` says; nothing else has
    /// happened yet.
    Child(Channel),
}

/// The container's first process, in its namespaces.
pub fn spawn(plan: &Plan, joiner: &Joiner, privileged: bool) -> Result<Side> {
    // CVE-2016-9962: until it is the container's own, nobody in the container may trace or inspect it. The files of
    // a non-dumpable process belong to root, though, and the unprivileged must write its id maps: there the child
    // becomes non-dumpable with its ids (as in runc).
    if privileged {
        sys::prctl(libc::PR_SET_DUMPABLE, 0).context("become non-dumpable")?;
    }
    if !plan.needs_intermediate() {
        let side = clone(plan.clone_flags(joiner.placing() == Placing::ByClone), joiner)?;
        let Side::Child(channel) = side else { return Ok(side) };
        let made = match plan.first_flags() {
            0 => Ok(()),
            kinds => sys::unshare(kinds).context("make the container's namespaces"),
        };
        return Ok(or_end(made, channel));
    }
    match clone(0, joiner)? {
        Side::Parent(intermediate) => follow(intermediate).map(Side::Parent),
        Side::Child(channel) => Ok(or_end(cross(plan, joiner.placing(), &channel), channel)),
    }
}

/// Clones. The child joins the cgroups that are made as its first act, so that everything it does is accounted for.
pub fn clone(namespaces: u64, joiner: &Joiner) -> Result<Side> {
    let (ours, theirs) = Channel::pair()?;
    let ignored = foreground::ignored();
    match sys::clone3(namespaces, joiner.into_cgroup(), false)
        .context("clone a process into the container")?
    {
        sys::Cloned::Child => {
            drop(ours);
            let reset = foreground::reset_signals_in_child(ignored);
            let joined = reset.and_then(|()| joiner.enter().context("join the cgroup"));
            Ok(or_end(joined, theirs))
        }
        sys::Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            Ok(Side::Parent(Spawned { pid, pidfd, channel: ours }))
        }
    }
}

/// In a child: goes on, or says why not and ends.
fn or_end(done: Result<()>, channel: Channel) -> Side {
    match done {
        Ok(()) => Side::Child(channel),
        Err(error) => {
            channel.send_error(&error);
            sys::exit_now(1)
        }
    }
}

/// In the intermediate process: join, make the real one as our sibling, say who it is, and go.
fn cross(plan: &Plan, placing: Placing, channel: &Channel) -> Result<()> {
    plan.join()?;
    match sys::clone3(plan.clone_flags(placing.is_inherited()), None, true)
        .context("clone the container's first process")?
    {
        sys::Cloned::Child => Ok(()),
        sys::Cloned::Parent { pid, .. } => {
            let sent = channel.send(Tag::Pid, &pid.to_ne_bytes(), &[]);
            sys::exit_now(i32::from(sent.is_err()))
        }
    }
}

/// The process that an intermediate one has made.
fn follow(intermediate: Spawned) -> Result<Spawned> {
    let _ = waitid(WaitId::PidFd(intermediate.pidfd.as_fd()), WaitIdOptions::EXITED);
    let channel = intermediate.channel;
    // Only now: had it died without a word, the process it made would hold the channel open, and both would wait
    // for ever.
    if !channel.has_message()? {
        bail!("the intermediate process ended without a word");
    }
    let body = channel.expect(Tag::Pid)?.body;
    let pid =
        i32::from_ne_bytes(body.as_slice().try_into().context("bad pid from the intermediate process")?);
    // Our own child since CLONE_PARENT, so the pid cannot be recycled before we wait for it.
    let pidfd =
        pidfd_open(Pid::from_raw(pid).context("bad pid")?, PidfdFlags::empty()).context("pidfd_open")?;
    Ok(Spawned { pid, pidfd, channel })
}

/// In the child, once the parent has said `Go`: becomes root of its user namespace, joins and makes what the clone
/// could not.
pub fn settle(plan: &Plan, placing: Placing, privileged: bool, channel: &Channel) -> Result<()> {
    let made_by_clone = plan.needs_intermediate() && placing.is_inherited() || placing == Placing::ByClone;
    if plan.makes(libc::CLONE_NEWUSER) || plan.joins(libc::CLONE_NEWUSER) {
        become_namespace_root()?;
    }
    if !plan.needs_intermediate() {
        plan.join()?;
    }
    if plan.makes(CLONE_NEWTIME) {
        sys::unshare(CLONE_NEWTIME).context("make the time namespace")?;
        channel.send(Tag::TimeOffsets, &[], &[])?;
        channel.expect(Tag::Go)?;
        namespaces::enter_own_time_namespace()?;
    }
    match plan.unshare_flags(made_by_clone) {
        0 => {}
        // A cgroup namespace is now rooted at the cgroup joined above.
        kinds => sys::unshare(kinds).context("make the cgroup or ipc namespace")?,
    }
    if plan.makes(libc::CLONE_NEWNET) {
        let socket = namespaces::socket_for_loopback()?;
        // The parent has the right, and nothing else to do; in a user namespace only who is in there has it.
        if plan.has_user() || !privileged {
            namespaces::loopback_up(socket.as_fd())?;
        } else {
            channel.send(Tag::Network, &[], &[socket.as_fd()])?;
        }
    }
    Ok(())
}

/// Files are opened and namespaces configured as the namespace's root, not as the overflow id.
pub fn become_namespace_root() -> Result<()> {
    sys::set_gid(0).context("become gid 0 of the user namespace")?;
    sys::set_uid(0).context("become uid 0 of the user namespace")?;
    // The ids changed, which makes the process dumpable again by /proc/sys/fs/suid_dumpable.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).context("become non-dumpable")?;
    Ok(())
}

/// Kills a process that must not go on, and waits for it if it is our child.
pub fn kill_and_reap(spawned: &Spawned) {
    let _ = pidfd_send_signal(&spawned.pidfd, Signal::KILL);
    let _ = waitid(WaitId::PidFd(spawned.pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// Field 22 of `/proc/PID/stat`: with it a pid names one process for ever (proc_pid_stat(5)).
pub fn start_time(pid: i32) -> Result<u64> {
    stat(pid)?.map(|(_, time)| time).with_context(|| format!("process {pid} is gone"))
}

/// State letter and start time; `None` when there is no such process.
pub fn stat(pid: i32) -> Result<Option<(char, u64)>> {
    let path = format!("/proc/{pid}/stat");
    let text = match kernel_file::read_value(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {path}")),
    };
    // The command name is in parentheses and may hold anything, parentheses too.
    let Some((_, rest)) = text.rsplit_once(')') else { bail!("{path}: no command name") };
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next().and_then(|f| f.chars().next()).with_context(|| format!("{path}: no state"))?;
    let time =
        fields.nth(18).and_then(|f| f.parse().ok()).with_context(|| format!("{path}: no start time"))?;
    Ok(Some((state, time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start_time() {
        let pid = std::process::id() as i32;
        assert_eq!(stat(pid).unwrap().unwrap().1, start_time(pid).unwrap());
        assert!(start_time(pid).unwrap() > 0);
        assert_eq!(stat(i32::MAX).unwrap(), None);
    }
}
