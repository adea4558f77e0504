//! `linux.intelRdt`: the container's group in the resctrl file system, which gives it its share of the cache and of the
//! memory bandwidth. The host mounts resctrl; a group is a directory there. runc: libcontainer/intelrdt.

mod stats;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Linux, LinuxIntelRdt};

use super::rootfs;
pub use stats::Stats;

/// What is asked for, on a host that has it.
pub struct Rdt<'a> {
    id: &'a str,
    wanted: &'a LinuxIntelRdt,
    root: PathBuf,
}

/// Finds resctrl and what of it is asked for; `None` when nothing is.
pub fn find<'a>(id: &'a str, linux: Option<&'a Linux>) -> Result<Option<Rdt<'a>>> {
    let Some(wanted) = linux.and_then(|linux| linux.intel_rdt().as_ref()) else { return Ok(None) };
    let root = root()?;
    refuse_missing(wanted, root.as_deref())?;
    let root = root.context("linux.intelRdt: the resctrl file system is not mounted")?;
    Ok(Some(Rdt { id, wanted, root }))
}

/// Where the kernel offers it, or wherever the operator has mounted it instead.
fn root() -> Result<Option<PathBuf>> {
    const RDTGROUP_SUPER_MAGIC: i64 = 0x0765_5821;
    let usual = Path::new("/sys/fs/resctrl");
    match rustix::fs::statfs(usual) {
        Ok(fs) if fs.f_type == RDTGROUP_SUPER_MAGIC => Ok(Some(usual.to_owned())),
        // The kernel makes that directory: without it there is no such file system (runc: Root).
        Err(_) => Ok(None),
        Ok(_) => rootfs::mount_of_kind("resctrl"),
    }
}

/// What this machine can monitor, a word in each line (resctrl.rst).
fn mon_features(root: &Path) -> String {
    fs::read_to_string(root.join("info/L3_MON/mon_features")).unwrap_or_default()
}

/// runc's words for the first two.
fn refuse_missing(wanted: &LinuxIntelRdt, root: Option<&Path>) -> Result<()> {
    let has = |file: &str| root.is_some_and(|root| root.join("info").join(file).exists());
    let monitors = |names: &[&str]| {
        root.is_some_and(|root| mon_features(root).lines().any(|line| names.contains(&line)))
    };
    let given = |schema: &Option<String>| schema.as_deref().is_some_and(|schema| !schema.is_empty());
    // With code and data apart (CDP) there is no `L3`.
    let cache = has("L3") || has("L3CODE");
    ensure!(
        cache || !given(wanted.l3_cache_schema()),
        "linux.intelRdt.l3CacheSchema is specified in config, but Intel RDT/CAT is not enabled"
    );
    ensure!(
        has("MB") || !given(wanted.mem_bw_schema()),
        "linux.intelRdt.memBwSchema is specified in config, but Intel RDT/MBA is not enabled"
    );
    #[allow(deprecated, reason = "deprecated by runtime-spec 1.3, and what older engines send")]
    let (occupancy, bandwidth) = (wanted.enable_cmt(), wanted.enable_mbm());
    ensure!(
        occupancy != &Some(true) || monitors(&["llc_occupancy"]),
        "linux.intelRdt.enableCMT is specified in config, but Intel RDT/CMT is not enabled"
    );
    ensure!(
        bandwidth != &Some(true) || monitors(&["mbm_total_bytes", "mbm_local_bytes"]),
        "linux.intelRdt.enableMBM is specified in config, but Intel RDT/MBM is not enabled"
    );
    ensure!(
        wanted.enable_monitoring() != &Some(true) || has("L3_MON"),
        "linux.intelRdt.enableMonitoring is specified in config, but resctrl monitoring is not enabled"
    );
    Ok(())
}

impl Rdt<'_> {
    /// The group is another's: shared, made and removed by whoever has named it.
    fn closid(&self) -> Option<&str> {
        self.wanted.clos_id().as_deref().filter(|name| !name.is_empty())
    }

    fn group(&self) -> PathBuf {
        self.root.join(self.closid().unwrap_or(self.id))
    }

    /// The container's own, for its numbers alone.
    fn monitoring(&self) -> Option<PathBuf> {
        let wanted = self.wanted.enable_monitoring().unwrap_or(false);
        wanted.then(|| self.group().join("mon_groups").join(self.id))
    }

    /// Makes the group, or finds the named one, and puts the process in. What was made goes again on failure.
    pub fn create(&self, pid: i32) -> Result<()> {
        let schemata = schemata(self.wanted);
        let made = self.make_group(schemata.is_empty())?;
        let done = self.fill(&schemata, made, pid);
        if done.is_err() {
            let _ = self.remove();
            if made {
                let _ = fs::remove_dir(self.group());
            }
        }
        done
    }

    /// New schemata for a group that is there, or (as in runc) a group for an init that had none.
    pub fn update(&self, pid: i32) -> Result<()> {
        self.mkdir(&self.group())?;
        self.write(&self.group().join("schemata"), &schemata(self.wanted))?;
        self.join(pid)
    }

    fn make_group(&self, nothing_to_write: bool) -> Result<bool> {
        let group = self.group();
        match (self.closid(), nothing_to_write) {
            (Some(closid), true) => {
                ensure!(
                    group.is_dir(),
                    "linux.intelRdt.closID: clos dir {closid:?} not accessible (must be pre-created when \
                     l3CacheSchema and memBwSchema are empty)"
                );
                Ok(false)
            }
            _ => self.mkdir(&group),
        }
    }

    fn fill(&self, schemata: &str, made: bool, pid: i32) -> Result<()> {
        let file = self.group().join("schemata");
        if self.closid().is_some() && !made {
            let there = fs::read_to_string(&file)
                .with_context(|| format!("linux.intelRdt: read {}", file.display()))?;
            agrees(schemata, &there).context("linux.intelRdt.closID: the group has another configuration")?;
        } else if !schemata.is_empty() {
            self.write(&file, schemata)?;
        }
        if let Some(monitoring) = self.monitoring() {
            self.mkdir(&monitoring)?;
        }
        self.join(pid)
    }

    /// Every task is put in by itself, an exec's too (runc does so where the group is still there).
    pub fn join(&self, pid: i32) -> Result<()> {
        for group in [Some(self.group()), self.monitoring()].into_iter().flatten() {
            self.write(&group.join("tasks"), &pid.to_string())?;
        }
        Ok(())
    }

    /// A group that was named is left to its owner.
    pub fn remove(&self) -> Result<()> {
        let own = self.closid().is_none().then(|| self.group());
        for group in [self.monitoring(), own].into_iter().flatten() {
            match fs::remove_dir(&group) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("linux.intelRdt: remove {}", group.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn mkdir(&self, path: &Path) -> Result<bool> {
        match fs::create_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => {
                Err(self.explain(error)).with_context(|| format!("linux.intelRdt: make {}", path.display()))
            }
        }
    }

    /// In one write(2), as the kernel wants it.
    fn write(&self, path: &Path, text: &str) -> Result<()> {
        let written =
            fs::File::options().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
        written
            .map_err(|error| self.explain(error))
            .with_context(|| format!("linux.intelRdt: write {:?} to {}", text.trim_end(), path.display()))
    }

    /// The kernel's own account of what was wrong.
    fn explain(&self, error: std::io::Error) -> anyhow::Error {
        let status = fs::read_to_string(self.root.join("info/last_cmd_status")).unwrap_or_default();
        match status.trim() {
            "" | "ok" => error.into(),
            status => anyhow::Error::new(error).context(format!("last_cmd_status: {status}")),
        }
    }
}

/// The lines for the `schemata` file, in the order of config-linux.md.
fn schemata(wanted: &LinuxIntelRdt) -> String {
    let bandwidth = wanted.mem_bw_schema().as_deref().filter(|schema| !schema.is_empty());
    let cache = wanted.l3_cache_schema().as_deref().unwrap_or_default().lines();
    // config-linux.md: memBwSchema stands in for such lines.
    let cache = cache.filter(|line| bandwidth.is_none() || !line.trim_start().starts_with("MB:"));
    let all = wanted.schemata().iter().flatten().flat_map(|lines| lines.lines());
    let lines = cache.chain(bandwidth.into_iter().flat_map(str::lines)).chain(all);
    lines.filter(|line| !line.trim().is_empty()).flat_map(|line| [line, "\n"]).collect()
}

/// Whether a group of another's making is as this container wants it (config-linux.md, closID).
fn agrees(wanted: &str, there: &str) -> Result<()> {
    let there: Vec<Line<'_>> = there.lines().filter_map(Line::parse).collect();
    for text in wanted.lines() {
        let line = Line::parse(text).with_context(|| format!("{text:?} is no line of a schemata file"))?;
        let mut found = there.iter().filter(|other| other.resource == line.resource);
        let same =
            |other: &Line<'_>| line.values.iter().all(|(id, value)| other.values.get(id) == Some(value));
        if !found.any(same) {
            bail!("it does not have {text:?}");
        }
    }
    Ok(())
}

/// `L3:0=ff;1=c0`
struct Line<'a> {
    resource: &'a str,
    values: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Option<Line<'a>> {
        let (resource, values) = text.split_once(':')?;
        let values = values.split(';').map(str::trim).filter(|value| !value.is_empty()).map(|value| {
            let (id, value) = value.split_once('=')?;
            // The kernel pads masks and numbers, each in its own way.
            let bare = value.trim().trim_start_matches('0');
            Some((id.trim(), if bare.is_empty() { "0" } else { bare }))
        });
        Some(Line { resource: resource.trim(), values: values.collect::<Option<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wanted(fields: Value) -> LinuxIntelRdt {
        serde_json::from_value(fields).unwrap()
    }

    /// A directory that looks like resctrl with one group in it.
    fn resctrl(group: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("info/L3/cbm_mask", "fffff\n"),
            ("info/L3_MON/mon_features", "llc_occupancy\n"),
            ("info/last_cmd_status", "mask is not contiguous\n"),
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let group = dir.path().join(group);
        fs::create_dir_all(group.join("mon_groups/c1")).unwrap();
        for (file, text) in [
            ("schemata", "    L3:0=00ff;1=0f\n    MB:0= 20;1=100\n"),
            ("tasks", ""),
            ("mon_groups/c1/tasks", ""),
        ] {
            fs::write(group.join(file), text).unwrap();
        }
        dir
    }

    fn at<'a>(dir: &tempfile::TempDir, wanted: &'a LinuxIntelRdt) -> Rdt<'a> {
        Rdt { id: "c1", wanted, root: dir.path().to_owned() }
    }

    #[test]
    fn lines_are_joined_in_the_order_of_the_specification() {
        let all = wanted(json!({"l3CacheSchema": "L3:0=f\nMB:0=10", "memBwSchema": "MB:0=20",
            "schemata": ["L2:0=3", "SMBA:0=4"]}));
        assert_eq!(schemata(&all), "L3:0=f\nMB:0=20\nL2:0=3\nSMBA:0=4\n");
        let cache = wanted(json!({"l3CacheSchema": "L3:0=f\nMB:0=10"}));
        assert_eq!(schemata(&cache), "L3:0=f\nMB:0=10\n");
        assert_eq!(schemata(&wanted(json!({}))), "");
    }

    #[test]
    fn a_group_of_its_own_is_filled() {
        let dir = resctrl("c1");
        let wanted = wanted(json!({"l3CacheSchema": "L3:0=f;1=f", "enableMonitoring": true}));
        at(&dir, &wanted).create(77).unwrap();
        let read = |file: &str| fs::read_to_string(dir.path().join("c1").join(file)).unwrap();
        assert!(read("schemata").starts_with("L3:0=f;1=f\n"), "{}", read("schemata"));
        assert_eq!((read("tasks").as_str(), read("mon_groups/c1/tasks").as_str()), ("77", "77"));
    }

    #[test]
    fn a_named_group_is_joined_only_as_it_is() {
        let dir = resctrl("gold");
        let create = |fields: Value| {
            let wanted = wanted(fields);
            at(&dir, &wanted).create(77).map_err(|error| format!("{error:#}"))
        };
        for fields in [
            json!({"closID": "gold"}),
            json!({"closID": "gold", "l3CacheSchema": "L3:1=f;0=ff"}),
            json!({"closID": "gold", "schemata": ["MB:0=20;1=100"]}),
        ] {
            create(fields.clone()).unwrap_or_else(|error| panic!("{fields}: {error}"));
        }
        let error = create(json!({"closID": "gold", "memBwSchema": "MB:0=30"})).unwrap_err();
        assert!(
            error.ends_with("the group has another configuration: it does not have \"MB:0=30\""),
            "{error}"
        );
        let error = create(json!({"closID": "silver"})).unwrap_err();
        assert!(error.starts_with("linux.intelRdt.closID: clos dir \"silver\" not accessible"), "{error}");
        let kept = wanted(json!({"closID": "gold"}));
        at(&dir, &kept).remove().unwrap();
        assert!(dir.path().join("gold").exists());
    }

    #[test]
    fn a_group_that_cannot_be_filled_is_not_left() {
        // A plain directory has none of resctrl's files.
        let dir = resctrl("other");
        for fields in
            [json!({"l3CacheSchema": "L3:0=5"}), json!({"closID": "new", "l3CacheSchema": "L3:0=5"})]
        {
            let wanted = wanted(fields);
            let error = format!("{:#}", at(&dir, &wanted).create(77).unwrap_err());
            assert!(error.contains("last_cmd_status: mask is not contiguous"), "{error}");
            assert!(!dir.path().join("c1").exists() && !dir.path().join("new").exists());
        }
    }

    #[test]
    fn its_own_group_goes_with_the_container() {
        let dir = resctrl("other");
        let wanted = wanted(json!({}));
        fs::create_dir(dir.path().join("c1")).unwrap();
        at(&dir, &wanted).remove().unwrap();
        assert!(!dir.path().join("c1").exists());
        at(&dir, &wanted).remove().unwrap();
    }

    #[test]
    fn what_the_host_has_not_is_refused_by_name() {
        let dir = resctrl("other");
        let refuse =
            |fields: Value| refuse_missing(&wanted(fields), Some(dir.path())).map_err(|e| e.to_string());
        // enableCmt and enableMbm: the names that oci-spec has for them (bundle::lenient).
        refuse(json!({"l3CacheSchema": "L3:0=f", "enableMonitoring": true, "enableCmt": true})).unwrap();
        for (fields, name) in
            [(json!({"memBwSchema": "MB:0=1"}), "memBwSchema"), (json!({"enableMbm": true}), "enableMBM")]
        {
            let error = refuse(fields).unwrap_err();
            assert!(error.starts_with(&format!("linux.intelRdt.{name} is specified in config")), "{error}");
        }
    }
}
