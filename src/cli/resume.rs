//! `runw resume`: wakes a container that was paused, by whomever.

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
    if common::status(&entry)? != Status::Paused {
        bail!("container not paused");
    }
    common::cgroup(&entry)?.context("the container has no cgroup")?.set_frozen(false)?;
    Ok(0)
}
