//! `runw restore`: makes a container from the images that `checkpoint` wrote.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::checkpoint::{self, Images};
use super::create::{self, Console, Made, Pages};
use super::{Globals, common, run};
use crate::bundle::Bundle;
use crate::linux::criu::{self, Restore, Wishes};
use crate::linux::foreground;
use crate::linux::lifecycle::Handle;
use crate::linux::notify::Proxy;
use crate::linux::terminal::Receiver;
use crate::log;
use crate::state::Entry;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub images: Images,
    /// Path to the root of the bundle directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// AF_UNIX socket that receives the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Detach from the container's process
    #[arg(short, long)]
    pub detach: bool,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Disable the subreaper used to reap reparented processes
    #[arg(long)]
    pub no_subreaper: bool,
    /// Without effect: CRIU enters the root in its own way
    #[arg(long)]
    pub no_pivot: bool,
    /// Restore TCP connections as closed
    #[arg(long)]
    pub tcp_close: bool,
    /// LSM profile of the processes, TYPE:NAME
    #[arg(long, value_name = "PROFILE")]
    pub lsm_profile: Option<String>,
    /// LSM context of the mounts
    #[arg(long, value_name = "CONTEXT")]
    pub lsm_mount_context: Option<String>,
    /// Name of the new container, unique on this host
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// runw itself does not enter the container, so it need not be sealed.
pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    checkpoint::warn_rootless(globals);
    let bundle = Bundle::load(&args.bundle, None)?;
    bundle.warnings.iter().for_each(|warning| log::warn(warning));
    let console = Console::decide(&bundle.spec, args.console_socket.as_deref(), args.detach)?;
    let signals = foreground::block_signals()?;
    if !args.detach && !args.no_subreaper {
        foreground::set_subreaper()?;
    }
    let (ours, theirs) = console.split();
    let made =
        create::reserved(&args.id, &bundle, globals, |entry| fill(entry, &args, &bundle, theirs, globals));
    let Made { mut entry, init, .. } = match made {
        Ok(made) => made,
        Err(error) => {
            signals.restore()?;
            return Err(error);
        }
    };
    if args.detach {
        return Ok(0);
    }
    let ended = run::attend(&signals, &mut entry, &init, ours, None);
    run::finish(entry, &bundle.spec, &init, ended, false)
}

fn fill(
    entry: &mut Entry,
    args: &Args,
    bundle: &Bundle,
    console: Option<Receiver>,
    globals: &Globals,
) -> Result<(Handle, Option<Proxy>)> {
    let cgroup = create::begin(entry, bundle, globals)?;
    let staging = entry.dir.join("criu-root");
    std::fs::create_dir(&staging).with_context(|| format!("cannot make {}", staging.display()))?;
    let record = entry.record.clone();
    let annotation = record.annotations.get("org.criu.config");
    let wishes = Wishes { tcp_close: args.tcp_close, ..args.images.wishes(annotation) };
    let hook_output = common::hook_output(&record)?;
    let restore = Restore {
        id: &record.id,
        wishes: &wishes,
        places: args.images.places(),
        spec: &bundle.spec,
        bundle: &bundle.dir,
        rootfs: &bundle.rootfs,
        staging: &staging,
        cgroup: &cgroup,
        lsm_profile: args.lsm_profile.as_deref(),
        lsm_mount_context: args.lsm_mount_context.as_deref(),
        hook_output: &hook_output,
        hook_state: &|status, pid| common::hook_state(&record, status, pid),
    };
    let mut pages =
        Pages { entry, bundle, done: None, pid_file: args.pid_file.as_deref(), pidfd_socket: None };
    let init = criu::restore(&restore, console, &mut pages)?;
    std::fs::remove_dir(&staging).with_context(|| format!("cannot remove {}", staging.display()))?;
    Ok((init, None))
}
