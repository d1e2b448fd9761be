//! Placing a component's `files` where its guest sees them.
//!
//! An entry of `files` is a pattern (`"assets/**/*"`: each file keeps its path
//! relative to the manifest) or a placement (`{ source, destination }`: a file,
//! or a directory with all that is in it, appears at the destination).
//!
//! The default is a snapshot: files are copied into a directory of the
//! component, which becomes the guest's `/`. What is edited afterwards does not
//! show until the next start, and what a guest writes (where it may) does not
//! touch the originals. [`Mode::Direct`] mounts directories where they lie.
//!
//! Nothing outside of the app's directory is ever placed, whether `..`, an
//! absolute path or a symbolic link leads there: an app that came from
//! somewhere else must not take this machine's files into its guests.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Component as PathComponent, Path, PathBuf};
use std::sync::Arc;

use wisp_manifest::model::FileMount;

use super::Mount;
use crate::Error;

/// How many files are placed for one component at most. Node's larger trees of
/// dependencies have some ten thousand; beyond this it is a mistake, such as a
/// pattern that takes in a build directory.
pub const MAX_FILES_COUNT: usize = 100_000;

/// How deep directories may lie in each other. Also ends circles of links.
const MAX_DEPTH_COUNT: usize = 64;

/// How files come to where the guest sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Copies of the files, as they are at start-up.
    #[default]
    Copy,
    /// The directories themselves. Knows placements of directories only.
    Direct,
}

/// The `files` of one component.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// Id of the component.
    pub component: &'a Arc<str>,
    /// What it sees.
    pub files: &'a [FileMount],
    /// Patterns of what it does not see although `files` names it.
    pub exclude: &'a [String],
}

/// Places a component's files below `target_dir` and says what to mount.
///
/// `target_dir` is the component's own; it is made if there is something to
/// place. A component without `files` gets no mount and costs nothing.
///
/// # Errors
/// [`Error::FilesMissing`], [`Error::FilesOutside`], [`Error::FilesPattern`],
/// [`Error::FilesTooMany`] and [`Error::FilesAccess`].
pub fn assemble(
    files: Files<'_>,
    app_dir: &Path,
    target_dir: &Path,
    mode: Mode,
) -> Result<Vec<Mount>, Error> {
    if files.files.is_empty() {
        return Ok(Vec::new());
    }
    let app_dir = fs::canonicalize(app_dir).map_err(|cause| files.failed("open", app_dir, cause))?;
    match mode {
        Mode::Direct => files.files.iter().map(|mount| files.direct(mount, &app_dir)).collect(),
        Mode::Copy => {
            let exclude =
                files.exclude.iter().map(|pattern| files.pattern(pattern)).collect::<Result<_, _>>()?;
            let mut copying =
                Copying { files, app_dir: &app_dir, target_dir, exclude, count: 0, made: HashSet::new() };
            copying.make_dir(target_dir)?;
            for mount in files.files {
                match mount {
                    FileMount::Pattern(pattern) => copying.copy_matching(pattern)?,
                    FileMount::Placement { source, destination } => {
                        copying.copy_placed(source, destination)?
                    }
                }
            }
            Ok(vec![Mount { host: target_dir.to_owned(), guest: "/".into() }])
        }
    }
}

/// One run of copying.
struct Copying<'a> {
    files: Files<'a>,
    /// Without links in it.
    app_dir: &'a Path,
    target_dir: &'a Path,
    exclude: Vec<glob::Pattern>,
    /// Files copied so far.
    count: usize,
    /// Directories that exist already.
    made: HashSet<PathBuf>,
}

impl Files<'_> {
    fn direct(&self, mount: &FileMount, app_dir: &Path) -> Result<Mount, Error> {
        let refused = |pattern: &str, cause: &str| Error::FilesPattern {
            component: self.component.clone(),
            pattern: pattern.into(),
            cause: cause.into(),
        };
        let (source, destination) = match mount {
            FileMount::Placement { source, destination } => (source, destination),
            FileMount::Pattern(pattern) => {
                return Err(refused(pattern, "patterns cannot be mounted directly"));
            }
        };
        let shown = source.display().to_string();
        if !self.exclude.is_empty() {
            return Err(refused(&shown, "`exclude_files` does not apply to what is mounted directly"));
        }
        let host = self.resolve(app_dir, source)?;
        if !host.is_dir() {
            return Err(refused(&shown, "only directories can be mounted directly"));
        }
        let inside = relative_destination(destination)
            .ok_or_else(|| refused(destination, "a destination is an absolute path without `..`"))?;
        Ok(Mount { host, guest: format!("/{}", inside.display()) })
    }

    /// The real path of something below the app's directory.
    fn resolve(&self, app_dir: &Path, path: &Path) -> Result<PathBuf, Error> {
        let full = app_dir.join(path);
        let real = fs::canonicalize(&full).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => {
                Error::FilesMissing { component: self.component.clone(), pattern: path.display().to_string() }
            }
            _ => self.failed("open", &full, cause),
        })?;
        if real.starts_with(app_dir) { Ok(real) } else { Err(self.outside(path)) }
    }

    fn outside(&self, path: &Path) -> Error {
        Error::FilesOutside { component: self.component.clone(), path: path.display().to_string() }
    }

    fn failed(&self, action: &'static str, path: &Path, cause: io::Error) -> Error {
        Error::FilesAccess { component: self.component.clone(), action, path: path.to_owned(), cause }
    }

    fn pattern(&self, pattern: &str) -> Result<glob::Pattern, Error> {
        glob::Pattern::new(pattern).map_err(|cause| Error::FilesPattern {
            component: self.component.clone(),
            pattern: pattern.into(),
            cause: cause.msg.into(),
        })
    }
}

impl Copying<'_> {
    /// Copies all files that match; each keeps its path.
    fn copy_matching(&mut self, pattern: &str) -> Result<(), Error> {
        let path = Path::new(pattern);
        if path.is_absolute() || path.components().any(|part| part == PathComponent::ParentDir) {
            return Err(self.files.outside(path));
        }
        self.files.pattern(pattern)?;
        if !pattern.contains(['*', '?', '[']) {
            // No pattern but a name: of a file, or of a directory with all in it.
            let real = self.files.resolve(self.app_dir, path)?;
            return self.copy(&real, path, path, 0);
        }
        let full = format!("{}/{pattern}", glob::Pattern::escape(&self.app_dir.to_string_lossy()));
        let matches = glob::glob(&full).map_err(|cause| Error::FilesPattern {
            component: self.files.component.clone(),
            pattern: pattern.into(),
            cause: cause.msg.into(),
        })?;
        let mut has_matched = false;
        for entry in matches {
            let found = entry.map_err(|cause| {
                let path = cause.path().to_owned();
                self.files.failed("read", &path, cause.into())
            })?;
            if found.is_dir() {
                // What is in it matches by itself, or does not.
                continue;
            }
            let relative = found.strip_prefix(self.app_dir).map_err(|_| self.files.outside(&found))?;
            let real = self.files.resolve(self.app_dir, relative)?;
            has_matched = true;
            self.copy_file(&real, relative, relative)?;
        }
        if !has_matched {
            let error =
                Error::FilesMissing { component: self.files.component.clone(), pattern: pattern.into() };
            // Not an error: a directory of uploads may well begin empty.
            tracing::warn!(code = error.code(), "{error}");
        }
        Ok(())
    }

    /// Copies a file or directory to a destination of its own.
    fn copy_placed(&mut self, source: &Path, destination: &str) -> Result<(), Error> {
        let inside = relative_destination(destination).ok_or_else(|| Error::FilesPattern {
            component: self.files.component.clone(),
            pattern: destination.into(),
            cause: "a destination is an absolute path without `..`".into(),
        })?;
        let real = self.files.resolve(self.app_dir, source)?;
        self.copy(&real, source, &inside, 0)
    }

    /// Copies a file, or a directory with all that is in it. `real` is without
    /// links; `shown` is the path by which it was reached.
    fn copy(&mut self, real: &Path, shown: &Path, inside: &Path, depth: usize) -> Result<(), Error> {
        if !real.is_dir() {
            return self.copy_file(real, shown, inside);
        }
        if depth >= MAX_DEPTH_COUNT {
            return Err(Error::FilesPattern {
                component: self.files.component.clone(),
                pattern: shown.display().to_string(),
                cause: format!("directories lie more than {MAX_DEPTH_COUNT} deep in each other"),
            });
        }
        self.make_dir(&self.target_dir.join(inside))?;
        let entries = fs::read_dir(real).map_err(|cause| self.files.failed("read", real, cause))?;
        for entry in entries {
            let entry = entry.map_err(|cause| self.files.failed("read", real, cause))?;
            let name = entry.file_name();
            let shown = shown.join(&name);
            let mut child = entry.path();
            let kind = entry.file_type().map_err(|cause| self.files.failed("read", &child, cause))?;
            if kind.is_symlink() {
                child =
                    fs::canonicalize(&child).map_err(|cause| self.files.failed("follow", &child, cause))?;
                if !child.starts_with(self.app_dir) {
                    return Err(self.files.outside(&shown));
                }
            }
            self.copy(&child, &shown, &inside.join(&name), depth + 1)?;
        }
        Ok(())
    }

    fn copy_file(&mut self, real: &Path, shown: &Path, inside: &Path) -> Result<(), Error> {
        if self.exclude.iter().any(|pattern| pattern.matches_path(shown)) {
            return Ok(());
        }
        if self.count >= MAX_FILES_COUNT {
            return Err(Error::FilesTooMany {
                component: self.files.component.clone(),
                limit_count: MAX_FILES_COUNT,
            });
        }
        self.count += 1;
        let target = self.target_dir.join(inside);
        if let Some(parent) = target.parent() {
            self.make_dir(parent)?;
        }
        // Pipes and devices would block or never end.
        let metadata = fs::metadata(real).map_err(|cause| self.files.failed("read", real, cause))?;
        if !metadata.is_file() {
            return Err(Error::FilesPattern {
                component: self.files.component.clone(),
                pattern: shown.display().to_string(),
                cause: "it is neither a file nor a directory".into(),
            });
        }
        match fs::copy(real, &target) {
            Ok(_) => Ok(()),
            // Two entries name one file, and the first copy is read-only as the
            // original is: the later entry wins.
            Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied && target.exists() => {
                fs::remove_file(&target)
                    .and_then(|()| fs::copy(real, &target))
                    .map(drop)
                    .map_err(|cause| self.files.failed("copy", real, cause))
            }
            Err(cause) => Err(self.files.failed("copy", real, cause)),
        }
    }

    fn make_dir(&mut self, path: &Path) -> Result<(), Error> {
        if self.made.contains(path) {
            return Ok(());
        }
        fs::create_dir_all(path).map_err(|cause| self.files.failed("create", path, cause))?;
        self.made.insert(path.to_owned());
        Ok(())
    }
}

/// The part of a destination below the guest's root.
fn relative_destination(destination: &str) -> Option<PathBuf> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::allow_attributes, reason = "tests")]

    use super::*;

    struct App {
        directory: tempfile::TempDir,
        component: Arc<str>,
    }

    impl App {
        fn new(files: &[&str]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for file in files {
                let path = directory.path().join("app").join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, *file).unwrap();
            }
            Self { directory, component: "shop".into() }
        }

        fn app(&self) -> PathBuf {
            self.directory.path().join("app")
        }

        fn run(&self, files: &[FileMount], exclude: &[&str], mode: Mode) -> Result<Vec<String>, Error> {
            let target = self.directory.path().join("target");
            let exclude: Vec<String> = exclude.iter().map(|&text| text.into()).collect();
            let files = Files { component: &self.component, files, exclude: &exclude };
            let mounts = assemble(files, &self.app(), &target, mode)?;
            if mode == Mode::Direct || mounts.is_empty() {
                return Ok(mounts.into_iter().map(|mount| mount.guest).collect());
            }
            assert_eq!(mounts, [Mount { host: target.clone(), guest: "/".into() }]);
            let mut found = Vec::new();
            list(&target, &target, &mut found);
            found.sort();
            Ok(found)
        }
    }

    fn list(root: &Path, directory: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                list(root, &path, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }

    fn pattern(text: &str) -> FileMount {
        FileMount::Pattern(text.into())
    }

    fn placement(source: &str, destination: &str) -> FileMount {
        FileMount::Placement { source: source.into(), destination: destination.into() }
    }

    const FILES: [&str; 5] = ["a.txt", "assets/b.txt", "assets/deep/c.txt", "assets/deep/d.md", "x[1]/e.txt"];

    #[test]
    fn patterns_keep_relative_paths() {
        let app = App::new(&FILES);
        let found = app.run(&[pattern("assets/**/*.txt")], &[], Mode::Copy).unwrap();
        assert_eq!(found, ["assets/b.txt", "assets/deep/c.txt"]);
    }

    #[test]
    fn a_star_does_not_cross_directories() {
        let app = App::new(&FILES);
        assert_eq!(app.run(&[pattern("assets/*")], &[], Mode::Copy).unwrap(), ["assets/b.txt"]);
    }

    #[test]
    fn a_plain_name_may_be_a_directory() {
        let app = App::new(&FILES);
        let found = app.run(&[pattern("assets"), pattern("a.txt")], &[], Mode::Copy).unwrap();
        assert_eq!(found, ["a.txt", "assets/b.txt", "assets/deep/c.txt", "assets/deep/d.md"]);
    }

    #[test]
    fn placements_move_files_and_directories() {
        let app = App::new(&FILES);
        let files = [placement("assets", "/"), placement("a.txt", "/other/name.txt")];
        let found = app.run(&files, &[], Mode::Copy).unwrap();
        assert_eq!(found, ["b.txt", "deep/c.txt", "deep/d.md", "other/name.txt"]);
        let copy = app.directory.path().join("target/other/name.txt");
        assert_eq!(fs::read_to_string(copy).unwrap(), "a.txt");
    }

    #[test]
    fn excluded_files_are_left_out() {
        let app = App::new(&FILES);
        let found = app.run(&[pattern("assets/**/*")], &["assets/deep/*.md"], Mode::Copy).unwrap();
        assert_eq!(found, ["assets/b.txt", "assets/deep/c.txt"]);
        let found = app.run(&[placement("assets", "/placed")], &["**/*.txt"], Mode::Copy).unwrap();
        assert!(found.contains(&"placed/deep/d.md".to_owned()));
        assert!(!found.contains(&"placed/b.txt".to_owned()));
    }

    #[test]
    fn no_files_need_no_directory() {
        let app = App::new(&FILES);
        assert_eq!(app.run(&[], &[], Mode::Copy).unwrap(), Vec::<String>::new());
        assert!(!app.directory.path().join("target").exists());
    }

    #[test]
    fn what_is_missing_is_named() {
        let app = App::new(&FILES);
        for files in [pattern("none.txt"), placement("none", "/")] {
            let error = app.run(&[files], &[], Mode::Copy).unwrap_err();
            assert_eq!(error.code(), "WISP-E0350");
            assert!(error.to_string().contains("`shop`"), "{error}");
        }
        // A pattern with a star may match nothing.
        assert_eq!(app.run(&[pattern("none/*")], &[], Mode::Copy).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn nothing_outside_of_the_app_is_placed() {
        let app = App::new(&FILES);
        fs::write(app.directory.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../secret", app.app().join("link")).unwrap();
        fs::create_dir(app.app().join("linked")).unwrap();
        std::os::unix::fs::symlink("../../secret", app.app().join("linked/link")).unwrap();
        for files in [
            pattern("../secret"),
            pattern("/etc/hostname"),
            pattern("assets/../../secret"),
            pattern("link"),
            pattern("l*"),
            pattern("linked/*"),
            placement("../secret", "/secret"),
            placement("/etc", "/etc"),
            placement("link", "/secret"),
            placement("linked", "/"),
        ] {
            let error = app.run(std::slice::from_ref(&files), &[], Mode::Copy).unwrap_err();
            assert_eq!(error.code(), "WISP-E0351", "{files:?}: {error}");
        }
        let error = app.run(&[placement("a.txt", "/../up.txt")], &[], Mode::Copy).unwrap_err();
        assert_eq!(error.code(), "WISP-E0352");
    }

    #[test]
    fn links_within_the_app_are_followed_and_circles_end() {
        let app = App::new(&FILES);
        std::os::unix::fs::symlink("../a.txt", app.app().join("assets/link.txt")).unwrap();
        let found = app.run(&[placement("assets", "/")], &[], Mode::Copy).unwrap();
        assert!(found.contains(&"link.txt".to_owned()));
        std::os::unix::fs::symlink("../assets", app.app().join("assets/circle")).unwrap();
        let error = app.run(&[placement("assets", "/")], &[], Mode::Copy).unwrap_err();
        assert_eq!(error.code(), "WISP-E0352");
    }

    #[test]
    fn direct_mounts_are_directories() {
        let app = App::new(&FILES);
        let mounts = app.run(&[placement("assets", "/static/")], &[], Mode::Direct).unwrap();
        assert_eq!(mounts, ["/static"]);
        for files in [pattern("assets/*"), placement("a.txt", "/a.txt")] {
            let error = app.run(&[files], &[], Mode::Direct).unwrap_err();
            assert_eq!(error.code(), "WISP-E0352");
        }
        let error = app.run(&[placement("assets", "/")], &["*.md"], Mode::Direct).unwrap_err();
        assert_eq!(error.code(), "WISP-E0352");
    }
}
