//! Time, so that a test can move it.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::future::BoxFuture;
use tokio::sync::watch;

/// The longest sleep of the [`SystemClock`] at a time: a machine that was suspended or
/// whose clock was set is noticed this soon.
const MAX_SLEEP: Duration = Duration::from_secs(5);

/// Tells the time and waits for it.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// The time.
    fn now(&self) -> SystemTime;

    /// Resolves when it is that time.
    fn sleep_until(&self, time: SystemTime) -> BoxFuture<'static, ()>;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// A clock that stands where it was put.
#[derive(Debug)]
pub struct ManualClock {
    now: watch::Sender<SystemTime>,
}

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep_until(&self, time: SystemTime) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while let Ok(rest) = time.duration_since(SystemTime::now()) {
                if rest.is_zero() {
                    return;
                }
                tokio::time::sleep(rest.min(MAX_SLEEP)).await;
            }
        })
    }
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: SystemTime) -> Self {
        Self { now: watch::Sender::new(now) }
    }

    /// Moves it forward and wakes those who waited for that.
    pub fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now += by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.now.borrow()
    }

    fn sleep_until(&self, time: SystemTime) -> BoxFuture<'static, ()> {
        let mut now = self.now.subscribe();
        Box::pin(async move {
            if now.wait_for(|now| *now >= time).await.is_err() {
                // The clock is gone and will never show that time.
                std::future::pending::<()>().await;
            }
        })
    }
}

/// Seconds since 1970; zero for what was before.
pub(crate) fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The time that many seconds after 1970.
pub(crate) fn from_unix_s(seconds: u64) -> SystemTime {
    // What lies beyond the clock's range is as good as never.
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds.min(u64::from(u32::MAX)))).unwrap_or(UNIX_EPOCH)
}
