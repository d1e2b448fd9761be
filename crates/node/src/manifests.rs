//! Manifests, and those that were read lately.
//!
//! To read and check a manifest is a twelfth of what a first response takes. Those that were
//! read last, when an app was prepared or loaded, are kept as what they mean, by the identity
//! of their file: an app that is mapped soon after that, or again after it was evicted, has
//! its file looked at but not read. How many there may be is bounded by their size: some
//! thousands, in some ten MiB.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use wisp_engine::FileIdentity;
use wisp_manifest::{App, LOCKED_FILE_NAME, MANIFEST_FILE_NAME};

use crate::{Error, HostName};

/// Text of the manifests of one generation. What they mean takes about five times as much.
const GENERATION_BYTES: u64 = 1 << 20;

/// What a manifest counts for beside its text.
const MANIFEST_COST_BYTES: u64 = 512;

/// A manifest that was read.
pub(crate) struct Manifest {
    /// Which file it was.
    pub(crate) identity: FileIdentity,
    /// Whether every later change of the file would show.
    pub(crate) is_settled: bool,
    /// What it means.
    pub(crate) app: Arc<App>,
}

/// Manifests that were read lately.
#[derive(Default)]
pub(crate) struct Manifests(Mutex<Generations>);

/// Those of late, and those before: when there are enough of the former, the latter go.
#[derive(Default)]
struct Generations {
    recent: HashMap<FileIdentity, Arc<App>>,
    recent_bytes: u64,
    older: HashMap<FileIdentity, Arc<App>>,
}

impl Manifests {
    /// The manifest in a folder, or the locked app.
    ///
    /// # Errors
    /// [`Error::Folder`] and [`Error::Manifest`].
    pub(crate) fn read(&self, host: &HostName, folder: &Path) -> Result<Manifest, Error> {
        let mut path = folder.join(MANIFEST_FILE_NAME);
        let mut identity = FileIdentity::at(&path);
        if identity.as_ref().is_err_and(|cause| cause.kind() == io::ErrorKind::NotFound) {
            // An app that was packed and unpacked.
            let locked = folder.join(LOCKED_FILE_NAME);
            if let Ok(found) = FileIdentity::at(&locked) {
                (path, identity) = (locked, Ok(found));
            }
        }
        let identity =
            identity.map_err(|cause| Error::Folder { host: host.to_string(), path: path.clone(), cause })?;
        let is_settled = identity.is_settled();
        // The same file may be in several folders, and relative paths in it mean something else.
        if is_settled && let Some(app) = self.known(&identity).filter(|app| app.file == path) {
            return Ok(Manifest { identity, is_settled, app });
        }
        let app = Arc::new(parse(host, &path)?);
        if is_settled {
            self.remember(identity, app.clone());
        }
        Ok(Manifest { identity, is_settled, app })
    }

    fn known(&self, identity: &FileIdentity) -> Option<Arc<App>> {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(app) = generations.recent.get(identity) {
            return Some(app.clone());
        }
        let app = generations.older.remove(identity)?;
        generations.insert(*identity, app.clone());
        Some(app)
    }

    fn remember(&self, identity: FileIdentity, app: Arc<App>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(identity, app);
    }
}

impl Generations {
    fn insert(&mut self, identity: FileIdentity, app: Arc<App>) {
        let cost_bytes = identity.size_bytes().saturating_add(MANIFEST_COST_BYTES);
        if cost_bytes > GENERATION_BYTES {
            return;
        }
        if self.recent_bytes.saturating_add(cost_bytes) > GENERATION_BYTES {
            self.older = std::mem::take(&mut self.recent);
            self.recent_bytes = 0;
        }
        if self.recent.insert(identity, app).is_none() {
            self.recent_bytes += cost_bytes;
        }
    }
}

fn parse(host: &HostName, path: &Path) -> Result<App, Error> {
    match App::read_file(path, None) {
        Ok(checked) => {
            for warning in checked.warnings.iter() {
                tracing::debug!(%host, code = warning.code(), "{}", warning.rule);
            }
            Ok(checked.value)
        }
        Err(problems) => {
            let first = problems.iter().next();
            Err(Error::Manifest {
                code: first.map_or("WISP-E0101", |problem| problem.code()),
                message: problems.render(false, 80).trim_end().to_owned(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{fs, time::Duration};

    use super::*;

    fn write(folder: &Path, name: &str) {
        fs::create_dir_all(folder).unwrap();
        let text = format!(
            "spin_manifest_version = 2\n[application]\nname = \"{name}\"\n\
             [[trigger.http]]\nroute = \"/...\"\ncomponent = \"app\"\n[component.app]\nsource = \"app.wasm\"\n"
        );
        fs::write(folder.join(MANIFEST_FILE_NAME), text).unwrap();
    }

    /// Reads a manifest when its file has been left alone for long enough.
    fn read(manifests: &Manifests, folder: &Path) -> Manifest {
        let host = HostName::new("a.example").unwrap();
        loop {
            let manifest = manifests.read(&host, folder).unwrap();
            if manifest.is_settled {
                return manifest;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_is_known_is_not_read_again_until_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = Manifests::default();
        write(folder.path(), "one");
        let first = read(&manifests, folder.path());
        assert!(Arc::ptr_eq(&first.app, &read(&manifests, folder.path()).app));
        write(folder.path(), "two");
        assert_eq!(&*read(&manifests, folder.path()).app.name, "two");
    }

    #[test]
    fn one_file_in_two_folders_means_two_things() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        write(&one, "name");
        fs::create_dir(&other).unwrap();
        fs::hard_link(one.join(MANIFEST_FILE_NAME), other.join(MANIFEST_FILE_NAME)).unwrap();
        let manifests = Manifests::default();
        for _ in 0..2 {
            assert_eq!(read(&manifests, &one).app.directory, one);
            assert_eq!(read(&manifests, &other).app.directory, other);
        }
    }

    #[test]
    fn what_was_not_asked_for_goes_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = Manifests::default();
        write(folder.path(), "kept");
        let kept = read(&manifests, folder.path());
        let others: Vec<_> = (0..20)
            .map(|number| {
                let file = fs::File::create(folder.path().join(number.to_string())).unwrap();
                file.set_len(GENERATION_BYTES / 5).unwrap();
                FileIdentity::of(&file).unwrap()
            })
            .collect();
        for other in &others {
            manifests.remember(*other, kept.app.clone());
            assert!(manifests.known(&kept.identity).is_some(), "asked for now and then");
        }
        assert!(manifests.known(&others[0]).is_none());
        assert!(manifests.known(&others[19]).is_some());
        let generations = manifests.0.lock().unwrap();
        assert!(generations.recent.len() + generations.older.len() <= 10);
    }
}
