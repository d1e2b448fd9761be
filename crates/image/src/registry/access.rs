//! Who may do what: asked by the registry, answered by whoever runs it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::future::BoxFuture;
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// What a request says about who sends it.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    Anonymous,
    /// A name and a password, which may be a token.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// A token.
    Bearer(String),
}

/// What is to be done with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Reading.
    Pull,
    /// Adding blobs, manifests and tags.
    Push,
    /// Removing them.
    Delete,
}

/// Why something may not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Nobody knows who asks: 401, and the client asks for credentials.
    Unknown,
    /// They may not know whether the repository exists: 404, as if it did not.
    Hidden,
    /// They may know it, but not do this: 403.
    Forbidden,
}

/// Decides who may do what.
pub trait Access: Send + Sync + 'static {
    /// Whether these credentials are somebody's.
    ///
    /// The answer is [`Denial::Unknown`] or nothing.
    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> BoxFuture<'a, Result<(), Denial>>;

    /// Whether who has these credentials may do something with a repository. Its name
    /// keeps the grammar of names; it may not exist.
    fn authorize<'a>(
        &'a self,
        credentials: &'a Credentials,
        repository: &'a str,
        action: Action,
    ) -> BoxFuture<'a, Result<(), Denial>>;
}

impl Credentials {
    /// Reads the header `Authorization`. What is malformed counts as nothing.
    pub fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
            return Self::Anonymous;
        };
        let Some((scheme, rest)) = value.split_once(' ') else { return Self::Anonymous };
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() {
            return Self::Bearer(rest.to_owned());
        }
        if scheme.eq_ignore_ascii_case("basic")
            && let Ok(decoded) = BASE64_STANDARD.decode(rest)
            && let Ok(text) = String::from_utf8(decoded)
            && let Some((username, password)) = text.split_once(':')
        {
            return Self::Basic { username: username.to_owned(), password: password.to_owned() };
        }
        Self::Anonymous
    }
}

/// Says what it is, and nothing that must be kept secret.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Basic { .. } => "a name and a password",
            Self::Bearer(_) => "a token",
        })
    }
}
