//! `runw spec`: writes runc's starter config.json.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::Globals;

/// As `runc spec` 1.1 writes them, byte for byte: people, scripts and test suites edit this very text.
const ROOTFUL: &str = include_str!("spec/config.json");
const ROOTLESS: &str = include_str!("spec/rootless.json");

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
}

pub fn run(args: Args, _globals: &Globals) -> Result<u8> {
    let file = args.file.unwrap_or_else(|| "config.json".into());
    let path = args.bundle.unwrap_or_default().join(&file);
    let text = if args.rootless { rootless() } else { ROOTFUL.to_owned() };
    let mut out = match std::fs::File::create_new(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("File {} exists. Remove it first", file.display())
        }
        out => out.with_context(|| format!("cannot create {}", path.display()))?,
    };
    out.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(0)
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
        for (flags, ours) in [(&["spec"][..], ROOTFUL.to_owned()), (&["spec", "--rootless"][..], rootless())]
        {
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
    fn rootless_maps_the_caller() {
        let config: Value = serde_json::from_str(&rootless()).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        assert_eq!(config["linux"]["uidMappings"][0]["hostID"], uid);
        assert_eq!(config["linux"]["gidMappings"][0]["hostID"], gid);
        assert_eq!(ROOTLESS.matches("\"hostID\": 0").count(), 2);
    }
}
