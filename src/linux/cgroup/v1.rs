//! What `linux.resources` means in cgroup v1 files, and what v1's cpuset wants before a process may join.
//! `writes` is pure; must not decide where the directories are.

use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::limits::{Write, read_line, write_file};
use super::{checked_page_size, rdma_writes, throttles};

/// The limits in the order to write them. Zero and absent mean "leave as it is", as in runc.
pub fn writes(resources: &LinuxResources) -> Result<Vec<Write>> {
    if resources.unified().as_ref().is_some_and(|unified| !unified.is_empty()) {
        bail!("linux.resources.unified: invalid configuration: cannot use unified on cgroup v1");
    }
    let mut writes = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpu_writes(cpu, &mut writes)?;
    }
    if let Some(memory) = resources.memory() {
        memory_writes(memory, &mut writes)?;
    }
    match resources.pids().as_ref().map_or(0, |pids| pids.limit()) {
        0 => {}
        limit if limit > 0 => writes.push(Write::new("pids.limit", "pids", "pids.max", limit)),
        _ => writes.push(Write::new("pids.limit", "pids", "pids.max", "max")),
    }
    if let Some(block) = resources.block_io() {
        block_writes(block, &mut writes);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = checked_page_size(limit.page_size())?;
        let field = format!("hugepageLimits[{size}]");
        let file = |infix: &str| format!("hugetlb.{size}{infix}.limit_in_bytes");
        writes.push(Write::new(&field, "hugetlb", file(""), limit.limit()));
        // Reservations are counted since 5.7 only, and runc sets both to the same.
        writes.push(Write::new(&field, "hugetlb", file(".rsvd"), limit.limit()).optional());
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id().filter(|&class| class != 0) {
            writes.push(Write::new("network.classID", "net_cls", "net_cls.classid", class));
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            writes.push(Write::new("network.priorities", "net_prio", "net_prio.ifpriomap", value));
        }
    }
    rdma_writes(resources, &mut writes);
    Ok(writes)
}

fn cpu_writes(cpu: &LinuxCpu, writes: &mut Vec<Write>) -> Result<()> {
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        // The kernel clamps in silence (sched.h, MIN_SHARES and MAX_SHARES); runc reads back and refuses.
        match shares {
            ..2 => bail!("linux.resources.cpu.shares: the minimum allowed cpu-shares is 2"),
            2..=262_144 => writes.push(Write::new("cpu.shares", "cpu", "cpu.shares", shares)),
            _ => bail!("linux.resources.cpu.shares: the maximum allowed cpu-shares is 262144"),
        }
    }
    if let Some(period) = cpu.period().filter(|&period| period != 0) {
        writes.push(Write::new("cpu.period", "cpu", "cpu.cfs_period_us", period).paired());
    }
    if let Some(burst) = cpu.burst() {
        let write = Write::new("cpu.burst", "cpu", "cpu.cfs_burst_us", burst).paired();
        // A kernel before 5.14 has no burst, which is what 0 asks for.
        writes.push(if burst == 0 { write.optional() } else { write });
    }
    if let Some(quota) = cpu.quota().filter(|&quota| quota != 0) {
        writes.push(Write::new("cpu.quota", "cpu", "cpu.cfs_quota_us", quota).paired());
    }
    if let Some(idle) = cpu.idle() {
        let write = Write::new("cpu.idle", "cpu", "cpu.idle", idle);
        writes.push(if idle == 0 { write.optional() } else { write });
    }
    if let Some(period) = cpu.realtime_period().filter(|&period| period != 0) {
        writes.push(Write::new("cpu.realtimePeriod", "cpu", "cpu.rt_period_us", period).paired());
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|&runtime| runtime != 0) {
        writes.push(Write::new("cpu.realtimeRuntime", "cpu", "cpu.rt_runtime_us", runtime).paired());
    }
    if let Some(cpus) = cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()) {
        writes.push(Write::new("cpu.cpus", "cpuset", "cpuset.cpus", cpus));
    }
    if let Some(mems) = cpu.mems().as_ref().filter(|mems| !mems.is_empty()) {
        writes.push(Write::new("cpu.mems", "cpuset", "cpuset.mems", mems));
    }
    Ok(())
}

// `kernel` is deprecated in the spec because kernels stopped counting it apart; it is still a file to write.
#[allow(deprecated)]
fn memory_writes(memory: &LinuxMemory, writes: &mut Vec<Write>) -> Result<()> {
    let set = |value: Option<i64>| value.filter(|&value| value != 0);
    let new =
        |field: &str, file: &str, value: i64| Write::new(format!("memory.{field}"), "memory", file, value);
    // The kernel refuses use_hierarchy once there are children, so it comes first. It is always on since 5.11.
    if let Some(hierarchy) = memory.use_hierarchy() {
        writes.push(new("useHierarchy", "memory.use_hierarchy", i64::from(hierarchy)));
    }
    if let Some(limit) = set(memory.limit()) {
        // limit <= limit+swap must hold after each write. Growing both, the kernel refuses limit until swap is
        // written; `paired` then writes it again.
        writes.push(new("limit", "memory.limit_in_bytes", limit).paired());
    }
    match (set(memory.limit()), set(memory.swap())) {
        // Unlimited memory and nothing said of swap: unlimited too, if the kernel counts swap at all.
        (Some(-1), None) => writes.push(new("limit", "memory.memsw.limit_in_bytes", -1).optional()),
        (_, Some(swap)) => writes.push(new("swap", "memory.memsw.limit_in_bytes", swap).paired()),
        _ => {}
    }
    if let Some(reservation) = set(memory.reservation()) {
        writes.push(new("reservation", "memory.soft_limit_in_bytes", reservation));
    }
    if let Some(kernel) = set(memory.kernel()) {
        writes.push(new("kernel", "memory.kmem.limit_in_bytes", kernel));
    }
    if let Some(tcp) = set(memory.kernel_tcp()) {
        writes.push(new("kernelTCP", "memory.kmem.tcp.limit_in_bytes", tcp));
    }
    if memory.disable_oom_killer() == Some(true) {
        writes.push(new("disableOOMKiller", "memory.oom_control", 1));
    }
    match memory.swappiness() {
        // Docker writes its -1, "not set", into this unsigned field.
        None | Some(u64::MAX) => {}
        Some(value @ 0..=100) => {
            writes.push(Write::new("memory.swappiness", "memory", "memory.swappiness", value));
        }
        Some(value) => bail!(
            "linux.resources.memory.swappiness: invalid memory swappiness value: {value} (valid range is 0-100)"
        ),
    }
    Ok(())
}

fn block_writes(block: &LinuxBlockIo, writes: &mut Vec<Write>) {
    let new =
        |field: &str, file: &str, value: String| Write::new(format!("blockIO.{field}"), "blkio", file, value);
    // CFQ's files went away with CFQ in 5.0; BFQ's mean the same.
    if let Some(weight) = block.weight().filter(|&weight| weight != 0) {
        writes.push(new("weight", "blkio.weight", weight.to_string()).instead("blkio.bfq.weight", weight));
    }
    if let Some(weight) = block.leaf_weight().filter(|&weight| weight != 0) {
        writes.push(new("leafWeight", "blkio.leaf_weight", weight.to_string()));
    }
    for device in block.weight_device().iter().flatten() {
        let line = |weight: u16| format!("{}:{} {weight}", device.major(), device.minor());
        if let Some(weight) = device.weight().filter(|&weight| weight != 0) {
            let write = new("weightDevice", "blkio.weight_device", line(weight));
            writes.push(write.instead("blkio.bfq.weight_device", line(weight)));
        }
        if let Some(weight) = device.leaf_weight().filter(|&weight| weight != 0) {
            writes.push(new("weightDevice", "blkio.leaf_weight_device", line(weight)));
        }
    }
    for (field, devices) in throttles(block) {
        let file = match field {
            "throttleReadBpsDevice" => "blkio.throttle.read_bps_device",
            "throttleWriteBpsDevice" => "blkio.throttle.write_bps_device",
            "throttleReadIOPSDevice" => "blkio.throttle.read_iops_device",
            _ => "blkio.throttle.write_iops_device",
        };
        for device in devices {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            writes.push(new(field, file, line));
        }
    }
}

/// cpusets(7): a new cpuset is empty, and no process may join an empty one. Filled from the parent, from the top
/// down, wherever a level is still empty; never overwritten, since a sibling may own CPUs exclusively.
pub fn fill_cpuset(mount: &Path, dir: &Path) -> Result<Cpuset> {
    let own = read_cpuset(dir)?;
    if dir == mount || own.iter().all(|value| !value.is_empty()) {
        return Ok(own);
    }
    let parent = dir.parent().with_context(|| format!("{} has no parent", dir.display()))?;
    inherit(dir, own, &fill_cpuset(mount, parent)?)
}

/// The same for one level, whose parent's values are known. `made` just now, it holds what was written, or what the
/// parent has, or nothing.
pub fn fill_cpuset_from(dir: &Path, parent: &Cpuset, made: bool, writes: &[Write]) -> Result<()> {
    let written =
        |file| writes.iter().filter(|write| write.file == file).map(|write| write.value.clone()).collect();
    let own = if made { CPUSET.map(written) } else { read_cpuset(dir)? };
    inherit(dir, own, parent).map(drop)
}

/// What the two files hold.
pub type Cpuset = [String; 2];

const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

fn read_cpuset(dir: &Path) -> Result<Cpuset> {
    let [cpus, mems] = CPUSET.map(|file| read_line(&dir.join(file)));
    Ok([cpus?, mems?])
}

fn inherit(dir: &Path, mut own: Cpuset, parent: &Cpuset) -> Result<Cpuset> {
    for ((file, own), parent) in
        CPUSET.iter().zip(&mut own).zip(parent).filter(|((_, own), _)| own.is_empty())
    {
        let path = dir.join(file);
        write_file(&path, parent).with_context(|| format!("write {parent:?} to {}", path.display()))?;
        own.clone_from(parent);
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::super::limits::apply;
    use super::super::testing::{self, TempTree};
    use super::*;

    fn list(resources: &str) -> Vec<String> {
        testing::list(writes, resources)
    }

    fn refused(resources: &str) -> String {
        testing::refused(writes, resources)
    }

    #[test]
    fn cpu_fields_name_their_files() {
        let cpu = r#"{"cpu":{"shares":512,"quota":5000,"period":10000,"burst":100,"idle":1,"cpus":"0-1","mems":"0",
            "realtimeRuntime":9,"realtimePeriod":10}}"#;
        assert_eq!(
            list(cpu),
            [
                "cpu.shares cpu.shares=512",
                "cpu.period cpu.cfs_period_us=10000",
                "cpu.burst cpu.cfs_burst_us=100",
                "cpu.quota cpu.cfs_quota_us=5000",
                "cpu.idle cpu.idle=1",
                "cpu.realtimePeriod cpu.rt_period_us=10",
                "cpu.realtimeRuntime cpu.rt_runtime_us=9",
                "cpu.cpus cpuset.cpus=0-1",
                "cpu.mems cpuset.mems=0"
            ]
        );
        assert!(list(r#"{"cpu":{"shares":0,"quota":0,"period":0,"cpus":""}}"#).is_empty());
        assert!(refused(r#"{"cpu":{"shares":1}}"#).contains("minimum allowed cpu-shares is 2"));
        assert!(refused(r#"{"cpu":{"shares":262145}}"#).contains("maximum allowed cpu-shares is 262144"));
    }

    #[test]
    fn memory_fields_name_their_files() {
        let memory = r#"{"memory":{"limit":10,"swap":20,"reservation":5,"kernel":7,"kernelTCP":8,"swappiness":0,
            "disableOOMKiller":true,"useHierarchy":true}}"#;
        assert_eq!(
            list(memory),
            [
                "memory.useHierarchy memory.use_hierarchy=1",
                "memory.limit memory.limit_in_bytes=10",
                "memory.swap memory.memsw.limit_in_bytes=20",
                "memory.reservation memory.soft_limit_in_bytes=5",
                "memory.kernel memory.kmem.limit_in_bytes=7",
                "memory.kernelTCP memory.kmem.tcp.limit_in_bytes=8",
                "memory.disableOOMKiller memory.oom_control=1",
                "memory.swappiness memory.swappiness=0"
            ]
        );
        assert_eq!(list(r#"{"memory":{"limit":-1}}"#).len(), 2);
        assert!(list(r#"{"memory":{"swappiness":18446744073709551615}}"#).is_empty());
        assert!(refused(r#"{"memory":{"swappiness":101}}"#).contains("valid range is 0-100"));
    }

    #[test]
    fn the_other_controllers() {
        let json = r#"{"pids":{"limit":-1},
            "blockIO":{"weight":100,"leafWeight":20,"weightDevice":[{"major":8,"minor":0,"weight":500,"leafWeight":300}],
              "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}],"throttleWriteIOPSDevice":[{"major":8,"minor":1,"rate":2}]},
            "hugepageLimits":[{"pageSize":"2MB","limit":4}],
            "network":{"classID":3,"priorities":[{"name":"eth0","priority":5}]},
            "rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":100}}}"#;
        assert_eq!(
            list(json),
            [
                "pids.limit pids.max=max",
                "blockIO.weight blkio.weight=100",
                "blockIO.leafWeight blkio.leaf_weight=20",
                "blockIO.weightDevice blkio.weight_device=8:0 500",
                "blockIO.weightDevice blkio.leaf_weight_device=8:0 300",
                "blockIO.throttleReadBpsDevice blkio.throttle.read_bps_device=8:0 1",
                "blockIO.throttleWriteIOPSDevice blkio.throttle.write_iops_device=8:1 2",
                "hugepageLimits[2MB] hugetlb.2MB.limit_in_bytes=4",
                "hugepageLimits[2MB] hugetlb.2MB.rsvd.limit_in_bytes=4",
                "network.classID net_cls.classid=3",
                "network.priorities net_prio.ifpriomap=eth0 5",
                "rdma[mlx5_1] rdma.max=mlx5_1 hca_handle=3 hca_object=100"
            ]
        );
        assert!(refused(r#"{"hugepageLimits":[{"pageSize":"../2MB","limit":4}]}"#).contains("pageSize"));
        assert!(refused(r#"{"unified":{"memory.max":"1"}}"#).contains("cannot use unified on cgroup v1"));
    }

    #[test]
    fn cpuset_is_filled_down_the_path_and_explicit_values_stay() {
        let tree = TempTree::new(&[
            ("cpuset.cpus", "0-3\n"),
            ("cpuset.mems", "0\n"),
            ("a/cpuset.cpus", "\n"),
            ("a/cpuset.mems", "\n"),
            ("a/b/cpuset.cpus", "2"),
            ("a/b/cpuset.mems", ""),
        ]);
        fill_cpuset(tree.path(), &tree.path().join("a/b")).unwrap();
        assert_eq!(tree.read("a/b/cpuset.cpus"), "2");
        assert_eq!(tree.read("a/cpuset.mems").trim(), "0");
        assert_eq!(tree.read("a/b/cpuset.mems"), "0");
    }

    #[test]
    fn a_missing_file_is_fallen_back_from_or_named_with_its_field() {
        let tree = TempTree::new(&[("blkio.bfq.weight", "")]);
        let json = r#"{"blockIO":{"weight":100}}"#;
        let dir = |_: &Write| Ok(tree.path().to_owned());
        apply(&writes(&serde_json::from_str(json).unwrap()).unwrap(), &dir).unwrap();
        assert_eq!(tree.read("blkio.bfq.weight"), "100");
        let json = r#"{"memory":{"limit":4096}}"#;
        let error = apply(&writes(&serde_json::from_str(json).unwrap()).unwrap(), &dir).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.starts_with("linux.resources.memory.limit: write \"4096\" to /"), "{error}");
        assert!(error.contains("memory.limit_in_bytes: No such file"), "{error}");
    }
}
