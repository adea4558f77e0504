//! What a container has used, in the keys of runc's `types/events.go`, which engines parse. Read from our own
//! resolved paths: libcgroups' manager looks the cgroup up anew, knows no cpuset and no pressure totals, and gives
//! nothing at all when one file of one controller is missing. Must not write.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Cgroup, tree};
use crate::linux::kernel_file;

#[derive(Debug, Default, Serialize)]
pub struct Stats {
    cpu: Cpu,
    cpuset: Cpuset,
    memory: Memory,
    pids: Pids,
    blkio: Blkio,
    hugetlb: BTreeMap<String, Hugetlb>,
    /// Resource control groups are not supported: as runc prints without them.
    intel_rdt: BTreeMap<String, u64>,
    /// runc counts the interfaces that it made itself, and prints null where, as here, there are none.
    network_interfaces: Option<Vec<u64>>,
}

#[derive(Debug, Default, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

/// Nanoseconds.
#[derive(Debug, Default, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "zero")]
    total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu_user: Vec<u64>,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "zero")]
    periods: u64,
    #[serde(skip_serializing_if = "zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "zero")]
    throttled_time: u64,
}

#[derive(Debug, Default, Serialize)]
struct Cpuset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cpus: Vec<u16>,
    cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mems: Vec<u16>,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Debug, Default, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "zero")]
    cache: u64,
    usage: MemoryUse,
    swap: MemoryUse,
    kernel: MemoryUse,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryUse,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct MemoryUse {
    limit: u64,
    #[serde(skip_serializing_if = "zero")]
    usage: u64,
    #[serde(skip_serializing_if = "zero")]
    max: u64,
    failcnt: u64,
}

/// A limit of 0 is none.
#[derive(Debug, Default, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "zero")]
    current: u64,
    #[serde(skip_serializing_if = "zero")]
    limit: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlkioEntry>,
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    io_queued_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_wait_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_merged_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sectors_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct BlkioEntry {
    #[serde(skip_serializing_if = "zero")]
    major: u64,
    #[serde(skip_serializing_if = "zero")]
    minor: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    op: String,
    #[serde(skip_serializing_if = "zero")]
    value: u64,
}

#[derive(Debug, Default, Serialize)]
struct Hugetlb {
    #[serde(skip_serializing_if = "zero")]
    usage: u64,
    #[serde(skip_serializing_if = "zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, Serialize)]
struct Pressure {
    some: PressureLine,
    full: PressureLine,
}

#[derive(Debug, Default, Serialize)]
struct PressureLine {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn zero(value: &u64) -> bool {
    *value == 0
}

impl Cgroup {
    /// What has been used so far. A controller that the machine, or the container, does not have counts nothing.
    pub fn stats(&self) -> Result<Stats> {
        if self.v1.is_empty() {
            let dir = self.v2_path().context("the container has no cgroup")?;
            return v2(dir);
        }
        let mut stats = Stats::default();
        if let Some(dir) = self.v1_path("cpuacct") {
            stats.cpu.usage = v1_cpu_usage(dir)?;
        }
        if let Some(dir) = self.v1_path("cpu") {
            stats.cpu.throttling = throttling(&keyed(dir, "cpu.stat")?, "throttled_time", 1);
        }
        if let Some(dir) = self.v1_path("cpuset") {
            stats.cpuset = v1_cpuset(dir)?;
        }
        if let Some(dir) = self.v1_path("memory") {
            stats.memory = v1_memory(dir)?;
        }
        if let Some(dir) = self.v1_path("pids") {
            stats.pids = pids(dir)?;
        }
        if let Some(dir) = self.v1_path("blkio") {
            stats.blkio = v1_blkio(dir)?;
        }
        if let Some(dir) = self.v1_path("hugetlb") {
            stats.hugetlb = v1_hugetlb(dir)?;
        }
        Ok(stats)
    }
}

fn v1_cpu_usage(dir: &Path) -> Result<CpuUsage> {
    // cpuacct.stat counts in USER_HZ, which is 100 on every architecture we build for.
    const TICK: u64 = 10_000_000;
    let stat = keyed(dir, "cpuacct.stat")?;
    let ticks = |key: &str| stat.get(key).map_or(0, |ticks| ticks * TICK);
    let words = |text: &str| text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let mut usage = CpuUsage {
        total: number(dir, "cpuacct.usage")?,
        percpu: read(dir, "cpuacct.usage_percpu")?.map_or(Vec::new(), |text| words(&text)),
        user: ticks("user"),
        kernel: ticks("system"),
        ..CpuUsage::default()
    };
    // `cpu user system`, a line each, after a line of these names.
    for line in read(dir, "cpuacct.usage_all")?.unwrap_or_default().lines().skip(1) {
        let line: Vec<u64> = words(line);
        if let [_, user, kernel] = line[..] {
            usage.percpu_user.push(user);
            usage.percpu_kernel.push(kernel);
        }
    }
    Ok(usage)
}

fn throttling(stat: &BTreeMap<String, u64>, time: &str, nanoseconds: u64) -> Throttling {
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    Throttling {
        periods: get("nr_periods"),
        throttled_periods: get("nr_throttled"),
        throttled_time: get(time) * nanoseconds,
    }
}

fn v1_cpuset(dir: &Path) -> Result<Cpuset> {
    let get = |name: &str| number(dir, &format!("cpuset.{name}"));
    let level = read(dir, "cpuset.sched_relax_domain_level")?.unwrap_or_default();
    Ok(Cpuset {
        cpus: list(&read(dir, "cpuset.cpus")?.unwrap_or_default()),
        cpu_exclusive: get("cpu_exclusive")?,
        mems: list(&read(dir, "cpuset.mems")?.unwrap_or_default()),
        mem_hardwall: get("mem_hardwall")?,
        mem_exclusive: get("mem_exclusive")?,
        memory_migrate: get("memory_migrate")?,
        memory_spread_page: get("memory_spread_page")?,
        memory_spread_slab: get("memory_spread_slab")?,
        memory_pressure: get("memory_pressure")?,
        sched_load_balance: get("sched_load_balance")?,
        sched_relax_domain_level: level.trim().parse().unwrap_or(0),
    })
}

/// `0-2,5` (cpuset(7), "List format").
fn list(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<u16>().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

fn v1_memory(dir: &Path) -> Result<Memory> {
    let of = |infix: &str| -> Result<MemoryUse> {
        let get = |name: &str| number(dir, &format!("memory.{infix}{name}"));
        Ok(MemoryUse {
            limit: get("limit_in_bytes")?,
            usage: get("usage_in_bytes")?,
            max: get("max_usage_in_bytes")?,
            failcnt: get("failcnt")?,
        })
    };
    let raw = keyed(dir, "memory.stat")?;
    Ok(Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: of("")?,
        swap: of("memsw.")?,
        kernel: of("kmem.")?,
        kernel_tcp: of("kmem.tcp.")?,
        raw,
        psi: None,
    })
}

fn pids(dir: &Path) -> Result<Pids> {
    let limit = number(dir, "pids.max")?;
    Ok(Pids { current: number(dir, "pids.current")?, limit: if limit == u64::MAX { 0 } else { limit } })
}

/// The first of these sets that the kernel's I/O scheduler fills, as runc looks for it: BFQ with its debug
/// files, BFQ, CFQ (gone since 5.0), and what the throttling layer counts.
const BLKIO: &[(&str, &str, &[&str])] = &[
    (
        "blkio.bfq.",
        "_recursive",
        &[
            "sectors",
            "io_service_time",
            "io_wait_time",
            "io_merged",
            "io_queued",
            "time",
            "io_serviced",
            "io_service_bytes",
        ],
    ),
    ("blkio.bfq.", "_recursive", &["io_serviced", "io_service_bytes"]),
    ("blkio.throttle.", "_recursive", &["io_serviced", "io_service_bytes"]),
    ("blkio.throttle.", "", &["io_serviced", "io_service_bytes"]),
];

fn v1_blkio(dir: &Path) -> Result<Blkio> {
    let mut blkio = Blkio::default();
    for (prefix, suffix, names) in BLKIO {
        for (at, name) in names.iter().enumerate() {
            let entries = blkio_entries(dir, &format!("{prefix}{name}{suffix}"))?;
            if at == 0 && entries.is_empty() {
                break;
            }
            let place = match *name {
                "sectors" => &mut blkio.sectors_recursive,
                "io_service_time" => &mut blkio.io_service_time_recursive,
                "io_wait_time" => &mut blkio.io_wait_time_recursive,
                "io_merged" => &mut blkio.io_merged_recursive,
                "io_queued" => &mut blkio.io_queued_recursive,
                "time" => &mut blkio.io_time_recursive,
                "io_serviced" => &mut blkio.io_serviced_recursive,
                _ => &mut blkio.io_service_bytes_recursive,
            };
            *place = entries;
            if at + 1 == names.len() {
                return Ok(blkio);
            }
        }
    }
    Ok(blkio)
}

/// `8:0 Read 4096` or `8:0 4096`; `Total 4096`, which is no device's, is left out as in runc.
fn blkio_entries(dir: &Path, name: &str) -> Result<Vec<BlkioEntry>> {
    let text = read(dir, name)?.unwrap_or_default();
    let entry = |line: &str| {
        let words: Vec<&str> = line.split([' ', ':']).collect();
        let (op, value) = match words[..] {
            [_, _, op, value] => (op, value),
            [_, _, value] => ("", value),
            _ => return None,
        };
        let (major, minor) = (words[0].parse().ok()?, words[1].parse().ok()?);
        Some(BlkioEntry { major, minor, op: op.to_owned(), value: value.parse().ok()? })
    };
    Ok(text.lines().filter_map(entry).collect())
}

fn v1_hugetlb(dir: &Path) -> Result<BTreeMap<String, Hugetlb>> {
    page_sizes(dir, ".usage_in_bytes", |size| {
        let get = |name: &str| number(dir, &format!("hugetlb.{size}.{name}"));
        Ok(Hugetlb {
            usage: get("usage_in_bytes")?,
            max: get("max_usage_in_bytes")?,
            failcnt: get("failcnt")?,
        })
    })
}

/// By the page sizes that have files here; reservations (`rsvd`) stand for the plain ones where they are counted,
/// since a process is killed for those (runc prefers them too).
fn page_sizes(
    dir: &Path,
    suffix: &str,
    of: impl Fn(&str) -> Result<Hugetlb>,
) -> Result<BTreeMap<String, Hugetlb>> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let infixes = names.iter().filter_map(|name| name.strip_prefix("hugetlb.")?.strip_suffix(suffix));
    let mut sizes: Vec<&str> = infixes.collect();
    // The reservation comes after the plain one of the same size, and so takes its place.
    sizes.sort_unstable();
    sizes.into_iter().map(|infix| Ok((infix.trim_end_matches(".rsvd").to_owned(), of(infix)?))).collect()
}

fn v2(dir: &Path) -> Result<Stats> {
    let cpu = keyed(dir, "cpu.stat")?;
    let nanoseconds = |key: &str| cpu.get(key).map_or(0, |microseconds| microseconds * 1000);
    Ok(Stats {
        cpu: Cpu {
            usage: CpuUsage {
                total: nanoseconds("usage_usec"),
                user: nanoseconds("user_usec"),
                kernel: nanoseconds("system_usec"),
                ..CpuUsage::default()
            },
            throttling: throttling(&cpu, "throttled_usec", 1000),
            psi: pressure(dir, "cpu.pressure")?,
        },
        memory: v2_memory(dir)?,
        pids: pids(dir)?,
        blkio: v2_io(dir)?,
        hugetlb: page_sizes(dir, ".current", |size| {
            let events = keyed(dir, &format!("hugetlb.{size}.events"))?;
            let usage = number(dir, &format!("hugetlb.{size}.current"))?;
            Ok(Hugetlb { usage, max: 0, failcnt: events.get("max").copied().unwrap_or(0) })
        })?,
        ..Stats::default()
    })
}

fn v2_memory(dir: &Path) -> Result<Memory> {
    let of = |prefix: &str| -> Result<MemoryUse> {
        let get = |name: &str| number(dir, &format!("{prefix}.{name}"));
        Ok(MemoryUse { limit: get("max")?, usage: get("current")?, max: get("peak")?, failcnt: 0 })
    };
    let raw = keyed(dir, "memory.stat")?;
    let usage = of("memory")?;
    // v1's swap is memory and swap together, which is what readers of this document expect; a peak of the sum
    // is not known.
    let swap = of("memory.swap")?;
    let together = if swap.limit == u64::MAX { u64::MAX } else { swap.limit.saturating_add(usage.limit) };
    Ok(Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap: MemoryUse { limit: together, usage: swap.usage + usage.usage, max: 0, failcnt: 0 },
        raw,
        psi: pressure(dir, "memory.pressure")?,
        ..Memory::default()
    })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`; discards have no place in the document.
fn v2_io(dir: &Path) -> Result<Blkio> {
    let mut blkio = Blkio { psi: pressure(dir, "io.pressure")?, ..Blkio::default() };
    for line in read(dir, "io.stat")?.unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        let device = words.next().and_then(|device| device.split_once(':'));
        let device = device.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let Some((major, minor)) = device else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (place, op) = match key {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                _ => continue,
            };
            let value = value.parse().with_context(|| format!("{}/io.stat: {key}", dir.display()))?;
            place.push(BlkioEntry { major, minor, op: op.to_owned(), value });
        }
    }
    Ok(blkio)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` (Documentation/accounting/psi.rst).
fn pressure(dir: &Path, name: &str) -> Result<Option<Pressure>> {
    let Some(text) = read(dir, name)? else { return Ok(None) };
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let place = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let average = || value.parse().unwrap_or(0.0);
            match key {
                "avg10" => place.avg10 = average(),
                "avg60" => place.avg60 = average(),
                "avg300" => place.avg300 = average(),
                "total" => place.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    Ok(Some(pressure))
}

/// A number; 0 when there is no such file, and all bits for `max`.
fn number(dir: &Path, name: &str) -> Result<u64> {
    match read(dir, name)?.as_deref().map(str::trim) {
        None => Ok(0),
        Some("max") => Ok(u64::MAX),
        Some(text) => text.parse().with_context(|| format!("{}/{name}: {text:?}", dir.display())),
    }
}

/// `key value` lines.
fn keyed(dir: &Path, name: &str) -> Result<BTreeMap<String, u64>> {
    let text = read(dir, name)?.unwrap_or_default();
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(pair).collect())
}

/// `None`: not counted on this machine. EOPNOTSUPP is how pressure and swap files say that they are switched off.
fn read(dir: &Path, name: &str) -> Result<Option<String>> {
    match kernel_file::read(dir.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if tree::gone(&error) || error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}/{name}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempTree;
    use super::*;

    #[test]
    fn nothing_counted_is_runcs_empty_document() {
        // Copied from runc 1.1.5, less what its machine counted.
        let cpuset = r#"{"cpu_exclusive":0,"mem_hardwall":0,"mem_exclusive":0,"memory_migrate":0,"memory_spread_page":0,"memory_spread_slab":0,"memory_pressure":0,"sched_load_balance":0,"sched_relax_domain_level":0}"#;
        let none = r#"{"limit":0,"failcnt":0}"#;
        let want = format!(
            r#"{{"cpu":{{"usage":{{"kernel":0,"user":0}},"throttling":{{}}}},"cpuset":{cpuset},"memory":{{"usage":{none},"swap":{none},"kernel":{none},"kernelTCP":{none}}},"pids":{{}},"blkio":{{}},"hugetlb":{{}},"intel_rdt":{{}},"network_interfaces":null}}"#
        );
        assert_eq!(serde_json::to_string(&Stats::default()).unwrap(), want);
        assert_eq!(serde_json::to_string(&v2(Path::new("/nonexistent")).unwrap()).unwrap(), want);
    }

    #[test]
    fn lists() {
        assert_eq!(list("0-2,5\n"), [0, 1, 2, 5]);
        assert!(list("\n").is_empty());
    }

    #[test]
    fn v1_files() {
        let tree = TempTree::new(&[
            ("cpuacct.stat", "user 2\nsystem 3\n"),
            ("cpuacct.usage", "77\n"),
            ("cpuacct.usage_percpu", "40 37 \n"),
            ("cpuacct.usage_all", "cpu user system\n0 1 2\n1 3 4\n"),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 5\n8:0 Total 5\nTotal 5\n"),
            ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 4096\n"),
            ("hugetlb.2MB.usage_in_bytes", "1\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "2\n"),
            ("hugetlb.2MB.rsvd.failcnt", "3\n"),
            ("memory.usage_in_bytes", "9\n"),
            ("memory.stat", "cache 4\nrss 5\n"),
        ]);
        let usage = v1_cpu_usage(tree.path()).unwrap();
        assert_eq!((usage.total, usage.user, usage.kernel), (77, 20_000_000, 30_000_000));
        assert_eq!(
            (usage.percpu, usage.percpu_user, usage.percpu_kernel),
            (vec![40, 37], vec![1, 3], vec![2, 4])
        );
        let blkio = v1_blkio(tree.path()).unwrap();
        let total = BlkioEntry { major: 8, op: "Total".into(), value: 5, ..BlkioEntry::default() };
        assert_eq!(blkio.io_serviced_recursive[1], total);
        assert_eq!((blkio.io_serviced_recursive.len(), blkio.io_service_bytes_recursive[0].value), (2, 4096));
        let hugetlb = v1_hugetlb(tree.path()).unwrap();
        assert_eq!(serde_json::to_string(&hugetlb).unwrap(), r#"{"2MB":{"usage":2,"failcnt":3}}"#);
        let memory = v1_memory(tree.path()).unwrap();
        assert_eq!((memory.usage.usage, memory.cache, memory.raw["rss"], memory.swap.usage), (9, 4, 5, 0));
    }

    #[test]
    fn v2_files() {
        let tree = TempTree::new(&[
            (
                "cpu.stat",
                "usage_usec 5\nuser_usec 2\nsystem_usec 3\nnr_periods 1\nnr_throttled 1\nthrottled_usec 4\n",
            ),
            ("memory.current", "100\n"),
            ("memory.max", "200\n"),
            ("memory.peak", "150\n"),
            ("memory.swap.current", "10\n"),
            ("memory.swap.max", "50\n"),
            ("memory.stat", "file 7\n"),
            (
                "memory.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
            ),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 \n"),
            ("hugetlb.2MB.current", "8\n"),
            ("hugetlb.2MB.events", "max 2\n"),
        ]);
        let stats = serde_json::to_value(v2(tree.path()).unwrap()).unwrap();
        for (pointer, want) in [
            ("/cpu/usage/total", 5000),
            ("/cpu/throttling/throttledTime", 4000),
            ("/memory/usage/limit", 200),
            ("/memory/usage/max", 150),
            ("/memory/swap/limit", 250),
            ("/memory/swap/usage", 110),
            ("/memory/cache", 7),
            ("/memory/psi/full/total", 3),
            ("/pids/current", 3),
            ("/blkio/ioServiceBytesRecursive/1/value", 2),
            ("/hugetlb/2MB/failcnt", 2),
        ] {
            assert_eq!(
                stats.pointer(pointer).and_then(serde_json::Value::as_u64),
                Some(want),
                "{pointer}: {stats}"
            );
        }
        assert!(stats["pids"].get("limit").is_none() && stats["cpu"].get("psi").is_none(), "{stats}");
    }
}
