//! `runw run`: create, start and, unless detached, wait.

use std::os::fd::AsFd;

use anyhow::{Context, Result};

use super::create::{self, Common, Console, Made};
use super::{Globals, common, start};
use crate::linux::{foreground, lifecycle, seal, terminal};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Detach from the container's process
    #[arg(short, long)]
    pub detach: bool,
    /// Do not delete the container after it exits
    #[arg(long)]
    pub keep: bool,
    /// Name of the new container, unique on this host
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    seal::ensure()?;
    let bundle = create::load(&args.common)?;
    let console = Console::decide(&bundle.spec, args.common.console_socket.as_deref(), args.detach)?;
    // Before the clone: a signal that comes while we create is the container's, not lost.
    let signals = foreground::block_signals()?;
    if !args.detach && !args.common.no_subreaper {
        foreground::set_subreaper()?;
    }
    let (ours, theirs) = console.split();
    let made = match create::make(&args.common, &args.id, &bundle, theirs, globals) {
        Ok(made) => made,
        Err(error) => {
            signals.restore()?;
            return Err(error);
        }
    };
    let Made { mut entry, init } = made;
    if let Err(error) = start::release(&entry, &bundle.spec) {
        lifecycle::kill_all(Some(init.process), common::cgroup(&entry)?.as_ref())?;
        common::destroy(entry)?;
        return Err(error);
    }
    if args.detach {
        return Ok(0);
    }
    let master = ours.map(|socket| terminal::receive_master(&socket)).transpose()?;
    // Others may exec, pause or kill it while we wait.
    entry.unlock();
    let status = foreground::wait(&signals, init.process, init.pidfd.as_fd(), master)?;
    if !args.keep {
        entry.lock().and_then(|()| common::destroy(entry)).or_else(gone_already)?;
    }
    u8::try_from(status).context("exit status")
}

/// Somebody else's `delete --force` has done our work.
fn gone_already(error: anyhow::Error) -> Result<()> {
    if error.to_string() == crate::state::NOT_EXIST { Ok(()) } else { Err(error) }
}
