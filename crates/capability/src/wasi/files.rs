//! Placing a component's `files` where its guest sees them.
//!
//! Which files these are, `wisp_manifest::files` finds out.
//!
//! The default is a snapshot: files are copied into a directory of the
//! component, which becomes the guest's `/`. What is edited afterwards does not
//! show until the next start, and what a guest writes (where it may) does not
//! touch the originals. [`Mode::Direct`] mounts directories where they lie.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use wisp_manifest::files::{self, FilesError};
use wisp_manifest::model::FileMount;

use super::Mount;
use crate::Error;

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
    match mode {
        Mode::Direct => {
            let app_dir = fs::canonicalize(app_dir).map_err(|cause| files.failed("open", app_dir, cause))?;
            files.files.iter().map(|mount| files.direct(mount, &app_dir)).collect()
        }
        Mode::Copy => {
            files.copy(app_dir, target_dir)?;
            Ok(vec![Mount { host: target_dir.to_owned(), guest: "/".into() }])
        }
    }
}

impl Files<'_> {
    fn direct(&self, mount: &FileMount, app_dir: &Path) -> Result<Mount, Error> {
        let refused = |pattern: &str, cause: &str| {
            self.wrong(FilesError::Pattern { pattern: pattern.into(), cause: cause.into() })
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
        let host = files::resolve(app_dir, source).map_err(|error| self.wrong(error))?;
        if !host.is_dir() {
            return Err(refused(&shown, "only directories can be mounted directly"));
        }
        let inside = files::relative_destination(destination)
            .ok_or_else(|| refused(destination, "a destination is an absolute path without `..`"))?;
        Ok(Mount { host, guest: format!("/{}", inside.display()) })
    }

    fn failed(&self, action: &'static str, path: &Path, cause: io::Error) -> Error {
        self.wrong(FilesError::Access { action, path: path.to_owned(), cause })
    }

    /// What could not be found, and for which component.
    fn wrong(&self, error: FilesError) -> Error {
        let component = self.component.clone();
        match error {
            FilesError::Missing { pattern } => Error::FilesMissing { component, pattern },
            FilesError::Outside { path } => Error::FilesOutside { component, path },
            FilesError::Pattern { pattern, cause } => Error::FilesPattern { component, pattern, cause },
            FilesError::TooMany => Error::FilesTooMany { component, limit_count: files::MAX_FILES_COUNT },
            FilesError::Access { action, path, cause } => {
                Error::FilesAccess { component, action, path, cause }
            }
        }
    }

    fn copy(&self, app_dir: &Path, target_dir: &Path) -> Result<(), Error> {
        let found = files::find(self.files, self.exclude, app_dir).map_err(|error| self.wrong(error))?;
        for pattern in found.unmatched {
            let error = Error::FilesMissing { component: self.component.clone(), pattern };
            tracing::warn!(code = error.code(), "{error}");
        }
        let mut made = HashSet::new();
        let mut make_dir = |path: &Path| {
            if made.contains(path) {
                return Ok(());
            }
            fs::create_dir_all(path).map_err(|cause| self.failed("create", path, cause))?;
            made.insert(path.to_owned());
            Ok(())
        };
        make_dir(target_dir)?;
        for file in &found.files {
            let target = target_dir.join(&file.inside);
            if file.is_directory {
                make_dir(&target)?;
                continue;
            }
            if let Some(parent) = target.parent() {
                make_dir(parent)?;
            }
            self.copy_file(&file.real, &target)?;
        }
        Ok(())
    }

    fn copy_file(&self, real: &Path, target: &Path) -> Result<(), Error> {
        match fs::copy(real, target) {
            Ok(_) => Ok(()),
            // Two entries name one file, and the first copy is read-only as the
            // original is: the later entry wins.
            Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied && target.exists() => {
                fs::remove_file(target)
                    .and_then(|()| fs::copy(real, target))
                    .map(drop)
                    .map_err(|cause| self.failed("copy", real, cause))
            }
            Err(cause) => Err(self.failed("copy", real, cause)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::allow_attributes, reason = "tests")]

    use std::path::PathBuf;

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
