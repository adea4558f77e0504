//! `runw --version`, in the lines that go-runc and moby parse: `NAME version X`, `commit: `, `spec: `.

use crate::linux::about;

/// The runtime-spec version whose config.json we know in full; newer minor versions are accepted too.
pub const SPEC: &str = "1.3.0";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
pub const COMMIT: &str = env!("RUNW_COMMIT");
pub const WASMTIME: &str = env!("RUNW_WASMTIME");

pub fn text() -> String {
    let libseccomp = about::libseccomp_version();
    format!(
        "runw version {VERSION}\ncommit: {COMMIT}\nspec: {SPEC}\nwasmtime: {WASMTIME}\nlibseccomp: {libseccomp}\n"
    )
}
