//! The last gate before a guest runs in this process: whatever the container's own profile allows, an engine that was
//! broken into can do no more than files, sockets of the internet, memory and threads. No program is executed any more,
//! nothing is made executable, no process is traced, no mount or namespace made.
//!
//! Written out by hand, since it is loaded in the child, where libseccomp may not be called. The kernel remembers for
//! each call that is allowed unconditionally that it is (seccomp's action cache), so the length costs nothing there.

use std::mem::offset_of;

use anyhow::{Context, Result};

use super::sys;

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
    libc::SYS_dup, libc::SYS_dup3, libc::SYS_fcntl, libc::SYS_ppoll, libc::SYS_epoll_create1, libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_pipe2,
    // Files: what WASI has.
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_fstatfs,
    libc::SYS_getdents64, libc::SYS_readlinkat, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_mkdirat,
    libc::SYS_unlinkat, libc::SYS_linkat, libc::SYS_symlinkat, libc::SYS_renameat, libc::SYS_renameat2,
    libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_fadvise64, libc::SYS_fsync, libc::SYS_fdatasync,
    libc::SYS_utimensat,
    // Sockets, made by the rule below.
    libc::SYS_bind, libc::SYS_listen, libc::SYS_accept4, libc::SYS_accept, libc::SYS_connect, libc::SYS_getsockname,
    libc::SYS_getpeername, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg,
    libc::SYS_sendmmsg, libc::SYS_recvmmsg, libc::SYS_setsockopt, libc::SYS_getsockopt, libc::SYS_shutdown,
];

/// Loads it; needs no_new_privs and one thread.
pub fn load() -> Result<()> {
    let program = program(rustix::process::getpid().as_raw_nonzero().get() as u32);
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

fn program(own_pid: u32) -> Vec<libc::sock_filter> {
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
    let internet = [libc::AF_INET, libc::AF_INET6].map(|family| Test::Equals(family as u32));
    if_argument(&mut program, libc::SYS_socket, 0, &internet);
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
    use std::io;
    use std::os::fd::AsFd;

    use super::*;
    use crate::linux::sys::Cloned;

    /// Runs `job` as native code where the guest would be; its exit status is how many calls it found wrong.
    fn in_place_of_a_guest(job: impl FnOnce() -> i32) -> i32 {
        match sys::clone3(0, None, false).unwrap() {
            Cloned::Child => {
                let loaded = sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).is_ok() && load().is_ok();
                sys::exit_now(if loaded { job() } else { 100 })
            }
            Cloned::Parent { pidfd, .. } => {
                let id = rustix::process::WaitId::PidFd(pidfd.as_fd());
                let ended = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED).unwrap();
                ended.unwrap().exit_status().unwrap_or(-1)
            }
        }
    }

    fn call(number: i64, args: [u64; 4]) -> i32 {
        // SAFETY: every call made here is one that must be refused; none gets a pointer.
        let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], 0, 0) };
        if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
    }

    /// Without arguments; unfiltered they succeed or fail otherwise, as root.
    #[rustfmt::skip]
    const REFUSED: &[i64] = &[
        libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace, libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev, libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot,
        libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_fsopen, libc::SYS_mount_setattr, libc::SYS_setns,
        libc::SYS_unshare, libc::SYS_bpf, libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module,
        libc::SYS_kexec_load, libc::SYS_perf_event_open, libc::SYS_io_uring_setup, libc::SYS_userfaultfd,
        libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_open_by_handle_at, libc::SYS_name_to_handle_at,
        libc::SYS_mknodat, libc::SYS_fchmodat, libc::SYS_fchownat, libc::SYS_setuid, libc::SYS_setgroups,
        libc::SYS_capset, libc::SYS_personality, libc::SYS_seccomp, libc::SYS_setxattr, libc::SYS_sethostname,
        libc::SYS_reboot, libc::SYS_swapon, libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd, libc::SYS_prlimit64, libc::SYS_vmsplice, libc::SYS_shmget, libc::SYS_mq_open,
        // The same number in x32's clothes.
        libc::SYS_read | 0x4000_0000,
    ];

    #[rustfmt::skip]
    const REFUSED_SO: &[(i64, [u64; 4])] = &[
        (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0]),
        (libc::SYS_mmap, [0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as u64, 0x22]),
        (libc::SYS_mprotect, [0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as u64, 0]),
        (libc::SYS_socket, [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, 0]),
        (libc::SYS_socket, [libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, 0, 0]),
        (libc::SYS_socket, [libc::AF_PACKET as u64, libc::SOCK_RAW as u64, 0, 0]),
        (libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0]),
        (libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0]),
        (libc::SYS_tgkill, [1, 1, 0, 0]),
        (libc::SYS_kill, [1, 0, 0, 0]),
    ];

    #[test]
    fn a_broken_engine_can_do_no_more_than_its_guest() {
        let wrong = in_place_of_a_guest(|| {
            let none = REFUSED.iter().map(|number| (*number, [0; 4]));
            let allowed = |(number, args): &(i64, [u64; 4])| {
                !matches!(call(*number, *args), libc::EPERM | libc::EACCES)
            };
            let threads = call(libc::SYS_clone3, [0; 4]) != libc::ENOSYS;
            none.chain(REFUSED_SO.iter().copied()).filter(allowed).count() as i32 + i32::from(threads)
        });
        assert_eq!(wrong, 0);
    }

    #[test]
    fn a_guest_s_own_work_goes_on() {
        let wrong = in_place_of_a_guest(|| {
            let thread = std::thread::spawn(|| std::fs::read_dir("/").map(Iterator::count).unwrap_or(0));
            let files = thread.join().unwrap_or(0);
            let socket = std::net::UdpSocket::bind("127.0.0.1:0");
            let waited = std::panic::catch_unwind(|| std::thread::sleep(std::time::Duration::from_millis(1)));
            i32::from(files == 0) + 2 * i32::from(socket.is_err()) + 4 * i32::from(waited.is_err())
        });
        assert_eq!(wrong, 0);
    }
}
