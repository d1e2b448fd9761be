//! All of it, started in order and stopped in order.

use std::{
    fs::{File, OpenOptions},
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::Router;
use futures::{FutureExt as _, future::BoxFuture};
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{SignalKind, signal};
use wisp_control::{Control, Platform as _, RegistryAction, names::ChangeNumber};
use wisp_engine::{EngineConfig, ImageStore, SigningKey};
use wisp_image::{
    Blobs,
    registry::{Access, Action, Credentials, Denial, Registry, RegistryLimits, RegistrySettings},
};
use wisp_ingress::{
    AccessLog, Certificates, Door, FileLimits, RateLimits, Redirect, SystemResolver,
    handover::{self, Inheritance, Offer},
};
use wisp_manifest::model::Limits;
use wisp_node::{Admin, Allowed, AppSettings, Budget, Node, NodeSettings, Runtime, RuntimeSettings};
use wisp_trigger::http::{
    AdmissionLimits, CommonsSettings, Ending, Listener, Server as HttpServer, ServerConfig,
};

use crate::{
    Compiler, DataDirectory, Descriptions, Error, LogStore, Machine, Settings,
    certificates::{self, Tls},
    front::{Api, Entrance, Records},
    garbage::InUse,
    images::Images,
};

/// Slots for instances beside those that requests take: idle ones that are used again.
const SPARE_INSTANCES_COUNT: u32 = 128;

/// How long a request waits for an instance, or for its app to be loaded.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Threads for the control plane and the registry: they wait for the disk, mostly.
const PLATFORM_THREADS_COUNT: usize = 2;

/// How long operations may go on when the server stops. The next one goes on with them.
const OPERATIONS_GRACE: Duration = Duration::from_secs(5);

/// How often it is looked for what nobody needs any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Changes that are taken over at once from a server that hands over.
const CHANGES_COUNT: usize = 1_000;

/// What sockets are called when they are handed over.
const HTTP: &str = "http";
const HTTPS: &str = "https";

/// The file that a server holds a lock on, so that there is only one.
const LOCK_NAME: &str = "lock";

/// A server that has its addresses and knows its apps, and does not answer yet.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    http: HttpServer,
    node: Arc<Node>,
    control: Arc<Control>,
    logs: Arc<LogStore>,
    admin: Option<Admin>,
    /// Where the operator is answered once the server before has let go of the address.
    later_admin: Option<SocketAddr>,
    facts: Facts,
    /// What a server that was running gave, if there was one.
    inheritance: Option<Inheritance>,
    /// The last change that the node knows of.
    last_change: ChangeNumber,
    machine: Arc<Machine>,
    certificates: Certificates,
    handover: PathBuf,
    /// Held for as long as the server runs, or its successor.
    lock: File,
}

/// What is worth telling about a server that starts.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Where it is reached.
    pub url: String,
    /// The addresses it listens on, with their schemes.
    pub addresses: Vec<(String, SocketAddr)>,
    /// Where the operator finds health and metrics.
    pub admin: Option<SocketAddr>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// A link that makes whoever opens it the operator, on the first start.
    pub sign_in_link: Option<String>,
    /// The certificate of the local authority, where there is one.
    pub local_authority: Option<PathBuf>,
    /// How many apps there are.
    pub apps_count: usize,
}

/// Asks the control plane who may do what with the registry.
#[derive(Default)]
struct Rules {
    control: OnceLock<Arc<Control>>,
}

impl Server {
    /// Starts everything but the listener. `program` is the binary that compiles. A server that
    /// uses the data directory is taken over from only if that is asked for.
    ///
    /// # Errors
    /// What cannot be opened or started; [`Error::InUse`].
    pub fn start(settings: &Settings, program: PathBuf, takes_over: bool) -> Result<Self, Error> {
        let directory = DataDirectory::open(&settings.data_dir.value)?;
        let max_descriptors_count = wisp_node::raise_descriptor_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(PLATFORM_THREADS_COUNT)
            .thread_name("wisp-platform")
            .enable_all()
            .build()
            .map_err(|cause| Error::Stopped { cause })?;
        let _entered = runtime.enter();
        let (lock, mut inheritance) = match (lock(&directory), takes_over) {
            // A server that is running goes on until this one is ready.
            (Err(Error::InUse { path }), true) => {
                let mut inheritance = runtime.block_on(handover::take_over(&directory.handover()))?;
                let of_predecessor = inheritance.as_mut().and_then(|all| all.take(LOCK_NAME));
                match of_predecessor {
                    Some(lock) => (File::from(lock), inheritance),
                    // It does not hand over, or has just ended.
                    None => (self::lock(&directory).map_err(|_| Error::NotHandedOver { path })?, None),
                }
            }
            (lock, _) => (lock?, None),
        };
        let mut inherit = |name: &str| inheritance.as_mut().and_then(|inheritance| inheritance.take(name));
        let listener = match inherit(HTTP) {
            Some(socket) => Listener::adopt(socket.into())?,
            None => Listener::bind(settings.listen.value)?,
        };
        let tls = match (settings.listen_tls.value, inherit(HTTPS)) {
            (Some(_), Some(socket)) => Some(Listener::adopt(socket.into())?),
            (Some(address), None) => Some(Listener::bind(address)?),
            (None, _) => None,
        };
        // The server before has the operator's address until it ends.
        let (admin, later_admin) = match (settings.admin.value, &inheritance) {
            (Some(address), None) => (Some(Admin::bind(address)?), None),
            (address, _) => (None, address),
        };
        if inheritance.is_none() {
            directory
                .sweep_scratch()
                .map_err(|cause| Error::DataDirectory { path: directory.scratch(), cause })?;
        }

        let logs = LogStore::start(directory.logs(), settings.log_limits())
            .map_err(|cause| Error::DataDirectory { path: directory.logs(), cause })?;
        let rules = Arc::new(Rules::default());
        let registry = Registry::open(
            RegistrySettings {
                blobs: Blobs::open(&directory.blobs())?,
                database: directory.registry(),
                uploads: directory.path().join("uploads"),
                limits: RegistryLimits::default(),
            },
            rules.clone(),
        )?;
        let key = SigningKey::open(&directory.image_key())?;
        let descriptions = Arc::new(Descriptions::default());
        let node = node(settings, &directory, &key, &logs, &descriptions, max_descriptors_count)?;
        let in_use = InUse::default();
        let compiler = Arc::new(Compiler::new(
            program,
            directory.scratch(),
            ImageStore::open_signed(directory.images(), key.verifying_key())?,
            key,
            settings.compile_limits(),
            in_use.clone(),
        ));
        let access_log = AccessLog::start(&directory.access_log(), FileLimits::default())?;
        let rates = Arc::new(RateLimits::new());
        let images = Arc::new(Images::new(registry.clone(), in_use.clone()));
        let resolver = match settings.dns.value {
            Some(server) => SystemResolver::of(vec![server]),
            None => SystemResolver::system(),
        };
        let machine = Arc::new(Machine::new(
            directory.clone(),
            node.clone(),
            images.clone(),
            compiler,
            logs.clone(),
            descriptions,
            resolver,
            rates.clone(),
            settings.rates(),
            in_use,
        ));

        let tls_port = tls.as_ref().map(|tls| tls.address().port());
        let (scheme, port) = match &tls {
            Some(tls) => ("https", tls.address().port()),
            None => ("http", listener.address().port()),
        };
        let url = match (scheme, port) {
            ("http", 80) | ("https", 443) => format!("{scheme}://{}", settings.domain.value),
            _ => format!("{scheme}://{}:{port}", settings.domain.value),
        };
        let control_settings = wisp_control::Settings {
            state: directory.state(),
            envelope_key: directory.keys().join("envelope.key"),
            envelope_key_text: std::env::var(wisp_control::ENVELOPE_KEY_VARIABLE).ok(),
            policy: settings.policy.value.clone(),
            domain: settings.domain.value.clone(),
            public_url: url.clone(),
        };
        let goes_on = inheritance.is_none();
        let (control, sign_in_link, last_change) = runtime.block_on(async {
            let control = Control::open(control_settings, machine.clone()).await?;
            let link = control.sign_in_link().await?;
            let snapshot = control.snapshot().await?;
            for deployment in &snapshot.deployments {
                if let Err(error) = machine.register(snapshot.last.0, deployment) {
                    tracing::error!(app = %deployment.app, code = error.code, "the app cannot be served: {error}");
                }
            }
            if goes_on {
                control.resume().await?;
            }
            Ok::<_, Error>((control, link, snapshot.last))
        })?;
        // Once a server.
        drop(rules.control.set(control.clone()));
        node.start_preparing()?;
        node.export_metrics();

        let certificates = certificates::open(settings, &directory, &control, runtime.handle())?;
        let local_authority = certificates.local().map(|local| local.certificate_path().to_owned());
        let mut addresses = vec![("http".to_owned(), listener.address())];
        let mut listeners = vec![listener];
        if let Some(tls) = tls {
            addresses.push(("https".into(), tls.address()));
            listeners.push(tls.tls(Arc::new(Tls(certificates.clone()))));
            machine.tell_of(Tls(certificates.clone()));
        }
        let redirect = tls_port.map(|https_port| Redirect { https_port, includes_localhost: false });
        let router = Router::new().merge(wisp_control::router(control.clone())).merge(registry.router());
        let entrance = Entrance {
            domain: settings.domain.value.clone(),
            door: Door::new(certificates.clone(), redirect),
            rates,
            api: Arc::new(Api { router, runtime: runtime.handle().clone() }),
        };
        let config = ServerConfig {
            max_connections_count: settings.max_connections.value as usize,
            max_body_bytes: settings.max_request_body_bytes.value,
            grace_period: Duration::from_secs(settings.grace_period_s.value),
            ..ServerConfig::default()
        };
        let http = HttpServer::new(config, listeners).front(Arc::new(entrance)).observer(Arc::new(Records {
            node: node.clone(),
            logs: logs.clone(),
            access_log,
        }));
        let facts = Facts {
            url,
            addresses,
            admin: admin.as_ref().map(Admin::address),
            data_dir: directory.path().to_owned(),
            sign_in_link,
            local_authority,
            apps_count: node.apps_count(),
        };
        drop(_entered);
        let handover = directory.handover();
        Ok(Self {
            runtime,
            http,
            node,
            control,
            logs,
            admin,
            later_admin,
            facts,
            inheritance,
            last_change,
            machine,
            certificates,
            handover,
            lock,
        })
    }

    /// What is worth telling.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Answers until `shutdown` resolves, then ends in order. Blocks.
    ///
    /// # Errors
    /// If threads cannot be made.
    pub fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        if let Some(admin) = self.admin {
            admin.start(&self.node);
        }
        let _entered = self.runtime.enter();
        if let Some(inheritance) = self.inheritance {
            let predecessor = self.runtime.block_on(inheritance.ready());
            if let Err(error) = &predecessor {
                tracing::warn!(code = error.code(), "the server before has ended: {error}");
            }
            let (control, machine, last) = (self.control.clone(), self.machine, self.last_change);
            let (admin, node) = (self.later_admin, self.node.clone());
            self.runtime.spawn(async move {
                // One that has ended early has let go, too.
                if let Ok(predecessor) = predecessor {
                    predecessor.gone().await;
                }
                match admin.map(Admin::bind).transpose() {
                    Ok(Some(admin)) => admin.start(&node),
                    Ok(None) => {}
                    Err(error) => tracing::error!(code = error.code(), "{error}"),
                }
                if let Err(error) = catch_up(&control, &machine, last).await {
                    tracing::error!(code = error.code(), "what the server before had begun: {error}");
                }
            });
        }
        self.runtime.spawn(reload_policy(self.control.clone()));
        self.runtime.spawn(sweep(self.control.clone()));
        let offer = Offer::bind(&self.handover)?;
        let names = [HTTP, HTTPS];
        let mut sockets = Vec::new();
        for (listener, name) in self.http.listeners().iter().zip(names) {
            let socket = listener.try_clone_socket().map_err(|cause| Error::Stopped { cause })?;
            sockets.push((name, OwnedFd::from(socket)));
        }
        sockets.push((LOCK_NAME, self.lock.into()));
        let mut handed_over = None;
        let result = self.http.run(self.node.clone(), async {
            let sockets: Vec<_> = sockets.iter().map(|(name, socket)| (*name, socket.as_fd())).collect();
            let ending = tokio::select! {
                () = shutdown => Ending::Stop,
                successor = offer.handed_over(&sockets) => match successor {
                    Ok(successor) => {
                        handed_over = Some(successor);
                        Ending::HandedOver
                    }
                    Err(error) => {
                        tracing::error!(code = error.code(), "{error}");
                        std::future::pending().await
                    }
                },
            };
            self.logs.stop_following();
            ending
        });
        self.certificates.stop();
        drop(_entered);
        let left_count = self.runtime.block_on(self.control.stop(OPERATIONS_GRACE));
        if left_count > 0 {
            tracing::info!("{left_count} operations are not finished; the next start goes on with them");
        }
        self.node.stop();
        // From here on a successor may go on with them, and have the operator's address.
        drop(handed_over);
        self.node.runtime().flush_logs();
        self.logs.flush();
        self.runtime.shutdown_timeout(OPERATIONS_GRACE);
        Ok(result?)
    }
}

/// Reads the policy again at each SIGHUP.
async fn reload_policy(control: Arc<Control>) {
    let Ok(mut hang_up) = signal(SignalKind::hangup()) else {
        tracing::warn!("SIGHUP cannot be received: a changed policy counts after a restart");
        return;
    };
    while hang_up.recv().await.is_some() {
        match control.reload_policy().await {
            Ok(()) => tracing::info!("the policy was read again"),
            Err(error) => {
                tracing::error!(code = error.code(), "the policy stays as it was: {error}");
            }
        }
    }
}

/// Removes what nobody needs any more, for as long as the server runs.
async fn sweep(control: Arc<Control>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        match control.collect_garbage(false).await {
            Ok(report) if report.totals.is_empty() => {}
            Ok(report) => tracing::info!(bytes = report.bytes, "what nobody needs any more was removed"),
            Err(error) => tracing::warn!(code = error.code(), "what nobody needs stays: {error}"),
        }
    }
}

/// Makes true what the server before did since this one read the state, and goes on with
/// what it had begun.
async fn catch_up(control: &Arc<Control>, machine: &Machine, mut last: ChangeNumber) -> Result<(), Error> {
    loop {
        let changes = control.changes_after(last, CHANGES_COUNT).await?;
        let Some(newest) = changes.last().map(|change| change.number) else { break };
        for change in changes {
            if let Err(error) = machine.apply(&change).await {
                tracing::error!(code = error.code, "a change cannot be applied: {error}");
            }
        }
        last = newest;
    }
    control.resume().await?;
    Ok(())
}

/// Takes the one lock on a data directory.
fn lock(directory: &DataDirectory) -> Result<File, Error> {
    let path = directory.path().join(LOCK_NAME);
    let failed = |cause: io::Error| Error::DataDirectory { path: path.clone(), cause };
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse { path: directory.path().to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}

fn node(
    settings: &Settings,
    directory: &DataDirectory,
    key: &SigningKey,
    logs: &Arc<LogStore>,
    descriptions: &Arc<Descriptions>,
    max_descriptors_count: Option<u64>,
) -> Result<Arc<Node>, Error> {
    let max_instances_count = settings.max_instances.value + SPARE_INSTANCES_COUNT;
    let max_connections_count = settings.max_connections.value;
    let memory_bytes = wisp_node::machine_memory_bytes();
    let runtime = Runtime::start(RuntimeSettings {
        engine: EngineConfig { max_instances_count, ..EngineConfig::default() },
        image_dir: Some(directory.images()),
        image_key: Some(key.verifying_key()),
        log_receiver: Some(logs.clone()),
        follow: wisp_capability::wasi::Follow::None,
        commons: CommonsSettings {
            admission: AdmissionLimits {
                max_running_count: settings.max_instances.value as usize,
                max_waiting_count: settings.max_waiting_requests.value as usize,
                max_wait: MAX_WAIT,
                is_shared: true,
            },
            max_memory_bytes: memory_bytes.map_or(u64::MAX, |bytes| bytes / 4 * 3),
            ..CommonsSettings::default()
        },
        ..RuntimeSettings::default()
    })?;
    let Allowed { by_descriptors, by_mappings } =
        Allowed::images(max_descriptors_count, max_connections_count, max_instances_count as usize);
    let node = Node::start(
        runtime,
        NodeSettings {
            apps_dir: directory.releases(),
            state_dir: None,
            variables_dir: None,
            app: AppSettings { ceilings: Limits::default(), ..AppSettings::default() },
            cpu_weights: std::collections::HashMap::new(),
            releases: Some(descriptions.clone()),
            budget: Budget {
                max_images_count: by_descriptors.min(by_mappings).max(1),
                max_image_bytes: memory_bytes.map_or(u64::MAX, |bytes| bytes / 2),
            },
            max_waiting_count: settings.max_waiting_requests.value as usize,
            max_wait: MAX_WAIT,
        },
    )?;
    Ok(node)
}

impl Rules {
    fn secret(credentials: &Credentials) -> Option<&str> {
        match credentials {
            Credentials::Anonymous => None,
            Credentials::Basic { password, .. } => Some(password),
            Credentials::Bearer(token) => Some(token),
        }
    }

    fn control(&self) -> Result<&Arc<Control>, Denial> {
        self.control.get().ok_or(Denial::Unknown)
    }
}

impl Access for Rules {
    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> BoxFuture<'a, Result<(), Denial>> {
        async move {
            let secret = Self::secret(credentials).ok_or(Denial::Unknown)?;
            let known = self.control()?.authenticate(secret, "registry").await;
            known.map(drop).map_err(|_| Denial::Unknown)
        }
        .boxed()
    }

    fn authorize<'a>(
        &'a self,
        credentials: &'a Credentials,
        repository: &'a str,
        action: Action,
    ) -> BoxFuture<'a, Result<(), Denial>> {
        async move {
            let secret = Self::secret(credentials).ok_or(Denial::Unknown)?;
            let (team, app) = repository.split_once('/').unwrap_or((repository, ""));
            let action = match action {
                Action::Pull => RegistryAction::Pull,
                Action::Push | Action::Delete => RegistryAction::Push,
            };
            match self.control()?.authorize_repository(secret, "registry", team, app, action).await {
                Ok(_) => Ok(()),
                Err(wisp_control::Error::Unauthenticated) => Err(Denial::Unknown),
                Err(wisp_control::Error::Forbidden { .. }) => Err(Denial::Forbidden),
                Err(_) => Err(Denial::Hidden),
            }
        }
        .boxed()
    }
}
