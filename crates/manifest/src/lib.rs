//! `spin.toml` and `runtime-config.toml`: text in, a checked and typed app out.
//!
//! This crate is for everything that can be known about an app from its text
//! alone, and it says all that is wrong at once, each with its line, a caret
//! and a hint. It is not for anything that needs a network, an engine or an
//! operator's permission: whether a file exists, a component exports what its
//! trigger needs, or a label has a backend is found out by those who use what
//! this crate makes.
//!
//! # The life of an app
//!
//! 1. The text is parsed as TOML (`load`). If it is not TOML, that is all
//!    there is to say.
//! 2. Its tables become structs (`raw` for version 2, `v1` for version 1). The
//!    structs are declared once, and the declaration is at the same time the
//!    type, the decoder that goes on after a fault (`decode`), and the JSON
//!    schema ([`manifest_schema`]). Version 1 is then said again in the words
//!    of version 2, with its own places in the text.
//! 3. Names, references and grammars are checked, profiles applied and
//!    defaults filled in (`check`). What comes out is an [`App`], in which
//!    every id leads somewhere and every template and route has been parsed.
//! 4. The command line reports the [`Diagnostics`], the triggers build a
//!    [`RouteTable`](route::RouteTable) of the routes, and the capabilities
//!    fill in the templates: component variables, Redis channels, and
//!    [`AllowedHosts`](allowed_hosts::AllowedHosts).
//! 5. Only [`App::components_for`] the trigger types that run are loaded.
//!
//! An app that was packed comes as JSON instead ([`locked`]), and is said again in the
//! words of a manifest before step 1, so that all the rest is the same.
//!
//! An `App` never changes. Another text, profile or version is another `App`.
//!
//! # Languages
//!
//! A manifest is made of small languages that are used again at run time, for
//! each request. Each has its own module, with its grammar at the top:
//! [`route`], [`allowed_hosts`], [`template`], and the names in [`id`].
//!
//! # Limits
//!
//! A text has at most [`MAX_TEXT_BYTES`], which bounds all that is in it; what
//! a request has to walk through has narrower limits of its own. No text makes
//! this crate panic: `fuzz/` looks for one that does.

#![forbid(unsafe_code)]

pub mod allowed_hosts;
mod check;
mod decode;
pub mod diagnostics;
pub mod files;
pub mod id;
mod load;
pub mod locate;
pub mod locked;
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
pub use locked::{LOCKED_FILE_NAME, LockedApp};
pub use model::App;
pub use runtime_config::{RuntimeConfig, runtime_config_schema};
pub use schema::schema_of;
