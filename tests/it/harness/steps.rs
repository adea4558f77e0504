//! How many instructions runw executes, counted one by one (ptrace(2)): a number that no load of the machine changes, which
//! callgrind would tell as well if valgrind knew pidfd_open(2) and clone3(2).

use std::collections::HashSet;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Of the command and its children, in user mode, until the command ends; of each child until it becomes another program.
pub fn instructions(command: &mut Command) -> u64 {
    // SAFETY: ptrace(2) is a system call alone, as fork(2) demands here.
    unsafe { command.pre_exec(|| check(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0))) };
    let first = command.spawn().expect("run the command").id() as i32;
    let mut traced = HashSet::new();
    let mut count = 0;
    loop {
        let (pid, status) = wait(-1).expect("the command's own end");
        if !libc::WIFSTOPPED(status) {
            traced.remove(&pid);
            if pid == first {
                assert_eq!(status, 0, "{command:?}");
                break;
            }
            continue;
        }
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        let begins = traced.insert(pid);
        if begins {
            let options = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE;
            trace(libc::PTRACE_SETOPTIONS, pid, options | libc::PTRACE_O_TRACEEXEC);
        }
        if event == libc::PTRACE_EVENT_EXEC && pid != first {
            traced.remove(&pid);
            trace(libc::PTRACE_DETACH, pid, 0);
            continue;
        }
        let stepped = signal == libc::SIGTRAP && event == 0;
        count += u64::from(stepped);
        let delivered = if stepped || event != 0 || begins { 0 } else { signal };
        trace(libc::PTRACE_SINGLESTEP, pid, delivered);
    }
    for pid in traced {
        release(pid);
    }
    count
}

/// What waits in a call is stopped first: only then it can be left alone.
fn release(pid: i32) {
    // SAFETY: a signal to a process that is our tracee, and therefore not yet anybody else's number.
    unsafe { libc::kill(pid, libc::SIGSTOP) };
    while let Some((_, status)) = wait(pid).filter(|(_, status)| libc::WIFSTOPPED(*status)) {
        if libc::WSTOPSIG(status) == libc::SIGSTOP {
            return trace(libc::PTRACE_DETACH, pid, 0);
        }
        trace(libc::PTRACE_CONT, pid, 0);
    }
}

/// The next change of state of `pid`, or of any; of this thread's children and tracees, for others are other tests'.
fn wait(pid: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is live for the call.
    let pid = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    (pid > 0).then_some((pid, status))
}

/// A tracee that was killed meanwhile says so at the next wait.
fn trace(request: libc::c_uint, pid: i32, data: i32) {
    // SAFETY: none of these requests takes a pointer.
    let _ = check(unsafe { libc::ptrace(request, pid, 0, i64::from(data)) });
}

fn check(result: libc::c_long) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
