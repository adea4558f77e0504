//! `runw state`: what is known of one container, in runc's JSON.

use anyhow::Result;

use super::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    let entry = globals.root.load(&args.id)?;
    let mut document = entry.record.document(super::common::status(&entry)?);
    // runc tells the owner in `list` alone.
    document.owner.clear();
    // No newline at the end, as runc.
    super::print(&super::go_json(&serde_json::to_string_pretty(&document)?))?;
    Ok(0)
}
