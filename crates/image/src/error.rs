//! What can go wrong with images. `docs/errors.md` lists the codes.

use std::io;
use std::path::PathBuf;

use crate::Digest;

/// What can go wrong with images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The app's manifest, or the locked app of an image, has errors.
    #[error("{0}")]
    App(Box<wisp_manifest::Diagnostics>),
    /// Something that an app needs cannot be put in an image.
    #[error("component `{component}` cannot be packed: {reason}")]
    Unpackable {
        /// Which component.
        component: String,
        /// Why not.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} `{path}`: {cause}", path = path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The manifest of an image is none.
    #[error("this is no manifest of an image: {reason}")]
    Manifest {
        /// What is wrong with it.
        reason: String,
    },
    /// An image that holds no app.
    #[error("the image is no app: {reason}")]
    NotAnApp {
        /// What is missing or too much.
        reason: String,
    },
    /// Content that is not what its digest says.
    #[error("content is damaged: `{expected}` was expected and `{found}` found")]
    Damaged {
        /// What it should hash to.
        expected: Digest,
        /// What it hashes to.
        found: Digest,
    },
    /// Content that an image names and that is not there.
    #[error("there is no blob `{digest}`")]
    NoBlob {
        /// Its digest.
        digest: Digest,
    },
    /// More of something than there may be.
    #[error("{what} is more than the limit of {limit}")]
    TooMuch {
        /// More of what.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
    /// An image wants a file where none may be.
    #[error("the image places a file at `{path}`, which is outside of its folder or already there")]
    Place {
        /// Where.
        path: String,
    },
    /// The store of blobs does not work.
    #[error("the store of blobs does not work: {0}")]
    Store(object_store::Error),
    /// The registry's index does not work.
    #[error("the registry's index does not work: {0}")]
    Index(rusqlite::Error),
    /// A name of an image that is none.
    #[error("`{text}` does not name an image: {reason}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A registry wants to know who asks, or does not let them.
    #[error("`{registry}` does not let you do that: {reason}")]
    Denied {
        /// The registry's host name.
        registry: String,
        /// What it said.
        reason: String,
    },
    /// There is no such image.
    #[error("there is no image `{reference}`")]
    NoImage {
        /// Which one.
        reference: String,
    },
    /// A registry cannot be reached, or answers something else than it should.
    #[error("`{registry}` does not answer as a registry: {reason}")]
    Registry {
        /// The registry's host name.
        registry: String,
        /// What happened.
        reason: String,
        /// Whether it is worth trying plain HTTP.
        is_tls: bool,
    },
    /// Credentials cannot be read or kept.
    #[error("credentials in `{path}` cannot be used: {reason}", path = path.display())]
    Credentials {
        /// Where they are.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Code that the manifest names and that is elsewhere cannot be had.
    #[error("{place}{what}: {cause}")]
    Elsewhere {
        /// Where the manifest names it: `spin.toml:12: `.
        place: String,
        /// What it is to the app.
        what: String,
        /// Why not.
        cause: Box<Error>,
    },
    /// Nothing is to be had at a URL.
    #[error("`{url}` cannot be fetched: {reason}")]
    Download {
        /// The URL.
        url: url::Url,
        /// What happened.
        reason: String,
    },
    /// What was fetched is not what it was said to be.
    #[error("{what} has the digest `{found}`, and `{expected}` is expected")]
    OtherContent {
        /// What was fetched.
        what: String,
        /// What it should hash to.
        expected: Digest,
        /// What it hashes to.
        found: Digest,
        /// Where it stands what it should hash to.
        place: &'static str,
    },
    /// No registry is known to have a package.
    #[error("no registry is known that has the package `{package}`")]
    NoRegistry {
        /// Which package.
        package: String,
    },
    /// A package has no version that will do.
    #[error("`{registry}` has no version of `{package}` that fits `{requirement}`")]
    NoVersion {
        /// Which package.
        package: String,
        /// Which versions would do.
        requirement: String,
        /// The registry.
        registry: String,
        /// The highest that there are.
        found: Vec<String>,
    },
    /// The user's settings for registries of packages cannot be used.
    #[error("the settings for packages in `{path}` cannot be used: {reason}", path = path.display())]
    PackageSettings {
        /// Where they are.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file that says what requirements stand for cannot be used.
    #[error("`{path}` cannot be used: {reason}", path = path.display())]
    LockFile {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An artifact is no package.
    #[error("`{reference}` is no package: {reason}")]
    NotAPackage {
        /// Which one.
        reference: String,
        /// What is missing or too much.
        reason: String,
    },
    /// A task of ours was ended.
    #[error("the work was ended before it was done")]
    Ended,
}

impl Error {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::App(problems) => problems.iter().next().map_or("WISP-E0101", |problem| problem.code()),
            Self::Unpackable { .. } => "WISP-E0801",
            Self::File { .. } => "WISP-E0802",
            Self::Manifest { .. } => "WISP-E0803",
            Self::NotAnApp { .. } => "WISP-E0804",
            Self::Damaged { .. } => "WISP-E0805",
            Self::NoBlob { .. } => "WISP-E0806",
            Self::TooMuch { .. } => "WISP-E0807",
            Self::Place { .. } => "WISP-E0808",
            Self::Store(_) => "WISP-E0809",
            Self::Index(_) => "WISP-E0810",
            Self::Reference { .. } => "WISP-E0811",
            Self::Denied { .. } => "WISP-E0812",
            Self::NoImage { .. } => "WISP-E0813",
            Self::Registry { .. } => "WISP-E0814",
            Self::Credentials { .. } => "WISP-E0815",
            Self::Ended => "WISP-E0816",
            Self::Elsewhere { cause, .. } => cause.code(),
            Self::Download { .. } => "WISP-E0817",
            Self::OtherContent { .. } => "WISP-E0818",
            Self::NoRegistry { .. } => "WISP-E0819",
            Self::PackageSettings { .. } => "WISP-E0820",
            Self::LockFile { .. } => "WISP-E0821",
            Self::NoVersion { .. } => "WISP-E0822",
            Self::NotAPackage { .. } => "WISP-E0823",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unpackable { hint, .. } => hint.clone(),
            Self::NotAnApp { .. } => {
                Some("push one with `wisp registry push`, `spin registry push` or `wkg oci push`".to_owned())
            }
            Self::Damaged { .. } => Some("try again; if it stays, push the image again".to_owned()),
            Self::Reference { .. } => Some("write for example `registry.example/team/app:1.0`".to_owned()),
            Self::Denied { registry, .. } => Some(format!("sign in with `wisp registry login {registry}`")),
            Self::NoImage { .. } => Some("check its name and tag, and whether you may see it".to_owned()),
            Self::Registry { is_tls: true, .. } => {
                Some("check its name; if it has no TLS, use `--insecure`".to_owned())
            }
            Self::Registry { .. } => Some("check its name and whether it runs".to_owned()),
            Self::Credentials { .. } => Some("mend or remove the file, then sign in again".to_owned()),
            Self::Elsewhere { cause, .. } => cause.hint(),
            Self::Download { .. } => Some("check the URL, and whether this machine reaches it".to_owned()),
            Self::OtherContent { place: crate::packages::lock::LOCK_FILE_NAME, .. } => Some(
                "somebody put other content in its place; if you trust it, take it with \
                 `wisp build --update`"
                    .to_owned(),
            ),
            Self::OtherContent { found, .. } => Some(format!(
                "somebody put other content in its place, or the digest is wrong; if you trust it, \
                 write `digest = \"{found}\"`"
            )),
            Self::NoRegistry { package } => Some(format!(
                "name one with `registry = \"HOST\"`, or that of the namespace `{}` in \
                 `wasm-pkg/config.toml`, below `[namespace_registries]`",
                package.split(':').next().unwrap_or(package)
            )),
            Self::NoVersion { found, .. } if found.is_empty() => {
                Some("it has no version at all; check the package's name and the registry".to_owned())
            }
            Self::NoVersion { found, .. } => Some(format!("the highest are {}", found.join(", "))),
            Self::PackageSettings { .. } => Some("mend the file, or remove it".to_owned()),
            Self::LockFile { .. } => {
                Some("mend or remove it; `wisp build --update` makes it anew".to_owned())
            }
            Self::NotAPackage { .. } => Some("publish one with `wkg oci push` or `wkg publish`".to_owned()),
            Self::App(_)
            | Self::File { .. }
            | Self::Manifest { .. }
            | Self::NoBlob { .. }
            | Self::TooMuch { .. }
            | Self::Place { .. }
            | Self::Store(_)
            | Self::Index(_)
            | Self::Ended => None,
        }
    }

    /// With a file: what was to be done, and which one.
    pub(crate) fn file(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |cause| Self::File { action, path, cause }
    }
}

impl From<wisp_manifest::Diagnostics> for Error {
    fn from(problems: wisp_manifest::Diagnostics) -> Self {
        Self::App(Box::new(problems))
    }
}

impl From<rusqlite::Error> for Error {
    fn from(cause: rusqlite::Error) -> Self {
        Self::Index(cause)
    }
}

impl From<tokio::task::JoinError> for Error {
    fn from(_: tokio::task::JoinError) -> Self {
        Self::Ended
    }
}
