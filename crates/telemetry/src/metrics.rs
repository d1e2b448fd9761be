//! Figures: families of samples, and how Prometheus reads them.
//!
//! Who has figures writes them into a [`Metrics`], family by family; nothing is
//! registered or kept here. As text they are in version 0.0.4 of
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>; exported by OTLP, the
//! same figures go by the names that [`crate::export`](mod@crate::export) makes of these.

use std::{borrow::Cow, fmt::Write as _, time::Duration};

/// What a server says of the text's type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family of figures is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

/// Figures of a moment.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    families: Vec<Family>,
}

/// Figures of one name.
#[derive(Clone, Debug)]
pub struct Family {
    name: &'static str,
    kind: Kind,
    help: String,
    samples: Vec<Sample>,
}

/// A figure and its labels.
type Sample = (Vec<(&'static str, Box<str>)>, Figure);

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub enum Figure {
    /// A number without a fraction.
    Count(u64),
    /// A time, in nanoseconds.
    Nanoseconds(u64),
    /// Durations by length.
    Durations(Durations),
}

/// Durations by length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Durations {
    /// The upper bound of each bucket and how many were in it, not below it.
    pub buckets: Vec<(Duration, u64)>,
    /// How many there were, also above the last bound.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
}

impl Metrics {
    /// Begins a family. `help` is one sentence.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: impl Into<String>) -> &mut Family {
        let last = self.families.len();
        self.families.push(Family { name, kind, help: help.into(), samples: Vec::new() });
        &mut self.families[last]
    }

    /// All families, in the order in which they were begun.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// As Prometheus reads it.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for family in &self.families {
            family.write(&mut text);
        }
        text
    }
}

impl Family {
    /// Adds a figure without a fraction.
    pub fn count(&mut self, labels: &[(&'static str, &str)], value: u64) {
        self.add(labels, Figure::Count(value));
    }

    /// Adds a time, in seconds.
    pub fn seconds_of_ns(&mut self, labels: &[(&'static str, &str)], ns: u64) {
        self.add(labels, Figure::Nanoseconds(ns));
    }

    /// Adds durations.
    pub fn durations(&mut self, labels: &[(&'static str, &str)], durations: Durations) {
        self.add(labels, Figure::Durations(durations));
    }

    /// The name, as Prometheus knows it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it means.
    pub fn help(&self) -> &str {
        &self.help
    }

    /// The figures.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    fn add(&mut self, labels: &[(&'static str, &str)], figure: Figure) {
        let labels = labels.iter().map(|(label, value)| (*label, Box::from(*value))).collect();
        self.samples.push((labels, figure));
    }

    fn write(&self, text: &mut String) {
        let Self { name, kind, help, samples } = self;
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, figure) in samples {
            match figure {
                Figure::Count(count) => line(text, name, "", labels, None, &count.to_string()),
                Figure::Nanoseconds(ns) => line(text, name, "", labels, None, &decimal(*ns)),
                Figure::Durations(durations) => {
                    let mut below = 0;
                    for (bound, count) in &durations.buckets {
                        below += count;
                        let bound = bound.as_secs_f64().to_string();
                        line(text, name, "_bucket", labels, Some(&bound), &below.to_string());
                    }
                    let count = durations.count.to_string();
                    line(text, name, "_bucket", labels, Some("+Inf"), &count);
                    line(text, name, "_sum", labels, None, &durations.sum.as_secs_f64().to_string());
                    line(text, name, "_count", labels, None, &count);
                }
            }
        }
    }
}

impl Figure {
    /// How many: also of durations.
    pub fn count(&self) -> u64 {
        match self {
            Self::Count(count) | Self::Nanoseconds(count) => *count,
            Self::Durations(durations) => durations.count,
        }
    }

    /// A time in seconds: also all durations together.
    pub fn seconds(&self) -> f64 {
        match self {
            Self::Count(count) => *count as f64,
            Self::Nanoseconds(ns) => Duration::from_nanos(*ns).as_secs_f64(),
            Self::Durations(durations) => durations.sum.as_secs_f64(),
        }
    }
}

/// Nanoseconds as seconds, without a loss.
fn decimal(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

fn line(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &[(&'static str, Box<str>)],
    bound: Option<&str>,
    value: &str,
) {
    let _ = write!(text, "{name}{suffix}");
    let labels = labels.iter().map(|(label, value)| (*label, escaped(value)));
    let bound = bound.map(|bound| ("le", Cow::Borrowed(bound)));
    let mut opening = '{';
    for (label, value) in labels.chain(bound) {
        let _ = write!(text, "{opening}{label}=\"{value}\"");
        opening = ',';
    }
    if opening == ',' {
        text.push('}');
    }
    let _ = writeln!(text, " {value}");
}

fn escaped(value: &str) -> Cow<'_, str> {
    if value.contains(['\\', '"', '\n']) {
        value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
    } else {
        value.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        let mut metrics = Metrics::default();
        let requests = metrics.family("wisp_requests_total", Kind::Counter, "Requests\nthat ended.");
        requests.count(&[("app", "a \"quoted\" \\ one\n"), ("component", "hello")], 3);
        requests.count(&[], 0);
        metrics.family("wisp_cpu_seconds_total", Kind::Gauge, "CPU time.").seconds_of_ns(&[], 1_500_000_001);
        assert_eq!(
            metrics.to_text(),
            "# HELP wisp_requests_total Requests\\nthat ended.\n\
             # TYPE wisp_requests_total counter\n\
             wisp_requests_total{app=\"a \\\"quoted\\\" \\\\ one\\n\",component=\"hello\"} 3\n\
             wisp_requests_total 0\n\
             # HELP wisp_cpu_seconds_total CPU time.\n\
             # TYPE wisp_cpu_seconds_total gauge\n\
             wisp_cpu_seconds_total 1.500000001\n"
        );
    }

    #[test]
    fn buckets_are_summed_up_from_below() {
        let mut metrics = Metrics::default();
        let us = Duration::from_micros;
        let buckets = vec![(us(100), 0), (us(200), 2), (us(500), 1)];
        let durations = Durations { buckets, count: 4, sum: Duration::from_millis(1_500) };
        metrics.family("x_seconds", Kind::Histogram, "Help.").durations(&[("app", "a")], durations);
        assert_eq!(
            metrics.to_text(),
            "# HELP x_seconds Help.\n# TYPE x_seconds histogram\n\
             x_seconds_bucket{app=\"a\",le=\"0.0001\"} 0\n\
             x_seconds_bucket{app=\"a\",le=\"0.0002\"} 2\n\
             x_seconds_bucket{app=\"a\",le=\"0.0005\"} 3\n\
             x_seconds_bucket{app=\"a\",le=\"+Inf\"} 4\n\
             x_seconds_sum{app=\"a\"} 1.5\n\
             x_seconds_count{app=\"a\"} 4\n"
        );
    }
}
