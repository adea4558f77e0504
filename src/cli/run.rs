//! `runw run`: create, start and, unless detached, wait.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use oci_spec::runtime::Spec;

use super::create::{self, Common, Console, Made, Starter};
use super::start::Poststart;
use super::{Globals, common, start};
use crate::linux::foreground::Signals;
use crate::linux::lifecycle::Handle;
use crate::linux::notify::Proxy;
use crate::linux::{foreground, lifecycle, seal, terminal};
use crate::log;
use crate::state::Entry;

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
    let mut bundle = create::load(&args.common, &args.id, globals)?;
    let console = Console::decide(&bundle.spec, args.common.console_socket.as_deref(), args.detach)?;
    if let (Console::Own(..), Some(process)) = (&console, bundle.spec.process_mut()) {
        common::take_terminal_size(process);
    }
    // Before the clone: a signal that comes while we create is the container's, not lost.
    let signals = foreground::block_signals()?;
    if !args.detach && !args.common.no_subreaper {
        foreground::set_subreaper()?;
    }
    let (ours, theirs) = console.split();
    let made = match create::make(&args.common, &args.id, &bundle, theirs, Starter::Us, globals) {
        Ok(made) => made,
        Err(error) => {
            signals.restore()?;
            return Err(error);
        }
    };
    let Made { mut entry, init, notify } = made;
    let ended = match start::poststart(&mut entry, &bundle.spec, Poststart::Stops) {
        Ok(()) if args.detach => {
            entry.unlock();
            let told = notify.map_or(Ok(()), |notify| notify.serve(&init));
            return told.map(|()| 0);
        }
        Ok(()) => attend(&signals, &mut entry, &init, ours, notify),
        Err(error) => Err(error),
    };
    let status = finish(entry, &bundle.spec, &init, ended, args.keep)?;
    common::end(status)
}

/// Removes the container, unless it is to be kept, and gives on what it has come to, whatever its removal comes to.
pub(super) fn finish(entry: Entry, spec: &Spec, init: &Handle, ended: Result<i32>, keep: bool) -> Result<u8> {
    let running = ended.is_err();
    if (running || !keep)
        && let Err(error) = clear(entry, spec, init, running)
    {
        log::warn(&format!("{error:#}"));
    }
    u8::try_from(ended?).context("exit status")
}

/// Waits in the foreground. Others may exec, pause or kill the container meanwhile, so it is unlocked.
pub(super) fn attend(
    signals: &Signals,
    entry: &mut Entry,
    init: &Handle,
    master: Option<OwnedFd>,
    notify: Option<Proxy>,
) -> Result<i32> {
    let master = master.map(|socket| terminal::receive_master(&socket)).transpose()?;
    entry.unlock();
    foreground::wait(signals, init, master, notify)
}

fn clear(mut entry: Entry, spec: &Spec, init: &Handle, running: bool) -> Result<()> {
    if let Err(error) = entry.lock() {
        return gone_already(error);
    }
    if running {
        lifecycle::kill_all(Some(init.process), common::cgroup(&entry)?.as_ref())?;
    }
    common::destroy_made_of(entry, Some(spec))
}

/// Somebody else's `delete --force` has done our work, and the id may be another container's by now.
fn gone_already(error: anyhow::Error) -> Result<()> {
    if error.to_string() == crate::state::NOT_EXIST { Ok(()) } else { Err(error) }
}
