//! `runw start`: lets a created container's process run.

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;

use super::{Globals, common};
use crate::linux::hooks::{self, Place};
use crate::linux::lifecycle;
use crate::linux::notify::Proxy;
use crate::seam::Status;
use crate::state::{Entry, START_SOCKET};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    let (mut entry, status) = common::hold(globals, &args.id)?;
    match status {
        Status::Created => {
            let spec = common::saved_spec(&entry)?;
            let init = entry.record.init.context("no init process")?;
            let notify = Proxy::listen(&entry.dir)?;
            lifecycle::start(&entry.dir.join(START_SOCKET))?;
            poststart(&mut entry, &spec, Poststart::Warns)?;
            if let Some(notify) = notify {
                // As runc: a service has started when it says so. Others may have the container meanwhile.
                entry.unlock();
                match lifecycle::open(init)? {
                    Some(init) => notify.serve(&init)?,
                    None => notify.pass_on(init.pid).map(drop)?,
                }
            }
        }
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Running => bail!("cannot start an already running container"),
        status => bail!("cannot start a container in the {} state", status.as_str()),
    }
    Ok(0)
}

/// What a poststart hook does that fails.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Poststart {
    /// runtime-spec 1.2.1, runtime.md, step 9: "the runtime MUST log a warning, but the remaining hooks and lifecycle
    /// continue as if the hook had succeeded". crun does so.
    Warns,
    /// What runc does in `run`, which the specification does not know (hooks.bats: "runc run [hook fails]").
    Stops,
}

/// Runs the poststart hooks, without the lock: a hook that hangs must not keep anybody from deleting the container.
pub(super) fn poststart(entry: &mut Entry, spec: &Spec, failing: Poststart) -> Result<()> {
    let Some(poststart) = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref()) else {
        return Ok(());
    };
    let init = entry.record.init;
    let state = common::hook_state(&entry.record, Status::Running, init.map(|init| init.pid));
    entry.unlock();
    let ran = common::hook_output(&entry.record).and_then(|output| {
        let place = Place { output: Some(&output), ..Place::host(Some(&entry.record.bundle)) };
        if failing == Poststart::Stops {
            return hooks::run("poststart", Some(poststart), &state, place);
        }
        hooks::run_all("poststart", Some(poststart), &state, place);
        Ok(())
    });
    let Err(error) = ran else { return Ok(()) };
    // Unless it was deleted meanwhile: the id, and the cgroup, may be another container's by now.
    if entry.lock().is_ok() {
        let cgroup = common::cgroup(entry).ok().flatten();
        let _ = lifecycle::kill_all(init, cgroup.as_ref());
    }
    Err(error)
}
