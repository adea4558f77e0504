//! The check after every failure: no process, cgroup, mount or state of this container is on the host.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Container, patience};

#[track_caller]
pub fn nothing_left(container: &Container) {
    // A namespace's processes die asynchronously after its init: twenty seconds, then what is there is left behind.
    let deadline = Instant::now() + patience(20);
    let mut found = leftovers(container);
    while !found.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        found = leftovers(container);
    }
    assert!(found.is_empty(), "left behind: {found:#?}");
}

fn leftovers(container: &Container) -> Vec<String> {
    let mut found = Vec::new();
    if container.root().join(&container.id).exists() {
        found.push(format!("state directory {}", container.root().join(&container.id).display()));
    }
    found.extend(cgroups(&container.id));
    let dir = container.bundle.path().to_string_lossy().into_owned();
    let root = container.root().to_string_lossy().into_owned();
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    found.extend(
        mountinfo.lines().filter(|l| l.contains(&dir) || l.contains(&root)).map(|l| format!("mount {l}")),
    );
    found.extend(processes(&container.id, &dir));
    found
}

fn cgroups(id: &str) -> Vec<String> {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let mut candidates: Vec<_> = hierarchies.map(|h| h.path().join("runw-test").join(id)).collect();
    candidates.push(Path::new("/sys/fs/cgroup/runw-test").join(id));
    candidates.iter().filter(|p| p.exists()).map(|p| format!("cgroup {}", p.display())).collect()
}

/// Any process that names the container in its command line or cgroup, or sees its bundle as a root.
fn processes(id: &str, dir: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == own {
            continue;
        }
        let read = |f: &str| {
            String::from_utf8_lossy(&std::fs::read(entry.path().join(f)).unwrap_or_default())
                .replace('\0', " ")
        };
        // The kernel shows pivot_root's new root as "/" but keeps the path inside the file system as its source.
        let mounts = read("mountinfo");
        let root_is_ours = mounts.lines().any(|l| l.contains(dir));
        // A zombie waits for the machine's own reaper, which is slow on some hosts.
        if !super::alive(pid.parse().expect("digits")) {
            continue;
        }
        if read("cmdline").contains(id) || read("cgroup").contains(id) || root_is_ours {
            found.push(format!("process {pid}: {} {}", read("cmdline"), read("stat")));
        }
    }
    found
}
