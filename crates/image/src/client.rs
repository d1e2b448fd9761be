//! The other end: pushing images to registries and pulling them.
//!
//! The protocol, with its ways of signing in, is `oci-client`'s. What is ours: only
//! what is missing is sent, what was fetched is kept by digest in the user's cache,
//! and a pull that was killed goes on where it ended.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client as OciClient, Reference, RegistryOperation};
use tokio::io::AsyncWriteExt as _;

use crate::credentials::{self, CredentialStore};
use crate::format::{DOCKER_MANIFEST, Descriptor, IMAGE_MANIFEST, ImageManifest, MAX_MANIFEST_BYTES};
use crate::{Blobs, Content, Digest, Error, Image, Unpacked};

/// Blobs that are sent or fetched at once.
pub const MAX_PARALLEL_COUNT: usize = 16;

/// How long a registry may take to let itself be connected to.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// How long a registry may say nothing.
pub(crate) const READ_LIMIT: Duration = Duration::from_secs(120);

/// How long a token is used where the registry does not say: as long as a large push
/// takes.
const TOKEN_AGE_SECONDS: usize = 300;

/// The largest blob that is fetched.
const MAX_BLOB_BYTES: u64 = 10 << 30;

/// Content that is used counts as written anew, but not more often: whoever knows a file by
/// its times would read it again.
const MIN_TOUCH_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Tags that are asked for at once.
const TAGS_PAGE_COUNT: usize = 100;

/// Where fetched content is, below the cache's folder.
const CACHED: &str = "blobs";

/// Where content is that is being fetched.
const PARTIAL: &str = "partial";

/// Where images are unpacked to.
const UNPACKED: &str = "unpacked";

/// How long what a killed pull left is kept: who means to go on does it the same week.
const MAX_PARTIAL_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The name of an image in a registry: `registry.example/team/app:1.0`.
#[derive(Clone, PartialEq, Eq)]
pub struct ImageReference(Reference);

/// How much a client keeps.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// The sizes of all blobs together, in bytes. Beyond it, those that were fetched
    /// first go.
    pub max_bytes: u64,
    /// Images that are unpacked. Beyond it, those that were unpacked first go.
    pub max_unpacked_count: usize,
}

/// How a client works.
#[derive(Clone, Debug, Default)]
pub struct ClientSettings {
    /// Speak plain HTTP, to whichever registry.
    pub insecure: bool,
    /// Where what was fetched is kept.
    pub cache: PathBuf,
    /// Credentials; Docker's are asked if these know nothing.
    pub credentials: Option<CredentialStore>,
    /// Certificates (PEM) that are trusted besides the machine's.
    pub trusted: Vec<Vec<u8>>,
    /// How much is kept.
    pub limits: CacheLimits,
}

/// Pushes and pulls images.
#[derive(Clone)]
pub struct Client {
    settings: Arc<ClientSettings>,
    blobs: Blobs,
}

/// What goes on.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Blobs that are there, or were sent or fetched.
    pub done_count: usize,
    /// All blobs.
    pub total_count: usize,
    /// How much was sent or fetched.
    pub moved_bytes: u64,
}

/// Is told what goes on, from any thread.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// An image that was pushed.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Its name by content.
    pub digest: Digest,
    /// Blobs that were sent.
    pub sent_count: usize,
    /// Blobs that were there.
    pub present_count: usize,
    /// How much was sent.
    pub sent_bytes: u64,
}

/// An image that was pulled.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// Its name by content.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: ImageManifest,
    /// Blobs that were fetched.
    pub fetched_count: usize,
    /// Blobs that were there.
    pub cached_count: usize,
    /// How much was fetched.
    pub fetched_bytes: u64,
    /// How much of it an earlier pull had fetched.
    pub resumed_bytes: u64,
}

impl ImageReference {
    /// The registry's host name, with its port.
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// The repository.
    pub fn repository(&self) -> &str {
        self.0.repository()
    }

    /// The tag, if it has one.
    pub fn tag(&self) -> Option<&str> {
        self.0.tag()
    }

    /// Whether a text looks like the name of an image rather than like a path: it
    /// begins with a host name that has a dot or a port, or is `localhost`.
    pub fn looks_like(text: &str) -> bool {
        let Some((host, rest)) = text.split_once('/') else { return false };
        let is_host = host == "localhost" || host.contains(['.', ':']);
        is_host && !host.starts_with('.') && !rest.is_empty() && text.parse::<Self>().is_ok()
    }
}

impl FromStr for ImageReference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Reference { text: text.to_owned(), reason };
        // There is no registry that everybody means.
        match text.split_once('/') {
            Some((host, _)) if host == "localhost" || host.contains(['.', ':']) => {}
            _ => return Err(wrong("the registry's host name is missing".to_owned())),
        }
        Reference::from_str(text).map(Self).map_err(|error| wrong(error.to_string()))
    }
}

impl std::fmt::Display for ImageReference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl std::fmt::Debug for ImageReference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Default for CacheLimits {
    fn default() -> Self {
        // As much as a developer's build folder takes; a page of apps.
        Self { max_bytes: 10 << 30, max_unpacked_count: 50 }
    }
}

impl Client {
    /// A client with a cache, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Store`].
    pub fn new(settings: ClientSettings) -> Result<Self, Error> {
        let blobs = Blobs::open(&settings.cache.join(CACHED))?;
        let partial = settings.cache.join(PARTIAL);
        fs::create_dir_all(&partial).map_err(Error::file("create", &partial))?;
        for (path, age) in by_age(&partial)? {
            if age > MAX_PARTIAL_AGE {
                // Another process may have been faster.
                let _ = fs::remove_file(path);
            }
        }
        Ok(Self { settings: Arc::new(settings), blobs })
    }

    /// Everything that was pulled.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Sends an image: the blobs that are missing, then the manifest.
    ///
    /// # Errors
    /// [`Error::Denied`], [`Error::Registry`], [`Error::File`] and [`Error::Damaged`].
    pub async fn push(
        &self,
        image: &Image,
        reference: &ImageReference,
        on_progress: OnProgress<'_>,
    ) -> Result<Pushed, Error> {
        let session = self.session(reference, RegistryOperation::Push).await?;
        let meter = Meter::new(image.layers.len(), on_progress);
        let (sent_count, sent_bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
        stream::iter(image.layers.values().map(Ok::<_, Error>))
            .try_for_each_concurrent(MAX_PARALLEL_COUNT, async |layer| {
                let Descriptor { digest, size, .. } = layer.descriptor;
                let is_there = session.oci.blob_exists(&reference.0, &digest.to_string()).await;
                if !is_there.map_err(|error| session.failed(error))? {
                    session.send(&layer.content, &digest, size).await?;
                    sent_count.fetch_add(1, Ordering::Relaxed);
                    sent_bytes.fetch_add(size, Ordering::Relaxed);
                    meter.moved(size);
                }
                meter.done();
                Ok(())
            })
            .await?;
        let media_type = http::HeaderValue::from_static(IMAGE_MANIFEST);
        let sent = session.oci.push_manifest_raw(&reference.0, image.manifest.clone(), media_type).await;
        sent.map_err(|error| session.failed(error))?;
        let sent_count = sent_count.into_inner();
        Ok(Pushed {
            digest: image.digest,
            sent_count,
            present_count: image.layers.len() - sent_count,
            sent_bytes: sent_bytes.into_inner(),
        })
    }

    /// Fetches an image into the cache. What is there already is not fetched again.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::Denied`], [`Error::Registry`], [`Error::Manifest`],
    /// [`Error::Damaged`] and what the cache says.
    pub async fn pull(
        &self,
        reference: &ImageReference,
        on_progress: OnProgress<'_>,
    ) -> Result<Pulled, Error> {
        let session = self.session(reference, RegistryOperation::Pull).await?;
        let (bytes, digest) = session.manifest().await?;
        let manifest = ImageManifest::parse(&bytes)?;
        let mut blobs: Vec<&Descriptor> = manifest.layers.iter().chain([&manifest.config]).collect();
        blobs.sort_by_key(|blob| blob.digest);
        blobs.dedup_by_key(|blob| blob.digest);
        let meter = Meter::new(blobs.len(), on_progress);
        let (cached, fetched) = (AtomicUsize::new(0), AtomicU64::new(0));
        let resumed = AtomicU64::new(0);
        let total_count = blobs.len();
        stream::iter(blobs.into_iter().map(Ok::<_, Error>))
            .try_for_each_concurrent(MAX_PARALLEL_COUNT, async |blob| {
                // Also one that was damaged on this disk is fetched again.
                let known = self.blobs.info(&blob.digest).await?;
                if known.is_some_and(|known| known.size == blob.size) {
                    cached.fetch_add(1, Ordering::Relaxed);
                } else {
                    let Fetched { new_bytes, old_bytes } = session.fetch(self, blob, &meter).await?;
                    fetched.fetch_add(new_bytes, Ordering::Relaxed);
                    resumed.fetch_add(old_bytes, Ordering::Relaxed);
                }
                meter.done();
                Ok(())
            })
            .await?;
        // Last: an image whose manifest is there is complete.
        self.blobs.put_bytes(bytes).await?;
        let mut keep: HashSet<Digest> = manifest.layers.iter().map(|layer| layer.digest).collect();
        keep.extend([manifest.config.digest, digest]);
        self.make_room(&keep).await?;
        let cached_count = cached.into_inner();
        Ok(Pulled {
            digest,
            manifest,
            fetched_count: total_count - cached_count,
            cached_count,
            fetched_bytes: fetched.into_inner(),
            resumed_bytes: resumed.into_inner(),
        })
    }

    /// Makes a folder in the cache of an image that was pulled.
    ///
    /// # Errors
    /// As [`crate::unpack`].
    pub async fn unpack(&self, image: &Digest) -> Result<Unpacked, Error> {
        let folder = self.settings.cache.join(UNPACKED);
        let unpacked = crate::unpack(&self.blobs, image, &folder.join(image.hex())).await?;
        let mut known = by_age(&folder)?;
        known.retain(|(path, _)| *path != unpacked.folder);
        let keep_count = self.settings.limits.max_unpacked_count.saturating_sub(1);
        for (path, _) in known.iter().rev().take(known.len().saturating_sub(keep_count)) {
            fs::remove_dir_all(path).map_err(Error::file("remove", path))?;
        }
        Ok(unpacked)
    }

    /// Removes the oldest blobs if there are too many, but none of these.
    pub(crate) async fn make_room(&self, keep: &HashSet<Digest>) -> Result<(), Error> {
        let mut blobs: Vec<_> = self.blobs.list().try_collect().await?;
        let mut size: u64 = blobs.iter().map(|blob| blob.size).sum();
        blobs.sort_by_key(|blob| blob.written);
        for blob in blobs {
            if size <= self.settings.limits.max_bytes {
                break;
            }
            if !keep.contains(&blob.digest) {
                self.blobs.delete(&blob.digest).await?;
                size -= blob.size;
            }
        }
        Ok(())
    }

    /// Certificates (PEM) that are trusted besides the machine's.
    pub(crate) fn trusted(&self) -> &[Vec<u8>] {
        &self.settings.trusted
    }

    /// Where content is fetched to until it is complete.
    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.settings.cache.join(PARTIAL).join(digest.hex())
    }

    /// The file with content that is in the cache.
    pub(crate) async fn cached(&self, digest: &Digest) -> Result<Option<PathBuf>, Error> {
        let Some(known) = self.blobs.info(digest).await? else { return Ok(None) };
        let path = self.blobs.path(digest);
        let age = known.written.elapsed().unwrap_or_default();
        if age > MIN_TOUCH_AGE {
            // A cache that can only be read is a cache.
            let touched = fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
            if let Err(cause) = touched {
                tracing::debug!("`{}` cannot be touched: {cause}", path.display());
            }
        }
        Ok(Some(path))
    }

    /// The file with a blob, which is fetched.
    pub(crate) async fn fetched(&self, session: &Session, blob: &Descriptor) -> Result<PathBuf, Error> {
        session.fetch(self, blob, &Meter::new(1, &|_| {})).await?;
        Ok(self.blobs.path(&blob.digest))
    }

    /// A session with credentials and a protocol that are perhaps those of the caller.
    pub(crate) async fn session_for(
        &self,
        reference: &ImageReference,
        auth: Option<RegistryAuth>,
        operation: RegistryOperation,
        is_plain: Option<bool>,
    ) -> Result<Session, Error> {
        let auth = match auth {
            Some(auth) => auth,
            None => self.auth(reference).await?,
        };
        self.session_as(reference, auth, operation, is_plain).await
    }

    /// Fetches the manifest of an image and nothing else.
    ///
    /// # Errors
    /// As [`pull`](Self::pull).
    pub async fn inspect(&self, reference: &ImageReference) -> Result<(Digest, ImageManifest), Error> {
        let session = self.session(reference, RegistryOperation::Pull).await?;
        let (bytes, digest) = session.manifest().await?;
        Ok((digest, ImageManifest::parse(&bytes)?))
    }

    /// Asks a registry whether it knows who has these credentials.
    ///
    /// # Errors
    /// [`Error::Denied`] and [`Error::Registry`].
    pub async fn check_login(&self, registry: &str, username: &str, password: &str) -> Result<(), Error> {
        let reference = Reference::from_str(&format!("{registry}/login"))
            .map_err(|error| Error::Reference { text: registry.to_owned(), reason: error.to_string() })?;
        let auth = RegistryAuth::Basic(username.to_owned(), password.to_owned());
        let session =
            self.session_as(&ImageReference(reference), auth, RegistryOperation::Pull, None).await?;
        // Whoever is let in is told that there is no such repository, or that they may
        // not see it.
        match session.oci.list_tags(&session.reference.0, &RegistryAuth::Anonymous, Some(1), None).await {
            Ok(_) => Ok(()),
            Err(error) => match session.failed(error) {
                Error::Denied { reason, .. } if !reason.starts_with(UNAUTHORIZED) => Ok(()),
                Error::NoImage { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    async fn session(
        &self,
        reference: &ImageReference,
        operation: RegistryOperation,
    ) -> Result<Session, Error> {
        self.session_for(reference, None, operation, None).await
    }

    /// Who one is at a registry.
    async fn auth(&self, reference: &ImageReference) -> Result<RegistryAuth, Error> {
        let store = self.settings.credentials.clone();
        let registry = reference.registry().to_owned();
        // A helper of Docker's is a program that takes its time.
        tokio::task::spawn_blocking(move || credentials::find(store.as_ref(), &registry)).await?
    }

    async fn session_as(
        &self,
        reference: &ImageReference,
        auth: RegistryAuth,
        operation: RegistryOperation,
        is_plain: Option<bool>,
    ) -> Result<Session, Error> {
        let is_plain = is_plain.unwrap_or_else(|| self.settings.insecure || is_local(reference.registry()));
        let is_tls = !is_plain;
        let certificates = self
            .settings
            .trusted
            .iter()
            .map(|pem| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone() });
        let config = ClientConfig {
            protocol: if is_tls { ClientProtocol::Https } else { ClientProtocol::Http },
            extra_root_certificates: certificates.collect(),
            use_monolithic_push: true,
            default_token_expiration_secs: TOKEN_AGE_SECONDS,
            connect_timeout: Some(CONNECT_LIMIT),
            read_timeout: Some(READ_LIMIT),
            user_agent: concat!("wisp/", env!("CARGO_PKG_VERSION")),
            platform_resolver: None,
            ..ClientConfig::default()
        };
        let oci = OciClient::try_from(config).map_err(|error| Error::Registry {
            registry: reference.registry().to_owned(),
            reason: error.to_string(),
            is_tls,
        })?;
        let session = Session { oci, reference: reference.clone(), auth, is_tls };
        let signed_in = session.oci.auth(&reference.0, &session.auth, operation).await;
        signed_in.map_err(|error| session.failed(error))?;
        Ok(session)
    }
}

/// What registries say to whom they do not know.
const UNAUTHORIZED: &str = "it does not know who you are";

/// Whether a registry is on this machine, where nobody has certificates.
pub(crate) fn is_local(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    host == "localhost" || host.ends_with(".localhost") || host == "127.0.0.1" || host == "[::1]"
}

/// What a client does with one registry.
pub(crate) struct Session {
    oci: OciClient,
    reference: ImageReference,
    auth: RegistryAuth,
    is_tls: bool,
}

struct Fetched {
    new_bytes: u64,
    old_bytes: u64,
}

impl Session {
    async fn manifest(&self) -> Result<(Bytes, Digest), Error> {
        let accepted = [IMAGE_MANIFEST, DOCKER_MANIFEST];
        let pulled = self.oci.pull_manifest_raw(&self.reference.0, &self.auth, &accepted).await;
        let (bytes, _) = pulled.map_err(|error| self.failed(error))?;
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(Error::TooMuch { what: "a manifest", limit: MAX_MANIFEST_BYTES as u64 });
        }
        let digest = Digest::of(&bytes);
        if let Some(expected) = self.reference.0.digest().and_then(Digest::parse) {
            crate::blobs::verify(&expected, digest)?;
        }
        Ok((bytes, digest))
    }

    /// The tags of the repository, as far as there are not too many.
    pub(crate) async fn tags(&self, max_count: usize) -> Result<Vec<String>, Error> {
        let mut tags: Vec<String> = Vec::new();
        loop {
            let last = tags.last().map(String::as_str);
            let listed = self.oci.list_tags(&self.reference.0, &self.auth, Some(TAGS_PAGE_COUNT), last).await;
            let listed = listed.map_err(|error| self.failed(error))?.tags;
            // Registries that know no pages begin again.
            let count = tags.len();
            tags.extend(listed);
            let known: HashSet<String> = tags[..count].iter().cloned().collect();
            let mut position = 0;
            tags.retain(|tag| {
                position += 1;
                position <= count || !known.contains(tag)
            });
            if tags.len() == count {
                return Ok(tags);
            }
            if tags.len() > max_count {
                return Err(Error::TooMuch { what: "the number of tags", limit: max_count as u64 });
            }
        }
    }

    /// The component that an artifact consists of.
    pub(crate) async fn component(&self) -> Result<Descriptor, Error> {
        let (bytes, _) = self.manifest().await?;
        let manifest = ImageManifest::parse(&bytes)?;
        let not_one = |reason: &str| Error::NotAPackage {
            reference: self.reference.to_string(),
            reason: reason.to_owned(),
        };
        match manifest.layers.as_slice() {
            [layer] if layer.is_component() => Ok(layer.clone()),
            [_] => Err(not_one("its only layer is no component")),
            _ => Err(not_one("it has more or less than one layer")),
        }
    }

    async fn send(&self, content: &Content, digest: &Digest, size: u64) -> Result<(), Error> {
        let pieces = content.stream().map_err(|error| match error {
            Error::File { cause, .. } => OciDistributionError::IoError(cause),
            error => OciDistributionError::GenericError(Some(error.to_string())),
        });
        let sent =
            self.oci.push_blob_stream(&self.reference.0, pieces, &digest.to_string(), Some(size)).await;
        sent.map(drop).map_err(|error| self.failed(error))
    }

    /// Fetches a blob into the cache, from where an earlier pull ended.
    async fn fetch(&self, client: &Client, blob: &Descriptor, meter: &Meter<'_>) -> Result<Fetched, Error> {
        if blob.size > MAX_BLOB_BYTES {
            return Err(Error::TooMuch { what: "a blob", limit: MAX_BLOB_BYTES });
        }
        let path = client.settings.cache.join(PARTIAL).join(blob.digest.hex());
        let mut file = tokio::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .await
            .map_err(Error::file("open", &path))?;
        lock(&file, &path).await?;
        if client.blobs.info(&blob.digest).await?.is_some_and(|known| known.size == blob.size) {
            // Another process fetched it meanwhile, and its file is gone.
            return Ok(Fetched { new_bytes: 0, old_bytes: 0 });
        }
        let written = |path: &Path| Error::file("write", path);
        let mut old_bytes = file.metadata().await.map_err(Error::file("read", &path))?.len();
        if old_bytes > blob.size {
            file.set_len(0).await.map_err(written(&path))?;
            old_bytes = 0;
        }
        let digest = blob.digest.to_string();
        let mut new_bytes = 0;
        if old_bytes < blob.size {
            let offset = old_bytes;
            let answer = match offset {
                0 => self
                    .oci
                    .pull_blob_stream(&self.reference.0, digest.as_str())
                    .await
                    .map(BlobResponse::Full),
                _ => {
                    self.oci.pull_blob_stream_partial(&self.reference.0, digest.as_str(), offset, None).await
                }
            };
            let mut content = match answer.map_err(|error| self.failed(error))? {
                BlobResponse::Partial(content) => content.stream,
                BlobResponse::Full(content) => {
                    // It does not know ranges.
                    file.set_len(0).await.map_err(written(&path))?;
                    old_bytes = 0;
                    content.stream
                }
            };
            while let Some(piece) = content.next().await {
                let piece = piece.map_err(|cause| self.failed(OciDistributionError::IoError(cause)))?;
                new_bytes += piece.len() as u64;
                if old_bytes + new_bytes > blob.size {
                    return Err(Error::TooMuch { what: "a blob", limit: blob.size });
                }
                file.write_all(&piece).await.map_err(written(&path))?;
                meter.moved(piece.len() as u64);
            }
            file.flush().await.map_err(written(&path))?;
        }
        let stored = client.blobs.put(&blob.digest, blob.size, Content::File(path.clone()).stream()).await;
        if matches!(stored, Ok(_) | Err(Error::Damaged { .. })) {
            tokio::fs::remove_file(&path).await.map_err(Error::file("remove", &path))?;
        }
        stored?;
        Ok(Fetched { new_bytes, old_bytes })
    }

    /// What an error of the protocol means to people.
    fn failed(&self, error: OciDistributionError) -> Error {
        let registry = self.reference.registry().to_owned();
        let denied = |reason: &str| Error::Denied { registry: registry.clone(), reason: reason.to_owned() };
        let no_image = || Error::NoImage { reference: self.reference.to_string() };
        match error {
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_) => denied(UNAUTHORIZED),
            OciDistributionError::ImageManifestNotFoundError(_) => no_image(),
            OciDistributionError::RegistryError { envelope, .. } => {
                let first = envelope.errors.into_iter().next();
                match first.as_ref().map(|error| &error.code) {
                    Some(OciErrorCode::Unauthorized) => denied(UNAUTHORIZED),
                    Some(OciErrorCode::Denied) => denied("you may not do that"),
                    Some(
                        OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound,
                    ) => no_image(),
                    _ => {
                        let reason = first.map_or_else(String::new, |error| error.message);
                        Error::Registry { registry, reason, is_tls: false }
                    }
                }
            }
            OciDistributionError::ServerError { code: 401, .. } => denied(UNAUTHORIZED),
            OciDistributionError::ServerError { code: 403, .. } => denied("you may not do that"),
            OciDistributionError::ServerError { code: 404, .. } => no_image(),
            OciDistributionError::ServerError { code, .. } => {
                Error::Registry { registry, reason: format!("it answers with status {code}"), is_tls: false }
            }
            OciDistributionError::RequestError(error) if error.status().is_some() => {
                match error.status().map(|status| status.as_u16()) {
                    Some(401) => denied(UNAUTHORIZED),
                    Some(403) => denied("you may not do that"),
                    Some(404) => no_image(),
                    _ => Error::Registry { registry, reason: chain(&error), is_tls: false },
                }
            }
            error => Error::Registry { registry, reason: chain(&error), is_tls: self.is_tls },
        }
    }
}

/// What is in a folder, the youngest first, and how old it is.
fn by_age(folder: &Path) -> Result<Vec<(PathBuf, Duration)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let entry = entry.map_err(Error::file("read", folder))?;
        // What is gone by now is nobody's concern.
        let Ok(written) = entry.metadata().and_then(|metadata| metadata.modified()) else { continue };
        found.push((entry.path(), written.elapsed().unwrap_or_default()));
    }
    found.sort_by_key(|(_, age)| *age);
    Ok(found)
}

/// An error with its causes: the first alone says only that something failed.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// One process at a time fetches a blob; another finds it done. The lock goes with the
/// file's descriptor, so that no killed process leaves it.
pub(crate) async fn lock(file: &tokio::fs::File, path: &Path) -> Result<(), Error> {
    let file = file.try_clone().await.map_err(Error::file("open", path))?.into_std().await;
    let locked = tokio::task::spawn_blocking(move || file.lock()).await?;
    locked.map_err(Error::file("lock", path))
}

/// Counts, and says so.
struct Meter<'a> {
    total_count: usize,
    done_count: AtomicUsize,
    moved_bytes: AtomicU64,
    on_progress: OnProgress<'a>,
}

impl<'a> Meter<'a> {
    fn new(total_count: usize, on_progress: OnProgress<'a>) -> Self {
        Self { total_count, done_count: AtomicUsize::new(0), moved_bytes: AtomicU64::new(0), on_progress }
    }

    fn done(&self) {
        self.done_count.fetch_add(1, Ordering::Relaxed);
        self.report();
    }

    fn moved(&self, bytes: u64) {
        self.moved_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.report();
    }

    fn report(&self) {
        (self.on_progress)(Progress {
            done_count: self.done_count.load(Ordering::Relaxed),
            total_count: self.total_count,
            moved_bytes: self.moved_bytes.load(Ordering::Relaxed),
        });
    }
}
