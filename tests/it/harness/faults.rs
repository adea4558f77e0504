//! A supervisor of system calls: a command runs under a seccomp filter that asks us about each call of it and of
//! all its descendants (seccomp_unotify(2)), so that a test can make any one call of the container's own process
//! fail, or kill the runtime right before it. strace cannot: following the container's process hangs create.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, poll};

use super::{Running, spawn};

/// One system call, before it happens.
#[derive(Clone, Debug)]
pub struct Call {
    /// Of the command itself, by whichever of its threads; all others are its descendants'.
    pub by_runtime: bool,
    /// Of a process's first thread.
    pub by_main_thread: bool,
    pub name: String,
    pub args: [u64; 6],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// The call returns this errno and does nothing.
    Fail(i32),
    /// The command is killed, and the call goes on.
    KillRuntime,
}

/// Everything that was called, in order; grows as long as anything runs.
pub type Calls = Arc<Mutex<Vec<Call>>>;

/// Starts `command` with `decide` as the judge of its calls.
pub fn supervised(
    command: &mut Command,
    decide: impl FnMut(&Call) -> Verdict + Send + 'static,
) -> (Running, Calls) {
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe for the listener");
    // High, since the filter lets every write to this number pass unasked.
    let writer = rustix::io::fcntl_dupfd_cloexec(&writer, 900).expect("dup");
    let number = writer.as_raw_fd();
    let calls = Calls::default();
    let seen = calls.clone();
    let supervisor = std::thread::spawn(move || supervise(reader, seen, decide));
    // SAFETY: `install` only makes system calls on memory of its own stack, as is allowed between fork and execve.
    unsafe { command.pre_exec(move || install(number)) };
    let running = spawn(command);
    drop((writer, supervisor));
    (running, calls)
}

/// In the command's process: loads the filter and tells which descriptor the listener is. The supervisor fetches it
/// while the next call, which waits for it already, stands still.
fn install(tell: RawFd) -> std::io::Result<()> {
    // Now: once the filter is there only a write to `tell` gets through before the supervisor listens.
    let pid = std::process::id() as i32;
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, equal, ret) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    // struct seccomp_data: nr at 0, args at 16.
    let mut program = [
        op(load, 0, 0, 0),
        op(equal, libc::SYS_exit_group as u32, 6, 0),
        op(equal, libc::SYS_exit as u32, 5, 0),
        op(equal, libc::SYS_rt_sigreturn as u32, 4, 0),
        op(equal, libc::SYS_write as u32, 0, 2),
        op(load, 16, 0, 0),
        op(equal, tell as u32, 1, 0),
        op(ret, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
        op(ret, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program lives until the call returns; the kernel copies it.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &filter,
        )
    };
    if listener < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let mut message = [0; 8];
    message[..4].copy_from_slice(&pid.to_ne_bytes());
    message[4..].copy_from_slice(&(listener as i32).to_ne_bytes());
    // SAFETY: the buffer is as long as said.
    match unsafe { libc::write(tell, message.as_ptr().cast(), message.len()) } {
        8 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn supervise(from: OwnedFd, seen: Calls, mut decide: impl FnMut(&Call) -> Verdict) {
    let mut message = [0; 8];
    std::fs::File::from(from).read_exact(&mut message).expect("the listener's number");
    let number = |bytes: &[u8]| i32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    let (pid, fd) = (number(&message[..4]), number(&message[4..]));
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("pidfd_open");
    let flags = rustix::process::PidfdGetfdFlags::empty();
    let listener = rustix::process::pidfd_getfd(&pidfd, fd, flags).expect("the listener");
    let mut names = HashMap::new();
    let mut processes = HashMap::new();
    while let Some(notice) = next(&listener) {
        let number = notice.data.nr;
        let name = names.entry(number).or_insert_with(|| {
            libseccomp::ScmpSyscall::from(number).get_name().unwrap_or_else(|_| number.to_string())
        });
        let thread = notice.pid as i32;
        let process = *processes.entry(thread).or_insert_with(|| process_of(thread));
        let call = Call {
            by_runtime: process == pid.as_raw_nonzero().get(),
            by_main_thread: process == thread,
            name: name.clone(),
            args: notice.data.args,
        };
        let verdict = decide(&call);
        seen.lock().expect("calls").push(call);
        if verdict == Verdict::KillRuntime {
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            // The child must find it dead, not dying.
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None);
        }
        answer(&listener, notice.id, verdict);
    }
}

/// The process that a thread is of; the thread itself when it is gone already.
fn process_of(thread: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    process.and_then(|process| process.trim().parse().ok()).unwrap_or(thread)
}

/// `None` when no process is left that could ask.
fn next(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let events = fds[0].revents();
        if events.contains(PollFlags::IN) {
            // SAFETY: all fields are integers, and the kernel wants them zero.
            let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the request takes a pointer to this very struct.
            let got = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &mut notice) };
            // The asker may have been killed meanwhile.
            if got == 0 {
                return Some(notice);
            }
        } else if events.intersects(PollFlags::HUP | PollFlags::ERR) {
            return None;
        }
    }
}

fn answer(listener: &OwnedFd, id: u64, verdict: Verdict) {
    let (error, flags) = match verdict {
        Verdict::Fail(errno) => (-errno, 0),
        _ => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let response = libc::seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the request takes a pointer to this very struct. An asker that is gone needs no answer.
    unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), SEND, &response) };
}

/// SECCOMP_IOCTL_NOTIF_RECV and _SEND, which the libc crate does not have (linux/seccomp.h; 80 and 24 bytes).
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;

#[allow(dead_code, reason = "a size that differs would make both numbers wrong")]
const SIZES: () =
    assert!(size_of::<libc::seccomp_notif>() == 80 && size_of::<libc::seccomp_notif_resp>() == 24);
