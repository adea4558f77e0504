//! `runw update`: changes the limits of a live container, in the kernel and in the spec that later commands read.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Linux, LinuxResources};
use serde_json::{Map, Value};

use super::{Globals, common};
use crate::linux::rdt;
use crate::seam::Status;
use crate::state::CONFIG;
use crate::{bundle, log};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// File (or -, standard input) with limits in JSON, as config.json's linux.resources; the other options are
    /// then ignored
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Block I/O weight, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// CPU period in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_period: Option<u64>,
    /// CPU time in each period in microseconds, -1 for no limit
    #[arg(long, value_name = "N")]
    pub cpu_quota: Option<i64>,
    /// CPU time that may be saved up for bursts, in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_burst: Option<u64>,
    /// CPU shares, the weight relative to other containers
    #[arg(long, value_name = "N")]
    pub cpu_share: Option<u64>,
    /// Realtime CPU period in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_rt_period: Option<u64>,
    /// Realtime CPU time in each period in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_rt_runtime: Option<i64>,
    /// CPUs to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// 1: the container gets what CPU time nobody else wants
    #[arg(long, value_name = "N")]
    pub cpu_idle: Option<i64>,
    /// Memory limit, with a unit (64m, 1.5GiB) or in bytes, -1 for none
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<i64>,
    /// Memory reservation or soft limit
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory_reservation: Option<i64>,
    /// Memory and swap together, -1 for unlimited swap
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory_swap: Option<i64>,
    /// Kernel memory limit, which current kernels ignore
    #[arg(long, value_name = "SIZE", value_parser = size, hide = true)]
    pub kernel_memory: Option<i64>,
    /// Memory limit of TCP buffers
    #[arg(long, value_name = "SIZE", value_parser = size, hide = true)]
    pub kernel_memory_tcp: Option<i64>,
    /// Number of processes and threads, -1 for no limit
    #[arg(long, value_name = "N")]
    pub pids_limit: Option<i64>,
    /// Intel RDT: the share of the L3 cache
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// Intel RDT: the share of the memory bandwidth
    #[arg(long, value_name = "SCHEMA")]
    pub mem_bw_schema: Option<String>,
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    let (asked, mut resources) = asked(&args)?;
    let (entry, status) = common::hold(globals, &args.id)?;
    if status == Status::Stopped {
        bail!("container not running");
    }
    let cgroup = common::cgroup(&entry)?.context("the container has no cgroup")?;
    let path = entry.dir.join(CONFIG);
    let context = || format!("{} cannot be understood", path.display());
    let mut config: Value = serde_json::from_slice(&bundle::read_json(&path)?).with_context(context)?;
    ensure!(config.is_object() && (config["linux"].is_object() || config["linux"].is_null()), context());

    let stored = &mut config["linux"]["resources"];
    let before = serde_json::from_value(stored.clone()).ok();
    complete(&mut resources, stored);
    merge(stored, &asked);
    let linux = rdt_from_flags(&args, &mut config["linux"])?;
    let rdt = rdt::find(&args.id, linux.as_ref())?;
    // Written first: what the kernel has and what we remember must not part for want of disk space.
    let mut staged = entry.stage_config(&serde_json::to_vec(&config)?)?;
    cgroup.update(&resources, before.as_ref())?;
    if let (Some(rdt), Some(init)) = (rdt, entry.record.init) {
        rdt.update(init.pid)?;
    }
    staged.commit()?;
    Ok(0)
}

/// `linux.intelRdt` with what the flags change; `None` when they change nothing.
fn rdt_from_flags(args: &Args, linux: &mut Value) -> Result<Option<Linux>> {
    let fields = [("l3CacheSchema", &args.l3_cache_schema), ("memBwSchema", &args.mem_bw_schema)];
    if fields.iter().all(|(_, schema)| schema.is_none()) {
        return Ok(None);
    }
    for (field, schema) in fields {
        if let Some(schema) = schema {
            linux["intelRdt"][field] = schema.as_str().into();
        }
    }
    let only = serde_json::json!({"intelRdt": linux["intelRdt"]});
    serde_json::from_value(only).map(Some).context("linux.intelRdt")
}

/// As JSON, for the stored spec, and as what the cgroup takes.
fn asked(args: &Args) -> Result<(Map<String, Value>, LinuxResources)> {
    let Some(path) = &args.resources else {
        let asked = from_flags(args);
        let resources = bundle::parse_resources(&serde_json::to_vec(&asked)?)?;
        return Ok((asked, resources));
    };
    let context = || format!("--resources {}", path.display());
    let bytes = read(path).with_context(context)?;
    let resources = bundle::parse_resources(&bytes).with_context(context)?;
    let asked: Value = serde_json::from_slice(&bytes).with_context(context)?;
    let Value::Object(mut asked) = asked else {
        bail!("{}: not a JSON object", context());
    };
    if asked.remove("devices").is_some() {
        // Engines send the whole of a container's resources; runc does not touch devices either.
        log::debug(|| "update leaves linux.resources.devices as they are".to_owned());
    }
    Ok((asked, resources))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path == Path::new("-") {
        return bundle::read_limited(std::io::stdin().lock(), 0);
    }
    bundle::read_limited(File::open(path)?, 0)
}

fn from_flags(args: &Args) -> Map<String, Value> {
    fn value<T: Clone + Into<Value>>(flag: &Option<T>) -> Option<Value> {
        flag.clone().map(Into::into)
    }
    let mut asked = Map::new();
    for (section, key, value) in [
        ("blockIO", "weight", value(&args.blkio_weight)),
        ("cpu", "period", value(&args.cpu_period)),
        ("cpu", "quota", value(&args.cpu_quota)),
        ("cpu", "burst", value(&args.cpu_burst)),
        ("cpu", "shares", value(&args.cpu_share)),
        ("cpu", "realtimePeriod", value(&args.cpu_rt_period)),
        ("cpu", "realtimeRuntime", value(&args.cpu_rt_runtime)),
        ("cpu", "cpus", value(&args.cpuset_cpus)),
        ("cpu", "mems", value(&args.cpuset_mems)),
        ("cpu", "idle", value(&args.cpu_idle)),
        ("memory", "limit", value(&args.memory)),
        ("memory", "reservation", value(&args.memory_reservation)),
        ("memory", "swap", value(&args.memory_swap)),
        ("memory", "kernel", value(&args.kernel_memory)),
        ("memory", "kernelTCP", value(&args.kernel_memory_tcp)),
        ("pids", "limit", value(&args.pids_limit)),
    ] {
        if let Some(value) = value {
            asked.entry(section).or_insert_with(|| Map::new().into())[key] = value;
        }
    }
    asked
}

/// cgroup v2 has one file for quota and period: of the one that is not asked for, what is stored holds on.
fn complete(resources: &mut LinuxResources, stored: &Value) {
    let Some(mut cpu) = resources.cpu().clone() else { return };
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if quota == 0 && period != 0 {
        cpu.set_quota(stored["cpu"]["quota"].as_i64());
    }
    if period == 0 && quota != 0 {
        cpu.set_period(stored["cpu"]["period"].as_u64());
    }
    resources.set_cpu(Some(cpu));
}

/// Puts what is asked for into the stored resources; what "leave as it is" (null, 0, an empty string, as in runc)
/// leaves.
fn merge(stored: &mut Value, asked: &Map<String, Value>) {
    lay(stored, asked);
    let limit = &asked.get("memory").unwrap_or(&Value::Null)["limit"];
    let swap = &asked.get("memory").unwrap_or(&Value::Null)["swap"];
    // Unlimited memory makes the swap unlimited, too.
    if limit.as_i64() == Some(-1) && swap.as_i64().unwrap_or(0) == 0 && !stored["memory"]["swap"].is_null() {
        stored["memory"]["swap"] = (-1).into();
    }
}

fn lay(stored: &mut Value, asked: &Map<String, Value>) {
    if !stored.is_object() {
        *stored = Map::new().into();
    }
    for (key, value) in asked {
        let zero_counts =
            matches!(key.as_str(), "swappiness" | "idle" | "burst" | "hcaHandles" | "hcaObjects");
        match value {
            Value::Null => {}
            Value::Object(value) => lay(&mut stored[key], value),
            Value::Number(number) if number.as_f64() == Some(0.0) && !zero_counts => {}
            Value::String(text) if text.is_empty() => {}
            Value::Array(list) if list.is_empty() => {}
            // A list of limits by device or page size: the latest is remembered.
            value => stored[key] = value.clone(),
        }
    }
}

/// runc's units.RAMInBytes: a decimal number, a space if one likes, and b, k, m, g, t or p for powers of 1024,
/// also as kb or KiB. Negative only as -1.
pub(super) fn size(text: &str) -> Result<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ');
    let end = end.with_context(|| format!("invalid size: '{text}'"))? + 1;
    let (number, suffix) = text.split_at(end);
    let number = number.strip_suffix(' ').unwrap_or(number);
    let value: f64 = number.parse().with_context(|| format!("invalid size: '{text}'"))?;
    let suffix = suffix.to_ascii_lowercase();
    let letter = suffix.strip_suffix("ib").or(suffix.strip_suffix('b')).unwrap_or(&suffix);
    let power = match (letter, suffix.as_str()) {
        ("", "" | "b") => 0,
        ("k", _) => 1,
        ("m", _) => 2,
        ("g", _) => 3,
        ("t", _) => 4,
        ("p", _) => 5,
        _ => bail!("invalid suffix: '{suffix}'"),
    };
    let bytes = value * 1024f64.powi(power);
    ensure!((0.0..9.223_372_036_854_775e18).contains(&bytes), "invalid size: '{text}'");
    Ok(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_are_gos() {
        for (text, want) in [
            ("-1", -1),
            ("0", 0),
            ("32", 32),
            ("32b", 32),
            ("32kb", 32 << 10),
            ("32K", 32 << 10),
            ("32 KiB", 32 << 10),
            ("1.5m", 3 << 19),
            ("2Gb", 2 << 30),
            ("3t", 3 << 40),
            ("1p", 1 << 50),
            (".5g", 1 << 29),
        ] {
            assert_eq!(size(text).unwrap(), want, "{text}");
        }
        for (text, want) in [
            ("-5", "invalid size: '-5'"),
            ("abc", "invalid size: 'abc'"),
            ("", "invalid size: ''"),
            ("1.2.3", "invalid size: '1.2.3'"),
            ("32x", "invalid suffix: 'x'"),
            ("32bb", "invalid suffix: 'bb'"),
            ("32ib", "invalid suffix: 'ib'"),
            ("32kbb", "invalid suffix: 'kbb'"),
            ("99999999p", "invalid size: '99999999p'"),
        ] {
            assert_eq!(size(text).unwrap_err().to_string(), want);
        }
    }

    fn merged(mut stored: Value, asked: &Value) -> Value {
        merge(&mut stored, asked.as_object().unwrap());
        stored
    }

    #[test]
    fn what_is_asked_for_is_laid_over_what_is_stored() {
        let stored = json!({"memory": {"limit": 5, "swap": 9}, "pids": {"limit": 3}, "devices": [1]});
        let asked = json!({"memory": {"limit": 6, "swap": 0}, "cpu": {"idle": 0, "cpus": "", "shares": 7}, "pids": null});
        assert_eq!(
            merged(stored.clone(), &asked),
            json!({"memory": {"limit": 6, "swap": 9}, "cpu": {"idle": 0, "shares": 7}, "pids": {"limit": 3}, "devices": [1]})
        );
        assert_eq!(
            merged(stored.clone(), &json!({"memory": {"limit": -1}}))["memory"],
            json!({"limit": -1, "swap": -1})
        );
        assert_eq!(
            merged(stored, &json!({})),
            merged(
                json!({"memory": {"limit": 5, "swap": 9}, "pids": {"limit": 3}, "devices": [1]}),
                &json!({})
            )
        );
        assert_eq!(merged(Value::Null, &json!({"pids": {"limit": -1}})), json!({"pids": {"limit": -1}}));
        assert_eq!(merged(json!({}), &json!({"memory": {"limit": -1}})), json!({"memory": {"limit": -1}}));
    }

    #[test]
    fn quota_and_period_are_one_limit() {
        let complete = |asked: Value| {
            let mut resources = serde_json::from_value(asked).unwrap();
            complete(&mut resources, &json!({"cpu": {"quota": 20, "period": 50}}));
            let cpu = resources.cpu().clone().unwrap();
            (cpu.quota(), cpu.period())
        };
        assert_eq!(complete(json!({"cpu": {"quota": 10}})), (Some(10), Some(50)));
        assert_eq!(complete(json!({"cpu": {"period": 60}})), (Some(20), Some(60)));
        assert_eq!(complete(json!({"cpu": {"shares": 60}})), (None, None));
    }
}
