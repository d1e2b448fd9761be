//! What the environment asks for, in the words of OpenTelemetry:
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>.
//!
//! Endpoints and headers are read by the exporters themselves; here is what they do not
//! read, and whether there is to be any export at all. A variable that is empty counts as
//! one that is not set.

use std::time::Duration;

use opentelemetry::trace::TraceId;
use opentelemetry_sdk::metrics::Temporality;

use super::is_below;
use crate::{Error, trace::SpanContext};

/// How long one export may take, unless it is said.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is exported, and how.
pub(super) struct Settings {
    pub(super) traces: bool,
    pub(super) metrics: bool,
    pub(super) logs: bool,
    pub(super) traces_timeout: Duration,
    pub(super) metrics_timeout: Duration,
    pub(super) logs_timeout: Duration,
    pub(super) spans: BatchSettings,
    pub(super) records: BatchSettings,
    pub(super) sampling: Sampling,
    pub(super) temporality: Temporality,
}

/// The queue of one signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchSettings {
    /// How many wait at most.
    pub(super) max_queue_count: usize,
    /// How many go into one request.
    pub(super) max_batch_count: usize,
    /// How long the first of them waits.
    pub(super) delay: Duration,
}

/// Which traces are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sampling {
    /// What the client decided holds.
    is_parent_based: bool,
    /// Of 2⁶³ trace ids, how many are kept.
    bound: u64,
}

impl Settings {
    pub(super) fn from_environment() -> Result<Self, Error> {
        Self::of(&|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    fn of(read: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let is_disabled = read("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let signal = |name: &str| -> Result<bool, Error> {
            let endpoint = read(&format!("OTEL_EXPORTER_OTLP_{name}_ENDPOINT"));
            if is_disabled || endpoint.or_else(|| read("OTEL_EXPORTER_OTLP_ENDPOINT")).is_none() {
                return Ok(false);
            }
            let exporter = format!("OTEL_{name}_EXPORTER");
            match read(&exporter).as_deref() {
                Some("none") => return Ok(false),
                None | Some("otlp") => {}
                Some(other) => return Err(unsupported(&exporter, other, "`otlp` and `none`")),
            }
            let protocol = format!("OTEL_EXPORTER_OTLP_{name}_PROTOCOL");
            for variable in [protocol.as_str(), "OTEL_EXPORTER_OTLP_PROTOCOL"] {
                match read(variable).as_deref() {
                    None => {}
                    Some("http/protobuf") => break,
                    Some(other) => return Err(unsupported(variable, other, "`http/protobuf`")),
                }
            }
            Ok(true)
        };
        let timeout = |name: &str, queue: Option<&str>| -> Result<Duration, Error> {
            let most = match queue {
                Some(queue) => number(read, &format!("{queue}_EXPORT_TIMEOUT"))?,
                None => None,
            };
            let most = most.map_or(Duration::MAX, Duration::from_millis);
            for variable in [&format!("OTEL_EXPORTER_OTLP_{name}_TIMEOUT"), "OTEL_EXPORTER_OTLP_TIMEOUT"] {
                if let Some(timeout_ms) = number(read, variable)? {
                    return Ok(Duration::from_millis(timeout_ms).min(most));
                }
            }
            Ok(TIMEOUT.min(most))
        };
        Ok(Self {
            traces: signal("TRACES")?,
            metrics: signal("METRICS")?,
            logs: signal("LOGS")?,
            traces_timeout: timeout("TRACES", Some("OTEL_BSP"))?,
            metrics_timeout: timeout("METRICS", None)?,
            logs_timeout: timeout("LOGS", Some("OTEL_BLRP"))?,
            spans: BatchSettings::of(read, "OTEL_BSP", Duration::from_secs(5))?,
            records: BatchSettings::of(read, "OTEL_BLRP", Duration::from_secs(1))?,
            sampling: Sampling::of(read)?,
            temporality: temporality(read)?,
        })
    }
}

impl BatchSettings {
    fn of(read: &dyn Fn(&str) -> Option<String>, prefix: &str, delay: Duration) -> Result<Self, Error> {
        let count = |name: &str, usual: usize| -> Result<usize, Error> {
            let value = number(read, &format!("{prefix}_{name}"))?;
            Ok(value.map_or(usual, |value| usize::try_from(value).unwrap_or(usize::MAX)).max(1))
        };
        let max_queue_count = count("MAX_QUEUE_SIZE", 2_048)?;
        Ok(Self {
            max_queue_count,
            max_batch_count: count("MAX_EXPORT_BATCH_SIZE", 512)?.min(max_queue_count),
            delay: number(read, &format!("{prefix}_SCHEDULE_DELAY"))?.map_or(delay, Duration::from_millis),
        })
    }
}

impl Sampling {
    fn of(read: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        const ALL: u64 = 1 << 63;
        let variable = "OTEL_TRACES_SAMPLER";
        let name = read(variable).unwrap_or_else(|| "parentbased_always_on".to_owned());
        let (is_parent_based, kind) = match name.strip_prefix("parentbased_") {
            Some(kind) => (true, kind),
            None => (false, name.as_str()),
        };
        let bound = match kind {
            "always_on" => ALL,
            "always_off" => 0,
            "traceidratio" => {
                let argument = "OTEL_TRACES_SAMPLER_ARG";
                let ratio = match read(argument) {
                    None => 1.0,
                    Some(text) => match text.trim().parse::<f64>() {
                        Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
                        _ => return Err(unsupported(argument, &text, "a number from 0 to 1")),
                    },
                };
                // Exact enough: traces are counted by the million at most.
                (ratio * ALL as f64) as u64
            }
            _ => {
                let known = "`always_on`, `always_off`, `traceidratio`, each also after `parentbased_`";
                return Err(unsupported(variable, &name, known));
            }
        };
        Ok(Self { is_parent_based, bound })
    }

    /// Whether a trace is kept.
    pub(super) fn keeps(&self, trace_id: TraceId, parent: Option<SpanContext>) -> bool {
        match parent {
            Some(parent) if self.is_parent_based => parent.is_sampled,
            _ => is_below(trace_id, self.bound),
        }
    }
}

fn temporality(read: &dyn Fn(&str) -> Option<String>) -> Result<Temporality, Error> {
    let variable = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
    let value = read(variable).unwrap_or_default().to_ascii_lowercase();
    match value.as_str() {
        "" | "cumulative" => Ok(Temporality::Cumulative),
        "delta" => Ok(Temporality::Delta),
        "lowmemory" => Ok(Temporality::LowMemory),
        other => Err(unsupported(variable, other, "`cumulative`, `delta` and `lowmemory`")),
    }
}

fn number(read: &dyn Fn(&str) -> Option<String>, variable: &str) -> Result<Option<u64>, Error> {
    read(variable)
        .map(|text| text.trim().parse().map_err(|_| unsupported(variable, &text, "a whole number")))
        .transpose()
}

fn unsupported(variable: &str, value: &str, known: &'static str) -> Error {
    Error::Variable { variable: variable.to_owned(), value: value.to_owned(), known }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use opentelemetry::trace::SpanId;

    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Settings, Error> {
        let value = |name: &str| pairs.iter().find(|(known, _)| *known == name);
        Settings::of(&|name| value(name).map(|(_, value)| (*value).to_owned()))
    }

    fn signals(pairs: &[(&str, &str)]) -> [bool; 3] {
        let settings = of(pairs).unwrap();
        [settings.traces, settings.metrics, settings.logs]
    }

    #[test]
    fn what_has_an_endpoint_is_exported() {
        const ALL: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        assert_eq!(signals(&[]), [false; 3]);
        assert_eq!(signals(&[ALL]), [true; 3]);
        assert_eq!(signals(&[ALL, ("OTEL_SDK_DISABLED", "true")]), [false; 3]);
        assert_eq!(signals(&[ALL, ("OTEL_LOGS_EXPORTER", "none")]), [true, true, false]);
        assert_eq!(signals(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://x/")]), [false, true, false]);
    }

    #[test]
    fn what_does_not_exist_is_refused_and_named() {
        const ALL: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        for (variable, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ] {
            let refused = of(&[ALL, (variable, value)]).err().map(|error| error.to_string());
            assert!(refused.is_some_and(|text| text.contains(variable)), "{variable}");
        }
        let specific = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf");
        assert!(of(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x/"), specific]).is_ok());
    }

    #[test]
    fn a_batch_is_no_larger_than_the_queue() {
        let settings = of(&[("OTEL_BSP_MAX_QUEUE_SIZE", "100"), ("OTEL_BSP_SCHEDULE_DELAY", "20")]).unwrap();
        let expected =
            BatchSettings { max_queue_count: 100, max_batch_count: 100, delay: Duration::from_millis(20) };
        assert_eq!(settings.spans, expected);
        assert_eq!(settings.records.max_batch_count, 512);
    }

    #[test]
    fn the_client_decides_unless_it_is_not_asked() {
        let keeps = |sampler: &str, ratio: &str, parent: Option<bool>| {
            let pairs = [("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", ratio)];
            let trace_id = TraceId::from(1_u128 << 63);
            let parent =
                parent.map(|is_sampled| SpanContext { trace_id, span_id: SpanId::from(1_u64), is_sampled });
            of(&pairs).unwrap().sampling.keeps(trace_id, parent)
        };
        assert!(keeps("parentbased_always_on", "1", None));
        assert!(!keeps("parentbased_always_on", "1", Some(false)));
        assert!(keeps("always_on", "1", Some(false)));
        assert!(!keeps("always_off", "1", Some(true)));
        assert!(keeps("parentbased_always_off", "1", Some(true)));
        // The id is in the middle of all.
        assert!(keeps("traceidratio", "0.6", None));
        assert!(!keeps("traceidratio", "0.4", None));
    }
}
