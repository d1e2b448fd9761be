//! What one request uses, as it is being used.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

/// What the instance of one request has used so far.
///
/// One thread at a time runs the instance and writes here; others may read.
/// Hence plain loads and stores: nothing here costs more than memory of its own.
#[derive(Debug, Default)]
pub struct Usage {
    cpu_ns: AtomicU64,
    instantiate_ns: AtomicU64,
    queue_ns: AtomicU64,
    peak_memory_bytes: AtomicU64,
    request_bytes: AtomicU64,
    memory_refused: AtomicBool,
    table_refused: AtomicBool,
}

/// Who keeps the accounts of a running instance: told what it uses, asked
/// whether it may have more of what the node's apps share.
pub trait Ledger: Send + Sync {
    /// The accounts of the request that the instance serves.
    fn usage(&self) -> &Usage;

    /// Takes memory beyond the free allowance out of what all instances share.
    fn reserve_memory(&self, bytes: u64) -> bool;

    /// Gives it back.
    fn release_memory(&self, bytes: u64);
}

impl Usage {
    /// CPU time of the guest, and of the host functions that it called.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.load(Ordering::Relaxed))
    }

    /// Adds the time of one poll; gives the sum.
    pub fn add_cpu_ns(&self, ns: u64) -> u64 {
        add(&self.cpu_ns, ns)
    }

    /// How long it took to make the instance; zero for a reused one.
    pub fn instantiate(&self) -> Duration {
        Duration::from_nanos(self.instantiate_ns.load(Ordering::Relaxed))
    }

    /// Notes how long it took to make the instance.
    pub fn set_instantiate(&self, duration: Duration) {
        self.instantiate_ns.store(nanoseconds(duration), Ordering::Relaxed);
    }

    /// How long the guest could have run but others had their turn.
    pub fn queue(&self) -> Duration {
        Duration::from_nanos(self.queue_ns.load(Ordering::Relaxed))
    }

    /// Adds the wait for one turn.
    pub fn add_queue(&self, duration: Duration) {
        add(&self.queue_ns, nanoseconds(duration));
    }

    /// The most linear memory that the instance had, over all of its memories.
    pub fn peak_memory_bytes(&self) -> u64 {
        self.peak_memory_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn note_memory(&self, bytes: u64) {
        if bytes > self.peak_memory_bytes.load(Ordering::Relaxed) {
            self.peak_memory_bytes.store(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes of the request's body that the guest took.
    pub fn request_bytes(&self) -> u64 {
        self.request_bytes.load(Ordering::Relaxed)
    }

    /// Adds bytes of the request's body.
    pub fn add_request_bytes(&self, bytes: u64) {
        add(&self.request_bytes, bytes);
    }

    /// Whether the guest asked for more memory than it may have.
    pub fn memory_refused(&self) -> bool {
        self.memory_refused.load(Ordering::Relaxed)
    }

    /// Whether the guest asked for more table elements than it may have.
    pub fn table_refused(&self) -> bool {
        self.table_refused.load(Ordering::Relaxed)
    }

    pub(crate) fn refuse_memory(&self) {
        self.memory_refused.store(true, Ordering::Relaxed);
    }

    pub(crate) fn refuse_table(&self) {
        self.table_refused.store(true, Ordering::Relaxed);
    }
}

/// There is one writer at a time, so that adding needs no locked instruction.
fn add(counter: &AtomicU64, amount: u64) -> u64 {
    let sum = counter.load(Ordering::Relaxed).saturating_add(amount);
    counter.store(sum, Ordering::Relaxed);
    sum
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
