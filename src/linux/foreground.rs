//! The parent of a foreground `run` or `exec`: one poll loop that forwards signals, reaps, relays the terminal and
//! ends with the process's status. It must not start a thread, and must leave the caller's terminal as it was.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, OutputModes, Termios};

use crate::linux::lifecycle::Handle;
use crate::linux::notify::Proxy;
use crate::linux::{kernel_file, sys};

/// A write this small never blocks on a pipe that poll(2) calls writable (PIPE_BUF, pipe(7)).
const CHUNK: usize = 4096;

/// The last signal number, signal(7).
const LAST_SIGNAL: i32 = 64;

/// The caller's signal mask, put back by `restore`. Holding one is what `wait` asks as proof that no signal has
/// been lost since before the clone.
pub struct Signals {
    before: libc::sigset_t,
}

/// Before the clone: from now on signals wait to be forwarded. The child starts with this mask as well and must
/// call `reset_signals_in_child`.
pub fn block_signals() -> Result<Signals> {
    // waitpid(2): an engine that ignores SIGCHLD passes that on, and our children would be reaped without us.
    set_default(libc::SIGCHLD).context("cannot set the SIGCHLD disposition")?;
    let mut before = empty_set();
    set_mask(&full_set(), Some(&mut before)).context("cannot block signals")?;
    Ok(Signals { before })
}

impl Signals {
    /// Back to the mask the caller gave us: for a parent that does not wait after all.
    pub fn restore(self) -> Result<()> {
        set_mask(&self.before, None).context("cannot restore the signal mask")
    }
}

/// The signals that are ignored, a bit each from 1 up: proc_pid_status(5). All of them where it does not say.
pub fn ignored() -> u64 {
    let status = kernel_file::read_value("/proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    field.and_then(|field| u64::from_str_radix(field.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// In the child, whose handlers the clone has reset: what is `ignored` to its default and an empty mask, as execve(2)
/// leaves both of them unchanged. We ignore SIGPIPE, and a workload must not inherit that.
pub fn reset_signals_in_child(ignored: u64) -> Result<()> {
    for signal in (1..=LAST_SIGNAL).filter(|signal| ignored & (1 << (signal - 1)) != 0) {
        // EINVAL: SIGKILL and SIGSTOP cannot have a disposition.
        match set_default(signal) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => {
                return Err(error).with_context(|| format!("cannot reset signal {signal}"));
            }
            _ => {}
        }
    }
    set_mask(&empty_set(), None).context("cannot unblock signals")
}

/// Orphans of the container come to us, so an init made by an intermediate process can be waited for.
pub fn set_subreaper() -> Result<()> {
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).context("cannot become a subreaper")?;
    Ok(())
}

/// Waits for a child (or adopted orphan) of ours, and says how it ended: its own status, or 128 + the
/// signal. `master` is relayed to stdin and stdout; without it only signals are passed on.
pub fn wait(
    _blocked: &Signals,
    child: &Handle,
    master: Option<OwnedFd>,
    mut notify: Option<Proxy>,
) -> Result<i32> {
    let (process, pidfd) = (child.process, child.pidfd.as_fd());
    let signals = signal_fd().context("cannot make a signalfd")?;
    let mut relay = master.map(Relay::new).transpose()?;
    let mut status = None;
    while status.is_none() {
        wake(signals.as_fd(), pidfd, relay.as_mut(), notify.as_ref())?;
        if let Some(proxy) = &notify
            && proxy.pass_on(std::process::id() as i32)?
        {
            notify = None;
        }
        while let Some(signal) = next_signal(signals.as_fd())? {
            match signal {
                libc::SIGWINCH => relay.iter().for_each(Relay::fit_window),
                // SIGURG is not forwarded as in runc; SIGPIPE is about our own output, not about the workload.
                libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE => {}
                signal => forward(pidfd, signal)?,
            }
        }
        status = reap(process.pid)?;
        if status.is_none() && exited(pidfd)? {
            // Between the reaping above and now: once more. Still nothing: it never was ours to wait for.
            status = reap(process.pid)?;
            if status.is_none() {
                bail!(
                    "container process {} ended, but it is not a child of runw: exit status unknown",
                    process.pid
                );
            }
        }
    }
    if let Some(relay) = &mut relay {
        relay.drain(signals.as_fd())?;
    }
    status.context("no exit status")
}

/// Sleeps until a signal, the process's end, or the terminal has something for us; moves the terminal's bytes.
fn wake(
    signals: BorrowedFd<'_>,
    pidfd: BorrowedFd<'_>,
    relay: Option<&mut Relay>,
    notify: Option<&Proxy>,
) -> Result<()> {
    let notify = notify.map(|notify| PollFd::from_borrowed_fd(notify.as_fd(), PollFlags::IN));
    let always = [signals, pidfd].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let mut fds: Vec<PollFd<'_>> = always.into_iter().chain(notify).collect();
    let base = fds.len();
    let Some(relay) = relay else {
        return poll_all(&mut fds).map(|_| ());
    };
    let [input, out, terminal] = relay.interests();
    // poll(2) ignores a negative descriptor, but a hang-up is reported even for no events: so leave it out.
    let wanted =
        [(input, relay.stdin.as_fd()), (out, relay.stdout.as_fd()), (terminal, relay.master.as_fd())];
    fds.extend(
        wanted
            .iter()
            .filter(|(events, _)| !events.is_empty())
            .map(|&(events, fd)| PollFd::from_borrowed_fd(fd, events)),
    );
    poll_all(&mut fds)?;
    let mut seen = fds[base..].iter().map(PollFd::revents);
    let ready = [input, out, terminal].map(|events| {
        if events.is_empty() { PollFlags::empty() } else { seen.next().unwrap_or(PollFlags::empty()) }
    });
    relay.move_bytes(ready);
    Ok(())
}

fn poll_all(fds: &mut [PollFd<'_>]) -> Result<()> {
    match poll(fds, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("cannot poll"),
    }
}

fn exited(pidfd: BorrowedFd<'_>) -> Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&now)) {
        Ok(n) => Ok(n > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error).context("cannot poll the container process"),
    }
}

/// Reaps every child that has ended, ours and the adopted; the status of `pid` when it is among them.
fn reap(pid: i32) -> Result<Option<i32>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live integer for the kernel to write to.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match ended {
            0 => return Ok(None),
            -1 => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::ECHILD) => return Ok(None),
                    Some(libc::EINTR) => {}
                    _ => return Err(error).context("cannot wait for the container process"),
                }
            }
            ended if ended == pid => return Ok(Some(exit_status(status))),
            _ => {}
        }
    }
}

fn exit_status(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

fn forward(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: no siginfo is passed, so no memory is involved.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    let error = io::Error::last_os_error();
    // ESRCH: it has ended meanwhile and the next round reaps it.
    if result == 0 || error.raw_os_error() == Some(libc::ESRCH) {
        return Ok(());
    }
    Err(error).with_context(|| format!("cannot forward signal {signal} to the container process"))
}

/// Bytes on their way from one descriptor to another.
struct Pipe {
    bytes: [u8; CHUNK],
    start: usize,
    end: usize,
}

impl Pipe {
    fn new() -> Pipe {
        Pipe { bytes: [0; CHUNK], start: 0, end: 0 }
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Fills the empty pipe. `Ok(0)` is the end of the source.
    fn fill(&mut self, from: BorrowedFd<'_>) -> Result<usize, Errno> {
        let n = rustix::io::read(from, &mut self.bytes)?;
        (self.start, self.end) = (0, n);
        Ok(n)
    }

    fn flush(&mut self, to: BorrowedFd<'_>) -> Result<(), Errno> {
        self.start += rustix::io::write(to, &self.bytes[self.start..self.end])?;
        Ok(())
    }

    fn discard(&mut self) {
        self.start = self.end;
    }
}

/// The terminal between the container's pty and the caller's stdin and stdout.
struct Relay {
    master: OwnedFd,
    stdin: OwnedFd,
    stdout: OwnedFd,
    typed: Pipe,
    shown: Pipe,
    /// No more input: end of stdin, which is not passed on (runc does not either).
    input_over: bool,
    /// Nobody has the slave open: the master reports a hang-up for ever, so it is not polled again.
    hung: bool,
    /// The reader of our stdout has gone; the container's output is still taken so it does not stall.
    unread: bool,
    /// Restores the caller's terminal when dropped.
    _raw: Option<RawMode>,
    window: Option<OwnedFd>,
}

impl Relay {
    fn new(master: OwnedFd) -> Result<Relay> {
        let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).context("cannot use stdin")?;
        let stdout = own_description(rustix::stdio::stdout()).context("cannot use stdout")?;
        let window = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]
            .into_iter()
            .find(|fd| rustix::termios::isatty(fd))
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3))
            .transpose()
            .context("cannot use the terminal")?;
        let flags = rustix::fs::fcntl_getfl(&master).context("cannot use the pty")?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK).context("cannot use the pty")?;
        let raw = if rustix::termios::isatty(&stdin) { Some(RawMode::enter(&stdin)?) } else { None };
        let relay = Relay {
            master,
            stdin,
            stdout,
            typed: Pipe::new(),
            shown: Pipe::new(),
            input_over: false,
            hung: false,
            unread: false,
            _raw: raw,
            window,
        };
        relay.fit_window();
        Ok(relay)
    }

    /// The pty takes the size of the caller's terminal. Failure is ignored as in runc: the terminal may have gone
    /// with the SIGHUP that is on its way.
    fn fit_window(&self) {
        if let Some(window) = &self.window
            && let Ok(size) = rustix::termios::tcgetwinsize(window)
        {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    /// What to poll for on stdin, stdout and the master: each buffer is either being filled or being emptied.
    fn interests(&self) -> [PollFlags; 3] {
        let when = |condition, flags| if condition { flags } else { PollFlags::empty() };
        let input = when(!self.input_over && !self.hung && self.typed.is_empty(), PollFlags::IN);
        let out = when(!self.shown.is_empty(), PollFlags::OUT);
        let terminal = when(!self.hung && self.shown.is_empty(), PollFlags::IN)
            | when(!self.hung && !self.typed.is_empty(), PollFlags::OUT);
        [input, out, terminal]
    }

    fn move_bytes(&mut self, [input, out, terminal]: [PollFlags; 3]) {
        if !input.is_empty() && self.typed.is_empty() {
            match self.typed.fill(self.stdin.as_fd()) {
                Ok(1..) | Err(Errno::AGAIN | Errno::INTR) => {}
                // EIO: our terminal has hung up or we are in its background as an orphan.
                Ok(0) | Err(_) => self.input_over = true,
            }
        }
        if terminal.contains(PollFlags::OUT) && !self.typed.is_empty() {
            match self.typed.flush(self.master.as_fd()) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => self.typed.discard(),
            }
        }
        if terminal.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && self.shown.is_empty() {
            match self.shown.fill(self.master.as_fd()) {
                Ok(1..) | Err(Errno::AGAIN | Errno::INTR) => {}
                // ioctl_tty(2): EIO on the master is what a closed slave looks like.
                Ok(0) | Err(_) => self.hung = true,
            }
        }
        if !out.is_empty() || self.unread {
            self.show();
        }
    }

    fn show(&mut self) {
        if self.unread {
            self.shown.discard();
        }
        if self.shown.is_empty() {
            return;
        }
        match self.shown.flush(self.stdout.as_fd()) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => {
                self.unread = true;
                self.shown.discard();
            }
        }
    }

    /// After the end of the process: what it wrote still stands in the pty. A non-blocking read takes all of it
    /// (n_tty flushes the line's buffer before it says EAGAIN), and others that hold the slave are not waited for.
    fn drain(&mut self, signals: BorrowedFd<'_>) -> Result<()> {
        loop {
            if self.shown.is_empty() {
                match self.shown.fill(self.master.as_fd()) {
                    Ok(1..) => {}
                    Err(Errno::INTR) => continue,
                    Ok(0) | Err(_) => return Ok(()),
                }
            }
            if !self.unread {
                let mut fds = [
                    PollFd::from_borrowed_fd(self.stdout.as_fd(), PollFlags::OUT),
                    PollFd::from_borrowed_fd(signals, PollFlags::IN),
                ];
                poll_all(&mut fds)?;
                // Whoever signals us now wants us gone, and a stuck reader must not prevent that.
                while let Some(signal) = next_signal(signals)? {
                    if matches!(signal, libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT) {
                        return Ok(());
                    }
                }
            }
            self.show();
        }
    }
}

/// stdout with an O_NONBLOCK of our own where that is possible: the flag belongs to the open file description,
/// which we share with the caller's shell, and a terminal stopped by ^S would block us for ever otherwise.
fn own_description(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    // Never a regular file: a second description has its own offset and would overwrite.
    if kind == FileType::Fifo || (kind == FileType::CharacterDevice && rustix::termios::isatty(fd)) {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if let Ok(own) = rustix::fs::open(path, flags, Mode::empty()) {
            return Ok(own);
        }
    }
    rustix::io::fcntl_dupfd_cloexec(fd, 3)
}

/// The caller's terminal in raw mode for as long as this lives.
struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    fn enter(terminal: &OwnedFd) -> Result<RawMode> {
        let before = rustix::termios::tcgetattr(terminal).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        // As runc: output processing stays on, see `terminal::plain_newlines`.
        raw.output_modes.insert(OutputModes::OPOST);
        debug_assert!(!raw.local_modes.contains(LocalModes::ISIG));
        let terminal = terminal.try_clone().context("cannot use the terminal")?;
        rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &raw)
            .context("cannot make the terminal raw")?;
        Ok(RawMode { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // All signals are blocked, so SIGTTOU cannot stop us here even in the background (tcsetattr(3)).
        let _ = rustix::termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

fn signal_fd() -> io::Result<OwnedFd> {
    let all = full_set();
    // SAFETY: `all` is an initialised set that outlives the call; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd gave a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn next_signal(signals: BorrowedFd<'_>) -> Result<Option<i32>> {
    // signalfd(2): reads are whole structures; ssi_signo is the first field, in host order.
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(signals, &mut info) {
        Ok(n) if n == info.len() => Ok(Some(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]) as i32)),
        Ok(n) => bail!("signalfd gave {n} bytes"),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error).context("cannot read signals"),
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set it is given, and cannot fail for a valid pointer.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn full_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the whole set it is given, and cannot fail for a valid pointer.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn set_mask(set: &libc::sigset_t, before: Option<&mut libc::sigset_t>) -> io::Result<()> {
    let before = before.map_or(std::ptr::null_mut(), std::ptr::from_mut);
    // SAFETY: both sets are live and initialised (or null, which the call allows for the old one).
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, before) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Raw, because glibc hides its own two signals, and its posix_spawn leaves one of them ignored in whatever it
/// starts (seen: SigIgn 0x80000000 under cargo), which would be passed on to the workload.
fn set_default(signal: i32) -> io::Result<()> {
    // The kernel's struct sigaction: handler, flags, restorer, mask; all zero is SIG_DFL without flags.
    let action = [0u64; 4];
    // SAFETY: `action` is at least as large as the kernel's structure for a mask of 8 bytes, and lives through the
    // call; SIG_DFL is no function, so nothing of ours can be called in a wrong context.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            action.as_ptr(),
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::linux::sys::Cloned;
    use crate::linux::terminal::{self, Pty};
    use rustix::termios::Winsize;

    fn open_pty(size: Option<(u16, u16)>) -> Pty {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let devpts = rustix::fs::open("/dev/pts", flags, Mode::empty()).unwrap();
        terminal::open_pty(devpts.as_fd(), size, rustix::process::getuid().as_raw()).unwrap()
    }

    /// What `runw run` does, in a process of its own (the loop reaps every child it finds): block, clone a shell
    /// with `script`, on an inner pty if asked, wait, end with its status. `setup` arranges A's own stdio.
    fn run(script: &str, inner: bool, setup: impl FnOnce() -> Result<()>) -> i32 {
        // SAFETY: glibc's fork keeps the allocator usable; the child runs the closure below and _exits.
        match unsafe { libc::fork() } {
            0 => {
                // Other tests' pipes were copied by the fork; held here they would never report their end.
                let result = setup()
                    .and_then(|()| Ok(sys::close_range(3, u32::MAX)?))
                    .and_then(|()| foreground(script, inner));
                sys::exit_now(result.unwrap_or(99))
            }
            pid => pid,
        }
    }

    fn foreground(script: &str, inner: bool) -> Result<i32> {
        set_subreaper()?;
        let blocked = block_signals()?;
        let pty = inner.then(|| open_pty(None));
        pty.iter().for_each(|pty| terminal::plain_newlines(pty.master.as_fd()).unwrap());
        match sys::clone3(0, None, false)? {
            Cloned::Child => {
                if let Some(pty) = &pty {
                    rustix::process::setsid()?;
                    terminal::make_controlling(pty.slave.as_fd())?;
                }
                reset_signals_in_child(u64::MAX)?;
                let error = Command::new("/bin/sh").args(["-c", script]).exec();
                Err(error.into())
            }
            Cloned::Parent { pid, pidfd } => {
                let master = pty.map(|pty| pty.master);
                let process = crate::seam::Process { pid, start_time: 0 };
                wait(&blocked, &Handle { process, pidfd }, master, None)
            }
        }
    }

    fn status_of(pid: i32) -> i32 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut status = 0;
            // SAFETY: `status` is a live integer; `pid` is our child.
            match unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } {
                0 if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                0 => {
                    kill(pid, libc::SIGKILL);
                    panic!("foreground process {pid} hangs");
                }
                _ => return exit_status(status),
            }
        }
    }

    fn kill(pid: i32, signal: i32) {
        // SAFETY: integers only; the pid is of an unreaped child of ours.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    fn stdio(input: &impl AsFd, output: &impl AsFd) -> Result<()> {
        rustix::stdio::dup2_stdin(input)?;
        rustix::stdio::dup2_stdout(output)?;
        Ok(())
    }

    /// Reads until `end` has been seen; nothing else may come for 20 seconds.
    fn read_until(from: &impl AsFd, end: &str) -> String {
        let mut got = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !String::from_utf8_lossy(&got).contains(end) {
            assert!(Instant::now() < deadline, "no {end:?} in {:?}", String::from_utf8_lossy(&got));
            let mut fds = [PollFd::new(from, PollFlags::IN)];
            poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
            if fds[0].revents().is_empty() {
                continue;
            }
            let mut bytes = [0; 4096];
            match rustix::io::read(from, &mut bytes) {
                Ok(n @ 1..) => got.extend(&bytes[..n]),
                other => panic!("{other:?} before {end:?}, after {:?}", String::from_utf8_lossy(&got)),
            }
        }
        String::from_utf8(got).unwrap()
    }

    #[test]
    fn the_status_is_the_processs_own_or_128_and_the_signal() {
        assert_eq!(status_of(run("exit 42", false, || Ok(()))), 42);
        assert_eq!(status_of(run("kill -KILL $$", false, || Ok(()))), 137);
        assert_eq!(status_of(run("exit 255", false, || Ok(()))), 255);
    }

    #[test]
    fn the_child_has_no_blocked_or_ignored_signal() {
        let script = "grep -qE 'SigBlk:.0000000000000000' /proc/self/status && \
                      grep -qE 'SigIgn:.0000000000000000' /proc/self/status && exit 7";
        assert_eq!(status_of(run(script, false, || Ok(()))), 7);
    }

    #[test]
    fn signals_are_forwarded_but_not_sigurg_and_sigpipe() {
        let (reader, writer) = std::io::pipe().unwrap();
        let script = "trap 'echo usr1; exit 11' USR1; trap 'echo urg' URG; trap 'echo pipe' PIPE; echo ready; \
                      while :; do sleep 0.05; done";
        let pid = run(script, false, || stdio(&std::fs::File::open("/dev/null")?, &writer));
        drop(writer);
        read_until(&reader, "ready\n");
        kill(pid, libc::SIGURG);
        kill(pid, libc::SIGPIPE);
        kill(pid, libc::SIGWINCH);
        kill(pid, libc::SIGUSR1);
        assert_eq!(status_of(pid), 11);
        let mut rest = String::new();
        let mut reader = reader;
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "usr1\n");
    }

    #[test]
    fn other_children_are_reaped_and_do_not_end_it() {
        // The background subshell's child outlives it, becomes an orphan and is adopted by the subreaper.
        let script = "(sleep 0.1 & exec true) & sleep 0.3; \
                      ps=$(cat /proc/$PPID/task/$PPID/children); [ \"$ps\" = \"$$ \" ] && exit 5; echo $ps >&2; exit 6";
        assert_eq!(status_of(run(script, false, || Ok(()))), 5);
    }

    #[test]
    fn output_on_the_pty_is_drained_and_stdin_at_its_end_does_not_spin() {
        if terminal::cannot_test() {
            return;
        }
        let (mut reader, writer) = std::io::pipe().unwrap();
        let script = "i=0; while [ $i -lt 3000 ]; do echo line-$i-0123456789012345678901234567890123456789; \
                      i=$((i+1)); done; sleep 0.3; cat /proc/$PPID/stat | cut -d' ' -f14,15; echo last";
        let pid = run(script, true, || stdio(&std::fs::File::open("/dev/null")?, &writer));
        drop(writer);
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        assert_eq!(status_of(pid), 0);
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines.len(), 3002);
        for (i, line) in lines[..3000].iter().enumerate() {
            assert_eq!(*line, format!("line-{i}-0123456789012345678901234567890123456789"));
        }
        // runc clears ONLCR on the pty: a file or pipe gets plain lines.
        assert!(!output.contains('\r'));
        // 0.3 s of spinning would be some 30 ticks on top of relaying 150 KB.
        let ticks: u64 = lines[3000].split(' ').map(|n| n.parse::<u64>().unwrap()).sum();
        assert!(ticks < 20, "{ticks} ticks of CPU time");
        assert_eq!(lines[3001], "last");
    }

    #[test]
    fn a_reader_that_goes_away_does_not_stop_the_process() {
        if terminal::cannot_test() {
            return;
        }
        let (reader, writer) = std::io::pipe().unwrap();
        let script =
            "echo go; sleep 0.2; i=0; while [ $i -lt 9000 ]; do echo 0123456789; i=$((i+1)); done; exit 3";
        let pid = run(script, true, || stdio(&std::fs::File::open("/dev/null")?, &writer));
        drop(writer);
        read_until(&reader, "go\n");
        drop(reader);
        assert_eq!(status_of(pid), 3);
    }

    #[test]
    fn a_slave_that_is_closed_for_a_while_does_not_spin() {
        if terminal::cannot_test() {
            return;
        }
        let (mut reader, writer) = std::io::pipe().unwrap();
        let script = "trap '' HUP; echo one; exec </dev/null >/dev/null 2>&1; sleep 0.5; \
                      set -- $(cat /proc/$PPID/stat); [ $((${14}+${15})) -lt 20 ]";
        let pid = run(script, true, || stdio(&std::fs::File::open("/dev/null")?, &writer));
        drop(writer);
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        assert_eq!((status_of(pid), output.as_str()), (0, "one\n"));
    }

    #[test]
    fn on_a_terminal_it_is_raw_sized_resized_and_restored() {
        if terminal::cannot_test() {
            return;
        }
        let outer = open_pty(Some((41, 123)));
        let slave = outer.slave.try_clone().unwrap();
        let before = rustix::termios::tcgetattr(&slave).unwrap();
        assert!(before.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
        let script = "trap 'stty size' WINCH; stty size; echo ready; read a; echo got=$a; \
                      while ! [ \"$(stty size)\" = '50 99' ]; do sleep 0.05; done; echo resized; \
                      trap 'echo int; exit 9' INT; echo armed; while :; do sleep 0.05; done";
        let pid = run(script, true, || {
            rustix::process::setsid()?;
            terminal::make_controlling(slave.as_fd())
        });
        let start = read_until(&outer.master, "ready");
        assert!(start.contains("41 123"), "{start:?}");
        let raw = rustix::termios::tcgetattr(&outer.slave).unwrap();
        assert!(!raw.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        assert!(raw.output_modes.contains(OutputModes::OPOST));
        rustix::io::write(&outer.master, b"typed\r").unwrap();
        let echoed = read_until(&outer.master, "got=typed");
        // Echoed once, by the inner terminal, and lines end as a terminal needs.
        assert_eq!(echoed.matches("typed").count(), 2, "{echoed:?}");
        assert!(echoed.contains("\r\n"), "{echoed:?}");
        let size = Winsize { ws_row: 50, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&outer.master, size).unwrap();
        read_until(&outer.master, "armed");
        // Raw: ^C is the container's to act on.
        rustix::io::write(&outer.master, &[3]).unwrap();
        read_until(&outer.master, "int");
        assert_eq!(status_of(pid), 9);
        let after = rustix::termios::tcgetattr(&outer.slave).unwrap();
        assert_eq!(after.local_modes, before.local_modes);
        assert_eq!(after.input_modes, before.input_modes);
        assert_eq!(after.output_modes, before.output_modes);
    }

    #[test]
    fn much_input_reaches_the_container_whole() {
        if terminal::cannot_test() {
            return;
        }
        let (input, mut feed) = std::io::pipe().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        // Raw in the container too, or the line discipline would cut lines at 4096 bytes.
        let script = "stty raw -echo; echo ready; head -c 200000 | cksum";
        let pid = run(script, true, || stdio(&input, &writer));
        drop((input, writer));
        read_until(&reader, "ready");
        let data: Vec<u8> = (0..200_000u32).map(|i| b'a' + (i * 7 % 23) as u8).collect();
        let expected = cksum(&data);
        let feeder = std::thread::spawn(move || feed.write_all(&data));
        let got = read_until(&reader, " 200000");
        feeder.join().unwrap().unwrap();
        assert_eq!(status_of(pid), 0);
        assert!(got.contains(&expected), "{got:?} is not {expected:?}");
    }

    fn cksum(data: &[u8]) -> String {
        let path = std::env::temp_dir().join(format!("runw-cksum-{}", std::process::id()));
        std::fs::write(&path, data).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let output = Command::new("cksum").stdin(file).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}
