//! The engine's configuration. Its source is part of the cache key, so a change here can never meet an artifact
//! made before it. An engine is made in a child only: it may start threads.

use wasmtime::{Config, Engine, PoolingAllocationConfig, ResourcesRequired};

use super::plain;

/// The wasmtime this is built with, as in Cargo.lock (a test compares). Known without making an engine.
pub const VERSION: &str = "48.0.8";

/// What besides the bytes and the CPU decides what the compiler emits.
pub const CONFIGURATION: &[u8] = include_bytes!("engine.rs");

/// What the engine must be able to do, decided by the guest's bytes before anything is compiled: an artifact fits
/// the profile it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// One guest that runs once.
    Plain,
    /// Many calls at once into components: http served, and WASI 0.3. With the component model's async, where
    /// advisories still are frequent, and with epochs, or one busy request would keep all others waiting.
    Concurrent,
}

/// With `fuel` the code counts what it does; an artifact fits an engine that agrees about it.
pub fn engine(profile: Profile, fuel: bool) -> anyhow::Result<Engine> {
    Engine::new(&config(profile, fuel)).map_err(plain)
}

/// Bytes of a table that stay with its slot between instances.
const KEPT_TABLE: usize = 16 << 10;

/// For `instances` at once of what needs `required`. Memories keep their place in the address space, which on most
/// machines is large enough; where it is not, or RLIMIT_AS is in the way, the usual allocator does.
pub fn pooled(instances: u32, required: &ResourcesRequired, fuel: bool) -> anyhow::Result<Engine> {
    let times = |count: u32| count.max(1).saturating_mul(instances);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances).total_stacks(instances);
    // Counted only; what a slot costs are memories, tables and stacks.
    pool.total_core_instances(times(64)).max_component_instance_size(1 << 24).max_core_instance_size(1 << 24);
    pool.total_memories(times(required.num_memories)).total_tables(times(required.num_tables));
    pool.max_memories_per_component(required.num_memories)
        .max_memories_per_module(required.num_memories.max(1));
    pool.max_tables_per_component(required.num_tables).max_tables_per_module(required.num_tables.max(1));
    let elements = required.max_initial_table_size.and_then(|size| usize::try_from(size).ok());
    pool.table_elements(elements.unwrap_or_default().max(20_000));
    // Zeroing what a table had costs less than to give its pages back and to fault them in again.
    pool.table_keep_resident(KEPT_TABLE);
    let usual = config(Profile::Concurrent, fuel);
    let mut config = usual.clone();
    config.allocation_strategy(pool);
    Engine::new(&config).or_else(|_| Engine::new(&usual)).map_err(plain)
}

fn config(profile: Profile, fuel: bool) -> Config {
    let concurrent = profile == Profile::Concurrent;
    let mut config = Config::new();
    // Most of the advisories fixed inside 48.0.x are in these; nothing that LLVM emits by default needs them.
    config.wasm_gc(false).wasm_exceptions(false).wasm_function_references(false).wasm_memory64(false);
    config.wasm_stack_switching(false).wasm_shared_everything_threads(false);
    // What toolchains emit today.
    config.wasm_reference_types(true).wasm_multi_value(true).wasm_simd(true).wasm_bulk_memory(true);
    // Data segments become copy-on-write mappings of the artifact, shared by all containers of an image.
    config.memory_init_cow(true);
    // A signal handler ends a busy guest that is alone.
    config.epoch_interruption(concurrent);
    config.consume_fuel(fuel);
    config.concurrency_support(concurrent).wasm_component_model_async(concurrent);
    // The backtrace of a trap names functions; DWARF would be parsed from untrusted bytes at the worst moment.
    config.wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable);
    config
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
