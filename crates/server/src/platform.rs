//! The machine that runs apps, as the control plane sees it.
//!
//! The control plane decides; here it is done: images are unpacked and compiled, stores
//! made, migrations run, releases loaded beside those that serve and swapped in. Every
//! method may be called again after a kill, and none leaves anything half made to be
//! seen: folders and images are put together elsewhere and renamed, stores are made by
//! SQLite, a swap is one pointer.
//!
//! What is kept in memory per app is its hosts and the number of the last change.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use indexmap::IndexMap;
use sha2::{Digest as _, Sha256};
use wisp_capability::{
    key_value::PAGE_MAX_COUNT,
    resource::{Migration, Resource as StoreFile, Resources},
    sqlite::Value as SqlValue,
    variables::Value,
};
use wisp_control::{
    AppHealth, AppKey, AppUsage, ByteStream, Change, ChangeKind, Deployment, DomainProof, Grants,
    ImageDescription, Kept, LogQuery, LogStream, Platform, PlatformError, PlatformErrorKind, PlatformResult,
    Repository, Resource, ResourceKind, SqlAnswer, SqlStatement,
    model::{CertificateStatus, GarbageItem},
    names::{AppId, Digest, Host, ReleaseNumber, TeamName},
};
use wisp_engine::Engine;
use wisp_ingress::{Rate, RateLimits, SystemResolver};
use wisp_manifest::{App, allowed_hosts::AllowedHost, id::VariableName, model::Source};
use wisp_node::{
    Change as NodeChange, ChangeKind as NodeChangeKind, HostName, Node, Release, ReleaseId, Releases, Staged,
    Swapped,
};

use crate::{
    Compiler, DataDirectory, Error, LogStore,
    certificates::Tls,
    garbage::{InUse, KnownSources, Places},
    images::Images,
    log_store::now_ms,
};

/// The folder of an unpacked image that holds its migrations.
const MIGRATIONS_FOLDER: &str = "migrations";

/// The folder of an unpacked image that holds its components.
const COMPONENTS_FOLDER: &str = "components";

/// The largest migration: a schema with its first data.
const MIGRATION_BYTES: u64 = 4 << 20;

/// Releases that wait to be swapped in or were found bad: a deploy that was given up
/// leaves one behind until the next of its app.
const STAGED_COUNT: usize = 1_000;

/// How much of an export is read at once.
const PIECE_BYTES: usize = 256 << 10;

/// The largest export that is taken in.
const IMPORT_BYTES: u64 = 64 << 30;

/// The machine that runs apps.
pub struct Machine {
    directory: DataDirectory,
    node: Arc<Node>,
    images: Arc<Images>,
    compiler: Arc<Compiler>,
    logs: Arc<LogStore>,
    descriptions: Arc<Descriptions>,
    resolver: SystemResolver,
    rates: Arc<RateLimits>,
    rate: Rates,
    certificates: OnceLock<Tls>,
    in_use: InUse,
    known_sources: Arc<KnownSources>,
    state: Mutex<State>,
}

/// How often apps and teams may be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Each app.
    pub app: Option<Rate>,
    /// All apps of a team together.
    pub team: Option<Rate>,
}

/// What releases consist of: those that serve, and those that are about to.
#[derive(Default)]
pub struct Descriptions {
    /// By app.
    releases: Mutex<HashMap<Arc<str>, Vec<Known>>>,
    maker: OnceLock<Maker>,
}

/// Makes folders and compiled images that are not there: after a restoration, or when
/// another version of the engine needs other ones.
struct Maker {
    images: Arc<Images>,
    compiler: Arc<Compiler>,
    releases: PathBuf,
    engine: Engine,
    runtime: tokio::runtime::Handle,
}

/// A release by the id that the node asks by.
type Known = (ReleaseId, Arc<Described>);

/// A release, as the control plane gave it.
struct Described {
    folder: PathBuf,
    deployment: Deployment,
    stores: PathBuf,
}

#[derive(Default)]
struct State {
    /// Where each app is reached, and since which change.
    apps: HashMap<AppId, Placed>,
    /// Releases that were checked.
    staged: HashMap<ReleaseId, Staged>,
    /// Releases that may still be answering.
    draining: HashMap<AppId, Vec<Swapped>>,
}

struct Placed {
    number: u64,
    hosts: Vec<HostName>,
}

impl Machine {
    /// Puts the machine together. `descriptions` are those that the node asks.
    #[expect(clippy::too_many_arguments, reason = "the parts of a machine, put together once")]
    pub(crate) fn new(
        directory: DataDirectory,
        node: Arc<Node>,
        images: Arc<Images>,
        compiler: Arc<Compiler>,
        logs: Arc<LogStore>,
        descriptions: Arc<Descriptions>,
        resolver: SystemResolver,
        rates: Arc<RateLimits>,
        rate: Rates,
        in_use: InUse,
    ) -> Self {
        let maker = Maker {
            images: images.clone(),
            compiler: compiler.clone(),
            releases: directory.releases(),
            engine: node.runtime().engine().clone(),
            runtime: tokio::runtime::Handle::current(),
        };
        // Once a process.
        drop(descriptions.maker.set(maker));
        Self {
            directory,
            node,
            images,
            compiler,
            logs,
            descriptions,
            resolver,
            rates,
            rate,
            certificates: OnceLock::new(),
            in_use,
            known_sources: Arc::default(),
            state: Mutex::default(),
        }
    }

    /// Says who knows of certificates, once that is known. Without it there are none.
    pub(crate) fn tell_of(&self, certificates: Tls) {
        // Once a process.
        drop(self.certificates.set(certificates));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The unpacked image of a deployment; unpacked if it is not.
    async fn unpack(&self, image: &Digest) -> PlatformResult<(PathBuf, App)> {
        self.images.unpack(image, &self.directory.releases()).await.map_err(platform_error)
    }

    /// Makes a release known to the node, under the id that it will be asked for by.
    fn describe(&self, deployment: &Deployment) -> ReleaseId {
        let id = release_id(deployment);
        let described = Described {
            folder: self.images.folder(&deployment.image, &self.directory.releases()),
            deployment: deployment.clone(),
            stores: self.directory.stores(),
        };
        self.descriptions.put(id.clone(), described);
        id
    }

    fn store_file(&self, resource: &Resource) -> StoreFile {
        store_file(&self.directory.stores(), resource)
    }

    fn resources(&self) -> &Arc<Resources> {
        self.node.runtime().resources()
    }

    /// Makes known what runs already, when the server starts: it is loaded when it is
    /// asked for.
    ///
    /// # Errors
    /// If a host's name is none.
    pub fn register(&self, number: u64, deployment: &Deployment) -> PlatformResult<()> {
        self.put(number, deployment, None)
    }

    /// Loads a release beside what serves, and has it answer its probe.
    async fn stage(&self, deployment: &Deployment) -> PlatformResult<Staged> {
        let host = deployment.hosts.first().ok_or_else(|| failed("the app has no host"))?;
        let host = HostName::new(host.as_str()).map_err(|error| node_error(&error))?;
        let release = self.describe(deployment);
        self.node.stage(&host, release).await.map_err(|errors| {
            let message = errors.to_string();
            let mut error = match errors.0.first() {
                Some(error) => node_error(error),
                None => failed("the release cannot be loaded"),
            };
            error.message = message;
            error
        })
    }

    /// Makes a change true that puts a release. Without one that is staged it is loaded
    /// when it is asked for.
    fn put(&self, number: u64, deployment: &Deployment, staged: Option<Staged>) -> PlatformResult<()> {
        let app = &deployment.app;
        let mut hosts = Vec::with_capacity(deployment.hosts.len());
        for host in &deployment.hosts {
            hosts.push(HostName::new(host.as_str()).map_err(|error| node_error(&error))?);
        }
        let Some((own, others)) = hosts.split_first() else {
            return Err(failed("the app has no host"));
        };
        let mut state = self.state();
        let gone = match state.apps.get(&app.id) {
            Some(placed) if placed.number >= number => return Ok(()),
            Some(placed) => placed.hosts.iter().filter(|host| !hosts.contains(host)).cloned().collect(),
            None => Vec::new(),
        };
        let release = self.describe(deployment);
        match staged {
            Some(staged) => {
                let swapped = self.node.swap(number, staged).map_err(|error| node_error(&error))?;
                let draining = state.draining.entry(app.id).or_default();
                draining.retain(|swapped| !swapped.is_drained());
                draining.push(swapped);
            }
            None => self.node.apply(NodeChange {
                number,
                kind: NodeChangeKind::Release { host: own.clone(), release: release.clone() },
            }),
        }
        for host in others {
            let kind = NodeChangeKind::Alias { host: host.clone(), of: own.clone() };
            self.node.apply(NodeChange { number, kind });
        }
        for host in gone {
            self.unlimit(&host);
            self.node.withdraw(&host);
        }
        self.limit(app, &hosts);
        state.apps.insert(app.id, Placed { number, hosts });
        self.descriptions.keep_newest(&release);
        Ok(())
    }

    fn remove(&self, number: u64, app: &AppKey) {
        let mut state = self.state();
        let hosts = match state.apps.get_mut(&app.id) {
            Some(placed) if placed.number >= number => return,
            Some(placed) => {
                placed.number = number;
                std::mem::take(&mut placed.hosts)
            }
            None => Vec::new(),
        };
        // Other names first, so that none outlives what it is a name for.
        for host in hosts.iter().rev() {
            self.unlimit(host);
            self.node.withdraw(host);
        }
        let name = app.to_string();
        state.staged.retain(|id, _| *id.app != *name);
        drop(state);
        self.descriptions.forget(&name);
    }

    /// Bounds how often an app may be asked.
    fn limit(&self, app: &AppKey, hosts: &[HostName]) {
        if self.rate == Rates::default() {
            return;
        }
        let (team, name) = (app.team.as_str(), app.name.as_str());
        for host in hosts {
            let assigned = wisp_ingress::HostName::new(host.as_str())
                .and_then(|host| self.rates.assign(&host, team, name));
            if let Err(error) = assigned {
                tracing::warn!(%host, code = error.code(), "the host has no limit: {error}");
            }
        }
        self.rates.set_app_rate(team, name, self.rate.app);
        self.rates.set_team_rate(team, self.rate.team);
    }

    fn unlimit(&self, host: &HostName) {
        if let Ok(host) = wisp_ingress::HostName::new(host.as_str()) {
            self.rates.remove(&host);
        }
    }

    /// The components of an unpacked image that are compiled.
    ///
    /// # Errors
    /// If the image cannot be read.
    pub(crate) fn sources_in(folder: &Path) -> Result<Vec<PathBuf>, Error> {
        let app =
            App::read_file(&folder.join(wisp_manifest::LOCKED_FILE_NAME), None).map_err(|problems| {
                let cause = std::io::Error::other(problems.to_string());
                Error::DataDirectory { path: folder.to_owned(), cause }
            })?;
        Ok(Self::sources(folder, &app.value))
    }

    /// The components of an app that are compiled.
    fn sources(folder: &Path, app: &App) -> Vec<PathBuf> {
        let mut seen = HashSet::new();
        app.components_for("http")
            .into_iter()
            .filter_map(|component| match &component.source {
                Source::Path(path) => Some(folder.join(path)),
                Source::Url { .. } | Source::Registry(_) => None,
            })
            .filter(|path| seen.insert(path.clone()))
            .collect()
    }
}

impl Platform for Machine {
    fn describe_image<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, PlatformResult<ImageDescription>> {
        async move {
            let name = repository.to_string();
            if !self.images.holds(&name, digest).await.map_err(platform_error)? {
                return Err(PlatformError::not_found(
                    "WISP-E1107",
                    format!("there is no image {digest} in `{name}`"),
                )
                .with_hint("push it first: `wisp deploy` does that"));
            }
            let (folder, app) = self.unpack(digest).await?;
            blocking(move || {
                let mut description = ImageDescription::of_app(&app, "");
                description.migrations_count = migrations(&folder)?.len() as u64;
                Ok(description)
            })
            .await
        }
        .boxed()
    }

    fn compile<'a>(&'a self, deployment: &'a Deployment) -> BoxFuture<'a, PlatformResult<()>> {
        async move {
            let (folder, app) = self.unpack(&deployment.image).await?;
            for source in Self::sources(&folder, &app) {
                self.compiler.ensure(self.node.runtime().engine(), &source).await.map_err(platform_error)?;
            }
            Ok(())
        }
        .boxed()
    }

    fn provision<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<()>> {
        async move {
            let (file, kind) = (self.store_file(resource), resource.kind);
            let resources = self.resources().clone();
            blocking(move || match kind {
                ResourceKind::KeyValue => {
                    resources.store(&file).map(drop).map_err(|error| store_error(&error))
                }
                ResourceKind::Sqlite => {
                    resources.migrate(&file, &[]).map(drop).map_err(|error| store_error(&error))
                }
            })
            .await
        }
        .boxed()
    }

    fn migrate<'a>(&'a self, deployment: &'a Deployment) -> BoxFuture<'a, PlatformResult<u64>> {
        async move {
            let (folder, _) = self.unpack(&deployment.image).await?;
            let found = blocking(move || migrations(&folder)).await?;
            if found.is_empty() {
                return Ok(0);
            }
            let database = deployment
                .links
                .iter()
                .find(|link| link.label.as_str() == "default" && link.resource.kind == ResourceKind::Sqlite);
            let Some(link) = database else {
                return Err(PlatformError::refused(
                    "WISP-E1108",
                    "the release has SQL migrations, and nothing is linked as `default` that they could change",
                )
                .with_hint("link a database as `default`, or remove `migrations` from the manifest"));
            };
            let (file, resources) = (self.store_file(&link.resource), self.resources().clone());
            let applied = blocking(move || {
                resources.migrate(&file, &found).map_err(|error| {
                    sql_error(&error, "correct the migration; nothing of the release's migrations was applied")
                })
            });
            Ok(applied.await?.len() as u64)
        }
        .boxed()
    }

    fn check<'a>(&'a self, deployment: &'a Deployment) -> BoxFuture<'a, PlatformResult<()>> {
        async move {
            let release = release_id(deployment);
            let staged = self.stage(deployment).await?;
            let mut state = self.state();
            state.staged.retain(|id, _| id.app != release.app);
            if state.staged.len() >= STAGED_COUNT {
                // Only deploys that were given up; they are loaded again if they come back.
                state.staged.clear();
            }
            state.staged.insert(release, staged);
            Ok(())
        }
        .boxed()
    }

    fn apply<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, PlatformResult<()>> {
        async move {
            match &change.kind {
                ChangeKind::Put(deployment) => {
                    let release = release_id(deployment);
                    let staged = {
                        let mut state = self.state();
                        let staged = state.staged.remove(&release);
                        // Those of releases that were given up.
                        state.staged.retain(|id, _| id.app != release.app);
                        staged
                    };
                    // Going back, and what changed around a release, come without a check.
                    let staged = match staged {
                        Some(staged) => staged,
                        None => self.stage(deployment).await?,
                    };
                    self.put(change.number.0, deployment, Some(staged))
                }
                ChangeKind::Remove(app) => {
                    self.remove(change.number.0, app);
                    Ok(())
                }
            }
        }
        .boxed()
    }

    fn drain<'a>(
        &'a self,
        app: &'a AppKey,
        release: ReleaseNumber,
        at_most: Duration,
    ) -> BoxFuture<'a, PlatformResult<u64>> {
        async move {
            let swaps = self.state().draining.remove(&app.id).unwrap_or_default();
            let drained = async {
                for swapped in &swaps {
                    swapped.drained().await;
                }
            };
            if tokio::time::timeout(at_most, drained).await.is_ok() {
                return Ok(0);
            }
            let count = swaps.iter().map(|swapped| swapped.in_use_count() as u64).sum();
            tracing::info!(%app, %release, "{count} requests are still on the release before");
            Ok(count)
        }
        .boxed()
    }

    fn destroy<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<()>> {
        async move {
            let file = self.store_file(resource);
            blocking(move || {
                for path in sqlite_files(&file.path) {
                    match fs::remove_file(&path) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                            return Err(failed(&format!("`{}` cannot be removed: {error}", path.display())));
                        }
                        _ => {}
                    }
                }
                Ok(())
            })
            .await
        }
        .boxed()
    }

    fn forget<'a>(&'a self, app: &'a AppKey) -> BoxFuture<'a, PlatformResult<()>> {
        async move {
            let (logs, name) = (self.logs.clone(), app.to_string());
            self.state().apps.remove(&app.id);
            self.state().draining.remove(&app.id);
            blocking(move || {
                logs.forget(&name);
                Ok(())
            })
            .await
        }
        .boxed()
    }

    fn forget_team<'a>(&'a self, team: &'a TeamName) -> BoxFuture<'a, PlatformResult<()>> {
        async move { self.images.forget_team(team.as_str()).await.map_err(platform_error) }.boxed()
    }

    fn collect_garbage<'a>(
        &'a self,
        kept: &'a Kept,
        is_only_asked: bool,
    ) -> BoxFuture<'a, PlatformResult<Vec<GarbageItem>>> {
        async move {
            let places = Places {
                directory: &self.directory,
                images: &self.images,
                compiler: &self.compiler,
                engine: self.node.runtime().engine(),
                in_use: &self.in_use,
                sources: &self.known_sources,
            };
            places.clean(kept, is_only_asked).await.map_err(platform_error)
        }
        .boxed()
    }

    fn usage<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<u64>> {
        async move {
            let file = self.store_file(resource);
            blocking(move || {
                let size = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
                Ok(sqlite_files(&file.path).into_iter().map(size).sum())
            })
            .await
        }
        .boxed()
    }

    fn key_value_get<'a>(
        &'a self,
        resource: &'a Resource,
        key: &'a str,
    ) -> BoxFuture<'a, PlatformResult<Option<Bytes>>> {
        async move {
            let store = self.store(resource).await?;
            Ok(store.get(key).await.map_err(|error| key_value_error(&error.0))?.map(Bytes::from))
        }
        .boxed()
    }

    fn key_value_set<'a>(
        &'a self,
        resource: &'a Resource,
        key: &'a str,
        value: Bytes,
    ) -> BoxFuture<'a, PlatformResult<()>> {
        async move {
            let store = self.store(resource).await?;
            store.set(key.to_owned(), value.into()).await.map_err(|error| key_value_error(&error.0))
        }
        .boxed()
    }

    fn key_value_delete<'a>(
        &'a self,
        resource: &'a Resource,
        key: &'a str,
    ) -> BoxFuture<'a, PlatformResult<()>> {
        async move {
            let store = self.store(resource).await?;
            store.delete(key.to_owned()).await.map_err(|error| key_value_error(&error.0))
        }
        .boxed()
    }

    fn key_value_list<'a>(
        &'a self,
        resource: &'a Resource,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, PlatformResult<Vec<String>>> {
        async move {
            let store = self.store(resource).await?;
            let mut found = Vec::new();
            let mut after = after.map(str::to_owned);
            loop {
                let page = store.keys(after.clone()).await.map_err(|error| key_value_error(&error.0))?;
                let is_last = page.len() < PAGE_MAX_COUNT;
                after = page.last().cloned();
                // In order: those with the prefix stand together.
                let is_past = after.as_deref().is_some_and(|key| key > prefix && !key.starts_with(prefix));
                found.extend(page.into_iter().filter(|key| key.starts_with(prefix)));
                if found.len() >= limit || is_last || is_past {
                    found.truncate(limit);
                    return Ok(found);
                }
            }
        }
        .boxed()
    }

    fn sql<'a>(
        &'a self,
        resource: &'a Resource,
        statement: &'a SqlStatement,
    ) -> BoxFuture<'a, PlatformResult<SqlAnswer>> {
        async move {
            let parameters = statement.parameters.iter().map(sql_parameter).collect();
            let file = self.store_file(resource);
            let text = statement.text.clone();
            let table = match statement.may_write {
                true => self.resources().query(&file, text, parameters).await,
                false => self.resources().query_only(&file, text, parameters).await,
            };
            let table = table.map_err(|error| sql_error(&error, "correct the statement"))?;
            let is_truncated = table.rows.len() > statement.max_rows;
            Ok(SqlAnswer {
                columns: table.columns,
                rows: table
                    .rows
                    .into_iter()
                    .take(statement.max_rows)
                    .map(|row| row.into_iter().map(sql_value).collect())
                    .collect(),
                changed_rows: table.changes_count,
                is_truncated,
            })
        }
        .boxed()
    }

    fn export<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<ByteStream>> {
        async move {
            let (file, scratch) = (self.store_file(resource), self.directory.scratch());
            let (folder, copy) = blocking(move || {
                let folder = tempfile::Builder::new()
                    .prefix("export-")
                    .tempdir_in(scratch)
                    .map_err(|error| failed(&error.to_string()))?;
                let copy = folder.path().join("resource.db");
                Resources::copy(&file.path, &copy).map_err(|error| store_error(&error))?;
                let copy = fs::File::open(copy).map_err(|error| failed(&error.to_string()))?;
                Ok((folder, copy))
            })
            .await?;
            let pieces = futures::stream::try_unfold(
                (tokio::fs::File::from_std(copy), folder),
                |(mut file, folder)| async move {
                    use tokio::io::AsyncReadExt as _;
                    let mut piece = vec![0; PIECE_BYTES];
                    let count = file.read(&mut piece).await.map_err(|error| failed(&error.to_string()))?;
                    piece.truncate(count);
                    Ok((count > 0).then(|| (Bytes::from(piece), (file, folder))))
                },
            );
            Ok(pieces.boxed())
        }
        .boxed()
    }

    fn import<'a>(
        &'a self,
        resource: &'a Resource,
        mut data: ByteStream,
    ) -> BoxFuture<'a, PlatformResult<()>> {
        async move {
            use tokio::io::AsyncWriteExt as _;
            let io = |error: std::io::Error| failed(&error.to_string());
            let folder = tempfile::Builder::new()
                .prefix("import-")
                .tempdir_in(self.directory.scratch())
                .map_err(io)?;
            let path = folder.path().join("resource.db");
            let mut file = tokio::fs::File::create(&path).await.map_err(io)?;
            let mut size_bytes = 0;
            while let Some(piece) = data.next().await {
                let piece = piece?;
                size_bytes += piece.len() as u64;
                if size_bytes > IMPORT_BYTES.min(resource.quota_bytes) {
                    let message =
                        format!("the data is larger than the quota of {} bytes", resource.quota_bytes);
                    let mut error = PlatformError::refused("WISP-E1109", message);
                    error.kind = PlatformErrorKind::Quota;
                    return Err(error);
                }
                file.write_all(&piece).await.map_err(io)?;
            }
            file.flush().await.map_err(io)?;
            drop(file);
            let (target, resources) = (self.store_file(resource), self.resources().clone());
            let is_key_value = resource.kind == ResourceKind::KeyValue;
            blocking(move || {
                let _folder = folder;
                resources.replace(&target, &path, is_key_value).map_err(|error| {
                    let mut error = store_error(&error);
                    error.kind = PlatformErrorKind::Refused;
                    error
                })
            })
            .await
        }
        .boxed()
    }

    fn logs<'a>(&'a self, app: &'a AppKey, query: &'a LogQuery) -> BoxFuture<'a, PlatformResult<LogStream>> {
        async move {
            let (logs, name, query) = (self.logs.clone(), app.to_string(), query.clone());
            let reading = blocking(move || Ok(logs.read(&name, &query))).await?;
            let past = futures::stream::iter(reading.records.into_iter().map(Ok));
            Ok(match reading.live {
                None => past.boxed(),
                Some(live) => {
                    let live = futures::stream::unfold(live, |mut live| async move {
                        let record = live.next().await?;
                        Some((Ok(record), live))
                    });
                    past.chain(live).boxed()
                }
            })
        }
        .boxed()
    }

    fn proves_domain<'a>(&'a self, proof: &'a DomainProof) -> BoxFuture<'a, PlatformResult<bool>> {
        async move {
            let failed = |error: std::io::Error| {
                PlatformError::failed("WISP-E1114", format!("DNS cannot be asked: {error}"))
                    .with_hint("check the system's name servers, or name one as `dns` in `wisp.toml`")
            };
            let name = wisp_ingress::HostName::new(proof.host.as_str())
                .map_err(|error| PlatformError::refused(error.code(), error.to_string()))?;
            let nothing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
            let alias = match self.resolver.alias(&name).await {
                Err(error) if nothing(&error) => None,
                alias => alias.map_err(failed)?,
            };
            let leads_here = alias.is_some_and(|alias| {
                let alias = alias.trim_end_matches('.').to_ascii_lowercase();
                proof.targets.iter().any(|target| target.as_str() == alias)
            });
            if leads_here {
                return Ok(true);
            }
            let texts = match self.resolver.texts(proof.txt_name.as_str()).await {
                Err(error) if nothing(&error) => Vec::new(),
                texts => texts.map_err(failed)?,
            };
            Ok(texts.iter().any(|text| text.trim() == proof.txt_value))
        }
        .boxed()
    }

    fn certificate<'a>(&'a self, host: &'a Host) -> BoxFuture<'a, PlatformResult<Option<CertificateStatus>>> {
        async move {
            // Not before the server answers.
            let Some(certificates) = self.certificates.get() else { return Ok(None) };
            certificates.status(host).await.map_err(platform_error)
        }
        .boxed()
    }

    fn health<'a>(&'a self, app: &'a AppKey) -> BoxFuture<'a, PlatformResult<AppHealth>> {
        async move {
            let host = self.state().apps.get(&app.id).and_then(|placed| placed.hosts.first().cloned());
            let facts = host.and_then(|host| self.node.facts(host.as_str()).ok());
            let Some(facts) = facts else {
                return Ok(AppHealth { state: "stopped".into(), message: None });
            };
            let message = facts["problem"]["reason"].as_str().map(str::to_owned);
            let state = match (facts["healthy"].as_bool(), facts["state"].as_str()) {
                (Some(false), _) => "failing",
                (_, Some("registered")) => "loading",
                _ => "serving",
            };
            Ok(AppHealth { state: state.into(), message })
        }
        .boxed()
    }

    fn measure<'a>(&'a self, apps: &'a [AppKey]) -> BoxFuture<'a, PlatformResult<Vec<AppUsage>>> {
        async move {
            let at_ms = now_ms();
            let usage_of = |app: &AppKey| {
                let host = self.state().apps.get(&app.id).and_then(|placed| placed.hosts.first().cloned());
                let used = host.and_then(|host| self.node.usage_at(host.as_str()));
                let unused = || AppUsage {
                    app: app.to_string(),
                    at_ms,
                    state: "stopped".into(),
                    ..AppUsage::default()
                };
                used.and_then(|used| serde_json::from_value(used.to_json(at_ms)).ok()).unwrap_or_else(unused)
            };
            Ok(apps.iter().map(usage_of).collect())
        }
        .boxed()
    }

    fn ailments(&self) -> BoxFuture<'_, Vec<String>> {
        async move {
            let path = self.directory.path().to_owned();
            let free = tokio::task::spawn_blocking(move || free_bytes(&path)).await.ok().flatten();
            match free {
                Some(bytes) if bytes < LEAST_FREE_BYTES => {
                    vec![format!("only {} MiB are free in the data directory", bytes >> 20)]
                }
                _ => Vec::new(),
            }
        }
        .boxed()
    }
}

/// With less free than this, deploys begin to fail.
const LEAST_FREE_BYTES: u64 = 512 << 20;

impl Machine {
    /// A key-value store, opened on a thread for blocking work.
    async fn store(&self, resource: &Resource) -> PlatformResult<wisp_capability::key_value::Checked> {
        let (file, resources) = (self.store_file(resource), self.resources().clone());
        blocking(move || resources.store(&file).map_err(|error| store_error(&error))).await
    }
}

impl Descriptions {
    fn put(&self, id: ReleaseId, described: Described) {
        let mut releases = self.releases.lock().unwrap_or_else(PoisonError::into_inner);
        let of_app = releases.entry(id.app.clone()).or_default();
        of_app.retain(|(known, _)| *known != id);
        of_app.push((id, Arc::new(described)));
    }

    /// Forgets those of an app that nobody will ask for any more.
    fn keep_newest(&self, id: &ReleaseId) {
        let mut releases = self.releases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_app) = releases.get_mut(&id.app) {
            of_app.retain(|(known, _)| known == id);
            of_app.shrink_to_fit();
        }
    }

    fn forget(&self, app: &str) {
        self.releases.lock().unwrap_or_else(PoisonError::into_inner).remove(app);
    }
}

impl Maker {
    /// Makes what is missing. Blocks; not to be called on a thread of the runtime.
    fn ensure(&self, image: &Digest) -> Result<(), Error> {
        let components = self.images.folder(image, &self.releases).join(COMPONENTS_FOLDER);
        let is_known = |entry: std::io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| self.engine.load_known(&entry.path()).is_some())
        };
        if fs::read_dir(components).is_ok_and(|mut entries| entries.all(is_known)) {
            return Ok(());
        }
        self.runtime.block_on(async {
            let (folder, app) = self.images.unpack(image, &self.releases).await?;
            for source in Machine::sources(&folder, &app) {
                self.compiler.ensure(&self.engine, &source).await?;
            }
            Ok(())
        })
    }
}

impl Releases for Descriptions {
    fn describe(&self, release: &ReleaseId) -> Result<Release, wisp_node::Error> {
        let described = {
            let releases = self.releases.lock().unwrap_or_else(PoisonError::into_inner);
            let of_app = releases.get(&release.app);
            of_app
                .and_then(|known| known.iter().find(|(id, _)| id == release))
                .map(|(_, found)| found.clone())
        };
        let refused = |message: String| wisp_node::Error::Release { release: release.to_string(), message };
        let described = described.ok_or_else(|| refused("the control plane does not know it".into()))?;
        let Described { folder, deployment, stores } = &*described;
        if let Some(maker) = self.maker.get() {
            maker.ensure(&deployment.image).map_err(|error| refused(error.to_string()))?;
        }
        let mut variables = Vec::with_capacity(deployment.variables.len());
        for (name, value) in &deployment.variables {
            let name =
                VariableName::new(name).map_err(|error| refused(format!("variable `{name}`: {error}")))?;
            let value = value.open().map_err(|error| refused(format!("variable `{name}`: {error}")))?;
            variables.push((name, Value::from(value.as_str())));
        }
        let links = |kind: ResourceKind| -> IndexMap<String, StoreFile> {
            let of_kind = deployment.links.iter().filter(|link| link.resource.kind == kind);
            let own = of_kind.map(|link| (link.label.to_string(), store_file(stores, &link.resource)));
            let granted = deployment.grants.files.iter().filter(|file| file.kind == kind).map(|file| {
                let of_operator = StoreFile { path: file.path.clone(), max_bytes: file.quota_bytes };
                (file.label.to_string(), of_operator)
            });
            own.chain(granted).collect()
        };
        let Grants { outbound, blocked_networks, limits, cpu_weight, .. } = &*deployment.grants;
        let granted = outbound.iter().map(|pattern| AllowedHost::parse(pattern));
        let granted_hosts = granted
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| refused(format!("the policy grants what is no destination: {error}")))?;
        Ok(Release {
            folder: folder.clone(),
            variables,
            key_value_stores: links(ResourceKind::KeyValue),
            sqlite_databases: links(ResourceKind::Sqlite),
            ceilings: *limits,
            cpu_weight: *cpu_weight,
            granted_hosts,
            blocked_networks: blocked_networks.clone(),
        })
    }
}

/// What a node calls a release. Of two deployments of one release with other links or
/// other grants the revision differs.
fn release_id(deployment: &Deployment) -> ReleaseId {
    let mut hasher = Sha256::new();
    hasher.update(deployment.image.as_str());
    hasher.update(deployment.configuration.0.to_le_bytes());
    for link in &deployment.links {
        let resource = &link.resource;
        hasher.update(format!("{} {} {}\n", link.label, resource.id, resource.quota_bytes));
    }
    let grants = &*deployment.grants;
    let Grants { outbound, blocked_networks, limits, cpu_weight, files } = grants;
    hasher.update(format!("{outbound:?} {blocked_networks:?} {limits:?} {cpu_weight:?} {files:?}"));
    let mut revision = [0; 8];
    revision.copy_from_slice(&hasher.finalize()[..8]);
    ReleaseId {
        app: deployment.app.to_string().into(),
        number: deployment.release.0,
        revision: u64::from_le_bytes(revision),
    }
}

fn store_file(stores: &Path, resource: &Resource) -> StoreFile {
    StoreFile { path: stores.join(format!("{}.db", resource.id)), max_bytes: resource.quota_bytes }
}

/// The files of an SQLite database.
fn sqlite_files(path: &Path) -> [PathBuf; 3] {
    let with = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    [path.to_owned(), with("-wal"), with("-shm")]
}

/// The migrations of an unpacked image, in the order of their names.
fn migrations(folder: &Path) -> PlatformResult<Vec<Migration>> {
    let folder = folder.join(MIGRATIONS_FOLDER);
    let io = |error: std::io::Error| failed(&format!("the migrations cannot be read: {error}"));
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".sql") {
            continue;
        }
        if entry.metadata().map_err(io)?.len() > MIGRATION_BYTES {
            let message = format!("migration `{name}` is larger than {} MiB", MIGRATION_BYTES >> 20);
            return Err(PlatformError::refused("WISP-E1108", message));
        }
        let sql = fs::read_to_string(entry.path()).map_err(io)?;
        let digest = hex::encode(Sha256::digest(&sql));
        found.insert(name.clone(), Migration { name, sql, digest });
    }
    Ok(found.into_values().collect())
}

fn sql_parameter(value: &serde_json::Value) -> SqlValue {
    match value {
        serde_json::Value::Null => SqlValue::Null,
        serde_json::Value::Bool(is_so) => SqlValue::Integer(i64::from(*is_so)),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => SqlValue::Integer(number),
            (None, Some(number)) => SqlValue::Real(number),
            (None, None) => SqlValue::Text(number.to_string()),
        },
        serde_json::Value::String(text) => SqlValue::Text(text.clone()),
        other => SqlValue::Text(other.to_string()),
    }
}

fn sql_value(value: SqlValue) -> serde_json::Value {
    use base64::Engine as _;
    match value {
        SqlValue::Null => serde_json::Value::Null,
        SqlValue::Integer(number) => number.into(),
        SqlValue::Real(number) => number.into(),
        SqlValue::Text(text) => text.into(),
        SqlValue::Blob(bytes) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> PlatformResult<T> + Send + 'static,
) -> PlatformResult<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(failed(&error.to_string())))
}

fn failed(message: &str) -> PlatformError {
    PlatformError::failed("WISP-E1110", message)
}

fn key_value_error(message: &str) -> PlatformError {
    let mut error = PlatformError::refused("WISP-E1111", message.to_owned());
    if message.contains("full") {
        error.kind = PlatformErrorKind::Quota;
    }
    error
}

fn store_error(error: &wisp_capability::Error) -> PlatformError {
    let mut told = PlatformError::failed(error.code(), error.to_string());
    told.hint = error.hint();
    told
}

/// What is wrong with SQL that somebody sent. The hint of the capability is for those who start
/// an app on the command line.
fn sql_error(error: &wisp_capability::Error, hint: &str) -> PlatformError {
    let mut told = store_error(error);
    told.kind = PlatformErrorKind::Refused;
    if matches!(error, wisp_capability::Error::SqliteExecute { .. }) {
        told.hint = Some(hint.to_owned());
    }
    told
}

fn node_error(error: &wisp_node::Error) -> PlatformError {
    let mut told = PlatformError::refused(error.code(), error.to_string());
    told.hint = error.hint();
    told
}

fn platform_error(error: Error) -> PlatformError {
    let mut told = match &error {
        Error::CompileProcess { .. } | Error::DataDirectory { .. } => {
            PlatformError::failed(error.code(), error.to_string())
        }
        _ => PlatformError::refused(error.code(), error.to_string()),
    };
    told.hint = error.hint();
    told
}

/// What is free where a folder lies.
fn free_bytes(path: &Path) -> Option<u64> {
    let facts = rustix::fs::statvfs(path).ok()?;
    Some(facts.f_bavail.saturating_mul(facts.f_frsize))
}
