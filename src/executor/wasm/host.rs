//! What the host lends to a component: one linker of all interfaces runw offers, and stores with the grants in them.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};
use wasmtime_wasi_tls::p2::LinkOptions;
use wasmtime_wasi_tls::{WasiTlsCtx, WasiTlsCtxView, WasiTlsView};

use super::budget::{Budget, Share};
use super::engine::Profile;
use super::grants::{Grants, config_lines};
use super::names::Names;
use super::outbound::Outbound;
use super::stores::Stores;
use super::{keyvalue, lookup, plain, tls};

/// A component's store.
pub struct State {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    pub table: ResourceTable,
    pub names: Arc<Names>,
    outbound: Outbound,
    config: Arc<WasiConfigVariables>,
    pub stores: Arc<Stores>,
    tls: WasiTlsCtx,
    memory: Share,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outbound }
    }
}

impl WasiTlsView for State {
    fn tls(&mut self) -> WasiTlsCtxView<'_> {
        WasiTlsCtxView { ctx: &mut self.tls, table: &mut self.table }
    }
}

/// Which of the interfaces that few components use one asks for: the others cost nothing.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    key_value: bool,
    tls: bool,
}

impl Wanted {
    pub fn of(engine: &Engine, component: &Component) -> Wanted {
        let mut wanted = Wanted { key_value: false, tls: false };
        for (name, _) in component.component_type().imports(engine) {
            wanted.key_value |= name.starts_with("wasi:keyvalue/");
            wanted.tls |= name.starts_with("wasi:tls/");
        }
        wanted
    }
}

/// From which stores are made: one for a command, one after the other for a server.
pub struct Host {
    pub grants: Grants,
    pub budget: Budget,
    profile: Profile,
    wanted: Wanted,
    /// The preopen, a handle that all stores share: a server has a descriptor for each connection, and not two.
    files: OnceLock<WasiFilesystemCtx>,
    names: Arc<Names>,
    outbound: Outbound,
    config: Arc<WasiConfigVariables>,
    stores: Arc<Stores>,
}

impl Host {
    /// `tree` holds the guest's files: resolv.conf, hosts and certificates are read from it.
    pub fn new(grants: Grants, profile: Profile, wanted: Wanted, tree: &OwnedFd) -> Result<Host> {
        let own = tree.try_clone().context("duplicate the handle on the guest's files")?;
        let names = Arc::new(Names::new(own, grants.network.names));
        let budget = Budget::new(&grants);
        let stores = match wanted.key_value {
            true => Stores::open(&grants.key_value, tree, &budget)?,
            false => Stores::none(),
        };
        Ok(Host {
            profile,
            wanted,
            budget,
            files: OnceLock::new(),
            stores: Arc::new(stores),
            outbound: Outbound::new(names.clone(), &grants),
            config: Arc::new(config(&grants, &names)?),
            names,
            grants,
        })
    }

    /// The current directory must be the guest's files.
    pub fn store(&self, engine: &Engine) -> Result<Store<State>> {
        let mut wasi = context(&self.grants);
        if self.files.get().is_none() {
            preopen(&mut wasi, self.profile == Profile::Plain)?;
        }
        let mut wasi = wasi.build();
        let files = self.files.get_or_init(|| wasi.filesystem().clone()).clone();
        *wasi.filesystem() = files;
        let mut table = ResourceTable::new();
        table.set_max_capacity(self.grants.limits.handles);
        let state = State {
            wasi,
            http: WasiHttpCtx::new(),
            table,
            names: self.names.clone(),
            outbound: self.outbound.clone(),
            config: self.config.clone(),
            stores: self.stores.clone(),
            tls: tls::context(&self.outbound),
            memory: self.budget.share(),
        };
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.memory);
        // Handles on what the guest itself defines, and what one call may have the host copy.
        store.set_max_component_handles(self.grants.limits.handles);
        store.set_hostcall_fuel(store.hostcall_fuel().min(self.budget.limit()));
        if let Some(fuel) = self.grants.limits.fuel {
            store.set_fuel(fuel).map_err(plain)?;
        }
        if self.profile == Profile::Concurrent {
            // At each tick of the epoch others get their turn.
            store.epoch_deadline_async_yield_and_update(1);
            store.set_epoch_deadline(1);
        }
        Ok(store)
    }

    pub fn linker(&self, engine: &Engine) -> wasmtime::Result<Linker<State>> {
        let mut linker = Linker::new(engine);
        linker.allow_shadowing(true);
        // What JavaScript's engine imports besides what is stable: it makes an error's code of an error.
        let mut p2 = wasmtime_wasi::p2::bindings::LinkOptions::default();
        p2.network_error_code(true);
        wasmtime_wasi::p2::add_to_linker_with_options_async(&mut linker, &p2)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        wasmtime_wasi_config::add_to_linker(&mut linker, |state: &mut State| WasiConfig::new(&state.config))?;
        lookup::shadow_p2(&mut linker)?;
        if self.wanted.key_value {
            keyvalue::add_to_linker(&mut linker)?;
        }
        if self.wanted.tls {
            wasmtime_wasi_tls::p2::add_to_linker(&mut linker, LinkOptions::default().tls(true))?;
        }
        if self.profile == Profile::Concurrent {
            wasmtime_wasi::p3::add_to_linker(&mut linker)?;
            wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
            lookup::shadow_p3(&mut linker)?;
            if self.wanted.tls {
                wasmtime_wasi_tls::p3::add_to_linker(&mut linker)?;
            }
        }
        Ok(linker)
    }
}

/// What an annotation says goes before what the file says.
fn config(grants: &Grants, names: &Names) -> Result<WasiConfigVariables> {
    let mut pairs = Vec::new();
    if let Some(path) = &grants.config_file {
        let named = || format!("annotation dev.runw.config-file: {path}");
        let bytes = names.read(path).context("no such file").with_context(named)?;
        let text = String::from_utf8(bytes).context("not text").with_context(named)?;
        pairs = config_lines(&text).with_context(named)?;
    }
    Ok(pairs.into_iter().chain(grants.config.iter().cloned()).collect())
}

/// WASI's side of the grants, but for the files.
pub fn context(grants: &Grants) -> WasiCtxBuilder {
    let mut wasi = WasiCtxBuilder::new();
    wasi.args(&grants.args).envs(&grants.env).inherit_stdio();
    wasi.initial_cwd(grants.cwd.to_string_lossy());
    let network = grants.network.clone();
    wasi.allow_tcp(network.tcp).allow_udp(network.udp);
    wasi.socket_addr_check(move |address, purpose| {
        let outgoing = matches!(purpose, SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend);
        let allowed = !outgoing || network.allows(address);
        Box::pin(async move { allowed })
    });
    wasi
}

/// The current directory is the guest tree: wasmtime opens preopens by path only. With `alone` there is one guest in
/// the process: a blocking file operation may block it, and no thread pool grows in pid 1.
pub fn preopen(wasi: &mut WasiCtxBuilder, alone: bool) -> Result<()> {
    // First, since the preopen takes it over.
    wasi.allow_blocking_current_thread(alone);
    // Read-only files are the kernel's mounts; a second set of rules here could only differ from them.
    wasi.preopened_dir(".", "/", FsPerms::ReadWrite)
        .map_err(plain)
        .context("preopen the guest's file tree")?;
    Ok(())
}
