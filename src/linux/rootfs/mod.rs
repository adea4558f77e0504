//! The container's root file system, by descriptor: sources are opened with the host's eyes, targets are resolved
//! inside the root only, and no path that an image can steer is ever followed outside.

mod cgroupfs;
mod copy;
mod devices;
mod idmap;
mod inside;
mod label;
mod mount;
mod old_call;
pub mod options;
mod protect;
mod shared;
mod sources;
mod stage;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

pub use cgroupfs::give as give_cgroups;
pub use devices::paths as device_paths;
pub use idmap::{IdMaps, is_wanted as is_id_mapped};
pub use label::Label;
pub use mount::{is_bind, mount_of_kind, read_only_view, without_effect};
pub use protect::{open_null, protect};
pub use shared::unmount_root;
pub use sources::{Sources, open_for_child};
pub use stage::{file_place_in, place_in, stage};

use super::cgroup::Cgroup;
use super::sync::Channel;
use super::sys;
use mount::Tree;

/// What the child needs to build the root.
pub struct Root<'a> {
    pub spec: &'a Spec,
    pub bundle: &'a Path,
    /// Canonical, on the host.
    pub path: &'a Path,
    pub cgroup: &'a Cgroup,
    /// The child's way to its parent, which opens what takes the host's rights, or the parent's to it; none where it has no such
    /// rights.
    pub talk: Option<&'a Channel>,
    pub no_pivot: bool,
    /// The mounts are the container's alone.
    pub mount_namespace: bool,
    /// And they began as a copy of the parent's.
    pub mounts_are_copies: bool,
    pub user_namespace: bool,
    pub cgroup_namespace: bool,
    /// Of what is mounted anew.
    pub label: Option<Label<'a>>,
}

/// The root once it is mounted, before pivot_root.
pub struct Mounted {
    root: OwnedFd,
    /// Mounts that become read-only when everything has been put into them (`/dev`, every tmpfs).
    late_read_only: Vec<OwnedFd>,
}

impl Root<'_> {
    /// Mounts the root, everything in `mounts`, the devices and the default symlinks.
    pub fn mount(&self, mut sources: Sources) -> Result<Mounted> {
        if self.mount_namespace {
            self.set_base_propagation()?;
        }
        let root = self.attach_root(&mut sources)?;
        let mut mounted = Mounted { root, late_read_only: Vec::new() };
        for (index, mount) in self.spec.mounts().iter().flatten().enumerate() {
            mount::perform(self, &mut mounted, mount, index)
                .with_context(|| format!("mount {}", mount.destination().display()))?;
            if mount.destination() == Path::new("/") {
                // What covers the root is the root from here on.
                mounted.root = open_directory(self.path)?;
            }
        }
        if devices::needs_setup(self.spec) {
            devices::create(self, mounted.root.as_fd(), &mut sources)?;
            devices::link_defaults(mounted.root.as_fd())?;
        }
        Ok(mounted)
    }

    /// `rootfsPropagation`, or rslave as runc: events come in from the host and none go out.
    fn base_propagation(&self) -> Result<(bool, u64)> {
        match self.spec.linux().as_ref().and_then(|l| l.rootfs_propagation().as_deref()) {
            None | Some("") => Ok((true, libc::MS_SLAVE)),
            Some(word) => options::propagation(word)
                .with_context(|| format!("linux.rootfsPropagation: unknown value {word:?}")),
        }
    }

    /// What a clone of the host's has of it in the container.
    fn bind_propagation(&self) -> Result<u64> {
        Ok(match self.base_propagation()?.1 {
            libc::MS_UNBINDABLE => libc::MS_PRIVATE,
            bit => bit,
        })
    }

    fn set_base_propagation(&self) -> Result<()> {
        // "/" is changed recursively whatever the word says, as in runc's prepareRoot: a namespace half of whose
        // mounts are still the host's peers would send our mounts back to it.
        let bit = self.bind_propagation()?;
        let flags = MountPropagationFlags::from_bits_truncate(bit as u32) | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags).context("set the propagation of the mount namespace")?;
        if bit == libc::MS_SHARED {
            self.make_parent_private()?;
        }
        Ok(())
    }

    /// pivot_root(2) refuses a new root whose parent mount is shared, and mounting the root there would send it
    /// to the host (runc: rootfsParentMountPrivate).
    fn make_parent_private(&self) -> Result<()> {
        let parent = mount::mount_point_of(self.path)?;
        rustix::mount::mount_change(&parent, MountPropagationFlags::PRIVATE)
            .with_context(|| format!("make {} private", parent.display()))
    }

    fn attach_root(&self, sources: &mut Sources) -> Result<OwnedFd> {
        let tree = match sources.take_root() {
            Some(fd) => Tree::from_fd(fd),
            None => Tree::clone_of(self.path, true)?,
        };
        // pivot_root(2) refuses a shared root, and an unbindable one could not be bound from; both words are
        // applied once it is "/", as in runc.
        let bit = match self.base_propagation()?.1 {
            libc::MS_SLAVE => libc::MS_SLAVE,
            _ => libc::MS_PRIVATE,
        };
        tree.set_propagation(true, bit).with_context(|| format!("the root {}", self.path.display()))?;
        let target = open_directory(self.path)?;
        tree.attach(target.as_fd()).with_context(|| format!("mount the root {}", self.path.display()))?;
        if !self.mount_namespace {
            // mount_namespaces(7): what is attached to a shared mount becomes one, and what the container has mounted
            // would appear in each namespace that listens to the host.
            tree.set_propagation(true, libc::MS_PRIVATE)?;
        }
        Ok(tree.into_fd())
    }

    /// The root becomes `/` and the host's tree goes away.
    pub fn enter(&self, mounted: &Mounted) -> Result<()> {
        rustix::process::fchdir(&mounted.root).context("enter the root")?;
        if !self.mount_namespace {
            // The mounts are the host's too, and none of them may move (runc, crun).
            return become_root();
        }
        if self.no_pivot {
            return self.enter_without_pivot();
        }
        let old = slash()?;
        // pivot_root(2), "pivot_root(".", ".")": no directory for the old root has to exist in the image.
        rustix::process::pivot_root(".", ".").context("pivot_root")?;
        rustix::process::fchdir(&old).context("enter the old root")?;
        // Unmounting must not reach the host through a shared mount (runc does the same, in this order).
        rustix::mount::mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .context("make the old root a slave")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).context("unmount the old root")?;
        rustix::process::chdir("/").context("chdir to /")
    }

    /// `--no-pivot`, for an initramfs: the root is moved over `/`. Full procfs and sysfs mounts that stay below
    /// would let a container without its own mount new ones (runc: msMoveRoot), so they are unmounted first.
    fn enter_without_pivot(&self) -> Result<()> {
        for point in mount::kernel_mounts_outside(self.path)? {
            let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            match rustix::mount::mount_change(&point, flags) {
                // A directory of the host that is removed takes the mounts on it along, ours too.
                Err(Errno::NOENT) => continue,
                other => other.with_context(|| format!("make {} a slave", point.display()))?,
            }
            if rustix::mount::unmount(&point, UnmountFlags::DETACH).is_err() {
                // Locked by a user namespace: cover it instead, as runc does.
                let cover = mount::empty_tmpfs(self.label)?;
                cover.attach(open_directory(&point)?.as_fd())?;
            }
        }
        rustix::mount::mount_move(".", "/").context("move the root to /")?;
        become_root()
    }

    /// After pivot_root and the console: propagation of the new root, then what had to stay writable until now.
    pub fn finish(&self, mounted: &Mounted) -> Result<()> {
        let (recursive, bit) = self.base_propagation()?;
        if bit != libc::MS_PRIVATE && bit != libc::MS_SLAVE {
            let mut flags = MountPropagationFlags::from_bits_truncate(bit as u32);
            flags.set(MountPropagationFlags::REC, recursive);
            rustix::mount::mount_change("/", flags).context("set the propagation of the root")?;
        }
        for late in &mounted.late_read_only {
            mount::set_attached(late.as_fd(), sys::MOUNT_ATTR_RDONLY).context("make a mount read-only")?;
        }
        match self.spec.root() {
            Some(root) if root.readonly().unwrap_or(false) => {
                mount::set_attached(mounted.root.as_fd(), sys::MOUNT_ATTR_RDONLY).context("make / read-only")
            }
            _ => Ok(()),
        }
    }
}

/// The current directory becomes the root.
pub fn become_root() -> Result<()> {
    rustix::process::chroot(".").context("chroot")?;
    rustix::process::chdir("/").context("chdir to /")
}

/// Binds the pty's slave on /dev/console, by descriptor on both sides (CVE-2025-52565).
pub fn bind_console(slave: BorrowedFd<'_>) -> Result<()> {
    let target = inside::file(slash()?.as_fd(), Path::new("/dev/console"))?;
    Tree::clone_of_fd(slave)?.attach(target.as_fd()).context("bind the terminal on /dev/console")
}

/// runc creates a missing cwd, as Docker's users expect.
pub fn create_cwd(cwd: &Path) -> Result<()> {
    if cwd == Path::new("/") {
        return Ok(());
    }
    match inside::directory(slash()?.as_fd(), cwd) {
        Ok(_) => Ok(()),
        // The chdir that follows says what is wrong, with the user's own permissions.
        Err(_) if cwd.exists() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("create process.cwd {}", cwd.display())),
    }
}

/// The container's root, after pivot_root.
fn slash() -> Result<OwnedFd> {
    open_directory(Path::new("/"))
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {}", path.display()))
}

/// `/proc/self/fd/N`, for the calls that have no descriptor form.
fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
