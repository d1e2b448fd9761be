//! Images that are mapped: each distinct one once.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use wasmtime::component::Component;

use crate::{Digest, Flavor, MemoryPool, debugger::Registration};

/// A compiled image that is mapped. Unmapped when it is dropped and the last of its
/// instances is gone; whoever serves it keeps it.
pub struct MappedImage {
    /// The component, ready to be linked.
    pub component: Component,
    /// The engine it belongs to.
    pub flavor: Flavor,
    /// Where its memory comes from, unless that is Wasmtime's pool. Instantiate
    /// within its [`MemoryPool::scope`].
    pub memory: Option<Arc<MemoryPool>>,
    /// The digest of its source.
    pub digest: Digest,
    image_bytes: u64,
    mapped: Weak<MappedImages>,
    /// What debuggers know of it.
    _registration: Option<Registration>,
}

impl MappedImage {
    /// The size of its file.
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }
}

/// What is mapped in all. An image takes three mappings (what comes before its code,
/// the code, what comes after), and one descriptor unless its memory comes from our own pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappedTotals {
    /// How many images.
    pub images_count: usize,
    /// The sizes of their files: what they can take of memory at most.
    pub image_bytes: u64,
}

/// The images of an engine that are mapped.
#[derive(Default)]
pub(crate) struct MappedImages {
    by_digest: Mutex<HashMap<Digest, Weak<MappedImage>>>,
    /// Held while a component is read, verified or compiled, so that whoever wants the
    /// same one waits for it.
    in_progress: Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
    images_count: AtomicUsize,
    image_bytes: AtomicU64,
}

impl MappedImages {
    pub(crate) fn totals(&self) -> MappedTotals {
        MappedTotals {
            images_count: self.images_count.load(Ordering::Relaxed),
            image_bytes: self.image_bytes.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn get(&self, digest: &Digest) -> Option<Arc<MappedImage>> {
        self.by_digest().get(digest)?.upgrade()
    }

    /// Takes in an image that was just mapped. If another one of the same source is
    /// there already, that one is returned and the new one dropped.
    pub(crate) fn insert(
        self: &Arc<Self>,
        component: Component,
        (memory, registration): (Option<Arc<MemoryPool>>, Option<Registration>),
        flavor: Flavor,
        digest: Digest,
        image_bytes: u64,
    ) -> Arc<MappedImage> {
        let mut by_digest = self.by_digest();
        if let Some(image) = by_digest.get(&digest).and_then(Weak::upgrade) {
            return image;
        }
        self.images_count.fetch_add(1, Ordering::Relaxed);
        self.image_bytes.fetch_add(image_bytes, Ordering::Relaxed);
        let image = Arc::new(MappedImage {
            component,
            memory,
            flavor,
            digest,
            image_bytes,
            mapped: Arc::downgrade(self),
            _registration: registration,
        });
        by_digest.insert(digest, Arc::downgrade(&image));
        image
    }

    /// Runs `load` while nobody else loads the same component.
    pub(crate) fn alone<T>(&self, digest: Digest, load: impl FnOnce() -> T) -> T {
        let turn = lock(&self.in_progress).entry(digest).or_default().clone();
        let held = lock(&turn);
        let result = load();
        drop(held);
        let mut in_progress = lock(&self.in_progress);
        // The map and this thread: nobody else waits.
        if Arc::strong_count(&turn) == 2 {
            in_progress.remove(&digest);
        }
        result
    }

    fn by_digest(&self) -> MutexGuard<'_, HashMap<Digest, Weak<MappedImage>>> {
        lock(&self.by_digest)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for MappedImage {
    fn drop(&mut self) {
        let Some(mapped) = self.mapped.upgrade() else { return };
        mapped.images_count.fetch_sub(1, Ordering::Relaxed);
        mapped.image_bytes.fetch_sub(self.image_bytes, Ordering::Relaxed);
        let mut by_digest = mapped.by_digest();
        // Another one may have taken its place since the last user let go.
        if by_digest.get(&self.digest).is_some_and(|image| image.strong_count() == 0) {
            by_digest.remove(&self.digest);
        }
    }
}

impl fmt::Debug for MappedImage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MappedImage").field("digest", &self.digest).finish_non_exhaustive()
    }
}
