//! Key-value stores in memory, for apps that run without a state directory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};

use super::{KeyAndValue, PAGE_MAX_COUNT, Store, StoreError, Swap, add, check_result};

/// Most bytes of keys and values in one store in memory. Such a store serves
/// trials and tests, and shares the memory with the guests.
pub(crate) const MEMORY_MAX_BYTES: usize = 256 << 20;

/// What an entry costs beside its key and value, roughly.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// A store that ends with the process.
#[derive(Default)]
pub(super) struct MemoryStore {
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_key: BTreeMap<String, Vec<u8>>,
    total_bytes: usize,
}

impl Entries {
    fn get(&self, key: &str) -> Option<&Vec<u8>> {
        self.by_key.get(key)
    }

    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), StoreError> {
        let old_bytes = self.get(&key).map_or(0, |old| entry_bytes(&key, old));
        let total_bytes = self.total_bytes - old_bytes + entry_bytes(&key, &value);
        if total_bytes > MEMORY_MAX_BYTES {
            return Err(StoreError(format!(
                "the store is full: it is in memory, where it may hold {MEMORY_MAX_BYTES} bytes"
            )));
        }
        self.total_bytes = total_bytes;
        self.by_key.insert(key, value);
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        if let Some(old) = self.by_key.remove(key) {
            self.total_bytes -= entry_bytes(key, &old);
        }
    }
}

fn entry_bytes(key: &str, value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_OVERHEAD_BYTES
}

impl MemoryStore {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Nothing panics between two changes that belong together, so what a
        // poisoned lock protects is still whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn done<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    ready(value).boxed()
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>, StoreError>> {
        done(Ok(self.entries().get(key).cloned()))
    }

    fn set(&self, key: String, value: Vec<u8>) -> BoxFuture<'_, Result<(), StoreError>> {
        done(self.entries().set(key, value))
    }

    fn delete(&self, key: String) -> BoxFuture<'_, Result<(), StoreError>> {
        self.entries().remove(&key);
        done(Ok(()))
    }

    fn exists<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StoreError>> {
        done(Ok(self.entries().by_key.contains_key(key)))
    }

    fn keys(&self, after: Option<String>) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.entries();
        let page = entries.by_key.range((from, Bound::Unbounded)).take(PAGE_MAX_COUNT);
        done(Ok(page.map(|(key, _)| key.clone()).collect()))
    }

    fn get_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<Vec<KeyAndValue>, StoreError>> {
        let entries = self.entries();
        let total_bytes =
            keys.iter().map(|key| key.len() + entries.get(key).map_or(0, Vec::len)).sum::<usize>();
        done(check_result(total_bytes).map(|()| {
            keys.into_iter()
                .map(|key| {
                    let value = entries.get(&key).cloned();
                    (key, value)
                })
                .collect()
        }))
    }

    fn set_many(&self, changes: Vec<(String, Vec<u8>)>) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut entries = self.entries();
        let mut undo: Vec<KeyAndValue> = Vec::with_capacity(changes.len());
        for (key, value) in changes {
            let old = entries.get(&key).cloned();
            match entries.set(key.clone(), value) {
                Ok(()) => undo.push((key, old)),
                Err(full) => {
                    for (key, old) in undo.into_iter().rev() {
                        entries.remove(&key);
                        if let Some(old) = old {
                            // It was there a moment ago, so it fits.
                            let _ = entries.set(key, old);
                        }
                    }
                    return done(Err(full));
                }
            }
        }
        done(Ok(()))
    }

    fn delete_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut entries = self.entries();
        keys.iter().for_each(|key| entries.remove(key));
        done(Ok(()))
    }

    fn increment(&self, key: String, delta: i64) -> BoxFuture<'_, Result<i64, StoreError>> {
        let mut entries = self.entries();
        let current = entries.get(&key).map(Vec::as_slice);
        done(add(current, delta).and_then(|sum| {
            entries.set(key, sum.to_le_bytes().to_vec())?;
            Ok(sum)
        }))
    }

    fn swap(
        &self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
    ) -> BoxFuture<'_, Result<Swap, StoreError>> {
        let mut entries = self.entries();
        let current = entries.get(&key).cloned();
        done(if current == expected {
            entries.set(key, value).map(|()| Swap::Done)
        } else {
            Ok(Swap::Conflict(current))
        })
    }
}
