//! runw: reads the command line, runs one verb, reports its failure once, and ends with its status.

mod bundle;
mod cli;
mod error;
mod executor;
mod linux;
mod log;
mod seam;
mod state;

use std::process::ExitCode;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(internal_error));
    match cli::main(std::env::args_os().collect()) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            log::error(&error::line(&failure.error));
            ExitCode::from(failure.status)
        }
    }
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
