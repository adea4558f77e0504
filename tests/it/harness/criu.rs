//! CRIU: the host's own, or Debian's from the engines' root, run on the host by a wrapper.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::{script, unique};

/// A PATH on which `criu` and the programs it calls are found; `None` where there is none to be had.
pub fn criu_path() -> Option<&'static OsString> {
    static PATH: OnceLock<Option<OsString>> = OnceLock::new();
    PATH.get_or_init(|| {
        let host = std::env::var_os("PATH").unwrap_or_default();
        if works(&host) {
            return Some(host);
        }
        let mut path = OsString::from(wrappers()?);
        path.push(":");
        path.push(&host);
        works(&path).then_some(path)
    })
    .as_ref()
}

fn works(path: &OsString) -> bool {
    let mut check = Command::new("criu");
    check.arg("check").env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null());
    check.status().is_ok_and(|status| status.success())
}

fn wrappers() -> Option<PathBuf> {
    let make = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engines/root.py");
    let out = Command::new(make).stderr(Stdio::inherit()).output().ok().filter(|out| out.status.success())?;
    let root = PathBuf::from(String::from_utf8(out.stdout).ok()?.trim());
    let dir = std::env::temp_dir().join(unique("criu"));
    std::fs::create_dir(&dir).expect("a directory for CRIU's wrappers");
    std::os::unix::fs::symlink(root.join("onhost/criu"), dir.join("criu")).expect("link criu");
    // CRIU locks a network namespace by these.
    for name in ["iptables-restore", "ip6tables-restore"] {
        let (lib, root) = (root.join("usr/lib/x86_64-linux-gnu"), root.display());
        let (lib, tables) = (lib.display(), Path::new("usr/sbin/xtables-nft-multi").display());
        let body = format!(
            "export XTABLES_LIBDIR={lib}/xtables\n\
             exec {root}/usr/lib64/ld-linux-x86-64.so.2 --library-path {lib} --argv0 {name} {root}/{tables} \"$@\""
        );
        script(&dir.join(name), &body);
    }
    Some(dir)
}
