//! Secrets at rest: envelope encryption.
//!
//! Each team has a data key of its own. The data key is wrapped by the envelope key, which is
//! not in the state: it comes from a file or the environment. Who has only the state, or a
//! backup without keys, has no secrets. A new envelope key means to wrap the data keys again,
//! not every secret.
//!
//! AES-256-GCM with a random 96-bit nonce for each value. What a value belongs to is part of
//! what is authenticated, so that a sealed value cannot be moved to another team or name.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::{
    credential::random_bytes,
    error::{Error, Result},
};

/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// The environment variable that the envelope key may come from, as hexadecimal digits.
pub const ENVELOPE_KEY_VARIABLE: &str = "WISP_ENVELOPE_KEY";

/// A key that values are sealed with.
pub(crate) struct Key(LessSafeKey);

impl Key {
    /// The envelope key: from the environment if it is there, else from the file, which is
    /// made with a new key if it is not there.
    pub(crate) fn envelope(file: &Path, from_environment: Option<&str>) -> Result<Self> {
        if let Some(text) = from_environment {
            return Self::from_hex(text, ENVELOPE_KEY_VARIABLE);
        }
        let shown = file.display();
        match fs::read_to_string(file) {
            Ok(text) => {
                let mode = fs::metadata(file).map_err(|error| unusable(&shown, &error))?.permissions().mode();
                if mode & 0o077 != 0 {
                    return Err(Error::EnvelopeKey(format!(
                        "`{shown}` can be read by others (mode {:o})",
                        mode & 0o777
                    )));
                }
                Self::from_hex(&text, &shown.to_string())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let text = hex::encode(random_bytes::<KEY_BYTES>()?);
                write_new(file, &text).map_err(|error| unusable(&shown, &error))?;
                Self::from_hex(&text, &shown.to_string())
            }
            Err(error) => Err(unusable(&shown, &error)),
        }
    }

    /// A new key, and the same wrapped by this one.
    pub(crate) fn new_wrapped(&self, belongs_to: &str) -> Result<(Self, Vec<u8>)> {
        let bytes = Zeroizing::new(random_bytes::<KEY_BYTES>()?);
        Ok((Self::from_bytes(&*bytes)?, self.seal(belongs_to, &*bytes)?))
    }

    /// A key that was wrapped by this one.
    pub(crate) fn unwrap_key(&self, belongs_to: &str, wrapped: &[u8]) -> Result<Self> {
        Self::from_bytes(&self.open(belongs_to, wrapped)?)
    }

    /// Seals a value.
    pub(crate) fn seal(&self, belongs_to: &str, value: &[u8]) -> Result<Vec<u8>> {
        let nonce = random_bytes::<NONCE_LEN>()?;
        let mut sealed = value.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(belongs_to.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| Error::Sealed)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Opens a sealed value. What comes back is overwritten when it is dropped.
    pub(crate) fn open(&self, belongs_to: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN).ok_or(Error::Sealed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::Sealed)?;
        let mut rest = Zeroizing::new(rest.to_vec());
        let opened = self
            .0
            .open_in_place(nonce, Aad::from(belongs_to.as_bytes()), &mut rest)
            .map_err(|_| Error::Sealed)?;
        let length = opened.len();
        rest.truncate(length);
        Ok(rest)
    }

    fn from_hex(text: &str, from: &str) -> Result<Self> {
        let bytes = hex::decode(text.trim()).ok().filter(|bytes| bytes.len() == KEY_BYTES);
        let bytes = bytes
            .ok_or_else(|| Error::EnvelopeKey(format!("`{from}` does not hold 64 hexadecimal digits")))?;
        Self::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        UnboundKey::new(&AES_256_GCM, bytes).map(|key| Self(LessSafeKey::new(key))).map_err(|_| Error::Sealed)
    }
}

/// Writes the file in one step, with its content on the disk: a key that was used and is lost
/// takes every secret with it.
fn write_new(file: &Path, text: &str) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let temporary = file.with_extension("new");
    let mut written =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    written.write_all(text.as_bytes())?;
    written.sync_all()?;
    fs::rename(&temporary, file)?;
    fs::File::open(folder)?.sync_all()
}

fn unusable(file: &impl std::fmt::Display, error: &std::io::Error) -> Error {
    Error::EnvelopeKey(format!("`{file}`: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_is_sealed_opens_only_where_it_belongs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys/envelope");
        let envelope = Key::envelope(&file, None).unwrap();
        let (key, wrapped) = envelope.new_wrapped("team 1").unwrap();
        let sealed = key.seal("team 1 key", b"value").unwrap();
        let again = Key::envelope(&file, None).unwrap().unwrap_key("team 1", &wrapped).unwrap();
        assert_eq!(**again.open("team 1 key", &sealed).unwrap(), *b"value");
        assert!(again.open("team 1 other", &sealed).is_err());
        assert!(envelope.unwrap_key("team 2", &wrapped).is_err());
        let mut altered = sealed.clone();
        *altered.last_mut().unwrap() ^= 1;
        assert!(again.open("team 1 key", &altered).is_err());
        assert!(again.open("team 1 key", &[]).is_err());
        assert_ne!(sealed, key.seal("team 1 key", b"value").unwrap());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("envelope");
        Key::envelope(&file, None).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Key::envelope(&file, None), Err(Error::EnvelopeKey(_))));
        assert!(Key::envelope(&file, Some("zz")).is_err());
        assert!(Key::envelope(&file, Some(&"ab".repeat(32))).is_ok());
    }
}
