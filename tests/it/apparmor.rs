//! Containers under an AppArmor profile, on a kernel that enforces it: each profile forbids one file.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::harness::{Bundle, Container, nothing_left, run, runw_only, script, skip, unique, until};

/// A profile in the kernel as long as the value lives.
struct Profile {
    name: String,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Profile {
    /// Forbids `path` and allows all else. None, with a skip, where AppArmor is off.
    fn forbidding(path: &str) -> Option<Profile> {
        let on = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
        if on.trim() != "Y" || Command::new("apparmor_parser").arg("--version").output().is_err() {
            skip("needs AppArmor and its parser (make test-vm)");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (name, file) = (unique("profile"), dir.path().join("profile"));
        let text = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n file,\n capability,\n network,\n \
             signal,\n ptrace,\n unix,\n mount,\n umount,\n pivot_root,\n deny {path} rw,\n}}\n"
        );
        std::fs::write(&file, text).expect("write the profile");
        let profile = Profile { name, file, _dir: dir };
        profile.parser("--add").ok();
        Some(profile)
    }

    fn parser(&self, action: &str) -> crate::harness::Out {
        run(Command::new("apparmor_parser").args(["--skip-cache", "--quiet", action]).arg(&self.file))
    }

    fn label(&self) -> String {
        format!("{} (enforce)\n", self.name)
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parser("--remove");
    }
}

fn under(bundle: Bundle, profile: &str) -> Bundle {
    std::fs::write(bundle.rootfs().join("secret"), "told\n").expect("a file");
    bundle.edit(|c| c["process"]["apparmorProfile"] = json!(profile))
}

/// Reads through the file that procfs has had since there were no others.
const LOOK: &str = "cat /proc/self/attr/current; cat /secret";

#[test]
fn a_container_and_what_joins_it_are_under_the_profile() {
    let Some(profile) = Profile::forbidding("/secret") else { return };
    let c = Container::new(under(Bundle::sh(LOOK), &profile.name));
    let out = c.run();
    assert_eq!(out.out, profile.label());
    assert!(out.code == 1 && out.err.contains("/secret': Permission denied"), "{out:?}");

    let c = Container::up(under(Bundle::sh("exec sleep 1000"), &profile.name));
    let out = c.exec(&[], &["/bin/sh", "-c", LOOK]);
    assert_eq!(out.out, profile.label());
    assert!(out.code == 1 && out.err.contains("/secret': Permission denied"), "{out:?}");
    // Only for what joins.
    let Some(other) = Profile::forbidding("/etc/passwd") else { return };
    let out = c.exec(&["--apparmor", &other.name], &["/bin/sh", "-c", LOOK]);
    assert_eq!(out.out, format!("{}told\n", other.label()));
    assert_eq!(c.exec(&[], &["cat", "/proc/1/attr/current"]).out, profile.label());
    c.kill("KILL").ok();
    c.wait_stopped();
}

#[test]
fn without_a_profile_nothing_is_forbidden() {
    if Profile::forbidding("/secret").is_none() {
        return;
    }
    let bundle = Bundle::sh(LOOK);
    std::fs::write(bundle.rootfs().join("secret"), "told\n").expect("a file");
    let out = Container::new(bundle).run().ok();
    assert_eq!(out.out, "unconfined\ntold\n");
}

#[test]
fn hooks_are_not_under_the_profile() {
    let Some(profile) = Profile::forbidding("/secret") else { return };
    let bundle = Bundle::sh("true");
    let (hook, seen) = (bundle.path().join("hook"), bundle.path().join("seen"));
    script(&hook, &format!("cat /proc/self/attr/current >{}", seen.display()));
    let hooks = json!({"createRuntime": [{"path": hook}], "poststart": [{"path": hook}]});
    let c = Container::new(under(bundle, &profile.name).edit(|c| c["hooks"] = hooks));
    c.run().ok();
    assert_eq!(std::fs::read_to_string(seen).expect("the hook ran"), "unconfined\n");
}

/// A guest's files are in a tree of mounts that is attached nowhere, so that rules of files see a path from the root of
/// the file system, not of the container (docs/wasm.md).
#[test]
fn a_wasm_guest_is_under_the_profile() {
    let Some(profile) = Profile::forbidding("/**/secret") else { return };
    if runw_only("wasm") {
        return;
    }
    let steps = ["read", "/secret", "read", "/etc/group", "sleep", "1000"];
    let c = Container::up(under(Bundle::wasm("probe.wasm", &steps), &profile.name));
    c.wait_out("/etc/group");
    let label = std::fs::read_to_string(format!("/proc/{}/attr/current", c.pid())).expect("a label");
    assert_eq!(label, profile.label());
    let out = c.out();
    let mut lines = out.lines();
    assert!(lines.next().is_some_and(|line| line.contains("/secret") && !line.contains("told")), "{out}");
    assert!(lines.next().is_some_and(|line| line.contains("root:x:0")), "{out}");
    c.kill("KILL").ok();
    c.wait_stopped();
}

#[test]
fn a_profile_that_is_not_loaded_fails_create_and_exec() {
    let Some(profile) = Profile::forbidding("/secret") else { return };
    let mut guests = vec![Bundle::sh("true")];
    if !runw_only("wasm") {
        guests.push(Bundle::wasm("probe.wasm", &[]));
    }
    for bundle in guests {
        let mut c = Container::new(under(bundle, "nowhere-loaded"));
        let out = c.create_with(&[]);
        out.refused(&["apparmor", "nowhere-loaded"]);
        nothing_left(&c);
    }
    let c = Container::up(under(Bundle::sh("exec sleep 1000"), &profile.name));
    let out = c.exec(&["--apparmor", "nowhere-loaded"], &["true"]);
    assert!(out.code != 0 && out.err.contains("nowhere-loaded"), "{out:?}");
    until("it runs on", || c.status() == "running");
}
