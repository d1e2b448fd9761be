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
    /// Code that the manifest names and that is elsewhere cannot be had.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Packages(Vec<wisp_image::Error>),
    /// The server cannot start.
    #[error(transparent)]
    Serve(#[from] wisp_trigger::Error),
    /// The cloud in one process cannot start, or ended.
    #[error(transparent)]
    Server(#[from] wisp_server::Error),
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
    /// A file cannot be written.
    #[error("`{path}` cannot be written: {cause}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// Something on the way to an app that answers.
    #[error(transparent)]
    Develop(#[from] wisp_develop::Error),
    /// Several of these.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<wisp_develop::Error>),
    /// The command was not told something that it needs, or something that it does not know.
    #[error("the command needs {what}")]
    Missing {
        /// What.
        what: String,
        /// How to tell it.
        hint: String,
    },
    /// There is no such command.
    #[error("there is no command `{name}`, and no program `wisp-{name}`")]
    UnknownCommand {
        /// What was asked for.
        name: String,
    },
    /// The runtime of the command cannot start.
    #[error("the command cannot start: {0}")]
    Start(std::io::Error),
    /// A server refused, in its own words.
    #[error("{}", .0.message)]
    Api(Box<wisp_control::model::ErrorBody>),
    /// Nobody said which server.
    #[error("no server is named, and you are signed in to none")]
    NotSignedIn,
    /// Nobody said which team.
    #[error("{}", teams_text(.0))]
    WhichTeam(Vec<String>),
    /// A server does not answer.
    #[error("{server} does not answer: {cause}")]
    Unreachable {
        /// Its address.
        server: String,
        /// Why.
        cause: String,
    },
    /// The file with the sign-ins cannot be used.
    #[error("`{path}` cannot be used: {message}", path = path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A server's answer is not understood.
    #[error("the server's answer is not understood: {0}")]
    Answer(String),
    /// Somebody has to agree, and did not.
    #[error("not confirmed")]
    NotConfirmed,
}

fn teams_text(teams: &[String]) -> String {
    match teams {
        [] => "you belong to no team".to_owned(),
        teams => format!("which team is meant: {}?", teams.join(", ")),
    }
}

impl Error {
    /// 2 if the command was used wrongly, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Flag { .. } | Self::Missing { .. } | Self::UnknownCommand { .. } => 2,
            Self::Develop(error) => error.exit_code(),
            Self::Several(errors) => errors.iter().map(wisp_develop::Error::exit_code).max().unwrap_or(1),
            _ => 1,
        }
    }

    /// The stable code of this error, unless it is several.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Diagnostics(_) | Self::Load(_) | Self::Packages(_) | Self::Several(_) => None,
            Self::Develop(error) => Some(error.code()),
            Self::Missing { .. } => Some("WISP-E0520"),
            Self::UnknownCommand { .. } => Some("WISP-E0521"),
            Self::Node(error) => Some(error.code()),
            Self::Image(error) => Some(error.code()),
            Self::Serve(error) => Some(error.code()),
            Self::Server(error) => Some(error.code()),
            Self::Telemetry(error) => Some(error.code()),
            Self::Flag { .. } => Some("WISP-E0501"),
            Self::Capability(error) => Some(error.code()),
            Self::Read { .. } => Some("WISP-E0502"),
            Self::Start(_) => Some("WISP-E0503"),
            Self::Api(error) => Some(&error.code),
            Self::NotSignedIn => Some("WISP-E0510"),
            Self::WhichTeam(_) => Some("WISP-E0511"),
            Self::Unreachable { .. } => Some("WISP-E0512"),
            Self::Credentials { .. } => Some("WISP-E0513"),
            Self::Answer(_) => Some("WISP-E0514"),
            Self::NotConfirmed => Some("WISP-E0515"),
            Self::Write { .. } => Some("WISP-E0516"),
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Diagnostics(_) | Self::Load(_) | Self::Packages(_) | Self::Several(_) => None,
            Self::Develop(error) => error.hint(),
            Self::Missing { hint, .. } => Some(hint.clone()),
            Self::UnknownCommand { .. } => {
                Some("`wisp --help` lists the commands; any `wisp-NAME` on the PATH is one too".into())
            }
            Self::Node(error) => error.hint(),
            Self::Image(error) => error.hint(),
            Self::Serve(error) => error.hint(),
            Self::Server(error) => error.hint(),
            Self::Telemetry(error) => error.hint(),
            Self::Flag { hint, .. } => Some((*hint).into()),
            Self::Capability(error) => error.hint(),
            Self::Read { .. } => Some("check the path and its permissions".into()),
            Self::Start(_) => Some("check the limits on descriptors and threads (`ulimit -a`)".into()),
            Self::Api(error) => error.hint.clone(),
            Self::NotSignedIn => {
                Some("sign in with `wisp login URL`, or name a server with `--server`".into())
            }
            Self::WhichTeam(teams) if teams.is_empty() => {
                Some("make one with `wisp team create NAME`, or ask for an invitation".into())
            }
            Self::WhichTeam(_) => {
                Some("name one with `--team`, or choose one with `wisp team use NAME`".into())
            }
            Self::Unreachable { .. } => Some("check the address, and that the server runs".into()),
            Self::Credentials { .. } => Some("mend or remove it, then sign in again".into()),
            Self::Answer(_) => Some("check that server and command are of one version".into()),
            Self::NotConfirmed => Some("answer `y`, or say `--yes`".into()),
            Self::Write { .. } => {
                Some("check the path and its permissions, and that it is not there yet".into())
            }
        }
    }
}
