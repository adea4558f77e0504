//! Mounts of a container that are not its own: binds of the host's files. CRIU must leave them out of a dump and make
//! them again at a restore, so it is told of each by its place.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Mount, Spec};
use rust_criu::rust_criu_protobuf::rpc::Ext_mount_map;

use crate::linux::cgroup::Cgroup;
use crate::linux::namespaces::Plan;
use crate::linux::rootfs;

/// What a mount's name in the images stands for, with `from` for the place or the source.
pub fn entry(name: &Path, value: &Path) -> Result<Ext_mount_map> {
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
    };
    let mut map = Ext_mount_map::new();
    map.set_key(text(name)?);
    map.set_val(text(value)?);
    Ok(map)
}

/// A bind of a host's path.
pub struct External {
    /// In the container, links of its root resolved, as mountinfo shows it.
    pub place: PathBuf,
    pub source: PathBuf,
}

/// The binds of the specification, its device nodes (which are binds in a user namespace), and what of the host's
/// cgroups a cgroup mount shows, unless the container's own cgroup namespace makes that a mount of its own.
pub fn externals(
    spec: &Spec,
    bundle: &Path,
    root: &Path,
    plan: &Plan,
    cgroup: Option<&Cgroup>,
) -> Result<Vec<External>> {
    let mut found = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let context = || format!("mount {}", mount.destination().display());
        if rootfs::is_bind(mount) {
            // CRIU would bind it without the mapping, and so give the host's ids away.
            if rootfs::is_id_mapped(mount) {
                bail!("{}: an id-mapped mount cannot be checkpointed or restored", context());
            }
            let source = mount.source().as_deref().with_context(context)?;
            let place = rootfs::place_in(root, mount.destination()).with_context(context)?;
            found.push(External { place, source: bundle.join(source) });
        } else if is_cgroup(mount)
            && let Some(cgroup) = cgroup.filter(|_| !plan.has_cgroup())
        {
            let hierarchies = cgroup.v1_mounts()?;
            if let (true, Some(source)) = (hierarchies.is_empty(), cgroup.shown_v2()) {
                found.push(External { place: mount.destination().clone(), source });
            }
            for hierarchy in hierarchies {
                let place = mount.destination().join(&hierarchy.name);
                found.push(External { place, source: hierarchy.path });
            }
        }
    }
    let devices = rootfs::device_paths(spec).into_iter();
    found.extend(devices.map(|path| External { place: path.clone(), source: path }));
    Ok(found)
}

fn is_cgroup(mount: &Mount) -> bool {
    mount.typ().as_deref().is_some_and(|kind| kind.starts_with("cgroup"))
}
