//! What the node's apps used, for Prometheus.

use wisp_manifest::id::ComponentId;
use wisp_telemetry::metrics::{Kind, Metrics};
use wisp_trigger::http::{Commons, Outcome, Sums};

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

/// What the apps of a node used and hold, as text that Prometheus reads.
///
/// The sums of an app are those of all of its versions since the process started.
pub(crate) fn usage_metrics(commons: &Commons) -> String {
    let accounts = commons.accounts();
    let sums: Vec<(&str, ComponentId, Sums)> = accounts
        .iter()
        .flat_map(|account| account.sums().into_iter().map(|(id, sums)| (account.name(), id, sums)))
        .collect();
    let mut metrics = Metrics::default();

    let mut requests = metrics.family("wisp_requests_total", Kind::Counter, "Requests, by how they ended.");
    for (app, component, sums) in &sums {
        for (outcome, count) in Outcome::ALL.iter().zip(sums.requests_count) {
            let labels = [("app", *app), ("component", component.as_str()), ("outcome", outcome.name())];
            // What never happened is left out: with many apps it is most of it.
            if count > 0 || *outcome == Outcome::Answered {
                requests.count(&labels, count);
            }
        }
    }
    for (name, help, read) in SECONDS {
        let mut family = metrics.family(name, Kind::Counter, help);
        for (app, component, sums) in &sums {
            family.seconds_of_ns(&[("app", app), ("component", component.as_str())], read(sums));
        }
    }
    for (name, help, read) in BYTES {
        let mut family = metrics.family(name, Kind::Counter, help);
        for (app, component, sums) in &sums {
            family.count(&[("app", app), ("component", component.as_str())], read(sums));
        }
    }
    let mut peaks = metrics.family(
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
    metrics.into_text()
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
        let text = usage_metrics(&commons);
        assert!(text.contains("# TYPE wisp_requests_total counter\n"), "{text}");
        assert!(text.contains("\nwisp_running_requests 0\n"), "{text}");
    }
}
