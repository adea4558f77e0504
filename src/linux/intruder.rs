//! For tests: native code where a guest would run, which is what a compromised engine is. It tries what it should not
//! be able to do, and tells what it could.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags};

use super::sys;
use crate::seam::{Granted, Needs, Network, Prepared, Workload};

/// What `job` says of itself in a process of its own, made by glibc's fork, which sees to its allocator's locks: tests
/// have threads.
pub fn in_a_process(job: impl FnOnce() -> Vec<String>) -> Vec<String> {
    let (mut reader, mut writer) = io::pipe().unwrap();
    // SAFETY: the child runs the job and ends by _exit; nothing of the parent's is unwound in it.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(reader);
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job))
            .unwrap_or_else(|_| vec!["it panicked".to_owned()]);
        let _ = writer.write_all(said.join("\n").as_bytes());
        sys::exit_now(42);
    }
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let mut status = 0;
    // SAFETY: `status` is a live integer.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    // A job that was killed has said nothing, which must not count as a good answer.
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 42), "{text}");
    text.lines().map(str::to_owned).collect()
}

/// Of this process.
pub fn write_output_to(path: &std::path::Path) {
    let file = std::fs::File::create(path).unwrap();
    for stream in [1, 2] {
        sys::replace_fd(file.as_fd(), stream, false).unwrap();
    }
}

/// Without arguments; unfiltered they succeed or fail otherwise, as root.
#[rustfmt::skip]
const REFUSED: &[(&str, i64)] = &[
    ("execve", libc::SYS_execve), ("execveat", libc::SYS_execveat), ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv), ("process_vm_writev", libc::SYS_process_vm_writev),
    ("mount", libc::SYS_mount), ("umount2", libc::SYS_umount2), ("pivot_root", libc::SYS_pivot_root),
    ("chroot", libc::SYS_chroot), ("open_tree", libc::SYS_open_tree), ("move_mount", libc::SYS_move_mount),
    ("fsopen", libc::SYS_fsopen), ("mount_setattr", libc::SYS_mount_setattr), ("setns", libc::SYS_setns),
    ("unshare", libc::SYS_unshare), ("bpf", libc::SYS_bpf), ("init_module", libc::SYS_init_module),
    ("finit_module", libc::SYS_finit_module), ("delete_module", libc::SYS_delete_module),
    ("kexec_load", libc::SYS_kexec_load), ("perf_event_open", libc::SYS_perf_event_open),
    ("io_uring_setup", libc::SYS_io_uring_setup), ("userfaultfd", libc::SYS_userfaultfd),
    ("keyctl", libc::SYS_keyctl), ("add_key", libc::SYS_add_key), ("request_key", libc::SYS_request_key),
    ("open_by_handle_at", libc::SYS_open_by_handle_at), ("name_to_handle_at", libc::SYS_name_to_handle_at),
    ("mknodat", libc::SYS_mknodat), ("fchmodat", libc::SYS_fchmodat), ("fchownat", libc::SYS_fchownat),
    ("setuid", libc::SYS_setuid), ("setgroups", libc::SYS_setgroups), ("capset", libc::SYS_capset),
    ("personality", libc::SYS_personality), ("seccomp", libc::SYS_seccomp), ("setxattr", libc::SYS_setxattr),
    ("sethostname", libc::SYS_sethostname), ("reboot", libc::SYS_reboot), ("swapon", libc::SYS_swapon),
    ("settimeofday", libc::SYS_settimeofday), ("clock_settime", libc::SYS_clock_settime),
    ("pidfd_open", libc::SYS_pidfd_open), ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal), ("prlimit64", libc::SYS_prlimit64),
    ("vmsplice", libc::SYS_vmsplice), ("shmget", libc::SYS_shmget), ("mq_open", libc::SYS_mq_open),
    ("pkey_mprotect", libc::SYS_pkey_mprotect), ("remap_file_pages", libc::SYS_remap_file_pages),
    ("sched_setaffinity", libc::SYS_sched_setaffinity), ("setpriority", libc::SYS_setpriority),
    // The same number in x32's clothes.
    ("read of x32", libc::SYS_read | 0x4000_0000),
];

#[rustfmt::skip]
const REFUSED_SO: &[(&str, i64, [u64; 4])] = &[
    ("fork", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0]),
    ("clone with a user namespace", libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0]),
    ("mmap of code", libc::SYS_mmap, [0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as u64, 0x22]),
    ("mmap of writable code", libc::SYS_mmap, [0, 4096, 7, 0x22]),
    ("mprotect to code", libc::SYS_mprotect, [0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as u64, 0]),
    ("a unix socket", libc::SYS_socket, [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, 0]),
    ("a netlink socket", libc::SYS_socket, [libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, 0, 0]),
    ("a packet socket", libc::SYS_socket, [libc::AF_PACKET as u64, libc::SOCK_RAW as u64, 0, 0]),
    ("an alg socket", libc::SYS_socket, [libc::AF_ALG as u64, libc::SOCK_SEQPACKET as u64, 0, 0]),
    ("a vsock", libc::SYS_socket, [libc::AF_VSOCK as u64, libc::SOCK_STREAM as u64, 0, 0]),
    ("a socket pair", libc::SYS_socketpair, [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, 0]),
    ("TIOCSTI", libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0]),
    ("PR_SET_DUMPABLE", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0]),
    ("F_SETOWN", libc::SYS_fcntl, [0, libc::F_SETOWN as u64, 1, 0]),
    ("F_SETSIG", libc::SYS_fcntl, [0, 10, libc::SIGKILL as u64, 0]),
    ("a signal to another's thread", libc::SYS_tgkill, [1 << 20, 1 << 20, 0, 0]),
    ("a signal", libc::SYS_kill, [1, 0, 0, 0]),
];

/// Which of the calls that no guest has a use for are not refused.
pub fn calls_let_through() -> Vec<String> {
    let call = |number: i64, args: [u64; 4]| {
        // SAFETY: every call made here is one that must be refused; none gets a pointer.
        let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], 0, 0) };
        if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
    };
    let none = REFUSED.iter().map(|(name, number)| (*name, *number, [0; 4]));
    let allowed = |(_, number, args): &(&str, i64, [u64; 4])| {
        !matches!(call(*number, *args), libc::EPERM | libc::EACCES)
    };
    let calls = none.chain(REFUSED_SO.iter().copied()).filter(allowed).map(|(name, ..)| name.to_owned());
    // glibc's threads would not take EPERM for an answer.
    let threads = call(libc::SYS_clone3, [0; 4]) != libc::ENOSYS;
    calls.chain(threads.then(|| "clone3".to_owned())).collect()
}

/// Takes the place of a guest, with what a guest has: stdio, and its files.
#[derive(Default)]
pub struct Intruder {
    files: Option<OwnedFd>,
}

impl Workload for Intruder {
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn needs(&self) -> Needs {
        Needs { guest_tree: true, carry: Vec::new(), in_process: true }
    }

    fn undecided(&self) -> bool {
        false
    }

    fn look(&mut self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }

    fn prepare_found(&mut self, _file: OwnedFd) -> Result<Prepared> {
        bail!("nothing was looked for")
    }

    fn adopt(&mut self, _prepared: Prepared) {}

    fn ready(&mut self, granted: Granted) -> Result<()> {
        let tree = granted.tree.context("no guest tree")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.files = Some(rustix::fs::openat(&tree, ".", flags, Mode::empty())?);
        Ok(())
    }

    fn env(&self) -> Option<&[String]> {
        None
    }

    fn keeps(&self) -> Vec<RawFd> {
        self.files.iter().map(AsRawFd::as_raw_fd).collect()
    }

    fn network(&self) -> Network {
        Network { sockets: true, listens: true, connects: None }
    }

    fn stop(&self) -> Option<RawFd> {
        None
    }

    fn run(&mut self) -> Result<i32> {
        let mut found = calls_let_through();
        found.extend(paths_that_lead_out());
        found.extend(descriptors_that_lead_out(self.keeps()));
        // What a guest may do it still can, or the rest would prove nothing.
        let own = std::fs::write("/tmp/mine", "x").and_then(|()| std::fs::read("/etc/group"));
        if let Err(error) = own {
            found.push(format!("its own files: {error}"));
        }
        found.push("done".to_owned());
        rustix::io::write(rustix::stdio::stdout(), format!("{}\n", found.join("\n")).as_bytes())?;
        Ok(0)
    }
}

fn is_there(dir: RawFd, path: &str) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat(sys::own_fd(dir), path, flags, Mode::empty()).is_ok()
}

/// Of the container's kernel file systems and of the host, by any spelling.
const ELSEWHERE: [&str; 6] =
    ["proc/self/mem", "proc/1/environ", "dev/null", "sys/kernel", "sys/fs/cgroup/pids", "usr/bin/env"];

fn paths_that_lead_out() -> Vec<String> {
    let mut found = Vec::new();
    for path in ELSEWHERE {
        for way in ["/", "", "../../../../../../", "/../../../"] {
            let path = format!("{way}{path}");
            if std::fs::symlink_metadata(&path).is_ok() {
                found.push(format!("path {path}"));
            }
        }
    }
    found
}

/// All that is open but stdio and `known`; and whether a directory among them leads anywhere else.
fn descriptors_that_lead_out(known: Vec<RawFd>) -> Vec<String> {
    let mut found = Vec::new();
    for fd in 0..1024 {
        let Ok(stat) = rustix::fs::fstat(sys::own_fd(fd)) else { continue };
        if fd > 2 && !known.contains(&fd) {
            found.push(format!("descriptor {fd}"));
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let ways = ELSEWHERE.iter().map(|path| format!("../../../../../../{path}"));
            found.extend(ways.filter(|way| is_there(fd, way)).map(|way| format!("{way} of descriptor {fd}")));
        }
    }
    found
}
