//! `runw run`: create, start and, unless detached, wait.

use anyhow::{Result, bail};

use super::{Globals, create::Common};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Detach from the container's process
    #[arg(short, long)]
    pub detach: bool,
    /// Do not delete the container after it exits
    #[arg(long)]
    pub keep: bool,
    /// Name of the new container, unique on this host
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

pub fn run(_args: Args, _globals: &Globals) -> Result<u8> {
    bail!("not built yet")
}
