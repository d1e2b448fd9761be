//! One app: what is known about it, and what serves it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime},
};

use tokio::sync::watch;
use wisp_engine::FileIdentity;
use wisp_trigger::http::{HttpApp, Outcomes, Refusal};

use crate::{AppState, Error, Errors, HostName, ReleaseId};

/// One app of a node.
///
/// There may be 100,000 of these, nearly all of them *registered* and no more: then an
/// entry is all there is of the app. Its size, with what the allocator adds:
///
/// | bytes | what |
/// | --- | --- |
/// | 192 | the entry itself and its reference counts |
/// | 48 | the host's name, of 24 letters and its reference counts |
/// | 18 | its place in the table, which grows by doubling |
/// | 64 | the digest of its source by the file's identity (engine) |
/// | 150 | the identity of its image, if verified (engine) |
///
/// The folder of its manifest takes nothing where it is the usual one. What is beyond
/// (counters of requests, problems, versions) is allocated when there is some.
pub(crate) struct Entry {
    pub(crate) host: HostName,
    /// The entry that this is another name for. Then nothing else here is of use.
    pub(crate) alias: Option<Arc<Entry>>,
    /// Bits of [`Fact`].
    facts: AtomicU32,
    /// When it was last used, in seconds of the node's clock.
    last_used_s: AtomicU32,
    /// What answers requests now. Written only with `state` locked, and only to store a
    /// pointer.
    current: RwLock<Option<Arc<Version>>>,
    outcomes: OnceLock<Arc<Outcomes>>,
    state: Mutex<EntryState>,
}

/// What is looked at only when something changes.
pub(crate) struct EntryState {
    /// The change that put it.
    pub(crate) number: u64,
    /// Counts what makes a load that goes on worthless: changes and rollbacks.
    pub(crate) epoch: u32,
    /// What is to be served; `None` is the folder at the usual place.
    pub(crate) content: Option<Box<Content>>,
    /// Why its newest version cannot be served.
    pub(crate) problem: Option<Box<Problem>>,
    /// The load that is going on.
    pub(crate) flight: Option<Arc<Flight>>,
    /// The version before the current one, to go back to.
    pub(crate) previous: Option<Arc<Version>>,
    /// Its stores and databases, which outlive every version.
    pub(crate) kept_state: Option<Arc<AppState>>,
    /// The folder of the version that an operator left by rolling back.
    pub(crate) left: Option<Box<Path>>,
}

/// What is to be served at a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// What is in this folder, whatever that is when it is looked at.
    Folder(PathBuf),
    /// A release, which never changes.
    Release(ReleaseId),
}

/// What a version was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Files(Fingerprint),
    Release(ReleaseId),
}

/// What is known about an app. Each is kept up to date by what happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Fact {
    /// Its manifest was read and is in order.
    ManifestOk = 1,
    /// Compiled, its images verified, all imports there: prepared.
    Prepared = 1 << 1,
    /// Its newest version has a problem.
    Broken = 1 << 2,
    /// A version of it is mapped.
    Mapped = 1 << 3,
    /// It has components that keep instances between requests.
    Reuses = 1 << 4,
    /// It may have idle instances now: it is in the list of what is swept.
    Swept = 1 << 9,
    /// It is in the list of what may be evicted.
    Listed = 1 << 5,
    /// A version is kept to go back to.
    HasPrevious = 1 << 6,
    /// It is in the table no more.
    Removed = 1 << 7,
    /// A deep probe succeeded.
    Probed = 1 << 8,
}

/// One version of an app, mapped.
pub(crate) struct Version {
    pub(crate) http: Arc<HttpApp>,
    /// The change that it came with.
    pub(crate) number: u64,
    pub(crate) origin: Origin,
    /// The stores of this version, where they are not the entry's.
    pub(crate) _stores: Option<Arc<AppState>>,
}

/// Which files a version was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// The manifest's folder, symbolic links resolved.
    pub(crate) folder: PathBuf,
    pub(crate) manifest: FileIdentity,
    pub(crate) sources: Vec<(PathBuf, FileIdentity)>,
    /// Whether every later change of these files would show.
    pub(crate) is_reliable: bool,
}

/// Why an app cannot be served.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: &'static str,
    pub(crate) message: Box<str>,
    pub(crate) since: SystemTime,
    /// When it was last tried.
    pub(crate) tried: Instant,
}

/// A load that is going on, and who waits for it.
pub(crate) struct Flight {
    pub(crate) done: watch::Sender<Option<Result<Arc<HttpApp>, Refusal>>>,
    pub(crate) waiting_count: AtomicUsize,
    pub(crate) since: Instant,
}

impl Entry {
    pub(crate) fn new(host: HostName, number: u64, content: Option<Box<Content>>) -> Self {
        Self {
            host,
            alias: None,
            facts: AtomicU32::new(0),
            last_used_s: AtomicU32::new(0),
            current: RwLock::new(None),
            outcomes: OnceLock::new(),
            state: Mutex::new(EntryState {
                number,
                epoch: 0,
                content,
                problem: None,
                flight: None,
                previous: None,
                kept_state: None,
                left: None,
            }),
        }
    }

    /// Another name for an entry.
    pub(crate) fn alias(host: HostName, number: u64, of: Arc<Entry>) -> Self {
        Self { alias: Some(of), ..Self::new(host, number, None) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, EntryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has(&self, fact: Fact) -> bool {
        self.facts.load(Ordering::Relaxed) & fact as u32 != 0
    }

    pub(crate) fn set(&self, fact: Fact, is_so: bool) {
        if is_so {
            self.facts.fetch_or(fact as u32, Ordering::Relaxed);
        } else {
            self.facts.fetch_and(!(fact as u32), Ordering::Relaxed);
        }
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.facts.load(Ordering::Acquire) & Fact::Removed as u32 != 0
    }

    pub(crate) fn mark_removed(&self) {
        self.facts.fetch_or(Fact::Removed as u32, Ordering::Release);
    }

    /// What answers a request that comes now.
    pub(crate) fn app(&self) -> Option<Arc<HttpApp>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|version| version.http.clone())
    }

    pub(crate) fn version(&self) -> Option<Arc<Version>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another version, or none, in the place of the current one, which is
    /// returned. The caller holds the lock on the state.
    pub(crate) fn replace(
        &self,
        _state: &mut MutexGuard<'_, EntryState>,
        version: Option<Arc<Version>>,
    ) -> Option<Arc<Version>> {
        self.set(Fact::Mapped, version.is_some());
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, version)
    }

    /// Notes that it is used; tells whether that is the first time in this second. Only
    /// then it is written: all threads share the line.
    pub(crate) fn touch(&self, now_s: u32) -> bool {
        let is_first = self.last_used_s.load(Ordering::Relaxed) != now_s;
        if is_first {
            self.last_used_s.store(now_s, Ordering::Relaxed);
        }
        is_first
    }

    pub(crate) fn last_used_s(&self) -> u32 {
        self.last_used_s.load(Ordering::Relaxed)
    }

    /// How its requests end; counted from its first load on.
    pub(crate) fn outcomes(&self) -> &Arc<Outcomes> {
        self.outcomes.get_or_init(Arc::default)
    }

    /// The same, if there was a load.
    pub(crate) fn known_outcomes(&self) -> Option<&Outcomes> {
        self.outcomes.get().map(|outcomes| &**outcomes)
    }
}

impl Version {
    /// Whether a request is using it at the moment: requests keep it until their
    /// responses were sent.
    pub(crate) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.http) > 1
    }

    /// What would have to be loaded again to have this version.
    pub(crate) fn content(&self) -> Content {
        match &self.origin {
            Origin::Files(fingerprint) => Content::Folder(fingerprint.folder.clone()),
            Origin::Release(release) => Content::Release(release.clone()),
        }
    }

    /// Whether loading this now would make the same version.
    pub(crate) fn is_current(&self, wanted: &Content) -> bool {
        match (&self.origin, wanted) {
            (Origin::Files(fingerprint), Content::Folder(folder)) => fingerprint.is_current(folder),
            (Origin::Release(release), Content::Release(wanted)) => release == wanted,
            _ => false,
        }
    }
}

impl Fingerprint {
    /// Whether all files are still what they were.
    pub(crate) fn is_current(&self, folder: &Path) -> bool {
        let is_same = |path: &Path, known: &FileIdentity| {
            FileIdentity::at(path).is_ok_and(|identity| identity == *known)
        };
        let is_manifest = |name: &str| is_same(&folder.join(name), &self.manifest);
        self.is_reliable
            && self.folder == folder
            && (is_manifest(wisp_manifest::MANIFEST_FILE_NAME)
                || is_manifest(wisp_manifest::LOCKED_FILE_NAME)
                    && !folder.join(wisp_manifest::MANIFEST_FILE_NAME).exists())
            && self.sources.iter().all(|(path, identity)| is_same(path, identity))
    }
}

impl Problem {
    pub(crate) fn of(errors: &Errors) -> Self {
        Self {
            code: errors.0.first().map_or("WISP-E0710", Error::code),
            message: errors.to_string().into(),
            since: SystemTime::now(),
            tried: Instant::now(),
        }
    }
}

impl Flight {
    pub(crate) fn new() -> Self {
        Self { done: watch::Sender::new(None), waiting_count: AtomicUsize::new(0), since: Instant::now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_what_its_description_says() {
        // With the two reference counts of its `Arc`.
        assert!(size_of::<Entry>() + 16 <= 192, "{}", size_of::<Entry>());
    }
}
