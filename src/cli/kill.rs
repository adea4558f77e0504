//! `runw kill`: sends a signal to a container's init process.

use anyhow::{Result, bail};
use oci_spec::runtime::LinuxNamespaceType;

use super::common::SIGKILL;
use super::{Globals, common};
use crate::bundle::namespaces;
use crate::linux::lifecycle;
use crate::seam::Status;
use crate::state::Entry;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Send the signal to every process of the container; a stopped container is then no error
    #[arg(short, long)]
    pub all: bool,
    /// CONTAINER-ID is a regular expression: signal every container it matches
    #[arg(short, long)]
    pub regex: bool,
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Name (KILL, SIGKILL, RTMIN+1) or number
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    for id in common::matching(globals, &args.id, args.regex)? {
        one(&id, &args.signal, args.all, globals)?;
    }
    Ok(0)
}

fn one(id: &str, signal: &str, all: bool, globals: &Globals) -> Result<()> {
    let entry = globals.root.load(id)?;
    let signal = parse_signal(signal)?;
    let status = common::status(&entry)?;
    let cgroup = common::cgroup(&entry)?;
    if all {
        // runc: with --all a container whose init is gone is no error, its other processes are still meant.
        let reached = match &cgroup {
            Some(cgroup) => cgroup.signal_all(signal).and_then(|()| Ok(!cgroup.pids()?.is_empty()))?,
            None => false,
        };
        // Without a cgroup (disabled, or rootless) init is whom we know, and with it goes its pid namespace.
        if let (false, Some(init)) = (reached, entry.record.init) {
            lifecycle::signal(init, signal)?;
        }
        return Ok(());
    }
    let (Some(init), true) = (entry.record.init, status != Status::Stopped) else {
        // Without a pid namespace of its own a container outlives its init (runc since 1.2: Container.Signal).
        let outlives = signal == SIGKILL && entry.record.init.is_some() && !has_pid_namespace(&entry);
        match cgroup.filter(|_| outlives) {
            Some(cgroup) if !cgroup.pids()?.is_empty() => return cgroup.signal_all(SIGKILL),
            _ => bail!("container not running"),
        }
    };
    if !lifecycle::signal(init, signal)? {
        bail!("container not running");
    }
    if signal == SIGKILL
        && let Some(cgroup) = &cgroup
    {
        if !lifecycle::has_own_pid_namespace(init.pid) {
            // Nobody takes init's children with it (runc does the same).
            cgroup.signal_all(SIGKILL)?;
        }
        cgroup.thaw_killed()?;
    }
    Ok(())
}

/// Of its own, by what it was made from: there is no init any more to be asked.
fn has_pid_namespace(entry: &Entry) -> bool {
    let spec = common::saved_spec(entry);
    let linux = spec.as_ref().ok().and_then(|spec| spec.linux().as_ref());
    linux.is_some_and(|linux| namespaces::is_private(linux, LinuxNamespaceType::Pid))
}

/// Linux's numbers on every architecture we build for (signal(7): x86, arm and most others).
#[rustfmt::skip]
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1), ("INT", 2), ("QUIT", 3), ("ILL", 4), ("TRAP", 5), ("ABRT", 6), ("IOT", 6), ("BUS", 7), ("FPE", 8),
    ("KILL", 9), ("USR1", 10), ("SEGV", 11), ("USR2", 12), ("PIPE", 13), ("ALRM", 14), ("TERM", 15),
    ("STKFLT", 16), ("CHLD", 17), ("CLD", 17), ("CONT", 18), ("STOP", 19), ("TSTP", 20), ("TTIN", 21), ("TTOU", 22),
    ("URG", 23), ("XCPU", 24), ("XFSZ", 25), ("VTALRM", 26), ("PROF", 27), ("WINCH", 28), ("IO", 29), ("POLL", 29),
    ("PWR", 30), ("SYS", 31), ("UNUSED", 31),
];

/// RTMIN as programs see it: glibc and Go keep 32 and 33 for themselves.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// A signal as runc reads it: a number, or a name in any case with or without `SIG`. 0 only asks whether the
/// process is there (kill(2)).
pub fn parse_signal(text: &str) -> Result<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i32>().ok() };
    let number = if let Ok(number) = text.parse::<i32>() {
        Some(number).filter(|number| (0..=RTMAX).contains(number))
    } else if let Some(rest) = name.strip_prefix("RTMIN") {
        offset(rest).map(|n| RTMIN + n).filter(|n| (RTMIN..=RTMAX).contains(n))
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        offset(rest).map(|n| RTMAX + n).filter(|n| (RTMIN..=RTMAX).contains(n))
    } else {
        SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    };
    match number {
        Some(number) => Ok(number),
        None => bail!("unknown signal {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, want) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("term", 15),
            ("0", 0),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("rtmax", 64),
            ("WINCH", 28),
        ] {
            assert_eq!(parse_signal(text).unwrap(), want, "{text}");
        }
        for text in ["", "65", "-1", "FOO", "SIG", "RTMIN+99", "RTMIN-1", "RTMAX+1", "9x"] {
            assert_eq!(parse_signal(text).unwrap_err().to_string(), format!("unknown signal {text:?}"));
        }
    }
}
