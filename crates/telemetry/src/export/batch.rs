//! The queue of one signal, and the thread that sends what is in it.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use opentelemetry_sdk::error::OTelSdkResult;

use super::settings::BatchSettings;
use crate::Error;

/// What waits to be sent.
pub(super) struct Batch<T> {
    settings: BatchSettings,
    state: Mutex<State<T>>,
    /// Told when there is enough to send, and when all is to be sent.
    wake: Condvar,
    /// Told when all was sent.
    idle: Condvar,
    pub(super) health: Arc<Health>,
}

struct State<T> {
    items: Vec<T>,
    /// The first of them came then.
    since: Option<Instant>,
    /// Somebody waits for the end.
    is_flushing: bool,
    is_sending: bool,
}

/// How the export of one signal goes.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) signal: &'static str,
    /// What was not exported: no room, or nobody took it.
    pub(super) dropped_count: AtomicU64,
    is_failing: AtomicBool,
    /// What the client saw last: the exporter does not pass it on.
    cause: Mutex<Option<String>>,
}

impl<T: Send + 'static> Batch<T> {
    /// Starts the thread. `send` blocks, for a bounded time.
    pub(super) fn start(
        settings: BatchSettings,
        health: Arc<Health>,
        send: impl FnMut(Vec<T>) -> OTelSdkResult + Send + 'static,
    ) -> Result<Arc<Self>, Error> {
        let name = format!("wisp-{}", health.signal);
        let state = State { items: Vec::new(), since: None, is_flushing: false, is_sending: false };
        let batch = Arc::new(Self {
            settings,
            state: Mutex::new(state),
            wake: Condvar::new(),
            idle: Condvar::new(),
            health,
        });
        let of_thread = batch.clone();
        thread::Builder::new()
            .name(name)
            .spawn(move || of_thread.run(send))
            .map_err(|cause| Error::Start { cause })?;
        Ok(batch)
    }

    /// Takes something in, or counts it as dropped. Never waits for the network.
    pub(super) fn push(&self, item: T) {
        let mut state = self.lock();
        if state.items.len() >= self.settings.max_queue_count {
            drop(state);
            self.health.dropped_count.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.items.push(item);
        let count = state.items.len();
        if count == 1 {
            state.since = Some(Instant::now());
        }
        drop(state);
        // At the first one the thread begins to wait for the time, not for the number.
        if count == 1 || count == self.settings.max_batch_count {
            self.wake.notify_one();
        }
    }

    /// Waits until what is in the queue was sent, or was dropped.
    pub(super) fn flush(&self, deadline: Instant) {
        let mut state = self.lock();
        state.is_flushing = true;
        self.wake.notify_one();
        while !state.items.is_empty() || state.is_sending {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_flushing = false;
    }

    fn run(&self, mut send: impl FnMut(Vec<T>) -> OTelSdkResult) {
        // Two buffers take turns, so that whoever adds waits for no copying.
        let mut spare = Vec::new();
        loop {
            let mut items = self.take(spare);
            let mut rest = items.drain(..);
            loop {
                let part: Vec<T> = rest.by_ref().take(self.settings.max_batch_count).collect();
                if part.is_empty() {
                    break;
                }
                let count = part.len();
                let result = send(part);
                self.health.note(&result, count);
            }
            drop(rest);
            spare = items;
            self.lock().is_sending = false;
            self.idle.notify_all();
        }
    }

    /// Waits until there is something to send, and takes it.
    fn take(&self, spare: Vec<T>) -> Vec<T> {
        let mut state = self.lock();
        loop {
            let is_enough = state.items.len() >= self.settings.max_batch_count;
            if is_enough || (state.is_flushing && !state.items.is_empty()) {
                break;
            }
            state = match state.since {
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(since) => {
                    let left = (since + self.settings.delay).saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.since = None;
        state.is_sending = true;
        std::mem::replace(&mut state.items, spare)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    pub(super) fn new(signal: &'static str) -> Self {
        Self {
            signal,
            dropped_count: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
            cause: Mutex::new(None),
        }
    }

    /// Remembers what went wrong on the way.
    pub(super) fn set_cause(&self, cause: String) {
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
    }

    /// Notes how an export of so many went; says when that changes.
    pub(super) fn note(&self, result: &OTelSdkResult, count: usize) {
        let cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Err(error) = result else {
            if self.is_failing.swap(false, Ordering::Relaxed) {
                tracing::info!(signal = self.signal, "exporting works again");
            }
            return;
        };
        self.dropped_count.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            let cause = cause.unwrap_or_else(|| error.to_string());
            tracing::warn!(code = "WISP-E0605", "{} cannot be exported: {cause}", self.signal);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{sync::mpsc, time::Duration};

    use super::*;

    fn settings(max_queue_count: usize, max_batch_count: usize, delay: Duration) -> BatchSettings {
        BatchSettings { max_queue_count, max_batch_count, delay }
    }

    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn a_full_batch_is_sent_at_once_and_the_rest_when_asked() {
        let (sender, sent) = mpsc::channel();
        let send = move |items: Vec<u32>| {
            sender.send(items).unwrap();
            Ok(())
        };
        let batch = Batch::start(settings(100, 3, NEVER), Arc::new(Health::new("test")), send).unwrap();
        (0..4).for_each(|number| batch.push(number));
        let mut all = sent.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(all, [0, 1, 2]);
        batch.flush(Instant::now() + Duration::from_secs(20));
        all.extend(sent.try_iter().flatten());
        assert_eq!(all, [0, 1, 2, 3]);
    }

    #[test]
    fn what_waits_is_sent_after_the_delay() {
        let (sender, sent) = mpsc::channel();
        let send = move |items: Vec<u32>| {
            sender.send(items).unwrap();
            Ok(())
        };
        let delay = Duration::from_millis(5);
        let batch = Batch::start(settings(100, 50, delay), Arc::new(Health::new("test")), send).unwrap();
        batch.push(7);
        assert_eq!(sent.recv_timeout(Duration::from_secs(20)).unwrap(), [7]);
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_while_nobody_waits() {
        let (release, released) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let send = move |items: Vec<u32>| {
            begun.send(items.len()).unwrap();
            released.recv().unwrap();
            Ok(())
        };
        let health = Arc::new(Health::new("test"));
        let batch = Batch::start(settings(4, 2, NEVER), health.clone(), send).unwrap();
        batch.push(0);
        batch.push(1);
        has_begun.recv().unwrap();
        // The collector does not answer: four wait, the others have no place.
        (0..10).for_each(|number| batch.push(number));
        assert_eq!(health.dropped_count.load(Ordering::Relaxed), 6);
        batch.flush(Instant::now() + Duration::from_millis(20));
        for _ in 0..3 {
            release.send(()).unwrap();
        }
        batch.flush(Instant::now() + Duration::from_secs(20));
        assert_eq!(has_begun.try_iter().sum::<usize>(), 4);
    }

    #[test]
    fn what_nobody_takes_is_counted() {
        let health = Health::new("test");
        health.note(&Err(opentelemetry_sdk::error::OTelSdkError::AlreadyShutdown), 3);
        health.note(&Ok(()), 5);
        assert_eq!(health.dropped_count.load(Ordering::Relaxed), 3);
    }
}
