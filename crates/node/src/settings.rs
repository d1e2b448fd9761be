//! What the operator decides, as opposed to the app's author.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use wisp_capability::{
    VirtualWorld,
    wasi::{LogReceiver, logs::Follow},
};
use wisp_engine::EngineConfig;
use wisp_manifest::{
    allowed_hosts::{AllowedHost, BlockedNetworks},
    model::{Limits, Reuse},
    runtime_config::RuntimeConfig,
};
use wisp_trigger::http::CommonsSettings;

use crate::{HostName, Releases};

/// Settings of a process: what all of its apps share.
#[derive(Default)]
pub struct RuntimeSettings {
    /// The engine and its pool.
    pub engine: EngineConfig,
    /// Where compiled images are kept; `None` compiles at every start.
    pub image_dir: Option<PathBuf>,
    /// Map only images that this key signed, and compile nothing.
    pub image_key: Option<wisp_engine::VerifyingKey>,
    /// Backends, providers and limits, from `runtime-config.toml`.
    pub runtime_config: RuntimeConfig,
    /// Where the log files of components lie; `None` writes none.
    pub log_dir: Option<PathBuf>,
    /// Takes the output of apps among many in the place of log files.
    pub log_receiver: Option<Arc<dyn LogReceiver>>,
    /// Begin log files anew.
    pub truncate_logs: bool,
    /// Whose output appears on the terminal: components, or apps where there are many.
    pub follow: Follow,
    /// How apps share the node: places, CPU, memory, and what is told of it.
    pub commons: CommonsSettings,
    /// Guests find clocks and random numbers in the world of their app's settings.
    pub is_virtual: bool,
}

/// A value of a variable that was given by name.
pub type VariableValue = (wisp_manifest::id::VariableName, wisp_capability::variables::Value);

/// Settings of one app.
#[derive(Clone, Default)]
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
    /// What components may have at most, whatever their authors ask for.
    pub ceilings: Limits,
    /// Reuse instances also of components that did not ask for it.
    pub reuse: Option<Reuse>,
    /// Set these keys before serving: label, key, value.
    pub key_values: Vec<(String, String, Vec<u8>)>,
    /// Run these statements before serving: label, statements.
    pub sql_statements: Vec<(String, String)>,
    /// Whether values of variables also come from the providers of the runtime
    /// configuration and the environment of the process. Not where the apps of a
    /// process are strangers to each other.
    pub use_variables_providers: bool,
    /// What the app is called in logs and accounts, where there are many apps.
    pub log_name: Option<String>,
    /// Its part of the CPU where apps compete, relative to others'; `None` is the usual one.
    pub cpu_weight: Option<u32>,
    /// Which release of the app it is, where there are releases.
    pub release: Option<u64>,
    /// Destinations that it may be allowed at all; `None` are all.
    pub granted_hosts: Option<Vec<AllowedHost>>,
    /// Networks that it may not reach; `None` are those of the runtime configuration.
    pub blocked_networks: Option<BlockedNetworks>,
    /// What a test puts in the place of the world outside.
    pub world: VirtualWorld,
}

/// Settings of a node: many apps in one process.
pub struct NodeSettings {
    /// The folder whose entries are apps, by host name. What is put with a folder of
    /// this place takes no memory for the folder's name.
    pub apps_dir: PathBuf,
    /// Where each app's stores and databases lie, in a folder of its host name; `None`
    /// keeps them in memory.
    pub state_dir: Option<PathBuf>,
    /// Where values of variables come from: `HOST.toml` or `HOST.json`.
    pub variables_dir: Option<PathBuf>,
    /// What all apps have in common.
    pub app: AppSettings,
    /// The part of the CPU that apps of folders have where they compete, relative to
    /// others', where it is not the usual one.
    pub cpu_weights: HashMap<HostName, u32>,
    /// Says what releases consist of, where a control plane sends them.
    pub releases: Option<Arc<dyn Releases>>,
    /// What may be mapped.
    pub budget: Budget,
    /// How many requests wait for one app to be loaded; more are refused at once.
    pub max_waiting_count: usize,
    /// How long a request waits for its app to be loaded before it is refused.
    pub max_wait: Duration,
}

/// What may be mapped at once; apps beyond it are unmapped, those first that were not
/// used for longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Images. Each takes three mappings and a descriptor.
    pub max_images_count: usize,
    /// The sizes of the images' files together: what they may take of memory.
    pub max_image_bytes: u64,
}
