//! Linear memory of guests that start with much of it filled.
//!
//! A JavaScript or Python guest begins with megabytes of data: the snapshot of an
//! interpreter that its toolchain took. What one request costs it is then a matter
//! of pages: each one it writes to is copied on the first write, found when the
//! instance ends, and made as it was. Wasmtime's pool reads at most 32 dirty ranges
//! from the kernel and unmaps everything after them; such a guest dirties several
//! hundred, so most of its memory is faulted in anew by every request.
//!
//! Components like these get memory from here instead:
//!
//! - When the component is compiled, its memory's initial contents are taken out of
//!   it ([`snapshot`]) and put behind the code in the compiled image, or into an image
//!   that has nothing else where others have the same code.
//! - Each such component has a [`MemoryPool`] of its own: slots in which the
//!   contents are mapped copy-on-write from that file. A slot only ever serves one
//!   component, so nothing is mapped anew between two requests.
//! - When an instance ends, the kernel is asked for *all* pages it wrote to
//!   ([`dirty_pages`]); each is copied back from the image or cleared and stays
//!   mapped. The next request that takes the slot causes no page fault.
//! - An instance that is rewound stays on its thread as a rule, and that thread has no
//!   faults as a rule: then the same pages are dirty as the last time, and the kernel
//!   is not asked ([`faults`]).
//!
//! # Life of a slot
//!
//! reserved and mapped → lent to an instance → its dirty pages reset → idle, last in
//! first out → unmapped when the component is dropped or too many are idle.
//!
//! A slot of a small component that had no other request of late is not kept for its next:
//! it becomes a *spare* one. Whichever component needs a slot next has its contents mapped
//! over those, and finds addresses, page tables and zeroed pages there.

pub(crate) mod code;
mod dirty_pages;
mod faults;
mod pool;
pub(crate) mod snapshot;
mod stack;

pub use faults::OneThread;
pub(crate) use pool::{Creator, MemoryImage, MemoryPools, Place};
pub use pool::{LentMemory, MemoryPool};
pub(crate) use stack::StackPool;

/// The size of a page of this machine's memory. Wisp runs on Linux on x86-64 and
/// 64-bit ARM with 4 KiB pages; where they are larger, everything here still holds,
/// because it is asked for.
pub(crate) fn page_bytes() -> usize {
    rustix::param::page_size()
}
