//! `cargo xtask bench`: builds the benches and what they measure, and runs one.

use std::process::Command;

use crate::chore::{Chore, Result, cargo, run as run_command};

/// Builds `wisp` and the benches' own program, optimised and into the same
/// folder, where benches look for `wisp`; passes everything else on.
pub(crate) fn run(chore: &Chore, arguments: &[String]) -> Result<()> {
    run_command(
        cargo()
            .args(["build", "--release", "--package", "wisp", "--package", "wisp-bench"])
            .env("CARGO_TARGET_DIR", &chore.target)
            .current_dir(&chore.root),
    )?;
    run_command(
        Command::new(chore.target.join("release/wisp-bench")).args(arguments).current_dir(&chore.root),
    )
}
