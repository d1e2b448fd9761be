//! The `wisp` command.
//!
//! This crate reads arguments, calls the crate that does the work, and prints
//! what came of it: data on standard output, words for people on standard error.
//! It holds no logic of its own. One file per command in `commands/`.
//!
//! Exit codes: 0 done, 1 failed, 2 used wrongly.
#![forbid(unsafe_code)]

mod client;
mod commands;
mod error;
mod output;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

/// A small request allocates hundreds of times; this one takes a twentieth of its time
/// less than the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serverless WebAssembly: run Spin applications on a laptop and in a cloud.
#[derive(Parser)]
#[command(name = "wisp", version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "n")]
    New(commands::new::New),
    #[command(visible_alias = "a")]
    Add(commands::new::Add),
    #[command(alias = "template")]
    Templates(commands::templates::Templates),
    #[command(visible_alias = "b")]
    Build(commands::build::Build),
    /// Serve an app on this machine.
    #[command(visible_alias = "u")]
    Up(Box<commands::up::Up>),
    #[command(visible_alias = "w")]
    Watch(commands::watch::Watch),
    Test(commands::test::Test),
    Doctor(commands::doctor::Doctor),
    Inspect(commands::inspect::Inspect),
    /// Push apps to registries as images, and pull them.
    #[command(visible_alias = "oci")]
    Registry(Box<commands::registry::Registry>),
    /// Serve many apps in one process, each at its host name.
    Serve(Box<commands::serve::Serve>),
    #[command(flatten)]
    Cloud(commands::cloud::Cloud),
    /// Bring an app to serve on a server.
    Deploy(Box<commands::deploy::Deploy>),
    /// Run a cloud: push apps to it, reach each at its own host name.
    Server(Box<commands::server::ServerCommand>),
    /// Write everything that a server keeps to one file, while it runs.
    Backup(commands::backup::Backup),
    /// Make a data directory of a backup.
    Restore(commands::backup::Restore),
    #[command(hide = true)]
    CompileImage(commands::compile_image::CompileImage),
    Completions(commands::shell::Completions),
    Man(commands::shell::Man),
    /// A program `wisp-NAME` of the PATH.
    #[command(external_subcommand)]
    External(Vec<OsString>),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return output::print_usage(&error),
    };
    if let Err(error) = wisp_telemetry::init(wisp_telemetry::Format::Text) {
        output::print_error(&error::Error::Telemetry(error));
        return ExitCode::from(2);
    }
    // For everything in this process that speaks TLS as a client. It fails only if there
    // is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match arguments.command {
        Command::New(new) => new.run(),
        Command::Add(add) => add.run(),
        Command::Templates(templates) => templates.run(),
        Command::Build(build) => build.run(),
        Command::Watch(watch) => watch.run(),
        Command::Test(test) => test.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Inspect(inspect) => inspect.run(),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
        Command::External(arguments) => Err(commands::shell::run_external(&arguments)),
        Command::Up(up) => up.run(),
        Command::Registry(registry) => registry.run(),
        Command::Serve(serve) => serve.run(),
        Command::Cloud(cloud) => cloud.run(),
        Command::Deploy(deploy) => deploy.run(),
        Command::Server(server) => server.run(),
        Command::Backup(backup) => backup.run(),
        Command::Restore(restore) => restore.run(),
        Command::CompileImage(compile) => compile.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
