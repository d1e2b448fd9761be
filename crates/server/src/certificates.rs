//! Certificates, with what the control plane knows and keeps.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use futures::FutureExt as _;
use tokio::runtime::Handle;
use wisp_control::{
    Control,
    model::{CertificateState, CertificateStatus, ErrorBody},
    names::Host,
};
use wisp_ingress::{
    Allowed, CertificateStore, Certificates, Choice, Error as IngressError, Failed, HostName, LocalAuthority,
    Source, Standing, StoredCertificate,
};
use wisp_trigger::http::{SelectTls, TlsChoice};

use crate::{DataDirectory, Error, Settings};

/// What a host's certificate is kept under in the state.
const HOST_PREFIX: &str = "host/";

/// What an account with an authority is kept under.
const ACCOUNT_PREFIX: &str = "account/";

/// Chooses certificates for a listener.
pub(crate) struct Tls(pub(crate) Certificates);

/// Keeps certificates in the control plane's state, sealed.
struct StateStore {
    control: Arc<Control>,
    runtime: Handle,
    /// When each is to be renewed, in seconds since 1970; `None` until that was read. One
    /// that is gone from the state stays for a while, and is not found then.
    renewals: Mutex<Option<HashMap<HostName, u64>>>,
}

/// Certificates for the domain, all apps and their domains: from an authority if one is
/// set, else of the local one.
///
/// # Errors
/// If keys cannot be read or made.
pub(crate) fn open(
    settings: &Settings,
    directory: &DataDirectory,
    control: &Arc<Control>,
    runtime: &Handle,
) -> Result<Certificates, Error> {
    let mut builder = Certificates::builder();
    if settings.listen_tls.value.is_none() {
        return Ok(builder.build()?);
    }
    let domain = HostName::new(&settings.domain.value)?;
    let mut local_domains = vec![domain.clone()];
    if let Some(acme) = settings.acme() {
        let store =
            StateStore { control: control.clone(), runtime: runtime.clone(), renewals: Mutex::default() };
        builder = builder.acme(acme, Arc::new(store), allowed(control, domain), runtime.clone());
        // Who has an authority for the domain needs none of this machine's own for it.
        local_domains.clear();
    }
    let folder = directory.keys().join("local-authority");
    let local = LocalAuthority::open(&folder, &local_domains, SystemTime::now())?;
    Ok(builder.local(local).build()?)
}

/// Hosts that certificates are asked for: the platform's own, those of apps, and domains
/// that were verified.
fn allowed(control: &Arc<Control>, domain: HostName) -> Allowed {
    let control = control.clone();
    Arc::new(move |host: &HostName| {
        let (control, host, is_own) = (control.clone(), host.clone(), *host == domain);
        async move {
            is_own
                || control.serves_host(host.as_str()).await.unwrap_or_else(|error| {
                    tracing::error!(code = error.code(), %host, "whose host it is cannot be told: {error}");
                    false
                })
        }
        .boxed()
    })
}

impl SelectTls for Tls {
    fn select(&self, hello: &rustls::server::ClientHello<'_>) -> TlsChoice {
        match self.0.choose(hello) {
            Choice::Config(config) => TlsChoice::Config(config),
            Choice::Wait(config) => TlsChoice::Wait(config.map(Some).boxed()),
        }
    }
}

impl Tls {
    /// How a host stands with its certificate.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub(crate) async fn status(&self, host: &Host) -> Result<Option<CertificateStatus>, Error> {
        let source = self.0.source(&HostName::new(host.as_str())?).await?;
        let plain = |state| CertificateStatus {
            state,
            expires_ms: None,
            renews_ms: None,
            error: None,
            failed_ms: None,
            next_try_ms: None,
        };
        Ok(match source {
            Source::File => Some(plain(CertificateState::Valid)),
            Source::Local => Some(plain(CertificateState::Local)),
            Source::Nowhere => None,
            Source::Authority(standing) => Some(status(host, standing)),
        })
    }
}

/// How a host stands with an authority, as the API says it.
fn status(host: &Host, standing: Standing) -> CertificateStatus {
    let Standing { held, is_pending, failed, paused } = standing;
    let state = match (&held, is_pending, &failed, &paused) {
        (Some(_), ..) => CertificateState::Valid,
        (None, true, ..) => CertificateState::Pending,
        (None, false, Some(_), _) => CertificateState::Failing,
        (None, false, None, Some(_)) => CertificateState::Paused,
        (None, false, None, None) => CertificateState::Missing,
    };
    let error = match (&failed, &paused) {
        (Some(Failed { error, .. }), _) => Some(error_body(error)),
        (None, Some((_, reason))) if held.is_none() => Some(ErrorBody {
            code: "WISP-E1008".to_owned(),
            message: format!("no certificate for `{host}` is asked for yet: {reason}"),
            hint: None,
        }),
        _ => None,
    };
    CertificateStatus {
        state,
        expires_ms: held.map(|(_, expires_at)| unix_ms(expires_at)),
        renews_ms: held.map(|(renew_at, _)| unix_ms(renew_at)),
        failed_ms: failed.map(|failed| unix_ms(failed.at)),
        next_try_ms: paused.filter(|_| error.is_some()).map(|(next_try, _)| unix_ms(next_try)),
        error,
    }
}

fn error_body(error: &IngressError) -> ErrorBody {
    ErrorBody { code: error.code().to_owned(), message: error.to_string(), hint: error.hint() }
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl StateStore {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, IngressError> {
        self.runtime.block_on(self.control.certificate(name)).map_err(failed)
    }

    fn write(&self, name: &str, value: Option<&[u8]>) -> Result<(), IngressError> {
        self.runtime.block_on(self.control.set_certificate(name, value)).map_err(failed)
    }

    /// Changes what is known of renewals, if it was read already.
    fn change_renewals(&self, change: impl FnOnce(&mut HashMap<HostName, u64>)) {
        if let Some(renewals) = &mut *self.renewals.lock().unwrap_or_else(PoisonError::into_inner) {
            change(renewals);
        }
    }

    fn read_renewals(&self) -> Result<HashMap<HostName, u64>, IngressError> {
        let names = self.runtime.block_on(self.control.certificate_names()).map_err(failed)?;
        let mut renewals = HashMap::new();
        for host in names.iter().filter_map(|name| HostName::new(name.strip_prefix(HOST_PREFIX)?).ok()) {
            if let Some(certificate) = self.load(&host)? {
                renewals.insert(host, certificate.renew_at_s);
            }
        }
        Ok(renewals)
    }
}

impl CertificateStore for StateStore {
    fn load(&self, host: &HostName) -> Result<Option<StoredCertificate>, IngressError> {
        let value = self.read(&format!("{HOST_PREFIX}{host}"))?;
        value.map(|value| serde_json::from_slice(&value).map_err(failed)).transpose()
    }

    fn save(&self, host: &HostName, certificate: &StoredCertificate) -> Result<(), IngressError> {
        let value = serde_json::to_vec(certificate).map_err(failed)?;
        self.write(&format!("{HOST_PREFIX}{host}"), Some(&value))?;
        self.change_renewals(|renewals| {
            renewals.insert(host.clone(), certificate.renew_at_s);
        });
        Ok(())
    }

    fn remove(&self, host: &HostName) -> Result<(), IngressError> {
        self.write(&format!("{HOST_PREFIX}{host}"), None)?;
        self.change_renewals(|renewals| {
            renewals.remove(host);
        });
        Ok(())
    }

    fn due(&self, time: SystemTime, max_count: usize) -> Result<Vec<HostName>, IngressError> {
        let time_s = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let is_known = self.renewals.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if !is_known {
            let read = self.read_renewals()?;
            *self.renewals.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
        }
        let mut due = Vec::new();
        self.change_renewals(|renewals| {
            let found = renewals.iter().filter(|(_, renew_at_s)| **renew_at_s < time_s);
            due.extend(found.map(|(host, renew_at_s)| (*renew_at_s, host.clone())));
        });
        due.sort();
        due.truncate(max_count);
        Ok(due.into_iter().map(|(_, host)| host).collect())
    }

    fn load_account(&self, directory_url: &str) -> Result<Option<String>, IngressError> {
        let value = self.read(&format!("{ACCOUNT_PREFIX}{directory_url}"))?;
        value.map(|value| String::from_utf8(value).map_err(failed)).transpose()
    }

    fn save_account(&self, directory_url: &str, credentials: &str) -> Result<(), IngressError> {
        self.write(&format!("{ACCOUNT_PREFIX}{directory_url}"), Some(credentials.as_bytes()))
    }
}

fn failed(cause: impl std::fmt::Display) -> IngressError {
    IngressError::Store { message: cause.to_string() }
}
