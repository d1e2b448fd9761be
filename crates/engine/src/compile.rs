//! Where components are compiled: on threads of low priority, for a bounded time.
//!
//! Compiling takes a core for seconds, and some components are made to take longer.
//! Those who are served meanwhile must not notice: the threads here give way to all
//! others. A compilation cannot be interrupted; after its time nobody waits for it any
//! more, and it ends when it ends. Compilations that run side by side share the threads.

use std::{
    sync::{
        OnceLock,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread,
    time::Duration,
};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, priority::lower_priority};

/// How much less priority these threads have (`nice`, which ends at 19): behind what
/// serves, before guests that compute without end, so that a node whose cores are busy
/// still compiles.
const NICE: i32 = 10;

/// The same where nobody waits for the result: behind what somebody waits for.
const BACKGROUND_NICE: i32 = 12;

/// Whether somebody waits for what is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// A request or a person.
    Awaited,
    /// Nobody: what is awaited has threads of its own, which do not wait until this is done.
    Background,
}

/// Does the work on the threads for compiling, and waits for it for a bounded time.
/// `leaves_much` says whether it leaves so much free memory that this is worth giving back.
pub(crate) fn compile<T: Send + 'static>(
    limit: Duration,
    urgency: Urgency,
    leaves_much: bool,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let Some(threads) = threads(urgency) else { return work() };
    let (done, result) = sync_channel(1);
    threads.spawn(move || {
        // Whoever waited may be gone: then nobody wants the result.
        drop(done.send(work()));
        if leaves_much {
            give_memory_back();
        }
    });
    wait(limit, &result)
}

/// Gives memory back to the operating system that the compiler has freed: half a gigabyte
/// after a JavaScript or Python guest, which takes 40 ms. Left alone, the allocator does it
/// a second later, on whichever thread allocates next: one that answers requests.
fn give_memory_back() {
    // SAFETY: may be called at any time by any thread; if another allocator is in use, this
    // one has nothing to give back.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Work that was begun on a thread of its own.
pub(crate) struct Begun<T>(Receiver<Result<T, Error>>);

impl<T> Begun<T> {
    /// Waits for its result for a bounded time.
    pub(crate) fn wait(self, limit: Duration) -> Result<T, Error> {
        wait(limit, &self.0)
    }
}

/// Begins work on a thread of its own: such that is short beside compiling, and does not
/// wait until others have compiled.
pub(crate) fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<Begun<T>, Error> {
    let (done, result) = sync_channel(1);
    let work = move || {
        if let Err(error) = lower_priority(NICE) {
            tracing::debug!("the priority of a thread cannot be lowered: {error}");
        }
        // Whoever waited may be gone.
        drop(done.send(work()));
    };
    match thread::Builder::new().name("wisp-split".into()).spawn(work) {
        Ok(_) => Ok(Begun(result)),
        Err(cause) => Err(Error::Configuration { cause: cause.into() }),
    }
}

fn wait<T>(limit: Duration, result: &Receiver<Result<T, Error>>) -> Result<T, Error> {
    match result.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(Error::CompileTime { limit }),
        Err(RecvTimeoutError::Disconnected) => {
            Err(Error::Compile { message: "the compiler stopped unexpectedly".into() })
        }
    }
}

/// As many threads as there are cores; `None` if the operating system refuses them.
fn threads(urgency: Urgency) -> Option<&'static ThreadPool> {
    static AWAITED: OnceLock<Option<ThreadPool>> = OnceLock::new();
    static BACKGROUND: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let (threads, nice) = match urgency {
        Urgency::Awaited => (&AWAITED, NICE),
        Urgency::Background => (&BACKGROUND, BACKGROUND_NICE),
    };
    threads
        .get_or_init(|| {
            ThreadPoolBuilder::new()
                .thread_name(|number| format!("wisp-compile-{number}"))
                .start_handler(move |_| {
                    if let Err(error) = lower_priority(nice) {
                        // Compiling works as well, and others notice.
                        tracing::debug!("the priority of a compiling thread cannot be lowered: {error}");
                    }
                })
                // A panic is a defect of the compiler: it ends one compilation.
                .panic_handler(|_| {})
                .build()
                .inspect_err(|error| tracing::warn!("no threads for compiling can be had: {error}"))
                .ok()
        })
        .as_ref()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn nobody_waits_longer_than_the_limit() {
        assert_eq!(compile(Duration::from_secs(60), Urgency::Awaited, true, || Ok(7)).unwrap(), 7);
        let (end, is_to_end) = channel::<()>();
        let error = compile(Duration::from_millis(10), Urgency::Awaited, false, move || {
            let _ = is_to_end.recv();
            Ok(())
        })
        .unwrap_err();
        assert_eq!(error.code(), "WISP-E0210");
        drop(end);
        let defect = || -> Result<(), Error> { std::panic::resume_unwind(Box::new("a defect")) };
        for panicked in [
            compile(Duration::from_secs(60), Urgency::Background, false, defect),
            beside(defect).unwrap().wait(Duration::from_secs(60)),
        ] {
            assert_eq!(panicked.unwrap_err().code(), "WISP-E0205");
        }
    }
}
