//! Metrics as text, in the format that Prometheus reads.
//!
//! Who has figures writes them into a [`Metrics`], family by family; nothing is
//! registered or kept here. The format is version 0.0.4 of
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write as _;

/// What a server says of the text's type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family of figures is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// Figures on their way to Prometheus.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    text: String,
}

/// A family that is being written; all of its samples follow each other.
pub struct Family<'metrics> {
    text: &'metrics mut String,
    name: &'static str,
}

impl Metrics {
    /// Begins a family. `help` is one sentence.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.text, name }
    }

    /// All that was written.
    pub fn into_text(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// Adds a figure without a fraction.
    pub fn count(&mut self, labels: &[(&str, &str)], value: u64) {
        self.sample(labels, &value.to_string());
    }

    /// Adds a time, in seconds.
    pub fn seconds_of_ns(&mut self, labels: &[(&str, &str)], ns: u64) {
        self.sample(labels, &format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000));
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: &str) {
        self.text.push_str(self.name);
        for (number, (label, text)) in labels.iter().enumerate() {
            let opening = if number == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{opening}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        let mut metrics = Metrics::default();
        let mut requests = metrics.family("wisp_requests_total", Kind::Counter, "Requests\nthat ended.");
        requests.count(&[("app", "a \"quoted\" \\ one\n"), ("component", "hello")], 3);
        requests.count(&[], 0);
        metrics.family("wisp_cpu_seconds_total", Kind::Gauge, "CPU time.").seconds_of_ns(&[], 1_500_000_001);
        assert_eq!(
            metrics.into_text(),
            "# HELP wisp_requests_total Requests\\nthat ended.\n\
             # TYPE wisp_requests_total counter\n\
             wisp_requests_total{app=\"a \\\"quoted\\\" \\\\ one\\n\",component=\"hello\"} 3\n\
             wisp_requests_total 0\n\
             # HELP wisp_cpu_seconds_total CPU time.\n\
             # TYPE wisp_cpu_seconds_total gauge\n\
             wisp_cpu_seconds_total 1.500000001\n"
        );
    }
}
