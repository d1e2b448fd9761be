//! The clock that preempts guests, and the clock that measures them.
//!
//! # Preemption
//!
//! Compiled code looks at an epoch counter in every loop and function. A thread
//! advances it; code that sees it change asks whether its [`Slice`] is used up, and
//! gives way if so. Each tick interrupts a core, so there are no more than are of use:
//! [`EPOCH_TICK_MS`] apart while guests wait for each other, [`CALM_TICK_MS`] while
//! none does, and [`IDLE_TICK_MS`] when nothing has run for a while, so that an idle
//! process sleeps. The first guest to run wakes the thread.
//!
//! # Measuring
//!
//! [`Slice`] measures the CPU time of one poll. Reading the thread's CPU clock is
//! a system call (380 ns where this was measured), the monotonic clock is not
//! (20 ns), and is right unless the thread is preempted meanwhile. So the
//! monotonic clock measures, and where a poll took so long that the kernel may
//! have let something else run ([`SUSPECT_NS`]), the thread's CPU clock corrects
//! it. Both clocks are read together at most every [`READING_AGE`] otherwise, which
//! bounds the error of a correction by that much.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{JoinHandle, Thread},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Store, UpdateDeadline};

use crate::{engines::Engines, memory::MemoryPools};

/// How often running guests look at the time, in milliseconds: the resolution of
/// slices and time limits.
pub const EPOCH_TICK_MS: u64 = 1;

/// The tick while no guest waits for another one to give way: how much longer than a
/// slice the first one of a kind may keep its worker. A tick each millisecond would cost
/// small requests some hundredths.
const CALM_TICK_MS: u64 = 4;

/// How long a guest runs before others have a turn: what a request that waits
/// for a thread may lose to one that computes.
pub const SLICE: Duration = Duration::from_millis(1);

/// The tick when nothing ran for [`IDLE_AFTER_TICKS_COUNT`] ticks. It still ticks,
/// so that a guest is preempted even if it was forgotten.
const IDLE_TICK_MS: u64 = 250;

/// After how many ticks without a guest the clock slows down.
const IDLE_AFTER_TICKS_COUNT: u32 = 25;

/// A poll that took longer may have been interrupted by another thread.
const SUSPECT_NS: u64 = 200_000;

/// How old a reading of both clocks may be to be compared with. A reading costs
/// a few hundred nanoseconds, so this costs a thread about a thousandth.
const READING_AGE: Duration = Duration::from_micros(300);

thread_local! {
    /// When the poll that this thread is in began; whether it used up its slice.
    static SLICE_START: Cell<Option<Instant>> = const { Cell::new(None) };
    static SLICE_USED_UP: Cell<bool> = const { Cell::new(false) };
    /// Both clocks at one time of this thread.
    static READING: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };
}

/// One poll of a guest, being measured.
pub struct Slice {
    start: Instant,
}

/// What is known of a poll when it is over.
#[derive(Clone, Copy, Debug)]
pub struct SliceEnd {
    /// The CPU time that it took, in nanoseconds.
    pub cpu_ns: u64,
    /// Whether the guest gave way because its slice was used up.
    pub is_used_up: bool,
    /// When it ended.
    pub at: Instant,
}

impl Slice {
    /// When it began.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Begins to measure.
    pub fn begin() -> Self {
        let start = Instant::now();
        let is_old =
            READING.get().is_none_or(|(reading, _)| start.saturating_duration_since(reading) > READING_AGE);
        if is_old {
            READING.set(Some((start, thread_cpu_ns())));
        }
        SLICE_START.set(Some(start));
        SLICE_USED_UP.set(false);
        Self { start }
    }

    /// Whether the guest that this thread runs has used up its slice.
    #[must_use]
    pub fn is_used_up() -> bool {
        SLICE_USED_UP.get()
    }

    /// Ends it.
    pub fn end(self) -> SliceEnd {
        SLICE_START.set(None);
        let end = Instant::now();
        let elapsed_ns =
            u64::try_from(end.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        if elapsed_ns < SUSPECT_NS {
            return SliceEnd { cpu_ns: elapsed_ns, is_used_up: SLICE_USED_UP.get(), at: end };
        }
        let cpu_ns = cpu_since_reading_ns();
        READING.set(None);
        SliceEnd { cpu_ns: elapsed_ns.min(cpu_ns), is_used_up: SLICE_USED_UP.get(), at: end }
    }
}

/// CPU time of this thread since both clocks were read.
fn cpu_since_reading_ns() -> u64 {
    READING.get().map_or(u64::MAX, |(_, before_ns)| thread_cpu_ns().saturating_sub(before_ns))
}

/// CPU time of this thread.
fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    nanoseconds(time.tv_sec, time.tv_nsec)
}

fn nanoseconds(seconds: i64, rest: i64) -> u64 {
    let (seconds, rest) = (u64::try_from(seconds).unwrap_or(0), u64::try_from(rest).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// The CPU clock of one thread, for others to read.
#[derive(Clone, Copy, Debug)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// That of the calling thread; `None` if it has none.
    pub fn of_this_thread() -> Option<Self> {
        let mut id = 0;
        // SAFETY: the thread is the calling one, and the place for the answer is ours.
        let result = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut id) };
        (result == 0).then_some(Self(id))
    }

    /// CPU time of the thread, as far as it has come; nothing once it has ended.
    pub fn read(self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel checks the clock, and the place for the answer is ours.
        let result = unsafe { libc::clock_gettime(self.0, &raw mut time) };
        if result != 0 {
            return Duration::ZERO;
        }
        Duration::from_nanos(nanoseconds(time.tv_sec, time.tv_nsec))
    }
}

/// Has the guests of a store give way when their slice is used up.
pub fn preempt<T>(store: &mut Store<T>) {
    // A closure without data: boxing it allocates nothing.
    store.epoch_deadline_callback(|_| {
        // Time alone may have passed while the thread waited for a core.
        let is_used_up = SLICE_START.get().is_none_or(|start| {
            start.elapsed() >= SLICE && Duration::from_nanos(cpu_since_reading_ns()) >= SLICE
        });
        if !is_used_up {
            return Ok(UpdateDeadline::Continue(1));
        }
        SLICE_USED_UP.set(true);
        Ok(UpdateDeadline::Yield(1))
    });
    store.set_epoch_deadline(1);
}

/// Tells the epoch clock that guests run. Cheap to clone.
#[derive(Clone)]
pub struct Pulse {
    inner: Arc<PulseState>,
}

struct PulseState {
    has_beaten: AtomicBool,
    is_slow: AtomicBool,
    /// Guests wait for others to give way.
    is_pressed: AtomicBool,
    clock: std::sync::OnceLock<Thread>,
}

impl Pulse {
    fn new() -> Self {
        Self {
            inner: Arc::new(PulseState {
                has_beaten: AtomicBool::new(false),
                is_slow: AtomicBool::new(false),
                is_pressed: AtomicBool::new(false),
                clock: std::sync::OnceLock::new(),
            }),
        }
    }

    /// Guests wait for others to give way: slices should end on time.
    pub fn press(&self) {
        if !self.inner.is_pressed.load(Ordering::Relaxed) {
            self.inner.is_pressed.store(true, Ordering::Relaxed);
        }
    }

    /// A guest is about to run. Writes once per tick, else only reads.
    pub fn beat(&self) {
        if !self.inner.has_beaten.load(Ordering::Relaxed) {
            self.inner.has_beaten.store(true, Ordering::SeqCst);
            if self.inner.is_slow.swap(false, Ordering::SeqCst)
                && let Some(clock) = self.inner.clock.get()
            {
                clock.unpark();
            }
        }
    }
}

/// How long it is between two looks for idle memory.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A thread that advances the epoch of the engines and, being awake, gives back
/// memory that has long been idle; ends when dropped.
pub(crate) struct EpochTicker {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    pulse: Pulse,
}

impl EpochTicker {
    pub(crate) fn start(engines: Arc<Engines>, memories: Arc<MemoryPools>) -> std::io::Result<Arc<Self>> {
        let (stop, stopped) = mpsc::channel::<()>();
        let pulse = Pulse::new();
        let beats = pulse.clone();
        let thread = std::thread::Builder::new().name("wisp-epoch".into()).spawn(move || {
            let state = &*beats.inner;
            let mut quiet_ticks_count = 0_u32;
            let mut swept_at = Instant::now();
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                if state.has_beaten.swap(false, Ordering::SeqCst) {
                    quiet_ticks_count = 0;
                } else {
                    quiet_ticks_count = quiet_ticks_count.saturating_add(1);
                }
                if quiet_ticks_count < IDLE_AFTER_TICKS_COUNT {
                    let is_pressed = state.is_pressed.swap(false, Ordering::Relaxed);
                    let tick_ms = if is_pressed { EPOCH_TICK_MS } else { CALM_TICK_MS };
                    std::thread::sleep(Duration::from_millis(tick_ms));
                } else {
                    state.is_slow.store(true, Ordering::SeqCst);
                    // A beat between the two is seen here, one after it unparks.
                    if !state.has_beaten.load(Ordering::SeqCst) {
                        std::thread::park_timeout(Duration::from_millis(IDLE_TICK_MS));
                    }
                    state.is_slow.store(false, Ordering::SeqCst);
                }
                for engine in engines.all() {
                    engine.increment_epoch();
                }
                if swept_at.elapsed() >= SWEEP_INTERVAL {
                    swept_at = Instant::now();
                    memories.sweep();
                }
            }
        })?;
        // Never set before; a second clock would be a second pulse.
        drop(pulse.inner.clock.set(thread.thread().clone()));
        Ok(Arc::new(Self { stop: Some(stop), thread: Some(thread), pulse }))
    }

    pub(crate) fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}

impl Drop for EpochTicker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread has nothing to report, and nobody to report it to.
            let _ = thread.join();
        }
    }
}
