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

use crate::linux::sys;
use crate::seam::Process;

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

/// In the child: every disposition to its default and an empty mask, as execve(2) leaves both of them otherwise
/// unchanged. Rust's runtime ignores SIGPIPE, and a workload must not inherit that.
pub fn reset_signals_in_child() -> Result<()> {
    for signal in 1..=LAST_SIGNAL {
        // EINVAL: SIGKILL, SIGSTOP and the two that libc keeps for itself cannot have a disposition.
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

/// Waits for `process`, a child (or adopted orphan) of ours, and says how it ended: its own status, or 128 + the
/// signal. `master` is relayed to stdin and stdout; without it only signals are passed on.
pub fn wait(
    _blocked: &Signals,
    process: Process,
    pidfd: BorrowedFd<'_>,
    master: Option<OwnedFd>,
) -> Result<i32> {
    let signals = signal_fd().context("cannot make a signalfd")?;
    let mut relay = master.map(Relay::new).transpose()?;
    let mut status = None;
    while status.is_none() {
        wake(signals.as_fd(), pidfd, relay.as_mut())?;
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
fn wake(signals: BorrowedFd<'_>, pidfd: BorrowedFd<'_>, relay: Option<&mut Relay>) -> Result<()> {
    let base =
        [PollFd::from_borrowed_fd(signals, PollFlags::IN), PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let Some(relay) = relay else {
        return poll_all(&mut base.to_vec()).map(|_| ());
    };
    let [input, out, terminal] = relay.interests();
    let mut fds = base.to_vec();
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
    let mut seen = fds[2..].iter().map(PollFd::revents);
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
        plain_newlines(master.as_fd()).context("cannot set up the pty")?;
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

/// runc: the caller's terminal turns new-lines into CR-NL, so the container's must not do it as well, and output
/// sent to a file stays free of CRs.
fn plain_newlines(master: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut settings = rustix::termios::tcgetattr(master)?;
    settings.output_modes.remove(OutputModes::ONLCR);
    rustix::termios::tcsetattr(master, OptionalActions::Now, &settings)
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
        // As runc: output processing stays on, see `plain_newlines`.
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

fn set_default(signal: i32) -> io::Result<()> {
    // SAFETY: SIG_DFL is no function of ours, so nothing can be called in a wrong context.
    let result = unsafe { libc::signal(signal, libc::SIG_DFL) };
    if result == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}
