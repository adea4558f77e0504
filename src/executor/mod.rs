//! What runs in the container: a native program or a WebAssembly guest. `select` decides once, in the parent,
//! before any side effect; the value it returns is driven by `linux` through `seam::Workload`.
//! Must not make a namespace or a mount, and must not start a thread or an engine in the parent.

mod look;
mod native;
mod select;
mod wasm;

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Mount, Process};

use crate::seam::{Confine, Granted, Needs, Network, Prepared, Workload};
use look::{Found, Place, View};
use rustix::fs::{Mode, OFlags};
use select::{Verdict, Wish};
pub use wasm::{
    Contents as CacheContents, Entry as CacheEntry, Prune, contents as cache_contents, prune as prune_cache,
};

/// execve(2), which only `linux` may call; returns only when it failed.
pub type Execve = fn(&CStr, &[&CStr], &[&CStr]) -> io::Error;

/// Ends the process at once, which only `linux` may do.
pub type Exit = fn(i32) -> !;

/// Everything the choice depends on (design section 5).
pub struct Selection<'a, 'h> {
    pub process: &'a Process,
    pub annotations: &'a HashMap<String, String>,
    /// For create: the spec's mounts and masked paths, as the rootfs does not show them yet. Empty for exec.
    pub mounts: &'a [Mount],
    pub masked: &'a [String],
    /// True when hooks run before the container's process is looked up: they may put argv[0] there.
    pub hooks: bool,
    /// True when `root` is not what the container's processes see: a guest's own root is its files as they were when
    /// it started, and others may have mounted since.
    pub stale: bool,
    /// exec: the init's wishes (annotations that force wasm) do not bind `exec sh`.
    pub exec: bool,
    /// O_PATH of the bundle's rootfs, or of `/proc/PID/root` for exec.
    pub root: BorrowedFd<'a>,
    /// Relative mount sources are relative to this.
    pub bundle: &'a Path,
    /// Bytes: the container's memory limit.
    pub memory: Option<u64>,
    /// CPUs that its quota is worth, rounded up.
    pub cpus: Option<u64>,
    /// How runw itself was called (argv[0]), and its `--handler`.
    pub called_as: &'a str,
    pub handler: Option<&'a str>,
    pub host: Host<'h>,
}

/// What the host lends to an executor.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    pub confine: &'a Confine<'a>,
    pub execve: Execve,
    pub exit: Exit,
    pub rootless: bool,
    /// The operator's settings file; `None` is the usual one. Tests pass their own.
    pub settings: Option<&'a Path>,
}

/// Whether a file that begins so is a core module or a component of a version we know.
pub fn is_wasm(head: &[u8; 8]) -> bool {
    select::is_wasm(head)
}

/// Chooses the executor. Nothing is made yet, compiled code neither.
pub fn select<'h>(selection: &Selection<'_, 'h>) -> Result<Box<dyn Workload + 'h>> {
    let argv = selection.process.args().clone().unwrap_or_default();
    let Some(name) = argv.first().cloned() else { bail!("process.args is empty") };
    let env = selection.process.env().clone().unwrap_or_default();
    let wish = select::wish(selection)?;
    let place = Place {
        path: native::search_path(&env).map(str::to_owned),
        cwd: selection.process.cwd().clone(),
        name,
        function: None,
    };
    let mut chosen = Chosen {
        plan: Plan::Native(native::Native::new(argv.clone(), env.clone(), selection.host.execve)),
        argv,
        env,
        wish: wish.clone(),
        place,
        memory: selection.memory,
        cpus: selection.cpus,
        annotations: wasm::ours(selection.annotations),
        host: selection.host,
    };
    if wish == Wish::Native {
        return Ok(Box::new(chosen));
    }
    if selection.stale {
        chosen.plan = Plan::Undecided;
        return Ok(Box::new(chosen));
    }
    let view = View::of_bundle(selection.root, selection.bundle, selection.mounts, selection.masked);
    match look::find(&view, &chosen.place) {
        Found::Unknown => chosen.plan = Plan::Undecided,
        // A hook may still put the file there (createContainer hooks of GPU and CNI plug-ins do).
        Found::Nothing if selection.hooks => chosen.plan = Plan::Undecided,
        Found::Nothing => select::nothing(&wish, &chosen.place.name)?,
        Found::File { file, function } => {
            if let Some(form) = select::judge(&file, &wish, &chosen.place.name)? {
                chosen.plan = Plan::Judged { file, form, function };
            }
        }
    }
    Ok(Box::new(chosen))
}

/// Compiles the module at a path of the host's as `create` would. False: it was compiled already.
pub fn warm(path: &Path, fuel: bool, host: &Host) -> Result<bool> {
    let name = path.display().to_string();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("open {name:?}"))?;
    let wish = Wish::Wasm { because: "runw cache warm".to_owned(), text: true };
    let form = select::judge(&file, &wish, &name)?.with_context(|| format!("{name:?} is not WebAssembly"))?;
    let bytes = select::read_whole(file, &name)?;
    Ok(wasm::compiled(&bytes, form, &name, fuel, host)?.made)
}

enum Plan {
    Native(native::Native),
    Undecided,
    /// WebAssembly, to be compiled from the very descriptor that was judged.
    Judged {
        file: OwnedFd,
        form: Verdict,
        function: Option<String>,
    },
    Wasm(Box<wasm::Guest>),
}

struct Chosen<'a> {
    plan: Plan,
    argv: Vec<String>,
    env: Vec<String>,
    wish: Wish,
    place: Place,
    memory: Option<u64>,
    cpus: Option<u64>,
    annotations: Vec<(String, String)>,
    host: Host<'a>,
}

impl Chosen<'_> {
    fn compile(&self, file: OwnedFd, form: Verdict) -> Result<(OwnedFd, wasm::Kind)> {
        let bytes = select::read_whole(file, &self.place.name)?;
        let fuel = wasm::is_fuelled(&self.annotations);
        let code = wasm::compiled(&bytes, form, &self.place.name, fuel, &self.host)?;
        Ok((code.artifact, code.kind))
    }

    fn guest(&self, artifact: OwnedFd, kind: wasm::Kind, function: Option<String>) -> wasm::Guest {
        let given = wasm::Given {
            memory: self.memory,
            cpus: self.cpus,
            annotations: self.annotations.clone(),
            ..wasm::Given::new(&self.argv, &self.env, &self.place.cwd)
        };
        wasm::Guest::new(artifact, kind, function, given, self.host.exit)
    }

    fn native(&self) -> Plan {
        Plan::Native(native::Native::new(self.argv.clone(), self.env.clone(), self.host.execve))
    }
}

impl Workload for Chosen<'_> {
    fn prepare(&mut self) -> Result<()> {
        self.plan = match std::mem::replace(&mut self.plan, Plan::Undecided) {
            Plan::Judged { file, form, function } => {
                let (artifact, kind) = self.compile(file, form)?;
                Plan::Wasm(Box::new(self.guest(artifact, kind, function)))
            }
            plan => plan,
        };
        Ok(())
    }

    fn needs(&self) -> Needs {
        match &self.plan {
            Plan::Wasm(guest) => {
                Needs { guest_tree: true, carry: guest.artifact().into_iter().collect(), in_process: true }
            }
            Plan::Native(_) | Plan::Undecided | Plan::Judged { .. } => Needs::default(),
        }
    }

    fn undecided(&self) -> bool {
        matches!(self.plan, Plan::Undecided)
    }

    fn look(&mut self) -> Result<Option<OwnedFd>> {
        // After pivot_root "/" is the container's, so the same walk with no spec mounts sees what is there.
        let root = look::open_root(Path::new("/"))?;
        let view = View::of_container(&root);
        let found = look::find(&view, &self.place);
        if let Found::File { file, function } = found {
            if select::judge(&file, &self.wish, &self.place.name)?.is_some() {
                self.place.function = function;
                return Ok(Some(file));
            }
        } else {
            select::nothing(&self.wish, &self.place.name)?;
        }
        self.plan = self.native();
        Ok(None)
    }

    fn prepare_found(&mut self, file: OwnedFd) -> Result<Prepared> {
        // Judged again: the descriptor came out of the container.
        let form = select::judge(&file, &self.wish, &self.place.name)?
            .with_context(|| format!("{:?} is no longer WebAssembly", self.place.name))?;
        let (artifact, kind) = self.compile(file, form)?;
        Ok(Prepared { artifact, note: vec![kind.code()] })
    }

    fn adopt(&mut self, prepared: Prepared) {
        let kind = wasm::Kind::from_code(prepared.note.first().copied().unwrap_or_default());
        self.plan = Plan::Wasm(Box::new(self.guest(prepared.artifact, kind, self.place.function.clone())));
    }

    fn ready(&mut self, granted: Granted) -> Result<()> {
        match &mut self.plan {
            Plan::Native(native) => native.ready(),
            Plan::Wasm(guest) => guest.ready(granted),
            Plan::Undecided | Plan::Judged { .. } => bail!("internal: the executor was never settled"),
        }
    }

    fn env(&self) -> Option<&[String]> {
        match &self.plan {
            Plan::Native(native) => Some(&native.env),
            Plan::Wasm(_) | Plan::Undecided | Plan::Judged { .. } => None,
        }
    }

    fn keeps(&self) -> Vec<RawFd> {
        match &self.plan {
            Plan::Wasm(guest) => guest.keeps(),
            Plan::Native(_) | Plan::Undecided | Plan::Judged { .. } => Vec::new(),
        }
    }

    fn network(&self) -> Network {
        match &self.plan {
            Plan::Wasm(guest) => guest.network(),
            Plan::Native(_) | Plan::Undecided | Plan::Judged { .. } => Network::default(),
        }
    }

    fn stop(&self) -> Option<RawFd> {
        match &self.plan {
            Plan::Wasm(guest) => guest.stop(),
            Plan::Native(_) | Plan::Undecided | Plan::Judged { .. } => None,
        }
    }

    fn run(&mut self) -> Result<i32> {
        match &mut self.plan {
            Plan::Native(native) => native.run(),
            Plan::Wasm(guest) => guest.run(),
            Plan::Undecided | Plan::Judged { .. } => bail!("internal: the executor was never settled"),
        }
    }
}

#[cfg(test)]
pub mod testing {
    //! Shared by the room's tests.
    use std::ops::Deref;
    use std::path::{Path, PathBuf};

    /// A directory of one test's own, gone with the value.
    pub struct Scratch(PathBuf);

    pub fn scratch(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("runw-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    impl Deref for Scratch {
        type Target = Path;

        fn deref(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
