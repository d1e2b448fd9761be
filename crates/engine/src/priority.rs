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
    set_attributes(libc::SCHED_OTHER, SHORT_SLICE)
}

/// Has the kernel run the calling thread on cores that nobody else wants. Whoever else
/// wakes takes the core at once, in the middle of a slice too, and finds it as if it were
/// free: threads that wake do not gather on other cores. Where others want all cores, it
/// gets three thousandths of one. There is no way back without privileges.
///
/// # Errors
/// If the operating system refuses.
pub fn use_idle_cores() -> io::Result<()> {
    set_attributes(libc::SCHED_IDLE, Duration::ZERO)
}

/// Sets how the calling thread is scheduled; its `nice` stays. A slice of zero is the
/// kernel's choice.
fn set_attributes(policy: libc::c_int, slice: Duration) -> io::Result<()> {
    let attributes = Attributes {
        size_bytes: u32::try_from(size_of::<Attributes>()).unwrap_or(0),
        policy: policy.unsigned_abs(),
        flags: 0,
        nice: getpriority_process(None)?,
        priority: 0,
        runtime_ns: u64::try_from(slice.as_nanos()).unwrap_or(0),
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

    #[test]
    fn a_thread_that_uses_idle_cores_still_runs() {
        // SAFETY: asks about the calling thread.
        let of_thread = || use_idle_cores().map(|()| unsafe { libc::sched_getscheduler(0) });
        let found = std::thread::spawn(of_thread).join();
        assert!(matches!(found, Ok(Ok(libc::SCHED_IDLE))), "{found:?}");
    }
}
