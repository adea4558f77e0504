//! config.json's `linux.seccomp` as one BPF program: translated by libseccomp in the parent, loaded by seccomp(2)
//! in the child. It must not call libseccomp in the child (it allocates and probes the kernel), and must not
//! weaken a profile: what cannot be translated is refused, except names libseccomp does not know (as runc).

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};
use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

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
    // struct sock_filter in host byte order: u16 code, u8 jt, u8 jf, u32 k.
    Ok(bytes
        .chunks_exact(8)
        .map(|raw| libc::sock_filter {
            code: u16::from_ne_bytes([raw[0], raw[1]]),
            jt: raw[2],
            jf: raw[3],
            k: u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]),
        })
        .collect())
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
