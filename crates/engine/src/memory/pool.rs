//! Slots for one component's memory.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    pin::Pin,
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

use super::dirty_pages;

/// Idle slots that one component keeps. Each holds the pages that its requests
/// wrote to: 0.8 MiB for a small handler in JavaScript, 2 MiB in Python.
const MAX_IDLE_COUNT: usize = 64;

/// Memory that the idle slots of all components hold together. What does not fit is
/// given back to the kernel, and the next request maps it anew.
const MAX_IDLE_BYTES: usize = 1 << 30;

/// How long a slot may be idle. A component that had no request for so long starts
/// from its image again.
const MAX_IDLE_TIME: Duration = Duration::from_secs(30);

/// Slots that one sweep unmaps: it takes up to 0.1 ms each, and the thread that
/// sweeps also preempts guests.
const MAX_SWEPT_COUNT: usize = 16;

/// Pages of one slot that are kept for the next request. A guest that wrote to more
/// gives them back to the kernel: resetting them would cost more than faults.
const MAX_RESIDENT_BYTES: usize = 64 << 20;

/// A range of addresses of our own; unmapped when dropped.
pub(super) struct Mapping {
    base: NonNull<u8>,
    length_bytes: usize,
}

// SAFETY: addresses; whoever reads or writes through them brings the proof.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves addresses that cannot be accessed yet.
    pub(super) fn reserve(length_bytes: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at a place that the kernel chooses.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length_bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, length_bytes })
    }

    /// Maps part of a file for reading.
    fn read_only(file: &File, offset_bytes: u64, length_bytes: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at a place that the kernel chooses.
        let base = unsafe {
            mmap(std::ptr::null_mut(), length_bytes, ProtFlags::READ, MapFlags::PRIVATE, file, offset_bytes)
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, length_bytes })
    }

    pub(super) fn length_bytes(&self) -> usize {
        self.length_bytes
    }

    pub(super) fn addresses(&self) -> Range<usize> {
        let start = self.base.as_ptr().addr();
        start..start + self.length_bytes
    }

    /// The address `offset_bytes` into the mapping, which must not be past its end.
    pub(super) fn pointer(&self, offset_bytes: usize) -> *mut u8 {
        debug_assert!(offset_bytes <= self.length_bytes);
        self.base.as_ptr().wrapping_add(offset_bytes)
    }

    /// Lets a part be read and written.
    pub(super) fn make_accessible(&self, part: Range<usize>) -> io::Result<()> {
        self.protect(part, MprotectFlags::READ | MprotectFlags::WRITE)
    }

    /// Lets a part not be accessed; its pages stay.
    fn make_inaccessible(&self, part: Range<usize>) -> io::Result<()> {
        self.protect(part, MprotectFlags::empty())
    }

    fn protect(&self, part: Range<usize>, flags: MprotectFlags) -> io::Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        assert!(part.end <= self.length_bytes, "a part lies inside its mapping");
        // SAFETY: the part belongs to this mapping.
        unsafe { mprotect(self.pointer(part.start).cast(), part.len(), flags) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever used it is gone.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.length_bytes) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// What a memory contains before its instance starts.
pub(crate) struct MemoryImage {
    file: File,
    offset_bytes: u64,
    /// The same bytes, to copy pages back from.
    contents: Mapping,
}

impl MemoryImage {
    /// The contents that lie in `file`, which nobody may change: whole pages from
    /// `offset_bytes` on, which is at a page's start.
    pub(crate) fn map(file: File, offset_bytes: u64, length_bytes: usize) -> io::Result<Self> {
        let contents = Mapping::read_only(&file, offset_bytes, length_bytes)?;
        Ok(Self { file, offset_bytes, contents })
    }

    /// Contents that lie in no file yet.
    pub(crate) fn copy(contents: &[u8]) -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create("wisp-memory", rustix::fs::MemfdFlags::CLOEXEC)?);
        io::Write::write_all(&mut &file, contents)?;
        Self::map(file, 0, contents.len())
    }

    fn length_bytes(&self) -> usize {
        self.contents.length_bytes
    }
}

/// One component's memories: those that are idle, and what each begins with.
pub struct MemoryPool {
    image: MemoryImage,
    /// In the order in which they became idle.
    idle: Mutex<VecDeque<(Slot, Instant)>>,
    all: Arc<MemoryPools>,
}

/// The pools of all components, which share one bound.
#[derive(Default)]
pub(crate) struct MemoryPools {
    pools: Mutex<Vec<Weak<MemoryPool>>>,
    idle_bytes: AtomicUsize,
}

/// Addresses for one memory with the component's contents mapped in.
struct Slot {
    mapping: Mapping,
    /// Where the memory begins: there is a guard before it too.
    start_bytes: usize,
    /// What can be accessed when nobody uses it: the memory's initial size.
    initial_bytes: usize,
    /// Pages of its own that it holds; known when it is idle.
    resident_bytes: usize,
}

impl MemoryPools {
    /// A pool for a component whose memory begins with `image`.
    pub(crate) fn pool(self: &Arc<Self>, image: MemoryImage) -> Arc<MemoryPool> {
        let pool = Arc::new(MemoryPool { image, idle: Mutex::default(), all: self.clone() });
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        // Those whose components are gone make room before the list grows.
        if pools.len() == pools.capacity() {
            pools.retain(|pool| pool.strong_count() > 0);
        }
        pools.push(Arc::downgrade(&pool));
        pool
    }

    /// Unmaps slots that have been idle for too long; a bounded number at once.
    pub(crate) fn sweep(&self) {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut swept_count = 0;
        for pool in pools.iter().filter_map(Weak::upgrade) {
            while swept_count < MAX_SWEPT_COUNT
                && let Some(slot) = pool.take_stale()
            {
                drop(slot);
                swept_count += 1;
            }
        }
    }
}

impl MemoryPool {
    /// Runs an instantiation of the component this pool belongs to.
    pub fn scope<F: Future>(self: &Arc<Self>, instantiation: F) -> impl Future<Output = F::Output> {
        Scope { pool: self.clone(), future: Box::pin(instantiation) }
    }

    fn take(&self, initial_bytes: usize, reserved_bytes: usize, guard_bytes: usize) -> io::Result<Slot> {
        // The last one in: its pages are still in the processor's caches.
        let idle = self.idle().pop_back();
        match idle {
            Some((slot, _)) => {
                self.all.idle_bytes.fetch_sub(slot.resident_bytes, Ordering::Relaxed);
                Ok(slot)
            }
            None => Slot::new(&self.image, initial_bytes, reserved_bytes, guard_bytes),
        }
    }

    /// Keeps a slot for the next request, if there is room; unmaps it otherwise.
    fn put(&self, slot: Slot) {
        let resident_bytes = slot.resident_bytes;
        let others_bytes = self.all.idle_bytes.fetch_add(resident_bytes, Ordering::Relaxed);
        let refused = {
            let mut idle = self.idle();
            if idle.len() < MAX_IDLE_COUNT && others_bytes + resident_bytes <= MAX_IDLE_BYTES {
                idle.push_back((slot, Instant::now()));
                None
            } else {
                Some(slot)
            }
        };
        if refused.is_some() {
            self.all.idle_bytes.fetch_sub(resident_bytes, Ordering::Relaxed);
        }
    }

    fn take_stale(&self) -> Option<Slot> {
        let (slot, _) = self.idle().pop_front_if(|(_, since)| since.elapsed() > MAX_IDLE_TIME)?;
        self.all.idle_bytes.fetch_sub(slot.resident_bytes, Ordering::Relaxed);
        Some(slot)
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<(Slot, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MemoryPool {
    fn drop(&mut self) {
        let resident_bytes = self.idle().iter().map(|(slot, _)| slot.resident_bytes).sum();
        self.all.idle_bytes.fetch_sub(resident_bytes, Ordering::Relaxed);
    }
}

impl Slot {
    fn new(
        image: &MemoryImage,
        initial_bytes: usize,
        reserved_bytes: usize,
        guard_bytes: usize,
    ) -> io::Result<Self> {
        let start_bytes = guard_bytes;
        let mapping = Mapping::reserve(start_bytes + reserved_bytes + guard_bytes)?;
        let slot = Self { mapping, start_bytes, initial_bytes, resident_bytes: 0 };
        if image.length_bytes() > initial_bytes || initial_bytes > reserved_bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // Whole huge pages would have to be cleared for one byte written.
        // SAFETY: advice on our own mapping.
        let _ = unsafe { madvise(slot.base().cast(), reserved_bytes, Advice::LinuxNoHugepage) };
        // SAFETY: replaces the beginning of our own reservation, which nobody uses.
        unsafe {
            mmap(
                slot.base().cast(),
                image.length_bytes(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED,
                &image.file,
                image.offset_bytes,
            )
        }?;
        slot.mapping.make_accessible(start_bytes + image.length_bytes()..start_bytes + initial_bytes)?;
        Ok(slot)
    }

    fn base(&self) -> *mut u8 {
        self.mapping.pointer(self.start_bytes)
    }

    /// Makes the memory, which had grown to `size_bytes`, as it was in the beginning.
    fn reset(&mut self, image: &MemoryImage, size_bytes: usize) -> io::Result<()> {
        let start = self.base().addr();
        let image_end = start + image.length_bytes();
        let mut resident_bytes = 0;
        let known = dirty_pages::scan(start..start + size_bytes, |dirty| {
            resident_bytes += dirty.len();
            if resident_bytes > MAX_RESIDENT_BYTES {
                return;
            }
            let from_image = dirty.start.min(image_end)..dirty.end.min(image_end);
            let zeros = dirty.start.max(image_end)..dirty.end.max(image_end);
            // SAFETY: both ranges lie in the accessible part of this slot, whose
            // instance is gone; the image is as long as the first range reaches.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    image.contents.pointer(from_image.start - start),
                    self.base().wrapping_add(from_image.start - start),
                    from_image.len(),
                );
                self.base().wrapping_add(zeros.start - start).write_bytes(0, zeros.len());
            }
        });
        if !known || resident_bytes > MAX_RESIDENT_BYTES {
            // SAFETY: private pages of this slot, whose instance is gone: the next
            // access finds the file's contents or zeros.
            unsafe { madvise(self.base().cast(), size_bytes, Advice::LinuxDontNeed) }?;
            resident_bytes = 0;
        }
        self.resident_bytes = resident_bytes;
        self.mapping.make_inaccessible(self.start_bytes + self.initial_bytes..self.start_bytes + size_bytes)
    }
}

/// A memory in use.
struct PooledMemory {
    slot: Option<Slot>,
    base: *mut u8,
    size_bytes: usize,
    capacity_bytes: usize,
    pool: Arc<MemoryPool>,
}

// SAFETY: the slot is this memory's alone.
unsafe impl Send for PooledMemory {}
// SAFETY: as above; it is only changed through `&mut`.
unsafe impl Sync for PooledMemory {}

// SAFETY: the memory is page aligned, of whole pages, never moves, and is followed by
// addresses that cannot be accessed, of the size that the creator was asked for.
unsafe impl LinearMemory for PooledMemory {
    fn byte_size(&self) -> usize {
        self.size_bytes
    }

    fn byte_capacity(&self) -> usize {
        self.capacity_bytes
    }

    fn grow_to(&mut self, size_bytes: usize) -> wasmtime::Result<()> {
        if size_bytes > self.capacity_bytes {
            wasmtime::bail!("a memory cannot grow beyond {} bytes", self.capacity_bytes);
        }
        if let Some(slot) = &self.slot {
            slot.mapping
                .make_accessible(slot.start_bytes + self.size_bytes..slot.start_bytes + size_bytes)?;
        }
        self.size_bytes = size_bytes;
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for PooledMemory {
    fn drop(&mut self) {
        let Some(mut slot) = self.slot.take() else { return };
        match slot.reset(&self.pool.image, self.size_bytes) {
            Ok(()) => self.pool.put(slot),
            Err(error) => tracing::warn!("a memory could not be reset and is given back: {error}"),
        }
    }
}

thread_local! {
    /// Whose instance this thread is making.
    static CURRENT: RefCell<Option<Arc<MemoryPool>>> = const { RefCell::new(None) };
}

/// An instantiation that finds its component's pool.
struct Scope<F> {
    pool: Arc<MemoryPool>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let before = CURRENT.replace(Some(self.pool.clone()));
        let polled = self.future.as_mut().poll(context);
        CURRENT.set(before);
        polled
    }
}

/// Gives Wasmtime memories from the pool of the component that is being
/// instantiated.
pub(crate) struct Creator;

// SAFETY: see `PooledMemory`.
unsafe impl MemoryCreator for Creator {
    fn new_memory(
        &self,
        _: MemoryType,
        initial_bytes: usize,
        _: Option<usize>,
        reserved_bytes: Option<usize>,
        guard_bytes: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let pool = CURRENT.with_borrow(Clone::clone).ok_or("no component is being instantiated")?;
        let reserved_bytes = reserved_bytes.unwrap_or(initial_bytes).max(initial_bytes);
        let slot =
            pool.take(initial_bytes, reserved_bytes, guard_bytes).map_err(|error| error.to_string())?;
        Ok(Box::new(PooledMemory {
            base: slot.base(),
            slot: Some(slot),
            size_bytes: initial_bytes,
            capacity_bytes: reserved_bytes,
            pool,
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::task::Waker;

    use wasmtime::{
        Store,
        component::{Component, Instance, Linker},
    };

    use super::*;
    use crate::{Engine, EngineConfig, Flavor, LoadedComponent};

    /// Where the data of the test's component begins, and how much there is.
    const DATA_START: u32 = 70_000;
    const DATA_BYTES: u32 = 3 << 19;
    /// The size of its memory: 64 pages of 64 KiB.
    const MEMORY_BYTES: u32 = 64 << 16;

    /// A component with a memory of which `DATA_BYTES` are filled.
    fn source() -> String {
        let data: String = (0..DATA_BYTES).map(|at| char::from(contents(at))).collect();
        format!(
            r#"(component
                (core module $module
                    (memory 64)
                    (data $passive "passive")
                    (data $active (i32.const {DATA_START}) "{data}")
                    (data (i32.const {DATA_START}) "first")
                    (func (export "read") (param i32) (result i32) (i32.load8_u (local.get 0)))
                    (func (export "write") (param i32 i32) (i32.store8 (local.get 0) (local.get 1)))
                    (func (export "grow") (result i32) (memory.grow (i32.const 1)))
                    (func (export "copy-passive") (param i32)
                        (memory.init $passive (local.get 0) (i32.const 0) (i32.const 7)))
                    (func (export "copy-active") (param i32)
                        (memory.init $active (local.get 0) (i32.const 0) (i32.const 1))))
                (core instance $instance (instantiate $module))
                (func (export "read") (param "at" u32) (result u32) (canon lift (core func $instance "read")))
                (func (export "write") (param "at" u32) (param "value" u32)
                    (canon lift (core func $instance "write")))
                (func (export "grow") (result u32) (canon lift (core func $instance "grow")))
                (func (export "copy-passive") (param "at" u32)
                    (canon lift (core func $instance "copy-passive")))
                (func (export "copy-active") (param "at" u32)
                    (canon lift (core func $instance "copy-active"))))"#
        )
    }

    fn contents(at: u32) -> u8 {
        b'a' + u8::try_from(at % 23).unwrap()
    }

    /// What a fresh memory holds at an address.
    fn expected(address: u32) -> u32 {
        match address.checked_sub(DATA_START) {
            Some(at @ 0..5) => u32::from(b"first"[at as usize]),
            Some(at @ 5..DATA_BYTES) => u32::from(contents(at)),
            _ => 0,
        }
    }

    struct Guest {
        store: Store<()>,
        instance: Instance,
    }

    struct Fixture {
        engine: Engine,
        loaded: LoadedComponent,
    }

    impl Fixture {
        fn new() -> Self {
            let engine =
                Engine::new(&EngineConfig { pooling: false, ..EngineConfig::default() }, None).unwrap();
            let loaded = engine.load(&wat::parse_str(source()).unwrap()).unwrap();
            assert_eq!(loaded.flavor, Flavor::PlainSnapshot);
            Self { engine, loaded }
        }

        fn guest(&self) -> Guest {
            let engine = self.engine.wasmtime(self.loaded.flavor);
            let mut store = Store::new(engine, ());
            store.set_epoch_deadline(1_000_000);
            let linker: Linker<()> = Linker::new(engine);
            let pool = self.loaded.memory.as_ref().unwrap();
            let instance =
                run(pool.scope(linker.instantiate_async(&mut store, &self.loaded.component))).unwrap();
            Guest { store, instance }
        }

        fn idle_count(&self) -> usize {
            self.loaded.memory.as_ref().unwrap().idle().len()
        }
    }

    /// Nothing here ever waits.
    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        loop {
            if let Poll::Ready(ready) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return ready;
            }
        }
    }

    impl Guest {
        fn call<P, R>(&mut self, name: &str, parameters: P) -> wasmtime::Result<R>
        where
            P: wasmtime::component::ComponentNamedList + wasmtime::component::Lower + Send + Sync,
            R: wasmtime::component::ComponentNamedList + wasmtime::component::Lift + Send + Sync + 'static,
        {
            let function = self.instance.get_typed_func::<P, R>(&mut self.store, name)?;
            run(function.call_async(&mut self.store, parameters))
        }

        fn read(&mut self, at: u32) -> u32 {
            self.call::<_, (u32,)>("read", (at,)).unwrap().0
        }

        fn write(&mut self, at: u32, value: u32) {
            self.call::<_, ()>("write", (at, value)).unwrap();
        }

        /// A place on every page, and the edges of the data.
        fn assert_fresh(&mut self) {
            let edges = [DATA_START - 1, DATA_START, DATA_START + 5, DATA_START + DATA_BYTES - 1];
            let pages = (0..MEMORY_BYTES).step_by(4096).map(|page| page + page / 4096 % 4096);
            for address in pages.chain(edges).chain([DATA_START + DATA_BYTES, MEMORY_BYTES - 1]) {
                assert_eq!(self.read(address), expected(address), "at {address}");
            }
        }
    }

    #[test]
    fn a_memory_begins_with_its_data() {
        Fixture::new().guest().assert_fresh();
    }

    #[test]
    fn no_instance_sees_what_another_wrote() {
        let fixture = Fixture::new();
        let mut random = 7_u32;
        for _ in 0..20 {
            let mut guest = fixture.guest();
            guest.assert_fresh();
            for _ in 0..200 {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                guest.write(random % MEMORY_BYTES, 0xff);
            }
            drop(guest);
            assert_eq!(fixture.idle_count(), 1, "the same slot is used again");
        }
    }

    #[test]
    fn instances_side_by_side_have_memories_of_their_own() {
        let fixture = Fixture::new();
        let (mut one, mut other) = (fixture.guest(), fixture.guest());
        one.write(DATA_START, 1);
        assert_eq!(other.read(DATA_START), expected(DATA_START));
        drop((one, other));
        assert_eq!(fixture.idle_count(), 2);
    }

    #[test]
    fn what_was_grown_is_gone_and_zero_when_it_comes_back() {
        let fixture = Fixture::new();
        for _ in 0..3 {
            let mut guest = fixture.guest();
            assert!(guest.call::<_, (u32,)>("read", (MEMORY_BYTES,)).is_err(), "outside of the memory");
            let mut guest = fixture.guest();
            assert_eq!(guest.call::<_, (u32,)>("grow", ()).unwrap().0, 64);
            assert_eq!(guest.read(MEMORY_BYTES), 0);
            guest.write(MEMORY_BYTES, 9);
            assert_eq!(guest.read(MEMORY_BYTES), 9);
        }
    }

    #[test]
    fn passive_segments_stay_and_active_ones_are_dropped() {
        let fixture = Fixture::new();
        let mut guest = fixture.guest();
        guest.call::<_, ()>("copy-passive", (0_u32,)).unwrap();
        assert_eq!(guest.read(6), u32::from(b'e'));
        assert!(guest.call::<_, ()>("copy-active", (0_u32,)).is_err());
    }

    #[test]
    fn idle_memory_is_counted_and_given_back() {
        let fixture = Fixture::new();
        let all = fixture.loaded.memory.as_ref().unwrap().all.clone();
        let mut guest = fixture.guest();
        guest.write(0, 1);
        guest.write(DATA_START, 1);
        assert_eq!(all.idle_bytes.load(Ordering::Relaxed), 0);
        drop(guest);
        assert!(all.idle_bytes.load(Ordering::Relaxed) >= 2 * super::super::page_bytes());
        drop(fixture);
        assert_eq!(all.idle_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_instantiation_outside_of_a_scope_is_refused() {
        let fixture = Fixture::new();
        let engine = fixture.engine.wasmtime(fixture.loaded.flavor);
        let linker: Linker<()> = Linker::new(engine);
        let component: &Component = &fixture.loaded.component;
        assert!(run(linker.instantiate_async(&mut Store::new(engine, ()), component)).is_err());
    }
}
