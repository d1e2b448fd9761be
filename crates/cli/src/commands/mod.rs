//! One module per command.

mod common;
pub(crate) mod registry;
pub(crate) mod serve;
pub(crate) mod up;
