//! One mount: its tree (a clone or a new file system), its attributes, and the place inside the root it goes to.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::inside::{self, Place};
use super::options::{self, Options};
use super::{Label, Mounted, Root, cgroupfs, old_call, proc_path, sources};
use crate::linux::sys::{self, MountAttr};

/// A mount that is attached nowhere yet.
pub struct Tree {
    fd: OwnedFd,
    /// Attributes that mount_setattr(2) could not set (before 5.12): set by mount(2) once attached.
    late: Cell<Option<Change>>,
    /// The same for propagation.
    late_propagation: RefCell<Vec<MountPropagationFlags>>,
}

/// Attributes to set and to clear. What is in `besides` is cleared, too, if it is not locked.
#[derive(Clone, Copy, Default)]
struct Change {
    set: u64,
    clear: u64,
    besides: u64,
}

impl Change {
    /// mount_namespaces(7): what a mount had when a user namespace copied it, nobody in there may take from it.
    fn make(self, call: impl Fn(u64, u64) -> io::Result<()>) -> io::Result<()> {
        match call(self.set, self.clear | self.besides) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && self.besides != 0 => {
                call(self.set, self.clear)
            }
            other => other,
        }
    }

    fn then(self, next: Change) -> Change {
        let cleared = next.clear | next.besides;
        Change {
            set: (self.set & !cleared) | next.set,
            clear: self.clear | next.clear,
            besides: self.besides | next.besides,
        }
    }
}

impl Tree {
    pub fn from_fd(fd: OwnedFd) -> Tree {
        Tree { fd, late: Default::default(), late_propagation: Default::default() }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Nothing waits for mount(2): the kernel has mount_setattr(2), if it was called.
    pub fn is_complete(&self) -> bool {
        self.late.get().is_none()
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub fn clone_of(path: &Path, recursive: bool) -> Result<Tree> {
        Tree::clone_below((CWD, path), recursive)
    }

    pub fn clone_below((at, path): (BorrowedFd<'_>, &Path), recursive: bool) -> Result<Tree> {
        Tree::open(at, path, recursive, OpenTreeFlags::empty())
            .with_context(|| format!("open {}", path.display()))
    }

    pub fn clone_of_fd(fd: BorrowedFd<'_>) -> Result<Tree> {
        Tree::open(fd, Path::new(""), false, OpenTreeFlags::AT_EMPTY_PATH).context("clone a mount")
    }

    pub fn clone_recursive_of_fd(fd: BorrowedFd<'_>) -> Result<Tree> {
        Tree::open(fd, Path::new(""), true, OpenTreeFlags::AT_EMPTY_PATH).context("clone a mount")
    }

    fn open(at: BorrowedFd<'_>, path: &Path, recursive: bool, flags: OpenTreeFlags) -> Result<Tree> {
        let mut flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        Ok(Tree::from_fd(open_tree(at, path, flags)?))
    }

    pub fn set_propagation(&self, recursive: bool, bit: u64) -> Result<()> {
        let attr = MountAttr { propagation: bit, ..MountAttr::default() };
        match sys::mount_setattr(self.fd.as_fd(), recursive, &attr) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                let mut flags = MountPropagationFlags::from_bits_truncate(bit as u32);
                flags.set(MountPropagationFlags::REC, recursive);
                self.late_propagation.borrow_mut().push(flags);
                Ok(())
            }
            other => other.context("set mount propagation"),
        }
    }

    /// Both, of the whole tree, where mount_setattr(2) is known to be there.
    pub fn set_all(&self, set: u64, clear: u64, propagation: u64) -> Result<()> {
        let attr = MountAttr { set, clear, propagation, ..MountAttr::default() };
        sys::mount_setattr(self.fd.as_fd(), true, &attr).context("set mount attributes and propagation")
    }

    pub fn set_attributes(&self, recursive: bool, set: u64, clear: u64) -> Result<()> {
        self.change(recursive, Change { set, clear, besides: 0 })
    }

    /// mount(8)'s `--bind -o`, and so runc's: with any word for this mount, the flags of the source that none of them
    /// asks for go, as far as the kernel has not locked them. Of the words for atime each stands for all.
    fn replace_attributes(&self, set: u64, clear: u64) -> Result<()> {
        if set == 0 && clear == 0 {
            return Ok(());
        }
        let mut besides =
            sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOEXEC;
        if set & sys::MOUNT_ATTR_NODIRATIME != 0 || clear & sys::MOUNT_ATTR_ATIME != 0 {
            besides |= sys::MOUNT_ATTR_ATIME | sys::MOUNT_ATTR_NODIRATIME;
        }
        self.change(false, Change { set, clear, besides })
    }

    fn change(&self, recursive: bool, change: Change) -> Result<()> {
        let Change { set, clear, besides } = change;
        if set | clear | besides == 0 {
            return Ok(());
        }
        let call = |set, clear| {
            sys::mount_setattr(self.fd.as_fd(), recursive, &MountAttr { set, clear, ..MountAttr::default() })
        };
        match change.make(call) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && !recursive => {
                self.late.set(Some(self.late.get().unwrap_or_default().then(change)));
                Ok(())
            }
            other => other.context("set mount attributes"),
        }
    }

    /// Gives the mount the mapping of a user namespace; not on a mount that has one, nor on one that is attached.
    pub fn set_idmap(&self, recursive: bool, namespace: BorrowedFd<'_>) -> Result<()> {
        let attr = MountAttr {
            set: sys::MOUNT_ATTR_IDMAP,
            userns_fd: namespace.as_raw_fd() as u64,
            ..MountAttr::default()
        };
        sys::mount_setattr(self.fd.as_fd(), recursive, &attr).map_err(|error| {
            let why = match error.raw_os_error() {
                Some(libc::ENOSYS) => "id-mapped mounts need Linux 5.12",
                Some(libc::EINVAL) => {
                    "set the id mapping (maybe the filesystem does not support id-mapped mounts on this kernel)"
                }
                _ => "set the id mapping",
            };
            anyhow::Error::new(error).context(why)
        })
    }

    pub fn attach(&self, target: BorrowedFd<'_>) -> Result<()> {
        self.attach_at(target, "")
    }

    /// On `name` in a directory where nobody else can put anything.
    pub fn attach_at(&self, directory: BorrowedFd<'_>, name: &str) -> Result<()> {
        let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        flags.set(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH, name.is_empty());
        move_mount(self.fd.as_fd(), "", directory, name, flags)?;
        // A clone is a peer of the host's mount: before anything is mounted below it, that must end.
        for flags in self.late_propagation.borrow().iter() {
            rustix::mount::mount_change(proc_path(self.fd.as_fd()), *flags)
                .context("set mount propagation")?;
        }
        match self.late.get() {
            None => Ok(()),
            Some(change) => {
                let call = |set, clear| old_call::set_attributes(self.fd.as_fd(), set, clear);
                change.make(call).context("remount")
            }
        }
    }

    pub fn is_directory(&self) -> Result<bool> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn is_procfs(&self) -> Result<bool> {
        const PROC_SUPER_MAGIC: i64 = 0x9fa0;
        Ok(rustix::fs::fstatfs(&self.fd)?.f_type == PROC_SUPER_MAGIC)
    }
}

/// The same file through a read-only mount of its own, which nobody can reach to make it writable: whoever opens it
/// anew by way of /proc/PID/fd gets EROFS. The unprivileged cannot make the mount, and harm only themselves.
pub fn read_only_view(file: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let tree = match Tree::open(file, Path::new(""), false, OpenTreeFlags::AT_EMPTY_PATH) {
        Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::PERM) => return Ok(None),
        other => other.context("clone the mount of a file")?,
    };
    tree.set_attributes(false, sys::MOUNT_ATTR_RDONLY, 0)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(proc_path(tree.fd.as_fd()), flags, Mode::empty()).map(Some).context("open it read-only")
}

/// Sets attributes of an attached mount and leaves its others alone.
pub fn set_attached(mount: BorrowedFd<'_>, set: u64) -> Result<()> {
    match sys::mount_setattr(mount, false, &MountAttr { set, ..MountAttr::default() }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            old_call::set_attributes(mount, set, 0).context("remount")
        }
        other => Ok(other?),
    }
}

/// A bind has no file system of its own: the option says so, or crun's and Docker's type `bind`.
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|word| word == "bind" || word == "rbind")
}

pub fn is_cgroup(mount: &Mount) -> bool {
    mount.typ().as_deref().is_some_and(|kind| kind == "cgroup" || kind == "cgroup2")
}

/// Words of a mount's options that do nothing there. runc takes them in silence, and engines do send some.
pub fn without_effect(mount: &Mount) -> Vec<String> {
    let options = options::of(mount);
    if !is_bind(mount) && !is_cgroup(mount) {
        return Vec::new();
    }
    let mut words = options.data;
    words.extend(options.superblock.iter().map(|word| (*word).to_owned()));
    words.extend(options.tmpcopyup.then(|| "tmpcopyup".to_owned()));
    words
}

/// Makes one entry of `mounts`, the one with that index.
pub fn perform(root: &Root<'_>, mounted: &mut Mounted, mount: &Mount, index: usize) -> Result<()> {
    let options = options::of(mount);
    let destination = mount.destination();
    if options.remount {
        let target = inside::find(mounted.root.as_fd(), destination)?;
        let target = target.context("nothing is there to be remounted")?;
        return old_call::reconfigure(target.as_fd(), &options, is_bind(mount));
    }
    if is_bind(mount) {
        if options.copy_symlink
            && let Some(target) = sources::symlink(mount, root.bundle)?
        {
            return copy_symlink(mounted.root.as_fd(), &target, destination);
        }
        let tree = sources::bind(root, mount, index)?;
        return bind(root, mounted, &tree, &options, destination);
    }
    ensure!(!options.copy_symlink, "option copy-symlink is for a bind");
    if is_cgroup(mount) {
        return cgroupfs::mount(root, mounted.root.as_fd(), mount, &options);
    }
    let kind = mount.typ().as_deref().context("has neither a type nor the bind option")?;
    filesystem(root.label, mounted, kind, mount.source().as_deref(), options, destination)
}

fn filesystem(
    label: Option<Label<'_>>,
    mounted: &mut Mounted,
    kind: &str,
    source: Option<&Path>,
    mut options: Options,
    destination: &Path,
) -> Result<()> {
    let at = mounted.root.as_fd();
    // Devices and the mount points of later mounts are still to be made in it (runc: mountPropagate).
    let late = options.is_read_only() && (kind == "tmpfs" || destination == Path::new("/dev"));
    if late {
        options.set &= !sys::MOUNT_ATTR_RDONLY;
    }
    let covered = match kind {
        "proc" | "sysfs" => find_no_symlink(at, destination, kind)?,
        _ => inside::place(at, destination)?,
    };
    if let (Some(covered), "tmpfs") = (&covered, kind) {
        // runc's rule, by which `--tmpfs /tmp` stays what the image has; before the options, so that theirs wins.
        let mode = rustix::fs::fstat(covered)?.st_mode & 0o7777;
        options.data.insert(0, format!("mode={mode:04o}"));
    }
    let label = label.filter(|label| label.option(kind).is_some() || kind == "mqueue");
    options.data.extend(label.and_then(|label| label.option(kind)));
    let target = covered.map_or_else(|| inside::missing_directory(at, destination), Ok)?;
    check_proc(at, &target, destination, kind == "proc")?;
    let plain = !late && label.is_none() && old_call::is_enough(&options);
    // If it fails, what follows says why.
    if plain && old_call::mount(kind, source, &options, target.as_fd()).is_ok() {
        return Ok(());
    }
    let tree = if old_call::is_needed(source, &options) {
        old_call::mount(kind, source, &options, target.as_fd())?;
        let mounted = Tree::from_fd(inside::find(at, destination)?.context("what was mounted is gone")?);
        apply(&mounted, &options)?;
        mounted
    } else {
        let tree = new_filesystem(kind, source, &options)?;
        if let (Some(label), "mqueue") = (label, kind) {
            label.set(tree.fd.as_fd())?;
        }
        if options.tmpcopyup {
            copy_up(target.as_fd(), &tree, kind)?;
        }
        apply(&tree, &options)?;
        tree.attach(target.as_fd())?;
        tree
    };
    if late {
        mounted.late_read_only.push(tree.into_fd());
    }
    Ok(())
}

fn bind(
    root: &Root<'_>,
    mounted: &Mounted,
    tree: &Tree,
    options: &Options,
    destination: &Path,
) -> Result<()> {
    tree.set_propagation(true, root.bind_propagation()?)?;
    let at = mounted.root.as_fd();
    let target = if tree.is_directory()? {
        inside::directory(at, destination)?
    } else {
        inside::file(at, destination)?
    };
    check_proc(at, &target, destination, tree.is_procfs()?)?;
    tree.set_attributes(true, options.set_recursive, options.clear_recursive)?;
    tree.replace_attributes(options.set, options.clear)?;
    propagate(tree, options)?;
    tree.attach(target.as_fd())?;
    Ok(())
}

/// Attributes and propagation, before the tree can be seen.
pub fn apply(tree: &Tree, options: &Options) -> Result<()> {
    tree.set_attributes(true, options.set_recursive, options.clear_recursive)?;
    tree.set_attributes(false, options.set, options.clear)?;
    propagate(tree, options)
}

pub fn propagate(tree: &Tree, options: &Options) -> Result<()> {
    options.propagation.iter().try_for_each(|&(recursive, bit)| tree.set_propagation(recursive, bit))
}

/// A new superblock by fsopen(2): no source path is looked up, no helper is run.
pub fn new_filesystem(kind: &str, source: Option<&Path>, options: &Options) -> Result<Tree> {
    let context =
        fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).with_context(|| format!("file system type {kind:?}"))?;
    if let Some(source) = source {
        fsconfig_set_string(context.as_fd(), "source", source).context("set source")?;
    }
    for flag in &options.superblock {
        fsconfig_set_flag(context.as_fd(), *flag).with_context(|| format!("option {flag}"))?;
    }
    // A block device's file system must not replay its journal when it is asked for read-only; the kernel's own
    // are read-only by the mount's attribute, since their superblocks may be shared with the host.
    if options.is_read_only() && !matches!(kind, "proc" | "sysfs" | "tmpfs" | "mqueue" | "devpts") {
        fsconfig_set_flag(context.as_fd(), "ro").context("option ro")?;
    }
    for (key, value) in options::parameters(&options.data) {
        let set = match &value {
            Some(value) => fsconfig_set_string(context.as_fd(), &key, value),
            None => fsconfig_set_flag(context.as_fd(), &key),
        };
        let word = || value.as_ref().map_or(key.clone(), |value| format!("{key}={value}"));
        set.with_context(|| format!("option {:?}", word()))?;
    }
    fsconfig_create(context.as_fd()).with_context(|| format!("create the {kind}"))?;
    let fd = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .with_context(|| format!("mount the {kind}"))?;
    Ok(Tree::from_fd(fd))
}

/// A tmpfs that holds nothing and can hold nothing.
pub fn empty_tmpfs(label: Option<Label<'_>>) -> Result<Tree> {
    let mut options = Options {
        data: vec!["nr_blocks=1".into(), "nr_inodes=1".into(), "mode=755".into()],
        ..Options::default()
    };
    options.data.extend(label.and_then(|label| label.option("tmpfs")));
    new_filesystem("tmpfs", Some(Path::new("tmpfs")), &options)
}

/// runc's and crun's `tmpcopyup`: the tmpfs starts with a copy of the directory it covers.
fn copy_up(from: BorrowedFd<'_>, to: &Tree, kind: &str) -> Result<()> {
    if kind != "tmpfs" {
        bail!("option tmpcopyup is for tmpfs only");
    }
    super::copy::content(from, to.fd.as_fd()).context("copy up into the tmpfs")
}

/// crun's `copy-symlink` (podman: `no-dereference`): the link itself, where nothing else is already.
fn copy_symlink(root: BorrowedFd<'_>, target: &CStr, destination: &Path) -> Result<()> {
    let mut parents = inside::Parents::of(root);
    let (directory, name) = parents.get(destination)?;
    match rustix::fs::symlinkat(target, directory, name) {
        Err(Errno::EXIST) => {
            let there = rustix::fs::readlinkat(directory, name, Vec::new());
            ensure!(there.is_ok_and(|there| *there == *target), "what is there is no link to {target:?}");
            Ok(())
        }
        other => other.context("make the link"),
    }
}

/// CVE-2019-19921, CVE-2023-28642: labels and sysctls are written through /proc, so it must be where it says.
fn find_no_symlink(root: BorrowedFd<'_>, path: &Path, kind: &str) -> Result<Option<Place>> {
    let Some(handle) = inside::place_no_follow(root, path)? else { return Ok(None) };
    let stat = rustix::fs::fstat(&handle)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        bail!("filesystem {kind:?} must be mounted on ordinary directory");
    }
    Ok(Some(handle))
}

/// The files of procfs that engines (lxcfs) may put something over; the list is runc's checkProcMount.
const PROC_FILES: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// CVE-2019-16884: over /proc goes a procfs and nothing else, whatever is there now, and inside it only what the list
/// above names (runc: checkProcMount). An image's `VOLUME /proc` would otherwise take labels and masks over.
fn check_proc(root: BorrowedFd<'_>, target: &Place, destination: &Path, procfs: bool) -> Result<()> {
    let inside = if target.direct {
        Path::new("/").join(destination.components().collect::<PathBuf>()).display().to_string()
    } else {
        let (root, target) = (name_of(root)?, name_of(target.as_fd())?);
        let inside = target.to_bytes().strip_prefix(root.to_bytes());
        String::from_utf8_lossy(inside.ok_or_else(|| anyhow!("left the root"))?).into_owned()
    };
    if inside == "/proc" {
        ensure!(procfs, "{inside:?} cannot be mounted because it is not of type proc");
    } else if inside.starts_with("/proc/") && !PROC_FILES.contains(&inside.as_str()) {
        bail!("{inside:?} cannot be mounted because it is inside /proc");
    }
    Ok(())
}

/// The kernel's own name for it.
fn name_of(fd: BorrowedFd<'_>) -> Result<CString> {
    rustix::fs::readlink(proc_path(fd), Vec::new()).context("ask for the name of a directory of the root")
}

/// The mount point that `path` is on, of this mount namespace.
pub fn mount_point_of(path: &Path) -> Result<PathBuf> {
    let points = mount_points()?;
    let best = points.into_iter().map(|mount| mount.point).filter(|point| path.starts_with(point));
    best.max_by_key(|point| point.components().count()).context("no mount point found for the root")
}

/// The first mount point of this kind of file system.
pub fn mount_of_kind(kind: &str) -> Result<Option<PathBuf>> {
    Ok(mount_points()?.into_iter().find(|mount| mount.kind == kind).map(|mount| mount.point))
}

/// procfs and sysfs mounts of this namespace that are not inside `root`.
pub fn kernel_mounts_outside(root: &Path) -> Result<Vec<PathBuf>> {
    let is_kernel = |mount: &MountPoint| mount.kind == "proc" || mount.kind == "sysfs";
    let outside =
        mount_points()?.into_iter().filter(|mount| is_kernel(mount) && !mount.point.starts_with(root));
    Ok(outside.map(|mount| mount.point).collect())
}

/// Some of a line of mountinfo (proc_pid_mountinfo(5)).
pub struct MountPoint {
    pub id: u64,
    pub point: PathBuf,
    pub kind: String,
}

pub fn mount_points() -> Result<Vec<MountPoint>> {
    let text = std::fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let line = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let point = unescape(fields.nth(3)?);
        let kind = String::from_utf8_lossy(fields.skip_while(|field| *field != b"-").nth(1)?).into_owned();
        Some(MountPoint { id, point, kind })
    };
    Ok(text.split(|byte| *byte == b'\n').filter_map(line).collect())
}

fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let code = (byte == b'\\')
            .then(|| tail.get(..3).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok()))
            .flatten();
        bytes.push(code.unwrap_or(byte));
        if code.is_some() {
            rest = &tail[3..];
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}
