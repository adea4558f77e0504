//! sd_notify(3) for a service manager whose service is a container (`Type=notify`): the container gets a socket of its
//! own on /run/notify, and what it says there is passed on, with a pid that the manager knows. As runc does it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::{MountBuilder, Spec};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::create::start_address;
use super::lifecycle::Handle;

const VARIABLE: &str = "NOTIFY_SOCKET";
/// In the container's directory on the host, and what is bound where in the container.
const DIRECTORY: &str = "notify";
const SOCKET: &str = "notify.sock";
const INSIDE: &str = "/run/notify";

/// The manager's socket, when we are run by one that wants to know.
pub fn manager() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|socket| !socket.is_empty())
}

/// Adds the directory and the variable to what the container gets.
pub fn offer(spec: &mut Spec, container: &Path) -> Result<()> {
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned);
    let mount = MountBuilder::default()
        .destination(INSIDE)
        .source(container.join(DIRECTORY))
        .options(options.to_vec())
        .build()?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
    if let Some(process) = spec.process_mut() {
        let variable = format!("{VARIABLE}={INSIDE}/{SOCKET}");
        let env = process.env().iter().flatten().cloned().chain([variable]).collect();
        process.set_env(Some(env));
    }
    Ok(())
}

/// What is bound: empty until `listen`.
pub fn make_directory(container: &Path) -> Result<()> {
    let path = container.join(DIRECTORY);
    let made = std::fs::DirBuilder::new().mode(0o755).create(&path);
    made.with_context(|| format!("cannot make {}", path.display()))
}

/// Passes on what one container says.
pub struct Proxy {
    socket: OwnedFd,
    manager: OsString,
}

impl Proxy {
    /// None if no manager wants to know, or `create` was not told of one.
    pub fn listen(container: &Path) -> Result<Option<Proxy>> {
        let Some(manager) = manager() else { return Ok(None) };
        let path = container.join(DIRECTORY).join(SOCKET);
        if !container.join(DIRECTORY).is_dir() {
            return Ok(None);
        }
        let context = || format!("make the notify socket {}", path.display());
        let socket = datagram().with_context(context)?;
        let (address, _directory) = start_address(&path)?;
        rustix::net::bind(&socket, &address).with_context(context)?;
        // Whoever the container's process is.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).with_context(context)?;
        Ok(Some(Proxy { socket, manager }))
    }

    /// Until the container is ready, or has ended. The manager watches its `init` from then on.
    pub fn serve(&self, init: &Handle) -> Result<()> {
        loop {
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&init.pidfd, PollFlags::IN)];
            rustix::io::retry_on_intr(|| poll(&mut fds, None))
                .context("wait for the container's notification")?;
            let ended = !fds[1].revents().is_empty();
            if self.pass_on(init.process.pid)? || ended {
                return Ok(());
            }
        }
    }

    /// True once READY has been passed on: what comes after it the manager hears from nobody, as with runc. `main` is the
    /// pid that the manager is told to watch.
    pub fn pass_on(&self, main: i32) -> Result<bool> {
        let mut text = [0; 4096];
        loop {
            let count = match rustix::net::recv(&self.socket, &mut text, RecvFlags::DONTWAIT) {
                Ok((count, _)) => count,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error).context("read the container's notification"),
            };
            let mut lines = text[..count].split(|byte| *byte == b'\n');
            if let Some(ready) = lines.find(|line| line.starts_with(b"READY=")) {
                self.tell(&[ready, b"\n"].concat())?;
                self.tell(format!("MAINPID={main}\n").as_bytes())?;
                return Ok(true);
            }
        }
    }

    fn tell(&self, text: &[u8]) -> Result<()> {
        let context = || format!("{VARIABLE} {}", self.manager.display());
        let address = address(&self.manager).with_context(context)?;
        let socket = datagram()?;
        let sent = rustix::net::sendto(&socket, text, SendFlags::NOSIGNAL, &address);
        sent.map(drop).with_context(context)
    }
}

impl AsFd for Proxy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn datagram() -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context("socket")
}

/// sd_notify(3): a path, or after `@` a name without a file.
fn address(socket: &OsStr) -> Result<SocketAddrUnix> {
    Ok(match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(socket.as_bytes())?,
    })
}
