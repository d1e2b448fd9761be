//! Asks the kernel which pages of a range were written to.

use std::{fs::File, mem::MaybeUninit, ops::Range, sync::OnceLock};

use rustix::ioctl::{self, Opcode, opcode};

/// How many ranges the kernel reports at once. A guest in JavaScript dirties
/// several hundred; more than this cost another call.
const REGIONS_COUNT: usize = 512;

/// The page is part of a file's pages: it was read, not written.
const PAGE_IS_FILE: u64 = 1 << 2;
/// The page is in memory.
const PAGE_IS_PRESENT: u64 = 1 << 3;
/// The page was in memory and is in swap.
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// The page is the shared page of zeros: it was read, not written.
const PAGE_IS_ZERO: u64 = 1 << 5;

/// The kernel's `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// The kernel's `struct pm_scan_arg`.
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_count: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_any_of_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: Opcode = opcode::read_write::<Scan>(b'f', 16);

/// The call itself.
struct PagemapScan<'scan>(&'scan mut Scan);

// SAFETY: the operation code and the structure are the kernel's; it reads and writes
// the structure and writes into the regions that it points to, which the one caller
// below provides.
unsafe impl ioctl::Ioctl for PagemapScan<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(
        output: ioctl::IoctlOutput,
        _: *mut rustix::ffi::c_void,
    ) -> rustix::io::Result<usize> {
        Ok(usize::try_from(output).unwrap_or(0))
    }
}

/// Calls `found` with each range of addresses in `range` whose pages differ from
/// what they were mapped as; whole pages. Answers false if the kernel does not tell
/// (before Linux 6.7), then nothing is known.
pub(super) fn scan(range: Range<usize>, mut found: impl FnMut(Range<usize>)) -> bool {
    let Some(pagemap) = pagemap() else { return false };
    let mut regions = [const { MaybeUninit::<Region>::uninit() }; REGIONS_COUNT];
    let mut start = range.start;
    while start < range.end {
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags: 0,
            start: start as u64,
            end: range.end as u64,
            walk_end: 0,
            regions: regions.as_mut_ptr().expose_provenance() as u64,
            regions_count: REGIONS_COUNT as u64,
            max_pages: 0,
            category_inverted: PAGE_IS_FILE | PAGE_IS_ZERO,
            category_mask: PAGE_IS_FILE | PAGE_IS_ZERO,
            // A page that was written and then moved to swap is as dirty as before.
            category_any_of_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: 0,
        };
        // SAFETY: the regions live until after the call, which writes at most as
        // many as it is told there are.
        let Ok(count) = (unsafe { ioctl::ioctl(pagemap, PagemapScan(&mut scan)) }) else { return false };
        for region in regions.iter().take(count) {
            // SAFETY: the kernel wrote the first `count` of them.
            let region = unsafe { region.assume_init() };
            found(address(region.start)..address(region.end));
        }
        let walked_to = address(scan.walk_end);
        if walked_to <= start {
            return false;
        }
        start = walked_to;
    }
    true
}

fn address(value: u64) -> usize {
    // Addresses of this process: they fit.
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn pagemap() -> Option<&'static File> {
    static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
    PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap").ok()).as_ref()
}
