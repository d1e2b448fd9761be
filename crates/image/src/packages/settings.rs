//! Which registry has a package: what the user says, and what registries say of
//! themselves.
//!
//! Both are those of `wkg` and of everything else that is built on `wasm-pkg-client`: a
//! file `wasm-pkg/config.toml` in the user's configuration folder, and
//! `/.well-known/wasm-pkg/registry.json` at a registry. Wisp knows no registry by itself.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use wisp_manifest::model::PackageName;

use crate::Error;

/// The environment variable that names another file, as it is for `wkg`.
pub const FILE_VARIABLE: &str = "WKG_CONFIG_FILE";

/// The largest file of settings: some thousand registries.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The protocol that is spoken where nobody says otherwise, and the only one that is.
const OCI: &str = "oci";

/// What the user says about registries of packages.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PackageSettings {
    default_registry: Option<String>,
    namespace_registries: HashMap<String, Mapping>,
    package_registry_overrides: HashMap<String, Mapping>,
    registry: HashMap<String, RegistrySettings>,
}

/// Where the packages of a namespace are.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Mapping {
    Registry(String),
    /// With what the registry would say of itself.
    Described {
        registry: String,
        metadata: Metadata,
    },
}

/// What a registry says of itself. What is not named here concerns other protocols.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    preferred_protocol: Option<String>,
    oci: Option<OciMetadata>,
    // Older spellings.
    oci_registry: Option<String>,
    oci_namespace_prefix: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OciMetadata {
    registry: Option<String>,
    namespace_prefix: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RegistrySettings {
    #[serde(rename = "type", alias = "default")]
    protocol: Option<String>,
    oci: OciSettings,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct OciSettings {
    auth: Option<Auth>,
    /// `http` or `https`.
    protocol: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Auth {
    Base64(String),
    Login { username: String, password: String },
}

/// Where the versions of a package are.
#[derive(Clone, Debug)]
pub(super) struct Repository {
    /// The registry's host name and the repository, without a tag.
    pub(super) name: String,
    /// Who one is there, if the settings say so.
    pub(super) auth: Option<RegistryAuth>,
    /// Whether plain HTTP is spoken, if the settings say so.
    pub(super) is_plain: Option<bool>,
}

impl PackageSettings {
    /// The user's own. Without a file there are none.
    ///
    /// # Errors
    /// [`Error::PackageSettings`].
    pub fn of_user() -> Result<Self, Error> {
        let from = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        let in_home = || {
            let folder = from("XDG_CONFIG_HOME")
                .filter(|path| path.is_absolute())
                .or_else(|| from("HOME").map(|home| home.join(".config")))?;
            Some(folder.join("wasm-pkg/config.toml"))
        };
        match from(FILE_VARIABLE).or_else(in_home) {
            Some(path) => Self::read(&path),
            None => Ok(Self::default()),
        }
    }

    /// Those in a file, which need not exist.
    ///
    /// # Errors
    /// [`Error::PackageSettings`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |reason: String| Error::PackageSettings { path: path.to_owned(), reason };
        match fs::metadata(path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(cause) => return Err(wrong(cause.to_string())),
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                return Err(wrong(format!("it has more than {MAX_FILE_BYTES} bytes")));
            }
            Ok(_) => {}
        }
        let text = fs::read_to_string(path).map_err(|cause| wrong(cause.to_string()))?;
        toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))
    }

    /// The registry that has a package.
    pub(super) fn registry_of(&self, package: &PackageName) -> Option<&str> {
        self.mapping(package).map(Mapping::registry).or(self.default_registry.as_deref())
    }

    /// What the user says that this registry says of itself, for this package.
    pub(super) fn metadata(&self, package: &PackageName, registry: &str) -> Option<&Metadata> {
        match self.mapping(package) {
            Some(Mapping::Described { registry: described, metadata }) if described == registry => {
                Some(metadata)
            }
            _ => None,
        }
    }

    fn mapping(&self, package: &PackageName) -> Option<&Mapping> {
        let overriding = self.package_registry_overrides.get(&package.to_string());
        overriding.or_else(|| self.namespace_registries.get(&package.namespace))
    }

    /// Whether plain HTTP is spoken with a registry, if the user says so.
    pub(super) fn is_plain(&self, registry: &str) -> Option<bool> {
        let settings = self.registry.get(registry)?;
        settings.oci.protocol.as_deref().map(|protocol| protocol == "http")
    }

    /// Where a package is at a registry that says this of itself.
    pub(super) fn repository(
        &self,
        package: &PackageName,
        registry: &str,
        metadata: &Metadata,
    ) -> Result<Repository, Error> {
        let settings = self.registry.get(registry);
        let chosen = settings.and_then(|settings| settings.protocol.as_deref());
        let protocol = chosen.or(metadata.preferred_protocol.as_deref()).unwrap_or(OCI);
        if protocol != OCI {
            return Err(Error::Registry {
                registry: registry.to_owned(),
                reason: format!("its packages are had by the protocol `{protocol}`, and not by OCI's"),
                is_tls: false,
            });
        }
        let oci = metadata.oci.as_ref();
        let host = oci
            .and_then(|oci| oci.registry.as_deref())
            .or(metadata.oci_registry.as_deref())
            .unwrap_or(registry);
        let prefix = oci
            .and_then(|oci| oci.namespace_prefix.as_deref())
            .or(metadata.oci_namespace_prefix.as_deref())
            .unwrap_or_default();
        Ok(Repository {
            name: format!("{host}/{prefix}{}/{}", package.namespace, package.name),
            auth: settings.and_then(|settings| settings.oci.auth.as_ref()).and_then(Auth::login),
            is_plain: self.is_plain(registry),
        })
    }
}

impl Mapping {
    fn registry(&self) -> &str {
        let (Self::Registry(registry) | Self::Described { registry, .. }) = self;
        registry
    }
}

impl Auth {
    /// `None` for what is no name with a password: nobody is signed in by it.
    fn login(&self) -> Option<RegistryAuth> {
        match self {
            Self::Login { username, password } => {
                Some(RegistryAuth::Basic(username.clone(), password.clone()))
            }
            Self::Base64(text) => {
                let text = text.trim_end_matches('=');
                let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(text).ok()?;
                let text = String::from_utf8(bytes).ok()?;
                let (username, password) = text.split_once(':')?;
                Some(RegistryAuth::Basic(username.to_owned(), password.to_owned()))
            }
        }
    }
}

/// Never shows the password.
impl std::fmt::Debug for OciSettings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("OciSettings").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use super::*;

    const TEXT: &str = r#"
        default_registry = "default.example"

        [namespace_registries]
        docs = "docs.example"
        far = { registry = "far.example", metadata = { preferredProtocol = "oci", oci = { registry = "blobs.example", namespacePrefix = "wasm/" } } }
        old = { registry = "old.example", metadata = { ociRegistry = "blobs.example", ociNamespacePrefix = "old/" } }
        other = { registry = "other.example", metadata = { preferredProtocol = "warg" } }

        [package_registry_overrides]
        "docs:special" = "special.example:5000"

        [registry."docs.example"]
        type = "oci"
        [registry."docs.example".oci]
        auth = { username = "open", password = "sesame" }
        protocol = "http"

        [registry."special.example:5000".oci]
        auth = "cGluZzpwb25n"
        [registry."special.example:5000".local]
        root = "somewhere"
    "#;

    fn package(namespace: &str, name: &str) -> PackageName {
        PackageName { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn settings(text: &str) -> PackageSettings {
        toml::from_str(text).unwrap()
    }

    fn repository(settings: &PackageSettings, package: &PackageName) -> Result<Repository, Error> {
        let registry = settings.registry_of(package).unwrap();
        let metadata = settings.metadata(package, registry).cloned().unwrap_or_default();
        settings.repository(package, registry, &metadata)
    }

    #[test]
    fn packages_are_where_the_settings_say() {
        let settings = settings(TEXT);
        for (namespace, name, expected) in [
            ("docs", "greet", "docs.example/docs/greet"),
            ("docs", "special", "special.example:5000/docs/special"),
            ("far", "away", "blobs.example/wasm/far/away"),
            ("old", "one", "blobs.example/old/old/one"),
            ("any", "thing", "default.example/any/thing"),
        ] {
            assert_eq!(repository(&settings, &package(namespace, name)).unwrap().name, expected);
        }
        let docs = repository(&settings, &package("docs", "greet")).unwrap();
        assert_eq!(docs.is_plain, Some(true));
        assert_eq!(docs.auth, Some(RegistryAuth::Basic("open".into(), "sesame".into())));
        let special = repository(&settings, &package("docs", "special")).unwrap();
        assert_eq!(special.auth, Some(RegistryAuth::Basic("ping".into(), "pong".into())));
        assert_eq!(special.is_plain, None);
        assert!(!format!("{settings:?}").contains("sesame"));
    }

    #[test]
    fn what_speaks_something_else_is_refused() {
        let settings = settings(TEXT);
        let error = repository(&settings, &package("other", "one")).unwrap_err();
        assert!(error.to_string().contains("`warg`"), "{error}");
        assert_eq!(PackageSettings::default().registry_of(&package("a", "b")), None);
    }

    #[test]
    fn a_file_may_be_missing_but_not_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        assert!(PackageSettings::read(&path).is_ok());
        fs::write(&path, "default_registry = 1").unwrap();
        assert_eq!(PackageSettings::read(&path).unwrap_err().code(), "WISP-E0820");
    }
}
