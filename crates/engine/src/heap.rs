//! Room for what loading a component allocates.
//!
//! A load makes room for the next one when its request was answered, so that no request
//! waits for it but the first of a thread.

use rustix::mm::{Advice, madvise};

/// What loading a component of usual size allocates: 160 KiB for a small Rust handler.
const LOAD_BYTES: usize = 256 << 10;

/// Makes sure that this thread's heap has room for a load.
///
/// The C library's allocator grows the heap of a thread page by page, and each page costs
/// a system call and a fault: a sixth of the time that a load takes. Asking once for all
/// of it, and having the kernel fill it in one go, costs a tenth of that. Where there is
/// room already, and with any other allocator, this does next to nothing.
pub fn make_room() {
    let mut room = Vec::<u8>::with_capacity(LOAD_BYTES);
    let page_bytes = crate::memory::page_bytes();
    let start = room.as_mut_ptr().wrapping_add(page_bytes);
    let start = start.wrapping_sub(start.addr() % page_bytes);
    // SAFETY: whole pages inside of memory that is ours, which has no contents yet. If
    // the kernel does not know this advice, they are filled when they are touched.
    let _ = unsafe { madvise(start.cast(), LOAD_BYTES - 2 * page_bytes, Advice::LinuxPopulateWrite) };
    drop(std::hint::black_box(room));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_can_be_made_again_and_again() {
        for _ in 0..3 {
            make_room();
        }
        let all = (0..4).map(|_| std::thread::spawn(make_room));
        assert!(all.collect::<Vec<_>>().into_iter().all(|thread| thread.join().is_ok()));
    }
}
