//! Checkpoint and restore. CRIU does the work, in a process of its own that is asked over a socket (`criu swrk`, as
//! runc and libcriu do it); here is what is asked of it. The order and the words are runc's (criu_linux.go), so that
//! its checkpoints are ours and ours are its. Messages are rust-criu's; its `Criu` is not used, since it hides the
//! process that has to be put into the container's cgroup, gives it no stdio and knows half of the options.

mod dump;
mod mounts;
mod restore;
mod swrk;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rust_criu::rust_criu_protobuf::rpc::{Criu_cg_mode, Criu_network_lock_method, Criu_opts};

pub use dump::{Dump, dump};
pub use restore::{Restore, restore};

/// The names of stdin, stdout and stderr when the container was made, kept with the images: whose pipes they were
/// tells CRIU which of the container's to replace by those of a restore (runc: descriptors.json).
const DESCRIPTORS: &str = "descriptors.json";

/// What both verbs pass on as it is.
#[derive(Debug, Default)]
pub struct Wishes {
    pub tcp_established: bool,
    pub tcp_skip_in_flight: bool,
    pub tcp_close: bool,
    pub ext_unix_sk: bool,
    pub shell_job: bool,
    pub file_locks: bool,
    pub link_remap: bool,
    pub auto_dedup: bool,
    pub lazy_pages: bool,
    pub cgroups: Option<Cgroups>,
    pub network_lock: Option<NetworkLock>,
    /// A file of CRIU's own options, which win over ours.
    pub config: Option<PathBuf>,
}

/// `--manage-cgroups-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    Soft,
    Full,
    Strict,
    Ignore,
}

/// `--network-lock`: how CRIU keeps packets away from connections that it takes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkLock {
    Iptables,
    Nftables,
    Skip,
}

impl Wishes {
    fn fill(&self, options: &mut Criu_opts) -> Result<()> {
        let path = |path: &Path| path.to_str().map(str::to_owned).context("the path is not UTF-8");
        options.set_log_level(4);
        options.set_tcp_established(self.tcp_established);
        options.set_tcp_skip_in_flight(self.tcp_skip_in_flight);
        options.set_tcp_close(self.tcp_close);
        options.set_ext_unix_sk(self.ext_unix_sk);
        options.set_shell_job(self.shell_job);
        options.set_file_locks(self.file_locks);
        options.set_link_remap(self.link_remap);
        options.set_auto_dedup(self.auto_dedup);
        options.set_lazy_pages(self.lazy_pages);
        options.set_orphan_pts_master(true);
        options.set_notify_scripts(true);
        // Network devices are the engine's, which puts them into an empty namespace.
        options.set_empty_ns(libc::CLONE_NEWNET as u32);
        options.set_manage_cgroups(true);
        if let Some(mode) = self.cgroups {
            options.set_manage_cgroups_mode(match mode {
                Cgroups::Soft => Criu_cg_mode::SOFT,
                Cgroups::Full => Criu_cg_mode::FULL,
                Cgroups::Strict => Criu_cg_mode::STRICT,
                Cgroups::Ignore => Criu_cg_mode::IGNORE,
            });
        }
        if let Some(method) = self.network_lock {
            options.set_network_lock(match method {
                NetworkLock::Iptables => Criu_network_lock_method::IPTABLES,
                NetworkLock::Nftables => Criu_network_lock_method::NFTABLES,
                NetworkLock::Skip => Criu_network_lock_method::SKIP,
            });
        }
        if let Some(config) = &self.config {
            options.set_config_file(path(config).context("CRIU's configuration file")?);
        }
        Ok(())
    }
}

/// Where CRIU reads and writes.
#[derive(Clone, Copy)]
pub struct Places<'a> {
    pub images: &'a Path,
    /// Logs and what CRIU makes for itself; without one that is among the images.
    pub work: Option<&'a Path>,
}

/// A container may be checkpointed more than once, so it may be there. Memory is in it: for its owner alone.
fn make_directory(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make {}", path.display()))
}

/// CRIU's key for a namespace of the engine's, which it must neither dump nor make: network and pid.
fn external_key(kind: i32) -> Option<(&'static str, &'static str)> {
    match kind {
        libc::CLONE_NEWNET => Some(("net", "extRootNetNS")),
        libc::CLONE_NEWPID => Some(("pid", "extRootPidNS")),
        _ => None,
    }
}

/// The names of our own standard streams, which a container without a terminal inherits.
pub fn standard_streams() -> Vec<String> {
    let name = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    (0..3).map(|fd| name(fd).to_string_lossy().into_owned()).collect()
}

impl std::str::FromStr for Cgroups {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Cgroups> {
        Ok(match text {
            "soft" => Cgroups::Soft,
            "full" => Cgroups::Full,
            "strict" => Cgroups::Strict,
            "ignore" => Cgroups::Ignore,
            _ => bail!("Invalid manage cgroups mode"),
        })
    }
}

impl std::str::FromStr for NetworkLock {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<NetworkLock> {
        Ok(match text {
            "iptables" => NetworkLock::Iptables,
            "nftables" => NetworkLock::Nftables,
            "skip" => NetworkLock::Skip,
            _ => bail!("unknown network lock method"),
        })
    }
}
