//! The container's pseudo-terminal: opened from the container's own devpts, handed to whoever asked for it.
//! It must never reach a terminal by path: an image can steer every path (CVE-2025-52565, CVE-2024-21626).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes, Winsize};

/// linux/magic.h.
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// sockaddr_un.sun_path with its NUL, unix(7).
const SUN_PATH: usize = 108;

/// What runc names the master in the console socket's message: Go's name of the file it opened.
const MASTER_NAME: &str = "/dev/ptmx";

/// Both ends. `slave` becomes the process's stdio and is what `/dev/console` is bound from.
pub struct Pty {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// Opens a terminal of the devpts instance whose root directory is `devpts` (an `O_PATH` handle will do).
/// `size` is (rows, columns) of `process.consoleSize`; `owner` the uid of the process that will use it.
pub fn open_pty(devpts: BorrowedFd<'_>, size: Option<(u16, u16)>, owner: u32) -> Result<Pty> {
    ensure_devpts(devpts).context("/dev/pts")?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let master =
        rustix::fs::openat(devpts, "ptmx", flags, Mode::empty()).context("cannot open /dev/pts/ptmx")?;
    rustix::pty::unlockpt(&master).context("cannot unlock the terminal")?;
    // ioctl_tty(2): the peer of this very master, whatever is mounted on /dev/pts by now.
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .context("cannot open the terminal's slave")?;
    ensure_devpts(slave.as_fd()).context("terminal slave")?;
    if let Some((rows, columns)) = size {
        resize(master.as_fd(), Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
            .context("process.consoleSize")?;
    }
    give_to(slave.as_fd(), owner)?;
    Ok(Pty { master, slave })
}

/// In the child, after setsid(2): the slave becomes the controlling terminal and stdin, stdout, stderr.
pub fn make_controlling(slave: BorrowedFd<'_>) -> Result<()> {
    rustix::process::ioctl_tiocsctty(slave).context("cannot set the controlling terminal")?;
    rustix::stdio::dup2_stdin(slave).context("cannot put the terminal on stdin")?;
    rustix::stdio::dup2_stdout(slave).context("cannot put the terminal on stdout")?;
    rustix::stdio::dup2_stderr(slave).context("cannot put the terminal on stderr")?;
    Ok(())
}

/// The console socket's protocol: one message, its data the terminal's name, its rights the master alone.
pub fn send_master(socket: BorrowedFd<'_>, master: BorrowedFd<'_>, name: &str) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let fds = [master];
    ensure!(rights.push(SendAncillaryMessage::ScmRights(&fds)), "no room for the terminal's descriptor");
    let data = [IoSlice::new(name.as_bytes())];
    // NOSIGNAL: a receiver that has gone must be an error of ours, not our death.
    rustix::net::sendmsg(socket, &data, &mut rights, SendFlags::NOSIGNAL)
        .context("cannot send the terminal to the console socket")?;
    Ok(())
}

/// Who gets a terminal's master.
pub struct Receiver {
    socket: OwnedFd,
    /// runw itself, which shows what the foreground process writes.
    ours: bool,
}

impl Receiver {
    /// The engine behind `--console-socket`.
    pub fn engine(path: &Path) -> Result<Receiver> {
        Ok(Receiver { socket: connect(path)?, ours: false })
    }

    /// Before the process that writes to it exists.
    pub fn give(&self, master: BorrowedFd<'_>) -> Result<()> {
        if self.ours {
            plain_newlines(master).context("cannot set up the terminal")?;
        }
        send_master(self.socket.as_fd(), master, MASTER_NAME)
    }
}

impl AsRawFd for Receiver {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// runc: the caller's terminal turns new-lines into CR-NL, so the container's must not do it as well, and output
/// sent to a file stays free of CRs.
pub fn plain_newlines(master: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut settings = rustix::termios::tcgetattr(master)?;
    settings.output_modes.remove(OutputModes::ONLCR);
    rustix::termios::tcsetattr(master, OptionalActions::Now, &settings)
}

/// A pair of sockets for the terminal of a foreground process: it is handed to us as it would be to an engine.
pub fn pair() -> Result<(OwnedFd, Receiver)> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .context("cannot make a socket for the terminal")?;
    Ok((ours, Receiver { socket: theirs, ours: true }))
}

/// The master that the other end of `pair` was given to `send_master`.
pub fn receive_master(socket: &OwnedFd) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let mut parts = [IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
        .context("cannot receive the terminal")?;
    let fds = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fds.context("no terminal came over the socket")
}

/// Connects to a console socket, a pidfd socket or a seccomp agent's. Engines nest them deep (containerd's are over 108 bytes with long ids), and a
/// longer path than sockaddr_un holds is reached through a handle on the socket itself.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let fail = || format!("cannot connect to {}", path.display());
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .with_context(fail)?;
    if path.as_os_str().as_bytes().len() < SUN_PATH {
        let address = rustix::net::SocketAddrUnix::new(path).with_context(fail)?;
        rustix::net::connect(&socket, &address).with_context(fail)?;
    } else {
        let handle =
            rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).with_context(fail)?;
        let address =
            rustix::net::SocketAddrUnix::new(format!("/proc/self/fd/{}", handle.as_raw_fd()).as_str())
                .with_context(fail)?;
        rustix::net::connect(&socket, &address).with_context(fail)?;
    }
    Ok(socket)
}

/// Sets the window size of a terminal by either end.
pub fn resize(terminal: BorrowedFd<'_>, size: Winsize) -> Result<()> {
    rustix::termios::tcsetwinsize(terminal, size).context("cannot set the terminal's window size")
}

/// CVE-2025-52565: what is bound on /dev/console and becomes stdio must be a terminal that the kernel made.
fn ensure_devpts(file: BorrowedFd<'_>) -> Result<()> {
    let kind = rustix::fs::fstatfs(file).context("cannot tell the file system")?.f_type;
    ensure!(kind == DEVPTS_SUPER_MAGIC, "not on a devpts file system (type {kind:#x})");
    Ok(())
}

/// The group stays what devpts' `gid=` option made it, as in runc. With unmapped ids the kernel says EINVAL or
/// EPERM, and runc goes on: the user may still use the descriptors, only not open the terminal by name.
fn give_to(slave: BorrowedFd<'_>, owner: u32) -> Result<()> {
    let uid = rustix::fs::Uid::from_raw(owner);
    match rustix::fs::fchown(slave, Some(uid), None) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot give the terminal to uid {owner}")),
    }
}

/// Tests of terminals need the host's ptmx, which only root may open where devpts has `ptmxmode=000`.
#[cfg(test)]
pub fn cannot_test() -> bool {
    let denied = rustix::fs::access("/dev/pts/ptmx", rustix::fs::Access::READ_OK).is_err();
    if denied {
        eprintln!("SKIPPED: /dev/pts/ptmx cannot be opened by this user");
    }
    denied
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn devpts() -> OwnedFd {
        rustix::fs::open("/dev/pts", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn a_terminal_has_its_size_and_its_ends_are_joined() {
        if cannot_test() {
            return;
        }
        let uid = rustix::process::getuid().as_raw();
        let pty = open_pty(devpts().as_fd(), Some((33, 77)), uid).unwrap();
        let size = rustix::termios::tcgetwinsize(&pty.slave).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (33, 77));
        rustix::io::write(&pty.slave, b"hello\n").unwrap();
        let mut data = [0; 32];
        let n = rustix::io::read(&pty.master, &mut data).unwrap();
        assert_eq!(&data[..n], b"hello\r\n");
        assert_eq!(rustix::fs::fstat(&pty.slave).unwrap().st_uid, uid);
    }

    #[test]
    fn the_slave_is_given_to_the_user_and_keeps_its_group() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: giving a terminal away needs root");
            return;
        }
        let pty = open_pty(devpts().as_fd(), None, 4711).unwrap();
        let stat = rustix::fs::fstat(&pty.slave).unwrap();
        let other = open_pty(devpts().as_fd(), None, 0).unwrap();
        assert_eq!(stat.st_uid, 4711);
        assert_eq!(stat.st_gid, rustix::fs::fstat(&other.slave).unwrap().st_gid);
    }

    #[test]
    fn a_directory_that_is_no_devpts_is_refused() {
        let dir = rustix::fs::open("/tmp", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let error = open_pty(dir.as_fd(), None, 0).err().unwrap();
        assert!(format!("{error:#}").contains("not on a devpts"), "{error:#}");
    }

    #[test]
    fn the_master_arrives_with_its_name_through_a_long_path() {
        if cannot_test() {
            return;
        }
        let base = std::env::temp_dir().join(format!("runw-terminal-{}", std::process::id()));
        let deep = base.join("d".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        // Bound by a short name first: bind(2) has the same limit.
        let listener = UnixListener::bind(base.join("s")).unwrap();
        std::fs::rename(base.join("s"), deep.join("s")).unwrap();
        let socket = connect(&deep.join("s")).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let pty = open_pty(devpts().as_fd(), None, rustix::process::getuid().as_raw()).unwrap();
        send_master(socket.as_fd(), pty.master.as_fd(), MASTER_NAME).unwrap();
        drop(pty.master);

        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 64];
        let flags = rustix::net::RecvFlags::empty();
        let got =
            rustix::net::recvmsg(&peer, &mut [std::io::IoSliceMut::new(&mut name)], &mut control, flags)
                .unwrap();
        assert_eq!(&name[..got.bytes], b"/dev/ptmx");
        let fds: Vec<OwnedFd> = control
            .drain()
            .flat_map(|message| match message {
                rustix::net::RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(fds.len(), 1);
        rustix::io::write(&pty.slave, b"x").unwrap();
        let mut data = [0; 4];
        assert_eq!(rustix::io::read(&fds[0], &mut data).unwrap(), 1);
        drop(socket);
        assert_eq!(peer.read(&mut data).unwrap(), 0);
        std::fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_missing_socket_is_named() {
        let error = connect(Path::new("/nonexistent/console.sock")).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/console.sock"));
    }
}
