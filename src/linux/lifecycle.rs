//! What a container is doing now, judged from what its record says and from the kernel. Changes nothing.

use crate::seam::{Process, Status};

/// What the state directory tells about a container.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub init: Option<Process>,
    /// `create` succeeded.
    pub created: bool,
    /// Init waits for `start`.
    pub waiting: bool,
    /// Another runw holds the container's lock.
    pub busy: bool,
}

pub fn status(known: &Known) -> Status {
    match known.init {
        // Without a process, or before create's last word, it is being made right now or its create was killed.
        None if known.busy => Status::Creating,
        None => Status::Stopped,
        Some(init) if !alive(init) => Status::Stopped,
        Some(_) if !known.created => Status::Creating,
        Some(_) if known.waiting => Status::Created,
        Some(_) => Status::Running,
    }
}

/// Whether this very process runs: the same pid with another start time is another process, and a zombie is
/// none (proc_pid_stat(5)).
pub fn alive(process: Process) -> bool {
    let Ok(stat) = std::fs::read(format!("/proc/{}/stat", process.pid)) else { return false };
    // The name in field 2 may hold any bytes, parentheses and spaces included: count from its last `)`.
    let stat = String::from_utf8_lossy(&stat);
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next().unwrap_or("X");
    let start_time = fields.nth(18).and_then(|field| field.parse::<u64>().ok());
    start_time == Some(process.start_time) && !matches!(state, "Z" | "X" | "x")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ourselves() -> Process {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let start_time = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap();
        Process { pid: std::process::id() as i32, start_time: start_time.parse().unwrap() }
    }

    #[test]
    fn a_process_is_its_pid_and_its_start_time() {
        let us = ourselves();
        assert!(alive(us));
        assert!(!alive(Process { start_time: us.start_time + 1, ..us }));
        assert!(!alive(Process { pid: i32::MAX, ..us }));
    }

    #[test]
    fn a_zombie_is_no_process() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 0"]).spawn().unwrap();
        let path = format!("/proc/{}/stat", child.id());
        let mut stat = String::new();
        while !stat.contains(") Z ") {
            std::thread::sleep(std::time::Duration::from_millis(2));
            stat = std::fs::read_to_string(&path).unwrap();
        }
        let start_time = stat.split_ascii_whitespace().nth(21).unwrap().parse().unwrap();
        assert!(!alive(Process { pid: child.id() as i32, start_time }));
        child.wait().unwrap();
    }

    #[test]
    fn words() {
        let us = Some(ourselves());
        let gone = us.map(|us| Process { start_time: us.start_time + 1, ..us });
        // init, created, waiting, busy
        for (init, created, waiting, busy, want) in [
            (None, false, false, true, Status::Creating),
            (None, false, false, false, Status::Stopped),
            (us, false, true, true, Status::Creating),
            (us, true, true, false, Status::Created),
            (us, true, false, false, Status::Running),
            (gone, true, true, false, Status::Stopped),
        ] {
            assert_eq!(status(&Known { init, created, waiting, busy }), want);
        }
    }
}
