//! What a process used, as the kernel counts it.
//!
//! The total is the sum of `/proc/PID/task/*/schedstat` (nanoseconds); the split
//! into user and system time is `/proc/PID/stat`'s, which the kernel scales to
//! ticks of 10 ms. The work that a loopback packet causes is counted to whoever
//! sends it, so a server pays for waking the client and the client for waking
//! the server: equally for every server.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::error::Error;

/// Length of one tick of `/proc/PID/stat` in nanoseconds. `USER_HZ` is 100 on
/// every Linux architecture that Wisp runs on; it is part of the kernel's ABI.
const TICK_NS: u64 = 10_000_000;

/// The counters of a process at one moment.
pub(crate) struct Sample {
    user_ns: u64,
    system_ns: u64,
    /// Time on a CPU by thread id.
    threads: BTreeMap<u32, u64>,
}

/// What a process used between two samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Usage {
    /// Time on a CPU in nanoseconds.
    pub(crate) total_ns: u64,
    /// The share of it that was spent outside the kernel, 0 to 1.
    pub(crate) user_share: f64,
}

impl Sample {
    /// Reads the counters of process `pid`.
    pub(crate) fn of(pid: u32) -> Result<Self, Error> {
        let path = format!("/proc/{pid}/stat");
        let text = fs::read_to_string(&path).map_err(Error::reading(Path::new(&path)))?;
        let (user_ns, system_ns) = user_and_system_ns(&text).ok_or(Error::Kernel { what: path })?;
        Ok(Self { user_ns, system_ns, threads: threads(pid)? })
    }

    /// What was used since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Usage {
        let user_ns = self.user_ns.saturating_sub(earlier.user_ns);
        let by_ticks_ns = user_ns + self.system_ns.saturating_sub(earlier.system_ns);
        let by_threads_ns = self
            .threads
            .iter()
            .map(|(id, now)| now.saturating_sub(earlier.threads.get(id).copied().unwrap_or(0)))
            .sum::<u64>();
        // A thread that ended takes its counter with it; the process's ticks
        // keep what it used, at their coarser step.
        let nothing_ended = earlier.threads.keys().all(|id| self.threads.contains_key(id));
        let slack_ns = 2 * TICK_NS;
        let total_ns = if nothing_ended && by_threads_ns + slack_ns >= by_ticks_ns {
            by_threads_ns
        } else {
            by_ticks_ns
        };
        let user_share = if by_ticks_ns == 0 { 0.0 } else { user_ns as f64 / by_ticks_ns as f64 };
        Usage { total_ns, user_share }
    }
}

/// The name of the processor, the number of cores, memory and kernel.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let field = |text: &str, name: &str| {
        text.lines()
            .find_map(|line| {
                line.strip_prefix(name)?.trim_start().strip_prefix(':').map(|rest| rest.trim().to_owned())
            })
            .unwrap_or_else(|| "unknown".to_owned())
    };
    let cores = processors.lines().filter(|line| line.starts_with("processor")).count();
    let gibibytes = field(&read("/proc/meminfo"), "MemTotal")
        .trim_end_matches("kB")
        .trim()
        .parse::<u64>()
        .map_or(0, |kibibytes| kibibytes.div_ceil(1024 * 1024));
    format!(
        "{} ({cores} cores), {gibibytes} GiB, Linux {}",
        field(&processors, "model name"),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// How many threads wanted to run on average over the last minute.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().next().unwrap_or("unknown").to_owned()
}

/// Fields 14 and 15 of `/proc/PID/stat`. Field 2 is the program's name in
/// parentheses and may hold anything, so counting starts after its last `)`.
fn user_and_system_ns(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user = fields.next()?.parse::<u64>().ok()?;
    let system = fields.next()?.parse::<u64>().ok()?;
    Some((user * TICK_NS, system * TICK_NS))
}

/// Nanoseconds on a CPU by thread.
fn threads(pid: u32) -> Result<BTreeMap<u32, u64>, Error> {
    let path = format!("/proc/{pid}/task");
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(&path).map_err(Error::reading(Path::new(&path)))? {
        let entry = entry.map_err(Error::reading(Path::new(&path)))?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A thread may end between the listing and this.
        let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
        let Some(nanoseconds) = text.split_ascii_whitespace().next().and_then(|field| field.parse().ok())
        else {
            return Err(Error::Kernel { what: format!("{path}/{id}/schedstat") });
        };
        threads.insert(id, nanoseconds);
    }
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(user_ms: u64, system_ms: u64, threads: &[(u32, u64)]) -> Sample {
        Sample {
            user_ns: user_ms * 1_000_000,
            system_ns: system_ms * 1_000_000,
            threads: threads.iter().map(|(id, ms)| (*id, ms * 1_000_000)).collect(),
        }
    }

    #[test]
    fn stat_with_a_hostile_program_name() {
        let stat = "7 (a) 1 (b) S 1 7 7 0 -1 4194304 100 0 0 0 12 34 0 0 20 0 1 0 5 6 7";
        assert_eq!(user_and_system_ns(stat), Some((120_000_000, 340_000_000)));
    }

    #[test]
    fn a_short_stat_is_refused() {
        assert_eq!(user_and_system_ns("7 (a) S 1 2"), None);
        assert_eq!(user_and_system_ns(""), None);
    }

    #[test]
    fn threads_are_finer_than_ticks() {
        let usage = sample(30, 70, &[(1, 60), (2, 43)]).since(&sample(0, 0, &[(1, 0)]));
        assert_eq!(usage.total_ns, 103_000_000);
        assert!((usage.user_share - 0.3).abs() < 1e-9);
    }

    #[test]
    fn the_time_of_an_ended_thread_is_not_lost() {
        let usage = sample(300, 700, &[(1, 60)]).since(&sample(0, 0, &[(1, 0), (2, 900)]));
        assert_eq!(usage.total_ns, 1_000_000_000);
        let came_and_went = sample(300, 700, &[(1, 60)]).since(&sample(0, 0, &[(1, 0)]));
        assert_eq!(came_and_went.total_ns, 1_000_000_000);
    }

    #[test]
    fn this_process_uses_time() {
        let pid = std::process::id();
        let before = Sample::of(pid).unwrap_or_else(|error| unreachable!("{error}"));
        let mut sum = 0_u64;
        let mut usage = before.since(&before);
        while usage.total_ns == 0 {
            sum = (0..100_000).fold(sum, |sum, value| std::hint::black_box(sum.wrapping_add(value)));
            usage = Sample::of(pid).unwrap_or_else(|error| unreachable!("{error}")).since(&before);
        }
    }
}
