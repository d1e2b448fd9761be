//! From a checked app to an image.
//!
//! Components and files become layers that are named by digest; the locked app names
//! them. Everything that could differ between two machines is left out: no times, no
//! paths, no owners; files are sorted.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use indexmap::IndexMap;
use serde_json::json;
use wisp_manifest::App;
use wisp_manifest::files::{self, FilesError};
use wisp_manifest::locked::{ContentRef, LockedApp, LockedFile, LockedSource};
use wisp_manifest::model::{Build, Component, DependencySource, Source, TriggerKind};

use crate::blobs::Blobs;
use crate::format::{
    ARCHIVE, COMPONENT, Descriptor, FILE, IMAGE_CONFIG, IMAGE_MANIFEST, ImageManifest, LOCKED_APP,
    MAX_INLINE_BYTES, MAX_LAYERS_COUNT, MAX_MANIFEST_BYTES,
};
use crate::{Digest, Error, Hasher};

/// How much of a file is read at once.
const PIECE_BYTES: usize = 256 * 1024;

/// The label that makes configurations of different apps different.
const LOCKED_APP_LABEL: &str = "com.fermyon.spin.lockedAppDigest";

/// The key of the locked app's metadata under which SQL migrations are, by file name.
pub(crate) const MIGRATIONS_KEY: &str = "wisp_migrations";

/// The most bytes of all migrations together: they are in the locked app.
const MAX_MIGRATIONS_BYTES: u64 = 4 << 20;

/// How an app is packed.
#[derive(Clone, Debug, Default)]
pub struct PackOptions {
    /// Annotations of the image, besides those that are made of the app's name,
    /// version, description and authors.
    pub annotations: BTreeMap<String, String>,
    /// Put files in archives also where the image has few layers.
    pub archives: bool,
}

/// An app that was packed: a manifest, and the blobs that it names.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest as it is sent.
    pub manifest: Bytes,
    /// What the manifest hashes to: the image's name.
    pub digest: Digest,
    /// The app in it.
    pub locked: LockedApp,
    /// The blobs, each once.
    pub layers: IndexMap<Digest, Layer>,
}

/// A blob of an image.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it is.
    pub descriptor: Descriptor,
    /// Where it is.
    pub content: Content,
}

/// Where the content of a blob is.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// In a file of the app.
    File(PathBuf),
    /// In a file that goes away with the image.
    Temporary(Arc<tempfile::TempPath>),
}

/// Makes an image of an app. Reads all of its files, so it belongs on a thread that
/// may wait.
///
/// # Errors
/// [`Error::Unpackable`], [`Error::File`] and [`Error::TooMuch`].
pub fn pack(app: &App, options: &PackOptions) -> Result<Image, Error> {
    let mut packing = Packing { app, layers: IndexMap::new(), read: HashMap::new() };
    let mut locked = LockedApp::new(app);
    let mut placed = Vec::with_capacity(app.components.len());
    for (component, locked) in app.components.values().zip(&mut locked.components) {
        locked.source = LockedSource::new(packing.source(component)?);
        for ((name, dependency), locked) in
            component.dependencies.iter().zip(locked.dependencies.values_mut())
        {
            locked.source =
                packing.part(component.id.as_str(), &format!("dependency `{name}`"), &dependency.source)?;
        }
        placed.push(packing.find_files(component)?);
    }
    for (trigger, locked) in app.triggers.iter().zip(&mut locked.triggers) {
        let TriggerKind::Http(http) = &trigger.kind else { continue };
        let placed = locked.trigger_dependencies.values_mut().flatten();
        for (middleware, locked) in http.middleware.iter().zip(placed) {
            locked.source = packing.part(trigger.id.as_str(), "middleware", &middleware.source)?;
        }
    }
    // The locked app is a layer too.
    let layers_count = packing.layers.len()
        + placed.iter().flatten().filter(|file| file.size > MAX_INLINE_BYTES).count()
        + 1;
    let archives = options.archives || layers_count > MAX_LAYERS_COUNT;
    for (files, locked) in placed.into_iter().zip(&mut locked.components) {
        locked.set_files(packing.place(files, archives)?);
    }
    if let Some(folder) = &app.wisp.migrations {
        locked.metadata.insert(MIGRATIONS_KEY.to_owned(), migrations(&app.directory.join(folder))?);
    }
    packing.finish(locked, options)
}

/// The files of SQL statements in a folder, by name.
fn migrations(folder: &Path) -> Result<serde_json::Value, Error> {
    let mut found = serde_json::Map::new();
    let mut total_bytes = 0;
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let path = entry.map_err(Error::file("read", folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.ends_with(".sql") {
            continue;
        }
        total_bytes += fs::metadata(&path).map_err(Error::file("read", &path))?.len();
        if total_bytes > MAX_MIGRATIONS_BYTES {
            return Err(Error::TooMuch {
                what: "the size of the SQL migrations",
                limit: MAX_MIGRATIONS_BYTES,
            });
        }
        let sql = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        found.insert(name.to_owned(), sql.into());
    }
    // The same image wherever it is packed.
    found.sort_keys();
    Ok(found.into())
}

impl Image {
    /// The manifest, read.
    ///
    /// # Errors
    /// [`Error::Manifest`]; not for images that were packed here.
    pub fn manifest(&self) -> Result<ImageManifest, Error> {
        ImageManifest::parse(&self.manifest)
    }

    /// The sizes of all blobs together, in bytes.
    pub fn size(&self) -> u64 {
        self.layers.values().map(|layer| layer.descriptor.size).sum()
    }

    /// Writes the blobs and the manifest to a store.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::File`], and [`Error::Damaged`] if a file changed since
    /// the app was packed.
    pub async fn put(&self, blobs: &Blobs) -> Result<(), Error> {
        for (digest, layer) in &self.layers {
            if blobs.info(digest).await?.is_none() {
                blobs.put(digest, u64::MAX, layer.content.stream()).await?;
            }
        }
        blobs.put_bytes(self.manifest.clone()).await?;
        Ok(())
    }
}

impl Content {
    /// The content, in pieces.
    pub fn stream(&self) -> BoxStream<'static, Result<Bytes, Error>> {
        let path = match self {
            Self::Bytes(bytes) => {
                let pieces: Vec<_> = (0..bytes.len())
                    .step_by(PIECE_BYTES)
                    .map(|start| Ok(bytes.slice(start..bytes.len().min(start + PIECE_BYTES))))
                    .collect();
                return stream::iter(pieces).boxed();
            }
            Self::File(path) => path.clone(),
            Self::Temporary(path) => path.to_path_buf(),
        };
        // Holds on to the file for as long as it is read.
        let keep = self.clone();
        stream::try_unfold((None, path, keep), async |(file, path, keep)| {
            use tokio::io::AsyncReadExt as _;

            let mut file = match file {
                Some(file) => file,
                None => tokio::fs::File::open(&path).await.map_err(Error::file("open", &path))?,
            };
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece).await;
            match read.map_err(Error::file("read", &path))? {
                0 => Ok(None),
                _ => Ok(Some((Bytes::from(piece), (Some(file), path, keep)))),
            }
        })
        .boxed()
    }
}

/// A file that a component sees.
struct Placed {
    inside: String,
    real: PathBuf,
    digest: Digest,
    size: u64,
}

struct Packing<'a> {
    app: &'a App,
    layers: IndexMap<Digest, Layer>,
    /// Files that were read already.
    read: HashMap<PathBuf, (Digest, u64)>,
}

impl Packing<'_> {
    fn source(&mut self, component: &Component) -> Result<ContentRef, Error> {
        match &component.source {
            Source::Path(path) => self.component_layer(component, path),
            Source::Url { .. } | Source::Registry(_) => Err(Error::Unpackable {
                component: component.id.to_string(),
                reason: "its code is not here but at a URL or in a registry".to_owned(),
                hint: Some("fetch the code and name its file as `source`".to_owned()),
            }),
        }
    }

    /// The code of a dependency or of middleware.
    fn part(&mut self, owner: &str, what: &str, source: &DependencySource) -> Result<LockedSource, Error> {
        let app = self.app;
        let not_here = || Error::Unpackable {
            component: owner.to_owned(),
            reason: format!("its {what} is not here but at a URL or in a registry"),
            hint: Some("fetch the code and name its file with `path`".to_owned()),
        };
        let content = match source {
            DependencySource::Path(path) => self.layer_of(owner, None, path)?,
            DependencySource::Component(id) => match app.components.get(id) {
                Some(other) => match &other.source {
                    Source::Path(path) => self.component_layer(other, path)?,
                    Source::Url { .. } | Source::Registry(_) => return Err(not_here()),
                },
                None => return Err(not_here()),
            },
            DependencySource::Url { .. } | DependencySource::Registry { .. } => return Err(not_here()),
        };
        Ok(LockedSource::new(content))
    }

    fn component_layer(&mut self, component: &Component, path: &Path) -> Result<ContentRef, Error> {
        self.layer_of(component.id.as_str(), component.build.as_ref(), path)
    }

    fn layer_of(&mut self, owner: &str, build: Option<&Build>, path: &Path) -> Result<ContentRef, Error> {
        let path = self.app.directory.join(path);
        let (digest, size) = self.digest_of(&path).map_err(|error| match error {
            Error::File { cause, .. } if cause.kind() == io::ErrorKind::NotFound => Error::Unpackable {
                component: owner.to_owned(),
                reason: format!("there is no file `{}`", path.display()),
                hint: match build {
                    Some(build) => Some(format!("build it first: `{}`", build.commands.join(" && "))),
                    None => Some("build it first".to_owned()),
                },
            },
            error => error,
        })?;
        self.add(COMPONENT, digest, size, Content::File(path));
        Ok(ContentRef { digest: Some(digest.to_string()), ..ContentRef::default() })
    }

    fn find_files(&mut self, component: &Component) -> Result<Vec<Placed>, Error> {
        let wrong = |reason: String| Error::Unpackable {
            component: component.id.to_string(),
            reason,
            hint: Some("check `files` of the component".to_owned()),
        };
        let found = files::find(&component.files, &component.exclude_files, &self.app.directory).map_err(
            |error| match error {
                FilesError::Missing { pattern } => wrong(format!("there is no file `{pattern}`")),
                FilesError::Outside { path } => wrong(format!("`{path}` leads out of the app's folder")),
                FilesError::Pattern { pattern, cause } => {
                    wrong(format!("`{pattern}` cannot be used: {cause}"))
                }
                FilesError::TooMany => wrong(format!("it has more than {} files", files::MAX_FILES_COUNT)),
                FilesError::Access { action, path, cause } => Error::File { action, path, cause },
            },
        )?;
        // Where two entries have the same place, the later wins.
        let mut by_place: BTreeMap<String, PathBuf> = BTreeMap::new();
        for file in found.files.into_iter().filter(|file| !file.is_directory) {
            let inside = file.inside.to_str().map(str::to_owned);
            let inside =
                inside.ok_or_else(|| wrong(format!("`{}` is not UTF-8 text", file.inside.display())))?;
            let inside = inside.strip_prefix("./").map(str::to_owned).unwrap_or(inside);
            by_place.insert(inside, file.real);
        }
        let mut placed = Vec::with_capacity(by_place.len());
        for (inside, real) in by_place {
            let (digest, size) = self.digest_of(&real)?;
            placed.push(Placed { inside, real, digest, size });
        }
        Ok(placed)
    }

    /// Makes layers of files, or an archive of all that are not small.
    fn place(&mut self, files: Vec<Placed>, archive: bool) -> Result<Vec<LockedFile>, Error> {
        let mut locked = Vec::with_capacity(files.len());
        let mut archived = Vec::new();
        for file in files {
            let mut content = ContentRef { digest: Some(file.digest.to_string()), ..ContentRef::default() };
            if file.size <= MAX_INLINE_BYTES {
                let bytes = fs::read(&file.real).map_err(Error::file("read", &file.real))?;
                crate::blobs::verify(&file.digest, Digest::of(&bytes))?;
                content.inline = Some(bytes);
            } else if archive {
                archived.push((file.inside.clone(), file.real, file.size));
            } else {
                self.add(FILE, file.digest, file.size, Content::File(file.real));
            }
            locked.push(LockedFile { content, path: file.inside });
        }
        if !archived.is_empty() {
            self.archive(&archived)?;
        }
        Ok(locked)
    }

    fn archive(&mut self, files: &[(String, PathBuf, u64)]) -> Result<(), Error> {
        let temporary =
            tempfile::NamedTempFile::new().map_err(Error::file("create a file in", &std::env::temp_dir()))?;
        let (file, path) = temporary.into_parts();
        let written = |path: &Path| Error::file("write", path);
        let gzip = flate2::write::GzEncoder::new(io::BufWriter::new(file), flate2::Compression::default());
        let mut tar = tar::Builder::new(gzip);
        for (inside, real, size) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(*size);
            header.set_mode(0o644);
            header.set_entry_type(tar::EntryType::Regular);
            let source = fs::File::open(real).map_err(Error::file("open", real))?;
            tar.append_data(&mut header, inside, source.take(*size)).map_err(Error::file("pack", real))?;
        }
        let gzip = tar.into_inner().map_err(written(&path))?;
        let mut buffered = gzip.finish().map_err(written(&path))?;
        buffered.flush().map_err(written(&path))?;
        let (digest, size) = hash(&path)?;
        self.add(ARCHIVE, digest, size, Content::Temporary(Arc::new(path)));
        Ok(())
    }

    fn digest_of(&mut self, path: &Path) -> Result<(Digest, u64), Error> {
        if let Some(known) = self.read.get(path) {
            return Ok(*known);
        }
        let found = hash(path)?;
        self.read.insert(path.to_owned(), found);
        Ok(found)
    }

    fn add(&mut self, media_type: &str, digest: Digest, size: u64, content: Content) -> Descriptor {
        let descriptor = Descriptor::new(media_type, digest, size);
        self.layers.entry(digest).or_insert(Layer { descriptor: descriptor.clone(), content });
        descriptor
    }

    fn add_bytes(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.add(media_type, digest, size, Content::Bytes(bytes.into()))
    }

    fn finish(mut self, locked: LockedApp, options: &PackOptions) -> Result<Image, Error> {
        let locked_layer = self.add_bytes(LOCKED_APP, locked.to_json());
        let layers: Vec<Descriptor> = self.layers.values().map(|layer| layer.descriptor.clone()).collect();
        // As an image for containers would have it: some tools look at all of these.
        let config = json!({
            "architecture": "wasm",
            "os": "Wasip1",
            "config": { "Labels": { LOCKED_APP_LABEL: locked_layer.digest } },
            "rootfs": { "type": "layers", "diff_ids": [] },
            "history": [],
        });
        let config = self.add_bytes(IMAGE_CONFIG, config.to_string().into_bytes());
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(IMAGE_MANIFEST.to_owned()),
            artifact_type: None,
            config,
            layers,
            annotations: annotations(self.app, &options.annotations),
        };
        let manifest =
            serde_json::to_vec(&manifest).map_err(|error| Error::Manifest { reason: error.to_string() })?;
        if manifest.len() > MAX_MANIFEST_BYTES {
            return Err(Error::TooMuch {
                what: "the manifest of the image",
                limit: MAX_MANIFEST_BYTES as u64,
            });
        }
        let digest = Digest::of(&manifest);
        Ok(Image { manifest: manifest.into(), digest, locked, layers: self.layers })
    }
}

/// What tools show of an image. No time among it: the same app is the same image.
fn annotations(app: &App, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let authors = (!app.authors.is_empty()).then(|| app.authors.join(", "));
    let known = [
        ("org.opencontainers.image.title", Some(app.name.to_string())),
        ("org.opencontainers.image.version", app.version.clone()),
        ("org.opencontainers.image.description", app.description.clone()),
        ("org.opencontainers.image.authors", authors),
    ];
    let known = known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    known.chain(given.clone()).collect()
}

fn hash(path: &Path) -> Result<(Digest, u64), Error> {
    let mut file = fs::File::open(path).map_err(Error::file("open", path))?;
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut size = 0;
    loop {
        let read = file.read(&mut piece).map_err(Error::file("read", path))?;
        if read == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(&piece[..read]);
        size += read as u64;
    }
}
