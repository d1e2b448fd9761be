//! What guests may call.
//!
//! One module per interface family. Each holds the bindings of every version of
//! its interfaces, the translation to one backend trait, and the backends
//! beside it, so that an interface's new version never touches a backend and a
//! new backend never touches an interface.
//!
//! It is not for: deciding who may what (the manifest asks, the operator agrees,
//! and the result comes in as [`Grants`]), starting guests, or answering requests.
//!
//! # Words
//!
//! - A **family** is what belongs together for a guest: key-value, SQLite,
//!   variables, outbound HTTP, WASI.
//! - A **grant** is what one component may reach of a family: stores by label,
//!   hosts, files. Made once, shared by all instances, immutable.
//! - A **backend** keeps or fetches what guests ask for.
//!
//! | module | serves | backends |
//! | --- | --- | --- |
//! | [`wasi`] | WASI 0.2 and 0.3 but HTTP | this machine's files, clocks, sockets; logs |
//! | [`variables`] | `fermyon:spin/config`, `variables`, `wasi:config` | command line, files, environment |
//! | [`key_value`] | `fermyon:spin/key-value`, `spin:key-value`, `wasi:keyvalue` | SQLite files, memory |
//! | [`sqlite`] | `fermyon:spin/sqlite`, `spin:sqlite` | SQLite files, memory |
//! | [`outbound`] | who may reach which network destination, for all that connect | |
//! | [`outbound_http`] | `wasi:http` of both versions, `fermyon:spin/http` | hyper; other components of the app |
//! | [`test_component`] | `wisp:test`, for components that test an app | whoever runs tests |
//! | [`resource`] | stores and databases of a platform: open files, quotas, migrations, copies | |
//! | `otel` | `wasi:otel` | what Wisp exports its own telemetry with |
//! | `unavailable` | Redis, MQTT, MySQL, PostgreSQL, models | none yet: permission is checked, then the interface's own error says so |
//!
//! # Life of a `Host`
//!
//! A [`Host`] is the data of one instance's store. A trigger makes one from the
//! component's [`Grants`] ([`Host::new`]), which costs well under a microsecond:
//! what can be opened once is open already. Host calls find their state in it,
//! check against the grants, and go to the backend in process. It is dropped with
//! the instance, and with it every handle, transaction and connection that the
//! guest forgot.
//!
//! [`Linkers`] hold the functions themselves, registered once per process for both
//! flavors of the engine; see [`wisp_engine::Flavor`].
#![forbid(unsafe_code)]

mod data_span;
mod error;
mod grants;
mod host;
pub mod key_value;
mod otel;
pub mod outbound;
pub mod outbound_http;
mod pages;
pub mod resource;
pub mod sqlite;
pub mod test_component;
#[cfg(test)]
mod testing;
mod unavailable;
pub mod variables;
mod virtual_world;
pub mod wasi;

pub use error::Error;
pub use grants::{Grants, RequestLimits};
pub use host::{Host, Linkers};
pub use virtual_world::{Busy, Sleep, VirtualRandom, VirtualTime, VirtualWorld};
pub(crate) use wisp_engine::Flavor;
