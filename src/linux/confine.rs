//! A child that may compute and nothing else, for work on bytes of an image (compiling a module): no privileges,
//! no network, no file but those it was handed, a system call allow-list, memory and time caps. It runs a closure
//! and not a program, so it is a clone of a parent with one thread. Must not be used for a workload.

mod cgroup;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus};

use super::foreground;
use super::sys::{self, Cloned};
use crate::seam::ConfineLimits;
use cgroup::Cage;

/// nobody, on every distribution.
const NOBODY: u32 = 65534;
/// The job's own line is cut here; it always fits into the pipe, so the child never waits for a reader.
const LINE: usize = 4096;
/// The deadline is time on the CPU, so that a busy node refuses nothing that an idle one takes. On the clock a job
/// gets this many times as much: whoever waits for it must hear some day.
const PATIENCE: u64 = 5;

/// Runs `job` in the child and says how it ended (`seam::Confine`).
pub fn run(limits: &ConfineLimits, keep: &[RawFd], job: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    run_in(Cage::make(limits.memory), limits, keep, job)
}

fn run_in(
    cage: Option<Cage>,
    limits: &ConfineLimits,
    keep: &[RawFd],
    job: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let filter = filter().context("build the confined child's seccomp filter")?;
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("pipe")?;
    let parent = rustix::process::getpid();
    let started = Instant::now();
    match spawn(cage.as_ref().and_then(Cage::birthplace))? {
        Cloned::Child => {
            tell_of_panics(&writer);
            match confine(limits, keep, &writer, &filter, cage.as_ref(), parent).and_then(|()| job()) {
                Ok(()) => sys::exit_now(0),
                Err(error) => end_with(writer.as_fd(), &format!("{error:#}")),
            }
        }
        Cloned::Parent { pidfd, .. } => {
            drop(writer);
            let patience = limits.deadline.saturating_mul(PATIENCE);
            let deadline = started + Duration::from_secs(patience);
            let in_time = wait_until(pidfd.as_fd(), deadline);
            if !matches!(in_time, Ok(true)) {
                let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            }
            let status = reap(&pidfd)?;
            if !in_time? {
                bail!(
                    "it was not done after {patience} s, {PATIENCE} times the deadline of {} s of CPU time",
                    limits.deadline
                );
            }
            outcome(&status, reader, cage.as_ref(), limits)
        }
    }
}

/// As much isolation as our privileges allow: as root outright, else inside a user namespace with no mapping at
/// all, else (user namespaces forbidden) with the seccomp filter alone, which lets it open nothing anyway.
fn spawn(into_cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let apart = (libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;
    let ways = [apart, apart | libc::CLONE_NEWUSER as u64, 0];
    let mut last = None;
    for flags in ways {
        match sys::clone3(flags, into_cgroup, false) {
            Ok(cloned) => return Ok(cloned),
            Err(error) => last = Some(error),
        }
    }
    let error = last.map_or_else(|| anyhow!("no way to clone"), anyhow::Error::from);
    Err(error.context("clone a confined child"))
}

fn wait_until(pidfd: BorrowedFd<'_>, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the confined child"),
        }
    }
}

fn reap(pidfd: &OwnedFd) -> Result<WaitIdStatus> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => return Ok(status),
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("reap the confined child"),
        }
    }
}

fn outcome(
    status: &WaitIdStatus,
    reader: OwnedFd,
    cage: Option<&Cage>,
    limits: &ConfineLimits,
) -> Result<()> {
    let mut line = String::new();
    let _ = File::from(reader).take(LINE as u64).read_to_string(&mut line);
    let mib = limits.memory >> 20;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ok(()),
        (Some(_), _) if !line.is_empty() => bail!("{line}"),
        (_, Some(_)) if cage.is_some_and(Cage::was_out_of_memory) => {
            bail!("it needed more than the {mib} MiB of memory allowed")
        }
        // Without a cgroup the cap is on address space, and an allocation that fails aborts the process.
        (_, Some(signal)) if cage.is_none() && matches!(signal, libc::SIGABRT | libc::SIGSEGV) => {
            bail!(
                "it crashed (signal {signal}), probably for want of more than the {mib} MiB of memory allowed"
            )
        }
        (_, Some(signal)) if signal == libc::SIGXCPU => {
            bail!("it took longer than the deadline of {} s of CPU time", limits.deadline)
        }
        (code, signal) => {
            bail!("the confined child ended without a word (status {code:?}, signal {signal:?})")
        }
    }
}

fn end_with(writer: BorrowedFd<'_>, text: &str) -> ! {
    let line = text.replace('\n', " | ");
    let _ = rustix::io::write(writer, &line.as_bytes()[..line.len().min(LINE)]);
    sys::exit_now(1)
}

/// A panic must not unwind into the parent's frames, of which this child has a copy, and its standard error is nobody's.
fn tell_of_panics(writer: &OwnedFd) {
    let writer = writer.as_raw_fd();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("without a message");
        end_with(sys::own_fd(writer), &format!("panicked: {text}"))
    }));
}

/// The child's own side, in an order in which each step still has the privilege it needs.
fn confine(
    limits: &ConfineLimits,
    keep: &[RawFd],
    writer: &OwnedFd,
    filter: &ScmpFilterContext,
    cage: Option<&Cage>,
    parent: rustix::process::Pid,
) -> Result<()> {
    if let Some(cage) = cage {
        cage.enter().context("join the confined child's cgroup")?;
    }
    only_these(keep, writer.as_raw_fd()).context("close descriptors")?;
    cap(limits, cage.is_some()).context("set resource limits")?;
    drop_privileges()?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).context("set no_new_privs")?;
    // After the ids: a change of credentials clears it (prctl(2)).
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("set the death signal")?;
    // CLONE_NEWPID is not used, so the parent's pid is visible; another one means it died before the line above.
    if rustix::process::getppid() != Some(parent) {
        bail!("the parent is gone");
    }
    filter.load().context("load the seccomp filter")
}

fn only_these(keep: &[RawFd], writer: RawFd) -> Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    let mut kept: Vec<u32> = keep.iter().chain([&writer]).map(|fd| *fd as u32).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if fd > first {
            sys::close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    Ok(sys::close_range(first, u32::MAX)?)
}

fn cap(limits: &ConfineLimits, caged: bool) -> Result<()> {
    let set = |resource: u32, value: u64| sys::prlimit(0, resource, value, value);
    set(libc::RLIMIT_CORE, 0)?;
    set(libc::RLIMIT_FSIZE, limits.memory)?;
    // All threads count together. setrlimit(2): SIGXCPU at the soft limit, which says why it ended; SIGKILL at the hard one.
    foreground::reset_signals_in_child(1 << (libc::SIGXCPU - 1))?;
    sys::prlimit(0, libc::RLIMIT_CPU, limits.deadline, limits.deadline.saturating_add(1))?;
    if !caged {
        set(libc::RLIMIT_AS, mapped()?.saturating_add(limits.memory))?;
    }
    Ok(())
}

/// Bytes mapped already, most of them the program itself: the cap is on what comes on top.
fn mapped() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("read /proc/self/statm")?;
    let pages: u64 = statm.split(' ').next().unwrap_or_default().parse().context("parse /proc/self/statm")?;
    Ok(pages * rustix::param::page_size() as u64)
}

fn drop_privileges() -> Result<()> {
    // Fails at the first capability the kernel does not know, or at once without CAP_SETPCAP; the sets below and
    // no_new_privs hold either way.
    for capability in 0..64 {
        if sys::prctl(libc::PR_CAPBSET_DROP, capability).is_err() {
            break;
        }
    }
    if rustix::process::geteuid().is_root() {
        // EPERM, EINVAL: root of a user namespace that forbids setgroups, or that does not map nobody.
        let tolerated = |result: std::io::Result<()>, what: &'static str| match result {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EPERM | libc::EINVAL)) => {
                Err(error).context(what)
            }
            _ => Ok(()),
        };
        tolerated(sys::set_groups(&[]), "drop groups")?;
        tolerated(sys::set_gid(NOBODY), "drop the group id")?;
        tolerated(sys::set_uid(NOBODY), "drop the user id")?;
    }
    caps::clear(None, caps::CapSet::Effective).context("drop effective capabilities")?;
    caps::clear(None, caps::CapSet::Permitted).context("drop permitted capabilities")?;
    caps::clear(None, caps::CapSet::Inheritable).context("drop inheritable capabilities")
}

/// What an allocator, threads and writes to open descriptors need. All else is EPERM and not a kill: std and
/// glibc try things (reading /proc for the CPU quota) that they can do without.
fn filter() -> Result<ScmpFilterContext> {
    const ALLOWED: [&str; 33] = [
        "brk",
        "clock_gettime",
        "clock_nanosleep",
        "close",
        "exit",
        "exit_group",
        "fstat",
        "futex",
        "getpid",
        "getrandom",
        "gettid",
        "gettimeofday",
        "lseek",
        "madvise",
        "mmap",
        "mprotect",
        "mremap",
        "munmap",
        "nanosleep",
        "pread64",
        "pwrite64",
        "read",
        "restart_syscall",
        "rseq",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "sched_getaffinity",
        "sched_yield",
        "set_robust_list",
        "sigaltstack",
        "write",
        "writev",
    ];
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(libc::EPERM))?;
    for name in ALLOWED {
        filter.add_rule(ScmpAction::Allow, ScmpSyscall::from_name(name)?)?;
    }
    // Threads, not processes. clone3 hides its flags behind a pointer; without it glibc uses clone.
    let thread = libc::CLONE_THREAD as u64;
    let is_thread = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(thread), thread);
    filter.add_rule_conditional(ScmpAction::Allow, ScmpSyscall::from_name("clone")?, &[is_thread])?;
    filter.add_rule(ScmpAction::Errno(libc::ENOSYS), ScmpSyscall::from_name("clone3")?)?;
    // abort(3), so that a failed allocation ends at once: signals to itself only.
    let own = ScmpArgCompare::new(2, ScmpCompareOp::Equal, libc::SIGABRT as u64);
    filter.add_rule_conditional(ScmpAction::Allow, ScmpSyscall::from_name("tgkill")?, &[own])?;
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Forks belong in a process with one thread, which the test harness is not.
    fn alone(test: &str) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("linux::confine::tests::{test}"), "--ignored", "--test-threads=1"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{test}: {text}");
    }

    const SMALL: ConfineLimits = ConfineLimits { memory: 64 << 20, deadline: 30 };

    fn line(limits: &ConfineLimits, mut job: impl FnMut() -> Result<()>) -> String {
        run(limits, &[], &mut job).err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[test]
    fn a_confined_child_can_only_compute() {
        alone("forks_and_tries_everything");
    }

    #[test]
    #[ignore = "run by a_confined_child_can_only_compute in a process of its own"]
    fn forks_and_tries_everything() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let hidden = writer.as_raw_fd();
        let mut job = || {
            let denied = [
                rustix::fs::open("/etc/passwd", OFlags::RDONLY, Mode::empty()).err(),
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
                    .err(),
                rustix::process::kill_process(rustix::process::getppid().unwrap(), Signal::KILL).err(),
                rustix::fs::mkdir("/tmp/runw-confined", Mode::empty()).err(),
            ];
            anyhow::ensure!(denied.iter().all(|error| *error == Some(Errno::PERM)), "allowed: {denied:?}");
            anyhow::ensure!(Command::new("/bin/true").status().is_err(), "executed a program");
            anyhow::ensure!(rustix::io::write(&writer, b"kept").is_ok(), "cannot write what was kept");
            let sum =
                std::thread::spawn(|| (0..1000u64).sum::<u64>()).join().map_err(|_| anyhow!("thread"))?;
            anyhow::ensure!(sum == 499_500, "threads do not compute");
            Ok(())
        };
        run(&SMALL, &[hidden], &mut job).unwrap();
        let mut kept = [0; 4];
        rustix::io::read(&reader, &mut kept).unwrap();
        assert_eq!(&kept, b"kept");
        let closed = || {
            anyhow::ensure!(rustix::io::write(&writer, b"x") == Err(Errno::BADF), "not closed");
            Ok(())
        };
        assert_eq!(line(&SMALL, closed), "");
    }

    #[test]
    fn how_it_ends_is_one_clear_line() {
        alone("forks_and_ends_badly");
    }

    #[test]
    #[ignore = "run by how_it_ends_is_one_clear_line in a process of its own"]
    fn forks_and_ends_badly() {
        assert_eq!(line(&SMALL, || Ok(())), "");
        assert_eq!(line(&SMALL, || bail!("two\nlines")), "two | lines");
        assert_eq!(line(&SMALL, || panic!("told {}", 1)), "panicked: told 1");
        let begun = Instant::now();
        let quick = ConfineLimits { deadline: 1, ..SMALL };
        let forever = || loop {
            std::hint::spin_loop();
        };
        // A machine so busy that the clock speaks first says it in other words.
        assert!(line(&quick, forever).contains("the deadline of 1 s of CPU time"));
        let asleep = || loop {
            std::thread::sleep(Duration::from_secs(1));
        };
        assert_eq!(
            line(&quick, asleep),
            "it was not done after 5 s, 5 times the deadline of 1 s of CPU time"
        );
        assert!(begun.elapsed() < Duration::from_secs(30));
        let greedy = || {
            let mut held = Vec::new();
            loop {
                held.push(std::hint::black_box(vec![1u8; 1 << 20]));
            }
        };
        assert!(
            line(&SMALL, greedy).contains("more than the 64 MiB of memory allowed"),
            "{}",
            line(&SMALL, greedy)
        );
        // Where no cgroup can be made.
        let uncaged = run_in(None, &SMALL, &[], &mut { greedy }).unwrap_err().to_string();
        assert!(uncaged.contains("for want of more than the 64 MiB"), "{uncaged}");
        assert!(run_in(None, &SMALL, &[], &mut || Ok(())).is_ok());
    }

    #[test]
    fn a_cgroup_goes_with_its_child() {
        let Some(cage) = Cage::make(64 << 20) else {
            return eprintln!("skipped: no cgroup can be made here");
        };
        let place = cage.place().to_owned();
        assert!(place.is_dir());
        drop(cage);
        assert!(!place.exists());
    }
}
