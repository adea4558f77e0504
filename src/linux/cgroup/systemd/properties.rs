//! `linux.resources` as properties of a unit (systemd.resource-control(5)), as runc's systemd managers give them. What
//! systemd has no property for is in the cgroup's files alone, which are written with this driver too. Pure but for
//! /proc/devices.

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{LinuxCpu, LinuxResources};

use super::super::devices::{List, Which, letters};
use super::super::v2;
use super::Property;
use super::value::Value;

/// The kernel's default, which is meant where the spec gives a quota and no period.
const PERIOD: u64 = 100_000;
/// systemd's "infinity".
const INFINITY: u64 = u64::MAX;

pub fn of(resources: &LinuxResources, unified: bool, version: u32) -> Result<Vec<Property>> {
    let mut all = Vec::new();
    if let Some(memory) = resources.memory() {
        let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
        let name = if unified { "MemoryMax" } else { "MemoryLimit" };
        number(&mut all, name, limit);
        if unified {
            number(&mut all, "MemoryLow", memory.reservation().unwrap_or(0));
            if let Some(swap) = v2::swap_max(limit, swap)? {
                all.push(("MemorySwapMax".into(), Value::U64(swap.parse().unwrap_or(INFINITY))));
            }
        }
    }
    if let Some(cpu) = resources.cpu() {
        processor(cpu, unified, version, &mut all)?;
    }
    if !unified {
        let weight = resources.block_io().as_ref().and_then(|block| block.weight()).unwrap_or(0);
        number(&mut all, "BlockIOWeight", weight.into());
    }
    number(&mut all, "TasksMax", resources.pids().as_ref().map_or(0, |pids| pids.limit()));
    if let Some(asked) = resources.unified().as_ref().filter(|_| unified) {
        let mut asked: Vec<_> = asked.iter().collect();
        asked.sort();
        for (key, value) in asked {
            file(key, value.trim(), version, &mut all).with_context(|| {
                format!("linux.resources.unified: unified resource {key:?} value conversion error")
            })?;
        }
    }
    Ok(all)
}

/// 0 means "leave as it is", and every negative number "no limit".
fn number(all: &mut Vec<Property>, name: &str, value: i64) {
    if value != 0 {
        all.push((name.into(), Value::U64(value.try_into().unwrap_or(INFINITY))));
    }
}

fn processor(cpu: &LinuxCpu, unified: bool, version: u32, all: &mut Vec<Property>) -> Result<()> {
    let shares = cpu.shares().unwrap_or(0);
    if !unified && shares != 0 {
        all.push(("CPUShares".into(), Value::U64(shares)));
    }
    // Since 252 a weight of 0 means idle.
    if unified && cpu.idle() == Some(1) && version >= 252 {
        all.push(("CPUWeight".into(), Value::U64(0)));
    } else if unified && shares != 0 {
        all.push(("CPUWeight".into(), Value::U64(v2::weight_of_shares(shares))));
    }
    quota(cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0), version, all);
    for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty() && version >= 244) {
            all.push((name.into(), Value::bytes(bits(list)?)));
        }
    }
    Ok(())
}

fn quota(quota: i64, period: u64, version: u32, all: &mut Vec<Property>) {
    if quota == 0 && period == 0 {
        return;
    }
    if period != 0 && version >= 242 {
        all.push(("CPUQuotaPeriodUSec".into(), Value::U64(period)));
    }
    let period = if period == 0 { PERIOD } else { period };
    // systemd keeps whole percents, so a fraction is rounded up, and the exact value is left to the file.
    let per_second = |quota: u64| {
        let exact = u128::from(quota) * 1_000_000 / u128::from(period);
        u64::try_from(exact.next_multiple_of(10_000)).unwrap_or(INFINITY)
    };
    let value = u64::try_from(quota).ok().filter(|quota| *quota != 0).map_or(INFINITY, per_second);
    all.push(("CPUQuotaPerSecUSec".into(), Value::U64(value)));
}

/// A file of `linux.resources.unified`; one that systemd has no property for is written all the same.
fn file(key: &str, value: &str, version: u32, all: &mut Vec<Property>) -> Result<()> {
    let name = match key {
        "cpu.max" => {
            let mut words = value.split_whitespace();
            let quota = match words.next().context("no quota")? {
                "max" => 0,
                number => number.parse().with_context(|| format!("{number:?}"))?,
            };
            let period = words.next().map_or(Ok(PERIOD), str::parse).context("the period")?;
            ensure!(words.next().is_none(), "more than two numbers");
            self::quota(quota, period, version, all);
            return Ok(());
        }
        "cpuset.cpus" | "cpuset.mems" => {
            let name = if key == "cpuset.cpus" { "AllowedCPUs" } else { "AllowedMemoryNodes" };
            if version >= 244 {
                all.push((name.into(), Value::bytes(bits(value)?)));
            }
            return Ok(());
        }
        "cpu.weight" => "CPUWeight",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        _ => return Ok(()),
    };
    let number =
        if value == "max" { INFINITY } else { value.parse().with_context(|| format!("{value:?}"))? };
    all.push((name.into(), Value::U64(number)));
    Ok(())
}

/// `0-2,5` as a bit for each, the lowest first.
fn bits(list: &str) -> Result<Vec<u8>> {
    // The kernel's most is below; without a bound a number would be so many bytes.
    const MOST: usize = 1 << 16;
    let mut bits = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            let number: usize = text.parse().with_context(|| format!("invalid range: {range}"))?;
            ensure!(number < MOST, "invalid range: {range}");
            Ok(number)
        };
        let (first, last) = (number(first)?, number(last)?);
        ensure!(first <= last, "invalid range: {range}");
        for bit in first..=last {
            bits.resize(bits.len().max(bit / 8 + 1), 0);
            bits[bit / 8] |= 1 << (bit % 8);
        }
    }
    ensure!(!bits.is_empty(), "empty value");
    Ok(bits)
}

/// The device filter as systemd would make it again by itself (daemon-reload). systemd knows only what is allowed, and
/// not every way to say it: what it cannot express is left to our own filter.
pub fn devices(list: &List) -> Result<Vec<Property>> {
    let entries = match list.allowed() {
        Some(allowed) => allowed
            .iter()
            .map(|(which, access)| entry(*which, *access))
            .collect::<Result<Option<Vec<_>>>>()?,
        None => None,
    };
    let (policy, entries) = entries.map_or(("auto", Vec::new()), |entries| ("strict", entries));
    Ok(vec![
        ("DevicePolicy".into(), Value::text(policy)),
        ("DeviceAllow".into(), Value::Array("(ss)".into(), entries)),
    ])
}

fn entry(which: Which, access: u8) -> Result<Option<Value>> {
    let kind = if which.kind == 'b' { "block" } else { "char" };
    let name = match (which.major, which.minor) {
        (None, None) => format!("{kind}-*"),
        (None, Some(_)) => return Ok(None),
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        (Some(major), None) => {
            let text = std::fs::read_to_string("/proc/devices").context("read /proc/devices")?;
            match group(&text, kind, major) {
                Some(group) => format!("{kind}-{group}"),
                None => return Ok(None),
            }
        }
    };
    Ok(Some(Value::Struct(vec![Value::Text(name), Value::Text(letters(access))])))
}

/// The name of a major number in /proc/devices.
fn group(text: &str, kind: &str, major: u32) -> Option<String> {
    let header = if kind == "block" { "Block devices:" } else { "Character devices:" };
    let lines = text.lines().skip_while(|line| *line != header).skip(1).take_while(|line| !line.is_empty());
    let mut named = lines.filter_map(|line| line.trim().split_once(' '));
    named.find(|(number, _)| number.parse() == Ok(major)).map(|(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::super::devices;
    use super::*;

    fn of_json(json: &str, unified: bool, version: u32) -> Result<Vec<String>> {
        let all = of(&serde_json::from_str(json).unwrap(), unified, version)?;
        let show = |(name, value): Property| match value {
            Value::U64(INFINITY) => format!("{name}=infinity"),
            Value::U64(number) => format!("{name}={number}"),
            Value::Array(_, bytes) => format!("{name}={bytes:?}"),
            other => format!("{name}={other:?}"),
        };
        Ok(all.into_iter().map(show).collect())
    }

    #[test]
    fn limits_of_v2() {
        let json = r#"{"memory":{"limit":100,"swap":150,"reservation":50},"pids":{"limit":-1},
            "cpu":{"shares":1024,"quota":12345,"period":100000,"cpus":"0-1,9","mems":"0"}}"#;
        let want = [
            "MemoryMax=100",
            "MemoryLow=50",
            "MemorySwapMax=50",
            "CPUWeight=100",
            "CPUQuotaPeriodUSec=100000",
            "CPUQuotaPerSecUSec=130000",
            "AllowedCPUs=[Byte(3), Byte(2)]",
            "AllowedMemoryNodes=[Byte(1)]",
            "TasksMax=infinity",
        ];
        assert_eq!(of_json(json, true, 252).unwrap(), want);
        let old = of_json(json, true, 241).unwrap();
        assert!(
            !old.iter().any(|one| one.starts_with("Allowed") || one.starts_with("CPUQuotaPeriod")),
            "{old:?}"
        );
        assert_eq!(
            of_json(r#"{"memory":{"limit":-1}}"#, true, 252).unwrap(),
            ["MemoryMax=infinity", "MemorySwapMax=infinity"]
        );
        assert_eq!(of_json(r#"{"cpu":{"idle":1,"shares":5}}"#, true, 252).unwrap(), ["CPUWeight=0"]);
        assert_eq!(of_json(r#"{"cpu":{"quota":-1}}"#, true, 252).unwrap(), ["CPUQuotaPerSecUSec=infinity"]);
        assert!(of_json("{}", true, 252).unwrap().is_empty());
    }

    #[test]
    fn limits_of_v1() {
        let json = r#"{"memory":{"limit":100,"swap":150,"reservation":50},"pids":{"limit":5},
            "cpu":{"shares":1024,"quota":50000},"blockIO":{"weight":100}}"#;
        let want = [
            "MemoryLimit=100",
            "CPUShares=1024",
            "CPUQuotaPerSecUSec=500000",
            "BlockIOWeight=100",
            "TasksMax=5",
        ];
        assert_eq!(of_json(json, false, 252).unwrap(), want);
    }

    #[test]
    fn files_that_have_a_property() {
        let json = r#"{"unified":{"memory.high":"max","cpu.max":"max 50000","pids.max":"7","cpuset.cpus":"1","io.max":"8:0 rbps=1"}}"#;
        let want = [
            "CPUQuotaPeriodUSec=50000",
            "CPUQuotaPerSecUSec=infinity",
            "AllowedCPUs=[Byte(2)]",
            "MemoryHigh=infinity",
            "TasksMax=7",
        ];
        assert_eq!(of_json(json, true, 252).unwrap(), want);
        for bad in [
            r#""cpu.max":"""#,
            r#""cpu.max":"1 2 3""#,
            r#""memory.max":"x""#,
            r#""cpuset.cpus":"3-1""#,
            r#""cpuset.mems":"99999999""#,
        ] {
            let error = of_json(&format!(r#"{{"unified":{{{bad}}}}}"#), true, 252).unwrap_err().to_string();
            assert!(error.contains("linux.resources.unified"), "{bad}: {error}");
        }
    }

    #[test]
    fn devices_that_systemd_can_express() {
        let list = |json: &str| {
            let resources = serde_json::from_str(&format!(r#"{{"devices":{json}}}"#)).unwrap();
            super::devices(&List::of(&devices::rules(Some(&resources)).unwrap()).unwrap()).unwrap()
        };
        let strict = list(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":8,"minor":1,"access":"r"}]"#,
        );
        let pair = |path: &str, access: &str| Value::Struct(vec![Value::text(path), Value::text(access)]);
        assert_eq!(strict[0].1, Value::text("strict"));
        let Value::Array(_, entries) = &strict[1].1 else { panic!("{strict:?}") };
        for (path, access) in
            [("/dev/block/8:1", "r"), ("/dev/char/1:3", "rwm"), ("char-*", "m"), ("char-pts", "rwm")]
        {
            assert!(entries.contains(&pair(path, access)), "{path}: {entries:?}");
        }
        for json in
            [r#"[{"allow":true,"access":"rwm"}]"#, r#"[{"allow":true,"type":"c","minor":5,"access":"r"}]"#]
        {
            assert_eq!(list(json)[0].1, Value::text("auto"), "{json}");
        }
        assert_eq!(
            group("Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n", "char", 136).unwrap(),
            "pts"
        );
        assert_eq!(group("Character devices:\n  1 mem\n\nBlock devices:\n  8 sd\n", "char", 8), None);
    }
}
