//! Who may run now, who waits, who is told to come back later.
//!
//! All apps of a node share its places: a request that runs has one. An app that
//! shares them with others may take at most as many as it leaves free, which is
//! half of all when it is alone, a third each when there are two that want all,
//! and so on: however many one app asks for, there is room for the next.
//!
//! Who finds no place waits in the line of its component, bounded in number and
//! time. Places that become free go to the lines in turn.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::account::Account;

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
    /// Whether several apps share the places: each may take at most as many, and
    /// have as many waiting, as it leaves free.
    pub is_shared: bool,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        // As many run as the engine's pool has instances. The queue absorbs a
        // burst of the same size; waiting longer than this, a client has usually
        // given up.
        Self {
            max_running_count: 1_000,
            max_waiting_count: 1_000,
            max_wait: Duration::from_secs(5),
            is_shared: false,
        }
    }
}

/// A bounded number of places and bounded lines before them.
pub(super) struct Admission {
    limits: AdmissionLimits,
    running_count: AtomicUsize,
    waiting_count: AtomicUsize,
    lines: Mutex<Lines>,
}

/// The requests that wait, by gate.
#[derive(Default)]
struct Lines {
    by_gate: HashMap<u64, (Arc<Gate>, VecDeque<oneshot::Sender<Permit>>)>,
    /// The gates in the order of their turns.
    order: VecDeque<u64>,
}

/// Where the requests of one component come in.
pub(super) struct Gate {
    number: u64,
    admission: Arc<Admission>,
    account: Arc<Account>,
    /// Bound of the component itself.
    max_running_count: Option<usize>,
    running_count: AtomicUsize,
    waiting_count: AtomicUsize,
}

/// The right to run; given back when dropped.
pub(super) struct Permit {
    /// Empty if the place was given back already.
    gate: Option<Arc<Gate>>,
}

/// There is no room, and no room to wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Admission {
    pub(super) fn new(limits: AdmissionLimits) -> Self {
        Self {
            limits,
            running_count: AtomicUsize::new(0),
            waiting_count: AtomicUsize::new(0),
            lines: Mutex::default(),
        }
    }

    pub(super) fn running_count(&self) -> usize {
        self.running_count.load(Ordering::Relaxed)
    }

    pub(super) fn waiting_count(&self) -> usize {
        self.waiting_count.load(Ordering::Relaxed)
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives free places to those who wait, one line after the other.
    fn hand_out(&self) {
        let mut lines = self.lines();
        let mut without_luck_count = 0;
        while without_luck_count < lines.order.len() {
            let Some(number) = lines.order.pop_front() else { return };
            let Some((gate, line)) = lines.by_gate.get_mut(&number) else { continue };
            while line.front().is_some_and(oneshot::Sender::is_closed) {
                line.pop_front();
            }
            if line.is_empty() {
                lines.by_gate.remove(&number);
                continue;
            }
            let gate = gate.clone();
            if gate.try_enter() {
                if let Some(first) = line.pop_front()
                    && let Err(mut permit) = first.send(Permit { gate: Some(gate) })
                    && let Some(gate) = permit.gate.take()
                {
                    // It gave up this very moment. A permit that is dropped would
                    // want the lock that is held here.
                    gate.leave();
                }
                without_luck_count = 0;
            } else {
                without_luck_count += 1;
            }
            lines.order.push_back(number);
        }
    }
}

impl Gate {
    pub(super) fn new(
        admission: Arc<Admission>,
        account: Arc<Account>,
        max_running_count: Option<usize>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            admission,
            account,
            max_running_count,
            running_count: AtomicUsize::new(0),
            waiting_count: AtomicUsize::new(0),
        })
    }

    /// Takes a place, waiting in line for a bounded time if there is none.
    pub(super) async fn admit(self: &Arc<Self>) -> Result<Permit, Full> {
        if self.waiting_count.load(Ordering::Relaxed) == 0 && self.try_enter() {
            return Ok(Permit { gate: Some(self.clone()) });
        }
        let _waiting = Waiting::enter(self)?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut lines = self.admission.lines();
            let lines = &mut *lines;
            let (_, line) = lines.by_gate.entry(self.number).or_insert_with(|| {
                lines.order.push_back(self.number);
                (self.clone(), VecDeque::new())
            });
            line.push_back(sender);
        }
        // A place may have become free before this request was in line.
        self.admission.hand_out();
        match tokio::time::timeout(self.admission.limits.max_wait, receiver).await {
            Ok(Ok(permit)) => Ok(permit),
            // Forgotten never happens; too late and forgotten mean the same to a client.
            Ok(Err(_)) | Err(_) => Err(Full),
        }
    }

    fn try_enter(&self) -> bool {
        let limits = &self.admission.limits;
        let taken_count = self.admission.running_count.fetch_add(1, Ordering::SeqCst);
        if taken_count >= limits.max_running_count {
            self.admission.running_count.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        if limits.is_shared {
            let free_count = limits.max_running_count - taken_count;
            if self.account.running_count.fetch_add(1, Ordering::SeqCst) >= free_count {
                self.account.running_count.fetch_sub(1, Ordering::SeqCst);
                self.admission.running_count.fetch_sub(1, Ordering::SeqCst);
                return false;
            }
        }
        if let Some(max_running_count) = self.max_running_count
            && self.running_count.fetch_add(1, Ordering::SeqCst) >= max_running_count
        {
            self.leave();
            return false;
        }
        true
    }

    fn leave(&self) {
        if self.max_running_count.is_some() {
            self.running_count.fetch_sub(1, Ordering::SeqCst);
        }
        if self.admission.limits.is_shared {
            self.account.running_count.fetch_sub(1, Ordering::SeqCst);
        }
        self.admission.running_count.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(gate) = self.gate.take() else { return };
        gate.leave();
        // Whoever gets in line counts itself before it looks for a place.
        if gate.admission.waiting_count.load(Ordering::SeqCst) > 0 {
            gate.admission.hand_out();
        }
    }
}

/// A place in the line; left when dropped, also when the client gave up.
struct Waiting<'gate>(&'gate Gate);

impl<'gate> Waiting<'gate> {
    fn enter(gate: &'gate Gate) -> Result<Self, Full> {
        let limits = &gate.admission.limits;
        let waiting_count = gate.admission.waiting_count.fetch_add(1, Ordering::SeqCst);
        let of_app_count = gate.account.waiting_count.fetch_add(1, Ordering::SeqCst);
        gate.waiting_count.fetch_add(1, Ordering::SeqCst);
        let waiting = Self(gate);
        let is_full = waiting_count >= limits.max_waiting_count
            || (limits.is_shared && of_app_count >= limits.max_waiting_count - waiting_count);
        if is_full { Err(Full) } else { Ok(waiting) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Self(gate) = self;
        gate.waiting_count.fetch_sub(1, Ordering::SeqCst);
        gate.account.waiting_count.fetch_sub(1, Ordering::SeqCst);
        gate.admission.waiting_count.fetch_sub(1, Ordering::SeqCst);
        // Those who gave up must not pile up in a line that does not move.
        if let Some((_, line)) = gate.admission.lines().by_gate.get_mut(&gate.number) {
            line.retain(|sender| !sender.is_closed());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn admission(running: usize, waiting: usize, is_shared: bool) -> Arc<Admission> {
        Arc::new(Admission::new(AdmissionLimits {
            max_running_count: running,
            max_waiting_count: waiting,
            max_wait: Duration::from_secs(5),
            is_shared,
        }))
    }

    fn gate(admission: &Arc<Admission>, max_running_count: Option<usize>) -> Arc<Gate> {
        let account = Arc::new(Account::new("app".into()));
        Gate::new(admission.clone(), account, max_running_count)
    }

    #[tokio::test(start_paused = true)]
    async fn refuses_at_once_when_nobody_may_wait() {
        let admission = admission(1, 0, false);
        let gate = gate(&admission, None);
        let permit = gate.admit().await.unwrap();
        assert!(gate.admit().await.is_err());
        drop(permit);
        assert!(gate.admit().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn refuses_after_the_wait() {
        let admission = admission(1, 1, false);
        let gate = gate(&admission, None);
        let _permit = gate.admit().await.unwrap();
        let before = tokio::time::Instant::now();
        assert!(gate.admit().await.is_err());
        assert_eq!(before.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_gives_up_leaves_the_queue() {
        let admission = admission(1, 1, false);
        let gate = gate(&admission, None);
        let permit = gate.admit().await.unwrap();
        {
            let waiting = gate.admit();
            tokio::pin!(waiting);
            assert!(futures::poll!(&mut waiting).is_pending());
            assert_eq!(admission.waiting_count(), 1);
        }
        assert_eq!(admission.waiting_count(), 0);
        drop(permit);
        assert!(gate.admit().await.is_ok());
        assert_eq!(admission.running_count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_goes_to_who_waited_longest() {
        let admission = admission(1, 9, false);
        let gate = gate(&admission, None);
        let permit = gate.admit().await.unwrap();
        let (first, second) = (gate.admit(), gate.admit());
        tokio::pin!(first, second);
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut second).is_pending());
        drop(permit);
        assert!(futures::poll!(&mut second).is_pending());
        let permit = first.await.unwrap();
        assert!(futures::poll!(&mut second).is_pending());
        drop(permit);
        second.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_component_at_its_own_bound_blocks_nobody_else() {
        let admission = admission(9, 9, false);
        let (narrow, wide) = (gate(&admission, Some(1)), gate(&admission, None));
        let permit = narrow.admit().await.unwrap();
        let waiting = narrow.admit();
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        let _other = wide.admit().await.unwrap();
        drop(permit);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn however_much_one_app_wants_there_is_room_for_others() {
        let admission = admission(12, 0, true);
        let greedy = |gate: Arc<Gate>| async move {
            let mut permits = Vec::new();
            while let Ok(permit) = gate.admit().await {
                permits.push(permit);
            }
            permits
        };
        let first = greedy(gate(&admission, None)).await;
        let second = greedy(gate(&admission, None)).await;
        let third = greedy(gate(&admission, None)).await;
        assert_eq!((first.len(), second.len(), third.len()), (6, 3, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn free_places_go_round_among_lines() {
        let admission = admission(1, 9, false);
        let (one, two) = (gate(&admission, None), gate(&admission, None));
        let permit = one.admit().await.unwrap();
        let (a, b, c) = (one.admit(), one.admit(), two.admit());
        tokio::pin!(a, b, c);
        for waiting in [&mut a, &mut b] {
            assert!(futures::poll!(waiting).is_pending());
        }
        assert!(futures::poll!(&mut c).is_pending());
        drop(permit);
        drop(a.await.unwrap());
        assert!(futures::poll!(&mut b).is_pending());
        drop(c.await.unwrap());
        b.await.unwrap();
    }
}
