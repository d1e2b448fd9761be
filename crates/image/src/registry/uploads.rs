//! Uploads that go on: a row and a file each.
//!
//! A file grows with each chunk. It need not be durable: after a power cut a client
//! asks how much is there. What becomes a blob is read once more, verified and
//! written to the store.

use std::io;
use std::path::PathBuf;

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::io::AsyncWriteExt as _;

use super::answer::{Code, Refusal};
use super::{Busy, Registry};
use crate::{Content, Digest, Error};

/// How many bytes name an upload: nobody guesses another's.
const ID_BYTES: usize = 16;

impl Registry {
    /// Begins an upload.
    pub(super) async fn begin_upload(&self, repository: &str) -> Result<String, Refusal> {
        let mut id = [0; ID_BYTES];
        SystemRandom::new()
            .fill(&mut id)
            .map_err(|_| Refusal::new(Code::Unknown, "there is no randomness"))?;
        let id = hex::encode(id);
        let path = self.upload_path(&id);
        tokio::fs::File::create(&path).await.map_err(Error::file("create", &path))?;
        let mut has_room = self.note_upload(repository, &id).await?;
        if !has_room && self.end_idle_uploads(repository).await? {
            has_room = self.note_upload(repository, &id).await?;
        }
        if !has_room {
            self.remove_upload_file(&id).await?;
            return Err(Refusal::new(Code::TooManyRequests, "too many uploads go on; finish or cancel some"));
        }
        Ok(id)
    }

    async fn note_upload(&self, repository: &str, id: &str) -> Result<bool, Error> {
        let limits = (self.0.limits.max_repository_uploads_count, self.0.limits.max_uploads_count);
        let (repository, id) = (repository.to_owned(), id.to_owned());
        self.ask(move |index| index.begin_upload(&repository, &id, limits)).await
    }

    /// Ends the uploads of a repository that nobody goes on with: those of clients that
    /// were killed. Says whether there were any.
    async fn end_idle_uploads(&self, repository: &str) -> Result<bool, Error> {
        let repository = repository.to_owned();
        let mut has_ended = false;
        for id in self.ask(move |index| index.uploads(&repository)).await? {
            let Some(_busy) = self.enter(&id) else { continue };
            let written =
                tokio::fs::metadata(self.upload_path(&id)).await.and_then(|metadata| metadata.modified());
            let is_idle = match written {
                Ok(written) => written.elapsed().is_ok_and(|age| age > self.0.limits.max_upload_idle),
                // Its file is gone: nobody can go on with it.
                Err(_) => true,
            };
            if is_idle {
                let row_id = id.clone();
                self.ask(move |index| index.end_upload(&row_id)).await?;
                self.remove_upload_file(&id).await?;
                has_ended = true;
            }
        }
        Ok(has_ended)
    }

    /// Enters an upload, so that nobody else writes to it. Gives its size.
    pub(super) async fn enter_upload(&self, repository: &str, id: &str) -> Result<(Busy<'_>, u64), Refusal> {
        let unknown = || Refusal::new(Code::BlobUploadUnknown, "there is no such upload");
        let is_id = id.len() == 2 * ID_BYTES && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_id {
            return Err(unknown());
        }
        let (repository, row_id) = (repository.to_owned(), id.to_owned());
        if !self.ask(move |index| index.has_upload(&repository, &row_id)).await? {
            return Err(unknown());
        }
        let busy = self.enter(id).ok_or_else(|| {
            Refusal::new(Code::BlobUploadInvalid, "another request writes to this upload")
                .with_status(http::StatusCode::CONFLICT)
        })?;
        let path = self.upload_path(id);
        match tokio::fs::metadata(&path).await {
            Ok(metadata) => Ok((busy, metadata.len())),
            // Ended by another request meanwhile.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(unknown()),
            Err(cause) => Err(Error::file("read", &path)(cause).into()),
        }
    }

    /// Adds to an upload, and gives its size. What came before a client went away is
    /// kept; what is too much is not.
    pub(super) async fn append(
        &self,
        busy: &Busy<'_>,
        size: u64,
        expected: Option<u64>,
        body: Body,
    ) -> Result<u64, Refusal> {
        let path = self.upload_path(&busy.upload);
        let failed = |cause| Error::file("write", &path)(cause);
        let mut file = tokio::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .await
            .map_err(Error::file("open", &path))?;
        let mut content = body_stream(body);
        let mut written = size;
        let limit = self.0.limits.max_blob_bytes;
        let wrong = loop {
            let piece = match content.try_next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break None,
                Err(error) => break Some(Refusal::from(error)),
            };
            written += piece.len() as u64;
            if written > limit {
                break Some(Error::TooMuch { what: "a blob", limit }.into());
            }
            if expected.is_some_and(|expected| written - size > expected) {
                break Some(Refusal::new(Code::SizeInvalid, "the content is longer than its range"));
            }
            file.write_all(&piece).await.map_err(failed)?;
        };
        file.flush().await.map_err(failed)?;
        let is_short = expected.is_some_and(|expected| written - size < expected);
        match wrong {
            Some(refusal) => {
                if refusal.code == Code::SizeInvalid {
                    file.set_len(size).await.map_err(failed)?;
                }
                Err(refusal)
            }
            None if is_short => {
                file.set_len(size).await.map_err(failed)?;
                Err(Refusal::new(Code::SizeInvalid, "the content is shorter than its range"))
            }
            None => Ok(written),
        }
    }

    /// Makes a blob of an upload, or of a body if nothing was uploaded before.
    pub(super) async fn finish_upload(
        &self,
        repository: &str,
        id: &str,
        digest: &Digest,
        body: Option<Body>,
    ) -> Result<(), Refusal> {
        let stored = match body {
            Some(body) => self.store(repository, digest, body_stream(body)).await,
            None => {
                let content = Content::File(self.upload_path(id)).stream();
                self.store(repository, digest, content).await
            }
        };
        // Right or wrong: it cannot be gone on with.
        self.end_upload(id).await?;
        stored
    }

    /// Writes a blob and notes that a repository has it.
    pub(super) async fn store(
        &self,
        repository: &str,
        digest: &Digest,
        content: impl Stream<Item = Result<Bytes, Error>> + Send,
    ) -> Result<(), Refusal> {
        let prepared = self.0.blobs.prepare(digest, self.0.limits.max_blob_bytes, content).await?;
        let _publishing = self.0.publishing.read().await;
        let size = prepared.publish(&self.0.blobs).await?;
        let (repository, digest) = (repository.to_owned(), *digest);
        Ok(self.ask(move |index| index.put_blob(&repository, &digest, size)).await?)
    }

    /// Ends an upload.
    pub(super) async fn end_upload(&self, id: &str) -> Result<(), Refusal> {
        let row_id = id.to_owned();
        self.ask(move |index| index.end_upload(&row_id)).await?;
        Ok(self.remove_upload_file(id).await?)
    }

    pub(super) async fn remove_upload_file(&self, id: &str) -> Result<(), Error> {
        let path = self.upload_path(id);
        match tokio::fs::remove_file(&path).await {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &path)(cause)),
            _ => Ok(()),
        }
    }

    /// Removes files of uploads that have no row: a process ended between the two.
    pub(super) async fn remove_lost_uploads(&self) -> Result<(), Error> {
        let folder = &self.0.uploads;
        let mut entries = tokio::fs::read_dir(folder).await.map_err(Error::file("read", folder))?;
        while let Some(entry) = entries.next_entry().await.map_err(Error::file("read", folder))? {
            let Ok(id) = entry.file_name().into_string() else { continue };
            let written = entry.metadata().await.and_then(|metadata| metadata.modified());
            let is_old = written
                .is_ok_and(|written| written.elapsed().is_ok_and(|age| age > self.0.limits.max_upload_age));
            if is_old {
                let row_id = id.clone();
                self.ask(move |index| index.end_upload(&row_id)).await?;
                self.remove_upload_file(&id).await?;
            }
        }
        Ok(())
    }

    fn upload_path(&self, id: &str) -> PathBuf {
        self.0.uploads.join(id)
    }
}

/// A body in pieces. If it ends before it should, that is an error.
pub(super) fn body_stream(body: Body) -> impl Stream<Item = Result<Bytes, Error>> + Send + Unpin {
    body.into_data_stream().map_err(|cause| {
        tracing::debug!("a body ended: {cause}");
        Error::Ended
    })
}
