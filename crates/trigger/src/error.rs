//! Why an app cannot be served.

use std::{net::SocketAddr, path::PathBuf};

/// Why an app cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A component of the HTTP trigger exports no HTTP handler.
    #[error("component `{component}` exports no HTTP handler")]
    NoHandler {
        /// The component's id.
        component: String,
        /// What it exports instead.
        exports: Vec<String>,
    },
    /// A component exports several HTTP handlers.
    #[error("component `{component}` exports {count} HTTP handlers: {handlers}", count = handlers.len(), handlers = list(handlers))]
    SeveralHandlers {
        /// The component's id.
        component: String,
        /// The handlers.
        handlers: Vec<String>,
    },
    /// A component exports a handler that this version cannot call.
    #[error("component `{component}` exports `{handler}`, which this version of Wisp does not serve")]
    UnsupportedHandler {
        /// The component's id.
        component: String,
        /// The handler.
        handler: String,
    },
    /// A component imports something that no host interface provides.
    #[error("component `{component}` cannot be linked: {message}")]
    Link {
        /// The component's id.
        component: String,
        /// The import, and why it does not fit.
        message: String,
    },
    /// The address to listen on cannot be used.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// No free port was found near the wanted one.
    #[error("cannot listen on {address} nor on any of the {tried_count} ports after it")]
    NoFreePort {
        /// The first address that was tried.
        address: SocketAddr,
        /// How many more were tried.
        tried_count: u16,
    },
    /// A socket that somebody gave us does not listen.
    #[error("the socket that was handed over cannot be used: {cause}")]
    Adopt {
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A certificate or key file cannot be used.
    #[error("the TLS {what} `{path}` cannot be used: {message}", path = path.display())]
    Tls {
        /// `certificate` or `key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The operating system refused a thread or a runtime.
    #[error("the server cannot start: {cause}")]
    Start {
        /// What the operating system said.
        cause: std::io::Error,
    },
}

fn list(items: &[String]) -> String {
    items.iter().map(|item| format!("`{item}`")).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoHandler { .. } => "WISP-E0401",
            Self::SeveralHandlers { .. } => "WISP-E0402",
            Self::UnsupportedHandler { .. } => "WISP-E0403",
            Self::Link { .. } => "WISP-E0404",
            Self::Listen { .. } => "WISP-E0405",
            Self::NoFreePort { .. } => "WISP-E0406",
            Self::Tls { .. } => "WISP-E0407",
            Self::Start { .. } => "WISP-E0408",
            Self::Adopt { .. } => "WISP-E0409",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoHandler { exports, .. } => {
                let found = if exports.is_empty() {
                    "it exports nothing".to_owned()
                } else {
                    format!("it exports {}", list(exports))
                };
                let remedy = if exports.iter().any(|name| name.starts_with("wasi:cli/run")) {
                    "; a command runs with `executor = { type = \"wagi\" }` in its `[[trigger.http]]`"
                } else {
                    "; build it with an SDK for HTTP (`wasi:http/incoming-handler` or `wasi:http/handler`)"
                };
                found + remedy
            }
            Self::SeveralHandlers { .. } => "build the component with one HTTP handler; \
                two versions of an SDK in one component are the usual cause"
                .into(),
            Self::UnsupportedHandler { .. } => {
                "build the component with an SDK for WASI 0.2.0 or newer".into()
            }
            Self::Link { .. } => "the host interfaces that Wisp provides are listed in docs/interfaces.md; \
                an import of a newer version needs a newer Wisp"
                .into(),
            Self::Listen { cause, .. } if cause.kind() == std::io::ErrorKind::AddrInUse => {
                "another process listens there; choose another address with `--listen`, \
                 or use `--find-free-port`"
                    .into()
            }
            Self::Listen { cause, .. } if cause.kind() == std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 need a privilege; choose another with `--listen`".into()
            }
            Self::Listen { .. } => "choose an address of this machine with `--listen`".into(),
            Self::NoFreePort { .. } => "choose another address with `--listen`".into(),
            Self::Tls { .. } => "both files are PEM: `--tls-cert` holds the certificate chain, \
                `--tls-key` one PKCS#8, PKCS#1 or SEC1 private key"
                .into(),
            Self::Adopt { .. } => {
                "stop the process that handed it over, and start this one afterwards".into()
            }
            Self::Start { .. } => {
                "check the limits on threads and descriptors (`ulimit -u`, `ulimit -n`)".into()
            }
        })
    }
}
