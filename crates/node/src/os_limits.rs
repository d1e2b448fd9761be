//! What the operating system lets one process have.
//!
//! A connection takes a descriptor, and every default is too low. A mapped image takes three
//! mappings, some a descriptor too, and the usual limit on mappings is 65,530.

use std::fs;

use rustix::process::{Resource, getrlimit, setrlimit};

/// What Linux allows of mappings unless it is set otherwise.
const USUAL_MAX_MAPPINGS_COUNT: usize = 65_530;

/// Mappings of one instance's slot once it was used: five of its memory, two of its
/// stack, of each of the pools. Most processes use one or two pools.
const MAPPINGS_PER_SLOT_COUNT: usize = 2 * 7;

/// Mappings of the process for everything else: code, heaps, stacks of threads.
pub(crate) const SPARE_MAPPINGS_COUNT: usize = 4_000;

/// Mappings of an image: before its code, the code, after it.
pub(crate) const MAPPINGS_PER_IMAGE_COUNT: usize = 3;

/// Descriptors for everything but connections and images: logs, databases, outbound
/// connections.
const SPARE_DESCRIPTORS_COUNT: u64 = 1_024;

/// How many images the operating system allows to be mapped at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// By its limit on descriptors.
    pub by_descriptors: usize,
    /// By its limit on mappings.
    pub by_mappings: usize,
}

impl Allowed {
    /// How many there may be beside so many connections and slots for instances.
    pub fn images(
        max_descriptors_count: Option<u64>,
        max_connections_count: u32,
        slots_count: usize,
    ) -> Self {
        let by_descriptors = max_descriptors_count.map_or(usize::MAX, |count| {
            let rest = count.saturating_sub(u64::from(max_connections_count) + SPARE_DESCRIPTORS_COUNT);
            usize::try_from(rest).unwrap_or(usize::MAX)
        });
        let by_mappings = max_mappings_count()
            .saturating_sub(slots_count * MAPPINGS_PER_SLOT_COUNT + SPARE_MAPPINGS_COUNT)
            / MAPPINGS_PER_IMAGE_COUNT;
        Self { by_descriptors, by_mappings }
    }
}

/// Raises the limit on open descriptors to what this process may set, and says
/// what it is then; `None` is no limit.
///
/// Failing is no error: the limit stays what it was.
pub fn raise_descriptor_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum,
        Err(_) => before,
    }
}

/// How many mappings a process may have.
pub(crate) fn max_mappings_count() -> usize {
    read_number("/proc/sys/vm/max_map_count").unwrap_or(USUAL_MAX_MAPPINGS_COUNT)
}

/// How many mappings this process has. Reads all of them: some milliseconds where
/// there are many.
pub(crate) fn mappings_count() -> Option<usize> {
    let maps = fs::read("/proc/self/maps").ok()?;
    Some(maps.iter().filter(|byte| **byte == b'\n').count())
}

/// How many descriptors this process has open.
pub(crate) fn descriptors_count() -> Option<usize> {
    // The folder itself is open while it is read.
    fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1))
}

/// Memory of this process that is resident.
pub(crate) fn resident_bytes() -> Option<u64> {
    kib_after("/proc/self/status", "VmRSS:")
}

/// Memory of this machine.
pub fn machine_memory_bytes() -> Option<u64> {
    kib_after("/proc/meminfo", "MemTotal:")
}

/// Bytes, from a line such as `MemTotal:  16384 kB`.
fn kib_after(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib << 10)
}

fn read_number(path: &str) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_what_it_has() {
        assert!(max_mappings_count() > 1_000);
        assert!(mappings_count().is_some_and(|count| count > 5));
        assert!(descriptors_count().is_some_and(|count| count >= 3));
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
        assert!(machine_memory_bytes() > resident_bytes());
    }
}
