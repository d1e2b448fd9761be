//! Which threads the kernel prefers where there are more than cores.

use std::{io, time::Duration};

use rustix::process::{getpriority_process, setpriority_process};

/// The least priority that there is.
const LEAST_NICE: i32 = 19;

/// How long a thread asks to run at a time: the shortest that Linux takes. Most requests
/// need less.
const SHORT_SLICE: Duration = Duration::from_micros(100);

/// What `sched_setattr` reads, in its first version.
#[repr(C)]
struct Attributes {
    size_bytes: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// Has the kernel prefer other threads to the calling one.
///
/// # Errors
/// If the operating system refuses.
pub fn lower_priority(nice: i32) -> io::Result<()> {
    // In Linux both concern the calling thread.
    let current = getpriority_process(None)?;
    Ok(setpriority_process(None, (current + nice).min(LEAST_NICE))?)
}

/// Has the kernel run the calling thread often and briefly: when it wakes, it takes the
/// core from a thread that computes at once, instead of when that one's slice is over,
/// some milliseconds later; and when it computes, others need not wait for longer than
/// such a slice. Linux since 6.12; before, this changes nothing.
///
/// # Errors
/// If the operating system refuses.
pub fn prefer_short_slices() -> io::Result<()> {
    let attributes = Attributes {
        size_bytes: u32::try_from(size_of::<Attributes>()).unwrap_or(0),
        policy: libc::SCHED_OTHER.unsigned_abs(),
        flags: 0,
        nice: getpriority_process(None)?,
        priority: 0,
        runtime_ns: u64::try_from(SHORT_SLICE.as_nanos()).unwrap_or(0),
        deadline_ns: 0,
        period_ns: 0,
    };
    let no_flags: libc::c_uint = 0;
    // SAFETY: the kernel reads as many bytes as the structure says that it has, and the
    // thread 0 is the calling one.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, no_flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_slices_keep_the_priority() {
        let of_thread = || {
            lower_priority(3)?;
            let before = getpriority_process(None)?;
            prefer_short_slices()?;
            io::Result::Ok((before, getpriority_process(None)?))
        };
        let found = std::thread::spawn(of_thread).join();
        assert!(matches!(found, Ok(Ok((before, after))) if before == after), "{found:?}");
    }
}
