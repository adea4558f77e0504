//! Seccomp profiles: a program that comes out is one the kernel takes, and its answers are the profile's.

#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::{Corpus, fuzz_target};
use libseccomp::ScmpSyscall;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action};
use runw_fuzz::error;
use runw_fuzz::linux::seccomp::{Filter, compile, machine};
use runw_fuzz::linux::sys;
use rustix::process::{Pid, WaitOptions, waitpid};

runw_fuzz::mutate_json!();

const X86_64: u32 = 0xc000_003e;
const ARCHES: [u32; 4] = [X86_64, 0x4000_0003, 0xc000_00b7, 0];
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(data) else { return Corpus::Reject };
    match compile(&profile) {
        Ok(filter) => {
            machine::check(&filter).unwrap_or_else(|what| panic!("{what}"));
            only_its_own_answers(&profile, &filter);
            calls_are_answered(&profile, &filter);
            kernel_takes_it(&filter);
        }
        Err(failure) => assert!(error::line(&failure).contains("seccomp") || notify(&failure), "{failure:#}"),
    }
    Corpus::Keep
});

/// runc's own words.
fn notify(failure: &anyhow::Error) -> bool {
    failure.to_string().starts_with("SCMP_ACT_NOTIFY cannot be used")
}

fn answer(action: Action, errno: Option<u32>) -> u32 {
    let data = errno.unwrap_or(libc::EPERM as u32);
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        Action::ScmpActErrno => libc::SECCOMP_RET_ERRNO | data,
        Action::ScmpActTrace => libc::SECCOMP_RET_TRACE | data,
        Action::ScmpActLog => libc::SECCOMP_RET_LOG,
        Action::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        Action::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
    }
}

fn default(profile: &LinuxSeccomp) -> u32 {
    answer(profile.default_action(), profile.default_errno_ret())
}

/// Whatever is called on whatever machine: an action of the profile, no such call, or the end of the thread (an
/// architecture that is not in the filter).
fn only_its_own_answers(profile: &LinuxSeccomp, filter: &Filter) {
    let mut known = HashSet::from([default(profile), ENOSYS, libc::SECCOMP_RET_KILL_THREAD]);
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    known.extend(rules.iter().map(|rule| answer(rule.action(), rule.errno_ret())));
    let mut arguments = vec![[0; 6], [u64::MAX; 6]];
    let compared = rules.iter().flat_map(|rule| rule.args().iter().flatten());
    arguments.extend(compared.take(4).map(|arg| [arg.value(); 6]));
    for arch in ARCHES {
        for number in (0..512).step_by(5).chain([0x4000_0000, 0x4000_0200, u32::MAX]) {
            for args in &arguments {
                let got = machine::run(filter, arch, number, args);
                assert!(known.contains(&got), "{arch:#x} {number} {args:x?}: {got:#x}");
            }
        }
    }
}

/// Calls of this machine for which a profile leaves no room to argue: named by no rule, or by one without conditions.
fn calls_are_answered(profile: &LinuxSeccomp, filter: &Filter) {
    let number = |name: &String| ScmpSyscall::from_name(name).ok().map(|call| call.as_raw_syscall());
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let named: Vec<(i32, usize)> = rules
        .iter()
        .enumerate()
        .flat_map(|(at, rule)| rule.names().iter().filter_map(number).map(move |number| (number, at)))
        .collect();
    let newest = named.iter().map(|(number, _)| *number).max().filter(|newest| *newest > 0);
    let passes =
        matches!(profile.default_action(), Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace);
    for number in 0..512 {
        let by: HashSet<usize> = named.iter().filter(|(n, _)| *n == number).map(|(_, at)| *at).collect();
        let wanted = match (by.len(), by.iter().next()) {
            (1, Some(&at)) if rules[at].args().as_ref().is_none_or(Vec::is_empty) => {
                answer(rules[at].action(), rules[at].errno_ret())
            }
            (0, None) if !passes && newest.is_some_and(|newest| number > newest) => ENOSYS,
            (0, None) => default(profile),
            _ => continue,
        };
        let got = machine::run(filter, X86_64, number as u32, &[0; 6]);
        assert_eq!(got, wanted, "call {number}: {got:#x}, not {wanted:#x}");
    }
}

/// Loads it in a process of its own. From then on that must make no call at all, so it ends by an instruction that no
/// machine has.
fn kernel_takes_it(filter: &Filter) {
    // SAFETY: glibc's fork makes its allocator usable in the child, which ends below.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork");
    if child == 0 {
        // SAFETY: takes libFuzzer's handler away; no core is wanted either.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
        let ready = sys::prctl(libc::PR_SET_DUMPABLE, 0).and(sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1));
        let Ok(loaded) = ready.map_err(anyhow::Error::from).and_then(|_| filter.load()) else {
            sys::exit_now(1);
        };
        // Closing the listener would be a call.
        std::mem::forget(loaded);
        // SAFETY: this is the end.
        unsafe { std::arch::asm!("ud2", options(noreturn)) };
    }
    let child = Pid::from_raw(child);
    // libFuzzer's alarm comes now and then.
    let ended = rustix::io::retry_on_intr(|| waitpid(child, WaitOptions::empty()));
    let status = ended.expect("wait").expect("the child").1;
    assert_eq!(
        status.terminating_signal(),
        Some(libc::SIGILL),
        "the kernel does not take the filter: {status:?}"
    );
}
