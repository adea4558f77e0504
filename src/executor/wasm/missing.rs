//! What to tell about an import that does not exist here: its name, whose it is, and the way out.

use anyhow::anyhow;
use wasmtime::Engine;
use wasmtime::component::Component;

/// For core modules.
pub fn import(module: &str, name: &str) -> String {
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
pub fn interface(engine: &Engine, component: &Component, error: wasmtime::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    let hint = component
        .component_type()
        .imports(engine)
        .map(|(name, _)| name.to_owned())
        .find(|name| text.contains(&format!("`{name}`")))
        .map_or("runw offers wasi:cli, wasi:http and what they include", |name| interface_hint(&name));
    anyhow!("{text}: {hint}")
}

fn interface_hint(name: &str) -> &'static str {
    match name {
        name if is_spin(name) => SPIN,
        name if name.starts_with("wasmcloud:") => "this is an interface of wasmCloud's own",
        name if name.starts_with("wasi:nn/") => "wasi-nn is not supported",
        name if name.starts_with("wasi:") && name.contains("-rc") => {
            "this is a draft of WASI: rebuild with a toolchain for 0.2 or 0.3"
        }
        _ => {
            "runw offers wasi:cli, wasi:http and what they include, wasi:config, wasi:keyvalue and wasi:tls; compose the \
             component with one that provides it (wac)"
        }
    }
}
