//! The engine: WebAssembly bytes in, instances out.
//!
//! This crate is the one place that knows Wasmtime's configuration and the one
//! place with `unsafe` code. It is for: turning whatever a toolchain produced
//! into a component ([`normalize`]), compiling components ahead of time and
//! keeping the result on disk ([`ImageStore`]), mapping it back in
//! microseconds, bounding what an instance may use ([`Limiter`], epochs), and
//! measuring what it does use ([`Usage`], [`Slice`]).
//!
//! It is not for: HTTP, manifests, or what a guest may call. Callers bring
//! their own linker and store data; the engine never looks inside.
//!
//! # Nouns
//!
//! - **source**: the bytes a manifest names; a core module or a component.
//! - **component**: the source after [`normalize`]: always a component, always
//!   in terms of the interfaces that Wisp links.
//! - **compiled image**: native code for one component, a `.cwasm` file named by
//!   the digest of the source and the engine's compatibility hash.
//! - **flavor**: which of the engine's configurations a component runs on; see
//!   [`Flavor`].
//! - **tier**: whether its code is optimized ([`Tier`]). A flavor and a tier make an
//!   [`EngineKind`]: each kind has a Wasmtime engine, linkers and images of its own.
//!
//! # Life of a component
//!
//! 1. [`Engine::load`] takes the source and computes its [`Digest`].
//! 2. If the image store holds a compiled image of that digest for this engine,
//!    its checksum is verified and the file is mapped: no parsing, no copy. One with
//!    optimized code is preferred.
//! 3. Otherwise the source is normalized, validated and compiled on all cores,
//!    written to the store under a temporary name and renamed, so that others see a
//!    whole file or none. Then it is mapped as in 2. What is large and only begins with
//!    something else than a component that was compiled before is not compiled again:
//!    its image refers to the code of that one, which is mapped once for both
//!    (`code.rs`). With [`Compiler::Tiered`] what is large is compiled for the baseline
//!    tier, a fifth of the time; the caller may have it optimized while it serves
//!    ([`Engine::optimize`]), and takes the new code as any other new version.
//! 4. The caller links it once (`Linker::instantiate_pre`) and makes instances
//!    from it. Memory comes from Wasmtime's pool, or from ours ([`MemoryPool`]) where
//!    it begins with much data or instances can be rewound: initial contents are
//!    mapped copy-on-write from the image, so that an instance costs the pages it
//!    writes to and nothing else.
//! 5. An instance that has answered may be put back to its beginning for the next
//!    request ([`Rewinder`]).
//!
//! An image that is mapped already is shared, and unmapped when its last user is gone
//! ([`MappedImage`]). What was verified in this process is not read again while its file is
//! the same ([`FileIdentity`]): [`Engine::load_known`] maps such a component in some
//! 100 microseconds, and says so when it cannot.
//!
//! With [`EngineConfig::debug_info`] code is not optimized, carries the guests' debug
//! information, and debuggers are told where it lies. Its images have names of their own:
//! the compatibility hash covers all that code depends on.
//!
//! A file in the store that is truncated, altered or of another engine fails
//! step 2 and is compiled again; it is never loaded.
//!
//! Where strangers' components run, step 3 is taken by a process of its own
//! ([`compile_file`]), and a control plane signs what comes of it
//! ([`ImageStore::adopt`], [`SigningKey`]). A store that was opened with the key
//! ([`ImageStore::open_signed`]) maps nothing else, and its engine compiles nothing.

mod code;
mod compile;
mod config;
mod core_exports;
mod debugger;
mod digest;
mod engines;
mod epoch;
mod error;
mod file_identity;
mod file_index;
mod image_store;
mod images;
mod instructions;
mod limiter;
mod loader;
mod memory;
pub mod normalize;
mod priority;
mod rewind;
mod signature;
mod split;
mod threads;
mod usage;

pub use config::{Compiler, EngineConfig, EngineKind, Flavor, Tier};
pub use digest::Digest;
pub use epoch::{EPOCH_TICK_MS, Pulse, SLICE, Slice, SliceEnd, ThreadClock, preempt};
pub use error::Error;
pub use file_identity::FileIdentity;
pub use image_store::ImageStore;
pub use images::{MappedImage, MappedTotals};
pub use limiter::{InstanceLimits, Limiter};
pub use loader::{Engine, LoadedComponent, Origin, compile_file};
pub use memory::{LentMemory, MemoryPool, OneThread};
pub use priority::{lower_priority, prefer_short_slices, use_idle_cores};
pub use rewind::Rewinder;
pub use signature::{SigningKey, VerifyingKey};
pub use threads::{both, cores_count, thread_number};
pub use usage::{Ledger, Usage};
