//! Metrics: what is counted elsewhere, read each time that it is exported.
//!
//! The figures are those that Prometheus reads ([`crate::metrics`]), under the names that
//! a collector makes the same names of: `wisp_cpu_seconds_total` is the counter `wisp.cpu`
//! with the unit `s`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, metrics::MeterProvider as _};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{
        Instrument, PeriodicReader, SdkMeterProvider, Stream, Temporality, data::ResourceMetrics,
        exporter::PushMetricExporter,
    },
};

use super::{batch::Health, own_scope};
use crate::metrics::{Figure, Kind, Metrics};

/// For how long figures that were read serve all instruments: one export asks each, one
/// right after the other.
const FRESH: Duration = Duration::from_millis(10);

/// An exporter that says how it goes.
pub(super) struct Reported {
    pub(super) exporter: MetricExporter,
    pub(super) health: Arc<Health>,
}

/// Reads figures.
pub(super) type Read = Arc<dyn Fn() -> Metrics + Send + Sync>;

/// Figures as they were a moment ago.
struct Snapshot {
    read: Read,
    last: Mutex<Option<(Instant, Arc<Metrics>)>>,
}

impl PushMetricExporter for Reported {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let result = self.exporter.export(metrics).await;
        self.health.note(&result, 1);
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

impl Snapshot {
    fn get(&self) -> Arc<Metrics> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, metrics)) = &*last
            && at.elapsed() < FRESH
        {
            return metrics.clone();
        }
        let metrics = Arc::new((self.read)());
        *last = Some((Instant::now(), metrics.clone()));
        metrics
    }
}

pub(super) fn provider(exporter: Reported, resource: Resource, max_series_count: usize) -> SdkMeterProvider {
    SdkMeterProvider::builder()
        .with_resource(resource)
        .with_reader(PeriodicReader::builder(exporter).build())
        .with_view(move |_: &Instrument| {
            Stream::builder().with_cardinality_limit(max_series_count).build().ok()
        })
        .build()
}

/// Exports the families that are there now, as they will be.
pub(super) fn observe(provider: &SdkMeterProvider, read: Read) {
    let meter = provider.meter_with_scope(own_scope());
    let snapshot = Arc::new(Snapshot { read, last: Mutex::new(None) });
    let metrics = snapshot.get();
    let is_taken =
        |name: &str| metrics.families().iter().any(|family| family.name().replace('_', ".") == name);
    for family in metrics.families() {
        let (mut name, unit) = name_and_unit(family.name());
        // Where there is a number and a size of the same, the size keeps its unit's name.
        if unit == "By" && is_taken(&name) {
            name.push_str(".bytes");
        }
        let (prometheus_name, help) = (family.name(), family.help().to_owned());
        let source = snapshot.clone();
        // The instruments live in the provider; what is built here is a handle.
        match (family.kind(), unit) {
            (Kind::Histogram, _) => {
                let name = format!("{}.count", name_and_unit(prometheus_name).0);
                let counted = meter.u64_observable_counter(name).with_description(help);
                let _ = counted
                    .with_callback(move |observer| {
                        each(&source, prometheus_name, |figure, attributes| {
                            observer.observe(figure.count(), attributes);
                        });
                    })
                    .build();
            }
            (Kind::Counter, "s") => {
                let counter = meter.f64_observable_counter(name).with_unit("s").with_description(help);
                let _ = counter
                    .with_callback(move |observer| {
                        each(&source, prometheus_name, |figure, attributes| {
                            observer.observe(figure.seconds(), attributes);
                        });
                    })
                    .build();
            }
            (Kind::Counter, unit) => {
                let counter = meter.u64_observable_counter(name).with_unit(unit).with_description(help);
                let _ = counter
                    .with_callback(move |observer| {
                        each(&source, prometheus_name, |figure, attributes| {
                            observer.observe(figure.count(), attributes);
                        });
                    })
                    .build();
            }
            (Kind::Gauge, unit) => {
                let gauge = meter.u64_observable_gauge(name).with_unit(unit).with_description(help);
                let _ = gauge
                    .with_callback(move |observer| {
                        each(&source, prometheus_name, |figure, attributes| {
                            observer.observe(figure.count(), attributes);
                        });
                    })
                    .build();
            }
        }
    }
    // What is there now is not what will be exported.
    *snapshot.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Gives each figure of a family with its attributes.
fn each(snapshot: &Snapshot, name: &str, mut tell: impl FnMut(&Figure, &[KeyValue])) {
    let metrics = snapshot.get();
    let Some(family) = metrics.families().iter().find(|family| family.name() == name) else { return };
    for (labels, figure) in family.samples() {
        let attributes: Vec<_> = labels
            .iter()
            .map(|(label, value)| KeyValue::new(format!("wisp.{label}"), value.to_string()))
            .collect();
        tell(figure, &attributes);
    }
}

/// `wisp.cpu` and `s` of `wisp_cpu_seconds_total`: the unit is no part of the name.
fn name_and_unit(name: &str) -> (String, &'static str) {
    let name = name.strip_suffix("_total").unwrap_or(name);
    let (name, unit) = match (name.strip_suffix("_seconds"), name.strip_suffix("_bytes")) {
        (Some(name), _) => (name, "s"),
        (_, Some(name)) => (name, "By"),
        _ => (name, ""),
    };
    (name.replace('_', "."), unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_makes_the_prometheus_names_of_them_again() {
        for (prometheus, name, unit) in [
            ("wisp_cpu_seconds_total", "wisp.cpu", "s"),
            ("wisp_request_body_bytes_total", "wisp.request.body", "By"),
            ("wisp_requests_total", "wisp.requests", ""),
            ("wisp_apps_mapped", "wisp.apps.mapped", ""),
        ] {
            assert_eq!(name_and_unit(prometheus), (name.to_owned(), unit));
        }
    }
}
