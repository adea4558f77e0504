//! What `linux.resources` means in cgroup v2 files, and handing controllers down the path. `writes` is pure;
//! must not decide where the directories are.

use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::limits::{Write, read_line, write_file};
use super::{checked_page_size, rdma_writes, throttles};

/// The limits in the order to write them. Zero and absent mean "leave as it is", as in runc; what v2 has no
/// equivalent for is refused by name.
pub fn writes(resources: &LinuxResources) -> Result<Vec<Write>> {
    let mut writes = Vec::new();
    match resources.pids().as_ref().map_or(0, |pids| pids.limit()) {
        0 => {}
        limit if limit > 0 => writes.push(Write::new("pids.limit", "pids", "pids.max", limit)),
        _ => writes.push(Write::new("pids.limit", "pids", "pids.max", "max")),
    }
    if let Some(memory) = resources.memory() {
        memory_writes(memory, &mut writes)?;
    }
    if let Some(block) = resources.block_io() {
        block_writes(block, &mut writes)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_writes(cpu, &mut writes)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = checked_page_size(limit.page_size())?;
        let field = format!("hugepageLimits[{size}]");
        writes.push(Write::new(&field, "hugetlb", format!("hugetlb.{size}.max"), limit.limit()));
        let rsvd = format!("hugetlb.{size}.rsvd.max");
        writes.push(Write::new(&field, "hugetlb", rsvd, limit.limit()).optional());
    }
    if let Some(network) = resources.network() {
        let priorities = network.priorities().as_ref().is_some_and(|p| !p.is_empty());
        if network.class_id().is_some_and(|class| class != 0) || priorities {
            bail!("linux.resources.network: classID and priorities do not exist on cgroup v2");
        }
    }
    rdma_writes(resources, &mut writes);
    unified_writes(resources, &mut writes)?;
    Ok(writes)
}

#[allow(deprecated)]
fn memory_writes(memory: &LinuxMemory, writes: &mut Vec<Write>) -> Result<()> {
    let limited = |value: Option<i64>| value.is_some_and(|value| value > 0);
    for (field, asked) in [
        ("kernel", limited(memory.kernel())),
        ("kernelTCP", limited(memory.kernel_tcp())),
        ("disableOOMKiller", memory.disable_oom_killer() == Some(true)),
        ("useHierarchy", memory.use_hierarchy() == Some(false)),
        ("swappiness", memory.swappiness().is_some_and(|value| value != u64::MAX)),
    ] {
        if asked {
            bail!("linux.resources.memory.{field}: not supported on cgroup v2");
        }
    }
    let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    if let Some(value) = swap_max(limit, swap)? {
        let write = Write::new("memory.swap", "memory", "memory.swap.max", &value);
        // Without swap accounting there is no file, and then "max" and "0" are what the machine does already.
        writes.push(if value == "max" || value == "0" { write.optional() } else { write });
    }
    for (field, file, value) in [
        ("memory.limit", "memory.max", limit),
        ("memory.reservation", "memory.low", memory.reservation().unwrap_or(0)),
    ] {
        if value != 0 {
            writes.push(Write::new(field, "memory", file, number_or_max(value)));
        }
    }
    Ok(())
}

/// The spec's swap is memory plus swap; memory.swap.max is swap alone. `None`: leave it.
pub fn swap_max(limit: i64, swap: i64) -> Result<Option<String>> {
    match (limit, swap) {
        (-1, 0) => Ok(Some("max".into())),
        (_, 0) => Ok(None),
        (_, -1) => Ok(Some("max".into())),
        (-1, _) => bail!("linux.resources.memory.swap: unable to set swap limit with unlimited memory"),
        (0, _) => bail!("linux.resources.memory.swap: unable to set swap limit without memory limit"),
        (limit, _) if limit < 0 => bail!("linux.resources.memory.limit: invalid memory value: {limit}"),
        (limit, swap) if swap < limit => {
            bail!("linux.resources.memory.swap: memory+swap limit should be >= memory limit")
        }
        (limit, swap) => Ok(Some((swap - limit).to_string())),
    }
}

fn number_or_max(value: i64) -> String {
    if value == -1 { "max".to_owned() } else { value.to_string() }
}

fn cpu_writes(cpu: &LinuxCpu, writes: &mut Vec<Write>) -> Result<()> {
    let realtime = cpu.realtime_period().unwrap_or(0) != 0 || cpu.realtime_runtime().unwrap_or(0) != 0;
    if realtime {
        bail!("linux.resources.cpu: realtimePeriod and realtimeRuntime are not supported on cgroup v2");
    }
    if let Some(idle) = cpu.idle() {
        let write = Write::new("cpu.idle", "cpu", "cpu.idle", idle);
        writes.push(if idle == 0 { write.optional() } else { write });
    }
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        writes.push(Write::new("cpu.shares", "cpu", "cpu.weight", weight_of_shares(shares)));
    }
    if let Some(burst) = cpu.burst() {
        let write = Write::new("cpu.burst", "cpu", "cpu.max.burst", burst).paired();
        writes.push(if burst == 0 { write.optional() } else { write });
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if quota != 0 || period != 0 {
        let quota_text = if quota > 0 { quota.to_string() } else { "max".to_owned() };
        // 100000: the kernel's own default, since the file takes both or the period stays what it was.
        let period = if period == 0 { 100_000 } else { period };
        let field = if quota == 0 { "cpu.period" } else { "cpu.quota" };
        writes.push(Write::new(field, "cpu", "cpu.max", format!("{quota_text} {period}")));
    }
    if let Some(cpus) = cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()) {
        writes.push(Write::new("cpu.cpus", "cpuset", "cpuset.cpus", cpus));
    }
    if let Some(mems) = cpu.mems().as_ref().filter(|mems| !mems.is_empty()) {
        writes.push(Write::new("cpu.mems", "cpuset", "cpuset.mems", mems));
    }
    Ok(())
}

/// runc >= 1.3.2 and crun >= 1.23: a quadratic fit through (2, 1), (1024, 100) and (262144, 10000), since the
/// older linear one gave the default share a weight of 39.
pub fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

fn block_writes(block: &LinuxBlockIo, writes: &mut Vec<Write>) -> Result<()> {
    let leaf = block.leaf_weight().unwrap_or(0) != 0
        || block.weight_device().iter().flatten().any(|device| device.leaf_weight().unwrap_or(0) != 0);
    if leaf {
        bail!("linux.resources.blockIO: leafWeight does not exist on cgroup v2");
    }
    // BFQ's scale is the spec's (10..1000); io.weight's is 1..10000.
    let new =
        |field: &str, file: &str, value: String| Write::new(format!("blockIO.{field}"), "io", file, value);
    let converted = |weight: u16| 1 + u64::from(weight).saturating_sub(10) * 9999 / 990;
    if let Some(weight) = block.weight().filter(|&weight| weight != 0) {
        let write = new("weight", "io.bfq.weight", weight.to_string());
        writes.push(write.instead("io.weight", converted(weight)));
    }
    for device in block.weight_device().iter().flatten() {
        if let Some(weight) = device.weight().filter(|&weight| weight != 0) {
            let line = |weight: u64| format!("{}:{} {weight}", device.major(), device.minor());
            let write = new("weightDevice", "io.bfq.weight", line(weight.into()));
            writes.push(write.instead("io.weight", line(converted(weight))));
        }
    }
    for (field, devices) in throttles(block) {
        let key = match field {
            "throttleReadBpsDevice" => "rbps",
            "throttleWriteBpsDevice" => "wbps",
            "throttleReadIOPSDevice" => "riops",
            _ => "wiops",
        };
        for device in devices {
            // v1 takes 0 as "no limit"; v2 wants the word.
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            let line = format!("{}:{} {key}={rate}", device.major(), device.minor());
            writes.push(new(field, "io.max", line));
        }
    }
    Ok(())
}

fn unified_writes(resources: &LinuxResources, writes: &mut Vec<Write>) -> Result<()> {
    let Some(unified) = resources.unified() else { return Ok(()) };
    let mut unified: Vec<_> = unified.iter().collect();
    unified.sort();
    for (key, value) in unified {
        if key.contains('/') {
            bail!("linux.resources.unified: unified resource {key:?} must be a file name (no slashes)");
        }
        if !matches!(key.split_once('.'), Some((controller, file)) if !controller.is_empty() && !file.is_empty())
        {
            bail!(
                "linux.resources.unified: unified resource {key:?} must be in the form CONTROLLER.PARAMETER"
            );
        }
        // The kernel takes one line per write(2) (io.max with several devices).
        let controller = known_controller(key);
        for line in value.lines() {
            writes.push(Write::new(format!("unified[{key:?}]"), controller, key.as_str(), line));
        }
    }
    Ok(())
}

/// "" stands for the core files (`cgroup.*`) and for what we do not know: the file itself decides then.
fn known_controller(key: &str) -> &'static str {
    let known = ["cpu", "cpuset", "memory", "io", "pids", "hugetlb", "rdma", "misc", "dmem"];
    known.into_iter().find(|name| key.split_once('.').is_some_and(|(key, _)| key == *name)).unwrap_or("")
}

/// `memory.checkBeforeUpdate`: v1's kernel refuses a limit below usage by itself; v2's would start the OOM
/// killer instead.
pub fn check_usage(dir: &Path, memory: &LinuxMemory) -> Result<()> {
    let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    if memory.check_before_update() != Some(true) || (limit <= 0 && swap <= 0) {
        return Ok(());
    }
    let file = dir.join("memory.current");
    if !file.exists() {
        return Ok(());
    }
    let usage: i64 = read_line(&file)?.parse().with_context(|| format!("read {}", file.display()))?;
    if swap > 0 && swap <= usage {
        bail!("linux.resources.memory.swap: rejecting memory+swap limit {swap} <= usage {usage}");
    }
    if limit > 0 && limit <= usage {
        bail!("linux.resources.memory.limit: rejecting memory limit {limit} <= usage {usage}");
    }
    Ok(())
}

/// Hands every controller that `dir` has down to its children: all at once, else one by one, best effort as
/// runc; what is still missing in the container's cgroup is reported by the field that needs it.
pub fn enable_controllers(dir: &Path) -> Result<()> {
    let has = read_line(&dir.join("cgroup.controllers"))?;
    let file = dir.join("cgroup.subtree_control");
    let enabled = read_line(&file)?;
    let missing: Vec<_> = has
        .split_whitespace()
        .filter(|name| !enabled.split_whitespace().any(|enabled| enabled == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() || write_file(&file, &missing.join(" ")).is_ok() {
        return Ok(());
    }
    for name in missing {
        let _ = write_file(&file, &name);
    }
    Ok(())
}

/// A cgroup made below one that has processes is "domain invalid": usable for threads only, which is enough
/// unless a limit needs a controller that is not thread-aware. runc's rule and words.
pub fn settle_type(dir: &Path, writes: &[Write]) -> Result<()> {
    let Ok(kind) = read_line(&dir.join("cgroup.type")) else { return Ok(()) };
    let domain =
        || writes.iter().any(|w| matches!(w.controller, "memory" | "io" | "hugetlb" | "rdma" | "misc"));
    match kind.as_str() {
        "domain invalid" if domain() => bail!(
            "cannot enter cgroupv2 {:?} with domain controllers -- it is in an invalid state",
            dir.display().to_string()
        ),
        "domain invalid" => {
            let _ = write_file(&dir.join("cgroup.type"), "threaded");
            Ok(())
        }
        "threaded" | "domain threaded" if domain() => bail!(
            "cannot enter cgroupv2 {:?} with domain controllers -- it is in {kind} mode",
            dir.display().to_string()
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, TempTree};
    use super::*;

    fn list(resources: &str) -> Vec<String> {
        testing::list(writes, resources)
    }

    fn refused(resources: &str) -> String {
        testing::refused(writes, resources)
    }

    #[test]
    fn memory_and_swap() {
        let all = r#"{"memory":{"limit":100,"swap":150,"reservation":50}}"#;
        assert_eq!(
            list(all),
            [
                "memory.swap memory.swap.max=50",
                "memory.limit memory.max=100",
                "memory.reservation memory.low=50"
            ]
        );
        assert_eq!(list(r#"{"memory":{"limit":100,"swap":100}}"#)[0], "memory.swap memory.swap.max=0");
        assert_eq!(list(r#"{"memory":{"limit":100,"swap":-1}}"#)[0], "memory.swap memory.swap.max=max");
        assert_eq!(list(r#"{"memory":{"limit":100}}"#), ["memory.limit memory.max=100"]);
        assert_eq!(
            list(r#"{"memory":{"limit":-1}}"#),
            ["memory.swap memory.swap.max=max", "memory.limit memory.max=max"]
        );
        assert!(refused(r#"{"memory":{"limit":100,"swap":99}}"#).contains("memory+swap limit should be >="));
        assert!(refused(r#"{"memory":{"swap":99}}"#).contains("without memory limit"));
        assert!(refused(r#"{"memory":{"swappiness":5}}"#).contains("linux.resources.memory.swappiness"));
        assert!(refused(r#"{"memory":{"disableOOMKiller":true}}"#).contains("disableOOMKiller"));
    }

    #[test]
    fn cpu_and_its_conversions() {
        assert_eq!([2, 3, 1024, 262_144].map(weight_of_shares), [1, 2, 100, 10_000]);
        let all = r#"{"cpu":{"shares":1024,"quota":50000,"period":200000,"burst":5,"idle":0,"cpus":"0","mems":"0"}}"#;
        assert_eq!(
            list(all),
            [
                "cpu.idle cpu.idle=0",
                "cpu.shares cpu.weight=100",
                "cpu.burst cpu.max.burst=5",
                "cpu.quota cpu.max=50000 200000",
                "cpu.cpus cpuset.cpus=0",
                "cpu.mems cpuset.mems=0"
            ]
        );
        assert_eq!(list(r#"{"cpu":{"quota":-1}}"#), ["cpu.quota cpu.max=max 100000"]);
        assert_eq!(list(r#"{"cpu":{"period":1000}}"#), ["cpu.period cpu.max=max 1000"]);
        assert!(refused(r#"{"cpu":{"realtimeRuntime":1}}"#).contains("realtimeRuntime"));
    }

    #[test]
    fn io_hugetlb_and_unified() {
        let json = r#"{"blockIO":{"weight":1000,"weightDevice":[{"major":8,"minor":0,"weight":10}],
              "throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":7}]},
            "hugepageLimits":[{"pageSize":"1GB","limit":0}],
            "unified":{"memory.high":"10","io.max":"8:0 rbps=1\n8:16 rbps=2"}}"#;
        let writes = writes(&serde_json::from_str(json).unwrap()).unwrap();
        let fall_back = |index: usize| match &writes[index].missing {
            super::super::limits::Missing::Instead { file, value } => format!("{file}={value}"),
            _ => String::new(),
        };
        assert_eq!((fall_back(0), fall_back(1)), ("io.weight=10000".into(), "io.weight=8:0 1".into()));
        let pairs: Vec<_> = writes.iter().map(|w| format!("{}={}", w.file, w.value)).collect();
        assert_eq!(
            pairs,
            [
                "io.bfq.weight=1000",
                "io.bfq.weight=8:0 10",
                "io.max=8:0 riops=7",
                "hugetlb.1GB.max=0",
                "hugetlb.1GB.rsvd.max=0",
                "io.max=8:0 rbps=1",
                "io.max=8:16 rbps=2",
                "memory.high=10"
            ]
        );
        for key in ["../x", "/etc/x", "a/b.c", "..", "memory", ".x"] {
            let error = refused(&format!(r#"{{"unified":{{"{key}":"1"}}}}"#));
            assert!(error.contains("linux.resources.unified"), "{key}: {error}");
        }
        assert!(refused(r#"{"network":{"classID":1}}"#).contains("linux.resources.network"));
        assert!(refused(r#"{"blockIO":{"leafWeight":10}}"#).contains("leafWeight"));
    }

    #[test]
    fn only_missing_controllers_are_handed_down() {
        let tree = TempTree::new(&[
            ("cgroup.controllers", "cpu memory pids\n"),
            ("cgroup.subtree_control", "memory\n"),
        ]);
        enable_controllers(tree.path()).unwrap();
        assert!(tree.read("cgroup.subtree_control").starts_with("+cpu +pids"));
    }

    #[test]
    fn a_limit_below_usage_is_refused_when_asked_to_check() {
        let tree = TempTree::new(&[("memory.current", "1000\n")]);
        let memory = |json: &str| serde_json::from_str::<LinuxMemory>(json).unwrap();
        let check = |json| check_usage(tree.path(), &memory(json)).map_err(|e| e.to_string());
        assert_eq!(check(r#"{"limit":10}"#), Ok(()));
        assert!(check(r#"{"limit":10,"checkBeforeUpdate":true}"#).unwrap_err().contains("10 <= usage 1000"));
        assert_eq!(check(r#"{"limit":1001,"checkBeforeUpdate":true}"#), Ok(()));
    }

    #[test]
    fn an_invalid_domain_takes_thread_aware_limits_only() {
        let tree = TempTree::new(&[("cgroup.type", "domain invalid\n")]);
        let writes = |json: &str| writes(&serde_json::from_str(json).unwrap()).unwrap();
        let error = settle_type(tree.path(), &writes(r#"{"memory":{"limit":1}}"#)).unwrap_err().to_string();
        assert!(error.contains("invalid state"), "{error}");
        settle_type(tree.path(), &writes(r#"{"pids":{"limit":1}}"#)).unwrap();
        assert!(tree.read("cgroup.type").starts_with("threaded"));
    }
}
