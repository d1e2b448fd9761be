//! Where certificates and the account with their authority are kept.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::{
    Error, HostName,
    clock::{from_unix_s, unix_s},
};

/// The largest file that is read back: a chain of three certificates has 6 KB.
const MAX_FILE_BYTES: u64 = 256 << 10;

/// Keeps certificates that were obtained from an authority, and the account there. Its
/// methods may block: they are called where that hurts nobody.
///
/// What `save` and `save_account` were given must be there after a power cut, once they
/// returned: authorities bound how often they issue the same again.
pub trait CertificateStore: Send + Sync + 'static {
    /// The certificate of a host.
    ///
    /// # Errors
    /// [`Error::Store`].
    fn load(&self, host: &HostName) -> Result<Option<StoredCertificate>, Error>;

    /// Puts a certificate in the place of the one before.
    ///
    /// # Errors
    /// [`Error::Store`].
    fn save(&self, host: &HostName, certificate: &StoredCertificate) -> Result<(), Error>;

    /// Forgets the certificate of a host, if there is one.
    ///
    /// # Errors
    /// [`Error::Store`].
    fn remove(&self, host: &HostName) -> Result<(), Error>;

    /// At most `max_count` hosts whose certificates are to be renewed before `time`, those
    /// first that are to be renewed first.
    ///
    /// # Errors
    /// [`Error::Store`].
    fn due(&self, time: SystemTime, max_count: usize) -> Result<Vec<HostName>, Error>;

    /// The account with the authority that has this directory URL, as it was saved.
    ///
    /// # Errors
    /// [`Error::Store`].
    fn load_account(&self, directory_url: &str) -> Result<Option<String>, Error>;

    /// Keeps an account. `credentials` hold its private key.
    ///
    /// # Errors
    /// [`Error::Store`].
    fn save_account(&self, directory_url: &str, credentials: &str) -> Result<(), Error>;
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCertificate {
    /// The chain, PEM, the host's own first.
    pub chain_pem: String,
    /// The private key, PEM: a secret.
    pub key_pem: String,
    /// From when on it should be renewed, in seconds since 1970.
    pub renew_at_s: u64,
    /// Until when it holds, in seconds since 1970.
    pub expires_at_s: u64,
}

impl StoredCertificate {
    /// From when on it should be renewed.
    pub fn renew_at(&self) -> SystemTime {
        from_unix_s(self.renew_at_s)
    }

    /// Until when it holds.
    pub fn expires_at(&self) -> SystemTime {
        from_unix_s(self.expires_at_s)
    }
}

impl fmt::Debug for StoredCertificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("StoredCertificate")
            .field("renew_at_s", &self.renew_at_s)
            .field("expires_at_s", &self.expires_at_s)
            .finish_non_exhaustive()
    }
}

/// A folder with a file per host, readable by its owner only.
#[derive(Debug)]
pub struct FolderStore {
    folder: PathBuf,
    /// Files of one host are written one after the other.
    writing: Mutex<()>,
}

impl FolderStore {
    /// A store in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, Error> {
        let folder = folder.into();
        make_private_folder(&folder)?;
        Ok(Self { folder, writing: Mutex::default() })
    }

    /// A host's name has no character that means something in a path.
    fn certificate_path(&self, host: &HostName) -> PathBuf {
        self.folder.join(format!("{host}.json"))
    }

    fn account_path(&self, directory_url: &str) -> PathBuf {
        let digest = ring::digest::digest(&ring::digest::SHA256, directory_url.as_bytes());
        let name: String = digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        // `_` is in no host's name.
        self.folder.join(format!("_account-{name}.json"))
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), Error> {
        let _writing = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        write_private(path, text)
    }
}

impl CertificateStore for FolderStore {
    fn load(&self, host: &HostName) -> Result<Option<StoredCertificate>, Error> {
        let path = self.certificate_path(host);
        let Some(text) = read_private(&path)? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|cause| Error::store(format!("`{}`: {cause}", path.display())))
    }

    fn save(&self, host: &HostName, certificate: &StoredCertificate) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(certificate).map_err(Error::store)?;
        self.write(&self.certificate_path(host), &text)
    }

    fn remove(&self, host: &HostName) -> Result<(), Error> {
        let path = self.certificate_path(host);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::write(path)(cause)),
            _ => Ok(()),
        }
    }

    fn due(&self, time: SystemTime, max_count: usize) -> Result<Vec<HostName>, Error> {
        let mut due = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(Error::read(&self.folder))? {
            let entry = entry.map_err(Error::read(&self.folder))?;
            let name = entry.file_name();
            let host = name.to_str().and_then(|name| name.strip_suffix(".json"));
            let Some(host) = host.and_then(|host| HostName::new(host).ok()) else { continue };
            if let Some(certificate) = self.load(&host)?
                && certificate.renew_at_s < unix_s(time)
            {
                due.push((certificate.renew_at_s, host));
            }
        }
        due.sort();
        due.truncate(max_count);
        Ok(due.into_iter().map(|(_, host)| host).collect())
    }

    fn load_account(&self, directory_url: &str) -> Result<Option<String>, Error> {
        read_private(&self.account_path(directory_url))
    }

    fn save_account(&self, directory_url: &str, credentials: &str) -> Result<(), Error> {
        self.write(&self.account_path(directory_url), credentials)
    }
}

/// Makes a folder that only its owner sees into.
pub(crate) fn make_private_folder(folder: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Error::write(folder))
}

/// Reads a small file, if it is there.
pub(crate) fn read_private(path: &Path) -> Result<Option<String>, Error> {
    match fs::metadata(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(Error::read(path)(cause)),
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            return Err(Error::read(path)(io::Error::other("it is too large to be one of ours")));
        }
        Ok(_) => {}
    }
    fs::read_to_string(path).map(Some).map_err(Error::read(path))
}

/// Writes a file that only its owner reads, so that it is there as a whole or not at
/// all, also after a power cut.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    let write = || {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => fs::File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().map_err(Error::write(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn certificate(renew_at_s: u64) -> StoredCertificate {
        StoredCertificate {
            chain_pem: "chain".into(),
            key_pem: "secret".into(),
            renew_at_s,
            expires_at_s: renew_at_s + 100,
        }
    }

    #[test]
    fn a_folder_keeps_certificates_and_accounts_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certificates");
        let store = FolderStore::open(&path).unwrap();
        let (one, other) = (HostName::new("one.example").unwrap(), HostName::new("other.example").unwrap());
        assert_eq!(store.load(&one).unwrap(), None);
        store.save(&one, &certificate(20)).unwrap();
        store.save(&other, &certificate(10)).unwrap();
        store.save_account("https://ca.example/dir", "{}").unwrap();
        let again = FolderStore::open(&path).unwrap();
        assert_eq!(again.load(&one).unwrap(), Some(certificate(20)));
        assert_eq!(again.load_account("https://ca.example/dir").unwrap().as_deref(), Some("{}"));
        assert_eq!(again.load_account("https://ca.example/other").unwrap(), None);
        assert_eq!(again.due(from_unix_s(21), 9).unwrap(), [other.clone(), one.clone()]);
        assert_eq!(again.due(from_unix_s(21), 1).unwrap(), std::slice::from_ref(&other));
        assert_eq!(again.due(from_unix_s(20), 9).unwrap(), std::slice::from_ref(&other));
        again.remove(&other).unwrap();
        again.remove(&other).unwrap();
        assert_eq!(again.load(&other).unwrap(), None);
        for entry in fs::read_dir(&path).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!format!("{:?}", certificate(1)).contains("secret"));
    }
}
