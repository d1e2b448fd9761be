//! Connections that wait for their next request.
//!
//! One pool per process. A connection belongs to the runtime that opened it
//! (its driver task lives there) and to the component that it was opened for
//! (its TLS identity and its checked address are that component's), and is
//! reused only under the same runtime, component, scheme, host and port. So a
//! request on one core never wakes another core, and no component ever speaks
//! through another's connection.
//!
//! Life of a connection: opened → its driver task is spawned → leased to a
//! request → given back when the response's last byte was read → leased again,
//! or closed: by the server, after [`IDLE_TIMEOUT`], or because a bound on
//! connections is reached and another destination needs the room.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use tokio::runtime;

use super::body::RequestBody;
use crate::outbound::Permit;

/// How long a connection waits for its next request. Below the 75 to 120
/// seconds after which common servers and firewalls forget it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often an open connection looks for connections to its destination that
/// waited too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(20);

/// How many connections wait per runtime, component and destination. More
/// requests at once than this open connections that close after use.
const IDLE_PER_DESTINATION_COUNT: usize = 64;

/// How many connections wait in the whole process.
const IDLE_COUNT: usize = 4096;

/// How long a connection that has just ended a response is waited for before
/// another is opened: its driver needs a turn, no more.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(10);

/// Number of independently locked parts, so that cores rarely meet.
const SHARDS_COUNT: usize = 16;

/// Connections that wait, by what they may be reused for.
pub(super) struct Pool {
    hasher: RandomState,
    shards: [Mutex<HashMap<Key, Waiting>>; SHARDS_COUNT],
    idle_count: AtomicUsize,
}

/// What a connection may be reused for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The component, in one configuration of it.
    pub(super) client: u64,
    pub(super) runtime: runtime::Id,
    pub(super) is_tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

#[derive(Default)]
struct Waiting {
    /// The one that was used last is at the end, and is used first.
    http1: Vec<Idle>,
    /// Serves many requests at once, so it stays here.
    http2: Option<Shared>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    usage: Arc<Usage>,
}

/// How much an HTTP/2 connection is used.
struct Usage {
    requests_count: AtomicUsize,
    last_end: Mutex<Instant>,
}

/// A connection in the hands of one request.
pub(super) enum Connection {
    Http1(http1::SendRequest<RequestBody>),
    /// The guard is never looked at: it counts as long as it lives.
    Http2(http2::SendRequest<RequestBody>, #[expect(dead_code, reason = "kept for its drop")] UsageGuard),
}

/// Counts one request of an HTTP/2 connection.
pub(super) struct UsageGuard {
    usage: Arc<Usage>,
}

/// What a response holds on to until its end.
pub(super) struct Lease {
    connection: Connection,
    /// Unset where connections are not reused.
    pool: Option<(Arc<Pool>, Key)>,
    /// Set once the connection is done with the request's body: only then can
    /// it serve another. Unset if there was no body.
    is_request_done: Option<Arc<AtomicBool>>,
}

impl Pool {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            hasher: RandomState::new(),
            shards: Default::default(),
            idle_count: AtomicUsize::new(0),
        })
    }

    fn with_shard<T>(&self, key: &Key, action: impl FnOnce(&mut HashMap<Key, Waiting>) -> T) -> T {
        let hash = usize::try_from(self.hasher.hash_one(key) % 1024).unwrap_or(0);
        let shard = &self.shards[hash % SHARDS_COUNT];
        action(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A waiting connection that is ready for a request, if there is one.
    pub(super) async fn take(&self, key: &Key) -> Option<Connection> {
        loop {
            let mut sender = match self.take_any(key)? {
                Connection::Http1(sender) => sender,
                other => return Some(other),
            };
            if sender.is_ready() {
                return Some(Connection::Http1(sender));
            }
            if let Ok(Ok(())) = tokio::time::timeout(SETTLE_TIMEOUT, sender.ready()).await {
                return Some(Connection::Http1(sender));
            }
        }
    }

    fn take_any(&self, key: &Key) -> Option<Connection> {
        self.with_shard(key, |shard| {
            let Entry::Occupied(mut entry) = shard.entry(key.clone()) else { return None };
            let waiting = entry.get_mut();
            if let Some(shared) = &waiting.http2 {
                if shared.sender.is_closed() {
                    waiting.http2 = None;
                } else {
                    return Some(shared.lease());
                }
            }
            while let Some(idle) = waiting.http1.pop() {
                self.idle_count.fetch_sub(1, Ordering::Relaxed);
                if !idle.sender.is_closed() {
                    if waiting.is_empty() {
                        entry.remove();
                    }
                    return Some(Connection::Http1(idle.sender));
                }
            }
            if waiting.is_empty() {
                entry.remove();
            }
            None
        })
    }

    fn put(&self, key: Key, sender: http1::SendRequest<RequestBody>) {
        if sender.is_closed() || self.idle_count.load(Ordering::Relaxed) >= IDLE_COUNT {
            return;
        }
        self.with_shard(&key.clone(), |shard| {
            let waiting = shard.entry(key).or_default();
            if waiting.http1.len() < IDLE_PER_DESTINATION_COUNT {
                waiting.http1.push(Idle { sender, since: Instant::now() });
                self.idle_count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// Lets further requests share an HTTP/2 connection, beginning with the one
    /// that opened it.
    pub(super) fn share(&self, key: Key, sender: http2::SendRequest<RequestBody>) -> Connection {
        let shared = Shared { sender, usage: Arc::new(Usage::new()) };
        let first = shared.lease();
        self.with_shard(&key.clone(), |shard| {
            let waiting = shard.entry(key).or_default();
            // Another request may have been quicker; then this connection ends
            // with its first request.
            if waiting.http2.as_ref().is_none_or(|other| other.sender.is_closed()) {
                waiting.http2 = Some(shared);
            }
        });
        first
    }

    /// Lets go of connections that are closed or waited too long. Letting go of
    /// one that nobody uses closes it.
    fn sweep(&self, key: &Key) {
        self.with_shard(key, |shard| {
            if let Entry::Occupied(mut entry) = shard.entry(key.clone()) {
                let waiting = entry.get_mut();
                let before = waiting.http1.len();
                waiting.http1.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < IDLE_TIMEOUT);
                self.idle_count.fetch_sub(before - waiting.http1.len(), Ordering::Relaxed);
                let is_over =
                    |shared: &Shared| shared.sender.is_closed() || shared.usage.is_idle_for(IDLE_TIMEOUT);
                if waiting.http2.as_ref().is_some_and(is_over) {
                    waiting.http2 = None;
                }
                if waiting.is_empty() {
                    entry.remove();
                }
            }
        });
    }

    /// Closes one connection that nobody uses, to make room under a bound.
    /// Whether there was one; its permit comes back a moment later.
    pub(super) fn evict_one(&self) -> bool {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let mut found = None;
            for (key, waiting) in shard.iter_mut() {
                if !waiting.http1.is_empty() {
                    drop(waiting.http1.remove(0));
                    self.idle_count.fetch_sub(1, Ordering::Relaxed);
                } else if waiting
                    .http2
                    .as_ref()
                    .is_some_and(|shared| shared.usage.is_idle_for(Duration::ZERO))
                {
                    waiting.http2 = None;
                } else {
                    continue;
                }
                found = Some((key.clone(), waiting.is_empty()));
                break;
            }
            match found {
                Some((key, true)) => {
                    shard.remove(&key);
                    return true;
                }
                Some((_, false)) => return true,
                None => {}
            }
        }
        false
    }

    /// Number of connections that wait.
    #[cfg(test)]
    pub(super) fn idle_count(&self) -> usize {
        self.idle_count.load(Ordering::Relaxed)
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.http1.is_empty() && self.http2.is_none()
    }
}

impl Connection {
    /// An HTTP/2 connection for one request only.
    pub(super) fn alone(sender: http2::SendRequest<RequestBody>) -> Self {
        Shared { sender, usage: Arc::new(Usage::new()) }.lease()
    }
}

impl Shared {
    fn lease(&self) -> Connection {
        Connection::Http2(self.sender.clone(), UsageGuard::new(&self.usage))
    }
}

impl Usage {
    fn new() -> Self {
        Self { requests_count: AtomicUsize::new(0), last_end: Mutex::new(Instant::now()) }
    }

    fn is_idle_for(&self, time: Duration) -> bool {
        self.requests_count.load(Ordering::Relaxed) == 0
            && self.last_end.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= time
    }
}

impl UsageGuard {
    fn new(usage: &Arc<Usage>) -> Self {
        usage.requests_count.fetch_add(1, Ordering::Relaxed);
        Self { usage: usage.clone() }
    }
}

impl Drop for UsageGuard {
    fn drop(&mut self) {
        *self.usage.last_end.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.usage.requests_count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    pub(super) fn new(
        connection: Connection,
        pool: Option<(Arc<Pool>, Key)>,
        is_request_done: Option<Arc<AtomicBool>>,
    ) -> Self {
        Self { connection, pool, is_request_done }
    }

    /// Lets the connection serve another request, if it can.
    pub(super) fn give_back(self) {
        let is_done = self.is_request_done.is_none_or(|is_done| is_done.load(Ordering::Acquire));
        if let (Connection::Http1(sender), Some((pool, key)), true) = (self.connection, self.pool, is_done) {
            pool.put(key, sender);
        }
    }
}

/// Runs a connection to its end: the body of its driver task.
pub(super) async fn drive<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    pool: Arc<Pool>,
    key: Key,
    permit: Permit,
) {
    // Dropped in reverse order, also when the runtime ends before the connection:
    // the connection first, so that the sweep finds it closed.
    let _permit = permit;
    let swept = SweptAtEnd { pool, key };
    let mut connection = Box::pin(connection);
    loop {
        match tokio::time::timeout(SWEEP_INTERVAL, &mut connection).await {
            // Whoever uses the connection gets the same error from it.
            Ok(Ok(()) | Err(_)) => break,
            Err(_) => swept.pool.sweep(&swept.key),
        }
    }
}

struct SweptAtEnd {
    pool: Arc<Pool>,
    key: Key,
}

impl Drop for SweptAtEnd {
    fn drop(&mut self) {
        self.pool.sweep(&self.key);
    }
}
