//! Images: from the registry's blobs to folders.

use std::path::{Path, PathBuf};

use wisp_control::names::Digest;
use wisp_image::registry::{Reference, Registry};
use wisp_manifest::App;

use crate::Error;

/// The images of the registry, as the machine sees them.
pub struct Images {
    registry: Registry,
}

impl Images {
    /// The images of a registry.
    pub fn new(registry: Registry) -> Self {
        Self { registry }
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
