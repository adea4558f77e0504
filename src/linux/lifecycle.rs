//! What a container is doing now, judged from its record and the kernel; nothing is changed here.

use anyhow::Result;

use crate::seam::{Process, Status};
use crate::state::{Entry, START_SOCKET};

pub fn status(entry: &Entry) -> Result<Status> {
    let Some(init) = entry.record.init else {
        // Without a process it is either being made right now, or its create was killed.
        return Ok(if entry.busy() { Status::Creating } else { Status::Stopped });
    };
    if !alive(init) {
        return Ok(Status::Stopped);
    }
    if !entry.record.created_done {
        return Ok(Status::Creating);
    }
    if entry.dir.join(START_SOCKET).exists() {
        return Ok(Status::Created);
    }
    Ok(Status::Running)
}

/// Whether this very process runs: the same pid with another start time is another process, and a zombie is
/// none (proc_pid_stat(5)).
pub fn alive(process: Process) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)) else { return false };
    // The name in field 2 may hold anything, parentheses and spaces included: count from its last `)`.
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next().unwrap_or("X");
    let start_time = fields.nth(18).and_then(|field| field.parse::<u64>().ok());
    start_time == Some(process.start_time) && !matches!(state, "Z" | "X" | "x")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_its_pid_and_its_start_time() {
        let pid = std::process::id() as i32;
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let start_time = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap();
        let start_time: u64 = start_time.parse().unwrap();
        assert!(alive(Process { pid, start_time }));
        assert!(!alive(Process { pid, start_time: start_time + 1 }));
        assert!(!alive(Process { pid: i32::MAX, start_time }));
    }
}
