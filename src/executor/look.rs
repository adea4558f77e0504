//! Finds the file that argv[0] will be in the finished container, without a mount: a walk over the rootfs that
//! goes on in a bind mount's source where the path enters one. Each step opens one name with O_NOFOLLOW below a
//! descriptor already held, and links are followed by text, so no image can lead it out of the container.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use oci_spec::runtime::Mount;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// As the kernel's own MAXSYMLINKS.
const MAX_LINKS: u32 = 40;

/// argv[0] and what execve resolves it by.
pub struct Place {
    pub name: String,
    /// `PATH` of process.env.
    pub path: Option<String>,
    pub cwd: PathBuf,
    /// What `#func` named, when the child did the looking.
    pub function: Option<String>,
}

pub enum Found {
    /// Opened for reading, O_NONBLOCK, regular.
    File {
        file: OwnedFd,
        function: Option<String>,
    },
    Nothing,
    /// Under a mount that does not exist yet, or beyond what we may see.
    Unknown,
}

/// A mount of the spec, at its place in the container.
struct Covered {
    at: PathBuf,
    /// The source and whether its sub-mounts come along; `None` for a file system that is yet to be made.
    source: Option<(PathBuf, bool)>,
}

/// The container's files as the parent can know them.
pub struct View<'a> {
    root: BorrowedFd<'a>,
    covered: Vec<Covered>,
}

/// Where a walk ended.
enum End {
    /// Opened for reading if it is a regular file; `Nothing` otherwise.
    At(Found, bool),
    Missing,
    Unknown,
}

impl<'a> View<'a> {
    pub fn of_container(root: &'a OwnedFd) -> View<'a> {
        View { root: root.as_fd(), covered: Vec::new() }
    }

    pub fn of_bundle(root: BorrowedFd<'a>, bundle: &Path, mounts: &[Mount], masked: &[String]) -> View<'a> {
        let mut view = View { root, covered: Vec::new() };
        // A remount covers nothing: it changes what is there.
        let remount = |mount: &&Mount| mount.options().iter().flatten().any(|option| option == "remount");
        for mount in mounts.iter().filter(|mount| !remount(mount)) {
            let source = bind_source(mount).map(|(path, deep)| (bundle.join(path), deep));
            view.cover(mount.destination(), source);
        }
        for path in masked {
            view.cover(Path::new(path), None);
        }
        view
    }

    /// Destinations may lead through links of the rootfs and of earlier mounts: runc resolves them so.
    fn cover(&mut self, destination: &Path, source: Option<(PathBuf, bool)>) {
        let at = Walk::new(self).place_of(destination);
        self.covered.retain(|earlier| !is_below(&earlier.at, &at));
        self.covered.push(Covered { at, source });
    }

    fn at(&self, path: &Path) -> Option<&Covered> {
        self.covered.iter().find(|covered| covered.at.as_os_str() == path.as_os_str())
    }
}

/// Whether it is `directory` or something in it. The paths here are absolute and made of names alone, so their bytes say
/// it; `Path::starts_with` takes both apart, and a container has dozens of mounts to compare with each other.
fn is_below(path: &Path, directory: &Path) -> bool {
    let rest = path.as_os_str().as_bytes().strip_prefix(directory.as_os_str().as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/' || directory == Path::new("/"))
}

/// The source of a bind mount; `None` for everything that is made at create.
fn bind_source(mount: &Mount) -> Option<(PathBuf, bool)> {
    let options = mount.options().as_deref().unwrap_or_default();
    let deep = options.iter().any(|option| option == "rbind");
    let bind =
        deep || options.iter().any(|option| option == "bind") || mount.typ().as_deref() == Some("bind");
    mount.source().clone().filter(|_| bind).map(|source| (source, deep))
}

/// Opens a directory to start from.
pub fn open_root(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {}", path.display()))
}

/// The file argv[0] names, searched as execvp does. A file with the x bit wins over an earlier one without, so
/// that no native program is ever shadowed by a wasm file that the kernel would have passed over.
pub fn find(view: &View, place: &Place) -> Found {
    let literal = find_name(view, place, &place.name);
    if !matches!(literal, Found::Nothing) {
        return literal;
    }
    let Some((file, function)) =
        place.name.rsplit_once('#').filter(|(file, func)| !file.is_empty() && !func.is_empty())
    else {
        return literal;
    };
    match find_name(view, place, file) {
        Found::File { file, .. } => Found::File { file, function: Some(function.to_owned()) },
        other => other,
    }
}

fn find_name(view: &View, place: &Place, name: &str) -> Found {
    if name.contains('/') {
        return open_regular(view, &place.cwd.join(name)).0;
    }
    let mut fallback = Found::Nothing;
    for dir in place.path.as_deref().unwrap_or_default().split(':').filter(|_| place.path.is_some()) {
        let (found, executable) = open_regular(view, &place.cwd.join(dir).join(name));
        match found {
            Found::Nothing => {}
            // Something we cannot see may come first; only the child can say.
            Found::Unknown => return Found::Unknown,
            found if executable => return found,
            found if matches!(fallback, Found::Nothing) => fallback = found,
            Found::File { .. } => {}
        }
    }
    fallback
}

/// The file at a path of the container and whether it has an x bit. Whatever is no regular file is nothing:
/// native resolution says what is wrong with it.
fn open_regular(view: &View, path: &Path) -> (Found, bool) {
    match Walk::new(view).open(path) {
        End::At(found, executable) => (found, executable),
        End::Missing => (Found::Nothing, false),
        End::Unknown => (Found::Unknown, false),
    }
}

/// One resolution: the directories passed so far, so that `..` goes back the way the container sees it.
struct Walk<'v, 'a> {
    view: &'v View<'a>,
    passed: Vec<(OsString, OwnedFd)>,
    links: u32,
}

enum Step {
    Into(OwnedFd),
    Link(PathBuf),
    Missing,
    Unknown,
}

impl<'v, 'a> Walk<'v, 'a> {
    fn new(view: &'v View<'a>) -> Self {
        Walk { view, passed: Vec::new(), links: 0 }
    }

    fn here(&self) -> PathBuf {
        let mut path = PathBuf::from("/");
        path.extend(self.passed.iter().map(|(name, _)| name));
        path
    }

    fn open(mut self, path: &Path) -> End {
        let mut todo = names(path);
        while let Some(name) = todo.pop() {
            if name == ".." {
                self.passed.pop();
                continue;
            }
            match self.step(&name) {
                Step::Into(fd) => self.passed.push((name, fd)),
                Step::Link(target) => {
                    self.links += 1;
                    if self.links > MAX_LINKS {
                        return End::Missing;
                    }
                    if target.is_absolute() {
                        self.passed.clear();
                    }
                    todo.extend(names(&target));
                }
                Step::Missing => return End::Missing,
                Step::Unknown => return End::Unknown,
            }
        }
        let Some((name, handle)) = self.passed.pop() else { return End::Missing };
        self.read(&name, &handle)
    }

    /// Opens what the walk ended at for reading, again by name below its directory: after pivot_root there may be
    /// no /proc to reopen the handle by, or one that the image has forged. The new descriptor is judged anew.
    fn read(&self, name: &OsStr, handle: &OwnedFd) -> End {
        if !is_regular(handle).is_some_and(|(regular, _)| regular) {
            return End::At(Found::Nothing, false);
        }
        // O_NONBLOCK: a fifo that slipped in must not hang a create.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let at = self.here().join(name);
        let opened = match self.view.at(&at) {
            Some(Covered { source: Some((source, _)), .. }) => rustix::fs::open(source, flags, Mode::empty()),
            _ => self.open_below(self.dir(), name, &at, flags | OFlags::NOFOLLOW),
        };
        match opened.ok().and_then(|file| is_regular(&file).map(|kind| (file, kind))) {
            Some((file, (true, executable))) => End::At(Found::File { file, function: None }, executable),
            Some(_) => End::At(Found::Nothing, false),
            // Not ours to read: the child has other eyes.
            None => End::Unknown,
        }
    }

    fn dir(&self) -> BorrowedFd<'_> {
        self.passed.last().map_or(self.view.root, |(_, fd)| fd.as_fd())
    }

    /// Where a mount destination lies once links are followed; names that do not exist yet stand for themselves.
    fn place_of(mut self, path: &Path) -> PathBuf {
        let mut todo = names(path);
        while let Some(name) = todo.pop() {
            if name == ".." {
                self.passed.pop();
                continue;
            }
            match self.step(&name) {
                Step::Into(fd) => self.passed.push((name, fd)),
                Step::Link(target) if self.links < MAX_LINKS => {
                    self.links += 1;
                    if target.is_absolute() {
                        self.passed.clear();
                    }
                    todo.extend(names(&target));
                }
                Step::Link(_) | Step::Missing | Step::Unknown => {
                    let mut at = self.here();
                    at.push(name);
                    at.extend(todo.into_iter().rev().filter(|name| name != ".."));
                    return at;
                }
            }
        }
        self.here()
    }

    fn step(&self, name: &OsStr) -> Step {
        let at = self.here().join(name);
        if let Some(covered) = self.view.at(&at) {
            let Some((source, _)) = &covered.source else { return Step::Unknown };
            // mount(2) follows links of the host in a source, so here we do as well.
            return rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .map_or(Step::Unknown, Step::Into);
        }
        match self.open_below(self.dir(), name, &at, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC) {
            Ok(fd) => entered(fd),
            // A mount point below may be made by create itself: `/new/dir/app` with a bind mount at `/new/dir`.
            Err(Errno::NOENT | Errno::NOTDIR) if self.view.covered.iter().any(|c| is_below(&c.at, &at)) => {
                Step::Unknown
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Step::Missing,
            Err(_) => Step::Unknown,
        }
    }

    fn open_below(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        at: &Path,
        flags: OFlags,
    ) -> rustix::io::Result<OwnedFd> {
        // A plain bind leaves the source's sub-mounts behind: what lies in one is not what the container sees.
        let shallow = self
            .view
            .covered
            .iter()
            .filter(|covered| is_below(at, &covered.at))
            .max_by_key(|covered| covered.at.as_os_str().len())
            .is_some_and(|covered| matches!(covered.source, Some((_, false))));
        let no_xdev = if shallow { ResolveFlags::NO_XDEV } else { ResolveFlags::empty() };
        rustix::fs::openat2(dir, name, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS | no_xdev)
    }
}

fn entered(fd: OwnedFd) -> Step {
    let Ok(stat) = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH) else { return Step::Unknown };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Step::Into(fd);
    }
    match rustix::fs::readlinkat(&fd, "", Vec::new()) {
        Ok(target) => Step::Link(PathBuf::from(OsStr::from_bytes(target.as_bytes()))),
        Err(_) => Step::Unknown,
    }
}

/// Whether it is a regular file, and whether it has an x bit.
fn is_regular(file: &OwnedFd) -> Option<(bool, bool)> {
    let stat = rustix::fs::fstat(file).ok()?;
    Some((FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile, stat.st_mode & 0o111 != 0))
}

/// The names of a path in reverse, to be popped.
fn names(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::testing::scratch;
    use oci_spec::runtime::MountBuilder;
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn put(path: &Path, text: &str, mode: u32) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn bind(at: &str, source: &Path) -> Mount {
        let mount = MountBuilder::default().destination(at).source(source).typ("none");
        mount.options(vec!["rbind".to_owned(), "ro".to_owned()]).build().unwrap()
    }

    fn tmpfs(at: &str) -> Mount {
        MountBuilder::default().destination(at).typ("tmpfs").source("tmpfs").build().unwrap()
    }

    /// The contents of the file found, `-` for nothing, `?` for unknown; `#name` when a function was split off.
    fn seen(dir: &Path, mounts: &[Mount], name: &str) -> String {
        let root = open_root(&dir.join("rootfs")).unwrap();
        let view = View::of_bundle(root.as_fd(), dir, mounts, &["/masked".to_owned()]);
        let path = Some("/sbin:/bin".to_owned());
        let place = Place { name: name.to_owned(), path, cwd: PathBuf::from("/work"), function: None };
        match find(&view, &place) {
            Found::Nothing => "-".to_owned(),
            Found::Unknown => "?".to_owned(),
            Found::File { file, function } => {
                let mut text = String::new();
                std::fs::File::from(file).read_to_string(&mut text).unwrap();
                function.map_or(text.clone(), |function| format!("{text}#{function}"))
            }
        }
    }

    #[test]
    fn paths_are_resolved_inside_the_rootfs_only() {
        let dir = scratch("look-inside");
        let rootfs = dir.join("rootfs");
        put(&dir.join("secret"), "host", 0o644);
        put(&rootfs.join("app"), "app", 0o644);
        put(&rootfs.join("work/rel"), "rel", 0o755);
        symlink("/app", rootfs.join("absolute")).unwrap();
        symlink("../../../../secret", rootfs.join("climbing")).unwrap();
        symlink(dir.join("secret"), rootfs.join("escaping")).unwrap();
        symlink("loop", rootfs.join("loop")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, rootfs.join("fifo"), Mode::from_raw_mode(0o644)).unwrap();
        let found: Vec<String> = ["/app", "/absolute", "../app", "./rel", "/work/../app", "/../app"]
            .iter()
            .map(|name| seen(&dir, &[], name))
            .collect();
        assert_eq!(found, ["app", "app", "app", "rel", "app", "app"]);
        for name in ["/climbing", "/escaping", "/loop", "/fifo", "/work", "/none", "/app/x", "/"] {
            assert_eq!(seen(&dir, &[], name), "-", "{name}");
        }
    }

    #[test]
    fn search_prefers_executables_as_execvp_does() {
        let dir = scratch("look-path");
        put(&dir.join("rootfs/sbin/tool"), "plain", 0o644);
        put(&dir.join("rootfs/bin/tool"), "executable", 0o755);
        put(&dir.join("rootfs/sbin/module"), "module", 0o644);
        put(&dir.join("rootfs/work/here"), "here", 0o755);
        assert_eq!(seen(&dir, &[], "tool"), "executable");
        assert_eq!(seen(&dir, &[], "module"), "module");
        assert_eq!(seen(&dir, &[], "module#f"), "module#f");
        assert_eq!(seen(&dir, &[], "here"), "-");
        put(&dir.join("rootfs/sbin/module#f"), "literal", 0o755);
        assert_eq!(seen(&dir, &[], "module#f"), "literal");
    }

    #[test]
    fn bind_mounts_are_followed_into_their_source() {
        let dir = scratch("look-bind");
        let rootfs = dir.join("rootfs");
        put(&rootfs.join("vol/app"), "hidden", 0o644);
        put(&dir.join("volume/app"), "volume", 0o644);
        put(&dir.join("volume/sub/app"), "sub", 0o644);
        put(&dir.join("single"), "single", 0o644);
        symlink("/vol", rootfs.join("link")).unwrap();
        symlink("../etc/app", dir.join("volume/out")).unwrap();
        put(&rootfs.join("etc/app"), "rootfs", 0o644);
        let volume = bind("/vol", Path::new("volume"));
        let mounts = [volume.clone(), bind("/link/sub/file", &dir.join("single"))];
        assert_eq!(seen(&dir, &mounts, "/vol/app"), "volume");
        assert_eq!(seen(&dir, &mounts, "/link/app"), "volume");
        assert_eq!(seen(&dir, &mounts, "/vol/sub/app"), "sub");
        assert_eq!(seen(&dir, &mounts, "/vol/sub/file"), "single");
        assert_eq!(seen(&dir, &mounts, "/vol/out"), "rootfs", "a link leaves the mount inside the container");
        let over = [volume.clone(), tmpfs("/vol")];
        assert_eq!(seen(&dir, &over, "/vol/app"), "?");
        let under = [tmpfs("/vol"), volume];
        assert_eq!(seen(&dir, &under, "/vol/app"), "volume", "the last mount counts");
    }

    #[test]
    fn what_create_will_make_is_left_to_the_child() {
        let dir = scratch("look-unknown");
        put(&dir.join("rootfs/tmp/app"), "hidden", 0o755);
        put(&dir.join("rootfs/masked"), "masked", 0o755);
        assert_eq!(seen(&dir, &[tmpfs("/tmp")], "/tmp/app"), "?");
        assert_eq!(seen(&dir, &[tmpfs("/new/dir")], "/new/dir/app"), "?");
        assert_eq!(seen(&dir, &[bind("/new/dir", Path::new("/no/such"))], "/new/dir/app"), "?");
        assert_eq!(seen(&dir, &[], "/masked"), "?");
        assert_eq!(seen(&dir, &[], "/tmp/app"), "hidden");
        assert_eq!(seen(&dir, &[tmpfs("/sbin")], "app"), "?");
    }
}
