//! A container's view of itself, compared line by line with what runc's looks like from inside. The control is
//! recorded in tests/controls, keyed by runc's package version and the kernel, and made anew when the key differs
//! or with CONTROL=1.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, Container, Kind, differs, kind, run, runtime, runw_only, skip};

/// Facts that do not depend on time, pids or names of this run.
const FACTS: &str = r#"
echo == mounts; awk '{ i=7; while ($i != "-") i++; print $5, $6, $(i+1) }' /proc/self/mountinfo | sort
echo == status; grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp|Umask|Cpus_allowed_list)' /proc/self/status
echo == limits; cat /proc/self/limits
echo == devices; for f in /dev/* /dev/pts/*; do stat -c '%n %F %t:%T %a %u:%g' $f; done
echo == env; env | grep -v -e ^SHLVL -e ^PWD | sort
echo == place; pwd; umask; hostname; id; cat /proc/self/oom_score_adj; ls /sys/class/net; wc -l </proc/self/mountinfo
echo == links; for l in fd stdin stdout stderr ptmx; do echo $l $(readlink /dev/$l); done
echo == protected; for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq/default_smp_affinity; do [ -w $f ] && (: >>$f) 2>/dev/null && echo writable $f; done; wc -c </proc/kcore; ls /proc/acpi /sys/firmware /proc/scsi 2>/dev/null | wc -l
echo == end
"#;

/// The same configurations whatever the runtime: runc's own default, not the runtime under test's.
fn variants() -> Vec<(&'static str, Value)> {
    let base = json!({
        "ociVersion": "1.0.2",
        "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", FACTS],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"], "cwd": "/",
            "capabilities": crate::harness::cap(&["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}], "noNewPrivileges": true},
        "root": {"path": "rootfs", "readonly": true}, "hostname": "control",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}],
        "linux": {"resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]},
    });
    let mut user = base.clone();
    user["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 9]});
    user["process"]["cwd"] = json!("/tmp");
    user["root"]["readonly"] = json!(false);
    user["process"]["noNewPrivileges"] = json!(false);
    let mut mapped = base.clone();
    mapped["linux"]["namespaces"].as_array_mut().expect("ns").push(json!({"type": "user"}));
    mapped["linux"]["uidMappings"] = crate::harness::id_map(0, 100_000, 65_536);
    mapped["linux"]["gidMappings"] = crate::harness::id_map(0, 100_000, 65_536);
    let mut own_cgroup = base.clone();
    own_cgroup["linux"]["namespaces"].as_array_mut().expect("ns").push(json!({"type": "cgroup"}));
    vec![("default", base), ("user", user), ("mapped", mapped), ("cgroup-namespace", own_cgroup)]
}

fn bundle_of(mut config: Value) -> Bundle {
    let mut bundle = Bundle::sh("true");
    config["linux"]["cgroupsPath"] = bundle.config["linux"]["cgroupsPath"].clone();
    bundle.config = config;
    bundle
}

/// The facts under `runtime`, with what names this very run taken out.
fn facts(program: &Path, config: Value) -> Vec<String> {
    let bundle = bundle_of(config);
    let c = Container::new(bundle);
    let root = tempfile::tempdir().expect("tempdir");
    let mut command = Command::new(program);
    command.arg("--root").arg(root.path()).args(["run", "--bundle"]).arg(c.bundle.path()).arg(&c.id);
    let out = run(&mut command);
    assert!(out.out.contains("== end"), "{}: {out:?}", program.display());
    out.out.replace(&c.id, "ID").lines().map(str::to_owned).collect()
}

fn key() -> Option<String> {
    let package = run(Command::new("dpkg-query").args(["-W", "-f", "${Version}", "runc"]));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("kernel");
    (package.code == 0).then(|| format!("runc {} on {}", package.out.trim(), kernel.trim()))
}

/// The recorded control, made anew where this machine is another one.
fn control(name: &str, config: &Value) -> Option<Vec<String>> {
    let Some(key) = key() else {
        skip("runc is not installed");
        return None;
    };
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/controls/{name}.json"));
    let recorded: Option<Value> = std::fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok());
    if let Some(recorded) =
        recorded.filter(|r| r["key"] == key.as_str() && std::env::var_os("CONTROL").is_none())
    {
        return serde_json::from_value(recorded["facts"].clone()).ok();
    }
    let facts = facts(Path::new("/usr/bin/runc"), config.clone());
    if std::env::var_os("CONTROL").is_some() {
        let text = serde_json::to_string_pretty(&json!({"key": key, "facts": facts})).expect("json");
        std::fs::write(path, text + "\n").expect("record the control");
    }
    Some(facts)
}

#[test]
fn the_container_looks_as_runc_s_does() {
    if differs(Kind::Crun, "it has its own devices and mount options") {
        return;
    }
    for (name, config) in variants() {
        let Some(control) = control(name, &config) else { return };
        let ours = facts(runtime(), config);
        // The one difference meant: a cgroup mount asked for read-only is so on v1 too, where runc forgets the tmpfs.
        // And runc makes the ipc namespace before it becomes gid 0 of its user namespace.
        let same = |line: &str| {
            line.replace("/sys/fs/cgroup ro,", "/sys/fs/cgroup rw,").replace("1777 0:65534", "1777 0:0")
        };
        let control: Vec<String> = control.iter().map(|line| same(line)).collect();
        let ours: Vec<String> = ours.iter().map(|line| same(line)).collect();
        let missing: Vec<&String> = control.iter().filter(|l| !ours.contains(l)).collect();
        let extra: Vec<&String> = ours.iter().filter(|l| !control.contains(l)).collect();
        assert!(missing.is_empty() && extra.is_empty(), "{name}: runc has {missing:#?}\nwe have {extra:#?}");
    }
}

#[test]
fn spec_writes_what_runc_s_does() {
    if runw_only("another runtime to compare itself with") || key().is_none() {
        return;
    }
    let spec = |program: &Path| -> Value {
        let dir = tempfile::tempdir().expect("tempdir");
        run(Command::new(program).arg("spec").current_dir(dir.path())).ok();
        serde_json::from_slice(&std::fs::read(dir.path().join("config.json")).expect("config")).expect("json")
    };
    let (ours, mut theirs) = (spec(runtime()), spec(Path::new("/usr/bin/runc")));
    // 1.1 asks for ambient capabilities that are not inheritable, which nobody can have; newer ones do not.
    theirs["process"]["capabilities"].as_object_mut().expect("sets").remove("ambient");
    for pointer in [
        "/process/capabilities",
        "/process/args",
        "/process/env",
        "/process/rlimits",
        "/mounts",
        "/root/readonly",
        "/linux/maskedPaths",
        "/linux/readonlyPaths",
        "/linux/resources",
    ] {
        let same = ours.pointer(pointer) == theirs.pointer(pointer);
        // Newer runc differs from 1.1 in these on purpose; what 1.1 protects must be protected all the same.
        let superset = pointer.ends_with("Paths")
            && theirs.pointer(pointer).and_then(Value::as_array).is_some_and(|t| {
                t.iter()
                    .all(|p| ours.pointer(pointer).and_then(Value::as_array).is_some_and(|o| o.contains(p)))
            });
        assert!(
            same || superset,
            "{pointer}: {:?} is not {:?}",
            ours.pointer(pointer),
            theirs.pointer(pointer)
        );
    }
    assert_eq!(kind(), Kind::Runw);
}
