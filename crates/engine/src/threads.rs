//! How many threads are worth having, which one this is, and work on two of them.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// How many cores this process may use, as it was when first asked: finding out reads
/// files, which a load of a component would notice.
pub fn cores_count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// A small number that no other thread of the process has or had.
pub fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

/// Does two things at once, the first on a thread of its own if one can be had.
pub fn both<A: Send, B>(one: impl Fn() -> A + Sync, other: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| match thread::Builder::new().spawn_scoped(scope, &one) {
        Ok(thread) => {
            let other = other();
            let one = thread.join().unwrap_or_else(|defect| std::panic::resume_unwind(defect));
            (one, other)
        }
        Err(_) => (one(), other()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::sync::{Mutex, mpsc::channel};

    use super::*;

    #[test]
    fn two_things_are_done_at_once() {
        let (sender, receiver) = channel();
        // Neither ends without the other.
        let (reply, replied) = channel();
        let receiver = Mutex::new(receiver);
        let reply = Mutex::new(reply);
        let one = || {
            let number: u32 = receiver.lock().unwrap().recv().unwrap();
            reply.lock().unwrap().send(number + 1).unwrap();
            number
        };
        let other = move || {
            sender.send(7).unwrap();
            replied.recv().unwrap()
        };
        assert_eq!(both(one, other), (7, 8));
    }
}
