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
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountFlags, MountPropagationFlags,
    MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

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
    if !read_mounts(proc_self)?.iter().any(|mount| mount.unbindable) {
        match directly(proc_self) {
            // Before 6.15 nothing can be mounted on a detached tree (EINVAL); mount_setattr is of 5.12 (ENOSYS).
            Err(error) if matches!(errno(&error), Some(Errno::INVAL | Errno::NOSYS)) => {}
            result => return result,
        }
    }
    through_helper(proc_self)
}

/// Copy first, then cover in the copy.
fn directly(proc_self: BorrowedFd<'_>) -> Result<OwnedFd> {
    let before = read_mounts(proc_self)?;
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
    // The parent's mountinfo still shows the same mounts at the same paths as ours.
    let mounts = read_mounts(proc_self)?;
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

/// Kernels before 5.12. The paths are mountinfo's, so they hold no symlinks; a hidden mount's path restricts the
/// one that hides it, or leads nowhere.
fn restrict_one_by_one(mounts: &[Mount]) -> Result<()> {
    for path in paths_parents_first(mounts) {
        let stat = match rustix::fs::statvfs(&path) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot see mount {}", path.display())),
        };
        // mount(2): MS_REMOUNT|MS_BIND sets all flags but those of atime, which stay when none is given. The ST_*
        // bits kept here have the values of their MS_* namesakes.
        let kept = stat.f_flag.bits() as u32 & (libc::ST_RDONLY | libc::ST_NOEXEC) as u32;
        let flags =
            MountFlags::from_bits_retain(kept) | MountFlags::BIND | MountFlags::NODEV | MountFlags::NOSUID;
        rustix::mount::mount_remount(&path, flags, c"")
            .with_context(|| format!("cannot restrict mount {}", path.display()))?;
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
    let mut bytes = Vec::new();
    std::fs::File::from(file).read_to_end(&mut bytes).context("cannot read /proc/self/mountinfo")?;
    bytes
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
