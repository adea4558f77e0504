//! `componentize IN OUT`: text becomes binary; a core module of WASI 0.1 becomes a command component of WASI 0.2.

use anyhow::{Context, Result};
use wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER;
use wit_component::ComponentEncoder;

fn main() -> Result<()> {
    let [_, input, output] = std::env::args().collect::<Vec<_>>().try_into().ok().context("usage: componentize IN OUT")?;
    let bytes = std::fs::read(&input).with_context(|| format!("reading {input}"))?;
    let out = if input.ends_with(".wat") {
        wat::parse_bytes(&bytes).with_context(|| format!("parsing {input}"))?.into_owned()
    } else {
        ComponentEncoder::default()
            .module(&bytes)
            .and_then(|e| e.adapter("wasi_snapshot_preview1", WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER))
            .and_then(|e| e.validate(true).encode())
            .with_context(|| format!("making a component of {input}"))?
    };
    std::fs::write(&output, out).with_context(|| format!("writing {output}"))
}
