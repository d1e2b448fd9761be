//! The chores of the Wisp project: `cargo xtask …`.
//!
//! # What it is for
//! Everything a contributor or a CI machine does beside writing code: making a
//! fresh machine ready, building the guests that tests and benches run inside
//! Wisp, serving the examples, running every check. Each chore says what it
//! does and what it installs while it does it, and how long each step took at
//! its end.
//!
//! # What it is not for
//! It holds no knowledge about Wisp itself: it starts the `wisp` binary as
//! anybody else would. It depends on no other crate of the workspace, so that
//! it compiles in seconds where the engine takes minutes.
//!
//! # The life of a chore
//! A [`Chore`] is made when `main` starts. It knows the folders
//! of the project and collects the [steps](chore::Chore::step), in order, with
//! the time each took, and the checks that had to be skipped. Commands that a
//! step runs are echoed, and show their own output. At the end the chore
//! prints its steps; it has failed if a step has, or if CI asked for everything
//! (`CI=true`) and something was skipped.
//!
//! # Where things go
//! Sources are only read. Everything that is downloaded or built lands in the
//! target folder of cargo:
//!
//! | folder | holds |
//! | --- | --- |
//! | `guests/tools` | toolchains that were fetched: Python environments, Zig, Go |
//! | `guests/build` | a copy of each guest's sources, where its toolchain runs |
//! | `guests/NAME.wasm` | a built guest |
//! | `guests/apps/NAME` | the same guest with its `spin.toml`, ready for `wisp up` |
//! | `examples/NAME` | a built example |

#![forbid(unsafe_code)]

mod app;
mod bench;
mod checks;
mod chore;
mod debian;
mod demo;
mod extension;
mod fuzz;
mod guests;
mod readme;
mod tests;
mod tools;
mod wasm_targets;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::chore::Chore;
use crate::tools::Tool;

/// The chores of the Wisp project
///
/// Everything that is downloaded or built goes into cargo's target folder.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make this machine ready: compilers and packages for the guests and the checks
    Setup {
        /// Only this one; may be repeated
        #[arg(long, value_enum)]
        only: Vec<Tool>,
    },
    /// Build the guests that tests and benches run inside Wisp
    Guests {
        /// The guests to build; all of them unless given
        names: Vec<String>,
        /// List the guests and end
        #[arg(long)]
        list: bool,
    },
    /// Build wisp and the examples and serve them all until Ctrl-C
    Demo(demo::Options),
    /// Run every test: unit, documentation, and the suite that drives the real binary
    Test {
        /// Passed on to `cargo test`, such as a part of a test's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run exactly what CI runs: format, lints, licences, docs, fuzzing, tests, demo, soak
    Ci {
        /// Leave fuzzing, the demo and the soak out, to answer sooner
        #[arg(long)]
        quick: bool,
    },
    /// Feed generated input to the parsers for a bounded time
    Fuzz(fuzz::Options),
    /// Pack the extension for Visual Studio Code
    Extension,
    /// Run a bench in release mode
    Bench {
        /// Passed on: the bench's name and its options, such as `http --format json`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut chore = match Chore::new() {
        Ok(chore) => chore,
        Err(failure) => {
            failure.report();
            return ExitCode::FAILURE;
        }
    };
    let result = match arguments.command {
        Command::Setup { only } => tools::setup(&mut chore, &only),
        Command::Guests { list: true, .. } => {
            guests::list();
            return ExitCode::SUCCESS;
        }
        Command::Guests { names, list: false } => guests::build(&mut chore, &names).map(drop),
        Command::Demo(options) => demo::run(&mut chore, &options),
        Command::Test { arguments } => tests::run(&mut chore, &arguments),
        Command::Ci { quick } => checks::ci(&mut chore, quick),
        Command::Fuzz(options) => fuzz::run(&mut chore, &options),
        Command::Extension => extension::run(&chore),
        Command::Bench { arguments } => bench::run(&chore, &arguments),
    };
    chore.finish(result)
}
