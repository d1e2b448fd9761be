//! Instances between two requests, for components that opted in.

use std::{
    cell::Cell,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use wasmtime::Store;
use wisp_capability::Host;
use wisp_manifest::model::Reuse;

/// Idle instances that one worker thread keeps of one component. More than a
/// thread runs at once are of no use.
const MAX_IDLE_COUNT: usize = 64;

/// An instance and what it has behind it.
pub(super) struct Instance<P> {
    pub(super) store: Store<Host>,
    pub(super) proxy: P,
    pub(super) served_count: u32,
}

/// Idle instances of one component, apart by worker thread: a thread finds the
/// instance whose memory its core has in cache, and never waits for another.
pub(super) struct ReusePool<P> {
    settings: Reuse,
    shards: Vec<Shard<P>>,
}

/// Instances with the time since when they are idle, oldest first.
type Shard<P> = Mutex<Vec<(Instance<P>, Instant)>>;

impl<P> ReusePool<P> {
    pub(super) fn new(settings: Reuse) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { settings, shards: (0..threads).map(|_| Mutex::default()).collect() }
    }

    pub(super) fn take(&self) -> Option<Instance<P>> {
        let mut idle = self.shard().lock().unwrap_or_else(PoisonError::into_inner);
        idle.pop().map(|(instance, _)| instance)
    }

    /// Keeps an instance that has just answered a request, if it may answer more.
    pub(super) fn put(&self, mut instance: Instance<P>) {
        instance.served_count += 1;
        instance.store.data_mut().limiter.pause();
        if instance.served_count >= self.settings.max_requests {
            return;
        }
        let mut idle = self.shard().lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_COUNT {
            idle.push((instance, Instant::now()));
        }
    }

    /// Drops instances that have been idle for too long.
    pub(super) fn sweep(&self) {
        for shard in &self.shards {
            let expired: Vec<_> = {
                let mut idle = shard.lock().unwrap_or_else(PoisonError::into_inner);
                let keep = idle.iter().position(|(_, since)| since.elapsed() < self.settings.idle_timeout);
                // Instances are taken from the end, so the front is the oldest.
                let expired_count = keep.unwrap_or(idle.len());
                idle.drain(..expired_count).collect()
            };
            drop(expired);
        }
    }

    pub(super) fn idle_timeout(&self) -> Duration {
        self.settings.idle_timeout
    }

    fn shard(&self) -> &Shard<P> {
        &self.shards[thread_number() % self.shards.len()]
    }
}

/// A small number that tells this thread from others.
pub(super) fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    NUMBER.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}
