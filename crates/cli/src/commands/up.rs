//! `wisp up`: serve an app on this machine.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use clap::{Args, Parser};
use wisp_capability::{variables, wasi::logs::Follow};
use wisp_develop::build::Settings as BuildSettings;
use wisp_engine::{EngineConfig, FileIdentity, LoadedComponent, Origin};
use wisp_image::client::ImageReference;
use wisp_manifest::{App, RuntimeConfig, model::Reuse, runtime_config::Directory};
use wisp_node::{AppSettings, AppState, LoadedApp, Provisional, Runtime, RuntimeSettings};
use wisp_trigger::http::{
    AdmissionLimits, CommonsSettings, HttpApp, Listener, OneApp, Outcomes, Server, ServerConfig,
};

use super::build::build_app;
use super::common::{
    CeilingFlags, CompilerChoice, Format, SPARE_INSTANCES_COUNT, listener, parse_duration, parse_listen,
    parse_pair, stop_signal, unwrap_checked, user_cache_dir,
};
use super::packages::fetched;
use super::registry::pull_app;
use crate::{error::Error, output};

/// Where an app's stores and logs lie, below its folder.
const STATE_DIR_NAME: &str = ".spin";

/// Serve an app on this machine.
///
/// Reads `spin.toml`, compiles the app's components (once: the result is kept)
/// and answers HTTP requests until it is interrupted.
#[derive(Args)]
pub(crate) struct Up {
    /// The app: a `spin.toml`, a folder with one, a `.wasm` file, or an image in a registry
    /// such as `registry.example/team/app:1.0`.
    #[arg(short = 'f', long, value_name = "PATH", default_value = ".", aliases = ["from-file", "from-registry"])]
    from: PathBuf,

    /// Speak plain HTTP with the registry.
    #[arg(short = 'k', long)]
    insecure: bool,

    /// Read the components with this profile of the manifest.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// Serve only these components.
    #[arg(short, long, value_name = "ID")]
    component_id: Vec<String>,

    /// Build the app first.
    #[arg(long, env = "SPIN_ALWAYS_BUILD")]
    build: bool,

    #[command(flatten)]
    http: HttpFlags,

    #[command(flatten)]
    app: AppFlags,

    #[command(flatten)]
    state: StateFlags,

    #[command(flatten)]
    logs: LogFlags,

    #[command(flatten)]
    limits: CeilingFlags,

    #[command(flatten)]
    engine: EngineFlags,
}

#[derive(Args)]
#[command(next_help_heading = "HTTP")]
struct HttpFlags {
    /// Address and port to listen on; port 0 is any free one.
    #[arg(long, value_name = "ADDRESS", env = "SPIN_HTTP_LISTEN_ADDR", default_value = "127.0.0.1:3000")]
    listen: String,

    /// If the port is taken, use the first free one of the nine after it.
    #[arg(long)]
    find_free_port: bool,

    /// Serve HTTPS with this certificate chain (PEM).
    #[arg(long, value_name = "FILE", env = "SPIN_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM).
    #[arg(long, value_name = "FILE", env = "SPIN_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// How the address and the routes are printed.
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    format: Format,

    /// Largest request line and header block in HTTP/1.1, in bytes (at least 8192).
    #[arg(
        long, value_name = "BYTES", env = "SPIN_HTTP1_MAX_BUF_SIZE", default_value_t = 65_536,
        value_parser = clap::value_parser!(u32).range(8192..)
    )]
    http1_max_buf_size: u32,

    /// Largest request body, in bytes; longer ones get 413.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    max_request_body: u64,

    /// How long running requests may go on after SIGTERM or Ctrl-C.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    grace_period: Duration,

    /// Connections open at once; more wait.
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,

    /// Requests that run at once; more wait, then get 503 with `Retry-After`.
    #[arg(
        long, value_name = "COUNT", env = "SPIN_MAX_INSTANCE_COUNT", default_value_t = 1_000,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    max_instances: u32,

    /// Requests that wait for an instance; more get 503 at once.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000)]
    max_waiting_requests: u32,

    /// How long a request waits for an instance before it gets 503.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "5s")]
    max_wait: Duration,

    /// Tell clients in a `Server-Timing` header what their request took.
    #[arg(long)]
    server_timing: bool,

    /// Let an instance serve this many requests, one after the other, also where a component did not ask for
    /// it [default: a fresh instance for each request].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    max_instance_reuse_count: Option<u32>,

    /// Drop a reusable instance after this time without a request.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "max_instance_reuse_count")]
    idle_instance_timeout: Option<Duration>,
}

#[derive(Args)]
#[command(next_help_heading = "App")]
struct AppFlags {
    /// Set an environment variable for all components.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    env: Vec<(String, String)>,

    /// Set a variable of the app: `name=value`, `name=@file`, or a whole `@file.json` or `@file.toml`.
    #[arg(long, value_name = "NAME=VALUE")]
    variable: Vec<String>,

    /// Mount folders of components where they lie instead of placing copies.
    #[arg(long)]
    direct_mounts: bool,

    /// Let components change the files that they see.
    #[arg(long)]
    allow_transient_write: bool,

    /// Place files of components in this folder [default: a temporary one].
    #[arg(long, value_name = "DIR")]
    temp: Option<PathBuf>,
}

#[derive(Args)]
#[command(next_help_heading = "State")]
struct StateFlags {
    /// Where stores and databases lie; "" keeps them in memory [default: `.spin` beside the manifest].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,

    /// Backends, providers and limits (TOML).
    #[arg(long, value_name = "FILE", env = "RUNTIME_CONFIG_FILE")]
    runtime_config_file: Option<PathBuf>,

    /// Set a key of the default key-value store before serving.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    key_value: Vec<(String, String)>,

    /// Run statements in the default database before serving; `@file` reads a file.
    #[arg(long, value_name = "SQL|@FILE")]
    sqlite: Vec<String>,
}

#[derive(Args)]
#[command(next_help_heading = "Logs")]
struct LogFlags {
    /// Where the output of components is kept; "" keeps none [default: `logs` in the state folder].
    #[arg(short = 'L', long, value_name = "DIR", env = "SPIN_LOG_DIR")]
    log_dir: Option<String>,

    /// Begin log files anew.
    #[arg(long)]
    truncate_logs: bool,

    /// Show the output of these components only.
    #[arg(long, value_name = "ID")]
    follow: Vec<String>,

    /// Show no output of components.
    #[arg(short, long, conflicts_with = "follow")]
    quiet: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Engine")]
struct EngineFlags {
    /// Largest memory of an instance, in bytes [default: 4 GiB].
    #[arg(long, value_name = "BYTES", env = "SPIN_MAX_INSTANCE_MEMORY")]
    max_instance_memory: Option<u64>,

    /// Where compiled components are kept [default: `wisp` in the user's cache folder].
    #[arg(long, value_name = "DIR", env = "WISP_CACHE_DIR")]
    cache_dir: Option<PathBuf>,

    /// Compile at every start, and keep nothing.
    #[arg(long)]
    disable_cache: bool,

    /// Make a new instance for each request instead of putting used ones back to their
    /// beginning; slower.
    #[arg(long)]
    new_instances: bool,

    /// Allocate each instance on its own instead of from a pool; slower.
    #[arg(long)]
    disable_pooling: bool,

    /// How large components are compiled that were not yet: in a fifth of the time and, while
    /// they are served, once more to run faster (`tiered`), or at once in one of these ways.
    #[arg(
        long,
        value_name = "WHICH",
        env = "WISP_COMPILER",
        hide_env_values = true,
        default_value = "tiered"
    )]
    compiler: CompilerChoice,

    /// Compile for gdb and lldb: breakpoints by lines of the guests' sources, their
    /// variables; slower (see docs/debugging.md).
    #[arg(long, alias = "debug-info")]
    debug: bool,

    /// Keep no accounts and share nothing fairly: to measure what that costs.
    #[arg(long, hide = true)]
    no_accounting: bool,
}

/// Arguments of `wisp up` that come with another command.
#[derive(Parser)]
#[command(name = "wisp up")]
struct UpArguments {
    #[command(flatten)]
    up: Up,
}

/// An app that can be served, and swapped while it is.
pub(crate) struct Started {
    server: Mutex<Option<Server>>,
    apps: Arc<OneApp>,
    runtime: Runtime,
    settings: AppSettings,
    state: Arc<AppState>,
    outcomes: Arc<Outcomes>,
    /// Nothing once nothing is swapped any more.
    served: Arc<Mutex<Option<Served>>>,
}

/// What is being served.
struct Served {
    http: Arc<HttpApp>,
    /// Components whose code is to be optimized.
    provisional: Vec<Provisional>,
    /// A thread does that.
    is_optimizing: bool,
}

/// The files that an app was loaded from, as they were.
type Sources = Vec<(PathBuf, Option<FileIdentity>)>;

impl Up {
    /// Reads arguments that came with another command; ends the process if they are wrong.
    pub(crate) fn parse(from: &Path, profile: Option<&str>, arguments: &[OsString]) -> Self {
        let own = ["wisp up".into(), "--from".into(), from.into()];
        let profile = profile.map(|profile| ["--profile".into(), profile.into()]);
        let given = arguments.iter().filter(|argument| *argument != "--").cloned();
        UpArguments::parse_from(own.into_iter().chain(profile.into_iter().flatten()).chain(given)).up
    }

    pub(crate) fn run(&self) -> Result<(), Error> {
        if self.build {
            build_app(&self.app(self.image().as_ref())?, &BuildSettings::default())?;
        }
        let (started, _sources) = self.start()?;
        started.serve()
    }

    /// Does everything that comes before the first request.
    pub(crate) fn start(&self) -> Result<(Arc<Started>, Sources), Error> {
        let image = self.image();
        let app = self.app(image.as_ref())?;
        let runtime_config = self.runtime_config()?;
        let listener = self.listener()?;
        wisp_node::raise_descriptor_limit();

        // The folder of an image is one version's, and goes with it.
        let usual_state_dir = || image.is_none().then(|| app.directory.join(STATE_DIR_NAME));
        let state_dir =
            directory(self.state.state_dir.as_deref(), &runtime_config.state_directory, usual_state_dir);
        let usual_log_dir = || state_dir.as_ref().map(|state| state.join("logs"));
        let log_dir = directory(self.logs.log_dir.as_deref(), &runtime_config.log_directory, usual_log_dir);
        let settings = self.app_settings(&app, runtime_config.max_instance_memory_bytes)?;
        wisp_telemetry::start("wisp-up")?;
        let runtime = Runtime::start(RuntimeSettings {
            engine: EngineConfig {
                compiler: self.engine.compiler.into(),
                max_instances_count: self.http.max_instances + SPARE_INSTANCES_COUNT,
                pooling: !self.engine.disable_pooling,
                rewinds: !self.engine.new_instances,
                debug_info: self.engine.debug,
                ..self.limits.engine()
            },
            image_key: None,
            log_receiver: None,
            is_virtual: false,
            image_dir: (!self.engine.disable_cache).then(|| self.image_dir()),
            runtime_config,
            log_dir,
            truncate_logs: self.logs.truncate_logs,
            follow: self.follow(),
            commons: CommonsSettings {
                admission: AdmissionLimits {
                    max_running_count: self.http.max_instances as usize,
                    max_waiting_count: self.http.max_waiting_requests as usize,
                    max_wait: self.http.max_wait,
                    is_shared: false,
                },
                accounting: !self.engine.no_accounting,
                server_timing: self.http.server_timing,
                max_memory_bytes: self.limits.max_memory_bytes(),
                ..CommonsSettings::default()
            },
        })
        .map_err(|error| Error::Load(error.into()))?;

        let state =
            Arc::new(runtime.open_state(state_dir.as_deref()).map_err(|error| Error::Load(error.into()))?);

        let outcomes = Arc::default();
        let loading =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
        let loaded =
            loading.block_on(runtime.load(&app, &settings, &state, &outcomes)).map_err(Error::Load)?;
        drop(loading);
        self.announce(&listener, &loaded.http);
        let started = Started {
            server: Mutex::new(Some(Server::new(self.server_config(), vec![listener]))),
            apps: Arc::new(OneApp::new(loaded.http.clone(), runtime.tracker().clone())),
            served: Arc::new(Mutex::new(Some(Served {
                http: loaded.http,
                provisional: loaded.provisional,
                is_optimizing: false,
            }))),
            runtime,
            // What is set before serving is not set again.
            settings: AppSettings { key_values: Vec::new(), sql_statements: Vec::new(), ..settings },
            state,
            outcomes,
        };
        Ok((Arc::new(started), loaded.sources))
    }
}

impl Started {
    /// Answers requests until a signal says to stop.
    pub(crate) fn serve(self: &Arc<Self>) -> Result<(), Error> {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(server) = server else { return Ok(()) };
        if let Some(export) = wisp_telemetry::export() {
            let commons = self.runtime.commons().clone();
            export.observe(move || wisp_node::app_metrics(&commons));
        }
        self.optimize();
        let result = server.run(self.apps.clone(), stop_signal());
        // The app's files go with the last hold on it, and are to be gone when this ends.
        drop(lock(&self.served).take());
        self.runtime.flush_logs();
        wisp_telemetry::flush();
        Ok(result?)
    }

    /// Loads another version of the app, and answers later requests with it.
    pub(crate) async fn swap(self: &Arc<Self>, app: &App) -> Result<Sources, Error> {
        let LoadedApp { http, sources, provisional } =
            self.runtime.load(app, &self.settings, &self.state, &self.outcomes).await.map_err(Error::Load)?;
        if let Some(served) = &mut *lock(&self.served) {
            served.put(&self.apps, http, provisional);
        }
        self.optimize();
        Ok(sources)
    }

    /// Has the code optimized that was made in a hurry, on another thread, and swaps it in.
    fn optimize(self: &Arc<Self>) {
        match &mut *lock(&self.served) {
            Some(served) if !served.is_optimizing && !served.provisional.is_empty() => {
                served.is_optimizing = true;
            }
            _ => return,
        }
        let (engine, served, this) =
            (self.runtime.engine().clone(), self.served.clone(), Arc::downgrade(self));
        let optimizing = move || {
            loop {
                // Not held while it is compiled.
                let next = lock(&served).as_mut().and_then(Served::next_provisional);
                let Some(next) = next else { return };
                let optimized = next.optimize(&engine);
                let mut served = lock(&served);
                // Whoever ends the process waits for the lock: this is not the last hold.
                let (Some(served), Some(started)) = (&mut *served, this.upgrade()) else { return };
                if let Err(error) = started.take_in(served, &next, optimized) {
                    tracing::warn!(component = %next.id, "it goes on with baseline code, which is slower: {error}");
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("wisp-optimize".into()).spawn(optimizing) {
            tracing::warn!("components go on with baseline code, which is slower: {error}");
        }
    }

    /// Swaps in a component's optimized code, unless another version was swapped in since.
    fn take_in(
        &self,
        served: &mut Served,
        component: &Provisional,
        optimized: Result<Option<LoadedComponent>, wisp_node::Error>,
    ) -> Result<(), wisp_node::Error> {
        let Some(position) = served.provisional.iter().position(|one| one == component) else {
            return Ok(());
        };
        served.provisional.remove(position);
        let Some(optimized) = optimized? else { return Ok(()) };
        let http = self.runtime.with_code(&served.http, &optimized)?;
        let provisional = std::mem::take(&mut served.provisional);
        served.put(&self.apps, http, provisional);
        if let Origin::Compiled(duration) = optimized.origin {
            let seconds = duration.as_secs_f32();
            tracing::info!(component = %component.id, "optimized in {seconds:.1} s; later starts map the result");
        }
        Ok(())
    }
}

impl Served {
    fn put(&mut self, apps: &OneApp, http: Arc<HttpApp>, provisional: Vec<Provisional>) {
        // Requests that run hold on to the one before.
        drop(apps.replace(http.clone()));
        self.http = http;
        self.provisional = provisional;
    }

    /// What is to be optimized next; nothing ends the thread that does it.
    fn next_provisional(&mut self) -> Option<Provisional> {
        let next = self.provisional.first().cloned();
        self.is_optimizing = next.is_some();
        next
    }
}

fn lock(served: &Mutex<Option<Served>>) -> MutexGuard<'_, Option<Served>> {
    served.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Up {
    /// The image that is to be served, if it is one.
    fn image(&self) -> Option<ImageReference> {
        let text = self.from.to_str().filter(|text| ImageReference::looks_like(text))?;
        text.parse().ok().filter(|_| !self.from.exists())
    }

    /// Reads the manifest, makes one for a bare component, or pulls an image.
    fn app(&self, image: Option<&ImageReference>) -> Result<App, Error> {
        if let Some(image) = image {
            return pull_app(image, self.insecure, &self.cache_dir());
        }
        let is_component = self.from.is_file()
            && self.from.extension().is_some_and(|extension| extension == "wasm" || extension == "wat");
        if is_component {
            return Ok(App::for_component_file(&self.from));
        }
        let app = unwrap_checked(App::read(&self.from, self.profile.as_deref()))?;
        fetched(app, Some(&self.cache_dir()))
    }

    fn runtime_config(&self) -> Result<RuntimeConfig, Error> {
        match &self.state.runtime_config_file {
            None => Ok(RuntimeConfig::default()),
            Some(path) => unwrap_checked(RuntimeConfig::read(path)),
        }
    }

    fn listener(&self) -> Result<Listener, Error> {
        let http = &self.http;
        let address = parse_listen("--listen", &http.listen)?;
        Ok(listener(address, http.find_free_port, http.tls_cert.as_ref(), http.tls_key.as_ref())?)
    }

    fn server_config(&self) -> ServerConfig {
        let http = &self.http;
        ServerConfig {
            max_connections_count: http.max_connections as usize,
            max_header_bytes: http.http1_max_buf_size as usize,
            max_body_bytes: http.max_request_body,
            grace_period: http.grace_period,
            ..ServerConfig::default()
        }
    }

    fn app_settings(&self, app: &App, configured_memory_bytes: Option<u64>) -> Result<AppSettings, Error> {
        let here = Path::new(".");
        let mut settings = AppSettings {
            environment: self.app.env.clone(),
            only_components: self.component_id.clone(),
            files_dir: self.app.temp.clone(),
            use_variables_providers: true,
            direct_mounts: self.app.direct_mounts,
            may_write_files: self.app.allow_transient_write,
            ceilings: self.limits.ceilings(self.engine.max_instance_memory.or(configured_memory_bytes)),
            reuse: self.http.max_instance_reuse_count.map(|max_requests| Reuse {
                max_requests,
                idle_timeout: self.http.idle_instance_timeout.unwrap_or(Reuse::DEFAULT_IDLE_TIMEOUT),
            }),
            ..AppSettings::default()
        };
        for argument in &self.app.variable {
            settings.variables.extend(variables::parse_flag(argument, here)?);
        }
        for (key, value) in &self.state.key_value {
            settings.key_values.push(("default".into(), key.clone(), value.clone().into_bytes()));
        }
        for argument in &self.state.sqlite {
            settings.sql_statements.push(sql_statements(argument, &app.directory)?);
        }
        Ok(settings)
    }

    fn follow(&self) -> Follow {
        if self.logs.quiet {
            Follow::None
        } else if self.logs.follow.is_empty() {
            Follow::All
        } else {
            Follow::Some(self.logs.follow.iter().cloned().collect())
        }
    }

    fn cache_dir(&self) -> PathBuf {
        self.engine.cache_dir.clone().unwrap_or_else(|| user_cache_dir().join("wisp"))
    }

    fn image_dir(&self) -> PathBuf {
        self.cache_dir().join("images")
    }

    /// Says where the app is and what it answers. Scripts read this: its form is
    /// Spin's.
    fn announce(&self, listener: &Listener, app: &HttpApp) {
        let base = format!("{}://{}", listener.scheme(), listener.address());
        let routes = app.routes().map(|(pattern, component)| {
            let url = format!("{base}{}", pattern.prefix());
            (component, pattern, url)
        });
        match self.http.format {
            Format::Plain => {
                let mut text = format!("Serving {base}\nAvailable Routes:\n");
                for (component, pattern, url) in routes {
                    let wildcard = if pattern.has_wildcard() { " (wildcard)" } else { "" };
                    text.push_str(&format!("  {component}: {url}{wildcard}\n"));
                }
                output::data(&text);
            }
            Format::Json => {
                let routes: Vec<_> = routes
                    .map(|(component, pattern, url)| {
                        serde_json::json!({
                            "component": component,
                            "route": pattern.as_str(),
                            "url": url,
                            "wildcard": pattern.has_wildcard(),
                        })
                    })
                    .collect();
                let report = serde_json::json!({ "app": app.name(), "url": base, "routes": routes });
                output::data(&format!("{report}\n"));
            }
        }
    }
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|cause| Error::Read { path: path.to_owned(), cause })
}

/// Where something is kept: the flag wins over the file, an empty one means nowhere.
fn directory(
    flag: Option<&str>,
    configured: &Directory,
    usual: impl FnOnce() -> Option<PathBuf>,
) -> Option<PathBuf> {
    match (flag, configured) {
        (Some(""), _) | (None, Directory::None) => None,
        (Some(flag), _) => Some(flag.into()),
        (None, Directory::Path(path)) => Some(path.clone()),
        (None, Directory::Usual) => usual(),
    }
}

/// `--sqlite [LABEL:]SQL` or `[LABEL:]@FILE`.
fn sql_statements(argument: &str, app_dir: &Path) -> Result<(String, String), Error> {
    let (label, statements) = match argument.split_once(':') {
        Some((label, rest)) if wisp_manifest::id::Label::new(label).is_ok() => (label, rest),
        _ => ("default", argument),
    };
    let statements = match statements.strip_prefix('@') {
        None => statements.to_owned(),
        Some(file) => {
            let path = Path::new(file);
            // As Spin does: where the command was called, then beside the manifest.
            let path = if path.exists() { path.to_owned() } else { app_dir.join(path) };
            read(&path)?
        }
    };
    Ok((label.to_owned(), statements))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn statements_may_name_a_database() {
        let here = Path::new(".");
        assert_eq!(sql_statements("SELECT 1", here).unwrap(), ("default".into(), "SELECT 1".into()));
        assert_eq!(sql_statements("stats:SELECT 1", here).unwrap(), ("stats".into(), "SELECT 1".into()));
        assert!(sql_statements("@no-such-file.sql", here).is_err());
    }
}
