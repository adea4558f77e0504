//! The ladder of design section 5: what the caller wished for, and what the bytes of argv[0] say. Pure decisions;
//! finding the file is `look`'s. A native container can never be broken here: without an explicit wish only
//! bytes that the kernel itself refuses to execute are taken for wasm.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::Selection;

/// The largest module we read: beyond it nobody ships wasm, and a create must not be made to read a disk image.
const MAX_SIZE: u64 = 256 << 20;

const CORE: [u8; 8] = *b"\0asm\x01\0\0\0";
const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";

/// What the caller said, strongest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    Native,
    /// Nothing was said: the file decides.
    Auto,
    /// Wasm, and anything else is an error that names who said so; `text` when `.wat` is accepted too.
    Wasm {
        because: String,
        text: bool,
    },
}

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Core,
    Component,
    Text,
}

pub fn wish(selection: &Selection) -> Result<Wish> {
    let name = selection.process.args().as_ref().and_then(|args| args.first()).map_or("", String::as_str);
    let wish = wished(selection.annotations, selection.called_as, selection.handler, name)?;
    // The annotations speak of the image's entry point; `exec sh` beside it is whatever `sh` is.
    Ok(if selection.exec && wish != Wish::Native { Wish::Auto } else { wish })
}

fn wished(
    annotations: &HashMap<String, String>,
    called_as: &str,
    handler: Option<&str>,
    name: &str,
) -> Result<Wish> {
    let get = |key: &str| annotations.get(key).map(String::as_str);
    // containerd and CRI-O name the pause container differently.
    if get("io.kubernetes.cri.container-type") == Some("sandbox")
        || get("io.kubernetes.cri-o.ContainerType") == Some("sandbox")
    {
        return Ok(Wish::Native);
    }
    if let Some(value) = get("run.oci.handler") {
        return match value {
            "native" => Ok(Wish::Native),
            "wasm" => Ok(wasm(format!("annotation run.oci.handler={value}"), true)),
            "wasm-smart" => Ok(smart(name, "annotation run.oci.handler=wasm-smart", true)),
            // crun falls through to native here and so starts something else than was asked for.
            other => {
                bail!("annotation run.oci.handler: unknown handler {other:?} (wasm, wasm-smart, native)")
            }
        };
    }
    // Kubernetes gives a pod's annotations to each of its containers, native ones too (crun #829).
    let in_a_pod =
        get("io.kubernetes.cri.container-type").or(get("io.kubernetes.cri-o.ContainerType")).is_some();
    match get("module.wasm.image/variant") {
        Some("compat") if in_a_pod => {
            return Ok(smart(name, "annotation module.wasm.image/variant=compat", true));
        }
        Some("compat") => return Ok(wasm("annotation module.wasm.image/variant=compat".to_owned(), true)),
        Some("compat-smart") => {
            return Ok(smart(name, "annotation module.wasm.image/variant=compat-smart", true));
        }
        // Other words of this annotation mean nothing to crun either.
        _ => {}
    }
    match handler {
        Some("wasm" | "wasm-smart") => return Ok(smart(name, "--handler wasm", false)),
        Some("native") => return Ok(Wish::Native),
        Some(other) => bail!("--handler: unknown handler {other:?} (wasm, wasm-smart, native)"),
        None => {}
    }
    let base = Path::new(called_as).file_name().and_then(|base| base.to_str()).unwrap_or_default();
    if matches!(base, "crun-wasm" | "runw-wasm") {
        return Ok(smart(name, base, false));
    }
    Ok(platform(annotations).map_or(Wish::Auto, |because| wasm(because, false)))
}

fn wasm(because: String, text: bool) -> Wish {
    Wish::Wasm { because, text }
}

/// crun's `-smart`: the name decides, so that native side-cars of an annotated pod stay native. We add the magic.
fn smart(name: &str, because: &str, text: bool) -> Wish {
    let file = name.rsplit_once('#').map_or(name, |(file, _)| file);
    let is_wasm = |name: &str| name.ends_with(".wasm") || (text && name.ends_with(".wat"));
    if is_wasm(name) || is_wasm(file) { wasm(because.to_owned(), text) } else { Wish::Auto }
}

/// The platform words that image tools leave in a bundle (image-spec conversion.md; nerdctl's label).
fn platform(annotations: &HashMap<String, String>) -> Option<String> {
    let os = |word: &str| matches!(word, "wasi" | "wasip1" | "wasip2" | "wasip3");
    let arch = |word: &str| matches!(word, "wasm" | "wasm32" | "wasm64");
    let says = |key: &str, is: &dyn Fn(&str) -> bool| {
        let value = annotations.get(key)?;
        is(&value.to_ascii_lowercase()).then(|| format!("annotation {key}={value}"))
    };
    says("org.opencontainers.image.os", &os)
        .or_else(|| says("org.opencontainers.image.architecture", &arch))
        .or_else(|| says("nerdctl/platform", &|value| value.split('/').any(|word| os(word) || arch(word))))
}

/// What the file is, by its first bytes; `None` is native. An error where the wish and the file disagree.
pub fn judge(file: &OwnedFd, wish: &Wish, name: &str) -> Result<Option<Verdict>> {
    let mut head = [0; 64];
    let mut len = 0;
    while len < head.len() {
        match rustix::io::pread(file, &mut head[len..], len as u64) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(rustix::io::Errno::INTR) => {}
            // What cannot be read cannot be wasm for us; the kernel may still execute it.
            Err(_) if *wish == Wish::Auto => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {name:?}")),
        }
    }
    verdict(&head[..len], wish, name)
}

pub fn is_wasm(head: &[u8]) -> bool {
    head.starts_with(&CORE) || head.starts_with(&COMPONENT)
}

fn verdict(head: &[u8], wish: &Wish, name: &str) -> Result<Option<Verdict>> {
    if head.starts_with(&CORE) {
        return Ok(Some(Verdict::Core));
    }
    if head.starts_with(&COMPONENT) {
        return Ok(Some(Verdict::Component));
    }
    if is_serialized(head) {
        bail!(
            "{name:?} is native code serialized by wasmtime, which is never run from an image: ship the .wasm"
        );
    }
    let Wish::Wasm { because, text } = wish else { return Ok(None) };
    if head.starts_with(b"\0asm") && head.len() >= 8 {
        bail!("{name:?} is WebAssembly of an unknown version ({:02x?})", &head[4..8]);
    }
    // No text starts with a NUL or with ELF's 0x7f; what is no wasm text fails in the parser, by name.
    if *text && looks_like_text(head) {
        return Ok(Some(Verdict::Text));
    }
    bail!("{name:?} is not WebAssembly, but {because} says it is")
}

fn looks_like_text(head: &[u8]) -> bool {
    let start = head.iter().position(|byte| !byte.is_ascii_whitespace());
    start.is_some_and(|at| head[at] == b'(' || head[at..].starts_with(b";;"))
}

/// wasmtime-environ's ELFOSABI_WASMTIME, in an ELF of a type that the kernel does not execute.
fn is_serialized(head: &[u8]) -> bool {
    const ELFOSABI_WASMTIME: u8 = 200;
    const ET_EXEC: u8 = 2;
    const ET_DYN: u8 = 3;
    head.len() > 17
        && head.starts_with(b"\x7fELF")
        && head[7] == ELFOSABI_WASMTIME
        && !matches!(head[16], ET_EXEC | ET_DYN)
}

/// argv[0] is nowhere: native reports that in runc's words, unless wasm was demanded.
pub fn nothing(wish: &Wish, name: &str) -> Result<()> {
    match wish {
        Wish::Wasm { because, .. } => {
            bail!("exec: {name:?}: no such file or directory (wasm, as {because} says)")
        }
        Wish::Native | Wish::Auto => Ok(()),
    }
}

/// The bytes that are hashed and compiled, read once from the descriptor that was judged.
pub fn read_whole(file: OwnedFd, name: &str) -> Result<Vec<u8>> {
    let mut file = File::from(file);
    let size = file.metadata().with_context(|| format!("stat {name:?}"))?.len();
    ensure!(size <= MAX_SIZE, "{name:?} is {size} bytes; the largest module is {MAX_SIZE}");
    let mut bytes = Vec::with_capacity(size as usize);
    // It may grow while we read.
    (&mut file).take(MAX_SIZE).read_to_end(&mut bytes).with_context(|| format!("read {name:?}"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(
        annotations: &[(&str, &str)],
        called_as: &str,
        handler: Option<&str>,
        name: &str,
    ) -> Result<Wish> {
        let map = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        wished(&map, called_as, handler, name)
    }

    fn is_wasm(wish: Result<Wish>, with_text: bool) -> bool {
        matches!(wish, Ok(Wish::Wasm { text, .. }) if text == with_text)
    }

    #[test]
    fn sandboxes_are_native_whatever_else_is_said() {
        for key in ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"] {
            let wish =
                said(&[(key, "sandbox"), ("run.oci.handler", "wasm")], "runw-wasm", Some("wasm"), "/a.wasm");
            assert_eq!(wish.unwrap(), Wish::Native);
            assert_eq!(said(&[(key, "container")], "runw", None, "/a").unwrap(), Wish::Auto);
        }
    }

    #[test]
    fn annotations_are_crun_s_words() {
        for (key, always, smart) in [
            ("run.oci.handler", "wasm", "wasm-smart"),
            ("module.wasm.image/variant", "compat", "compat-smart"),
        ] {
            assert!(is_wasm(said(&[(key, always)], "runw", None, "/pause"), true));
            assert_eq!(said(&[(key, smart)], "runw", None, "/pause").unwrap(), Wish::Auto);
            assert!(is_wasm(said(&[(key, smart)], "runw", None, "/a.wat"), true));
            assert!(is_wasm(said(&[(key, smart)], "runw", None, "/a.wasm#f"), true));
        }
        assert_eq!(
            said(&[("run.oci.handler", "native")], "runw-wasm", None, "/a.wasm").unwrap(),
            Wish::Native
        );
        let unknown = said(&[("run.oci.handler", "krun")], "runw", None, "/a").unwrap_err().to_string();
        assert!(unknown.contains("run.oci.handler") && unknown.contains("krun"));
        assert_eq!(said(&[("module.wasm.image/variant", "x")], "runw", None, "/a").unwrap(), Wish::Auto);
    }

    #[test]
    fn compat_of_a_pod_is_each_container_s_and_no_more_than_smart() {
        for key in ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"] {
            let wish = |name| {
                said(&[(key, "container"), ("module.wasm.image/variant", "compat")], "runw", None, name)
            };
            assert_eq!(wish("/envoy").unwrap(), Wish::Auto);
            assert!(is_wasm(wish("/a.wasm"), true));
        }
    }

    #[test]
    fn the_caller_s_name_and_handler_mean_wasm_smart_without_text() {
        for (called, handler) in [("/usr/bin/crun-wasm", None), ("runw-wasm", None), ("runw", Some("wasm"))] {
            assert_eq!(said(&[], called, handler, "/pause").unwrap(), Wish::Auto);
            assert_eq!(said(&[], called, handler, "/a.wat").unwrap(), Wish::Auto);
            assert!(is_wasm(said(&[], called, handler, "/a.wasm"), false));
        }
        assert!(said(&[], "runw", Some("krun"), "/a").unwrap_err().to_string().contains("krun"));
    }

    #[test]
    fn platform_words_expect_wasm() {
        for (key, value) in [
            ("org.opencontainers.image.os", "Wasip1"),
            ("org.opencontainers.image.architecture", "wasm32"),
            ("nerdctl/platform", "wasi/wasm"),
        ] {
            assert!(is_wasm(said(&[(key, value)], "runw", None, "/a"), false), "{key}={value}");
        }
        let linux = [("org.opencontainers.image.os", "linux"), ("nerdctl/platform", "linux/amd64")];
        assert_eq!(said(&linux, "runw", None, "/a").unwrap(), Wish::Auto);
    }

    #[test]
    fn bytes_decide_and_a_disagreement_names_who_said_wasm() {
        let wasm = Wish::Wasm { because: "annotation x=y".to_owned(), text: false };
        let text = Wish::Wasm { because: "annotation x=y".to_owned(), text: true };
        for wish in [&Wish::Auto, &wasm] {
            assert_eq!(verdict(&CORE, wish, "/a").unwrap(), Some(Verdict::Core));
            assert_eq!(verdict(&COMPONENT, wish, "/a").unwrap(), Some(Verdict::Component));
        }
        for native in
            [&b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0"[..], b"#!/bin/sh", b"", b"\0asm", b"(module)"]
        {
            assert_eq!(verdict(native, &Wish::Auto, "/a").unwrap(), None);
            assert!(verdict(native, &wasm, "/a").unwrap_err().to_string().contains("annotation x=y"));
        }
        assert_eq!(verdict(b"  ;; hello\n(module)", &text, "/a").unwrap(), Some(Verdict::Text));
        assert!(
            verdict(b"\0asm\x0a\0\x01\0", &text, "/a").unwrap_err().to_string().contains("unknown version")
        );
    }

    #[test]
    fn wasmtime_s_own_elf_is_refused_but_an_executable_of_that_abi_is_not() {
        let mut elf = *b"\x7fELF\x02\x01\x01\xc8\0\0\0\0\0\0\0\0\x00\0\0\0";
        assert!(verdict(&elf, &Wish::Auto, "/a").is_err());
        elf[16] = 2;
        assert_eq!(verdict(&elf, &Wish::Auto, "/a").unwrap(), None);
    }
}
