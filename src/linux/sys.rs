//! The system calls that no crate wraps, each in the smallest safe form we need. Nothing else here.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What Rust's runtime does before `main` that matters to us (std, sys/pal/unix): no descriptor we open may become
/// a standard stream, and a closed pipe is an error, not a signal.
pub fn start() {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    // SAFETY: three live structures; a timeout of 0 never waits.
    let polled = unsafe { libc::poll(streams.as_mut_ptr(), streams.len() as libc::nfds_t, 0) };
    let closed = |stream: &&libc::pollfd| polled < 0 || stream.revents & libc::POLLNVAL != 0;
    for stream in streams.iter().filter(closed).filter(|stream| is_closed(stream.fd)) {
        // SAFETY: the path is a NUL-terminated literal. It gets the lowest free number, this one.
        let opened = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        if opened != stream.fd {
            exit_now(1);
        }
    }
    // The heap grows by as much as most verbs need: a step of 128 KiB each is a call each.
    const STEP: i32 = 512 << 10;
    // SAFETY: SIG_IGN is no code of ours, and mallopt sets a number.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::mallopt(libc::M_TOP_PAD, STEP);
    }
    // With these every error would collect a backtrace, for 40 ms, which nobody is shown.
    ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"]
        .into_iter()
        .filter(|name| std::env::var_os(name).is_some())
        .for_each(forget_env);
}

/// Which side of `clone3` we are on.
pub enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// clone3(2) with fork semantics (`SIGCHLD` at exit, copy of the address space) and a pidfd.
///
/// Raw, so glibc's atfork handlers do not run: callable only while this process has one thread, which is an
/// invariant of runw until the workload runs. `into_cgroup` is a cgroup v2 directory (CLONE_INTO_CGROUP, 5.7).
/// `sibling` makes the child our parent's child (CLONE_PARENT), as an intermediate process needs it.
pub fn clone3(namespaces: u64, into_cgroup: Option<BorrowedFd<'_>>, sibling: bool) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers; all-zero is its documented "nothing asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // Not libc's name for the second: its c_int overflows to 0. It is CLONE_CLEAR_SIGHAND (5.5): what a handler of ours
    // would do is not the child's.
    args.flags = namespaces | libc::CLONE_PIDFD as u64 | 0x1_0000_0000;
    args.pidfd = &raw mut pidfd as u64;
    if sibling {
        // clone3(2): with CLONE_PARENT the exit signal is the parent's own and must be given as 0.
        args.flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(dir) = into_cgroup {
        // Not libc::CLONE_INTO_CGROUP: its c_int overflows to 0.
        args.flags |= 0x2_0000_0000;
        args.cgroup = dir.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM, so the child has its own copy of memory; `args` and `pidfd` outlive the call and the
    // size passed is the size of what is pointed to.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: on success the kernel stored a new descriptor, owned by nobody else, in `pidfd`.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// The argument of mount_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns_fd: u64,
}

pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;
pub const MOUNT_ATTR_ATIME: u64 = 0x70;
pub const MOUNT_ATTR_RELATIME: u64 = 0;
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
pub const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
pub const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
pub const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x20_0000;
pub const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

/// mount_setattr(2) (5.12) on the mount that `mount` itself names.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` is a live repr(C) struct of the size passed; the path is a NUL-terminated literal.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
}

/// close_range(2) (5.9) over `first..=last`.
pub fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: closing descriptors touches no memory. No OwnedFd may be used for the range afterwards; callers
    // do this as a process's last act before it becomes the workload.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
}

/// setns(2) with a pidfd (5.8) or a namespace descriptor; `kinds` are CLONE_NEW* bits.
pub fn setns(fd: BorrowedFd<'_>, kinds: i32) -> io::Result<()> {
    // SAFETY: integers only; we have one thread, so nothing shares the changed namespaces unexpectedly.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), kinds) })
}

/// unshare(2).
pub fn unshare(kinds: i32) -> io::Result<()> {
    // SAFETY: integers only; CLONE_FILES, CLONE_FS and CLONE_VM are never passed.
    check(unsafe { libc::syscall(libc::SYS_unshare, kinds) })
}

/// prctl(2) with integer arguments only.
pub fn prctl(option: i32, arg: u64) -> io::Result<i32> {
    // SAFETY: every option used with this wrapper takes integers, so no memory is involved.
    let result = unsafe { libc::prctl(option, arg, 0u64, 0u64, 0u64) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// seccomp(2), a filter without flags. Allocates nothing.
pub fn seccomp_filter(program: &libc::sock_fprog) -> io::Result<()> {
    // SAFETY: the caller's `program` points to `len` instructions; the kernel copies them and writes nothing.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(program))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// sethostname(2).
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of one live str.
    check(unsafe { libc::syscall(libc::SYS_sethostname, name.as_ptr(), name.len()) })
}

/// setdomainname(2).
pub fn set_domainname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of one live str.
    check(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) })
}

/// setgroups(2) of this thread, which is the only one.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: gid_t is u32; pointer and length are of one live slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

/// setresgid(2), all three to `gid`.
pub fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })
}

/// setresuid(2), all three to `uid`.
pub fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
}

/// prlimit(2) on another process.
pub fn prlimit(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is live for the call; the old value is not asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
}

/// keyctl(KEYCTL_JOIN_SESSION_KEYRING) and its serial.
pub fn join_session_keyring(name: &CStr) -> io::Result<i32> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let serial = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if serial < 0 { Err(io::Error::last_os_error()) } else { Ok(serial as i32) }
}

/// execveat(2) of an open file; returns only when it failed.
pub fn execveat(file: BorrowedFd<'_>, argv: &[&CStr], envp: &[&CStr]) -> io::Error {
    let argv: Vec<_> = argv.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
    let envp: Vec<_> = envp.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
    // SAFETY: both arrays end in NULL and point to strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// execve(2); returns only when it failed.
pub fn execve(path: &CStr, argv: &[&CStr], envp: &[&CStr]) -> io::Error {
    let argv: Vec<_> = argv.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
    let envp: Vec<_> = envp.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
    // SAFETY: `path` is NUL-terminated, both arrays end in NULL and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// _exit(2): a cloned child must not run the parent's exit handlers.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(status) }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// SIOCSIFFLAGS with IFF_UP on the named interface of the socket's network namespace.
pub fn interface_up(socket: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: ifreq is plain integers and a name; all-zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes().iter().take(libc::IFNAMSIZ - 1)) {
        *to = *from as libc::c_char;
    }
    // The only flag of a new loopback interface that can be changed and is not 0 already.
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: `request` is a live ifreq, which the ioctl takes.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) }.into())
}

/// prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE).
pub fn ambient_raise(cap: u64) -> io::Result<()> {
    // SAFETY: integers only.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, cap, 0u64, 0u64) };
    check(result.into())
}

/// Descriptor 0, 1 or 2, which may be closed: then every call on it says EBADF.
pub fn standard_stream(fd: i32) -> BorrowedFd<'static> {
    debug_assert!((0..3).contains(&fd));
    // SAFETY: the number is not -1, and standard streams are owned by nobody, for the whole of the process.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// dup3(2) onto a number.
pub fn replace_fd(fd: BorrowedFd<'_>, number: i32, close_on_exec: bool) -> io::Result<()> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: whoever owns `number` goes on owning a descriptor, of what the caller means it to be.
    check(unsafe { libc::syscall(libc::SYS_dup3, fd.as_raw_fd(), number, flags) })
}

/// A descriptor that a workload says it holds.
pub fn own_fd(number: i32) -> BorrowedFd<'static> {
    debug_assert!(number >= 0);
    // SAFETY: the number is not -1; a wrong one makes the call it is used for fail with EBADF.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Whether the number names no open descriptor.
pub fn is_closed(fd: i32) -> bool {
    // SAFETY: F_GETFD takes any number and touches no memory.
    unsafe { libc::fcntl(fd, libc::F_GETFD) < 0 }
}

/// close_range(2) with CLOSE_RANGE_CLOEXEC (5.11), one fcntl(2) each where it is missing.
pub fn close_on_exec_from(first: i32) -> io::Result<()> {
    // SAFETY: changes flags of descriptors only.
    let result =
        check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) });
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)) => {
            for fd in first..1024 {
                // SAFETY: F_SETFD takes any number and touches no memory.
                unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        }
        other => other,
    }
}

/// pidfd_getfd(2): our own descriptor for number `fd` of another process.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    check(result)?;
    // SAFETY: success is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// pidfd_send_signal(2) with any number, 0 and real-time signals included.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: integers and a null siginfo, which means "as kill(2) would".
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
}

/// Takes a variable out of our environment.
pub fn forget_env(name: &str) {
    // SAFETY: one thread, an invariant of runw until the workload runs, so nobody reads the environment meanwhile.
    unsafe { std::env::remove_var(name) };
}

/// The argument of sched_setattr(2), in the size Linux has known since 5.3.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub util_min: u32,
    pub util_max: u32,
}

/// sched_setattr(2) on ourselves.
pub fn sched_setattr(attr: &SchedAttr) -> io::Result<()> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: `attr` is a live repr(C) struct without padding, whose first member is its size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
}

/// ioprio_set(2) on ourselves.
pub fn ioprio_set(priority: i32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) })
}

/// personality(2).
pub fn personality(domain: u64) -> io::Result<()> {
    // SAFETY: an integer only; what it changes of this process's memory is where later mappings go.
    check(unsafe { libc::syscall(libc::SYS_personality, domain) })
}

/// 1024 NUMA nodes, the most Linux can be built for.
pub type NodeMask = [u64; 16];

/// set_mempolicy(2) of this thread, which is the only one.
pub fn set_mempolicy(mode: i32, nodes: Option<&NodeMask>) -> io::Result<()> {
    // The kernel reads one bit less than it is told (mm/mempolicy.c, get_nodes).
    let (mask, bits) =
        nodes.map_or((std::ptr::null(), 0), |nodes| (nodes.as_ptr(), NodeMask::default().len() * 64 + 1));
    // SAFETY: the mask is null with no bits, or a live array whose last word holds the last bit that is read.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })
}

/// Adds the user's search right to a key's permissions (keyctl(2): KEYCTL_DESCRIBE, KEYCTL_SETPERM).
pub fn let_user_search(serial: i32) -> io::Result<()> {
    const KEYCTL_SETPERM: i32 = 5;
    const KEYCTL_DESCRIBE: i32 = 6;
    const KEY_USR_SEARCH: u32 = 0x0008_0000;
    let mut text = [0u8; 512];
    // SAFETY: the kernel writes at most the length given into the live buffer.
    let length =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_DESCRIBE, serial, text.as_mut_ptr(), text.len()) };
    check(length)?;
    // "type;uid;gid;perm;description", perm in hexadecimal.
    let text = String::from_utf8_lossy(&text);
    let permissions = text.split(';').nth(3).and_then(|field| u32::from_str_radix(field, 16).ok());
    let permissions = permissions.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, serial, permissions | KEY_USR_SEARCH) })
}
