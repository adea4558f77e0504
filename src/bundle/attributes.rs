//! Scheduling, I/O priority and memory policy: which values go together. The kernel answers all of these with a
//! bare EINVAL; the rules and the words are runc's (libcontainer/configs/validate).

use anyhow::{Result, bail, ensure};
use oci_spec::runtime::{
    Linux, LinuxSchedulerPolicy as Policy, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode,
    Process,
};

pub fn scheduler(process: &Process) -> Result<()> {
    let Some(scheduler) = process.scheduler() else { return Ok(()) };
    let policy = *scheduler.policy();
    let nice = scheduler.nice().unwrap_or(0);
    if matches!(policy, Policy::SchedOther | Policy::SchedBatch) {
        ensure!(
            (-20..=19).contains(&nice),
            "invalid scheduler.nice: {nice} when scheduler.policy is {policy}"
        );
    }
    ensure!(
        scheduler.priority().unwrap_or(0) == 0 || matches!(policy, Policy::SchedFifo | Policy::SchedRr),
        "scheduler.priority can only be specified for SchedFIFO or SchedRR policy"
    );
    let times = [scheduler.runtime(), scheduler.deadline(), scheduler.period()];
    ensure!(
        policy == Policy::SchedDeadline || times.iter().all(|time| time.unwrap_or(0) == 0),
        "scheduler runtime/deadline/period can only be specified for SchedDeadline policy"
    );
    Ok(())
}

pub fn io_priority(process: &Process) -> Result<()> {
    let Some(priority) = process.io_priority() else { return Ok(()) };
    let priority = priority.priority();
    ensure!((0..=7).contains(&priority), "invalid ioPriority.priority: {priority}");
    Ok(())
}

/// set_mempolicy(2).
pub fn memory_policy(linux: &Linux) -> Result<()> {
    let Some(policy) = linux.memory_policy() else { return Ok(()) };
    let mode = policy.mode();
    let has = |flag: Flag| policy.flags().iter().flatten().any(|given| *given == flag);
    let relative = has(Flag::MpolFRelativeNodes);
    let fixed = has(Flag::MpolFStaticNodes);
    let nodes = policy.nodes().as_deref().is_some_and(|nodes| !nodes.trim().is_empty());
    ensure!(
        !(relative && fixed),
        "linux.memoryPolicy: MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES are mutually exclusive"
    );
    if has(Flag::MpolFNumaBalancing) && !matches!(mode, Mode::MpolBind | Mode::MpolPreferredMany) {
        bail!(
            "linux.memoryPolicy: MPOL_F_NUMA_BALANCING can only be used with MPOL_BIND or MPOL_PREFERRED_MANY"
        );
    }
    match mode {
        Mode::MpolDefault | Mode::MpolLocal => {
            ensure!(!nodes, "linux.memoryPolicy: {mode} takes no nodes");
            ensure!(!relative && !fixed, "linux.memoryPolicy: {mode} takes no flags");
        }
        Mode::MpolPreferred => {
            ensure!(nodes || !(relative || fixed), "linux.memoryPolicy: {mode} without nodes takes no flags")
        }
        _ => ensure!(nodes, "linux.memoryPolicy: {mode} requires at least one node"),
    }
    Ok(())
}
