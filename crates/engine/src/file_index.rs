//! What is known about files, across starts: of sources that were read their digest, of
//! images that were verified their checksum.
//!
//! To find a component's image one needs the digest of its source, and for that the
//! whole source; to map an image, its checksum. A node with a hundred thousand apps would
//! read all of them again at every start; so both are remembered with the identity of the
//! file.
//!
//! A list is a file of records, 64 bytes each, only ever appended to:
//!
//! | bytes | what |
//! | --- | --- |
//! | 16 | BLAKE3 hash of the file's identity |
//! | 32 | the digest |
//! | 16 | BLAKE3 hash of the 48 bytes before |
//!
//! A record that is torn or altered is passed over, and the file is read again. A
//! list that cannot be read or written is no error: the only loss is time.
//!
//! After a power cut a file may have lost content that it had: its identity says nothing
//! about that. A list that must know begins with a record that names the *boot* of the
//! operating system, and is worth nothing after it.

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
pub(crate) struct FileIndex {
    path: PathBuf,
    /// The record that it begins with.
    first: Option<Record>,
    known: Mutex<Known>,
}

type Record = ([u8; 16], Digest);

#[derive(Debug, Default)]
struct Known {
    digests: HashMap<[u8; 16], Digest>,
    file: Option<File>,
}

impl FileIndex {
    /// Reads the list at `path`, if there is one.
    pub(crate) fn open(path: PathBuf) -> Self {
        Self::begun_with(path, None)
    }

    /// The same for one that is worth nothing once the operating system was started again;
    /// `None` if nobody says whether it was.
    pub(crate) fn of_this_boot(path: PathBuf) -> Option<Self> {
        Some(Self::of_boot(path, fs::read("/proc/sys/kernel/random/boot_id").ok()?.trim_ascii()))
    }

    fn of_boot(path: PathBuf, boot: &[u8]) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(boot).as_bytes()[..16]);
        Self::begun_with(path, Some((key, Digest::of(boot))))
    }

    fn begun_with(path: PathBuf, first: Option<Record>) -> Self {
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
        if first.is_some_and(|(key, digest)| digests.remove(&key) != Some(digest)) {
            digests.clear();
            drop(fs::remove_file(&path));
        }
        Self { path, first, known: Mutex::new(Known { digests, file: None }) }
    }

    /// The digest of the file with this identity.
    pub(crate) fn digest(&self, identity: &FileIdentity) -> Option<Digest> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.digests.get(&identity.key()).copied()
    }

    /// The same, for whoever remembers it from now on.
    pub(crate) fn take(&self, identity: &FileIdentity) -> Option<Digest> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = known.digests.remove(&identity.key());
        if known.digests.is_empty() {
            known.digests.shrink_to_fit();
        }
        digest
    }

    /// Remembers the digest of a file, whose identity was taken before it was read.
    pub(crate) fn insert(&self, identity: &FileIdentity, digest: Digest) {
        let key = identity.key();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.digests.insert(key, digest) != Some(digest) {
            self.append(&mut known.file, key, digest);
        }
    }

    /// The same for one that this process does not ask for.
    pub(crate) fn write_down(&self, identity: &FileIdentity, digest: Digest) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.append(&mut known.file, identity.key(), digest);
    }

    fn append(&self, file: &mut Option<File>, key: [u8; 16], digest: Digest) {
        if file.is_none() {
            *file = OpenOptions::new().append(true).create(true).open(&self.path).ok();
            let is_new =
                file.as_ref().and_then(|file| file.metadata().ok()).is_some_and(|file| file.len() == 0);
            if let (Some(file), Some((key, digest)), true) = (&mut *file, self.first, is_new) {
                drop(file.write_all(&encode(key, &digest)));
            }
        }
        if let Some(file) = file {
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
        let index = FileIndex::open(path.clone());
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

        let index = FileIndex::open(path);
        assert_eq!(index.digest(&identities[0]), Some(Digest::of(&[0])));
        assert_eq!(index.digest(&identities[1]), None);
        assert_eq!(index.digest(&identities[2]), Some(Digest::of(&[2])));
    }

    #[test]
    fn what_was_known_before_another_boot_is_not_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let identity = FileIdentity::at(folder.path()).unwrap();
        let boot = |name: &str| FileIndex::of_boot(path.clone(), name.as_bytes());
        assert!(FileIndex::of_this_boot(path.clone()).is_some());
        boot("one").write_down(&identity, Digest::of(b"x"));
        boot("one").write_down(&FileIdentity::at(&std::env::temp_dir()).unwrap(), Digest::of(b"y"));
        assert_eq!(fs::metadata(&path).unwrap().len(), 3 * RECORD_BYTES as u64, "begun once");

        let index = boot("one");
        assert_eq!(index.take(&identity), Some(Digest::of(b"x")));
        assert_eq!(index.take(&identity), None);
        assert_eq!(boot("two").take(&identity), None);
        assert_eq!(boot("one").take(&identity), None);
        // Nor is a list that does not begin so.
        FileIndex::open(path.clone()).insert(&identity, Digest::of(b"x"));
        assert_eq!(boot("one").take(&identity), None);
    }

    #[test]
    fn a_torn_record_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let identity = FileIdentity::at(folder.path()).unwrap();
        FileIndex::open(path.clone()).insert(&identity, Digest::of(b"x"));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&[7; 10]).unwrap();
        let index = FileIndex::open(path.clone());
        assert_eq!(index.digest(&identity), Some(Digest::of(b"x")));
        let other = FileIdentity::at(&std::env::temp_dir()).unwrap();
        index.insert(&other, Digest::of(b"y"));
        assert_eq!(FileIndex::open(path).digest(&other), Some(Digest::of(b"y")));
    }
}
