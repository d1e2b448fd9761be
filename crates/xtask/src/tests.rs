//! `cargo xtask test`: every test there is, and one line that sums them up.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::chore::{Chore, Failure, Result, at, cargo, run_watching};
use crate::guests;
use crate::tools;

/// The folder of built guests, for the suite.
const GUESTS_VARIABLE: &str = "WISP_GUESTS_DIR";

/// A file to which a test that cannot run here appends a line `NAME: REASON`.
/// The test harness hides what a passing test prints, so it cannot just say so.
const SKIPPED_VARIABLE: &str = "WISP_SKIPPED_FILE";

/// What the test harness counted. What it ignored is gathered by name instead.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

/// `cargo xtask test`.
pub(crate) fn run(chore: &mut Chore, arguments: &[String]) -> Result<()> {
    for (name, failure) in guests::try_build(chore, &[])? {
        chore.skip(format!("tests with the guest {name}"), failure.message());
    }
    // A test whose server is not there says so itself.
    let servers = |chore: &mut Chore| {
        tools::servers().and_then(|()| tools::collector(chore)).and_then(|()| tools::taplo(chore))
    };
    if let Err(failure) = chore.step("servers for tests", servers) {
        failure.report();
    }
    let skipped = chore.target.join("skipped-tests.txt");
    fs::write(&skipped, "").map_err(at(&skipped))?;
    let mut counts = Counts::default();
    let mut ignored = Vec::new();
    let succeeded = chore.step("cargo test", |chore| {
        run_watching(
            cargo()
                .args(["test", "--workspace", "--no-fail-fast"])
                .args(arguments)
                .current_dir(&chore.root)
                .env(GUESTS_VARIABLE, chore.guests())
                .env(SKIPPED_VARIABLE, &skipped),
            |line| {
                counts.add(line);
                ignored.extend(ignored_test(line));
            },
        )
    })?;
    let said = skips(&skipped)?;
    // A test that says it cannot run returns, and so counts as passed. It may give
    // several reasons, but was one test.
    let names: BTreeSet<_> = said.iter().map(|(name, _)| name).collect();
    let passed = counts.passed.saturating_sub(names.len() as u64);
    for (name, why) in said.into_iter().chain(ignored) {
        chore.skip(name, why);
    }
    chore.summarise(format!("{passed} passed, {} failed, {} skipped", counts.failed, chore.skipped_count()));
    if succeeded && counts.failed == 0 {
        Ok(())
    } else if counts.failed > 0 {
        Err(Failure::new(format!("{} tests failed", counts.failed)))
    } else {
        Err(Failure::new("the tests could not be built or run"))
    }
}

impl Counts {
    /// Adds what a line like `test result: ok. 3 passed; 0 failed; 1 ignored;
    /// …` counts; other lines count nothing.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let counts = result.split_once(". ").map_or(result, |(_, counts)| counts);
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                _ => {}
            }
        }
    }
}

/// The name and the reason in `test NAME ... ignored, REASON`.
fn ignored_test(line: &str) -> Option<(String, String)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    let why = outcome.strip_prefix(", ").unwrap_or("it is ignored");
    // An example that is only shown is no test that could have run, nor is what
    // only uses the harness: a measurement, the child process of a test.
    if (outcome.is_empty() && name.contains(" - ")) || why.starts_with("not a test: ") {
        return None;
    }
    Some((name.to_owned(), why.to_owned()))
}

/// The tests that said they could not run, each with its reason, once.
fn skips(path: &Path) -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(path).map_err(at(path))?;
    let mut skips: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, why)| (name.to_owned(), why.to_owned()))
        .collect();
    skips.sort();
    skips.dedup();
    Ok(skips)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn the_harness_is_understood() {
        let mut counts = Counts::default();
        counts.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s",
        );
        counts.add(
            "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        counts.add("running 3 tests");
        assert_eq!(counts, Counts { passed: 5, failed: 4 });
    }

    #[test]
    fn an_ignored_test_is_a_skip_and_an_ignored_example_is_none() {
        assert_eq!(
            ignored_test("test files::large ... ignored, needs 4 GB"),
            Some(("files::large".to_owned(), "needs 4 GB".to_owned()))
        );
        assert_eq!(ignored_test("test crates/a/src/lib.rs - Thing (line 3) ... ignored"), None);
        assert_eq!(ignored_test("test files::small ... ok"), None);
    }
}
