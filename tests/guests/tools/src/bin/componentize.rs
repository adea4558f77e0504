//! `componentize IN OUT [WIT WORLD]`: text becomes binary; a core module of WASI 0.1 becomes a component of WASI 0.2,
//! a command if it has `_start`. The world is given where the module does not carry it (C's bindings do).

use std::path::Path;

use anyhow::{Context, Result, bail};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER as COMMAND, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER as REACTOR,
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (input, output, world) = match words[..] {
        [input, output] => (input, output, None),
        [input, output, wit, world] => (input, output, Some((wit, world))),
        _ => bail!("usage: componentize IN OUT [WIT WORLD]"),
    };
    let mut bytes = std::fs::read(input).with_context(|| format!("reading {input}"))?;
    if let Some((wit, world)) = world {
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_path(wit)?;
        let world = resolve.select_world(&[package], Some(world))?;
        embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8, false)?;
    }
    let out = if Path::new(input).extension().is_some_and(|e| e == "wat") {
        wat::parse_bytes(&bytes).with_context(|| format!("parsing {input}"))?.into_owned()
    } else {
        // As an export has it: the length, the name, and that it is a function.
        let command = bytes.windows(8).any(|w| w == b"\x06_start\0");
        ComponentEncoder::default()
            .module(&bytes)
            .and_then(|e| e.adapter("wasi_snapshot_preview1", if command { COMMAND } else { REACTOR }))
            .and_then(|mut e| e.encode())
            .with_context(|| format!("making a component of {input}"))?
    };
    std::fs::write(output, out).with_context(|| format!("writing {output}"))
}
