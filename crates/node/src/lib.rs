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
//! # One app
//!
//! 1. [`Runtime::start`] makes once what all apps of a process share: the engine
//!    with its pool, the linkers, the HTTP client, logs.
//! 2. [`Runtime::load`] resolves an app's variables, compiles or maps its components
//!    (in parallel, each distinct one once), assembles their files, and reports
//!    everything that is wrong with any of them at once.
//! 3. The result is a [`LoadedApp`], which a server answers requests with. When
//!    it is dropped, so is everything that was made for it; stores and databases
//!    ([`AppState`]) stay.
//!
//! # Many apps
//!
//! A [`Node`] has a table of apps by host name, fed by a stream of numbered [`Change`]s.
//! An [`AppsDirectory`] makes one of a folder. A control plane sends one of releases: see
//! [`ReleaseId`] and `release.rs`.
//!
//! | state | what there is of the app | in |
//! | --- | --- | --- |
//! | *registered* | an entry of the table, a few hundred bytes | `entry.rs`, `table.rs` |
//! | *mapped* | manifest read, images mapped, linked; evictable | `loading.rs`, `eviction.rs` |
//! | *warm* | mapped, and used lately: the pool has slots with its memory | |
//!
//! A background pass (`prepare.rs`) finds out about each app what can be known without
//! running it, so that health (`health.rs`) has facts and a first request finds nothing
//! left to do but to map an image.
//!
//! # Life of a request to an app that is not mapped
//!
//! 1. [`Node`] finds the entry of the request's host: a look into a map of the thread's
//!    own. If a version is mapped, that is all: one pointer is read.
//! 2. Otherwise the request begins a load, or waits for the one that goes on: at most so
//!    many, for so long, then 503.
//! 3. The manifest is read, if it was not of late (`manifests.rs`). The digest of each
//!    source is known by the identity of its file, and so is the image as one that was
//!    verified: it is mapped at once, on the request's own thread. What is not known is
//!    read, compiled and verified elsewhere.
//! 4. The version becomes the current one, if no newer change has come meanwhile.
//!
//! # Life of a swap
//!
//! A change to an app that is mapped loads the new version beside the old one, in the
//! background; asks it for an answer if the app wants that; then stores one pointer.
//! Requests keep the version that they began with. The old version stays mapped: going
//! back to it, by an operator or because a link points to it again, is another store.
//! If the new version cannot be loaded, the old one goes on, and health says why.
#![forbid(unsafe_code)]

mod admin;
mod change;
pub mod composition;
mod directory;
mod entry;
mod error;
mod eviction;
mod health;
mod host_name;
mod loading;
mod manifests;
mod metrics;
mod node;
mod os_limits;
mod prepare;
mod release;
mod runtime;
mod runtime_config;
mod settings;
mod table;
mod usage;

pub use admin::Admin;
pub use change::{Change, ChangeKind};
pub use directory::AppsDirectory;
pub use error::{Error, Errors};
pub use host_name::{HostName, MAX_HOST_NAME_BYTES};
pub use node::Node;
pub use os_limits::{Allowed, machine_memory_bytes, raise_descriptor_limit};
pub use release::{Release, ReleaseId, Releases, Staged, Swapped};
pub use runtime::{AppState, LoadedApp, Provisional, Runtime, TEST_COMPONENT_ID};
pub use settings::{AppSettings, Budget, NodeSettings, RuntimeSettings, VariableValue};
pub use usage::{AppUsage, app_metrics};
