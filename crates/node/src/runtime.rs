//! From a checked app to one that answers.

use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use wisp_capability::{
    Grants, Linkers, RequestLimits, VirtualWorld, key_value, outbound,
    outbound_http::{self, LocalSlot},
    resource::Resources,
    sqlite,
    test_component::Bench,
    variables::{self, Providers, Resolver},
    wasi::{self, LogSettings, LogSink, Logs, StandardStream, files},
};
use wisp_engine::{
    Compiler, Digest, Engine, FileIdentity, ImageStore, InstanceLimits, LoadedComponent, MappedTotals,
    Origin, Tier,
};
use wisp_manifest::{
    allowed_hosts::{AllowedHost, AllowedHosts, BlockedNetworks},
    id::ComponentId,
    model::{App, Component, Executor, HttpTarget, Limits, Source, TriggerKind},
};
use wisp_trigger::http::{
    Commons, ComponentLimits, ComponentSpec, DEFAULT_WEIGHT, HttpApp, HttpAppBuilder, Outcomes,
};

use crate::{
    AppSettings, Error, Errors, Release, RuntimeSettings,
    composition::{self, Composed, Composer},
    runtime_config::{self, Placement},
};

/// What a component that tests an app is called in logs. No component of an app can have
/// that name.
pub const TEST_COMPONENT_ID: &str = "(test)";

/// From this size on, compiling takes long enough to say that it has begun.
const ANNOUNCED_SOURCE_BYTES: usize = 4 << 20;

/// What all apps of a process share.
pub struct Runtime {
    engine: Engine,
    linkers: Linkers,
    composer: Arc<Composer>,
    logs: Logs,
    client: Arc<outbound_http::Client>,
    outbound_limits: outbound::Limits,
    database_threads: Arc<sqlite::Threads>,
    resources: Arc<Resources>,
    open_states_count: Arc<AtomicUsize>,
    tracker: TaskTracker,
    /// Loads at once that read, verify, compile or copy. Each uses all cores by itself
    /// where it compiles; more at once would only hold more memory.
    slow_loads: Arc<Semaphore>,
    commons: Arc<Commons>,
    settings: RuntimeSettings,
}

/// The stores and databases of one app. Not of one version: what they hold outlives it.
pub struct AppState {
    stores: key_value::Stores,
    databases: sqlite::Databases,
    /// They are gone with this; else they are in files.
    pub(crate) is_in_memory: bool,
    _counted: Option<Counted>,
}

/// Counts what exists.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An app that answers.
pub struct LoadedApp {
    /// The app itself.
    pub http: Arc<HttpApp>,
    /// The files that its components were loaded from, as they were.
    pub sources: Vec<(PathBuf, Option<FileIdentity>)>,
    /// Components whose code is to be optimized.
    pub provisional: Vec<Provisional>,
}

/// A component with code of the baseline tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provisional {
    /// The component's id.
    pub id: ComponentId,
    path: PathBuf,
    digest: Digest,
}

/// A component that is to be served, and how it is called.
struct Wanted<'app> {
    component: &'app Component,
    executor: &'app Executor,
    path: PathBuf,
}

/// What a component was given that may have to be opened or copied first.
#[derive(Default)]
struct Provided {
    mounts: Vec<wasi::Mount>,
    key_value: key_value::Grant,
    sqlite: sqlite::Grant,
}

impl AppState {
    /// The app's key-value stores.
    pub fn stores(&self) -> &key_value::Stores {
        &self.stores
    }

    /// The app's databases.
    pub fn databases(&self) -> &sqlite::Databases {
        &self.databases
    }
}

impl Runtime {
    /// Makes what all apps of the process will share.
    ///
    /// # Errors
    /// If the engine, a log or a TLS setting cannot be set up.
    pub fn start(settings: RuntimeSettings) -> Result<Self, Error> {
        let config = &settings.runtime_config;
        let images = match (&settings.image_dir, settings.image_key) {
            (None, _) => None,
            (Some(folder), None) => Some(ImageStore::open(folder)?),
            (Some(folder), Some(key)) => Some(ImageStore::open_signed(folder, key)?),
        };
        let engine = Engine::new(&settings.engine, images)?;
        let linkers = match settings.is_virtual {
            true => Linkers::with_virtual_world(&engine),
            false => Linkers::new(&engine),
        };
        let linkers = linkers.map_err(|cause| wisp_engine::Error::Configuration { cause })?;
        let logs = Logs::new(LogSettings {
            receiver: settings.log_receiver.clone(),
            directory: settings.log_dir.clone(),
            truncate: settings.truncate_logs,
            follow: settings.follow.clone(),
        })?;
        Ok(Self {
            commons: Commons::start(&engine, settings.commons)?,
            composer: Arc::new(Composer::new(settings.image_dir.as_deref())?),
            engine,
            linkers,
            logs,
            client: Arc::new(outbound_http::Client::new(&runtime_config::outbound_http(config))?),
            outbound_limits: runtime_config::outbound_limits(config),
            database_threads: Arc::default(),
            resources: Arc::default(),
            open_states_count: Arc::default(),
            tracker: TaskTracker::new(),
            slow_loads: Arc::new(Semaphore::new(wisp_engine::cores_count())),
            settings,
        })
    }

    /// Opens the stores and databases of the one app of a process: all that are
    /// configured, where the configuration says.
    ///
    /// # Errors
    /// If one of them cannot be opened.
    pub fn open_state(&self, state_dir: Option<&Path>) -> Result<AppState, Error> {
        let config = &self.settings.runtime_config;
        let placement = Placement::AsConfigured;
        Ok(AppState {
            stores: key_value::Stores::open(state_dir, &runtime_config::key_value_stores(config, placement))?,
            databases: sqlite::Databases::open(
                state_dir,
                &runtime_config::sqlite_databases(config, placement),
            )?,
            is_in_memory: state_dir.is_none(),
            _counted: None,
        })
    }

    /// The stores and databases of one app among many: all of them in its own folder,
    /// or in memory, and none of them opened before a component wants it. `is_wanted` if
    /// one will.
    pub fn state(&self, state_dir: Option<&Path>, is_wanted: bool) -> AppState {
        let config = &self.settings.runtime_config;
        let placement = Placement::PerApp(state_dir);
        AppState {
            stores: key_value::Stores::new(state_dir, &runtime_config::key_value_stores(config, placement)),
            databases: sqlite::Databases::new(
                state_dir,
                &runtime_config::sqlite_databases(config, placement),
                self.database_threads.clone(),
            ),
            is_in_memory: state_dir.is_none(),
            _counted: (is_wanted && state_dir.is_some()).then(|| Counted::new(&self.open_states_count)),
        }
    }

    /// The stores and databases of a release: those that its labels are linked to. None
    /// is opened before a component wants it.
    pub fn linked_state(&self, release: &Release, is_wanted: bool) -> AppState {
        AppState {
            stores: key_value::Stores::linked(&self.resources, &release.key_value_stores),
            databases: sqlite::Databases::linked(&self.resources, &release.sqlite_databases),
            is_in_memory: false,
            _counted: is_wanted.then(|| Counted::new(&self.open_states_count)),
        }
    }

    /// The stores and databases of a platform that are open.
    pub fn resources(&self) -> &Arc<Resources> {
        &self.resources
    }

    /// The engine that components run on.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The functions that guests may import.
    pub fn linkers(&self) -> &Linkers {
        &self.linkers
    }

    /// What a component has that tests an app: its output, and requests to the app itself.
    /// `log_name` is what the app is called in logs.
    ///
    /// # Errors
    /// If a log cannot be set up.
    pub fn test_grants(
        &self,
        log_name: &str,
        world: &VirtualWorld,
        bench: Option<Arc<dyn Bench>>,
        local: &LocalSlot,
    ) -> Result<Grants, Error> {
        let id: Arc<str> = TEST_COMPONENT_ID.into();
        let wasi = wasi::Grant::new(
            &id,
            wasi::Settings {
                stdout: self.logs.sink_of(log_name, &id, StandardStream::Stdout),
                stderr: self.logs.sink_of(log_name, &id, StandardStream::Stderr),
                wall_clock: world.wall_clock(),
                ..wasi::Settings::default()
            },
        )?;
        let own_app = AllowedHost::parse("http://self.alt")
            .map_err(|cause| Error::AllowedHosts { component: id.to_string(), message: cause.to_string() })?;
        let config = &self.settings.runtime_config;
        Ok(Grants {
            component: id.clone(),
            wasi,
            outbound: outbound::Grant::new(
                id.clone(),
                AllowedHosts::new(vec![own_app]),
                config.outbound_networking.blocked_networks.clone(),
                self.outbound_limits.clone(),
            ),
            outbound_http: outbound_http::Grant::in_world(&id, &self.client, local.clone(), world.clone()),
            world: world.clone(),
            bench,
            ..Grants::default()
        })
    }

    /// How many apps have stores or databases in files that are open.
    pub fn open_states_count(&self) -> usize {
        self.open_states_count.load(Ordering::Relaxed)
    }

    /// Knows of guests that go on after their response.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// What apps share, and their accounts.
    pub fn commons(&self) -> &Arc<Commons> {
        &self.commons
    }

    /// What is mapped at the moment.
    pub fn mapped(&self) -> MappedTotals {
        self.engine.mapped()
    }

    /// Writes out what components have logged so far. For the end of the process.
    pub fn flush_logs(&self) {
        self.logs.flush();
    }

    /// Loads an app.
    ///
    /// Where everything about its components is known already, nothing here waits: the
    /// future is ready when it is polled first. What may take long (reading, verifying,
    /// compiling, copying files, opening stores) is done on threads for blocking work.
    ///
    /// # Errors
    /// Everything that is wrong with any of its components.
    pub async fn load(
        &self,
        app: &App,
        settings: &AppSettings,
        state: &Arc<AppState>,
        outcomes: &Arc<Outcomes>,
    ) -> Result<LoadedApp, Errors> {
        let Composed { app, inputs } = &self.composed(app, settings).await?;
        let wanted = wanted_components(app, settings)?;
        let providers = self.providers(app, settings)?;
        let resolver = Arc::new(Resolver::new(&app.variables, providers).await?);
        for (label, key, value) in &settings.key_values {
            state.stores.set(label, key, value.clone()).await?;
        }
        for (label, statements) in &settings.sql_statements {
            state.databases.execute(label, statements)?;
        }
        let files = Arc::new(files_dir(settings, &wanted)?);
        let files_path = files.as_ref().as_ref().map(TempDir::path).or(settings.files_dir.as_deref());
        let provided = provide(app, settings, &wanted, state, files_path).await;
        let loaded = self.load_components(&wanted).await;

        let local = LocalSlot::default();
        let account = self.commons.account(settings.log_name.as_deref().unwrap_or(&app.name));
        account.set_weight(settings.cpu_weight.unwrap_or(DEFAULT_WEIGHT));
        let commons = self.commons.clone();
        let mut builder =
            HttpAppBuilder::new(&self.engine, &self.linkers, commons, account, self.tracker.clone())
                .outcomes(outcomes.clone())
                .release(settings.release);
        let mut errors = Vec::new();
        let (mut sources, mut provisional) = (inputs.clone(), Vec::new());
        for ((wanted, loaded), provided) in wanted.iter().zip(loaded).zip(provided) {
            let component = wanted.component;
            let result = match (loaded, provided) {
                (Ok(loaded), Ok(provided)) => {
                    report_compiling(&component.id, &loaded);
                    sources.push((wanted.path.clone(), loaded.source));
                    let is_tiered = self.settings.engine.compiler == Compiler::Tiered;
                    if is_tiered && loaded.kind.tier == Tier::Baseline {
                        let (id, path, digest) = (component.id.clone(), wanted.path.clone(), loaded.digest);
                        provisional.push(Provisional { id, path, digest });
                    }
                    let kept: Arc<dyn Any + Send + Sync> = files.clone();
                    self.spec(app, settings, wanted, loaded, provided, &resolver, &local, kept)
                        .await
                        .and_then(|spec| Ok(builder.component(&component.id, spec)?))
                }
                (Err(cause), _) => Err(Error::Component { component: component.id.to_string(), cause }),
                (_, Err(error)) => Err(error),
            };
            errors.extend(result.err());
        }
        if errors.is_empty() {
            Ok(LoadedApp { http: builder.build(app, &local), sources, provisional })
        } else {
            Err(Errors(errors))
        }
    }

    /// Puts optimized code into an app, whose state and settings stay what they are.
    ///
    /// # Errors
    /// If that code cannot be linked.
    pub fn with_code(&self, app: &HttpApp, optimized: &LoadedComponent) -> Result<Arc<HttpApp>, Error> {
        Ok(app.with_code(&self.linkers, optimized)?)
    }

    /// Does for an app what can be done before it is loaded: its components are
    /// compiled, their images verified, their imports linked. Keeps nothing mapped and
    /// opens no store. Blocks.
    ///
    /// # Errors
    /// Everything that is wrong with any of its components.
    pub fn prepare(&self, app: &App, settings: &AppSettings) -> Result<(), Errors> {
        let mut errors = Vec::new();
        let app = &self.compose(app, &settings.only_components)?.app;
        for wanted in wanted_components(app, settings)? {
            let id = &wanted.component.id;
            let checked = match self.engine.load_file(&wanted.path) {
                Ok(loaded) => {
                    HttpAppBuilder::check(&self.linkers, id, &loaded, wanted.executor).map_err(Error::from)
                }
                Err(cause) => Err(Error::Component { component: id.to_string(), cause: Arc::new(cause) }),
            };
            errors.extend(checked.err());
        }
        if errors.is_empty() { Ok(()) } else { Err(Errors(errors)) }
    }

    /// The app without dependencies and middleware. Blocks.
    ///
    /// # Errors
    /// Everything that is wrong with what its components are composed of.
    pub fn compose<'app>(&self, app: &'app App, only: &[String]) -> Result<Composed<'app>, Errors> {
        self.composer.compose(app, only)
    }

    /// The same, on a thread for blocking work if there is anything to do.
    async fn composed<'app>(&self, app: &'app App, settings: &AppSettings) -> Result<Composed<'app>, Errors> {
        if !composition::is_needed(app) {
            return Ok(Composed::nothing(app));
        }
        let _turn = self.slow_loads.acquire().await;
        let composer = self.composer.clone();
        let (app, only) = (app.clone(), settings.only_components.clone());
        let composing =
            tokio::task::spawn_blocking(move || composer.compose(&app, &only).map(Composed::into_owned));
        match composing.await {
            Ok(composed) => composed,
            Err(error) => Err(Error::FilesFolder { cause: std::io::Error::other(error.to_string()) }.into()),
        }
    }

    /// Loads the code of components: at once where all of it is known, else on threads
    /// for blocking work.
    async fn load_components(
        &self,
        wanted: &[Wanted<'_>],
    ) -> Vec<Result<LoadedComponent, Arc<wisp_engine::Error>>> {
        let known: Option<Vec<_>> =
            wanted.iter().map(|wanted| self.engine.load_known(&wanted.path).map(Ok)).collect();
        if let Some(known) = known {
            return known;
        }
        let _turn = self.slow_loads.acquire().await;
        let engine = self.engine.clone();
        let (ids, paths): (Vec<ComponentId>, Vec<PathBuf>) =
            wanted.iter().map(|wanted| (wanted.component.id.clone(), wanted.path.clone())).unzip();
        let loading = tokio::task::spawn_blocking(move || {
            engine.load_files(&paths, |position, size_bytes| {
                if size_bytes >= ANNOUNCED_SOURCE_BYTES {
                    let size_mib = size_bytes >> 20;
                    tracing::info!(component = %ids[position], "compiling {size_mib} MiB");
                }
            })
        });
        match loading.await {
            Ok(loaded) => loaded,
            Err(error) => {
                let stopped =
                    Arc::new(wisp_engine::Error::Compile { message: format!("loading ended: {error}") });
                wanted.iter().map(|_| Err(stopped.clone())).collect()
            }
        }
    }

    fn providers(&self, app: &App, settings: &AppSettings) -> Result<Providers, Error> {
        let given = settings.variables.iter().cloned();
        if !settings.use_variables_providers {
            return Ok(Providers::new().then(variables::StaticValues::from_command_line(given)));
        }
        let configured = runtime_config::variables_providers(&self.settings.runtime_config);
        Ok(Providers::assemble(given, &configured, &app.directory)?)
    }

    /// Puts together what a component is served with.
    #[expect(clippy::too_many_arguments, reason = "the parts of an app that is being loaded, used once")]
    async fn spec(
        &self,
        app: &App,
        settings: &AppSettings,
        wanted: &Wanted<'_>,
        loaded: LoadedComponent,
        provided: Provided,
        resolver: &Arc<Resolver>,
        local: &LocalSlot,
        kept: Arc<dyn Any + Send + Sync>,
    ) -> Result<ComponentSpec, Error> {
        let component = wanted.component;
        let id = component.id.as_arc();
        let limits = limits(component, app, settings);
        let log = |stream| {
            let sink = self.log(settings, &app.name, id, stream)?;
            Ok::<_, Error>(match limits.log_bytes_per_second {
                Some(bytes_per_second) => sink.with_rate(bytes_per_second),
                None => sink,
            })
        };
        let mut environment = component.environment.clone();
        environment.extend(settings.environment.iter().cloned());
        let wasi = wasi::Grant::new(
            id,
            wasi::Settings {
                environment: environment.into_iter().collect(),
                arguments: Vec::new(),
                mounts: provided.mounts,
                may_write: settings.may_write_files,
                stdout: log(StandardStream::Stdout)?,
                stderr: log(StandardStream::Stderr)?,
                wall_clock: settings.world.wall_clock(),
            },
        )?;
        let grants = Grants {
            component: id.clone(),
            wasi,
            variables: variables::Grant::new(id.clone(), &component.variables, resolver.clone()).await?,
            key_value: provided.key_value,
            sqlite: provided.sqlite,
            outbound: outbound::Grant::new(
                id.clone(),
                self.allowed_hosts(component, resolver, settings).await?,
                self.blocked_networks(settings),
                self.outbound_limits.clone(),
            ),
            outbound_http: outbound_http::Grant::in_world(
                id,
                &self.client,
                local.clone(),
                settings.world.clone(),
            ),
            world: settings.world.clone(),
            bench: None,
            ai_models: component.ai_models.iter().cloned().collect(),
            limits: request_limits(&limits),
        };
        Ok(ComponentSpec {
            loaded,
            grants: Arc::new(grants),
            executor: wanted.executor.clone(),
            reuse: component.wisp.reuse.or(settings.reuse),
            omits_spin_headers: component.wisp.omits_spin_headers,
            limits: component_limits(&limits),
            kept,
        })
    }

    fn log(
        &self,
        settings: &AppSettings,
        app: &str,
        component: &str,
        stream: StandardStream,
    ) -> Result<LogSink, Error> {
        match &settings.log_name {
            None => Ok(self.logs.sink(app, component, stream)?),
            Some(app) => Ok(self.logs.sink_of(app, component, stream)),
        }
    }

    async fn allowed_hosts(
        &self,
        component: &Component,
        resolver: &Arc<Resolver>,
        settings: &AppSettings,
    ) -> Result<AllowedHosts, Error> {
        let templates = &component.allowed_outbound_hosts;
        let values = resolver.values_for(templates).await?;
        let refused = |message: String| Error::AllowedHosts { component: component.id.to_string(), message };
        let allowed = AllowedHosts::resolve(templates, |name| values.get(name))
            .map_err(|cause| refused(cause.to_string()))?;
        // Values of variables may lead where nobody looked when the manifest was judged.
        if let Some(granted) = &settings.granted_hosts
            && let Some(beyond) = allowed
                .iter()
                .find(|asked| !asked.is_own_app() && !granted.iter().any(|granted| granted.covers(asked)))
        {
            return Err(refused(format!("`{beyond}` is not among what the operator grants")));
        }
        Ok(allowed)
    }

    fn blocked_networks(&self, settings: &AppSettings) -> BlockedNetworks {
        let usual = &self.settings.runtime_config.outbound_networking.blocked_networks;
        settings.blocked_networks.as_ref().unwrap_or(usual).clone()
    }
}

/// Opens the stores and places the files of all components; on a thread for blocking
/// work, if there is anything to do.
async fn provide(
    app: &App,
    settings: &AppSettings,
    wanted: &[Wanted<'_>],
    state: &Arc<AppState>,
    files_path: Option<&Path>,
) -> Vec<Result<Provided, Error>> {
    let needs_nothing = wanted.iter().all(|wanted| {
        let component = wanted.component;
        component.files.is_empty()
            && component.key_value_stores.is_empty()
            && component.sqlite_databases.is_empty()
    });
    if needs_nothing {
        return wanted.iter().map(|_| Ok(Provided::default())).collect();
    }
    let components: Vec<Component> = wanted.iter().map(|wanted| wanted.component.clone()).collect();
    let (state, files_path, app_dir) = (state.clone(), files_path.map(Path::to_owned), app.directory.clone());
    let mode = if settings.direct_mounts { files::Mode::Direct } else { files::Mode::Copy };
    let count = components.len();
    let providing = tokio::task::spawn_blocking(move || {
        let provide = |component: &Component| {
            let id = component.id.as_arc();
            let mounts = match &files_path {
                None => Vec::new(),
                Some(folder) => files::assemble(
                    files::Files {
                        component: id,
                        files: &component.files,
                        exclude: &component.exclude_files,
                    },
                    &app_dir,
                    &folder.join(id.as_ref()),
                    mode,
                )?,
            };
            Ok(Provided {
                mounts,
                key_value: state.stores.grant(&component.key_value_stores)?,
                sqlite: state.databases.grant(&component.sqlite_databases)?,
            })
        };
        components.iter().map(provide).collect()
    });
    match providing.await {
        Ok(provided) => provided,
        Err(error) => {
            let cause = || std::io::Error::other(error.to_string());
            (0..count).map(|_| Err(Error::FilesFolder { cause: cause() })).collect()
        }
    }
}

/// The components that HTTP triggers start, each once per way of calling it.
fn wanted_components<'app>(app: &'app App, settings: &AppSettings) -> Result<Vec<Wanted<'app>>, Errors> {
    let mut wanted: Vec<Wanted<'app>> = Vec::new();
    let mut errors = Vec::new();
    let mut has_http_trigger = false;
    for trigger in &app.triggers {
        let TriggerKind::Http(http) = &trigger.kind else {
            tracing::warn!(
                code = "WISP-E0706",
                trigger = %trigger.id,
                "only HTTP triggers run in this version, this one does not"
            );
            continue;
        };
        has_http_trigger = true;
        let HttpTarget::Component { component: id, executor } = &http.target else { continue };
        let Some(component) = app.components.get(id) else { continue };
        let is_wanted = settings.only_components.is_empty()
            || settings.only_components.iter().any(|only| only == id.as_str());
        if !is_wanted || wanted.iter().any(|known| known.component.id == *id && known.executor == executor) {
            continue;
        }
        match &component.source {
            Source::Path(path) => {
                wanted.push(Wanted { component, executor, path: app.directory.join(path) });
            }
            Source::Url { .. } => {
                errors.push(Error::UnsupportedSource { component: id.to_string(), place: "a URL" });
            }
            Source::Registry(_) => {
                errors.push(Error::UnsupportedSource { component: id.to_string(), place: "a registry" });
            }
        }
    }
    if !has_http_trigger {
        errors.push(Error::NoTrigger);
    }
    for only in &settings.only_components {
        if !wanted.iter().any(|wanted| wanted.component.id.as_str() == only) {
            let known = app.components.keys().map(ToString::to_string).collect();
            errors.push(Error::UnknownComponent { component: only.clone(), known });
        }
    }
    if errors.is_empty() { Ok(wanted) } else { Err(Errors(errors)) }
}

/// A temporary folder for files, if there are files and no folder was named.
fn files_dir(settings: &AppSettings, wanted: &[Wanted<'_>]) -> Result<Option<TempDir>, Error> {
    let has_files = wanted.iter().any(|wanted| !wanted.component.files.is_empty());
    if !has_files || settings.files_dir.is_some() {
        return Ok(None);
    }
    tempfile::Builder::new()
        .prefix("wisp-files-")
        .tempdir()
        .map(Some)
        .map_err(|cause| Error::FilesFolder { cause })
}

fn report_compiling(id: &ComponentId, loaded: &LoadedComponent) {
    match loaded.origin {
        Origin::Mapped => {}
        Origin::Shared(duration) => {
            let milliseconds = duration.as_millis();
            tracing::info!(component = %id, "ready in {milliseconds} ms; its code was compiled before");
        }
        Origin::Compiled(duration) if loaded.kind.tier == Tier::Baseline => {
            let seconds = duration.as_secs_f32();
            tracing::info!(component = %id, "compiled in {seconds:.1} s by the baseline compiler");
        }
        Origin::Compiled(duration) => {
            let seconds = duration.as_secs_f32();
            tracing::info!(component = %id, "compiled in {seconds:.1} s; later starts map the result");
        }
    }
}

impl Provisional {
    /// Has a component's code optimized; `None` if that is not possible any more, since its
    /// file was changed. Blocks for as long as that takes.
    ///
    /// # Errors
    /// What is wrong with the component or the folder of images.
    pub fn optimize(&self, engine: &Engine) -> Result<Option<LoadedComponent>, Error> {
        let cause = |cause| Error::Component { component: self.id.to_string(), cause: Arc::new(cause) };
        engine.optimize(&self.path, &self.digest).map_err(cause)
    }
}

/// What bounds a component: what its author asks for can only tighten what the
/// operator allows.
fn limits(component: &Component, app: &App, settings: &AppSettings) -> Limits {
    component.wisp.limits.or(app.wisp.limits).or(Limits::DEFAULT).within(settings.ceilings)
}

fn component_limits(limits: &Limits) -> ComponentLimits {
    let unbounded = ComponentLimits::default();
    ComponentLimits {
        instance: InstanceLimits {
            memory_bytes: count(limits.memory_bytes, unbounded.instance.memory_bytes),
            table_elements_count: count(limits.table_elements, unbounded.instance.table_elements_count),
        },
        cpu_time: limits.cpu_time.unwrap_or(unbounded.cpu_time),
        request_timeout: limits.request_timeout.unwrap_or(unbounded.request_timeout),
        max_concurrent_requests_count: limits.max_concurrent_requests.map(|limit| count(Some(limit), 0)),
        max_request_body_bytes: limits.request_body_bytes.unwrap_or(unbounded.max_request_body_bytes),
        max_response_body_bytes: limits.response_body_bytes.unwrap_or(unbounded.max_response_body_bytes),
        max_handles_count: count(limits.max_handles, unbounded.max_handles_count),
    }
}

fn request_limits(limits: &Limits) -> RequestLimits {
    let unbounded = RequestLimits::default();
    RequestLimits {
        outbound_requests_count: limits.max_outbound_requests.unwrap_or(unbounded.outbound_requests_count),
        outbound_connections_count: limits
            .max_outbound_connections
            .unwrap_or(unbounded.outbound_connections_count),
        log_bytes: limits.log_bytes.unwrap_or(unbounded.log_bytes),
    }
}

/// A limit as this machine counts; what it cannot count to is no limit.
fn count<T: TryInto<usize>>(limit: Option<T>, otherwise: usize) -> usize {
    limit.map_or(otherwise, |limit| limit.try_into().unwrap_or(usize::MAX))
}
