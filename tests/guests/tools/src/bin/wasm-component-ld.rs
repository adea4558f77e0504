//! The linker rustc names for wasm32-wasip2; Debian packages none.

fn main() {
    wasm_component_ld::main();
}
