//! `runw create`: makes a container that waits for `start`.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Name of the new container, unique on this host
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// What `create` and `run` share.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// Path to the root of the bundle directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Read this file instead of the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// AF_UNIX socket that receives the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// AF_UNIX socket that receives a pidfd of the container's init process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Do not use pivot_root, for a rootfs on top of a ramdisk
    #[arg(long)]
    pub no_pivot: bool,
    /// Do not create a new session keyring; the container inherits the caller's
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N in total)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Disable the subreaper used to reap reparented processes (run without --detach)
    #[arg(long)]
    pub no_subreaper: bool,
}

pub fn run(_args: Args, _globals: &Globals) -> Result<u8> {
    bail!("not built yet")
}
