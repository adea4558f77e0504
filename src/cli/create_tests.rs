//! A container made by the same steps as any other, with a workload that no selection would choose.

use super::*;
use crate::cli::CgroupManager;
use crate::linux::{foreground, intruder};
use crate::state::Root;

const CONFIG: &str = r#"{
    "ociVersion": "1.0.2",
    "process": {"args": ["/app.wasm"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "capabilities": CAPS},
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}
    ],
    "linux": {
        "cgroupsPath": "/runw-test/CGROUP",
        "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]
    }
}"#;

/// No profile, and every capability there is: what is held back is held back by runw.
fn config(id: &str) -> String {
    let all = serde_json::to_string(&crate::linux::about::capability_names()).unwrap();
    let sets = ["bounding", "effective", "permitted", "inheritable"].map(|set| format!("{set:?}: {all}"));
    CONFIG.replace("CAPS", &format!("{{{}}}", sets.join(", "))).replace("CGROUP", id)
}

fn run_an_intruder(dir: &Path, id: &str) -> Result<i32> {
    let globals = Globals {
        root: Root::new(dir.join("state")),
        cgroup_manager: CgroupManager::Cgroupfs,
        rootless: false,
        handler: None,
        argv0: "runw".into(),
    };
    let bundle = Bundle::load(dir, None)?;
    let args = Common {
        bundle: dir.to_owned(),
        config: None,
        console_socket: None,
        pidfd_socket: None,
        pid_file: None,
        no_pivot: false,
        no_new_keyring: false,
        preserve_fds: 0,
        no_subreaper: false,
    };
    let signals = foreground::block_signals()?;
    let preserved = Preserved::find(0)?;
    let process = process(&bundle.spec, preserved)?;
    let workload = Box::new(intruder::Intruder::default());
    let decided = Decided { bundle: &bundle, process, preserved, workload, starter: Starter::Us };
    let Made { mut entry, init, .. } =
        reserved(id, &bundle, &globals, |entry| fill(entry, &args, decided, None, &globals))?;
    entry.unlock();
    let status = foreground::wait(&signals, &init, None, None);
    entry.lock()?;
    common::destroy(entry)?;
    status
}

#[test]
fn a_compromised_engine_reaches_only_what_the_container_may() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containers are made as root here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let id = format!("intruder-{}", std::process::id());
    for path in ["etc", "tmp", "proc", "dev", "sys"] {
        std::fs::create_dir_all(dir.path().join("rootfs").join(path)).unwrap();
    }
    std::fs::write(dir.path().join("rootfs/etc/group"), "root:x:0:\n").unwrap();
    std::fs::write(dir.path().join("config.json"), config(&id)).unwrap();
    let out = dir.path().join("out");
    let failed = intruder::in_a_process(|| {
        intruder::write_output_to(&out);
        match run_an_intruder(dir.path(), &id) {
            Ok(0) => Vec::new(),
            Ok(status) => vec![format!("status {status}")],
            Err(error) => vec![format!("{error:#}")],
        }
    });
    let said = std::fs::read_to_string(&out).unwrap_or_default();
    assert_eq!((failed.join("\n").as_str(), said.as_str()), ("", "done\n"));
    assert!(dir.path().join("rootfs/tmp/mine").exists(), "the intruder ran somewhere else");
}
