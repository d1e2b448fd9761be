//! A collector of OpenTelemetry's, which tells what it was sent.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{Output, START_LIMIT, WAIT_LIMIT, guests_dir, skip};

/// Decodes OTLP with the protocol's own definitions and answers as its specification says.
/// Ends with the test, whatever happens.
pub(crate) struct Collector {
    child: Child,
    port: u16,
    received: Output,
}

impl Collector {
    /// Starts one on a free port, if it is installed.
    pub(crate) fn start() -> Option<Self> {
        let python = guests_dir().join("tools/otlp-collector/bin/python");
        if !python.is_file() {
            skip("the Python package `opentelemetry-proto` is not installed; `cargo xtask setup` does that");
            return None;
        }
        let mut child = Command::new(python)
            .arg("-c")
            .arg(include_str!("collector.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let received = Output::of(child.stdout.take().unwrap());
        let line = received.try_wait_for(|line| line.starts_with("listening on "), START_LIMIT);
        let port = line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
        Some(Self { child, port, received })
    }

    /// Where it is, below a path that says how it is to behave.
    pub(crate) fn endpoint(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Settings with which everything is exported here, at once.
    pub(crate) fn environment(&self, path: &str) -> Vec<(&'static str, String)> {
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.endpoint(path)),
            ("OTEL_BSP_SCHEDULE_DELAY", "20".to_owned()),
            ("OTEL_BLRP_SCHEDULE_DELAY", "20".to_owned()),
            ("OTEL_METRIC_EXPORT_INTERVAL", "100".to_owned()),
        ]
    }

    /// Waits until something was sent of which `find` makes something.
    pub(crate) fn wait_for<T>(&self, what: &str, find: impl Fn(&Value) -> Option<T>) -> T {
        let found = |line: &str| serde_json::from_str(line).ok().and_then(|sent: Value| find(&sent));
        match self.received.try_wait_for(|line| found(line).is_some(), WAIT_LIMIT) {
            Some(line) => found(&line).unwrap(),
            None => panic!("no {what}:\n{}", self.received.text()),
        }
    }

    /// Everything that was sent so far.
    pub(crate) fn received(&self) -> Vec<Value> {
        self.received.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The first span that fits.
    pub(crate) fn span(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(what, |sent| {
            items(sent, "resourceSpans", "scopeSpans", "spans").into_iter().find(&fits)
        })
    }

    /// The first record of a log that fits.
    pub(crate) fn record(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(what, |sent| {
            items(sent, "resourceLogs", "scopeLogs", "logRecords").into_iter().find(&fits)
        })
    }

    /// The first point of a metric that fits.
    pub(crate) fn point(&self, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(name, |sent| {
            let metrics = items(sent, "resourceMetrics", "scopeMetrics", "metrics");
            let metric = metrics.into_iter().find(|metric| metric["name"] == name)?;
            let data = ["sum", "gauge", "histogram"].iter().find_map(|kind| metric.get(*kind))?;
            data["dataPoints"].as_array()?.iter().find(|point| fits(point)).cloned()
        })
    }
}

/// What is three levels deep: of each resource, of each scope.
fn items(sent: &Value, resources: &str, scopes: &str, items: &str) -> Vec<Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    list(&sent["data"][resources])
        .iter()
        .flat_map(|resource| list(&resource[scopes]))
        .flat_map(|scope| list(&scope[items]))
        .collect()
}

/// The value of an attribute; integers are texts in this form of the protocol.
pub(crate) fn attribute(of: &Value, name: &str) -> Option<Value> {
    let attributes = of["attributes"].as_array()?;
    let pair = attributes.iter().find(|pair| pair["key"] == name)?;
    pair["value"].as_object()?.values().next().cloned()
}

/// Whether it has these attributes.
pub(crate) fn attributes(of: &Value, expected: &[(&str, &str)]) -> bool {
    expected.iter().all(|(name, value)| attribute(of, name).is_some_and(|found| found == *value))
}

impl Drop for Collector {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
