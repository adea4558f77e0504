//! `runw pause`: stops every process of a container by its freezer, which alone remembers it.

use anyhow::{Context, Result, bail};

use super::{Globals, common};
use crate::seam::Status;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    let mut entry = globals.root.load(&args.id)?;
    entry.lock()?;
    // runc's rule and words; a paused container counts as not running too.
    if !matches!(common::status(&entry)?, Status::Running | Status::Created) {
        bail!("container not running");
    }
    common::cgroup(&entry)?.context("the container has no cgroup")?.set_frozen(true)?;
    Ok(0)
}
