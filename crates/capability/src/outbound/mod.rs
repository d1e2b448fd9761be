//! Placeholder.

/// Which network destinations a component may reach.
#[derive(Clone, Default)]
pub struct Grant {}
