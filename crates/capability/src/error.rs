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
    // E030x: key-value.
    /// A component lists a key-value store that nothing defines.
    #[error("no key-value store is configured for label `{label}`")]
    KeyValueStoreUnknown {
        /// The label.
        label: String,
        /// The labels that are configured.
        known: Vec<String>,
    },
    /// A key-value store is configured with a backend that this version lacks.
    #[error("key-value store `{label}` has the type `{backend}`, which this version cannot use")]
    KeyValueBackendUnsupported {
        /// The label.
        label: String,
        /// The `type` of the runtime configuration.
        backend: String,
    },
    /// The file of a key-value store cannot be used.
    #[error("cannot open key-value store `{label}` in `{}`: {cause}", path.display())]
    KeyValueOpen {
        /// The label.
        label: String,
        /// The database file.
        path: PathBuf,
        /// What the operating system or SQLite said.
        cause: String,
    },
    /// A key cannot be set from the command line.
    #[error("cannot set key `{key}` in key-value store `{label}`: {cause}")]
    KeyValueSet {
        /// The label.
        label: String,
        /// The key.
        key: String,
        /// What the store said.
        cause: String,
    },
    /// A key cannot be read from outside of a guest.
    #[error("cannot read key `{key}` of key-value store `{label}`: {cause}")]
    KeyValueGet {
        /// The label.
        label: String,
        /// The key.
        key: String,
        /// What the store said.
        cause: String,
    },

    // E031x: sqlite.
    /// A component lists an SQLite database that nothing defines.
    #[error("no SQLite database is configured for label `{label}`")]
    SqliteDatabaseUnknown {
        /// The label.
        label: String,
        /// The labels that are configured.
        known: Vec<String>,
    },
    /// An SQLite database is configured with a backend that this version lacks.
    #[error("SQLite database `{label}` has the type `{backend}`, which this version cannot use")]
    SqliteBackendUnsupported {
        /// The label.
        label: String,
        /// The `type` of the runtime configuration.
        backend: String,
    },
    /// The file of an SQLite database cannot be used.
    #[error("cannot open SQLite database `{label}` in `{}`: {cause}", path.display())]
    SqliteOpen {
        /// The label.
        label: String,
        /// The database file.
        path: PathBuf,
        /// What the operating system or SQLite said.
        cause: String,
    },
    /// SQL statements from the command line failed.
    #[error("cannot execute SQL statements in SQLite database `{label}`: {cause}")]
    SqliteExecute {
        /// The label.
        label: String,
        /// What SQLite said.
        cause: String,
    },
    /// A statement would change something, and may only read.
    #[error("the statement would change something, and may only read")]
    SqliteReadOnly,

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
    /// One request sent more HTTP requests than it may.
    #[error("component `{component}` sent more than {limit_count} HTTP requests within one request")]
    OutboundRequests {
        /// Id of the component.
        component: Arc<str>,
        /// The limit.
        limit_count: u32,
    },
    /// One request has more connections than it may.
    #[error("component `{component}` has {limit_count} connections within one request, and wants more")]
    OutboundConnections {
        /// Id of the component.
        component: Arc<str>,
        /// The limit.
        limit_count: u32,
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

    // E032x: variables.
    /// Variables that the app requires have no value.
    #[error("{}", missing_variables(names))]
    VariablesMissing {
        /// Their names, in the order of the manifest.
        names: Vec<String>,
    },
    /// A variable that nobody declared.
    #[error("variable `{name}` is not declared {}", declared_where(component.as_deref()))]
    VariableUndefined {
        /// The name that was asked for.
        name: String,
        /// The component whose variable it would be; none if it would be the app's.
        component: Option<Arc<str>>,
    },
    /// A name that no variable could have.
    #[error("`{name}` is no variable's name: {cause}")]
    VariableName {
        /// The name, shortened.
        name: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A provider failed while it was asked for a value.
    #[error("cannot get variable `{name}` from the {provider}: {cause}")]
    VariableProvider {
        /// The variable.
        name: String,
        /// The provider, as a person would call it.
        provider: String,
        /// What went wrong.
        cause: String,
    },
    /// A kind of provider that this version does not have.
    #[error("variables provider `{kind}` is not available in this version of Wisp")]
    VariableProviderUnavailable {
        /// The kind: `type` of `[[variables_provider]]`.
        kind: &'static str,
    },
    /// A value is longer than Wisp hands to a component.
    #[error("the value of {what} has more than {limit_bytes} bytes")]
    VariableTooLong {
        /// What has that value.
        what: String,
        /// The limit.
        limit_bytes: usize,
    },
    /// An argument of `--variable` is malformed.
    #[error("cannot use `--variable {argument}`: {cause}")]
    VariableFlag {
        /// The argument without its value, which may be a secret.
        argument: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A file with values of variables cannot be used.
    #[error("cannot read variables from `{}`: {cause}", path.display())]
    VariableFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
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

    // E036x: interfaces that are linked and not available.
    /// A family of interfaces that this version does not have.
    #[error("{family} is not available in this version of Wisp")]
    Unavailable {
        /// The family.
        family: &'static str,
    },
}

impl Error {
    /// The stable code, such as `WISP-E0330`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::KeyValueStoreUnknown { .. } => "WISP-E0300",
            Self::KeyValueBackendUnsupported { .. } => "WISP-E0301",
            Self::KeyValueOpen { .. } => "WISP-E0302",
            Self::KeyValueSet { .. } => "WISP-E0303",
            Self::KeyValueGet { .. } => "WISP-E0304",
            Self::SqliteDatabaseUnknown { .. } => "WISP-E0310",
            Self::SqliteBackendUnsupported { .. } => "WISP-E0311",
            Self::SqliteOpen { .. } => "WISP-E0312",
            Self::SqliteExecute { .. } => "WISP-E0313",
            Self::SqliteReadOnly => "WISP-E0314",
            Self::DestinationNotAllowed { .. } => "WISP-E0330",
            Self::NetworkBlocked { .. } => "WISP-E0331",
            Self::ConnectionLimit { .. } => "WISP-E0332",
            Self::InvalidAddress { .. } => "WISP-E0333",
            Self::OutboundRequests { .. } => "WISP-E0334",
            Self::OutboundConnections { .. } => "WISP-E0335",
            Self::TlsFile { .. } => "WISP-E0340",
            Self::TlsSettings { .. } => "WISP-E0341",
            Self::LocalCallDepth { .. } => "WISP-E0342",
            Self::EnvironmentVariable { .. } => "WISP-E0343",
            Self::VariablesMissing { .. } => "WISP-E0320",
            Self::VariableUndefined { .. } => "WISP-E0321",
            Self::VariableName { .. } => "WISP-E0322",
            Self::VariableProvider { .. } => "WISP-E0323",
            Self::VariableProviderUnavailable { .. } => "WISP-E0324",
            Self::VariableTooLong { .. } => "WISP-E0325",
            Self::VariableFlag { .. } => "WISP-E0326",
            Self::VariableFile { .. } => "WISP-E0327",
            Self::FilesMissing { .. } => "WISP-E0350",
            Self::FilesOutside { .. } => "WISP-E0351",
            Self::FilesPattern { .. } => "WISP-E0352",
            Self::FilesTooMany { .. } => "WISP-E0353",
            Self::FilesAccess { .. } => "WISP-E0354",
            Self::LogFile { .. } => "WISP-E0355",
            Self::Unavailable { .. } => "WISP-E0360",
        }
    }

    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::KeyValueStoreUnknown { label, known } => Some(format!(
                "add [key_value_store.{label}] to the runtime configuration, or use one of {}",
                list_labels(known)
            )),
            Self::SqliteDatabaseUnknown { label, known } => Some(format!(
                "add [sqlite_database.{label}] to the runtime configuration, or use one of {}",
                list_labels(known)
            )),
            Self::KeyValueBackendUnsupported { .. } => Some(
                "use `type = \"spin\"`; `redis`, `azure_cosmos` and `aws_dynamo` come in a later version"
                    .into(),
            ),
            Self::SqliteBackendUnsupported { .. } => {
                Some("use `type = \"spin\"`; `libsql` comes in a later version".into())
            }
            Self::KeyValueOpen { .. } | Self::SqliteOpen { .. } => Some(
                "check that the file is an SQLite database and that it and its directory can be written, or \
                 choose another directory with `--state-dir`"
                    .into(),
            ),
            Self::KeyValueSet { .. } | Self::KeyValueGet { .. } => None,
            Self::SqliteExecute { .. } => Some("correct the statements given with `--sqlite`".into()),
            Self::SqliteReadOnly => {
                Some("let it: `wisp sql --write`, or `may_write` of the request".into())
            }
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
            Self::OutboundRequests { .. } => {
                Some("raise `max_outbound_requests` in the component's limits, or send fewer".into())
            }
            Self::OutboundConnections { .. } => Some(
                "raise `max_outbound_connections` in the component's limits, or read a response to its end \
                 before the next request"
                    .into(),
            ),
            Self::InvalidAddress { .. } => Some("write it as `scheme://host:port`".into()),
            Self::TlsFile { .. } | Self::TlsSettings { .. } => {
                Some("correct the `[[client_tls]]` table of the runtime configuration".into())
            }
            Self::LocalCallDepth { .. } => Some("let the components not call each other in a circle".into()),
            Self::EnvironmentVariable { .. } => None,
            Self::VariablesMissing { names } => names.first().map(|name| {
                format!(
                    "set it with `--variable {name}=VALUE`, with the environment variable \
                     `SPIN_VARIABLE_{}` (also in a `.env` file beside the manifest), or in a \
                     `[[variables_provider]]` of the runtime configuration; or give it a `default` in the \
                     manifest",
                    name.to_ascii_uppercase()
                )
            }),
            Self::VariableUndefined { name, component: None } => {
                Some(format!("declare `{name}` in `[variables]` of the manifest"))
            }
            Self::VariableUndefined { name, component: Some(component) } => Some(format!(
                "add `{name} = \"{{{{ {name} }}}}\"` to `[component.{component}.variables]` of the manifest"
            )),
            Self::VariableName { .. } => {
                Some("a variable's name is lower-case words with `_` between them, such as `api_key`".into())
            }
            Self::VariableProvider { .. } => None,
            Self::VariableProviderUnavailable { .. } => Some(
                "use `type = \"static\"` or `type = \"env\"` in `[[variables_provider]]` of the runtime \
                 configuration"
                    .into(),
            ),
            Self::VariableTooLong { .. } => None,
            Self::VariableFlag { .. } => Some(
                "write `NAME=VALUE`, `NAME=@FILE`, `@FILE.json` or `@FILE.toml`; relative paths start at the \
                 current directory"
                    .into(),
            ),
            Self::VariableFile { .. } => None,
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
            Self::Unavailable { .. } => None,
        }
    }
}

fn missing_variables(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [one] => format!("variable {one} is required and has no value"),
        many => format!("variables {} are required and have no value", many.join(", ")),
    }
}

fn declared_where(component: Option<&str>) -> String {
    match component {
        None => "by the app".into(),
        Some(component) => format!("for component `{component}`"),
    }
}

/// Labels for a hint, each in backticks.
fn list_labels(labels: &[String]) -> String {
    labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ")
}
