//! `cargo xtask fuzz`: the parsers, fed with generated input.
//!
//! The targets and what each is fed are described in `fuzz/README.md`; this
//! runs them as it says, with everything they write kept in the target folder.

use std::fs;
use std::path::Path;

use clap::Args;
use serde::Deserialize;

use crate::chore::{Chore, Failure, Result, at, cargo, run_quietly};
use crate::tools;

/// Longer input than this finds nothing in a parser that shorter input does
/// not, and takes longer.
const INPUT_MAX_BYTES: u32 = 4096;

/// A parser that needs this long for such a short input hangs.
const INPUT_TIMEOUT_SECONDS: u32 = 10;

/// A parser that needs this much for such a short input leaks.
const MEMORY_MAX_MEGABYTES: u32 = 1024;

#[derive(Args)]
pub(crate) struct Options {
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only these targets
    targets: Vec<String>,
}

/// The part of `fuzz/Cargo.toml` that names the targets.
#[derive(Deserialize)]
struct Package {
    bin: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl Options {
    pub(crate) fn bounded(seconds: u64) -> Self {
        Self { seconds, targets: Vec::new() }
    }
}

/// `cargo xtask fuzz`. Every target runs, even after one has found something.
pub(crate) fn run(chore: &mut Chore, options: &Options) -> Result<()> {
    let folder = chore.root.join("fuzz");
    let targets = targets(&folder, &options.targets)?;
    let work = chore.target.join("fuzz");
    chore.step("fuzz targets", |_| {
        tools::basics()?;
        // From its own folder, where cargo finds the flags for instrumentation.
        run_quietly(
            cargo()
                .args(["build", "--release", "--locked"])
                .current_dir(&folder)
                .env("CARGO_TARGET_DIR", &work),
        )
    })?;
    let mut found = Vec::new();
    for target in targets {
        let result = chore.step(format!("fuzz {target} for {} s", options.seconds), |_| {
            fuzz(&folder, &work, &target, options.seconds)
        });
        if let Err(failure) = result {
            failure.report();
            found.push(target);
        }
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("fuzzing found faults in: {}", found.join(", "))))
    }
}

fn targets(folder: &Path, wanted: &[String]) -> Result<Vec<String>> {
    let path = folder.join("Cargo.toml");
    let text = fs::read_to_string(&path).map_err(at(&path))?;
    let package: Package =
        toml::from_str(&text).map_err(|error| Failure::new(format!("`{}`: {error}", path.display())))?;
    let names: Vec<_> = package.bin.into_iter().map(|target| target.name).collect();
    if let Some(unknown) = wanted.iter().find(|target| !names.contains(target)) {
        return Err(Failure::new(format!("there is no fuzz target `{unknown}`"))
            .hint(format!("the targets are {}", names.join(", "))));
    }
    Ok(names.into_iter().filter(|name| wanted.is_empty() || wanted.contains(name)).collect())
}

fn fuzz(folder: &Path, work: &Path, target: &str, seconds: u64) -> Result<()> {
    let corpus = work.join("corpus").join(target);
    let artifacts = work.join("artifacts").join(target);
    for needed in [&corpus, &artifacts] {
        fs::create_dir_all(needed).map_err(at(needed))?;
    }
    let mut command = cargo();
    command
        .args(["run", "--quiet", "--release", "--locked", "--bin", target, "--"])
        .arg(&corpus)
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", work);
    let seeds = folder.join("seeds").join(target);
    if seeds.is_dir() {
        command.arg(&seeds);
    }
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_MAX_BYTES}"))
        .arg(format!("-timeout={INPUT_TIMEOUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MAX_MEGABYTES}"))
        // The slash makes it a folder; without it, it would be a prefix.
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    run_quietly(&mut command).map_err(|failure| {
        failure.hint(format!(
            "the input is in `{}`; fuzz/README.md says what to do with it",
            artifacts.display()
        ))
    })
}
