//! `restore`: the container's surroundings are made as `create` makes them, and CRIU, started in them, brings its
//! processes back as children of ours.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;
use rust_criu::rust_criu_protobuf::rpc::{
    Cgroup_root, Criu_notify, Criu_opts, Criu_req_type, Inherit_fd, Join_namespace,
};

use super::swrk::{Launch, Swrk};
use super::{DESCRIPTORS, Places, Wishes, external_key, make_directory, mounts};
use crate::linux::cgroup::Cgroup;
use crate::linux::create::{self, Journal};
use crate::linux::hooks::{self, Place};
use crate::linux::lifecycle::Handle;
use crate::linux::namespaces::Plan;
use crate::linux::rdt::{self, Rdt};
use crate::linux::terminal::Receiver;
use crate::linux::{lifecycle, netdev, rootfs, spawn};
use crate::seam::{Process, Status};

/// A container to be made from images; everything in it has been validated.
pub struct Restore<'a> {
    pub id: &'a str,
    pub wishes: &'a Wishes,
    pub places: Places<'a>,
    pub spec: &'a Spec,
    pub bundle: &'a Path,
    /// Canonical.
    pub rootfs: &'a Path,
    /// An empty directory for the root to be mounted on: CRIU wants a mount point whose parent is not covered.
    pub staging: &'a Path,
    pub cgroup: &'a Cgroup,
    pub lsm_profile: Option<&'a str>,
    pub lsm_mount_context: Option<&'a str>,
    pub hook_output: &'a hooks::Capture,
    pub hook_state: &'a dyn Fn(Status, Option<i32>) -> Vec<u8>,
}

/// Restores the container. `console` is where a terminal's master goes. On failure nothing of it is left but what
/// `journal` wrote.
pub fn restore(
    restore: &Restore<'_>,
    console: Option<Receiver>,
    journal: &mut dyn Journal,
) -> Result<Handle> {
    let linux = restore.spec.linux().as_ref();
    let rdt = rdt::find(restore.id, linux)?;
    let mut options = Criu_opts::new();
    restore.wishes.fill(&mut options)?;
    restore.places.work.map_or(Ok(()), make_directory)?;
    options.set_root(restore.staging.to_str().context("the state directory's path is not UTF-8")?.to_owned());
    options.set_evasive_devices(true);
    // So that init is our child, to be waited for or left to our own parent, as one that was created.
    options.set_rst_sibling(true);
    if let Some(profile) = restore.lsm_profile {
        options.set_lsm_profile(profile.to_owned());
    }
    if let Some(context) = restore.lsm_mount_context {
        options.set_lsm_mount_context(context.to_owned());
    }
    let plan = Plan::of(linux)?;
    join_namespaces(&plan, &mut options)?;
    inherit_streams(restore.places.images, &mut options)?;

    restore.cgroup.create(linux.and_then(|linux| linux.resources().as_ref()))?;
    let restored = in_cgroup(restore, &plan, rdt.as_ref(), options, console, journal);
    if restored.is_err() {
        // CRIU takes back what it made; what it could not, and what hooks left, ends here.
        let _ = restore.cgroup.signal_all(libc::SIGKILL);
        restore.cgroup.remove()?;
        rdt.map_or(Ok(()), |rdt| rdt.remove())?;
    }
    restored
}

fn in_cgroup(
    restore: &Restore<'_>,
    plan: &Plan,
    rdt: Option<&Rdt<'_>>,
    mut options: Criu_opts,
    console: Option<Receiver>,
    journal: &mut dyn Journal,
) -> Result<Handle> {
    // In a mount namespace of its own the staged root is seen by nobody else and goes with it.
    let own_mounts = Plan { new: libc::CLONE_NEWNS, ..Plan::default() };
    let launch = Launch {
        places: restore.places,
        log: "restore.log",
        plan: own_mounts,
        joiner: restore.cgroup.joiner_of_init()?,
        pass: plan.joined.iter().map(|joined| joined.fd.as_fd()).collect(),
        stdio: console.is_none(),
    };
    let stage = || rootfs::stage(restore.spec, restore.bundle, restore.rootfs, restore.staging);
    let swrk = Swrk::launch(&launch, stage)?;
    drop(launch);
    // Until there is an init, CRIU is whom a `delete --force` has to kill, and the cgroup has the rest.
    let criu = swrk.criu.process()?;
    journal.cloned(criu, None)?;
    let resources = restore.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    restore.cgroup.adopt(criu.pid, resources)?;
    // What CRIU clones is in its group.
    rdt.map_or(Ok(()), |rdt| rdt.create(criu.pid))?;
    external_mounts(restore, plan, &mut options)?;
    options.cg_root = cgroup_roots(criu.pid)?;

    let mut init = None;
    swrk.serve(Criu_req_type::RESTORE, options, &mut |notice, fd| {
        attend(restore, plan, notice, fd, console.as_ref(), journal, &mut init)
    })?;
    let process = init.context("CRIU restored no process")?;
    journal.prepare()?;
    journal.ready()?;
    lifecycle::open(process)?.context("the restored process has ended already")
}

fn attend(
    restore: &Restore<'_>,
    plan: &Plan,
    notice: &Criu_notify,
    fd: Option<OwnedFd>,
    console: Option<&Receiver>,
    journal: &mut dyn Journal,
    init: &mut Option<Process>,
) -> Result<()> {
    match notice.script() {
        "setup-namespaces" => {
            // The images have none: a new network namespace is empty.
            netdev::move_into(restore.spec, plan, notice.pid())?;
            host_hooks(restore, notice.pid())
        }
        "orphan-pts-master" => {
            let master = fd.context("CRIU sent no terminal")?;
            console.map_or(Ok(()), |console| console.give(master.as_fd()))
        }
        "post-restore" => {
            let pid = notice.pid();
            let process = Process { pid, start_time: spawn::start_time(pid)? };
            *init = Some(process);
            journal.cloned(process, None)
        }
        _ => Ok(()),
    }
}

/// prestart and createRuntime, when the namespaces are there and empty: as runc, so that the engine fills them.
fn host_hooks(restore: &Restore<'_>, pid: i32) -> Result<()> {
    let Some(all) = restore.spec.hooks() else { return Ok(()) };
    let place = Place { output: Some(restore.hook_output), ..Place::host(Some(restore.bundle)) };
    create::run_host_hooks(all, &|status| (restore.hook_state)(status, Some(pid)), place)
}

/// Network and pid namespaces of the engine's were left out of the images, and are given as descriptors.
fn join_namespaces(plan: &Plan, options: &mut Criu_opts) -> Result<()> {
    for joined in &plan.joined {
        if let Some((_, key)) = external_key(joined.kind) {
            let mut inherit = Inherit_fd::new();
            inherit.set_key(key.to_owned());
            inherit.set_fd(joined.fd.as_raw_fd());
            options.inherit_fd.push(inherit);
            continue;
        }
        let name = match joined.kind {
            libc::CLONE_NEWCGROUP => {
                bail!("CRIU cannot restore into a cgroup namespace that is there already")
            }
            libc::CLONE_NEWNS => "mnt",
            libc::CLONE_NEWIPC => "ipc",
            libc::CLONE_NEWUTS => "uts",
            libc::CLONE_NEWUSER => "user",
            _ => "time",
        };
        let mut join = Join_namespace::new();
        join.set_ns(name.to_owned());
        join.set_ns_file(joined.path.to_str().context("a namespace's path is not UTF-8")?.to_owned());
        options.join_ns.push(join);
    }
    Ok(())
}

/// The pipes that the dumped container had as its streams become those of this restore.
fn inherit_streams(images: &Path, options: &mut Criu_opts) -> Result<()> {
    let path = images.join(DESCRIPTORS);
    let context = || format!("cannot read {}", path.display());
    let bytes = std::fs::read(&path).with_context(context)?;
    let names: Vec<String> = serde_json::from_slice(&bytes).with_context(context)?;
    for (fd, name) in (0..).zip(names.into_iter().take(3)).filter(|(_, name)| name.contains("pipe:")) {
        let mut inherit = Inherit_fd::new();
        inherit.set_key(name);
        inherit.set_fd(fd);
        options.inherit_fd.push(inherit);
    }
    Ok(())
}

fn external_mounts(restore: &Restore<'_>, plan: &Plan, options: &mut Criu_opts) -> Result<()> {
    let found = mounts::externals(restore.spec, restore.bundle, restore.rootfs, plan, Some(restore.cgroup))?;
    for mount in found {
        options.ext_mnt.push(mounts::entry(&mount.place, &mount.source)?);
    }
    let null = Path::new("/dev/null");
    options.ext_mnt.push(mounts::entry(null, null)?);
    Ok(())
}

/// Where CRIU is now is where the container's processes belong, whatever their cgroup was called when they were
/// dumped (proc_pid_cgroup(5): `ID:CONTROLLERS:PATH`).
fn cgroup_roots(pid: i32) -> Result<Vec<Cgroup_root>> {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mut roots = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            bail!("{path}: cannot understand {line:?}")
        };
        for controller in controllers.split(',') {
            let mut root = Cgroup_root::new();
            root.set_ctrl(controller.to_owned());
            root.set_path(path.to_owned());
            roots.push(root);
        }
    }
    Ok(roots)
}
