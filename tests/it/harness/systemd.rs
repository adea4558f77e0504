//! A systemd: the machine's where that has cgroup v2 alone, else one of this test's own, first process of a pid
//! namespace, over cgroups of its own, with no unit but a target that does nothing, which ends with all in it when the
//! value is dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Running, pure_v2, run, skip, spawn, unique};

const SYSTEMD: &str = "/lib/systemd/systemd";

/// `$0` is `v1` or `v2`: what of the machine's cgroups is mounted. /proc/sys is the host's.
const BOOT: &str = r#"
set -e
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
hierarchies=$(cut -d: -f2 /proc/self/cgroup)
mount -t tmpfs -o mode=755 none /sys/fs/cgroup
if [ "$0" = v2 ]; then
    mount -t cgroup2 none /sys/fs/cgroup
else
    for h in $hierarchies; do
        case $h in name=*) options=none,$h ;; *) options=$h ;; esac
        mkdir "/sys/fs/cgroup/${h#name=}"
        mount -t cgroup -o "$options" none "/sys/fs/cgroup/${h#name=}"
    done
    mkdir /sys/fs/cgroup/unified
    mount -t cgroup2 none /sys/fs/cgroup/unified
fi
mount -t tmpfs -o mode=755 none /run
mkdir /run/units
printf '[Unit]\nDefaultDependencies=no\n' >/run/units/test.target
exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH=/run/units SYSTEMD_GENERATOR_PATH=/run/none \
    /lib/systemd/systemd --system --unit=test.target --log-target=console --show-status=no
"#;

pub struct Systemd {
    /// None: the machine's own.
    machine: Option<Running>,
    cgroups: Vec<PathBuf>,
}

impl Systemd {
    /// None, with a skip, where there is no systemd to be started or the machine's cgroups are not as asked for.
    pub fn boot(layout: &str) -> Option<Systemd> {
        if layout == "v2" && pure_v2() && Path::new("/run/systemd/system").exists() {
            return Some(Systemd { machine: None, cgroups: vec!["/sys/fs/cgroup".into()] });
        }
        if !Path::new(SYSTEMD).exists() || !super::hybrid() {
            skip("needs systemd's package and a hybrid machine");
            return None;
        }
        let cgroups: Vec<PathBuf> =
            mounts().iter().map(|mount| mount.join(unique("runw-test-systemd"))).collect();
        for dir in &cgroups {
            std::fs::create_dir(dir).expect("a cgroup for systemd");
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(text) = std::fs::read(dir.with_file_name(file)) {
                    std::fs::write(dir.join(file), text).expect("fill the cpuset");
                }
            }
        }
        let enter = r#"for dir in $0; do echo $$ >$dir/cgroup.procs; done; exec "$@""#;
        let dirs: Vec<String> = cgroups.iter().map(|dir| dir.display().to_string()).collect();
        let mut command = Command::new("sh");
        command.args(["-c", enter, &dirs.join(" "), "unshare"]);
        command.args([
            "--mount",
            "--pid",
            "--cgroup",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]);
        let systemd = Systemd { machine: Some(spawn(command.args(["sh", "-c", BOOT, layout]))), cgroups };
        super::until("systemd is up", || {
            let out =
                run(systemd.inside(Command::new("systemctl").arg("is-system-running")).stderr(Stdio::null()));
            out.out.trim() == "running"
        });
        Some(systemd)
    }

    /// Of the machine that runs the test: what is done to it stays.
    pub fn is_the_machine_s(&self) -> bool {
        self.machine.is_none()
    }

    /// systemd's own pid, outside.
    fn pid(&self) -> Option<String> {
        let pid = self.machine.as_ref()?.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next().map(str::to_owned)
    }

    /// The command in the machine's namespaces.
    pub fn inside(&self, command: &Command) -> Command {
        let mut nsenter = Command::new("env");
        if self.machine.is_some() {
            let pid = self.pid().unwrap_or_else(|| "0".into());
            nsenter.args(["nsenter", "-t", &pid, "-m", "-p", "-C", "-i", "-u", "--wd=/"]);
        }
        nsenter.arg(command.get_program()).args(command.get_args());
        nsenter
    }

    /// Properties of a unit, as systemctl shows them.
    pub fn show(&self, unit: &str, properties: &str) -> Vec<String> {
        let mut command = Command::new("systemctl");
        let out = run(&mut self.inside(command.args(["show", unit, "-p", properties]))).ok();
        let mut lines: Vec<String> = out.out.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Processes of the unit (on v2), by their pids outside.
    pub fn outside(&self, unit: &str) -> Vec<i32> {
        let mut find = Command::new("find");
        let text = run(find.args(&self.cgroups).args([
            "-path",
            &format!("*/{unit}/cgroup.procs"),
            "-exec",
            "cat",
            "{}",
            ";",
        ]));
        text.ok().out.lines().filter_map(|line| line.parse().ok()).collect()
    }

    pub fn kill(&self) {
        let pid = self.pid().expect("systemd runs").parse().ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::KILL)
            .expect("kill systemd");
    }

    /// A file of the machine's cgroups.
    pub fn read(&self, path: &str) -> Option<String> {
        let out = run(&mut self.inside(Command::new("cat").arg(Path::new("/sys/fs/cgroup").join(path))));
        (out.code == 0).then(|| out.out.trim().to_owned())
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        // Its child, systemd, dies with it, and with systemd the namespace.
        let _ = machine.child.kill();
        let _ = machine.child.wait();
        for dir in &self.cgroups {
            super::until("systemd's cgroups are empty", || {
                let _ = Command::new("find")
                    .arg(dir)
                    .args(["-depth", "-type", "d", "-delete"])
                    .stderr(Stdio::null())
                    .status();
                !dir.exists()
            });
        }
    }
}

/// Where the machine's cgroup hierarchies are mounted.
fn mounts() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let mut mounts: Vec<PathBuf> = text
        .lines()
        .filter(|line| line.contains(" - cgroup"))
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|path| path.starts_with("/sys/fs/cgroup/"))
        .map(PathBuf::from)
        .collect();
    mounts.dedup();
    mounts
}
