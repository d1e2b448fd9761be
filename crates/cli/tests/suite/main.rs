//! The suite: drives the real `wisp` binary with real guests.
//!
//! One binary, a file per subject. Each test starts a `wisp up` of its own on a
//! free port, with its own folder, and ends it. Guests are programs from
//! `guests/`, built by `cargo xtask guests`; `WISP_GUESTS_DIR` says where they
//! are. A test whose guest was not built says so and is skipped, unless `CI` is
//! `true`: then it fails.
//!
//! Nothing here sleeps to wait for something, and nothing waits without end:
//! the deadlines are in `harness`.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test ends by panicking, and prints for whoever looks into it"
)]

mod accounting;
mod cli;
mod cloud;
mod cloud_commands;
mod compiled_images;
mod composition;
mod debugging;
mod develop;
mod editors;
mod files_and_logs;
mod garbage;
mod golden;
mod guests;
mod harness;
mod isolation;
mod key_value;
mod load;
mod malformed;
mod malicious;
mod observability;
mod optimize;
mod outbound;
mod packages;
mod registry;
mod request_shape;
mod serve;
mod sqlite;
mod streaming;
mod tenants;
mod testing;
mod tiers;
mod variables;
