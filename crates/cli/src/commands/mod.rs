//! One module per command.

mod api;
mod apps;
mod audit;
pub(crate) mod backup;
pub(crate) mod cloud;
mod common;
pub(crate) mod compile_image;
pub(crate) mod deploy;
mod domains;
mod kv;
mod login;
mod logs;
pub(crate) mod registry;
mod releases;
mod resources;
pub(crate) mod serve;
pub(crate) mod server;
mod sql;
mod team;
mod token;
pub(crate) mod up;
mod variables;
