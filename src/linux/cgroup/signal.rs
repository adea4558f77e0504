//! One signal to every process of the cgroup, none missed however fast they fork.

use std::collections::HashSet;
use std::io;

use anyhow::{Context, Result};

use super::Cgroup;
use super::limits::write_file;

/// Not frozen, a cgroup may fork while it is swept: again, until a sweep meets nobody new, but not for ever.
const MOST_SWEEPS: usize = 100;

impl Cgroup {
    /// SIGKILL by cgroup.kill (5.14) where there is a v2 tree; else a sweep while the cgroup is frozen.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        let killed = signal == libc::SIGKILL
            && self.v2.as_ref().is_some_and(|v2| write_file(&v2.dir.join("cgroup.kill"), "1").is_ok());
        if killed && self.v1.is_empty() {
            return Ok(());
        }
        let was_frozen = self.is_frozen();
        // After cgroup.kill on hybrid only strays can be left, which are in v1's trees but not in that one.
        let frozen = was_frozen || (!killed && !self.includes_us()? && self.set_frozen(true).is_ok());
        let swept = self.sweep(signal, frozen);
        if signal == libc::SIGKILL {
            self.thaw_killed()?;
        } else if frozen && !was_frozen {
            // One that was frozen before gets the signal when it is resumed.
            self.set_frozen(false)?;
        }
        swept
    }

    fn includes_us(&self) -> Result<bool> {
        Ok(self.pids()?.contains(&std::process::id().cast_signed()))
    }

    fn sweep(&self, signal: i32, once: bool) -> Result<()> {
        let us = std::process::id().cast_signed();
        let mut done = HashSet::new();
        for _ in 0..if once { 1 } else { MOST_SWEEPS } {
            let fresh: Vec<i32> =
                self.pids()?.into_iter().filter(|&pid| pid != us && done.insert(pid)).collect();
            if fresh.is_empty() {
                break;
            }
            for pid in fresh {
                send(pid, signal).with_context(|| format!("signal process {pid}"))?;
            }
        }
        Ok(())
    }
}

fn send(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integers only. `pid` is positive (`tree::pids`), so it is one process and no group.
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}
