//! `cargo xtask ci`: exactly what CI runs, from the quickest to the slowest.

use std::process::Command;

use crate::chore::{Chore, Failure, Result, cargo, output, run, say};
use crate::fuzz;
use crate::{bench, demo, tests, tools};

/// How long each fuzz target runs in CI: enough to find what breaks at once.
const FUZZ_SECONDS: u64 = 10;

/// `cargo xtask ci`. All checks are tried, so that one run shows everything
/// that is wrong.
pub(crate) fn ci(chore: &mut Chore, is_quick: bool) -> Result<()> {
    let mut failed = Vec::new();
    let mut note = |name: &'static str, result: Result<()>| {
        if let Err(failure) = result {
            failure.report();
            failed.push(name);
        }
    };
    note("format", chore.step("format", |chore| run(in_root(chore).args(["fmt", "--all", "--check"]))));
    note("licences and sources", dependencies(chore));
    // Lints and documentation read the same metadata of the dependencies.
    note(
        "lints",
        chore.step("lints", |chore| {
            run(in_root(chore).args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
        }),
    );
    note(
        "documentation",
        chore.step("documentation", |chore| {
            run(in_root(chore)
                .args(["doc", "--workspace", "--no-deps"])
                .env("RUSTDOCFLAGS", "--deny warnings"))
        }),
    );
    if !is_quick {
        note("fuzzing", fuzz::run(chore, &fuzz::Options::bounded(FUZZ_SECONDS)));
    }
    note("tests", tests::run(chore, &[]));
    if !is_quick {
        note("demo", demo::check(chore));
        note("soak", bench::soak(chore));
    }
    if failed.is_empty() {
        say("everything passed");
        Ok(())
    } else {
        Err(Failure::new(format!("these checks failed: {}", failed.join(", "))))
    }
}

fn in_root(chore: &Chore) -> Command {
    let mut command = cargo();
    command.current_dir(&chore.root);
    command
}

/// Licences, sources and duplicates always; known vulnerabilities where their
/// database can be fetched.
fn dependencies(chore: &mut Chore) -> Result<()> {
    let program = chore.step("cargo-deny", |chore| tools::cargo_deny(chore))?;
    let root = chore.root.clone();
    let deny = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).current_dir(&root);
        command
    };
    chore.step("licences and sources", |_| {
        run(&mut deny(&["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
    })?;
    chore.step("known vulnerabilities", |_| {
        if let Err(failure) = output(&mut deny(&["fetch", "db"])) {
            let why = failure.message().lines().last().unwrap_or_default().to_owned();
            say(&format!("SKIPPED known vulnerabilities: their database cannot be fetched: {why}"));
            return Ok(());
        }
        run(&mut deny(&["check", "--disable-fetch", "advisories"]))
    })
}
