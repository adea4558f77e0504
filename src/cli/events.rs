//! `runw events`: what a container uses, every so often, and a line whenever it runs out of memory. One JSON
//! document a line, in runc's schema.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;
use serde::Serialize;

use super::{Globals, common};
use crate::linux::cgroup::{Cgroup, Happened, Stats};
use crate::linux::rdt;
use crate::log;
use crate::seam::Status;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Time between two collections of stats (Go's notation: 5s, 100ms, 1m30s)
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = go_duration)]
    pub interval: Duration,
    /// Print the container's stats once
    #[arg(long)]
    pub stats: bool,
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    if args.interval.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    let entry = globals.root.load(&args.id)?;
    if common::status(&entry)? == Status::Stopped {
        bail!("container with id {} is not running", args.id);
    }
    let cgroup = common::cgroup(&entry)?.context("the container has no cgroup")?;
    let spec = common::saved_spec(&entry)?;
    if args.stats {
        emit("stats", &args.id, Some(collect(&args.id, &spec, &cgroup)?))?;
    } else {
        watch(&args.id, args.interval, &spec, &cgroup)?;
    }
    Ok(0)
}

fn collect(id: &str, spec: &Spec, cgroup: &Cgroup) -> Result<Stats> {
    let mut stats = cgroup.stats()?;
    if let Some(rdt) = rdt::find(id, spec.linux().as_ref())? {
        stats.intel_rdt = rdt.stats()?;
    }
    Ok(stats)
}

/// Until the cgroup is removed, or nobody reads any more.
fn watch(id: &str, interval: Duration, spec: &Spec, cgroup: &Cgroup) -> Result<()> {
    let mut oom = cgroup.watch_oom()?;
    let mut next = Instant::now() + interval;
    loop {
        let wanted = match oom.wait(next.saturating_duration_since(Instant::now()))? {
            Happened::Gone => return Ok(()),
            Happened::OutOfMemory => emit("oom", id, None)?,
            Happened::Nothing if Instant::now() < next => true,
            Happened::Nothing => {
                next = Instant::now() + interval;
                match collect(id, spec, cgroup) {
                    Ok(stats) => emit("stats", id, Some(stats))?,
                    Err(error) => {
                        log::warn(&crate::error::line(&error));
                        true
                    }
                }
            }
        };
        if !wanted {
            return Ok(());
        }
    }
}

fn emit(r#type: &'static str, id: &str, data: Option<Stats>) -> Result<bool> {
    super::write_out(&(serde_json::to_string(&Event { r#type, id, data })? + "\n"))
}

/// Go's time.ParseDuration, for what can be an interval: decimal numbers, a unit after each.
fn go_duration(text: &str) -> Result<Duration, &'static str> {
    const UNITS: &[(&str, f64)] =
        &[("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    const ERROR: &str = "not a duration like 5s, 100ms or 1m30s";
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut seconds = 0.0;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(ERROR)?;
        let (number, tail) = rest.split_at(end);
        let unit = tail.split(|c: char| c.is_ascii_digit() || c == '.').next().unwrap_or_default();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(ERROR)?;
        seconds += number.parse::<f64>().map_err(|_| ERROR)? * factor;
        rest = &tail[unit.len()..];
        if rest.is_empty() {
            break;
        }
    }
    // Go's own bound: a duration is 64 bits of nanoseconds.
    Duration::try_from_secs_f64(seconds).ok().filter(|d| i64::try_from(d.as_nanos()).is_ok()).ok_or(ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want) in [
            ("5s", 5000),
            ("100ms", 100),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("+2s", 2000),
            ("2000us", 2),
            ("2000µs", 2),
            ("3000000ns", 3),
            ("0", 0),
            ("0s", 0),
            ("0s1s", 1000),
        ] {
            assert_eq!(go_duration(text), Ok(Duration::from_millis(want)), "{text}");
        }
        for text in ["", "5", "s", "-5s", "5x", "1.2.3s", "5s3", "5 s", ".s", "9999999999h", "1e3s", "inf"] {
            assert!(go_duration(text).is_err(), "{text}");
        }
    }
}
