//! Apps by host name.
//!
//! Every request looks one up, on every thread, while others are added and removed. The
//! table is cut into shards with a lock each; and each thread remembers what it found,
//! so that a request to a host that the thread has seen takes no lock at all: it looks
//! into a map of its own and at a flag of the entry.

use std::{
    borrow::Borrow,
    cell::RefCell,
    collections::HashSet,
    hash::{BuildHasher as _, Hash, Hasher, RandomState},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::entry::Entry;

/// Parts of the table. With 100,000 apps a part has 1,600: a lock is held for the time
/// that one insertion takes, and few threads meet in one part.
const SHARDS_COUNT: usize = 64;

/// Hosts that a thread remembers. Beyond, it forgets all of them and begins anew; what
/// it keeps of apps that were removed is bounded by this, too.
const REMEMBERED_COUNT: usize = 4_096;

/// Apps by host name.
pub(crate) struct Table {
    id: u64,
    hasher: RandomState,
    shards: Vec<RwLock<HashSet<ByHost>>>,
}

/// An entry that is found by its host's name: no second copy of the name.
struct ByHost(Arc<Entry>);

/// What a thread remembers, and of which table.
#[derive(Default)]
struct Remembered {
    table: u64,
    entries: HashSet<ByHost>,
}

thread_local! {
    static REMEMBERED: RefCell<Remembered> = RefCell::default();
}

impl Table {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            hasher: RandomState::new(),
            shards: (0..SHARDS_COUNT).map(|_| RwLock::default()).collect(),
        }
    }

    /// Calls `with` with the entry of a host. Takes no lock if this thread has seen the
    /// host before.
    pub(crate) fn with<T>(&self, host: &str, with: impl FnOnce(&Arc<Entry>) -> T) -> Option<T> {
        REMEMBERED.with_borrow_mut(|remembered| {
            if remembered.table != self.id {
                *remembered = Remembered { table: self.id, entries: HashSet::new() };
            }
            if let Some(ByHost(entry)) = remembered.entries.get(host) {
                if !entry.is_removed() {
                    return Some(with(entry));
                }
                remembered.entries.remove(host);
            }
            let entry = self.get(host)?;
            if remembered.entries.len() >= REMEMBERED_COUNT {
                remembered.entries.clear();
            }
            let result = with(&entry);
            remembered.entries.insert(ByHost(entry));
            Some(result)
        })
    }

    /// The entry of a host.
    pub(crate) fn get(&self, host: &str) -> Option<Arc<Entry>> {
        let shard = self.shard(host).read().unwrap_or_else(PoisonError::into_inner);
        shard.get(host).map(|ByHost(entry)| entry.clone())
    }

    /// Adds an entry whose host has none.
    pub(crate) fn insert(&self, entry: Arc<Entry>) {
        let mut shard = self.shard(entry.host.as_str()).write().unwrap_or_else(PoisonError::into_inner);
        shard.replace(ByHost(entry));
    }

    /// Takes out the entry of a host.
    pub(crate) fn remove(&self, host: &str) -> Option<Arc<Entry>> {
        let mut shard = self.shard(host).write().unwrap_or_else(PoisonError::into_inner);
        shard.take(host).map(|ByHost(entry)| entry)
    }

    /// How many apps there are.
    pub(crate) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Calls `each` with every entry but other names of one, in no order. Entries of one shard cannot be added
    /// or removed meanwhile.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&Arc<Entry>)) {
        for shard in &self.shards {
            for ByHost(entry) in shard.read().unwrap_or_else(PoisonError::into_inner).iter() {
                if entry.alias.is_none() {
                    each(entry);
                }
            }
        }
    }

    fn shard(&self, host: &str) -> &RwLock<HashSet<ByHost>> {
        let hash = usize::try_from(self.hasher.hash_one(host) % SHARDS_COUNT as u64).unwrap_or(0);
        &self.shards[hash]
    }
}

impl Borrow<str> for ByHost {
    fn borrow(&self) -> &str {
        self.0.host.as_str()
    }
}

impl Hash for ByHost {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.host.as_str().hash(state);
    }
}

impl PartialEq for ByHost {
    fn eq(&self, other: &Self) -> bool {
        self.0.host == other.0.host
    }
}

impl Eq for ByHost {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::HostName;

    fn entry(host: &str, number: u64) -> Arc<Entry> {
        Arc::new(Entry::new(HostName::new(host).unwrap(), number, None))
    }

    fn number(table: &Table, host: &str) -> Option<u64> {
        table.with(host, |entry| entry.state().number)
    }

    #[test]
    fn what_a_thread_remembers_does_not_outlive_a_removal() {
        let table = Table::new();
        assert_eq!(number(&table, "a.example"), None);
        table.insert(entry("a.example", 1));
        assert_eq!(number(&table, "a.example"), Some(1), "that there was none is not remembered");
        assert_eq!(number(&table, "a.example"), Some(1));
        table.remove("a.example").unwrap().mark_removed();
        assert_eq!(number(&table, "a.example"), None);
        table.insert(entry("a.example", 2));
        assert_eq!(number(&table, "a.example"), Some(2));
        assert_eq!(table.count(), 1);
    }

    #[test]
    fn a_thread_remembers_a_bounded_number_of_hosts() {
        let table = Table::new();
        for index in 0..REMEMBERED_COUNT + 10 {
            let host = format!("app-{index}.example");
            table.insert(entry(&host, index as u64));
            assert_eq!(number(&table, &host), Some(index as u64));
        }
        let remembered = REMEMBERED.with_borrow(|remembered| remembered.entries.len());
        assert!(remembered <= REMEMBERED_COUNT);
        let mut seen = 0;
        table.for_each(|_| seen += 1);
        assert_eq!(seen, REMEMBERED_COUNT + 10);
    }

    #[test]
    fn two_tables_are_kept_apart() {
        let (one, other) = (Table::new(), Table::new());
        one.insert(entry("a.example", 1));
        assert_eq!(number(&one, "a.example"), Some(1));
        assert_eq!(number(&other, "a.example"), None);
    }
}
