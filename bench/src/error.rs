//! What can go wrong in a bench.

use std::path::{Path, PathBuf};

/// What can go wrong in a bench.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The operating system refused something.
    #[error("{doing}: {cause}")]
    Io {
        /// What was being done, as in "cannot read `x`".
        doing: String,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A file that a bench needs is not there.
    #[error("`{}` does not exist", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What makes it.
        hint: String,
    },
    /// A program that was run to its end failed.
    #[error("`{command}` failed ({status})")]
    Command {
        /// Program and arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// A server ended, or did not say in time where it listens.
    #[error("{name} does not serve: {cause}; its last words:\n{output}")]
    Server {
        /// The server as the tables name it.
        name: String,
        /// What happened instead.
        cause: String,
        /// The end of its standard output and error.
        output: String,
    },
    /// A server was up but did not answer as it should.
    #[error("{name} answers wrongly: {cause}")]
    Answer {
        /// The server as the tables name it.
        name: String,
        /// The first thing that was wrong.
        cause: String,
    },
    /// A figure of the kernel could not be understood.
    #[error("cannot understand `{what}`")]
    Kernel {
        /// Which file or field.
        what: String,
    },
    /// The root manifest, or what `--only` names, is not as expected.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// An error of the operating system while `doing` something.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |cause| Self::Io { doing, cause }
    }

    /// That reading `path` failed.
    pub(crate) fn reading(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        Self::io(format!("cannot read `{}`", path.display()))
    }

    /// That writing `path` failed.
    pub(crate) fn writing(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        Self::io(format!("cannot write `{}`", path.display()))
    }

    /// What to do about it, where that is known.
    pub(crate) fn hint(&self) -> Option<&str> {
        match self {
            Self::Missing { hint, .. } => Some(hint),
            Self::Io { .. }
            | Self::Command { .. }
            | Self::Server { .. }
            | Self::Answer { .. }
            | Self::Kernel { .. }
            | Self::Usage(_) => None,
        }
    }
}
