//! What one instance may allocate.

use std::sync::Arc;

use wasmtime::ResourceLimiter;

use crate::{config::MAX_MEMORY_BYTES, usage::Ledger};

/// Memory that an instance has without asking the node: what a small guest
/// starts with, so that the usual request touches no counter that cores share.
const FREE_MEMORY_BYTES: usize = 16 << 20;

/// What one instance may allocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceLimits {
    /// Linear memory, the sum of all of its memories.
    pub memory_bytes: usize,
    /// Elements of tables, the sum of all of its tables.
    pub table_elements_count: usize,
}

impl Default for InstanceLimits {
    fn default() -> Self {
        Self { memory_bytes: MAX_MEMORY_BYTES, table_elements_count: usize::MAX }
    }
}

/// Bounds the memories and tables of one instance, and says what it has.
///
/// A request for more is refused to the guest (`memory.grow` answers -1), whose
/// allocator then reports that it is out of memory in its own way.
#[derive(Default)]
pub struct Limiter {
    limits: InstanceLimits,
    memory_bytes: usize,
    table_elements_count: usize,
    /// What was taken from the node's budget.
    reserved_bytes: u64,
    /// Memory that the instance begins with and is not asked for, until it begins.
    extra_bytes: usize,
    /// What the last growth added, in case the operating system refuses it.
    growth_bytes: usize,
    ledger: Option<Arc<dyn Ledger>>,
}

impl Limiter {
    /// A limiter that keeps its accounts in `ledger`.
    pub fn new(limits: InstanceLimits, ledger: Option<Arc<dyn Ledger>>) -> Self {
        Self { limits, ledger, ..Self::default() }
    }

    /// For an instance whose memory is larger by so much than it is asked for in the
    /// beginning; see [`MemoryPool::extra_bytes`](crate::MemoryPool::extra_bytes).
    pub fn with_extra(mut self, bytes: usize) -> Self {
        self.extra_bytes = bytes;
        self
    }

    /// The same instance serves another request.
    pub fn begin(&mut self, ledger: Option<Arc<dyn Ledger>>) {
        self.ledger = ledger;
        if let Some(ledger) = &self.ledger {
            ledger.usage().note_memory(self.memory_bytes as u64);
        }
    }

    /// The request has ended; the instance waits for another.
    pub fn pause(&mut self) {
        // What it keeps is small beside what it may grow to; whoever is served
        // next pays for it again.
        self.release();
        self.ledger = None;
    }

    /// Takes what is beyond the free allowance from the node's budget.
    fn reserve(&mut self, bytes: usize) -> bool {
        let Some(ledger) = &self.ledger else { return true };
        let wanted = bytes.saturating_sub(FREE_MEMORY_BYTES) as u64;
        let more = wanted.saturating_sub(self.reserved_bytes);
        if more > 0 && !ledger.reserve_memory(more) {
            return false;
        }
        self.reserved_bytes += more;
        true
    }

    fn release(&mut self) {
        if self.reserved_bytes > 0
            && let Some(ledger) = &self.ledger
        {
            ledger.release_memory(self.reserved_bytes);
        }
        self.reserved_bytes = 0;
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.release();
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let extra_bytes = if current == 0 { std::mem::take(&mut self.extra_bytes) } else { 0 };
        let growth_bytes = desired.saturating_sub(current).saturating_add(extra_bytes);
        let total_bytes = self.memory_bytes.saturating_add(growth_bytes);
        // A memory's own maximum is the guest's affair, not a limit of ours.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        if total_bytes > self.limits.memory_bytes || !self.reserve(total_bytes) {
            if let Some(ledger) = &self.ledger {
                ledger.usage().refuse_memory();
            }
            return Ok(false);
        }
        self.memory_bytes = total_bytes;
        self.growth_bytes = growth_bytes;
        if let Some(ledger) = &self.ledger {
            ledger.usage().note_memory(total_bytes as u64);
        }
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_bytes = self.memory_bytes.saturating_sub(std::mem::take(&mut self.growth_bytes));
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let total_count = self.table_elements_count.saturating_add(desired.saturating_sub(current));
        if total_count > self.limits.table_elements_count {
            if let Some(ledger) = &self.ledger {
                ledger.usage().refuse_table();
            }
            return Ok(false);
        }
        self.table_elements_count = total_count;
        Ok(true)
    }
}
