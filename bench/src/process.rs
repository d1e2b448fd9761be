//! What a process holds: memory, mappings, descriptors.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::error::Error;

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Holding {
    /// Memory that is there, in bytes: its own, and pages of files that it maps.
    pub(crate) resident_bytes: u64,
    /// The part of it that no file is behind, in bytes.
    pub(crate) anonymous_bytes: u64,
    /// Mappings of its address space.
    pub(crate) mappings_count: u64,
    /// Open file descriptors.
    pub(crate) descriptors_count: u64,
}

impl Holding {
    /// What process `pid` holds now.
    pub(crate) fn of(pid: u32) -> Result<Self, Error> {
        let status = read(format!("/proc/{pid}/status"))?;
        let descriptors = format!("/proc/{pid}/fd");
        let descriptors = fs::read_dir(&descriptors).map_err(Error::reading(Path::new(&descriptors)))?;
        Ok(Self {
            resident_bytes: bytes_of(&status, "VmRSS:")?,
            anonymous_bytes: bytes_of(&status, "RssAnon:")?,
            mappings_count: read(format!("/proc/{pid}/maps"))?.lines().count() as u64,
            descriptors_count: descriptors.count() as u64,
        })
    }
}

/// Page faults of process `pid` so far that needed no disk: first writes to pages
/// that were shared or not there.
pub(crate) fn minor_faults(pid: u32) -> Result<u64, Error> {
    let path = format!("/proc/{pid}/stat");
    faults_in(&read(path.clone())?).ok_or(Error::Kernel { what: path })
}

/// Field 10 of `/proc/PID/stat`. Field 2 is the program's name in parentheses and
/// may hold anything, so counting starts after its last `)`.
fn faults_in(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(7)?.parse().ok()
}

/// A line of `/proc/PID/status` like `VmRSS:   1024 kB`.
fn bytes_of(status: &str, field: &str) -> Result<u64, Error> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kibibytes| kibibytes * 1024)
        .ok_or_else(|| Error::Kernel { what: format!("{field} of /proc/PID/status") })
}

fn read(path: String) -> Result<String, Error> {
    fs::read_to_string(&path).map_err(Error::reading(Path::new(&path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_with_a_hostile_program_name() {
        let stat = "7 (a) 1 (b) S 1 7 7 0 -1 4194304 123 0 5 0 12 34 0 0 20 0 1 0 5 6 7";
        assert_eq!(faults_in(stat), Some(123));
        assert_eq!(faults_in("7 (a) S 1"), None);
    }

    #[test]
    fn sizes_are_bytes() {
        let status = "Name:\tx\nVmRSS:\t      12 kB\nRssAnon:\t       3 kB\n";
        assert!(bytes_of(status, "VmRSS:").is_ok_and(|bytes| bytes == 12 * 1024));
        assert!(bytes_of(status, "RssFile:").is_err());
    }

    #[test]
    fn this_process_holds_something() {
        let pid = std::process::id();
        let before = Holding::of(pid).unwrap_or_else(|error| unreachable!("{error}"));
        let file = fs::File::open("/proc/self/exe").unwrap_or_else(|error| unreachable!("{error}"));
        let after = Holding::of(pid).unwrap_or_else(|error| unreachable!("{error}"));
        drop(file);
        assert!(before.resident_bytes >= before.anonymous_bytes && before.mappings_count > 1);
        assert!(after.descriptors_count >= 1 && minor_faults(pid).is_ok_and(|faults| faults > 0));
    }
}
