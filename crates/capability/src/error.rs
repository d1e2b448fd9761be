//! What can go wrong when capabilities are set up or used.
//!
//! One enum for the crate. Codes are `WISP-E03xx`, in blocks of ten:
//!
//! | block | family |
//! | --- | --- |
//! | E030x | key-value |
//! | E031x | sqlite |
//! | E032x | variables |
//! | E033x | which destinations may be reached |
//! | E034x | outbound HTTP |
//! | E035x | WASI: files, preopened directories, logs |
//! | E036x | interfaces that are linked and not available |
//!
//! These are errors for operators and logs. What a guest sees is the error of
//! the interface it called; each family translates.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// An error of setting up or of using a capability.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // E033x: which destinations may be reached.
    /// A destination is not on the component's allow-list.
    #[error("component `{component}` may not reach `{destination}`: not in its `allowed_outbound_hosts`")]
    DestinationNotAllowed {
        /// Id of the component that asked.
        component: Arc<str>,
        /// The destination as `scheme://host:port`.
        destination: String,
        /// The entry that would allow it, as a person would write it.
        entry: String,
    },
    /// A destination's address lies in a network that the operator blocks.
    #[error(
        "component `{component}` may not reach `{destination}`: address `{address}` is in a blocked network"
    )]
    NetworkBlocked {
        /// Id of the component that asked.
        component: Arc<str>,
        /// The destination as `scheme://host:port`.
        destination: String,
        /// The address that it resolved to.
        address: IpAddr,
    },
    /// A limit on the number of open connections is reached.
    #[error(
        "component `{component}` may not open another connection: `{setting}` = {limit_count} is reached"
    )]
    ConnectionLimit {
        /// Id of the component that asked.
        component: Arc<str>,
        /// The setting of the runtime configuration that limits it.
        setting: &'static str,
        /// The limit.
        limit_count: usize,
    },
    /// A guest gave an address that is none.
    #[error("component `{component}` asked for `{address}`, which is no valid address: {cause}")]
    InvalidAddress {
        /// Id of the component that asked.
        component: Arc<str>,
        /// The address as the guest gave it, shortened.
        address: String,
        /// What is wrong with it.
        cause: &'static str,
    },

    // E034x: outbound HTTP.
    /// A certificate or key file of a `[[client_tls]]` table cannot be used.
    #[error("cannot use `{}` for client TLS: {cause}", path.display())]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The settings of a `[[client_tls]]` table contradict each other.
    #[error("cannot set up client TLS: {cause}")]
    TlsSettings {
        /// What is wrong.
        cause: String,
    },
    /// Components call each other in a circle.
    #[error("component `{component}` called through {limit_count} components in a row")]
    LocalCallDepth {
        /// Id of the component that made the last call.
        component: Arc<str>,
        /// The limit.
        limit_count: u8,
    },
    /// A value of an environment variable is malformed.
    #[error("environment variable `{variable}` has the value `{value}`: {cause}")]
    EnvironmentVariable {
        /// Name of the variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        cause: &'static str,
    },

    // E035x: WASI.
    /// A file that a component's `files` names does not exist.
    #[error("component `{component}`: nothing matches `{pattern}` of its `files`")]
    FilesMissing {
        /// Id of the component.
        component: Arc<str>,
        /// The entry of `files`.
        pattern: String,
    },
    /// A component's `files` would reach outside of the app's directory.
    #[error("component `{component}`: `{path}` of its `files` lies outside of the app's directory")]
    FilesOutside {
        /// Id of the component.
        component: Arc<str>,
        /// The path, as far as it is known.
        path: String,
    },
    /// An entry of a component's `files` is malformed.
    #[error("component `{component}`: `{pattern}` of its `files` cannot be used: {cause}")]
    FilesPattern {
        /// Id of the component.
        component: Arc<str>,
        /// The entry.
        pattern: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A component's `files` are more than Wisp places.
    #[error("component `{component}`: its `files` match more than {limit_count} files")]
    FilesTooMany {
        /// Id of the component.
        component: Arc<str>,
        /// The limit.
        limit_count: usize,
    },
    /// A file or directory of a component cannot be read or written.
    #[error("component `{component}`: cannot {action} `{}`: {cause}", path.display())]
    FilesAccess {
        /// Id of the component.
        component: Arc<str>,
        /// What was being done, as a verb: `copy`, `open` …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A log file cannot be opened.
    #[error("cannot open log file `{}`: {cause}", path.display())]
    LogFile {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
}

impl Error {
    /// The stable code, such as `WISP-E0330`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::DestinationNotAllowed { .. } => "WISP-E0330",
            Self::NetworkBlocked { .. } => "WISP-E0331",
            Self::ConnectionLimit { .. } => "WISP-E0332",
            Self::InvalidAddress { .. } => "WISP-E0333",
            Self::TlsFile { .. } => "WISP-E0340",
            Self::TlsSettings { .. } => "WISP-E0341",
            Self::LocalCallDepth { .. } => "WISP-E0342",
            Self::EnvironmentVariable { .. } => "WISP-E0343",
            Self::FilesMissing { .. } => "WISP-E0350",
            Self::FilesOutside { .. } => "WISP-E0351",
            Self::FilesPattern { .. } => "WISP-E0352",
            Self::FilesTooMany { .. } => "WISP-E0353",
            Self::FilesAccess { .. } => "WISP-E0354",
            Self::LogFile { .. } => "WISP-E0355",
        }
    }

    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::DestinationNotAllowed { component, entry, .. } => {
                Some(format!("add \"{entry}\" to `allowed_outbound_hosts` of component `{component}`"))
            }
            Self::NetworkBlocked { .. } => Some(
                "`block_networks` of `[outbound_networking]` in the runtime configuration decides which \
                 networks are blocked"
                    .into(),
            ),
            Self::ConnectionLimit { setting, .. } => Some(format!(
                "close connections that are no longer needed, or raise `{setting}` in the runtime \
                 configuration"
            )),
            Self::InvalidAddress { .. } => Some("write it as `scheme://host:port`".into()),
            Self::TlsFile { .. } | Self::TlsSettings { .. } => {
                Some("correct the `[[client_tls]]` table of the runtime configuration".into())
            }
            Self::LocalCallDepth { .. } => Some("let the components not call each other in a circle".into()),
            Self::EnvironmentVariable { .. } => None,
            Self::FilesMissing { component, .. } => Some(format!(
                "create it, or correct `files` of component `{component}`; paths are relative to the manifest"
            )),
            Self::FilesOutside { .. } => Some("move the files below the directory of the manifest".into()),
            Self::FilesPattern { .. } => Some(
                "write a pattern such as \"assets/**/*\" or { source = \"assets\", destination = \"/\" }"
                    .into(),
            ),
            Self::FilesTooMany { component, .. } => {
                Some(format!("make the patterns of component `{component}` narrower, or use `exclude_files`"))
            }
            Self::FilesAccess { .. } => None,
            Self::LogFile { .. } => {
                Some("choose another directory with `--log-dir`, or none with `--log-dir \"\"`".into())
            }
        }
    }
}
