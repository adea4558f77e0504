//! Loading compiled code: the one place outside `linux` with `unsafe`, since wasmtime's deserialize is.
//!
//! Why it holds: an artifact comes from `cache` only. The parent opened it below a 0700 directory whose owner and
//! mode it verified, verified owner, mode and digest of the file itself, and passes that descriptor; no path and
//! no descriptor of an image gets here. Entries are written once, to a temporary name, made 0444, renamed, and
//! afterwards only unlinked, so the mapping does not change under us.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::StatVfsMountFlags;
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use super::world::plain;

pub fn module(engine: &Engine, artifact: OwnedFd) -> Result<Module> {
    if let Some(bytes) = unmappable(&artifact)? {
        // SAFETY: see the module's text; bytes of the verified artifact.
        return unsafe { Module::deserialize(engine, bytes) }.map_err(plain);
    }
    // SAFETY: see the module's text: bytes written by this engine's version and verified, never changed later.
    unsafe { Module::deserialize_open_file(engine, File::from(artifact)) }.map_err(plain)
}

/// wasmtime has no descriptor form for components, so the current directory must be `/proc/self/fd`.
pub fn component(engine: &Engine, artifact: &OwnedFd) -> Result<Component> {
    if let Some(bytes) = unmappable(artifact)? {
        // SAFETY: see the module's text; bytes of the verified artifact.
        return unsafe { Component::deserialize(engine, bytes) }.map_err(plain);
    }
    // SAFETY: see the module's text; the relative name is a magic link to that very descriptor's inode.
    unsafe { Component::deserialize_file(engine, artifact.as_raw_fd().to_string()) }.map_err(plain)
}

/// mmap(PROT_EXEC) of a file on a noexec file system fails (EPERM).
pub fn is_noexec(artifact: &OwnedFd) -> Result<bool> {
    let vfs = rustix::fs::fstatvfs(artifact).context("statvfs of the cache")?;
    Ok(vfs.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

/// The bytes, when they cannot be mapped.
fn unmappable(artifact: &OwnedFd) -> Result<Option<Vec<u8>>> {
    if !is_noexec(artifact)? {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let mut file = File::from(artifact.try_clone().context("dup")?);
    file.read_to_end(&mut bytes).context("read compiled code")?;
    Ok(Some(bytes))
}
