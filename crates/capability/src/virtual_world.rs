//! What a test of an app puts in the place of the world outside.

use std::sync::Arc;

use crate::{outbound_http::Script, wasi::WallClock};

/// What a test of an app puts in the place of the world outside. The default leaves
/// everything as it is.
#[derive(Clone, Default)]
pub struct VirtualWorld {
    /// Says what time it is.
    pub clock: Option<Arc<dyn WallClock>>,
    /// Answers HTTP requests of components.
    pub http: Option<Arc<dyn Script>>,
}
