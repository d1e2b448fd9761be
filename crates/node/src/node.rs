//! Many apps in one process.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use http::{HeaderMap, StatusCode, Uri};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use wisp_trigger::http::{Apps, Found, IDLE_SWEEP, Refusal, host_name};

use crate::{
    Change, ChangeKind, Error, HostName, NodeSettings, Runtime,
    entry::{Content, Entry, Fact},
    eviction::Mapped,
    host_name::{MAX_HOST_NAME_BYTES, lower_case},
    manifests::Manifests,
    metrics::Metrics,
    prepare::PrepareQueue,
    table::Table,
};

/// A request that names no host cannot be routed.
const NO_HOST: Refusal =
    Refusal { status: StatusCode::BAD_REQUEST, code: "WISP-E0712", message: "the request names no host" };

/// No app has the host's name.
pub(crate) const UNKNOWN_HOST: Refusal = Refusal {
    status: StatusCode::NOT_FOUND,
    code: "WISP-E0709",
    message: "no app is served at this host name",
};

/// Many apps in one process; see the crate's description.
pub struct Node {
    this: Weak<Node>,
    pub(crate) runtime: Runtime,
    pub(crate) settings: NodeSettings,
    pub(crate) table: Table,
    pub(crate) manifests: Manifests,
    pub(crate) mapped: Mapped,
    pub(crate) metrics: Metrics,
    pub(crate) to_prepare: PrepareQueue,
    /// The number of the newest change.
    newest: Mutex<u64>,
    /// Names in the folder of apps that are none for hosts, and why.
    pub(crate) rejected: Mutex<std::collections::BTreeMap<String, Error>>,
    /// Apps that may have idle instances.
    swept: Mutex<Vec<Arc<Entry>>>,
    /// Seconds since the node started, as often as idle instances are looked for.
    clock_s: AtomicU32,
    pub(crate) started: Instant,
    control: OnceLock<Control>,
}

/// The thread for all that no request waits for: swaps, evictions, the operator.
struct Control {
    runtime: tokio::runtime::Handle,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Node {
    /// Starts a node without apps.
    ///
    /// # Errors
    /// [`Error::Start`] if the operating system refuses a thread.
    pub fn start(runtime: Runtime, settings: NodeSettings) -> Result<Arc<Self>, Error> {
        let node = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            runtime,
            mapped: Mapped::new(settings.budget),
            settings,
            table: Table::new(),
            manifests: Manifests::default(),
            metrics: Metrics::default(),
            to_prepare: PrepareQueue::default(),
            newest: Mutex::new(0),
            rejected: Mutex::default(),
            swept: Mutex::default(),
            clock_s: AtomicU32::new(1),
            started: Instant::now(),
            control: OnceLock::new(),
        });
        let control = Control::start()?;
        let handle = control.runtime.clone();
        drop(node.control.set(control));
        handle.spawn(node.this().evict_when_full());
        Ok(node)
    }

    /// Starts the pass that makes apps ready ahead of their first request, one after
    /// the other and with the lowest priority. Apps that are put later follow.
    ///
    /// # Errors
    /// [`Error::Start`] if the operating system refuses the thread.
    pub fn start_preparing(&self) -> Result<(), Error> {
        let this = self.this.clone();
        thread::Builder::new()
            .name("wisp-prepare".into())
            .spawn(move || crate::prepare::run(&this))
            .map(drop)
            .map_err(|cause| Error::Start { cause })
    }

    /// Where work runs that no request waits for.
    ///
    /// # Panics
    /// Never: it is set before anybody has the node.
    pub(crate) fn control(&self) -> &tokio::runtime::Handle {
        match self.control.get() {
            Some(control) => &control.runtime,
            None => unreachable!("set by `start`"),
        }
    }

    /// Ends the node's own threads. Apps go on to answer for as long as a server does.
    pub fn stop(&self) {
        self.to_prepare.close();
        if let Some(control) = self.control.get() {
            control.stop();
        }
    }

    /// What all apps of the process share.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn this(&self) -> Arc<Self> {
        match self.this.upgrade() {
            Some(this) => this,
            None => unreachable!("whoever calls this holds the node"),
        }
    }

    /// How many apps there are.
    pub fn apps_count(&self) -> usize {
        self.table.count()
    }

    /// Takes in a change. A change with a number that is not above all before it does
    /// nothing; for releases, that is not above those of the same host before it: a
    /// control plane works on several apps at once. Never waits: a loaded app goes on with what it has until its new version
    /// is loaded beside it.
    pub fn apply(&self, change: Change) {
        let Change { number, kind } = change;
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let is_of_release = matches!(kind, ChangeKind::Release { .. } | ChangeKind::Alias { .. });
        if number <= *newest && !is_of_release {
            return;
        }
        *newest = number.max(*newest);
        // Still locked: changes take effect in their order.
        match kind {
            ChangeKind::Put { host, folder } => {
                // The usual place needs no memory.
                let is_usual = folder.parent() == Some(&self.settings.apps_dir)
                    && folder.file_name().is_some_and(|name| name == host.as_str());
                self.put(host, (!is_usual).then(|| Box::new(Content::Folder(folder))), number);
            }
            ChangeKind::Release { host, release } => {
                self.put(host, Some(Box::new(Content::Release(release))), number);
            }
            ChangeKind::Alias { host, of } => self.alias(host, &of, number),
            ChangeKind::Remove { host } => self.remove(&host),
        }
    }

    /// The number of the newest change that was applied.
    pub fn newest_change(&self) -> u64 {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The app whose release answers at a host, if one is loaded. Cheap: it is asked after
    /// every request.
    pub fn app_at(&self, host: &str) -> Option<Arc<str>> {
        let mut buffer = [0; MAX_HOST_NAME_BYTES];
        let host = lower_case(host.as_bytes(), &mut buffer)?;
        let of_entry = |entry: &Arc<Entry>| entry.alias.as_ref().unwrap_or(entry).version();
        match self.table.with(host, of_entry)??.content() {
            Content::Release(release) => Some(release.app),
            Content::Folder(_) => None,
        }
    }

    /// Takes an app, or another name of one, out of the table, whatever changes there were.
    pub fn withdraw(&self, host: &HostName) {
        self.remove(host);
    }

    fn alias(&self, host: HostName, of: &HostName, number: u64) {
        let Some(target) = self.table.get(of.as_str()).filter(|target| target.alias.is_none()) else {
            tracing::warn!(%host, "another name of `{of}`, where no app is served");
            self.remove(&host);
            return;
        };
        let is_known = self.table.get(host.as_str()).is_some_and(|entry| {
            entry.alias.as_ref().is_some_and(|known| Arc::ptr_eq(known, &target)) && !entry.is_removed()
        });
        if is_known {
            return;
        }
        self.remove(&host);
        self.table.insert(Arc::new(Entry::alias(host, number, target)));
    }

    fn put(&self, host: HostName, content: Option<Box<Content>>, number: u64) {
        if self.table.get(host.as_str()).is_some_and(|entry| entry.alias.is_some()) {
            self.remove(&host);
        }
        let Some(entry) = self.table.get(host.as_str()) else {
            let entry = Arc::new(Entry::new(host, number, content));
            self.table.insert(entry.clone());
            self.to_prepare.push(entry);
            return;
        };
        let is_loaded = {
            let mut state = entry.state();
            if state.number >= number {
                // It was swapped in already, by whoever wrote the change.
                return;
            }
            state.number = number;
            state.content = content;
            state.epoch = state.epoch.wrapping_add(1);
            state.left = None;
            if let Some(problem) = &mut state.problem {
                // Worth another try at once.
                problem.tried =
                    problem.tried.checked_sub(crate::loading::RETRY_PAUSE).unwrap_or(problem.tried);
            }
            // A load that is going on notices that there is a newer change.
            entry.has(Fact::Mapped) && state.flight.is_none()
        };
        entry.set(Fact::Probed, false);
        entry.set(Fact::Prepared, false);
        if is_loaded {
            self.load_in_background(&entry);
        } else {
            self.to_prepare.push(entry);
        }
    }

    fn remove(&self, host: &HostName) {
        let Some(entry) = self.table.remove(host.as_str()) else { return };
        entry.mark_removed();
        if entry.alias.is_some() {
            return;
        }
        self.mapped.forget(&entry);
        let account = match self.content(&entry, &entry.state()) {
            Content::Folder(_) => host.to_string(),
            Content::Release(release) => release.app.to_string(),
        };
        self.runtime.commons().forget(&account);
        self.unmap(&entry);
        self.runtime.commons().forget(&account);
        let mut state = entry.state();
        state.kept_state = None;
        state.problem = None;
    }

    /// Drops what serves an app. Requests that run keep it until they end.
    pub(crate) fn unmap(&self, entry: &Arc<Entry>) {
        let mut state = entry.state();
        let stores = state.kept_state.take_if(|stores| !stores.is_in_memory);
        let dropped = (entry.replace(&mut state, None), state.previous.take(), stores);
        entry.set(Fact::HasPrevious, false);
        // Unmapping takes its time; nobody needs to wait for it.
        drop(state);
        drop(dropped);
    }

    pub(crate) fn now_s(&self) -> u32 {
        self.clock_s.load(Ordering::Relaxed)
    }

    /// Puts an app that is in use on the list of what is swept. Waits for nobody: if the
    /// list is being swept just now, the next second's first request does it.
    pub(crate) fn will_sweep(&self, entry: &Arc<Entry>) {
        if let Ok(mut swept) = self.swept.try_lock()
            && !entry.has(Fact::Swept)
        {
            entry.set(Fact::Swept, true);
            swept.push(entry.clone());
        }
    }

    /// Drops an app's idle instances that were idle for too long. Returns whether it may
    /// have more.
    fn sweep_app(&self, entry: &Entry, next: &mut Duration) -> bool {
        let Some(timeout) = entry.app().and_then(|app| app.sweep()) else { return false };
        *next = (*next).min(timeout);
        // Nobody takes idle instances of the version before any more.
        if let Some(previous) = &entry.state().previous {
            previous.http.sweep();
        }
        let unused = Duration::from_secs(self.now_s().saturating_sub(entry.last_used_s()).into());
        // The clock's second, and a request that had just begun.
        unused <= timeout + 2 * IDLE_SWEEP
    }
}

impl Apps for Node {
    fn find(&self, uri: &Uri, headers: &HeaderMap) -> Found {
        let Some(name) = host_name(uri, headers) else { return Found::Refused(NO_HOST) };
        let mut buffer = [0; MAX_HOST_NAME_BYTES];
        let found = lower_case(name, &mut buffer).and_then(|host| {
            self.table.with(host, |entry| {
                let entry = match &entry.alias {
                    None => entry,
                    Some(target) if target.is_removed() => return Found::Refused(UNKNOWN_HOST),
                    Some(target) => target,
                };
                if entry.touch(self.now_s()) && entry.has(Fact::Reuses) && !entry.has(Fact::Swept) {
                    self.will_sweep(entry);
                }
                match entry.app() {
                    Some(app) => Found::App(app),
                    None => self.find_unmapped(entry),
                }
            })
        });
        found.unwrap_or(Found::Refused(UNKNOWN_HOST))
    }

    fn sweep(&self) -> Duration {
        let seconds = u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX);
        self.clock_s.store(seconds.saturating_add(1), Ordering::Relaxed);
        let mut next = IDLE_SWEEP;
        self.swept.lock().unwrap_or_else(PoisonError::into_inner).retain(|entry| {
            let is_kept = !entry.is_removed() && self.sweep_app(entry, &mut next);
            entry.set(Fact::Swept, is_kept);
            is_kept
        });
        next
    }

    fn tracker(&self) -> &TaskTracker {
        self.runtime.tracker()
    }
}

impl Control {
    fn start() -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|cause| Error::Start { cause })?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name("wisp-control".into())
            .spawn(move || {
                // Ends when told to, or when nobody is left who could tell.
                drop(runtime.block_on(stopped));
                runtime.shutdown_background();
            })
            .map_err(|cause| Error::Start { cause })?;
        Ok(Self { runtime: handle, stop: Mutex::new(Some(stop)), thread: Mutex::new(Some(thread)) })
    }

    fn stop(&self) {
        drop(self.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{fs, path::PathBuf};

    use wisp_engine::EngineConfig;

    use super::*;
    use crate::{AppSettings, Budget, Release, ReleaseId, Releases, RuntimeSettings};

    /// A node over a folder; it ends with the test.
    struct Fixture {
        folder: tempfile::TempDir,
        node: Arc<Node>,
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            self.node.stop();
        }
    }

    /// Releases whose folders are named like their apps' last part and number.
    #[derive(Default)]
    struct Folders(Mutex<PathBuf>);

    impl Releases for Folders {
        fn describe(&self, release: &ReleaseId) -> Result<Release, Error> {
            Ok(Release {
                folder: self.0.lock().unwrap().join(release.to_string().replace('/', "-")),
                variables: Vec::new(),
                key_value_stores: Default::default(),
                sqlite_databases: Default::default(),
                ceilings: Default::default(),
                cpu_weight: None,
                granted_hosts: Vec::new(),
                blocked_networks: Default::default(),
            })
        }
    }

    fn release(number: u64) -> ReleaseId {
        ReleaseId { app: "team/shop".into(), number, revision: 0 }
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let releases = Arc::new(Folders(Mutex::new(folder.path().to_owned())));
        let engine = EngineConfig { pooling: false, ..EngineConfig::default() };
        let runtime = Runtime::start(RuntimeSettings { engine, ..RuntimeSettings::default() }).unwrap();
        let settings = NodeSettings {
            apps_dir: folder.path().to_owned(),
            state_dir: None,
            variables_dir: None,
            app: AppSettings::default(),
            cpu_weights: std::collections::HashMap::new(),
            releases: Some(releases.clone()),
            budget: Budget { max_images_count: 10, max_image_bytes: u64::MAX },
            max_waiting_count: 10,
            max_wait: Duration::from_secs(5),
        };
        let node = Node::start(runtime, settings).unwrap();
        Fixture { folder, node }
    }

    impl Fixture {
        /// Makes a version that answers without a guest.
        fn version(&self, name: &str) -> PathBuf {
            let folder = self.folder.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            let manifest = format!(
                "spin_manifest_version = 2\n[application]\nname = \"{name}\"\n\
                 [[trigger.http]]\nroute = \"/...\"\nstatic_response = {{ body = \"{name}\" }}\n"
            );
            fs::write(folder.join("spin.toml"), manifest).unwrap();
            folder
        }

        fn put(&self, number: u64, host: &str, folder: PathBuf) {
            let host = HostName::new(host).unwrap();
            self.node.apply(Change { number, kind: ChangeKind::Put { host, folder } });
        }

        fn remove(&self, number: u64, host: &str) {
            let host = HostName::new(host).unwrap();
            self.node.apply(Change { number, kind: ChangeKind::Remove { host } });
        }

        /// The name of the app that answers for a host, once it is loaded.
        async fn answering(&self, host: &str) -> Result<String, &'static str> {
            let headers =
                HeaderMap::from_iter([(http::header::HOST, http::HeaderValue::from_str(host).unwrap())]);
            let app = match self.node.find(&Uri::from_static("/"), &headers) {
                Found::App(app) => Ok(app),
                Found::Wait(app) => app.await,
                Found::Refused(refusal) => Err(refusal),
            };
            app.map(|app| app.name().to_owned()).map_err(|refusal| refusal.code)
        }

        async fn becomes(&self, host: &str, name: &str) {
            let became = async {
                while self.answering(host).await.as_deref() != Ok(name) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), became).await.unwrap();
        }
    }

    #[tokio::test]
    async fn changes_take_effect_in_order_and_once() {
        let fixture = fixture();
        let (one, two) = (fixture.version("one"), fixture.version("two"));
        fixture.put(3, "a.example", one.clone());
        assert_eq!(fixture.answering("A.example:80").await.as_deref(), Ok("one"));
        // Old, and the same again.
        fixture.remove(2, "a.example");
        fixture.remove(3, "a.example");
        assert_eq!(fixture.answering("a.example").await.as_deref(), Ok("one"));
        fixture.put(4, "a.example", two);
        fixture.becomes("a.example", "two").await;
        fixture.remove(5, "a.example");
        assert_eq!(fixture.answering("a.example").await, Err("WISP-E0709"));
        // The stream sent again brings nothing back.
        fixture.put(3, "a.example", one.clone());
        assert_eq!(fixture.answering("a.example").await, Err("WISP-E0709"));
        fixture.put(6, "a.example", one);
        assert_eq!(fixture.answering("a.example").await.as_deref(), Ok("one"));
        assert_eq!(fixture.node.newest_change(), 6);
    }

    #[tokio::test]
    async fn what_is_loaded_outlives_its_eviction_and_removal_for_whoever_has_it() {
        let fixture = fixture();
        fixture.put(1, "a.example", fixture.version("one"));
        fixture.answering("a.example").await.unwrap();
        let entry = fixture.node.table.get("a.example").unwrap();
        let held = entry.app().unwrap();
        assert!(entry.version().unwrap().is_in_use());
        fixture.node.unmap(&entry);
        assert!(entry.app().is_none());
        assert_eq!(held.name(), "one");
        assert_eq!(fixture.answering("a.example").await.as_deref(), Ok("one"), "it is loaded again");
        fixture.remove(2, "a.example");
        assert_eq!(held.name(), "one");
    }

    #[tokio::test]
    async fn a_put_of_the_same_changes_nothing_and_of_the_version_before_goes_back() {
        let fixture = fixture();
        let (one, two) = (fixture.version("one"), fixture.version("two"));
        // Older than the kernel's clock can tell, so that any change would show.
        let entry = {
            let wait = tokio::time::sleep(Duration::from_millis(120));
            wait.await;
            fixture.put(1, "a.example", one.clone());
            fixture.answering("a.example").await.unwrap();
            fixture.node.table.get("a.example").unwrap()
        };
        let first = entry.version().unwrap();
        fixture.put(2, "a.example", one.clone());
        let settled = async {
            while entry.state().flight.is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), settled).await.unwrap();
        assert!(Arc::ptr_eq(&entry.version().unwrap(), &first));
        fixture.put(3, "a.example", two);
        fixture.becomes("a.example", "two").await;
        fixture.put(4, "a.example", one);
        fixture.becomes("a.example", "one").await;
        assert!(Arc::ptr_eq(&entry.version().unwrap(), &first), "it was mapped all the time");
    }

    #[tokio::test]
    async fn only_a_version_that_is_kept_can_be_gone_back_to() {
        let fixture = fixture();
        fixture.put(1, "a.example", fixture.version("one"));
        assert_eq!(fixture.node.roll_back("b.example").unwrap_err().code(), "WISP-E0709");
        assert_eq!(fixture.node.roll_back("a.example").unwrap_err().code(), "WISP-E0716");
        fixture.answering("a.example").await.unwrap();
        let two = fixture.version("two");
        fixture.put(2, "a.example", two.clone());
        fixture.becomes("a.example", "two").await;
        fixture.node.roll_back("a.example").unwrap();
        assert_eq!(fixture.answering("a.example").await.as_deref(), Ok("one"));
        let host = HostName::new("a.example").unwrap();
        assert!(fixture.node.was_left(&host, &two));
        // Unmapped and loaded again it is still the one that was gone back to.
        let entry = fixture.node.table.get("a.example").unwrap();
        fixture.node.unmap(&entry);
        assert_eq!(fixture.answering("a.example").await.as_deref(), Ok("one"));
        fixture.put(3, "a.example", two.clone());
        fixture.becomes("a.example", "two").await;
        assert!(!fixture.node.was_left(&host, &two));
    }

    #[tokio::test]
    async fn a_broken_app_is_not_tried_by_every_request() {
        let fixture = fixture();
        let folder = fixture.version("one");
        fs::write(folder.join("spin.toml"), "nonsense").unwrap();
        fixture.put(1, "a.example", folder);
        assert_eq!(fixture.answering("a.example").await, Err("WISP-E0710"));
        let entry = fixture.node.table.get("a.example").unwrap();
        let tried = entry.state().problem.as_ref().unwrap().tried;
        assert_eq!(fixture.answering("a.example").await, Err("WISP-E0710"));
        assert_eq!(entry.state().problem.as_ref().unwrap().tried, tried);
        // A change is tried at once.
        fixture.put(2, "a.example", fixture.version("two"));
        assert_eq!(fixture.answering("a.example").await.as_deref(), Ok("two"));
        assert!(entry.state().problem.is_none());
    }

    #[tokio::test]
    async fn a_staged_release_answers_nobody_before_it_is_swapped_in_and_going_back_loads_nothing() {
        let fixture = fixture();
        let node = &fixture.node;
        let host = HostName::new("shop.example").unwrap();
        for number in [1, 2] {
            fixture.version(&format!("team-shop#{number}"));
        }
        let first = node.stage(&host, release(1)).await.unwrap();
        assert_eq!(fixture.answering("shop.example").await, Err("WISP-E0709"));
        assert!(node.swap(1, first).unwrap().is_drained());
        assert_eq!(fixture.answering("shop.example").await.as_deref(), Ok("team-shop#1"));
        let held = node.table.get("shop.example").unwrap().app().unwrap();

        let second = node.stage(&host, release(2)).await.unwrap();
        assert_eq!(fixture.answering("shop.example").await.as_deref(), Ok("team-shop#1"));
        let overtaken = node.stage(&host, release(2)).await.unwrap();
        let swapped = node.swap(2, second).unwrap();
        assert_eq!(fixture.answering("shop.example").await.as_deref(), Ok("team-shop#2"));
        assert_eq!((swapped.is_drained(), swapped.in_use_count()), (false, 1));
        drop(held);
        swapped.drained().await;
        assert_eq!(node.swap(1, overtaken).map(drop).unwrap_err().code(), "WISP-E0721");

        // The folder is gone: it would not load.
        fs::remove_dir_all(fixture.folder.path().join("team-shop#1")).unwrap();
        let back = node.stage(&host, release(1)).await.unwrap();
        drop(node.swap(3, back).unwrap());
        assert_eq!(fixture.answering("shop.example").await.as_deref(), Ok("team-shop#1"));
        let missing = node.stage(&host, release(3)).await.map(drop).unwrap_err();
        assert_eq!(missing.0[0].code(), "WISP-E0713");
        assert_eq!(fixture.answering("shop.example").await.as_deref(), Ok("team-shop#1"));
        // The stream says the same again: nothing happens.
        let version = node.table.get("shop.example").unwrap().version().unwrap();
        node.apply(Change {
            number: 3,
            kind: ChangeKind::Release { host: host.clone(), release: release(1) },
        });
        assert!(Arc::ptr_eq(&node.table.get("shop.example").unwrap().version().unwrap(), &version));
    }

    #[tokio::test]
    async fn other_names_of_an_app_follow_it_and_end_with_it() {
        let fixture = fixture();
        let node = &fixture.node;
        let (host, other) = (HostName::new("shop.example").unwrap(), HostName::new("www.example").unwrap());
        for number in [1, 2] {
            fixture.version(&format!("team-shop#{number}"));
        }
        node.apply(Change {
            number: 1,
            kind: ChangeKind::Release { host: host.clone(), release: release(1) },
        });
        node.apply(Change { number: 1, kind: ChangeKind::Alias { host: other.clone(), of: host.clone() } });
        assert_eq!(fixture.answering("www.example").await.as_deref(), Ok("team-shop#1"));
        let second = node.stage(&host, release(2)).await.unwrap();
        drop(node.swap(2, second).unwrap());
        assert_eq!(fixture.answering("www.example").await.as_deref(), Ok("team-shop#2"));
        node.withdraw(&other);
        assert_eq!(fixture.answering("www.example").await, Err("WISP-E0709"));
        node.apply(Change { number: 3, kind: ChangeKind::Alias { host: other.clone(), of: host.clone() } });
        node.withdraw(&host);
        assert_eq!(fixture.answering("www.example").await, Err("WISP-E0709"));
        // A name for nothing is no app either.
        node.apply(Change { number: 4, kind: ChangeKind::Alias { host: other, of: host } });
        assert_eq!(fixture.answering("www.example").await, Err("WISP-E0709"));
    }
}
