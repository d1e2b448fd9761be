//! `wisp serve`: many apps in one process.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use wisp_capability::wasi::logs::Follow;
use wisp_engine::EngineConfig;
use wisp_manifest::{
    RuntimeConfig,
    model::{MAX_CPU_WEIGHT, Reuse},
};
use wisp_node::{
    Admin, Allowed, AppSettings, AppsDirectory, Budget, HostName, Node, NodeSettings, Runtime,
    RuntimeSettings,
};
use wisp_trigger::http::{AdmissionLimits, CommonsSettings, Listener, Server, ServerConfig};

use super::common::{
    CeilingFlags, SPARE_INSTANCES_COUNT, listener, parse_duration, parse_listen, parse_pair, stop_signal,
    unwrap_checked, user_cache_dir,
};
use crate::{error::Error, output};

/// Where state and logs lie below the folder of apps, unless it is said. Entries that
/// begin with a dot are no apps.
const OWN_DIR_NAME: &str = ".wisp";

/// Serve many apps in one process, each at its host name.
///
/// Each entry of the folder of apps is an app: a folder with a `spin.toml`, or a symbolic
/// link to one, that is named like the app's host. Entries may come, go and be replaced
/// at any time; put a version together elsewhere, then rename it (or a link to it) into
/// place. Apps are compiled in the background, loaded by their first request, and
/// unloaded when others need the room.
#[derive(Args)]
pub(crate) struct Serve {
    /// The folder of apps: `DIR/HOST/spin.toml`.
    #[arg(long, value_name = "DIR")]
    apps: PathBuf,

    #[command(flatten)]
    http: HttpFlags,

    #[command(flatten)]
    limits: LimitFlags,

    #[command(flatten)]
    state: StateFlags,

    #[command(flatten)]
    logs: LogFlags,

    #[command(flatten)]
    ceilings: CeilingFlags,

    #[command(flatten)]
    engine: EngineFlags,
}

#[derive(Args)]
#[command(next_help_heading = "HTTP")]
struct HttpFlags {
    /// Address and port to listen on; port 0 is any free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    listen: String,

    /// Answer the operator here: health, metrics, probes, rollbacks. There is no password, so
    /// choose an address that only the operator reaches [default: nowhere].
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,

    /// Serve HTTPS with this certificate chain (PEM), for all hosts.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Largest request body, in bytes; longer ones get 413.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    max_request_body: u64,

    /// How long running requests may go on after SIGTERM or Ctrl-C.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    grace_period: Duration,

    /// Connections open at once; more wait.
    #[arg(long, value_name = "COUNT", default_value_t = 8_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,

    /// Requests that run at once; more wait, then get 503 with `Retry-After`.
    #[arg(
        long, value_name = "COUNT", default_value_t = 1_000,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    max_instances: u32,

    /// Requests that wait for an instance, or for their app to be loaded; more get 503 at once.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000)]
    max_waiting_requests: u32,

    /// How long a request waits before it gets 503.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "5s")]
    max_wait: Duration,

    /// The part of the CPU that an app has where apps compete, relative to others' [default: 100].
    #[arg(long, value_name = "HOST=WEIGHT", value_parser = parse_weight)]
    cpu_weight: Vec<(HostName, u32)>,

    /// Tell clients in a `Server-Timing` header what their request took.
    #[arg(long)]
    server_timing: bool,

    /// Let an instance serve this many requests, one after the other, also where a component did not ask for
    /// it [default: a fresh instance for each request].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    max_instance_reuse_count: Option<u32>,
}

#[derive(Args)]
#[command(next_help_heading = "Density")]
struct LimitFlags {
    /// Compiled images that are mapped at once; each takes three mappings and a descriptor
    /// [default: what the operating system allows].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    max_mapped_apps: Option<u32>,

    /// The sizes of mapped images together, in bytes: what they may take of memory
    /// [default: half of the machine's].
    #[arg(long, value_name = "BYTES")]
    max_mapped_bytes: Option<u64>,

    /// Do not compile and verify apps ahead of their first request.
    #[arg(long)]
    no_prepare: bool,
}

#[derive(Args)]
#[command(next_help_heading = "State")]
struct StateFlags {
    /// Where stores and databases lie, a folder for each app; "" keeps them in memory
    /// [default: `.wisp/state` in the folder of apps].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,

    /// Values of variables: `HOST.toml` or `HOST.json` in this folder.
    #[arg(long, value_name = "DIR")]
    variables_dir: Option<PathBuf>,

    /// Backends and limits of all apps (TOML).
    #[arg(long, value_name = "FILE")]
    runtime_config_file: Option<PathBuf>,
}

#[derive(Args)]
#[command(next_help_heading = "Logs")]
struct LogFlags {
    /// Where the output of components is kept, a folder for each app; "" keeps none
    /// [default: `.wisp/logs` in the folder of apps].
    #[arg(short = 'L', long, value_name = "DIR")]
    log_dir: Option<String>,

    /// Show the output of these apps' components.
    #[arg(long, value_name = "HOST")]
    follow: Vec<String>,
}

#[derive(Args)]
#[command(next_help_heading = "Engine")]
struct EngineFlags {
    /// Largest memory of an instance, in bytes [default: 4 GiB].
    #[arg(long, value_name = "BYTES")]
    max_instance_memory: Option<u64>,

    /// Where compiled components are kept [default: `wisp/images` in the user's cache folder].
    #[arg(long, value_name = "DIR")]
    image_dir: Option<PathBuf>,

    /// Make a new instance for each request instead of putting used ones back to their
    /// beginning; slower.
    #[arg(long)]
    new_instances: bool,

    /// Allocate each instance on its own instead of from a pool; slower.
    #[arg(long)]
    disable_pooling: bool,

    /// Keep no accounts and share nothing fairly: to measure what that costs.
    #[arg(long, hide = true)]
    no_accounting: bool,
}

impl Serve {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let runtime_config = self.runtime_config()?;
        let listener = self.listener()?;
        let admin = match &self.http.admin {
            Some(address) => Some(Admin::bind(parse_listen("--admin", address)?)?),
            None => None,
        };
        let directory = AppsDirectory::watch(&self.apps)?;
        let budget = self.budget(wisp_node::raise_descriptor_limit());
        let own_dir = directory.path().join(OWN_DIR_NAME);
        let max_memory_bytes = self.engine.max_instance_memory.or(runtime_config.max_instance_memory_bytes);
        wisp_telemetry::start("wisp-serve")?;
        let runtime = Runtime::start(RuntimeSettings {
            engine: EngineConfig {
                max_instances_count: self.http.max_instances + SPARE_INSTANCES_COUNT,
                pooling: !self.engine.disable_pooling,
                rewinds: !self.engine.new_instances,
                ..self.ceilings.engine()
            },
            image_key: None,
            log_receiver: None,
            is_virtual: false,
            image_dir: Some(match &self.engine.image_dir {
                Some(folder) => folder.clone(),
                None => user_cache_dir().join("wisp").join("images"),
            }),
            runtime_config,
            log_dir: folder(self.logs.log_dir.as_deref(), || own_dir.join("logs")),
            truncate_logs: false,
            follow: if self.logs.follow.is_empty() {
                Follow::None
            } else {
                Follow::Some(self.logs.follow.iter().cloned().collect())
            },
            commons: CommonsSettings {
                admission: AdmissionLimits {
                    max_running_count: self.http.max_instances as usize,
                    max_waiting_count: self.http.max_waiting_requests as usize,
                    max_wait: self.http.max_wait,
                    is_shared: true,
                },
                accounting: !self.engine.no_accounting,
                server_timing: self.http.server_timing,
                max_memory_bytes: self.ceilings.max_memory_bytes(),
                ..CommonsSettings::default()
            },
        })?;
        let node = Node::start(
            runtime,
            NodeSettings {
                apps_dir: directory.path().to_owned(),
                state_dir: folder(self.state.state_dir.as_deref(), || own_dir.join("state")),
                variables_dir: self.state.variables_dir.clone(),
                app: AppSettings {
                    ceilings: self.ceilings.ceilings(max_memory_bytes),
                    reuse: self.http.max_instance_reuse_count.map(|max_requests| Reuse {
                        max_requests,
                        idle_timeout: Reuse::DEFAULT_IDLE_TIMEOUT,
                    }),
                    ..AppSettings::default()
                },
                cpu_weights: self.http.cpu_weight.iter().cloned().collect(),
                releases: None,
                budget,
                max_waiting_count: self.http.max_waiting_requests as usize,
                max_wait: self.http.max_wait,
            },
        )?;
        directory.scan(&node)?;
        tracing::info!("{} apps, {} images mapped at most", node.apps_count(), budget.max_images_count);
        directory.follow(&node);
        if !self.limits.no_prepare {
            node.start_preparing()?;
        }
        let mut text = format!("Serving {}://{}\n", listener.scheme(), listener.address());
        if let Some(admin) = admin {
            text.push_str(&format!("Admin http://{}\n", admin.address()));
            admin.start(&node);
        }
        output::data(&text);
        node.export_metrics();
        let server = Server::new(self.server_config(), vec![listener]);
        let result = server.run(node.clone(), stop_signal());
        node.stop();
        node.runtime().flush_logs();
        wisp_telemetry::flush();
        Ok(result?)
    }

    /// Reads the runtime configuration, without what would let one app reach what is
    /// another's.
    fn runtime_config(&self) -> Result<RuntimeConfig, Error> {
        let Some(path) = &self.state.runtime_config_file else { return Ok(RuntimeConfig::default()) };
        let mut config = unwrap_checked(RuntimeConfig::read(path))?;
        if !config.variables_providers.is_empty() {
            tracing::warn!(
                "variables providers are for one app; give each its values with `--variables-dir`"
            );
            config.variables_providers.clear();
        }
        if !config.client_tls.is_empty() {
            tracing::warn!("client certificates are for one app; they are left out");
            config.client_tls.clear();
        }
        Ok(config)
    }

    fn listener(&self) -> Result<Listener, Error> {
        let http = &self.http;
        let address = parse_listen("--listen", &http.listen)?;
        Ok(listener(address, false, http.tls_cert.as_ref(), http.tls_key.as_ref())?)
    }

    fn server_config(&self) -> ServerConfig {
        let http = &self.http;
        ServerConfig {
            max_connections_count: http.max_connections as usize,
            max_body_bytes: http.max_request_body,
            grace_period: http.grace_period,
            ..ServerConfig::default()
        }
    }

    /// What may be mapped: what is asked for, as far as the operating system allows.
    fn budget(&self, max_descriptors_count: Option<u64>) -> Budget {
        let slots_count = (self.http.max_instances + SPARE_INSTANCES_COUNT) as usize;
        let Allowed { by_descriptors, by_mappings } =
            Allowed::images(max_descriptors_count, self.http.max_connections, slots_count);
        let allowed_count = by_descriptors.min(by_mappings).max(1);
        let wanted_count = self.limits.max_mapped_apps.map_or(allowed_count, |count| count as usize);
        if wanted_count > allowed_count {
            tracing::warn!(
                code = "WISP-E0719",
                "only {allowed_count} of the {wanted_count} apps that may be mapped at once can be: \
                 {by_descriptors} by the limit on descriptors (`ulimit -n`, less `--max-connections`), \
                 {by_mappings} by the one on mappings (`vm.max_map_count`)"
            );
        }
        Budget {
            max_images_count: wanted_count.min(allowed_count),
            max_image_bytes: self
                .limits
                .max_mapped_bytes
                .or_else(|| wisp_node::machine_memory_bytes().map(|bytes| bytes / 2))
                .unwrap_or(u64::MAX),
        }
    }
}

/// A folder that has a usual place; an empty one means none.
fn folder(flag: Option<&str>, usual: impl FnOnce() -> PathBuf) -> Option<PathBuf> {
    match flag {
        Some("") => None,
        Some(flag) => Some(flag.into()),
        None => Some(usual()),
    }
}

/// `HOST=WEIGHT`.
fn parse_weight(text: &str) -> Result<(HostName, u32), String> {
    let (host, weight) = parse_pair(text).map_err(|_| "expected HOST=WEIGHT".to_owned())?;
    let host = HostName::new(&host).map_err(|error| error.to_string())?;
    match weight.parse() {
        Ok(weight @ 1..=MAX_CPU_WEIGHT) => Ok((host, weight)),
        _ => Err(format!("expected a weight from 1 to {MAX_CPU_WEIGHT}, not `{weight}`")),
    }
}
