//! Many apps in one process.

use std::{
    path::Path,
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
    entry::{Entry, Fact},
    eviction::Mapped,
    host_name::{MAX_HOST_NAME_BYTES, lower_case},
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
    pub(crate) mapped: Mapped,
    pub(crate) metrics: Metrics,
    pub(crate) to_prepare: PrepareQueue,
    /// The number of the newest change.
    newest: Mutex<u64>,
    /// Names in the folder of apps that are none for hosts, and why.
    pub(crate) rejected: Mutex<std::collections::BTreeMap<String, Error>>,
    /// Apps with components that keep instances between requests.
    reusing: Mutex<Vec<Arc<Entry>>>,
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
            metrics: Metrics::default(),
            to_prepare: PrepareQueue::default(),
            newest: Mutex::new(0),
            rejected: Mutex::default(),
            reusing: Mutex::default(),
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
    /// nothing. Never waits: a loaded app goes on with what it has until its new version
    /// is loaded beside it.
    pub fn apply(&self, change: Change) {
        let Change { number, kind } = change;
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if number <= *newest {
            return;
        }
        *newest = number;
        // Still locked: changes take effect in their order.
        match kind {
            ChangeKind::Put { host, folder } => self.put(host, &folder, number),
            ChangeKind::Remove { host } => self.remove(&host),
        }
    }

    /// The number of the newest change that was applied.
    pub fn newest_change(&self) -> u64 {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, host: HostName, folder: &Path, number: u64) {
        // The usual place needs no memory.
        let is_usual = folder.parent() == Some(&self.settings.apps_dir)
            && folder.file_name().is_some_and(|name| name == host.as_str());
        let folder: Option<Box<Path>> = (!is_usual).then(|| folder.into());
        let Some(entry) = self.table.get(host.as_str()) else {
            let entry = Arc::new(Entry::new(host, number, folder));
            self.table.insert(entry.clone());
            self.to_prepare.push(entry);
            return;
        };
        let is_loaded = {
            let mut state = entry.state();
            state.number = number;
            state.folder = folder;
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
        self.forget_reuse(&entry);
        self.mapped.forget(&entry);
        self.unmap(&entry);
        let mut state = entry.state();
        state.kept_state = None;
        state.problem = None;
    }

    /// Drops what serves an app. Requests that run keep it until they end.
    pub(crate) fn unmap(&self, entry: &Arc<Entry>) {
        let mut state = entry.state();
        let dropped = (entry.replace(&mut state, None), state.previous.take());
        entry.set(Fact::HasPrevious, false);
        // Unmapping takes its time; nobody needs to wait for it.
        drop(state);
        drop(dropped);
    }

    pub(crate) fn now_s(&self) -> u32 {
        self.clock_s.load(Ordering::Relaxed)
    }

    pub(crate) fn remember_reuse(&self, entry: &Arc<Entry>) {
        if !entry.has(Fact::Reuses) {
            entry.set(Fact::Reuses, true);
            self.reusing.lock().unwrap_or_else(PoisonError::into_inner).push(entry.clone());
        }
    }

    fn forget_reuse(&self, entry: &Arc<Entry>) {
        if entry.has(Fact::Reuses) {
            let mut reusing = self.reusing.lock().unwrap_or_else(PoisonError::into_inner);
            reusing.retain(|other| !Arc::ptr_eq(other, entry));
        }
    }
}

impl Apps for Node {
    fn find(&self, uri: &Uri, headers: &HeaderMap) -> Found {
        let Some(name) = host_name(uri, headers) else { return Found::Refused(NO_HOST) };
        let mut buffer = [0; MAX_HOST_NAME_BYTES];
        let found = lower_case(name, &mut buffer).and_then(|host| {
            self.table.with(host, |entry| {
                entry.touch(self.now_s());
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
        self.reusing.lock().unwrap_or_else(PoisonError::into_inner).retain(|entry| {
            let Some(app) = entry.app() else {
                entry.set(Fact::Reuses, false);
                return false;
            };
            next = next.min(app.sweep().unwrap_or(IDLE_SWEEP));
            true
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
