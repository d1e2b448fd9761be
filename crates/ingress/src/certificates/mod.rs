//! Which certificate a client gets.
//!
//! By the name that the client asks for, the first of:
//!
//! 1. a certificate from files that names the host;
//! 2. one of the [local authority](LocalAuthority), for hosts that it covers;
//! 3. one that was or can be obtained from an [authority](crate::acme), for hosts that
//!    are ours;
//! 4. the first certificate from files.
//!
//! What was found stands in a table; most handshakes look there and nowhere else.

mod local;
mod store;

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use futures::future::BoxFuture;
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::runtime::Handle;
use x509_parser::extensions::GeneralName;

pub use local::LocalAuthority;
pub(crate) use store::make_private_folder;
pub use store::{CertificateStore, StoredCertificate};

use crate::{
    Error, HostName,
    acme::{Acme, AcmeSettings, Allowed, Challenges, Standing},
    clock::{Clock, SystemClock},
    table::Table,
};

/// Hosts whose certificates are held in memory, at 4 KB each. Others are read from the
/// store, or made, when a client asks for them.
const MAX_HELD_COUNT: usize = 10_000;

/// Protocols offered to clients, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The protocol of an authority that checks a host (RFC 8737).
const ACME_PROTOCOL: &[u8] = b"acme-tls/1";

/// How long a certificate from a file stands in the table: one that was being put there
/// while files were changed is gone after this.
const FILE_HELD: Duration = Duration::from_secs(60);

/// Certificates for the hosts of a server. Cheap to clone.
#[derive(Clone)]
pub struct Certificates {
    shelf: Arc<Shelf>,
    acme: Option<Arc<Acme>>,
    config: Arc<ServerConfig>,
    challenge_config: Arc<ServerConfig>,
}

/// How a handshake goes on.
pub enum Choice {
    /// With this configuration.
    Config(Arc<ServerConfig>),
    /// With the one that this leads to, which may take seconds.
    Wait(BoxFuture<'static, Arc<ServerConfig>>),
}

/// Where a host's certificate comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From a file.
    File,
    /// From this machine's own authority, whenever it is asked for.
    Local,
    /// From an authority, with how the host stands there.
    Authority(Standing),
    /// From nowhere.
    Nowhere,
}

/// Puts [`Certificates`] together.
pub struct CertificatesBuilder {
    clock: Arc<dyn Clock>,
    files: Vec<CertificateFiles>,
    local: Option<LocalAuthority>,
    acme: Option<(AcmeSettings, Arc<dyn CertificateStore>, Allowed, Handle)>,
}

/// Where a certificate and its key are.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The chain, PEM, the host's own first.
    pub chain: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

/// The certificates that there are.
pub(crate) struct Shelf {
    held: Table<Held>,
    fixed: RwLock<Arc<Fixed>>,
    local: Option<LocalAuthority>,
    /// For this machine's own addresses, from the local authority.
    addresses: Mutex<Option<Held>>,
    challenges: Arc<Challenges>,
    clock: Arc<dyn Clock>,
}

#[derive(Clone)]
struct Held {
    key: Arc<CertifiedKey>,
    /// From when on it is not to be used without asking again whether there is a better
    /// one.
    until: SystemTime,
}

/// Certificates from files.
#[derive(Default)]
struct Fixed {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

/// What a chain and a key turned out to be.
pub(crate) struct Parsed {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) names: Vec<String>,
    pub(crate) expires_at_s: u64,
}

impl Certificates {
    /// Certificates from nowhere yet.
    pub fn builder() -> CertificatesBuilder {
        CertificatesBuilder { clock: Arc::new(SystemClock), files: Vec::new(), local: None, acme: None }
    }

    /// Chooses the configuration for a client. Neither blocks nor waits.
    pub fn choose(&self, hello: &ClientHello<'_>) -> Choice {
        if offers_acme(hello) {
            return Choice::Config(self.challenge_config.clone());
        }
        let config = || Choice::Config(self.config.clone());
        let (Some(name), Some(acme)) = (hello.server_name(), &self.acme) else { return config() };
        if self.shelf.has(name) {
            return config();
        }
        let Ok(host) = HostName::new(name) else { return config() };
        if self.shelf.find(&host).is_some() {
            return config();
        }
        let (acme, config) = (acme.clone(), self.config.clone());
        Choice::Wait(Box::pin(async move {
            if let Err(error) = acme.obtain(&host).await {
                tracing::debug!(code = error.code(), %host, "{error}");
            }
            // Without a certificate the handshake ends with an alert that says so.
            config
        }))
    }

    /// A configuration for all clients, without certificates that have to be waited for.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// The answer to an authority that asks for this path, whatever the host.
    pub fn challenge_response(&self, path: &str) -> Option<String> {
        self.shelf.challenges.response(path)
    }

    /// Obtains a certificate for a host before somebody asks for it.
    ///
    /// # Errors
    /// If there is none after all.
    pub async fn prepare(&self, host: &HostName) -> Result<(), Error> {
        if self.shelf.find(host).is_some() {
            return Ok(());
        }
        match &self.acme {
            Some(acme) => acme.obtain(host).await.map(drop),
            None => Err(Error::Off { reason: "no authority was set up" }),
        }
    }

    /// Where a host's certificate comes from, and why there is none yet. Asks no authority.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn source(&self, host: &HostName) -> Result<Source, Error> {
        if self.shelf.fixed().of(host).is_some() {
            return Ok(Source::File);
        }
        if self.shelf.local.as_ref().is_some_and(|local| local.covers(host)) {
            return Ok(Source::Local);
        }
        match &self.acme {
            Some(acme) => acme.standing(host).await.map(Source::Authority),
            None => Ok(Source::Nowhere),
        }
    }

    /// The certificate of a host is not used any more, and not renewed.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn forget(&self, host: &HostName) -> Result<(), Error> {
        self.shelf.held.remove(host.as_str());
        match &self.acme {
            Some(acme) => acme.forget(host).await,
            None => Ok(()),
        }
    }

    /// Puts certificates from files in the place of those before.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Certificate`]; nothing has changed then.
    pub fn set_files(&self, files: &[CertificateFiles]) -> Result<(), Error> {
        let fixed = Fixed::read(files)?;
        *self.shelf.fixed.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fixed);
        self.shelf.held.retain(|_, _| false);
        Ok(())
    }

    /// The local authority, if there is one.
    pub fn local(&self) -> Option<&LocalAuthority> {
        self.shelf.local.as_ref()
    }

    /// Asks no authority for anything any more; for a server that ends.
    pub fn stop(&self) {
        if let Some(acme) = &self.acme {
            acme.stop();
        }
    }

    /// How many certificates are held in memory.
    pub fn held_count(&self) -> usize {
        self.shelf.held.count()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Certificates").field("held", &self.held_count()).finish_non_exhaustive()
    }
}

impl CertificatesBuilder {
    /// With this clock.
    #[must_use]
    pub fn clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// With certificates from files.
    #[must_use]
    pub fn files(self, files: Vec<CertificateFiles>) -> Self {
        Self { files, ..self }
    }

    /// With an authority of this machine's own.
    #[must_use]
    pub fn local(self, authority: LocalAuthority) -> Self {
        Self { local: Some(authority), ..self }
    }

    /// With certificates that are obtained from an authority for hosts that `allowed`
    /// accepts, and kept in `store`. What takes long runs on `runtime`.
    #[must_use]
    pub fn acme(
        self,
        settings: AcmeSettings,
        store: Arc<dyn CertificateStore>,
        allowed: Allowed,
        runtime: Handle,
    ) -> Self {
        Self { acme: Some((settings, store, allowed, runtime)), ..self }
    }

    /// Reads files and begins to renew what is due.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Certificate`].
    pub fn build(self) -> Result<Certificates, Error> {
        let challenges = Arc::new(Challenges::default());
        let shelf = Arc::new(Shelf {
            held: Table::new(MAX_HELD_COUNT),
            fixed: RwLock::new(Arc::new(Fixed::read(&self.files)?)),
            local: self.local,
            addresses: Mutex::default(),
            challenges: challenges.clone(),
            clock: self.clock.clone(),
        });
        let config = |protocols: &[&[u8]]| {
            let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|cause| Error::certificate("all hosts", cause))?
                .with_no_client_auth()
                .with_cert_resolver(shelf.clone());
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            // Clients bring their sessions with them: no memory here, and no lock.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.ticketer =
                ring::Ticketer::new().map_err(|cause| Error::certificate("all hosts", cause))?;
            Ok::<_, Error>(Arc::new(config))
        };
        let (config, challenge_config) = (config(&PROTOCOLS)?, config(&[ACME_PROTOCOL])?);
        let acme = self.acme.map(|(settings, store, allowed, runtime)| {
            Acme::start(settings, store, allowed, self.clock, challenges, shelf.clone(), runtime)
        });
        Ok(Certificates { shelf, acme, config, challenge_config })
    }
}

impl Shelf {
    /// Whether there is a certificate for a host that needs nothing more.
    fn has(&self, name: &str) -> bool {
        let now = self.clock.now();
        self.held.with(name, |held| now < held.until).unwrap_or(false)
    }

    /// A certificate for a host, from the table or from what can be had at once.
    fn find(&self, host: &HostName) -> Option<Arc<CertifiedKey>> {
        let now = self.clock.now();
        let held = self.held.with(host.as_str(), |held| (now < held.until).then(|| held.key.clone()));
        if let Some(key) = held.flatten() {
            return Some(key);
        }
        let fixed = self.fixed();
        if let Some(key) = fixed.of(host) {
            self.put(host, key.clone(), now + FILE_HELD);
            return Some(key.clone());
        }
        let local = self.local.as_ref().filter(|local| local.covers(host))?;
        match local.issue(Some(host), now) {
            Ok(issued) => {
                self.put(host, issued.key.clone(), issued.renew_at);
                Some(issued.key)
            }
            Err(error) => {
                tracing::error!(code = error.code(), %host, "{error}");
                None
            }
        }
    }

    /// Holds a certificate until a time.
    pub(crate) fn put(&self, host: &HostName, key: Arc<CertifiedKey>, until: SystemTime) {
        self.held.insert(host.as_str(), Held { key, until });
    }

    pub(crate) fn remove(&self, host: &HostName) {
        self.held.remove(host.as_str());
    }

    fn fixed(&self) -> Arc<Fixed> {
        self.fixed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For clients that name no host: they know our address only.
    fn without_name(&self) -> Option<Arc<CertifiedKey>> {
        if let Some(first) = &self.fixed().first {
            return Some(first.clone());
        }
        let local = self.local.as_ref()?;
        let now = self.clock.now();
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = &*addresses
            && now < held.until
        {
            return Some(held.key.clone());
        }
        let issued = local.issue(None, now).ok()?;
        *addresses = Some(Held { key: issued.key.clone(), until: issued.renew_at });
        Some(issued.key)
    }
}

impl ResolvesServerCert for Shelf {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = hello.server_name() else {
            return if offers_acme(&hello) { None } else { self.without_name() };
        };
        if offers_acme(&hello) {
            return self.challenges.certificate(name);
        }
        let now = self.clock.now();
        let held = self.held.with(name, |held| (held.key.clone(), now < held.until));
        if let Some((key, true)) = held {
            return Some(key);
        }
        let found = HostName::new(name).ok().and_then(|host| self.find(&host));
        // One that should have been renewed is better than none, or another's.
        found.or(held.map(|(key, _)| key)).or_else(|| self.fixed().first.clone())
    }
}

impl fmt::Debug for Shelf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shelf").field("held", &self.held.count()).finish_non_exhaustive()
    }
}

impl Fixed {
    fn read(files: &[CertificateFiles]) -> Result<Self, Error> {
        let mut fixed = Self::default();
        for CertificateFiles { chain, key } in files {
            let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(Error::read(path));
            let parsed = Parsed::new(&read(chain)?, &read(key)?, &chain.display().to_string())?;
            for name in parsed.names {
                fixed.by_name.entry(name).or_insert_with(|| parsed.key.clone());
            }
            fixed.first.get_or_insert(parsed.key);
        }
        Ok(fixed)
    }

    fn of(&self, host: &HostName) -> Option<&Arc<CertifiedKey>> {
        self.by_name.get(host.as_str()).or_else(|| {
            let (_, parent) = host.as_str().split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        })
    }
}

impl Parsed {
    /// Reads a chain and the key that belongs to it.
    pub(crate) fn new(chain_pem: &str, key_pem: &str, whose: &str) -> Result<Self, Error> {
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|cause| Error::certificate(whose, cause))?;
        let Some(first) = chain.first() else {
            return Err(Error::certificate(whose, "there is no certificate in it"));
        };
        let (_, certificate) =
            x509_parser::parse_x509_certificate(first).map_err(|cause| Error::certificate(whose, cause))?;
        let mut names = Vec::new();
        if let Ok(Some(alternatives)) = certificate.subject_alternative_name() {
            names.extend(alternatives.value.general_names.iter().filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                _ => None,
            }));
        }
        let expires_at_s = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|cause| Error::certificate(whose, format!("its key: {cause}")))?;
        let signer =
            ring::sign::any_supported_type(&key).map_err(|cause| Error::certificate(whose, cause))?;
        let key = CertifiedKey::new(chain, signer);
        match key.keys_match() {
            Ok(()) => {}
            // The ring provider tells for all keys that it can use.
            Err(cause) => return Err(Error::certificate(whose, format!("its key: {cause}"))),
        }
        Ok(Self { key: Arc::new(key), names, expires_at_s })
    }
}

/// Whether this is an authority that checks a host, and nothing else.
fn offers_acme(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == ACME_PROTOCOL))
}
