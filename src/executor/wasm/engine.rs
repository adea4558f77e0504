//! The one engine configuration. Its source is part of the cache key, so a change here can never meet an artifact
//! made before it. An engine is made in a child only: it may start threads.

use wasmtime::{Config, Engine};

use crate::executor::wasm::world::plain;

/// The wasmtime this is built with, as in Cargo.lock (a test compares). Known without making an engine.
pub const VERSION: &str = "48.0.8";

/// What besides the bytes and the CPU decides what the compiler emits.
pub const CONFIGURATION: &[u8] = include_bytes!("engine.rs");

pub fn engine() -> anyhow::Result<Engine> {
    let mut config = Config::new();
    // Most of the advisories fixed inside 48.0.x are in these; nothing that LLVM emits by default needs them.
    config.wasm_gc(false).wasm_exceptions(false).wasm_function_references(false).wasm_memory64(false);
    config.wasm_stack_switching(false).wasm_shared_everything_threads(false);
    // What toolchains emit today.
    config.wasm_reference_types(true).wasm_multi_value(true).wasm_simd(true).wasm_bulk_memory(true);
    // Data segments become copy-on-write mappings of the artifact, shared by all containers of an image.
    config.memory_init_cow(true);
    // A signal handler ends a busy guest, so no epoch checks are compiled in.
    config.epoch_interruption(false);
    // The backtrace of a trap names functions; DWARF would be parsed from untrusted bytes at the worst moment.
    config.wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable);
    Engine::new(&config).map_err(plain)
}

/// The CPU features cranelift looks at on this machine (cranelift-native), as text for the cache key.
pub fn cpu() -> String {
    let mut found = vec![std::env::consts::ARCH];
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! note {
            ($($name:tt)*) => { $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })* };
        }
        note!("sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "avx" "avx2" "fma" "bmi1" "bmi2" "lzcnt" "cmpxchg16b"
            "avx512bitalg" "avx512dq" "avx512f" "avx512vl" "avx512vbmi");
    }
    found.join(",")
}

#[cfg(test)]
mod tests {
    #[test]
    fn version_is_the_locked_one() {
        let lock = include_str!("../../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"wasmtime\"\nversion = \"{}\"\n", super::VERSION)));
    }
}
