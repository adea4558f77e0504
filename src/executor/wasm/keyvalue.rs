//! `wasi:keyvalue` of 0.2.0-draft and 0.2.0-draft2 over `stores`. wasmtime's own crate knows the first only, and copies
//! the whole store each time it is opened.

use std::sync::Arc;

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use super::host::State;
use super::stores::{Fault, Start, Store, Stores};

mod draft {
    wasmtime::component::bindgen!({
        path: "src/executor/wasm/wit/keyvalue-draft",
        world: "wasi:keyvalue/imports",
        imports: { default: trappable },
        with: { "wasi:keyvalue/store.bucket": super::Bucket },
        trappable_error_type: { "wasi:keyvalue/store.error" => super::Fault },
    });
}

mod draft2 {
    wasmtime::component::bindgen!({
        path: "src/executor/wasm/wit/keyvalue-draft2",
        world: "wasi:keyvalue/imports",
        imports: { default: trappable },
        with: { "wasi:keyvalue/store.bucket": super::Bucket, "wasi:keyvalue/atomics.cas": super::Cas },
        trappable_error_type: { "wasi:keyvalue/store.error" => super::Fault },
    });
}

use draft::wasi::keyvalue as one;
use draft2::wasi::keyvalue as two;

pub struct Bucket(Arc<Store>);

/// What was seen of a key.
pub struct Cas {
    store: Arc<Store>,
    key: String,
    seen: Option<Vec<u8>>,
}

struct View<'a> {
    stores: &'a Stores,
    table: &'a mut ResourceTable,
}

struct KeyValue;

impl HasData for KeyValue {
    type Data<'a> = View<'a>;
}

pub fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    fn view(state: &mut State) -> View<'_> {
        View { stores: &state.stores, table: &mut state.table }
    }
    one::store::add_to_linker::<_, KeyValue>(linker, view)?;
    one::atomics::add_to_linker::<_, KeyValue>(linker, view)?;
    one::batch::add_to_linker::<_, KeyValue>(linker, view)?;
    two::store::add_to_linker::<_, KeyValue>(linker, view)?;
    two::atomics::add_to_linker::<_, KeyValue>(linker, view)?;
    two::batch::add_to_linker::<_, KeyValue>(linker, view)
}

impl View<'_> {
    fn store(&self, bucket: &Resource<Bucket>) -> Result<Arc<Store>, Fault> {
        Ok(self.table.get(bucket)?.0.clone())
    }
}

/// How each draft says where a list of keys goes on.
trait Cursor: Sized {
    fn start(self) -> Start;
    fn after(start: &Start, keys: &[String]) -> Option<Self>;
}

impl Cursor for u64 {
    fn start(self) -> Start {
        Start::At(self)
    }

    fn after(start: &Start, keys: &[String]) -> Option<u64> {
        let Start::At(before) = start else { return None };
        before.checked_add(keys.len() as u64)
    }
}

impl Cursor for String {
    fn start(self) -> Start {
        Start::After(self)
    }

    fn after(_: &Start, keys: &[String]) -> Option<String> {
        keys.last().cloned()
    }
}

fn page<C: Cursor>(store: &Store, cursor: Option<C>) -> Result<(Vec<String>, Option<C>), Fault> {
    let start = cursor.map_or(Start::At(0), C::start);
    let (keys, more) = store.keys(&start)?;
    let next = if more { C::after(&start, &keys) } else { None };
    Ok((keys, next))
}

/// What the drafts have in common: all but atomics, the type of a cursor, and the shape of `get-many`.
macro_rules! common {
    ($draft:ident, $cursor:ty, $many:ty, $pair:expr) => {
        impl $draft::store::Host for View<'_> {
            fn open(&mut self, identifier: String) -> Result<Resource<Bucket>, Fault> {
                Ok(self.table.push(Bucket(self.stores.get(&identifier)?))?)
            }

            fn convert_error(&mut self, fault: Fault) -> wasmtime::Result<$draft::store::Error> {
                Ok(match fault {
                    Fault::NoSuchStore => $draft::store::Error::NoSuchStore,
                    Fault::Denied => $draft::store::Error::AccessDenied,
                    Fault::Other(text) => $draft::store::Error::Other(text),
                })
            }
        }

        impl $draft::store::HostBucket for View<'_> {
            fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Option<Vec<u8>>, Fault> {
                self.store(&bucket)?.get(&key)
            }

            fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Result<(), Fault> {
                self.store(&bucket)?.set(vec![(key, value)])
            }

            fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<(), Fault> {
                self.store(&bucket)?.delete(&[key])
            }

            fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Result<bool, Fault> {
                Ok(self.store(&bucket)?.get(&key)?.is_some())
            }

            fn list_keys(
                &mut self,
                bucket: Resource<Bucket>,
                cursor: Option<$cursor>,
            ) -> Result<$draft::store::KeyResponse, Fault> {
                let (keys, cursor) = page(&*self.store(&bucket)?, cursor)?;
                Ok($draft::store::KeyResponse { keys, cursor })
            }

            fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
                self.table.delete(bucket)?;
                Ok(())
            }
        }

        impl $draft::batch::Host for View<'_> {
            fn get_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<Vec<$many>, Fault> {
                let store = self.store(&bucket)?;
                keys.into_iter().map(|key| store.get(&key).map(|value| $pair(key, value))).collect()
            }

            fn set_many(
                &mut self,
                bucket: Resource<Bucket>,
                pairs: Vec<(String, Vec<u8>)>,
            ) -> Result<(), Fault> {
                self.store(&bucket)?.set(pairs)
            }

            fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<(), Fault> {
                self.store(&bucket)?.delete(&keys)
            }
        }
    };
}

common!(one, u64, Option<(String, Vec<u8>)>, |key, value: Option<Vec<u8>>| value.map(|value| (key, value)));
common!(two, String, (String, Option<Vec<u8>>), |key, value| (key, value));

impl one::atomics::Host for View<'_> {
    fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Result<u64, Fault> {
        let sum = self.store(&bucket)?.increment(&key, delta.into(), 0..=u64::MAX.into())?;
        Ok(u64::try_from(sum)?)
    }
}

impl two::atomics::Host for View<'_> {
    fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: i64) -> Result<i64, Fault> {
        let sum = self.store(&bucket)?.increment(&key, delta.into(), i64::MIN.into()..=i64::MAX.into())?;
        Ok(i64::try_from(sum)?)
    }

    fn swap(
        &mut self,
        cas: Resource<Cas>,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), two::atomics::CasError>> {
        let Cas { store, key, seen } = self.table.delete(cas)?;
        Ok(match store.swap(&key, seen.as_deref(), value) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(seen)) => {
                Err(two::atomics::CasError::CasFailed(self.table.push(Cas { store, key, seen })?))
            }
            Err(fault) => {
                let error = two::store::Host::convert_error(self, fault)?;
                Err(two::atomics::CasError::StoreError(error))
            }
        })
    }
}

impl two::atomics::HostCas for View<'_> {
    fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Resource<Cas>, Fault> {
        let store = self.store(&bucket)?;
        let seen = store.get(&key)?;
        Ok(self.table.push(Cas { store, key, seen })?)
    }

    fn current(&mut self, cas: Resource<Cas>) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.table.get(&cas)?.seen.clone())
    }

    fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}
