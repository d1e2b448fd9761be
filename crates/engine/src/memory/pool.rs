//! Slots for one component's memory.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    path::PathBuf,
    pin::Pin,
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};
use wasmtime::{LinearMemory, MemoryCreator, MemoryType, PoolingAllocationConfig, component::Component};

use super::{
    dirty_pages,
    faults::{self, Faults},
};
use crate::{FileIdentity, code::Beginning};

/// Idle slots that one component keeps. Each holds the pages that its requests
/// wrote to: 0.8 MiB for a small handler in JavaScript, 2 MiB in Python.
const MAX_IDLE_COUNT: usize = 64;

/// Memory that the idle slots of all components hold together. What does not fit is
/// given back to the kernel, and the next request maps it anew.
const MAX_IDLE_BYTES: usize = 1 << 30;

/// How long a slot may be idle. A component that had no request for so long starts
/// from its image again.
const MAX_IDLE_TIME: Duration = Duration::from_secs(30);

/// Idle slots of all components together. Each takes about four of the mappings that
/// a process may have (usually 65,530).
const MAX_ALL_IDLE_COUNT: usize = 2_000;

/// Slots that one sweep unmaps: it takes up to 0.1 ms each, and the thread that
/// sweeps also preempts guests.
const MAX_SWEPT_COUNT: usize = 16;

/// Pages of one slot that are kept for the next request. A guest that wrote to more
/// gives them back to the kernel: resetting them would cost more than faults.
const MAX_RESIDENT_BYTES: usize = 64 << 20;

/// Memory that is given back to the kernel at a time. The kernel holds a lock meanwhile
/// that others need to reset theirs, and a thread of low priority may be stopped while
/// it has it: 0.1 ms each.
const MAX_GIVEN_BACK_BYTES: usize = 2 << 20;

/// Ranges of dirty pages that are kept in mind for an instance. JavaScript has 120 of
/// them, Python 600.
const MAX_KNOWN_RANGES_COUNT: usize = 2_048;

/// Slots without contents that are kept for components which have none: as many as are
/// likely to be needed at once.
const MAX_SPARE_COUNT: usize = 16;

/// Pages that such a slot keeps, all of zeros: what a small handler writes to.
const MAX_SPARE_BYTES: usize = 256 << 10;

/// A component that had no request for this long does not keep its slot: most have few
/// requests, and the next one may be any other's.
const DEMAND_WINDOW: Duration = Duration::from_secs(1);

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
            mmap_anonymous(std::ptr::null_mut(), length_bytes, ProtFlags::empty(), RESERVED_FLAGS)
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { base, length_bytes };
        if !stacks_have_small_pages() {
            // SAFETY: advice on our own mapping.
            let _ = unsafe { madvise(base.as_ptr().cast(), length_bytes, Advice::LinuxNoHugepage) };
        }
        Ok(mapping)
    }

    /// Maps part of a file for reading.
    pub(super) fn read_only(file: &File, offset_bytes: u64, length_bytes: usize) -> io::Result<Self> {
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

    /// Gives a part new pages, of zeros, that can be read and written.
    fn make_zero(&self, part: Range<usize>) -> io::Result<()> {
        assert!(part.end <= self.length_bytes, "a part lies inside its mapping");
        let flags = RESERVED_FLAGS.union(MapFlags::FIXED);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the part belongs to this mapping.
        unsafe { mmap_anonymous(self.pointer(part.start).cast(), part.len(), protection, flags) }?;
        Ok(())
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

/// Addresses that are reserved, and of small pages: whole huge pages would have to be
/// cleared for one byte written. Said like this it takes no call of its own.
const RESERVED_FLAGS: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE).union(MapFlags::STACK);

/// Whether the kernel gives mappings for stacks no huge pages: since Linux 6.7, as the
/// scan for dirty pages.
fn stacks_have_small_pages() -> bool {
    static IS_SO: OnceLock<bool> = OnceLock::new();
    *IS_SO.get_or_init(PoolingAllocationConfig::is_pagemap_scan_available)
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
    place: Place,
    contents: Contents,
    /// What the component's code does not say, where others have the same.
    beginning: Option<Arc<Beginning>>,
}

/// Where the contents are found.
enum Contents {
    /// In the compiled image, which is mapped anyway for its code.
    Image {
        component: Component,
        /// Where that comes from. Opened again for each slot rather than kept open:
        /// descriptors are scarcer than slots are made.
        path: PathBuf,
        identity: FileIdentity,
    },
    /// In an image whose code is in another file. It is opened again as above.
    Apart { mapping: Mapping, path: PathBuf, identity: FileIdentity },
    /// In a file of their own that has no name.
    Anonymous { file: File, mapping: Mapping },
}

/// Where a memory's contents lie; all of whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// In their file.
    pub(crate) offset_bytes: u64,
    pub(crate) length_bytes: usize,
    /// In the memory; what is before and after them is zero.
    pub(crate) address: usize,
}

impl MemoryImage {
    /// The contents in the compiled image of `component`, which was mapped from the
    /// file at `path` when that had this identity. `None` if they are not in it.
    pub(crate) fn in_image(
        component: &Component,
        path: PathBuf,
        identity: FileIdentity,
        place: Place,
    ) -> Option<Self> {
        let image = component.image_range();
        let image_bytes = image.end.addr().checked_sub(image.start.addr())?;
        let offset_bytes = usize::try_from(place.offset_bytes).ok()?;
        if offset_bytes.checked_add(place.length_bytes)? > image_bytes {
            return None;
        }
        let contents = Contents::Image { component: component.clone(), path, identity };
        Some(Self { place, contents, beginning: None })
    }

    /// The contents in the image in `file`, which has this path and this identity and no
    /// code. They must lie in it.
    pub(crate) fn apart(
        file: &File,
        path: PathBuf,
        identity: FileIdentity,
        place: Place,
        beginning: Arc<Beginning>,
    ) -> io::Result<Self> {
        let mapping = Mapping::read_only(file, place.offset_bytes, place.length_bytes)?;
        let contents = Contents::Apart { mapping, path, identity };
        Ok(Self { place, contents, beginning: Some(beginning) })
    }

    /// Contents that lie in no file yet.
    pub(crate) fn copy(
        contents: &[u8],
        address: usize,
        beginning: Option<Arc<Beginning>>,
    ) -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create("wisp-memory", rustix::fs::MemfdFlags::CLOEXEC)?);
        io::Write::write_all(&mut &file, contents)?;
        let mapping = Mapping::read_only(&file, 0, contents.len())?;
        let place = Place { offset_bytes: 0, length_bytes: contents.len(), address };
        Ok(Self { place, contents: Contents::Anonymous { file, mapping }, beginning })
    }

    /// How much larger the memory is than the code says.
    fn extra_bytes(&self) -> usize {
        self.beginning.as_ref().map_or(0, |beginning| beginning.extra_bytes)
    }

    /// Initial values of variables that the code does not have.
    fn variables(&self) -> &[u8] {
        self.beginning.as_ref().map_or(&[], |beginning| &beginning.variables)
    }

    /// The contents from `offset_bytes` on; readable to their end.
    fn pointer(&self, offset_bytes: usize) -> *const u8 {
        match &self.contents {
            // Checked when it was made: the place lies in the image, whose offsets fit.
            Contents::Image { component, .. } => {
                let start = usize::try_from(self.place.offset_bytes).unwrap_or(usize::MAX);
                component.image_range().start.wrapping_add(start).wrapping_add(offset_bytes)
            }
            Contents::Apart { mapping, .. } | Contents::Anonymous { mapping, .. } => {
                mapping.pointer(offset_bytes)
            }
        }
    }

    /// Where the contents are in a memory.
    fn addresses(&self) -> Range<usize> {
        self.place.address..self.place.address + self.place.length_bytes
    }

    /// Puts the contents into a memory at `base`: mapped copy-on-write, or copied if
    /// their file is gone.
    ///
    /// # Safety
    /// The place of the contents in the memory can be read and written, and nobody
    /// uses it.
    unsafe fn place_into(&self, base: *mut u8) -> io::Result<()> {
        let Place { offset_bytes, length_bytes, address } = self.place;
        let target = base.wrapping_add(address);
        let opened;
        let file = match &self.contents {
            Contents::Anonymous { file, .. } => Some(file),
            Contents::Image { path, identity, .. } | Contents::Apart { path, identity, .. } => {
                opened = File::open(path)
                    .ok()
                    .filter(|file| FileIdentity::of(file).is_ok_and(|found| found == *identity));
                opened.as_ref()
            }
        };
        match file {
            // SAFETY: the caller's: this replaces pages that nobody uses.
            Some(file) => unsafe {
                let protection = ProtFlags::READ | ProtFlags::WRITE;
                let flags = MapFlags::PRIVATE | MapFlags::FIXED;
                mmap(target.cast(), length_bytes, protection, flags, file, offset_bytes)?;
            },
            // SAFETY: the caller's; the contents are as long as the place.
            None => unsafe { std::ptr::copy_nonoverlapping(self.pointer(0), target, length_bytes) },
        }
        Ok(())
    }
}

/// One component's memories: those that are idle, and what each begins with.
pub struct MemoryPool {
    image: MemoryImage,
    idle: Mutex<Idle>,
    all: Arc<MemoryPools>,
    can_rewind: bool,
}

/// A component's slots that nobody uses.
#[derive(Default)]
struct Idle {
    /// In the order in which they became idle.
    slots: VecDeque<(Slot, Instant)>,
    /// When a slot was last asked for.
    asked: Option<Instant>,
    /// Whether that was soon after the time before.
    is_in_demand: bool,
}

/// The pools of all components, which share one bound.
pub(crate) struct MemoryPools {
    rewinds: bool,
    pools: Mutex<Vec<Weak<MemoryPool>>>,
    /// Slots of components that are not in demand, for any other: their addresses, their
    /// page tables and pages are there already.
    spare: Mutex<Vec<(Slot, Instant)>>,
    idle_bytes: AtomicUsize,
    idle_count: AtomicUsize,
}

/// Addresses for one memory with the component's contents mapped in.
struct Slot {
    mapping: Mapping,
    /// Where contents are mapped in the memory. Those of a spare slot are of no use.
    contents: Range<usize>,
    /// Where the memory begins: there is a guard before it too.
    start_bytes: usize,
    /// What can be accessed when nobody uses it: the memory's initial size.
    initial_bytes: usize,
    /// Pages of its own that it holds; known when it is idle.
    resident_bytes: usize,
}

impl MemoryPools {
    /// No pools yet. Whether instances may be rewound is the operator's decision.
    pub(crate) fn new(rewinds: bool) -> Arc<Self> {
        let (idle_bytes, idle_count) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { rewinds, pools: Mutex::default(), spare: Mutex::default(), idle_bytes, idle_count })
    }

    /// A pool for a component whose memory begins with `image`.
    pub(crate) fn pool(self: &Arc<Self>, image: MemoryImage, can_rewind: bool) -> Arc<MemoryPool> {
        let all = self.clone();
        let can_rewind = can_rewind && self.rewinds;
        let pool = Arc::new(MemoryPool { image, idle: Mutex::default(), all, can_rewind });
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        // Those whose components are gone make room before the list grows.
        if pools.len() == pools.capacity() {
            pools.retain(|pool| pool.strong_count() > 0);
        }
        pools.push(Arc::downgrade(&pool));
        pool
    }

    /// A slot for a memory of this size, which some component has left.
    fn take_spare(&self, reserved_bytes: usize, guard_bytes: usize) -> Option<Slot> {
        let mut spare = self.spare();
        let length_bytes = guard_bytes + reserved_bytes + guard_bytes;
        let is_such =
            |slot: &Slot| slot.start_bytes == guard_bytes && slot.mapping.length_bytes() == length_bytes;
        let position = spare.iter().rposition(|(slot, _)| is_such(slot))?;
        Some(spare.swap_remove(position).0)
    }

    /// Keeps a slot for any component, if there is room; else it is returned.
    fn keep_spare(&self, slot: Slot) -> Option<Slot> {
        let mut spare = self.spare();
        if spare.len() >= MAX_SPARE_COUNT {
            return Some(slot);
        }
        spare.push((slot, Instant::now()));
        None
    }

    fn spare(&self) -> MutexGuard<'_, Vec<(Slot, Instant)>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another spare slot would be kept.
    fn wants_spare(&self) -> bool {
        self.spare().len() < MAX_SPARE_COUNT
    }

    /// Counts one more idle slot; false if it is one too many.
    fn add_idle(&self, resident_bytes: usize) -> bool {
        let all_bytes = self.idle_bytes.fetch_add(resident_bytes, Ordering::Relaxed) + resident_bytes;
        let all_count = self.idle_count.fetch_add(1, Ordering::Relaxed) + 1;
        all_bytes <= MAX_IDLE_BYTES && all_count <= MAX_ALL_IDLE_COUNT
    }

    fn remove_idle(&self, count: usize, resident_bytes: usize) {
        self.idle_bytes.fetch_sub(resident_bytes, Ordering::Relaxed);
        self.idle_count.fetch_sub(count, Ordering::Relaxed);
    }

    /// Unmaps slots that have been idle for too long; a bounded number at once.
    pub(crate) fn sweep(&self) {
        let stale: Vec<_> =
            self.spare().extract_if(.., |(_, since)| since.elapsed() > MAX_IDLE_TIME).collect();
        drop(stale);
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
    /// Whether instances of the component can be rewound, with a
    /// [`Rewinder`](crate::Rewinder).
    pub fn can_rewind(&self) -> bool {
        self.can_rewind
    }

    /// How much larger its memories are than the component's code says, which is all that
    /// a limiter is asked for.
    pub fn extra_bytes(&self) -> usize {
        self.image.extra_bytes()
    }

    /// Runs an instantiation of the component this pool belongs to, and answers with
    /// the memory that the instance was given, if it was made; see [`LentMemory::begin`].
    pub async fn scope<F: Future>(self: &Arc<Self>, instantiation: F) -> (F::Output, Option<LentMemory>) {
        let scope = Scope {
            current: Some(Current { pool: self.clone(), lent: None }),
            future: std::pin::pin!(instantiation),
        };
        let (output, lent) = scope.await;
        (output, lent.map(|shared| LentMemory { shared, remembered: None, known: None }))
    }

    fn take(&self, initial_bytes: usize, reserved_bytes: usize, guard_bytes: usize) -> io::Result<Slot> {
        let taken = {
            let mut idle = self.idle();
            let now = Instant::now();
            let before = idle.asked.replace(now);
            idle.is_in_demand = before.is_some_and(|before| now.duration_since(before) < DEMAND_WINDOW);
            // The last one in: its pages are still in the processor's caches.
            idle.slots.pop_back()
        };
        if let Some((slot, _)) = taken {
            self.all.remove_idle(1, slot.resident_bytes);
            return Ok(slot);
        }
        let Place { length_bytes, address, .. } = self.image.place;
        if address.saturating_add(length_bytes) > initial_bytes || initial_bytes > reserved_bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut slot = match self.all.take_spare(reserved_bytes, guard_bytes) {
            Some(slot) => slot,
            None => Slot::reserve(reserved_bytes, guard_bytes)?,
        };
        slot.fill(&self.image, initial_bytes)?;
        Ok(slot)
    }

    /// Takes back a slot whose memory had grown to `size_bytes`: makes it as it was, for
    /// the component's next request or for any other's.
    fn take_back(&self, mut slot: Slot, size_bytes: usize) -> io::Result<()> {
        let is_small = self.image.place.length_bytes <= MAX_SPARE_BYTES;
        if is_small && !self.idle().is_in_demand && self.all.wants_spare() {
            slot.reset(None, size_bytes)?;
            if slot.resident_bytes <= MAX_SPARE_BYTES {
                // If others were quicker, it is unmapped.
                drop(self.all.keep_spare(slot));
            }
            return Ok(());
        }
        slot.reset(Some(&self.image), size_bytes)?;
        self.put(slot);
        Ok(())
    }

    /// Keeps a slot for the next request, if there is room; unmaps it otherwise.
    fn put(&self, slot: Slot) {
        let resident_bytes = slot.resident_bytes;
        let fits_all = self.all.add_idle(resident_bytes);
        let refused = {
            let mut idle = self.idle();
            if fits_all && idle.slots.len() < MAX_IDLE_COUNT {
                idle.slots.push_back((slot, Instant::now()));
                None
            } else {
                Some(slot)
            }
        };
        if refused.is_some() {
            self.all.remove_idle(1, resident_bytes);
        }
    }

    fn take_stale(&self) -> Option<Slot> {
        let (slot, _) = self.idle().slots.pop_front_if(|(_, since)| since.elapsed() > MAX_IDLE_TIME)?;
        self.all.remove_idle(1, slot.resident_bytes);
        Some(slot)
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MemoryPool {
    fn drop(&mut self) {
        let slots = std::mem::take(&mut self.idle().slots);
        let resident_bytes = slots.iter().map(|(slot, _)| slot.resident_bytes).sum();
        self.all.remove_idle(slots.len(), resident_bytes);
    }
}

impl Slot {
    /// Addresses for a memory of no size.
    fn reserve(reserved_bytes: usize, guard_bytes: usize) -> io::Result<Self> {
        let mapping = Mapping::reserve(guard_bytes + reserved_bytes + guard_bytes)?;
        Ok(Self { mapping, contents: 0..0, start_bytes: guard_bytes, initial_bytes: 0, resident_bytes: 0 })
    }

    /// Gives a slot that nobody has a component's contents and size.
    fn fill(&mut self, image: &MemoryImage, initial_bytes: usize) -> io::Result<()> {
        let start_bytes = self.start_bytes;
        let (shorter, longer) =
            (self.initial_bytes.min(initial_bytes), self.initial_bytes.max(initial_bytes));
        let changed = start_bytes + shorter..start_bytes + longer;
        if initial_bytes > self.initial_bytes {
            self.mapping.make_accessible(changed)?;
        } else {
            self.mapping.make_inaccessible(changed)?;
        }
        self.initial_bytes = initial_bytes;
        let wanted = image.addresses();
        let left = self.contents.clone();
        let is_covered = wanted.start <= left.start && left.end <= wanted.end;
        if !left.is_empty() && !is_covered {
            self.mapping.make_zero(start_bytes + left.start..start_bytes + left.end)?;
            let beyond = initial_bytes.max(left.start)..left.end;
            if !beyond.is_empty() {
                self.mapping.make_inaccessible(start_bytes + beyond.start..start_bytes + beyond.end)?;
            }
        }
        // SAFETY: a part of our own reservation, which nobody uses.
        unsafe { image.place_into(self.base()) }?;
        self.contents = wanted;
        Ok(())
    }

    fn base(&self) -> *mut u8 {
        self.mapping.pointer(self.start_bytes)
    }

    /// Makes the memory, which had grown to `size_bytes`, as it was in the beginning.
    /// Without an image, what is where the contents were is left, to be replaced.
    fn reset(&mut self, image: Option<&MemoryImage>, size_bytes: usize) -> io::Result<()> {
        let contents = Restored { addresses: self.contents.clone(), image };
        // SAFETY: this part of the slot can be accessed, and its instance is gone.
        self.resident_bytes =
            unsafe { restore_pages(self.base(), &contents, size_bytes, |_| {}) }.unwrap_or(0);
        if self.resident_bytes == 0 {
            for start_bytes in (0..size_bytes).step_by(MAX_GIVEN_BACK_BYTES) {
                let length_bytes = MAX_GIVEN_BACK_BYTES.min(size_bytes - start_bytes);
                let start = self.base().wrapping_add(start_bytes);
                // SAFETY: private pages of this slot: the next access finds the file's
                // contents or zeros.
                unsafe { madvise(start.cast(), length_bytes, Advice::LinuxDontNeed) }?;
            }
        }
        self.mapping.make_inaccessible(self.start_bytes + self.initial_bytes..self.start_bytes + size_bytes)
    }
}

/// What a memory is restored to: zeros, but for the contents.
struct Restored<'image> {
    /// Where they are.
    addresses: Range<usize>,
    /// What they are; without that they are not restored.
    image: Option<&'image MemoryImage>,
}

/// Makes the dirty pages of a memory at `base` as they were, and answers how many bytes
/// those are. `None` if that is not known or too much; then some are not as they were. `found` is told
/// where they are, in the memory.
///
/// # Safety
/// The memory's first `size_bytes` can be read and written, the contents lie in them,
/// and nobody else uses them.
unsafe fn restore_pages(
    base: *mut u8,
    contents: &Restored<'_>,
    size_bytes: usize,
    mut found: impl FnMut(Range<usize>),
) -> Option<usize> {
    let start = base.addr();
    let mut resident_bytes = 0;
    let known = dirty_pages::scan(start..start + size_bytes, |dirty| {
        resident_bytes += dirty.len();
        if resident_bytes > MAX_RESIDENT_BYTES {
            return;
        }
        let dirty = dirty.start - start..dirty.end - start;
        found(dirty.clone());
        // SAFETY: the caller's: this lies in the memory.
        unsafe { restore_range(base, contents, dirty) };
    });
    (known && resident_bytes <= MAX_RESIDENT_BYTES).then_some(resident_bytes)
}

/// Makes a part of a memory at `base` as it was.
///
/// # Safety
/// The part can be written, and nobody else uses it.
unsafe fn restore_range(base: *mut u8, contents: &Restored<'_>, range: Range<usize>) {
    let Range { start, end } = contents.addresses;
    let before = range.start..range.end.min(start);
    let inside = range.start.max(start)..range.end.min(end);
    let after = range.start.max(end)..range.end;
    for zeros in [before, after] {
        if !zeros.is_empty() {
            // SAFETY: the caller's: this lies in the memory.
            unsafe { base.wrapping_add(zeros.start).write_bytes(0, zeros.len()) };
        }
    }
    if let Some(image) = contents.image
        && !inside.is_empty()
    {
        let original = image.pointer(inside.start - start);
        // SAFETY: as above; the image is as long as the range reaches.
        unsafe { std::ptr::copy_nonoverlapping(original, base.wrapping_add(inside.start), inside.len()) };
    }
}

/// A memory in use.
struct PooledMemory {
    slot: Option<Slot>,
    capacity_bytes: usize,
    shared: Arc<Shared>,
}

/// What is to be known about a memory in use.
struct Shared {
    pool: Arc<MemoryPool>,
    base: *mut u8,
    initial_bytes: usize,
    /// How large it is now; 0 when it is no longer in use.
    size_bytes: AtomicUsize,
}

// SAFETY: the address is only used by who owns the memory or its store.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A memory that an instance was given, for who owns the instance.
pub struct LentMemory {
    shared: Arc<Shared>,
    /// Pages that were written to by the instantiation itself, and where they are:
    /// data of modules that share the memory of another. `None` before that was asked
    /// for, and where the kernel does not tell.
    remembered: Option<Vec<(usize, Box<[u8]>)>>,
    /// What was dirty when it was restored last.
    known: Option<KnownPages>,
}

/// All pages of a memory that are not the image's own: nobody wrote to others before a
/// moment at which a thread had had so many faults.
struct KnownPages {
    ranges: Vec<Range<usize>>,
    faults: Faults,
}

impl LentMemory {
    /// Takes the memory as it is now for its beginning. The instance was just made:
    /// nobody runs in it.
    pub(crate) fn remember(&mut self) {
        let start = self.shared.base.addr();
        let size_bytes = self.size_bytes();
        let mut remembered = Vec::new();
        let known = dirty_pages::scan(start..start + size_bytes, |dirty| {
            let mut contents = vec![0; dirty.len()].into_boxed_slice();
            // SAFETY: a part of the memory, which is in use, by nobody now.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    self.shared.base.wrapping_add(dirty.start - start),
                    contents.as_mut_ptr(),
                    dirty.len(),
                );
            }
            remembered.push((dirty.start - start, contents));
        });
        self.remembered = known.then_some(remembered);
    }

    /// Makes the memory as it was when it was remembered. Nobody runs in the instance.
    /// False if that is not possible: it grew, or the kernel does not tell.
    pub(crate) fn restore(&mut self) -> bool {
        let size_bytes = self.size_bytes();
        let Some(remembered) = &self.remembered else { return false };
        if size_bytes != self.shared.initial_bytes {
            return false;
        }
        let (base, image) = (self.shared.base, &self.shared.pool.image);
        let contents = Restored { addresses: image.addresses(), image: Some(image) };
        // A page becomes dirty by a fault of the thread that writes to it. Where the
        // guest ran on this thread alone, and that had none since the last time, the
        // same pages are dirty as then.
        if let Some(known) = &self.known
            && faults::ran_here()
            && Faults::now() == Some(known.faults)
        {
            for range in &known.ranges {
                // SAFETY: a part of the memory, which is in use, as its size says, and
                // nobody runs in it.
                unsafe { restore_range(base, &contents, range.clone()) };
            }
        } else {
            let mut ranges = self.known.take().map(|known| known.ranges).unwrap_or_default();
            ranges.clear();
            // SAFETY: as above.
            let restored = unsafe { restore_pages(base, &contents, size_bytes, |dirty| ranges.push(dirty)) };
            if restored.is_none() {
                return false;
            }
            if ranges.len() <= MAX_KNOWN_RANGES_COUNT {
                self.known = Faults::now().map(|faults| KnownPages { ranges, faults });
            }
        }
        for (at_bytes, contents) in remembered {
            // SAFETY: as above; the place was inside of the memory and still is.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    contents.as_ptr(),
                    base.wrapping_add(*at_bytes),
                    contents.len(),
                );
            }
        }
        true
    }

    /// How large the memory is.
    pub(crate) fn size_bytes(&self) -> usize {
        self.shared.size_bytes.load(Ordering::Relaxed)
    }

    /// Whether instances begin with variables whose values the code does not have.
    pub(crate) fn has_variables(&self) -> bool {
        !self.shared.pool.image.variables().is_empty()
    }

    /// What is where values of variables are put.
    pub(crate) fn before_variables(&self) -> Box<[u8]> {
        let length = self.shared.pool.image.variables().len().min(self.size_bytes());
        let mut before = vec![0; length].into_boxed_slice();
        // SAFETY: this much of the memory is in use, and by nobody now.
        unsafe { std::ptr::copy_nonoverlapping(self.shared.base, before.as_mut_ptr(), length) };
        before
    }

    /// Puts the values of variables where code reads them: into the first bytes of the
    /// memory. Nobody runs in the instance.
    pub(crate) fn lay_out_variables(&self) {
        let values = self.shared.pool.image.variables();
        if values.len() <= self.size_bytes() {
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.shared.base, values.len()) };
        }
    }

    /// Puts back what values of variables took the place of.
    pub(crate) fn put_back(&self, before: &[u8]) {
        if before.len() > self.size_bytes() {
            return;
        }
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(before.as_ptr(), self.shared.base, before.len()) };
    }
}

// SAFETY: the memory is page aligned, of whole pages, never moves, and is followed by
// addresses that cannot be accessed, of the size that the creator was asked for.
unsafe impl LinearMemory for PooledMemory {
    fn byte_size(&self) -> usize {
        self.shared.size_bytes.load(Ordering::Relaxed)
    }

    fn byte_capacity(&self) -> usize {
        self.capacity_bytes
    }

    fn grow_to(&mut self, size_bytes: usize) -> wasmtime::Result<()> {
        if size_bytes > self.capacity_bytes {
            wasmtime::bail!("a memory cannot grow beyond {} bytes", self.capacity_bytes);
        }
        if let Some(slot) = &self.slot {
            let before_bytes = self.byte_size();
            slot.mapping.make_accessible(slot.start_bytes + before_bytes..slot.start_bytes + size_bytes)?;
        }
        self.shared.size_bytes.store(size_bytes, Ordering::Relaxed);
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.shared.base
    }
}

impl Drop for PooledMemory {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let size_bytes = self.shared.size_bytes.swap(0, Ordering::Relaxed);
        if let Err(error) = self.shared.pool.take_back(slot, size_bytes) {
            tracing::warn!("a memory could not be reset and is given back: {error}");
        }
    }
}

thread_local! {
    /// Whose instance this thread is making.
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// An instance that is being made.
struct Current {
    pool: Arc<MemoryPool>,
    /// The memory that it was given.
    lent: Option<Arc<Shared>>,
}

/// An instantiation that finds its component's pool.
struct Scope<'future, F> {
    current: Option<Current>,
    future: Pin<&'future mut F>,
}

impl<F: Future> Future for Scope<'_, F> {
    type Output = (F::Output, Option<Arc<Shared>>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let before = CURRENT.replace(self.current.take());
        let polled = self.future.as_mut().poll(context);
        self.current = CURRENT.replace(before);
        polled.map(|output| (output, self.current.take().and_then(|current| current.lent)))
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
        CURRENT.with_borrow_mut(|current| {
            let current = current.as_mut().ok_or("no component is being instantiated")?;
            let pool = current.pool.clone();
            let initial_bytes = initial_bytes.saturating_add(pool.image.extra_bytes());
            let reserved_bytes = reserved_bytes.unwrap_or(initial_bytes).max(initial_bytes);
            let slot =
                pool.take(initial_bytes, reserved_bytes, guard_bytes).map_err(|error| error.to_string())?;
            let size_bytes = AtomicUsize::new(initial_bytes);
            let shared = Arc::new(Shared { pool, base: slot.base(), initial_bytes, size_bytes });
            current.lent = Some(shared.clone());
            Ok(Box::new(PooledMemory { slot: Some(slot), capacity_bytes: reserved_bytes, shared })
                as Box<dyn LinearMemory>)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::task::Waker;

    use wasmtime::{
        Store,
        component::{Instance, Linker},
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
        loaded: LoadedComponent,
    }

    impl Fixture {
        fn new() -> Self {
            let engine =
                Engine::new(&EngineConfig { pooling: false, ..EngineConfig::default() }, None).unwrap();
            let loaded = engine.load(&wat::parse_str(source()).unwrap()).unwrap();
            assert_eq!(loaded.kind.flavor, Flavor::PlainSnapshot);
            let fixture = Self { loaded };
            fixture.ask();
            fixture
        }

        /// The component was asked for just now, for as long as the test takes.
        fn ask(&self) {
            self.pool().idle().asked = Some(Instant::now() + Duration::from_secs(3_600));
        }

        fn pool(&self) -> &MemoryPool {
            self.loaded.memory.as_ref().unwrap()
        }

        fn guest(&self) -> Guest {
            let engine = self.loaded.component.engine();
            guest(engine, &self.loaded)
        }

        fn idle_count(&self) -> usize {
            self.pool().idle().slots.len()
        }
    }

    fn guest(engine: &wasmtime::Engine, loaded: &LoadedComponent) -> Guest {
        let mut store = Store::new(engine, ());
        store.set_epoch_deadline(1_000_000);
        let linker: Linker<()> = Linker::new(engine);
        let pool = loaded.memory.as_ref().unwrap();
        let instance = run(pool.scope(linker.instantiate_async(&mut store, &loaded.component))).0.unwrap();
        Guest { store, instance }
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
            fixture.ask();
            assert_eq!(fixture.idle_count(), 1, "the same slot is used again");
        }
    }

    #[test]
    fn instances_side_by_side_have_memories_of_their_own() {
        let fixture = Fixture::new();
        let mut one = fixture.guest();
        fixture.ask();
        let mut other = fixture.guest();
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

    /// A small component with a memory of so many pages, `fill` at an address, and
    /// functions that read and write.
    fn small(pages_count: u32, at: u32, fill: char) -> Vec<u8> {
        let data: String = std::iter::repeat_n(fill, 9_000).collect();
        wat::parse_str(format!(
            r#"(component
                (core module $module
                    (memory {pages_count})
                    (global $count (mut i32) (i32.const 0))
                    (data (i32.const {at}) "{data}")
                    (func (export "read") (param i32) (result i32) (i32.load8_u (local.get 0)))
                    (func (export "write") (param i32 i32)
                        (global.set $count (i32.const 1))
                        (i32.store8 (local.get 0) (local.get 1))))
                (core instance $instance (instantiate $module))
                (func (export "read") (param "at" u32) (result u32) (canon lift (core func $instance "read")))
                (func (export "write") (param "at" u32) (param "value" u32)
                    (canon lift (core func $instance "write"))))"#
        ))
        .unwrap()
    }

    #[test]
    fn a_slot_that_changes_hands_has_nothing_of_who_had_it_before() {
        let config = EngineConfig { pooling: false, ..EngineConfig::default() };
        let engine = Engine::new(&config, None).unwrap();
        // Contents that cover those before, lie elsewhere, reach beyond a smaller memory.
        let parameters = [
            (3, 70_000, 'a'),
            (3, 66_000, 'b'),
            (2, 1, 'c'),
            (4, 200_000, 'd'),
            (1, 9_000, 'e'),
            (3, 69_000, 'f'),
        ];
        let components =
            parameters.map(|(pages_count, at, fill)| engine.load(&small(pages_count, at, fill)).unwrap());
        for round in 0..3 {
            for (loaded, (pages_count, at, fill)) in components.iter().zip(parameters) {
                // Nobody asked for it of late.
                loaded.memory.as_ref().unwrap().idle().asked = None;
                let mut guest = guest(loaded.component.engine(), loaded);
                let size_bytes = pages_count << 16;
                for address in (0..size_bytes).step_by(509).chain([size_bytes - 1]) {
                    let is_data = (at..at + 9_000).contains(&address);
                    let expected = if is_data { u32::from(fill) } else { 0 };
                    assert_eq!(guest.read(address), expected, "round {round}, {fill} at {address}");
                    guest.write(address, 0xee);
                }
                assert!(guest.call::<_, (u32,)>("read", (size_bytes,)).is_err());
                drop(guest);
                let pool = loaded.memory.as_ref().unwrap();
                assert_eq!(pool.idle().slots.len(), 0);
                assert_eq!(pool.all.spare().len(), 1, "one slot for all of them");
            }
        }
    }

    #[test]
    fn idle_memory_is_counted_and_given_back() {
        let fixture = Fixture::new();
        let all = fixture.loaded.memory.as_ref().unwrap().all.clone();
        let mut guest = fixture.guest();
        guest.write(0, 1);
        guest.write(DATA_START, 1);
        assert_eq!(all.idle_count.load(Ordering::Relaxed), 0);
        drop(guest);
        assert_eq!(all.idle_count.load(Ordering::Relaxed), 1);
        assert!(all.idle_bytes.load(Ordering::Relaxed) >= 2 * super::super::page_bytes());
        drop(fixture);
        assert_eq!(all.idle_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_instantiation_outside_of_a_scope_is_refused() {
        let fixture = Fixture::new();
        let engine = fixture.loaded.component.engine();
        let linker: Linker<()> = Linker::new(engine);
        let component: &Component = &fixture.loaded.component;
        assert!(run(linker.instantiate_async(&mut Store::new(engine, ()), component)).is_err());
    }
}
