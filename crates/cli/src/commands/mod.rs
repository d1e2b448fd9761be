//! One module per command.

mod api;
mod apps;
mod audit;
pub(crate) mod cloud;
mod common;
mod domains;
mod kv;
mod login;
mod logs;
pub(crate) mod registry;
mod releases;
mod resources;
pub(crate) mod serve;
mod sql;
mod team;
mod token;
pub(crate) mod up;
mod variables;
