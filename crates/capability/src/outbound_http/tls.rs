//! Which certificates are trusted and which identity is shown.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::Error;

/// One `[[client_tls]]` table of the runtime configuration: TLS towards some
/// hosts, for some components.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Ids of the components that it is for.
    pub component_ids: Vec<String>,
    /// Host names or addresses that it is for, as they stand in URLs, or
    /// `*.domain` for all names below a domain.
    pub hosts: Vec<String>,
    /// Whether this machine's own authorities are trusted.
    pub ca_use_platform_roots: bool,
    /// Whether the authorities that browsers trust are trusted. If unset, they
    /// are unless another source of trust is named.
    pub ca_use_webpki_roots: Option<bool>,
    /// PEM file of further trusted authorities.
    pub ca_roots_file: Option<PathBuf>,
    /// PEM file of the certificates that are shown to the server.
    pub client_cert_file: Option<PathBuf>,
    /// PEM file of the key to these certificates.
    pub client_private_key_file: Option<PathBuf>,
}

/// All TLS settings of a process, read and checked.
#[derive(Default)]
pub(super) struct TlsSettings {
    tables: Vec<Table>,
}

struct Table {
    component_ids: Vec<String>,
    hosts: Vec<String>,
    config: Arc<ClientConfig>,
}

/// The TLS settings of one component.
#[derive(Default)]
pub(super) struct ComponentTls {
    /// Settings by host; all others have the default.
    hosts: Vec<(String, Arc<ClientConfig>)>,
}

impl TlsSettings {
    /// Reads the files that the tables name.
    ///
    /// # Errors
    /// [`Error::TlsFile`] and [`Error::TlsSettings`].
    pub(super) fn new(tables: &[ClientTls]) -> Result<Self, Error> {
        let tables = tables.iter().map(|table| {
            Ok(Table {
                component_ids: table.component_ids.clone(),
                hosts: table.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
                config: Arc::new(table.config()?),
            })
        });
        Ok(Self { tables: tables.collect::<Result<_, Error>>()? })
    }

    /// What applies to one component.
    pub(super) fn of_component(&self, component: &str) -> ComponentTls {
        let mut hosts = Vec::new();
        for table in &self.tables {
            if table.component_ids.iter().any(|id| id == component) {
                hosts.extend(table.hosts.iter().map(|host| (host.clone(), table.config.clone())));
            }
        }
        ComponentTls { hosts }
    }
}

impl ComponentTls {
    /// The settings towards a host.
    pub(super) fn towards(&self, host: &str) -> Arc<ClientConfig> {
        self.special(host).cloned().unwrap_or_else(default_config)
    }

    /// Whether making [`default_config`] would read files now.
    pub(super) fn must_load(&self, host: &str) -> bool {
        LazyLock::get(&DEFAULT).is_none() && self.special(host).is_none()
    }

    fn special(&self, host: &str) -> Option<&Arc<ClientConfig>> {
        self.hosts.iter().find(|(pattern, _)| matches(pattern, host)).map(|(_, config)| config)
    }
}

/// Whether a host of a `[[client_tls]]` table means this one; both in lower case.
fn matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(domain) => domain.starts_with('.') && host.len() > domain.len() && host.ends_with(domain),
        None => pattern == host,
    }
}

/// The settings where nothing else is said: trust what browsers and what this
/// machine trust, show no certificate.
static DEFAULT: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    add_webpki_roots(&mut roots);
    add_platform_roots(&mut roots);
    let builder = ClientConfig::builder_with_provider(provider());
    #[expect(clippy::expect_used, reason = "the provider is fixed, and it has these versions")]
    let builder = builder.with_safe_default_protocol_versions().expect("ring serves TLS 1.2 and 1.3");
    Arc::new(with_protocols(builder.with_root_certificates(roots).with_no_client_auth()))
});

/// The default settings. The first call reads this machine's certificates.
pub(super) fn default_config() -> Arc<ClientConfig> {
    DEFAULT.clone()
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
}

fn with_protocols(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

fn add_webpki_roots(roots: &mut RootCertStore) {
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
}

fn add_platform_roots(roots: &mut RootCertStore) {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::debug!("a certificate of this machine cannot be read: {error}");
    }
    roots.add_parsable_certificates(found.certs);
}

impl ClientTls {
    fn config(&self) -> Result<ClientConfig, Error> {
        let mut roots = RootCertStore::empty();
        let trusts_other = self.ca_use_platform_roots || self.ca_roots_file.is_some();
        if self.ca_use_webpki_roots.unwrap_or(!trusts_other) {
            add_webpki_roots(&mut roots);
        }
        if self.ca_use_platform_roots {
            add_platform_roots(&mut roots);
        }
        if let Some(path) = &self.ca_roots_file {
            for certificate in read_certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|cause| Error::TlsFile { path: path.clone(), cause: cause.to_string() })?;
            }
        }
        let refused = |cause: String| Error::TlsSettings { cause };
        // Also says when there is no root at all.
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|cause| refused(cause.to_string()))?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|cause| refused(cause.to_string()))?
            .with_webpki_verifier(verifier);
        let config = match (&self.client_cert_file, &self.client_private_key_file) {
            (Some(certificates), Some(key)) => builder
                .with_client_auth_cert(read_certificates(certificates)?, read_key(key)?)
                .map_err(|cause| Error::TlsFile { path: certificates.clone(), cause: cause.to_string() })?,
            (None, None) => builder.with_no_client_auth(),
            _ => {
                return Err(refused(
                    "`client_cert_file` and `client_private_key_file` only work together".into(),
                ));
            }
        };
        Ok(with_protocols(config))
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |cause: String| Error::TlsFile { path: path.to_owned(), cause };
    let file = File::open(path).map_err(|cause| failed(cause.to_string()))?;
    let certificates: Vec<_> = CertificateDer::pem_reader_iter(BufReader::new(file))
        .collect::<Result<_, _>>()
        .map_err(|cause| failed(cause.to_string()))?;
    if certificates.is_empty() {
        return Err(failed("there is no certificate in it".into()));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|cause| Error::TlsFile { path: path.to_owned(), cause: cause.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_match_exactly_or_below_a_domain() {
        for (pattern, host, expected) in [
            ("example.com", "example.com", true),
            ("example.com", "www.example.com", false),
            ("*.example.com", "www.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "badexample.com", false),
            ("*", "example.com", false),
        ] {
            assert_eq!(matches(pattern, host), expected, "{pattern} {host}");
        }
    }
}
