//! Why an app cannot be loaded.

use std::{fmt, sync::Arc};

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
    /// The component's code lies where this version does not fetch it from.
    #[error("component `{component}` has its code in {place}, which this version does not fetch")]
    UnsupportedSource {
        /// The component's id.
        component: String,
        /// Where it lies.
        place: &'static str,
    },
    /// The component must be composed, which this version does not do.
    #[error("component `{component}` has {what}, which this version does not compose")]
    UnsupportedComposition {
        /// The component's id.
        component: String,
        /// `dependencies` or `middleware`.
        what: &'static str,
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
            Self::UnsupportedComposition { .. } => "WISP-E0704",
            Self::FilesFolder { .. } => "WISP-E0705",
            Self::AllowedHosts { .. } => "WISP-E0707",
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
            Self::UnsupportedSource { .. } => {
                Some("download the component and name the file: `source = \"file.wasm\"`".into())
            }
            Self::UnsupportedComposition { .. } => Some(
                "compose the component when it is built, for example with `wac plug`, \
                 and name the result as `source`"
                    .into(),
            ),
            Self::AllowedHosts { .. } => Some(
                "entries of `allowed_outbound_hosts` read `scheme://host:port` after variables are filled in"
                    .into(),
            ),
            Self::FilesFolder { .. } => Some("name a folder that can be written with `--temp`".into()),
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
