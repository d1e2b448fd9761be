//! What one component may reach.

use std::sync::Arc;

use crate::{key_value, outbound, outbound_http, sqlite, variables, wasi};

/// Everything that one component may reach, after the manifest asked and the
/// operator agreed. Immutable; shared by all instances of a release.
///
/// The default reaches nothing.
#[derive(Default)]
pub struct Grants {
    /// The component's id, for messages and logs.
    pub component: Arc<str>,
    /// Environment, files and standard streams.
    pub wasi: wasi::Grant,
    /// Values of the component's variables.
    pub variables: variables::Grant,
    /// Key-value stores by label.
    pub key_value: key_value::Grant,
    /// SQLite databases by label.
    pub sqlite: sqlite::Grant,
    /// Which network destinations may be reached.
    pub outbound: outbound::Grant,
    /// Names of the models that the component may use.
    pub ai_models: Arc<[String]>,
    /// How outbound HTTP requests are sent.
    pub outbound_http: outbound_http::Grant,
}
