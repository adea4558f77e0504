//! What a guest may import and how it is entered: core modules with WASI 0.1, components of `wasi:cli/command`
//! 0.2. Whatever else it asks for is an error at create that names the import and the way out.

use anyhow::{Context, Result, anyhow, bail};
use wasmtime::component::{self, Component, ResourceTable};
use wasmtime::{Engine, InstancePre, Linker, Module, Store, StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::Grants;

/// 128 + SIGABRT, as `wasmtime run` and a native program that aborts.
const TRAPPED: i32 = 134;

/// A component's store.
pub struct State {
    wasi: WasiCtx,
    table: ResourceTable,
    limits: StoreLimits,
}

/// A core module's store.
pub struct CoreState {
    wasi: WasiP1Ctx,
    limits: StoreLimits,
}

/// The container's memory limit, so that memory.grow fails in the guest before the kernel kills the container.
fn limits(grants: &Grants) -> StoreLimits {
    let limit = grants.memory.and_then(|bytes| usize::try_from(bytes).ok());
    limit.map_or_else(StoreLimits::default, |bytes| StoreLimitsBuilder::new().memory_size(bytes).build())
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// A guest that only needs to be entered.
pub enum Program {
    Core { store: Store<CoreState>, pre: InstancePre<CoreState>, entry: Entry },
    Command { store: Store<State>, pre: CommandPre<State> },
    Function { store: Store<State>, pre: component::InstancePre<State>, name: String },
}

/// How a core module is entered.
pub enum Entry {
    Start,
    Function(String),
}

/// wasmtime's error as anyhow's, without the `anyhow` feature that would pull more of it in.
pub fn plain(error: wasmtime::Error) -> anyhow::Error {
    anyhow!("{error:#}")
}

/// WASI's side of the grants. The current directory is the guest tree: wasmtime opens preopens by path only.
pub fn context(grants: &Grants) -> Result<WasiCtxBuilder> {
    let mut wasi = WasiCtxBuilder::new();
    wasi.args(&grants.args).envs(&grants.env).inherit_stdio();
    // One guest per process: a blocking file operation may block it, and no thread pool grows in pid 1.
    wasi.allow_blocking_current_thread(true);
    wasi.initial_cwd(grants.cwd.to_string_lossy());
    // Read-only files are the kernel's mounts; a second set of rules here could only differ from them.
    wasi.preopened_dir(".", "/", FsPerms::ReadWrite)
        .map_err(plain)
        .context("preopen the guest's file tree")?;
    wasi.allow_tcp(grants.sockets).allow_udp(grants.sockets).allow_ip_name_lookup(grants.name_lookup);
    if grants.sockets {
        wasi.inherit_network();
    }
    Ok(wasi)
}

pub fn core(
    engine: &Engine,
    module: &Module,
    mut wasi: WasiCtxBuilder,
    grants: &Grants,
    function: Option<String>,
) -> Result<Program> {
    let mut linker: Linker<CoreState> = Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state| &mut state.wasi).map_err(plain)?;
    // wasmtime-wasi refuses exit codes from 126 on, which shells and supervisors use (proc_exit takes any u32).
    linker.allow_shadowing(true);
    linker
        .func_wrap("wasi_snapshot_preview1", "proc_exit", |code: i32| -> wasmtime::Result<()> {
            Err(I32Exit(code).into())
        })
        .map_err(plain)?;
    let mut store = Store::new(engine, CoreState { wasi: wasi.build_p1(), limits: limits(grants) });
    store.limiter(|state| &mut state.limits);
    for import in module.imports() {
        if linker.get_by_import(&mut store, &import).is_none() {
            bail!("{}", missing_import(import.module(), import.name()));
        }
    }
    let pre = linker.instantiate_pre(module).map_err(plain)?;
    let entry = entry(module, function)?;
    Ok(Program::Core { store, pre, entry })
}

fn entry(module: &Module, function: Option<String>) -> Result<Entry> {
    let callable = |name: &str| {
        module.get_export(name).map(|export| export.func().is_some_and(|func| func.params().len() == 0))
    };
    if let Some(name) = function {
        return match callable(&name) {
            Some(true) => Ok(Entry::Function(name)),
            Some(false) => bail!("export {name:?} is not a function without parameters"),
            None => bail!("the module has no export {name:?}"),
        };
    }
    match callable("_start") {
        Some(true) => Ok(Entry::Start),
        Some(false) => bail!("export \"_start\" is not a function without parameters"),
        None if module.get_export("_initialize").is_some() => bail!(
            "the module is a reactor (it exports _initialize and no _start): build it as a command, or name the \
             export to call as in app.wasm#function"
        ),
        None => bail!("the module exports no _start: name the export to call as in app.wasm#function"),
    }
}

pub fn component(
    engine: &Engine,
    component: &Component,
    mut wasi: WasiCtxBuilder,
    grants: &Grants,
    function: Option<String>,
) -> Result<Program> {
    let mut linker: component::Linker<State> = component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(plain)?;
    let pre =
        linker.instantiate_pre(component).map_err(|error| missing_interface(engine, component, error))?;
    let state = State { wasi: wasi.build(), table: ResourceTable::new(), limits: limits(grants) };
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.limits);
    if let Some(name) = function {
        if component.get_export_index(None, &name).is_none() {
            bail!("the component has no export {name:?}");
        }
        return Ok(Program::Function { store, pre, name });
    }
    let exports: Vec<String> =
        component.component_type().exports(engine).map(|(name, _)| name.to_owned()).collect();
    let exported = |prefix: &str| exports.iter().find(|name| name.starts_with(prefix));
    if let Some(name) = exported("wasi:cli/run@0.2") {
        let pre = CommandPre::new(pre).map_err(|error| anyhow!("export {name}: {error:#}"))?;
        return Ok(Program::Command { store, pre });
    }
    if let Some(name) = exported("wasi:http/") {
        bail!("the component exports {name} and no wasi:cli/run: serving http is not supported yet");
    }
    if let Some(name) = exported("wasi:cli/run") {
        bail!("the component exports {name}; only wasi:cli/run@0.2 is supported");
    }
    bail!("the component exports no wasi:cli/run@0.2 (exports: {})", exports.join(", "))
}

impl Program {
    /// Enters the guest; `Ok(false)` is a command whose `run` returned an error.
    pub async fn run(self) -> wasmtime::Result<bool> {
        match self {
            Program::Core { mut store, pre, entry } => {
                let instance = pre.instantiate_async(&mut store).await?;
                let name = match &entry {
                    Entry::Start => "_start",
                    Entry::Function(name) => {
                        // The reactor ABI: initialise before the first call of an export.
                        if let Some(initialize) = instance.get_func(&mut store, "_initialize") {
                            initialize.call_async(&mut store, &[], &mut []).await?;
                        }
                        name
                    }
                };
                let Some(function) = instance.get_func(&mut store, name) else {
                    return Err(wasmtime::Error::msg(format!("no export {name:?}")));
                };
                let mut results = vec![wasmtime::Val::I32(0); function.ty(&store).results().len()];
                function.call_async(&mut store, &[], &mut results).await.map(|()| true)
            }
            Program::Command { mut store, pre } => {
                let command = pre.instantiate_async(&mut store).await?;
                Ok(command.wasi_cli_run().call_run(&mut store).await?.is_ok())
            }
            Program::Function { mut store, pre, name } => {
                let instance = pre.instantiate_async(&mut store).await?;
                let Some(function) = instance.get_func(&mut store, &name) else {
                    return Err(wasmtime::Error::msg(format!("export {name:?} is not a function")));
                };
                let mut results = vec![component::Val::Bool(false); function.ty(&store).results().len()];
                function.call_async(&mut store, &[], &mut results).await?;
                Ok(!matches!(results.first(), Some(component::Val::Result(Err(_)))))
            }
        }
    }
}

/// The exit status, and what to tell about a trap.
pub fn status(ended: wasmtime::Result<bool>) -> (i32, Option<String>) {
    match ended {
        Ok(true) => (0, None),
        Ok(false) => (1, None),
        // exit_group(2) keeps the low eight bits.
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(code)) => (code & 0xff, None),
            None => (TRAPPED, Some(format!("Error: {error:?}"))),
        },
    }
}

fn missing_import(module: &str, name: &str) -> String {
    let hint = match (module, name) {
        ("wasi", "thread-spawn") | ("env", "memory") => {
            "wasi-threads was removed from wasmtime: build without threads (target wasm32-wasip1)"
        }
        ("wasi_unstable", _) => "this is WASI preview 0: rebuild for wasm32-wasip1",
        (module, _) if module.starts_with("wasix") => {
            "WASIX is Wasmer's: rebuild for wasm32-wasip1 or wasm32-wasip2"
        }
        ("wasi_snapshot_preview1", name) if name.starts_with("sock_") => {
            "this is WasmEdge's socket extension: rebuild for wasm32-wasip2, which has wasi:sockets"
        }
        ("wasi_ephemeral_nn" | "wasi_nn", _) => "wasi-nn is not supported",
        (module, _) if module.starts_with("wasmedge") => {
            "this is a WasmEdge extension: rebuild for plain WASI"
        }
        (module, _) if is_spin(module) => SPIN,
        ("env", _) => {
            "the module was not linked completely, or needs JavaScript glue (Emscripten, wasm-bindgen)"
        }
        _ => "runw offers wasi_snapshot_preview1 to core modules",
    };
    format!("the module imports {module:?} {name:?}, which does not exist here: {hint}")
}

const SPIN: &str = "this is an interface of Spin's own: build against plain wasi:cli or wasi:http";

fn is_spin(name: &str) -> bool {
    ["spin", "fermyon:", "spin:"].iter().any(|prefix| name.starts_with(prefix))
}

/// wasmtime's text names the import; what to do about it depends on whose interface it is.
fn missing_interface(engine: &Engine, component: &Component, error: wasmtime::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    let hint = component
        .component_type()
        .imports(engine)
        .map(|(name, _)| name.to_owned())
        .find(|name| text.contains(&format!("`{name}`")))
        .map_or("runw offers wasi:cli@0.2 and what it includes", |name| interface_hint(&name));
    anyhow!("{text}: {hint}")
}

fn interface_hint(name: &str) -> &'static str {
    match name {
        name if name.starts_with("wasi:http/") => "wasi:http is not supported yet",
        name if name.starts_with("wasi:") && name.contains("@0.3") => {
            "WASI 0.3 is not supported yet: build for 0.2"
        }
        name if is_spin(name) => SPIN,
        name if name.starts_with("wasmcloud:") => "this is an interface of wasmCloud's own",
        _ => {
            "runw offers wasi:cli@0.2 and what it includes; compose the component with one that provides it (wac)"
        }
    }
}
