//! From a checked app to one that answers.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempDir;
use wisp_capability::{
    Grants, Linkers, key_value, outbound,
    outbound_http::{self, LocalSlot},
    sqlite,
    variables::{self, Providers, Resolver},
    wasi::{self, LogSettings, Logs, StandardStream, files},
};
use wisp_engine::{Engine, ImageStore, LoadedComponent, Origin};
use wisp_manifest::{
    allowed_hosts::{AllowedHosts, BlockedNetworks},
    id::ComponentId,
    model::{App, Component, Executor, HttpTarget, Source, TriggerKind},
};
use wisp_trigger::http::{ComponentLimits, ComponentSpec, HttpApp, HttpAppBuilder};

use crate::{AppSettings, Error, Errors, NodeSettings, runtime};

/// From this size on, compiling takes long enough to say that it has begun.
const ANNOUNCED_SOURCE_BYTES: usize = 4 << 20;

/// What all apps of a process share.
pub struct Node {
    engine: Engine,
    linkers: Linkers,
    logs: Logs,
    stores: key_value::Stores,
    databases: sqlite::Databases,
    client: Arc<outbound_http::Client>,
    outbound_limits: outbound::Limits,
    settings: NodeSettings,
}

/// An app that answers, and what it needs to exist.
pub struct LoadedApp {
    /// The app itself.
    pub http: Arc<HttpApp>,
    /// Where the files of its components were placed.
    _files: Option<TempDir>,
}

/// A component that is to be served, and how it is called.
struct Wanted<'app> {
    component: &'app Component,
    executor: &'app Executor,
    path: PathBuf,
}

impl Node {
    /// Makes what all apps of the process will share.
    ///
    /// # Errors
    /// If the engine, a store, a log or a TLS setting cannot be set up.
    pub fn start(settings: NodeSettings) -> Result<Self, Error> {
        let config = &settings.runtime_config;
        let state_dir = settings.state_dir.as_deref();
        let images = settings.image_dir.as_ref().map(ImageStore::open).transpose()?;
        let engine = Engine::new(&settings.engine, images)?;
        let linkers = Linkers::new(&engine).map_err(|cause| wisp_engine::Error::Configuration { cause })?;
        let logs = Logs::new(LogSettings {
            directory: settings.log_dir.clone(),
            truncate: settings.truncate_logs,
            follow: settings.follow.clone(),
        })?;
        Ok(Self {
            engine,
            linkers,
            logs,
            stores: key_value::Stores::open(state_dir, &runtime::key_value_stores(config))?,
            databases: sqlite::Databases::open(state_dir, &runtime::sqlite_databases(config))?,
            client: Arc::new(outbound_http::Client::new(&runtime::outbound_http(config))?),
            outbound_limits: runtime::outbound_limits(config),
            settings,
        })
    }

    /// Writes out what components have logged so far. For the end of the process.
    pub fn flush_logs(&self) {
        self.logs.flush();
    }

    /// Loads an app.
    ///
    /// # Errors
    /// Everything that is wrong with any of its components.
    pub async fn load(&self, app: &App, settings: &AppSettings) -> Result<LoadedApp, Errors> {
        let wanted = wanted_components(app, settings)?;
        let providers = Providers::assemble(
            settings.variables.iter().cloned(),
            &runtime::variables_providers(&self.settings.runtime_config),
            &app.directory,
        )?;
        let resolver = Arc::new(Resolver::new(&app.variables, providers).await?);
        for (label, key, value) in &settings.key_values {
            self.stores.set(label, key, value.clone()).await?;
        }
        for (label, statements) in &settings.sql_statements {
            self.databases.execute(label, statements)?;
        }
        let files = files_dir(settings, &wanted)?;
        let files_path = files.as_ref().map(TempDir::path).or(settings.files_dir.as_deref());

        let paths: Vec<PathBuf> = wanted.iter().map(|wanted| wanted.path.clone()).collect();
        let loaded = self.engine.load_files(&paths, |position, size_bytes| {
            if size_bytes >= ANNOUNCED_SOURCE_BYTES {
                let size_mib = size_bytes >> 20;
                tracing::info!(component = %wanted[position].component.id, "compiling {size_mib} MiB");
            }
        });
        let local = LocalSlot::default();
        let mut builder = HttpAppBuilder::new(&self.engine, &self.linkers, self.settings.admission);
        let mut errors = Vec::new();
        for (wanted, loaded) in wanted.iter().zip(loaded) {
            let component = wanted.component;
            let result = match loaded {
                Ok(loaded) => {
                    report_compiling(&component.id, &loaded);
                    self.spec(app, settings, wanted, loaded, &resolver, &local, files_path)
                        .await
                        .and_then(|spec| Ok(builder.component(&component.id, spec)?))
                }
                Err(cause) => Err(Error::Component { component: component.id.to_string(), cause }),
            };
            errors.extend(result.err());
        }
        if errors.is_empty() {
            Ok(LoadedApp { http: builder.build(app, &local), _files: files })
        } else {
            Err(Errors(errors))
        }
    }

    /// Puts together what a component is served with.
    #[expect(clippy::too_many_arguments, reason = "the parts of an app that is being loaded, used once")]
    async fn spec(
        &self,
        app: &App,
        settings: &AppSettings,
        wanted: &Wanted<'_>,
        loaded: LoadedComponent,
        resolver: &Arc<Resolver>,
        local: &LocalSlot,
        files_path: Option<&Path>,
    ) -> Result<ComponentSpec, Error> {
        let component = wanted.component;
        let id = component.id.as_arc();
        let mounts = match files_path {
            None => Vec::new(),
            Some(folder) => files::assemble(
                files::Files { component: id, files: &component.files, exclude: &component.exclude_files },
                &app.directory,
                &folder.join(id.as_ref()),
                if settings.direct_mounts { files::Mode::Direct } else { files::Mode::Copy },
            )?,
        };
        let mut environment = component.environment.clone();
        environment.extend(settings.environment.iter().cloned());
        let wasi = wasi::Grant::new(
            id,
            wasi::Settings {
                environment: environment.into_iter().collect(),
                arguments: Vec::new(),
                mounts,
                may_write: settings.may_write_files,
                stdout: self.logs.sink(id, StandardStream::Stdout)?,
                stderr: self.logs.sink(id, StandardStream::Stderr)?,
            },
        )?;
        let grants = Grants {
            component: id.clone(),
            wasi,
            variables: variables::Grant::new(id.clone(), &component.variables, resolver.clone()).await?,
            key_value: self.stores.grant(&component.key_value_stores)?,
            sqlite: self.databases.grant(&component.sqlite_databases)?,
            outbound: outbound::Grant::new(
                id.clone(),
                self.allowed_hosts(component, resolver).await?,
                self.blocked_networks(),
                self.outbound_limits.clone(),
            ),
            outbound_http: outbound_http::Grant::new(id, &self.client, local.clone()),
            ai_models: component.ai_models.iter().cloned().collect(),
        };
        let limits = component.wisp.limits.or(app.wisp.limits);
        Ok(ComponentSpec {
            loaded,
            grants: Arc::new(grants),
            executor: wanted.executor.clone(),
            reuse: component.wisp.reuse.or(settings.reuse),
            limits: ComponentLimits {
                // What the author asks for can only tighten what the operator allows.
                max_memory_bytes: least(limits.memory_bytes, settings.max_memory_bytes)
                    .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
                request_timeout: least(limits.request_timeout, settings.request_timeout),
                max_concurrent_requests_count: limits
                    .max_concurrent_requests
                    .map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
            },
        })
    }

    async fn allowed_hosts(
        &self,
        component: &Component,
        resolver: &Arc<Resolver>,
    ) -> Result<AllowedHosts, Error> {
        let templates = &component.allowed_outbound_hosts;
        let values = resolver.values_for(templates).await?;
        AllowedHosts::resolve(templates, |name| values.get(name)).map_err(|cause| Error::AllowedHosts {
            component: component.id.to_string(),
            message: cause.to_string(),
        })
    }

    fn blocked_networks(&self) -> BlockedNetworks {
        self.settings.runtime_config.outbound_networking.blocked_networks.clone()
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
        if !http.middleware.is_empty() {
            errors.push(Error::UnsupportedComposition { component: id.to_string(), what: "middleware" });
        }
        if !component.dependencies.is_empty() {
            errors.push(Error::UnsupportedComposition { component: id.to_string(), what: "dependencies" });
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
    if let Origin::Compiled(duration) = loaded.origin {
        let seconds = duration.as_secs_f32();
        tracing::info!(component = %id, "compiled in {seconds:.1} s; later starts map the result");
    }
}

/// The smaller of two bounds, where either may be missing.
fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
