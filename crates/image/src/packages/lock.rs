//! `wisp.lock`: which content the requirements of a manifest stand for.
//!
//! The file stands beside the manifest and belongs to the app's source. What is in it is
//! taken as it says, so that a build next year is a build of the same; what is not is
//! looked for, and added.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use semver::Version;
use serde::{Deserialize, Serialize};
use url::Url;

use super::PackageRequest;
use crate::{Digest, Error};

/// The name of the file.
pub const LOCK_FILE_NAME: &str = "wisp.lock";

/// The form of the file that this version writes, and the only one that it reads.
const FORMAT: u32 = 1;

/// The largest file: thousands of packages.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

const HEADER: &str = "# Which content the manifest's requirements stand for. Made by wisp; keep it with the\n\
                      # source. `wisp build --update` makes it anew.\n";

/// What was found before.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stored: Stored,
    is_changed: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    #[serde(rename = "package", default, skip_serializing_if = "Vec::is_empty")]
    packages: Vec<LockedPackage>,
    #[serde(rename = "target", default, skip_serializing_if = "Vec::is_empty")]
    targets: Vec<LockedTarget>,
}

/// A version of a package, for a requirement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LockedPackage {
    pub(super) name: String,
    pub(super) registry: String,
    pub(super) requirement: String,
    pub(super) version: Version,
    pub(super) digest: Digest,
}

/// The definition of a target.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LockedTarget {
    url: String,
    digest: Digest,
}

impl Lock {
    /// What the file in an app's folder says, which need not exist.
    ///
    /// # Errors
    /// [`Error::LockFile`].
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(LOCK_FILE_NAME);
        let wrong = |reason: String| Error::LockFile { path: path.clone(), reason };
        let stored = match fs::metadata(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Stored::default(),
            Err(cause) => return Err(wrong(cause.to_string())),
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                return Err(wrong(format!("it has more than {MAX_FILE_BYTES} bytes")));
            }
            Ok(_) => {
                let text = fs::read_to_string(&path).map_err(|cause| wrong(cause.to_string()))?;
                let stored: Stored =
                    toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
                if stored.version != FORMAT {
                    return Err(wrong(format!("it is of version {}, and not of {FORMAT}", stored.version)));
                }
                stored
            }
        };
        Ok(Self { path, state: Mutex::new(State { stored, is_changed: false }) })
    }

    /// One that knows nothing, and takes the place of what an app's folder has.
    pub fn anew(folder: &Path) -> Self {
        let state = State { is_changed: true, ..State::default() };
        Self { path: folder.join(LOCK_FILE_NAME), state: Mutex::new(state) }
    }

    /// Has targets looked for anew.
    pub fn forget_targets(&self) {
        self.with(|state| {
            state.is_changed |= !state.stored.targets.is_empty();
            state.stored.targets.clear();
        });
    }

    /// What a request was found to stand for.
    pub(super) fn package(&self, request: &PackageRequest) -> Option<LockedPackage> {
        let (name, requirement) = (request.package.to_string(), request.requirement.to_string());
        self.with(|state| {
            let fits = |known: &&LockedPackage| {
                known.name == name
                    && known.requirement == requirement
                    && request.registry.as_ref().is_none_or(|registry| *registry == known.registry)
                    && request.requirement.matches(&known.version)
            };
            state.stored.packages.iter().find(fits).cloned()
        })
    }

    /// Takes down what a request stands for.
    pub(super) fn add_package(&self, package: LockedPackage) {
        self.with(|state| {
            let packages = &mut state.stored.packages;
            packages.retain(|known| {
                (&known.name, &known.registry, &known.requirement)
                    != (&package.name, &package.registry, &package.requirement)
            });
            packages.push(package);
            state.is_changed = true;
        });
    }

    /// What the definition of a target hashed to.
    pub(super) fn target(&self, url: &Url) -> Option<Digest> {
        self.with(|state| {
            let known = state.stored.targets.iter().find(|known| known.url == url.as_str());
            known.map(|known| known.digest)
        })
    }

    /// Takes down what the definition of a target hashes to.
    pub(super) fn add_target(&self, url: &Url, digest: Digest) {
        self.with(|state| {
            state.stored.targets.retain(|known| known.url != url.as_str());
            state.stored.targets.push(LockedTarget { url: url.to_string(), digest });
            state.is_changed = true;
        });
    }

    /// Writes the file if there is anything new: under another name first, so that it is
    /// never half there.
    ///
    /// # Errors
    /// [`Error::LockFile`].
    pub fn save(&self) -> Result<(), Error> {
        let wrong = |reason: String| Error::LockFile { path: self.path.clone(), reason };
        self.with(|state| {
            let is_empty = state.stored.packages.is_empty() && state.stored.targets.is_empty();
            if !state.is_changed || is_empty && !self.path.exists() {
                return Ok(());
            }
            let stored = &mut state.stored;
            stored.version = FORMAT;
            // Whatever order they were found in.
            stored.packages.sort_by(|one, other| {
                (&one.name, &one.registry, &one.requirement).cmp(&(
                    &other.name,
                    &other.registry,
                    &other.requirement,
                ))
            });
            stored.targets.sort_by(|one, other| one.url.cmp(&other.url));
            let text = toml::to_string(stored).map_err(|error| wrong(error.to_string()))?;
            let failed = |cause: io::Error| wrong(cause.to_string());
            let folder =
                self.path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
            // As readable as the rest of the source.
            let mut file = tempfile::Builder::new()
                .prefix(".wisp.lock-")
                .permissions(fs::Permissions::from_mode(0o666))
                .tempfile_in(folder)
                .map_err(failed)?;
            file.write_all(format!("{HEADER}{text}").as_bytes()).map_err(failed)?;
            file.persist(&self.path).map_err(|error| failed(error.error))?;
            state.is_changed = false;
            Ok(())
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use wisp_manifest::model::PackageName;

    use super::*;

    fn request(requirement: &str, registry: Option<&str>) -> PackageRequest {
        PackageRequest {
            registry: registry.map(str::to_owned),
            package: PackageName { namespace: "docs".to_owned(), name: "greet".to_owned() },
            requirement: requirement.parse().unwrap(),
        }
    }

    #[test]
    fn what_was_found_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::read(folder.path()).unwrap();
        lock.save().unwrap();
        assert!(!folder.path().join(LOCK_FILE_NAME).exists(), "nothing is no file");
        let package = LockedPackage {
            name: "docs:greet".to_owned(),
            registry: "registry.example".to_owned(),
            requirement: request("^1.2", None).requirement.to_string(),
            version: "1.2.3".parse().unwrap(),
            digest: Digest::of(b"greet"),
        };
        lock.add_package(package.clone());
        let url: Url = "https://targets.example/a.toml".parse().unwrap();
        lock.add_target(&url, Digest::of(b"target"));
        lock.save().unwrap();
        let text = fs::read_to_string(folder.path().join(LOCK_FILE_NAME)).unwrap();
        assert!(text.starts_with("# ") && text.contains("\nversion = 1\n"), "{text}");

        let lock = Lock::read(folder.path()).unwrap();
        assert_eq!(lock.package(&request("^1.2", None)), Some(package.clone()));
        assert_eq!(lock.package(&request("^1.2", Some("registry.example"))), Some(package));
        assert_eq!(lock.package(&request("^1.2", Some("other.example"))), None);
        assert_eq!(lock.package(&request("^1.1", None)), None);
        assert_eq!(lock.target(&url), Some(Digest::of(b"target")));
        // What takes its place begins with nothing.
        let lock = Lock::anew(folder.path());
        assert_eq!(lock.target(&url), None);
        lock.save().unwrap();
        assert_eq!(Lock::read(folder.path()).unwrap().target(&url), None);
    }

    #[test]
    fn what_is_no_lock_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["version = 2", "[", "version = 1\nother = 1", "[[package]]\nname = \"a:b\""] {
            fs::write(folder.path().join(LOCK_FILE_NAME), text).unwrap();
            assert_eq!(Lock::read(folder.path()).unwrap_err().code(), "WISP-E0821", "{text}");
        }
    }
}
