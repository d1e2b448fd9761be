//! What goes wrong between the internet and a node.

use std::{io, path::PathBuf, time::Duration};

use crate::HostName;

/// What goes wrong between the internet and a node.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of ours cannot be read or written.
    #[error("`{path}` cannot be {what}: {cause}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// What the operating system said.
        cause: String,
    },
    /// A certificate or key is not what it should be.
    #[error("the certificate for {whose} cannot be used: {message}")]
    Certificate {
        /// A host, or a file.
        whose: String,
        /// What is wrong with it.
        message: String,
    },
    /// A name that no host can have.
    #[error("`{name}` is no name of a host: {reason}")]
    HostName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The store of certificates failed.
    #[error("the store of certificates cannot be used: {message}")]
    Store {
        /// What it said.
        message: String,
    },
    /// The authority will not issue a certificate.
    #[error("no certificate for `{host}`: {message}")]
    Refused {
        /// For this host.
        host: HostName,
        /// What the authority said.
        message: String,
    },
    /// The authority does not answer, or not as it should.
    #[error("the certificate authority cannot be used: {message}")]
    Authority {
        /// What went wrong.
        message: String,
    },
    /// Nobody here has this host.
    #[error("`{host}` is no host of ours")]
    NotOurs {
        /// The host.
        host: HostName,
    },
    /// A bound on what we ask of the authority was reached.
    #[error("no certificate for `{host}` is asked for in the next {wait:?}: {reason}")]
    Paused {
        /// The host.
        host: HostName,
        /// How long.
        wait: Duration,
        /// Which bound it is.
        reason: &'static str,
    },
    /// Too many hosts wait for a certificate.
    #[error("too many hosts wait for a certificate")]
    Crowded,
    /// No certificates are obtained any more, or never were.
    #[error("certificates are not obtained: {reason}")]
    Off {
        /// Why.
        reason: &'static str,
    },
    /// Sockets could not be handed over.
    #[error("the sockets cannot be handed over: {message}")]
    Handover {
        /// What went wrong.
        message: String,
    },
    /// The process at the other end belongs to somebody else.
    #[error("the process at the other end of `{path}` belongs to user {uid}", path = path.display())]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// More hosts, apps or teams than limits are kept for.
    #[error("more than {max_count} {what} cannot have limits")]
    TooMany {
        /// `hosts`.
        what: &'static str,
        /// The bound.
        max_count: usize,
    },
}

impl Error {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::File { .. } => "WISP-E1001",
            Self::Certificate { .. } => "WISP-E1002",
            Self::HostName { .. } => "WISP-E1003",
            Self::Store { .. } => "WISP-E1004",
            Self::Refused { .. } => "WISP-E1005",
            Self::Authority { .. } => "WISP-E1006",
            Self::NotOurs { .. } => "WISP-E1007",
            Self::Paused { .. } => "WISP-E1008",
            Self::Crowded => "WISP-E1009",
            Self::Off { .. } => "WISP-E1010",
            Self::Handover { .. } => "WISP-E1011",
            Self::Stranger { .. } => "WISP-E1012",
            Self::TooMany { .. } => "WISP-E1013",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::File { .. } => "the data directory must belong to the user who runs Wisp".into(),
            Self::Certificate { .. } => "certificates and keys are PEM: the chain with the host's own \
                first, and the private key that belongs to it"
                .into(),
            Self::HostName { .. } => "write it as in a URL, such as `shop.example`".into(),
            Self::Refused { host, .. } => format!(
                "`{host}` must lead to this machine, on port 80 or 443, from where the authority is; \
                 it is asked again after a while"
            ),
            Self::Authority { .. } => {
                "check its directory URL and the way there; it is asked again after a while".into()
            }
            Self::NotOurs { host } => format!("add the domain to an app, and let `{host}` lead here"),
            Self::Paused { .. } | Self::Crowded => "wait; nothing is lost".into(),
            Self::Handover { .. } => "stop the old process, then start the new one".into(),
            Self::Stranger { .. } => "run both processes as the same user".into(),
            Self::Store { .. } | Self::Off { .. } | Self::TooMany { .. } => return None,
        })
    }

    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::File { path, what: "read", cause: cause.to_string() }
    }

    pub(crate) fn write(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::File { path, what: "written", cause: cause.to_string() }
    }

    pub(crate) fn certificate(whose: impl ToString, message: impl ToString) -> Self {
        Self::Certificate { whose: whose.to_string(), message: message.to_string() }
    }

    pub(crate) fn store(message: impl ToString) -> Self {
        Self::Store { message: message.to_string() }
    }

    pub(crate) fn authority(message: impl ToString) -> Self {
        Self::Authority { message: message.to_string() }
    }

    pub(crate) fn handover(message: impl ToString) -> Self {
        Self::Handover { message: message.to_string() }
    }
}
