//! Paths inside a root directory, by openat2(2): what is there, and what is made where nothing is. Links are followed
//! inside the root only, whoever moves them meanwhile.
//!
//! Not by pathrs but where there is no openat2. Its `mkdir_all` makes a procfs of its own and takes 55 system calls
//! where these are 5 (a mount point below /dev, strace), which was half of `create`; it does not complete a dangling
//! link of the image, as runc does; and where there is no procfs on /proc, whatever fails in it panics (0.2.6,
//! `ProcfsBase::into_path`).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// As many links as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// openat2(2) gives EAGAIN when something is renamed or mounted anywhere on the system during the walk. A neighbour
/// that does nothing else must not hold us for ever.
const MAX_TRIES: usize = 1000;

/// What is at a path.
#[derive(Debug)]
pub struct Place {
    fd: OwnedFd,
    /// No link was followed: it is where the path says.
    pub direct: bool,
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A handle on what is at `path`; `None` when nothing is.
pub fn find(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    open(root, path, OFlags::empty())
}

/// The same, and whether links led there.
pub fn place(root: BorrowedFd<'_>, path: &Path) -> Result<Option<Place>> {
    place_with(root, path, OFlags::empty())
}

/// The same, but the link itself if the last name is one.
pub fn place_no_follow(root: BorrowedFd<'_>, path: &Path) -> Result<Option<Place>> {
    place_with(root, path, OFlags::NOFOLLOW)
}

/// openat2(2) finds nothing at the empty path.
fn or_root(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new("/") } else { path }
}

fn place_with(root: BorrowedFd<'_>, path: &Path, extra: OFlags) -> Result<Option<Place>> {
    let path = or_root(path);
    if !path.components().any(|component| component == Component::ParentDir) {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC | extra, Mode::empty(), resolve)
        {
            Ok(fd) => return Ok(Some(Place { fd, direct: true })),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            // Above all ELOOP: there is a link.
            Err(_) => {}
        }
    }
    Ok(open(root, path, extra)?.map(|fd| Place { fd, direct: false }))
}

fn open(root: BorrowedFd<'_>, path: &Path, extra: OFlags) -> Result<Option<OwnedFd>> {
    let path = or_root(path);
    let flags = OFlags::PATH | OFlags::CLOEXEC | extra;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut error = Errno::AGAIN;
    for _ in 0..MAX_TRIES {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Ok(found) => return Ok(Some(found)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            // A seccomp profile around us that is older than the call: pathrs walks by itself.
            Err(Errno::NOSYS | Errno::PERM) => return walk(root, path, extra),
            Err(other) => {
                error = other;
                break;
            }
        }
    }
    Err(error).with_context(|| format!("open {}", path.display()))
}

fn walk(root: BorrowedFd<'_>, path: &Path, extra: OFlags) -> Result<Option<OwnedFd>> {
    let root = pathrs::RootRef::from_fd(root);
    let found =
        if extra.contains(OFlags::NOFOLLOW) { root.resolve_nofollow(path) } else { root.resolve(path) };
    match found {
        Ok(handle) => Ok(Some(handle.into())),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_missing(error: &pathrs::error::Error) -> bool {
    use pathrs::error::ErrorKind;
    matches!(error.kind(), ErrorKind::OsError(Some(code))
        if code == Errno::NOENT.raw_os_error() || code == Errno::NOTDIR.raw_os_error())
}

/// The directory at `path`, made with its parents if it is missing.
pub fn directory(root: BorrowedFd<'_>, path: &Path) -> Result<Place> {
    obtain(root, path, make_directory, MAX_LINKS).with_context(|| format!("make {}", path.display()))
}

/// The same, where nothing was found.
pub fn missing_directory(root: BorrowedFd<'_>, path: &Path) -> Result<Place> {
    put(root, path, make_directory, MAX_LINKS).with_context(|| format!("make {}", path.display()))
}

/// The file at `path`, made empty if it is missing.
pub fn file(root: BorrowedFd<'_>, path: &Path) -> Result<Place> {
    obtain(root, path, make_file, MAX_LINKS).with_context(|| format!("make {}", path.display()))
}

/// The directories that paths are in, one after the other: what is true of most, that they share it, saves opening it.
pub struct Parents<'a> {
    root: BorrowedFd<'a>,
    last: Option<(PathBuf, Place)>,
}

impl<'a> Parents<'a> {
    pub fn of(root: BorrowedFd<'a>) -> Parents<'a> {
        Parents { root, last: None }
    }

    /// The directory that `path` is in, made if it is missing, and the name of `path` there.
    pub fn get<'p>(&mut self, path: &'p Path) -> Result<(BorrowedFd<'_>, &'p OsStr)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            bail!("{} is not a path of a file", path.display())
        };
        let kept = self.last.take().filter(|(last, _)| last == parent);
        let kept = match kept {
            Some(kept) => kept,
            None => (parent.to_owned(), directory(self.root, parent)?),
        };
        Ok((self.last.insert(kept).1.as_fd(), name))
    }
}

type Make = fn(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<OwnedFd>;

fn make_directory(at: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn make_file(at: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o644))
}

/// What is at `path`, or what `make` puts there: inside the root, as each step is one name in a directory that
/// openat2 found there.
fn obtain(root: BorrowedFd<'_>, path: &Path, make: Make, links: usize) -> Result<Place> {
    place(root, path)?.map_or_else(|| put(root, path, make, links), Ok)
}

/// Where nothing was found.
fn put(root: BorrowedFd<'_>, path: &Path, make: Make, links: usize) -> Result<Place> {
    let (parent, name) = match path.components().next_back() {
        Some(Component::Normal(name)) => (path.parent().unwrap_or(Path::new("")), name),
        // What comes before is missing, or this would have been found. As in runc, `..` takes its name back.
        Some(Component::ParentDir) => {
            let place = obtain(root, &taken_back(path), make, links)?;
            return Ok(Place { direct: false, ..place });
        }
        _ => bail!("the root itself is missing"),
    };
    let directory = obtain(root, parent, make_directory, links)?;
    match make(directory.as_fd(), name) {
        Err(Errno::EXIST) => {}
        other => return Ok(Place { fd: other?, direct: directory.direct }),
    }
    // Somebody was quicker, or it is a link to what is missing: then that is made, as runc does (securejoin).
    match rustix::fs::readlinkat(&directory, name, Vec::new()) {
        Ok(_) if links == 0 => Err(Errno::LOOP.into()),
        Ok(target) => {
            use std::os::unix::ffi::OsStrExt;
            let target = parent.join(OsStr::from_bytes(target.to_bytes()));
            let place = obtain(root, &target, make, links - 1)?;
            Ok(Place { direct: false, ..place })
        }
        // By its name alone: of a path with `..` what comes before may be missing still.
        Err(Errno::INVAL) => {
            let found = place_no_follow(directory.as_fd(), Path::new(name))?.context("it comes and goes")?;
            Ok(Place { direct: directory.direct && found.direct, ..found })
        }
        Err(error) => Err(error.into()),
    }
}

fn taken_back(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => _ = clean.pop(),
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let root = super::super::open_directory(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn what_is_missing_is_made_inside_whatever_links_say() {
        let (dir, root) = root();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir(at("var")).unwrap();
        for (target, link) in
            [("/run", "var/run"), ("../../../out", "var/up"), ("loop", "loop"), ("b", "var/a")]
        {
            symlink(target, at(link)).unwrap();
        }
        for (path, made) in [
            ("/var/run/x", "run/x"),
            ("/var/up/y", "out/y"),
            ("/var/a", "var/b"),
            ("missing/../z", "z"),
            ("/m/n/../../o", "o"),
            ("../../p", "p"),
        ] {
            directory(root.as_fd(), Path::new(path)).unwrap();
            assert!(at(made).is_dir(), "{path}");
        }
        assert!(!at("missing").exists() && !at("m").exists());
        file(root.as_fd(), Path::new("/var/up/file")).unwrap();
        assert!(at("out/file").is_file());
        let looped = directory(root.as_fd(), Path::new("/loop/x")).unwrap_err();
        assert!(format!("{looped:#}").contains("symbolic links"), "{looped:#}");
        assert!(directory(root.as_fd(), Path::new("/out/file/x")).is_err());
    }

    #[test]
    fn a_link_that_is_not_followed_is_found_itself() {
        let (dir, root) = root();
        symlink("/nowhere", dir.path().join("l")).unwrap();
        assert!(find(root.as_fd(), Path::new("/l")).unwrap().is_none());
        assert!(place_no_follow(root.as_fd(), Path::new("/l")).unwrap().is_some());
    }

    #[test]
    fn a_place_knows_whether_links_led_there() {
        let (dir, root) = root();
        std::fs::create_dir_all(dir.path().join("proc/a")).unwrap();
        symlink("proc", dir.path().join("l")).unwrap();
        for (path, direct) in [
            ("/proc/a", true),
            ("/l/a", false),
            ("/proc/b/c", true),
            ("/l/d/e", false),
            ("/x/../proc", false),
        ] {
            assert_eq!(super::directory(root.as_fd(), Path::new(path)).unwrap().direct, direct, "{path}");
        }
    }
}
