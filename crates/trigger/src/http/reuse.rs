//! Instances between two requests.
//!
//! Two kinds of components have some: those whose author opted in keep an instance
//! as it is, with what it remembers; and an instance that was rewound (see
//! [`wisp_engine::Rewinder`]) is as good as a new one for any component.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use wasmtime::Store;
use wisp_capability::Host;
use wisp_engine::Rewinder;
use wisp_manifest::model::Reuse;

/// Idle instances that one worker thread keeps of one component. More than a
/// thread runs at once are of no use.
const MAX_IDLE_COUNT: usize = 64;

/// Rewound instances that all components of the process keep together. One holds
/// what its requests wrote to, 0.1 to 2 MiB, and a few mappings.
const MAX_REWOUND_COUNT: usize = 1_000;

/// How long a rewound instance waits for a request.
const REWOUND_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A component that had no request for this long does not keep an instance after the
/// next one: most apps have few requests, and would fill the places of those that
/// have many.
const DEMAND_WINDOW_MS: u64 = 1_000;

/// An instance and what it has behind it.
pub(super) struct Instance<P> {
    pub(super) store: Store<Host>,
    pub(super) proxy: P,
    pub(super) served_count: u32,
    /// Puts it back to its beginning after each request, where it can.
    pub(super) rewinder: Option<Rewinder>,
}

/// Idle instances of one component, apart by worker thread: a thread finds the
/// instance whose memory its core has in cache, and never waits for another.
pub(super) struct ReusePool<P> {
    settings: Reuse,
    rewinds: bool,
    shards: Vec<Shard<P>>,
    /// When an instance was last asked for, in milliseconds since the process began to
    /// count them.
    asked_ms: AtomicU64,
    is_in_demand: AtomicBool,
}

/// Idle instances, oldest first.
type Shard<P> = Mutex<Vec<Idle<P>>>;

struct Idle<P> {
    instance: Instance<P>,
    since: Instant,
    _counted: Option<Counted>,
}

impl<P> ReusePool<P> {
    /// For a component whose author opted in, with these settings, or whose instances
    /// can be rewound; `None` for others.
    pub(super) fn new(reuse: Option<Reuse>, can_rewind: bool) -> Option<Self> {
        let (settings, rewinds) = match reuse {
            Some(reuse) => (reuse, false),
            None if can_rewind => {
                (Reuse { max_requests: u32::MAX, idle_timeout: REWOUND_IDLE_TIMEOUT }, true)
            }
            None => return None,
        };
        let threads = wisp_engine::cores_count();
        Some(Self {
            settings,
            rewinds,
            shards: (0..threads).map(|_| Mutex::default()).collect(),
            asked_ms: AtomicU64::new(0),
            is_in_demand: AtomicBool::new(false),
        })
    }

    /// Whether its instances are rewound rather than kept as they are.
    pub(super) fn rewinds(&self) -> bool {
        self.rewinds
    }

    pub(super) fn take(&self) -> Option<Instance<P>> {
        let found = self.find();
        if self.rewinds && found.is_none() {
            let now_ms = now_ms();
            let before_ms = self.asked_ms.swap(now_ms, Ordering::Relaxed);
            let is_in_demand = before_ms > 0 && now_ms.saturating_sub(before_ms) < DEMAND_WINDOW_MS;
            self.is_in_demand.store(is_in_demand, Ordering::Relaxed);
        }
        found.map(|idle| idle.instance)
    }

    /// This thread's latest instance, else that of any other: a guest may have ended on
    /// another thread than it began on.
    fn find(&self) -> Option<Idle<P>> {
        let own = self.shard().lock().unwrap_or_else(PoisonError::into_inner).pop();
        own.or_else(|| self.shards.iter().find_map(|shard| shard.try_lock().ok()?.pop()))
    }

    /// Whether keeping an instance that was just used is worth the effort.
    pub(super) fn is_wanted(&self, served_count: u32) -> bool {
        served_count > 0 || self.is_in_demand.load(Ordering::Relaxed)
    }

    /// Keeps an instance that has just answered a request, if it may answer more.
    pub(super) fn put(&self, mut instance: Instance<P>) {
        instance.served_count = instance.served_count.saturating_add(1);
        if instance.served_count >= self.settings.max_requests && !self.rewinds {
            return;
        }
        instance.store.data_mut().limiter.pause();
        let counted = if self.rewinds { Some(Counted::new()) } else { None };
        if matches!(counted, Some(None)) {
            return;
        }
        let mut idle = self.shard().lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_COUNT {
            idle.push(Idle { instance, since: Instant::now(), _counted: counted.flatten() });
        }
    }

    /// Drops instances that have been idle for too long.
    pub(super) fn sweep(&self) {
        for shard in &self.shards {
            let expired: Vec<_> = {
                let mut idle = shard.lock().unwrap_or_else(PoisonError::into_inner);
                let keep = idle.iter().position(|idle| idle.since.elapsed() < self.settings.idle_timeout);
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
        &self.shards[wisp_engine::thread_number() % self.shards.len()]
    }
}

/// One of the rewound instances that are kept.
struct Counted;

static REWOUND_COUNT: AtomicUsize = AtomicUsize::new(0);

impl Counted {
    fn new() -> Option<Self> {
        let counted = Self;
        (REWOUND_COUNT.fetch_add(1, Ordering::Relaxed) < MAX_REWOUND_COUNT).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        REWOUND_COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Milliseconds since this was first asked, and one more, so that zero is never.
fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed().as_millis();
    u64::try_from(elapsed).unwrap_or(u64::MAX - 1) + 1
}
