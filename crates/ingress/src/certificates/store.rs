//! Where certificates and the account with their authority are kept.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::{Error, HostName, clock::from_unix_s};

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

    #[test]
    fn private_files_are_for_their_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, path) = (folder.path().join("private"), folder.path().join("private/file"));
        make_private_folder(&folder).unwrap();
        assert_eq!(read_private(&path).unwrap(), None);
        for text in ["one", "two"] {
            write_private(&path, text).unwrap();
            assert_eq!(read_private(&path).unwrap().as_deref(), Some(text));
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&path)), (0o700, 0o600));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn keys_are_not_shown() {
        let certificate = StoredCertificate {
            chain_pem: "chain".into(),
            key_pem: "secret".into(),
            renew_at_s: 1,
            expires_at_s: 2,
        };
        assert!(!format!("{certificate:?}").contains("secret"));
    }
}
