//! The clock that preempts guests.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::memory::MemoryPools;

/// How often running guests are asked to yield, in milliseconds.
///
/// A guest that computes without calling the host gives way to other requests of
/// its thread at this pace; it is also the resolution of time limits.
pub const EPOCH_TICK_MS: u64 = 10;

/// How many ticks lie between two looks for idle memory: one second.
const SWEEP_TICKS_COUNT: u64 = 100;

/// A thread that advances the epoch of the engines and, being awake, gives back
/// memory that has long been idle; ends when dropped.
pub(crate) struct EpochTicker {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EpochTicker {
    pub(crate) fn start(
        engines: Vec<wasmtime::Engine>,
        memories: Arc<MemoryPools>,
    ) -> std::io::Result<Arc<Self>> {
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("wisp-epoch".into()).spawn(move || {
            let mut ticks_count = 0_u64;
            while stopped.recv_timeout(Duration::from_millis(EPOCH_TICK_MS)) == Err(RecvTimeoutError::Timeout)
            {
                for engine in &engines {
                    engine.increment_epoch();
                }
                ticks_count += 1;
                if ticks_count.is_multiple_of(SWEEP_TICKS_COUNT) {
                    memories.sweep();
                }
            }
        })?;
        Ok(Arc::new(Self { stop: Some(stop), thread: Some(thread) }))
    }
}

impl Drop for EpochTicker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread has nothing to report, and nobody to report it to.
            let _ = thread.join();
        }
    }
}
