//! `runw pause`: stops every process of a container by its freezer, which alone remembers it.

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
    // runc's rule and words; a paused container counts as not running too.
    if !matches!(status, Status::Running | Status::Created) {
        bail!("container not running");
    }
    common::set_frozen(&entry, true)?;
    Ok(0)
}
