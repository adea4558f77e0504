//! What a guest is and how it is entered: core modules with WASI 0.1, components of `wasi:cli/command` 0.2 and 0.3,
//! or a server of `wasi:http`. Whatever else is an error at create that names the import or export and the way out.

use anyhow::{Result, anyhow, bail};
use wasmtime::component::{self, Component};
use wasmtime::{Engine, InstancePre, Linker, Module, Store, Trap};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings as p3;
use wasmtime_wasi::{I32Exit, p1};
use wasmtime_wasi_http::handler::ProxyPre;
use wasmtime_wasi_http::{p2 as http2, p3 as http3};

use super::budget::{Budget, Share};
use super::grants::Grants;
use super::host::{Host, State, context, preopen};
use super::{missing, plain};

/// 128 + SIGABRT, as `wasmtime run` and a native program that aborts.
const TRAPPED: i32 = 134;
/// 128 + SIGXCPU, which ends a process at its RLIMIT_CPU.
const OUT_OF_FUEL: i32 = 152;

/// A core module's store.
pub struct CoreState {
    wasi: WasiP1Ctx,
    memory: Share,
}

/// A guest that only needs to be entered.
pub enum Program {
    Core { store: Store<CoreState>, pre: InstancePre<CoreState>, entry: Entry },
    Command { store: Store<State>, pre: CommandPre<State> },
    Command3 { store: Store<State>, pre: p3::CommandPre<State> },
    Function { store: Store<State>, pre: component::InstancePre<State>, name: String },
}

/// How a core module is entered.
pub enum Entry {
    Start,
    Function(String),
}

pub fn core(engine: &Engine, module: &Module, grants: &Grants, function: Option<String>) -> Result<Program> {
    let mut wasi = context(grants);
    preopen(&mut wasi, true)?;
    let mut linker: Linker<CoreState> = Linker::new(engine);
    p1::add_to_linker_async(&mut linker, |state| &mut state.wasi).map_err(plain)?;
    // wasmtime-wasi refuses exit codes from 126 on, which shells and supervisors use (proc_exit takes any u32).
    linker.allow_shadowing(true);
    linker
        .func_wrap("wasi_snapshot_preview1", "proc_exit", |code: i32| -> wasmtime::Result<()> {
            Err(I32Exit(code).into())
        })
        .map_err(plain)?;
    let memory = Budget::new(grants).share();
    let mut store = Store::new(engine, CoreState { wasi: wasi.build_p1(), memory });
    store.limiter(|state| &mut state.memory);
    if let Some(fuel) = grants.limits.fuel {
        store.set_fuel(fuel).map_err(plain)?;
    }
    for import in module.imports() {
        if linker.get_by_import(&mut store, &import).is_none() {
            bail!("{}", missing::import(import.module(), import.name()));
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

/// True when a component handles http and is no command.
pub fn serves(engine: &Engine, component: &Component) -> bool {
    let component = component.component_type();
    let exports = |prefix: &str| component.exports(engine).any(|(name, _)| name.starts_with(prefix));
    exports("wasi:http/") && !exports("wasi:cli/run")
}

/// What a component turned out to be.
pub enum Role {
    Program(Program),
    /// It handles http and has no `run`; one for each request is made later.
    Server(ProxyPre<State>),
}

pub fn component(
    engine: &Engine,
    component: &Component,
    host: &Host,
    function: Option<String>,
) -> Result<Role> {
    let linker = host.linker(engine).map_err(plain)?;
    let pre =
        linker.instantiate_pre(component).map_err(|error| missing::interface(engine, component, error))?;
    if let Some(name) = function {
        if component.get_export_index(None, &name).is_none() {
            bail!("the component has no export {name:?}");
        }
        return Ok(Role::Program(Program::Function { store: host.store(engine)?, pre, name }));
    }
    let exports: Vec<String> =
        component.component_type().exports(engine).map(|(name, _)| name.to_owned()).collect();
    let exported = |prefix: &str| exports.iter().find(|name| name.starts_with(prefix));
    let wrong = |name: &str| {
        let name = name.to_owned();
        move |error: wasmtime::Error| anyhow!("export {name}: {error:#}")
    };
    if let Some(name) = exported("wasi:cli/run@0.3.") {
        let pre = p3::CommandPre::new(pre).map_err(wrong(name))?;
        return Ok(Role::Program(Program::Command3 { store: host.store(engine)?, pre }));
    }
    if let Some(name) = exported("wasi:cli/run@0.2.") {
        let pre = CommandPre::new(pre).map_err(wrong(name))?;
        return Ok(Role::Program(Program::Command { store: host.store(engine)?, pre }));
    }
    if let Some(name) = exported("wasi:http/handler@0.3.") {
        let pre = http3::bindings::ServicePre::new(pre).map_err(wrong(name))?;
        return Ok(Role::Server(ProxyPre::P3(pre)));
    }
    if let Some(name) = exported("wasi:http/incoming-handler@0.2.") {
        let pre = http2::bindings::ProxyPre::new(pre).map_err(wrong(name))?;
        return Ok(Role::Server(ProxyPre::P2(pre)));
    }
    if let Some(name) = exported("wasi:cli/run").or_else(|| exported("wasi:http/")) {
        bail!("the component exports {name}; runw knows wasi:cli/run and wasi:http of 0.2 and 0.3");
    }
    bail!(
        "the component exports neither wasi:cli/run nor a wasi:http handler (exports: {})",
        exports.join(", ")
    )
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
            Program::Command3 { mut store, pre } => {
                let command = pre.instantiate_async(&mut store).await?;
                let ran = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await);
                Ok(ran.await??.is_ok())
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

/// Told on the guest's stderr.
pub const NO_FUEL: &str = "the guest has used up its fuel (annotation dev.runw.limits.fuel)";

pub fn is_out_of_fuel(error: &wasmtime::Error) -> bool {
    matches!(error.downcast_ref::<Trap>(), Some(Trap::OutOfFuel))
}

/// The exit status, and what to tell about a trap.
pub fn status(ended: wasmtime::Result<bool>) -> (i32, Option<String>) {
    match ended {
        Ok(true) => (0, None),
        Ok(false) => (1, None),
        // exit_group(2) keeps the low eight bits.
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(code)) => (code & 0xff, None),
            None if is_out_of_fuel(&error) => (OUT_OF_FUEL, Some(NO_FUEL.to_owned())),
            None => (TRAPPED, Some(format!("Error: {error:?}"))),
        },
    }
}
