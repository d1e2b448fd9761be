//! What an edit is about.
//!
//! A [`Watcher`] watches the folders of an app's sources, but not those that only tools
//! write to: they would cost thousands of watches and say nothing. What it hears within
//! a moment becomes one [`Change`], which names the jobs to run and whether the app has
//! to be loaded again.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use wisp_manifest::{App, model::FileMount};

use crate::{
    Error,
    build::{Job, WatchPatterns, is_of_tool},
};

/// How long to wait for more of an edit. Editors write a file in a few steps, within a
/// millisecond; what comes later is another edit.
pub const DEFAULT_DEBOUNCE: Duration = Duration::from_millis(10);

/// The longest that an edit is waited for, however much goes on.
const MAX_DEBOUNCE: Duration = Duration::from_secs(2);

/// Folders that are watched. Far above any project; below what the kernel allows a user.
const MAX_FOLDERS_COUNT: usize = 8_000;

/// Tells what edits are about.
pub struct Watcher {
    notify: RecommendedWatcher,
    events: Receiver<notify::Result<Event>>,
    folders: BTreeSet<PathBuf>,
    manifest: PathBuf,
    patterns: Vec<(usize, WatchPatterns)>,
    /// Files that came of a build.
    sources: Vec<PathBuf>,
    /// What components see, below these.
    mounts: Vec<PathBuf>,
    /// What else is worth a word, below these.
    others: Vec<PathBuf>,
}

/// What an edit is about.
#[derive(Clone, Debug)]
pub struct Change {
    /// The manifest: everything may be different.
    pub is_manifest: bool,
    /// Jobs to run, by their numbers.
    pub jobs: Vec<usize>,
    /// Components' code.
    pub is_of_sources: bool,
    /// Files that components see.
    pub is_of_files: bool,
    /// One of the files.
    pub path: PathBuf,
    /// When it was noticed.
    pub noticed: Instant,
}

impl Watcher {
    /// Watches an app and the sources of its jobs.
    ///
    /// # Errors
    /// [`Error::Watch`].
    pub fn new(app: &App, manifest: &Path, jobs: &[Job]) -> Result<Self, Error> {
        let (sender, events) = mpsc::channel();
        let notify = notify::recommended_watcher(move |event| {
            // Nobody listens any more: the process ends.
            drop(sender.send(event));
        });
        let notify = notify.map_err(|error| watch_error(manifest, &error))?;
        let mut watcher = Self {
            notify,
            events,
            folders: BTreeSet::new(),
            manifest: PathBuf::new(),
            patterns: Vec::new(),
            sources: Vec::new(),
            mounts: Vec::new(),
            others: Vec::new(),
        };
        watcher.follow(app, manifest, jobs)?;
        Ok(watcher)
    }

    /// Watches what another version of the manifest names. Of what is not named any
    /// more nothing is told.
    ///
    /// # Errors
    /// [`Error::Watch`].
    pub fn follow(&mut self, app: &App, manifest: &Path, jobs: &[Job]) -> Result<(), Error> {
        let base = absolute(&app.directory);
        self.manifest = absolute(manifest);
        self.sources = app.code_files().map(|path| normal(&base.join(path))).collect();
        self.patterns = Vec::new();
        for (number, job) in jobs.iter().enumerate() {
            for component in &job.components {
                let component = app.components.values().find(|known| known.id.as_str() == component);
                if let Some(build) = component.and_then(|component| component.build.as_ref()) {
                    let folder = normal(&absolute(&job.workdir));
                    self.patterns.push((number, WatchPatterns::new(build, folder, self.sources.clone())));
                }
            }
        }
        self.mounts = app
            .components
            .values()
            .flat_map(|component| &component.files)
            .map(|mount| match mount {
                FileMount::Placement { source, .. } => normal(&base.join(source)),
                FileMount::Pattern(pattern) => normal(&base.join(fixed_part(pattern))),
            })
            .collect();
        self.watch(base.clone())?;
        for source in self.sources.clone() {
            if let Some(folder) = source.parent().filter(|folder| folder.is_dir()) {
                self.watch(folder.to_owned())?;
            }
        }
        let folders: Vec<_> =
            self.patterns.iter().map(|(_, patterns)| patterns.folder().to_owned()).collect();
        for folder in folders.into_iter().chain(self.mounts.clone()) {
            self.watch_below(&folder)?;
        }
        Ok(())
    }

    /// Tells of what is below another folder too, as of files that components see.
    ///
    /// # Errors
    /// [`Error::Watch`].
    pub fn also(&mut self, folder: &Path) -> Result<(), Error> {
        let folder = normal(&absolute(folder));
        self.watch_below(&folder)?;
        self.others.push(folder);
        Ok(())
    }

    /// Waits for the next edit. `None` when nothing can be watched any more.
    pub fn next(&mut self, debounce: Duration) -> Option<Change> {
        let mut change: Option<Change> = None;
        loop {
            let event = match &change {
                None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(change) if change.noticed.elapsed() > MAX_DEBOUNCE => Err(RecvTimeoutError::Timeout),
                Some(_) => self.events.recv_timeout(debounce),
            };
            match event {
                Ok(Ok(event)) => self.take_in(&event, &mut change),
                Ok(Err(error)) => tracing::warn!("files cannot be watched: {error}"),
                Err(RecvTimeoutError::Timeout) => return change,
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn take_in(&mut self, event: &Event, change: &mut Option<Change>) {
        if matches!(event.kind, EventKind::Access(_)) {
            return;
        }
        for path in &event.paths {
            if matches!(event.kind, EventKind::Create(_)) && path.is_dir() {
                // What lies in it already made no noise.
                if let Err(error) = self.watch_below(path) {
                    tracing::warn!(code = error.code(), "{error}");
                }
            }
            let is_manifest = *path == self.manifest;
            let jobs: BTreeSet<usize> = self
                .patterns
                .iter()
                .filter(|(_, patterns)| patterns.matches(path))
                .map(|(number, _)| *number)
                .collect();
            let is_of_sources = self.sources.contains(path);
            let is_of_files = !is_of_sources
                && self.mounts.iter().chain(&self.others).any(|folder| path.starts_with(folder));
            if !is_manifest && jobs.is_empty() && !is_of_sources && !is_of_files {
                continue;
            }
            let change = change.get_or_insert_with(|| Change {
                is_manifest: false,
                jobs: Vec::new(),
                is_of_sources: false,
                is_of_files: false,
                path: path.clone(),
                noticed: Instant::now(),
            });
            let is_first_source = change.jobs.is_empty() && !jobs.is_empty() && !change.is_manifest;
            if is_first_source || is_manifest {
                // What a person wrote rather than what came of it.
                change.path = path.clone();
            }
            change.is_manifest |= is_manifest;
            change.is_of_sources |= is_of_sources;
            change.is_of_files |= is_of_files;
            change.jobs.extend(jobs);
            change.jobs.sort_unstable();
            change.jobs.dedup();
        }
    }

    fn watch_below(&mut self, folder: &Path) -> Result<(), Error> {
        if !folder.is_dir() {
            // A file: its folder tells of it.
            return match folder.parent().filter(|parent| parent.is_dir()) {
                Some(parent) => self.watch(parent.to_owned()),
                None => Ok(()),
            };
        }
        self.watch(folder.to_owned())?;
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && !is_of_tool(Path::new(&entry.file_name())) {
                self.watch_below(&entry.path())?;
            }
        }
        Ok(())
    }

    fn watch(&mut self, folder: PathBuf) -> Result<(), Error> {
        if self.folders.contains(&folder) {
            return Ok(());
        }
        if self.folders.len() >= MAX_FOLDERS_COUNT {
            let message = format!("the app has more than {MAX_FOLDERS_COUNT} folders of sources");
            return Err(Error::Watch { path: folder, message });
        }
        self.notify
            .watch(&folder, RecursiveMode::NonRecursive)
            .map_err(|error| watch_error(&folder, &error))?;
        self.folders.insert(folder);
        Ok(())
    }
}

fn watch_error(path: &Path, error: &notify::Error) -> Error {
    Error::Watch { path: path.to_owned(), message: error.to_string() }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A path without `.` and `..`, as events have it.
fn normal(path: &Path) -> PathBuf {
    use std::path::Component;

    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(normal.pop()),
            part => normal.push(part),
        }
    }
    normal
}

/// The folders of a pattern before its first wildcard.
fn fixed_part(pattern: &str) -> PathBuf {
    let is_fixed = |part: &&str| !part.contains(['*', '?', '[']);
    pattern.split('/').take_while(is_fixed).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::build;

    #[test]
    fn edits_name_what_they_are_about() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["one/src", "one/target", "two", "assets/deep"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        let text = "spin_manifest_version = 2\n[application]\nname = \"a\"\n\
            [component.one]\nsource = \"one/target/one.wasm\"\nfiles = [\"assets/**/*.txt\"]\n\
            [component.one.build]\ncommand = \"true\"\nworkdir = \"one\"\nwatch = [\"src/**/*.rs\"]\n\
            [component.two]\nsource = \"two/two.wasm\"\n\
            [component.two.build]\ncommand = \"true 2\"\nworkdir = \"two\"\n";
        fs::write(path("spin.toml"), text).unwrap();
        let app = App::read(folder.path(), None).unwrap().value;
        let jobs = build::jobs(&app, &[]).unwrap();
        let mut watcher = Watcher::new(&app, &path("spin.toml"), &jobs).unwrap();
        // Of what is written first nothing is told; what follows it is.
        let mut next = |ignored: &str, name: &str| {
            fs::write(path(ignored), "x").unwrap();
            fs::write(path(name), "x").unwrap();
            let change = watcher.next(Duration::from_millis(50)).unwrap();
            (change.is_manifest, change.jobs, change.is_of_sources, change.is_of_files)
        };
        assert_eq!(next("one/README", "one/src/lib.rs"), (false, vec![0], false, false));
        assert_eq!(next("notes.txt", "one/target/one.wasm"), (false, vec![], true, false));
        assert_eq!(next("notes.txt", "two/any"), (false, vec![1], false, false));
        assert_eq!(next("notes.txt", "two/two.wasm"), (false, vec![], true, false));
        assert_eq!(next("notes.txt", "assets/deep/a.txt"), (false, vec![], false, true));
        assert_eq!(next("notes.txt", "spin.toml"), (true, vec![], false, false));
        // A folder that comes later is watched too.
        fs::create_dir(path("one/src/inner")).unwrap();
        fs::create_dir(path("two/late")).unwrap();
        assert_eq!(watcher.next(Duration::from_millis(50)).unwrap().jobs, [1]);
        fs::write(path("one/src/inner/new.rs"), "x").unwrap();
        assert_eq!(watcher.next(Duration::from_millis(50)).unwrap().jobs, [0]);
    }
}
