//! The confined child's own cgroup, `/runw-compile/PID`: outside the container's, whose limits are for the guest.
//! Only the memory controller matters, so this is not `linux::cgroup`. None where none can be made.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::linux::kernel_file;

const GROUP: &str = "runw-compile";

pub struct Cage {
    dir: PathBuf,
    join: Join,
}

enum Join {
    /// v1: the child writes itself into `tasks` while it has one thread.
    Tasks(fs::File),
    /// v2: born in it (CLONE_INTO_CGROUP).
    Born(OwnedFd),
}

impl Cage {
    pub fn make(memory: u64) -> Option<Cage> {
        let (mount, v2) = hierarchy(&kernel_file::read("/proc/self/mountinfo").ok()?)?;
        let group = mount.join(GROUP);
        let dir = group.join(std::process::id().to_string());
        // Another runw may remove an empty group between our two mkdirs.
        let made = (0..3).any(|_| {
            let _ = fs::create_dir(&group);
            let _ = fs::remove_dir(&dir);
            fs::create_dir(&dir).is_ok()
        });
        if !made {
            return None;
        }
        remove_stale(&group);
        let join = limited(&mount, &group, &dir, v2, memory).ok();
        if join.is_none() {
            let _ = fs::remove_dir(&dir);
        }
        Some(Cage { dir, join: join? })
    }

    #[cfg(test)]
    pub fn place(&self) -> &Path {
        &self.dir
    }

    pub fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        match &self.join {
            Join::Born(dir) => Some(dir.as_fd()),
            Join::Tasks(_) => None,
        }
    }

    pub fn enter(&self) -> io::Result<()> {
        match &self.join {
            Join::Tasks(tasks) => (&mut &*tasks).write_all(b"0"),
            Join::Born(_) => Ok(()),
        }
    }

    pub fn was_out_of_memory(&self) -> bool {
        let file = if matches!(self.join, Join::Born(_)) { "memory.events" } else { "memory.oom_control" };
        let text = kernel_file::read(self.dir.join(file)).unwrap_or_default();
        text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // A reaped process may still be leaving its cgroup for a moment.
        for _ in 0..50 {
            match fs::remove_dir(&self.dir) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => break,
            }
        }
        let _ = self.dir.parent().map(fs::remove_dir);
    }
}

/// The mount point of the hierarchy that has the memory controller, and whether it is v2.
fn hierarchy(mountinfo: &str) -> Option<(PathBuf, bool)> {
    let mut unified = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        match right.next() {
            Some("cgroup") if right.nth(1)?.split(',').any(|option| option == "memory") => {
                return Some((PathBuf::from(point), false));
            }
            Some("cgroup2") => unified = Some(PathBuf::from(point)),
            _ => {}
        }
    }
    unified.map(|point| (point, true))
}

fn limited(mount: &Path, group: &Path, dir: &Path, v2: bool, memory: u64) -> io::Result<Join> {
    let write = |dir: &Path, file: &str, text: &str| fs::write(dir.join(file), text);
    if !v2 {
        write(dir, "memory.limit_in_bytes", &memory.to_string())?;
        // Absent without swap accounting.
        let _ = write(dir, "memory.memsw.limit_in_bytes", &memory.to_string());
        return fs::OpenOptions::new().write(true).open(dir.join("tasks")).map(Join::Tasks);
    }
    for parent in [mount, group] {
        let on = kernel_file::read(parent.join("cgroup.subtree_control"))?;
        if !on.split_whitespace().any(|name| name == "memory") {
            write(parent, "cgroup.subtree_control", "+memory")?;
        }
    }
    write(dir, "memory.max", &memory.to_string())?;
    let _ = write(dir, "memory.swap.max", "0");
    let _ = write(dir, "memory.oom.group", "1");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(Join::Born(rustix::fs::open(dir, flags, Mode::empty())?))
}

/// Groups of runws that were killed: their pid is gone, and with it (PDEATHSIG) their child.
fn remove_stale(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_on_v1_hybrid_and_v2() {
        let v2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";
        let hybrid = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(hierarchy(v2), Some((PathBuf::from("/sys/fs/cgroup"), true)));
        assert_eq!(hierarchy(hybrid), Some((PathBuf::from("/sys/fs/cgroup/memory"), false)));
        assert_eq!(hierarchy("24 1 0:22 / /proc rw - proc proc rw\n"), None);
    }
}
