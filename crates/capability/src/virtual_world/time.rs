//! Time that passes only when nothing else can happen.
//!
//! A guest that sleeps for an hour wakes up at once, but not before everything else that
//! could happen has happened: an answer that is there is seen before the time-out that
//! waits beside it. So the clock is moved by the thread that runs the test, at the moment
//! when it has nothing left to do ([`VirtualTime::on_idle`]), and only to the next moment
//! that somebody waits for.
//!
//! What is done on other threads (statements of a database, a request that is recorded)
//! says so with a [`Busy`].

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::wasi::WallClock;

/// How far the monotonic clock moves with each look at it, in nanoseconds: a guest that
/// looks until time has passed would look forever otherwise. The time of day does not
/// move with it.
const LOOK_NS: u64 = 1_000;

/// The clock of one test. It stands still unless somebody sleeps or moves it.
#[derive(Default)]
pub struct VirtualTime {
    state: Mutex<State>,
    looks_count: AtomicU64,
    was_read: AtomicBool,
    busy_count: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// The time of day when nothing had passed, since 1970.
    start_ns: u64,
    passed_ns: u64,
    /// Who sleeps: until when, and a number.
    sleepers: BTreeMap<(u64, u64), Waker>,
    sleepers_count: u64,
}

/// Is over when so much time has passed.
pub struct Sleep {
    time: Arc<VirtualTime>,
    until_ns: u64,
    number: u64,
}

/// While this exists, time does not pass.
pub struct Busy(Arc<VirtualTime>);

impl VirtualTime {
    /// A clock that shows this time since 1970.
    pub fn new(now: Duration) -> Self {
        let state = State { start_ns: nanoseconds(now), ..State::default() };
        Self { state: Mutex::new(state), ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time since 1970.
    pub fn now(&self) -> Duration {
        let state = self.state();
        Duration::from_nanos(state.start_ns.wrapping_add(state.passed_ns))
    }

    /// Sets the time since 1970. Nobody who sleeps wakes up.
    pub fn set(&self, now: Duration) {
        let mut state = self.state();
        // The start may lie before 1970 then, which only the difference knows.
        state.start_ns = nanoseconds(now).wrapping_sub(state.passed_ns);
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state();
        state.passed_ns = state.passed_ns.saturating_add(nanoseconds(by));
        state.wake();
    }

    /// Whether a guest asked for the time of day.
    pub fn was_read(&self) -> bool {
        self.was_read.load(Ordering::Relaxed)
    }

    /// What the monotonic clock shows.
    pub(super) fn monotonic_ns(&self) -> u64 {
        let looks_count = self.looks_count.fetch_add(1, Ordering::Relaxed) + 1;
        self.state().passed_ns.saturating_add(looks_count.saturating_mul(LOOK_NS))
    }

    /// How far a mark of the monotonic clock lies ahead.
    pub(super) fn until(&self, mark_ns: u64) -> Duration {
        let looked_ns = self.looks_count.load(Ordering::Relaxed).saturating_mul(LOOK_NS);
        Duration::from_nanos(mark_ns.saturating_sub(self.state().passed_ns.saturating_add(looked_ns)))
    }

    /// Sleeps.
    pub fn sleep(self: &Arc<Self>, duration: Duration) -> Sleep {
        self.sleep_until(self.after(duration))
    }

    /// What will have passed after this duration.
    pub(super) fn after(&self, duration: Duration) -> u64 {
        self.state().passed_ns.saturating_add(nanoseconds(duration))
    }

    /// Sleeps until so much has passed.
    pub(super) fn sleep_until(self: &Arc<Self>, until_ns: u64) -> Sleep {
        let mut state = self.state();
        state.sleepers_count += 1;
        Sleep { time: self.clone(), until_ns, number: state.sleepers_count }
    }

    /// The thread that runs the test has nothing to do: time passes until somebody who
    /// sleeps wakes up.
    pub fn on_idle(&self) {
        if self.busy_count.load(Ordering::Acquire) > 0 {
            return;
        }
        let mut state = self.state();
        if let Some(((until_ns, _), _)) = state.sleepers.first_key_value() {
            state.passed_ns = state.passed_ns.max(*until_ns);
            state.wake();
        }
    }
}

impl State {
    /// Wakes those whose time has come.
    fn wake(&mut self) {
        while let Some(entry) = self.sleepers.first_entry() {
            if entry.key().0 > self.passed_ns {
                return;
            }
            entry.remove().wake();
        }
    }
}

impl WallClock for VirtualTime {
    fn now(&self) -> Duration {
        self.was_read.store(true, Ordering::Relaxed);
        Self::now(self)
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.time.state();
        if state.passed_ns >= self.until_ns {
            return Poll::Ready(());
        }
        state.sleepers.insert((self.until_ns, self.number), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.time.state().sleepers.remove(&(self.until_ns, self.number));
    }
}

impl Busy {
    pub(super) fn new(time: &Arc<VirtualTime>) -> Self {
        time.busy_count.fetch_add(1, Ordering::AcqRel);
        Self(time.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy_count.fetch_sub(1, Ordering::AcqRel);
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn run<T>(time: &Arc<VirtualTime>, future: impl Future<Output = T>) -> T {
        let idle = time.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || idle.on_idle())
            .build()
            .unwrap();
        runtime.block_on(future)
    }

    #[test]
    fn who_sleeps_wakes_up_in_order_and_at_once() {
        let time = Arc::new(VirtualTime::new(seconds(100)));
        let order = Mutex::new(Vec::new());
        run(&time, async {
            let sleep = async |name: &'static str, duration| {
                time.sleep(seconds(duration)).await;
                order.lock().unwrap().push((name, time.now().as_secs()));
            };
            futures::join!(sleep("long", 3_600), sleep("short", 60), sleep("none", 0));
        });
        assert_eq!(order.into_inner().unwrap(), [("none", 100), ("short", 160), ("long", 3_700)]);
    }

    #[test]
    fn what_can_happen_happens_before_time_passes() {
        let time = Arc::new(VirtualTime::new(seconds(0)));
        let answered = run(&time, async {
            let answer = async {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                // On another thread, which takes its time.
                let _busy = Busy::new(&time);
                tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(20))).await.unwrap();
                true
            };
            tokio::select! {
                biased;
                () = time.sleep(Duration::from_millis(1)) => false,
                answered = answer => answered,
            }
        });
        assert!(answered);
        assert_eq!(time.now(), seconds(0));
    }

    #[test]
    fn a_time_out_comes_where_nothing_else_does() {
        let time = Arc::new(VirtualTime::new(seconds(0)));
        run(&time, async {
            tokio::select! {
                () = time.sleep(seconds(30)) => {}
                () = std::future::pending() => {}
            }
        });
        assert_eq!(time.now(), seconds(30));
        // Who was woken or given up is forgotten.
        assert!(time.state().sleepers.is_empty());
    }

    #[test]
    fn the_clock_can_be_moved() {
        let time = Arc::new(VirtualTime::new(seconds(5)));
        time.advance(seconds(7));
        assert_eq!(time.now(), seconds(12));
        time.set(seconds(3));
        assert_eq!(time.now(), seconds(3));
        time.advance(seconds(1));
        assert_eq!(time.now(), seconds(4));
        assert!(!time.was_read());
        assert_eq!(WallClock::now(&*time), seconds(4));
        assert!(time.was_read());
    }

    #[test]
    fn a_guest_that_looks_until_time_has_passed_comes_to_an_end() {
        let time = Arc::new(VirtualTime::new(seconds(5)));
        let start = time.monotonic_ns();
        let mut looks_count = 0;
        while time.monotonic_ns() < start + 1_000_000 {
            looks_count += 1;
        }
        assert_eq!(looks_count, 999);
        assert_eq!(time.now(), seconds(5));
        let mark = time.monotonic_ns() + 500;
        assert_eq!(time.until(mark), Duration::from_nanos(500));
        assert_eq!(time.until(0), Duration::ZERO);
    }
}
