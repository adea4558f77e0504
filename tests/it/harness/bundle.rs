//! A bundle on disk: Debian's static busybox as root file system, and the configuration that the runtime under
//! test itself writes with `spec`, edited as JSON.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::{runtime, unique};

pub struct Bundle {
    dir: tempfile::TempDir,
    pub config: Value,
    pub id: String,
}

impl Bundle {
    pub fn new<S: AsRef<str>>(args: &[S]) -> Bundle {
        Bundle::on(busybox_root(), args)
    }

    /// With few applets: copying all of them is most of what a case of a sweep costs.
    pub fn sparse<S: AsRef<str>>(args: &[S]) -> Bundle {
        Bundle::on(sparse_root(), args)
    }

    fn on<S: AsRef<str>>(root: &Path, args: &[S]) -> Bundle {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make containers as root: run them with sudo"
        );
        let dir = tempfile::Builder::new().prefix("runw-test-").tempdir().expect("a bundle directory");
        // A user namespace's root must reach the root file system.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod the bundle");
        copy_tree(root, &dir.path().join("rootfs"));
        let id = unique("c");
        let mut config = default_config().clone();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = args.iter().map(AsRef::as_ref).collect();
        config["root"]["readonly"] = json!(false);
        config["linux"]["cgroupsPath"] = json!(format!("/runw-test/{id}"));
        Bundle { dir, config, id }
    }

    /// A shell script run by busybox.
    pub fn sh(text: &str) -> Bundle {
        Bundle::new(&["/bin/sh", "-c", text])
    }

    /// A wasm guest copied to `/app.wasm`, named as argv[0].
    pub fn wasm(guest: &str, args: &[&str]) -> Bundle {
        let mut argv = vec!["/app.wasm"];
        argv.extend(args);
        Bundle::new(&argv).guest(guest)
    }

    pub fn guest(self, name: &str) -> Bundle {
        std::fs::copy(super::guest(name), self.rootfs().join("app.wasm")).expect("copy the guest");
        self
    }

    pub fn edit(mut self, f: impl FnOnce(&mut Value)) -> Bundle {
        f(&mut self.config);
        self
    }

    pub fn mount(self, destination: &str, kind: &str, source: &Path, options: &[&str]) -> Bundle {
        self.edit(|c| {
            let mount =
                json!({"destination": destination, "type": kind, "source": source, "options": options});
            c["mounts"].as_array_mut().expect("mounts").push(mount);
        })
    }

    pub fn bind(self, source: &Path, destination: &str, options: &[&str]) -> Bundle {
        self.mount(destination, "bind", source, options)
    }

    pub fn env(self, pairs: &[&str]) -> Bundle {
        self.edit(|c| c["process"]["env"] = json!(pairs))
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// A directory beside the root file system, for bind mounts.
    pub fn outside(&self, name: &str) -> PathBuf {
        let dir = self.path().join(name);
        std::fs::create_dir_all(&dir).expect("a directory beside the root file system");
        dir
    }

    pub fn save(&self) {
        let text = serde_json::to_vec(&self.config).expect("serialise the configuration");
        std::fs::write(self.path().join("config.json"), text).expect("write config.json");
    }

    /// A static program in C, for what busybox cannot do.
    pub fn program(self, name: &str, code: &str) -> Bundle {
        let source = self.path().join(name).with_extension("c");
        std::fs::write(&source, code).expect("write a program");
        let target = self.rootfs().join("bin").join(name);
        let built = Command::new("cc").args(["-static", "-o"]).arg(target).arg(&source).status();
        assert!(built.is_ok_and(|status| status.success()), "cc failed");
        self
    }

    /// Removes the namespace of this kind from the configuration.
    pub fn without_namespace(self, kind: &str) -> Bundle {
        self.edit(|c| namespaces(c).retain(|n| n["type"] != kind))
    }

    pub fn namespace(self, kind: &str, path: Option<&Path>) -> Bundle {
        self.edit(|c| {
            namespaces(c).retain(|n| n["type"] != kind);
            let mut entry = json!({"type": kind});
            if let Some(path) = path {
                entry["path"] = json!(path);
            }
            namespaces(c).push(entry);
        })
    }

    /// A user namespace where container id 0 is host id 100000, 65536 long.
    pub fn user_namespace(self) -> Bundle {
        self.namespace("user", None).edit(|c| {
            c["linux"]["uidMappings"] = id_map(0, 100_000, 65_536);
            c["linux"]["gidMappings"] = id_map(0, 100_000, 65_536);
        })
    }
}

fn namespaces(config: &mut Value) -> &mut Vec<Value> {
    config["linux"]["namespaces"].as_array_mut().expect("namespaces")
}

pub fn id_map(inside: u32, outside: u32, size: u32) -> Value {
    json!([{"containerID": inside, "hostID": outside, "size": size}])
}

/// All five sets.
pub fn cap(names: &[&str]) -> Value {
    json!({"bounding": names, "effective": names, "permitted": names, "inheritable": names, "ambient": names})
}

/// An executable shell script on the host, for hooks. A process of its own writes it: a child that another test makes
/// meanwhile would have inherited our descriptor, and execve(2) refuses what is open for writing (ETXTBSY).
pub fn script(path: &Path, body: &str) {
    let mut writer = Command::new("install");
    writer.args(["-m", "755", "/dev/stdin"]).arg(path);
    super::spawn_with_stdin(&mut writer, format!("#!/bin/sh\n{body}\n").as_bytes()).wait().ok();
}

fn default_config() -> &'static Value {
    static CONFIG: OnceLock<Value> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory for spec");
        let out = super::run(Command::new(runtime()).arg("spec").current_dir(dir.path()));
        assert_eq!(out.code, 0, "spec: {out:?}");
        let text = std::fs::read(dir.path().join("config.json")).expect("spec wrote no config.json");
        serde_json::from_slice(&text).expect("spec wrote broken JSON")
    })
}

/// Made once for each run: busybox and its applets, the directories and accounts an image would have.
fn busybox_root() -> &'static Path {
    static ROOT: OnceLock<tempfile::TempDir> = OnceLock::new();
    ROOT.get_or_init(|| {
        let applets = Command::new("/bin/busybox").arg("--list").output().expect("busybox --list").stdout;
        make_root(String::from_utf8_lossy(&applets).lines().filter(|a| *a != "busybox"))
    })
    .path()
}

fn sparse_root() -> &'static Path {
    static ROOT: OnceLock<tempfile::TempDir> = OnceLock::new();
    ROOT.get_or_init(|| make_root(["sh", "sleep", "echo"].into_iter())).path()
}

fn make_root<'a>(applets: impl Iterator<Item = &'a str>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a root file system");
    let root = dir.path();
    for d in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var", "mnt"] {
        std::fs::create_dir(root.join(d)).expect("mkdir in the root file system");
    }
    std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).expect("chmod tmp");
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is not installed");
    for applet in applets {
        symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
    }
    let passwd = "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n";
    std::fs::write(root.join("etc/passwd"), passwd).expect("passwd");
    std::fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").expect("group");
    dir
}

fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
    assert!(status.success(), "cp -a failed");
    std::fs::set_permissions(to, PermissionsExt::from_mode(0o755)).expect("chmod the root file system");
}
