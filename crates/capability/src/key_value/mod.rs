//! Key-value stores.
//!
//! For: what guests see as `fermyon:spin/key-value`, `spin:key-value` and
//! `wasi:keyvalue`, in every version, over one [`Store`] trait. A new backend
//! is a new implementation of that trait and an arm in `Opened::open`.
//!
//! Not for: deciding which component may use which store. The caller does that
//! by building a [`Grant`] of the labels that the manifest lists.
//!
//! Life of a store: [`Stores`] knows what the runtime configuration defines and opens
//! it when it is first wanted ([`Stores::grant`], which hands a component the stores
//! it may use) or at once ([`Stores::open`]); a guest opens a label and holds a handle,
//! which an instance's end closes.
//!
//! # Durability
//! When `set` (or any other change) returns, the change is on disk: it survives
//! the end of the process and a power cut. Every read that starts afterwards, in
//! any request, sees it. How the file backend does that without one disk flush
//! per change is written at the top of `file.rs`.

mod file;
mod host;
mod memory;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use indexmap::IndexMap;

pub(crate) use self::file::Database as FileDatabase;
pub(crate) use self::host::{State, add_to_linker};
use crate::Error;
use crate::data_span;
use crate::resource::{Resource, Resources};
use crate::sqlite::file::DATABASE_MAX_BYTES;

/// Longest key. Spin sets no limit of its own (its managed clouds allow 255
/// bytes); keys are copied into an index whose pages hold 4 KiB, so longer ones
/// only make every lookup slow.
pub const KEY_MAX_BYTES: usize = 16 << 10;

/// Largest value. Spin has no limit below the 128 MiB that it buffers for one
/// result; half of that leaves room for the copy between guest and host.
pub const VALUE_MAX_BYTES: usize = 64 << 20;

/// Most bytes of keys and values that one call returns or changes. The host
/// holds them in memory while the guest copies them. The same number as Spin's.
pub const RESULT_MAX_BYTES: usize = 128 << 20;

/// Most keys in one call that takes a list of keys. Such a call is one
/// transaction, which everyone else's changes wait for.
pub const BATCH_MAX_COUNT: usize = 10_000;

/// Most store handles that one instance holds at a time; one more is
/// `store-table-full`. The same number as Spin's.
pub const HANDLES_MAX_COUNT: usize = 256;

/// Keys in one page of a listing: what is read at once, and what
/// `wasi:keyvalue` returns before it hands out a cursor. A page takes some
/// 100 microseconds to read.
pub const PAGE_MAX_COUNT: usize = 1_000;

/// The file name of the store that every app has, below the state directory.
const DEFAULT_FILE_NAME: &str = "sqlite_key_value.db";

/// The label of the store that every app has.
const DEFAULT_LABEL: &str = "default";

/// Where a store's data lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    /// `type = "spin"`: an SQLite file, or memory if there is no path.
    Spin {
        /// The database file.
        path: Option<PathBuf>,
    },
    /// A store that a platform keeps; see [`resource`](crate::resource).
    Resource(Resource),
    /// A backend that this version does not have.
    Other {
        /// The `type` of the runtime configuration.
        backend: String,
    },
}

/// Why an operation on a store failed. Guests get it as the error of the
/// interface they called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// What a swap did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The value was the expected one and has been replaced.
    Done,
    /// The value was another one and stays; this is it.
    Conflict(Option<Vec<u8>>),
}

/// One key-value store: what a backend implements.
///
/// Callers check [`KEY_MAX_BYTES`], [`VALUE_MAX_BYTES`] and
/// [`BATCH_MAX_COUNT`] (see `Checked`); backends check [`RESULT_MAX_BYTES`], which only
/// they can know. A change is durable when its future is ready. Dropping the
/// future leaves open whether the change happens.
pub trait Store: Send + Sync {
    /// The value of a key.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>, StoreError>>;

    /// Sets a key, replacing the value it had.
    fn set(&self, key: String, value: Vec<u8>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Removes a key, if it is there.
    fn delete(&self, key: String) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Whether a key is there.
    fn exists<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// The next keys after `after`, in ascending order of their bytes, at most
    /// [`PAGE_MAX_COUNT`]. Fewer only at the end.
    fn keys(&self, after: Option<String>) -> BoxFuture<'_, Result<Vec<String>, StoreError>>;

    /// The values of keys as of one moment, in the order asked.
    fn get_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<Vec<KeyAndValue>, StoreError>>;

    /// Sets keys, all or none.
    fn set_many(&self, entries: Vec<(String, Vec<u8>)>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Removes keys, all or none.
    fn delete_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Adds to the number at a key and returns the sum. See `add`.
    fn increment(&self, key: String, delta: i64) -> BoxFuture<'_, Result<i64, StoreError>>;

    /// Sets a key if its value is still `expected`.
    fn swap(
        &self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
    ) -> BoxFuture<'_, Result<Swap, StoreError>>;
}

/// A key with its value, `None` if the key is not there.
pub type KeyAndValue = (String, Option<Vec<u8>>);

/// The stores of an app by label.
pub struct Stores {
    configs: IndexMap<String, StoreConfig>,
    resources: Arc<Resources>,
    opened: Mutex<Opened>,
}

/// Those stores that are open.
#[derive(Default)]
struct Opened {
    files: BTreeMap<PathBuf, Arc<file::Database>>,
    by_label: BTreeMap<String, Arc<dyn Store>>,
}

/// The key-value stores that a component may use, by label.
#[derive(Clone, Default)]
pub struct Grant {
    stores: BTreeMap<String, Arc<dyn Store>>,
}

/// What a trace calls all backends.
const SYSTEM: &str = "wisp.key_value";

/// A store behind the checks that are the same for every backend.
#[derive(Clone)]
pub struct Checked {
    store: Arc<dyn Store>,
}

impl Stores {
    /// Every configured store, and `default` if it is not configured:
    /// `sqlite_key_value.db` in the state directory, or memory without one. Nothing is
    /// opened yet.
    pub fn new(state_dir: Option<&Path>, configs: &IndexMap<String, StoreConfig>) -> Self {
        let mut configs = configs.clone();
        configs
            .entry(DEFAULT_LABEL.to_owned())
            .or_insert_with(|| StoreConfig::Spin { path: state_dir.map(|dir| dir.join(DEFAULT_FILE_NAME)) });
        Self { configs, resources: Arc::default(), opened: Mutex::default() }
    }

    /// Those that a platform keeps, by the labels of their links, and no others.
    pub fn linked(resources: &Arc<Resources>, links: &IndexMap<String, Resource>) -> Self {
        let configs = links
            .iter()
            .map(|(label, resource)| (label.clone(), StoreConfig::Resource(resource.clone())))
            .collect();
        Self { configs, resources: resources.clone(), opened: Mutex::default() }
    }

    /// The same, and opens all of them.
    ///
    /// # Errors
    /// A file that cannot be opened; a backend that this version lacks.
    pub fn open(state_dir: Option<&Path>, configs: &IndexMap<String, StoreConfig>) -> Result<Self, Error> {
        let stores = Self::new(state_dir, configs);
        for label in stores.configs.keys() {
            stores.store(label)?;
        }
        Ok(stores)
    }

    /// The stores for a component whose manifest lists these labels.
    ///
    /// # Errors
    /// A label that is not configured.
    pub fn grant<L: AsRef<str>>(&self, labels: &[L]) -> Result<Grant, Error> {
        let mut grant = Grant::default();
        for label in labels {
            let label = label.as_ref();
            grant.stores.insert(label.to_owned(), self.store(label)?);
        }
        Ok(grant)
    }

    /// Sets a key before any guest runs, as `--key-value` asks.
    ///
    /// # Errors
    /// A label that is not configured; a key or value over its limit; a store
    /// that cannot be written.
    pub async fn set(&self, label: &str, key: &str, value: Vec<u8>) -> Result<(), Error> {
        let store = Checked { store: self.store(label)? };
        store.set(key.to_owned(), value).await.map_err(|cause| Error::KeyValueSet {
            label: label.to_owned(),
            key: key.to_owned(),
            cause: cause.0,
        })
    }

    /// The value of a key, as a test wants to know it after guests ran.
    ///
    /// # Errors
    /// A label that is not configured; a store that cannot be read.
    pub async fn get(&self, label: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let store = self.store(label)?;
        store.get(key).await.map_err(|cause| Error::KeyValueGet {
            label: label.to_owned(),
            key: key.to_owned(),
            cause: cause.0,
        })
    }

    /// Removes a key, as a test wants it.
    ///
    /// # Errors
    /// A label that is not configured; a store that cannot be written.
    pub async fn delete(&self, label: &str, key: &str) -> Result<(), Error> {
        let store = Checked { store: self.store(label)? };
        store.delete(key.to_owned()).await.map_err(|cause| Error::KeyValueSet {
            label: label.to_owned(),
            key: key.to_owned(),
            cause: cause.0,
        })
    }

    /// All keys of a store, as a test wants to know them.
    ///
    /// # Errors
    /// A label that is not configured; a store that cannot be read.
    pub async fn keys(&self, label: &str) -> Result<Vec<String>, Error> {
        let store = Checked { store: self.store(label)? };
        store.all_keys().await.map_err(|cause| Error::KeyValueGet {
            label: label.to_owned(),
            key: "*".to_owned(),
            cause: cause.0,
        })
    }

    fn store(&self, label: &str) -> Result<Arc<dyn Store>, Error> {
        let Some(config) = self.configs.get(label) else {
            let mut known: Vec<String> = self.configs.keys().cloned().collect();
            known.sort();
            return Err(Error::KeyValueStoreUnknown { label: label.to_owned(), known });
        };
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.open(label, config, &self.resources)
    }
}

impl Opened {
    fn open(
        &mut self,
        label: &str,
        config: &StoreConfig,
        resources: &Resources,
    ) -> Result<Arc<dyn Store>, Error> {
        if let Some(store) = self.by_label.get(label) {
            return Ok(store.clone());
        }
        let store: Arc<dyn Store> = match config {
            StoreConfig::Spin { path: None } => Arc::new(memory::MemoryStore::default()),
            StoreConfig::Spin { path: Some(path) } => {
                let failed = |cause: String| Error::KeyValueOpen {
                    label: label.to_owned(),
                    path: path.clone(),
                    cause,
                };
                let file = crate::sqlite::file::create(path).map_err(|cause| failed(cause.to_string()))?;
                let database = match self.files.get(&file) {
                    Some(database) => database.clone(),
                    None => {
                        let database = file::Database::open(&file, DATABASE_MAX_BYTES)
                            .map_err(|cause| failed(cause.to_string()))?;
                        self.files.insert(file, database.clone());
                        database
                    }
                };
                Arc::new(file::FileStore::new(database, label))
            }
            StoreConfig::Resource(resource) => resources.key_value(resource, label)?,
            StoreConfig::Other { backend } => {
                return Err(Error::KeyValueBackendUnsupported {
                    label: label.to_owned(),
                    backend: backend.clone(),
                });
            }
        };
        self.by_label.insert(label.to_owned(), store.clone());
        Ok(store)
    }
}

impl Grant {
    /// The store of a label, `None` if the component may not use it.
    pub(crate) fn store(&self, label: &str) -> Option<Checked> {
        self.stores.get(label).map(|store| Checked { store: store.clone() })
    }

    /// The labels that the component may open, in ascending order.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.stores.keys().map(String::as_str)
    }
}

impl Checked {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// What goes over a limit, and what the backend says.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        check_key(key)?;
        data_span::of(SYSTEM, "get", self.store.get(key)).await
    }

    /// Sets a key, replacing the value it had.
    ///
    /// # Errors
    /// What goes over a limit, and what the backend says.
    pub async fn set(&self, key: String, value: Vec<u8>) -> Result<(), StoreError> {
        check_entry(&key, &value)?;
        data_span::of(SYSTEM, "set", self.store.set(key, value)).await
    }

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// What goes over a limit, and what the backend says.
    pub async fn delete(&self, key: String) -> Result<(), StoreError> {
        check_key(&key)?;
        data_span::of(SYSTEM, "delete", self.store.delete(key)).await
    }

    pub(crate) async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        check_key(key)?;
        data_span::of(SYSTEM, "exists", self.store.exists(key)).await
    }

    /// The next keys after `after`, at most [`PAGE_MAX_COUNT`]; fewer only at the end.
    ///
    /// # Errors
    /// What goes over a limit, and what the backend says.
    pub async fn keys(&self, after: Option<String>) -> Result<Vec<String>, StoreError> {
        data_span::of(SYSTEM, "keys", self.store.keys(after)).await
    }

    /// Every key, for the interfaces that have no pages.
    pub(crate) async fn all_keys(&self) -> Result<Vec<String>, StoreError> {
        let mut all = Vec::new();
        let mut total_bytes = 0;
        loop {
            let page = self.keys(all.last().cloned()).await?;
            let is_last = page.len() < PAGE_MAX_COUNT;
            total_bytes += page.iter().map(|key| size_of::<String>() + key.len()).sum::<usize>();
            check_result(total_bytes)?;
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    pub(crate) async fn get_many(&self, keys: Vec<String>) -> Result<Vec<KeyAndValue>, StoreError> {
        check_count(keys.len())?;
        keys.iter().try_for_each(|key| check_key(key))?;
        data_span::of(SYSTEM, "get_many", self.store.get_many(keys)).await
    }

    /// Sets keys, all or none.
    ///
    /// # Errors
    /// What goes over a limit, and what the backend says.
    pub async fn set_many(&self, entries: Vec<(String, Vec<u8>)>) -> Result<(), StoreError> {
        check_count(entries.len())?;
        entries.iter().try_for_each(|(key, value)| check_entry(key, value))?;
        check_result(entries.iter().map(|(key, value)| key.len() + value.len()).sum())?;
        data_span::of(SYSTEM, "set_many", self.store.set_many(entries)).await
    }

    pub(crate) async fn delete_many(&self, keys: Vec<String>) -> Result<(), StoreError> {
        check_count(keys.len())?;
        keys.iter().try_for_each(|key| check_key(key))?;
        data_span::of(SYSTEM, "delete_many", self.store.delete_many(keys)).await
    }

    pub(crate) async fn increment(&self, key: String, delta: i64) -> Result<i64, StoreError> {
        check_key(&key)?;
        data_span::of(SYSTEM, "increment", self.store.increment(key, delta)).await
    }

    pub(crate) async fn swap(
        &self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
    ) -> Result<Swap, StoreError> {
        check_entry(&key, &value)?;
        data_span::of(SYSTEM, "swap", self.store.swap(key, expected, value)).await
    }
}

/// The sum that `increment` stores and returns: numbers are eight bytes, least
/// significant first, as Spin stores them; a key that is not there is zero.
fn add(current: Option<&[u8]>, delta: i64) -> Result<i64, StoreError> {
    let current = match current {
        None => 0,
        Some(bytes) => i64::from_le_bytes(bytes.try_into().map_err(|_| {
            StoreError(format!(
                "the value has {} bytes, which is no number: numbers have 8 bytes, least significant first",
                bytes.len()
            ))
        })?),
    };
    current
        .checked_add(delta)
        .ok_or_else(|| StoreError(format!("{current} plus {delta} does not fit into 64 bits")))
}

fn check_key(key: &str) -> Result<(), StoreError> {
    if key.len() > KEY_MAX_BYTES {
        return Err(StoreError(format!("the key has {} bytes, the limit is {KEY_MAX_BYTES}", key.len())));
    }
    Ok(())
}

fn check_entry(key: &str, value: &[u8]) -> Result<(), StoreError> {
    check_key(key)?;
    if value.len() > VALUE_MAX_BYTES {
        return Err(StoreError(format!(
            "the value has {} bytes, the limit is {VALUE_MAX_BYTES}",
            value.len()
        )));
    }
    Ok(())
}

fn check_count(count: usize) -> Result<(), StoreError> {
    if count > BATCH_MAX_COUNT {
        return Err(StoreError(format!("the list has {count} keys, the limit is {BATCH_MAX_COUNT}")));
    }
    Ok(())
}

/// Refuses a result, or a list of changes, over [`RESULT_MAX_BYTES`].
fn check_result(total_bytes: usize) -> Result<(), StoreError> {
    if total_bytes > RESULT_MAX_BYTES {
        return Err(StoreError(format!("the keys and values exceed the limit of {RESULT_MAX_BYTES} bytes")));
    }
    Ok(())
}

/// Opens a file that holds one store.
pub(crate) fn open_file(
    path: &Path,
    max_bytes: u64,
) -> Result<Arc<FileDatabase>, Box<dyn std::error::Error>> {
    file::Database::open(path, max_bytes)
}

/// The one store of such a file: called the same whatever labels link to it.
pub(crate) fn store_in(database: Arc<FileDatabase>) -> Arc<dyn Store> {
    Arc::new(file::FileStore::new(database, DEFAULT_LABEL))
}

/// Whether a file that somebody brings is one of a store.
pub(crate) fn check_file(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    file::check(connection)
}
