//! What wakes its task while it is being polled is polled again there and then.
//!
//! Futures that run side by side in one task wake it whenever one of them has something
//! for another. The task would be polled once more for that, with all that is around it:
//! a connection reads, writes and looks at its timers first. [`Quiet`] polls the future
//! itself again instead, and wakes nobody for a future that is ready then.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use futures::task::{ArcWake, AtomicWaker, waker_ref};

const IDLE: u8 = 0;
const POLLED: u8 = 1;
const POLLED_AND_WOKEN: u8 = 2;

/// How often a future is polled at once, at most: others wait.
const MAX_POLLS_COUNT: u32 = 8;

/// Stands between a future and the task that polls it.
#[derive(Default)]
pub(super) struct Quiet(Arc<State>);

#[derive(Default)]
struct State {
    phase: AtomicU8,
    task: AtomicWaker,
}

impl ArcWake for State {
    fn wake_by_ref(this: &Arc<Self>) {
        let during =
            this.phase.compare_exchange(POLLED, POLLED_AND_WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if during == Err(IDLE) {
            this.task.wake();
        }
    }
}

impl Quiet {
    /// Polls a future, and again while it was woken meanwhile and `may_go_on`.
    pub(super) fn poll<T>(
        &self,
        context: &mut Context<'_>,
        may_go_on: impl Fn() -> bool,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let Self(state) = self;
        state.task.register(context.waker());
        let waker = waker_ref(state);
        for _ in 0..MAX_POLLS_COUNT {
            state.phase.store(POLLED, Ordering::Release);
            let polled = poll(&mut Context::from_waker(&waker));
            let is_woken = state.phase.swap(IDLE, Ordering::AcqRel) == POLLED_AND_WOKEN;
            if polled.is_ready() || !is_woken {
                return polled;
            }
            if !may_go_on() {
                break;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures::task::{noop_waker, waker};

    use super::*;

    /// Counts how often a task was woken.
    #[derive(Default)]
    struct Task(AtomicU8);

    impl ArcWake for Task {
        fn wake_by_ref(this: &Arc<Self>) {
            this.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Polls a future that wakes its task each time and is ready after so many polls;
    /// how often it was polled, and how often the task was woken.
    fn polls_and_wakes(ready_after: u32, may_go_on: bool) -> (u32, u8) {
        let (quiet, task) = (Quiet::default(), Arc::new(Task::default()));
        let mut polls_count = 0;
        let polled = quiet.poll(
            &mut Context::from_waker(&waker(task.clone())),
            || may_go_on,
            |context| {
                polls_count += 1;
                context.waker().wake_by_ref();
                if polls_count < ready_after { Poll::Pending } else { Poll::Ready(()) }
            },
        );
        assert_eq!(polled.is_ready(), polls_count == ready_after);
        (polls_count, task.0.load(Ordering::Relaxed))
    }

    #[test]
    fn what_is_ready_after_some_polls_wakes_nobody() {
        assert_eq!(polls_and_wakes(1, true), (1, 0));
        assert_eq!(polls_and_wakes(3, true), (3, 0));
    }

    #[test]
    fn what_is_not_ready_lets_others_have_a_turn() {
        assert_eq!(polls_and_wakes(u32::MAX, true), (MAX_POLLS_COUNT, 1));
        assert_eq!(polls_and_wakes(3, false), (1, 1));
    }

    #[test]
    fn the_task_that_polled_last_is_woken_later() {
        let (quiet, first, last) = (Quiet::default(), Arc::new(Task::default()), Arc::new(Task::default()));
        let mut kept = noop_waker();
        for task in [&first, &last] {
            let polled = quiet.poll(
                &mut Context::from_waker(&waker(task.clone())),
                || true,
                |context| {
                    kept = context.waker().clone();
                    Poll::<()>::Pending
                },
            );
            assert!(polled.is_pending());
        }
        std::thread::spawn(move || kept.wake()).join().ok();
        assert_eq!((first.0.load(Ordering::Relaxed), last.0.load(Ordering::Relaxed)), (0, 1));
    }
}
