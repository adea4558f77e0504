//! Which descriptors a workload starts with: the three standard streams, those its caller asked to pass, and for a
//! workload in our own process those it keeps. Nothing else.

use std::os::fd::{IntoRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};

use super::sys;

/// `LISTEN_FDS` and `--preserve-fds`, counted from 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preserved {
    /// sd_listen_fds(3): sockets passed by systemd or podman.
    pub listen: u32,
    pub count: u32,
}

impl Preserved {
    /// LISTEN_FDS counts only when LISTEN_PID is us, as sd_listen_fds(3) and runc have it. Each descriptor must be open: what runw opens
    /// itself would otherwise get its number and be passed on.
    pub fn find(preserve: u32) -> Result<Preserved> {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
        let ours = number("LISTEN_PID").is_some_and(|pid| pid == std::process::id());
        let listen = if ours { number("LISTEN_FDS").unwrap_or(0) } else { 0 };
        let preserved = Preserved { listen, count: preserve };
        for fd in 3..preserved.end() {
            if sys::is_closed(fd) {
                let number = i64::from(fd) - 2 - i64::from(listen);
                bail!(
                    "unable to stat preserved-fd {fd} (of {preserve}, number {number}): no such descriptor"
                );
            }
        }
        Ok(preserved)
    }

    /// The first descriptor that is not preserved.
    pub fn end(&self) -> RawFd {
        3i32.saturating_add_unsigned(self.listen.saturating_add(self.count).min(1 << 20))
    }

    /// What the workload is told of its sockets; as pid 1 of its namespace, runc says.
    pub fn env(&self) -> Vec<String> {
        match self.listen {
            0 => Vec::new(),
            count => vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()],
        }
    }
}

/// Everything from `first` becomes close-on-exec. A process of ours has such descriptors only, but one of its
/// caller's may not be (CVE-2024-21626).
pub fn close_on_exec_from(first: RawFd) -> Result<()> {
    sys::close_on_exec_from(first).context("mark descriptors close-on-exec")
}

/// Closes descriptors by ranges.
pub fn close(fds: Vec<OwnedFd>) -> Result<()> {
    let mut numbers: Vec<u32> = fds.into_iter().map(|fd| fd.into_raw_fd() as u32).collect();
    numbers.sort_unstable();
    let ranges = numbers.chunk_by(|one, next| *next == one + 1);
    // All of them, whatever one comes to.
    let closed = ranges.map(|range| sys::close_range(range[0], range[range.len() - 1]));
    closed.fold(Ok(()), Result::and).context("close descriptors")
}

/// Closes everything from `first` but `keep`.
pub fn close_all_but(first: RawFd, keep: &[RawFd]) -> Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter(|fd| **fd >= first).map(|fd| *fd as u32).collect();
    keep.sort_unstable();
    let mut next = first as u32;
    for fd in keep {
        if fd > next {
            sys::close_range(next, fd - 1).context("close descriptors")?;
        }
        next = fd + 1;
    }
    sys::close_range(next, u32::MAX).context("close descriptors")
}
