//! `runw delete`: removes what a container holds.

use anyhow::{Result, bail};

use super::{Globals, common};
use crate::linux::lifecycle;
use crate::seam::Status;
use crate::state::NOT_EXIST;

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

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    for id in common::matching(globals, &args.id, args.regex)? {
        match one(&id, args.force, globals) {
            // Engines call it until it succeeds; gone is what they want.
            Err(error) if args.force && error.to_string() == NOT_EXIST => {}
            other => other?,
        }
    }
    Ok(0)
}

fn one(id: &str, force: bool, globals: &Globals) -> Result<()> {
    let mut entry = globals.root.load(id)?;
    if force
        && entry.busy()
        && let Some(init) = entry.record.init
    {
        // A `create` that hangs in a hook holds the lock until its init is gone.
        lifecycle::kill_all(Some(init), None)?;
    }
    entry.lock()?;
    match common::status(&entry)? {
        Status::Stopped => {}
        // Nothing of the workload has run yet, so runc deletes it without being forced.
        Status::Created => end(&entry)?,
        _ if force => end(&entry)?,
        status => bail!("cannot delete container {id} that is not stopped: {}", status.as_str()),
    }
    common::destroy(entry)
}

fn end(entry: &crate::state::Entry) -> Result<()> {
    lifecycle::kill_all(entry.record.init, common::cgroup(entry)?.as_ref())
}
