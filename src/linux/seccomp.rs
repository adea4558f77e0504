//! config.json's `linux.seccomp` as one BPF program: translated by libseccomp in the parent, loaded by seccomp(2)
//! in the child. It must not call libseccomp in the child (it allocates and probes the kernel), and must not
//! weaken a profile: what cannot be translated is refused, except names libseccomp does not know (as runc).

mod cache;
#[cfg(any(test, fuzzing))]
pub mod machine;

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};
use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

pub use cache::compile_cached;

/// seccomp(2): a system call has at most six arguments.
const MAX_ARGS: usize = 6;

/// The bit that tells x32 from x86_64 under one AUDIT_ARCH (asm/unistd.h `__X32_SYSCALL_BIT`).
const X32_BIT: u32 = 1 << 30;

/// A profile ready to be loaded, made once and inherited by the child through the clone.
#[derive(Debug)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
    unknown: Vec<String>,
}

/// Parent side. The order of the checks and their texts are runc's (libcontainer/seccomp `InitSeccomp`).
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    check_notify(profile, rules)?;
    let default = action(profile.default_action(), profile.default_errno_ret())
        .context("linux.seccomp.defaultErrnoRet")?;
    let mut context = ScmpFilterContext::new(default).context("linux.seccomp.defaultAction")?;
    // ScmpFilterContext starts with the native architecture, so a list that names only others still guards us.
    for &arch in profile.architectures().iter().flatten() {
        context
            .add_arch(scmp_arch(arch))
            .with_context(|| format!("linux.seccomp.architectures: cannot add {arch}"))?;
    }
    let mut unknown = Vec::new();
    for rule in rules {
        add_rule(&mut context, rule, default, &mut unknown)?;
    }
    let mut program = enosys_stub(profile, rules);
    program.extend(export(&context)?);
    // linux/bpf_common.h: the kernel answers EINVAL, without a reason, to a longer one.
    ensure!(
        program.len() <= libc::BPF_MAXINSNS as usize,
        "linux.seccomp: the filter has {} instructions, the kernel takes {}",
        program.len(),
        libc::BPF_MAXINSNS
    );
    let listener = rules.iter().any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    Ok(Filter { program, flags: filter_flags(profile.flags().as_deref(), listener), unknown })
}

impl Filter {
    /// True when `load` gives a notification descriptor, which the parent must hand to `listenerPath`.
    ///
    /// Hand it over with nothing but write(2) and pidfd_getfd(2) on the other side, as runc does: only `write` is
    /// refused as a notified call, so a sendmsg(2) of ours could wait for an agent that has no descriptor yet.
    pub fn wants_listener(&self) -> bool {
        self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
    }

    /// runc's words (seccomp.bats).
    pub fn describe(&self) -> String {
        format!("seccomp filter flags: {}", self.flags)
    }

    /// Names in the profile that this libseccomp does not know; runc skips them with a debug line.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// Child side: from here on the process is under the profile. Allocates nothing.
    pub fn load(&self) -> Result<Option<OwnedFd>> {
        let program =
            libc::sock_fprog { len: self.program.len() as u16, filter: self.program.as_ptr().cast_mut() };
        // SAFETY: `program` points to `len` instructions that live as long as `self`; the kernel copies them and
        // writes nothing.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                self.flags,
                std::ptr::from_ref(&program),
            )
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            return Err(error).context("cannot load the seccomp filter (linux.seccomp)");
        }
        if self.wants_listener() {
            // SAFETY: with SECCOMP_FILTER_FLAG_NEW_LISTENER success is a new descriptor that nobody else owns.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(result as i32) }));
        }
        // seccomp(2): with TSYNC a positive result is the thread that could not be synchronised; nothing loaded.
        ensure!(result == 0, "cannot load the seccomp filter: thread {result} has another filter");
        Ok(None)
    }
}

/// runc refuses these because init itself must `write` the number of the notify descriptor to its parent while
/// the filter is already in force: nobody would be there to answer the notification.
fn check_notify(profile: &LinuxSeccomp, rules: &[LinuxSyscall]) -> Result<()> {
    let notified: Vec<_> =
        rules.iter().filter(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify).collect();
    if notified.iter().any(|rule| rule.names().iter().any(|name| name == "write")) {
        bail!("SCMP_ACT_NOTIFY cannot be used for the write syscall");
    }
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        bail!("SCMP_ACT_NOTIFY cannot be used as default action");
    }
    if !notified.is_empty() && profile.listener_path().is_none() {
        bail!("linux.seccomp.listenerPath is not set, but SCMP_ACT_NOTIFY is used");
    }
    Ok(())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    // SECCOMP_RET_DATA is 16 bits; runc cuts the rest off, which would make another errno of it.
    let data = u16::try_from(errno.unwrap_or(libc::EPERM as u32))
        .with_context(|| format!("errno {} does not fit in 16 bits", errno.unwrap_or_default()))?;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(i32::from(data)),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(data),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    })
}

fn add_rule(
    context: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    default: ScmpAction,
    unknown: &mut Vec<String>,
) -> Result<()> {
    let action = action(rule.action(), rule.errno_ret())
        .with_context(|| format!("linux.seccomp.syscalls {:?}: errnoRet", rule.names()))?;
    // libseccomp refuses a rule that says what the default says already.
    if action == default {
        return Ok(());
    }
    let args = rule.args().as_deref().unwrap_or_default();
    let conditions = args.iter().map(condition).collect::<Result<Vec<_>>>()?;
    for name in rule.names() {
        ensure!(!name.is_empty(), "linux.seccomp.syscalls: empty string is not a valid syscall");
        let Ok(number) = ScmpSyscall::from_name(name) else {
            unknown.push(name.clone());
            continue;
        };
        // One rule is the conjunction of its arguments, each named once. Profiles that name one twice mean "or",
        // and runc gives them that by one rule for each condition. No condition at all is one rule as well.
        let size = if repeats_an_index(args) { 1 } else { conditions.len() };
        let sets: Vec<&[_]> = if size == 0 { vec![&[]] } else { conditions.chunks(size).collect() };
        for set in sets {
            context
                .add_rule_conditional(action, number, set)
                .with_context(|| format!("linux.seccomp.syscalls {name}"))?;
        }
    }
    Ok(())
}

fn repeats_an_index(args: &[LinuxSeccompArg]) -> bool {
    args.iter().enumerate().any(|(at, arg)| args[..at].iter().any(|other| other.index() == arg.index()))
}

fn condition(arg: &LinuxSeccompArg) -> Result<ScmpArgCompare> {
    ensure!(arg.index() < MAX_ARGS, "linux.seccomp.syscalls.args.index {} is above 5", arg.index());
    let (operator, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // runtime-spec: `value` is the mask and `valueTwo` what the masked argument must equal.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    Ok(ScmpArgCompare::new(arg.index() as u32, operator, datum))
}

fn filter_flags(asked: Option<&[LinuxSeccompFilterFlag]>, listener: bool) -> libc::c_ulong {
    // runc: no list at all (not even an empty one) means SPEC_ALLOW, so the store-bypass mitigation, which slows
    // everything down, is only forced on whoever asks for it.
    let asked = asked.unwrap_or(&[LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow]);
    let mut flags = 0;
    for flag in asked {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            // seccomp(2): TSYNC's and NEW_LISTENER's results share one return value, so both together are
            // refused unless failures are told by ESRCH (5.7).
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync if listener => {
                libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if listener => {
                libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
            }
            // EINVAL without a listener; and without one nothing ever waits.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        };
    }
    if listener {
        flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    }
    flags
}

/// libseccomp 2.5 can only write a program to a descriptor; a memfd never blocks as a pipe might.
fn export(context: &ScmpFilterContext) -> Result<Vec<libc::sock_filter>> {
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)
        .context("cannot make a memfd for the seccomp filter")?;
    context.export_bpf(&memory).context("cannot export the seccomp filter")?;
    let mut file = std::fs::File::from(memory);
    file.rewind().context("cannot read the seccomp filter")?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).context("cannot read the seccomp filter")?;
    Ok(parse_program(&bytes))
}

/// struct sock_filter in host byte order: u16 code, u8 jt, u8 jf, u32 k.
fn parse_program(bytes: &[u8]) -> Vec<libc::sock_filter> {
    bytes
        .chunks_exact(8)
        .map(|raw| libc::sock_filter {
            code: u16::from_ne_bytes([raw[0], raw[1]]),
            jt: raw[2],
            jf: raw[3],
            k: u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]),
        })
        .collect()
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const IF_SET: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;

/// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

fn op(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// runc's patchbpf: a call newer than every call the profile names answers ENOSYS, not the default errno.
///
/// A profile cannot name what did not exist when it was written, and libc falls back to an older call on ENOSYS
/// but reports EPERM as final (clone3, faccessat2). Left out when the default lets calls pass anyway.
fn enosys_stub(profile: &LinuxSeccomp, rules: &[LinuxSyscall]) -> Vec<libc::sock_filter> {
    match profile.default_action() {
        // Trace counts as passing in runc: a tracer that emulates must see new calls.
        LinuxSeccompAction::ScmpActAllow
        | LinuxSeccompAction::ScmpActLog
        | LinuxSeccompAction::ScmpActTrace => return Vec::new(),
        LinuxSeccompAction::ScmpActErrno if profile.default_errno_ret() == Some(libc::ENOSYS as u32) => {
            return Vec::new();
        }
        _ => {}
    }
    // Newer runc: the native architecture always counts, since Docker's lists for some machines lack it.
    let native = ScmpArch::native();
    let mut arches = vec![native];
    for &arch in profile.architectures().iter().flatten() {
        let arch = if arch == Arch::ScmpArchNative { native } else { scmp_arch(arch) };
        if !arches.contains(&arch) {
            arches.push(arch);
        }
    }
    let mut sections: BTreeMap<u32, Vec<libc::sock_filter>> = BTreeMap::new();
    for arch in arches {
        // No call known for this architecture: nothing to compare with, the filter alone decides.
        if let Some(newest) = newest_call(rules, arch) {
            sections.entry(audit_arch(arch)).or_default().extend(newer_than(newest, arch));
        }
    }
    assemble_stub(&sections)
}

fn newest_call(rules: &[LinuxSyscall], arch: ScmpArch) -> Option<u32> {
    rules
        .iter()
        .flat_map(LinuxSyscall::names)
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok())
        // Negative numbers are libseccomp's own names for calls the architecture lacks.
        .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
        .filter(|&number| number > 0)
        .max()
}

/// With the call's number loaded: return ENOSYS if it is newer, else run on.
fn newer_than(newest: u32, arch: ScmpArch) -> Vec<libc::sock_filter> {
    let enosys = op(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, 0, 0);
    let mut section = Vec::new();
    match arch {
        ScmpArch::X8664 => section.push(op(IF_SET, X32_BIT, 2, 0)),
        ScmpArch::X32 => section.push(op(IF_SET, X32_BIT, 0, 2)),
        // runc: numbers a kernel does not know arrive as 0, setup(2), which nothing has called for decades.
        ScmpArch::S390 | ScmpArch::S390X => section.extend([op(IF_EQUAL, 0, 0, 1), enosys]),
        _ => {}
    }
    section.extend([op(IF_GREATER, newest, 0, 1), enosys]);
    section
}

/// One block for each AUDIT_ARCH: not mine, jump over it; mine, decide and go on to the filter. The filter loads
/// what it needs itself, so the accumulator may be left with anything.
fn assemble_stub(sections: &BTreeMap<u32, Vec<libc::sock_filter>>) -> Vec<libc::sock_filter> {
    let overhead = 3;
    let mut rest: usize = sections.values().map(|section| section.len() + overhead).sum();
    let mut stub = Vec::with_capacity(rest + 1);
    if rest > 0 {
        stub.push(op(LOAD, ARCH, 0, 0));
    }
    for (&arch, section) in sections {
        rest -= section.len() + overhead;
        // At most 2 x86 modes of 3 instructions: far below the 255 a conditional jump can skip.
        stub.push(op(IF_EQUAL, arch, 0, section.len() as u8 + 2));
        stub.push(op(LOAD, NUMBER, 0, 0));
        stub.extend(section);
        stub.push(op(JUMP, rest as u32, 0, 0));
    }
    stub
}

/// oci-spec's discriminants are the SCMP_ARCH_* tokens, and those are the AUDIT_ARCH_* values but for x32.
fn audit_arch(arch: ScmpArch) -> u32 {
    let token = ARCHES.iter().find(|(_, scmp)| *scmp == arch).map_or(Arch::ScmpArchNative, |(oci, _)| *oci);
    match token {
        Arch::ScmpArchX32 => Arch::ScmpArchX86_64 as u32,
        token => token as u32,
    }
}

fn scmp_arch(arch: Arch) -> ScmpArch {
    ARCHES.iter().find(|(oci, _)| *oci == arch).map_or(ScmpArch::Native, |(_, scmp)| *scmp)
}

const ARCHES: [(Arch, ScmpArch); 23] = [
    (Arch::ScmpArchX86, ScmpArch::X86),
    (Arch::ScmpArchX86_64, ScmpArch::X8664),
    (Arch::ScmpArchX32, ScmpArch::X32),
    (Arch::ScmpArchArm, ScmpArch::Arm),
    (Arch::ScmpArchAarch64, ScmpArch::Aarch64),
    (Arch::ScmpArchMips, ScmpArch::Mips),
    (Arch::ScmpArchMips64, ScmpArch::Mips64),
    (Arch::ScmpArchMips64n32, ScmpArch::Mips64N32),
    (Arch::ScmpArchMipsel, ScmpArch::Mipsel),
    (Arch::ScmpArchMipsel64, ScmpArch::Mipsel64),
    (Arch::ScmpArchMipsel64n32, ScmpArch::Mipsel64N32),
    (Arch::ScmpArchPpc, ScmpArch::Ppc),
    (Arch::ScmpArchPpc64, ScmpArch::Ppc64),
    (Arch::ScmpArchPpc64le, ScmpArch::Ppc64Le),
    (Arch::ScmpArchS390, ScmpArch::S390),
    (Arch::ScmpArchS390x, ScmpArch::S390X),
    (Arch::ScmpArchParisc, ScmpArch::Parisc),
    (Arch::ScmpArchParisc64, ScmpArch::Parisc64),
    (Arch::ScmpArchRiscv64, ScmpArch::Riscv64),
    (Arch::ScmpArchLoongarch64, ScmpArch::Loongarch64),
    (Arch::ScmpArchM68k, ScmpArch::M68k),
    (Arch::ScmpArchSh, ScmpArch::Sh),
    (Arch::ScmpArchSheb, ScmpArch::Sheb),
];

#[cfg(test)]
mod tests {
    use super::machine::run;
    use super::*;

    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn errno(number: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | number as u32
    }

    fn profile(json: &str) -> LinuxSeccomp {
        serde_json::from_str(json).unwrap()
    }

    fn nr(name: &str, arch: ScmpArch) -> u32 {
        ScmpSyscall::from_name_by_arch(name, arch).unwrap().as_raw_syscall() as u32
    }

    fn call(filter: &Filter, name: &str, args: &[u64]) -> u32 {
        run(filter, X86_64, nr(name, ScmpArch::X8664), args)
    }

    /// The shape of Docker's default profile: allowed names, a conditional clone, clone3 by ENOSYS, personality by
    /// exact values, sockets but for vsock.
    fn docker_like() -> LinuxSeccomp {
        profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
            "architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
            "syscalls":[
              {"names":["read","write","openat","exit_group","faccessat2","epoll_pwait2","no_such_call"],
               "action":"SCMP_ACT_ALLOW"},
              {"names":["personality"],"action":"SCMP_ACT_ALLOW",
               "args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]},
              {"names":["personality"],"action":"SCMP_ACT_ALLOW",
               "args":[{"index":0,"value":131072,"op":"SCMP_CMP_EQ"}]},
              {"names":["clone"],"action":"SCMP_ACT_ALLOW",
               "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
              {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38},
              {"names":["socket"],"action":"SCMP_ACT_ALLOW",
               "args":[{"index":0,"value":40,"op":"SCMP_CMP_NE"}]},
              {"names":["ptrace"],"action":"SCMP_ACT_KILL_PROCESS"},
              {"names":["acct"],"action":"SCMP_ACT_TRAP"},
              {"names":["reboot"],"action":"SCMP_ACT_LOG"},
              {"names":["quotactl"],"action":"SCMP_ACT_TRACE","errnoRet":7},
              {"names":["swapon"],"action":"SCMP_ACT_KILL"}]}"#,
        )
    }

    #[test]
    fn a_docker_like_profile_decides_as_written() {
        let filter = compile(&docker_like()).unwrap();
        machine::check(&filter).unwrap();
        assert_eq!(filter.unknown(), ["no_such_call"]);
        assert!(!filter.wants_listener());
        let cases: [(&str, &[u64], u32); 16] = [
            ("read", &[], ALLOW),
            ("mount", &[], errno(libc::EPERM)),
            ("personality", &[0], ALLOW),
            ("personality", &[0x20000], ALLOW),
            ("personality", &[1], errno(libc::EPERM)),
            ("personality", &[1 << 32], errno(libc::EPERM)),
            ("clone", &[libc::SIGCHLD as u64], ALLOW),
            ("clone", &[libc::CLONE_NEWUSER as u64], errno(libc::EPERM)),
            ("clone3", &[], errno(libc::ENOSYS)),
            ("socket", &[2], ALLOW),
            ("socket", &[40], errno(libc::EPERM)),
            ("ptrace", &[], libc::SECCOMP_RET_KILL_PROCESS),
            ("acct", &[], libc::SECCOMP_RET_TRAP),
            ("reboot", &[], libc::SECCOMP_RET_LOG),
            ("quotactl", &[], libc::SECCOMP_RET_TRACE | 7),
            ("swapon", &[], libc::SECCOMP_RET_KILL_THREAD),
        ];
        for (name, args, expected) in cases {
            assert_eq!(call(&filter, name, args), expected, "{name} {args:x?}");
        }
    }

    #[test]
    fn calls_newer_than_the_profile_answer_enosys_on_each_architecture() {
        let filter = compile(&docker_like()).unwrap();
        let newest = nr("epoll_pwait2", ScmpArch::X8664);
        assert_eq!(newest, 441);
        assert_eq!(run(&filter, X86_64, newest, &[]), ALLOW);
        assert_eq!(run(&filter, X86_64, newest - 1, &[]), errno(libc::EPERM));
        assert_eq!(run(&filter, X86_64, newest + 1, &[]), errno(libc::ENOSYS));
        assert_eq!(run(&filter, X86_64, 9999, &[]), errno(libc::ENOSYS));
        let x32 = nr("epoll_pwait2", ScmpArch::X32);
        assert_eq!(run(&filter, X86_64, x32, &[]), ALLOW);
        // x32 has numbers of its own above its newest common call (512 and on), so go beyond those.
        assert_eq!(run(&filter, X86_64, x32 + 5000, &[]), errno(libc::ENOSYS));
        let i386 = nr("epoll_pwait2", ScmpArch::X86);
        assert_eq!(run(&filter, I386, i386, &[]), ALLOW);
        assert_eq!(run(&filter, I386, i386 + 1, &[]), errno(libc::ENOSYS));
        assert_eq!(run(&filter, I386, nr("mount", ScmpArch::X86), &[]), errno(libc::EPERM));
        // An architecture that the profile does not name is libseccomp's bad architecture.
        assert_eq!(run(&filter, 0xc000_00b7, 9999, &[]), libc::SECCOMP_RET_KILL_THREAD);
    }

    #[test]
    fn without_x32_its_calls_are_not_told_enosys_by_x86_64() {
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#,
        ))
        .unwrap();
        assert_eq!(call(&filter, "read", &[]), ALLOW);
        // read is number 0, and runc, too, takes the absence of a positive number as "nothing to compare with".
        assert_eq!(run(&filter, X86_64, 9999, &[]), errno(libc::EPERM));
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_KILL","syscalls":[{"names":["write"],"action":"SCMP_ACT_ALLOW"}]}"#,
        ))
        .unwrap();
        assert_eq!(run(&filter, X86_64, 9999, &[]), errno(libc::ENOSYS));
        assert_eq!(run(&filter, X86_64, 9999 | X32_BIT, &[]), libc::SECCOMP_RET_KILL_THREAD);
    }

    #[test]
    fn a_permissive_default_or_enosys_default_has_no_stub() {
        for default in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"] {
            let filter = compile(&profile(&format!(
                r#"{{"defaultAction":"{default}","syscalls":[{{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}}]}}"#
            )))
            .unwrap();
            let other = run(&filter, X86_64, 9999, &[]);
            assert_ne!(other, errno(libc::ENOSYS), "{default}");
            assert_eq!(call(&filter, "mkdir", &[]), errno(libc::EPERM), "{default}");
        }
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,
                "syscalls":[{"names":["write"],"action":"SCMP_ACT_ALLOW"}]}"#,
        ))
        .unwrap();
        assert_eq!(call(&filter, "mkdir", &[]), errno(libc::ENOSYS));
        assert_eq!(call(&filter, "write", &[]), ALLOW);
    }

    /// Operator, value, valueTwo, arguments that match, arguments that do not.
    type OperatorCase = (&'static str, u64, u64, &'static [u64], &'static [u64]);

    #[test]
    fn operators_compare_all_64_bits() {
        const BIG: u64 = 1 << 40;
        let cases: [OperatorCase; 7] = [
            ("NE", BIG, 0, &[0, 1, BIG + 1], &[BIG]),
            ("LT", BIG, 0, &[0, BIG - 1], &[BIG, BIG + 1]),
            ("LE", BIG, 0, &[0, BIG], &[BIG + 1]),
            ("EQ", BIG, 0, &[BIG], &[0, BIG + 1]),
            ("GE", BIG, 0, &[BIG, BIG + 1], &[0, BIG - 1]),
            ("GT", BIG, 0, &[BIG + 1], &[0, BIG]),
            ("MASKED_EQ", 0xff | BIG, BIG | 1, &[BIG | 1, BIG | 0x101], &[1, BIG, BIG | 2]),
        ];
        for (operator, value, two, hits, misses) in cases {
            let filter = compile(&profile(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["lseek"],"action":"SCMP_ACT_ALLOW",
                "args":[{{"index":1,"value":{value},"valueTwo":{two},"op":"SCMP_CMP_{operator}"}}]}}]}}"#
            )))
            .unwrap();
            for hit in hits {
                assert_eq!(call(&filter, "lseek", &[0, *hit]), ALLOW, "{operator} {hit:#x}");
            }
            for miss in misses {
                assert_eq!(call(&filter, "lseek", &[0, *miss]), errno(libc::EPERM), "{operator} {miss:#x}");
            }
        }
    }

    #[test]
    fn different_arguments_are_and_and_the_same_argument_twice_is_or() {
        let with = |second: u32| {
            compile(&profile(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["lseek"],"action":"SCMP_ACT_ALLOW",
                "args":[{{"index":0,"value":5,"op":"SCMP_CMP_EQ"}},
                        {{"index":{second},"value":7,"op":"SCMP_CMP_EQ"}}]}}]}}"#
            )))
            .unwrap()
        };
        let and = with(1);
        assert_eq!(call(&and, "lseek", &[5, 7]), ALLOW);
        assert_eq!(call(&and, "lseek", &[5, 0]), errno(libc::EPERM));
        let or = with(0);
        assert_eq!(call(&or, "lseek", &[5]), ALLOW);
        assert_eq!(call(&or, "lseek", &[7]), ALLOW);
        assert_eq!(call(&or, "lseek", &[6]), errno(libc::EPERM));
    }

    #[test]
    fn what_would_hang_or_mean_something_else_is_refused() {
        let cases = [
            (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY cannot be used as default action"),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/s",
                    "syscalls":[{"names":["mkdir","write"],"action":"SCMP_ACT_NOTIFY"}]}"#,
                "SCMP_ACT_NOTIFY cannot be used for the write syscall",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#,
                "linux.seccomp.listenerPath is not set",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO",
                    "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
                "args.index 6 is above 5",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":65536}"#,
                "linux.seccomp.defaultErrnoRet: errno 65536 does not fit in 16 bits",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[""],"action":"SCMP_ACT_ERRNO"}]}"#,
                "empty string is not a valid syscall",
            ),
        ];
        for (json, text) in cases {
            let error = format!("{:#}", compile(&profile(json)).unwrap_err());
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn flags_are_the_kernels() {
        use LinuxSeccompFilterFlag as Flag;
        assert_eq!(filter_flags(None, false), 4);
        assert_eq!(filter_flags(Some(&[]), false), 0);
        assert_eq!(filter_flags(Some(&[Flag::SeccompFilterFlagLog, Flag::SeccompFilterFlagTsync]), false), 3);
        assert_eq!(filter_flags(Some(&[Flag::SeccompFilterFlagWaitKillableRecv]), false), 0);
        assert_eq!(
            filter_flags(
                Some(&[Flag::SeccompFilterFlagWaitKillableRecv, Flag::SeccompFilterFlagTsync]),
                true
            ),
            1 | 8 | 16 | 32
        );
    }

    /// In a process of its own: a filter cannot be taken off again.
    fn in_child(job: impl FnOnce() -> i32) -> i32 {
        // SAFETY: fork(3) of glibc makes the allocator usable in the child, which only runs `job` and _exits.
        match unsafe { libc::fork() } {
            0 => crate::linux::sys::exit_now(job()),
            pid => {
                let mut status = 0;
                // SAFETY: `status` is a live integer; `pid` is our child.
                assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
                libc::WEXITSTATUS(status)
            }
        }
    }

    #[test]
    fn the_kernel_takes_the_filter_and_it_is_in_force() {
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC"],
                "syscalls":[{"names":["getppid"],"action":"SCMP_ACT_ERRNO","errnoRet":71}]}"#,
        ))
        .unwrap();
        let status = in_child(|| {
            if crate::linux::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).is_err() || filter.load().is_err() {
                return 1;
            }
            // SAFETY: getppid takes nothing.
            let result = unsafe { libc::syscall(libc::SYS_getppid) };
            i32::from(result != -1 || io::Error::last_os_error().raw_os_error() != Some(71)) * 2
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn a_notifying_filter_gives_a_listener() {
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/agent.sock",
                "flags":["SECCOMP_FILTER_FLAG_TSYNC"],
                "syscalls":[{"names":["getppid"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        ))
        .unwrap();
        assert!(filter.wants_listener());
        let status = in_child(|| {
            if crate::linux::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).is_err() {
                return 1;
            }
            match filter.load() {
                Ok(Some(_)) => 0,
                _ => 2,
            }
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn a_profile_of_dockers_size_compiles_in_time() {
        let names: Vec<String> = (0..450)
            .filter_map(|number| ScmpSyscall::from_raw_syscall(number).get_name().ok())
            .map(|name| format!("{name:?}"))
            .collect();
        assert!(names.len() > 300);
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
                "syscalls":[{{"names":[{}],"action":"SCMP_ACT_ALLOW"}}]}}"#,
            names.join(",")
        );
        let profile = profile(&json);
        let start = std::time::Instant::now();
        let filter = compile(&profile).unwrap();
        eprintln!("{} names, {} instructions in {:?}", names.len(), filter.program.len(), start.elapsed());
        assert_eq!(call(&filter, "read", &[]), ALLOW);
        let dir = std::env::temp_dir().join(format!("runw-seccomp-time-{}", std::process::id()));
        compile_cached(&profile, &dir).unwrap();
        let start = std::time::Instant::now();
        let cached = compile_cached(&profile, &dir).unwrap();
        eprintln!("from the cache in {:?}", start.elapsed());
        assert_eq!(cached.program.len(), filter.program.len());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
