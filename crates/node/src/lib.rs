//! Apps in a process.
//!
//! A node takes checked apps and makes them answer: it compiles their components,
//! opens what they were granted, links and routes. It is the one place where the
//! crates below meet: what the manifest asks for becomes the `Grants` of the
//! capability crate and the routes of the trigger crate.
//!
//! It is not for: reading files that people write (`wisp-manifest`), how a
//! component runs (`wisp-engine`), how a request reaches it (`wisp-trigger`), or
//! who owns an app.
//!
//! # Life of an app
//!
//! 1. [`Node::start`] makes once what all apps of a process share: the engine
//!    with its pool, the linkers, the HTTP client, logs, stores.
//! 2. [`Node::load`] resolves an app's variables, compiles or maps its components
//!    (in parallel, each distinct one once), assembles their files, and reports
//!    everything that is wrong with any of them at once.
//! 3. The result is a [`LoadedApp`], which a server answers requests with. When
//!    it is dropped, so is everything that was made for it; stores and databases
//!    stay.
#![forbid(unsafe_code)]

mod descriptors;
mod error;
mod load;
mod runtime;
mod settings;

pub use descriptors::raise_descriptor_limit;
pub use error::{Error, Errors};
pub use load::{LoadedApp, Node};
pub use settings::{AppSettings, NodeSettings};
