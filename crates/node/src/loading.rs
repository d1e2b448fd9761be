//! From registered to mapped, and from one version to the next.
//!
//! At most one load of an app goes on at a time ([`Flight`]). A request for an app that
//! is not mapped starts it, or waits for the one that goes on. The first step is taken
//! by the very thread that the request is on: where all about the app is known, that is
//! the only step, and nobody else takes part. What takes longer goes on as a task.
//!
//! A load notes which change it is for. When it is done and the app has been changed
//! meanwhile, its result is dropped and it begins again: an older version never takes
//! the place of a newer one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use http::StatusCode;
use wisp_manifest::App;
use wisp_trigger::http::{Found, HttpApp, Refusal};

use crate::{
    AppState, Error, Errors, HostName, Node, Release, ReleaseId, Staged, Swapped,
    entry::{Content, Entry, EntryState, Fact, Fingerprint, Flight, Origin, Problem, Version},
    manifests::Manifest,
    node::UNKNOWN_HOST,
};

/// How long an app that cannot be loaded is left alone before a request makes it be
/// tried again. Bounds what a broken app costs; a change is taken up at once.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Symbolic links from one to the next, at most, as Linux does.
const MAX_LINKS_COUNT: usize = 40;

/// How long a deep probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// The app has a problem; what it is, its operator learns.
const BROKEN: Refusal = Refusal {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    code: "WISP-E0710",
    message: "the app cannot be loaded",
};

/// The app is not loaded yet, and the request cannot wait any longer.
const LOADING: Refusal = Refusal {
    status: StatusCode::SERVICE_UNAVAILABLE,
    code: "WISP-E0711",
    message: "the app is being loaded",
};

impl Node {
    /// What a request gets whose app is not mapped.
    pub(crate) fn find_unmapped(&self, entry: &Arc<Entry>) -> Found {
        let is_broken = entry.has(Fact::Broken)
            && entry.state().problem.as_ref().is_some_and(|problem| problem.tried.elapsed() < RETRY_PAUSE);
        if is_broken {
            return Found::Refused(BROKEN);
        }
        Found::Wait(Box::pin(self.this().wait_for(entry.clone())))
    }

    /// Waits until an app is mapped; loads it if nobody else does.
    pub(crate) async fn wait_for(self: Arc<Self>, entry: Arc<Entry>) -> Result<Arc<HttpApp>, Refusal> {
        let flight = match self.begin(&entry) {
            Begun::There(app) => return Ok(app),
            Begun::Waits(flight) => flight,
            Begun::Leads(flight) => {
                let mut done = flight.done.subscribe();
                let mut load = Box::pin(self.clone().load(entry, flight.clone()));
                if (&mut load).now_or_never().is_none() {
                    // It goes on also if this request's client goes away.
                    tokio::spawn(load);
                } else if let Some(result) = done.borrow_and_update().clone() {
                    return result;
                }
                flight
            }
        };
        let Some(_waiting) = Waiting::enter(&flight, self.settings.max_waiting_count) else {
            return Err(LOADING);
        };
        let mut done = flight.done.subscribe();
        let done = tokio::time::timeout(self.settings.max_wait, done.wait_for(Option::is_some)).await;
        match done {
            Ok(Ok(result)) => result.clone().unwrap_or(Err(LOADING)),
            Ok(Err(_)) | Err(_) => Err(LOADING),
        }
    }

    /// Loads the newest version of an app beside the one that is served, if there is one,
    /// and puts it in its place. Nobody waits.
    pub(crate) fn load_in_background(&self, entry: &Arc<Entry>) {
        let mut state = entry.state();
        if state.flight.is_some() {
            return;
        }
        let flight = Arc::new(Flight::new());
        state.flight = Some(flight.clone());
        drop(state);
        self.control().spawn(self.this().load(entry.clone(), flight));
    }

    fn begin(&self, entry: &Arc<Entry>) -> Begun {
        let mut state = entry.state();
        if let Some(app) = entry.app() {
            return Begun::There(app);
        }
        if let Some(flight) = &state.flight {
            return Begun::Waits(flight.clone());
        }
        let flight = Arc::new(Flight::new());
        state.flight = Some(flight.clone());
        Begun::Leads(flight)
    }

    async fn load(self: Arc<Self>, entry: Arc<Entry>, flight: Arc<Flight>) {
        // Whatever happens, nobody waits for ever and the next request may try again.
        let landing = Landing { entry: &entry, flight: &flight };
        loop {
            let (number, epoch, content) = {
                let state = entry.state();
                (state.number, state.epoch, self.content(&entry, &state))
            };
            let loaded = self.load_version(&entry, number, content, Gate::BesideAnother).await;
            if let Some(result) = self.settle(&entry, &flight, epoch, loaded) {
                landing.land(result);
                return;
            }
        }
    }

    /// Puts what was loaded in its place. `None` if the app was changed meanwhile.
    fn settle(
        &self,
        entry: &Arc<Entry>,
        flight: &Arc<Flight>,
        epoch: u32,
        loaded: Result<Loaded, Errors>,
    ) -> Option<Result<Arc<HttpApp>, Refusal>> {
        let mut state = entry.state();
        if entry.is_removed() {
            state.flight = None;
            return Some(Err(UNKNOWN_HOST));
        }
        if state.epoch != epoch {
            return None;
        }
        state.flight = None;
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(errors) => {
                let is_new = state.problem.is_none();
                let mut problem = Problem::of(&errors);
                if let Some(known) = &state.problem {
                    problem.since = known.since;
                }
                state.problem = Some(Box::new(problem));
                entry.set(Fact::Broken, true);
                let still_serves = entry.app();
                drop(state);
                self.metrics.count_failed_load();
                if is_new {
                    report(&entry.host, &errors, still_serves.is_some());
                }
                return Some(still_serves.ok_or(BROKEN));
            }
        };
        state.problem = None;
        entry.set(Fact::Broken, false);
        entry.set(Fact::ManifestOk, true);
        entry.set(Fact::Prepared, true);
        let (version, way) = match loaded {
            Loaded::Same => return Some(entry.app().ok_or(LOADING)),
            Loaded::Previous => match state.previous.take() {
                Some(previous) => (previous, Way::Back),
                None => return None,
            },
            Loaded::New(version) => (version, Way::New),
        };
        let http = version.http.clone();
        let took = flight.since.elapsed();
        let replaced = entry.replace(&mut state, Some(version));
        let dropped = match replaced {
            Some(replaced) => {
                entry.outcomes().reset();
                entry.set(Fact::HasPrevious, true);
                self.metrics.count_swap(took, matches!(way, Way::Back));
                state.previous.replace(replaced)
            }
            None => {
                self.metrics.count_load(took);
                None
            }
        };
        drop(state);
        // What was two versions ago is unmapped without anybody waiting for it.
        drop(dropped);
        self.mapped_now(entry, &http);
        Some(Ok(http))
    }

    /// Enters an app that has just been mapped where those are that are swept and evicted.
    fn mapped_now(&self, entry: &Arc<Entry>, http: &HttpApp) {
        let reuses = http.sweep().is_some();
        entry.set(Fact::Reuses, reuses);
        if reuses {
            // The request that made it be loaded was before it was known.
            self.will_sweep(entry);
        }
        self.mapped.add(entry, self.now_s());
    }

    /// Loads what is wanted, unless it is what is mapped already.
    async fn load_version(
        &self,
        entry: &Arc<Entry>,
        number: u64,
        content: Content,
        gate: Gate,
    ) -> Result<Loaded, Errors> {
        let content = match content {
            Content::Folder(folder) => Content::Folder(resolve(&entry.host, &folder)?),
            release => release,
        };
        let (current, previous) = {
            let state = entry.state();
            (entry.version(), state.previous.clone())
        };
        if current.as_ref().is_some_and(|version| version.is_current(&content)) {
            return Ok(Loaded::Same);
        }
        if previous.as_ref().is_some_and(|version| version.is_current(&content)) {
            return Ok(Loaded::Previous);
        }
        drop(previous);
        self.make_room(entry);
        let (version, probe) = match content {
            Content::Folder(folder) => self.load_folder(entry, number, folder).await?,
            Content::Release(release) => self.load_release(entry, number, release).await?,
        };
        if let Some(path) = &probe
            && (matches!(gate, Gate::Always) || current.is_some())
        {
            // It serves nobody yet: a version that fails is never swapped in.
            self.probe_app(entry, &version.http, path).await?;
        }
        Ok(Loaded::New(Arc::new(version)))
    }

    /// A version of a release, and what it is to be asked for.
    async fn load_release(
        &self,
        entry: &Arc<Entry>,
        number: u64,
        release: ReleaseId,
    ) -> Result<(Version, Option<String>), Errors> {
        let (node, wanted) = (self.this(), release.clone());
        let describing = tokio::task::spawn_blocking(move || node.describe(&wanted));
        let described = describing.await.unwrap_or_else(|error| {
            Err(Error::Release { release: release.to_string(), message: error.to_string() })
        })?;
        let app = self.manifests.read(&entry.host, &described.folder)?.app;
        let stores = Arc::new(self.runtime.linked_state(&described, has_stores(&app)));
        let mut settings = self.settings.app.clone();
        settings.log_name = Some(release.app.to_string());
        settings.release = Some(release.number);
        settings.variables.extend(described.variables);
        settings.ceilings = described.ceilings;
        settings.cpu_weight = described.cpu_weight;
        settings.granted_hosts = Some(described.granted_hosts);
        settings.blocked_networks = Some(described.blocked_networks);
        let loaded = self.runtime.load(&app, &settings, &stores, entry.outcomes()).await?;
        let version =
            Version { http: loaded.http, number, origin: Origin::Release(release), _stores: Some(stores) };
        Ok((version, app.wisp.probe.clone()))
    }

    /// What a release consists of. Blocks.
    pub(crate) fn describe(&self, release: &ReleaseId) -> Result<Release, Error> {
        match &self.settings.releases {
            Some(releases) => releases.describe(release),
            None => Err(Error::Release {
                release: release.to_string(),
                message: "this node has no control plane".into(),
            }),
        }
    }

    /// A version of what is in a folder now, and what it is to be asked for.
    async fn load_folder(
        &self,
        entry: &Arc<Entry>,
        number: u64,
        folder: PathBuf,
    ) -> Result<(Version, Option<String>), Errors> {
        let Manifest { identity: manifest, is_settled, app } = self.manifests.read(&entry.host, &folder)?;
        let state = self.state_of(entry, &app);
        let mut settings = self.settings.app.clone();
        settings.log_name = Some(entry.host.to_string());
        settings.variables.extend(self.variables_of(&entry.host)?);
        settings.cpu_weight = self.settings.cpu_weights.get(&entry.host).copied();
        let loaded = self.runtime.load(&app, &settings, &state, entry.outcomes()).await?;
        let mut is_reliable = is_settled;
        let sources = loaded.sources.into_iter().filter_map(|(path, identity)| {
            is_reliable &= identity.is_some_and(|identity| identity.is_settled());
            Some((path, identity?))
        });
        let sources = sources.collect();
        let version = Version {
            http: loaded.http,
            number,
            origin: Origin::Files(Fingerprint { folder, manifest, sources, is_reliable }),
            _stores: None,
        };
        Ok((version, app.wisp.probe.clone()))
    }

    /// Loads a release beside what serves, and has it answer its probe if its manifest
    /// names one. Nothing changes for anybody; what is staged is dropped or swapped in.
    ///
    /// # Errors
    /// Everything that is wrong with the release.
    pub async fn stage(self: &Arc<Self>, host: &HostName, release: ReleaseId) -> Result<Staged, Errors> {
        let node = self.clone();
        let entry = match self.table.get(host.as_str()) {
            Some(entry) if entry.alias.is_none() => entry,
            // The first release of an app: in the table when it is swapped in.
            _ => Arc::new(Entry::new(host.clone(), 0, None)),
        };
        let staging = self.control().spawn(async move {
            let started = Instant::now();
            let content = Content::Release(release.clone());
            // Without a version in its place it would not be asked for its probe.
            let loaded = node.load_version(&entry, 0, content, Gate::Always).await?;
            let version = match loaded {
                Loaded::New(version) => Some(version),
                Loaded::Same => entry.version(),
                Loaded::Previous => entry.state().previous.clone(),
            };
            // It was unmapped just now.
            let overtaken = || Error::Overtaken { release: release.to_string() };
            let version = version.filter(|version| version.is_current(&Content::Release(release.clone())));
            let version = version.ok_or_else(overtaken)?;
            Ok(Staged { entry, version, release, took: started.elapsed() })
        });
        staging.await.unwrap_or_else(|_| Err(Errors::from(stopping())))
    }

    /// Has a staged release answer from now on: stores one pointer. `number` is that of
    /// the change in the stream that says the same.
    ///
    /// # Errors
    /// [`Error::Overtaken`] if a newer change of the host came first.
    pub fn swap(&self, number: u64, staged: Staged) -> Result<Swapped, Error> {
        let started = Instant::now();
        let Staged { entry, version, release, .. } = staged;
        let overtaken = || Error::Overtaken { release: release.to_string() };
        let content = Content::Release(release.clone());
        let entry = match self.table.get(entry.host.as_str()) {
            Some(known) => known,
            None => {
                self.table.insert(entry.clone());
                entry
            }
        };
        if entry.alias.is_some() {
            return Err(overtaken());
        }
        let mut state = entry.state();
        if entry.is_removed() || state.number > number {
            return Err(overtaken());
        }
        state.number = number;
        state.content = Some(Box::new(content));
        // A load that goes on finds that the release is there.
        state.epoch = state.epoch.wrapping_add(1);
        state.problem = None;
        state.left = None;
        for (fact, is_so) in [(Fact::Broken, false), (Fact::ManifestOk, true), (Fact::Prepared, true)] {
            entry.set(fact, is_so);
        }
        if entry.version().is_some_and(|current| Arc::ptr_eq(&current, &version)) {
            return Ok(Swapped::new(None));
        }
        let is_back = state.previous.take_if(|previous| Arc::ptr_eq(previous, &version)).is_some();
        let replaced = entry.replace(&mut state, Some(version.clone()));
        let dropped = match &replaced {
            Some(replaced) => {
                entry.outcomes().reset();
                state.previous.replace(replaced.clone())
            }
            None => None,
        };
        entry.set(Fact::HasPrevious, state.previous.is_some());
        drop(state);
        drop(dropped);
        match &replaced {
            Some(_) => self.metrics.count_swap(started.elapsed(), is_back),
            None => self.metrics.count_load(started.elapsed()),
        }
        self.mapped_now(&entry, &version.http);
        Ok(Swapped::new(replaced.as_ref()))
    }

    /// The stores of an app, the same ones for all of its versions: those in memory for
    /// as long as the app exists, those in files until it is unmapped.
    fn state_of(&self, entry: &Entry, app: &App) -> Arc<AppState> {
        let mut state = entry.state();
        if let Some(kept) = &state.kept_state {
            return kept.clone();
        }
        let folder = self.settings.state_dir.as_ref().map(|folder| folder.join(entry.host.as_str()));
        let has_stores = has_stores(app);
        let made = Arc::new(self.runtime.state(folder.as_deref(), has_stores));
        if has_stores {
            state.kept_state = Some(made.clone());
        }
        made
    }

    fn variables_of(&self, host: &HostName) -> Result<Vec<crate::settings::VariableValue>, Error> {
        let Some(folder) = &self.settings.variables_dir else { return Ok(Vec::new()) };
        for extension in ["toml", "json"] {
            let name = format!("{host}.{extension}");
            if folder.join(&name).is_file() {
                return Ok(wisp_capability::variables::parse_flag(&format!("@{name}"), folder)?);
            }
        }
        Ok(Vec::new())
    }

    /// What is to be served.
    pub(crate) fn content(&self, entry: &Entry, state: &EntryState) -> Content {
        match &state.content {
            Some(content) => Content::clone(content),
            None => Content::Folder(self.settings.apps_dir.join(entry.host.as_str())),
        }
    }

    /// Goes back to the version before.
    ///
    /// # Errors
    /// [`Error::NoApp`] and [`Error::NoPrevious`].
    pub fn roll_back(&self, host: &str) -> Result<Duration, Error> {
        let started = Instant::now();
        let entry = self.table.get(host).ok_or_else(|| Error::NoApp { host: host.to_owned() })?;
        let mut state = entry.state();
        let Some(previous) = state.previous.take() else {
            return Err(Error::NoPrevious { host: host.to_owned() });
        };
        // Also after it was unmapped, it is this version that is loaded again.
        state.content = Some(Box::new(previous.content()));
        state.left = entry.version().and_then(|version| match version.content() {
            Content::Folder(folder) => Some(folder.into()),
            Content::Release(_) => None,
        });
        // A load of the version that is left does not take its place.
        state.epoch = state.epoch.wrapping_add(1);
        state.problem = None;
        entry.set(Fact::Broken, false);
        state.previous = entry.replace(&mut state, Some(previous));
        entry.set(Fact::HasPrevious, state.previous.is_some());
        drop(state);
        entry.outcomes().reset();
        let elapsed = started.elapsed();
        self.metrics.count_swap(elapsed, true);
        tracing::info!(%host, "rolled back to the version before");
        Ok(elapsed)
    }

    /// Whether an operator went back from what is in this folder. A scan of the folder
    /// of apps does not undo that; a change does.
    pub(crate) fn was_left(&self, host: &HostName, folder: &Path) -> bool {
        let Some(entry) = self.table.get(host.as_str()) else { return false };
        let Some(left) = entry.state().left.clone() else { return false };
        resolve(host, folder).is_ok_and(|folder| *folder == *left)
    }

    /// Sends an app a request and says what it answered: whether it really works.
    ///
    /// # Errors
    /// [`Error::NoApp`], [`Error::Probe`], or why it cannot be loaded.
    pub async fn probe(self: &Arc<Self>, host: &str, path: Option<&str>) -> Result<StatusCode, Error> {
        let entry = self.table.get(host).ok_or_else(|| Error::NoApp { host: host.to_owned() })?;
        let app = self.clone().wait_for(entry.clone()).await.map_err(|refusal| {
            let state = entry.state();
            Error::NotLoaded {
                host: host.to_owned(),
                message: match &state.problem {
                    Some(problem) => problem.message.to_string(),
                    None => refusal.message.to_owned(),
                },
            }
        })?;
        self.probe_app(&entry, &app, path.unwrap_or("/")).await
    }

    async fn probe_app(&self, entry: &Entry, app: &HttpApp, path: &str) -> Result<StatusCode, Error> {
        let failed =
            |reason: String| Error::Probe { host: entry.host.to_string(), path: path.into(), reason };
        let probe = tokio::time::timeout(PROBE_LIMIT, app.probe(entry.host.as_str(), path)).await;
        let status = probe.map_err(|_| failed(format!("no answer within {PROBE_LIMIT:?}")))?;
        entry.set(Fact::Probed, !status.is_server_error());
        if status.is_server_error() { Err(failed(format!("it answers {status}"))) } else { Ok(status) }
    }
}

/// What a request for an unmapped app finds.
enum Begun {
    /// It is mapped meanwhile.
    There(Arc<HttpApp>),
    /// Somebody loads it.
    Waits(Arc<Flight>),
    /// The caller is to load it.
    Leads(Arc<Flight>),
}

/// What a load came to.
enum Loaded {
    /// The current version is the newest.
    Same,
    /// The version before is what is wanted now.
    Previous,
    New(Arc<Version>),
}

enum Way {
    New,
    Back,
}

/// When a new version has to answer its probe before it is used.
enum Gate {
    /// When there is another one that would go on to serve.
    BesideAnother,
    Always,
}

/// Ends a flight, at the latest when it is dropped.
struct Landing<'entry> {
    entry: &'entry Entry,
    flight: &'entry Arc<Flight>,
}

impl Landing<'_> {
    fn land(&self, result: Result<Arc<HttpApp>, Refusal>) {
        self.flight.done.send_replace(Some(result));
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if self.flight.done.borrow().is_some() {
            return;
        }
        let mut state = self.entry.state();
        if state.flight.as_ref().is_some_and(|flight| Arc::ptr_eq(flight, self.flight)) {
            state.flight = None;
        }
        drop(state);
        self.land(Err(LOADING));
    }
}

/// A place among those who wait; left when dropped, also when the client gave up.
struct Waiting<'flight>(&'flight Flight);

impl<'flight> Waiting<'flight> {
    fn enter(flight: &'flight Flight, limit: usize) -> Option<Self> {
        let waiting = Self(flight);
        (flight.waiting_count.fetch_add(1, Ordering::Relaxed) < limit).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting_count.fetch_sub(1, Ordering::Relaxed);
    }
}

fn has_stores(app: &App) -> bool {
    app.components
        .values()
        .any(|component| !component.key_value_stores.is_empty() || !component.sqlite_databases.is_empty())
}

fn stopping() -> Error {
    Error::Start { cause: io::Error::other("the node is stopping") }
}

/// Follows symbolic links at the end of a path, so that one load sees one version
/// whatever the link points to meanwhile.
pub(crate) fn resolve(host: &HostName, folder: &Path) -> Result<PathBuf, Error> {
    let mut path = folder.to_owned();
    for _ in 0..MAX_LINKS_COUNT {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            // No link: this is the folder.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(path),
            Err(cause) => return Err(Error::Folder { host: host.to_string(), path, cause }),
        }
    }
    let cause = io::Error::other("too many symbolic links");
    Err(Error::Folder { host: host.to_string(), path, cause })
}

/// Says in the log why an app cannot be served as it should be.
pub(crate) fn report(host: &HostName, errors: &Errors, still_serves: bool) {
    let instead = if still_serves { "; the version before goes on" } else { "" };
    for error in &errors.0 {
        let hint = error.hint().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        tracing::error!(app = %host, code = error.code(), "the app cannot be loaded{instead}: {error}{hint}");
    }
}
