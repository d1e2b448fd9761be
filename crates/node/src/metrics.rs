//! What a node counts.
//!
//! `GET /metrics` writes it in Prometheus' text format. What requests cost is counted
//! where they run, per app and component; see [`crate::usage`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use wisp_telemetry::metrics::{self, Kind};

use crate::{
    Node,
    entry::{Entry, Fact},
    os_limits::{descriptors_count, mappings_count, resident_bytes},
    usage::usage_metrics,
};

/// Upper bounds of the buckets of durations, in microseconds.
const BUCKETS_US: [u64; 14] =
    [50, 100, 200, 300, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 10_000_000];

/// What a node counts.
#[derive(Default)]
pub(crate) struct Metrics {
    loads: Durations,
    swaps: Durations,
    rollbacks: Durations,
    failed_loads_count: AtomicU64,
    evictions_count: AtomicU64,
}

/// How long something took, each time.
#[derive(Default)]
struct Durations {
    counts: [AtomicU64; BUCKETS_US.len()],
    count: AtomicU64,
    total_us: AtomicU64,
}

/// How many apps are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) registered: usize,
    pub(crate) prepared: usize,
    pub(crate) mapped: usize,
    pub(crate) warm: usize,
    pub(crate) unhealthy: usize,
}

impl Metrics {
    pub(crate) fn count_load(&self, duration: Duration) {
        self.loads.count(duration);
    }

    /// `is_back` where a version that was mapped already took its place.
    pub(crate) fn count_swap(&self, duration: Duration, is_back: bool) {
        if is_back { self.rollbacks.count(duration) } else { self.swaps.count(duration) }
    }

    pub(crate) fn count_failed_load(&self) {
        self.failed_loads_count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_eviction(&self) {
        self.evictions_count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Durations {
    fn count(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BUCKETS_US.iter().position(|bound| us <= *bound) {
            self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.total_us.fetch_add(us, Ordering::Relaxed);
    }

    fn read(&self) -> metrics::Durations {
        let bounds = BUCKETS_US.iter().map(|bound_us| Duration::from_micros(*bound_us));
        metrics::Durations {
            buckets: bounds.zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed))).collect(),
            count: self.count.load(Ordering::Relaxed),
            sum: Duration::from_micros(self.total_us.load(Ordering::Relaxed)),
        }
    }
}

impl Counts {
    pub(crate) fn count(&mut self, entry: &Entry, is_warm: bool, is_healthy: bool) {
        self.registered += 1;
        self.prepared += usize::from(entry.has(Fact::Prepared));
        self.mapped += usize::from(entry.has(Fact::Mapped));
        self.warm += usize::from(is_warm);
        self.unhealthy += usize::from(!is_healthy);
    }
}

impl Node {
    /// Exports what is counted for as long as the node exists, if metrics are exported.
    pub fn export_metrics(self: &Arc<Self>) {
        if let Some(export) = wisp_telemetry::export() {
            let node = Arc::downgrade(self);
            export.observe(move || node.upgrade().map(|node| node.metrics()).unwrap_or_default());
        }
    }

    /// All that is counted.
    pub fn metrics(&self) -> metrics::Metrics {
        let mut all = metrics::Metrics::default();
        let counts = self.counts();
        let mapped = self.runtime.mapped();
        let budget = self.mapped.budget();
        let gauges = [
            ("wisp_apps", "Apps that are registered.", counts.registered as u64),
            ("wisp_apps_prepared", "Apps that are known to be loadable.", counts.prepared as u64),
            ("wisp_apps_mapped", "Apps that are mapped.", counts.mapped as u64),
            ("wisp_apps_warm", "Apps that are mapped and were used lately.", counts.warm as u64),
            ("wisp_apps_unhealthy", "Apps that are not healthy.", counts.unhealthy as u64),
            ("wisp_apps_to_prepare", "Apps that wait to be prepared.", self.to_prepare.count() as u64),
            ("wisp_images_mapped", "Compiled images that are mapped.", mapped.images_count as u64),
            ("wisp_images_mapped_bytes", "The sizes of their files.", mapped.image_bytes),
            ("wisp_images_mapped_max", "How many may be mapped.", budget.max_images_count as u64),
            ("wisp_images_mapped_max_bytes", "Their sizes at most.", budget.max_image_bytes),
            ("wisp_change_number", "The newest change that was applied.", self.newest_change()),
            ("process_open_fds", "Open descriptors.", descriptors_count().unwrap_or(0) as u64),
            ("process_mappings", "Memory mappings.", mappings_count().unwrap_or(0) as u64),
            ("process_resident_memory_bytes", "Resident memory.", resident_bytes().unwrap_or(0)),
        ];
        for (name, help, value) in gauges {
            all.family(name, Kind::Gauge, help).count(&[], value);
        }
        let counters = [
            ("wisp_loads_failed_total", "Loads that failed.", &self.metrics.failed_loads_count),
            ("wisp_evictions_total", "Apps that were unmapped to make room.", &self.metrics.evictions_count),
        ];
        for (name, help, value) in counters {
            all.family(name, Kind::Counter, help).count(&[], value.load(Ordering::Relaxed));
        }
        let histograms = [
            ("wisp_load_seconds", "From registered to mapped: cold starts.", &self.metrics.loads),
            ("wisp_swap_seconds", "From a change to the new version.", &self.metrics.swaps),
            ("wisp_rollback_seconds", "Back to a version that was mapped.", &self.metrics.rollbacks),
        ];
        for (name, help, durations) in histograms {
            all.family(name, Kind::Histogram, help).durations(&[], durations.read());
        }
        usage_metrics(self.runtime.commons(), &mut all);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_in_the_buckets_above_them() {
        let durations = Durations::default();
        durations.count(Duration::from_micros(150));
        durations.count(Duration::from_secs(60));
        let read = durations.read();
        let filled: Vec<_> = read.buckets.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [&(Duration::from_micros(200), 1)]);
        assert_eq!(read.count, 2, "also what is above the last bound");
    }
}
