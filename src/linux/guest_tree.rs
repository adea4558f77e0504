//! The container's files for a guest that runs in our own process: a detached copy of the finished root file
//! system in which every kernel file system is covered. A guest that reaches a procfs writes our memory through
//! `/proc/self/mem`, so what cannot be judged is covered or refused, and no mount is ever removed: what lies
//! under it would come to light.
//!
//! The copy is recursive, because a non-recursive clone uncovers what mounts hide and is refused where a user
//! namespace has locked them. Covers are mounted on top inside the copy; nobody can get under them, since the
//! guest resolves with RESOLVE_BENEATH from the copy's root and cannot unmount.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountFlags, MountPropagationFlags,
    MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::linux::kernel_file;
use crate::linux::sys::{self, Cloned, MountAttr};

/// File systems through which the kernel itself is read or steered, by their names in mountinfo.
const FORBIDDEN: [&str; 44] = [
    "anon_inodefs",
    "apparmorfs",
    "bdev",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "cpuset",
    "dax",
    "debugfs",
    "devfs",
    "devpts",
    "devtmpfs",
    "dlmfs",
    "efivarfs",
    "functionfs",
    "fusectl",
    "gadgetfs",
    "hugetlbfs",
    "mqueue",
    "nfsd",
    "nsfs",
    "ocfs2_dlmfs",
    "openpromfs",
    "oprofilefs",
    "pidfs",
    "pipefs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "s390_hypfs",
    "secretmem",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sockfs",
    "spufs",
    "sysfs",
    "tracefs",
    "usbfs",
    "xenfs",
];

/// The same by statfs(2)'s `f_type` for those that have one of their own (linux/magic.h), so that a mount which
/// mountinfo shows differently is known as well.
const FORBIDDEN_TYPES: [i64; 24] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x6265_6570, // configfs
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x4249_4e4d, // binfmt_misc
    0x6e73_6673, // nsfs
    0x6573_5543, // fusectl
    0x9584_58f6, // hugetlbfs
    0x6c6f_6f70, // binder
    0x0765_5821, // resctrl
    0x6759_6969, // rpc_pipefs
    0x6e66_7364, // nfsd
    0x5a3c_69f0, // apparmorfs
];

/// Called in the container's mount namespace, after pivot_root, with CAP_SYS_ADMIN and one thread. `proc_self` is
/// this process's own `/proc/self` of the host's procfs. The result is detached, nodev and nosuid throughout.
pub fn build(proc_self: BorrowedFd<'_>) -> Result<OwnedFd> {
    // An unbindable mount is left out of a clone, and what it covers would show.
    let mounts = read_mounts(proc_self)?;
    if !mounts.iter().any(|mount| mount.unbindable) {
        match directly(proc_self, mounts) {
            // Before 6.15 nothing can be mounted on a detached tree (EINVAL); mount_setattr is of 5.12 (ENOSYS).
            Err(error) if matches!(errno(&error), Some(Errno::INVAL | Errno::NOSYS)) => {}
            result => return result,
        }
    }
    through_helper(proc_self)
}

/// For `exec` into a container whose processes run: one of them may mount and unmount between our looks at
/// mountinfo, and only a namespace that nobody else is in shows exactly what was copied.
pub fn build_in_running(proc_self: BorrowedFd<'_>) -> Result<OwnedFd> {
    through_helper(proc_self)
}

/// Copy first, then cover in the copy.
fn directly(proc_self: BorrowedFd<'_>, before: Vec<Mount>) -> Result<OwnedFd> {
    let tree = clone_root()?;
    // Private, or a mount that a host propagates to us later would appear in the guest's files.
    restrict(tree.as_fd())?;
    // Again: the clone may hold a mount that was propagated to us after the first look.
    let mounts = before.into_iter().chain(read_mounts(proc_self)?).collect::<Vec<_>>();
    let covers = Covers::new()?;
    cover_all(tree.as_fd(), &mounts, &covers)?;
    Ok(tree)
}

/// The same in a mount namespace of a child's own, whose mounts can be changed in place: cover, then copy.
fn through_helper(proc_self: BorrowedFd<'_>) -> Result<OwnedFd> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .context("cannot make a socket pair")?;
    match sys::clone3(libc::CLONE_NEWNS as u64, None, false)
        .context("cannot clone the guest tree's helper")?
    {
        Cloned::Child => {
            let result = in_own_namespace(proc_self);
            let status = i32::from(answer(theirs.as_fd(), result).is_err());
            sys::exit_now(status)
        }
        Cloned::Parent { pidfd, .. } => {
            drop(theirs);
            let tree = receive(ours.as_fd());
            // ECHILD where SIGCHLD is ignored; it has ended all the same.
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            tree
        }
    }
}

fn in_own_namespace(proc_self: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make the helper's mounts private")?;
    // Ours, not our parent's whose directory this is: "self" is whoever looks it up.
    let procfs = rustix::fs::openat(proc_self, "../self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context("cannot open the helper's /proc/self")?;
    let mounts = read_mounts(procfs.as_fd())?;
    let root =
        rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("cannot open /")?;
    let mut covers = Covers::new()?;
    covers.attach()?;
    cover_all(root.as_fd(), &mounts, &covers)?;
    covers.detach()?;
    match restrict(root.as_fd()) {
        Err(error) if errno(&error) == Some(Errno::NOSYS) => restrict_one_by_one(&mounts)?,
        result => result?,
    }
    clone_root()
}

fn clone_root() -> Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, "/", flags).context("cannot clone the root file system")
}

fn restrict(tree: BorrowedFd<'_>) -> Result<()> {
    let attr = MountAttr {
        set: sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOSUID,
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    sys::mount_setattr(tree, true, &attr).context("cannot restrict the guest tree")
}

/// Kernels before 5.12. The paths are mountinfo's, so they hold no symlinks; a hidden mount's path names the one
/// that hides it, or a plain file in that, or nothing.
fn restrict_one_by_one(mounts: &[Mount]) -> Result<()> {
    // The same flag in statfs(2) and mount(2).
    const ST_NOSYMFOLLOW: u64 = 0x2000;
    const MS_NOSYMFOLLOW: u32 = 0x100;
    for path in paths_parents_first(mounts) {
        let fail = || format!("cannot restrict mount {}", path.display());
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let attributes = match rustix::fs::statx(CWD, &path, flags, StatxFlags::TYPE) {
            Ok(stat) => stat.stx_attributes,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(error).with_context(fail),
        };
        if !attributes.contains(StatxAttributes::MOUNT_ROOT) {
            continue;
        }
        // mount(2): MS_REMOUNT|MS_BIND sets all flags but those of atime, which stay when none is given. The ST_*
        // bits kept here have the values of their MS_* namesakes, but for the last.
        let now = rustix::fs::statvfs(&path).with_context(fail)?.f_flag.bits();
        let mut kept = now as u32 & (libc::ST_RDONLY | libc::ST_NOEXEC) as u32;
        if now & ST_NOSYMFOLLOW != 0 {
            kept |= MS_NOSYMFOLLOW;
        }
        let flags =
            MountFlags::from_bits_retain(kept) | MountFlags::BIND | MountFlags::NODEV | MountFlags::NOSUID;
        rustix::mount::mount_remount(&path, flags, c"").with_context(fail)?;
    }
    Ok(())
}

/// One line of mountinfo, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    device: (u32, u32),
    path: PathBuf,
    kind: String,
    unbindable: bool,
}

fn read_mounts(proc_self: BorrowedFd<'_>) -> Result<Vec<Mount>> {
    let file = rustix::fs::openat(proc_self, "mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("cannot open /proc/self/mountinfo")?;
    kernel_file::read_bytes(file)
        .context("cannot read /proc/self/mountinfo")?
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_mount(line)
                .ok_or_else(|| anyhow!("mountinfo line not understood: {}", String::from_utf8_lossy(line)))
        })
        .collect()
}

/// proc_pid_mountinfo(5): `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    let dash = 6 + fields.get(6..)?.iter().position(|field| *field == b"-")?;
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        path: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        kind: std::str::from_utf8(fields.get(dash + 1)?).ok()?.to_owned(),
        unbindable: fields[6..dash].contains(&b"unbindable".as_slice()),
    })
}

/// Space, tab, new-line and backslash come as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        out.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &rest[4..] } else { tail };
    }
    out
}

/// Parents first: once a parent is covered, what was below it can no longer be reached and needs no cover.
fn paths_parents_first(mounts: &[Mount]) -> Vec<PathBuf> {
    let paths: BTreeSet<(usize, &Path)> =
        mounts.iter().map(|mount| (mount.path.components().count(), mount.path.as_path())).collect();
    paths.into_iter().map(|(_, path)| path.to_owned()).collect()
}

/// Judges what a path walk reaches at each mount point - the topmost mount, whatever is stacked there - and covers
/// it when it is the kernel's. `/dev` is covered in any case.
fn cover_all(root: BorrowedFd<'_>, mounts: &[Mount], covers: &Covers) -> Result<()> {
    let devices: BTreeSet<(u32, u32)> =
        mounts.iter().filter(|mount| is_forbidden(&mount.kind)).map(|mount| mount.device).collect();
    if judge(root, &devices).is_some() {
        bail!("the container's root file system is a kernel file system, a guest cannot have it");
    }
    cover_dev(root, covers)?;
    for path in paths_parents_first(mounts) {
        let Ok(relative) = path.strip_prefix("/") else {
            bail!("mount point {} is not below the root", path.display());
        };
        if relative.as_os_str().is_empty() {
            continue;
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let target = match open_point(root, relative, resolve) {
            Ok(target) => target,
            // Under another mount, so as unreachable for the guest as it is for us.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot judge mount {}", path.display()));
            }
        };
        if let Some(kind) = judge(target.as_fd(), &devices) {
            covers
                .put_on(target.as_fd(), kind)
                .with_context(|| format!("cannot cover {}", path.display()))?;
        }
    }
    Ok(())
}

/// Through symlinks, as the container's own /dev was found. No device is a guest's to open; nodev sees to device
/// nodes, but sockets and fifos there lead out as well.
fn cover_dev(root: BorrowedFd<'_>, covers: &Covers) -> Result<()> {
    let target = match open_point(root, Path::new("dev"), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    {
        Ok(target) => target,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(error) => return Err(error).context("cannot open /dev"),
    };
    let (stat, top) = (rustix::fs::fstat(&target)?, rustix::fs::fstat(root)?);
    if (stat.st_dev, stat.st_ino) == (top.st_dev, top.st_ino) {
        bail!("/dev leads to the root itself, a guest cannot have it");
    }
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        covers.put_on(target.as_fd(), Some(FileType::Directory)).context("cannot cover /dev")?;
    }
    Ok(())
}

fn open_point(root: BorrowedFd<'_>, path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    loop {
        match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // openat2(2): a rename or mount elsewhere on the system during the walk; to be tried again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// `Some` when it must be covered, with its file type if that could be told. A mount that does not let even us look
/// (another user's FUSE) is not the guest's either.
fn judge(file: BorrowedFd<'_>, devices: &BTreeSet<(u32, u32)>) -> Option<Option<FileType>> {
    let Ok(stat) = rustix::fs::fstat(file) else {
        return Some(None);
    };
    let kind = Some(FileType::from_raw_mode(stat.st_mode));
    let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let known = rustix::fs::fstatfs(file).map(|fs| FORBIDDEN_TYPES.contains(&(fs.f_type & 0xffff_ffff)));
    (devices.contains(&device) || known.unwrap_or(true)).then_some(kind)
}

fn is_forbidden(kind: &str) -> bool {
    FORBIDDEN.binary_search(&kind).is_ok()
}

/// A read-only tmpfs with the two things that cover: an empty directory, and a file that nobody can open.
struct Covers {
    tmpfs: OwnedFd,
}

/// open(2) of a socket is ENXIO, for root too, and unlike a device node it needs no privilege to make.
const FILE: &str = "file";
const DIRECTORY: &str = "directory";

impl Covers {
    fn new() -> Result<Covers> {
        Covers::make().context("cannot make the tmpfs that covers kernel file systems")
    }

    fn make() -> Result<Covers, Errno> {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(context.as_fd(), "mode", "0555")?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let attr = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let tmpfs = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr)?;
        rustix::fs::mkdirat(&tmpfs, DIRECTORY, Mode::from_raw_mode(0o555))?;
        rustix::fs::mknodat(&tmpfs, FILE, FileType::Socket, Mode::empty(), 0)?;
        // The file system itself becomes read-only, so every clone is, whatever its mount flags.
        let picked = rustix::mount::fspick(
            tmpfs.as_fd(),
            "",
            FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH,
        )?;
        rustix::mount::fsconfig_set_flag(picked.as_fd(), "ro")?;
        rustix::mount::fsconfig_reconfigure(picked.as_fd())?;
        Ok(Covers { tmpfs })
    }

    /// Before 6.15 only an attached mount can be cloned. Over `/`: no path leads there, since the root directory
    /// of a process is not looked up.
    fn attach(&mut self) -> Result<()> {
        rustix::mount::move_mount(self.tmpfs.as_fd(), "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .context("cannot attach the covers")
    }

    /// Or the copy of `/` would carry it. By way of the working directory, for the same reason; only the helper
    /// does this, and its working directory is nobody else's.
    fn detach(&mut self) -> Result<()> {
        rustix::process::fchdir(&self.tmpfs).context("cannot enter the covers")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).context("cannot detach the covers")
    }

    fn put_on(&self, target: BorrowedFd<'_>, kind: Option<FileType>) -> Result<(), Errno> {
        match kind {
            Some(FileType::Directory) => self.mount(DIRECTORY, target),
            Some(_) => self.mount(FILE, target),
            None => match self.mount(DIRECTORY, target) {
                Err(Errno::NOTDIR) => self.mount(FILE, target),
                result => result,
            },
        }
    }

    fn mount(&self, name: &str, target: BorrowedFd<'_>) -> Result<(), Errno> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let cover = rustix::mount::open_tree(self.tmpfs.as_fd(), name, flags)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(cover.as_fd(), "", target, "", flags)
    }
}

/// The errno at the root of an error, whichever crate it came from.
fn errno(error: &anyhow::Error) -> Option<Errno> {
    let source = error.root_cause();
    source.downcast_ref::<Errno>().copied().or_else(|| {
        source.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).map(Errno::from_raw_os_error)
    })
}

/// The helper's one message: the tree, or why there is none.
fn answer(socket: BorrowedFd<'_>, result: Result<OwnedFd>) -> Result<()> {
    let text = result.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
    let fds: Vec<_> = result.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        rights.push(SendAncillaryMessage::ScmRights(&fds));
    }
    // A leading byte, since an empty message cannot be told from a closed socket.
    let data = [IoSlice::new(b"-"), IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(socket, &data, &mut rights, SendFlags::NOSIGNAL).context("cannot answer")?;
    Ok(())
}

fn receive(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 4096];
    let message = loop {
        let mut data = [IoSliceMut::new(&mut text)];
        match rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            result => break result.context("cannot hear from the guest tree's helper")?,
        }
    };
    let tree = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    match (tree, message.bytes) {
        (Some(tree), _) => Ok(tree),
        (None, 0) => bail!("the guest tree's helper died"),
        (None, n) => bail!("{}", String::from_utf8_lossy(&text[1..n])),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustix::mount::{mount, mount_bind, mount_bind_recursive, mount_change, unmount};

    use super::*;

    fn looked_at(proc_self: BorrowedFd<'_>) -> Result<OwnedFd> {
        directly(proc_self, read_mounts(proc_self)?)
    }

    #[test]
    fn mountinfo_is_read_with_escapes_and_optional_fields() {
        let line = br"36 35 98:7 /a\040b /mnt/x\040y\134z\011\012 rw,noatime master:1 unbindable - fuse.sshfs /dev/r rw";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.path, Path::new("/mnt/x y\\z\t\n"));
        assert_eq!((mount.device, mount.kind.as_str(), mount.unbindable), ((98, 7), "fuse.sshfs", true));
        let bare = parse_mount(b"1 1 0:2 / / rw - proc proc rw").unwrap();
        assert_eq!(
            (bare.path.as_path(), bare.kind.as_str(), bare.unbindable),
            (Path::new("/"), "proc", false)
        );
        assert_eq!(parse_mount(b"1 1 0:2 / / rw proc proc rw"), None);
        assert_eq!(parse_mount(b"36"), None);
    }

    #[test]
    fn the_list_of_forbidden_names_can_be_searched() {
        assert!(FORBIDDEN.is_sorted());
        for kind in ["proc", "sysfs", "devtmpfs", "cgroup2", "xenfs", "anon_inodefs"] {
            assert!(is_forbidden(kind), "{kind}");
        }
        for kind in ["overlay", "tmpfs", "ext4", "fuse.proc", "9p", "procx"] {
            assert!(!is_forbidden(kind), "{kind}");
        }
    }

    #[test]
    fn mount_points_come_parents_first_and_once() {
        let at =
            |path: &str| Mount { device: (0, 1), path: path.into(), kind: "tmpfs".into(), unbindable: false };
        let mounts = [at("/b/c/d"), at("/b"), at("/"), at("/b/c"), at("/b"), at("/a")];
        let paths: Vec<_> = ["/", "/a", "/b", "/b/c", "/b/c/d"].map(PathBuf::from).into();
        assert_eq!(paths_parents_first(&mounts), paths);
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Build {
        Directly,
        Helper,
    }

    /// Runs `job` in a child with mount and pid namespaces of its own (and a user namespace whose root is uid 100000
    /// outside), pid 1 there; its error is the test's.
    fn in_container(user: bool, job: impl FnOnce(&Path) -> Result<()>) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a mount namespace needs root");
            return;
        }
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("runw-tree-{}-{number}", std::process::id()));
        std::fs::create_dir_all(dir.join("root")).unwrap();
        let (mut go, mut ready) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        let (mut report, mut told) = std::io::pipe().unwrap();
        // SAFETY: glibc's fork keeps the allocator usable; the child only goes on below and _exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let result = (|| -> Result<()> {
                if user {
                    sys::unshare(libc::CLONE_NEWUSER)?;
                    ready.1.write_all(b"x")?;
                    go.0.read_exact(&mut [0])?;
                    sys::set_gid(0)?;
                    sys::set_uid(0)?;
                }
                sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWPID)?;
                // SAFETY: one thread; the grandchild is the container's pid 1 and _exits, as its parent does.
                match unsafe { libc::fork() } {
                    0 => job(&dir.join("root")),
                    init => {
                        let mut status = 0;
                        // SAFETY: `status` is a live integer.
                        unsafe { libc::waitpid(init, &raw mut status, 0) };
                        sys::exit_now(i32::from(status != 0));
                    }
                }
            })();
            if let Err(error) = &result {
                let _ = write!(told, "{error:#}");
            }
            sys::exit_now(i32::from(result.is_err()));
        }
        drop(told);
        if user {
            ready.0.read_exact(&mut [0]).unwrap();
            std::fs::write(format!("/proc/{pid}/uid_map"), "0 100000 65536").unwrap();
            std::fs::write(format!("/proc/{pid}/gid_map"), "0 100000 65536").unwrap();
            go.1.write_all(b"x").unwrap();
        }
        let mut text = String::new();
        report.read_to_string(&mut text).unwrap();
        let mut status = 0;
        // SAFETY: `status` is a live integer; `pid` is our child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        std::fs::remove_dir(dir.join("root")).unwrap();
        std::fs::remove_dir(&dir).unwrap();
        assert_eq!((status, text.as_str()), (0, ""));
    }

    fn tmpfs(at: &Path) -> Result<()> {
        std::fs::create_dir_all(at)?;
        let none: Option<&std::ffi::CStr> = None;
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), none).with_context(|| format!("tmpfs at {at:?}"))
    }

    fn proc(at: &Path) -> Result<()> {
        std::fs::create_dir_all(at)?;
        let none: Option<&std::ffi::CStr> = None;
        mount("proc", at, "proc", MountFlags::empty(), none).with_context(|| format!("proc at {at:?}"))
    }

    fn file(at: &Path, text: &str) -> Result<()> {
        std::fs::create_dir_all(at.parent().context("no parent")?)?;
        std::fs::write(at, text).with_context(|| format!("{at:?}"))
    }

    /// A root file system with everything that must and must not be seen, then pivot_root into it.
    fn furnish(root: &Path) -> Result<OwnedFd> {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let proc_self = rustix::fs::open("/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        tmpfs(root)?;
        let at = |path: &str| root.join(path);
        for (path, text) in [
            ("etc/image", "image"),
            ("proc/under", "under"),
            ("dev/under", "under"),
            ("masked", "secret"),
            ("maskeddir/secret", "secret"),
            ("one", "image's"),
            ("procfile", "image's"),
            ("nsfile", "image's"),
            ("stack/under", "under"),
            ("mnt/data/file", "data"),
            ("mnt/data/sub/deep", "deep"),
            ("mnt/single", "single"),
        ] {
            file(&at(path), text)?;
        }
        for dir in ["data", "ro", "host", "sys", "stack2", "sp ace\\", "old", "both"] {
            std::fs::create_dir(at(dir))?;
        }
        std::os::unix::fs::symlink("/data/file", at("link"))?;
        std::os::unix::fs::symlink("../proc/self/mem", at("etc/escape"))?;
        tmpfs(&at("mnt/data/sub/inner"))?;
        file(&at("mnt/data/sub/inner/file"), "inner")?;
        proc(&at("mnt/data/sub/proc"))?;
        mount_bind_recursive(at("mnt/data"), at("data"))?;
        mount_bind(at("mnt/data"), at("ro"))?;
        mount_remount_ro(&at("ro"))?;
        mount_bind(at("mnt/single"), at("one"))?;
        tmpfs(&at("sp ace\\"))?;
        file(&at("sp ace\\/file"), "space")?;
        proc(&at("proc"))?;
        mount_bind_recursive("/sys", at("sys"))?;
        tmpfs(&at("dev"))?;
        file(&at("dev/shm/file"), "shm")?;
        mount_bind("/dev/null", at("masked"))?;
        tmpfs(&at("maskeddir"))?;
        mount_remount_ro(&at("maskeddir"))?;
        mount_bind("/proc/version", at("procfile"))?;
        mount_bind("/proc/self/ns/net", at("nsfile"))?;
        // Stacks: a kernel file system on top of a tmpfs, and the other way round.
        tmpfs(&at("stack"))?;
        file(&at("stack/tmp"), "tmp")?;
        proc(&at("stack"))?;
        proc(&at("stack2"))?;
        tmpfs(&at("stack2"))?;
        file(&at("stack2/top"), "top")?;
        std::fs::create_dir(at("stack2/self"))?;
        mount_bind_recursive("/", at("host"))?;
        // A tmpfs below a proc that is itself below a tmpfs: hidden twice.
        tmpfs(&at("both"))?;
        proc(&at("both/p"))?;
        tmpfs(&at("both"))?;
        file(&at("both/p/plain"), "plain")?;
        enter(root)?;
        Ok(proc_self)
    }

    fn enter(root: &Path) -> Result<()> {
        std::env::set_current_dir(root)?;
        rustix::process::pivot_root(".", ".").context("pivot_root")?;
        unmount(".", UnmountFlags::DETACH).context("old root")?;
        std::env::set_current_dir("/")?;
        Ok(())
    }

    fn mount_remount_ro(at: &Path) -> Result<()> {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        rustix::mount::mount_remount(at, flags, c"").with_context(|| format!("read-only {at:?}"))
    }

    /// As wasmtime opens: from the tree's root, never above it.
    fn open(tree: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o600) } else { Mode::empty() };
        // openat2(2) is strict: O_NONBLOCK with O_PATH is EINVAL.
        let more = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
        loop {
            // EAGAIN: another test's mount while a ".." was being resolved.
            match rustix::fs::openat2(tree, path, flags | more | OFlags::CLOEXEC, mode, resolve) {
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
    }

    fn read(tree: &OwnedFd, path: &str) -> Result<String, Errno> {
        let mut bytes = [0; 64];
        let n = rustix::io::read(open(tree, path, OFlags::RDONLY)?, &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..n]).into_owned())
    }

    fn entries(tree: &OwnedFd, path: &str) -> Result<Vec<String>> {
        let dir = open(tree, path, OFlags::RDONLY | OFlags::DIRECTORY).with_context(|| path.to_owned())?;
        let names = rustix::fs::Dir::new(dir)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        Ok(names.into_iter().filter(|name| name != "." && name != "..").collect())
    }

    /// Every directory a walk reaches, a few levels deep: none is of a kernel file system, and none has devices.
    fn walk(tree: &OwnedFd, path: &str, depth: u32) -> Result<u32> {
        let dir = match open(tree, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
            Ok(dir) => dir,
            Err(_) => return Ok(0),
        };
        let fs = rustix::fs::fstatfs(&dir)?;
        anyhow::ensure!(!FORBIDDEN_TYPES.contains(&fs.f_type), "{path} is {:#x}", fs.f_type);
        let flags = rustix::fs::fstatvfs(&dir)?.f_flag;
        let wanted = rustix::fs::StatVfsMountFlags::NODEV | rustix::fs::StatVfsMountFlags::NOSUID;
        anyhow::ensure!(flags.contains(wanted), "{path} is not nodev and nosuid");
        let mut seen = 1;
        if depth > 0 {
            for name in entries(tree, path).unwrap_or_default() {
                seen += walk(tree, &format!("{path}/{name}"), depth - 1)?;
            }
        }
        Ok(seen)
    }

    fn inspect(tree: &OwnedFd, user: bool) -> Result<()> {
        let visible = [
            ("etc/image", "image"),
            ("data/file", "data"),
            ("data/sub/deep", "deep"),
            ("data/sub/inner/file", "inner"),
            ("ro/file", "data"),
            ("one", "single"),
            ("sp ace\\/file", "space"),
            ("stack2/top", "top"),
            ("both/p/plain", "plain"),
        ];
        for (path, text) in visible {
            let got = read(tree, path).with_context(|| path.to_owned())?;
            anyhow::ensure!(got == text, "{path} is {got:?}");
        }
        for path in ["proc", "sys", "dev", "stack", "data/sub/proc", "maskeddir", "stack2/self", "host/dev"] {
            let names = entries(tree, path)?;
            anyhow::ensure!(names.is_empty(), "{path} has {names:?}");
        }
        for path in ["host/proc", "host/sys"] {
            let names = entries(tree, path)?;
            anyhow::ensure!(names.is_empty(), "{path} has {names:?}");
        }
        anyhow::ensure!(!entries(tree, "host")?.is_empty(), "host is not there at all");
        for path in [
            "proc/self/mem",
            "etc/escape",
            "host/proc/self/mem",
            "proc/under",
            "dev/under",
            "dev/shm/file",
            "stack/tmp",
            "stack/under",
            "stack2/self/mem",
            "maskeddir/secret",
            "proc/../proc/self/mem",
        ] {
            let got = read(tree, path);
            anyhow::ensure!(got == Err(Errno::NOENT), "{path} gives {got:?}");
        }
        for path in ["masked", "procfile", "nsfile"] {
            let got = read(tree, path);
            anyhow::ensure!(got == Err(Errno::NXIO), "{path} gives {got:?}");
            let stat = rustix::fs::fstat(open(tree, path, OFlags::PATH)?)?;
            anyhow::ensure!(stat.st_size == 0, "{path} has a size");
        }
        for path in ["proc/new", "dev/new", "ro/new", "maskeddir/new", "host/proc/new"] {
            let got = open(tree, path, OFlags::CREATE | OFlags::WRONLY).map(|_| ());
            anyhow::ensure!(got == Err(Errno::ROFS), "creating {path} gives {got:?}");
        }
        open(tree, "data/new", OFlags::CREATE | OFlags::WRONLY).context("data/new")?;
        anyhow::ensure!(
            open(tree, "../etc", OFlags::PATH).err() == Some(Errno::XDEV),
            "the tree's root can be left"
        );
        // ".." of a cover is the directory it lies in, not the covers' own tmpfs.
        let names = entries(tree, "proc/..")?;
        anyhow::ensure!(names.iter().any(|name| name == "etc"), "proc/.. has {names:?}");
        let seen = walk(tree, ".", if user { 3 } else { 4 })?;
        anyhow::ensure!(seen > 30, "only {seen} directories seen");
        Ok(())
    }

    fn scenario(user: bool, how: Build) {
        in_container(user, |root| {
            let proc_self = furnish(root).context("furnish")?;
            let tree = match how {
                Build::Directly => looked_at(proc_self.as_fd()),
                Build::Helper => through_helper(proc_self.as_fd()),
            }
            .context("build")?;
            inspect(&tree, user).context("inspect")?;
            // Nothing was changed for a process that lives in the container.
            anyhow::ensure!(
                std::fs::read_link("/proc/self").context("/proc/self")?.as_os_str() == "1",
                "the container's /proc is gone"
            );
            anyhow::ensure!(std::fs::read_to_string("/stack2/top")? == "top", "/stack2 changed");
            Ok(())
        });
    }

    #[test]
    fn no_kernel_file_system_is_reached_directly() {
        scenario(false, Build::Directly);
    }

    #[test]
    fn no_kernel_file_system_is_reached_through_the_helper() {
        scenario(false, Build::Helper);
    }

    #[test]
    fn no_kernel_file_system_is_reached_in_a_user_namespace_directly() {
        scenario(true, Build::Directly);
    }

    #[test]
    fn no_kernel_file_system_is_reached_in_a_user_namespace_through_the_helper() {
        scenario(true, Build::Helper);
    }

    /// Without this the other tests could pass on a tree that never had what they look for.
    #[test]
    fn a_copy_without_covers_would_let_the_guest_out() {
        in_container(false, |root| {
            furnish(root)?;
            let tree = clone_root()?;
            for path in [
                "proc/self/mem",
                "host/proc/self/mem",
                "stack/self/mem",
                "data/sub/proc/self/mem",
                "procfile",
            ] {
                open(&tree, path, OFlags::RDONLY).with_context(|| path.to_owned())?;
            }
            anyhow::ensure!(entries(&tree, "dev")? == ["shm"], "nothing in /dev");
            Ok(())
        });
    }

    #[test]
    fn a_device_node_of_the_containers_own_dev_hides_a_file_too() {
        in_container(false, |root| {
            let proc_self = furnish(root)?;
            let device = rustix::fs::makedev(1, 3);
            let mode = Mode::from_raw_mode(0o666);
            rustix::fs::mknodat(CWD, "/dev/null", FileType::CharacterDevice, mode, device)?;
            mount_bind("/dev/null", "/etc/image")?;
            for how in [looked_at, through_helper] {
                let tree = how(proc_self.as_fd())?;
                let got = read(&tree, "etc/image");
                anyhow::ensure!(got == Err(Errno::ACCESS), "{got:?}");
            }
            Ok(())
        });
    }

    #[test]
    fn what_is_mounted_later_in_the_container_stays_out() {
        for how in [looked_at, through_helper] {
            in_container(false, |root| {
                let proc_self = furnish(root)?;
                mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
                let tree = how(proc_self.as_fd())?;
                proc(Path::new("/data/sub/late"))?;
                proc(Path::new("/etc/late"))?;
                anyhow::ensure!(std::fs::exists("/data/sub/late/self")?, "no proc mounted");
                for path in ["data/sub/late", "etc/late"] {
                    let names = entries(&tree, path)?;
                    anyhow::ensure!(names.is_empty(), "{path} has {names:?}");
                }
                // And the covers did not come the other way.
                anyhow::ensure!(std::fs::exists("/proc/self/mem")?, "the container lost its /proc");
                inspect(&tree, false)
            });
        }
    }

    #[test]
    fn a_process_that_mounts_and_unmounts_meanwhile_gets_nothing_in() {
        in_container(false, |root| {
            let proc_self = furnish(root)?;
            std::fs::create_dir_all("/etc/race")?;
            // SAFETY: one thread; the child only mounts and unmounts until it is killed with its pid namespace.
            if unsafe { libc::fork() } == 0 {
                loop {
                    let _ = proc(Path::new("/etc/race"));
                    let _ = unmount("/etc/race", UnmountFlags::DETACH);
                }
            }
            for _ in 0..100 {
                let tree = build_in_running(proc_self.as_fd())?;
                let names = entries(&tree, "etc/race")?;
                anyhow::ensure!(names.is_empty(), "etc/race has {} entries", names.len());
            }
            Ok(())
        });
    }

    #[test]
    fn an_unbindable_mount_still_hides_what_is_under_it() {
        in_container(false, |root| {
            let proc_self = furnish(root)?;
            for path in ["/maskeddir", "/sp ace\\", "/"] {
                mount_change(path, MountPropagationFlags::UNBINDABLE)?;
            }
            inspect(&build(proc_self.as_fd())?, false)
        });
    }

    #[test]
    fn dev_is_empty_wherever_it_leads_and_may_be_missing() {
        in_container(false, |root| {
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            let proc_self = rustix::fs::open("/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            tmpfs(root)?;
            enter(root)?;
            inspect_dev(&build(proc_self.as_fd())?, Err(Errno::NOENT))?;
            file(Path::new("/real/dev/file"), "x")?;
            std::os::unix::fs::symlink("/real/dev", "/dev")?;
            inspect_dev(&build(proc_self.as_fd())?, Err(Errno::XDEV))?;
            let tree = build(proc_self.as_fd())?;
            anyhow::ensure!(entries(&tree, "real/dev")?.is_empty(), "/real/dev has files");
            std::fs::remove_file("/dev")?;
            std::os::unix::fs::symlink("/", "/dev")?;
            let error = build(proc_self.as_fd()).err().context("a root as /dev is taken")?;
            anyhow::ensure!(format!("{error:#}").contains("/dev leads to the root"), "{error:#}");
            Ok(())
        });
    }

    fn inspect_dev(tree: &OwnedFd, expected: Result<(), Errno>) -> Result<()> {
        let got = open(tree, "dev", OFlags::PATH).map(|_| ());
        anyhow::ensure!(got == expected, "dev gives {got:?}");
        Ok(())
    }

    #[test]
    fn mounts_are_restricted_one_by_one_where_the_kernel_is_old() {
        for user in [false, true] {
            in_container(user, |root| {
                let proc_self = furnish(root)?;
                restrict_one_by_one(&read_mounts(proc_self.as_fd())?)?;
                let tree = clone_root()?;
                for path in [".", "data", "ro", "data/sub/inner", "host", "stack2", "maskeddir"] {
                    let dir = open(&tree, path, OFlags::PATH)?;
                    let flags = rustix::fs::fstatvfs(&dir)?.f_flag;
                    let wanted = rustix::fs::StatVfsMountFlags::NODEV | rustix::fs::StatVfsMountFlags::NOSUID;
                    anyhow::ensure!(flags.contains(wanted), "{path}: {flags:?}");
                    let read_only = flags.contains(rustix::fs::StatVfsMountFlags::RDONLY);
                    anyhow::ensure!(read_only == ["ro", "maskeddir"].contains(&path), "{path}: {flags:?}");
                }
                Ok(())
            });
        }
    }

    #[test]
    fn a_kernel_file_system_as_root_is_refused() {
        in_container(false, |root| {
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            let proc_self = rustix::fs::open("/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            proc(root)?;
            std::env::set_current_dir(root)?;
            rustix::process::chroot(".")?;
            let error = build(proc_self.as_fd()).err().context("a procfs is taken as root")?;
            anyhow::ensure!(format!("{error:#}").contains("is a kernel file system"), "{error:#}");
            Ok(())
        });
    }

    /// A container as engines make them: some twenty mounts.
    #[test]
    fn it_takes_little_time() {
        in_container(false, |root| {
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            let proc_self = rustix::fs::open("/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            tmpfs(root)?;
            proc(&root.join("proc"))?;
            for path in ["dev", "dev/shm", "dev/mqueue", "sys", "sys/firmware", "data"] {
                tmpfs(&root.join(path))?;
            }
            for path in ["etc/hosts", "etc/hostname", "etc/resolv.conf", "masked"] {
                file(&root.join(path), "")?;
                mount_bind("/dev/null", root.join(path))?;
            }
            for path in ["proc/uptime", "proc/version", "proc/loadavg", "proc/sys", "proc/irq", "proc/bus"] {
                mount_bind(root.join(path), root.join(path)).with_context(|| path.to_owned())?;
            }
            enter(root)?;
            for how in [Build::Directly, Build::Helper] {
                let start = std::time::Instant::now();
                let trees = (0..20)
                    .map(|_| match how {
                        Build::Helper => through_helper(proc_self.as_fd()),
                        Build::Directly => looked_at(proc_self.as_fd()),
                    })
                    .collect::<Result<Vec<_>>>()?;
                eprintln!("{how:?}: {:?} each", start.elapsed() / 20);
                let start = std::time::Instant::now();
                drop(trees);
                eprintln!("dropping: {:?} each", start.elapsed() / 20);
            }
            Ok(())
        });
    }
}
