//! The last gate before a guest runs in this process: whatever the container's own profile allows, an engine that was
//! broken into can do no more than files, sockets of the internet, memory and threads. No program is executed any more,
//! nothing is made executable, no process is traced, no mount or namespace made.
//!
//! Written out by hand, since it is loaded in the child, where libseccomp may not be called. The kernel remembers for
//! each call that is allowed unconditionally that it is (seccomp's action cache), so the length costs nothing there.

use std::mem::offset_of;

use anyhow::{Context, Result};

use super::sys;
use crate::seam::Network;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e; // linux/audit.h, AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64

#[cfg(target_arch = "x86_64")]
const OWN_TO_ARCH: [i64; 2] = [libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(target_arch = "aarch64")]
const OWN_TO_ARCH: [i64; 0] = [];

#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    // Memory, threads, time.
    libc::SYS_brk, libc::SYS_mremap, libc::SYS_munmap, libc::SYS_madvise, libc::SYS_membarrier, libc::SYS_memfd_create,
    libc::SYS_futex, libc::SYS_rseq, libc::SYS_set_robust_list, libc::SYS_sched_getaffinity, libc::SYS_sched_yield,
    libc::SYS_exit, libc::SYS_exit_group, libc::SYS_restart_syscall, libc::SYS_getrandom, libc::SYS_clock_getres,
    libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_nanosleep, libc::SYS_gettimeofday,
    // Who am I.
    libc::SYS_getpid, libc::SYS_getppid, libc::SYS_gettid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid,
    libc::SYS_getegid, libc::SYS_uname,
    // The signals by which a guest traps, and by which it ends.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    // Descriptors.
    libc::SYS_read, libc::SYS_readv, libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2, libc::SYS_write,
    libc::SYS_writev, libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2, libc::SYS_lseek, libc::SYS_close,
    libc::SYS_dup, libc::SYS_dup3, libc::SYS_ppoll, libc::SYS_epoll_create1, libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_pipe2,
    // Files: what WASI has.
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_fstatfs,
    libc::SYS_getdents64, libc::SYS_readlinkat, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_mkdirat,
    libc::SYS_unlinkat, libc::SYS_linkat, libc::SYS_symlinkat, libc::SYS_renameat, libc::SYS_renameat2,
    libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_fadvise64, libc::SYS_fsync, libc::SYS_fdatasync,
    libc::SYS_utimensat,
    // Sockets, made by the rule above.
    libc::SYS_bind, libc::SYS_listen, libc::SYS_accept4, libc::SYS_accept, libc::SYS_connect, libc::SYS_getsockname,
    libc::SYS_getpeername, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg,
    libc::SYS_sendmmsg, libc::SYS_recvmmsg, libc::SYS_setsockopt, libc::SYS_getsockopt, libc::SYS_shutdown,
];

/// Loads it; needs no_new_privs and one thread.
pub fn load(network: &Network) -> Result<()> {
    let program = program(rustix::process::getpid().as_raw_nonzero().get() as u32, network.sockets);
    let short = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    sys::seccomp_filter(&short)
        .context("load the guest's own seccomp filter (does linux.seccomp forbid seccomp(2)?)")
}

/// A test of the call's number or of half an argument; all values fit in 32 bits.
#[derive(Clone, Copy)]
enum Test {
    Equals(u32),
    Has(u32),
}

fn program(own_pid: u32, sockets: bool) -> Vec<libc::sock_filter> {
    let mut program = vec![
        load_word(offset_of!(libc::seccomp_data, arch)),
        jump(Test::Equals(ARCH), 1, 0),
        give(deny(libc::EPERM)),
        load_word(offset_of!(libc::seccomp_data, nr)),
    ];
    // glibc's threads fall back to clone(2), whose flags can be seen.
    on_call(&mut program, libc::SYS_clone3, &[give(deny(libc::ENOSYS))]);
    // Threads only: no child that lives on by itself.
    if_argument(&mut program, libc::SYS_clone, 0, &[Test::Has(libc::CLONE_THREAD as u32)]);
    unless_argument(&mut program, libc::SYS_mmap, 2, Test::Has(libc::PROT_EXEC as u32));
    unless_argument(&mut program, libc::SYS_mprotect, 2, Test::Has(libc::PROT_EXEC as u32));
    if sockets {
        let internet = [libc::AF_INET, libc::AF_INET6].map(|family| Test::Equals(family as u32));
        if_argument(&mut program, libc::SYS_socket, 0, &internet);
    }
    // No F_SETOWN, by which the kernel signals whomever it is told to, and no lease or notification.
    let duties = [
        libc::F_DUPFD,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
    ];
    if_argument(&mut program, libc::SYS_fcntl, 1, &duties.map(|duty| Test::Equals(duty as u32)));
    // No TIOCSTI, by which a terminal types by itself, and nothing of any driver.
    let terminal = [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS, libc::TIOCGWINSZ];
    if_argument(&mut program, libc::SYS_ioctl, 1, &terminal.map(|request| Test::Equals(request as u32)));
    if_argument(
        &mut program,
        libc::SYS_prctl,
        0,
        &[Test::Equals(libc::PR_SET_NAME as u32), Test::Equals(PR_SET_VMA)],
    );
    // abort(3).
    if_argument(&mut program, libc::SYS_tgkill, 0, &[Test::Equals(own_pid)]);
    for &call in ALLOWED.iter().chain(&OWN_TO_ARCH) {
        on_call(&mut program, call, &[give(libc::SECCOMP_RET_ALLOW)]);
    }
    program.push(give(deny(libc::EPERM)));
    program
}

/// linux/prctl.h: names for anonymous memory.
const PR_SET_VMA: u32 = 0x5356_4d41;

fn deny(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

/// `then` must end in a verdict on every way through it.
fn on_call(program: &mut Vec<libc::sock_filter>, call: i64, then: &[libc::sock_filter]) {
    program.push(jump(Test::Equals(call as u32), 0, then.len() as u8));
    program.extend_from_slice(then);
}

fn if_argument(program: &mut Vec<libc::sock_filter>, call: i64, argument: usize, any_of: &[Test]) {
    let mut then = vec![load_word(argument_at(argument))];
    for test in any_of {
        then.extend([jump(*test, 0, 1), give(libc::SECCOMP_RET_ALLOW)]);
    }
    then.push(give(deny(libc::EPERM)));
    on_call(program, call, &then);
}

fn unless_argument(program: &mut Vec<libc::sock_filter>, call: i64, argument: usize, test: Test) {
    let verdicts = [give(deny(libc::EACCES)), give(libc::SECCOMP_RET_ALLOW)];
    on_call(program, call, &[&[load_word(argument_at(argument)), jump(test, 0, 1)], &verdicts[..]].concat());
}

/// The lower half, on the little-endian machines we run on.
fn argument_at(index: usize) -> usize {
    offset_of!(libc::seccomp_data, args) + index * size_of::<u64>()
}

fn load_word(at: usize) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at as u32, 0, 0)
}

fn give(verdict: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, verdict, 0, 0)
}

fn jump(test: Test, if_true: u8, if_false: u8) -> libc::sock_filter {
    let (how, value) = match test {
        Test::Equals(value) => (libc::BPF_JEQ, value),
        Test::Has(bits) => (libc::BPF_JSET, bits),
    };
    statement(libc::BPF_JMP | how | libc::BPF_K, value, if_true, if_false)
}

fn statement(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::linux::intruder;

    fn filtered(network: &Network, job: impl FnOnce() -> Vec<String>) -> Vec<String> {
        intruder::in_a_process(|| {
            sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).unwrap();
            load(network).unwrap();
            job()
        })
    }

    const ALL: Network = Network { sockets: true, listens: true, connects: None };

    #[test]
    fn a_broken_engine_can_do_no_more_than_its_guest() {
        assert_eq!(filtered(&ALL, intruder::calls_let_through), [""; 0]);
    }

    #[test]
    fn without_a_network_there_is_no_socket() {
        let wrong = filtered(&Network::default(), || {
            let made = std::net::UdpSocket::bind("127.0.0.1:0").is_ok();
            made.then(|| "a socket".to_owned()).into_iter().collect()
        });
        assert_eq!(wrong, [""; 0]);
    }

    #[test]
    fn a_guest_s_own_work_goes_on() {
        let wrong = filtered(&ALL, || {
            let thread = std::thread::spawn(|| std::fs::read_dir("/").map(Iterator::count).unwrap_or(0));
            let mut wrong = Vec::new();
            let mut must = |holds: bool, what: &str| {
                if !holds {
                    wrong.push(what.to_owned())
                }
            };
            must(thread.join().unwrap_or(0) > 0, "a thread that reads a directory");
            must(std::net::UdpSocket::bind("127.0.0.1:0").is_ok(), "a socket");
            let waits = || std::thread::sleep(std::time::Duration::from_millis(1));
            must(std::panic::catch_unwind(waits).is_ok(), "to wait");
            must(std::io::stdout().as_fd().try_clone_to_owned().is_ok(), "to duplicate a descriptor");
            wrong
        });
        assert_eq!(wrong, [""; 0]);
    }
}
