//! Images: from the registry's blobs to folders.

use std::path::{Path, PathBuf};

use wisp_control::names::Digest;
use wisp_engine::Digest as SourceDigest;
use wisp_image::{
    format::{ImageManifest, MAX_MANIFEST_BYTES},
    registry::{GarbageOptions, GarbageReport, Reference, Registry},
};
use wisp_manifest::App;

use crate::{Error, garbage::InUse};

/// The images of the registry, as the machine sees them.
pub(crate) struct Images {
    registry: Registry,
    in_use: InUse,
}

impl Images {
    /// The images of a registry.
    pub(crate) fn new(registry: Registry, in_use: InUse) -> Self {
        Self { registry, in_use }
    }

    /// Removes what the registry calls garbage.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub(crate) async fn collect_garbage(&self, options: GarbageOptions) -> Result<GarbageReport, Error> {
        Ok(self.registry.collect_garbage(options).await?)
    }

    /// Removes all that a team has pushed.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub(crate) async fn forget_team(&self, team: &str) -> Result<(), Error> {
        Ok(self.registry.delete_repositories(team).await?)
    }

    /// The layers of an image, among them its components; nothing if the image is not there.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub(crate) async fn layers(&self, digest: &Digest) -> Result<Vec<SourceDigest>, Error> {
        let Some(digest) = wisp_image::Digest::parse(digest.as_str()) else { return Ok(Vec::new()) };
        let bytes = match self.registry.blobs().read(&digest, MAX_MANIFEST_BYTES).await {
            Ok(bytes) => bytes,
            Err(wisp_image::Error::NoBlob { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let layers = ImageManifest::parse(&bytes)?.layers;
        Ok(layers.iter().filter_map(|layer| SourceDigest::parse(layer.digest.hex().as_ref())).collect())
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
        let failed = |cause| Error::DataDirectory { path: folder.clone(), cause };
        self.in_use.touch(&folder).map_err(failed)?;
        let Some(digest) = wisp_image::Digest::parse(digest.as_str()) else {
            return Err(Error::NoImage { digest: digest.to_string() });
        };
        // Images are compiled file by file: what is to be composed is composed before.
        let compose = wisp_node::composition::compose_folder;
        let unpacked = wisp_image::unpack_with(self.registry.blobs(), &digest, &folder, compose).await?;
        Ok((unpacked.folder, unpacked.app))
    }

    /// Where the folder of an image is, or would be.
    pub(crate) fn folder(&self, digest: &Digest, releases: &Path) -> PathBuf {
        releases.join(digest.as_str().trim_start_matches("sha256:"))
    }
}
