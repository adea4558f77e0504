//! `compose SOCKET PLUG OUT`: the plug's exports become the socket's imports, in one component.

use anyhow::{Context, Result};
use wac_graph::{CompositionGraph, EncodeOptions, plug, types::Package};

fn main() -> Result<()> {
    let [_, socket, with, out] =
        std::env::args().collect::<Vec<_>>().try_into().ok().context("usage: compose SOCKET PLUG OUT")?;
    let mut graph = CompositionGraph::new();
    let mut add = |name, path: &str| -> Result<_> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {path}"))?;
        let package = Package::from_bytes(name, None, bytes, graph.types_mut())?;
        Ok(graph.register_package(package)?)
    };
    let (socket, with) = (add("test:socket", &socket)?, add("test:plug", &with)?);
    plug(&mut graph, vec![with], socket)?;
    std::fs::write(&out, graph.encode(EncodeOptions::default())?).with_context(|| format!("writing {out}"))
}
