//! The control plane through its API, with a machine in memory that really stores things.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "tests"
)]

mod deploys;
mod documents;
mod garbage;
mod golden;
mod hostile;
mod machine;
mod people;
mod resources;
mod routes;
mod world;
