//! `runw spec`: writes runc's starter config.json.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::Globals;
use crate::executor;
use crate::linux::cgroup;

/// As `runc spec` 1.1 writes them, byte for byte: people, scripts and test suites edit this very text.
const ROOTFUL: &str = include_str!("spec/config.json");
const ROOTLESS: &str = include_str!("spec/rootless.json");
/// The mount namespace, after which runc names the one of cgroups.
const MOUNT: &str = "\n\t\t\t{\n\t\t\t\t\"type\": \"mount\"\n\t\t\t}";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Path to the root of the bundle directory
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Destination file
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Generate a configuration for a rootless container
    #[arg(long)]
    pub rootless: bool,
    /// Make a bundle for this WebAssembly module or component: its copy is the container's program
    #[arg(long, value_name = "FILE")]
    pub wasm: Option<PathBuf>,
}

pub fn run(args: Args, _globals: &Globals) -> Result<u8> {
    let file = args.file.unwrap_or_else(|| "config.json".into());
    let bundle = args.bundle.unwrap_or_default();
    let path = bundle.join(&file);
    let text = starter(args.rootless, cgroup::is_unified());
    let module = args.wasm.as_deref().map(Module::open).transpose()?;
    let text = module.as_ref().map_or(Ok(text.clone()), |module| module.config(&text))?;
    let mut out = match std::fs::File::create_new(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("File {} exists. Remove it first", file.display())
        }
        out => out.with_context(|| format!("cannot create {}", path.display()))?,
    };
    out.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    module.map_or(Ok(()), |module| module.copy_to(&bundle.join("rootfs")))?;
    Ok(0)
}

/// What `--wasm` names.
struct Module<'a> {
    path: &'a Path,
    name: &'a str,
}

impl Module<'_> {
    fn open(path: &Path) -> Result<Module<'_>> {
        let context = || format!("--wasm {}", path.display());
        let mut head = [0; 8];
        let mut file = File::open(path).with_context(context)?;
        ensure!(file.metadata().with_context(context)?.is_file(), "{}: not a regular file", context());
        let is_wasm = file.read_exact(&mut head).is_ok() && executor::is_wasm(&head);
        ensure!(is_wasm, "{}: not a WebAssembly module or component", context());
        let name = path.file_name().and_then(|name| name.to_str()).with_context(context)?;
        Ok(Module { path, name })
    }

    /// The starter with the module as its program, and without the terminal that a shell would want.
    fn config(&self, starter: &str) -> Result<String> {
        let program = serde_json::to_string(&format!("/{}", self.name))?;
        Ok(starter.replacen("\"sh\"", &program, 1).replacen("\"terminal\": true", "\"terminal\": false", 1))
    }

    fn copy_to(&self, rootfs: &Path) -> Result<()> {
        let target = rootfs.join(self.name);
        std::fs::create_dir_all(rootfs).with_context(|| format!("cannot make {}", rootfs.display()))?;
        let file = |path: &Path| std::fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
        if file(&target).is_some_and(|there| file(self.path) == Some(there)) {
            // A file that is copied onto itself is empty afterwards.
            return Ok(());
        }
        std::fs::copy(self.path, &target).with_context(|| format!("cannot write {}", target.display()))?;
        Ok(())
    }
}

/// On cgroup v2 alone with a cgroup namespace, as runc: its root would show the host's whole tree.
fn starter(rootless: bool, unified: bool) -> String {
    let text = if rootless { self::rootless() } else { ROOTFUL.to_owned() };
    if unified {
        text.replacen(MOUNT, &format!("{MOUNT},{}", MOUNT.replace("mount", "cgroup")), 1)
    } else {
        text
    }
}

/// The caller's own ids become root's.
fn rootless() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    ROOTLESS.replacen("\"hostID\": 0", &format!("\"hostID\": {uid}"), 1).replacen(
        "\"hostID\": 0",
        &format!("\"hostID\": {gid}"),
        1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Against the runc of this machine, when there is one (Debian's runc is in the README's first command).
    #[test]
    fn as_runc_writes_it() {
        let dir = std::env::temp_dir().join(format!("runw-spec-{}", std::process::id()));
        for flags in [&["spec"][..], &["spec", "--rootless"]] {
            let ours = starter(flags.len() > 1, cgroup::is_unified());
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir).unwrap();
            let Ok(status) = std::process::Command::new("runc").args(flags).current_dir(&dir).status() else {
                eprintln!("SKIP: no runc to compare with");
                return;
            };
            assert!(status.success());
            let runcs = std::fs::read(dir.join("config.json")).unwrap();
            std::fs::remove_dir_all(&dir).unwrap();
            let mut runcs: Value = serde_json::from_slice(&runcs).unwrap();
            // 1.1 asks for ambient capabilities that are not inheritable, which nobody can have; 1.3 does not.
            runcs["process"]["capabilities"].as_object_mut().unwrap().remove("ambient");
            assert_eq!(serde_json::from_str::<Value>(&ours).unwrap(), runcs, "{flags:?}");
        }
    }

    #[test]
    fn a_module_that_is_in_the_root_already_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.wasm");
        std::fs::write(&path, b"\0asm\x01\0\0\0").unwrap();
        Module::open(&path).unwrap().copy_to(dir.path()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"\0asm\x01\0\0\0");
    }

    #[test]
    fn on_cgroup_v2_there_is_a_cgroup_namespace() {
        for rootless in [false, true] {
            let kinds = |unified| -> Vec<Value> {
                let config: Value = serde_json::from_str(&starter(rootless, unified)).unwrap();
                config["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].clone()).collect()
            };
            let (mut plain, unified) = (kinds(false), kinds(true));
            let mount = plain.iter().position(|kind| kind == "mount").unwrap();
            plain.insert(mount + 1, "cgroup".into());
            assert_eq!(unified, plain);
        }
    }

    #[test]
    fn rootless_maps_the_caller() {
        let config: Value = serde_json::from_str(&rootless()).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        assert_eq!(config["linux"]["uidMappings"][0]["hostID"], uid);
        assert_eq!(config["linux"]["gidMappings"][0]["hostID"], gid);
        assert_eq!(ROOTLESS.matches("\"hostID\": 0").count(), 2);
    }
}
