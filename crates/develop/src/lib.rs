//! The developer's loop: from nothing to an app that answers, and from an edit to the
//! next answer.
//!
//! It is for everything that somebody who writes an app does before it is deployed:
//! begin it ([`template`]), build it ([`build`]), know whether it will run ([`verify`]),
//! see each edit at once ([`watch`]), test it ([`mod@test`]), look into a component
//! ([`inspect`]), and find out what the machine lacks ([`doctor`]).
//!
//! It is not for running apps (`wisp-node`, `wisp-trigger`), or for what people see:
//! the command line prints.
//!
//! # Life of an app in here
//!
//! 1. [`template::Catalog`] has templates; one of them makes a [`template::Project`] in
//!    memory, which is written as a whole or not at all.
//! 2. [`build::build`] runs each component's commands in the order of their
//!    dependencies, and none whose inputs are what they were.
//!    [`optimize`] makes what came of them smaller and quicker to start, if that is wanted.
//! 3. [`verify`] links what came of it, and names the grants that are missing.
//! 4. [`watch::Watcher`] tells which components an edit is about; they are built, and
//!    the app is swapped in the server that runs.
//! 5. [`test::run`] loads the app once per test, with a virtual host around it: a clock
//!    that stands, answers from a script, stores of its own.
#![forbid(unsafe_code)]

pub mod build;
pub mod doctor;
mod error;
pub mod inspect;
pub mod optimize;
pub mod template;
pub mod test;
pub mod verify;
pub mod wasm;
pub mod watch;

pub use error::Error;
pub use indexmap::IndexMap;
