//! Puts into the binary what `--version` says of it: the commit, and the wasmtime that Cargo.lock chose. Gives it its entry
//! point, which is ours (src/linux/first.rs), the functions and constants of a start side by side (benches/order/order.py), and
//! no index of unwind tables, since nothing unwinds.

use std::process::Command;

fn main() {
    println!("cargo:rustc-env=RUNW_COMMIT={}", commit().unwrap_or_else(|| "unknown".into()));
    println!("cargo:rustc-env=RUNW_WASMTIME={}", wasmtime().unwrap_or_else(|| "unknown".into()));
    println!("cargo:rustc-link-arg-bins=-Wl,--entry=runw_start,--no-eh-frame-hdr");
    // Relative to where cargo calls the linker from, so that checkouts may share a target directory.
    let (functions, constants) = ("benches/order/order.txt", "benches/order/order.ld");
    println!("cargo:rustc-link-arg-bins=-Wl,--symbol-ordering-file={functions},--no-warn-symbol-ordering");
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{constants}");
    println!("cargo:rerun-if-changed={functions}");
    println!("cargo:rerun-if-changed={constants}");
    println!("cargo:rerun-if-changed=Cargo.lock");
    println!("cargo:rerun-if-changed=build.rs");
}

fn commit() -> Option<String> {
    // The reflog of HEAD is appended to by every commit and checkout, of a worktree too.
    println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|out| !out.is_empty());
    Some(if dirty { commit + "-dirty" } else { commit })
}

fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8(out.stdout).ok()?.trim().to_owned())
}

fn wasmtime() -> Option<String> {
    let lock = std::fs::read_to_string("Cargo.lock").ok()?;
    let (_, after) = lock.split_once("name = \"wasmtime\"\nversion = \"")?;
    Some(after.split_once('"')?.0.to_owned())
}
