//! Content by digest, in a folder.
//!
//! A blob is written under a temporary name, verified, synced, renamed, and its
//! folder synced; only then is it acknowledged. So what is found under a digest is
//! complete, whatever happened.
//!
//! Content that is there already is written once more, beside it, and removed once that was
//! acknowledged. Who pushes something must not learn from the time it takes that somebody
//! else has pushed the same; and to replace a file takes three times as long as to make one.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _, pin_mut};
use object_store::local::LocalFileSystem;
use object_store::path::Path as StorePath;
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload};

use crate::{Digest, Error, Hasher};

/// How much of a blob is held in memory while it is written.
const PART_BYTES: usize = 4 * 1024 * 1024;

/// Content by digest.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    folder: PathBuf,
}

/// What is known about a blob without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written last.
    pub written: SystemTime,
}

impl Blobs {
    /// Opens the store in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Store`].
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let spare = folder.join(SPARE_FOLDER);
        std::fs::create_dir_all(&spare).map_err(Error::file("create", &spare))?;
        remove_old(&spare).map_err(Error::file("clean up", &spare))?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(Error::Store)?.with_fsync(true);
        Ok(Self { store: Arc::new(store), folder: folder.to_owned() })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file that a blob is in, whether it is there or not.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(FOLDER).join(digest.hex())
    }

    /// Writes a blob, piece by piece. When this returns, it is durable.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the content is not what its digest says,
    /// [`Error::TooMuch`] if it is larger than `max_bytes`, [`Error::Store`], and what
    /// the stream says.
    pub async fn put<E: Into<Error>>(
        &self,
        digest: &Digest,
        max_bytes: u64,
        content: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<u64, Error> {
        self.prepare(digest, max_bytes, content).await?.publish(self).await
    }

    /// The same but for its last step: the content is there and verified, but nobody
    /// finds it yet.
    pub(crate) async fn prepare<E: Into<Error>>(
        &self,
        digest: &Digest,
        max_bytes: u64,
        content: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Prepared, Error> {
        pin_mut!(content);
        let mut writing = Writing { size: 0, hasher: Hasher::new(), buffer: BytesMut::new(), max_bytes };
        while writing.buffer.len() < PART_BYTES {
            let Some(piece) = content.next().await.transpose().map_err(Into::into)? else {
                // Most are small, and are written in one step.
                let Writing { size, hasher, buffer, .. } = writing;
                verify(digest, hasher.finish())?;
                return Ok(Prepared { digest: *digest, size, content: Pending::Small(buffer.freeze()) });
            };
            writing.take(&piece)?;
        }
        let (path, spare) = self.place(digest).await?;
        let mut upload = self.store.put_multipart(&path).await.map_err(Error::Store)?;
        let written: Result<Digest, Error> = async {
            loop {
                let piece = content.next().await.transpose().map_err(Into::into)?;
                if let Some(piece) = &piece {
                    writing.take(piece)?;
                }
                if writing.buffer.len() >= PART_BYTES || (piece.is_none() && !writing.buffer.is_empty()) {
                    let part = writing.buffer.split().freeze();
                    upload.put_part(part.into()).await.map_err(Error::Store)?;
                }
                if piece.is_none() {
                    return Ok(std::mem::take(&mut writing.hasher).finish());
                }
            }
        }
        .await;
        match written.and_then(|found| verify(digest, found)) {
            Ok(()) => Ok(Prepared {
                digest: *digest,
                size: writing.size,
                content: Pending::Large { upload, spare },
            }),
            Err(error) => {
                if let Err(cause) = upload.abort().await {
                    tracing::debug!("an upload cannot be removed: {cause}");
                }
                Err(error)
            }
        }
    }

    /// Writes a blob that is at hand. When this returns, it is durable.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn put_bytes(&self, content: Bytes) -> Result<Digest, Error> {
        let digest = Digest::of(&content);
        let prepared = Prepared { digest, size: content.len() as u64, content: Pending::Small(content) };
        prepared.publish(self).await?;
        Ok(digest)
    }

    /// What is known about a blob. `None` if it is not there.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>, Error> {
        match self.store.head(&path_of(digest)).await {
            Ok(meta) => {
                Ok(Some(BlobInfo { digest: *digest, size: meta.size, written: meta.last_modified.into() }))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(cause) => Err(Error::Store(cause)),
        }
    }

    /// Reads a blob, or a part of it. What comes is not verified: it was when it was
    /// written.
    ///
    /// # Errors
    /// [`Error::NoBlob`] and [`Error::Store`].
    pub async fn get(
        &self,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let found = self.store.get_opts(&path_of(digest), options).await.map_err(|cause| match cause {
            object_store::Error::NotFound { .. } => Error::NoBlob { digest: *digest },
            cause => Error::Store(cause),
        })?;
        Ok(found.into_stream().map_err(Error::Store).boxed())
    }

    /// Reads all of a blob into memory, and verifies it.
    ///
    /// # Errors
    /// [`Error::NoBlob`], [`Error::TooMuch`], [`Error::Damaged`] and [`Error::Store`].
    pub async fn read(&self, digest: &Digest, max_bytes: usize) -> Result<Bytes, Error> {
        let mut content = self.get(digest, None).await?;
        let mut bytes = BytesMut::new();
        while let Some(piece) = content.try_next().await? {
            if bytes.len() + piece.len() > max_bytes {
                return Err(Error::TooMuch { what: "a blob", limit: max_bytes as u64 });
            }
            bytes.extend_from_slice(&piece);
        }
        verify(digest, Digest::of(&bytes))?;
        Ok(bytes.freeze())
    }

    /// Where content is written, and whether that is beside what is there.
    async fn place(&self, digest: &Digest) -> Result<(StorePath, Option<StorePath>), Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if self.info(digest).await?.is_none() {
            return Ok((path_of(digest), None));
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let spare = StorePath::from(format!("{SPARE_FOLDER}/{}-{number}", std::process::id()));
        Ok((spare.clone(), Some(spare)))
    }

    /// What was written beside content that is there: the content counts as written now, and the
    /// copy goes when nobody waits for that any more.
    async fn settle(&self, digest: &Digest, spare: StorePath) -> Result<(), Error> {
        let path = self.path(digest);
        let touched = std::fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        match touched {
            Ok(()) => {
                let store = self.store.clone();
                tokio::spawn(async move {
                    if let Err(cause) = store.delete(&spare).await {
                        tracing::debug!("a copy cannot be removed yet: {cause}");
                    }
                });
                Ok(())
            }
            // It was garbage a moment ago.
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
                self.store.rename(&spare, &path_of(digest)).await.map_err(Error::Store)
            }
            Err(cause) => Err(Error::file("touch", &path)(cause)),
        }
    }

    /// Removes a blob. It is no error if it is not there.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        match self.store.delete(&path_of(digest)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(cause) => Err(Error::Store(cause)),
        }
    }

    /// All blobs, in no particular order.
    pub fn list(&self) -> BoxStream<'static, Result<BlobInfo, Error>> {
        let found = self.store.list(Some(&object_store::path::Path::from(FOLDER)));
        found
            .map_err(Error::Store)
            .try_filter_map(async |meta| {
                let digest =
                    meta.location.filename().and_then(|name| Digest::parse(&format!("sha256:{name}")));
                let info = digest.map(|digest| BlobInfo {
                    digest,
                    size: meta.size,
                    written: meta.last_modified.into(),
                });
                Ok(info)
            })
            .boxed()
    }
}

/// Where blobs are in the store.
const FOLDER: &str = "sha256";

/// Where content is written that is there already.
const SPARE_FOLDER: &str = "spare";

/// How old a copy is that nobody removes any more: its process has ended.
const MAX_SPARE_AGE: Duration = Duration::from_secs(24 * 60 * 60);

fn path_of(digest: &Digest) -> StorePath {
    StorePath::from(format!("{FOLDER}/{}", digest.hex()))
}

/// Removes copies that a process left behind.
fn remove_old(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
        if age > MAX_SPARE_AGE {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

pub(crate) fn verify(expected: &Digest, found: Digest) -> Result<(), Error> {
    match *expected == found {
        true => Ok(()),
        false => Err(Error::Damaged { expected: *expected, found }),
    }
}

/// A blob that is verified and not yet found.
pub(crate) struct Prepared {
    digest: Digest,
    size: u64,
    content: Pending,
}

enum Pending {
    Small(Bytes),
    Large { upload: Box<dyn MultipartUpload>, spare: Option<StorePath> },
}

impl Prepared {
    /// Lets it be found. When this returns, it is durable.
    pub(crate) async fn publish(self, blobs: &Blobs) -> Result<u64, Error> {
        match self.content {
            Pending::Small(bytes) => {
                let (path, spare) = blobs.place(&self.digest).await?;
                blobs.store.put(&path, PutPayload::from(bytes)).await.map_err(Error::Store)?;
                if let Some(spare) = spare {
                    blobs.settle(&self.digest, spare).await?;
                }
            }
            Pending::Large { mut upload, spare } => {
                upload.complete().await.map_err(Error::Store)?;
                if let Some(spare) = spare {
                    blobs.settle(&self.digest, spare).await?;
                }
            }
        }
        Ok(self.size)
    }
}

/// A blob that is being written.
struct Writing {
    size: u64,
    hasher: Hasher,
    buffer: BytesMut,
    max_bytes: u64,
}

impl Writing {
    fn take(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.size += piece.len() as u64;
        if self.size > self.max_bytes {
            return Err(Error::TooMuch { what: "a blob", limit: self.max_bytes });
        }
        self.hasher.update(piece);
        self.buffer.extend_from_slice(piece);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use futures::stream;

    use super::*;

    fn pieces(content: &[u8], size: usize) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
        let pieces: Vec<_> = content.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        stream::iter(pieces)
    }

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder.join(FOLDER)).map_or(0, Iterator::count)
    }

    #[tokio::test]
    async fn what_was_put_is_there_with_its_ranges() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        for size in [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 17] {
            let content: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
            let digest = Digest::of(&content);
            assert_eq!(blobs.info(&digest).await.unwrap(), None);
            let written = blobs.put(&digest, u64::MAX, pieces(&content, 100_000)).await.unwrap();
            assert_eq!(written, size as u64);
            assert_eq!(blobs.info(&digest).await.unwrap().unwrap().size, size as u64);
            assert_eq!(blobs.read(&digest, size).await.unwrap(), content);
            if size > 10 {
                let part: Vec<Bytes> =
                    blobs.get(&digest, Some(3..9)).await.unwrap().try_collect().await.unwrap();
                assert_eq!(part.concat(), &content[3..9]);
            }
        }
        assert_eq!(blobs.list().try_collect::<Vec<_>>().await.unwrap().len(), 6);
    }

    #[tokio::test]
    async fn what_is_there_already_is_written_beside_it_and_counts_as_new() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        for size in [10, PART_BYTES + 1] {
            let content = vec![size as u8; size];
            let digest = Digest::of(&content);
            let put = async || blobs.put(&digest, u64::MAX, pieces(&content, 1 << 20)).await.unwrap();
            put().await;
            let path = folder.path().join(FOLDER).join(digest.hex());
            let long_ago = SystemTime::now() - Duration::from_secs(1_000_000);
            std::fs::File::open(&path).unwrap().set_modified(long_ago).unwrap();
            put().await;
            assert!(blobs.info(&digest).await.unwrap().unwrap().written > long_ago);
            assert_eq!(blobs.read(&digest, size).await.unwrap(), content);
        }
        assert_eq!(files(folder.path()), 2);
        let copies = || std::fs::read_dir(folder.path().join(SPARE_FOLDER)).unwrap().count();
        while copies() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_wrong_or_too_large_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        for size in [10, 3 * PART_BYTES] {
            let content = vec![7; size];
            let digest = Digest::of(&content);
            let wrong = Digest::of(b"something else");
            let error = blobs.put(&wrong, u64::MAX, pieces(&content, 5_000_000)).await.unwrap_err();
            assert_eq!(error.code(), "WISP-E0805");
            let error = blobs.put(&digest, size as u64 - 1, pieces(&content, 5_000_000)).await.unwrap_err();
            assert_eq!(error.code(), "WISP-E0807");
            assert_eq!(files(folder.path()), 0);
        }
    }

    #[tokio::test]
    async fn a_blob_that_changed_on_disk_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let digest = blobs.put_bytes("content".into()).await.unwrap();
        std::fs::write(folder.path().join(FOLDER).join(digest.hex()), "c0ntent").unwrap();
        assert_eq!(blobs.read(&digest, 100).await.unwrap_err().code(), "WISP-E0805");
        blobs.delete(&digest).await.unwrap();
        blobs.delete(&digest).await.unwrap();
        assert_eq!(blobs.read(&digest, 100).await.unwrap_err().code(), "WISP-E0806");
    }
}
