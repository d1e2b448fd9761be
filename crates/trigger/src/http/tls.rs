//! TLS for a listener: which configuration a client gets.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::future::BoxFuture;
use rustls::{ServerConfig, crypto::ring, server::ClientHello};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::Error;

/// Protocols offered to clients, best first.
const ALPN_PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Chooses the configuration that a client's connection goes on with. It says which
/// protocols are offered: [`crate::http::Server`] speaks `h2` and `http/1.1`, and ends a
/// connection of `acme-tls/1` after its handshake.
pub trait SelectTls: Send + Sync + 'static {
    /// Called once a connection, by every worker: it neither blocks nor waits.
    fn select(&self, hello: &ClientHello<'_>) -> TlsChoice;
}

/// How a handshake goes on.
pub enum TlsChoice {
    /// With this configuration.
    Config(Arc<ServerConfig>),
    /// With the one that this leads to, if any, within the time that a handshake has.
    Wait(BoxFuture<'static, Option<Arc<ServerConfig>>>),
    /// Not at all.
    Refuse,
}

/// One configuration for every client.
pub struct FixedTls(Arc<ServerConfig>);

impl SelectTls for FixedTls {
    fn select(&self, _hello: &ClientHello<'_>) -> TlsChoice {
        TlsChoice::Config(self.0.clone())
    }
}

/// Where the certificate and its key are.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate chain, PEM, the server's own first.
    pub certificate: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error::Tls`].
    pub fn load(&self) -> Result<Arc<FixedTls>, Error> {
        let certificates = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| tls_error("certificate", &self.certificate, error))?;
        if certificates.is_empty() {
            return Err(tls_error("certificate", &self.certificate, "it holds no certificate"));
        }
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| tls_error("key", &self.key, error))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
            .map_err(|error| tls_error("certificate", &self.certificate, error))?;
        config.alpn_protocols = ALPN_PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(FixedTls(Arc::new(config))))
    }
}

fn tls_error(what: &'static str, path: &Path, message: impl std::fmt::Display) -> Error {
    Error::Tls { what, path: path.to_owned(), message: message.to_string() }
}
