//! `wisp doctor`: what keeps an app from being built and served.

use std::{
    io::{IsTerminal as _, stderr, stdin},
    path::PathBuf,
};

use clap::Args;
use dialoguer::Confirm;
use wisp_develop::{
    Error as DevelopError,
    doctor::{self, Problem},
};

use super::common::Format;
use crate::{error::Error, output};

/// Find out what keeps an app from being built and served.
///
/// Looks at the manifest, the programs that build commands call, Rust's targets, the
/// files that components are loaded from, the folder of stores, and the usual port.
#[derive(Args)]
pub(crate) struct Doctor {
    /// The app: a `spin.toml`, or a folder with one.
    #[arg(short = 'f', long, value_name = "PATH", default_value = ".", alias = "file")]
    from: PathBuf,

    /// Mend what can be mended, without asking.
    #[arg(long)]
    fix: bool,

    /// How findings are printed.
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    format: Format,
}

impl Doctor {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let findings = doctor::examine(&self.from)?;
        if self.format == Format::Json {
            let report = serde_json::json!({ "fine": findings.fine, "problems": findings.problems });
            output::data(&format!("{report}\n"));
        } else {
            let fine = findings.fine.iter().map(|line| format!("ok       {line}\n"));
            let problems = findings.problems.iter().map(shown);
            output::data(&fine.chain(problems).collect::<String>());
        }
        let mut left_count = 0;
        for problem in &findings.problems {
            let is_mended = self.mend(problem)?;
            left_count += usize::from(problem.is_serious && !is_mended);
        }
        if left_count > 0 {
            return Err(DevelopError::Unhealthy { count: left_count }.into());
        }
        Ok(())
    }

    fn mend(&self, problem: &Problem) -> Result<bool, Error> {
        let Some(fix) = &problem.fix else { return Ok(false) };
        let may_ask = self.format == Format::Plain && stdin().is_terminal() && stderr().is_terminal();
        let wanted = self.fix
            || may_ask
                && Confirm::new()
                    .with_prompt(format!("Mend this: {}?", fix.title()))
                    .default(false)
                    .interact()
                    .unwrap_or(false);
        if !wanted {
            return Ok(false);
        }
        fix.apply()?;
        output::note(&format!("Mended: {}", fix.title()));
        Ok(true)
    }
}

fn shown(problem: &Problem) -> String {
    let word = if problem.is_serious { "problem " } else { "note    " };
    let what = problem.what.replace('\n', "\n         ");
    let fix = match &problem.fix {
        Some(fix) => format!(" (`wisp doctor --fix` does: {})", fix.title()),
        None => String::new(),
    };
    format!("{word} {what}\n         hint: {}{fix}\n", problem.remedy)
}
