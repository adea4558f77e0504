//! `runw resume`: wakes a container that was paused, by whomever.

use anyhow::{Result, bail};

use super::{Globals, common};
use crate::seam::Status;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    let (entry, status) = common::hold(globals, &args.id)?;
    if status != Status::Paused {
        bail!("container not paused");
    }
    common::set_frozen(&entry, false)?;
    Ok(0)
}
