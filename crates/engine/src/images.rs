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

use crate::{Digest, EngineKind, MemoryPool, Tier, debugger::Registration, image_store::SharedCode};

/// A compiled image that is mapped. Unmapped when it is dropped and the last of its
/// instances is gone; whoever serves it keeps it.
pub struct MappedImage {
    /// The component, ready to be linked.
    pub component: Component,
    /// The engine it belongs to.
    pub kind: EngineKind,
    /// Where its memory comes from, unless that is Wasmtime's pool. Instantiate
    /// within its [`MemoryPool::scope`].
    pub memory: Option<Arc<MemoryPool>>,
    /// The digest of its source.
    pub digest: Digest,
    image_bytes: u64,
    /// Its code, if other images have the same.
    code: Option<Arc<MappedCode>>,
    mapped: Weak<MappedImages>,
    /// What debuggers know of it.
    _registration: Option<Registration>,
}

impl MappedImage {
    /// The size of its file.
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    /// The size of the file with its code, if that is in one of its own.
    pub fn shared_code_bytes(&self) -> Option<u64> {
        Some(self.code.as_ref()?.image_bytes)
    }

    /// Memory that an instance begins with and that no limiter is asked for.
    pub fn extra_memory_bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.extra_bytes())
    }
}

/// Code that images share, mapped once for all of them.
pub(crate) struct MappedCode {
    pub(crate) component: Component,
    pub(crate) can_rewind: bool,
    digest: Digest,
    kind: EngineKind,
    image_bytes: u64,
    mapped: Weak<MappedImages>,
}

/// What is mapped in all. An image takes three mappings (what comes before its code,
/// the code, what comes after), and one descriptor unless its memory comes from our own pool;
/// code that images share is counted as an image of its own.
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
    codes: Mutex<HashMap<(Digest, EngineKind), Weak<MappedCode>>>,
    /// While a component is read, verified or compiled.
    components: Turns,
    /// While code is looked for and compiled that components share. Whoever has a turn
    /// here has one above; nobody takes them the other way round.
    shared_codes: Turns,
    images_count: AtomicUsize,
    image_bytes: AtomicU64,
}

/// Whoever wants what somebody else is about to make waits for it; not who wants it in
/// another tier, since to optimize takes long.
#[derive(Default)]
struct Turns(Mutex<HashMap<Turn, Arc<Mutex<()>>>>);

/// What is made, and in which tier.
type Turn = (Digest, Tier);

/// A component as it was mapped or made.
pub(crate) struct Parts {
    pub(crate) component: Component,
    pub(crate) code: Option<Arc<MappedCode>>,
    pub(crate) memory: Option<Arc<MemoryPool>>,
    pub(crate) registration: Option<Registration>,
    pub(crate) image_bytes: u64,
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
    /// there already, that one is returned and the new one dropped; unless the new one is
    /// optimized and the other is not, which those keep who have it.
    pub(crate) fn insert(
        self: &Arc<Self>,
        parts: Parts,
        kind: EngineKind,
        digest: Digest,
    ) -> Arc<MappedImage> {
        let Parts { component, code, memory, registration, image_bytes } = parts;
        let mut by_digest = self.by_digest();
        if let Some(image) = by_digest.get(&digest).and_then(Weak::upgrade)
            && (image.kind.tier == Tier::Optimized || kind.tier == Tier::Baseline)
        {
            return image;
        }
        self.count(image_bytes);
        let image = Arc::new(MappedImage {
            component,
            memory,
            kind,
            digest,
            image_bytes,
            code,
            mapped: Arc::downgrade(self),
            _registration: registration,
        });
        by_digest.insert(digest, Arc::downgrade(&image));
        image
    }

    /// Code that some image has mapped.
    pub(crate) fn code(&self, digest: &Digest, kind: EngineKind) -> Option<Arc<MappedCode>> {
        lock(&self.codes).get(&(*digest, kind))?.upgrade()
    }

    /// Takes in code that was just mapped. If it was mapped already, the new mapping is
    /// dropped.
    pub(crate) fn insert_code(
        self: &Arc<Self>,
        SharedCode { component, can_rewind, image_bytes }: SharedCode,
        kind: EngineKind,
        digest: Digest,
    ) -> Arc<MappedCode> {
        let mut codes = lock(&self.codes);
        if let Some(code) = codes.get(&(digest, kind)).and_then(Weak::upgrade) {
            return code;
        }
        self.count(image_bytes);
        let mapped = Arc::downgrade(self);
        let code = Arc::new(MappedCode { component, can_rewind, digest, kind, image_bytes, mapped });
        codes.insert((digest, kind), Arc::downgrade(&code));
        code
    }

    /// Runs `load` while nobody else loads the same component, or makes it in this tier.
    pub(crate) fn alone<T>(&self, digest: Digest, tier: Tier, load: impl FnOnce() -> T) -> T {
        self.components.alone((digest, tier), load)
    }

    /// Runs `make` while nobody else looks for or makes the same code in this tier.
    pub(crate) fn alone_with_code<T>(&self, digest: Digest, tier: Tier, make: impl FnOnce() -> T) -> T {
        self.shared_codes.alone((digest, tier), make)
    }

    fn count(&self, image_bytes: u64) {
        self.images_count.fetch_add(1, Ordering::Relaxed);
        self.image_bytes.fetch_add(image_bytes, Ordering::Relaxed);
    }

    fn discount(&self, image_bytes: u64) {
        self.images_count.fetch_sub(1, Ordering::Relaxed);
        self.image_bytes.fetch_sub(image_bytes, Ordering::Relaxed);
    }

    fn by_digest(&self) -> MutexGuard<'_, HashMap<Digest, Weak<MappedImage>>> {
        lock(&self.by_digest)
    }
}

impl Turns {
    fn alone<T>(&self, key: Turn, work: impl FnOnce() -> T) -> T {
        let turn = lock(&self.0).entry(key).or_default().clone();
        let held = lock(&turn);
        let result = work();
        drop(held);
        let mut in_progress = lock(&self.0);
        // The map and this thread: nobody else waits.
        if Arc::strong_count(&turn) == 2 {
            in_progress.remove(&key);
        }
        result
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for MappedImage {
    fn drop(&mut self) {
        let Some(mapped) = self.mapped.upgrade() else { return };
        mapped.discount(self.image_bytes);
        let mut by_digest = mapped.by_digest();
        // Another one may have taken its place since the last user let go.
        if by_digest.get(&self.digest).is_some_and(|image| image.strong_count() == 0) {
            by_digest.remove(&self.digest);
        }
    }
}

impl Drop for MappedCode {
    fn drop(&mut self) {
        let Some(mapped) = self.mapped.upgrade() else { return };
        mapped.discount(self.image_bytes);
        let mut codes = lock(&mapped.codes);
        let key = (self.digest, self.kind);
        if codes.get(&key).is_some_and(|code| code.strong_count() == 0) {
            codes.remove(&key);
        }
    }
}

impl fmt::Debug for MappedImage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MappedImage").field("digest", &self.digest).finish_non_exhaustive()
    }
}
