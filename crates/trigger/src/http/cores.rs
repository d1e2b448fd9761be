//! A core for each worker, while guests compute.
//!
//! Where some cores compute all the time, the kernel takes the machine for busy and no
//! longer looks for a free core when a thread wakes: workers come to share one core, while
//! on the other a guest computes that would give way at once. So for as long as guests
//! compute, each worker stays on a core of its own ([`keep_apart`]). At other times, and
//! where the cores are not this process's alone to use, the kernel knows better.

use std::{
    collections::HashSet,
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

/// The workers of this process.
static WORKERS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// A worker, for as long as this exists.
pub(super) struct Worker(Pid);

/// Workers on a core each, until this is dropped.
pub(super) struct Apart {
    /// Where they may run else.
    anywhere: CpuSet,
}

impl Worker {
    /// The calling thread.
    pub(super) fn join() -> Self {
        let thread = gettid();
        workers().push(thread);
        Self(thread)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        workers().retain(|worker| *worker != self.0);
    }
}

fn workers() -> MutexGuard<'static, Vec<Pid>> {
    WORKERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives each worker a core. `None` if there is not one for each, or if a share of the
/// machine's time rather than cores is what the process was given.
pub(super) fn keep_apart() -> Option<Apart> {
    let process = rustix::process::getpid();
    // The first thread has the process's number, and nobody moves it.
    let anywhere = sched_getaffinity(Some(process)).ok()?;
    let cores: Vec<_> = cores_of(&anywhere).collect();
    let workers = workers().clone();
    if workers.len() != cores.len() || cores.len() < 2 || cores.len() != wisp_engine::cores_count() {
        return None;
    }
    let apart = Apart { anywhere };
    // Not all processes of a machine begin with the same core.
    let first = usize::try_from(process.as_raw_nonzero().get()).unwrap_or(0);
    for (number, worker) in workers.into_iter().enumerate() {
        let mut core = CpuSet::new();
        core.set(cores[(first + number) % cores.len()]);
        if let Err(error) = sched_setaffinity(Some(worker), &core) {
            tracing::debug!("a worker cannot have a core of its own: {error}");
            return None;
        }
    }
    Some(apart)
}

impl Apart {
    /// Lets threads go elsewhere that workers have started since: they came to the
    /// worker's core with it.
    pub(super) fn let_go_others(&self) {
        self.let_go(&workers().iter().copied().collect());
    }

    fn let_go(&self, but: &HashSet<Pid>) {
        let Ok(threads) = fs::read_dir("/proc/self/task") else { return };
        for thread in threads.flatten() {
            let number = thread.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(thread) = number.and_then(Pid::from_raw).filter(|thread| !but.contains(thread)) else {
                continue;
            };
            // What has more than one core was never on a worker's alone. A thread may have
            // ended meanwhile.
            if sched_getaffinity(Some(thread)).is_ok_and(|cores| cores.count() == 1) {
                let _ = sched_setaffinity(Some(thread), &self.anywhere);
            }
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.let_go(&HashSet::new());
    }
}

fn cores_of(set: &CpuSet) -> impl Iterator<Item = usize> + '_ {
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{sync::mpsc, thread};

    use super::*;

    fn cores_of_thread(thread: Pid) -> Vec<usize> {
        cores_of(&sched_getaffinity(Some(thread)).unwrap()).collect()
    }

    #[test]
    fn workers_have_a_core_each_until_they_are_let_go() {
        let count = wisp_engine::cores_count();
        let (told, tell) = mpsc::channel();
        let mut ends = Vec::new();
        let mut threads = Vec::new();
        for _ in 0..count {
            let (end, ended) = mpsc::channel::<()>();
            let (started, start) = mpsc::channel::<()>();
            let told = told.clone();
            threads.push(thread::spawn(move || {
                let _worker = Worker::join();
                told.send(gettid()).unwrap();
                start.recv().unwrap();
                // It begins where the worker is.
                let child = thread::spawn(move || {
                    told.send(gettid()).unwrap();
                    ended.recv().unwrap_err();
                });
                child.join().unwrap();
            }));
            ends.push((end, started));
        }
        let ids: Vec<_> = (0..count).map(|_| tell.recv().unwrap()).collect();
        let everywhere = cores_of_thread(rustix::process::getpid());
        let apart = keep_apart();
        assert_eq!(apart.is_some(), count > 1 && everywhere.len() == count);
        let Some(apart) = apart else { return };

        let cores: HashSet<_> = ids.iter().flat_map(|id| cores_of_thread(*id)).collect();
        assert_eq!(cores.len(), count, "one for each");
        assert!(ids.iter().all(|id| cores_of_thread(*id).len() == 1));
        for (_, started) in &ends {
            started.send(()).unwrap();
        }
        let children: Vec<_> = (0..count).map(|_| tell.recv().unwrap()).collect();
        assert!(children.iter().all(|id| cores_of_thread(*id).len() == 1), "inherited");
        apart.let_go_others();
        assert!(children.iter().all(|id| cores_of_thread(*id) == everywhere));
        assert!(ids.iter().all(|id| cores_of_thread(*id).len() == 1), "still");
        drop(apart);
        assert!(ids.iter().all(|id| cores_of_thread(*id) == everywhere));
        drop(ends);
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(workers().is_empty());
    }
}
