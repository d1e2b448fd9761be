//! An authority of this machine's own, for names that no other vouches for.
//!
//! Its certificate says what it is good for: `localhost`, what is below that, this
//! machine's own addresses, and the domains it was made for. Whoever trusts it does not
//! have to trust that its key is never stolen and used for another's name.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::store::{make_private_folder, read_private, write_private};
use crate::{Error, HostName, clock::unix_s};

/// How long the authority's own certificate holds. It has to be trusted by hand, so it
/// is not to be made often.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How long a host's certificate holds. Clients refuse those of more than 398 days; ours
/// are made again whenever they are needed.
const LEAF_LIFETIME: Duration = Duration::from_secs(90 * 86_400);

/// How much of a host's certificate's life is left when the next one is made.
const LEAF_MARGIN: Duration = Duration::from_secs(30 * 86_400);

/// How far other machines' clocks may be behind.
const CLOCK_SKEW: Duration = Duration::from_secs(86_400);

const CERTIFICATE_FILE: &str = "local-ca.pem";
const KEY_FILE: &str = "local-ca.key";

/// An authority of this machine's own.
pub struct LocalAuthority {
    certificate_pem: String,
    certificate_path: PathBuf,
    domains: Vec<String>,
    issuer: Issuer<'static, KeyPair>,
    /// One key for all hosts of this process: they are all this process.
    leaf_key: KeyPair,
    leaf_signer: Arc<dyn SigningKey>,
}

/// A certificate that was issued, and when the next one should be.
pub(super) struct Issued {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) renew_at: SystemTime,
}

impl LocalAuthority {
    /// The authority in a folder. It is made if there is none, or if the one there is not
    /// good for one of `domains` or for `now`; it has to be trusted anew then.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Certificate`].
    pub fn open(folder: &Path, domains: &[HostName], now: SystemTime) -> Result<Self, Error> {
        make_private_folder(folder)?;
        let (certificate_path, key_path) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
        let wrong = |cause: rcgen::Error| Error::certificate(certificate_path.display(), cause);
        let key = match read_private(&key_path)? {
            Some(pem) => {
                KeyPair::from_pem(&pem).map_err(|cause| Error::certificate(key_path.display(), cause))?
            }
            None => {
                let key = KeyPair::generate().map_err(wrong)?;
                write_private(&key_path, &key.serialize_pem())?;
                key
            }
        };
        let mut all: Vec<String> = vec!["localhost".to_owned()];
        all.extend(domains.iter().map(ToString::to_string).filter(|domain| domain != "localhost"));
        let params = authority_params(&key, &all, now);
        let certificate_pem = match read_private(&certificate_path)? {
            Some(pem) if is_good_for(&pem, &all, now) => pem,
            _ => {
                let pem = params.self_signed(&key).map_err(wrong)?.pem();
                write_private(&certificate_path, &pem)?;
                pem
            }
        };
        let leaf_key = KeyPair::generate().map_err(wrong)?;
        let leaf_signer = PrivateKeyDer::try_from(leaf_key.serialize_der())
            .map_err(|message| Error::certificate("a host", message))
            .and_then(|der| {
                rustls::crypto::ring::sign::any_supported_type(&der)
                    .map_err(|cause| Error::certificate("a host", cause))
            })?;
        Ok(Self {
            certificate_pem,
            certificate_path,
            domains: all,
            issuer: Issuer::new(params, key),
            leaf_key,
            leaf_signer,
        })
    }

    /// Its own certificate, PEM, for those who are to trust it.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Where that is.
    pub fn certificate_path(&self) -> &Path {
        &self.certificate_path
    }

    /// Whether it vouches for this host.
    pub fn covers(&self, host: &HostName) -> bool {
        self.domains.iter().any(|domain| host.is_within(domain))
    }

    /// Issues a certificate: for a host that it covers, or for this machine's own
    /// addresses.
    pub(super) fn issue(&self, host: Option<&HostName>, now: SystemTime) -> Result<Issued, Error> {
        let whose = host.map_or("this machine", HostName::as_str);
        let wrong = |cause: rcgen::Error| Error::certificate(whose, cause);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, shortened(whose));
        params.subject_alt_names = match host {
            Some(host) => vec![SanType::DnsName(host.as_str().try_into().map_err(wrong)?)],
            None => vec![
                SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            ],
        };
        set_validity(&mut params, now, LEAF_LIFETIME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.leaf_key, &self.issuer).map_err(wrong)?;
        let key = CertifiedKey::new(vec![certificate.into()], self.leaf_signer.clone());
        Ok(Issued { key: Arc::new(key), renew_at: now + LEAF_LIFETIME - LEAF_MARGIN })
    }
}

/// What the authority's certificate says. Its name follows from its key, so that what it
/// issues leads to it whenever either was made.
fn authority_params(key: &KeyPair, domains: &[String], now: SystemTime) -> CertificateParams {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key_raw());
    let number: String = digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Wisp");
    params.distinguished_name.push(DnType::CommonName, format!("Wisp on this machine, {number}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, AUTHORITY_LIFETIME);
    let mut permitted: Vec<_> = domains.iter().cloned().map(GeneralSubtree::DnsName).collect();
    for (address, prefix) in
        [(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8), (IpAddr::V6(Ipv6Addr::LOCALHOST), 128)]
    {
        permitted.push(GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, prefix)));
    }
    params.name_constraints =
        Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: Vec::new() });
    params
}

/// Whether the authority's certificate in a file is good for these domains and this time.
fn is_good_for(pem: &str, domains: &[String], now: SystemTime) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return false };
    let now = i64::try_from(unix_s(now)).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    let is_valid = validity.not_before.timestamp() <= now && now < validity.not_after.timestamp();
    let permitted: Vec<&str> = certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::NameConstraints(constraints) => constraints.permitted_subtrees.as_ref(),
            _ => None,
        })
        .flatten()
        .filter_map(|subtree| match subtree.base {
            GeneralName::DNSName(name) => Some(name),
            _ => None,
        })
        .collect();
    is_valid && domains.iter().all(|domain| permitted.contains(&domain.as_str()))
}

/// A common name may have 64 characters (RFC 5280); clients read the other names.
fn shortened(name: &str) -> &str {
    name.get(..name.len().min(64)).unwrap_or_default()
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, lifetime: Duration) {
    let start = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = start + Duration::from_secs(unix_s(now - CLOCK_SKEW));
    params.not_after = start + Duration::from_secs(unix_s(now + lifetime));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{fs, os::unix::fs::PermissionsExt as _, time::UNIX_EPOCH};

    use rustls::{RootCertStore, client::WebPkiServerVerifier};
    use rustls_pki_types::{ServerName, UnixTime};

    use super::*;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    /// Whether a client that trusts `authority` accepts a certificate of `issuer`.
    fn accepts(authority: &LocalAuthority, issued: &Issued, name: &str, time: SystemTime) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        rustls::client::danger::ServerCertVerifier::verify_server_cert(
            &*verifier,
            &issued.key.cert[0],
            &[],
            &ServerName::try_from(name.to_owned()).unwrap(),
            &[],
            UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap()),
        )
        .is_ok()
    }

    #[test]
    fn it_vouches_for_its_domains_and_for_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let authority = LocalAuthority::open(folder.path(), &[host("apps.home.arpa")], now).unwrap();
        for name in ["localhost", "shop.team.localhost", "shop.apps.home.arpa"] {
            assert!(authority.covers(&host(name)), "{name}");
            let issued = authority.issue(Some(&host(name)), now).unwrap();
            assert!(accepts(&authority, &issued, name, now), "{name}");
            assert!(!accepts(&authority, &issued, "other.localhost", now), "{name}");
            assert!(accepts(&authority, &issued, name, issued.renew_at));
            assert!(!accepts(&authority, &issued, name, now + LEAF_LIFETIME + CLOCK_SKEW));
        }
        let addresses = authority.issue(None, now).unwrap();
        assert!(accepts(&authority, &addresses, "127.0.0.1", now));
        assert!(accepts(&authority, &addresses, "::1", now));
        // Even a stolen key is worth nothing for another's name.
        assert!(!authority.covers(&host("bank.example")));
        let stolen = authority.issue(Some(&host("bank.example")), now).unwrap();
        assert!(!accepts(&authority, &stolen, "bank.example", now));
    }

    #[test]
    fn it_stays_the_same_until_it_must_change() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        let now = SystemTime::now();
        let first = LocalAuthority::open(&keys, &[], now).unwrap();
        let again = LocalAuthority::open(&keys, &[host("localhost")], now).unwrap();
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        let issued = again.issue(Some(&host("a.localhost")), now).unwrap();
        assert!(accepts(&first, &issued, "a.localhost", now), "who trusted it once need not do so again");
        let wider = LocalAuthority::open(&keys, &[host("home.arpa")], now).unwrap();
        assert_ne!(first.certificate_pem(), wider.certificate_pem());
        let later = LocalAuthority::open(&keys, &[host("home.arpa")], now + AUTHORITY_LIFETIME).unwrap();
        assert_ne!(later.certificate_pem(), wider.certificate_pem());
        let mode = |name: &str| fs::metadata(keys.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(KEY_FILE), fs::metadata(&keys).unwrap().permissions().mode() & 0o777),
            (0o600, 0o700)
        );
    }
}
