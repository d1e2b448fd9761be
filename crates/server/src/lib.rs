//! The cloud in one process: control plane, registry, node and ingress.
//!
//! This crate is the glue: it opens the data directory, starts what the other crates
//! are, and lets them meet. The control plane (`wisp-control`) knows nothing of
//! WebAssembly, the registry (`wisp-image`) nothing of teams, the node (`wisp-node`)
//! nothing of either; here the control plane gets its machine ([`Machine`]), the registry
//! its rules, and the listener learns which host is the API and which is an app.
//!
//! It is not for: arguments and output (`wisp`, the command), deciding who may do what,
//! or running guests.
//!
//! # Life of a server
//!
//! 1. [`Settings::read`]: flags over `wisp.toml` over defaults.
//! 2. The data directory is opened and what a killed server left half done is removed.
//! 3. State and registry are opened; the node starts, and gets all that is to run.
//! 4. The control plane goes on with what it had begun.
//! 5. The listener answers: requests to the domain itself go to API and registry,
//!    all others to apps.
//! 6. At SIGTERM connections are drained, then the rest is stopped.
//!
//! # Where a component is compiled
//!
//! Not here: see `compile.rs`.
#![forbid(unsafe_code)]

mod backup;
mod certificates;
mod compile;
mod error;
mod front;
mod garbage;
mod images;
mod layout;
mod log_store;
mod platform;
mod server;
mod settings;

pub use backup::{BackupHeader, BackupReport, backup, restore};
pub(crate) use compile::Compiler;
pub use compile::{CompileLimits, compile_image};
pub use error::Error;
pub use layout::DataDirectory;
pub use log_store::{LogLimits, LogStore};
pub use platform::{Descriptions, Machine, Rates};
pub use server::{Facts, Server};
pub use settings::{Flags, Origin, SETTINGS_FILE_NAME, Setting, Settings};
