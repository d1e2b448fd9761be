//! What shells and readers of manuals need: completions, man pages; and commands that
//! are programs of their own.

use std::{ffi::OsString, fs, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use wisp_develop::Error as DevelopError;

use crate::{Arguments, error::Error, output};

/// Print completions for a shell.
///
/// For bash: `wisp completions bash > ~/.local/share/bash-completion/completions/wisp`.
#[derive(Args)]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

/// Print the manual, or write a page for each command.
///
/// `wisp man | man -l -` shows it.
#[derive(Args)]
pub(crate) struct Man {
    /// Write pages for all commands into this folder.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Completions {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "wisp", &mut script);
        output::data(&String::from_utf8_lossy(&script));
        Ok(())
    }
}

impl Man {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let Some(folder) = &self.dir else {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page).map_err(Error::Start)?;
            output::data(&String::from_utf8_lossy(&page));
            return Ok(());
        };
        let failed = |cause| DevelopError::File { action: "write", path: folder.clone(), cause };
        fs::create_dir_all(folder).map_err(failed)?;
        clap_mangen::generate_to(Arguments::command(), folder).map_err(failed)?;
        output::note(&format!("Wrote man pages to {}", folder.display()));
        Ok(())
    }
}

/// Runs `wisp-NAME` in the place of this process.
pub(crate) fn run_external(arguments: &[OsString]) -> Error {
    let Some((name, arguments)) = arguments.split_first() else {
        return Error::UnknownCommand { name: String::new() };
    };
    let mut program = OsString::from("wisp-");
    program.push(name);
    // `exec` only returns if it failed.
    let cause = Command::new(&program).args(arguments).exec();
    let name = name.to_string_lossy().into_owned();
    match cause.kind() {
        std::io::ErrorKind::NotFound => Error::UnknownCommand { name },
        _ => DevelopError::Program { program: program.to_string_lossy().into_owned(), cause }.into(),
    }
}
