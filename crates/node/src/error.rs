//! Why an app cannot be loaded.

use std::{fmt, path::PathBuf, sync::Arc};

/// Why an app cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A component's code cannot be loaded.
    #[error("component `{component}`: {cause}")]
    Component {
        /// The component's id.
        component: String,
        /// What the engine said.
        cause: Arc<wisp_engine::Error>,
    },
    /// Something that a component was granted cannot be provided.
    #[error(transparent)]
    Capability(#[from] wisp_capability::Error),
    /// A component cannot be linked or called.
    #[error(transparent)]
    Trigger(#[from] wisp_trigger::Error),
    /// The engine does not start.
    #[error(transparent)]
    Engine(#[from] wisp_engine::Error),
    /// The app has no trigger that this node runs.
    #[error("the app has no HTTP trigger")]
    NoTrigger,
    /// A component was named that the app does not have or no trigger starts.
    #[error("no HTTP trigger starts a component `{component}`")]
    UnknownComponent {
        /// What was asked for.
        component: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The component's code lies where a node does not fetch it from.
    #[error("component `{component}` has its code in {place}, from where a node fetches nothing")]
    UnsupportedSource {
        /// The component's id.
        component: String,
        /// Where it lies.
        place: &'static str,
    },
    /// A component cannot be composed of what its manifest names.
    #[error("{place}{cause}")]
    Composition {
        /// Where the manifest says it, `spin.toml:12: `; empty if that is not known.
        place: String,
        /// What is wrong.
        cause: Box<wisp_compose::Error>,
    },
    /// A network destination is wrong once its variables are filled in.
    #[error("component `{component}`: {message}")]
    AllowedHosts {
        /// The component's id.
        component: String,
        /// The entry, and what is wrong with it.
        message: String,
    },
    /// A folder for files cannot be made.
    #[error("no folder for the files of components can be made: {cause}")]
    FilesFolder {
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A host's name that no request can have.
    #[error("`{name}` is no name for a host: {reason}")]
    HostName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The manifest has errors.
    #[error("{message}")]
    Manifest {
        /// The code of the first one.
        code: &'static str,
        /// All of them, with their lines.
        message: String,
    },
    /// An app's folder or manifest is not there.
    #[error("`{path}` cannot be read: {cause}", path = path.display())]
    Folder {
        /// The app's host.
        host: String,
        /// What cannot be read.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// The folder of apps cannot be read or watched.
    #[error("the folder of apps `{path}` cannot be used: {cause}", path = path.display())]
    AppsDirectory {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// The operating system refused a thread.
    #[error("the node cannot start: {cause}")]
    Start {
        /// What it said.
        cause: std::io::Error,
    },
    /// No app is served at a host.
    #[error("no app is served at `{host}`")]
    NoApp {
        /// The host.
        host: String,
    },
    /// There is no version to go back to.
    #[error("`{host}` has no version before this one that is still mapped")]
    NoPrevious {
        /// The app's host.
        host: String,
    },
    /// An app is needed that cannot be loaded.
    #[error("`{host}` cannot be loaded: {message}")]
    NotLoaded {
        /// The app's host.
        host: String,
        /// Why.
        message: String,
    },
    /// A release cannot be had from the control plane.
    #[error("release {release} cannot be loaded: {message}")]
    Release {
        /// Which one.
        release: String,
        /// Why.
        message: String,
    },
    /// A newer change of the same app came first.
    #[error("release {release} was overtaken by a newer change of the app")]
    Overtaken {
        /// Which one.
        release: String,
    },
    /// An app does not answer a probe as it should.
    #[error("`{host}` was asked for `{path}`: {reason}")]
    Probe {
        /// The app's host.
        host: String,
        /// What it was asked for.
        path: String,
        /// What came of it.
        reason: String,
    },
    /// The requests of an app fail.
    #[error("the last {count} requests to `{host}` failed")]
    Failing {
        /// The app's host.
        host: String,
        /// How many in a row.
        count: u32,
    },
}

impl Error {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Component { cause, .. } => cause.code(),
            Self::Capability(error) => error.code(),
            Self::Trigger(error) => error.code(),
            Self::Engine(error) => error.code(),
            Self::NoTrigger => "WISP-E0701",
            Self::UnknownComponent { .. } => "WISP-E0702",
            Self::UnsupportedSource { .. } => "WISP-E0703",
            Self::Composition { cause, .. } => cause.code(),
            Self::FilesFolder { .. } => "WISP-E0705",
            Self::AllowedHosts { .. } => "WISP-E0707",
            Self::HostName { .. } => "WISP-E0708",
            Self::NoApp { .. } => "WISP-E0709",
            Self::NotLoaded { .. } => "WISP-E0710",
            Self::Folder { .. } => "WISP-E0713",
            Self::AppsDirectory { .. } => "WISP-E0714",
            Self::Start { .. } => "WISP-E0715",
            Self::NoPrevious { .. } => "WISP-E0716",
            Self::Probe { .. } => "WISP-E0717",
            Self::Failing { .. } => "WISP-E0718",
            Self::Release { .. } => "WISP-E0720",
            Self::Overtaken { .. } => "WISP-E0721",
            Self::Manifest { code, .. } => code,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Component { cause, .. } => cause.hint(),
            Self::Capability(error) => error.hint(),
            Self::Trigger(error) => error.hint(),
            Self::Engine(error) => error.hint(),
            Self::NoTrigger => Some(
                "add a `[[trigger.http]]` table with `route` and `component`; \
                 other triggers come with a later version"
                    .into(),
            ),
            Self::UnknownComponent { known, .. } => Some(format!("known components: {}", known.join(", "))),
            Self::UnsupportedSource { .. } => Some(
                "serve the app from its image: `wisp registry push` and `wisp deploy` pack what it needs"
                    .into(),
            ),
            Self::Composition { cause, .. } => cause.hint(),
            Self::AllowedHosts { .. } => Some(
                "entries of `allowed_outbound_hosts` read `scheme://host:port` after variables are filled in"
                    .into(),
            ),
            Self::FilesFolder { .. } => Some("name a folder that can be written with `--temp`".into()),
            Self::HostName { .. } => {
                Some("name the app's folder like its host: lower case, without a port".into())
            }
            Self::Folder { .. } => Some(
                "an app is a folder with a `spin.toml`; put it together elsewhere, then move it into place"
                    .into(),
            ),
            Self::AppsDirectory { .. } => Some(
                "name a folder that can be read with `--apps`; many watches need a higher \
                      `fs.inotify.max_user_watches`"
                    .into(),
            ),
            Self::Start { .. } => {
                Some("check the limits on threads and descriptors (`ulimit -u`, `ulimit -n`)".into())
            }
            Self::NoPrevious { .. } => {
                Some("only the last version is kept, and only while there is room; put the wanted one".into())
            }
            Self::Failing { .. } | Self::Probe { .. } => {
                Some("the log files of its components may say why".into())
            }
            Self::Release { .. } => Some("deploy the app again, or go back to another release".into()),
            Self::Overtaken { .. } | Self::Manifest { .. } | Self::NoApp { .. } | Self::NotLoaded { .. } => {
                None
            }
        }
    }
}

/// Everything that is wrong with an app.
#[derive(Debug)]
pub struct Errors(pub Vec<Error>);

impl<E: Into<Error>> From<E> for Errors {
    fn from(error: E) -> Self {
        Self(vec![error.into()])
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            if number > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{error}")?;
        }
        Ok(())
    }
}
