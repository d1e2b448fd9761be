//! `spin.toml` and `runtime-config.toml`: text in, a checked and typed app out.
//!
//! This crate is for everything that can be known about an app from its text
//! alone, and it says all that is wrong at once. It is not for anything that
//! needs a network, an engine or an operator's permission: whether a file
//! exists, a component exports what its trigger needs, or a store has a
//! backend is found out by those who use what this crate makes.
//!
//! The main object is an [`App`](model::App): components, triggers and
//! variables. Beside it stand the small languages that a manifest is made of,
//! each with its own module since they are used again at run time: routes,
//! allowed hosts and templates.

#![forbid(unsafe_code)]

pub mod allowed_hosts;
mod check;
mod decode;
pub mod diagnostics;
pub mod id;
mod load;
pub mod model;
mod raw;
pub mod route;
pub mod runtime_config;
mod schema;
pub mod template;
mod v1;

pub use check::{MAX_COMPONENTS_COUNT, MAX_TIMEOUT, MAX_TRIGGERS_COUNT};
pub use diagnostics::Diagnostics;
pub use load::{Checked, MANIFEST_FILE_NAME, MAX_TEXT_BYTES, manifest_schema};
pub use model::App;
pub use runtime_config::{RuntimeConfig, runtime_config_schema};
