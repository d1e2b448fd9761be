//! Images: from the registry's blobs to folders.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use wisp_control::names::Digest;
use wisp_image::registry::{GarbageOptions, Reference, Registry};
use wisp_manifest::App;

use crate::Error;

/// The images of the registry, as the machine sees them.
pub struct Images {
    registry: Registry,
    releases: PathBuf,
}

/// How old an unpacked image has to be before it is removed: it may be of a deploy that
/// has not made a release yet.
const UNUSED_AGE: Duration = Duration::from_secs(24 * 60 * 60);

impl Images {
    /// The images of a registry, and the folder where they are unpacked.
    pub fn new(registry: Registry, releases: PathBuf) -> Self {
        Self { registry, releases }
    }

    /// Removes folders of images that no release is made of, and what the registry calls
    /// garbage. Returns how many folders.
    pub(crate) async fn sweep(&self, in_use: HashSet<Digest>) -> Result<usize, Error> {
        self.registry.collect_garbage(GarbageOptions::default()).await?;
        let kept: HashSet<PathBuf> =
            in_use.iter().map(|digest| self.folder(digest, &self.releases)).collect();
        let releases = self.releases.clone();
        let sweeping = tokio::task::spawn_blocking(move || {
            let mut removed_count = 0;
            for entry in fs::read_dir(releases)? {
                let entry = entry?;
                let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
                if age > UNUSED_AGE && !kept.contains(&entry.path()) {
                    fs::remove_dir_all(entry.path())?;
                    removed_count += 1;
                }
            }
            Ok::<_, io::Error>(removed_count)
        });
        let swept = sweeping.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        swept.map_err(|cause| Error::DataDirectory { path: self.releases.clone(), cause })
    }

    /// Whether a repository has an image.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub(crate) async fn holds(&self, repository: &str, digest: &Digest) -> Result<bool, Error> {
        let Some(digest) = wisp_image::Digest::parse(digest.as_str()) else { return Ok(false) };
        Ok(self.registry.manifest(repository, &Reference::Digest(digest)).await?.is_some())
    }

    /// Makes a folder of an image, unless there is one.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub(crate) async fn unpack(&self, digest: &Digest, releases: &Path) -> Result<(PathBuf, App), Error> {
        let folder = self.folder(digest, releases);
        let Some(digest) = wisp_image::Digest::parse(digest.as_str()) else {
            return Err(Error::NoImage { digest: digest.to_string() });
        };
        let unpacked = wisp_image::unpack(self.registry.blobs(), &digest, &folder).await?;
        Ok((unpacked.folder, unpacked.app))
    }

    /// Where the folder of an image is, or would be.
    pub(crate) fn folder(&self, digest: &Digest, releases: &Path) -> PathBuf {
        releases.join(digest.as_str().trim_start_matches("sha256:"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{sync::Arc, time::SystemTime};

    use futures::future::BoxFuture;
    use wisp_image::{
        Blobs,
        registry::{Access, Action, Credentials, Denial, RegistryLimits, RegistrySettings},
    };

    use super::*;

    /// Nobody may do anything: nobody asks.
    struct Nobody;

    impl Access for Nobody {
        fn authenticate<'a>(&'a self, _credentials: &'a Credentials) -> BoxFuture<'a, Result<(), Denial>> {
            Box::pin(async { Err(Denial::Unknown) })
        }

        fn authorize<'a>(
            &'a self,
            _credentials: &'a Credentials,
            _repository: &'a str,
            _action: Action,
        ) -> BoxFuture<'a, Result<(), Denial>> {
            Box::pin(async { Err(Denial::Unknown) })
        }
    }

    #[tokio::test]
    async fn what_no_release_is_made_of_is_removed_once_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(
            RegistrySettings {
                blobs: Blobs::open(&folder.path().join("blobs")).unwrap(),
                database: folder.path().join("registry.db"),
                uploads: folder.path().join("uploads"),
                limits: RegistryLimits::default(),
            },
            Arc::new(Nobody),
        )
        .unwrap();
        let releases = folder.path().join("releases");
        let images = Images::new(registry, releases.clone());
        let digest = |letter: &str| Digest::new(&format!("sha256:{}", letter.repeat(64))).unwrap();
        let long_ago = SystemTime::now() - 2 * UNUSED_AGE;
        for (letter, is_old) in [("a", true), ("b", true), ("c", false)] {
            let path = images.folder(&digest(letter), &releases);
            fs::create_dir_all(&path).unwrap();
            if is_old {
                fs::File::open(&path).unwrap().set_modified(long_ago).unwrap();
            }
        }
        assert_eq!(images.sweep(HashSet::from([digest("a")])).await.unwrap(), 1);
        let is_there = |letter: &str| images.folder(&digest(letter), &releases).exists();
        assert_eq!(["a", "b", "c"].map(is_there), [true, false, true]);
    }
}
