//! `runw completion`: a script that teaches a shell runw's verbs and flags.

use anyhow::{Context, Result};
use clap_complete::Shell;

use super::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// bash, zsh or fish
    #[arg(value_name = "SHELL", value_parser = shell)]
    pub shell: Shell,
}

pub fn run(args: Args, _globals: &Globals) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::whole_command(), "runw", &mut script);
    super::print(&String::from_utf8(script)?)?;
    Ok(0)
}

fn shell(text: &str) -> Result<Shell> {
    let known = [("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)];
    let found = known.into_iter().find(|(name, _)| *name == text);
    found.map(|(_, shell)| shell).context("expected bash, zsh or fish")
}
