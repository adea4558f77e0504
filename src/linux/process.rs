//! What `process` in config.json says of a process: its limits, and identity and directory taken on from inside, in
//! runc's order.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{PosixRlimitType, Process, Spec};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Uid, makedev, openat2};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::capabilities::Caps;
use super::{kernel_file, namespaces, rootfs, sys};

/// Sets the rlimits of `pid`, by 0 our own.
pub fn set_rlimits(pid: i32, process: &Process) -> Result<()> {
    for limit in process.rlimits().iter().flatten() {
        sys::prlimit(pid, resource(limit.typ()), limit.soft(), limit.hard())
            .with_context(|| format!("process.rlimits: {}", limit.typ()))?;
    }
    Ok(())
}

/// False where it takes the host's rights: inside a user namespace hard limits cannot be raised.
pub fn set_own_rlimits(process: &Process) -> Result<bool> {
    match set_rlimits(0, process) {
        Err(error) if namespaces::is_denied(&error) => Ok(false),
        done => done.map(|()| true),
    }
}

fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// Written by the parent for the child, before the child can allocate: the file belongs to the host's root.
pub fn set_oom_score_adj(pid: i32, process: &Process) -> Result<()> {
    let Some(score) = process.oom_score_adj() else { return Ok(()) };
    let path = format!("/proc/{pid}/oom_score_adj");
    match std::fs::write(&path, score.to_string()) {
        // Lowering it needs CAP_SYS_RESOURCE; runc forgives that to the rootless only.
        Err(error)
            if error.kind() == std::io::ErrorKind::PermissionDenied
                && !rustix::process::geteuid().is_root() =>
        {
            Ok(())
        }
        other => other.with_context(|| format!("process.oomScoreAdj: write {score} to {path}")),
    }
}

/// `process.user.umask`, or runc's and crun's 0022.
pub fn set_umask(process: &Process) {
    rustix::process::umask(Mode::from_raw_mode(process.user().umask().unwrap_or(0o022) & 0o777));
}

/// A session keyring of the container's own, so that it cannot read the caller's keys (runc: joinSessionKeyring).
pub fn join_session_keyring(id: &str) -> Result<()> {
    let name = std::ffi::CString::new(format!("_ses.{id}"))?;
    match sys::join_session_keyring(&name) {
        // A kernel without keys, or a seccomp profile around us (Docker's blocks it): runc goes on, too.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EDQUOT)) => {
            Ok(())
        }
        Err(error) => Err(error).context("join a new session keyring"),
        // The user's search right lets an exec join it by name later (runc: ModKeyringPerm).
        Ok(serial) => sys::let_user_search(serial).context("let the user search the session keyring"),
    }
}

/// Goes to `process.cwd` as root, since the user may be unable to reach it by path. False when that is forbidden
/// (NFS with root_squash, FUSE): then the user may, as in runc.
pub fn enter_cwd(process: &Process) -> Result<bool> {
    let entered = change_directory(process.cwd())?;
    if entered {
        verify_cwd()?;
    }
    Ok(entered)
}

/// Identity and capabilities (with `keep_groups` not the supplementary groups), the last things before the workload's own.
pub fn take_on(
    process: &Process,
    caps: &Caps,
    proc_self: BorrowedFd<'_>,
    in_cwd: bool,
    keep_groups: bool,
) -> Result<()> {
    // Before the change of ids, while CAP_SETPCAP is there.
    caps.drop_bounding()?;
    fix_stdio_owner(process.user().uid())?;
    // capabilities(7): they would go with the last id that is 0.
    let leaves_root = process.user().uid() != 0;
    let keep = |yes| sys::prctl(libc::PR_SET_KEEPCAPS, yes).context("keep capabilities over setuid");
    if leaves_root {
        keep(1)?;
    }
    set_ids(process, proc_self, keep_groups)?;
    if leaves_root {
        keep(0)?;
    }
    if !in_cwd && !enter_cwd(process)? {
        bail!("process.cwd: chdir to {:?}: permission denied", process.cwd());
    }
    caps.apply()
}

fn set_ids(process: &Process, proc_self: BorrowedFd<'_>, keep_groups: bool) -> Result<()> {
    let user = process.user();
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    // Always, or the caller's supplementary groups would leak in; unless that is what was asked for.
    match if keep_groups { Ok(()) } else { sys::set_groups(groups) } {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && groups_are_denied(proc_self)? => {
            if !groups.is_empty() {
                bail!(
                    "process.user.additionalGids: cannot set any additional groups in a rootless container"
                );
            }
        }
        other => other.context("process.user.additionalGids: setgroups")?,
    }
    sys::set_gid(user.gid()).with_context(|| format!("process.user.gid: setgid {}", user.gid()))?;
    sys::set_uid(user.uid()).with_context(|| format!("process.user.uid: setuid {}", user.uid()))
}

/// user_namespaces(7): once `deny` is written, nobody in the namespace may call setgroups(2).
///
/// Asked of our own handle: the container's /proc is the image's as long as nothing is mounted there.
fn groups_are_denied(proc_self: BorrowedFd<'_>) -> Result<bool> {
    let file = rustix::fs::openat(proc_self, "setgroups", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("open /proc/self/setgroups")?;
    let text = kernel_file::read_open(file).context("read /proc/self/setgroups")?;
    Ok(text.trim() == "deny")
}

/// False when permission is missing, which the other identity may have.
fn change_directory(cwd: &Path) -> Result<bool> {
    match rustix::process::chdir(cwd) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::ACCESS) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("process.cwd: chdir to {cwd:?}")),
    }
}

/// CVE-2024-21626: a leaked descriptor as cwd would be a directory of the host.
fn verify_cwd() -> Result<()> {
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.to_bytes().starts_with(b"/") => Ok(()),
        Ok(_) | Err(Errno::NOENT) => {
            bail!(
                "current working directory is outside of container mount namespace root -- possible container breakout detected"
            )
        }
        Err(error) => Err(error).context("process.cwd: getcwd"),
    }
}

/// Images reopen /dev/stdout as their user (runc: fixStdioPermissions). /dev/null is everybody's.
fn fix_stdio_owner(uid: u32) -> Result<()> {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for stream in streams {
        let Ok(stat) = rustix::fs::fstat(stream) else { continue };
        let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == makedev(1, 3);
        if stat.st_uid == uid || is_null {
            continue;
        }
        match rustix::fs::fchown(stream.as_fd(), Some(Uid::from_raw(uid)), None) {
            // An unmapped id, a read-only file system or a foreign owner: harmless, and runc forgives the same.
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(error) => return Err(error).context("change the owner of standard streams"),
        }
    }
    Ok(())
}

/// Stdio that is the host's /dev/null becomes the container's (runc: reOpenDevNull), when that is the null device: an
/// image may have put anything in its place, a link into our own /proc/self/fd too.
pub fn reopen_null() -> Result<()> {
    let Ok(container) = rootfs::open_null() else { return Ok(()) };
    let null = makedev(1, 3);
    for fd in 0..3 {
        let Ok(stat) = rustix::fs::fstat(sys::standard_stream(fd)) else { continue };
        if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == null {
            sys::replace_fd(container.as_fd(), fd, false).context("reopen /dev/null")?;
        }
    }
    Ok(())
}

/// Sysctls, through a procfs that an image or a volume has no hand in (CVE-2025-52881).
pub fn write_sysctls(spec: &Spec) -> Result<()> {
    let Some(sysctls) = spec.linux().as_ref().and_then(|l| l.sysctl().as_ref()) else { return Ok(()) };
    if sysctls.is_empty() {
        return Ok(());
    }
    let proc = procfs()?;
    for (name, value) in sysctls {
        let context = || format!("linux.sysctl: write {value:?} to {name}");
        // No link and no other mount on the way.
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let path = format!("sys/{}", sysctl_path(name));
        let file = openat2(&proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), how);
        std::fs::File::from(file.with_context(context)?).write_all(value.as_bytes()).with_context(context)?;
    }
    Ok(())
}

/// A procfs of our own. In a user namespace the kernel makes one only where a whole one is mounted already; then it is
/// the container's, if it is one.
fn procfs() -> Result<OwnedFd> {
    let own = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|context| {
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    });
    match own {
        Err(Errno::PERM) => {}
        other => return other.context("linux.sysctl: make a procfs"),
    }
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).context("open /proc")?;
    if rustix::fs::fstatfs(&proc).context("linux.sysctl: fstatfs of /proc")?.f_type != PROC_SUPER_MAGIC {
        bail!("linux.sysctl: /proc is not a procfs");
    }
    Ok(proc)
}

/// sysctl(8) and runc: the first separator says which one is meant, so `net/ipv4/conf/eth0.1/x` is one interface.
fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_separator_of_a_sysctl_decides() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
    }
}
