//! cargo-fuzz sets this by itself; an editor or clippy would miss the modules that stand under it.

fn main() {
    println!("cargo:rustc-cfg=fuzzing");
    println!("cargo:rerun-if-changed=build.rs");
}
