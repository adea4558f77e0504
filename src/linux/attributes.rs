//! How the kernel is to treat a process: scheduler, I/O priority, personality, NUMA memory policy and, for `exec`,
//! CPU affinity; and its capabilities. Worked out by the parent, before anything is made; taken on by the child, in runc's order
//! (standard_init_linux.go). Which values go together is `bundle`'s to judge.

use anyhow::{Context, Result};
use libcontainer::process::cpu_affinity;
use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, Linux, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::capabilities::Caps;
use super::sys::{self, NodeMask, SchedAttr};
use crate::log;

/// All of a process's attributes as the kernel takes them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    scheduler: Option<SchedAttr>,
    io_priority: Option<i32>,
    personality: Option<u64>,
    memory: Option<(i32, Option<NodeMask>)>,
    has_cpuset: bool,
    pub caps: Caps,
}

impl Attributes {
    /// What `process` says of itself and, for an exec too, `linux` of every process of the container.
    pub fn of(process: &Process, linux: Option<&Linux>) -> Result<Attributes> {
        let memory = linux.and_then(|linux| linux.memory_policy().as_ref());
        let cpu = linux.and_then(|l| l.resources().as_ref()).and_then(|r| r.cpu().as_ref());
        Ok(Attributes {
            scheduler: process.scheduler().as_ref().map(scheduler),
            io_priority: process.io_priority().as_ref().map(io_priority),
            personality: linux
                .and_then(|linux| linux.personality().as_ref())
                .map(|personality| persona(personality.domain())),
            memory: memory.map(memory_policy).transpose().context("linux.memoryPolicy")?,
            caps: Caps::of(process.capabilities().as_ref())?,
            has_cpuset: cpu.is_some_and(|cpu| cpu.cpus().as_deref().is_some_and(|cpus| !cpus.is_empty())),
        })
    }

    /// While the process has its capabilities: real-time classes and policies need them.
    pub fn apply(&self) -> Result<()> {
        if let Some(attr) = &self.scheduler {
            sys::sched_setattr(attr).map_err(|error| self.explain(error)).context("process.scheduler")?;
        }
        if let Some(priority) = self.io_priority {
            sys::ioprio_set(priority).context("process.ioPriority: failed to set io priority")?;
        }
        if let Some(domain) = self.personality {
            sys::personality(domain).context("linux.personality")?;
        }
        if let Some((mode, nodes)) = &self.memory {
            sys::set_mempolicy(*mode, nodes.as_ref()).context("linux.memoryPolicy: set_mempolicy")?;
        }
        Ok(())
    }

    /// sched_setattr(2): a deadline task must be allowed on all CPUs of its root domain. runc's words.
    fn explain(&self, error: std::io::Error) -> anyhow::Error {
        let words = "process scheduler can't be used together with AllowedCPUs";
        let told = anyhow::Error::new(error);
        let denied = |error: &std::io::Error| error.raw_os_error() == Some(libc::EPERM);
        if self.has_cpuset && told.downcast_ref().is_some_and(denied) { told.context(words) } else { told }
    }
}

fn scheduler(scheduler: &Scheduler) -> SchedAttr {
    let flags = scheduler.flags().iter().flatten();
    SchedAttr {
        policy: match scheduler.policy() {
            LinuxSchedulerPolicy::SchedOther => 0,
            LinuxSchedulerPolicy::SchedFifo => 1,
            LinuxSchedulerPolicy::SchedRr => 2,
            LinuxSchedulerPolicy::SchedBatch => 3,
            LinuxSchedulerPolicy::SchedIso => 4,
            LinuxSchedulerPolicy::SchedIdle => 5,
            LinuxSchedulerPolicy::SchedDeadline => 6,
        },
        flags: flags.fold(0, |flags, flag| flags | scheduler_flag(*flag)),
        nice: scheduler.nice().unwrap_or(0),
        // Out of range stays out of range: the kernel refuses it.
        priority: scheduler.priority().unwrap_or(0) as u32,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
        ..SchedAttr::default()
    }
}

fn scheduler_flag(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

/// ioprio_set(2): the class stands above the 13 bits of the priority, which `bundle` keeps within 0 to 7.
fn io_priority(priority: &LinuxIOPriority) -> i32 {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    class << 13 | (priority.priority() as i32 & 0x1fff)
}

fn persona(domain: LinuxPersonalityDomain) -> u64 {
    match domain {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 0x8,
    }
}

/// Ours, and not libcontainer's `memory_policy`: that one can only judge and set at once, in the child, loses node
/// 63 (set_mempolicy(2) wants one more than the number of bits) and allocates 16 GiB for `0-4294967295`.
fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<(i32, Option<NodeMask>)> {
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            }
    });
    let listed = numbers(policy.nodes().as_deref().unwrap_or_default()).context("nodes")?;
    let mut mask = NodeMask::default();
    for node in &listed {
        mask[node / 64] |= 1 << (node % 64);
    }
    Ok((mode | flags, (!listed.is_empty()).then_some(mask)))
}

/// A list as in cpuset(7), "0-3,7", of CPUs or (as in runc) of nodes.
fn numbers(list: &str) -> Result<Vec<usize>> {
    let set = cpu_affinity::to_cpuset(list)?;
    Ok((0..CpuSet::MAX_CPU).filter(|number| set.is_set(*number).unwrap_or(false)).collect())
}

/// `process.execCPUAffinity`.
pub struct Affinity {
    initial: Option<CpuSet>,
    last: Option<CpuSet>,
}

impl Affinity {
    pub fn of(affinity: Option<&ExecCPUAffinity>) -> Result<Affinity> {
        let set = |list: Option<&String>, field: &str| {
            list.map(|list| cpus(list))
                .transpose()
                .with_context(|| format!("process.execCPUAffinity.{field}"))
        };
        Ok(Affinity {
            initial: set(affinity.and_then(|a| a.initial().as_ref()), "initial")?,
            last: set(affinity.and_then(|a| a.cpu_affinity_final().as_ref()), "final")?,
        })
    }

    /// For the parent, whose child inherits it: config.md has the runtime itself run there until the process is in
    /// the container's cgroup.
    pub fn enter_initial(&self) -> Result<()> {
        let Some(set) = &self.initial else { return Ok(()) };
        sched_setaffinity(None, set)
            .context("process.execCPUAffinity.initial: error setting initial affinity")?;
        // runc's words (cpu_affinity.bats).
        log::debug(|| {
            let mask = (0..64).filter(|cpu| set.is_set(*cpu)).fold(0u64, |mask, cpu| mask | 1 << cpu);
            format!("nsexec: affinity: {mask:#x}")
        });
        Ok(())
    }

    /// For the child, once it is in the cgroup.
    pub fn settle(&self) -> Result<()> {
        let Some(set) = &self.last else {
            reset_affinity();
            return Ok(());
        };
        sched_setaffinity(None, set).context("process.execCPUAffinity.final: error setting final affinity")
    }
}

fn cpus(list: &str) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    numbers(list)?.into_iter().for_each(|cpu| set.set(cpu));
    Ok(set)
}

/// Since Linux 6.2 a task keeps the CPUs it once asked for when it joins a cpuset: a container would inherit those
/// of an engine that a service manager keeps on some. A full mask is narrowed to the cpuset's by the kernel (runc:
/// tryResetCPUAffinity, which forgives a failure as well).
pub fn reset_affinity() {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    let _ = sched_setaffinity(None, &all);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn process(fields: Value) -> Process {
        let mut process = json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["x"]});
        process.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(process).unwrap()
    }

    fn linux(fields: Value) -> Linux {
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn nothing_asked_for_is_nothing_done() {
        let attributes = Attributes::of(&process(json!({})), Some(&Linux::default())).unwrap();
        assert_eq!(attributes, Attributes::default());
    }

    #[test]
    fn schedulers() {
        let of = |scheduler: Value| {
            Attributes::of(&process(json!({"scheduler": scheduler})), None).unwrap().scheduler.unwrap()
        };
        for (policy, number) in [
            ("SCHED_OTHER", 0),
            ("SCHED_FIFO", 1),
            ("SCHED_RR", 2),
            ("SCHED_BATCH", 3),
            ("SCHED_ISO", 4),
            ("SCHED_IDLE", 5),
            ("SCHED_DEADLINE", 6),
        ] {
            assert_eq!(of(json!({"policy": policy})).policy, number);
        }
        let deadline = of(json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3,
            "flags": ["SCHED_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_UTIL_CLAMP_MAX"]}));
        assert_eq!((deadline.runtime, deadline.deadline, deadline.period, deadline.flags), (1, 2, 3, 0x43));
        let fifo = of(json!({"policy": "SCHED_FIFO", "priority": 5, "nice": -3}));
        assert_eq!((fifo.priority, fifo.nice), (5, -3));
    }

    #[test]
    fn io_priorities_and_personalities() {
        let attributes = Attributes::of(
            &process(json!({"ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 7}})),
            Some(&linux(json!({"personality": {"domain": "LINUX32"}}))),
        );
        let attributes = attributes.unwrap();
        assert_eq!(attributes.io_priority, Some(3 << 13 | 7));
        assert_eq!(attributes.personality, Some(8));
    }

    #[test]
    fn memory_policies() {
        let of = |policy: Value| {
            let linux = linux(json!({"memoryPolicy": policy}));
            Attributes::of(&process(json!({})), Some(&linux)).map(|attributes| attributes.memory.unwrap())
        };
        let (mode, mask) =
            of(json!({"mode": "MPOL_BIND", "nodes": "0-1,63-64", "flags": ["MPOL_F_STATIC_NODES"]})).unwrap();
        assert_eq!(mode, 2 | 1 << 15);
        let mask = mask.unwrap();
        assert_eq!((mask[0], mask[1]), (1 << 63 | 3, 1));
        assert_eq!(of(json!({"mode": "MPOL_PREFERRED"})).unwrap(), (1, None));
        for nodes in ["x", "2-1", "0-4294967295", "1024"] {
            let error = of(json!({"mode": "MPOL_BIND", "nodes": nodes})).unwrap_err();
            assert!(format!("{error:#}").starts_with("linux.memoryPolicy: nodes: "), "{error:#}");
        }
    }

    #[test]
    fn affinities() {
        let of = |value: Value| {
            Affinity::of(process(json!({"execCPUAffinity": value})).exec_cpu_affinity().as_ref())
        };
        let affinity = of(json!({"initial": "0-1,7"})).unwrap();
        let initial = affinity.initial.unwrap();
        assert!(affinity.last.is_none());
        assert_eq!((0..1024).filter(|cpu| initial.is_set(*cpu)).collect::<Vec<_>>(), [0, 1, 7]);
        let error = of(json!({"final": "5000"})).err().unwrap();
        assert!(format!("{error:#}").starts_with("process.execCPUAffinity.final: "), "{error:#}");
    }
}
