//! `runw cache`: what compiled WebAssembly is kept, and how an operator removes it or compiles ahead of containers.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::{Globals, common, update};
use crate::executor::{self, CacheContents, CacheEntry, Prune};
use crate::log;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// list: table or json
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// prune: remove everything, not only what is of no use or more than the settings keep
    #[arg(short, long)]
    pub all: bool,
    /// prune: remove what was used longest ago until this much is left
    #[arg(long, value_name = "SIZE", value_parser = update::size)]
    pub size: Option<i64>,
    /// warm: for containers with a fuel limit, whose code counts what it does
    #[arg(long)]
    pub fuel: bool,
    /// list, prune or warm
    #[arg(value_name = "ACTION")]
    pub action: String,
    /// warm: the modules to compile
    #[arg(value_name = "FILE", num_args = 0..)]
    pub files: Vec<PathBuf>,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    fits(&args)?;
    let host = common::host(globals);
    match args.action.as_str() {
        "list" => {
            let contents = executor::cache_contents(&host)?;
            super::print(&match args.format.as_deref() {
                None | Some("table") => table(&contents),
                Some("json") => super::go_json(&document(&contents)?.to_string()) + "\n",
                Some(_) => bail!("invalid format option"),
            })?;
        }
        "prune" => {
            let size = args.size.map(u64::try_from).transpose()?;
            let removed = executor::prune_cache(&host, if args.all { Prune::All } else { Prune::To(size) })?;
            let bytes: u64 = removed.iter().map(|entry| entry.size).sum();
            super::print(&format!("removed {} entries, {bytes} bytes\n", removed.len()))?;
        }
        _ => {
            for file in &args.files {
                let made = executor::warm(file, args.fuel, &host)?;
                let what = if made { "compiled" } else { "was compiled already" };
                super::print(&format!("{}: {what}\n", file.display()))?;
            }
        }
    }
    Ok(0)
}

/// Each option belongs to one action.
fn fits(args: &Args) -> Result<()> {
    let Args { format, all, size, fuel, action, files } = args;
    ensure!(
        ["list", "prune", "warm"].contains(&action.as_str()),
        "cache {action}: expected list, prune or warm"
    );
    for (given, option, of) in [
        (format.is_some(), "--format", "list"),
        (*all, "--all", "prune"),
        (size.is_some(), "--size", "prune"),
        (*fuel, "--fuel", "warm"),
        (!files.is_empty(), "FILE", "warm"),
    ] {
        ensure!(!given || action == of, "cache {action}: {option} is for cache {of}");
    }
    ensure!(action != "warm" || !files.is_empty(), "cache warm: which files?");
    ensure!(!all || size.is_none(), "cache prune: --all leaves no --size");
    ensure!(size.is_none_or(|size| size >= 0), "cache prune: --size must not be negative");
    Ok(())
}

fn last_used(entry: &CacheEntry) -> String {
    log::timestamp(entry.used, false)
}

fn total(contents: &CacheContents) -> u64 {
    contents.entries.iter().map(|entry| entry.size).sum()
}

fn document(contents: &CacheContents) -> Result<Value> {
    let entry = |entry: &CacheEntry| -> Result<Value> {
        let mut value = serde_json::to_value(entry)?;
        value["lastUsed"] = last_used(entry).into();
        value["usable"] = entry.useless.is_none().into();
        Ok(value)
    };
    Ok(json!({
        "directory": contents.dir,
        "limit": contents.limit,
        "bytes": total(contents),
        "hits": contents.hits,
        "misses": contents.misses,
        "entries": contents.entries.iter().map(entry).collect::<Result<Vec<_>>>()?,
    }))
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

fn table(contents: &CacheContents) -> String {
    let mut out = format!(
        "{:<16}{:<14}{:<13}{:<24}{:<26}{}\n",
        "MODULE", "KIND", "SIZE", "LAST USED", "USABLE", "NAME"
    );
    for entry in &contents.entries {
        let (module, kind, name) = match &entry.note {
            Some(note) if note.fuel => {
                (short(&note.module), format!("{}+fuel", note.kind), note.name.as_str())
            }
            Some(note) => (short(&note.module), note.kind.clone(), note.name.as_str()),
            None => ("-", "-".to_owned(), "-"),
        };
        let usable = entry.useless.as_deref().map_or("yes".to_owned(), |why| format!("no: {why}"));
        // The name is the image's: it must not speak to a terminal.
        let name = name.escape_debug();
        let used = last_used(entry);
        out.push_str(&format!("{module:<16}{kind:<14}{:<13}{used:<24}{usable:<26}{name}\n", entry.size));
    }
    let (hits, misses) = (contents.hits, contents.misses);
    out.push_str(&format!(
        "{} entries, {} of {} bytes in {}; found {hits} times, compiled {misses} times\n",
        contents.entries.len(),
        total(contents),
        contents.limit,
        contents.dir.display()
    ));
    out
}
