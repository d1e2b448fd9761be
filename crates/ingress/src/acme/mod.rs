//! Certificates from an authority that speaks ACME (RFC 8555).
//!
//! # The life of a certificate
//!
//! 1. A client asks for a host that we hold no certificate for, or somebody [prepares]
//!    one. However many ask, one *flight* goes for it.
//! 2. Whoever knows says whether the host is ours. If not, that is the end: neither the
//!    store nor the authority is asked about names that strangers make up.
//! 3. The store may have it, from before a restart or from another process.
//! 4. Else the pace (`pace.rs`) is asked, and then the authority: an order, a check that the host
//!    leads here, a certificate. It is in the store before anybody sees it.
//! 5. At two thirds of its life it is ordered again, in the background. Until the new
//!    one is there the old one is served.
//!
//! What fails is tried again after a pause that grows: one for the host if the authority
//! says no, one for all if there is no authority to say anything.
//!
//! [prepares]: crate::Certificates::prepare

mod challenges;
mod pace;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures::future::BoxFuture;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, LetsEncrypt, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::sign::CertifiedKey;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

pub use challenges::ChallengeKind;
pub(crate) use challenges::Challenges;
use challenges::Shown;
use pace::Pace;
pub use pace::{
    FIRST_AUTHORITY_PAUSE, FIRST_HOST_PAUSE, MAX_AUTHORITY_PAUSE, MAX_HOST_PAUSE,
    MAX_ORDERS_PER_DOMAIN_AND_WEEK_COUNT, MAX_ORDERS_PER_HOST_AND_WEEK_COUNT, MAX_ORDERS_PER_HOUR_COUNT,
    TOO_OFTEN_PAUSE,
};

use crate::{
    Error, HostName,
    certificates::{CertificateStore, Parsed, Shelf, StoredCertificate},
    clock::{Clock, from_unix_s, unix_s},
};

/// Failures that are remembered, for whoever asks why a host has no certificate. More hosts
/// than that do not fail at once without anybody noticing.
const MAX_FAILURES_COUNT: usize = 10_000;

/// Hosts for which somebody waits at once. Most wait for a moment, to be told that they
/// are not ours.
const MAX_FLIGHTS_COUNT: usize = 1_024;

/// Orders under way at once.
const MAX_ORDERS_AT_ONCE_COUNT: usize = 8;

/// How long an order may take, from the first word to the certificate.
const ORDER_LIMIT: Duration = Duration::from_secs(120);

/// How long the authority may take to check a host, and to issue.
const POLL_LIMIT: Duration = Duration::from_secs(45);

/// How often the store is asked what is to be renewed.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(600);

/// Hosts that are renewed in one go; the others follow in the next.
const MAX_RENEWALS_COUNT: usize = 1_000;

/// Which part of a certificate's life passes before it is renewed, at the latest.
const RENEW_AFTER: (u32, u32) = (2, 3);

/// Renewals are spread over this part of a certificate's life, so that those that were
/// issued together are not renewed together.
const JITTER_PART: u32 = 20;

/// The shortest life after which a certificate is renewed, whatever its dates say.
const MIN_LIFE: Duration = Duration::from_secs(5);

/// Says whether a host is ours: one of an app, and verified if it is a domain of its
/// own. Called for every unknown name that clients ask for.
pub type Allowed = Arc<dyn Fn(&HostName) -> BoxFuture<'static, bool> + Send + Sync>;

/// An authority and how to talk to it.
#[derive(Clone, Debug)]
pub struct AcmeSettings {
    /// Where it says what it can do.
    pub directory_url: String,
    /// The certificate, PEM, that its own connection is verified with, instead of those
    /// that the machine trusts.
    pub root_certificate: Option<PathBuf>,
    /// Where it reaches the operator, such as `mailto:operator@example.com`.
    pub contacts: Vec<String>,
    /// How it may check hosts: the first, and after a failure the next one.
    pub challenges: Vec<ChallengeKind>,
}

impl AcmeSettings {
    /// An authority with this directory, and both kinds of challenges.
    pub fn new(directory_url: impl Into<String>) -> Self {
        Self {
            directory_url: directory_url.into(),
            root_certificate: None,
            contacts: Vec::new(),
            challenges: vec![ChallengeKind::TlsAlpn01, ChallengeKind::Http01],
        }
    }

    /// Let's Encrypt. Using it means to agree with its terms.
    pub fn lets_encrypt() -> Self {
        Self::new(LetsEncrypt::Production.url())
    }
}

/// Obtains certificates and renews them.
pub(crate) struct Acme {
    settings: AcmeSettings,
    store: Arc<dyn CertificateStore>,
    allowed: Allowed,
    clock: Arc<dyn Clock>,
    challenges: Arc<Challenges>,
    shelf: Arc<Shelf>,
    runtime: Handle,
    account: tokio::sync::Mutex<Option<Account>>,
    /// The account in the store is worth nothing any more.
    is_account_lost: AtomicBool,
    flights: Mutex<HashMap<HostName, Flight>>,
    /// Why the last attempt for a host failed; gone once one succeeded.
    failures: Mutex<HashMap<HostName, Failed>>,
    pace: Mutex<Pace>,
    orders: Semaphore,
    stopping: CancellationToken,
}

/// Where those who wait for a host learn how it ended.
type Flight = watch::Receiver<Option<Landing>>;
type Landing = Result<Arc<CertifiedKey>, Error>;

/// Why there is no certificate, or no new one, and when that was.
#[derive(Clone, Debug)]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// When.
    pub at: SystemTime,
}

/// How a host stands with the authority.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// From when to when what is there is renewed and holds; `None` if nothing is there.
    pub held: Option<(SystemTime, SystemTime)>,
    /// Whether the authority is asked at this moment.
    pub is_pending: bool,
    /// Why it was in vain the last time.
    pub failed: Option<Failed>,
    /// Before when it is not asked, and why not.
    pub paused: Option<(SystemTime, &'static str)>,
}

/// Why an order ended without a certificate.
enum Failure {
    /// The host is to blame, or what we asked for.
    Host(String),
    /// We ask too often.
    TooOften(String),
    /// The authority is to blame, or the way there.
    Authority(String),
    /// The authority does not know us.
    Unknown(String),
    /// Something here.
    Ours(Error),
}

impl Acme {
    /// Begins to renew.
    pub(crate) fn start(
        settings: AcmeSettings,
        store: Arc<dyn CertificateStore>,
        allowed: Allowed,
        clock: Arc<dyn Clock>,
        challenges: Arc<Challenges>,
        shelf: Arc<Shelf>,
        runtime: Handle,
    ) -> Arc<Self> {
        let acme = Arc::new(Self {
            settings,
            store,
            allowed,
            clock,
            challenges,
            shelf,
            runtime: runtime.clone(),
            account: tokio::sync::Mutex::default(),
            is_account_lost: AtomicBool::new(false),
            flights: Mutex::default(),
            failures: Mutex::default(),
            pace: Mutex::default(),
            orders: Semaphore::new(MAX_ORDERS_AT_ONCE_COUNT),
            stopping: CancellationToken::new(),
        });
        runtime.spawn(acme.clone().renew_all());
        acme
    }

    /// Ends what is under way and begins nothing more.
    pub(crate) fn stop(&self) {
        self.stopping.cancel();
    }

    /// A certificate for a host, from the store or the authority.
    pub(crate) async fn obtain(self: &Arc<Self>, host: &HostName) -> Landing {
        let mut flight = self.fly(host, false)?;
        let landing = flight.wait_for(Option::is_some).await.ok().and_then(|landing| landing.clone());
        // Without a word the flight was cancelled.
        landing.unwrap_or(Err(Error::Off { reason: "this process is ending" }))
    }

    /// How a host stands. Asks nobody but the store.
    pub(crate) async fn standing(self: &Arc<Self>, host: &HostName) -> Result<Standing, Error> {
        let (acme, of_host) = (self.clone(), host.clone());
        let stored = self.blocking(move || acme.store.load(&of_host)).await?;
        let now = self.clock.now();
        let paused = match self.pace().check(host, stored.is_some(), now) {
            Err(Error::Paused { wait, reason, .. }) => Some((now + wait, reason)),
            _ => None,
        };
        Ok(Standing {
            held: stored
                .filter(|stored| now < stored.expires_at())
                .map(|stored| (stored.renew_at(), stored.expires_at())),
            is_pending: self.flights.lock().unwrap_or_else(PoisonError::into_inner).contains_key(host),
            failed: self.failures().get(host).cloned(),
            paused,
        })
    }

    /// Nothing is kept of a host.
    pub(crate) async fn forget(self: &Arc<Self>, host: &HostName) -> Result<(), Error> {
        let (acme, host) = (self.clone(), host.clone());
        self.blocking(move || acme.store.remove(&host)).await
    }

    /// Joins the flight for a host, or sends one.
    fn fly(self: &Arc<Self>, host: &HostName, is_renewal: bool) -> Result<Flight, Error> {
        if self.stopping.is_cancelled() {
            return Err(Error::Off { reason: "this process is ending" });
        }
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(host) {
            return Ok(flight.clone());
        }
        if flights.len() >= MAX_FLIGHTS_COUNT {
            return Err(Error::Crowded);
        }
        let (sender, flight) = watch::channel(None);
        flights.insert(host.clone(), flight.clone());
        drop(flights);
        let (acme, host) = (self.clone(), host.clone());
        self.runtime.spawn(async move {
            let landing = tokio::select! {
                biased;
                () = acme.stopping.cancelled() => Err(Error::Off { reason: "this process is ending" }),
                landing = acme.bring(&host, is_renewal) => landing,
            };
            match &landing {
                Ok(_) => {}
                Err(error @ (Error::NotOurs { .. } | Error::Paused { .. } | Error::Off { .. })) => {
                    tracing::debug!(code = error.code(), %host, "{error}");
                }
                Err(error) => tracing::warn!(code = error.code(), %host, "{error}"),
            }
            acme.note(&host, landing.as_ref().err());
            acme.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&host);
            sender.send_replace(Some(landing));
        });
        Ok(flight)
    }

    /// A whole flight.
    async fn bring(self: &Arc<Self>, host: &HostName, is_renewal: bool) -> Landing {
        if !(self.allowed)(host).await {
            if is_renewal {
                tracing::info!(%host, "the certificate is not renewed: the host is not ours any more");
                self.forget(host).await?;
                self.shelf.remove(host);
            }
            return Err(Error::NotOurs { host: host.clone() });
        }
        let mut was_issued_before = is_renewal;
        if !is_renewal {
            let (acme, of_host) = (self.clone(), host.clone());
            if let Some(stored) = self.blocking(move || acme.store.load(&of_host)).await? {
                was_issued_before = true;
                if self.clock.now() < stored.expires_at() {
                    return self.hold(host, &stored);
                }
            }
        }
        let now = self.clock.now();
        self.pace().check(host, was_issued_before, now)?;
        let _place = self.orders.acquire().await.map_err(|_| Error::Crowded)?;
        let order = async {
            match self.order(host, was_issued_before).await {
                // Begin anew, once, with an account of which the authority knows.
                Err(Failure::Unknown(message)) => {
                    tracing::warn!("the certificate authority has forgotten our account: {message}");
                    self.is_account_lost.store(true, Ordering::Relaxed);
                    *self.account.lock().await = None;
                    self.order(host, was_issued_before).await
                }
                other => other,
            }
        };
        let ordered = tokio::time::timeout(ORDER_LIMIT, order).await;
        let now = self.clock.now();
        let failure = match ordered {
            Ok(Ok(stored)) => {
                self.pace().succeeded(host);
                tracing::info!(%host, "obtained a certificate");
                return self.hold(host, &stored);
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Host(format!("it took longer than {ORDER_LIMIT:?}")),
        };
        let refused = |message| Error::Refused { host: host.clone(), message };
        Err(match failure {
            Failure::Host(message) => {
                self.pace().host_failed(host, now);
                refused(message)
            }
            Failure::TooOften(message) => {
                self.pace().too_often(host, now);
                refused(message)
            }
            Failure::Authority(message) | Failure::Unknown(message) => {
                self.pace().authority_failed(now);
                // Its addresses may be others when it is back.
                *self.account.lock().await = None;
                Error::authority(message)
            }
            Failure::Ours(error) => {
                self.pace().host_failed(host, now);
                error
            }
        })
    }

    fn hold(&self, host: &HostName, stored: &StoredCertificate) -> Landing {
        let parsed = Parsed::new(&stored.chain_pem, &stored.key_pem, host.as_str())?;
        self.shelf.put(host, parsed.key.clone(), stored.expires_at());
        Ok(parsed.key)
    }

    /// One order, from the first word to the certificate in the store.
    async fn order(
        self: &Arc<Self>,
        host: &HostName,
        was_issued_before: bool,
    ) -> Result<StoredCertificate, Failure> {
        let account = self.account().await?;
        let identifiers = [Identifier::Dns(host.to_string())];
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
        self.pace().ordered(host, was_issued_before, self.clock.now());
        let shown = self.show(&mut order, host).await?;
        let polling = RetryPolicy::new().timeout(POLL_LIMIT);
        match order.poll_ready(&polling).await {
            Ok(OrderStatus::Ready) => {}
            Ok(_) => return Err(Failure::Host(objection(&mut order).await)),
            Err(error) => return Err(error.into()),
        }
        drop(shown);

        let wrong = |cause: rcgen::Error| Failure::Ours(Error::certificate(host, cause));
        let key = KeyPair::generate().map_err(wrong)?;
        let mut params = CertificateParams::new(vec![host.to_string()]).map_err(wrong)?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(wrong)?;
        order.finalize_csr(request.der()).await?;
        let chain_pem = order.poll_certificate(&polling).await?;
        let stored = self.check(host, chain_pem, key.serialize_pem()).map_err(Failure::Ours)?;
        let (acme, of_host, to_store) = (self.clone(), host.clone(), stored.clone());
        self.blocking(move || acme.store.save(&of_host, &to_store)).await.map_err(Failure::Ours)?;
        Ok(stored)
    }

    /// Makes the authority find what it looks for.
    async fn show(&self, order: &mut Order, host: &HostName) -> Result<Vec<Shown>, Failure> {
        let failures_count = self.pace().failures_count(host) as usize;
        let mut shown = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                other => return Err(Failure::Host(format!("its authorization is {other:?}"))),
            }
            // The first choice changes with each failure; what is not offered is left out.
            let kinds = &self.settings.challenges;
            let offered = |kind: &ChallengeKind| {
                authorization.challenges.iter().any(|challenge| challenge.r#type == kind.to_type())
            };
            let kind = kinds
                .iter()
                .cycle()
                .skip(failures_count % kinds.len().max(1))
                .take(kinds.len())
                .find(|kind| offered(kind));
            let Some(kind) = kind.copied() else {
                return Err(Failure::Host("the authority offers no challenge that we can meet".into()));
            };
            let Some(mut challenge) = authorization.challenge(kind.to_type()) else { continue };
            let key_authorization = challenge.key_authorization();
            shown.push(match kind {
                ChallengeKind::Http01 => {
                    self.challenges.show_token(&challenge.token, key_authorization.as_str())
                }
                ChallengeKind::TlsAlpn01 => self
                    .challenges
                    .show_certificate(host, key_authorization.digest().as_ref())
                    .map_err(Failure::Ours)?,
            });
            challenge.set_ready().await?;
        }
        Ok(shown)
    }

    /// Reads what the authority issued, and decides when it is to be renewed.
    fn check(&self, host: &HostName, chain_pem: String, key_pem: String) -> Result<StoredCertificate, Error> {
        let parsed = Parsed::new(&chain_pem, &key_pem, host.as_str())?;
        if !parsed.names.iter().any(|name| name == host.as_str()) {
            return Err(Error::certificate(host, "it does not name the host"));
        }
        let renew_at = renew_at(self.clock.now(), from_unix_s(parsed.expires_at_s), random_part());
        Ok(StoredCertificate {
            chain_pem,
            key_pem,
            renew_at_s: unix_s(renew_at),
            expires_at_s: parsed.expires_at_s,
        })
    }

    /// The account with the authority; made on first use.
    async fn account(self: &Arc<Self>) -> Result<Account, Failure> {
        let mut account = self.account.lock().await;
        if let Some(account) = &*account {
            return Ok(account.clone());
        }
        let builder = match &self.settings.root_certificate {
            Some(path) => Account::builder_with_root(path),
            None => Account::builder(),
        }
        .map_err(|cause| Failure::Ours(Error::authority(cause)))?;
        let acme = self.clone();
        let saved = self
            .blocking(move || acme.store.load_account(&acme.settings.directory_url))
            .await
            .map_err(Failure::Ours)?
            .filter(|_| !self.is_account_lost.load(Ordering::Relaxed));
        let opened = match saved {
            Some(saved) => {
                let credentials: AccountCredentials =
                    serde_json::from_str(&saved).map_err(|cause| Failure::Ours(Error::store(cause)))?;
                builder.from_credentials(credentials).await?
            }
            None => {
                let contacts: Vec<&str> = self.settings.contacts.iter().map(String::as_str).collect();
                let wanted = NewAccount {
                    contact: &contacts,
                    terms_of_service_agreed: true,
                    only_return_existing: false,
                };
                let (made, credentials) =
                    builder.create(&wanted, self.settings.directory_url.clone(), None).await?;
                let credentials = serde_json::to_string(&credentials)
                    .map_err(|cause| Failure::Ours(Error::store(cause)))?;
                let acme = self.clone();
                self.blocking(move || acme.store.save_account(&acme.settings.directory_url, &credentials))
                    .await
                    .map_err(Failure::Ours)?;
                self.is_account_lost.store(false, Ordering::Relaxed);
                made
            }
        };
        Ok(account.insert(opened).clone())
    }

    /// Renews what is due, until the process ends.
    async fn renew_all(self: Arc<Self>) {
        loop {
            let now = self.clock.now();
            let acme = self.clone();
            match self.blocking(move || acme.store.due(now, MAX_RENEWALS_COUNT)).await {
                Ok(hosts) => {
                    let flights: Vec<Flight> =
                        hosts.iter().filter_map(|host| self.fly(host, true).ok()).collect();
                    for mut flight in flights {
                        let _ = flight.wait_for(Option::is_some).await;
                    }
                }
                Err(error) => tracing::error!(code = error.code(), "{error}"),
            }
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = self.clock.sleep_until(now + RENEWAL_INTERVAL) => {}
            }
        }
    }

    /// Remembers how an attempt ended, if there was one.
    fn note(&self, host: &HostName, error: Option<&Error>) {
        let mut failures = self.failures();
        match error {
            None => drop(failures.remove(host)),
            // Nobody was asked.
            Some(Error::NotOurs { .. } | Error::Paused { .. } | Error::Off { .. } | Error::Crowded) => {}
            Some(error) => {
                if failures.len() >= MAX_FAILURES_COUNT && !failures.contains_key(host) {
                    let oldest = failures.iter().min_by_key(|(_, failed)| failed.at);
                    if let Some(oldest) = oldest.map(|(host, _)| host.clone()) {
                        failures.remove(&oldest);
                    }
                }
                failures.insert(host.clone(), Failed { error: error.clone(), at: self.clock.now() });
            }
        }
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<HostName, Failed>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what may block where it hurts nobody.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        match self.runtime.spawn_blocking(work).await {
            Ok(result) => result,
            Err(cause) => Err(Error::store(cause)),
        }
    }
}

impl ChallengeKind {
    fn to_type(self) -> ChallengeType {
        match self {
            Self::Http01 => ChallengeType::Http01,
            Self::TlsAlpn01 => ChallengeType::TlsAlpn01,
        }
    }
}

impl From<instant_acme::Error> for Failure {
    fn from(error: instant_acme::Error) -> Self {
        use instant_acme::Error as Acme;
        let message = error.to_string();
        match error {
            Acme::Api(problem) => {
                let kind = problem.r#type.as_deref().unwrap_or_default();
                match kind.strip_prefix("urn:ietf:params:acme:error:") {
                    Some("rateLimited") => Self::TooOften(message),
                    Some("serverInternal") => Self::Authority(message),
                    Some("accountDoesNotExist") => Self::Unknown(message),
                    _ if problem.status.is_some_and(|status| status >= 500) => Self::Authority(message),
                    _ => Self::Host(message),
                }
            }
            Acme::Timeout(_) => Self::Host(message),
            // What cannot be sent or understood: it is not there, or not itself.
            Acme::Other(cause) => Self::Authority(causes(&*cause)),
            Acme::Hyper(cause) => Self::Authority(causes(&cause)),
            _ => Self::Authority(message),
        }
    }
}

/// An error with what caused it.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// What the authority has against an order.
async fn objection(order: &mut Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let _ = authorization.refresh().await;
        if let Some(problem) = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref())
        {
            return problem.to_string();
        }
    }
    "the authority says that the order is invalid, and not why".into()
}

/// When a certificate that holds from `now` is renewed; `part` of the spread is left out.
fn renew_at(now: SystemTime, expires_at: SystemTime, part: f64) -> SystemTime {
    let life = expires_at.duration_since(now).unwrap_or_default();
    let latest = life * RENEW_AFTER.0 / RENEW_AFTER.1;
    now + latest.saturating_sub((life / JITTER_PART).mul_f64(part)).max(MIN_LIFE)
}

/// Between 0 and 1.
fn random_part() -> f64 {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8);
    f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life_or_a_little_earlier() {
        let days = |count: u64| Duration::from_secs(count * 86_400);
        let (now, expires_at) = (UNIX_EPOCH + days(10), UNIX_EPOCH + days(100));
        assert_eq!(renew_at(now, expires_at, 0.0), now + days(60));
        assert_eq!(renew_at(now, expires_at, 1.0), now + days(60) - days(90) / JITTER_PART);
        assert_eq!(renew_at(now, now - days(1), 0.5), now + MIN_LIFE);
        assert!((0.0..=1.0).contains(&random_part()));
    }
}
