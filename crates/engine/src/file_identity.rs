//! Whether a file is still the one that was read.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

/// A file that changed less than this ago may change once more without its times
/// saying so: kernels stamp files with a clock that advances every 10 ms at most.
const SETTLING_TIME: Duration = Duration::from_millis(50);

/// The same where times have whole seconds only; FAT counts in twos.
const COARSE_SETTLING_TIME: Duration = Duration::from_secs(3);

/// What changes whenever a file's content does: where it is, its size, and when its
/// content and its status last changed. The latter cannot be set by programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified_ns: i64,
    changed_ns: i64,
}

impl FileIdentity {
    /// The identity of an open file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from(&file.metadata()?))
    }

    /// The identity of the file at a path, symbolic links followed.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&path.metadata()?))
    }

    /// The file's size.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether any later change would show. To be asked before the file is read.
    pub fn is_settled(&self) -> bool {
        let settling_time =
            if self.changed_ns % 1_000_000_000 == 0 { COARSE_SETTLING_TIME } else { SETTLING_TIME };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_nanos(u64::try_from(self.changed_ns).unwrap_or(0));
        // A file from the future is never settled.
        now.checked_sub(changed).is_some_and(|age| age > settling_time)
    }

    /// A name for the identity that no two are likely to share.
    pub(crate) fn key(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        for number in [self.device, self.inode, self.size_bytes] {
            hasher.update(&number.to_le_bytes());
        }
        for number in [self.modified_ns, self.changed_ns] {
            hasher.update(&number.to_le_bytes());
        }
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        key
    }
}

impl From<&Metadata> for FileIdentity {
    fn from(metadata: &Metadata) -> Self {
        let ns =
            |seconds: i64, nanoseconds: i64| seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{fs, io::Write as _};

    use super::*;

    #[test]
    fn replacing_writing_and_touching_change_the_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let first = FileIdentity::at(&path).unwrap();
        assert_eq!(first, FileIdentity::of(&File::open(&path).unwrap()).unwrap());

        fs::write(folder.path().join("other"), "two").unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
        let replaced = FileIdentity::at(&path).unwrap();
        assert_ne!(replaced, first);

        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"!").unwrap();
        let appended = FileIdentity::at(&path).unwrap();
        assert_ne!(appended, replaced);
        assert_ne!(appended.key(), replaced.key());
    }

    #[test]
    fn what_has_just_changed_is_not_settled() {
        let identity = |age: Duration, whole_seconds: bool| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let changed = now.checked_sub(age).unwrap();
            let nanoseconds = if whole_seconds { 0 } else { i64::from(changed.subsec_nanos()).max(1) };
            FileIdentity {
                device: 1,
                inode: 1,
                size_bytes: 1,
                modified_ns: 0,
                changed_ns: i64::try_from(changed.as_secs()).unwrap() * 1_000_000_000 + nanoseconds,
            }
        };
        assert!(!identity(Duration::ZERO, false).is_settled());
        assert!(identity(Duration::from_secs(1), false).is_settled());
        assert!(!identity(Duration::from_secs(1), true).is_settled());
        assert!(identity(Duration::from_secs(9), true).is_settled());
    }
}
