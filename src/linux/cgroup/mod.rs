//! The container's cgroup: where it is, its limits, who is in it, its end. One value with every path resolved,
//! stored in the state, so that later commands find the cgroup wherever they are called from. Must not know of
//! processes other than as numbers, nor of the container's life cycle.

mod adopt;
mod base;
mod device_filter;
mod devices;
mod freezer;
mod join;
mod limits;
mod oom;
mod paths;
mod signal;
mod stats;
mod systemd;
mod tree;
mod v1;
mod v2;

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxResources, LinuxThrottleDevice};
use rustix::fs::Mode;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub use base::Base;
pub use join::{Joiner, Placing, Tasks};
use limits::Write;
pub use oom::Happened;
pub use paths::is_unified;
pub use stats::{Stats, zero};

use crate::linux::{kernel_file, namespaces};
use crate::log;

/// Who makes the cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Driver {
    Cgroupfs,
    Systemd,
    Disabled,
}

/// One mounted hierarchy and the container's directory in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hierarchy {
    /// v1: the controllers mounted together, or `name=systemd`. v2: empty.
    controllers: Vec<String>,
    mount: PathBuf,
    dir: PathBuf,
}

/// The container's cgroup, in every hierarchy of the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cgroup {
    v1: Vec<Hierarchy>,
    /// The only tree on pure v2; beside `v1` it is the hybrid layout's, without controllers of its own.
    v2: Option<Hierarchy>,
    rootless: bool,
    /// Rootless and not told where: what may not be made is left out, as in runc, unless a limit needs it.
    lenient: bool,
    /// With the systemd driver.
    #[serde(default)]
    unit: Option<systemd::Unit>,
}

/// What is to be done to the directories, judged without the machine.
struct Orders {
    writes: Vec<Write>,
    rules: Vec<devices::Rule>,
    /// On v1.
    list: Option<devices::List>,
}

/// A hierarchy as a container sees it when it mounts cgroup v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Mount {
    /// Directory below the cgroup mount, named as on the host (`cpu,cpuacct`, `memory`, `systemd`).
    pub name: String,
    /// What mount(2) wants as data, to be joined by commas.
    pub options: Vec<String>,
    /// The container's own directory on the host, for a bind mount.
    pub path: PathBuf,
    /// Symlinks to `name`: controllers that are mounted together are known by each name.
    pub links: Vec<String>,
}

/// How long a removal waits for killed processes to leave.
const REMOVE_PATIENCE: Duration = Duration::from_secs(10);

/// The directory itself or the nearest one above it that is there.
fn existing(dir: &Path) -> PathBuf {
    dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(dir).to_owned()
}

/// A cgroup that is being made. What it has made goes with it, unless it is told to `keep` that.
pub struct Making<'a> {
    cgroup: &'a Cgroup,
    base: Base,
    orders: Orders,
    /// The directories that are new.
    made: Vec<PathBuf>,
}

impl Making<'_> {
    pub fn finish(&mut self) -> Result<()> {
        if self.cgroup.unit.is_none() && !self.cgroup.v1.is_empty() {
            for hierarchy in &self.cgroup.v1 {
                self.cgroup.create_one(&self.base, hierarchy, &self.orders.writes, &mut self.made)?;
            }
            self.cgroup.fill(&self.orders, &self.made)?;
        }
        Ok(())
    }

    pub fn keep(&mut self) {
        self.made.clear();
    }

    pub fn base(&self) -> &Base {
        &self.base
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        // A level that another create began to use meanwhile stays.
        self.made.iter().rev().for_each(|dir| remove_left(dir));
    }
}

/// Removes a directory that nobody uses. Our own child may still be on its way out of it.
fn remove_left(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(1);
    while fs::remove_dir(dir).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
        if Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Cgroup {
    /// No side effects. Reads /proc/self/mountinfo and /proc/self/cgroup once; asks a user's systemd where it is.
    pub fn plan(
        id: &str,
        cgroups_path: Option<&Path>,
        driver: Driver,
        rootless: bool,
        annotations: Option<&HashMap<String, String>>,
    ) -> Result<Cgroup> {
        let told = cgroups_path.is_some_and(|path| !path.as_os_str().is_empty());
        let lenient = rootless && !told && driver == Driver::Cgroupfs;
        let mut unit = None;
        let planned = match driver {
            Driver::Disabled => paths::Planned::default(),
            Driver::Systemd => {
                let machine = paths::Machine::read()?;
                let unit = unit.insert(systemd::Unit::plan(
                    id,
                    cgroups_path,
                    annotations,
                    rootless,
                    machine.unified,
                )?);
                paths::plan(&machine, id, Some(unit.dir()))?
            }
            Driver::Cgroupfs => paths::plan(&paths::Machine::read()?, id, cgroups_path)?,
        };
        if driver != Driver::Disabled && !lenient && planned.v1.is_empty() && planned.v2.is_none() {
            bail!("mountpoint for cgroup not found");
        }
        Ok(Cgroup { v1: planned.v1, v2: planned.v2, rootless, lenient, unit })
    }

    /// Makes every directory, sets the limits and the device filter. Refuses an existing cgroup with processes
    /// in it, or a frozen one, as runc. On failure what was made is gone again. With systemd all but the refusals is
    /// left to `adopt`.
    pub fn create(&self, resources: Option<&LinuxResources>) -> Result<()> {
        let mut making = self.begin(resources)?;
        making.finish()?;
        making.keep();
        Ok(())
    }

    /// `create`, as far as it must have come when the container's first process is cloned: what a process cannot join as
    /// cheaply by itself. On v2 alone that is all of it.
    pub fn begin(&self, resources: Option<&LinuxResources>) -> Result<Making<'_>> {
        let orders = self.judge(resources)?;
        let mut making = Making { cgroup: self, base: Base::open()?, orders, made: Vec::new() };
        if self.unit.is_some() {
            self.hierarchies().filter(|hierarchy| hierarchy.dir.is_dir()).try_for_each(check_unused)?;
            return Ok(making);
        }
        if let Some(v2) = &self.v2 {
            self.create_one(&making.base, v2, &making.orders.writes, &mut making.made)?;
        }
        if self.v1.is_empty() {
            self.fill(&making.orders, &making.made)?;
        }
        Ok(making)
    }

    /// Everything that can be judged without the machine, which comes first.
    fn judge(&self, resources: Option<&LinuxResources>) -> Result<Orders> {
        let writes = self.writes(resources)?;
        let rules = devices::rules(resources)?;
        let list = if self.v1.is_empty() { None } else { Some(devices::List::of(&rules)?) };
        Ok(Orders { writes, rules, list })
    }

    /// `made` are the directories that are new.
    fn fill(&self, Orders { writes, rules, list }: &Orders, made: &[PathBuf]) -> Result<()> {
        // The container's own level is filled only after the limits: what its parent has may not be free for it
        // (a sibling's cpuset.cpu_exclusive), and what the spec says may be.
        let cpuset = self.made_with("cpuset");
        let above = cpuset.and_then(|cpuset| Some((cpuset, cpuset.dir.parent()?)));
        let above = above.map(|(cpuset, parent)| v1::fill_cpuset(&cpuset.mount, parent)).transpose()?;
        self.write_all(writes, limits::apply)?;
        if let (Some(cpuset), Some(above)) = (cpuset, &above) {
            v1::fill_cpuset_from(&cpuset.dir, above, made.contains(&cpuset.dir), writes)?;
        }
        let filtered = match (list, &self.v2) {
            (Some(list), _) => self.filter_v1(list),
            (None, Some(v2)) if v2.dir.is_dir() => device_filter::attach(&v2.dir, rules),
            (None, _) => Ok(()),
        };
        // In a user namespace neither bpf(2) nor devices.allow is ours to use; the outer container's rules hold,
        // and device nodes cannot be made there. runc tolerates exactly this.
        match filtered {
            Err(error)
                if !(self.rootless || denied(&error) && namespaces::are_ids_our_own() != Some(true)) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn create_one(
        &self,
        base: &Base,
        hierarchy: &Hierarchy,
        writes: &[Write],
        made: &mut Vec<PathBuf>,
    ) -> Result<()> {
        let pure_v2 = self.v1.is_empty();
        let existed = match make_dirs(base, hierarchy, pure_v2.then_some(writes), made) {
            Ok(existed) => existed,
            Err(error) if self.lenient && denied(&error) => {
                if pure_v2 && !writes.is_empty() {
                    return Err(error.context(
                        "rootless needs no limits + no cgrouppath when no permission is granted for cgroups",
                    ));
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if existed { check_unused(hierarchy) } else { Ok(()) }
    }

    /// Changes limits of a live container, all or none; `before` has those that are in force. Devices are not touched,
    /// as in `runc update`.
    pub fn update(&self, resources: &LinuxResources, before: Option<&LinuxResources>) -> Result<()> {
        let writes = self.writes(Some(resources))?;
        if let (true, Some(v2), Some(memory)) = (self.v1.is_empty(), &self.v2, resources.memory()) {
            v2::check_usage(&v2.dir, memory)?;
        }
        // The files last, as runc: systemd rounds.
        self.update_unit(resources)?;
        self.write_all(&writes, limits::replace).inspect_err(|_| {
            let _ = before.map(|before| self.update_unit(before));
        })
    }

    fn writes(&self, resources: Option<&LinuxResources>) -> Result<Vec<Write>> {
        match resources {
            None => Ok(Vec::new()),
            Some(resources) if self.is_disabled() && !self.lenient => {
                // Without cgroup there is no limit, as with crun, which says nothing.
                if !v1::writes(resources).is_ok_and(|writes| writes.is_empty()) {
                    log::warn("linux.resources: no limit is set, since the cgroup manager is disabled");
                }
                Ok(Vec::new())
            }
            Some(resources) if self.v1.is_empty() => v2::writes(resources),
            Some(resources) => v1::writes(resources),
        }
    }

    fn write_all(&self, writes: &[Write], apply: limits::Apply) -> Result<()> {
        let unavailable = |write: &Write| {
            // runc's words after the field's name.
            anyhow!(
                "linux.resources.{}: cannot set {} limit: container could not join or create cgroup",
                write.field,
                write.controller
            )
        };
        if !self.v1.is_empty() {
            let dir = |write: &Write| {
                let hierarchy = self.made_with(write.controller).ok_or_else(|| unavailable(write))?;
                Ok(hierarchy.dir.clone())
            };
            return apply(writes, &dir);
        }
        let Some(first) = writes.first() else { return Ok(()) };
        let v2 = self.v2.as_ref().ok_or_else(|| unavailable(first))?;
        let has = limits::read_line(&v2.dir.join("cgroup.controllers"))?;
        apply(writes, &|write| {
            let core = write.controller.is_empty();
            if core || has.split_whitespace().any(|name| name == write.controller) {
                return Ok(v2.dir.clone());
            }
            bail!(
                "linux.resources.{}: controller {:?} is not available in {}",
                write.field,
                write.controller,
                v2.dir.display()
            )
        })
    }

    fn filter_v1(&self, list: &devices::List) -> Result<()> {
        match self.made_with("devices") {
            Some(devices) => devices::apply_v1(&devices.dir, list),
            // runc too takes this as fatal, for security.
            None => bail!("linux.resources.devices: mountpoint for devices not found"),
        }
    }

    /// Where a cgroup v2 tree may be given to the container's root (its own user and cgroup namespace, cgroup
    /// mounted writable): the files that the kernel lists for it. runc does this for systemd in containers.
    pub fn delegate(&self, owner: u32) -> Result<()> {
        let Some(v2) = self.v2.as_ref().filter(|_| self.v1.is_empty()) else { return Ok(()) };
        let own = |path: &Path| match chown(path, Some(owner), None) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result.with_context(|| format!("chown {}", path.display())),
        };
        own(&v2.dir)?;
        let list = kernel_file::read("/sys/kernel/cgroup/delegate")
            .unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".to_owned());
        list.lines().filter(|name| !name.contains('/')).try_for_each(|name| own(&v2.dir.join(name)))
    }

    /// crun's `run.oci.delegate-cgroup`, by its words where it cannot be: delegation is not safe on v1.
    pub fn can_delegate_below(&self) -> Result<()> {
        if !self.v1.is_empty() || self.v2.is_none() {
            bail!("annotation run.oci.delegate-cgroup: delegate-cgroup not supported on cgroup v1");
        }
        Ok(())
    }

    /// Moves a process to a cgroup below, which the limits above hold for and which it manages itself.
    pub fn delegate_below(&self, name: &str, pid: i32) -> Result<()> {
        self.can_delegate_below()?;
        let Some(v2) = &self.v2 else { return Ok(()) };
        move_to(&v2.dir.join(name), pid)
    }

    /// Processes in the cgroup and in those nested in it.
    pub fn pids(&self) -> Result<Vec<i32>> {
        // They are in all hierarchies alike. runc asks devices, which no init system in the container moves about.
        let made = self.made_with("devices").or_else(|| self.hierarchies().find(|h| h.dir.is_dir()));
        made.map_or(Ok(Vec::new()), |hierarchy| tree::pids(&hierarchy.dir))
    }

    pub fn set_frozen(&self, frozen: bool) -> Result<()> {
        if let Some(freezer) = self.made_with("freezer") {
            return freezer::set_v1(&freezer.dir, frozen);
        }
        match &self.v2 {
            Some(v2) => freezer::set_v2(&v2.dir, frozen),
            None => bail!("cannot toggle freezer: cgroups not configured for container"),
        }
    }

    /// On v1 not even SIGKILL ends a frozen process, and a container that may make cgroups can freeze itself in one of
    /// its own. So, for what has been killed: `set_frozen(false)`, there as well.
    pub fn thaw_killed(&self) -> Result<()> {
        match self.made_with("freezer") {
            Some(freezer) => tree::write_all(&freezer.dir, "freezer.state", "THAWED"),
            None if self.is_frozen() => self.set_frozen(false),
            None => Ok(()),
        }
    }

    pub fn is_frozen(&self) -> bool {
        match (self.made_with("freezer"), &self.v2) {
            (Some(freezer), _) => freezer::is_frozen_v1(&freezer.dir),
            (None, Some(v2)) => freezer::is_frozen_v2(&v2.dir),
            (None, None) => false,
        }
    }

    /// Removes the cgroup and those nested in it, in every hierarchy; waits for processes that are dying. To be
    /// called only after `create` succeeded once. Killing what still runs is the caller's.
    pub fn remove(&self) -> Result<()> {
        if let Some(unit) = &self.unit {
            // A unit that its systemd cannot end any more must not keep the container from being removed.
            let _ = unit.stop().inspect_err(|error| log::warn(&format!("{error:#}")));
        }
        let deadline = Instant::now() + REMOVE_PATIENCE;
        for hierarchy in self.hierarchies() {
            match tree::remove(&hierarchy.dir, deadline) {
                // Not made by us, or not any more ours to remove.
                Err(error) if self.lenient && denied(&error) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// The directory whose freezer stops the container.
    pub fn freezer_path(&self) -> Option<&Path> {
        self.v1_path("freezer").or_else(|| self.v2_path().filter(|_| self.v1.is_empty()))
    }

    /// The usual end, nothing and nobody left in it: true when it is gone. A unit is systemd's to remove.
    pub fn remove_empty(&self) -> bool {
        let Ok(base) = Base::open() else { return false };
        let removed = |hierarchy: &Hierarchy| {
            let (at, dir) = base.at(&hierarchy.dir);
            tree::rmdir(at, dir.as_os_str()).is_ok()
        };
        self.unit.is_none() && self.hierarchies().all(removed)
    }

    /// What is left of a create that was killed early: its directories go when nobody is in them. They may belong to
    /// somebody else, so nothing is killed and nothing below them is touched.
    pub fn remove_if_empty(&self) {
        self.hierarchies().for_each(|hierarchy| remove_left(&hierarchy.dir));
    }

    pub fn has_v1(&self) -> bool {
        !self.v1.is_empty()
    }

    /// What a `cgroup` mount shows in a container on v1 and hybrid; empty on pure v2.
    pub fn v1_mounts(&self) -> Result<Vec<V1Mount>> {
        // A rootless container that could not get a cgroup of its own is in its caller's, and sees that, as in runc.
        let place = |dir: &Path| if self.lenient { existing(dir) } else { dir.to_owned() };
        self.v1
            .iter()
            .map(|hierarchy| {
                let name = hierarchy.mount.file_name().and_then(|name| name.to_str());
                let name = name
                    .with_context(|| format!("{}: not a usable name", hierarchy.mount.display()))?
                    .to_owned();
                let controllers = &hierarchy.controllers;
                // mount(8) for a hierarchy without controllers: `none,name=systemd`.
                let named = controllers.iter().any(|controller| controller.starts_with("name="));
                let none = named.then(|| "none".to_owned());
                let options = none.into_iter().chain(controllers.iter().cloned()).collect();
                let links = controllers.iter().filter(|c| !named && **c != name).cloned().collect();
                Ok(V1Mount { name, options, path: place(&hierarchy.dir), links })
            })
            .collect()
    }

    /// Whether the kernel has killed a process of this cgroup for want of memory.
    pub fn was_oom_killed(&self) -> bool {
        let counted = |path: PathBuf| {
            let text = kernel_file::read(path).unwrap_or_default();
            text.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count != "0")
        };
        self.v1_path("memory").is_some_and(|dir| counted(dir.join("memory.oom_control")))
            || self.v2_path().is_some_and(|dir| counted(dir.join("memory.events")))
    }

    /// What of the v2 tree a container without a cgroup namespace is shown.
    pub fn shown_v2(&self) -> Option<PathBuf> {
        self.v2.as_ref().map(|hierarchy| existing(&hierarchy.dir))
    }

    /// The container's directory in the v2 tree: pure v2's only one, or hybrid's unified one.
    pub fn v2_path(&self) -> Option<&Path> {
        self.v2.as_ref().map(|hierarchy| hierarchy.dir.as_path())
    }

    /// The container's directory of a v1 controller, for stats.
    pub fn v1_path(&self, controller: &str) -> Option<&Path> {
        self.made_with(controller).map(|hierarchy| hierarchy.dir.as_path())
    }

    /// Its directories, for the log.
    pub fn describe(&self) -> String {
        self.hierarchies().map(|hierarchy| hierarchy.dir.display().to_string()).collect::<Vec<_>>().join(" ")
    }

    fn is_disabled(&self) -> bool {
        self.v1.is_empty() && self.v2.is_none()
    }

    fn hierarchies(&self) -> impl Iterator<Item = &Hierarchy> {
        self.v1.iter().chain(&self.v2)
    }

    /// The v1 hierarchy with that controller, if the container has a directory there.
    fn made_with(&self, controller: &str) -> Option<&Hierarchy> {
        let with = |h: &&Hierarchy| h.controllers.iter().any(|c| c == controller);
        self.v1.iter().find(with).filter(|hierarchy| !self.lenient || hierarchy.dir.is_dir())
    }
}

/// A process of any number of threads, into a cgroup that is made if it is missing.
fn move_to(dir: &Path, pid: i32) -> Result<()> {
    let context = || format!("move process {pid} to cgroup {}", dir.display());
    fs::create_dir_all(dir).with_context(context)?;
    limits::write_file(&dir.join("cgroup.procs"), &pid.to_string()).with_context(context)
}

fn check_unused(hierarchy: &Hierarchy) -> Result<()> {
    let dir = &hierarchy.dir;
    let found = tree::pids(dir)?.len();
    if found != 0 {
        bail!("container's cgroup is not empty: {found} process(es) found in {}", dir.display());
    }
    if freezer::is_frozen_v1(dir) || freezer::is_frozen_v2(dir) {
        bail!("container's cgroup unexpectedly frozen: {}", dir.display());
    }
    Ok(())
}

/// True if the container's own directory was there already. `writes` is given on pure v2, where controllers must
/// be handed down level by level.
fn make_dirs(
    base: &Base,
    hierarchy: &Hierarchy,
    writes: Option<&[Write]>,
    made: &mut Vec<PathBuf>,
) -> Result<bool> {
    // The usual case on v1, only the last level missing, costs one call.
    if writes.is_none() {
        match make_dir(base, &hierarchy.dir, made) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => {
                return result.with_context(|| format!("create cgroup {}", hierarchy.dir.display()));
            }
        }
    }
    let inner = hierarchy.dir.strip_prefix(&hierarchy.mount).context("cgroup outside of its hierarchy")?;
    let mut dir = hierarchy.mount.clone();
    let mut existed = true;
    for name in inner {
        if writes.is_some() {
            v2::enable_controllers(&dir)?;
        }
        dir.push(name);
        existed = make_dir(base, &dir, made).with_context(|| format!("create cgroup {}", dir.display()))?;
        if let Some(writes) = writes {
            v2::settle_type(&dir, writes)?;
        }
    }
    Ok(existed)
}

fn make_dir(base: &Base, dir: &Path, made: &mut Vec<PathBuf>) -> io::Result<bool> {
    let (at, inner) = base.at(dir);
    match rustix::fs::mkdirat(at, inner, Mode::from_raw_mode(0o755)) {
        Ok(()) => {
            made.push(dir.to_owned());
            Ok(false)
        }
        Err(Errno::EXIST) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn denied(error: &anyhow::Error) -> bool {
    let errno = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    matches!(errno, Some(libc::EACCES | libc::EPERM | libc::EROFS))
}

fn throttles(block: &LinuxBlockIo) -> [(&'static str, &[LinuxThrottleDevice]); 4] {
    [
        ("throttleReadBpsDevice", block.throttle_read_bps_device().as_deref().unwrap_or_default()),
        ("throttleWriteBpsDevice", block.throttle_write_bps_device().as_deref().unwrap_or_default()),
        ("throttleReadIOPSDevice", block.throttle_read_iops_device().as_deref().unwrap_or_default()),
        ("throttleWriteIOPSDevice", block.throttle_write_iops_device().as_deref().unwrap_or_default()),
    ]
}

/// The size becomes part of a file name. The spec: `<size><unit-prefix>B`.
fn checked_page_size(size: &str) -> Result<&str> {
    let digits = size.strip_suffix("KB").or(size.strip_suffix("MB")).or(size.strip_suffix("GB"));
    match digits {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => Ok(size),
        _ => bail!("linux.resources.hugepageLimits: pageSize {size:?} is not a size like 2MB"),
    }
}

/// The same file in v1 and v2.
fn rdma_writes(resources: &LinuxResources, writes: &mut Vec<Write>) {
    let empty = HashMap::new();
    let mut devices: Vec<_> = resources.rdma().as_ref().unwrap_or(&empty).iter().collect();
    devices.sort_by_key(|(name, _)| name.as_str());
    for (name, limit) in devices {
        let handles = limit.hca_handles().map(|count| format!(" hca_handle={count}")).unwrap_or_default();
        let objects = limit.hca_objects().map(|count| format!(" hca_object={count}")).unwrap_or_default();
        let line = format!("{name}{handles}{objects}");
        writes.push(Write::new(format!("rdma[{name}]"), "rdma", "rdma.max", line));
    }
}

#[cfg(test)]
mod testing;

#[cfg(test)]
mod tests;
