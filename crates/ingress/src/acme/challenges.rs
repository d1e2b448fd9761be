//! What an authority finds here when it checks that a host is ours.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::{crypto::ring::sign::any_supported_type, sign::CertifiedKey};
use rustls_pki_types::PrivateKeyDer;

use crate::{Error, HostName};

/// Below this, authorities look for tokens (RFC 8555).
const PATH_PREFIX: &str = "/.well-known/acme-challenge/";

/// The two ways in which an authority checks a host here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChallengeKind {
    /// A token by HTTP, on port 80 (RFC 8555).
    Http01,
    /// A certificate with a digest in it, on port 443 (RFC 8737).
    TlsAlpn01,
}

/// Challenges that are under way: as many as there are orders.
#[derive(Default)]
pub(crate) struct Challenges {
    http: RwLock<HashMap<String, String>>,
    tls: RwLock<HashMap<HostName, Arc<CertifiedKey>>>,
}

/// Takes a challenge away again when it is over, however that comes.
pub(super) struct Shown {
    challenges: Arc<Challenges>,
    what: What,
}

enum What {
    Http(String),
    Tls(HostName),
}

impl Challenges {
    /// The answer to an authority that asks for this path.
    pub(crate) fn response(&self, path: &str) -> Option<String> {
        let token = path.strip_prefix(PATH_PREFIX)?;
        self.http.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }

    /// The certificate for an authority that asks for this host.
    pub(crate) fn certificate(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    pub(super) fn show_token(self: &Arc<Self>, token: &str, authorization: &str) -> Shown {
        let mut http = self.http.write().unwrap_or_else(PoisonError::into_inner);
        http.insert(token.to_owned(), authorization.to_owned());
        Shown { challenges: self.clone(), what: What::Http(token.to_owned()) }
    }

    pub(super) fn show_certificate(self: &Arc<Self>, host: &HostName, digest: &[u8]) -> Result<Shown, Error> {
        let certificate = certificate(host, digest)?;
        self.tls.write().unwrap_or_else(PoisonError::into_inner).insert(host.clone(), Arc::new(certificate));
        Ok(Shown { challenges: self.clone(), what: What::Tls(host.clone()) })
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        match &self.what {
            What::Http(token) => {
                self.challenges.http.write().unwrap_or_else(PoisonError::into_inner).remove(token);
            }
            What::Tls(host) => {
                self.challenges.tls.write().unwrap_or_else(PoisonError::into_inner).remove(host);
            }
        }
    }
}

/// A certificate that nobody but the authority ever sees.
fn certificate(host: &HostName, digest: &[u8]) -> Result<CertifiedKey, Error> {
    let wrong = |cause: rcgen::Error| Error::certificate(host, cause);
    if digest.len() != 32 {
        return Err(Error::certificate(host, "the challenge's digest has not 32 bytes"));
    }
    let key = KeyPair::generate().map_err(wrong)?;
    let mut params = CertificateParams::new(vec![host.to_string()]).map_err(wrong)?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key).map_err(wrong)?;
    let der =
        PrivateKeyDer::try_from(key.serialize_der()).map_err(|cause| Error::certificate(host, cause))?;
    let signer = any_supported_type(&der).map_err(|cause| Error::certificate(host, cause))?;
    Ok(CertifiedKey::new(vec![certificate.into()], signer))
}
