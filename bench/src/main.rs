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
//! Life of a measurement ([`contest`]): a [`server::Server`] is started and says
//! where it listens; [`load`] warms it up, then counts and times responses while
//! [`cpu`] reads what the server's process used; the server is ended when it is
//! dropped; [`report`] turns the rows of all rounds into a table and figures.
//!
//! What benches share lives in modules of its own: [`contest`] (servers compared
//! in rounds), [`load`] (closed loop), [`pace`] (open loop), [`client`] (one
//! request at a time), [`server`], [`cpu`], [`process`], [`histogram`], [`random`],
//! [`peer`] (programs of others), [`guest`], [`report`], [`plot`].
#![forbid(unsafe_code)]

mod attack;
mod client;
mod cold;
mod contest;
mod cpu;
mod density;
mod deploy;
mod error;
mod fleet;
mod guest;
mod guests;
mod health;
mod histogram;
mod http;
mod load;
mod native;
mod neighbour;
mod optimize;
mod pace;
mod peer;
mod plot;
mod process;
mod random;
mod report;
mod response;
mod serve;
mod server;
mod soak;
mod start;
mod swap;

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
    Http(contest::Options),
    /// Cost of JavaScript and Python hello worlds, with a fresh instance for each request
    Guests(contest::Options),
    /// First response of apps that are registered but not mapped
    Cold(cold::Options),
    /// A hundred thousand apps in one process: memory, start, load over all of them
    Density(density::Options),
    /// A thousand apps of twenty teams deployed to one server, and a restart
    Deploy(deploy::Options),
    /// What it costs to know how a hundred thousand apps are
    Health(health::Options),
    /// What an app notices of one that takes all it can get
    Neighbour(neighbour::Options),
    /// What `wisp build --optimize` makes of JavaScript's and Python's examples
    Optimize(optimize::Options),
    /// From an empty folder to the first answer, for each template
    Start(start::Options),
    /// An app's version replaced a thousand times under load, and rolled back
    Swap(swap::Options),
    /// Mixed traffic while apps come, change and go: does anything grow?
    Soak(soak::Options),
    /// Remove the generated apps that benches keep from run to run
    Clean,
    /// Serve a fixed response with hyper: the limit that others are compared with
    #[command(hide = true)]
    Native(native::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().bench {
        Bench::Http(options) => http::run(&options),
        Bench::Guests(options) => guests::run(&options),
        Bench::Cold(options) => cold::run(&options),
        Bench::Density(options) => density::run(&options),
        Bench::Deploy(options) => deploy::run(&options),
        Bench::Health(options) => health::run(&options),
        Bench::Neighbour(options) => neighbour::run(&options),
        Bench::Optimize(options) => optimize::run(&options),
        Bench::Start(options) => start::run(&options),
        Bench::Swap(options) => swap::run(&options),
        Bench::Soak(options) => soak::run(&options),
        Bench::Clean => fleet::clean(),
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
