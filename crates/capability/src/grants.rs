//! What one component may reach.

use std::sync::Arc;

use crate::{
    VirtualWorld, key_value, outbound, outbound_http, sqlite, test_component::Bench, variables, wasi,
};

/// What one request may do with what its component reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// HTTP requests that it may send.
    pub outbound_requests_count: u32,
    /// Of those to the network, how many may be under way at once.
    pub outbound_connections_count: u32,
    /// Bytes that it may write to the log.
    pub log_bytes: u64,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { outbound_requests_count: u32::MAX, outbound_connections_count: u32::MAX, log_bytes: u64::MAX }
    }
}

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
    /// How much of all this one request may use.
    pub limits: RequestLimits,
    /// What a test puts in the place of the world outside.
    pub world: VirtualWorld,
    /// Whoever runs the test that the component is, if it is one.
    pub bench: Option<Arc<dyn Bench>>,
}
