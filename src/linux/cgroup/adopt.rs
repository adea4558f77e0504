//! A cgroup of systemd's: there is none without a process, so the container's first one, which waits meanwhile, is put
//! into a unit, and what systemd does not do is done after it, as in runc (`cgroups/systemd`).

use anyhow::Result;
use oci_spec::runtime::LinuxResources;

use super::{Base, Cgroup, Hierarchy, devices, make_dirs, move_to};

impl Cgroup {
    /// The unit around the process, every directory, the limits and the device filter. With other drivers `create`
    /// has done all of it. What a failure leaves is `remove`'s.
    pub fn adopt(&self, pid: i32, resources: Option<&LinuxResources>) -> Result<()> {
        let Some(unit) = &self.unit else { return Ok(()) };
        let orders = self.judge(resources)?;
        let unified = self.v1.is_empty();
        // A list with holes, which v1 cannot have either: no other than our own filter can hold it then.
        let list = devices::List::of(&orders.rules).ok();
        unit.start(pid, resources, list.as_ref(), unified)?;
        if unified {
            // Before controllers are handed down: a cgroup that does so can have no process of its own.
            self.v2
                .iter()
                .filter(|_| unit.has_sub())
                .try_for_each(|hierarchy| move_to(&hierarchy.dir, pid))?;
        }
        let (base, mut made) = (Base::open()?, Vec::new());
        for hierarchy in self.hierarchies() {
            make_dirs(&base, hierarchy, unified.then_some(&orders.writes), &mut made)?;
        }
        self.fill(&orders, &[])?;
        // systemd puts it into the hierarchies whose controllers it uses, and knows nothing of some.
        let theirs = |hierarchy: &&Hierarchy| unit.has_sub() || hierarchy.controllers != ["name=systemd"];
        self.hierarchies()
            .filter(|_| !unified)
            .filter(theirs)
            .try_for_each(|hierarchy| move_to(&hierarchy.dir, pid))
    }

    /// The limits of a live unit, which systemd would write again at a reload. Devices stay as they are.
    pub(super) fn update_unit(&self, resources: &LinuxResources) -> Result<()> {
        self.unit.as_ref().map_or(Ok(()), |unit| unit.set(resources, self.v1.is_empty()))
    }
}
