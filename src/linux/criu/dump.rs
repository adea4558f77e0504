//! `checkpoint`: what CRIU is told of a running container.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;
use rust_criu::rust_criu_protobuf::rpc::{
    Criu_features, Criu_notify, Criu_opts, Criu_page_server_info, Criu_req_type,
};
use rustix::fs::OFlags;

use super::swrk::{Launch, Swrk};
use super::{DESCRIPTORS, Places, Wishes, external_key, make_directory, mounts};
use crate::linux::cgroup::{Cgroup, Joiner};
use crate::linux::namespaces::{self, Plan};
use crate::linux::{rootfs, sys};
use crate::seam::Process;

/// A container to be written to images.
pub struct Dump<'a> {
    pub wishes: &'a Wishes,
    pub places: Places<'a>,
    pub init: Process,
    pub spec: &'a Spec,
    pub bundle: &'a Path,
    pub rootfs: &'a Path,
    pub cgroup: Option<&'a Cgroup>,
    /// `standard_streams` of its create.
    pub descriptors: &'a [String],
    pub leave_running: bool,
    /// Memory only; it goes on running.
    pub pre_dump: bool,
    /// Images of an earlier pre-dump, relative to `images`.
    pub parent: Option<&'a Path>,
    pub page_server: Option<(String, u16)>,
    /// Gets a zero byte once pages can be asked for.
    pub status_fd: Option<i32>,
}

pub fn dump(dump: &Dump<'_>) -> Result<()> {
    make_directory(dump.places.images)?;
    dump.places.work.map_or(Ok(()), make_directory)?;
    let status = dump.status_fd.map(status_pipe).transpose()?;
    let mut options = Criu_opts::new();
    dump.wishes.fill(&mut options)?;
    options.set_pid(dump.init.pid);
    options.set_root(dump.rootfs.to_str().context("the root's path is not UTF-8")?.to_owned());
    options.set_leave_running(dump.leave_running);
    if let Some((address, port)) = &dump.page_server {
        let mut server = Criu_page_server_info::new();
        server.set_address(address.clone());
        server.set_port((*port).into());
        options.ps = Some(server).into();
    }
    if let Some(parent) = parent(dump)? {
        options.set_parent_img(parent);
        options.set_track_mem(true);
    }
    // By the freezer all are stopped at once; without it CRIU would chase them by ptrace.
    if let Some(freezer) = dump.cgroup.and_then(Cgroup::freezer_path) {
        options.set_freeze_cgroup(freezer.to_str().context("the cgroup's path is not UTF-8")?.to_owned());
    }
    external_namespaces(dump.spec, &mut options)?;
    if !dump.pre_dump {
        external_mounts(dump, &mut options)?;
        let text = serde_json::to_vec(dump.descriptors)?;
        let path = dump.places.images.join(DESCRIPTORS);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }

    let launch = Launch {
        places: dump.places,
        log: "dump.log",
        plan: Plan::default(),
        joiner: Joiner::default(),
        pass: Vec::new(),
        stdio: false,
    };
    let swrk = Swrk::launch(&launch, || Ok(()))?;
    let mut features = Criu_features::new();
    if dump.pre_dump {
        features.set_mem_track(true);
    }
    if dump.wishes.lazy_pages {
        features.set_lazy_pages(true);
    }
    if dump.pre_dump || dump.wishes.lazy_pages {
        swrk.demand(features, &options)?;
    }
    let kind = if dump.pre_dump { Criu_req_type::PRE_DUMP } else { Criu_req_type::DUMP };
    swrk.serve(kind, options, &mut |notice, _| pages_ready(notice, status))
}

/// A path that is not there is an error now, as in runc; CRIU would only write everything anew.
fn parent(dump: &Dump<'_>) -> Result<Option<String>> {
    let Some(parent) = dump.parent else { return Ok(None) };
    if parent.is_absolute() {
        bail!("--parent-path must be relative");
    }
    let images = dump.places.images.join(parent);
    let context = || format!("invalid --parent-path: {}", images.display());
    if !std::fs::metadata(&images).with_context(context)?.is_dir() {
        bail!("{}: not a directory", context());
    }
    parent.to_str().map(|text| Some(text.to_owned())).context("--parent-path is not UTF-8")
}

fn external_namespaces(spec: &Spec, options: &mut Criu_opts) -> Result<()> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
    for namespace in namespaces.unwrap_or_default() {
        let key = external_key(namespaces::bit(namespace.typ()));
        if let (Some((name, key)), Some(path)) = (key, namespace.path()) {
            let stat = rustix::fs::stat(path).with_context(|| format!("namespace {}", path.display()))?;
            options.external.push(format!("{name}[{}]:{key}", stat.st_ino));
        }
    }
    Ok(())
}

fn external_mounts(dump: &Dump<'_>, options: &mut Criu_opts) -> Result<()> {
    let plan = Plan::of(dump.spec.linux().as_ref())?;
    for mount in mounts::externals(dump.spec, dump.bundle, dump.rootfs, &plan, dump.cgroup)? {
        options.ext_mnt.push(mounts::entry(&mount.place, &mount.place)?);
    }
    // Masked files are binds of the null device, masked directories a tmpfs of the container's own.
    let root = format!("/proc/{}/root", dump.init.pid);
    let masked = dump.spec.linux().as_ref().and_then(|linux| linux.masked_paths().as_deref());
    for path in masked.unwrap_or_default().iter().map(Path::new) {
        if let Some(place) = rootfs::file_place_in(Path::new(&root), path)? {
            options.ext_mnt.push(mounts::entry(&place, Path::new("/dev/null"))?);
        }
    }
    Ok(())
}

/// Any other kind of descriptor would be written to, and closed, for nothing.
fn status_pipe(fd: i32) -> Result<BorrowedFd<'static>> {
    let context = || format!("invalid --status-fd argument {fd}");
    if fd < 0 {
        bail!("{}: not a descriptor", context());
    }
    let pipe = sys::own_fd(fd);
    let flags = rustix::fs::fcntl_getfl(pipe).with_context(context)?;
    if !flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
        bail!("{}: not writable", context());
    }
    Ok(pipe)
}

fn pages_ready(notice: &Criu_notify, status: Option<BorrowedFd<'_>>) -> Result<()> {
    if let ("status-ready", Some(pipe)) = (notice.script(), status) {
        rustix::io::write(pipe.as_fd(), &[0]).context("write to --status-fd")?;
    }
    Ok(())
}
