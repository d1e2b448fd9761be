//! Who one is at registries: our own file, then Docker's.
//!
//! `wisp registry login` writes `registries.json` in the user's configuration folder,
//! readable by nobody else. Registries that are not in it are looked up where
//! `docker login` puts them, credential helpers included.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use docker_credential::DockerCredential;
use oci_client::secrets::RegistryAuth;
use serde::{Deserialize, Serialize};

use crate::Error;

/// The largest file of credentials: some thousand registries.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The environment variable that names another file.
pub const FILE_VARIABLE: &str = "WISP_REGISTRIES_FILE";

/// Who one is at a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// The name.
    pub username: String,
    /// The password or token.
    pub password: String,
}

/// The credentials of a user.
#[derive(Clone, Debug)]
pub struct CredentialStore {
    path: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    registries: BTreeMap<String, Login>,
}

impl CredentialStore {
    /// Credentials in a file, which need not exist.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The user's own, or none for users without a home.
    pub fn of_user() -> Option<Self> {
        let from = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        if let Some(path) = from(FILE_VARIABLE) {
            return Some(Self { path });
        }
        let folder = from("XDG_CONFIG_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| from("HOME").map(|home| home.join(".config")))?;
        Some(Self { path: folder.join("wisp/registries.json") })
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who one is at a registry, if one is known here.
    ///
    /// # Errors
    /// [`Error::Credentials`].
    pub fn get(&self, registry: &str) -> Result<Option<Login>, Error> {
        Ok(self.read()?.registries.remove(registry))
    }

    /// Keeps who one is at a registry.
    ///
    /// # Errors
    /// [`Error::Credentials`].
    pub fn set(&self, registry: &str, login: Login) -> Result<(), Error> {
        let mut stored = self.read()?;
        stored.registries.insert(registry.to_owned(), login);
        self.write(&stored)
    }

    /// Forgets who one is at a registry. `false`: it was not known.
    ///
    /// # Errors
    /// [`Error::Credentials`].
    pub fn remove(&self, registry: &str) -> Result<bool, Error> {
        let mut stored = self.read()?;
        let was_there = stored.registries.remove(registry).is_some();
        if was_there {
            self.write(&stored)?;
        }
        Ok(was_there)
    }

    fn read(&self) -> Result<Stored, Error> {
        let json = match fs::metadata(&self.path) {
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                return Err(self.wrong(format!("it has more than {MAX_FILE_BYTES} bytes")));
            }
            _ => fs::read(&self.path),
        };
        match json {
            Ok(json) => serde_json::from_slice(&json).map_err(|cause| self.wrong(cause.to_string())),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Stored::default()),
            Err(cause) => Err(self.wrong(cause.to_string())),
        }
    }

    /// Writes the file under another name and renames it: it is never half there, and
    /// never readable by others.
    fn write(&self, stored: &Stored) -> Result<(), Error> {
        let failed = |cause: io::Error| self.wrong(cause.to_string());
        let folder = self.path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        let json = serde_json::to_vec_pretty(stored).map_err(|cause| self.wrong(cause.to_string()))?;
        file.write_all(&json).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Credentials { path: self.path.clone(), reason }
    }
}

/// Never shows the password.
impl std::fmt::Debug for Login {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} and a password", self.username)
    }
}

/// Who one is at a registry: by our own file, by Docker's, or nobody.
pub(crate) fn find(store: Option<&CredentialStore>, registry: &str) -> Result<RegistryAuth, Error> {
    if let Some(login) = store.map(|store| store.get(registry)).transpose()?.flatten() {
        return Ok(RegistryAuth::Basic(login.username, login.password));
    }
    match docker_credential::get_credential(registry) {
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            Ok(RegistryAuth::Basic(username, password))
        }
        // What Docker exchanges for a token: nothing that a registry takes.
        Ok(DockerCredential::IdentityToken(_)) => Ok(RegistryAuth::Anonymous),
        Err(reason) => {
            tracing::debug!("Docker knows no credentials for `{registry}`: {reason}");
            Ok(RegistryAuth::Anonymous)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn logins_are_kept_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = CredentialStore::at(&folder.path().join("a/registries.json"));
        assert_eq!(store.get("registry.example").unwrap(), None);
        let login = Login { username: "a".into(), password: "secret".into() };
        store.set("registry.example", login.clone()).unwrap();
        assert_eq!(store.get("registry.example").unwrap(), Some(login.clone()));
        assert_eq!(store.get("registry.example:5000").unwrap(), None);
        assert_eq!(fs::metadata(store.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{login:?}").contains("secret"));
        assert!(store.remove("registry.example").unwrap());
        assert!(!store.remove("registry.example").unwrap());
        fs::write(store.path(), "nonsense").unwrap();
        assert_eq!(store.get("registry.example").unwrap_err().code(), "WISP-E0815");
    }
}
