//! Which files a component sees: from the entries of `files` to real paths.
//!
//! An entry of `files` is a pattern (`"assets/**/*"`: each file keeps its path
//! relative to the manifest) or a placement (`{ source, destination }`: a file,
//! or a directory with all that is in it, appears at the destination). Who
//! serves an app copies what is found here to where the guest sees it; who packs
//! an app makes layers of it.
//!
//! This is the one module of the crate that looks at the disk.
//!
//! Nothing outside of the app's directory is ever found, whether `..`, an
//! absolute path or a symbolic link leads there: an app that came from
//! somewhere else must not take this machine's files into its guests.

use std::fs;
use std::io;
use std::path::{Component as PathComponent, Path, PathBuf};

use crate::model::FileMount;

/// How many files one component sees at most. Node's larger trees of
/// dependencies have some ten thousand; beyond this it is a mistake, such as a
/// pattern that takes in a build directory.
pub const MAX_FILES_COUNT: usize = 100_000;

/// How deep directories may lie in each other. Also ends circles of links.
const MAX_DEPTH_COUNT: usize = 64;

/// A file or directory that a component sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedFile {
    /// Where it is seen, relative to the guest's root.
    pub inside: PathBuf,
    /// Where it lies, without links.
    pub real: PathBuf,
    /// Whether it is a directory; what is in it follows by itself.
    pub is_directory: bool,
}

/// What a component sees.
#[derive(Clone, Debug, Default)]
pub struct PlacedFiles {
    /// In the order of the entries; where two have the same place, the later wins.
    pub files: Vec<PlacedFile>,
    /// Patterns that matched nothing. Not an error: a directory of uploads may
    /// well begin empty.
    pub unmatched: Vec<String>,
}

/// Why the files of a component cannot be found.
#[derive(Debug)]
pub enum FilesError {
    /// There is no such file.
    Missing {
        /// The entry.
        pattern: String,
    },
    /// An entry leads out of the app's directory.
    Outside {
        /// The entry, or what it led to.
        path: String,
    },
    /// An entry cannot be used.
    Pattern {
        /// The entry.
        pattern: String,
        /// What is wrong with it.
        cause: String,
    },
    /// There are more than [`MAX_FILES_COUNT`].
    TooMany,
    /// The operating system refuses.
    Access {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What it said.
        cause: io::Error,
    },
}

/// Finds the files that a component sees. `app_dir` is where the manifest lies.
///
/// # Errors
/// See [`FilesError`].
pub fn find(mounts: &[FileMount], exclude: &[String], app_dir: &Path) -> Result<PlacedFiles, FilesError> {
    if mounts.is_empty() {
        return Ok(PlacedFiles::default());
    }
    let app_dir = fs::canonicalize(app_dir).map_err(|cause| failed("open", app_dir, cause))?;
    let exclude = exclude.iter().map(|pattern| glob_pattern(pattern)).collect::<Result<_, _>>()?;
    let mut finding = Finding { app_dir: &app_dir, exclude, count: 0, found: PlacedFiles::default() };
    for mount in mounts {
        match mount {
            FileMount::Pattern(pattern) => finding.matching(pattern)?,
            FileMount::Placement { source, destination } => finding.placed(source, destination)?,
        }
    }
    Ok(finding.found)
}

/// The real path of something below the app's directory, which is without links.
///
/// # Errors
/// [`FilesError::Missing`], [`FilesError::Outside`] and [`FilesError::Access`].
pub fn resolve(app_dir: &Path, path: &Path) -> Result<PathBuf, FilesError> {
    let full = app_dir.join(path);
    let real = fs::canonicalize(&full).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => FilesError::Missing { pattern: path.display().to_string() },
        _ => failed("open", &full, cause),
    })?;
    if real.starts_with(app_dir) { Ok(real) } else { Err(outside(path)) }
}

/// The part of a destination below the guest's root.
pub fn relative_destination(destination: &str) -> Option<PathBuf> {
    let mut inside = PathBuf::new();
    for part in Path::new(destination.strip_prefix('/')?).components() {
        match part {
            PathComponent::Normal(name) => inside.push(name),
            PathComponent::CurDir => {}
            PathComponent::RootDir => {}
            PathComponent::ParentDir | PathComponent::Prefix(_) => return None,
        }
    }
    Some(inside)
}

/// One run of finding.
struct Finding<'a> {
    /// Without links in it.
    app_dir: &'a Path,
    exclude: Vec<glob::Pattern>,
    /// Files found so far.
    count: usize,
    found: PlacedFiles,
}

impl Finding<'_> {
    /// Finds all files that match; each keeps its path.
    fn matching(&mut self, pattern: &str) -> Result<(), FilesError> {
        let path = Path::new(pattern);
        if path.is_absolute() || path.components().any(|part| part == PathComponent::ParentDir) {
            return Err(outside(path));
        }
        glob_pattern(pattern)?;
        if !pattern.contains(['*', '?', '[']) {
            // No pattern but a name: of a file, or of a directory with all in it.
            let real = resolve(self.app_dir, path)?;
            return self.tree(&real, path, path, 0);
        }
        let full = format!("{}/{pattern}", glob::Pattern::escape(&self.app_dir.to_string_lossy()));
        let matches = glob::glob(&full).map_err(|cause| wrong(pattern, cause.msg))?;
        let mut has_matched = false;
        for entry in matches {
            let found = entry.map_err(|cause| {
                let path = cause.path().to_owned();
                failed("read", &path, cause.into())
            })?;
            if found.is_dir() {
                // What is in it matches by itself, or does not.
                continue;
            }
            let relative = found.strip_prefix(self.app_dir).map_err(|_| outside(&found))?;
            let real = resolve(self.app_dir, relative)?;
            has_matched = true;
            self.file(&real, relative, relative)?;
        }
        if !has_matched {
            self.found.unmatched.push(pattern.to_owned());
        }
        Ok(())
    }

    /// Finds a file or directory that has a destination of its own.
    fn placed(&mut self, source: &Path, destination: &str) -> Result<(), FilesError> {
        let inside = relative_destination(destination)
            .ok_or_else(|| wrong(destination, "a destination is an absolute path without `..`"))?;
        let real = resolve(self.app_dir, source)?;
        self.tree(&real, source, &inside, 0)
    }

    /// A file, or a directory with all that is in it. `real` is without links;
    /// `shown` is the path by which it was reached.
    fn tree(&mut self, real: &Path, shown: &Path, inside: &Path, depth: usize) -> Result<(), FilesError> {
        if !real.is_dir() {
            return self.file(real, shown, inside);
        }
        if depth >= MAX_DEPTH_COUNT {
            let cause = format!("directories lie more than {MAX_DEPTH_COUNT} deep in each other");
            return Err(wrong(&shown.display().to_string(), cause));
        }
        self.found.files.push(PlacedFile {
            inside: inside.to_owned(),
            real: real.to_owned(),
            is_directory: true,
        });
        let entries = fs::read_dir(real).map_err(|cause| failed("read", real, cause))?;
        for entry in entries {
            let entry = entry.map_err(|cause| failed("read", real, cause))?;
            let name = entry.file_name();
            let shown = shown.join(&name);
            let mut child = entry.path();
            let kind = entry.file_type().map_err(|cause| failed("read", &child, cause))?;
            if kind.is_symlink() {
                child = fs::canonicalize(&child).map_err(|cause| failed("follow", &child, cause))?;
                if !child.starts_with(self.app_dir) {
                    return Err(outside(&shown));
                }
            }
            self.tree(&child, &shown, &inside.join(&name), depth + 1)?;
        }
        Ok(())
    }

    fn file(&mut self, real: &Path, shown: &Path, inside: &Path) -> Result<(), FilesError> {
        if self.exclude.iter().any(|pattern| pattern.matches_path(shown)) {
            return Ok(());
        }
        if self.count >= MAX_FILES_COUNT {
            return Err(FilesError::TooMany);
        }
        self.count += 1;
        // Pipes and devices would block or never end.
        let metadata = fs::metadata(real).map_err(|cause| failed("read", real, cause))?;
        if !metadata.is_file() {
            return Err(wrong(&shown.display().to_string(), "it is neither a file nor a directory"));
        }
        self.found.files.push(PlacedFile {
            inside: inside.to_owned(),
            real: real.to_owned(),
            is_directory: false,
        });
        Ok(())
    }
}

fn glob_pattern(pattern: &str) -> Result<glob::Pattern, FilesError> {
    glob::Pattern::new(pattern).map_err(|cause| wrong(pattern, cause.msg))
}

fn outside(path: &Path) -> FilesError {
    FilesError::Outside { path: path.display().to_string() }
}

fn wrong(pattern: &str, cause: impl Into<String>) -> FilesError {
    FilesError::Pattern { pattern: pattern.to_owned(), cause: cause.into() }
}

fn failed(action: &'static str, path: &Path, cause: io::Error) -> FilesError {
    FilesError::Access { action, path: path.to_owned(), cause }
}
