//! `runw start`: lets a created container's process run.

use anyhow::{Result, bail};

use super::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

pub fn run(_args: Args, _globals: &Globals) -> Result<u8> {
    bail!("not built yet")
}
