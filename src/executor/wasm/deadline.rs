//! The time a command may take. A thread ends the process: a busy guest, or one in a system call, cannot be asked to.

use std::io::{self, Write};
use std::sync::mpsc;
use std::thread::Builder;
use std::time::Duration;

use super::serve::say;
use crate::executor::Exit;

/// As timeout(1).
const TIMED_OUT: i32 = 124;
/// For what is still to be written; a full pipe that nobody reads must not keep the process.
const LAST_WORDS: Duration = Duration::from_millis(200);

pub fn start(limit: Duration, exit: Exit) -> io::Result<()> {
    let end = move || {
        std::thread::sleep(limit);
        let (done, told) = mpsc::channel();
        let tell = move || {
            say(&format!("the guest has run for {} s (annotation dev.runw.limits.time)", limit.as_secs()));
            // std's stdout holds back an unfinished line.
            let _ = io::stdout().flush();
            let _ = done.send(());
        };
        if Builder::new().spawn(tell).is_ok() {
            let _ = told.recv_timeout(LAST_WORDS);
        }
        exit(TIMED_OUT)
    };
    Builder::new().name("runw-time".to_owned()).spawn(end).map(drop)
}
