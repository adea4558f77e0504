//! `linux.resources.devices` as rules, runc's default devices included, and what they are in cgroup v1's
//! devices.allow and devices.deny. cgroup v2 has a program instead: `device_filter`.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use crate::linux::kernel_file;

pub const MKNOD: u8 = 1;
pub const READ: u8 = 2;
pub const WRITE: u8 = 4;
pub const ALL: u8 = MKNOD | READ | WRITE;

/// What a rule speaks of. `kind` is `b` or `c`; `None` as number is every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Which {
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Settles every device and every access; whatever came before does not matter any more.
    Everything {
        allow: bool,
    },
    Some {
        allow: bool,
        which: Which,
        access: u8,
    },
}

/// runc's AllowedDevices, in its order: mknod of anything, the six devices the spec demands in /dev,
/// pseudo-terminals, ptmx, and tun, which engines rely on (runc took it out in 1.2.0 and back in 1.2.4).
const DEFAULTS: [(char, Option<u32>, Option<u32>, u8); 11] = [
    ('c', None, None, MKNOD),
    ('b', None, None, MKNOD),
    ('c', Some(1), Some(3), ALL),
    ('c', Some(1), Some(8), ALL),
    ('c', Some(1), Some(7), ALL),
    ('c', Some(5), Some(0), ALL),
    ('c', Some(1), Some(5), ALL),
    ('c', Some(1), Some(9), ALL),
    ('c', Some(136), None, ALL),
    ('c', Some(5), Some(2), ALL),
    ('c', Some(10), Some(200), ALL),
];

/// The spec's rules in their order, then the defaults: they are appended, so they win, as in runc.
pub fn rules(resources: Option<&LinuxResources>) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for device in resources.and_then(|r| r.devices().as_ref()).into_iter().flatten() {
        spec_rule(device, &mut rules)?;
    }
    rules.extend(DEFAULTS.map(|(kind, major, minor, access)| {
        let which = Which { kind, major, minor };
        Rule::Some { allow: true, which, access }
    }));
    Ok(rules)
}

fn spec_rule(device: &LinuxDeviceCgroup, rules: &mut Vec<Rule>) -> Result<()> {
    let kinds: &[char] = match device.typ() {
        None | Some(LinuxDeviceType::A) => &['b', 'c'],
        Some(LinuxDeviceType::B) => &['b'],
        Some(LinuxDeviceType::C) => &['c'],
        Some(kind) => bail!("linux.resources.devices: invalid cgroup device type {:?}", kind.as_str()),
    };
    let number = |name: &str, value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .with_context(|| format!("linux.resources.devices: {name} {value} is not a device number")),
    };
    let (major, minor) = (number("major", device.major())?, number("minor", device.minor())?);
    let access = match device.access().as_deref() {
        None | Some("") => ALL,
        Some(access) => access_bits(access),
    };
    let allow = device.allow();
    // The kernel reads only the `a` of an `a` rule and would widen "a 10:* r" to everything. We honour the rest.
    if kinds.len() == 2 && major.is_none() && minor.is_none() && access == ALL {
        rules.push(Rule::Everything { allow });
        return Ok(());
    }
    if access == 0 {
        return Ok(());
    }
    rules.extend(kinds.iter().map(|&kind| Rule::Some { allow, which: Which { kind, major, minor }, access }));
    Ok(())
}

/// Other letters mean nothing, as in runc; `bundle` has warned of them.
fn access_bits(access: &str) -> u8 {
    access.chars().fold(0, |bits, letter| match letter {
        'r' => bits | READ,
        'w' => bits | WRITE,
        'm' => bits | MKNOD,
        _ => bits,
    })
}

/// What v1's kernel keeps: one default, and exceptions that all say the opposite.
#[derive(Debug, Default)]
pub struct List {
    allow_by_default: bool,
    /// In the order in which they were first named, which devices.list keeps.
    exceptions: Vec<(Which, u8)>,
}

impl List {
    pub fn of(rules: &[Rule]) -> Result<List> {
        let mut list = List::default();
        for rule in rules {
            match *rule {
                Rule::Everything { allow } => {
                    list = List { allow_by_default: allow, exceptions: Vec::new() };
                }
                Rule::Some { allow, which, access } if allow != list.allow_by_default => {
                    list.add(which, access);
                }
                Rule::Some { which, access, .. } => list.take_back(which, access)?,
            }
        }
        Ok(list)
    }

    fn find(&self, which: Which) -> Option<usize> {
        self.exceptions.iter().position(|(have, _)| *have == which)
    }

    fn add(&mut self, which: Which, access: u8) {
        match self.find(which) {
            Some(at) => self.exceptions[at].1 |= access,
            None => self.exceptions.push((which, access)),
        }
    }

    /// The kernel ignores in silence a rule that would punch a hole into a wildcard exception. runc refuses it,
    /// so that nobody believes in a hole that is not there.
    fn take_back(&mut self, which: Which, access: u8) -> Result<()> {
        let wider = [
            Which { major: None, ..which },
            Which { minor: None, ..which },
            Which { major: None, minor: None, ..which },
        ];
        for wide in wider {
            let overlap = self.find(wide).is_some_and(|at| self.exceptions[at].1 & access != 0);
            if wide != which && overlap {
                bail!(
                    "linux.resources.devices: requested rule [{} {}] not supported by devices cgroupv1 (cannot punch hole in existing wildcard rule [{wide}])",
                    which,
                    letters(access)
                );
            }
        }
        if let Some(at) = self.find(which) {
            self.exceptions[at].1 &= !access;
            if self.exceptions[at].1 == 0 {
                self.exceptions.remove(at);
            }
        }
        Ok(())
    }

    /// The same in devices.list, which shows no exceptions in allow-by-default mode.
    fn shows_as(&self, other: &List) -> bool {
        let sorted = |list: &List| {
            let mut exceptions = list.exceptions.clone();
            exceptions.sort_unstable();
            exceptions
        };
        self.allow_by_default == other.allow_by_default
            && (self.allow_by_default || sorted(self) == sorted(other))
    }

    /// The file of the default for everything, whose writing also forgets exceptions that devices.list does not
    /// show; then the file and the lines of the exceptions.
    fn lines(&self) -> (&'static str, &'static str, Vec<String>) {
        let (default, other) = if self.allow_by_default {
            ("devices.allow", "devices.deny")
        } else {
            ("devices.deny", "devices.allow")
        };
        let exception = |(which, access): &(Which, u8)| format!("{which} {}", letters(*access));
        (default, other, self.exceptions.iter().map(exception).collect())
    }

    /// devices.list: `a *:* rwm` alone in allow-by-default mode (its exceptions are not shown).
    fn parse(text: &str) -> Option<List> {
        let mut list = List::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
            if kind == "a" {
                return Some(List { allow_by_default: true, exceptions: Vec::new() });
            }
            let number = |word: &str| if word == "*" { Some(None) } else { word.parse().ok().map(Some) };
            let (major, minor) = numbers.split_once(':')?;
            let which = Which { kind: kind.chars().next()?, major: number(major)?, minor: number(minor)? };
            list.add(which, access_bits(access));
        }
        Some(list)
    }
}

/// Puts the list in force in a cgroup without processes and reads it back, as runc does: this is a security
/// boundary.
pub fn apply_v1(dir: &Path, list: &List) -> Result<()> {
    let (default, other, exceptions) = list.lines();
    write_lines(&dir.join(default), &["a *:* rwm".to_owned()])?;
    write_lines(&dir.join(other), &exceptions)?;
    let path = dir.join("devices.list");
    let text = kernel_file::read_value(&path).with_context(|| format!("read {}", path.display()))?;
    if !List::parse(&text).is_some_and(|now| now.shows_as(list)) {
        bail!("linux.resources.devices: resulting devices cgroup doesn't match target: {}", path.display());
    }
    Ok(())
}

/// One write(2) for each line, as the kernel takes them.
fn write_lines(path: &Path, lines: &[String]) -> Result<()> {
    let shown = path.display();
    let mut file = File::options().write(true).open(path).with_context(|| format!("open {shown}"))?;
    for line in lines {
        file.write_all(line.as_bytes())
            .with_context(|| format!("linux.resources.devices: write {line:?} to {shown}"))?;
    }
    Ok(())
}

fn letters(access: u8) -> String {
    let letter = |&(bit, _): &(u8, char)| access & bit != 0;
    [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')].iter().filter(|pair| letter(pair)).map(|pair| pair.1).collect()
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        write!(f, "{} {}:{}", self.kind, number(self.major), number(self.minor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(devices: &str) -> Result<List> {
        let resources: LinuxResources = serde_json::from_str(&format!(r#"{{"devices":{devices}}}"#)).unwrap();
        List::of(&rules(Some(&resources))?)
    }

    fn lines(devices: &str) -> Vec<String> {
        let (default, other, exceptions) = list(devices).unwrap().lines();
        let exceptions = exceptions.iter().map(|line| format!("{other} {line}"));
        std::iter::once(format!("{default} a *:* rwm")).chain(exceptions).collect()
    }

    #[test]
    fn without_rules_only_the_default_devices_are_allowed() {
        let defaults = List::of(&rules(None).unwrap()).unwrap();
        let text = "b *:* m\nc *:* m\nc 1:3 rwm\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\nc 5:0 rwm\n\
                    c 5:2 rwm\nc 10:200 rwm\nc 136:* rwm\n";
        assert!(List::parse(text).unwrap().shows_as(&defaults));
        assert_eq!(lines("[]")[0], "devices.deny a *:* rwm");
        assert_eq!(lines(r#"[{"allow":false,"access":"rwm"}]"#), lines("[]"));
    }

    #[test]
    fn a_privileged_container_may_everything() {
        assert_eq!(lines(r#"[{"allow":true,"access":"rwm"}]"#), ["devices.allow a *:* rwm"]);
    }

    #[test]
    fn exceptions_add_up_and_are_taken_back() {
        let added = lines(
            r#"[{"allow":false},{"allow":true,"type":"b","major":8,"minor":0,"access":"rw"},
            {"allow":false,"type":"b","major":8,"minor":0,"access":"w"}]"#,
        );
        assert!(added.contains(&"devices.allow b 8:0 r".to_owned()), "{added:?}");
        let denied = lines(r#"[{"allow":true},{"allow":false,"type":"b","major":8,"minor":0}]"#);
        assert_eq!(denied, ["devices.allow a *:* rwm", "devices.deny b 8:0 rwm"]);
    }

    #[test]
    fn the_spec_s_rules_come_first_and_in_their_order() {
        let lines = lines(
            r#"[{"allow":false},{"allow":true,"type":"c","major":10,"minor":229,"access":"rwm"},
            {"allow":true,"type":"b","major":8,"minor":20,"access":"r"},
            {"allow":true,"type":"b","major":8,"minor":20,"access":"w"}]"#,
        );
        assert_eq!(lines[1..3], ["devices.allow c 10:229 rwm", "devices.allow b 8:20 rw"]);
    }

    #[test]
    fn an_a_rule_with_numbers_is_not_widened() {
        let lines = lines(r#"[{"allow":true,"type":"a","major":7,"access":"r"}]"#);
        assert_eq!(lines[0], "devices.deny a *:* rwm");
        assert!(lines.contains(&"devices.allow b 7:* r".to_owned()), "{lines:?}");
        assert!(lines.contains(&"devices.allow c 7:* r".to_owned()), "{lines:?}");
    }

    #[test]
    fn what_v1_cannot_do_is_refused() {
        let hole = r#"[{"allow":true,"type":"c","access":"rwm"},{"allow":false,"type":"c","major":1,"minor":11,"access":"r"}]"#;
        assert!(list(hole).unwrap_err().to_string().contains("cannot punch hole"));
        assert_eq!(lines(r#"[{"allow":true,"type":"c","access":"x"}]"#), lines("[]"));
        assert!(list(r#"[{"allow":true,"type":"c","major":-5}]"#).is_err());
    }
}
