//! `cargo xtask bench`: builds the benches optimised and runs one.

use crate::chore::{Chore, Result, cargo};

/// Passes everything on to the benches' own program, and its stdout through.
pub(crate) fn run(chore: &Chore, arguments: &[String]) -> Result<()> {
    crate::chore::run(
        cargo()
            .args(["run", "--quiet", "--release", "--package", "wisp-bench", "--"])
            .args(arguments)
            .current_dir(&chore.root),
    )
}
