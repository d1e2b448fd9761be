//! What guests may call.
//!
//! One module per interface family. Each holds the bindings of every version of
//! its interfaces, the translation to one backend trait, and the backends
//! beside it. `Host` is the data of one instance's store; `Grants` is what a
//! component may reach, built once per release and shared by its instances.
//!
//! Life of a `Host`: a trigger makes one per instance from the component's
//! `Grants` ([`Host::new`]); host calls find their state in it; it is dropped
//! with the instance, and with it every handle the guest forgot.
#![forbid(unsafe_code)]

mod error;
mod grants;
mod host;
pub mod key_value;
pub mod outbound;
pub mod outbound_http;
mod pages;
pub mod sqlite;
#[cfg(test)]
mod testing;
mod unavailable;
pub mod variables;
pub mod wasi;

pub use error::Error;
pub use grants::Grants;
pub use host::{Host, Linkers};
pub(crate) use wisp_engine::Flavor;
