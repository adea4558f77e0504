//! Putting a process into the container's cgroup. For an exec, and where the child is in no position to open it,
//! everything is opened before the clone, by the parent; v2 judges a write by the opener's rights.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};

use super::{Base, Cgroup, Making, denied, paths};
use crate::linux::fds;

/// Open files of a cgroup that a process is about to join. By default none: it stays where its parent is.
#[derive(Default)]
pub struct Joiner {
    tasks: Tasks,
    /// The v2 directory.
    v2: Option<OwnedFd>,
    /// It has nothing to join yet.
    later: Option<Placing>,
}

/// When the process comes where it belongs; only there it may make its cgroup namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Placing {
    /// With the clone: v2 alone.
    ByClone,
    /// By its first act, so that what an intermediate process clones is there as well.
    First,
    /// By itself, when its parent says `Made` and sends what `Cgroup::tasks` opened.
    WhenMade,
    /// Its parent moves it before it says `Go`: systemd.
    BeforeGo,
}

impl Placing {
    pub fn is_inherited(self) -> bool {
        matches!(self, Placing::ByClone | Placing::First)
    }
}

impl Making<'_> {
    /// For the container's first process when there is no more of the cgroup than `begin` makes.
    pub fn joiner(&self) -> Result<Joiner> {
        let cgroup = self.cgroup;
        if cgroup.unit.is_some() || cgroup.v1.is_empty() {
            return cgroup.joiner_of_init();
        }
        let v2 = cgroup.v2.as_ref().map(|v2| cgroup.open_v2(&self.base, &v2.dir)).transpose()?.flatten();
        Ok(Joiner { v2, later: Some(Placing::WhenMade), ..Joiner::default() })
    }

    /// What a process that waits for `Made` joins, when all is made; nothing if it does not wait.
    pub fn tasks(&self, placing: Placing) -> Result<Tasks> {
        let mut tasks = Tasks::default();
        for hierarchy in self.cgroup.v1.iter().filter(|_| placing == Placing::WhenMade) {
            tasks.0.extend(self.cgroup.open(&self.base, &hierarchy.dir.join("tasks"))?);
        }
        Ok(tasks)
    }
}

impl Cgroup {
    /// For the container's first process, when the cgroup is made.
    pub fn joiner_of_init(&self) -> Result<Joiner> {
        match self.unit {
            Some(_) => Ok(Joiner { later: Some(Placing::BeforeGo), ..Joiner::default() }),
            None => self.joiner(&[]),
        }
    }

    /// `subs` is `exec --cgroup`: one cgroup below the container's, or on v1 any number of
    /// `CONTROLLER[,CONTROLLER]:PATH`, each for its controllers only. They must exist.
    pub fn joiner(&self, subs: &[String]) -> Result<Joiner> {
        let subs = Subs::parse(subs)?;
        if let Subs::Each(each) = &subs {
            let known = |name: &str| self.v1.iter().any(|h| h.controllers.iter().any(|own| own == name));
            match each.iter().find(|(name, _)| !known(name)) {
                Some(_) if self.v1.is_empty() => {
                    bail!("invalid --cgroup argument: cgroup v2 has no controllers to choose by")
                }
                Some((name, _)) => bail!("invalid --cgroup argument: unknown controller {name}"),
                None => {}
            }
        }
        let place = |dir: &Path, controllers: &[String]| {
            let sub = subs.of(controllers);
            let place = below(dir, sub)?;
            // runc's words. 0 is what the process will write, and means itself.
            let procs = place.join("cgroup.procs");
            ensure!(
                sub.is_none() || procs.exists(),
                "error adding pid 0 to cgroups: open {}: no such file or directory",
                procs.display()
            );
            Ok(place)
        };
        let base = Base::open()?;
        let mut joiner = Joiner::default();
        for hierarchy in &self.v1 {
            let file = place(&hierarchy.dir, &hierarchy.controllers)?.join("tasks");
            joiner.tasks.0.extend(self.open(&base, &file)?);
        }
        if let Some(v2) = &self.v2 {
            joiner.v2 = self.open_v2(&base, &place(&v2.dir, &[])?)?;
        }
        Ok(joiner)
    }

    /// For an exec that EBUSY keeps out of a v2 container's cgroup: an init system inside moved itself into a
    /// nested one and handed controllers down. Joins where `pid`, the container's init, is. runc does the same.
    pub fn joiner_beside(&self, pid: i32) -> Result<Joiner> {
        let mut joiner = self.joiner(&[])?;
        if let Some(v2) = &self.v2 {
            joiner.v2 = self.open_v2(&Base::open()?, &paths::v2_dir_of(pid, &v2.mount)?)?;
        }
        Ok(joiner)
    }

    fn open(&self, base: &Base, file: &Path) -> Result<Option<OwnedFd>> {
        let (at, inner) = base.at(file);
        let opened = rustix::fs::openat(at, inner, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        match opened.map_err(io::Error::from).with_context(|| format!("open {}", file.display())) {
            Ok(file) => Ok(Some(file)),
            // `create` could not make it and needed no limit of it.
            Err(error) if self.lenient && (denied(&error) || !file.exists()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_v2(&self, base: &Base, dir: &Path) -> Result<Option<OwnedFd>> {
        // The clone asks for the right to write this file.
        if self.lenient && self.open(base, &dir.join("cgroup.procs"))?.is_none() {
            return Ok(None);
        }
        let (at, inner) = base.at(dir);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(at, inner, flags, Mode::empty()).map_err(io::Error::from);
        Ok(Some(opened.with_context(|| format!("open {}", dir.display()))?))
    }
}

/// The arguments of `exec --cgroup`, by runc's rules (exec.go, getSubCgroupPaths).
#[derive(Debug, PartialEq, Eq)]
enum Subs<'a> {
    /// One path for all hierarchies, or none.
    All(Option<&'a str>),
    /// Controller and path.
    Each(Vec<(&'a str, &'a str)>),
}

impl<'a> Subs<'a> {
    fn parse(args: &'a [String]) -> Result<Subs<'a>> {
        if let [] | [_] = args
            && args.iter().all(|arg| !arg.contains(':'))
        {
            return Ok(Subs::All(args.first().map(String::as_str)));
        }
        let mut each: Vec<(&str, &str)> = Vec::new();
        for arg in args {
            let Some((controllers, path)) = arg.split_once(':') else {
                bail!("invalid --cgroup argument: {arg} (missing <controller>: prefix)")
            };
            for name in controllers.split(',') {
                if name.is_empty() {
                    bail!("invalid --cgroup argument: {arg} (empty <controller> prefix)");
                }
                if each.iter().any(|(other, _)| *other == name) {
                    bail!("invalid --cgroup argument(s): controller {name} specified multiple times");
                }
                each.push((name, path));
            }
        }
        Ok(Subs::Each(each))
    }

    /// The path for a hierarchy of these controllers. One with several is joined once: the first argument that
    /// names any of them counts.
    fn of(&self, controllers: &[String]) -> Option<&'a str> {
        match self {
            Subs::All(path) => *path,
            Subs::Each(each) => {
                each.iter().find(|(name, _)| controllers.iter().any(|own| own == name)).map(|(_, path)| *path)
            }
        }
    }
}

fn below(dir: &Path, sub: Option<&str>) -> Result<PathBuf> {
    let Some(sub) = sub else { return Ok(dir.to_owned()) };
    if Path::new(sub).components().any(|component| component == Component::ParentDir) {
        // The words of runc up to 1.3, after those from 1.4 on.
        bail!("bad sub cgroup path: {sub} is not a sub cgroup path");
    }
    Ok(dir.join(paths::clean(Path::new(sub))))
}

/// Open files of cgroup v1, one for each hierarchy, of which a write moves the writer there.
#[derive(Default)]
pub struct Tasks(Vec<OwnedFd>);

impl Drop for Tasks {
    /// They were opened one after the other: a call closes them all.
    fn drop(&mut self) {
        // As any descriptor's, which has nobody to tell either.
        let _ = fds::close(std::mem::take(&mut self.0));
    }
}

impl From<Vec<OwnedFd>> for Tasks {
    fn from(fds: Vec<OwnedFd>) -> Tasks {
        Tasks(fds)
    }
}

impl Tasks {
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }

    /// In a process of the container, which is not to keep them.
    pub fn close(mut self) -> Result<()> {
        fds::close(std::mem::take(&mut self.0))
    }

    /// Moves the calling thread. `0` means the writing one, which `tasks` moves alone, without the global lock that
    /// cgroup.procs takes (0.16 ms against 7.5 ms, measured over 7 hierarchies).
    pub fn enter(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|file| match rustix::io::write(file, b"0") {
            Ok(1) => Ok(()),
            Ok(_) => Err(ErrorKind::WriteZero.into()),
            Err(error) => Err(error.into()),
        })
    }
}

impl Joiner {
    /// The directory for CLONE_INTO_CGROUP: it spares the lock that every write to cgroup.procs takes.
    #[expect(clippy::wrong_self_convention, reason = "the flag's name, not a conversion")]
    pub fn into_cgroup(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(AsFd::as_fd)
    }

    pub fn placing(&self) -> Placing {
        let by_clone = self.v2.is_some() && self.tasks.0.is_empty();
        self.later.unwrap_or(if by_clone { Placing::ByClone } else { Placing::First })
    }

    /// Called by the child, which was cloned with `into_cgroup` and has one thread. Allocates and opens nothing.
    pub fn enter(&self) -> io::Result<()> {
        self.tasks.enter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn sub_cgroups_by_controller() {
        assert_eq!(Subs::parse(&[]).unwrap(), Subs::All(None));
        assert_eq!(Subs::parse(&strings(&["a/b"])).unwrap(), Subs::All(Some("a/b")));
        let args = strings(&["cpu,pids:a", "memory:b"]);
        let subs = Subs::parse(&args).unwrap();
        assert_eq!(subs.of(&strings(&["cpu", "cpuacct"])), Some("a"));
        assert_eq!(subs.of(&strings(&["memory"])), Some("b"));
        assert_eq!(subs.of(&strings(&["freezer"])), None);
        for (args, want) in [
            (&["a", "b"][..], "missing <controller>: prefix"),
            (&["cpu:a", "b"], "missing <controller>: prefix"),
            (&[":a"], "empty <controller> prefix"),
            (&["cpu,:a"], "empty <controller> prefix"),
            (&["cpu:a", "pids,cpu:b"], "controller cpu specified multiple times"),
        ] {
            let args = strings(args);
            let error = Subs::parse(&args).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
