//! Code from elsewhere: what a manifest names by a URL, or as a package of a registry.
//!
//! [`Packages`] turns an app whose code is in several places into the same app with all of
//! its code on this machine: [`Packages::app`]. Whoever builds, composes, packs or serves
//! the app need not know where its code came from. It belongs to the developer's side: a
//! node fetches nothing, since what it serves was packed.
//!
//! # Life of a package
//!
//! 1. The manifest says `"docs:greet" = "^1.2"`. If `wisp.lock` says what that stands for
//!    ([`lock`]), nothing is looked for.
//! 2. Otherwise the user's settings name the registry of the namespace, which may say that
//!    its content is at another one ([`settings`]).
//! 3. The tags of the repository are its versions; the highest that fits is taken.
//! 4. Its manifest names one component by digest. Unless the cache has it, it is fetched
//!    as blobs of images are: resumed, verified, kept by content.
//! 5. Version and digest go to `wisp.lock`. Other content under the same version is
//!    refused from then on.
//!
//! A URL stands with its digest in the manifest already; its content goes the same way.

pub mod lock;
pub mod settings;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures::{StreamExt as _, stream};
use indexmap::IndexMap;
use oci_client::RegistryOperation;
use reqwest::{StatusCode, header};
use semver::{Comparator, Op, Version, VersionReq};
use url::Url;
use wisp_manifest::locate;
use wisp_manifest::model::{
    App, DependencySource, HttpTrigger, PackageName, RegistryPackage, Sha256Digest, Source, TriggerKind,
};

use self::lock::{Lock, LockedPackage};
use self::settings::{Metadata, PackageSettings};
use crate::client::{Client, ImageReference, is_local, lock as lock_file};
use crate::{Content, Digest, Error};

/// The largest component: as large as what the engine takes by default.
const MAX_PACKAGE_BYTES: u64 = 256 << 20;

/// The largest description that a registry gives of itself.
const MAX_METADATA_BYTES: u64 = 64 << 10;

/// The most versions of a package that are looked through.
const MAX_VERSIONS_COUNT: usize = 10_000;

/// Versions that a message names.
const SHOWN_VERSIONS_COUNT: usize = 5;

/// Where registries describe themselves.
const METADATA_PATH: &str = "/.well-known/wasm-pkg/registry.json";

/// Fetches code.
#[derive(Clone)]
pub struct Packages {
    client: Client,
    http: reqwest::Client,
    settings: Arc<PackageSettings>,
}

/// A package that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PackageRequest {
    /// The registry, if it is not the one of the user's settings.
    pub registry: Option<String>,
    /// Which package.
    pub package: PackageName,
    /// Which versions will do.
    pub requirement: VersionReq,
}

/// Code that an app names and that is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Elsewhere {
    /// A download.
    Url {
        /// From where.
        url: Url,
        /// What it hashes to.
        digest: Sha256Digest,
    },
    /// A package.
    Package(PackageRequest),
}

/// Code that is here now.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Where it is.
    pub path: PathBuf,
    /// What it hashes to.
    pub digest: Digest,
    /// Which version of a package it is, and of which registry.
    pub version: Option<(Version, String)>,
    /// Whether it was not in the cache.
    pub is_new: bool,
}

/// An app all of whose code is here.
#[derive(Clone, Debug)]
pub struct FetchedApp {
    /// The app.
    pub app: App,
    /// What was elsewhere.
    pub fetched: IndexMap<Elsewhere, Fetched>,
}

/// Whether some of an app's code is elsewhere.
pub fn is_needed(app: &App) -> bool {
    !named(app).is_empty()
}

impl PackageRequest {
    /// Where every version will do, but for candidates.
    pub const ANY_VERSION: VersionReq = VersionReq::STAR;

    /// For one version and no other.
    pub fn exact(registry: Option<String>, package: PackageName, version: &Version) -> Self {
        let comparator = Comparator {
            op: Op::Exact,
            major: version.major,
            minor: Some(version.minor),
            patch: Some(version.patch),
            pre: version.pre.clone(),
        };
        Self { registry, package, requirement: VersionReq { comparators: vec![comparator] } }
    }

    /// The only version that will do.
    fn only(&self) -> Option<Version> {
        match self.requirement.comparators.as_slice() {
            [Comparator { op: Op::Exact, major, minor: Some(minor), patch: Some(patch), pre }] => {
                let mut version = Version::new(*major, *minor, *patch);
                version.pre = pre.clone();
                Some(version)
            }
            _ => None,
        }
    }
}

impl Elsewhere {
    /// What a component names as its code.
    pub fn of_source(source: &Source) -> Option<Self> {
        match source {
            Source::Path(_) => None,
            Source::Url { url, digest } => Some(Self::Url { url: url.clone(), digest: *digest }),
            Source::Registry(RegistryPackage { registry, package, version }) => {
                let request = PackageRequest::exact(registry.clone(), package.clone(), version);
                Some(Self::Package(request))
            }
        }
    }

    /// What a dependency or middleware is.
    pub fn of_dependency(source: &DependencySource) -> Option<Self> {
        match source {
            DependencySource::Path(_) | DependencySource::Component(_) => None,
            DependencySource::Url { url, digest } => Some(Self::Url { url: url.clone(), digest: *digest }),
            DependencySource::Registry { registry, package, version } => {
                Some(Self::Package(PackageRequest {
                    registry: registry.clone(),
                    package: package.clone(),
                    requirement: version.clone(),
                }))
            }
        }
    }
}

impl std::fmt::Display for Elsewhere {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url { url, .. } => write!(formatter, "`{url}`"),
            Self::Package(request) => write!(formatter, "`{}` {}", request.package, request.requirement),
        }
    }
}

impl Packages {
    /// Fetches with this client's cache and credentials.
    ///
    /// # Errors
    /// [`Error::Registry`] if there can be no client for HTTP.
    pub fn new(client: Client, settings: PackageSettings) -> Result<Self, Error> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(crate::client::CONNECT_LIMIT)
            .read_timeout(crate::client::READ_LIMIT)
            .user_agent(concat!("wisp/", env!("CARGO_PKG_VERSION")));
        let trusted = client.trusted().iter().filter_map(|pem| reqwest::Certificate::from_pem(pem).ok());
        builder = builder.tls_certs_merge(trusted);
        let http = builder.build().map_err(|error| Error::Registry {
            registry: "HTTP".to_owned(),
            reason: error.to_string(),
            is_tls: false,
        })?;
        Ok(Self { client, http, settings: Arc::new(settings) })
    }

    /// The same app with all of its code on this machine.
    ///
    /// # Errors
    /// Everything that cannot be had, each as [`Error::Elsewhere`] with its line.
    pub async fn app(&self, app: &App, lock: &Lock) -> Result<FetchedApp, Vec<Error>> {
        let named = named(app);
        let asked = stream::iter(named)
            .map(async |(elsewhere, place)| (self.fetch(&elsewhere, lock).await, elsewhere, place));
        let answers: Vec<_> = asked.buffered(crate::client::MAX_PARALLEL_COUNT).collect().await;
        let (mut fetched, mut errors) = (IndexMap::new(), Vec::new());
        for (answer, elsewhere, place) in answers {
            match answer {
                Ok(found) => drop(fetched.insert(elsewhere, found)),
                Err(cause) => errors.push(Error::Elsewhere {
                    place: place.line(app),
                    what: place.what,
                    cause: Box::new(cause),
                }),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let keep: HashSet<Digest> = fetched.values().map(|found| found.digest).collect();
        self.client.make_room(&keep).await.map_err(|error| vec![error])?;
        Ok(FetchedApp { app: replaced(app, &fetched), fetched })
    }

    async fn fetch(&self, elsewhere: &Elsewhere, lock: &Lock) -> Result<Fetched, Error> {
        match elsewhere {
            Elsewhere::Url { url, digest } => {
                let digest = Digest::from(digest.0);
                let (path, is_new) = match self.client.cached(&digest).await? {
                    Some(path) => (path, false),
                    None => (self.download(url, &digest).await?, true),
                };
                Ok(Fetched { path, digest, version: None, is_new })
            }
            Elsewhere::Package(request) => self.package(request, lock).await,
        }
    }

    /// A package, as the lock says, or in the highest version that will do.
    ///
    /// # Errors
    /// [`Error::NoRegistry`], [`Error::NoVersion`], [`Error::OtherContent`],
    /// [`Error::NotAPackage`], and as [`Client::pull`].
    pub async fn package(&self, request: &PackageRequest, lock: &Lock) -> Result<Fetched, Error> {
        let locked = lock.package(request);
        if let Some(locked) = &locked
            && let Some(path) = self.client.cached(&locked.digest).await?
        {
            let version = Some((locked.version.clone(), locked.registry.clone()));
            return Ok(Fetched { path, digest: locked.digest, version, is_new: false });
        }
        let registry = match locked.as_ref().map(|locked| &locked.registry).or(request.registry.as_ref()) {
            Some(registry) => registry.clone(),
            None => {
                let known = self.settings.registry_of(&request.package);
                let unknown = || Error::NoRegistry { package: request.package.to_string() };
                known.ok_or_else(unknown)?.to_owned()
            }
        };
        let metadata = match self.settings.metadata(&request.package, &registry) {
            Some(metadata) => metadata.clone(),
            None => self.metadata(&registry).await?,
        };
        let repository = self.settings.repository(&request.package, &registry, &metadata)?;
        let image: ImageReference = repository.name.parse()?;
        let auth = repository.auth;
        let is_plain = repository.is_plain;
        let version = match (&locked, request.only()) {
            (Some(locked), _) => locked.version.clone(),
            (None, Some(version)) => version,
            (None, None) => {
                let session =
                    self.client.session_for(&image, auth.clone(), RegistryOperation::Pull, is_plain).await?;
                let mut versions: Vec<Version> = Vec::new();
                for tag in session.tags(MAX_VERSIONS_COUNT).await? {
                    // A tag has no `+`.
                    versions.extend(Version::parse(&tag.replace('_', "+")));
                }
                versions.sort();
                let fits = versions.iter().rev().find(|version| request.requirement.matches(version));
                fits.cloned().ok_or_else(|| Error::NoVersion {
                    package: request.package.to_string(),
                    requirement: request.requirement.to_string(),
                    registry: registry.clone(),
                    found: versions
                        .iter()
                        .rev()
                        .take(SHOWN_VERSIONS_COUNT)
                        .map(ToString::to_string)
                        .collect(),
                })?
            }
        };
        let image: ImageReference =
            format!("{}:{}", repository.name, version.to_string().replace('+', "_")).parse()?;
        let session = self.client.session_for(&image, auth, RegistryOperation::Pull, is_plain).await?;
        let layer = session.component().await?;
        if let Some(locked) = &locked
            && locked.digest != layer.digest
        {
            return Err(Error::OtherContent {
                what: format!("`{}` {version} in `{registry}`", request.package),
                expected: locked.digest,
                found: layer.digest,
                place: lock::LOCK_FILE_NAME,
            });
        }
        if layer.size > MAX_PACKAGE_BYTES {
            return Err(Error::TooMuch { what: "a component", limit: MAX_PACKAGE_BYTES });
        }
        let (path, is_new) = match self.client.cached(&layer.digest).await? {
            Some(path) => (path, false),
            None => (self.client.fetched(&session, &layer).await?, true),
        };
        if locked.is_none() {
            lock.add_package(LockedPackage {
                name: request.package.to_string(),
                registry: registry.clone(),
                requirement: request.requirement.to_string(),
                version: version.clone(),
                digest: layer.digest,
            });
        }
        Ok(Fetched { path, digest: layer.digest, version: Some((version, registry)), is_new })
    }

    /// What a registry says of itself. Those that say nothing are what they seem.
    async fn metadata(&self, registry: &str) -> Result<Metadata, Error> {
        let is_plain = self.settings.is_plain(registry).unwrap_or_else(|| is_local(registry));
        let wrong =
            |reason: String| Error::Registry { registry: registry.to_owned(), reason, is_tls: !is_plain };
        let scheme = if is_plain { "http" } else { "https" };
        let url = Url::parse(&format!("{scheme}://{registry}{METADATA_PATH}"))
            .ok()
            // A name with a path or a password in it is none.
            .filter(|url| url.path() == METADATA_PATH && url.username().is_empty() && url.query().is_none())
            .ok_or_else(|| wrong("that is no name of a host".to_owned()))?;
        let answer = self.http.get(url).send().await.map_err(|error| wrong(crate::client::chain(&error)))?;
        if answer.status() != StatusCode::OK {
            return Ok(Metadata::default());
        }
        let json = limited(answer, MAX_METADATA_BYTES).await.map_err(wrong)?;
        Ok(serde_json::from_slice(&json).unwrap_or_else(|error| {
            // Some hosts answer everything with a page.
            tracing::debug!("`{registry}` does not describe itself as a registry of packages: {error}");
            Metadata::default()
        }))
    }

    /// The definition of a target, as the lock says that it was.
    ///
    /// # Errors
    /// [`Error::Download`], [`Error::OtherContent`].
    pub async fn definition(&self, url: &Url, lock: &Lock, max_bytes: u64) -> Result<Vec<u8>, Error> {
        let locked = lock.target(url);
        if let Some(digest) = &locked
            && self.client.cached(digest).await?.is_some()
        {
            let limit = usize::try_from(max_bytes).unwrap_or(usize::MAX);
            return Ok(self.client.blobs().read(digest, limit).await?.to_vec());
        }
        let wrong = |reason: String| Error::Download { url: url.clone(), reason };
        let answer =
            self.http.get(url.clone()).send().await.map_err(|error| wrong(crate::client::chain(&error)))?;
        if answer.status() != StatusCode::OK {
            return Err(wrong(format!("the answer has status {}", answer.status().as_u16())));
        }
        let content = limited(answer, max_bytes).await.map_err(wrong)?;
        let found = Digest::of(&content);
        match locked {
            Some(expected) if expected != found => {
                let what = format!("`{url}`");
                return Err(Error::OtherContent { what, expected, found, place: lock::LOCK_FILE_NAME });
            }
            _ => {}
        }
        self.client.blobs().put_bytes(content.clone().into()).await?;
        lock.add_target(url, found);
        Ok(content)
    }

    /// What is at a URL, if it is what its digest says.
    async fn download(&self, url: &Url, digest: &Digest) -> Result<PathBuf, Error> {
        let partial = self.client.partial(digest);
        let mut file = tokio::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&partial)
            .await
            .map_err(Error::file("open", &partial))?;
        lock_file(&file, &partial).await?;
        if let Some(path) = self.client.cached(digest).await? {
            // Another process fetched it meanwhile, and its file is gone.
            return Ok(path);
        }
        let mut had_bytes = file.metadata().await.map_err(Error::file("read", &partial))?.len();
        loop {
            self.download_into(url, &mut file, &partial).await?;
            let content = Content::File(partial.clone()).stream();
            let stored = self.client.blobs().put(digest, MAX_PACKAGE_BYTES, content).await;
            match stored {
                // What was there before was perhaps of something else.
                Err(Error::Damaged { .. }) if had_bytes > 0 => {
                    file.set_len(0).await.map_err(Error::file("write", &partial))?;
                    had_bytes = 0;
                    continue;
                }
                Ok(_) | Err(Error::Damaged { .. }) => {
                    let removed = tokio::fs::remove_file(&partial).await;
                    removed.map_err(Error::file("remove", &partial))?;
                }
                Err(_) => {}
            }
            return match stored {
                Err(Error::Damaged { expected, found }) => {
                    let what = format!("`{url}`");
                    Err(Error::OtherContent { what, expected, found, place: "manifest" })
                }
                Err(error) => Err(error),
                Ok(_) => Ok(self.client.blobs().path(digest)),
            };
        }
    }

    /// Adds what a file lacks of what is at a URL.
    async fn download_into(
        &self,
        url: &Url,
        file: &mut tokio::fs::File,
        path: &std::path::Path,
    ) -> Result<(), Error> {
        use tokio::io::AsyncWriteExt as _;

        let wrong = |reason: String| Error::Download { url: url.clone(), reason };
        let mut size = file.metadata().await.map_err(Error::file("read", path))?.len();
        let mut request = self.http.get(url.clone());
        if size > 0 {
            request = request.header(header::RANGE, format!("bytes={size}-"));
        }
        let mut answer = request.send().await.map_err(|error| wrong(crate::client::chain(&error)))?;
        let continues = |answer: &reqwest::Response| {
            let range = answer.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
            range.is_some_and(|range| range.starts_with(&format!("bytes {size}-")))
        };
        match answer.status() {
            StatusCode::PARTIAL_CONTENT if continues(&answer) => {}
            // All of it is there, or more.
            StatusCode::RANGE_NOT_SATISFIABLE if size > 0 => return Ok(()),
            StatusCode::OK => {
                file.set_len(0).await.map_err(Error::file("write", path))?;
                size = 0;
            }
            status => return Err(wrong(format!("the answer has status {}", status.as_u16()))),
        }
        while let Some(piece) = answer.chunk().await.map_err(|error| wrong(crate::client::chain(&error)))? {
            size += piece.len() as u64;
            if size > MAX_PACKAGE_BYTES {
                file.set_len(0).await.map_err(Error::file("write", path))?;
                return Err(Error::TooMuch { what: "a component", limit: MAX_PACKAGE_BYTES });
            }
            file.write_all(&piece).await.map_err(Error::file("write", path))?;
        }
        file.flush().await.map_err(Error::file("write", path))
    }
}

/// All of an answer, unless it is too large.
async fn limited(mut answer: reqwest::Response, max_bytes: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| crate::client::chain(&error))? {
        if (bytes.len() + piece.len()) as u64 > max_bytes {
            return Err(format!("the answer has more than {} KiB", max_bytes >> 10));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Where an app names something first.
struct Place {
    what: String,
    part: Part,
}

enum Part {
    Component(String),
    Dependency {
        component: String,
        name: String,
    },
    /// By numbers of HTTP triggers and of the layers of one.
    Middleware {
        trigger: usize,
        position: usize,
    },
}

impl Place {
    /// `spin.toml:12: `, if the line is found.
    fn line(&self, app: &App) -> String {
        let found = std::fs::read_to_string(&app.file).ok().and_then(|text| match &self.part {
            Part::Component(id) => locate::component(&text, id),
            Part::Dependency { component, name } => locate::dependency(&text, component, name),
            Part::Middleware { trigger, position } => locate::middleware(&text, *trigger, *position),
        });
        let name = app.file.file_name().unwrap_or_default().to_string_lossy();
        found.map_or_else(String::new, |line| format!("{name}:{line}: "))
    }
}

fn http_triggers(app: &App) -> impl Iterator<Item = &HttpTrigger> {
    app.http_triggers().map(|(_, http)| http)
}

/// What an app names of what is elsewhere, each once.
fn named(app: &App) -> IndexMap<Elsewhere, Place> {
    let mut named = IndexMap::new();
    let mut add = |elsewhere: Option<Elsewhere>, what: String, part: Part| {
        if let Some(elsewhere) = elsewhere {
            named.entry(elsewhere).or_insert(Place { what, part });
        }
    };
    for component in app.components.values() {
        let id = component.id.to_string();
        let elsewhere = Elsewhere::of_source(&component.source);
        add(elsewhere, format!("component `{id}`"), Part::Component(id.clone()));
        for (name, dependency) in &component.dependencies {
            let part = Part::Dependency { component: id.clone(), name: name.to_string() };
            add(Elsewhere::of_dependency(&dependency.source), format!("the dependency `{name}`"), part);
        }
    }
    for (trigger, http) in http_triggers(app).enumerate() {
        for (position, middleware) in http.middleware.iter().enumerate() {
            let part = Part::Middleware { trigger, position };
            add(Elsewhere::of_dependency(&middleware.source), "the middleware".to_owned(), part);
        }
    }
    named
}

/// An app that names files where it named what was fetched.
fn replaced(app: &App, fetched: &IndexMap<Elsewhere, Fetched>) -> App {
    let path = |elsewhere: Option<Elsewhere>| Some(fetched.get(&elsewhere?)?.path.clone());
    let mut app = app.clone();
    for component in app.components.values_mut() {
        if let Some(path) = path(Elsewhere::of_source(&component.source)) {
            component.source = Source::Path(path);
        }
        for dependency in component.dependencies.values_mut() {
            if let Some(path) = path(Elsewhere::of_dependency(&dependency.source)) {
                dependency.source = DependencySource::Path(path);
            }
        }
    }
    for trigger in &mut app.triggers {
        let TriggerKind::Http(http) = &mut trigger.kind else { continue };
        for middleware in &mut http.middleware {
            if let Some(path) = path(Elsewhere::of_dependency(&middleware.source)) {
                middleware.source = DependencySource::Path(path);
            }
        }
    }
    app
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use super::*;

    #[test]
    fn one_version_needs_no_list() {
        let package = PackageName { namespace: "a".into(), name: "b".into() };
        let version: Version = "1.2.3-rc.1".parse().unwrap();
        let exact = PackageRequest::exact(None, package.clone(), &version);
        assert_eq!(exact.only(), Some(version.clone()));
        assert!(exact.requirement.matches(&version));
        for (text, only) in [("=1.2.3", true), ("=1.2", false), ("1.2.3", false), (">=1, <2", false)] {
            let requirement = text.parse().unwrap();
            let request = PackageRequest { registry: None, package: package.clone(), requirement };
            assert_eq!(request.only().is_some(), only, "{text}");
        }
    }
}
