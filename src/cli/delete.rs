//! `runw delete`: removes what a container holds.

use anyhow::{Result, bail};

use super::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kill the container with SIGKILL if it still runs; a container that does not exist is no error
    #[arg(short, long)]
    pub force: bool,
    /// CONTAINER-ID is a regular expression: delete every container it matches
    #[arg(short, long)]
    pub regex: bool,
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

pub fn run(_args: Args, _globals: &Globals) -> Result<u8> {
    bail!("not built yet")
}
