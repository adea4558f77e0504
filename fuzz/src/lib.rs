//! The modules under test, compiled from the runtime's own files: runw is a binary, and as a library it would bring
//! wasmtime along, which none of these needs. And what the targets share.

pub mod json;

#[path = "../../src"]
#[allow(dead_code, reason = "only the part that a target reaches is used")]
mod runw {
    pub mod bundle;
    pub mod error;
    pub mod log;
    pub mod seam;
    pub mod state;
    pub mod linux {
        pub mod seccomp;
        pub mod sys;
        pub mod rootfs {
            pub mod options;
        }
    }
}

// The modules name each other as `crate::NAME`.
pub use runw::{bundle, error, linux, log, seam, state};
