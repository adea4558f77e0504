//! `process.capabilities`: the five sets as the kernel takes them. Worked out by the parent, who can still say what is
//! left out; taken on by the child.

use std::str::FromStr;

use anyhow::{Context, Result};
use oci_spec::runtime::{Capabilities, LinuxCapabilities};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::sys;

/// The sets as bits. What cannot be had is in none of them, and is named by `warnings`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    bounding: u64,
    effective: u64,
    inheritable: u64,
    permitted: u64,
    ambient: u64,
    /// Asked for, and newer than this kernel.
    unavailable: u64,
    /// Asked for as ambient, and not to be raised.
    unraisable: u64,
}

impl Caps {
    /// No `capabilities` means none, as in runc.
    pub fn of(sets: Option<&LinuxCapabilities>) -> Result<Caps> {
        let Some(sets) = sets else { return Ok(Caps::default()) };
        // capabilities(7): with SECBIT_NO_CAP_AMBIENT_RAISE, of the caller's making, none can be raised.
        const NO_CAP_AMBIENT_RAISE: i32 = 1 << 6;
        let any = sets.ambient().as_ref().is_some_and(|ambient| !ambient.is_empty());
        let securebits =
            if any { sys::prctl(libc::PR_GET_SECUREBITS, 0).context("read the securebits")? } else { 0 };
        let may_raise = securebits & NO_CAP_AMBIENT_RAISE == 0;
        Caps::within(sets, supported(), may_raise)
    }

    fn within(sets: &LinuxCapabilities, known: u64, may_raise: bool) -> Result<Caps> {
        let mut unavailable = 0;
        let mut take = |set: &Option<Capabilities>| -> Result<u64> {
            let asked = bits(set.as_ref())?;
            unavailable |= asked & !known;
            Ok(asked & known)
        };
        let mut caps = Caps {
            bounding: take(sets.bounding())?,
            effective: take(sets.effective())?,
            inheritable: take(sets.inheritable())?,
            permitted: take(sets.permitted())?,
            ambient: take(sets.ambient())?,
            ..Caps::default()
        };
        // capabilities(7): only what is permitted and inheritable can be ambient. runc goes on without, too.
        let raisable = if may_raise { caps.permitted & caps.inheritable } else { 0 };
        caps.unavailable = unavailable;
        caps.unraisable = caps.ambient & !raisable;
        caps.ambient &= raisable;
        Ok(caps)
    }

    /// What of them WASI has a use for: the files of others, and low ports. It has no call that changes an owner, and
    /// none for what the rest permit, so those could only serve whoever breaks out of the engine.
    pub fn of_a_guest(&self) -> Caps {
        use caps::Capability::{
            CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_NET_BIND_SERVICE,
        };
        let useful = [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_NET_BIND_SERVICE];
        let useful = useful.iter().fold(0, |bits, cap| bits | cap.bitmask());
        Caps {
            bounding: self.bounding & useful,
            effective: self.effective & useful,
            inheritable: self.inheritable & useful,
            permitted: self.permitted & useful,
            ambient: self.ambient & useful,
            ..*self
        }
    }

    /// What of the configuration the process will not have.
    pub fn warnings(&self) -> Vec<String> {
        if self.unavailable | self.unraisable == 0 {
            return Vec::new();
        }
        let names = |bits: u64| {
            let set = caps::all().into_iter().filter(|cap| bits & cap.bitmask() != 0);
            let mut names: Vec<String> = set.map(|cap| cap.to_string()).collect();
            names.sort_unstable();
            names
        };
        let unavailable = names(self.unavailable);
        let unavailable = (!unavailable.is_empty()).then(|| {
            format!("process.capabilities: ignoring {}: this kernel does not have it", unavailable.join(", "))
        });
        // runc's words (capabilities.bats).
        let unraisable = names(self.unraisable).into_iter().map(|name| {
            let why = "only what is permitted and inheritable can be ambient";
            format!("process.capabilities.ambient: can't raise ambient capability {name}: {why}")
        });
        unavailable.into_iter().chain(unraisable).collect()
    }

    /// While CAP_SETPCAP is there.
    pub fn drop_bounding(&self) -> Result<()> {
        for cap in 0..64u64 {
            if self.bounding & (1 << cap) != 0 {
                continue;
            }
            match sys::prctl(libc::PR_CAPBSET_DROP, cap) {
                // The first number the kernel does not know ends the list.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                other => other.context("drop a capability from the bounding set")?,
            };
        }
        Ok(())
    }

    pub fn apply(&self) -> Result<()> {
        let set = |bits: u64| CapabilitySet::from_bits_retain(bits);
        let sets = CapabilitySets {
            effective: set(self.effective),
            permitted: set(self.permitted),
            inheritable: set(self.inheritable),
        };
        set_capabilities(None, sets).context("process.capabilities: capset")?;
        rustix::thread::clear_ambient_capability_set().context("process.capabilities.ambient: clear")?;
        for cap in (0..64u64).filter(|cap| self.ambient & (1 << cap) != 0) {
            sys::ambient_raise(cap).context("process.capabilities.ambient: raise")?;
        }
        Ok(())
    }
}

/// What this kernel has of the capabilities with a name. Their numbers have no gaps, so the last tells (`caps` asks
/// for each: 41 calls).
fn supported() -> u64 {
    let named = caps::all().iter().fold(0, |bits, cap| bits | cap.bitmask());
    let newest = (0..64).rev().filter(|cap| named & (1 << cap) != 0);
    let last = newest.into_iter().find(|&cap| sys::prctl(libc::PR_CAPBSET_READ, cap).is_ok());
    last.map_or(0, |last| named & (u64::MAX >> (63 - last)))
}

fn bits(set: Option<&Capabilities>) -> Result<u64> {
    set.into_iter().flatten().try_fold(0, |bits, cap| {
        let name = format!("CAP_{cap}");
        let cap =
            caps::Capability::from_str(&name).with_context(|| format!("process.capabilities: {name}"))?;
        Ok(bits | cap.bitmask())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use oci_spec::runtime::Capability::{self, BlockSuspend, Chown, Kill};
    use oci_spec::runtime::LinuxCapabilitiesBuilder;

    use super::*;

    fn sets(
        bounding: &[Capability],
        permitted: &[Capability],
        inheritable: &[Capability],
        ambient: &[Capability],
    ) -> LinuxCapabilities {
        let set = |caps: &[Capability]| caps.iter().copied().collect::<HashSet<_>>();
        LinuxCapabilitiesBuilder::default()
            .bounding(set(bounding))
            .effective(set(permitted))
            .permitted(set(permitted))
            .inheritable(set(inheritable))
            .ambient(set(ambient))
            .build()
            .unwrap()
    }

    #[test]
    fn absent_capabilities_are_none() {
        assert_eq!(Caps::of(None).unwrap(), Caps::default());
    }

    #[test]
    fn each_set_is_its_own() {
        let caps = Caps::within(&sets(&[Chown], &[Kill], &[], &[]), u64::MAX, true).unwrap();
        assert_eq!((caps.bounding, caps.effective, caps.permitted), (1 << 0, 1 << 5, 1 << 5));
        assert_eq!((caps.inheritable, caps.ambient), (0, 0));
        assert_eq!(caps.warnings(), [""; 0]);
    }

    #[test]
    fn a_guest_has_what_wasi_has_a_use_for() {
        let all = [Chown, Kill, Capability::SysAdmin, Capability::DacOverride, Capability::NetBindService];
        let guest = Caps::within(&sets(&all, &all, &all, &all), u64::MAX, true).unwrap().of_a_guest();
        let useful = 1 << 1 | 1 << 10;
        assert_eq!((guest.bounding, guest.effective, guest.permitted), (useful, useful, useful));
        assert_eq!((guest.inheritable, guest.ambient), (useful, useful));
        assert_eq!(Caps::default().of_a_guest(), Caps::default());
    }

    #[test]
    fn what_the_kernel_lacks_is_left_out_and_said() {
        let caps = Caps::within(&sets(&[Chown, BlockSuspend], &[Chown], &[], &[]), 0xff, true).unwrap();
        assert_eq!(caps.bounding, 1);
        assert_eq!(
            caps.warnings(),
            ["process.capabilities: ignoring CAP_BLOCK_SUSPEND: this kernel does not have it"]
        );
    }

    #[test]
    fn what_cannot_be_ambient_is_left_out_and_said() {
        let of = |may_raise| {
            Caps::within(&sets(&[], &[Chown, Kill], &[Chown], &[Chown, Kill]), u64::MAX, may_raise).unwrap()
        };
        assert_eq!(of(true).ambient, 1);
        let why = "only what is permitted and inheritable can be ambient";
        let says = format!("process.capabilities.ambient: can't raise ambient capability CAP_KILL: {why}");
        assert_eq!(of(true).warnings(), [says]);
        assert_eq!(of(false).ambient, 0);
    }
}
