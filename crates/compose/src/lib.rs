//! Components made of components.
//!
//! An app's component may leave some of its imports to other components
//! (*dependencies*), and a trigger may put components in front of it (*middleware*).
//! This crate makes one component of them, from bytes to bytes. It also tells whether a
//! component fits the environments that it is meant for ([`target`]), and writes down
//! what a component's dependencies offer for whoever generates bindings ([`bindings`]).
//!
//! It is not for finding the bytes: files, other components of an app, downloads and
//! the cache are `wisp_node::composition`'s. It knows nothing of Wasmtime, and runs
//! nothing.
//!
//! # Life of a composition
//!
//! 1. Every part is read: what it imports, what it exports. That validates it, but for
//!    the bodies of functions, which the compiler does.
//! 2. For each part beside the main one it is decided what it may reach of that which
//!    the main component may reach ([`Permissions`]). What it may not reach is answered
//!    by a *deny adapter*: a component that is generated from the part's own imports, so
//!    that it fits whatever version of an interface the part was built with ([`deny`]).
//! 3. Imports of the main component are wired to exports of its dependencies, and
//!    handlers of middleware to the next one inwards ([`compose()`]). Imports that nobody
//!    satisfies become imports of the whole: what several parts import of the host is
//!    imported once.
//! 4. The result is validated, and is a component like any other.
//!
//! # Sharing
//!
//! Dependencies of one component that are the same bytes with the same permissions are
//! one instance: what one import stores there, another one finds. Otherwise each part
//! has memory of its own, and nobody but the functions between them connects them.
#![forbid(unsafe_code)]

pub mod bindings;
mod compose;
pub mod deny;
mod error;
mod name;
mod permissions;
pub mod target;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use compose::{Code, Dependency, Middleware, compose, handler};
pub use error::Error;
pub use name::{ExternName, is_compatible};
pub use permissions::{Permissions, permission};
use wit_parser::{
    Resolve, WorldId,
    decoding::{DecodedWasm, decode},
};

/// Parts of one composition: the main component, dependencies and middleware. Each is
/// instantiated for a request, so that more would be a mistake.
pub const MAX_PARTS_COUNT: usize = 64;

/// The version of what this crate makes: part of the key under which others cache it.
pub const FORMAT: u32 = 1;

/// Reads what a component imports and exports.
fn read(code: &Code<'_>) -> Result<(Resolve, WorldId), Error> {
    let unreadable = |message: String| Error::Unreadable { part: code.name.to_owned(), message };
    guarded(
        || decode(code.bytes).map_err(|error| unreadable(format!("{error:#}"))),
        || unreadable("it is malformed".to_owned()),
    )
    .and_then(|decoded| match decoded {
        DecodedWasm::Component(resolve, world) => Ok((resolve, world)),
        DecodedWasm::WitPackage(..) => {
            Err(unreadable("it describes interfaces and is no component".to_owned()))
        }
    })
}

/// Does work with libraries that take malformed input for a fault of their own: their
/// panics are errors here.
fn guarded<T>(work: impl FnOnce() -> Result<T, Error>, on_panic: impl FnOnce() -> Error) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(on_panic()))
}
