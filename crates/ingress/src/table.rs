//! A map that many threads read all the time.
//!
//! The table is cut into shards with a lock each, held for as long as it takes to clone
//! or store a pointer; and each thread remembers what it found, so that a thread that
//! has seen a key takes no lock at all: it looks into a map of its own and at a flag of
//! the entry.

use std::{
    any::Any,
    cell::RefCell,
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Parts of a table: few threads meet in one.
const SHARDS_COUNT: usize = 64;

/// Keys of one table that a thread remembers. Beyond, it forgets all of them and begins
/// anew; what it keeps of entries that were removed is bounded by this, too.
const REMEMBERED_COUNT: usize = 4_096;

/// Values by key, of a bounded number.
pub(crate) struct Table<V> {
    id: u64,
    hasher: RandomState,
    shards: Vec<Shard<V>>,
    max_shard_count: usize,
}

type Shard<V> = RwLock<HashMap<Box<str>, Arc<Slot<V>>>>;

struct Slot<V> {
    value: V,
    /// Nobody may use it any more.
    is_removed: AtomicBool,
    /// It was used since somebody last looked for one to remove.
    is_used: AtomicBool,
}

/// What a thread remembers, by table.
type Remembered = HashMap<u64, HashMap<Box<str>, Arc<dyn Any + Send + Sync>>>;

thread_local! {
    static REMEMBERED: RefCell<Remembered> = RefCell::default();
}

impl<V: Send + Sync + 'static> Table<V> {
    /// A table of at most about this many values. One more displaces one that was not
    /// used lately.
    pub(crate) fn new(max_count: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            hasher: RandomState::new(),
            shards: (0..SHARDS_COUNT).map(|_| RwLock::default()).collect(),
            max_shard_count: max_count.div_ceil(SHARDS_COUNT).max(1),
        }
    }

    /// Calls `with` with the value of a key. Takes no lock if this thread has seen the
    /// key before.
    pub(crate) fn with<T>(&self, key: &str, with: impl FnOnce(&V) -> T) -> Option<T> {
        REMEMBERED.with_borrow_mut(|tables| {
            if let Some(remembered) = tables.get_mut(&self.id)
                && let Some(slot) = remembered.get(key)
                && let Some(slot) = (&**slot as &dyn Any).downcast_ref::<Slot<V>>()
            {
                if !slot.is_removed.load(Ordering::Acquire) {
                    slot.touch();
                    return Some(with(&slot.value));
                }
                remembered.remove(key);
            }
            let slot = self.shard(key).read().unwrap_or_else(PoisonError::into_inner).get(key)?.clone();
            slot.touch();
            let result = with(&slot.value);
            let remembered = tables.entry(self.id).or_default();
            if remembered.len() >= REMEMBERED_COUNT {
                remembered.clear();
            }
            remembered.insert(key.into(), slot);
            Some(result)
        })
    }

    /// Puts a value in the place of the one before, if any.
    pub(crate) fn insert(&self, key: &str, value: V) {
        let slot = Slot { value, is_removed: AtomicBool::new(false), is_used: AtomicBool::new(true) };
        let mut shard = self.shard(key).write().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= self.max_shard_count && !shard.contains_key(key) {
            let unused = shard.iter().find(|(_, slot)| !slot.is_used.swap(false, Ordering::Relaxed));
            let displaced = unused.or_else(|| shard.iter().next()).map(|(key, _)| key.clone());
            if let Some(displaced) = displaced.and_then(|key| shard.remove(&key)) {
                displaced.is_removed.store(true, Ordering::Release);
            }
        }
        if let Some(before) = shard.insert(key.into(), Arc::new(slot)) {
            before.is_removed.store(true, Ordering::Release);
        }
    }

    /// Takes out a value. Tells whether there was one.
    pub(crate) fn remove(&self, key: &str) -> bool {
        let slot = self.shard(key).write().unwrap_or_else(PoisonError::into_inner).remove(key);
        if let Some(slot) = &slot {
            slot.is_removed.store(true, Ordering::Release);
        }
        slot.is_some()
    }

    /// Takes out all values that `keep` does not want to keep.
    pub(crate) fn retain(&self, keep: impl Fn(&str, &V) -> bool) {
        for shard in &self.shards {
            shard.write().unwrap_or_else(PoisonError::into_inner).retain(|key, slot| {
                let keeps = keep(key, &slot.value);
                if !keeps {
                    slot.is_removed.store(true, Ordering::Release);
                }
                keeps
            });
        }
    }

    /// How many values there are.
    pub(crate) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    fn shard(&self, key: &str) -> &Shard<V> {
        let index = usize::try_from(self.hasher.hash_one(key) % SHARDS_COUNT as u64).unwrap_or(0);
        &self.shards[index]
    }
}

impl<V> Slot<V> {
    fn touch(&self) {
        // Mostly it is set already; not writing keeps the cache line shared.
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_a_thread_remembers_does_not_outlive_a_change() {
        let table = Table::new(1_000);
        assert_eq!(table.with("a", |value| *value), None);
        table.insert("a", 1);
        assert_eq!(table.with("a", |value| *value), Some(1), "that there was none is not remembered");
        table.insert("a", 2);
        assert_eq!(table.with("a", |value| *value), Some(2));
        assert!(table.remove("a") && !table.remove("a"));
        assert_eq!(table.with("a", |value| *value), None);
    }

    #[test]
    fn a_full_table_displaces_what_was_not_used() {
        let table = Table::new(SHARDS_COUNT);
        for index in 0..10_000 {
            table.insert(&index.to_string(), index);
        }
        assert!(table.count() <= SHARDS_COUNT);
        let one = Table::new(1);
        let twin = (0..)
            .map(|index: u32| index.to_string())
            .find(|key| key != "a" && std::ptr::eq(one.shard(key), one.shard("a")));
        let twin = twin.unwrap();
        one.insert("a", 1);
        one.insert(&twin, 2);
        assert_eq!((one.with("a", |value| *value), one.with(&twin, |value| *value)), (None, Some(2)));
    }

    #[test]
    fn two_tables_are_kept_apart() {
        let (one, other) = (Table::new(10), Table::new(10));
        one.insert("a", 1);
        other.insert("a", "b");
        assert_eq!(one.with("a", |value| *value), Some(1));
        assert_eq!(other.with("a", |value| *value), Some("b"));
    }
}
