//! A folder of apps as a stream of changes.
//!
//! Each entry of the folder is an app, and its name the host name: a folder with a
//! `spin.toml`, or a symbolic link to one. The folder itself is watched: an entry that
//! appears, or takes the place of another by being renamed over it, is a change; what
//! happens inside of an app's folder is not. So a version is put together elsewhere and
//! then moved into place, which is one step for everybody who looks.
//!
//! Names that begin with a dot, and files, are left alone. Names that are none for hosts
//! are reported.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
};

use crate::{Change, ChangeKind, Error, HostName, Node};

/// Room for the events that are read at once; a name takes up to 272 bytes.
const EVENTS_BUFFER_BYTES: usize = 64 << 10;

/// Names that are none for hosts and are remembered; more are only logged.
const REJECTED_COUNT: usize = 1_000;

/// A folder of apps that is being watched.
pub struct AppsDirectory {
    path: PathBuf,
    events: OwnedFd,
}

impl AppsDirectory {
    /// Begins to watch a folder: from now on nothing is missed.
    ///
    /// # Errors
    /// [`Error::AppsDirectory`].
    pub fn watch(path: &Path) -> Result<Self, Error> {
        let failed = |cause: io::Error| Error::AppsDirectory { path: path.to_owned(), cause };
        // Without links and relative parts: entries are looked up by it for ever.
        let path = path.canonicalize().map_err(failed)?;
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .map_err(|error| failed(error.into()))?;
        let kinds = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&events, &path, kinds).map_err(|error| failed(error.into()))?;
        Ok(Self { path, events })
    }

    /// The folder, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the node about every app in the folder, and that the others are gone. Reads
    /// nothing but the folder.
    ///
    /// # Errors
    /// [`Error::AppsDirectory`].
    pub fn scan(&self, node: &Node) -> Result<(), Error> {
        let failed = |cause| Error::AppsDirectory { path: self.path.clone(), cause };
        let is_first = node.apps_count() == 0;
        let mut seen: HashSet<HostName> = HashSet::new();
        node.rejected.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file() {
                continue;
            }
            let Some(host) = self.host_of(node, &entry.file_name()) else { continue };
            if !is_first {
                seen.insert(host.clone());
                if node.was_left(&host, &self.path.join(host.as_str())) {
                    continue;
                }
            }
            self.put(node, host);
        }
        if !is_first {
            let mut gone = Vec::new();
            node.table.for_each(|entry| {
                if !seen.contains(&entry.host) {
                    gone.push(entry.host.clone());
                }
            });
            for host in gone {
                apply(node, ChangeKind::Remove { host });
            }
        }
        Ok(())
    }

    /// Follows the folder on the node's own thread, for as long as the node exists; scans
    /// it whole on SIGHUP.
    pub fn follow(self, node: &Arc<Node>) {
        let handle = node.control().clone();
        let node = Arc::downgrade(node);
        handle.spawn(async move {
            let events = self.events.try_clone().and_then(readiness);
            let (Ok(events), Ok(mut hang_up)) = (events, signal(SignalKind::hangup())) else {
                tracing::error!(code = "WISP-E0714", "the folder of apps cannot be watched");
                return;
            };
            loop {
                let is_scan_wanted = tokio::select! {
                    ready = events.readable() => {
                        let Ok(mut ready) = ready else { return };
                        ready.clear_ready();
                        false
                    }
                    _ = hang_up.recv() => true,
                };
                let Some(node) = node.upgrade() else { return };
                if is_scan_wanted || self.take_events(&node) {
                    match self.scan(&node) {
                        Ok(()) => tracing::info!("{} apps after a scan of the folder", node.apps_count()),
                        Err(error) => tracing::error!(code = error.code(), "{error}"),
                    }
                }
            }
        });
    }

    /// Takes in what happened. Returns whether some of it is not known.
    fn take_events(&self, node: &Node) -> bool {
        let mut buffer = vec![MaybeUninit::uninit(); EVENTS_BUFFER_BYTES];
        let mut reader = Reader::new(&self.events, &mut buffer);
        let mut is_scan_wanted = false;
        // Ends when there are no more for now.
        while let Ok(event) = reader.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                is_scan_wanted = true;
            }
            if event.events().intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) {
                tracing::error!(
                    code = "WISP-E0714",
                    "the folder of apps is gone; what is loaded goes on, changes are not seen any more"
                );
            }
            let Some(name) = event.file_name() else { continue };
            let name = OsStr::from_bytes(name.to_bytes());
            let Some(host) = self.host_of(node, name) else { continue };
            // Whatever happened: what counts is what is there now.
            match fs::symlink_metadata(self.path.join(name)) {
                Ok(found) if !found.is_file() => self.put(node, host),
                _ => apply(node, ChangeKind::Remove { host }),
            }
        }
        is_scan_wanted
    }

    fn put(&self, node: &Node, host: HostName) {
        let folder = self.path.join(host.as_str());
        apply(node, ChangeKind::Put { host, folder });
    }

    /// The host that an entry stands for, if it is an app at all.
    fn host_of(&self, node: &Node, name: &OsStr) -> Option<HostName> {
        let name = name.to_string_lossy();
        if name.starts_with('.') {
            return None;
        }
        let mut rejected = node.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        match HostName::new(&name) {
            Ok(host) => Some(host),
            Err(error) => {
                if fs::symlink_metadata(self.path.join(&*name)).is_ok_and(|found| !found.is_file()) {
                    tracing::error!(code = error.code(), "an app cannot be served: {error}");
                    if rejected.len() < REJECTED_COUNT {
                        rejected.insert(name.into_owned(), error);
                    }
                } else {
                    rejected.remove(&*name);
                }
                None
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe, for the sake of types whose descriptor changes; an `OwnedFd` \
              keeps its own"
)]
fn readiness(events: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(events)
}

/// The folder's changes come one after the other; each is the newest.
fn apply(node: &Node, kind: ChangeKind) {
    node.apply(Change { number: node.newest_change() + 1, kind });
}
