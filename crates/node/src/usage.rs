//! What the node's apps used, as figures.

use serde_json::{Value, json};
use wisp_manifest::id::ComponentId;
use wisp_telemetry::metrics::{Kind, Metrics};
use wisp_trigger::http::{Account, Commons, DURATION_BOUNDS, Outcome, Sums};

use crate::{
    Node,
    entry::{Content, Entry},
};

/// A counter of the sums: name, meaning, which one it is.
type Counter = (&'static str, &'static str, fn(&Sums) -> u64);

const SECONDS: [Counter; 4] = [
    ("wisp_cpu_seconds_total", "CPU time of guests and of the host functions that they called.", |sums| {
        sums.cpu_ns
    }),
    ("wisp_instantiate_seconds_total", "Time to make instances.", |sums| sums.instantiate_ns),
    ("wisp_wait_seconds_total", "Time that guests waited for host calls or for their clients.", |sums| {
        sums.wait_ns
    }),
    ("wisp_queue_seconds_total", "Time that guests could have run while others had their turn.", |sums| {
        sums.queue_ns
    }),
];

const BYTES: [Counter; 2] = [
    ("wisp_request_body_bytes_total", "Bytes of request bodies that guests took.", |sums| sums.request_bytes),
    ("wisp_response_body_bytes_total", "Bytes of response bodies that clients took.", |sums| {
        sums.response_bytes
    }),
];

/// What the apps of a node used and hold.
///
/// The sums of an app are those of all of its versions since the process started.
pub(crate) fn usage_metrics(commons: &Commons, metrics: &mut Metrics) {
    let accounts = commons.accounts();
    let sums: Vec<(&str, ComponentId, Sums)> = accounts
        .iter()
        .flat_map(|account| account.sums().into_iter().map(|(id, sums)| (account.name(), id, sums)))
        .collect();

    let requests = metrics.family("wisp_requests_total", Kind::Counter, "Requests, by how they ended.");
    for (app, component, sums) in &sums {
        for (outcome, count) in Outcome::ALL.iter().zip(sums.requests_count) {
            let labels = [("app", *app), ("component", component.as_str()), ("outcome", outcome.name())];
            // What never happened is left out: with many apps it is most of it.
            if count > 0 || *outcome == Outcome::Answered {
                requests.count(&labels, count);
            }
        }
    }
    let durations = metrics.family(
        "wisp_request_duration_seconds",
        Kind::Histogram,
        "From the beginning of a guest to its end.",
    );
    for (app, component, sums) in &sums {
        durations.durations(&[("app", app), ("component", component.as_str())], sums.durations());
    }
    for (name, help, read) in SECONDS {
        let family = metrics.family(name, Kind::Counter, help);
        for (app, component, sums) in &sums {
            family.seconds_of_ns(&[("app", app), ("component", component.as_str())], read(sums));
        }
    }
    for (name, help, read) in BYTES {
        let family = metrics.family(name, Kind::Counter, help);
        for (app, component, sums) in &sums {
            family.count(&[("app", app), ("component", component.as_str())], read(sums));
        }
    }
    let peaks = metrics.family(
        "wisp_peak_memory_bytes",
        Kind::Gauge,
        "The most linear memory that an instance had since the process started.",
    );
    for (app, component, sums) in &sums {
        peaks.count(&[("app", app), ("component", component.as_str())], sums.peak_memory_bytes);
    }
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    metrics
        .family("wisp_running_requests", Kind::Gauge, "Requests that have a place.")
        .count(&[], count(commons.running_count()));
    metrics
        .family("wisp_waiting_requests", Kind::Gauge, "Requests that wait for a place.")
        .count(&[], count(commons.waiting_count()));
    metrics
        .family("wisp_queued_guests", Kind::Gauge, "Guests that could run and wait for their turn.")
        .count(&[], count(commons.queued_count()));
    metrics
        .family(
            "wisp_reserved_memory_bytes",
            Kind::Gauge,
            "Linear memory of all instances, beyond the first 16 MiB of each.",
        )
        .count(&[], commons.reserved_memory_bytes());
    if let Some(export) = wisp_telemetry::export() {
        export.write_metrics(metrics);
    }
}

/// The same where there is no node: of the one app of a process.
pub fn app_metrics(commons: &Commons) -> Metrics {
    let mut metrics = Metrics::default();
    usage_metrics(commons, &mut metrics);
    metrics
}

/// What one app used since the process started, and what it holds now.
#[derive(Clone, Debug)]
pub struct AppUsage {
    /// The app, by the name that its operator knows it by.
    pub app: String,
    /// One word: how it is, as `GET /health` says it.
    pub state: &'static str,
    /// Requests that were answered with a status of 500 or above.
    pub failed_count: u64,
    /// All its components' requests together.
    pub sums: Sums,
    /// Requests that run now.
    pub running_count: u64,
    /// Requests that wait for a place now.
    pub waiting_count: u64,
    /// Memory of its instances now, beyond the first 16 MiB of each.
    pub reserved_memory_bytes: u64,
}

impl AppUsage {
    /// As JSON: the names are those of the control plane's API.
    pub fn to_json(&self, at_ms: u64) -> Value {
        let sums = &self.sums;
        let count_of = |outcome: Outcome| sums.requests_count[outcome as usize];
        let mut durations: Vec<Value> = DURATION_BOUNDS
            .iter()
            .zip(sums.durations_count)
            .map(|(bound, count)| json!({ "up_to_us": microseconds(*bound), "count": count }))
            .collect();
        durations.push(json!({ "count": sums.durations_count[DURATION_BOUNDS.len()] }));
        json!({
            "app": self.app,
            "at_ms": at_ms,
            "state": self.state,
            "requests_count": sums.requests_count.iter().sum::<u64>(),
            "failed_count": self.failed_count,
            "refused_count": count_of(Outcome::Refused),
            "cancelled_count": count_of(Outcome::Cancelled),
            "cpu_ns": sums.cpu_ns,
            "instantiate_ns": sums.instantiate_ns,
            "wait_ns": sums.wait_ns,
            "queue_ns": sums.queue_ns,
            "request_bytes": sums.request_bytes,
            "response_bytes": sums.response_bytes,
            "peak_memory_bytes": sums.peak_memory_bytes,
            "reserved_memory_bytes": self.reserved_memory_bytes,
            "running_count": self.running_count,
            "waiting_count": self.waiting_count,
            "durations": durations,
        })
    }
}

impl Node {
    /// What the app at a host used and holds.
    pub fn usage_at(&self, host: &str) -> Option<AppUsage> {
        let entry = self.table.get(host)?;
        Some(self.usage_of(entry.alias.as_ref().unwrap_or(&entry)))
    }

    /// The same for every app that was ever loaded, by name.
    pub(crate) fn usage(&self) -> Vec<AppUsage> {
        let mut used = Vec::new();
        self.table.for_each(|entry| {
            if entry.alias.is_none() && entry.known_outcomes().is_some() {
                used.push(self.usage_of(entry));
            }
        });
        used.sort_by(|one, other| one.app.cmp(&other.app));
        used
    }

    fn usage_of(&self, entry: &Entry) -> AppUsage {
        let app = match self.content(entry, &entry.state()) {
            Content::Folder(_) => entry.host.to_string(),
            Content::Release(release) => release.app.to_string(),
        };
        let account = self.runtime.commons().known_account(&app);
        let mut sums = Sums::default();
        for (_, of_component) in account.iter().flat_map(|account| account.sums()) {
            sums.add(&of_component);
        }
        let held = |read: fn(&Account) -> u64| account.as_ref().map_or(0, |account| read(account));
        AppUsage {
            app,
            state: self.state_word(entry),
            failed_count: entry.known_outcomes().map_or(0, |outcomes| outcomes.failed_count().into()),
            sums,
            running_count: held(Account::running_count),
            waiting_count: held(Account::waiting_count),
            reserved_memory_bytes: held(Account::reserved_memory_bytes),
        }
    }
}

fn microseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use wisp_engine::{Engine, EngineConfig};
    use wisp_trigger::http::CommonsSettings;

    use super::*;

    #[test]
    fn an_idle_node_has_families_and_gauges() {
        let engine = Engine::new(&EngineConfig { pooling: false, ..EngineConfig::default() }, None).unwrap();
        let commons = Commons::start(&engine, CommonsSettings::default()).unwrap();
        commons.account("shop");
        let mut metrics = Metrics::default();
        usage_metrics(&commons, &mut metrics);
        let text = metrics.to_text();
        assert!(text.contains("# TYPE wisp_requests_total counter\n"), "{text}");
        assert!(text.contains("\nwisp_running_requests 0\n"), "{text}");
    }
}
