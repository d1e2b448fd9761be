//! From an image in a store of blobs to a folder that can be served.
//!
//! ```text
//! FOLDER/spin.lock               the app, its content by paths
//! FOLDER/components/DIGEST.wasm  its components
//! FOLDER/files/COMPONENT/…       the files that a component sees
//! FOLDER/migrations/NAME.sql     the SQL migrations that the app brings
//! ```
//!
//! The folder is made under another name, synced, and renamed: it is complete or not
//! there. Nothing in an image can place a file outside of it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Component as PathComponent, Path, PathBuf};

use bytes::Bytes;
use futures::TryStreamExt as _;
use wisp_manifest::App;
use wisp_manifest::files::MAX_FILES_COUNT;
use wisp_manifest::locked::{ContentRef, LOCKED_FILE_NAME, LockedApp, LockedFile, MAX_LOCKED_BYTES};

use crate::blobs::{Blobs, verify};
use crate::format::{
    ARCHIVE, Descriptor, IMAGE_CONFIG, ImageManifest, LOCKED_APP, MAX_INLINE_BYTES, MAX_MANIFEST_BYTES,
};
use crate::pack::MIGRATIONS_KEY;
use crate::{Digest, Error, Hasher};

/// The largest archive when it is unpacked: as large as a blob may be.
const MAX_ARCHIVE_BYTES: u64 = 10 << 30;

/// What older versions of Spin say about layers of empty files, which they fill with
/// something since some registries take no empty blobs.
const EMPTY_FILE: &str = "com.fermyon.spin.application.layer.isEmpty";

const COMPONENTS: &str = "components";
const MIGRATIONS: &str = "migrations";
const FILES: &str = "files";

/// What archives held, until it is placed.
const ARCHIVED: &str = "archived";

/// An image that is a folder now.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// Where it is.
    pub folder: PathBuf,
    /// The app in it, as it is read from there.
    pub app: App,
}

/// Makes a folder of the image with this digest. If the folder is there already, it
/// is taken as it is: it should be named by the image.
///
/// # Errors
/// [`Error::NoBlob`], [`Error::Damaged`], [`Error::Manifest`], [`Error::NotAnApp`],
/// [`Error::App`], [`Error::Place`], [`Error::TooMuch`], [`Error::File`] and
/// [`Error::Store`].
pub async fn unpack(blobs: &Blobs, image: &Digest, folder: &Path) -> Result<Unpacked, Error> {
    unpack_with(blobs, image, folder, |_| Ok(())).await
}

/// The same, with something done to the folder before anybody sees it. Blocks meanwhile,
/// on a thread that may. If it fails there is no folder.
///
/// # Errors
/// As [`unpack`], and [`Error::NotAnApp`] with the reason that `finish` gives.
pub async fn unpack_with(
    blobs: &Blobs,
    image: &Digest,
    folder: &Path,
    finish: impl FnOnce(&Path) -> Result<(), String> + Send + 'static,
) -> Result<Unpacked, Error> {
    if !folder.exists() {
        let manifest = ImageManifest::parse(&blobs.read(image, MAX_MANIFEST_BYTES).await?)?;
        let parent = folder.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
        let temporary = tempfile::Builder::new()
            .prefix(".unpacking-")
            .tempdir_in(parent)
            .map_err(Error::file("create a folder in", parent))?;
        // Within it, so that the folder has the usual permissions.
        let root = temporary.path().join("app");
        fs::create_dir(&root).map_err(Error::file("create", &root))?;
        Unpacking { blobs, manifest, root: root.clone(), archived: HashMap::new() }.run().await?;
        let (folder, parent) = (folder.to_owned(), parent.to_owned());
        tokio::task::spawn_blocking(move || {
            finish(&root).map_err(|reason| Error::NotAnApp { reason })?;
            sync_all(&root)?;
            match fs::rename(&root, &folder) {
                // Somebody else was faster, with the same content.
                Err(_) if folder.exists() => return Ok(()),
                renamed => renamed.map_err(Error::file("rename to", &folder))?,
            }
            sync(&parent)
        })
        .await??;
    }
    let locked = folder.join(LOCKED_FILE_NAME);
    let app = tokio::task::spawn_blocking(move || App::read_file(&locked, None)).await??.value;
    Ok(Unpacked { folder: folder.to_owned(), app })
}

struct Unpacking<'a> {
    blobs: &'a Blobs,
    manifest: ImageManifest,
    root: PathBuf,
    /// Files that came in archives.
    archived: HashMap<Digest, PathBuf>,
}

impl Unpacking<'_> {
    async fn run(mut self) -> Result<(), Error> {
        let locked = match self.locked().await? {
            Some(locked) => {
                self.unpack_archives().await?;
                self.place(locked).await?
            }
            None => self.plain_component().await?,
        };
        let archived = self.root.join(ARCHIVED);
        if archived.exists() {
            fs::remove_dir_all(&archived).map_err(Error::file("remove", &archived))?;
        }
        let path = self.root.join(LOCKED_FILE_NAME);
        fs::write(&path, locked.to_json()).map_err(Error::file("write", &path))
    }

    /// The locked app, if the image has one.
    async fn locked(&self) -> Result<Option<LockedApp>, Error> {
        let layer = self.manifest.layers.iter().rev().find(|layer| layer.media_type == LOCKED_APP);
        let config = Some(&self.manifest.config).filter(|config| {
            // The latter is how some tools name what they do not know.
            config.media_type == LOCKED_APP || config.media_type == IMAGE_CONFIG
        });
        let Some(found) = layer.or(config) else { return Ok(None) };
        let limit = usize::try_from(MAX_LOCKED_BYTES).unwrap_or(usize::MAX);
        let json = self.blobs.read(&found.digest, limit).await?;
        if found.media_type != LOCKED_APP && !is_locked_app(&json) {
            return Ok(None);
        }
        let locked = LockedApp::parse(Path::new("the image's locked app"), &json)?;
        // Before anything is written.
        locked.check(Path::new("the image's locked app"))?;
        Ok(Some(locked))
    }

    /// Puts content where it belongs, and its paths in the place of digests.
    async fn place(&mut self, mut locked: LockedApp) -> Result<LockedApp, Error> {
        locked.metadata.remove("origin");
        if let Some(migrations) = locked.metadata.remove(MIGRATIONS_KEY) {
            self.migrations(&migrations)?;
        }
        for component in &mut locked.components {
            component.source.content = self.component(&component.source.content).await?;
            for dependency in component.dependencies.values_mut() {
                dependency.source.content = self.component(&dependency.source.content).await?;
            }
            for member in component.trigger_dependencies.values_mut().flatten() {
                member.source.content = self.component(&member.source.content).await?;
            }
            if component.files.is_empty() {
                continue;
            }
            if component.files.len() > MAX_FILES_COUNT {
                return Err(Error::TooMuch { what: "the number of files", limit: MAX_FILES_COUNT as u64 });
            }
            let relative = Path::new(FILES).join(&component.id);
            for file in &component.files {
                self.file(file, &self.root.join(&relative)).await?;
            }
            let content = ContentRef::of_path(&relative);
            component.set_files(vec![LockedFile { content, path: "/".to_owned() }]);
        }
        for dependency in
            locked.triggers.iter_mut().flat_map(|trigger| trigger.trigger_dependencies.values_mut())
        {
            for dependency in dependency {
                dependency.source.content = self.component(&dependency.source.content).await?;
            }
        }
        Ok(locked)
    }

    /// Writes SQL migrations, each to a file.
    fn migrations(&self, migrations: &serde_json::Value) -> Result<(), Error> {
        for (name, sql) in migrations.as_object().into_iter().flatten() {
            let mut parts = Path::new(name).components();
            let is_name = matches!((parts.next(), parts.next()), (Some(PathComponent::Normal(_)), None));
            let (true, Some(sql)) = (is_name && !name.contains('\0'), sql.as_str()) else {
                return Err(Error::Place { path: name.clone() });
            };
            write(&self.root.join(MIGRATIONS).join(name), sql.as_bytes())?;
        }
        Ok(())
    }

    /// Writes a component, and says where.
    async fn component(&self, content: &ContentRef) -> Result<ContentRef, Error> {
        let digest = digest_of(content)?;
        let relative = Path::new(COMPONENTS).join(format!("{}.wasm", digest.hex()));
        let path = self.root.join(&relative);
        if !path.exists() {
            match self.layer(&digest) {
                Some(layer) => self.copy(layer, &path).await?,
                None => write(&path, &inline(content, &digest)?)?,
            }
        }
        Ok(ContentRef { digest: Some(digest.to_string()), ..ContentRef::of_path(&relative) })
    }

    async fn file(&self, file: &LockedFile, folder: &Path) -> Result<(), Error> {
        let outside = || Error::Place { path: file.path.clone() };
        let inside = Path::new(file.path.trim_start_matches('/'));
        let is_inside = inside.components().all(|part| matches!(part, PathComponent::Normal(_)))
            && inside.components().next().is_some()
            && !file.path.contains('\0');
        let path = folder.join(inside);
        if !is_inside || path.exists() {
            return Err(outside());
        }
        let digest = digest_of(&file.content)?;
        if file.content.inline.is_some() {
            return write(&path, &inline(&file.content, &digest)?);
        }
        if let Some(archived) = self.archived.get(&digest) {
            make_parent(&path)?;
            fs::copy(archived, &path).map_err(Error::file("write", &path))?;
            return Ok(());
        }
        let layer = self.layer(&digest).ok_or(Error::NoBlob { digest })?;
        self.copy(layer, &path).await?;
        if layer.annotations.get(EMPTY_FILE).is_some_and(|is_empty| is_empty == "true") {
            fs::write(&path, "").map_err(Error::file("write", &path))?;
        }
        Ok(())
    }

    fn layer(&self, digest: &Digest) -> Option<&Descriptor> {
        self.manifest.layers.iter().find(|layer| layer.digest == *digest)
    }

    /// Copies a blob to a file, and verifies it on the way.
    async fn copy(&self, layer: &Descriptor, path: &Path) -> Result<(), Error> {
        use tokio::io::AsyncWriteExt as _;

        make_parent(path)?;
        let mut file = tokio::fs::File::create_new(path).await.map_err(|cause| match cause.kind() {
            io::ErrorKind::AlreadyExists => Error::Place { path: path.display().to_string() },
            _ => Error::file("create", path)(cause),
        })?;
        let mut content = self.blobs.get(&layer.digest, None).await?;
        let mut hasher = Hasher::new();
        while let Some(piece) = content.try_next().await? {
            hasher.update(&piece);
            file.write_all(&piece).await.map_err(Error::file("write", path))?;
        }
        file.flush().await.map_err(Error::file("write", path))?;
        verify(&layer.digest, hasher.finish())
    }

    /// Takes archives apart: their files are known by digest from then on.
    async fn unpack_archives(&mut self) -> Result<(), Error> {
        let archives: Vec<Descriptor> =
            self.manifest.layers.iter().filter(|layer| layer.media_type == ARCHIVE).cloned().collect();
        for layer in archives {
            let folder = self.root.join(ARCHIVED).join(layer.digest.hex());
            let archive = folder.join("archive.tar.gz");
            if archive.exists() {
                continue;
            }
            self.copy(&layer, &archive).await?;
            let found = tokio::task::spawn_blocking(move || take_apart(&archive, &folder)).await??;
            self.archived.extend(found);
        }
        Ok(())
    }

    /// An image that is nothing but a component.
    async fn plain_component(&self) -> Result<LockedApp, Error> {
        let wrong = |reason: &str| Error::NotAnApp { reason: reason.to_owned() };
        let [layer] = self.manifest.layers.as_slice() else {
            return Err(wrong("it has neither a locked app nor a single layer"));
        };
        if !layer.is_component() {
            return Err(wrong("its only layer is no component"));
        }
        let digest = layer.digest.to_string();
        let content = self.component(&ContentRef { digest: Some(digest), ..ContentRef::default() }).await?;
        let title = layer
            .annotations
            .get("org.opencontainers.image.title")
            .or_else(|| self.manifest.annotations.get("org.opencontainers.image.title"));
        let name = title.map_or("component.wasm", String::as_str);
        let mut locked = LockedApp::new(&App::for_component_file(Path::new(name)));
        for component in &mut locked.components {
            component.source.content = content.clone();
        }
        Ok(locked)
    }
}

/// Whether a configuration is a locked app.
fn is_locked_app(json: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(json)
        .is_ok_and(|value| value.get("spin_lock_version").is_some())
}

fn digest_of(content: &ContentRef) -> Result<Digest, Error> {
    let wrong = |reason: String| Error::NotAnApp { reason };
    match (&content.source, &content.digest, &content.inline) {
        // Content of an image is in the image: nothing of this machine is taken.
        (Some(source), ..) => Err(wrong(format!("it names content outside of it: `{source}`"))),
        (None, Some(digest), _) => {
            Digest::parse(digest).ok_or_else(|| wrong(format!("`{digest}` is no SHA-256 digest")))
        }
        (None, None, Some(inline)) => Ok(Digest::of(inline)),
        (None, None, None) => Err(wrong("it has content without a digest".to_owned())),
    }
}

fn inline(content: &ContentRef, digest: &Digest) -> Result<Bytes, Error> {
    let Some(bytes) = &content.inline else { return Err(Error::NoBlob { digest: *digest }) };
    // Others may draw the line elsewhere, but not a thousand times as far.
    let limit = MAX_INLINE_BYTES * 1024;
    if bytes.len() as u64 > limit {
        return Err(Error::TooMuch { what: "content in the locked app", limit });
    }
    verify(digest, Digest::of(bytes))?;
    Ok(Bytes::copy_from_slice(bytes))
}

fn take_apart(archive: &Path, folder: &Path) -> Result<HashMap<Digest, PathBuf>, Error> {
    use std::io::Read as _;

    let file = fs::File::open(archive).map_err(Error::file("open", archive))?;
    let unzipped = flate2::read::GzDecoder::new(io::BufReader::new(file)).take(MAX_ARCHIVE_BYTES);
    let mut tar = tar::Archive::new(unzipped);
    let broken = |cause: io::Error| Error::NotAnApp { reason: format!("an archive is damaged: {cause}") };
    let mut found = HashMap::new();
    for (number, entry) in tar.entries().map_err(broken)?.enumerate() {
        if number >= MAX_FILES_COUNT {
            return Err(Error::TooMuch { what: "the number of files", limit: MAX_FILES_COUNT as u64 });
        }
        let mut entry = entry.map_err(broken)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        // Named by number, whatever the archive calls it: the locked app knows better.
        let path = folder.join(number.to_string());
        let mut file = fs::File::create(&path).map_err(Error::file("create", &path))?;
        let mut hasher = Hasher::new();
        let mut piece = vec![0; 256 * 1024];
        loop {
            let read = entry.read(&mut piece).map_err(broken)?;
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
            file.write_all(&piece[..read]).map_err(Error::file("write", &path))?;
        }
        let digest = hasher.finish();
        if let Some(same) = found.insert(digest, path) {
            // Another file with the same content.
            fs::remove_file(&same).map_err(Error::file("remove", &same))?;
        }
    }
    Ok(found)
}

fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    make_parent(path)?;
    fs::write(path, content).map_err(Error::file("write", path))
}

fn make_parent(path: &Path) -> Result<(), Error> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|cause| match cause.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            Error::Place { path: path.display().to_string() }
        }
        _ => Error::file("create", parent)(cause),
    })
}

/// Makes all that is in a folder durable, and the folder itself.
fn sync_all(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let entry = entry.map_err(Error::file("read", folder))?;
        let path = entry.path();
        match entry.file_type().map_err(Error::file("read", &path))?.is_dir() {
            true => sync_all(&path)?,
            false => sync(&path)?,
        }
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<(), Error> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(Error::file("sync", path))
}
