//! The child's side of a wasm workload: `ready` loads, links and prepares everything that can fail while create
//! can still say so; `run` enters the guest. The only output of its own is a trap's backtrace, on the guest's
//! standard error, where a user of wasmtime looks for it.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use wasmtime::Engine;

use super::access::AccessLog;
use super::budget::Budget;
use super::grants::{Given, Grants, grants};
use super::host::{Host, Wanted};
use super::serve::Server;
use super::world::{self, Program, Role};
use super::{Kind, deadline, engine, load};
use crate::executor::Exit;
use crate::seam::{Granted, Network};

pub struct Guest {
    artifact: Option<OwnedFd>,
    kind: Kind,
    function: Option<String>,
    given: Given,
    exit: Exit,
    ready: Option<Ready>,
}

struct Ready {
    job: Job,
    keeps: Vec<RawFd>,
    network: Network,
    /// For a command; a server's requests have their own.
    time: Option<Duration>,
}

enum Job {
    Once(tokio::runtime::Runtime, Program),
    Serve(Box<Server>),
}

impl Guest {
    pub fn new(artifact: OwnedFd, kind: Kind, function: Option<String>, given: Given, exit: Exit) -> Guest {
        Guest { artifact: Some(artifact), kind, function, given, exit, ready: None }
    }

    pub fn artifact(&self) -> Option<RawFd> {
        self.artifact.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub fn keeps(&self) -> Vec<RawFd> {
        self.ready.as_ref().map(|ready| ready.keeps.clone()).unwrap_or_default()
    }

    pub fn ready(&mut self, granted: Granted) -> Result<()> {
        enough_address_space()?;
        let artifact = self.artifact.take().context("internal: a wasm workload is made ready once")?;
        let tree = granted.tree.context("internal: no guest tree was granted")?;
        let own_fds = granted.proc_fd.context("internal: no /proc/self/fd was granted")?;
        let ours = [artifact.as_raw_fd(), tree.as_raw_fd(), own_fds.as_raw_fd()];
        let before: BTreeSet<RawFd> =
            open_fds(&own_fds)?.into_iter().filter(|fd| !ours.contains(fd)).collect();

        let grants = grants(&self.given)?;
        // WASI 0.1 makes no sockets.
        let network =
            if self.kind == Kind::Core { Network::default() } else { grants.network.of_the_kernel() };
        let (time, fuel) = (grants.limits.time, grants.limits.fuel.is_some());
        let job = match self.kind {
            Kind::Core => {
                let engine = engine::engine(self.kind.profile(), fuel)?;
                let module = load::module(&engine, artifact).context("load compiled code")?;
                let function = self.function.take();
                once(inside(&tree, || world::core(&engine, &module, &grants, function))?)?
            }
            Kind::Component | Kind::Concurrent => self.component(&artifact, grants, &tree, &own_fds)?,
        };
        drop(tree);
        let mut keeps = open_fds(&own_fds)?;
        keeps.retain(|fd| *fd != own_fds.as_raw_fd() && !before.contains(fd));
        self.ready = Some(Ready { job, keeps, network, time });
        Ok(())
    }

    fn component(
        &mut self,
        artifact: &OwnedFd,
        grants: Grants,
        tree: &OwnedFd,
        own_fds: &OwnedFd,
    ) -> Result<Job> {
        let load = |engine: &Engine| {
            inside(own_fds, || load::component(engine, artifact)).context("load compiled code")
        };
        let fuel = grants.limits.fuel.is_some();
        let mut engine = engine::engine(self.kind.profile(), fuel)?;
        let mut component = load(&engine)?;
        let mut instances = 1;
        if self.function.is_none() && world::serves(&engine, &component) {
            // What an instance takes is known only now; a pool is made to measure.
            if let Some(required) = component.resources_required() {
                instances = at_once(&grants, required.max_initial_memory_size);
                engine = engine::pooled(instances, &required, fuel)?;
                component = load(&engine)?;
            }
        }
        let wanted = Wanted::of(&engine, &component);
        let host = Host::new(grants, self.kind.profile(), wanted, tree)?;
        let function = self.function.take();
        match inside(tree, || world::component(&engine, &component, &host, function))? {
            Role::Program(program) => once(program),
            Role::Server(pre) => {
                // For good: the first request opens the guest's files, by path.
                rustix::process::fchdir(tree).context("enter the guest's root directory")?;
                let log = host.grants.serve.access_log.as_ref();
                let log = log.map(|to| AccessLog::open(to, tree)).transpose()?;
                Ok(Job::Serve(Box::new(Server::new(engine, pre, host, instances, log)?)))
            }
        }
    }

    pub fn network(&self) -> Network {
        self.ready.as_ref().map(|ready| ready.network.clone()).unwrap_or_default()
    }

    /// What signals that ask for an end are written to; `None`: they end the process.
    pub fn stop(&self) -> Option<RawFd> {
        match &self.ready.as_ref()?.job {
            Job::Serve(server) => Some(server.stop()),
            Job::Once(..) => None,
        }
    }

    pub fn run(&mut self) -> Result<i32> {
        let Ready { job, time, .. } = self.ready.take().context("internal: run before ready")?;
        let (runtime, program) = match job {
            Job::Once(runtime, program) => (runtime, program),
            Job::Serve(server) => {
                let status = server.run();
                let _ = std::io::stdout().flush();
                return status;
            }
        };
        if let Some(limit) = time {
            deadline::start(limit, self.exit).context("start a thread")?;
        }
        let ended = runtime.block_on(program.run());
        // std's stdout holds back an unfinished line, and nothing runs at exit: we leave by _exit.
        let _ = std::io::stdout().flush();
        let (status, said) = world::status(ended);
        if let Some(text) = said {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
        // A stdin reader may sit in read(2) on a thread of the runtime's; waiting for it would hang the exit.
        runtime.shutdown_background();
        Ok(status)
    }
}

fn once(program: Program) -> Result<Job> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    Ok(Job::Once(runtime, program))
}

/// As many as are asked for and as their first memory leaves room for: more would only fail to start.
fn at_once(grants: &Grants, pages: Option<u64>) -> u32 {
    const PAGE: usize = 64 << 10;
    let each =
        usize::try_from(pages.unwrap_or_default()).unwrap_or(usize::MAX).saturating_mul(PAGE).max(PAGE);
    let fit = Budget::new(grants).limit() / each;
    u32::try_from(fit.min(grants.serve.requests).max(1)).unwrap_or(u32::MAX)
}

/// wasmtime reserves 4 GiB and guard pages for each memory, without using them: that is how bounds checks are free.
/// Under a tighter RLIMIT_AS the guest would fail at start; say so at create.
fn enough_address_space() -> Result<()> {
    const NEEDED: u64 = 5 << 30;
    match rustix::process::getrlimit(rustix::process::Resource::As).current {
        Some(limit) if limit < NEEDED => bail!(
            "process.rlimits: RLIMIT_AS of {limit} bytes is too small for WebAssembly, which reserves 4 GiB of address \
             space per memory; limit memory with linux.resources.memory instead"
        ),
        _ => Ok(()),
    }
}

/// Runs `job` with `dir` as the current directory, since wasmtime takes paths where we hold descriptors. The way
/// back is never skipped: both directories would lead out of the container.
fn inside<T>(dir: &OwnedFd, job: impl FnOnce() -> Result<T>) -> Result<T> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Without search permission in the cwd there is no way back to it; "/" then.
    let back = rustix::fs::open(".", flags, Mode::empty()).ok();
    rustix::process::fchdir(dir).context("enter the guest's root directory")?;
    let result = job();
    if back.is_none_or(|back| rustix::process::fchdir(&back).is_err()) {
        rustix::process::chdir("/").context("leave the guest's root directory")?;
    }
    result
}

/// All descriptors open now, except the one that lists them.
fn open_fds(own_fds: &OwnedFd) -> Result<Vec<RawFd>> {
    let dir = rustix::fs::Dir::read_from(own_fds).context("read /proc/self/fd")?;
    let own = dir.fd().context("read /proc/self/fd")?.as_raw_fd();
    let names: std::result::Result<Vec<_>, _> = dir.collect();
    let number = |entry: &rustix::fs::DirEntry| entry.file_name().to_str().ok()?.parse::<RawFd>().ok();
    let fds = names.context("read /proc/self/fd")?;
    Ok(fds.iter().filter_map(number).filter(|fd| *fd != own).collect())
}
