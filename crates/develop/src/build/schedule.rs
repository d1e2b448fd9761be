//! Jobs in an order in which each comes after those it needs.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    thread,
};

use super::Job;
use crate::Error;

/// Where a job stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waits,
    Runs,
    Done,
    Failed,
}

/// Finds jobs that wait for each other.
///
/// # Errors
/// [`Error::Circle`].
pub(super) fn check(jobs: &[Job]) -> Result<(), Error> {
    let mut is_done = vec![false; jobs.len()];
    loop {
        let ready: Vec<_> = (0..jobs.len())
            .filter(|number| !is_done[*number] && jobs[*number].after.iter().all(|before| is_done[*before]))
            .collect();
        if ready.is_empty() {
            break;
        }
        for number in ready {
            is_done[number] = true;
        }
    }
    let stuck = jobs.iter().zip(is_done).filter(|(_, is_done)| !is_done);
    let components: Vec<_> = stuck.flat_map(|(job, _)| job.components.clone()).collect();
    if components.is_empty() { Ok(()) } else { Err(Error::Circle { components }) }
}

/// Runs all jobs, as many at a time as there are cores. Returns what went wrong.
/// `not_tried` hears of those that wait for one that failed.
pub(super) fn run(
    jobs: &[Job],
    run: impl Fn(&Job) -> Result<(), Error> + Sync,
    not_tried: impl Fn(&Job) + Sync,
) -> Vec<Error> {
    let states = Mutex::new(vec![State::Waits; jobs.len()]);
    let changed = Condvar::new();
    let errors = Mutex::new(Vec::new());
    let lock = || states.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        for _ in 0..wisp_engine::cores_count().min(jobs.len()) {
            scope.spawn(|| {
                let mut states = lock();
                while states.contains(&State::Waits) {
                    let is = |number: usize, state: State| states[number] == state;
                    let next = (0..jobs.len()).filter(|number| is(*number, State::Waits)).find(|number| {
                        let after = &jobs[*number].after;
                        after.iter().any(|before| is(*before, State::Failed))
                            || after.iter().all(|before| is(*before, State::Done))
                    });
                    let Some(number) = next else {
                        states = changed.wait(states).unwrap_or_else(PoisonError::into_inner);
                        continue;
                    };
                    let job = &jobs[number];
                    let is_lost = job.after.iter().any(|before| is(*before, State::Failed));
                    states[number] = State::Runs;
                    drop(states);
                    let state = if is_lost {
                        not_tried(job);
                        State::Failed
                    } else {
                        match run(job) {
                            Ok(()) => State::Done,
                            Err(error) => {
                                errors.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                                State::Failed
                            }
                        }
                    };
                    states = lock();
                    states[number] = state;
                    changed.notify_all();
                }
            });
        }
    });
    errors.into_inner().unwrap_or_else(PoisonError::into_inner)
}
