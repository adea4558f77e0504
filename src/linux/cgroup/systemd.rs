//! The systemd driver's unit: its name and place, its properties as runc's systemd managers set them, its beginning
//! and its end. The cgroup's files and who is in it are the other modules' work, with this driver too.

mod bus;
mod properties;
mod value;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use self::bus::{Bus, Refused};
use self::value::Value;
use super::devices::List;
use crate::log;

/// A property of a unit.
type Property = (String, Value);

/// runc's: what follows is the name of a property, the value its text.
const PROPERTY: &str = "org.systemd.property.";
/// crun's: a cgroup below the scope, for the container itself.
const SUBGROUP: &str = "run.oci.systemd.subgroup";

/// The scope (or slice) that is the container's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unit {
    name: String,
    slice: String,
    /// Of the user's own systemd.
    user: bool,
    /// The container's cgroup as a path from the root of the hierarchies.
    dir: PathBuf,
    /// Whether `dir` is not the unit's own, but one below it.
    sub: bool,
    /// From annotations; of use to `start` only.
    #[serde(skip)]
    asked: Vec<Property>,
}

/// sd_booted(3).
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

impl Unit {
    /// No side effects. By runc's rules: `cgroupsPath` is `slice:prefix:name`; the scope is `prefix-name.scope`, and a
    /// name that ends in `.slice` is that slice.
    pub fn plan(
        id: &str,
        path: Option<&Path>,
        annotations: Option<&HashMap<String, String>>,
        rootless: bool,
        unified: bool,
    ) -> Result<Unit> {
        ensure!(is_running(), "systemd not running on this host, cannot use systemd cgroups manager");
        ensure!(unified || !rootless, "cannot use rootless systemd cgroups manager on cgroup v1");
        // Root of a user namespace may have a systemd of its own there, or be a user with a session outside.
        let user = rootless && (!rustix::process::geteuid().is_root() || bus::session_address().is_some());
        let (slice, name) = split(id, path, user)?;
        // A user's systemd has a cgroup of its own, and its slices are below.
        let mut dir = match user {
            true => PathBuf::from(Bus::connect(true)?.property("ControlGroup")?),
            false => PathBuf::from("/"),
        };
        dir.push(expand_slice(&slice)?);
        dir.push(&name);
        // crun makes one on cgroup v2 unless told not to; runc never does, and so we do if told to.
        let sub = annotations.and_then(|all| all.get(SUBGROUP)).filter(|name| !name.is_empty());
        if let Some(sub) = sub {
            let plain = Path::new(sub).components().all(|part| matches!(part, Component::Normal(_)));
            ensure!(plain, "annotation {SUBGROUP}: {sub:?} is not a path below the container's cgroup");
            dir.push(sub);
        }
        let asked = asked(annotations)?;
        Ok(Unit { name, slice, user, dir, sub: sub.is_some(), asked })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the container's process has to be moved on from where systemd puts it.
    pub fn has_sub(&self) -> bool {
        self.sub
    }

    /// Makes the unit around the process, with these limits, and returns when systemd is done with it.
    pub fn start(
        &self,
        pid: i32,
        resources: Option<&LinuxResources>,
        devices: Option<&List>,
        unified: bool,
    ) -> Result<()> {
        let mut bus = Bus::connect(self.user)?;
        let mut all = self.frame(pid, unified);
        all.extend(self.asked.iter().cloned());
        all.extend(devices.map(properties::devices).transpose()?.unwrap_or_default());
        if let Some(resources) = resources {
            all.extend(properties::of(resources, unified, version(&mut bus)?)?);
        }
        let nothing = Value::Array("(sa(sv))".into(), Vec::new());
        let arguments = [Value::text(&self.name), Value::text("replace"), list(all), nothing];
        let started = match bus.job("StartTransientUnit", &arguments) {
            // What is left of a unit that failed: systemd lets go of it when it is reset.
            Err(error) if is(&error, "UnitExists") => {
                self.reset(&mut bus);
                bus.job("StartTransientUnit", &arguments)
            }
            started => started,
        };
        let result = started.with_context(|| format!("unable to start unit {:?}", self.name))?;
        if result != "done" {
            self.reset(&mut bus);
            bail!("error creating systemd unit `{}`: got `{result}`", self.name);
        }
        Ok(())
    }

    /// Changes limits for as long as the unit is there.
    pub fn set(&self, resources: &LinuxResources, unified: bool) -> Result<()> {
        let mut bus = Bus::connect(self.user)?;
        let all = properties::of(resources, unified, version(&mut bus)?)?;
        if all.is_empty() {
            return Ok(());
        }
        let arguments = [Value::text(&self.name), Value::Bool(true), list(all)];
        bus.call("SetUnitProperties", &arguments).map(drop).context("unable to set unit properties")
    }

    /// Ends the unit, if systemd has not done so itself when its last process ended.
    pub fn stop(&self) -> Result<()> {
        let mut bus = Bus::connect(self.user)?;
        match bus.job("StopUnit", &[Value::text(&self.name), Value::text("replace")]) {
            Err(error) if is(&error, "NoSuchUnit") => return Ok(()),
            Ok(result) if result != "done" => {
                log::warn(&format!("error removing unit `{}`: got `{result}`. Continuing...", self.name));
            }
            result => drop(result.with_context(|| format!("stop unit {:?}", self.name))?),
        }
        self.reset(&mut bus);
        Ok(())
    }

    /// A unit that did not fail has nothing to be reset, which systemd calls an error.
    fn reset(&self, bus: &mut Bus) {
        let _ = bus.call("ResetFailedUnit", &[Value::text(&self.name)]);
    }

    /// What every unit has, whatever its limits.
    fn frame(&self, pid: i32, unified: bool) -> Vec<Property> {
        let mut all = vec![("Description".to_owned(), Value::text(format!("runw container {}", self.name)))];
        if self.name.ends_with(".slice") {
            let wants = Value::Array("s".into(), vec![Value::text(&self.slice)]);
            all.push(("Wants".into(), wants));
        } else {
            all.push(("Slice".into(), Value::text(&self.slice)));
            // So that systemd leaves alone what is below.
            all.push(("Delegate".into(), Value::Bool(true)));
        }
        all.push(("PIDs".into(), Value::Array("u".into(), vec![Value::U32(pid.cast_unsigned())])));
        let io = if unified { "IOAccounting" } else { "BlockIOAccounting" };
        for name in ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"] {
            all.push((name.into(), Value::Bool(true)));
        }
        all.push(("DefaultDependencies".into(), Value::Bool(false)));
        all
    }
}

fn is(error: &anyhow::Error, name: &str) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.name.ends_with(name))
}

fn list(properties: Vec<Property>) -> Value {
    let pair = |(name, value): Property| Value::Struct(vec![Value::Text(name), Value::Variant(value.into())]);
    Value::Array("(sv)".into(), properties.into_iter().map(pair).collect())
}

/// `v245.4-1.fc32`, `252 (252.38-1~deb12u1)`
fn version(bus: &mut Bus) -> Result<u32> {
    let text = bus.property("Version")?;
    let digits: String = text.trim_start_matches('v').chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("cannot understand systemd's version {text:?}"))
}

/// Slice and unit.
fn split(id: &str, path: Option<&Path>, user: bool) -> Result<(String, String)> {
    let default = if user { "user.slice" } else { "system.slice" };
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok((default.into(), format!("runw-{id}.scope")));
    };
    let text = path.to_str().context("linux.cgroupsPath is not UTF-8")?;
    let parts: Vec<&str> = text.split(':').collect();
    let [slice, prefix, name] = parts[..] else {
        bail!(
            "linux.cgroupsPath: expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {text:?} instead"
        );
    };
    let slice = if slice.is_empty() { default } else { slice };
    // systemd would refuse it too, but it becomes a path before systemd is asked.
    ensure!(!name.is_empty() && !text.contains('/'), "linux.cgroupsPath: {text:?} names no unit");
    let unit = if name.ends_with(".slice") { name.to_owned() } else { format!("{prefix}-{name}.scope") };
    Ok((slice.to_owned(), unit))
}

/// systemd.slice(5): `a-b.slice` is inside of `a.slice`. A relative path.
fn expand_slice(slice: &str) -> Result<PathBuf> {
    let invalid = || format!("linux.cgroupsPath: invalid slice name: {slice}");
    let name = slice.strip_suffix(".slice").filter(|name| !name.contains('/')).with_context(invalid)?;
    let mut path = PathBuf::new();
    if name == "-" {
        return Ok(path);
    }
    let mut prefix = String::new();
    for part in name.split('-') {
        ensure!(!part.is_empty(), invalid());
        path.push(format!("{prefix}{part}.slice"));
        prefix = format!("{prefix}{part}-");
    }
    Ok(path)
}

/// The annotations' properties, by name: a HashMap has no order.
fn asked(annotations: Option<&HashMap<String, String>>) -> Result<Vec<Property>> {
    let named =
        |(key, value): (&String, &String)| Some((key.strip_prefix(PROPERTY)?.to_owned(), value.clone()));
    let mut all: Vec<(String, String)> = annotations.into_iter().flatten().filter_map(named).collect();
    all.sort();
    all.iter().map(|(name, value)| property(name, value)).collect()
}

/// runc's `initSystemdProps`.
fn property(name: &str, text: &str) -> Result<Property> {
    ensure!(name.len() >= 3, "annotation {PROPERTY}{name} name incorrect: too short");
    ensure!(
        name.bytes().all(|letter| letter.is_ascii_alphabetic()),
        "annotation {PROPERTY}{name} name incorrect: contains non-alphabetic character"
    );
    let wrong = || format!("annotation {PROPERTY}{name}={text} value parse error");
    let value = value::parse(text).with_context(wrong)?;
    // Documented as TimeoutStopSec and the like, but over D-Bus there is only TimeoutStopUSec.
    match name.strip_suffix("Sec").filter(|stem| stem.ends_with(|letter: char| letter.is_ascii_lowercase())) {
        Some(stem) => Ok((format!("{stem}USec"), value.seconds_as_microseconds().with_context(wrong)?)),
        None => Ok((name.to_owned(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str) -> Result<(String, String), String> {
        split("id", Some(Path::new(path)), false).map_err(|error| error.to_string())
    }

    #[test]
    fn cgroups_path_names_slice_and_unit() {
        let pair = |slice: &str, unit: &str| Ok((slice.to_owned(), unit.to_owned()));
        assert_eq!(split("id", None, false).unwrap(), ("system.slice".into(), "runw-id.scope".into()));
        assert_eq!(split("id", None, true).unwrap().0, "user.slice");
        assert_eq!(names("a-b.slice:docker:1"), pair("a-b.slice", "docker-1.scope"));
        assert_eq!(names(":cri:1"), pair("system.slice", "cri-1.scope"));
        assert_eq!(names("a.slice:x:y.slice"), pair("a.slice", "y.slice"));
        for bad in ["/a/b", "a:b", "a:b:c:d", "a.slice:x:", "a.slice:../x:y"] {
            assert!(names(bad).unwrap_err().contains("linux.cgroupsPath"), "{bad}");
        }
    }

    #[test]
    fn slices_are_nested_by_their_dashes() {
        let path = |slice| expand_slice(slice).map(|path| path.to_str().unwrap().to_owned()).ok();
        assert_eq!(path("-.slice").as_deref(), Some(""));
        assert_eq!(path("system.slice").as_deref(), Some("system.slice"));
        assert_eq!(path("a-b-c.slice").as_deref(), Some("a.slice/a-b.slice/a-b-c.slice"));
        for bad in ["a", ".slice", "a--b.slice", "-a.slice", "a/b.slice", "a-.slice"] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn annotations_become_properties() {
        let pairs = [
            ("org.systemd.property.TimeoutStopSec", "uint64 5"),
            ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
            ("org.systemd.property.OnlyUSec", "uint64 5"),
            ("other", "x"),
        ];
        let map = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let want = [
            ("CollectMode", Value::text("inactive-or-failed")),
            ("OnlyUSec", Value::U64(5)),
            ("TimeoutStopUSec", Value::U64(5_000_000)),
        ];
        assert_eq!(asked(Some(&map)).unwrap(), want.map(|(name, value)| (name.to_owned(), value)));
        for (name, value, want) in [
            ("ab", "1", "name incorrect: too short"),
            ("a.b", "1", "non-alphabetic"),
            ("Abc", "nonsense", "value parse error"),
            ("WaitSec", "'x'", "value parse error"),
        ] {
            let error = property(name, value).unwrap_err().to_string();
            assert!(error.contains(want), "{name}: {error}");
        }
    }
}
