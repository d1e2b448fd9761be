//! How often a thread met a page that it could not use yet.
//!
//! A page of a memory that is mapped copy-on-write becomes one of its own when somebody
//! writes to it, and the kernel counts that as a fault of the thread that did. To ask for
//! that count costs a fifth of asking which pages are dirty.
//!
//! It says nothing about other threads. So whoever runs a guest does so within
//! [`OneThread`], and [`ran_here`] is true only in a run that never left its thread.

use std::{
    cell::Cell,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll},
};

use crate::thread_number;

/// The faults of one thread so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Faults {
    thread: usize,
    count: i64,
}

impl Faults {
    /// Those of the calling thread; `None` where they are not counted.
    pub(super) fn now() -> Option<Self> {
        #[cfg(target_os = "linux")]
        {
            let mut usage = MaybeUninit::<libc::rusage>::uninit();
            // SAFETY: the kernel writes the whole structure if it answers with 0.
            let usage = unsafe {
                if libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) != 0 {
                    return None;
                }
                usage.assume_init()
            };
            Some(Self { thread: thread_number(), count: usage.ru_minflt.wrapping_add(usage.ru_majflt) })
        }
        #[cfg(not(target_os = "linux"))]
        None
    }
}

thread_local! {
    /// Whether what this thread is running has run on no other.
    static RAN_HERE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the guest that is being run, within [`OneThread`], has run on no other thread
/// since that began.
pub(super) fn ran_here() -> bool {
    RAN_HERE.get()
}

/// Watches which threads a guest is run on, from when its instance is taken until it is
/// given back.
#[derive(Debug, Default)]
pub struct OneThread {
    thread: Option<usize>,
    has_moved: bool,
}

impl OneThread {
    /// Runs `guest` for a while.
    pub fn poll<F: Future>(&mut self, guest: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
        /// Puts back what holds for whoever runs around this.
        struct Before(bool);

        impl Drop for Before {
            fn drop(&mut self) {
                RAN_HERE.set(self.0);
            }
        }

        let thread = thread_number();
        self.has_moved |= *self.thread.get_or_insert(thread) != thread;
        let _before = Before(RAN_HERE.replace(!self.has_moved));
        guest.poll(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{future::poll_fn, pin::pin, task::Waker, thread};

    use super::*;

    #[test]
    fn a_page_that_is_written_to_first_is_a_fault() {
        let page_bytes = crate::memory::page_bytes();
        let mapping = super::super::pool::Mapping::reserve(4 * page_bytes).unwrap();
        mapping.make_accessible(0..4 * page_bytes).unwrap();
        let write = |page: usize| {
            // SAFETY: a byte of our own mapping, which can be accessed.
            unsafe { mapping.pointer(page * page_bytes).write_volatile(1) };
        };
        for page in 0..4 {
            let before = Faults::now().unwrap();
            write(page);
            let after = Faults::now().unwrap();
            assert_ne!(before, after);
            write(page);
            assert_eq!(Faults::now().unwrap(), after);
        }
        let elsewhere = thread::spawn(Faults::now).join().unwrap().unwrap();
        assert_ne!(elsewhere.thread, Faults::now().unwrap().thread);
    }

    #[test]
    fn a_guest_that_moved_stays_known_as_such() {
        let mut run = OneThread::default();
        let mut seen = Vec::new();
        let mut poll = |run: &mut OneThread| {
            let mut guest = pin!(poll_fn(|_| {
                seen.push(ran_here());
                Poll::<()>::Pending
            }));
            assert!(run.poll(guest.as_mut(), &mut Context::from_waker(Waker::noop())).is_pending());
            assert!(!ran_here(), "outside of it nothing is known");
        };
        poll(&mut run);
        poll(&mut run);
        thread::scope(|scope| scope.spawn(|| poll(&mut run)).join().unwrap());
        poll(&mut run);
        let mut other = OneThread::default();
        poll(&mut other);
        assert_eq!(seen, [true, true, false, false, true]);
    }
}
