//! Who may run now, who waits, who is told to come back later.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a client that finds no room is told to wait, in seconds.
pub(super) const RETRY_AFTER_S: &str = "1";

/// How many requests run and wait.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    /// Requests that run at once.
    pub max_running_count: usize,
    /// Requests that wait for one of those to end; more are refused at once.
    pub max_waiting_count: usize,
    /// How long a request waits before it is refused.
    pub max_wait: Duration,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        // As many run as the engine's pool has instances. The queue absorbs a
        // burst of the same size; waiting longer than this, a client has usually
        // given up.
        Self { max_running_count: 1_000, max_waiting_count: 1_000, max_wait: Duration::from_secs(5) }
    }
}

/// A bounded number of places and a bounded queue before them.
pub(super) struct Admission {
    places: Arc<Semaphore>,
    waiting_count: AtomicUsize,
    limits: AdmissionLimits,
}

/// The right to run; given back when dropped.
pub(super) type Permit = OwnedSemaphorePermit;

/// There is no room, and no room to wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Admission {
    pub(super) fn new(limits: AdmissionLimits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.max_running_count)),
            waiting_count: AtomicUsize::new(0),
            limits,
        }
    }

    /// Takes a place, waiting in line for a bounded time if all are taken.
    pub(super) async fn admit(&self) -> Result<Permit, Full> {
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = Waiting::enter(&self.waiting_count, self.limits.max_waiting_count)?;
        match tokio::time::timeout(self.limits.max_wait, self.places.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            // Closed never happens; too late and closed mean the same to a client.
            Ok(Err(_)) | Err(_) => Err(Full),
        }
    }
}

/// A place in the queue; left when dropped, also when the client gave up.
struct Waiting<'count>(&'count AtomicUsize);

impl<'count> Waiting<'count> {
    fn enter(count: &'count AtomicUsize, limit: usize) -> Result<Self, Full> {
        if count.fetch_add(1, Ordering::AcqRel) >= limit {
            count.fetch_sub(1, Ordering::AcqRel);
            return Err(Full);
        }
        Ok(Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn limits(running: usize, waiting: usize) -> AdmissionLimits {
        AdmissionLimits {
            max_running_count: running,
            max_waiting_count: waiting,
            max_wait: Duration::from_secs(5),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refuses_at_once_when_nobody_may_wait() {
        let admission = Admission::new(limits(1, 0));
        let permit = admission.admit().await.unwrap();
        assert_eq!(admission.admit().await.err(), Some(Full));
        drop(permit);
        assert!(admission.admit().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn refuses_after_the_wait() {
        let admission = Admission::new(limits(1, 1));
        let _permit = admission.admit().await.unwrap();
        let before = tokio::time::Instant::now();
        assert_eq!(admission.admit().await.err(), Some(Full));
        assert_eq!(before.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_gives_up_leaves_the_queue() {
        let admission = Admission::new(limits(1, 1));
        let permit = admission.admit().await.unwrap();
        {
            let waiting = admission.admit();
            tokio::pin!(waiting);
            assert!(futures::poll!(&mut waiting).is_pending());
            assert_eq!(admission.waiting_count.load(Ordering::Acquire), 1);
        }
        assert_eq!(admission.waiting_count.load(Ordering::Acquire), 0);
        drop(permit);
        assert!(admission.admit().await.is_ok());
    }
}
