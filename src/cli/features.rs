//! (being written)
use super::Globals;
use anyhow::{Result, bail};
#[derive(Debug, clap::Args)]
pub struct Args {}
pub fn run(_args: Args, _globals: &Globals) -> Result<u8> {
    bail!("not built yet")
}
