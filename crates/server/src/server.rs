//! All of it, started in order and stopped in order.

use std::{
    fs::{File, OpenOptions},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::Router;
use futures::{FutureExt as _, future::BoxFuture};
use rustix::fs::{FlockOperation, flock};
use wisp_control::{Control, RegistryAction};
use wisp_engine::{EngineConfig, ImageStore, SigningKey};
use wisp_image::{
    Blobs,
    registry::{Access, Action, Credentials, Denial, Registry, RegistryLimits, RegistrySettings},
};
use wisp_ingress::{Certificates, CertificatesBuilder, Door, HostName, LocalAuthority, SystemResolver};
use wisp_manifest::model::Limits;
use wisp_node::{Admin, Allowed, AppSettings, Budget, Node, NodeSettings, Runtime, RuntimeSettings};
use wisp_trigger::http::{
    AdmissionLimits, CommonsSettings, Ending, Listener, SelectTls, Server as HttpServer, ServerConfig,
    TlsChoice,
};

use crate::{
    Compiler, DataDirectory, Descriptions, Error, LogStore, Machine, Settings,
    front::{Api, Entrance, Records},
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
    facts: Facts,
    /// Held for as long as the server runs.
    _lock: File,
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

/// Chooses certificates.
struct Tls(Certificates);

impl Server {
    /// Starts everything but the listener. `program` is the binary that compiles.
    ///
    /// # Errors
    /// What cannot be opened or started.
    pub fn start(settings: &Settings, program: PathBuf) -> Result<Self, Error> {
        let listener = Listener::bind(settings.listen.value)?;
        let tls = settings.listen_tls.value.map(Listener::bind).transpose()?;
        let admin = settings.admin.value.map(Admin::bind).transpose()?;
        let directory = DataDirectory::open(&settings.data_dir.value)?;
        let lock = lock(&directory)?;
        directory
            .sweep_scratch()
            .map_err(|cause| Error::DataDirectory { path: directory.scratch(), cause })?;
        let max_descriptors_count = wisp_node::raise_descriptor_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(PLATFORM_THREADS_COUNT)
            .thread_name("wisp-platform")
            .enable_all()
            .build()
            .map_err(|cause| Error::Stopped { cause })?;
        let _entered = runtime.enter();

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
        let compiler = Arc::new(Compiler::new(
            program,
            directory.scratch(),
            ImageStore::open_signed(directory.images(), key.verifying_key())?,
            key,
            settings.compile_limits(),
        ));
        let images = Arc::new(Images::new(registry.clone()));
        let resolver = match settings.dns.value {
            Some(server) => SystemResolver::of(vec![server]),
            None => SystemResolver::system(),
        };
        let machine = Arc::new(Machine::new(
            directory.clone(),
            node.clone(),
            images,
            compiler,
            logs.clone(),
            descriptions,
            resolver,
        ));

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
        let (control, sign_in_link) = runtime.block_on(async {
            let control = Control::open(control_settings, machine.clone()).await?;
            let link = control.sign_in_link().await?;
            let snapshot = control.snapshot().await?;
            for deployment in &snapshot.deployments {
                if let Err(error) = machine.register(snapshot.last.0, deployment) {
                    tracing::error!(app = %deployment.app, code = error.code, "the app cannot be served: {error}");
                }
            }
            control.resume().await?;
            Ok::<_, Error>((control, link))
        })?;
        // Once a server.
        drop(rules.control.set(control.clone()));
        node.start_preparing()?;

        let certificates = certificates(settings, &directory)?;
        let local_authority = certificates.local().map(|local| local.certificate_path().to_owned());
        let mut addresses = vec![("http".to_owned(), listener.address())];
        let mut listeners = vec![listener];
        if let Some(tls) = tls {
            addresses.push(("https".into(), tls.address()));
            listeners.push(tls.tls(Arc::new(Tls(certificates.clone()))));
        }
        let router = Router::new().merge(wisp_control::router(control.clone())).merge(registry.router());
        let entrance = Entrance {
            domain: settings.domain.value.clone(),
            door: Door::new(certificates, None),
            api: Arc::new(Api { router, runtime: runtime.handle().clone() }),
        };
        let config = ServerConfig {
            max_connections_count: settings.max_connections.value as usize,
            max_body_bytes: settings.max_request_body_bytes.value,
            grace_period: Duration::from_secs(settings.grace_period_s.value),
            ..ServerConfig::default()
        };
        let http = HttpServer::new(config, listeners)
            .front(Arc::new(entrance))
            .observer(Arc::new(Records { node: node.clone(), logs: logs.clone() }));
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
        Ok(Self { runtime, http, node, control, logs, admin, facts, _lock: lock })
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
        let result = self.http.run(self.node.clone(), async {
            shutdown.await;
            Ending::Stop
        });
        let left_count = self.runtime.block_on(self.control.stop(OPERATIONS_GRACE));
        if left_count > 0 {
            tracing::info!("{left_count} operations are not finished; the next start goes on with them");
        }
        self.node.stop();
        self.node.runtime().flush_logs();
        self.logs.flush();
        self.runtime.shutdown_timeout(OPERATIONS_GRACE);
        Ok(result?)
    }
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

/// Certificates: of the local authority, for the domain and all below it.
fn certificates(settings: &Settings, directory: &DataDirectory) -> Result<Certificates, Error> {
    let mut builder: CertificatesBuilder = Certificates::builder();
    if settings.listen_tls.value.is_some() {
        let domain = HostName::new(&settings.domain.value)?;
        let folder = directory.keys().join("local-authority");
        let local = LocalAuthority::open(&folder, &[domain], std::time::SystemTime::now())?;
        builder = builder.local(local);
    }
    Ok(builder.build()?)
}

impl SelectTls for Tls {
    fn select(&self, hello: &rustls::server::ClientHello<'_>) -> TlsChoice {
        match self.0.choose(hello) {
            wisp_ingress::Choice::Config(config) => TlsChoice::Config(config),
            wisp_ingress::Choice::Wait(config) => TlsChoice::Wait(config.map(Some).boxed()),
        }
    }
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
