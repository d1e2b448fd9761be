//! A registry: the OCI distribution API over [`Blobs`] and an [`Index`].
//!
//! Teams share what is on disk and nothing else. A blob that somebody pushed is
//! there, under its digest, once; but who asks a repository for it gets it only if an
//! index row says that this very repository has it. Whether another one does can
//! neither be read nor measured: the same row is looked up, and what is pushed twice
//! is received, hashed and written twice.
//!
//! # What survives
//!
//! Content is durable before a row names it, and rows are durable before a request is
//! acknowledged. After a `kill -9` there may be content that no row names (garbage,
//! collected by [`Registry::collect_garbage`]) and uploads that clients go on with.
//!
//! # Garbage
//!
//! What nobody names and nobody asked for lately is garbage. A client that was told
//! "this blob is there" may rely on it for [`MIN_GARBAGE_AGE`], the time between its
//! question and its manifest. Between the moment that content is published and that a
//! row names it, it is held by `publishing`.

mod access;
mod answer;
mod index;
mod names;
mod serve;
mod uploads;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use bytes::Bytes;
use futures::TryStreamExt as _;

pub use self::access::{Access, Action, Credentials, Denial};
pub use self::index::{Deleted, Garbage, GarbageRules, Index, ManifestRow, PutManifest, SqliteIndex};
pub use self::names::{MAX_NAME_BYTES, MAX_TAG_BYTES, Reference, is_repository, is_tag};
use crate::format::MAX_MANIFEST_BYTES;
use crate::{Blobs, Digest, Error};

/// The least time that something is nobody's before it is garbage: as long as the
/// slowest push takes from asking for its first blob to sending its manifest.
pub const MIN_GARBAGE_AGE: Duration = Duration::from_secs(60 * 60);

/// What a registry takes.
#[derive(Clone, Debug)]
pub struct RegistryLimits {
    /// The largest blob, in bytes.
    pub max_blob_bytes: u64,
    /// Uploads of one repository that go on at once.
    pub max_repository_uploads_count: usize,
    /// Uploads of all repositories that go on at once.
    pub max_uploads_count: usize,
    /// How long an upload may take.
    pub max_upload_age: Duration,
    /// How long an upload may lie untouched where others want to begin.
    pub max_upload_idle: Duration,
}

/// Where a registry keeps what it has.
#[derive(Clone, Debug)]
pub struct RegistrySettings {
    /// The content.
    pub blobs: Blobs,
    /// The index: an SQLite database.
    pub database: PathBuf,
    /// Uploads that go on. A folder that is only the registry's.
    pub uploads: PathBuf,
    /// What it takes.
    pub limits: RegistryLimits,
}

/// A registry. Clones are the same one.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    blobs: Blobs,
    index: Arc<dyn Index>,
    access: Arc<dyn Access>,
    uploads: PathBuf,
    limits: RegistryLimits,
    /// Uploads that a request is writing to at the moment.
    busy: Mutex<HashSet<String>>,
    /// Held by who publishes content until a row names it; taken whole by who removes
    /// content that no row names.
    publishing: tokio::sync::RwLock<()>,
}

/// How garbage is collected.
#[derive(Clone, Debug)]
pub struct GarbageOptions {
    /// Only say what would go.
    pub dry_run: bool,
    /// How long something must be nobody's. Shorter than [`MIN_GARBAGE_AGE`] is not
    /// safe beside pushes.
    pub age: Duration,
    /// From which age on manifests go that no tag names and that are not `kept`; `None`
    /// keeps all of them.
    pub untagged_age: Option<Duration>,
    /// Manifests that somebody knows by their digests, as releases do: repository and
    /// digest.
    pub kept: Arc<HashSet<(String, Digest)>>,
    /// Who has repositories: the first parts of their names. Those of others go. `None`
    /// is everybody.
    pub owners: Option<Arc<HashSet<String>>>,
}

/// What was garbage.
#[derive(Clone, Debug, Default)]
pub struct GarbageReport {
    /// Repositories of nobody.
    pub repositories: Vec<String>,
    /// Manifests that repositories have no more.
    pub manifests: Vec<(String, Digest)>,
    /// Blobs that repositories have no more.
    pub blobs: Vec<(String, Digest)>,
    /// Uploads that were ended.
    pub uploads_count: usize,
    /// Content that no repository has, with its size: gone from disk.
    pub content: Vec<(Digest, u64)>,
}

/// A manifest as it was pushed.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    /// Its name.
    pub digest: Digest,
    /// What it is.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Default for RegistryLimits {
    fn default() -> Self {
        Self {
            // As large as common registries take a layer.
            max_blob_bytes: 10 << 30,
            // Six clients with sixteen uploads each.
            max_repository_uploads_count: 100,
            max_uploads_count: 1_000,
            max_upload_age: Duration::from_secs(24 * 60 * 60),
            // Longer than any network comes back after.
            max_upload_idle: Duration::from_secs(10 * 60),
        }
    }
}

impl Default for GarbageOptions {
    fn default() -> Self {
        Self { dry_run: false, age: MIN_GARBAGE_AGE, untagged_age: None, kept: Arc::default(), owners: None }
    }
}

impl Registry {
    /// Opens a registry, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Index`].
    pub fn open(settings: RegistrySettings, access: Arc<dyn Access>) -> Result<Self, Error> {
        let RegistrySettings { blobs, database, uploads, limits } = settings;
        std::fs::create_dir_all(&uploads).map_err(Error::file("create", &uploads))?;
        let index: Arc<dyn Index> = Arc::new(SqliteIndex::open(&database)?);
        Ok(Self(Arc::new(Inner {
            blobs,
            index,
            access,
            uploads,
            limits,
            busy: Mutex::default(),
            publishing: tokio::sync::RwLock::default(),
        })))
    }

    /// The distribution API, below `/v2`. It asks [`Access`] about every request.
    pub fn router(&self) -> Router {
        serve::router(self.clone())
    }

    /// The content of all repositories.
    pub fn blobs(&self) -> &Blobs {
        &self.0.blobs
    }

    /// A manifest of a repository, for who needs not ask. `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Index`], [`Error::Store`] and [`Error::Damaged`].
    pub async fn manifest(
        &self,
        repository: &str,
        reference: &Reference,
    ) -> Result<Option<StoredManifest>, Error> {
        let digest = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(tag) => {
                let (repository, tag) = (repository.to_owned(), tag.clone());
                self.ask(move |index| index.tagged(&repository, &tag)).await?
            }
        };
        let Some(digest) = digest else { return Ok(None) };
        let repository = repository.to_owned();
        let Some(row) = self.ask(move |index| index.manifest(&repository, &digest)).await? else {
            return Ok(None);
        };
        let bytes = self.0.blobs.read(&digest, MAX_MANIFEST_BYTES).await?;
        Ok(Some(StoredManifest { digest, media_type: row.media_type, bytes }))
    }

    /// Removes all repositories of an owner: those whose names begin with `OWNER/`. Their
    /// content is garbage then.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub async fn delete_repositories(&self, owner: &str) -> Result<(), Error> {
        let owner = owner.to_owned();
        self.ask(move |index| index.delete_repositories(&owner)).await
    }

    /// Removes what nobody needs. Pushes may go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Index`], [`Error::Store`] and [`Error::File`].
    pub async fn collect_garbage(&self, options: GarbageOptions) -> Result<GarbageReport, Error> {
        let GarbageOptions { dry_run, age, untagged_age, kept, owners } = options;
        let upload_age = self.0.limits.max_upload_age;
        let rules = GarbageRules { age, upload_age, untagged_age, kept, owners };
        let garbage = self.ask(move |index| index.take_garbage(&rules, dry_run)).await?;
        let mut report = GarbageReport {
            repositories: garbage.repositories,
            uploads_count: garbage.uploads.len(),
            manifests: garbage.manifests,
            blobs: garbage.blobs,
            ..GarbageReport::default()
        };
        if !dry_run {
            for id in &garbage.uploads {
                self.remove_upload_file(id).await?;
            }
            self.remove_lost_uploads().await?;
        }
        // In a dry run the rows are still there; they count as gone.
        let mut gone: HashMap<Digest, usize> = HashMap::new();
        if dry_run {
            for (_, digest) in report.manifests.iter().chain(&report.blobs) {
                *gone.entry(*digest).or_default() += 1;
            }
        }
        let newest = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut content = self.0.blobs.list();
        while let Some(blob) = content.try_next().await? {
            let digest = blob.digest;
            if blob.written > newest {
                continue;
            }
            // Nobody publishes between the question and the removal.
            let _alone = self.0.publishing.write().await;
            // Published anew since it was listed? Its row may be on its way, even if who
            // pushed it went away.
            let now = self.0.blobs.info(&digest).await?;
            if now.is_none_or(|now| now.written > newest) {
                continue;
            }
            let owners_count = self.ask(move |index| index.owners_count(&digest)).await?;
            if owners_count > gone.get(&digest).copied().unwrap_or(0) {
                continue;
            }
            if !dry_run {
                self.0.blobs.delete(&digest).await?;
            }
            report.content.push((digest, blob.size));
        }
        Ok(report)
    }

    /// Asks the index, which waits for the disk.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Index) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let index = self.0.index.clone();
        tokio::task::spawn_blocking(move || question(&*index)).await?
    }

    fn enter(&self, upload: &str) -> Option<Busy<'_>> {
        let mut busy = self.0.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert(upload.to_owned()).then(|| Busy { registry: self, upload: upload.to_owned() })
    }
}

/// An upload that one request at a time writes to.
struct Busy<'a> {
    registry: &'a Registry,
    upload: String,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.registry.0.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.upload);
    }
}
