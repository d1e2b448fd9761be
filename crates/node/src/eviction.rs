//! What may be mapped, and who has to go when it is too much.
//!
//! Apps that are mapped stand in a line. When room is needed, the one at its head is
//! looked at: if it was used since it was put into line, it goes to the end, without the
//! version that it kept to go back to; else it is unmapped. That is close to evicting
//! what was not used for longest, and a request pays for it with one store a second.
//!
//! A task makes room ahead of need: it begins when less than an eighth of the budget is
//! free and ends when a quarter is. A load that finds no room at all makes it itself.
//!
//! The operating system bounds the mappings of a process, and a process that has none left
//! cannot run guests any more. Images take three each; what instances take depends on how
//! many there were at once, of which kinds. So that task counts them now and then, which
//! takes milliseconds, and images get what is left.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{
    Budget, Node, Runtime,
    entry::{Entry, Fact},
    os_limits::{MAPPINGS_PER_IMAGE_COUNT, SPARE_MAPPINGS_COUNT, mappings_count, max_mappings_count},
};

/// Apps unmapped before others on the control thread have their turn.
const EVICTIONS_AT_ONCE_COUNT: usize = 32;

/// How many images the open stores and databases of an app count for: that many
/// descriptors, and about as much memory.
const STATE_IMAGES_COUNT: u64 = 8;

/// Loads after which the process's mappings are counted again. Each may have been the
/// first for an instance's slot, which takes some ten mappings.
const LOADS_PER_COUNT: usize = 256;

/// Seconds between two counts at least: one takes up to 30 ms.
const COUNT_INTERVAL_S: u32 = 2;

/// The line of what is mapped.
pub(crate) struct Mapped {
    budget: Budget,
    mappings: Mappings,
    line: Mutex<VecDeque<Standing>>,
    /// There is less room than there should be.
    is_tight: Arc<Notify>,
}

/// The process's mappings.
struct Mappings {
    max_count: usize,
    /// Those that are no image's, when they were last counted; none before.
    others_count: AtomicUsize,
    counted_s: AtomicU32,
    /// Since they were counted.
    loads_count: AtomicUsize,
}

/// Who has to go.
enum Victim {
    /// An app, with all that is mapped of it.
    App(Arc<Entry>),
    /// The version that an app could go back to.
    Previous(Arc<Entry>),
}

/// A place in the line, and when the app was last used when it was put there.
struct Standing {
    entry: Arc<Entry>,
    used_s: u32,
}

impl Mapped {
    pub(crate) fn new(budget: Budget) -> Self {
        let mappings = Mappings {
            max_count: max_mappings_count(),
            others_count: AtomicUsize::new(0),
            counted_s: AtomicU32::new(0),
            loads_count: AtomicUsize::new(0),
        };
        Self { budget, mappings, line: Mutex::default(), is_tight: Arc::default() }
    }

    pub(crate) fn budget(&self) -> Budget {
        self.budget
    }

    /// Puts an app into line that has just been mapped, if it is not there.
    pub(crate) fn add(&self, entry: &Arc<Entry>, now_s: u32) {
        let _ = entry.touch(now_s);
        let mut line = self.line();
        // Whoever removes it takes it out of line after it was marked.
        if !entry.has(Fact::Listed) && !entry.is_removed() {
            entry.set(Fact::Listed, true);
            // Used now: it is not the next to go.
            line.push_back(Standing { entry: entry.clone(), used_s: now_s.saturating_sub(1) });
        }
    }

    /// Takes an app out of line.
    pub(crate) fn forget(&self, entry: &Arc<Entry>) {
        let mut line = self.line();
        if entry.has(Fact::Listed) {
            entry.set(Fact::Listed, false);
            line.retain(|standing| !Arc::ptr_eq(&standing.entry, entry));
        }
    }

    /// Who has to go next; an app is taken out of line. Each is passed over twice at most.
    fn next(&self, passed_over_count: &mut usize) -> Option<Victim> {
        let mut line = self.line();
        while *passed_over_count <= line.len().saturating_mul(2) {
            let mut standing = line.pop_front()?;
            let used_s = standing.entry.last_used_s();
            let version = standing.entry.version();
            let is_needed = version.as_ref().is_some_and(|version| version.is_in_use())
                // The only version that works: it could not be loaded again.
                || standing.entry.has(Fact::Broken);
            if is_needed || used_s > standing.used_s {
                *passed_over_count += 1;
                standing.used_s = used_s;
                let entry = standing.entry.clone();
                line.push_back(standing);
                if entry.has(Fact::HasPrevious) {
                    return Some(Victim::Previous(entry));
                }
                continue;
            }
            standing.entry.set(Fact::Listed, false);
            return Some(Victim::App(standing.entry));
        }
        None
    }

    fn line(&self) -> std::sync::MutexGuard<'_, VecDeque<Standing>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mapped {
    /// Whether what is mapped, and one image more, takes more than so many eighths.
    fn is_exceeded(&self, runtime: &Runtime, eighths: u64) -> bool {
        let mapped = runtime.mapped();
        let states_count = runtime.open_states_count() as u64;
        let images_count = mapped.images_count as u64 + states_count * STATE_IMAGES_COUNT + 1;
        let max_images_count = self.budget.max_images_count.min(self.mappings.max_images_count()) as u64;
        images_count.saturating_mul(8) > max_images_count.saturating_mul(eighths)
            || mapped.image_bytes.saturating_mul(8) > self.budget.max_image_bytes.saturating_mul(eighths)
    }
}

impl Mappings {
    /// How many images there may be beside all else.
    fn max_images_count(&self) -> usize {
        let others_count = self.others_count.load(Ordering::Relaxed) + SPARE_MAPPINGS_COUNT;
        self.max_count.saturating_sub(others_count) / MAPPINGS_PER_IMAGE_COUNT
    }

    /// Whether they should be counted, now that there is one load more.
    fn is_due_after_load(&self, now_s: u32) -> bool {
        self.loads_count.fetch_add(1, Ordering::Relaxed) >= LOADS_PER_COUNT && self.is_due(now_s)
    }

    fn is_due(&self, now_s: u32) -> bool {
        self.loads_count.load(Ordering::Relaxed) >= LOADS_PER_COUNT
            && now_s.saturating_sub(self.counted_s.load(Ordering::Relaxed)) >= COUNT_INTERVAL_S
    }

    /// Counts them, if that is due.
    fn count_when_due(&self, runtime: &Runtime, now_s: u32) {
        if !self.is_due(now_s) {
            return;
        }
        self.counted_s.store(now_s, Ordering::Relaxed);
        self.loads_count.store(0, Ordering::Relaxed);
        let of_images_count = runtime.mapped().images_count * MAPPINGS_PER_IMAGE_COUNT;
        if let Some(count) = mappings_count() {
            self.others_count.store(count.saturating_sub(of_images_count), Ordering::Relaxed);
        }
    }
}

impl Node {
    /// Makes room for an app that is about to be mapped, if there is none.
    pub(crate) fn make_room(&self, wanted: &Arc<Entry>) {
        let mapped = &self.mapped;
        if mapped.mappings.is_due_after_load(self.now_s()) || mapped.is_exceeded(&self.runtime, 7) {
            mapped.is_tight.notify_one();
        }
        let mut passed_over_count = 0;
        while mapped.is_exceeded(&self.runtime, 8) {
            match self.mapped.next(&mut passed_over_count) {
                None => break,
                // It goes on to serve while its new version is loaded.
                Some(Victim::App(entry)) if Arc::ptr_eq(&entry, wanted) => {
                    self.mapped.add(&entry, self.now_s());
                }
                Some(victim) => self.evict(&victim),
            }
        }
    }

    fn evict(&self, victim: &Victim) {
        match victim {
            Victim::App(entry) => {
                self.unmap(entry);
                self.metrics.count_eviction();
            }
            Victim::Previous(entry) => {
                let mut state = entry.state();
                let previous = state.previous.take();
                entry.set(Fact::HasPrevious, false);
                drop(state);
                drop(previous);
            }
        }
    }

    /// Makes room ahead of need, for as long as the node exists.
    pub(crate) async fn evict_when_full(self: Arc<Self>) {
        let this: Weak<Self> = Arc::downgrade(&self);
        drop(self);
        loop {
            let Some(node) = this.upgrade() else { return };
            let mapped = &node.mapped;
            mapped.mappings.count_when_due(&node.runtime, node.now_s());
            let mut passed_over_count = 0;
            if mapped.is_exceeded(&node.runtime, 7) {
                'making_room: loop {
                    for _ in 0..EVICTIONS_AT_ONCE_COUNT {
                        if !mapped.is_exceeded(&node.runtime, 6) {
                            break 'making_room;
                        }
                        let Some(victim) = mapped.next(&mut passed_over_count) else {
                            break 'making_room;
                        };
                        node.evict(&victim);
                    }
                    tokio::task::yield_now().await;
                }
            }
            let is_tight = node.mapped.is_tight.clone();
            drop(node);
            is_tight.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::HostName;

    fn line(names: &[&str]) -> (Mapped, Vec<Arc<Entry>>) {
        let mapped = Mapped::new(Budget { max_images_count: 1, max_image_bytes: 1 });
        let entries = names
            .iter()
            .map(|name| {
                let entry = Arc::new(Entry::new(HostName::new(name).unwrap(), 1, None));
                mapped.add(&entry, 10);
                entry
            })
            .collect();
        (mapped, entries)
    }

    /// Who has to go, until nobody has to; those in parentheses lose a version only.
    fn all(mapped: &Mapped) -> Vec<String> {
        let mut passed_over_count = 0;
        let mut all = Vec::new();
        while let Some(victim) = mapped.next(&mut passed_over_count) {
            all.push(match victim {
                Victim::App(entry) => entry.host.to_string(),
                Victim::Previous(entry) => {
                    entry.set(Fact::HasPrevious, false);
                    format!("({})", entry.host)
                }
            });
        }
        all
    }

    #[test]
    fn images_get_the_mappings_that_nobody_else_has() {
        let (mapped, _) = line(&[]);
        let mappings = Mappings { max_count: 65_530, ..mapped.mappings };
        let before = mappings.max_images_count();
        mappings.others_count.store(30_000, Ordering::Relaxed);
        assert_eq!(before - mappings.max_images_count(), 30_000 / MAPPINGS_PER_IMAGE_COUNT);
        mappings.others_count.store(70_000, Ordering::Relaxed);
        assert_eq!(mappings.max_images_count(), 0, "more than there may be is no reason to panic");
        let due_count = (0..2 * LOADS_PER_COUNT).filter(|_| mappings.is_due_after_load(60)).count();
        assert_eq!(due_count, LOADS_PER_COUNT);
        mappings.counted_s.store(59, Ordering::Relaxed);
        assert!(!mappings.is_due_after_load(60), "they were counted a moment ago");
    }

    #[test]
    fn who_was_used_since_goes_last() {
        let (mapped, entries) = line(&["a", "b", "c"]);
        // Once through the line, nobody was used since.
        assert_eq!(mapped.next(&mut 0).map(|_| ()), Some(()));
        assert!(entries[1].touch(20));
        assert_eq!(all(&mapped), ["c", "b"]);
        assert!(!entries[2].has(Fact::Listed));
        mapped.add(&entries[2], 21);
        mapped.add(&entries[2], 22);
        assert_eq!(all(&mapped), ["c"], "it stands in line once");
    }

    #[test]
    fn the_version_before_goes_before_the_app() {
        let (mapped, entries) = line(&["a", "b"]);
        entries[0].set(Fact::HasPrevious, true);
        assert_eq!(all(&mapped), ["(a)", "a", "b"]);
    }

    #[test]
    fn the_only_version_that_works_stays_and_who_is_removed_leaves() {
        let (mapped, entries) = line(&["a", "b"]);
        entries[0].set(Fact::Broken, true);
        entries[1].mark_removed();
        mapped.forget(&entries[1]);
        assert_eq!(all(&mapped), [] as [&str; 0]);
        mapped.add(&entries[1], 30);
        entries[0].set(Fact::Broken, false);
        assert_eq!(all(&mapped), ["a"], "whoever is removed does not come back");
    }
}
