//! Digests of sources that were read before.
//!
//! To find a component's image one needs the digest of its source, and for that the
//! whole source. A node with a hundred thousand apps would read all of them again at
//! every start; so the digest is remembered with the identity of the file.
//!
//! The list is a file of records, 64 bytes each, only ever appended to:
//!
//! | bytes | what |
//! | --- | --- |
//! | 16 | BLAKE3 hash of the file's identity |
//! | 32 | the source's digest |
//! | 16 | BLAKE3 hash of the 48 bytes before |
//!
//! A record that is torn or altered is passed over, and the source is read again. A
//! list that cannot be read or written is no error: the only loss is time.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use crate::{Digest, FileIdentity};

/// Length of a record.
const RECORD_BYTES: usize = 64;

/// Length of what a record's own hash covers.
const PAYLOAD_BYTES: usize = 48;

/// How many records are read at most; the file begins anew when it has more. Four
/// versions of each of a quarter of a million components.
const MAX_RECORDS_COUNT: usize = 1_000_000;

/// Which file has which digest.
#[derive(Debug)]
pub(crate) struct SourceIndex {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    digests: HashMap<[u8; 16], Digest>,
    file: Option<File>,
}

impl SourceIndex {
    /// Reads the list at `path`, if there is one.
    pub(crate) fn open(path: PathBuf) -> Self {
        let mut digests = HashMap::new();
        if let Ok(bytes) = fs::read(&path) {
            let (records, _torn) = bytes.as_chunks::<RECORD_BYTES>();
            if records.len() > MAX_RECORDS_COUNT || bytes.len() % RECORD_BYTES != 0 {
                // Starting over keeps records aligned and the file bounded.
                drop(fs::remove_file(&path));
            }
            digests.reserve(records.len().min(MAX_RECORDS_COUNT));
            digests.extend(records.iter().take(MAX_RECORDS_COUNT).filter_map(decode));
        }
        Self { path, known: Mutex::new(Known { digests, file: None }) }
    }

    /// The digest of the source with this identity.
    pub(crate) fn digest(&self, identity: &FileIdentity) -> Option<Digest> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.digests.get(&identity.key()).copied()
    }

    /// Remembers the digest of a source, whose identity was taken before it was read.
    pub(crate) fn insert(&self, identity: &FileIdentity, digest: Digest) {
        let key = identity.key();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.digests.insert(key, digest) == Some(digest) {
            return;
        }
        if known.file.is_none() {
            known.file = OpenOptions::new().append(true).create(true).open(&self.path).ok();
        }
        if let Some(file) = &mut known.file {
            // One write: records of several processes do not mix.
            drop(file.write_all(&encode(key, &digest)));
        }
    }
}

fn encode(key: [u8; 16], digest: &Digest) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..16].copy_from_slice(&key);
    record[16..PAYLOAD_BYTES].copy_from_slice(digest.as_bytes());
    let hash = blake3::hash(&record[..PAYLOAD_BYTES]);
    record[PAYLOAD_BYTES..].copy_from_slice(&hash.as_bytes()[..RECORD_BYTES - PAYLOAD_BYTES]);
    record
}

fn decode(record: &[u8; RECORD_BYTES]) -> Option<([u8; 16], Digest)> {
    let (payload, hash) = record.split_at(PAYLOAD_BYTES);
    if hash != &blake3::hash(payload).as_bytes()[..RECORD_BYTES - PAYLOAD_BYTES] {
        return None;
    }
    let (key, digest) = payload.split_at(16);
    Some((key.try_into().ok()?, Digest::from_bytes(digest.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_is_known_survives_and_what_is_altered_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let identities: Vec<FileIdentity> = ["a", "b", "c"]
            .iter()
            .map(|name| {
                fs::write(folder.path().join(name), name).unwrap();
                FileIdentity::at(&folder.path().join(name)).unwrap()
            })
            .collect();
        let index = SourceIndex::open(path.clone());
        for (number, identity) in identities.iter().enumerate() {
            assert_eq!(index.digest(identity), None);
            index.insert(identity, Digest::of(&[u8::try_from(number).unwrap()]));
            // Known already: written once.
            index.insert(identity, Digest::of(&[u8::try_from(number).unwrap()]));
        }
        let mut bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 3 * RECORD_BYTES);
        bytes[RECORD_BYTES + 20] ^= 1;
        fs::write(&path, bytes).unwrap();

        let index = SourceIndex::open(path);
        assert_eq!(index.digest(&identities[0]), Some(Digest::of(&[0])));
        assert_eq!(index.digest(&identities[1]), None);
        assert_eq!(index.digest(&identities[2]), Some(Digest::of(&[2])));
    }

    #[test]
    fn a_torn_record_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let identity = FileIdentity::at(folder.path()).unwrap();
        SourceIndex::open(path.clone()).insert(&identity, Digest::of(b"x"));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&[7; 10]).unwrap();
        let index = SourceIndex::open(path.clone());
        assert_eq!(index.digest(&identity), Some(Digest::of(b"x")));
        let other = FileIdentity::at(&std::env::temp_dir()).unwrap();
        index.insert(&other, Digest::of(b"y"));
        assert_eq!(SourceIndex::open(path).digest(&other), Some(Digest::of(b"y")));
    }
}
