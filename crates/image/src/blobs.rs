//! Content by digest, in a folder.
//!
//! A blob is written under a temporary name, verified, synced, renamed, and its
//! folder synced; only then is it acknowledged. So what is found under a digest is
//! complete, whatever happened.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _, pin_mut};
use object_store::local::LocalFileSystem;
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
        std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(Error::Store)?.with_fsync(true);
        Ok(Self { store: Arc::new(store), folder: folder.to_owned() })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
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
        let mut upload = self.store.put_multipart(&path_of(digest)).await.map_err(Error::Store)?;
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
            Ok(()) => Ok(Prepared { digest: *digest, size: writing.size, content: Pending::Large(upload) }),
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
        self.store.put(&path_of(&digest), content.into()).await.map_err(Error::Store)?;
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

fn path_of(digest: &Digest) -> object_store::path::Path {
    object_store::path::Path::from(format!("{FOLDER}/{}", digest.hex()))
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
    Large(Box<dyn MultipartUpload>),
}

impl Prepared {
    /// Lets it be found. When this returns, it is durable.
    pub(crate) async fn publish(self, blobs: &Blobs) -> Result<u64, Error> {
        match self.content {
            Pending::Small(bytes) => {
                let payload = PutPayload::from(bytes);
                blobs.store.put(&path_of(&self.digest), payload).await.map_err(Error::Store)?;
            }
            Pending::Large(mut upload) => {
                upload.complete().await.map_err(Error::Store)?;
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
