//! runw: reads the command line, runs one verb, reports its failure once, and ends with its status.

#![cfg_attr(not(test), no_main)]

mod bundle;
mod cli;
mod error;
mod executor;
mod linux;
mod log;
mod seam;
mod state;

use std::ffi::{c_char, c_int};

use linux::arena::Arena;

#[global_allocator]
static ALLOCATOR: Arena = Arena::new();

/// The C runtime calls us, not Rust's: what that does first are 16 system calls for a handler that names a stack
/// overflow, and a start of ours is paid for in tens of microseconds. The rest of it is in `linux::sys::start`.
// SAFETY: the name and the signature are what the C runtime looks for, and nobody else defines it.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code))]
extern "C" fn main(_count: c_int, _words: *const *const c_char) -> c_int {
    std::panic::set_hook(Box::new(internal_error));
    linux::sys::start();
    let args: Vec<_> = std::env::args_os().collect();
    linux::seal::before_parsing(&args);
    let status = match cli::main(args) {
        Ok(status) => status,
        Err(failure) => {
            log::error(&error::line(&failure.error));
            failure.status
        }
    };
    std::process::exit(status.into())
}

/// A panic is a bug of ours: one line, status 1, and the process ends at once.
///
/// It must not unwind: in the container's child, a copy of the parent, unwinding would run the parent's
/// clean-up (remove the cgroup, the state directory) from the wrong side. So `_exit`: `exit` would run the
/// parent's exit handlers, and `abort` would dump core and give 134, which means a wasm trap to our callers.
fn internal_error(info: &std::panic::PanicHookInfo<'_>) {
    let what = info.payload_as_str().unwrap_or("unknown cause");
    let at = info.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
    log::error(&error::flat(&format!("runw: internal error: {what}{at}")));
    linux::sys::exit_now(1);
}
