//! The compute lane: where guests run that need more than a moment.
//!
//! A worker thread has connections to serve; a guest that computes there makes
//! all of them wait. So a guest that used up its first slice is moved to *compute
//! threads*, one per core and of lower priority than workers: the kernel takes
//! the core away from them as soon as a worker has something to do. The connection's
//! task stays where it is and waits for the response.
//!
//! # Fairness
//!
//! The lane runs one slice at a time, of the app with the lowest *virtual time*:
//! the CPU time that it had, over its weight. An app that comes back from a pause
//! starts at the time of those that are there: it neither has credit nor debt. So
//! an app with a thousand computing requests gets the same as an app with one, and
//! a request of an app that computes little waits for one slice at most. Requests
//! of one app take turns.
//!
//! # The last core
//!
//! A worker that wakes takes its core from a compute thread; but whoever computes leaves
//! cold caches. So while workers run requests of their own, one core is kept for them
//! where there are several: the last compute thread waits until none came for
//! [`KEPT_TIME`].
//!
//! # Life of a task
//!
//! [`Task`] is a guest on the lane. It is *idle* while it waits for a host call,
//! *queued* when it could run, *running* during a slice. Whoever wakes it puts it
//! into the queue. What it waits for from then on (connections, timers, requests to
//! other components) belongs to a runtime of the lane's own, which is entered for each
//! slice: a guest that opens connections as fast as it can keeps no worker busy. When
//! the client goes away, the guest is dropped by the next thread that is free.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{self, Handle},
    sync::{Notify, oneshot},
};
use wisp_engine::{Pulse, SLICE, Slice, ThreadClock};

use super::{
    account::Account,
    body::{GuestFailed, GuestFuture, Reply},
    cores,
    starvation::{LOOK_INTERVAL, Observer, Sight},
};

/// How much less priority the second crew has than workers (`nice`, which ends at 19):
/// enough that a worker that wakes gets the core as a rule, not so much that a node whose
/// workers are busy stops computing.
const NICE: i32 = 15;

/// The same for the thread that waits on behalf of guests on the lane: before those
/// that compute, behind workers.
const WAITING_NICE: i32 = 10;

/// How long after a worker's last request no core is kept for workers any more. A
/// hundred requests a second keep it for a fifth of the time.
const KEPT_TIME: Duration = Duration::from_millis(2);

/// How long nothing was to be done when it is no longer looked how that goes.
const CALM_TIME: Duration = Duration::from_secs(1);

/// Which threads have their turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Crew {
    /// Those that run on cores that nobody else wants.
    #[default]
    Idle,
    /// Those that have a small claim to a core.
    Entitled,
}

/// The lane's queue and who waits for it.
pub(super) struct ComputeLane {
    queue: Mutex<Queue>,
    /// How many threads may run guests while workers do.
    max_running_count: usize,
    /// A worker has run a guest since this was looked at.
    has_worked: AtomicBool,
    /// Told when there is work, or none will come any more: each crew for itself.
    news: [Condvar; 2],
    /// What is to be seen of the first crew's threads.
    idle_crew: Vec<Seen>,
    /// Told when there is something to be looked at.
    activity: Notify,
    pulse: Pulse,
    /// Where guests on the lane wait for connections and timers.
    runtime: Handle,
    /// What times of tasks are counted from.
    start: Instant,
}

/// What a thread shows of itself.
#[derive(Default)]
struct Seen {
    /// Counts up when it begins to do something, and when it has done it.
    turn: AtomicU64,
    clock: OnceLock<ThreadClock>,
}

#[derive(Default)]
struct Queue {
    crew: Crew,
    /// Whether somebody looks how the crew gets on.
    is_watched: bool,
    ready: HashMap<u64, AppQueue>,
    /// Virtual time and number of apps in `ready`.
    order: BTreeSet<(u64, u64)>,
    /// Virtual time of the app that had its turn last.
    now_ns: u64,
    /// Guests to be dropped, which takes time where they have much memory.
    cancelled: Vec<GuestFuture>,
    is_closed: bool,
    /// Threads of each crew that run a guest.
    running_counts: [usize; 2],
    /// Until when a core is kept for workers; `None` before there was reason to.
    kept_until: Option<Instant>,
}

/// Tasks of one app that could run; never empty.
struct AppQueue {
    account: Arc<Account>,
    virtual_ns: u64,
    tasks: VecDeque<Arc<Task>>,
}

/// The threads of a lane; they end when this is dropped.
pub(super) struct ComputeThreads {
    lane: Arc<ComputeLane>,
    /// Ends the lane's runtime when dropped.
    _end: oneshot::Sender<()>,
}

/// A guest on the lane.
pub(super) struct Task {
    lane: Arc<ComputeLane>,
    reply: Reply,
    state: AtomicU8,
    is_cancelled: AtomicBool,
    /// Somebody wants to know when the slice that runs has ended.
    is_awaited: AtomicBool,
    /// When it came into the queue, in nanoseconds of the lane.
    queued_ns: AtomicU64,
    guest: Mutex<TaskState>,
}

struct TaskState {
    /// `None` when the guest has ended.
    guest: Option<GuestFuture>,
    outcome: Option<Result<(), GuestFailed>>,
}

/// Waits to be woken.
const IDLE: u8 = 0;
/// In the queue.
const QUEUED: u8 = 1;
/// In a slice.
const RUNNING: u8 = 2;
/// In a slice, and woken during it.
const WOKEN: u8 = 3;

impl ComputeThreads {
    /// Starts the threads.
    pub(super) fn start(count: usize, pulse: Pulse) -> std::io::Result<Self> {
        let (end, is_to_end) = oneshot::channel::<()>();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new().name("wisp-lane".into()).spawn(move || {
            give_way(WAITING_NICE);
            // It ends by being dropped, too.
            drop(runtime.block_on(is_to_end));
            runtime.shutdown_background();
        })?;
        let lane = Arc::new(ComputeLane {
            queue: Mutex::default(),
            max_running_count: count.saturating_sub(1).max(1),
            has_worked: AtomicBool::new(false),
            news: [Condvar::new(), Condvar::new()],
            idle_crew: (0..count).map(|_| Seen::default()).collect(),
            activity: Notify::new(),
            pulse,
            runtime: handle,
            start: Instant::now(),
        });
        lane.runtime.spawn(lane.clone().watch());
        let threads = Self { lane, _end: end };
        for number in 0..count {
            let lane = threads.lane.clone();
            thread::Builder::new().name(format!("wisp-compute-{number}")).spawn(move || {
                if let Err(error) = wisp_engine::use_idle_cores() {
                    tracing::debug!("a compute thread has a claim to a core: {error}");
                    give_way(NICE);
                }
                lane.work(Crew::Idle, Some(&lane.idle_crew[number]));
            })?;
            let lane = threads.lane.clone();
            thread::Builder::new().name(format!("wisp-relief-{number}")).spawn(move || {
                give_way(NICE);
                lane.work(Crew::Entitled, None);
            })?;
        }
        Ok(threads)
    }

    pub(super) fn lane(&self) -> &Arc<ComputeLane> {
        &self.lane
    }
}

/// Has the kernel prefer other threads to this one.
fn give_way(nice: i32) {
    // A thread may finish the slice that it asked for before it is interrupted.
    if let Err(error) = wisp_engine::lower_priority(nice).and_then(|()| wisp_engine::prefer_short_slices()) {
        // The lane still shares fairly, and workers wait a little longer.
        tracing::debug!("the priority of a compute thread cannot be lowered: {error}");
    }
}

impl Drop for ComputeThreads {
    fn drop(&mut self) {
        let mut queue = self.lane.queue();
        queue.is_closed = true;
        let left = (mem::take(&mut queue.ready), mem::take(&mut queue.cancelled));
        drop(queue);
        // Tasks may hold the last reference to what holds this.
        drop(left);
        for news in &self.lane.news {
            news.notify_all();
        }
    }
}

impl ComputeLane {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many guests could run but have to wait for their turn.
    pub(super) fn queued_count(&self) -> usize {
        self.queue().ready.values().map(|app| app.tasks.len()).sum()
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A worker runs a guest.
    pub(super) fn note_worker(&self) {
        // Read more often than written, so that workers do not take it from each other.
        if !self.has_worked.load(Ordering::Relaxed) {
            self.has_worked.store(true, Ordering::Relaxed);
        }
    }

    /// How long a thread that could run one more guest has to leave its core to workers.
    fn kept_for(&self, queue: &mut Queue) -> Option<Duration> {
        // Who of the other crew is in a slice has no core, or is about to end.
        if queue.running_counts[queue.crew as usize] < self.max_running_count || queue.is_closed {
            return None;
        }
        let now = Instant::now();
        if self.has_worked.swap(false, Ordering::Relaxed) {
            queue.kept_until = Some(now + KEPT_TIME);
        }
        queue.kept_until?.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    fn push(&self, task: Arc<Task>) {
        task.queued_ns.store(self.now_ns(), Ordering::Relaxed);
        self.pulse.press();
        let mut queue = self.queue();
        queue.push(task);
        self.tell(queue);
    }

    /// Tells those who have their turn that there is something to do.
    fn tell(&self, mut queue: MutexGuard<'_, Queue>) {
        let crew = queue.crew;
        let is_watched = mem::replace(&mut queue.is_watched, true);
        drop(queue);
        self.news(crew).notify_one();
        if !is_watched {
            self.activity.notify_one();
        }
    }

    fn news(&self, crew: Crew) -> &Condvar {
        &self.news[crew as usize]
    }

    /// Drops a guest, within the runtime: what it held may want to say goodbye.
    fn bury(&self, guest: GuestFuture) {
        let _runtime = self.runtime.enter();
        // A panic would take this thread away from all apps.
        drop(catch_unwind(AssertUnwindSafe(|| drop(guest))));
    }

    /// One compute thread.
    fn work(&self, crew: Crew, seen: Option<&Seen>) {
        if let (Some(seen), Some(clock)) = (seen, ThreadClock::of_this_thread()) {
            // Set once: each thread has its own.
            let _ = seen.clock.set(clock);
        }
        let turn = || {
            if let Some(seen) = seen {
                seen.turn.fetch_add(1, Ordering::Relaxed);
            }
        };
        let news = self.news(crew);
        let mut queue = self.queue();
        loop {
            let has_turn = queue.crew == crew || queue.is_closed;
            if has_turn && let Some(guest) = queue.cancelled.pop() {
                drop(queue);
                turn();
                self.bury(guest);
                turn();
                queue = self.queue();
                continue;
            }
            if has_turn
                && !queue.order.is_empty()
                && let Some(kept_for) = self.kept_for(&mut queue)
            {
                let waited = news.wait_timeout(queue, kept_for);
                (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let Some((task, charged_ns)) = has_turn.then(|| queue.pop()).flatten() else {
                if queue.is_closed {
                    return;
                }
                queue = news.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            queue.running_counts[crew as usize] += 1;
            drop(queue);
            turn();
            let account = task.reply.component().account.clone();
            let cpu_ns = task.run();
            drop(task);
            turn();
            queue = self.queue();
            queue.running_counts[crew as usize] -= 1;
            queue.correct(&account, charged_ns, account.virtual_ns_of(cpu_ns));
        }
    }

    /// While there is something to do: looks whether the first crew has time to do it, has
    /// the second one take over if not, and sees to it that workers are not in its way.
    async fn watch(self: Arc<Self>) {
        let mut observer = Observer::new();
        loop {
            self.activity.notified().await;
            // Where others want the cores, the kernel had better place workers.
            let places = |crew| if crew == Crew::Idle { cores::keep_apart() } else { None };
            let mut apart = places(self.queue().crew);
            let mut busy_at = Instant::now();
            let mut swept_at = busy_at;
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                let now = Instant::now();
                let sights = self.idle_crew.iter().map(Seen::sight).collect();
                let mut queue = self.queue();
                let has_more = !queue.order.is_empty() || !queue.cancelled.is_empty();
                if has_more || queue.running_counts != [0; 2] {
                    busy_at = now;
                } else if now.saturating_duration_since(busy_at) > CALM_TIME {
                    queue.is_watched = false;
                    break;
                }
                let crew = if observer.look(now, sights, has_more) { Crew::Entitled } else { Crew::Idle };
                if mem::replace(&mut queue.crew, crew) != crew {
                    drop(queue);
                    tracing::debug!(?crew, "other threads compute from now on");
                    self.news(crew).notify_all();
                    apart = places(crew);
                } else if now.saturating_duration_since(swept_at) > CALM_TIME
                    && let Some(apart) = &apart
                {
                    drop(queue);
                    swept_at = now;
                    apart.let_go_others();
                }
            }
            observer.rest();
        }
    }
}

impl Seen {
    fn sight(&self) -> Sight {
        let cpu = self.clock.get().map_or(Duration::ZERO, |clock| clock.read());
        Sight { turn: self.turn.load(Ordering::Relaxed), cpu }
    }
}

impl Queue {
    fn push(&mut self, task: Arc<Task>) {
        if self.is_closed {
            return;
        }
        let account = &task.reply.component().account;
        let number = account.number;
        if let Some(app) = self.ready.get_mut(&number) {
            app.tasks.push_back(task);
            return;
        }
        let virtual_ns = account.virtual_ns.load(Ordering::Relaxed).max(self.now_ns);
        account.virtual_ns.store(virtual_ns, Ordering::Relaxed);
        self.order.insert((virtual_ns, number));
        let account = account.clone();
        self.ready.insert(number, AppQueue { account, virtual_ns, tasks: VecDeque::from([task]) });
    }

    /// Takes the task whose turn it is, and charges its app a slice in advance: other
    /// threads look for their next task before this one has run.
    fn pop(&mut self) -> Option<(Arc<Task>, u64)> {
        let (virtual_ns, number) = self.order.pop_first()?;
        let app = self.ready.get_mut(&number)?;
        self.now_ns = self.now_ns.max(virtual_ns);
        let task = app.tasks.pop_front()?;
        let slice_ns = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
        let charged_ns = app.account.virtual_ns_of(slice_ns);
        app.virtual_ns = virtual_ns.saturating_add(charged_ns);
        app.account.virtual_ns.store(app.virtual_ns, Ordering::Relaxed);
        if app.tasks.is_empty() {
            self.ready.remove(&number);
        } else {
            self.order.insert((app.virtual_ns, number));
        }
        Some((task, charged_ns))
    }

    /// Replaces what was charged in advance by what was used.
    fn correct(&mut self, account: &Account, charged_ns: u64, used_ns: u64) {
        let corrected =
            account.virtual_ns.load(Ordering::Relaxed).saturating_sub(charged_ns).saturating_add(used_ns);
        account.virtual_ns.store(corrected, Ordering::Relaxed);
        if let Some(app) = self.ready.get_mut(&account.number) {
            self.order.remove(&(app.virtual_ns, account.number));
            app.virtual_ns = corrected;
            self.order.insert((corrected, account.number));
        }
    }
}

impl Task {
    /// Puts a guest on the lane.
    pub(super) fn start(lane: &Arc<ComputeLane>, reply: &Reply, guest: GuestFuture) -> Arc<Self> {
        let task = Arc::new(Self {
            lane: lane.clone(),
            reply: reply.clone(),
            state: AtomicU8::new(QUEUED),
            is_cancelled: AtomicBool::new(false),
            is_awaited: AtomicBool::new(false),
            queued_ns: AtomicU64::new(0),
            guest: Mutex::new(TaskState { guest: Some(guest), outcome: None }),
        });
        lane.push(task.clone());
        task
    }

    fn guest(&self) -> MutexGuard<'_, TaskState> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the guest ended, if it has. Whoever asks has left its waker in the reply.
    pub(super) fn outcome(&self) -> Option<Result<(), GuestFailed>> {
        // A slice holds the lock for as long as it takes, and ends with a wake if
        // the guest has ended.
        match self.guest.try_lock() {
            Ok(mut state) => state.outcome.take(),
            Err(_) => None,
        }
    }

    /// Whether the guest is in no slice, or has ended: what it did is all to be seen.
    /// Otherwise whoever asks is woken, through the waker it left in the reply, when
    /// that is so.
    pub(super) fn is_settled(&self) -> bool {
        self.is_awaited.store(true, Ordering::SeqCst);
        self.guest.try_lock().is_ok()
    }

    /// Drops the guest: nobody waits for it any more.
    pub(super) fn cancel(&self) {
        self.reply.abandon();
        self.is_cancelled.store(true, Ordering::SeqCst);
        // If it is in a slice, it is dropped right after it.
        if let Ok(mut state) = self.guest.try_lock() {
            let guest = state.guest.take();
            drop(state);
            if let Some(guest) = guest {
                let mut queue = self.lane.queue();
                queue.cancelled.push(guest);
                self.lane.tell(queue);
            }
        }
    }

    /// Runs one slice; gives the CPU time it took.
    fn run(self: &Arc<Self>) -> u64 {
        let mut state = self.guest();
        self.state.store(RUNNING, Ordering::SeqCst);
        let Some(guest) = &mut state.guest else { return 0 };
        let usage = self.reply.usage();
        let waited_ns = self.lane.now_ns().saturating_sub(self.queued_ns.load(Ordering::Relaxed));
        usage.add_queue(Duration::from_nanos(waited_ns));
        let waker = Waker::from(self.clone());
        let runtime = self.lane.runtime.enter();
        self.lane.pulse.beat();
        self.reply.begin_slice();
        let slice = Slice::begin();
        // A panic would take this thread away from all apps.
        let polled = catch_unwind(AssertUnwindSafe(|| guest.as_mut().poll(&mut Context::from_waker(&waker))));
        let cpu_ns = slice.end().cpu_ns;
        let has_answered = self.reply.end_slice();
        let used_ns = usage.add_cpu_ns(cpu_ns);
        self.reply.component().count_cpu(cpu_ns);
        let outcome = match polled {
            Ok(Poll::Ready(outcome)) => Some(outcome),
            Ok(Poll::Pending) => {
                self.reply.in_scope(|| self.reply.component().check_cpu(used_ns)).err().map(Err)
            }
            Err(_panic) => Some(Err(GuestFailed::Failed)),
        };
        if outcome.is_some() || self.is_cancelled.load(Ordering::SeqCst) {
            drop(runtime);
            if let Some(guest) = state.guest.take() {
                self.lane.bury(guest);
            }
            state.outcome = outcome;
            drop(state);
            self.reply.wake();
            return cpu_ns;
        }
        drop(runtime);
        drop(state);
        if self.is_awaited.swap(false, Ordering::SeqCst) || has_answered {
            self.reply.wake();
        }
        if self.is_cancelled.load(Ordering::SeqCst) {
            // Cancelled between the look above and the end of the lock.
            self.cancel();
            return cpu_ns;
        }
        if self.state.compare_exchange(RUNNING, IDLE, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            self.state.store(QUEUED, Ordering::SeqCst);
            self.lane.push(self.clone());
        }
        cpu_ns
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let next = |state| match state {
            IDLE => Some(QUEUED),
            RUNNING => Some(WOKEN),
            _ => None,
        };
        if self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) == Ok(IDLE) {
            self.lane.push(self.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn the_last_core_is_kept_for_workers_while_they_run_guests() {
        let lane = |count| {
            let engine = wisp_engine::Engine::new(&wisp_engine::EngineConfig::default(), None).unwrap();
            ComputeThreads::start(count, engine.pulse().clone()).unwrap()
        };
        let threads = lane(2);
        let mut queue = Queue { running_counts: [1, 0], ..Queue::default() };
        assert_eq!(threads.lane().kept_for(&mut queue), None, "nobody needs it");
        threads.lane().note_worker();
        assert!(threads.lane().kept_for(&mut queue).is_some_and(|left| left <= KEPT_TIME));
        assert!(threads.lane().kept_for(&mut queue).is_some(), "for a while");
        queue.kept_until = Some(Instant::now());
        assert_eq!(threads.lane().kept_for(&mut queue), None, "no request came since");
        threads.lane().note_worker();
        queue.crew = Crew::Entitled;
        assert_eq!(threads.lane().kept_for(&mut queue), None, "who runs belongs to the other crew");
        queue.crew = Crew::Idle;
        queue.running_counts = [0; 2];
        assert_eq!(threads.lane().kept_for(&mut queue), None, "there are other cores");

        let alone = lane(1);
        alone.lane().note_worker();
        assert_eq!(alone.lane().kept_for(&mut queue), None, "guests compute on one core, too");
    }
}
