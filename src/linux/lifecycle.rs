//! A container after it was made: what it is doing now, how it is started, signalled and ended. Everything is judged
//! from its record and the kernel, through pidfds, so a recycled pid is never mistaken for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::Cgroup;
use super::{create, spawn, sys};
use crate::seam::{Process, Status};

/// A process that cannot be mistaken for another.
pub struct Handle {
    pub process: Process,
    pub pidfd: OwnedFd,
}

/// How long a killed container may take to be gone (runc: 10 s).
const PATIENCE: Duration = Duration::from_secs(10);

/// What the state directory tells about a container.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Whether init runs; none if there is no init.
    pub alive: Option<bool>,
    /// `create` succeeded.
    pub created: bool,
    /// Init waits for `start`.
    pub waiting: bool,
    /// Another runw holds the container's lock.
    pub busy: bool,
    pub cgroup: Option<&'a Cgroup>,
}

pub fn status(known: &Known<'_>) -> Status {
    match known.alive {
        // Without a process, or before create's last word, it is being made right now or its create was killed.
        None if known.busy => Status::Creating,
        None => Status::Stopped,
        Some(false) => Status::Stopped,
        Some(_) if !known.created => Status::Creating,
        // The freezer alone says so: it may have been frozen, or thawed, by somebody else.
        Some(_) if known.cgroup.is_some_and(Cgroup::is_frozen) => Status::Paused,
        Some(_) if known.waiting => Status::Created,
        Some(_) => Status::Running,
    }
}

/// Lets init go on. The rename claims it: of two starts one finds no socket, and a start that is killed here leaves a
/// container that counts as running. Like runc's, it returns before the execve; that this fails is said on the
/// container's stderr and by its status.
pub fn start(socket: &Path) -> Result<()> {
    let claimed = socket.with_extension("claimed");
    let sender =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match std::fs::rename(socket, &claimed) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("cannot start an already running container")
        }
        other => other.with_context(|| format!("claim {}", socket.display()))?,
    }
    let (address, _directory) = create::start_address(&claimed)?;
    match rustix::net::sendto(&sender, b"start", SendFlags::NOSIGNAL, &address) {
        Err(Errno::CONNREFUSED) => bail!("cannot start a container that has stopped"),
        other => other.context("tell container init to start")?,
    };
    std::fs::remove_file(&claimed).with_context(|| format!("remove {}", claimed.display()))
}

/// A handle on this very process; `None` when it is gone.
pub fn open(process: Process) -> Result<Option<Handle>> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(None) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        // EINVAL is what older kernels (6.12) say of one that is reaped while they look.
        Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
        other => other.context("pidfd_open")?,
    };
    // After the open: the handle is to whoever has the pid now, and the start time says whether that is ours.
    Ok(alive(process).then_some(Handle { process, pidfd }))
}

/// Whether it can still be waited for: till then nobody else has its pid, and what /proc says of the pid is of this process.
pub fn is_unreaped(pidfd: BorrowedFd<'_>) -> bool {
    // It may be somebody whom we may not signal.
    sys::pidfd_send_signal(pidfd, 0).map_or_else(|error| error.raw_os_error() != Some(libc::ESRCH), |()| true)
}

/// Sends any signal of 0..=64. False when the process is gone.
pub fn signal(process: Process, signal: i32) -> Result<bool> {
    let Some(Handle { pidfd, .. }) = open(process)? else { return Ok(false) };
    match sys::pidfd_send_signal(pidfd.as_fd(), signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        other => {
            other.map(|()| true).with_context(|| format!("send signal {signal} to process {}", process.pid))
        }
    }
}

/// Whether init's death takes all others with it.
pub fn has_own_pid_namespace(pid: i32) -> bool {
    let of = |who: &str| rustix::fs::stat(format!("/proc/{who}/ns/pid")).map(|s| (s.st_dev, s.st_ino));
    matches!((of("self"), of(&pid.to_string())), (Ok(ours), Ok(theirs)) if ours != theirs)
}

/// SIGKILL to all of a container, thawed if it is frozen (on v1 a frozen process does not even die), and the wait
/// for its end.
pub fn kill_all(init: Option<Process>, cgroup: Option<&Cgroup>) -> Result<()> {
    let pidfd = init.map(open).transpose()?.flatten().map(|init| init.pidfd);
    if let Some(pidfd) = &pidfd {
        let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    }
    if let Some(cgroup) = cgroup {
        cgroup.signal_all(libc::SIGKILL)?;
    }
    let Some(pidfd) = pidfd else { return Ok(()) };
    if !wait_gone(&pidfd)? {
        bail!("container init still running");
    }
    Ok(())
}

fn wait_gone(pidfd: &OwnedFd) -> Result<bool> {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the container's end"),
        }
    }
}

/// Whether this very process runs: the same pid with another start time is another process, and a zombie is none.
pub fn alive(process: Process) -> bool {
    let Ok(Some((state, start_time))) = spawn::stat(process.pid) else { return false };
    start_time == process.start_time && !matches!(state, 'Z' | 'X' | 'x')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ourselves() -> Process {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let start_time = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap();
        Process { pid: std::process::id() as i32, start_time: start_time.parse().unwrap() }
    }

    #[test]
    fn a_process_is_its_pid_and_its_start_time() {
        let us = ourselves();
        assert!(alive(us));
        assert!(!alive(Process { start_time: us.start_time + 1, ..us }));
        assert!(!alive(Process { pid: i32::MAX, ..us }));
    }

    #[test]
    fn a_zombie_is_no_process() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 0"]).spawn().unwrap();
        let path = format!("/proc/{}/stat", child.id());
        let mut stat = String::new();
        while !stat.contains(") Z ") {
            std::thread::sleep(std::time::Duration::from_millis(2));
            stat = std::fs::read_to_string(&path).unwrap();
        }
        let start_time = stat.split_ascii_whitespace().nth(21).unwrap().parse().unwrap();
        assert!(!alive(Process { pid: child.id() as i32, start_time }));
        child.wait().unwrap();
    }

    #[test]
    fn words() {
        let (us, gone) = (Some(true), Some(false));
        // alive, created, waiting, busy
        for (alive, created, waiting, busy, want) in [
            (None, false, false, true, Status::Creating),
            (None, false, false, false, Status::Stopped),
            (us, false, true, true, Status::Creating),
            (us, true, true, false, Status::Created),
            (us, true, false, false, Status::Running),
            (gone, true, true, false, Status::Stopped),
        ] {
            assert_eq!(status(&Known { alive, created, waiting, busy, cgroup: None }), want);
        }
    }
}
