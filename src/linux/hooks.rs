//! Hooks: programs of the engine that are told the container's state on stdin (runtime-spec config.md, "POSIX-platform
//! Hooks"). When each kind runs is its caller's business.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::log;

/// Where hooks of one kind run.
#[derive(Clone, Copy, Default)]
pub struct Place<'a> {
    pub directory: Option<&'a Path>,
    /// What a hook without `env` gets; `None` is runw's own environment, which nothing in the container may see.
    pub env: Option<&'a [String]>,
    /// The process whose end ends the hook: `delete --force` kills init, and the runtime that waits for a hook of it
    /// must let go of the container.
    pub while_alive: Option<BorrowedFd<'a>>,
    pub output: Option<&'a Capture>,
}

/// Files that get what hooks say; without one it is kept for the error message.
#[derive(Debug, Default)]
pub struct Capture {
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Capture {
    pub fn open(stdout: Option<&str>, stderr: Option<&str>) -> Result<Capture> {
        let open = |path: Option<&str>| {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o700);
            path.map(|path| {
                options.open(path).with_context(|| format!("open {path} for the output of hooks"))
            })
            .transpose()
        };
        Ok(Capture { stdout: open(stdout)?, stderr: open(stderr)? })
    }

    pub fn fds(&self) -> Vec<RawFd> {
        self.stdout.iter().chain(&self.stderr).map(AsRawFd::as_raw_fd).collect()
    }
}

impl<'a> Place<'a> {
    /// In the runtime's own namespaces.
    pub fn host(directory: Option<&'a Path>) -> Place<'a> {
        Place { directory, ..Place::default() }
    }
}

/// Runs them in order; the first that fails ends it. `kind` is the name in config.json.
pub fn run(kind: &str, hooks: Option<&Vec<Hook>>, state: &[u8], place: Place<'_>) -> Result<()> {
    failures(kind, hooks, state, place).next().map_or(Ok(()), Err)
}

/// One that fails is warned of, and the others run all the same (runtime-spec runtime.md, steps 9 and 13).
pub fn run_all(kind: &str, hooks: Option<&Vec<Hook>>, state: &[u8], place: Place<'_>) {
    for error in failures(kind, hooks, state, place) {
        log::warn(&format!("{error:#}"));
    }
}

/// Runs one hook after the other, as far as it is asked for the next failure.
fn failures(
    kind: &str,
    hooks: Option<&Vec<Hook>>,
    state: &[u8],
    place: Place<'_>,
) -> impl Iterator<Item = anyhow::Error> {
    hooks.into_iter().flatten().enumerate().filter_map(move |(index, hook)| {
        one(hook, state, place)
            .err()
            .map(|error| error.context(format!("error running {kind} hook #{index}")))
    })
}

fn one(hook: &Hook, state: &[u8], place: Place<'_>) -> Result<()> {
    let mut command = Command::new(hook.path());
    if let Some((first, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(first).args(rest);
    }
    // As in runc: any env means exactly that.
    if let Some(env) = hook.env().as_deref().or(place.env) {
        command.env_clear().envs(env.iter().filter_map(|pair| pair.split_once('=')));
    }
    if let Some(directory) = place.directory {
        command.current_dir(directory);
    }
    let stream =
        |file: Option<&File>| file.map_or(Ok(Stdio::piped()), |file| file.try_clone().map(Stdio::from));
    let output = place.output;
    command.stdout(stream(output.and_then(|output| output.stdout.as_ref()))?);
    command.stderr(stream(output.and_then(|output| output.stderr.as_ref()))?);
    let child = command.stdin(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("start {}", hook.path().display()))?;
    let deadline = hook.timeout().map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    let output = match attend(&mut child, state, deadline, place.while_alive) {
        Ok(output) => output,
        Err(error) => {
            // The hook alone, as in runc and crun: in a process group of its own it would not end with a `run` that is
            // interrupted at the terminal.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    if output.status.success() {
        return Ok(());
    }
    bail!(
        "{}, stdout: {}, stderr: {}",
        describe(output.status),
        String::from_utf8_lossy(&output.stdout).trim_end(),
        String::from_utf8_lossy(&output.stderr).trim_end()
    )
}

/// Go's words for a failed process, which users of runc grep for.
fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    let Some(signal) = status.signal() else {
        return format!("exit status {}", status.code().unwrap_or_default());
    };
    let name = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        libc::SIGSYS => "bad system call",
        _ => return format!("signal: signal {signal}"),
    };
    format!("signal: {name}{}", if status.core_dumped() { " (core dumped)" } else { "" })
}

struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Feeds and drains the hook until it exits; a process it leaves behind may keep the pipes, not us.
fn attend(
    child: &mut Child,
    state: &[u8],
    timeout: Option<Duration>,
    while_alive: Option<BorrowedFd<'_>>,
) -> Result<Output> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("bad pid")?;
    let exited = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    let (mut stdin, mut out, mut err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    for fd in [
        stdin.as_ref().map(rustix::fd::AsFd::as_fd),
        out.as_ref().map(rustix::fd::AsFd::as_fd),
        err.as_ref().map(rustix::fd::AsFd::as_fd),
    ]
    .into_iter()
    .flatten()
    {
        rustix::io::ioctl_fionbio(fd, true)?;
    }
    let end = timeout.map(|timeout| Instant::now() + timeout);
    let (mut left, mut stdout, mut stderr) = (state, Vec::new(), Vec::new());
    loop {
        feed(&mut stdin, &mut left);
        drain(&mut out, &mut stdout);
        drain(&mut err, &mut stderr);
        if let Some(status) = child.try_wait()? {
            drain(&mut out, &mut stdout);
            drain(&mut err, &mut stderr);
            return Ok(Output { status, stdout, stderr });
        }
        let mut fds = vec![PollFd::new(&exited, PollFlags::IN)];
        fds.extend(stdin.as_ref().map(|fd| PollFd::new(fd, PollFlags::OUT)));
        fds.extend(out.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(err.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let init = fds.len();
        fds.extend(while_alive.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => {
                bail!("hook ran past specified timeout of {:.1}s", timeout.unwrap_or_default().as_secs_f64())
            }
            Ok(_) if fds.get(init).is_some_and(|fd| !fd.revents().is_empty()) => {
                bail!("container init ended while the hook ran")
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the hook"),
        }
    }
}

/// A hook need not read its stdin.
fn feed(pipe: &mut Option<impl Write>, left: &mut &[u8]) {
    if let Some(to) = pipe {
        match to.write(left) {
            Ok(written) if written > 0 => *left = &left[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            _ => *left = &[],
        }
        if left.is_empty() {
            *pipe = None;
        }
    }
}

fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) {
    /// What of a hook's output is worth keeping for the error message.
    const KEEP: usize = 64 * 1024;
    let mut buffer = [0; 4096];
    while let Some(from) = pipe {
        match from.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(count) => into.extend_from_slice(&buffer[..count.min(KEEP.saturating_sub(into.len()))]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => *pipe = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::HookBuilder;

    use super::*;

    fn hook(script: &str) -> Hook {
        let args = vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
        HookBuilder::default().path("/bin/sh").args(args).timeout(5i64).build().unwrap()
    }

    #[test]
    fn a_hook_reads_the_state_and_its_failure_names_what_it_said() {
        let hooks = vec![hook("test \"$(cat)\" = state"), hook("echo out; echo err >&2; exit 3")];
        let error = format!("{:#}", run("prestart", Some(&hooks), b"state", Place::default()).unwrap_err());
        assert_eq!(error, "error running prestart hook #1: exit status 3, stdout: out, stderr: err");
    }

    #[test]
    fn a_hook_that_reads_nothing_and_says_much_does_not_block() {
        let big = vec![b'x'; 1 << 20];
        run("prestart", Some(&vec![hook("head -c 200000 /dev/zero")]), &big, Place::default()).unwrap();
    }

    #[test]
    fn a_hook_that_leaves_a_process_behind_does_not_hold_us() {
        let started = Instant::now();
        run("prestart", Some(&vec![hook("sleep 4 & exit 0")]), b"", Place::default()).unwrap();
        assert!(started.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn a_hook_past_its_timeout_is_killed() {
        let args = vec!["sleep".to_owned(), "9".to_owned()];
        let slow = HookBuilder::default().path("/bin/sleep").args(args).timeout(1i64).build().unwrap();
        let error = format!("{:#}", run("poststop", Some(&vec![slow]), b"", Place::default()).unwrap_err());
        assert!(error.contains("hook ran past specified timeout of 1.0s"), "{error}");
    }
}
