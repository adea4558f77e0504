//! `runw checkpoint`: writes a running container to images, from which `restore` brings it back.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{Globals, common};
use crate::linux::criu::{self, Cgroups, Dump, NetworkLock, Places, Wishes};
use crate::linux::lifecycle;
use crate::log;
use crate::seam::Status;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub images: Images,
    /// Directory of an earlier pre-dump, relative to --image-path
    #[arg(long, value_name = "DIR")]
    pub parent_path: Option<PathBuf>,
    /// Leave the container running
    #[arg(long)]
    pub leave_running: bool,
    /// Skip TCP connections that are not established yet
    #[arg(long)]
    pub tcp_skip_in_flight: bool,
    /// Handle files that have been unlinked
    #[arg(long)]
    pub link_remap: bool,
    /// Descriptor to which a zero byte is written once lazy pages can be asked for
    #[arg(long, value_name = "FD")]
    pub status_fd: Option<i32>,
    /// Page server to send memory to
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = page_server)]
    pub page_server: Option<(String, u16)>,
    /// Dump memory only, and leave the container running
    #[arg(long)]
    pub pre_dump: bool,
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// What `checkpoint` and `restore` share: where the images are, and what CRIU may do.
#[derive(Debug, clap::Args)]
pub struct Images {
    /// Directory of the images
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Directory of CRIU's logs and work files (default: that of the images)
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Allow open TCP connections
    #[arg(long)]
    pub tcp_established: bool,
    /// Allow external unix sockets
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Allow shell jobs
    #[arg(long)]
    pub shell_job: bool,
    /// Handle file locks
    #[arg(long)]
    pub file_locks: bool,
    /// Drop memory from the images once it is in later ones, or restored
    #[arg(long)]
    pub auto_dedup: bool,
    /// Bring memory back when it is used, by userfaultfd
    #[arg(long)]
    pub lazy_pages: bool,
    /// soft (the default), full, strict or ignore
    #[arg(long, value_name = "MODE")]
    pub manage_cgroups_mode: Option<Cgroups>,
    /// How to lock the network: iptables, nftables or skip
    #[arg(long, value_name = "METHOD")]
    pub network_lock: Option<NetworkLock>,
    /// Namespace to leave empty: network, which always is
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    pub empty_ns: Vec<String>,
}

impl Images {
    pub fn places(&self) -> Places<'_> {
        Places { images: &self.image_path, work: self.work_path.as_deref() }
    }

    /// `annotation`: the value of `org.criu.config`.
    pub fn wishes(&self, annotation: Option<&String>) -> Wishes {
        Wishes {
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            auto_dedup: self.auto_dedup,
            lazy_pages: self.lazy_pages,
            cgroups: self.manage_cgroups_mode,
            network_lock: self.network_lock,
            config: config(annotation),
            ..Wishes::default()
        }
    }
}

/// runc's annotation: a file of CRIU's options instead of the machine's, or with an empty value none at all.
fn config(annotation: Option<&String>) -> Option<PathBuf> {
    match annotation {
        Some(path) => Some(path.into()).filter(|_| !path.is_empty()),
        None => {
            ["/etc/criu/runw.conf", "/etc/criu/runc.conf"].map(PathBuf::from).into_iter().find(|p| p.exists())
        }
    }
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    warn_rootless(globals);
    let (entry, status) = common::hold(globals, &args.id)?;
    let (Some(init), Status::Running | Status::Paused) = (entry.record.init, status) else {
        bail!("Container cannot be checkpointed in {} state", status.as_str())
    };
    if entry.record.wasm {
        bail!("a WebAssembly container cannot be checkpointed: it runs inside of runw");
    }
    if entry.record.root_mount.is_some() {
        bail!("a container without a mount namespace cannot be checkpointed: its mounts are the host's");
    }
    let spec = common::saved_spec(&entry)?;
    let cgroup = common::cgroup(&entry)?;
    let wishes = Wishes {
        tcp_skip_in_flight: args.tcp_skip_in_flight,
        link_remap: args.link_remap,
        ..args.images.wishes(entry.record.annotations.get("org.criu.config"))
    };
    criu::dump(&Dump {
        wishes: &wishes,
        places: args.images.places(),
        init,
        spec: &spec,
        bundle: &entry.record.bundle,
        rootfs: &entry.record.rootfs,
        cgroup: cgroup.as_ref(),
        descriptors: &entry.record.descriptors,
        leave_running: args.leave_running,
        pre_dump: args.pre_dump,
        parent: args.parent_path.as_deref(),
        page_server: args.page_server,
        status_fd: args.status_fd,
    })?;
    if !args.leave_running && !args.pre_dump {
        lifecycle::kill_all(Some(init), cgroup.as_ref())?;
        common::destroy(entry)?;
    }
    Ok(0)
}

/// CRIU needs what only root has; what it can do without is its own to say.
pub fn warn_rootless(globals: &Globals) {
    if globals.rootless {
        log::warn("checkpoint and restore are untested with rootless containers");
    }
}

/// Go's net.SplitHostPort, with runc's words.
fn page_server(text: &str) -> Result<(String, u16)> {
    const USAGE: &str = "Use --page-server ADDRESS:PORT to specify page server";
    let (address, port) = text.rsplit_once(':').context(USAGE)?;
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(address) => address,
        None if address.contains(':') => bail!(USAGE),
        None => address,
    };
    if address.is_empty() || port.is_empty() {
        bail!(USAGE);
    }
    Ok((address.to_owned(), port.parse().context("Invalid port number")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_servers() {
        assert_eq!(page_server("1.2.3.4:27").unwrap(), ("1.2.3.4".to_owned(), 27));
        assert_eq!(page_server("[::1]:27").unwrap(), ("::1".to_owned(), 27));
        for (text, want) in [
            ("", "Use --page-server"),
            (":1", "Use --page-server"),
            ("a:", "Use --page-server"),
            ("::1:2", "Use --page-server"),
            ("a:x", "Invalid port number"),
            ("a:65536", "Invalid port number"),
        ] {
            assert!(page_server(text).unwrap_err().to_string().contains(want), "{text}");
        }
    }

    #[test]
    fn the_annotation_wins_and_an_empty_one_means_none() {
        assert_eq!(config(Some(&"/x".to_owned())), Some("/x".into()));
        assert_eq!(config(Some(&String::new())), None);
    }
}
