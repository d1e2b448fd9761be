//! What one instance may allocate.

use wasmtime::ResourceLimiter;

use crate::config::MAX_MEMORY_BYTES;

/// Bounds the linear memory of one instance and remembers its peak.
///
/// A request for more is refused to the guest (`memory.grow` answers -1), whose
/// allocator then reports that it is out of memory in its own way.
#[derive(Clone, Debug)]
pub struct Limiter {
    max_memory_bytes: usize,
    peak_memory_bytes: usize,
    refused: bool,
}

impl Limiter {
    /// A limiter that allows each linear memory to grow to `max_memory_bytes`.
    pub fn new(max_memory_bytes: usize) -> Self {
        Self { max_memory_bytes, peak_memory_bytes: 0, refused: false }
    }

    /// The largest size that a linear memory reached.
    pub fn peak_memory_bytes(&self) -> usize {
        self.peak_memory_bytes
    }

    /// Whether a request for memory was refused.
    pub fn refused(&self) -> bool {
        self.refused
    }
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new(MAX_MEMORY_BYTES)
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = desired <= self.max_memory_bytes && maximum.is_none_or(|maximum| desired <= maximum);
        if allowed {
            self.peak_memory_bytes = self.peak_memory_bytes.max(desired);
        } else {
            self.refused = true;
        }
        Ok(allowed)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // The pool bounds tables already; this only honours the table's own limit.
        Ok(maximum.is_none_or(|maximum| desired <= maximum))
    }
}
