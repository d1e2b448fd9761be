//! Making apps ready ahead of their first request.
//!
//! One thread with the lowest priority takes apps one by one: it reads the manifest,
//! compiles what has no compiled image, verifies images and links imports, and keeps
//! nothing of it but the knowledge. So health has facts about apps that nobody has asked
//! for yet, and the first request finds nothing left to do but to map an image.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
};

use crate::{
    Error, Errors, Node,
    entry::{Content, Entry, Fact, Problem},
    loading::{report, resolve},
};

/// The niceness of the thread: it runs when nobody else wants to.
const NICENESS: i32 = 19;

/// Apps that wait to be made ready.
#[derive(Default)]
pub(crate) struct PrepareQueue {
    waiting: Mutex<Waiting>,
    has_some: Condvar,
}

#[derive(Default)]
struct Waiting {
    entries: VecDeque<Arc<Entry>>,
    is_closed: bool,
}

impl PrepareQueue {
    pub(crate) fn push(&self, entry: Arc<Entry>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).entries.push_back(entry);
        self.has_some.notify_one();
    }

    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.is_closed = true;
        waiting.entries = VecDeque::new();
        self.has_some.notify_all();
    }

    pub(crate) fn count(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).entries.len()
    }

    /// The next app; waits for one. `None` when the queue is closed.
    fn next(&self) -> Option<Arc<Entry>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if waiting.is_closed {
                return None;
            }
            if let Some(entry) = waiting.entries.pop_front() {
                return Some(entry);
            }
            // All done: what the queue took is given back.
            waiting.entries.shrink_to_fit();
            waiting = self.has_some.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Prepares apps until the node ends.
pub(crate) fn run(node: &Weak<Node>) {
    // If it is refused, the pass is merely less polite.
    let _ = rustix::process::nice(NICENESS);
    while let Some(node) = node.upgrade() {
        let Some(entry) = node.to_prepare.next() else { return };
        node.prepare(&entry);
    }
}

impl Node {
    /// Finds out what there is to know about an app, unless that is known.
    fn prepare(&self, entry: &Arc<Entry>) {
        if entry.is_removed() || entry.has(Fact::Prepared) || entry.has(Fact::Mapped) {
            return;
        }
        let (epoch, content) = {
            let state = entry.state();
            (state.epoch, self.content(entry, &state))
        };
        let checked = self.check(entry, &content);
        let mut state = entry.state();
        if state.epoch != epoch || entry.is_removed() || entry.has(Fact::Mapped) {
            return;
        }
        match checked {
            Ok(probe) => {
                entry.set(Fact::ManifestOk, true);
                entry.set(Fact::Prepared, true);
                entry.set(Fact::Broken, false);
                state.problem = None;
                drop(state);
                if let Some(path) = probe {
                    self.probe_once(entry.clone(), path);
                }
            }
            Err((has_manifest, errors)) => {
                entry.set(Fact::ManifestOk, has_manifest);
                entry.set(Fact::Broken, true);
                let is_new = state.problem.is_none();
                state.problem = Some(Box::new(Problem::of(&errors)));
                drop(state);
                if is_new {
                    report(&entry.host, &errors, false);
                }
            }
        }
    }

    fn check(&self, entry: &Entry, content: &Content) -> Result<Option<String>, (bool, Errors)> {
        let no_manifest = |error: Error| (false, Errors::from(error));
        let folder = match content {
            Content::Folder(folder) => resolve(&entry.host, folder),
            Content::Release(release) => self.describe(release).map(|described| described.folder),
        };
        let folder = folder.map_err(no_manifest)?;
        let app = self.manifests.read(&entry.host, &folder).map_err(no_manifest)?.app;
        self.runtime.prepare(&app, &self.settings.app).map_err(|errors| (true, errors))?;
        Ok(app.wisp.probe.clone())
    }

    /// The one deep probe after a change, for an app that asks for it.
    fn probe_once(&self, entry: Arc<Entry>, path: String) {
        let this = self.this();
        self.control().spawn(async move {
            if let Err(error) = this.probe(entry.host.as_str(), Some(&path)).await {
                let errors = Errors::from(error);
                let mut state = entry.state();
                if state.problem.is_none() {
                    report(&entry.host, &errors, false);
                    state.problem = Some(Box::new(Problem::of(&errors)));
                }
            }
        });
    }
}
