//! `cargo xtask fuzz`: the parsers, fed with generated input.

use clap::Args;

use crate::chore::{Chore, Failure, Result};

#[derive(Args)]
pub(crate) struct Options {
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this target
    target: Option<String>,
}

impl Options {
    pub(crate) fn bounded(seconds: u64) -> Self {
        Self { seconds, target: None }
    }
}

/// `cargo xtask fuzz`.
pub(crate) fn run(chore: &mut Chore, options: &Options) -> Result<()> {
    let folder = chore.root.join("fuzz");
    let Some(target) = &options.target else {
        return Err(Failure::new(format!(
            "`{}`: no targets to run for {} s",
            folder.display(),
            options.seconds
        )));
    };
    Err(Failure::new(format!("`{}`: no target `{target}`", folder.display())))
}
