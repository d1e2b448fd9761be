//! What the operator decides, as opposed to the app's author.

use std::{path::PathBuf, time::Duration};

use wisp_capability::wasi::logs::Follow;
use wisp_engine::EngineConfig;
use wisp_manifest::{model::Reuse, runtime_config::RuntimeConfig};
use wisp_trigger::http::AdmissionLimits;

/// Settings of a node: what all of its apps share.
#[derive(Default)]
pub struct NodeSettings {
    /// The engine and its pool.
    pub engine: EngineConfig,
    /// Where compiled images are kept; `None` compiles at every start.
    pub image_dir: Option<PathBuf>,
    /// Backends, providers and limits, from `runtime-config.toml`.
    pub runtime_config: RuntimeConfig,
    /// Where stores and databases without a path of their own lie; `None` keeps
    /// them in memory.
    pub state_dir: Option<PathBuf>,
    /// Where the log files of components lie; `None` writes none.
    pub log_dir: Option<PathBuf>,
    /// Begin log files anew.
    pub truncate_logs: bool,
    /// Which components' output appears on the terminal.
    pub follow: Follow,
    /// How many requests run and wait.
    pub admission: AdmissionLimits,
}

/// Settings of one app.
#[derive(Default)]
pub struct AppSettings {
    /// Values of variables that win over all other sources.
    pub variables: Vec<(wisp_manifest::id::VariableName, wisp_capability::variables::Value)>,
    /// Environment variables for all components, over the manifest's.
    pub environment: Vec<(String, String)>,
    /// Serve only these components; empty is all.
    pub only_components: Vec<String>,
    /// Where files of components are placed; `None` is a temporary folder.
    pub files_dir: Option<PathBuf>,
    /// Mount folders where they lie instead of placing copies.
    pub direct_mounts: bool,
    /// Let components change their files.
    pub may_write_files: bool,
    /// The largest linear memory of an instance.
    pub max_memory_bytes: Option<u64>,
    /// The longest time a request may take.
    pub request_timeout: Option<Duration>,
    /// Reuse instances also of components that did not ask for it.
    pub reuse: Option<Reuse>,
    /// Set these keys before serving: label, key, value.
    pub key_values: Vec<(String, String, Vec<u8>)>,
    /// Run these statements before serving: label, statements.
    pub sql_statements: Vec<(String, String)>,
}
