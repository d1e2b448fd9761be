//! The JSON of images: manifests and descriptors, as far as Wisp looks at them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Error};

/// A locked app. Spin writes it as a layer; older versions wrote it as the
/// configuration, which is read all the same.
pub const LOCKED_APP: &str = "application/vnd.fermyon.spin.application.v1+config";

/// A component.
pub const COMPONENT: &str = "application/vnd.wasm.content.layer.v1+wasm";

/// A component as other tools push it.
pub const PLAIN_COMPONENT: &str = "application/wasm";

/// A file.
pub const FILE: &str = "application/vnd.wasm.content.layer.v1+data";

/// Many files.
pub const ARCHIVE: &str = "application/vnd.wasm.content.bundle.v1.tar+gzip";

/// The manifest of an image.
pub const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A list of manifests.
pub const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The manifest of an image as Docker writes it.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A list of manifests as Docker writes it.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The configuration of an image.
pub const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The largest manifest: what the specification says that registries take.
pub const MAX_MANIFEST_BYTES: usize = 4 * 1024 * 1024;

/// The most layers of an image that is packed, the locked app included: what
/// well-known registries take.
pub const MAX_LAYERS_COUNT: usize = 500;

/// Content of this size is in the locked app itself, since some registries take no
/// blobs of a few bytes, and a request for each costs more than it is worth.
pub const MAX_INLINE_BYTES: u64 = 128;

/// Some content of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// What it hashes to.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What else is said about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What it is good for, where its media type does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

/// The manifest of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`IMAGE_MANIFEST`], or the same as Docker writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What it is good for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The content.
    pub layers: Vec<Descriptor>,
    /// What else is said about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Of content with nothing special about it.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: BTreeMap::new(),
            artifact_type: None,
        }
    }

    /// Whether it is a component.
    pub fn is_component(&self) -> bool {
        self.media_type == COMPONENT || self.media_type == PLAIN_COMPONENT
    }
}

impl ImageManifest {
    /// Reads one from JSON.
    ///
    /// # Errors
    /// [`Error::Manifest`].
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Manifest { reason };
        if json.len() > MAX_MANIFEST_BYTES {
            return Err(wrong(format!("it has more than {MAX_MANIFEST_BYTES} bytes")));
        }
        let manifest: Self = serde_json::from_slice(json).map_err(|error| wrong(error.to_string()))?;
        if manifest.schema_version != 2 {
            return Err(wrong(format!("its `schemaVersion` is {}", manifest.schema_version)));
        }
        if manifest
            .media_type
            .as_deref()
            .is_some_and(|found| found != IMAGE_MANIFEST && found != DOCKER_MANIFEST)
        {
            return Err(wrong("its `mediaType` is not that of an image".to_owned()));
        }
        Ok(manifest)
    }
}
