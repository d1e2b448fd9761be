//! The accounts of apps: what their requests used, and what they hold now.
//!
//! An [`Account`] belongs to an app as its operator knows it, not to one of its
//! versions: whoever loads apps asks [`Commons::account`](super::Commons::account)
//! for it by name, and gets the same one for the next version.
//!
//! Sums are kept apart by thread ([`Totals`]), so that cores do not contend for a
//! cache line at each request, and added up when somebody reads them.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use wisp_engine::Usage;
use wisp_manifest::id::ComponentId;
use wisp_telemetry::{export::DURATION_BOUNDS_US, metrics::Durations};

/// The weight of an app whose operator did not say.
pub const DEFAULT_WEIGHT: u32 = 100;

/// Of how many requests the mean of CPU time is, about: a component is taken for
/// what its last few requests were.
const MEAN_OVER_COUNT: u64 = 8;

/// Upper bounds of the buckets that requests are counted in by their duration; one more
/// has what is longer.
pub const DURATION_BOUNDS: [Duration; DURATION_BOUNDS_US.len()] = {
    let mut bounds = [Duration::ZERO; DURATION_BOUNDS_US.len()];
    let mut place = 0;
    while place < bounds.len() {
        bounds[place] = Duration::from_micros(DURATION_BOUNDS_US[place]);
        place += 1;
    }
    bounds
};

/// Shards of one component's sums at most. Few enough that the sums of a hundred
/// thousand apps fit into memory on a machine with many cores, where some threads then
/// share a shard.
const MAX_SHARDS_COUNT: usize = 8;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// The guest answered and came to its end.
    Answered,
    /// It trapped, gave no response or an impossible one.
    Failed,
    /// It used up its CPU time.
    CpuTime,
    /// It took too long.
    TimedOut,
    /// It needed more memory, or larger tables, than it may have.
    Memory,
    /// Its response was larger than it may be.
    ResponseSize,
    /// The client went away first.
    Cancelled,
    /// It did not run: no place, or no instance, was free.
    Refused,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Answered,
        Self::Failed,
        Self::CpuTime,
        Self::TimedOut,
        Self::Memory,
        Self::ResponseSize,
        Self::Cancelled,
        Self::Refused,
    ];

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::CpuTime => "cpu_time",
            Self::TimedOut => "timed_out",
            Self::Memory => "memory",
            Self::ResponseSize => "response_size",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
        }
    }
}

/// What is known of one request when it is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) outcome: Outcome,
    /// From the beginning of the guest to its end.
    pub(super) total: Duration,
    pub(super) response_bytes: u64,
}

/// What the requests of one component used, summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Requests, by [`Outcome`] in the order of [`Outcome::ALL`].
    pub requests_count: [u64; Outcome::ALL.len()],
    /// CPU time of guests and the host functions they called, in nanoseconds.
    pub cpu_ns: u64,
    /// Time to make instances, in nanoseconds.
    pub instantiate_ns: u64,
    /// Time that guests waited for host calls or their clients, in nanoseconds.
    pub wait_ns: u64,
    /// Time that guests could have run while others had their turn, in nanoseconds.
    pub queue_ns: u64,
    /// Bytes of request bodies that guests took.
    pub request_bytes: u64,
    /// Bytes of response bodies that clients took.
    pub response_bytes: u64,
    /// The most linear memory that an instance had.
    pub peak_memory_bytes: u64,
    /// Requests by duration: a bucket for each of [`DURATION_BOUNDS`], and one for what is
    /// longer.
    pub durations_count: [u64; DURATION_BOUNDS.len() + 1],
}

/// What the requests of one component used: one shard per core, up to [`MAX_SHARDS_COUNT`].
pub(super) struct Totals {
    shards: Box<[Shard]>,
}

/// The part of one thread, in cache lines of its own. 128 bytes, because
/// processors fetch lines in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Shard {
    requests_count: [AtomicU64; Outcome::ALL.len()],
    cpu_ns: AtomicU64,
    instantiate_ns: AtomicU64,
    wait_ns: AtomicU64,
    queue_ns: AtomicU64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    peak_memory_bytes: AtomicU64,
    /// Moving average of the CPU time of one request.
    mean_cpu_ns: AtomicU64,
    /// CPU time that is not yet in the shares; see [`super::share`].
    unshared_ns: AtomicU64,
    /// As in [`Sums`]. 32 bits, because whoever reads this looks at differences; all of it
    /// fits into the two pairs of lines that the shard has anyway.
    durations_count: [AtomicU32; DURATION_BOUNDS.len() + 1],
}

impl Totals {
    fn new() -> Self {
        let threads = wisp_engine::cores_count().min(MAX_SHARDS_COUNT);
        Self { shards: (0..threads).map(|_| Shard::default()).collect() }
    }

    fn shard(&self) -> &Shard {
        &self.shards[wisp_engine::thread_number() % self.shards.len()]
    }

    /// Enters a request that is over.
    pub(super) fn enter(&self, record: &Record, usage: &Usage) {
        let shard = self.shard();
        let add = |counter: &AtomicU64, amount: u64| {
            if amount > 0 {
                counter.fetch_add(amount, Ordering::Relaxed);
            }
        };
        let (cpu, queue) = (usage.cpu(), usage.queue());
        add(&shard.requests_count[record.outcome as usize], 1);
        let bucket = DURATION_BOUNDS.partition_point(|bound| *bound < record.total);
        shard.durations_count[bucket].fetch_add(1, Ordering::Relaxed);
        add(&shard.cpu_ns, nanoseconds(cpu));
        add(&shard.instantiate_ns, nanoseconds(usage.instantiate()));
        add(&shard.wait_ns, nanoseconds(wait(record.total, usage)));
        add(&shard.queue_ns, nanoseconds(queue));
        add(&shard.request_bytes, usage.request_bytes());
        add(&shard.response_bytes, record.response_bytes);
        let peak_bytes = usage.peak_memory_bytes();
        if shard.peak_memory_bytes.load(Ordering::Relaxed) < peak_bytes {
            shard.peak_memory_bytes.fetch_max(peak_bytes, Ordering::Relaxed);
        }
        // Two threads that share a shard may lose one of two values: it is a guess
        // about the future anyway.
        let mean_ns = shard.mean_cpu_ns.load(Ordering::Relaxed);
        let mean_ns = mean_ns - mean_ns / MEAN_OVER_COUNT + nanoseconds(cpu) / MEAN_OVER_COUNT;
        shard.mean_cpu_ns.store(mean_ns, Ordering::Relaxed);
    }

    /// Collects CPU time; gives it back as one sum every `grain_ns`.
    pub(super) fn collect_cpu_ns(&self, ns: u64, grain_ns: u64) -> Option<u64> {
        let unshared_ns = &self.shard().unshared_ns;
        let before_ns = unshared_ns.fetch_add(ns, Ordering::Relaxed);
        (before_ns + ns >= grain_ns).then(|| unshared_ns.swap(0, Ordering::Relaxed))
    }

    /// Enters a request that never ran.
    pub(super) fn refuse(&self) {
        self.shard().requests_count[Outcome::Refused as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What CPU time the next request of this thread is likely to need.
    pub(super) fn expected_cpu_ns(&self) -> u64 {
        self.shard().mean_cpu_ns.load(Ordering::Relaxed)
    }

    /// A request needs at least this much, and others are waiting to start: expect
    /// the same of them before it is over.
    pub(super) fn expect_cpu_ns(&self, ns: u64) {
        for shard in &self.shards {
            shard.mean_cpu_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    fn sum(&self) -> Sums {
        let mut sums = Sums::default();
        for shard in &self.shards {
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            for (sum, counter) in sums.requests_count.iter_mut().zip(&shard.requests_count) {
                *sum += read(counter);
            }
            sums.cpu_ns += read(&shard.cpu_ns);
            sums.instantiate_ns += read(&shard.instantiate_ns);
            sums.wait_ns += read(&shard.wait_ns);
            sums.queue_ns += read(&shard.queue_ns);
            sums.request_bytes += read(&shard.request_bytes);
            sums.response_bytes += read(&shard.response_bytes);
            sums.peak_memory_bytes = sums.peak_memory_bytes.max(read(&shard.peak_memory_bytes));
            for (sum, count) in sums.durations_count.iter_mut().zip(&shard.durations_count) {
                *sum += u64::from(count.load(Ordering::Relaxed));
            }
        }
        sums
    }
}

impl Sums {
    /// Adds another component's.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.requests_count.iter_mut().zip(other.requests_count) {
            *sum += more;
        }
        for (sum, more) in self.durations_count.iter_mut().zip(other.durations_count) {
            *sum += more;
        }
        self.cpu_ns += other.cpu_ns;
        self.instantiate_ns += other.instantiate_ns;
        self.wait_ns += other.wait_ns;
        self.queue_ns += other.queue_ns;
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        self.peak_memory_bytes = self.peak_memory_bytes.max(other.peak_memory_bytes);
    }

    /// Requests by duration.
    pub fn durations(&self) -> Durations {
        Durations {
            buckets: DURATION_BOUNDS.into_iter().zip(self.durations_count).collect(),
            count: self.durations_count.iter().sum(),
            // What a guest does not wait for it runs, or could have run.
            sum: Duration::from_nanos(self.cpu_ns + self.wait_ns + self.queue_ns),
        }
    }
}

/// How long a guest waited: the time that it neither ran nor could have run.
pub(super) fn wait(total: Duration, usage: &Usage) -> Duration {
    total.saturating_sub(usage.cpu()).saturating_sub(usage.queue())
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The account of one app.
pub struct Account {
    name: Arc<str>,
    /// Tells accounts apart in queues.
    pub(super) number: u64,
    weight: AtomicU32,
    components: Mutex<Vec<(ComponentId, Arc<Totals>)>>,
    /// Requests that have a place now; counted where apps share places.
    pub(super) running_count: AtomicUsize,
    /// Requests that wait for a place.
    pub(super) waiting_count: AtomicUsize,
    /// Memory beyond each instance's free allowance.
    pub(super) memory_bytes: AtomicU64,
    /// CPU time over weight on the compute lane; see [`super::compute`].
    pub(super) virtual_ns: AtomicU64,
    /// The app uses more than its share of a machine that is busy.
    pub(super) is_over_share: AtomicBool,
}

impl Account {
    pub(super) fn new(name: Arc<str>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            name,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            weight: AtomicU32::new(DEFAULT_WEIGHT),
            components: Mutex::default(),
            running_count: AtomicUsize::new(0),
            waiting_count: AtomicUsize::new(0),
            memory_bytes: AtomicU64::new(0),
            virtual_ns: AtomicU64::new(0),
            is_over_share: AtomicBool::new(false),
        }
    }

    /// The app's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same, to be kept.
    pub(super) fn shared_name(&self) -> &Arc<str> {
        &self.name
    }

    /// The app's part of the CPU, relative to other apps' weights.
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Sets the weight; zero counts as one.
    pub fn set_weight(&self, weight: u32) {
        self.weight.store(weight.max(1), Ordering::Relaxed);
    }

    /// CPU time in the currency of the fair queue: what counts the same for an app
    /// of any weight.
    pub(super) fn virtual_ns_of(&self, cpu_ns: u64) -> u64 {
        cpu_ns.saturating_mul(DEFAULT_WEIGHT.into()) / u64::from(self.weight())
    }

    /// The sums of a component, which outlive the component.
    pub(super) fn totals(&self, component: &ComponentId) -> Arc<Totals> {
        let mut components = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, totals)) = components.iter().find(|(known, _)| known == component) {
            return totals.clone();
        }
        let totals = Arc::new(Totals::new());
        components.push((component.clone(), totals.clone()));
        totals
    }

    /// What each component's requests used so far.
    pub fn sums(&self) -> Vec<(ComponentId, Sums)> {
        let components = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        components.iter().map(|(id, totals)| (id.clone(), totals.sum())).collect()
    }

    /// Requests that have a place now, where apps share places.
    pub fn running_count(&self) -> u64 {
        u64::try_from(self.running_count.load(Ordering::Relaxed)).unwrap_or(u64::MAX)
    }

    /// Requests that wait for a place now.
    pub fn waiting_count(&self) -> u64 {
        u64::try_from(self.waiting_count.load(Ordering::Relaxed)).unwrap_or(u64::MAX)
    }

    /// Memory of its instances, beyond the first 16 MiB of each.
    pub fn reserved_memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn sums_outlive_the_version_of_a_component() {
        let account = Account::new("shop".into());
        let id = ComponentId::new("cart").unwrap();
        let usage = Usage::default();
        usage.add_cpu_ns(700);
        usage.add_request_bytes(3);
        let record =
            Record { outcome: Outcome::Answered, total: Duration::from_nanos(1_000), response_bytes: 5 };
        account.totals(&id).enter(&record, &usage);
        account.totals(&id).enter(&Record { outcome: Outcome::Failed, ..record }, &usage);
        account.totals(&id).refuse();
        let sums = account.sums();
        assert_eq!(sums.len(), 1);
        let (_, sums) = &sums[0];
        assert_eq!(sums.requests_count, [1, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!((sums.cpu_ns, sums.wait_ns), (1_400, 600));
        assert_eq!((sums.request_bytes, sums.response_bytes), (6, 10));
        assert_eq!(sums.durations_count[0], 2, "what never ran has no duration");
        let durations = sums.durations();
        assert_eq!((durations.count, durations.sum), (2, Duration::from_nanos(2_000)));
    }

    #[test]
    fn a_shard_takes_two_pairs_of_lines() {
        assert_eq!(size_of::<Shard>(), 256);
    }

    #[test]
    fn a_duration_is_in_the_bucket_above_it() {
        let account = Account::new("shop".into());
        let id = ComponentId::new("cart").unwrap();
        let enter = |total| {
            let record = Record { outcome: Outcome::Answered, total, response_bytes: 0 };
            account.totals(&id).enter(&record, &Usage::default());
        };
        enter(Duration::from_micros(100));
        enter(Duration::from_micros(101));
        enter(Duration::from_secs(60));
        let counts = account.sums()[0].1.durations_count;
        assert_eq!((counts[0], counts[1], counts[DURATION_BOUNDS.len()]), (1, 1, 1));
    }

    #[test]
    fn weight_makes_time_count_less() {
        let account = Account::new("shop".into());
        assert_eq!(account.virtual_ns_of(1_000), 1_000);
        account.set_weight(400);
        assert_eq!(account.virtual_ns_of(1_000), 250);
        account.set_weight(0);
        assert_eq!(account.weight(), 1);
    }
}
