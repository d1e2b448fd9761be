//! What nobody needs any more: images of releases that are gone, and what was made of them.
//!
//! Three places have some: the registry (manifests, blobs, uploads), `releases/` (unpacked
//! images) and `images/` (native code). The control plane says which images are needed; all
//! else goes once it is old. What is about to be needed is young: a push touches what it
//! finds in the registry, a deploy touches what it finds unpacked and compiled ([`InUse`]), and
//! between such a touch and a release that counts there is less than a day.
//!
//! A folder is renamed before it is removed, a file is removed in one step: nobody sees half of
//! either. What is mapped stays mapped.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use wisp_control::{
    Kept,
    model::{GarbageItem, GarbageKind},
};
use wisp_engine::{Digest, Engine, ImageStore};
use wisp_image::registry::GarbageOptions;

use crate::{Compiler, DataDirectory, Error, Machine, images::Images};

/// How long nobody must have used something before it is garbage: longer than anybody thinks
/// about a plan before agreeing to it.
const UNUSED_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// How old what is used may look. Each touch changes the file's identity, and an image whose
/// identity is another is verified again.
const TOUCHED_AGE: Duration = Duration::from_secs(12 * 60 * 60);

/// Keeps what is about to be used from being removed.
#[derive(Clone, Default)]
pub(crate) struct InUse(Arc<RwLock<()>>);

/// The components that images are made of, as far as they were looked at: what an image is
/// made of never changes.
#[derive(Default)]
pub(crate) struct KnownSources(Mutex<HashMap<PathBuf, Arc<[Digest]>>>);

/// What there is to clean up.
pub(crate) struct Places<'machine> {
    pub(crate) directory: &'machine DataDirectory,
    pub(crate) images: &'machine Images,
    pub(crate) compiler: &'machine Arc<Compiler>,
    pub(crate) engine: &'machine Engine,
    pub(crate) in_use: &'machine InUse,
    pub(crate) sources: &'machine Arc<KnownSources>,
}

/// What may be removed from a folder.
struct Candidate {
    path: PathBuf,
    bytes: u64,
}

impl InUse {
    /// Notes that a file or folder is used from now on, if it is there.
    pub(crate) fn touch(&self, path: &Path) -> io::Result<()> {
        let _held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        match is_older(&file.metadata()?, TOUCHED_AGE) {
            true => file.set_modified(SystemTime::now()),
            false => Ok(()),
        }
    }

    /// Takes something away that nobody has used for long enough; false if somebody has.
    fn remove(&self, path: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<bool> {
        let _alone = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_unused = match fs::symlink_metadata(path) {
            Ok(metadata) => is_older(&metadata, UNUSED_AGE),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if is_unused {
            remove(path)?;
        }
        Ok(is_unused)
    }
}

impl Places<'_> {
    /// Finds what is not needed, and removes it unless that is only asked for.
    pub(crate) async fn clean(&self, kept: &Kept, is_only_asked: bool) -> Result<Vec<GarbageItem>, Error> {
        let mut items = self.clean_registry(kept, is_only_asked).await?;
        let releases = self.directory.releases();
        let folders: HashSet<PathBuf> =
            kept.images.iter().map(|(_, digest)| self.images.folder(digest, &releases)).collect();
        let mut sources = HashSet::new();
        for (_, image) in &kept.images {
            if !self.images.folder(image, &releases).exists() {
                // Its components are among its layers; native code of what is there still serves.
                sources.extend(self.images.layers(image).await?);
            }
        }
        let (known, engine, compiler) = (self.sources.clone(), self.engine.clone(), self.compiler.clone());
        let (directory, in_use) = (self.directory.clone(), self.in_use.clone());
        let found = tokio::task::spawn_blocking(move || {
            known.keep(&folders);
            for folder in &folders {
                sources.extend(known.of(folder, &compiler)?.iter().copied());
            }
            let images: HashSet<PathBuf> =
                sources.iter().flat_map(|source| compiler.paths(source, &engine)).collect();
            let mut items = clean_folder(
                GarbageKind::Unpacked,
                &directory.releases(),
                |path| !folders.contains(path),
                |path| in_use_or(is_only_asked, &in_use, path, |path| remove_folder(path, &directory)),
            )?;
            let take = |path: &Path| in_use_or(is_only_asked, &in_use, path, |path| fs::remove_file(path));
            let removed = clean_folder(
                GarbageKind::Compiled,
                &directory.images(),
                |path| !images.contains(path) && is_image(path) && !ImageStore::is_shared_code(path),
                take,
            )?;
            // Code stays as long as any image that stays refers to it.
            let codes = codes_of_others(&directory.images(), &removed, &compiler)?;
            items.extend(removed);
            items.extend(clean_folder(
                GarbageKind::Compiled,
                &directory.images(),
                |path| ImageStore::is_shared_code(path) && !codes.contains(path),
                take,
            )?);
            Ok::<_, Error>(items)
        });
        let failed = |error| Error::DataDirectory {
            path: self.directory.path().to_owned(),
            cause: io::Error::other(error),
        };
        items.extend(found.await.map_err(failed)??);
        Ok(items)
    }

    async fn clean_registry(&self, kept: &Kept, is_only_asked: bool) -> Result<Vec<GarbageItem>, Error> {
        let manifest = |(repository, digest): &(wisp_control::Repository, wisp_control::names::Digest)| {
            Some((repository.to_string(), wisp_image::Digest::parse(digest.as_str())?))
        };
        let options = GarbageOptions {
            dry_run: is_only_asked,
            untagged_age: Some(UNUSED_AGE),
            kept: Arc::new(kept.images.iter().filter_map(manifest).collect()),
            owners: Some(Arc::new(kept.teams.iter().map(ToString::to_string).collect())),
            ..GarbageOptions::default()
        };
        let report = self.images.collect_garbage(options).await?;
        let item = |kind, name: String, bytes| GarbageItem { kind, name, bytes };
        let mut items: Vec<GarbageItem> = report
            .repositories
            .into_iter()
            .map(|repository| item(GarbageKind::Repository, repository, 0))
            .collect();
        items.extend(
            report
                .manifests
                .into_iter()
                .map(|(repository, digest)| item(GarbageKind::Manifest, format!("{repository} {digest}"), 0)),
        );
        items.extend(
            report
                .content
                .into_iter()
                .map(|(digest, bytes)| item(GarbageKind::Blob, digest.to_string(), bytes)),
        );
        let uploads = (0..report.uploads_count).map(|number| format!("upload {}", number + 1));
        items.extend(uploads.map(|name| item(GarbageKind::Upload, name, 0)));
        Ok(items)
    }
}

impl KnownSources {
    /// Forgets all folders but these.
    fn keep(&self, folders: &HashSet<PathBuf>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|folder, _| folders.contains(folder));
    }

    /// The digests of what is compiled of an unpacked image; nothing if it is not there.
    fn of(&self, folder: &Path, compiler: &Compiler) -> Result<Arc<[Digest]>, Error> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(folder).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        if !folder.exists() {
            return Ok(Arc::default());
        }
        let found = Machine::sources_in(folder)
            .and_then(|paths| paths.iter().map(|path| compiler.digest_of(path)).collect::<Result<_, _>>());
        let digests: Arc<[Digest]> = match found {
            Ok(digests) => digests,
            Err(error) => {
                // Its native code may go: it is made again when it is wanted.
                tracing::warn!(folder = %folder.display(), code = error.code(), "{error}");
                return Ok(Arc::default());
            }
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(folder.to_owned(), digests.clone());
        Ok(digests)
    }
}

/// Looks at what is in a folder. `take` removes it and says whether it did.
fn clean_folder(
    kind: GarbageKind,
    folder: &Path,
    is_garbage: impl Fn(&Path) -> bool,
    take: impl Fn(&Path) -> io::Result<bool>,
) -> Result<Vec<GarbageItem>, Error> {
    let failed = |cause| Error::DataDirectory { path: folder.to_owned(), cause };
    let mut candidates = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_old = fs::symlink_metadata(&path).is_ok_and(|metadata| is_older(&metadata, UNUSED_AGE));
        if is_old && is_garbage(&path) {
            let bytes = size_bytes(&path).map_err(failed)?;
            candidates.push(Candidate { path, bytes });
        }
    }
    let mut items = Vec::new();
    for Candidate { path, bytes } in candidates {
        if take(&path).map_err(failed)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            items.push(GarbageItem { kind, name, bytes });
        }
    }
    Ok(items)
}

/// The code that images in a folder refer to, except those that were or would be removed.
fn codes_of_others(
    folder: &Path,
    removed: &[GarbageItem],
    compiler: &Compiler,
) -> Result<HashSet<PathBuf>, Error> {
    let failed = |cause| Error::DataDirectory { path: folder.to_owned(), cause };
    let removed: HashSet<&str> = removed.iter().map(|item| item.name.as_str()).collect();
    let mut codes = HashSet::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_image(&path) && !ImageStore::is_shared_code(&path) && !removed.contains(name.as_ref()) {
            codes.extend(compiler.code_path_of(&path));
        }
    }
    Ok(codes)
}

fn in_use_or(
    is_only_asked: bool,
    in_use: &InUse,
    path: &Path,
    remove: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<bool> {
    if is_only_asked { Ok(true) } else { in_use.remove(path, remove) }
}

/// Removes a folder so that nobody sees half of it.
fn remove_folder(path: &Path, directory: &DataDirectory) -> io::Result<()> {
    let away = tempfile::Builder::new().prefix("garbage-").tempdir_in(directory.scratch())?;
    fs::rename(path, away.path().join("folder"))?;
    away.close()
}

/// Whether a file in the folder of images is one, or half of one; not the list of sources.
fn is_image(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".cwasm") || name.starts_with(".writing-")
}

fn is_older(metadata: &fs::Metadata, age: Duration) -> bool {
    // What is of the future is young.
    metadata.modified().is_ok_and(|modified| modified.elapsed().is_ok_and(|elapsed| elapsed > age))
}

/// The size of a file, or of all files below a folder.
fn size_bytes(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    fs::read_dir(path)?.map(|entry| size_bytes(&entry?.path())).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn make_old(path: &Path) {
        fs::File::open(path).unwrap().set_modified(SystemTime::now() - 2 * UNUSED_AGE).unwrap();
    }

    #[test]
    fn what_was_touched_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let directory = DataDirectory::open(&folder.path().join("data")).unwrap();
        let in_use = InUse::default();
        for name in ["a", "b", "c"] {
            let path = directory.releases().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "content").unwrap();
            make_old(&path);
        }
        in_use.touch(&directory.releases().join("b")).unwrap();
        in_use.touch(&directory.releases().join("nowhere")).unwrap();
        let clean = |is_only_asked| {
            let items = clean_folder(
                GarbageKind::Unpacked,
                &directory.releases(),
                |path| !path.ends_with("c"),
                |path| in_use_or(is_only_asked, &in_use, path, |path| remove_folder(path, &directory)),
            );
            items.unwrap().into_iter().map(|item| (item.name, item.bytes)).collect::<Vec<_>>()
        };
        let expected = [("a".to_owned(), 7)];
        assert_eq!(clean(true), expected);
        assert!(directory.releases().join("a").exists(), "it was only asked");
        assert_eq!(clean(false), expected);
        assert_eq!(clean(false), []);
        let left = fs::read_dir(directory.releases()).unwrap().count();
        assert_eq!((left, fs::read_dir(directory.scratch()).unwrap().count()), (2, 0));
        // Touched after it was found, before it would have been removed.
        make_old(&directory.releases().join("b"));
        let found = directory.releases().join("b");
        in_use.touch(&found).unwrap();
        assert!(!in_use.remove(&found, |_| unreachable!()).unwrap());
    }
}
