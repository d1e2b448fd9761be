//! What ends a command.

use std::path::PathBuf;

/// What ends a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The manifest or the runtime configuration has errors, shown with their lines.
    #[error("{0}")]
    Diagnostics(Box<wisp_manifest::Diagnostics>),
    /// The app cannot be loaded.
    #[error("{0}")]
    Load(wisp_node::Errors),
    /// The node cannot start.
    #[error(transparent)]
    Node(#[from] wisp_node::Error),
    /// An image cannot be made, pushed, pulled or unpacked.
    #[error(transparent)]
    Image(#[from] wisp_image::Error),
    /// The server cannot start.
    #[error(transparent)]
    Serve(#[from] wisp_trigger::Error),
    /// Messages cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] wisp_telemetry::Error),
    /// A flag's value is wrong.
    #[error("`{flag} {value}` is not understood: {message}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        message: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A flag's value cannot be used.
    #[error(transparent)]
    Capability(#[from] wisp_capability::Error),
    /// A file that a flag names cannot be read.
    #[error("`{path}` cannot be read: {cause}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// The runtime of the command cannot start.
    #[error("the command cannot start: {0}")]
    Start(std::io::Error),
}

impl Error {
    /// 2 if the command was used wrongly, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Flag { .. } => 2,
            _ => 1,
        }
    }

    /// The stable code of this error, unless it is several.
    pub(crate) fn code(&self) -> Option<&'static str> {
        match self {
            Self::Diagnostics(_) | Self::Load(_) => None,
            Self::Node(error) => Some(error.code()),
            Self::Image(error) => Some(error.code()),
            Self::Serve(error) => Some(error.code()),
            Self::Telemetry(error) => Some(error.code()),
            Self::Flag { .. } => Some("WISP-E0501"),
            Self::Capability(error) => Some(error.code()),
            Self::Read { .. } => Some("WISP-E0502"),
            Self::Start(_) => Some("WISP-E0503"),
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Diagnostics(_) | Self::Load(_) => None,
            Self::Node(error) => error.hint(),
            Self::Image(error) => error.hint(),
            Self::Serve(error) => error.hint(),
            Self::Telemetry(error) => error.hint(),
            Self::Flag { hint, .. } => Some((*hint).into()),
            Self::Capability(error) => error.hint(),
            Self::Read { .. } => Some("check the path and its permissions".into()),
            Self::Start(_) => Some("check the limits on descriptors and threads (`ulimit -a`)".into()),
        }
    }
}
