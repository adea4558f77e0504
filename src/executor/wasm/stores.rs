//! What is behind `wasi:keyvalue`: stores in memory, which live as long as the container and count as its memory, and
//! stores in files of the container. Shared by all instances; knows nothing of the interface.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, RangeInclusive};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use rustix::fs::{Mode, OFlags};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::budget::{Budget, Share};
use super::files;
use super::grants::KeyValue;

/// The store that is there without any annotation, in memory unless one gives it a file. Its other name is "".
const DEFAULT: &str = "default";
/// Keys in one answer.
const PAGE: usize = 1000;
/// Of a file's pages, in memory.
const CACHE: usize = 4 << 20;
/// What a pair takes beside its bytes, roughly: the tree's node and two allocations.
const PAIR: usize = 96;
const TABLE: TableDefinition<&str, &[u8]> = TableDefinition::new("bucket");

#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    NoSuchStore,
    Denied,
    Other(String),
}

impl<E: std::error::Error> From<E> for Fault {
    fn from(error: E) -> Fault {
        Fault::Other(error.to_string())
    }
}

/// Where a list of keys goes on.
pub enum Start {
    /// After so many keys.
    At(u64),
    After(String),
}

pub struct Stores {
    granted: bool,
    named: HashMap<String, Arc<Store>>,
}

pub enum Store {
    Memory(Mutex<Memory>),
    File(Database),
}

pub struct Memory {
    pairs: BTreeMap<String, Vec<u8>>,
    share: Share,
}

impl Stores {
    /// None, for a guest that asks for no store.
    pub fn none() -> Stores {
        Stores { granted: false, named: HashMap::new() }
    }

    /// Opens the files, so that one that is missing, broken or in use fails create.
    pub fn open(settings: &KeyValue, tree: &OwnedFd, budget: &Budget) -> Result<Stores> {
        let mut named = HashMap::new();
        if settings.granted {
            let memory = Memory { pairs: BTreeMap::new(), share: budget.share() };
            named.insert(DEFAULT.to_owned(), Arc::new(Store::Memory(Mutex::new(memory))));
            for (name, path) in &settings.files {
                let store = file(tree, path)
                    .with_context(|| format!("annotation dev.runw.keyvalue.{name}: open {path}"))?;
                named.insert(name.clone(), Arc::new(store));
            }
        }
        Ok(Stores { granted: settings.granted, named })
    }

    pub fn get(&self, name: &str) -> Result<Arc<Store>, Fault> {
        let name = if name.is_empty() { DEFAULT } else { name };
        let missing = if self.granted { Fault::NoSuchStore } else { Fault::Denied };
        self.named.get(name).cloned().ok_or(missing)
    }
}

fn file(tree: &OwnedFd, path: &str) -> Result<Store> {
    let file = files::open(tree, path, OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o600))?;
    let opened = Database::builder().set_cache_size(CACHE).create_with_backend(FileBackend::new(file)?);
    let database = opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => anyhow!("another process has it open"),
        error => anyhow!("{error}"),
    })?;
    let begin = database.begin_write()?;
    begin.open_table(TABLE)?;
    begin.commit()?;
    Ok(Store::File(database))
}

impl Store {
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Fault> {
        match self {
            Store::Memory(memory) => Ok(lock(memory).pairs.get(key).cloned()),
            Store::File(database) => blocking(|| {
                let table = database.begin_read()?.open_table(TABLE)?;
                Ok(table.get(key)?.map(|value| value.value().to_vec()))
            }),
        }
    }

    /// All of them or, in a file, none.
    pub fn set(&self, pairs: Vec<(String, Vec<u8>)>) -> Result<(), Fault> {
        match self {
            Store::Memory(memory) => {
                let mut memory = lock(memory);
                pairs.into_iter().try_for_each(|(key, value)| memory.set(key, value))
            }
            Store::File(database) => write(database, |table| {
                for (key, value) in &pairs {
                    table.insert(key.as_str(), value.as_slice())?;
                }
                Ok(())
            }),
        }
    }

    pub fn delete(&self, keys: &[String]) -> Result<(), Fault> {
        match self {
            Store::Memory(memory) => {
                let mut memory = lock(memory);
                keys.iter().for_each(|key| memory.delete(key));
                Ok(())
            }
            Store::File(database) => write(database, |table| {
                for key in keys {
                    table.remove(key.as_str())?;
                }
                Ok(())
            }),
        }
    }

    /// Sets the key to what `change` makes of its value, as one step; to nothing new if it makes none.
    fn change<T>(
        &self,
        key: &str,
        change: impl FnOnce(Option<&[u8]>) -> Result<(Option<Vec<u8>>, T), Fault>,
    ) -> Result<T, Fault> {
        match self {
            Store::Memory(memory) => {
                let mut memory = lock(memory);
                let (value, result) = change(memory.pairs.get(key).map(Vec::as_slice))?;
                value.map_or(Ok(()), |value| memory.set(key.to_owned(), value))?;
                Ok(result)
            }
            Store::File(database) => write(database, |table| {
                let (value, result) = change(table.get(key)?.as_ref().map(|value| value.value()))?;
                if let Some(value) = value {
                    table.insert(key, value.as_slice())?;
                }
                Ok(result)
            }),
        }
    }

    /// Numbers are decimal text, as other hosts keep them.
    pub fn increment(&self, key: &str, delta: i128, range: RangeInclusive<i128>) -> Result<i128, Fault> {
        self.change(key, |value| {
            let text = value.map_or(Ok("0"), std::str::from_utf8)?;
            let sum = text.parse::<i128>()?.checked_add(delta).filter(|sum| range.contains(sum));
            let sum =
                sum.ok_or_else(|| Fault::Other("the number would be too large or too small".to_owned()))?;
            Ok((Some(sum.to_string().into_bytes()), sum))
        })
    }

    /// Sets the value if it still is what was seen. Otherwise what it is now.
    pub fn swap(
        &self,
        key: &str,
        seen: Option<&[u8]>,
        value: Vec<u8>,
    ) -> Result<Result<(), Option<Vec<u8>>>, Fault> {
        self.change(key, |now| match now == seen {
            true => Ok((Some(value), Ok(()))),
            false => Ok((None, Err(now.map(<[u8]>::to_vec)))),
        })
    }

    /// Some keys in their order, and whether there are more.
    pub fn keys(&self, start: &Start) -> Result<(Vec<String>, bool), Fault> {
        let (from, skip) = match start {
            Start::At(skip) => (Bound::Unbounded, usize::try_from(*skip).unwrap_or(usize::MAX)),
            Start::After(key) => (Bound::Excluded(key.as_str()), 0),
        };
        let mut keys: Vec<String> = match self {
            Store::Memory(memory) => {
                let memory = lock(memory);
                let range = memory.pairs.range::<str, _>((from, Bound::Unbounded));
                range.map(|(key, _)| key.clone()).skip(skip).take(PAGE + 1).collect()
            }
            Store::File(database) => blocking(|| {
                let table = database.begin_read()?.open_table(TABLE)?;
                let range = table.range::<&str>((from, Bound::Unbounded))?.skip(skip).take(PAGE + 1);
                range.map(|pair| Ok(pair?.0.value().to_owned())).collect::<Result<_, Fault>>()
            })?,
        };
        let more = keys.len() > PAGE;
        keys.truncate(PAGE);
        Ok((keys, more))
    }
}

impl Memory {
    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), Fault> {
        let before = self.pairs.get(&key).map_or(0, |old| size(&key, old));
        if !self.share.resize(before, size(&key, &value)) {
            return Err(Fault::Other("the container's memory limit leaves no room".to_owned()));
        }
        self.pairs.insert(key, value);
        Ok(())
    }

    fn delete(&mut self, key: &str) {
        if let Some(old) = self.pairs.remove(key) {
            self.share.resize(size(key, &old), 0);
        }
    }
}

fn size(key: &str, value: &[u8]) -> usize {
    key.len() + value.len() + PAIR
}

fn lock(memory: &Mutex<Memory>) -> std::sync::MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(
    database: &Database,
    job: impl FnOnce(&mut redb::Table<'_, &'static str, &'static [u8]>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    blocking(|| {
        let transaction = database.begin_write()?;
        let result = job(&mut transaction.open_table(TABLE)?)?;
        transaction.commit()?;
        Ok(result)
    })
}

/// A commit waits for the disk. A server's other requests go on meanwhile; a command has nothing else to do.
fn blocking<T>(job: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(job),
        _ => job(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::testing::{Scratch, scratch};
    use crate::executor::wasm::grants::Grants;
    use std::path::Path;

    fn tree(dir: &Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn budget(memory: Option<u64>) -> Budget {
        Budget::new(&Grants { memory, ..crate::executor::wasm::grants::grants(&Default::default()).unwrap() })
    }

    fn open(dir: &Path, memory: Option<u64>) -> Result<Stores> {
        let files = vec![("kept".to_owned(), "/kept".to_owned())];
        Stores::open(&KeyValue { granted: true, files }, &tree(dir), &budget(memory))
    }

    /// One of each kind.
    fn both(name: &str) -> (Vec<Arc<Store>>, Scratch) {
        let dir = scratch(name);
        let stores = open(&dir, None).unwrap();
        (vec![stores.get("").unwrap(), stores.get("kept").unwrap()], dir)
    }

    fn pair(key: &str, value: &str) -> (String, Vec<u8>) {
        (key.to_owned(), value.into())
    }

    #[test]
    fn what_is_set_is_there_until_it_is_deleted() {
        for store in both("kv-set").0 {
            store.set(vec![pair("a", "1"), pair("b", "2"), pair("", "")]).unwrap();
            store.set(vec![pair("a", "3")]).unwrap();
            assert_eq!(store.get("a").unwrap().as_deref(), Some(&b"3"[..]));
            assert_eq!(store.get("").unwrap().as_deref(), Some(&b""[..]));
            store.delete(&["a".to_owned(), "none".to_owned()]).unwrap();
            assert_eq!(store.get("a").unwrap(), None);
            assert_eq!(store.keys(&Start::At(0)).unwrap(), (vec![String::new(), "b".to_owned()], false));
        }
    }

    #[test]
    fn keys_come_in_pages_that_miss_none() {
        for store in both("kv-pages").0 {
            let all: Vec<String> = (0..2500).map(|number| format!("{number:05}")).collect();
            store.set(all.iter().map(|key| pair(key, "")).collect()).unwrap();
            for by_key in [false, true] {
                let (mut found, mut start) = (Vec::<String>::new(), Start::At(0));
                loop {
                    let (keys, more) = store.keys(&start).unwrap();
                    found.extend(keys);
                    let last = found.last().unwrap().clone();
                    start = if by_key { Start::After(last) } else { Start::At(found.len() as u64) };
                    if !more {
                        break;
                    }
                }
                assert_eq!(found, all);
            }
            assert_eq!(store.keys(&Start::At(u64::MAX)).unwrap(), (vec![], false));
        }
    }

    #[test]
    fn numbers_are_counted_in_one_step() {
        for store in both("kv-count").0 {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..10 {
                            store.increment("n", 2, 0..=i128::from(u64::MAX)).unwrap();
                        }
                    });
                }
            });
            assert_eq!(store.get("n").unwrap().as_deref(), Some(&b"80"[..]));
            assert_eq!(store.increment("n", -100, i128::MIN..=i128::MAX), Ok(-20));
            assert!(matches!(store.increment("n", 1, 0..=10), Err(Fault::Other(_))));
            store.set(vec![pair("n", "many")]).unwrap();
            assert!(matches!(store.increment("n", 1, 0..=10), Err(Fault::Other(_))));
            assert_eq!(store.get("n").unwrap().as_deref(), Some(&b"many"[..]));
        }
    }

    #[test]
    fn a_swap_needs_the_value_that_was_seen() {
        for store in both("kv-swap").0 {
            assert_eq!(store.swap("k", None, b"1".to_vec()), Ok(Ok(())));
            assert_eq!(store.swap("k", None, b"2".to_vec()), Ok(Err(Some(b"1".to_vec()))));
            assert_eq!(store.swap("k", Some(b"1"), b"2".to_vec()), Ok(Ok(())));
            assert_eq!(store.get("k").unwrap().as_deref(), Some(&b"2"[..]));
        }
    }

    #[test]
    fn a_file_is_kept_and_belongs_to_one_at_a_time() {
        let dir = scratch("kv-file");
        let stores = open(&dir, None).unwrap();
        stores.get("kept").unwrap().set(vec![pair("a", "1")]).unwrap();
        let error = format!("{:#}", open(&dir, None).err().unwrap());
        assert_eq!(error, "annotation dev.runw.keyvalue.kept: open /kept: another process has it open");
        drop(stores);
        let stores = open(&dir, None).unwrap();
        assert_eq!(stores.get("kept").unwrap().get("a").unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(stores.get("none").err(), Some(Fault::NoSuchStore));
        assert_eq!(Stores::none().get("").err(), Some(Fault::Denied));
    }

    #[test]
    fn a_broken_file_is_an_error_and_stays_as_it_is() {
        let dir = scratch("kv-broken");
        drop(open(&dir, None).unwrap());
        let good = std::fs::read(dir.join("kept")).unwrap();
        let torn = |at: usize| good[..at].to_vec();
        let noise: Vec<u8> = (0..good.len()).map(|at| (at * 31 % 251) as u8).collect();
        for bytes in [b"text".to_vec(), noise, torn(100), torn(5000)] {
            std::fs::write(dir.join("kept"), &bytes).unwrap();
            let error = format!("{:#}", open(&dir, None).err().unwrap());
            assert!(error.starts_with("annotation dev.runw.keyvalue.kept: open /kept: "), "{error}");
            assert_eq!(std::fs::read(dir.join("kept")).unwrap(), bytes);
        }
    }

    #[test]
    fn memory_is_the_container_s() {
        let dir = scratch("kv-memory");
        let store = open(&dir, Some(10_000)).unwrap().get("").unwrap();
        let large = || vec![("k".to_owned(), vec![0; 9000])];
        store.set(large()).unwrap();
        // In the place of the old value, not beside it.
        store.set(large()).unwrap();
        assert!(matches!(store.set(vec![("l".to_owned(), vec![0; 9000])]), Err(Fault::Other(_))));
        store.delete(&["k".to_owned()]).unwrap();
        store.set(vec![("l".to_owned(), vec![0; 9000])]).unwrap();
    }
}
