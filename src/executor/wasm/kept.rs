//! What `runw cache` shows and does: the entries of the cache as an operator sees them. Loads no code.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cache::{Cache, Counter, Held, hex};
use super::settings;
use super::{Kind, compile, engine};
use crate::executor::Host;

/// The longest name kept; the image chooses it.
const LONGEST_NAME: usize = 255;

/// What an entry is of, for people: nothing here is believed when code is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// sha256 of the module's file.
    pub module: String,
    /// Of the first container that had it.
    pub name: String,
    pub kind: String,
    pub fuel: bool,
    pub engine: String,
    /// Digest of the engine's configuration.
    configuration: String,
    pub cpu: String,
}

impl Note {
    pub fn of(bytes: &[u8], kind: Kind, fuel: bool, name: &str) -> Note {
        Note {
            module: hex(&Sha256::digest(bytes)),
            name: name.chars().take(LONGEST_NAME).collect(),
            kind: if kind == Kind::Core { "module" } else { "component" }.to_owned(),
            fuel,
            engine: engine::VERSION.to_owned(),
            configuration: configuration(),
            cpu: engine::cpu(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        // Strings and a flag: there is nothing in it that could fail to become JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Why no container will use the entry on this machine; `None` when one may.
    fn useless(&self) -> Option<String> {
        if self.engine != engine::VERSION {
            return Some(format!("made by wasmtime {}", self.engine));
        }
        if self.cpu != engine::cpu() {
            return Some("made for another CPU".to_owned());
        }
        (self.configuration != configuration()).then(|| "made by another runw".to_owned())
    }
}

fn configuration() -> String {
    hex(&Sha256::digest(engine::CONFIGURATION))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub key: String,
    pub size: u64,
    /// To the hour.
    #[serde(skip)]
    pub used: SystemTime,
    /// Why no container will use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub useless: Option<String>,
    #[serde(flatten)]
    pub note: Option<Note>,
}

pub struct Contents {
    pub dir: PathBuf,
    /// Bytes that may be kept.
    pub limit: u64,
    pub hits: u64,
    pub misses: u64,
    /// The last used first.
    pub entries: Vec<Entry>,
}

/// What of the cache goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prune {
    All,
    /// What is of no use, and then what was used longest ago until the rest has so many bytes; `None` is the limit
    /// in the settings.
    To(Option<u64>),
}

/// Where it is, its limit, and the cache itself if there is one yet.
fn opened(host: &Host) -> Result<(PathBuf, u64, Option<Cache>)> {
    let settings = compile::operator(host)?;
    let dir = settings::cache_dir(&settings, host.rootless)?;
    let limit = settings.wasm.cache_size;
    let cache = Cache::existing(&dir, limit)?;
    Ok((dir, limit, cache))
}

pub fn contents(host: &Host) -> Result<Contents> {
    let (dir, limit, cache) = opened(host)?;
    let count = |what| cache.as_ref().map_or(0, |cache| cache.counted(what));
    let (hits, misses) = (count(Counter::Hits), count(Counter::Misses));
    let mut entries = cache.as_ref().map_or(Ok(Vec::new()), entries)?;
    entries.sort_by(|one, other| (other.used, &one.key).cmp(&(one.used, &other.key)));
    Ok(Contents { dir, limit, hits, misses, entries })
}

fn entries(cache: &Cache) -> Result<Vec<Entry>> {
    let entry = |Held { key, size, used }| {
        let note: Option<Note> = cache.note(&key).and_then(|note| serde_json::from_slice(&note).ok());
        let useless = note.as_ref().map_or(Some("damaged".to_owned()), Note::useless);
        Entry { key, size, used, useless, note }
    };
    Ok(cache.held()?.into_iter().map(entry).collect())
}

/// The entries removed. Containers that run keep what they have mapped.
pub fn prune(host: &Host, what: Prune) -> Result<Vec<Entry>> {
    let (_, limit, cache) = opened(host)?;
    let Some(cache) = cache else { return Ok(Vec::new()) };
    let limit = match what {
        Prune::All => 0,
        Prune::To(size) => size.unwrap_or(limit),
    };
    let mut entries = entries(&cache)?;
    entries.sort_by_key(|entry| (entry.useless.is_none(), entry.used));
    let mut total: u64 = entries.iter().map(|entry| entry.size).sum();
    entries.retain(|entry| {
        let goes =
            (entry.useless.is_some() || total > limit || what == Prune::All) && cache.remove(&entry.key);
        if goes {
            total -= entry.size;
        }
        goes
    });
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_engine_or_cpu_made_is_of_no_use() {
        let note = Note::of(b"bytes", Kind::Core, false, "/app.wasm");
        assert_eq!(note.useless(), None);
        assert_eq!(serde_json::from_slice::<Note>(&note.bytes()).unwrap(), note);
        for (other, why) in [
            (Note { engine: "47.0.0".to_owned(), ..note.clone() }, "made by wasmtime 47.0.0"),
            (Note { cpu: "x86_64".to_owned(), ..note.clone() }, "made for another CPU"),
            (Note { configuration: String::new(), ..note.clone() }, "made by another runw"),
        ] {
            assert_eq!(other.useless().as_deref(), Some(why));
        }
    }

    #[test]
    fn a_name_of_any_length_is_cut_between_letters() {
        let note = Note::of(b"", Kind::Component, false, &"ä".repeat(1000));
        assert_eq!(note.name.chars().count(), LONGEST_NAME);
    }
}
