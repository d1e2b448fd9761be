//! Names in requests: repositories, tags, references; and what a path asks for.

use crate::Digest;

/// The longest name of a repository: the specification's advice, that it and the
/// registry's host name together have 255 characters.
pub const MAX_NAME_BYTES: usize = 200;

/// The longest tag, by the specification.
pub const MAX_TAG_BYTES: usize = 128;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject<'a> {
    /// `/v2/`: whether this is a registry.
    Base,
    /// A manifest, by tag or digest.
    Manifest { repository: &'a str, reference: &'a str },
    /// A blob.
    Blob { repository: &'a str, digest: &'a str },
    /// All uploads of a repository: where new ones begin.
    Uploads { repository: &'a str },
    /// An upload.
    Upload { repository: &'a str, id: &'a str },
    /// The tags of a repository.
    Tags { repository: &'a str },
    /// The manifests that refer to another one.
    Referrers { repository: &'a str, digest: &'a str },
}

/// What names a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A name that may be given to another one later.
    Tag(String),
    /// What it hashes to.
    Digest(Digest),
}

impl<'a> Subject<'a> {
    /// Reads a path, which begins behind `/v2`. `None` if there is no such thing.
    pub(super) fn of(path: &'a str) -> Option<Self> {
        let path = path.strip_prefix('/').unwrap_or(path);
        if path.is_empty() {
            return Some(Self::Base);
        }
        // Repositories have slashes in their names, so paths are read from their ends.
        if let Some(repository) = path.strip_suffix("/tags/list") {
            return Some(Self::Tags { repository });
        }
        if let Some(repository) =
            path.strip_suffix("/blobs/uploads").or_else(|| path.strip_suffix("/blobs/uploads/"))
        {
            return Some(Self::Uploads { repository });
        }
        let (rest, last) = path.rsplit_once('/')?;
        if let Some(repository) = rest.strip_suffix("/blobs/uploads") {
            return Some(Self::Upload { repository, id: last });
        }
        let (repository, kind) = rest.rsplit_once('/')?;
        match kind {
            "manifests" => Some(Self::Manifest { repository, reference: last }),
            "blobs" => Some(Self::Blob { repository, digest: last }),
            "referrers" => Some(Self::Referrers { repository, digest: last }),
            _ => None,
        }
    }

    /// The repository that it is in, if it is in one.
    pub(super) fn repository(&self) -> Option<&'a str> {
        match self {
            Self::Base => None,
            Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Uploads { repository }
            | Self::Upload { repository, .. }
            | Self::Tags { repository }
            | Self::Referrers { repository, .. } => Some(repository),
        }
    }
}

impl Reference {
    /// Reads a tag or digest. `None` if it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        match text.contains(':') {
            true => Digest::parse(text).map(Self::Digest),
            false => is_tag(text).then(|| Self::Tag(text.to_owned())),
        }
    }
}

/// Whether a repository may be called this: words of lower-case letters and digits
/// with `.`, `_`, `__` or hyphens between them, and `/` between parts.
pub fn is_repository(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES && name.split('/').all(is_part)
}

fn is_part(part: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_word(first) || !is_word(last) {
        return false;
    }
    bytes.split(is_word).all(|between| {
        matches!(between, b"" | b"." | b"_" | b"__") || between.iter().all(|byte| *byte == b'-')
    })
}

/// Whether a tag may be called this.
pub fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG_BYTES
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_keep_the_grammar() {
        for name in ["a", "team/app", "a.b/c__d/e--f", "0/1", "a-b_c.d"] {
            assert!(is_repository(name), "{name}");
        }
        let long = "a".repeat(MAX_NAME_BYTES + 1);
        for name in ["", "/", "a/", "/a", "a//b", "A", "a_", "-a", "a..b", "a___b", "a/../b", "a b", &long] {
            assert!(!is_repository(name), "{name}");
        }
    }

    #[test]
    fn tags_keep_the_grammar() {
        for tag in ["latest", "1.0", "_x", "A-b.c"] {
            assert!(is_tag(tag), "{tag}");
        }
        let long = "a".repeat(MAX_TAG_BYTES + 1);
        for tag in ["", ".x", "-x", "a/b", "a b", "ä", &long] {
            assert!(!is_tag(tag), "{tag}");
        }
    }

    #[test]
    fn paths_are_read_from_their_ends() {
        let digest = "sha256:00";
        for (path, subject) in [
            ("/", Subject::Base),
            ("", Subject::Base),
            ("/a/b/tags/list", Subject::Tags { repository: "a/b" }),
            ("/a/blobs/uploads/", Subject::Uploads { repository: "a" }),
            ("/a/blobs/uploads", Subject::Uploads { repository: "a" }),
            ("/a/blobs/uploads/1", Subject::Upload { repository: "a", id: "1" }),
            ("/a/manifests/blobs/sha256:00", Subject::Blob { repository: "a/manifests", digest }),
            ("/a/manifests/1.0", Subject::Manifest { repository: "a", reference: "1.0" }),
            ("/a/referrers/sha256:00", Subject::Referrers { repository: "a", digest }),
        ] {
            assert_eq!(Subject::of(path), Some(subject), "{path}");
        }
        for path in ["/_catalog", "/a", "/a/b", "/a/things/b"] {
            assert_eq!(Subject::of(path), None, "{path}");
        }
    }
}
