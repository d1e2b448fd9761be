//! Who made a compiled image.
//!
//! Native code that is mapped can do all that the process can. Where images are made by
//! another process, or lie where others might write, a checksum is not enough: anybody
//! can compute it. So a control plane signs the images that it had made (Ed25519), and a
//! store that was opened with its [`VerifyingKey`] maps no others. The file's name is
//! part of what is signed: an image cannot take the place of another one.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use ring::{
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};

use crate::Error;

/// How long a signature is.
pub(crate) const SIGNATURE_BYTES: usize = 64;

/// How long a key is that signatures are verified with.
const VERIFYING_KEY_BYTES: usize = 32;

/// What is signed begins with this, so that a signature is good for nothing else.
const CONTEXT: &[u8] = b"wisp compiled image 1\0";

/// Only its owner may read a key.
const KEY_FILE_MODE: u32 = 0o600;

/// Signs compiled images.
#[derive(Clone)]
pub struct SigningKey(Arc<Ed25519KeyPair>);

/// Tells whether a [`SigningKey`] signed an image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey([u8; VERIFYING_KEY_BYTES]);

impl SigningKey {
    /// Reads the key in a file; makes one if the file is not there.
    ///
    /// # Errors
    /// [`Error::SigningKey`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |message: String| Error::SigningKey { path: path.to_owned(), message };
        match fs::read(path) {
            Ok(key) => Ed25519KeyPair::from_pkcs8(&key)
                .map(|key| Self(Arc::new(key)))
                .map_err(|error| failed(format!("it is no Ed25519 key: {error}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                    .map_err(|_| failed("the system has no random numbers".into()))?;
                write_key(path, key.as_ref()).map_err(|error| failed(error.to_string()))?;
                Self::open(path)
            }
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// What tells that this key signed something.
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut key = [0; VERIFYING_KEY_BYTES];
        key.copy_from_slice(self.0.public_key().as_ref());
        VerifyingKey(key)
    }

    pub(crate) fn sign(&self, file_name: &str, checksum: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(self.0.sign(&message(file_name, checksum)).as_ref());
        signature
    }
}

impl VerifyingKey {
    pub(crate) fn has_signed(&self, file_name: &str, checksum: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, self.0);
        key.verify(&message(file_name, checksum), signature).is_ok()
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VerifyingKey({})", hex::encode(self.0))
    }
}

fn message(file_name: &str, checksum: &[u8]) -> Vec<u8> {
    [CONTEXT, file_name.as_bytes(), b"\0", checksum].concat()
}

/// Writes a key so that it is there whole, for its owner only, or not at all.
fn write_key(path: &Path, key: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(KEY_FILE_MODE).open(&temporary)?;
    file.write_all(key)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(folder)?.sync_all()
}
