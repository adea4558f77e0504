//! Landlock's rules around a guest (landlock(7)), equal to its grants: its own files, but nothing in them is
//! executed, and no device, socket or pipe is made; the TCP ports it may listen on and connect to; no signal and no
//! abstract unix socket beyond itself. A kernel has as many of them as its version knows, or none: they stand behind
//! what namespaces, mounts and filters hold already. With mounts as they are on both sides of a bind, the kernel
//! knows a directory by its inode, so it is `Entering::move_in` that keeps the container's /proc out.

use anyhow::{Context, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, make_bitflags,
};
use rustix::fs::{Mode, OFlags};

use crate::seam::Network;

/// Linux 6.15's; what is newer would be handled without having been thought about.
const ABI_KNOWN: ABI = ABI::V7;

/// What WASI does with files. Whether they may be written is settled by mounts, owners and modes.
const FILES: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | WriteFile | ReadDir | RemoveDir | RemoveFile | MakeDir | MakeReg | MakeSym | Refer | Truncate
});

/// Needs no_new_privs and one thread. What is open already stays usable.
pub fn restrict(network: &Network) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).context("open /")?;
    rules(network, root).context("restrict the guest with Landlock (does linux.seccomp forbid it?)")
}

fn rules(network: &Network, root: std::os::fd::OwnedFd) -> Result<(), RulesetError> {
    let mut handled =
        Ruleset::default().handle_access(AccessFs::from_all(ABI_KNOWN))?.scope(Scope::from_all(ABI_KNOWN))?;
    if !network.listens {
        handled = handled.handle_access(AccessNet::BindTcp)?;
    }
    if network.connects.is_some() {
        handled = handled.handle_access(AccessNet::ConnectTcp)?;
    }
    let files = handled.create()?.add_rule(PathBeneath::new(root, FILES))?;
    let ports = network.connects.iter().flatten().map(|&port| NetPort::new(port, AccessNet::ConnectTcp));
    let rules = ports.into_iter().try_fold(files, RulesetCreatedAttr::add_rule)?;
    rules.no_new_privs(false).restrict_self().map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::UnixStream;

    use rustix::io::Errno;

    use super::*;
    use crate::linux::intruder;

    /// Asked of the kernel, not of the crate.
    fn abi() -> i64 {
        // SAFETY: the null attribute of size 0 with LANDLOCK_CREATE_RULESET_VERSION asks for a number.
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) }
    }

    /// What goes wrong below a root of its own, where a descriptor of the host's `/` was left open.
    fn behind_the_rules(network: &Network, outside: impl FnOnce() -> Vec<&'static str>) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "mine").unwrap();
        std::fs::copy("/bin/busybox", dir.path().join("program")).unwrap();
        intruder::in_a_process(|| {
            rustix::process::chroot(dir.path()).unwrap();
            rustix::process::chdir("/").unwrap();
            crate::linux::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).unwrap();
            restrict(network).unwrap();
            outside().into_iter().map(str::to_owned).collect()
        })
    }

    fn refused<T>(result: Result<T, Errno>) -> bool {
        matches!(result, Err(Errno::ACCESS | Errno::PERM))
    }

    #[test]
    fn a_descriptor_of_the_host_leads_nowhere_and_nothing_is_executed() {
        if abi() < 3 {
            eprintln!("skipped: this kernel has no Landlock of version 3");
            return;
        }
        let host = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let wrong = behind_the_rules(&Network::default(), || {
            let mut wrong = Vec::new();
            let mut must = |holds: bool, what| {
                if !holds {
                    wrong.push(what)
                }
            };
            let open = |path: &str| rustix::fs::openat(&host, path, OFlags::RDONLY, Mode::empty());
            must(refused(open("etc/passwd")) && refused(open("proc/self/mem")), "the host's files");
            must(std::fs::read("/f").is_ok_and(|text| text == b"mine"), "its own file is read");
            must(std::fs::write("/new", "x").is_ok(), "its own file is made");
            must(std::fs::create_dir("/d").and_then(|()| std::fs::rename("/f", "/d/f")).is_ok(), "and moved");
            let fifo = rustix::fs::mknodat(rustix::fs::CWD, "/p", rustix::fs::FileType::Fifo, Mode::RUSR, 0);
            must(refused(fifo), "a pipe is made");
            let run = std::process::Command::new("/program").spawn().map(drop);
            must(run.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied), "a program is run");
            wrong
        });
        assert_eq!(wrong, [""; 0]);
    }

    #[test]
    fn ports_are_those_of_the_grants() {
        if abi() < 4 {
            eprintln!("skipped: this kernel has no Landlock of version 4");
            return;
        }
        let listener = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (yes, no) = (listener(), listener());
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let (yes, no): (SocketAddr, SocketAddr) = (address(&yes), address(&no));
        let network =
            Network { sockets: true, listens: false, connects: Some([yes.port()].into_iter().collect()) };
        let wrong = behind_the_rules(&network, || {
            let denied = |result: std::io::Result<()>| {
                result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
            };
            let mut wrong = Vec::new();
            let mut must = |holds: bool, what| {
                if !holds {
                    wrong.push(what)
                }
            };
            // Nobody listens by now; what counts is who refuses.
            must(!denied(TcpStream::connect(yes).map(drop)), "the granted port");
            must(denied(TcpStream::connect(no).map(drop)), "another port");
            must(denied(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)), "a port to listen on");
            wrong
        });
        assert_eq!(wrong, [""; 0]);
        // The control: with everything granted, both are open to it.
        let open = Network { sockets: true, listens: true, connects: None };
        let wrong = behind_the_rules(&open, || {
            let refused = TcpStream::connect(no).err().map(|error| error.kind());
            let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).is_ok();
            if bound && refused != Some(ErrorKind::PermissionDenied) { vec![] } else { vec!["open ports"] }
        });
        assert_eq!(wrong, [""; 0]);
    }

    #[test]
    fn neighbours_get_no_signal_and_no_abstract_socket_is_reached() {
        if abi() < 6 {
            eprintln!("skipped: this kernel has no Landlock of version 6");
            return;
        }
        let name = format!("runw-landlock-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        let parent = rustix::process::getpid();
        let open = Network { sockets: true, listens: true, connects: None };
        let wrong = behind_the_rules(&open, || {
            let mut wrong = Vec::new();
            let mut must = |holds: bool, what| {
                if !holds {
                    wrong.push(what)
                }
            };
            must(refused(rustix::process::test_kill_process(parent)), "a signal to its parent");
            must(rustix::process::test_kill_process(rustix::process::getpid()).is_ok(), "one to itself");
            let reached = UnixStream::connect_addr(&address);
            must(reached.is_err_and(|e| e.kind() == ErrorKind::PermissionDenied), "the host's socket");
            wrong
        });
        assert_eq!(wrong, [""; 0]);
    }
}
