//! Where a container's cgroups are: the machine's layout and `linux.cgroupsPath` to directories, by runc's
//! rules. Reads two files of /proc and asks one statfs; must not make or change anything.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Hierarchy;
use crate::linux::kernel_file;

/// statfs(2), CGROUP2_SUPER_MAGIC.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
pub const DEFAULT_MOUNT: &str = "/sys/fs/cgroup";

/// What the machine has, as text read once.
pub struct Machine {
    pub mountinfo: String,
    pub own: String,
    /// /sys/fs/cgroup itself is cgroup2. mountinfo cannot tell: it still lists the v1 mounts that a cgroup2
    /// mounted over them hides.
    pub unified: bool,
}

impl Machine {
    pub fn read() -> Result<Machine> {
        let unified = is_unified();
        let mountinfo = kernel_file::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let own = kernel_file::read_value("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        Ok(Machine { mountinfo, own, unified })
    }
}

/// Whether the machine has cgroup v2 alone.
pub fn is_unified() -> bool {
    rustix::fs::statfs(DEFAULT_MOUNT).is_ok_and(|stat| stat.f_type as u64 == CGROUP2_MAGIC)
}

/// The container's directories.
#[derive(Debug, Default)]
pub struct Planned {
    pub v1: Vec<Hierarchy>,
    pub v2: Option<Hierarchy>,
}

/// As runc's cgroupfs managers: an absolute path stands under the root of each hierarchy; a relative one under
/// our own cgroup of that hierarchy, or on pure v2 under its parent, since our own has tasks in it and so cannot
/// hand controllers down (cgroup-v2.rst, "No Internal Process Constraint"). No path: the id, as a relative path.
pub fn plan(machine: &Machine, id: &str, cgroups_path: Option<&Path>) -> Result<Planned> {
    let mounts = parse_mountinfo(&machine.mountinfo);
    let own = parse_own(&machine.own);
    let path = cgroups_path.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(id));
    let inner = clean(path);
    if inner.as_os_str().is_empty() {
        bail!("linux.cgroupsPath: {path:?} is the root of the cgroup hierarchies");
    }
    let absolute = path.is_absolute();
    if machine.unified {
        let mount = mounts.iter().rfind(|m| m.kind == "cgroup2" && m.point == Path::new(DEFAULT_MOUNT));
        return Ok(Planned { v1: Vec::new(), v2: pure_v2(mount, &own, absolute, &inner) });
    }
    let mut planned = Planned::default();
    for (controllers, own) in &own {
        if controllers.is_empty() {
            continue;
        }
        if let Some(mount) = best_mount(&mounts, |m| m.kind == "cgroup" && m.has(&controllers[0])) {
            planned.v1.push(Hierarchy::below(mount, controllers.clone(), own, absolute, &inner));
        }
    }
    let mount = best_mount(&mounts, |m| m.kind == "cgroup2");
    if planned.v1.is_empty() {
        planned.v2 = pure_v2(mount, &own, absolute, &inner);
    } else if let (Some(mount), Some(own)) = (mount, own_v2(&own)) {
        planned.v2 = Some(Hierarchy::below(mount, Vec::new(), own, absolute, &inner));
    }
    Ok(planned)
}

fn pure_v2(
    mount: Option<&Mount>,
    own: &[(Vec<String>, PathBuf)],
    absolute: bool,
    inner: &Path,
) -> Option<Hierarchy> {
    let own = own_v2(own)?;
    Some(Hierarchy::below(mount?, Vec::new(), own.parent().unwrap_or(own), absolute, inner))
}

fn own_v2(own: &[(Vec<String>, PathBuf)]) -> Option<&Path> {
    own.iter().find(|(controllers, _)| controllers.is_empty()).map(|(_, path)| path.as_path())
}

impl Hierarchy {
    fn below(mount: &Mount, controllers: Vec<String>, own: &Path, absolute: bool, inner: &Path) -> Hierarchy {
        let base = if absolute { mount.point.clone() } else { mount.point.join(mount.inside(own)) };
        Hierarchy { controllers, dir: base.join(inner), mount: mount.point.clone() }
    }
}

/// Where `pid` is in the v2 tree mounted at `mount`.
pub fn v2_dir_of(pid: i32, mount: &Path) -> Result<PathBuf> {
    let file = format!("/proc/{pid}/cgroup");
    let text = kernel_file::read_value(&file).with_context(|| format!("read {file}"))?;
    let own = parse_own(&text);
    let own = own_v2(&own).with_context(|| format!("{file}: no cgroup v2 entry"))?;
    let mounts = kernel_file::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let mounts = parse_mountinfo(&mounts);
    let inside = mounts.iter().rfind(|m| m.kind == "cgroup2" && m.point == mount).map(|m| m.inside(own));
    Ok(mount.join(inside.with_context(|| format!("{mount:?} is not a mount of cgroup2"))?))
}

/// The lexical clean-up of runc's CleanPath: `..` never leads above the hierarchy. The result is relative.
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

struct Mount<'a> {
    root: PathBuf,
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl Mount<'_> {
    fn has(&self, controller: &str) -> bool {
        self.options.split(',').any(|option| option == controller)
    }

    /// A cgroup as /proc/PID/cgroup names it, relative to this mount. The mount may show only a part of the
    /// hierarchy (a container without a cgroup namespace): then the part's own root is cut off.
    fn inside<'a>(&self, cgroup: &'a Path) -> &'a Path {
        cgroup.strip_prefix(&self.root).or_else(|_| cgroup.strip_prefix("/")).unwrap_or(cgroup)
    }
}

/// A hierarchy may be mounted several times (into a chroot, say); the one under /sys/fs/cgroup is meant.
fn best_mount<'a>(mounts: &'a [Mount<'a>], wanted: impl Fn(&Mount) -> bool) -> Option<&'a Mount<'a>> {
    let usual = mounts.iter().rfind(|m| wanted(m) && m.point.starts_with(DEFAULT_MOUNT));
    usual.or_else(|| mounts.iter().find(|m| wanted(m)))
}

/// proc_pid_mountinfo(5): `id parent dev ROOT POINT opts [optional...] - KIND source OPTIONS`.
fn parse_mountinfo(text: &str) -> Vec<Mount<'_>> {
    let parse = |line| {
        let mut fields = str::split(line, ' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut filesystem = fields.skip_while(|field| *field != "-").skip(1);
        let (kind, _source, options) = (filesystem.next()?, filesystem.next()?, filesystem.next()?);
        let is_cgroup = kind == "cgroup" || kind == "cgroup2";
        is_cgroup.then(|| Mount { root: unescape(root), point: unescape(point), kind, options })
    };
    text.lines().filter_map(parse).collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> PathBuf {
    if !field.contains('\\') {
        return PathBuf::from(field);
    }
    let mut path = field.to_owned();
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        path = path.replace(escape, plain);
    }
    PathBuf::from(path)
}

/// cgroups(7): `hierarchy-ID:controller-list:path`; the v2 line has an empty list.
fn parse_own(text: &str) -> Vec<(Vec<String>, PathBuf)> {
    let parse = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?.split(',').filter(|c| !c.is_empty()).map(str::to_owned);
        Some((controllers.collect(), PathBuf::from(parts.next()?)))
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
99 31 0:32 / /mnt/my\\040jail/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OWN: &str = "9:name=systemd:/user\n4:memory:/a/b\n3:cpuset:/\n2:cpu,cpuacct:/\n0::/c/d\n";

    fn dirs(unified: bool, mountinfo: &str, path: Option<&str>) -> Vec<String> {
        let machine = Machine { mountinfo: mountinfo.into(), own: OWN.into(), unified };
        let planned = plan(&machine, "id", path.map(Path::new)).unwrap();
        planned.v1.iter().chain(&planned.v2).map(|h| h.dir.display().to_string()).collect()
    }

    #[test]
    fn an_absolute_path_stands_under_each_hierarchy() {
        let expected = [
            "/sys/fs/cgroup/systemd/x/y",
            "/sys/fs/cgroup/memory/x/y",
            "/sys/fs/cgroup/cpu,cpuacct/x/y",
            "/sys/fs/cgroup/unified/x/y",
        ];
        assert_eq!(dirs(false, HYBRID, Some("/x/y")), expected);
        assert_eq!(dirs(false, HYBRID, Some("/../x/./z/../y")), expected);
    }

    #[test]
    fn a_relative_or_absent_path_stands_under_our_own_cgroup() {
        let expected = [
            "/sys/fs/cgroup/systemd/user/id",
            "/sys/fs/cgroup/memory/a/b/id",
            "/sys/fs/cgroup/cpu,cpuacct/id",
            "/sys/fs/cgroup/unified/c/d/id",
        ];
        assert_eq!(dirs(false, HYBRID, None), expected);
        assert_eq!(dirs(false, HYBRID, Some("")), expected);
        assert_eq!(dirs(false, HYBRID, Some("../../id")), expected);
    }

    #[test]
    fn pure_v2_is_what_covers_sys_fs_cgroup_and_relative_means_beside_us() {
        let mounts = format!("{HYBRID}50 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(dirs(true, &mounts, Some("/x")), ["/sys/fs/cgroup/x"]);
        assert_eq!(dirs(true, &mounts, None), ["/sys/fs/cgroup/c/id"]);
    }

    #[test]
    fn a_mount_of_a_part_cuts_the_part_off_our_own_path() {
        let mounts = "32 31 0:29 /a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(dirs(false, mounts, None), ["/sys/fs/cgroup/memory/b/id"]);
    }

    #[test]
    fn the_root_of_the_hierarchies_is_refused() {
        let machine = Machine { mountinfo: HYBRID.into(), own: OWN.into(), unified: false };
        let error = plan(&machine, "id", Some(Path::new("/a/.."))).unwrap_err().to_string();
        assert!(error.contains("linux.cgroupsPath"), "{error}");
    }
}
