//! Export by OTLP: traces, metrics and logs to a collector, over HTTP as protobuf.
//!
//! The operator asks for it with the environment variables of OpenTelemetry; without
//! them there is no [`Export`], no thread, and nothing is done for a request but to see
//! that.
//!
//! What is exported waits in a queue per signal, whose length is bounded
//! ([`batch`](self)): a thread takes all that waits and sends it. Who adds never waits;
//! what does not fit is dropped and counted. A collector that is slow, away or refuses
//! costs what it was to be told, and a warning, and nothing else.

mod batch;
mod client;
mod meter;
mod settings;

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock, atomic::Ordering},
    thread,
    time::{Duration, SystemTime},
};

use http::HeaderValue;
pub use opentelemetry::logs::Severity;
use opentelemetry::{
    InstrumentationScope, KeyValue, Value,
    logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _},
    metrics::Histogram,
    trace::{Event, Link, SpanId, TraceFlags, TraceId},
};
use opentelemetry_otlp::{LogExporter, MetricExporter, SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{LogBatch, LogExporter as _, SdkLogRecord, SdkLogger, SdkLoggerProvider},
    metrics::SdkMeterProvider,
    trace::{IdGenerator as _, RandomIdGenerator, SpanData, SpanExporter as _},
};
use tokio::runtime::Runtime;

use self::{
    batch::{Batch, Health},
    client::Client,
    settings::{Sampling, Settings},
};
use crate::{
    Error,
    metrics::{Kind, Metrics},
    trace::{FinishedSpan, SpanContext},
};

/// How long the end of the process waits for what is still to be sent.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// How many sets of attributes one metric has at most. With a component's eight outcomes
/// this is what some thousand components need.
const MAX_SERIES_COUNT: usize = 20_000;

/// Upper bounds of the buckets of requests' durations, in microseconds. Wider than what the
/// conventions advise: most requests here take less than their smallest.
pub const DURATION_BOUNDS_US: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 10_000_000,
];

/// What spans, metrics and records of Wisp itself are said to come from.
const OWN_SCOPE: &str = "wisp";

static EXPORT: OnceLock<Export> = OnceLock::new();

/// What is exported, and how.
pub struct Export {
    spans: Option<Spans>,
    logs: Option<Logs>,
    meters: Option<Meters>,
    /// Sends requests of all three.
    _runtime: Runtime,
}

struct Spans {
    batch: Arc<Batch<SpanData>>,
    sampling: Sampling,
    scope: InstrumentationScope,
}

struct Logs {
    batch: Arc<Batch<(SdkLogRecord, InstrumentationScope)>>,
    /// Makes records; nothing goes through it.
    logger: SdkLogger,
    own: InstrumentationScope,
    guests: InstrumentationScope,
    requests: InstrumentationScope,
}

struct Meters {
    provider: SdkMeterProvider,
    request_duration: Histogram<f64>,
    health: Arc<Health>,
}

/// A span that a guest reports of itself.
pub struct GuestSpan {
    /// What is like any other span.
    pub span: FinishedSpan,
    /// What happened during it: a name, a time, and what else is known.
    pub events: Vec<(String, SystemTime, Vec<KeyValue>)>,
    /// Spans that it has to do with.
    pub links: Vec<(SpanContext, Vec<KeyValue>)>,
    /// The guest's library that made it.
    pub library: String,
    /// The library's version.
    pub library_version: Option<String>,
    /// Attributes that were left out; likewise below.
    pub dropped_attributes_count: u32,
    /// Events.
    pub dropped_events_count: u32,
    /// Links.
    pub dropped_links_count: u32,
}

/// Whose record it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// Wisp's own.
    Own,
    /// A line that a guest wrote.
    Guest,
    /// A request that is over.
    Request,
}

/// A record of a log.
pub struct LogEntry {
    /// Whose it is.
    pub source: LogSource,
    /// When it happened.
    pub time: SystemTime,
    /// How bad it is.
    pub severity: Severity,
    /// What happened.
    pub text: String,
    /// What else is known.
    pub attributes: Vec<KeyValue>,
    /// The place in a trace that it belongs to.
    pub context: Option<SpanContext>,
}

/// What is exported, if anything is.
pub fn export() -> Option<&'static Export> {
    EXPORT.get()
}

/// Begins to export what the environment asks for, for the rest of the process. `name` is
/// the service's, unless the environment says another. Later calls change nothing.
///
/// # Errors
/// If the environment asks for something that does not exist, or a thread is refused.
pub fn start(name: &'static str) -> Result<(), Error> {
    let settings = Settings::from_environment()?;
    if export().is_some() {
        return Ok(());
    }
    if !settings.traces && !settings.metrics && !settings.logs {
        return Ok(());
    }
    let export = Export::start(name, settings)?;
    // A second one would export everything twice.
    let _ = EXPORT.set(export);
    Ok(())
}

/// Sends what still waits; bounded in time. For the end of the process.
pub fn flush() {
    if let Some(export) = export() {
        export.flush();
    }
}

pub(crate) fn new_span_id() -> SpanId {
    RandomIdGenerator::default().new_span_id()
}

impl Export {
    fn start(name: &'static str, settings: Settings) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("wisp-export")
            .enable_all()
            .build()
            .map_err(|cause| Error::Start { cause })?;
        let resource = resource(name);
        let client = |health: &Arc<Health>, timeout: Duration| {
            Client::new(runtime.handle().clone(), timeout, health.clone())
        };
        let refused = |error: &dyn std::fmt::Display| Error::Exporter { message: error.to_string() };

        let spans = match settings.traces {
            false => None,
            true => {
                let health = Arc::new(Health::new("traces"));
                let mut exporter = SpanExporter::builder()
                    .with_http()
                    .with_http_client(client(&health, settings.traces_timeout)?)
                    .build()
                    .map_err(|error| refused(&error))?;
                exporter.set_resource(&resource);
                let handle = runtime.handle().clone();
                let send = move |spans: Vec<SpanData>| handle.block_on(exporter.export(spans));
                Some(Spans {
                    batch: Batch::start(settings.spans, health, send)?,
                    sampling: settings.sampling,
                    scope: own_scope(),
                })
            }
        };
        let logs = match settings.logs {
            false => None,
            true => {
                let health = Arc::new(Health::new("logs"));
                let mut exporter = LogExporter::builder()
                    .with_http()
                    .with_http_client(client(&health, settings.logs_timeout)?)
                    .build()
                    .map_err(|error| refused(&error))?;
                exporter.set_resource(&resource);
                let handle = runtime.handle().clone();
                let send = move |records: Vec<(SdkLogRecord, InstrumentationScope)>| -> OTelSdkResult {
                    let borrowed: Vec<_> = records.iter().map(|(record, scope)| (record, scope)).collect();
                    handle.block_on(exporter.export(LogBatch::new(&borrowed)))
                };
                Some(Logs {
                    batch: Batch::start(settings.records, health, send)?,
                    logger: SdkLoggerProvider::builder().build().logger(OWN_SCOPE),
                    own: own_scope(),
                    guests: InstrumentationScope::builder("wisp.guest").build(),
                    requests: InstrumentationScope::builder("wisp.request").build(),
                })
            }
        };
        let meters = match settings.metrics {
            false => None,
            true => {
                let health = Arc::new(Health::new("metrics"));
                let exporter = MetricExporter::builder()
                    .with_http()
                    .with_http_client(client(&health, settings.metrics_timeout)?)
                    .with_temporality(settings.temporality)
                    .build()
                    .map_err(|error| refused(&error))?;
                Some(Meters::start(meter::Reported { exporter, health: health.clone() }, resource, health))
            }
        };
        Ok(Self { spans, logs, meters, _runtime: runtime })
    }

    /// Whether traces are exported.
    pub fn exports_traces(&self) -> bool {
        self.spans.is_some()
    }

    /// Whether logs are exported.
    pub fn exports_logs(&self) -> bool {
        self.logs.is_some()
    }

    /// Where a request is in its trace: a new one, or a part of its client's.
    pub(crate) fn sample(&self, parent: Option<SpanContext>) -> SpanContext {
        let ids = RandomIdGenerator::default();
        let trace_id = parent.map_or_else(|| ids.new_trace_id(), |parent| parent.trace_id);
        let is_sampled = self.spans.as_ref().is_some_and(|spans| spans.sampling.keeps(trace_id, parent));
        SpanContext { trace_id, span_id: ids.new_span_id(), is_sampled }
    }

    /// Takes in a span that is over.
    pub fn span(&self, span: FinishedSpan) {
        if let Some(spans) = &self.spans {
            spans.batch.push(span.into_data(spans.scope.clone()));
        }
    }

    /// Takes in a span that a guest reports.
    pub fn guest_span(&self, reported: GuestSpan) {
        let Some(spans) = &self.spans else { return };
        let library = InstrumentationScope::builder(reported.library);
        let library = match reported.library_version {
            Some(version) => library.with_version(version),
            None => library,
        };
        let mut data = reported.span.into_data(library.build());
        data.dropped_attributes_count = reported.dropped_attributes_count;
        data.events.dropped_count = reported.dropped_events_count;
        data.links.dropped_count = reported.dropped_links_count;
        for (name, time, attributes) in reported.events {
            data.events.events.push(Event::new(name, time, attributes, 0));
        }
        for (context, attributes) in reported.links {
            data.links.links.push(Link::new(context.to_otel(None, true), attributes, 0));
        }
        spans.batch.push(data);
    }

    /// Takes in a record.
    pub fn log(&self, entry: LogEntry) {
        let Some(logs) = &self.logs else { return };
        let mut record = logs.logger.create_log_record();
        record.set_timestamp(entry.time);
        record.set_observed_timestamp(SystemTime::now());
        record.set_severity_number(entry.severity);
        record.set_severity_text(entry.severity.name());
        record.set_body(AnyValue::from(entry.text));
        for KeyValue { key, value, .. } in entry.attributes {
            record.add_attribute(key, any_value(value));
        }
        if let Some(SpanContext { trace_id, span_id, is_sampled }) = entry.context {
            let flags = if is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
            record.set_trace_context(trace_id, span_id, Some(flags));
        }
        let scope = match entry.source {
            LogSource::Own => &logs.own,
            LogSource::Guest => &logs.guests,
            LogSource::Request => &logs.requests,
        };
        logs.batch.push((record, scope.clone()));
    }

    /// Counts a request that is over.
    pub fn request(&self, duration: Duration, attributes: &[KeyValue]) {
        if let Some(meters) = &self.meters {
            meters.request_duration.record(duration.as_secs_f64(), attributes);
        }
    }

    /// Whether metrics are exported.
    pub fn exports_metrics(&self) -> bool {
        self.meters.is_some()
    }

    /// Reads figures each time that metrics are exported. The families that are there now
    /// are those that will be exported.
    pub fn observe(&self, read: impl Fn() -> Metrics + Send + Sync + 'static) {
        if let Some(meters) = &self.meters {
            meter::observe(&meters.provider, Arc::new(read));
        }
    }

    /// Adds what was dropped.
    pub fn write_metrics(&self, metrics: &mut Metrics) {
        let dropped = metrics.family(
            "wisp_telemetry_dropped_total",
            Kind::Counter,
            "What was to be exported and was not: it came too fast, or nobody took it.",
        );
        let spans = self.spans.as_ref().map(|spans| &spans.batch.health);
        let logs = self.logs.as_ref().map(|logs| &logs.batch.health);
        let meters = self.meters.as_ref().map(|meters| &meters.health);
        for health in [spans, logs, meters].into_iter().flatten() {
            dropped.count(&[("signal", health.signal)], health.dropped_count.load(Ordering::Relaxed));
        }
    }

    fn flush(&self) {
        let deadline = std::time::Instant::now() + FLUSH_LIMIT;
        // Metrics are read and sent by a thread of their own, which may take longer than
        // anybody wants to wait.
        let meters = self.meters.as_ref().map(|meters| {
            let provider = meters.provider.clone();
            let (done, is_done) = std::sync::mpsc::sync_channel::<()>(1);
            let started = thread::Builder::new().name("wisp-flush".into()).spawn(move || {
                // What goes wrong was reported by whoever sends.
                drop(provider.force_flush());
                let _ = done.send(());
            });
            (started, is_done)
        });
        if let Some(spans) = &self.spans {
            spans.batch.flush(deadline);
        }
        if let Some(logs) = &self.logs {
            logs.batch.flush(deadline);
        }
        if let Some((Ok(_), is_done)) = meters {
            let _ = is_done.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now()));
        }
    }
}

impl Meters {
    fn start(exporter: meter::Reported, resource: Resource, health: Arc<Health>) -> Self {
        let provider = meter::provider(exporter, resource, MAX_SERIES_COUNT);
        let meter = opentelemetry::metrics::MeterProvider::meter_with_scope(&provider, own_scope());
        let request_duration = meter
            .f64_histogram("http.server.request.duration")
            .with_unit("s")
            .with_description("Duration of HTTP server requests.")
            .with_boundaries(DURATION_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).collect())
            .build();
        Self { provider, request_duration, health }
    }
}

impl FinishedSpan {
    fn into_data(self, instrumentation_scope: InstrumentationScope) -> SpanData {
        let status = self.status();
        let state: Option<&HeaderValue> = self.trace_state.as_ref();
        SpanData {
            span_context: self.context.to_otel(state, false),
            parent_span_id: self.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: self.parent_is_remote,
            span_kind: self.kind,
            name: self.name,
            start_time: self.start,
            end_time: self.end,
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status,
            instrumentation_scope,
        }
    }
}

fn any_value(value: Value) -> AnyValue {
    match value {
        Value::Bool(value) => value.into(),
        Value::I64(value) => value.into(),
        Value::F64(value) => value.into(),
        Value::String(value) => AnyValue::String(value),
        other => other.to_string().into(),
    }
}

fn own_scope() -> InstrumentationScope {
    InstrumentationScope::builder(OWN_SCOPE).with_version(env!("CARGO_PKG_VERSION")).build()
}

/// Who exports: what the environment says, and who this is where it says nothing.
fn resource(name: &'static str) -> Resource {
    let builder = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ]);
    let says_name = |variable: &str, is_name: fn(&str) -> bool| {
        std::env::var(variable).is_ok_and(|value| is_name(&value))
    };
    let is_named = says_name("OTEL_SERVICE_NAME", |value| !value.is_empty())
        || says_name("OTEL_RESOURCE_ATTRIBUTES", |value| {
            value.split(',').any(|pair| pair.trim_start().starts_with("service.name="))
        });
    if is_named { builder.build() } else { builder.with_service_name(Cow::Borrowed(name)).build() }
}

/// Whether a trace id is to be kept when so many of 2⁶³ are.
fn is_below(trace_id: TraceId, bound: u64) -> bool {
    let bytes = trace_id.to_bytes();
    let mut low = [0; 8];
    low.copy_from_slice(&bytes[8..]);
    u64::from_be_bytes(low) >> 1 < bound
}
