//! Measurements of Wisp beside its peers.
//!
//! One sub-command is one bench. Each starts the servers it compares as
//! processes of their own, drives them from this process, and prints a table or,
//! with `--format json`, one object `{"bench": NAME, "figures": {…}}`. A figure
//! that depends on the speed of the machine is a ratio of two measurements of
//! the same run, because the machines this runs on are shared and noisy.
//!
//! Not for: micro-measurements of a single function, and not for deciding
//! whether Wisp is correct; yet a server that answers wrongly has no figure, so
//! every response is checked.
//!
//! Life of a measurement ([`http`]): a [`server::Server`] is started and says
//! where it listens; [`load`] warms it up, then counts and times responses while
//! [`cpu`] reads what the server's process used; the server is ended when it is
//! dropped; [`report`] turns the rows of all rounds into a table and figures.
//!
//! What later benches share lives in modules of its own: [`load`], [`server`],
//! [`cpu`], [`histogram`], [`peer`] (programs of others), [`guest`], [`report`].
#![forbid(unsafe_code)]

mod cpu;
mod error;
mod guest;
mod histogram;
mod http;
mod load;
mod native;
mod peer;
mod report;
mod response;
mod server;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Wisp beside its peers
#[derive(Parser)]
#[command(name = "wisp-bench", version, about)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Server CPU per request and requests per second of hello-world handlers
    Http(http::Options),
    /// Serve a fixed response with hyper: the limit that others are compared with
    #[command(hide = true)]
    Native(native::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().bench {
        Bench::Http(options) => http::run(&options),
        Bench::Native(options) => native::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::progress(&format!("error: {error}"));
            if let Some(hint) = error.hint() {
                report::progress(&format!("hint: {hint}"));
            }
            ExitCode::FAILURE
        }
    }
}
