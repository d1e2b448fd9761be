//! `wasi:otel`: telemetry of a guest's own.
//!
//! What a guest reports goes where Wisp's own telemetry goes, with the app's name on it,
//! and into the trace of the request that the guest serves: it asks for the span around it,
//! and what the host does for it is part of the span that it began last. Where nothing is
//! exported, what it reports is dropped, and it is told that there is no span around it.
//!
//! A request's guest reports a bounded number of things, each of bounded size; together they
//! count as what it writes to its log.

use std::time::{Duration, SystemTime};

use wasmtime::component::{HasSelf, Linker};
use wisp_telemetry::export::{GuestSpan, LogEntry, LogSource, Severity, export};
use wisp_telemetry::trace::{FinishedSpan, KeyValue, Scope, SpanContext, SpanId, SpanKind, TraceId, Value};

use crate::{Error, Host};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "wisp:host/otel",
    });
}

use bindings::wasi::clocks::wall_clock::Datetime;
use bindings::wasi::otel::types as guest;
use bindings::wasi::otel::{logs, metrics, tracing};

/// Attributes that one thing has at most; the rest is counted as dropped.
const MAX_ATTRIBUTES_COUNT: usize = 64;

/// Events, and links, that a span has at most.
const MAX_EVENTS_COUNT: usize = 64;

/// The longest name, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// The longest value of an attribute and the longest message, in bytes.
const MAX_VALUE_BYTES: usize = 4 << 10;

/// What one thing counts as at least, in bytes of the log: its ids and times.
const REPORT_COST_BYTES: usize = 128;

pub(crate) fn add_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    tracing::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    logs::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    metrics::add_to_linker::<_, HasSelf<_>>(linker, |host| host)
}

impl tracing::Host for Host {
    fn on_start(&mut self, context: tracing::SpanContext) {
        if let (Some(scope), Some(context)) = (Scope::current(), context_of(&context)) {
            scope.begin_guest_span(context);
        }
    }

    fn on_end(&mut self, span: tracing::SpanData) {
        let Some(scope) = Scope::current() else { return };
        let Some(context) = context_of(&span.span_context) else { return };
        scope.end_guest_span(context);
        let Some(export) = export().filter(|export| export.exports_traces() && context.is_sampled) else {
            return;
        };
        let mut size = Size::default();
        let (attributes, dropped) = attributes(span.attributes, &scope, &mut size);
        let events = span.events.len();
        let links = span.links.len();
        let reported = GuestSpan {
            span: FinishedSpan {
                context,
                parent: SpanId::from_hex(&span.parent_span_id).ok().filter(|id| *id != SpanId::INVALID),
                parent_is_remote: false,
                kind: match span.span_kind {
                    tracing::SpanKind::Client => SpanKind::Client,
                    tracing::SpanKind::Server => SpanKind::Server,
                    tracing::SpanKind::Producer => SpanKind::Producer,
                    tracing::SpanKind::Consumer => SpanKind::Consumer,
                    tracing::SpanKind::Internal => SpanKind::Internal,
                },
                name: size.cut(span.name, MAX_NAME_BYTES).into(),
                start: time(span.start_time),
                end: time(span.end_time),
                attributes,
                error: match span.status {
                    tracing::Status::Error(message) => Some(size.cut(message, MAX_VALUE_BYTES).into()),
                    tracing::Status::Unset | tracing::Status::Ok => None,
                },
                trace_state: None,
            },
            events: span
                .events
                .into_iter()
                .take(MAX_EVENTS_COUNT)
                .map(|event| {
                    let name = size.cut(event.name, MAX_NAME_BYTES);
                    (name, time(event.time), own_attributes(event.attributes, &mut size).0)
                })
                .collect(),
            links: span
                .links
                .into_iter()
                .take(MAX_EVENTS_COUNT)
                .filter_map(|link| {
                    let context = context_of(&link.span_context)?;
                    Some((context, own_attributes(link.attributes, &mut size).0))
                })
                .collect(),
            library: size.cut(span.instrumentation_scope.name, MAX_NAME_BYTES),
            library_version: span
                .instrumentation_scope
                .version
                .map(|version| size.cut(version, MAX_NAME_BYTES)),
            dropped_attributes_count: span.dropped_attributes.saturating_add(dropped),
            dropped_events_count: span.dropped_events.saturating_add(beyond(events)),
            dropped_links_count: span.dropped_links.saturating_add(beyond(links)),
        };
        if self.may_report(&scope, &size) {
            export.guest_span(reported);
        }
    }

    fn outer_span_context(&mut self) -> tracing::SpanContext {
        let none = SpanContext { trace_id: TraceId::INVALID, span_id: SpanId::INVALID, is_sampled: false };
        let scope = Scope::current().filter(|_| export().is_some());
        let context = scope.as_ref().and_then(Scope::context).unwrap_or(none);
        let flags = match context.is_sampled {
            true => tracing::TraceFlags::SAMPLED,
            false => tracing::TraceFlags::empty(),
        };
        tracing::SpanContext {
            trace_id: context.trace_id.to_string(),
            span_id: context.span_id.to_string(),
            trace_flags: flags,
            is_remote: context != none,
            trace_state: Vec::new(),
        }
    }
}

impl logs::Host for Host {
    fn on_emit(&mut self, record: logs::LogRecord) {
        let Some(scope) = Scope::current() else { return };
        let Some(export) = export().filter(|export| export.exports_logs()) else { return };
        let mut size = Size::default();
        let (mut attributes, _) = attributes(record.attributes.unwrap_or_default(), &scope, &mut size);
        if let Some(name) = record.event_name {
            attributes.push(KeyValue::new("event.name", size.cut(name, MAX_NAME_BYTES)));
        }
        if let Some(request) = scope.request() {
            attributes.push(KeyValue::new("wisp.request", request.to_string()));
        }
        let own = record.trace_id.zip(record.span_id).and_then(|(trace_id, span_id)| {
            let is_sampled =
                record.trace_flags.is_some_and(|flags| flags.contains(tracing::TraceFlags::SAMPLED));
            ids(&trace_id, &span_id, is_sampled)
        });
        let entry = LogEntry {
            source: LogSource::Guest,
            time: record.timestamp.or(record.observed_timestamp).map_or_else(SystemTime::now, time),
            severity: severity(record.severity_number),
            text: record.body.map(|body| text(body, &mut size)).unwrap_or_default(),
            attributes,
            context: own.or_else(|| scope.context()),
        };
        if self.may_report(&scope, &size) {
            export.log(entry);
        }
    }
}

impl metrics::Host for Host {
    fn export(&mut self, _: metrics::ResourceMetrics) -> Result<(), String> {
        let error = Error::Unavailable { family: "otel" };
        Err(format!("{error} [{}]", error.code()))
    }
}

impl guest::Host for Host {}

impl Host {
    /// Whether the guest may report something of this size, which it then counts for.
    fn may_report(&self, scope: &Scope, size: &Size) -> bool {
        scope.may_report() && self.may_log(REPORT_COST_BYTES + size.0)
    }
}

/// How much of a guest's text is told, in bytes.
#[derive(Default)]
struct Size(usize);

impl Size {
    fn cut(&mut self, mut text: String, max_bytes: usize) -> String {
        text.truncate(text.floor_char_boundary(max_bytes));
        self.0 += text.len();
        text
    }
}

/// A guest's attributes, after those that only the host may set.
fn attributes(given: Vec<guest::KeyValue>, scope: &Scope, size: &mut Size) -> (Vec<KeyValue>, u32) {
    let mut all = vec![
        KeyValue::new("wisp.app", scope.app().clone()),
        KeyValue::new("wisp.component", scope.component().clone()),
    ];
    let (own, dropped) = own_attributes(given, size);
    all.extend(own);
    (all, dropped)
}

fn own_attributes(given: Vec<guest::KeyValue>, size: &mut Size) -> (Vec<KeyValue>, u32) {
    let count = given.len();
    let own: Vec<KeyValue> = given
        .into_iter()
        // Nobody else's name may be taken.
        .filter(|pair| !pair.key.starts_with("wisp."))
        .take(MAX_ATTRIBUTES_COUNT)
        .map(|pair| KeyValue::new(size.cut(pair.key, MAX_NAME_BYTES), value(pair.value, size)))
        .collect();
    let dropped = u32::try_from(count - own.len()).unwrap_or(u32::MAX);
    (own, dropped)
}

/// A value, which comes as JSON. What is no JSON, or no simple value, stays text.
fn value(json: String, size: &mut Size) -> Value {
    let json = size.cut(json, MAX_VALUE_BYTES);
    match serde_json::from_str(&json) {
        Ok(serde_json::Value::Bool(value)) => value.into(),
        Ok(serde_json::Value::String(value)) => value.into(),
        Ok(serde_json::Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => json.into(),
        },
        _ => json.into(),
    }
}

fn text(json: String, size: &mut Size) -> String {
    match value(json, size) {
        Value::String(text) => text.into(),
        other => other.to_string(),
    }
}

fn context_of(context: &tracing::SpanContext) -> Option<SpanContext> {
    let is_sampled = context.trace_flags.contains(tracing::TraceFlags::SAMPLED);
    ids(&context.trace_id, &context.span_id, is_sampled)
}

fn ids(trace_id: &str, span_id: &str, is_sampled: bool) -> Option<SpanContext> {
    let trace_id = TraceId::from_hex(trace_id).ok().filter(|id| *id != TraceId::INVALID)?;
    let span_id = SpanId::from_hex(span_id).ok().filter(|id| *id != SpanId::INVALID)?;
    Some(SpanContext { trace_id, span_id, is_sampled })
}

/// A guest's idea of the time; the beginning of 1970 if it is none.
fn time(time: Datetime) -> SystemTime {
    let since =
        Duration::from_secs(time.seconds).saturating_add(Duration::from_nanos(time.nanoseconds.into()));
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Of the 24 degrees that guests know: each word has four.
fn severity(number: Option<u8>) -> Severity {
    match number {
        Some(1..=4) => Severity::Trace,
        Some(5..=8) => Severity::Debug,
        None | Some(0 | 9..=12) => Severity::Info,
        Some(13..=16) => Severity::Warn,
        Some(17..=20) => Severity::Error,
        Some(21..) => Severity::Fatal,
    }
}

/// How many of so many events, or links, are too many.
fn beyond(count: usize) -> u32 {
    u32::try_from(count.saturating_sub(MAX_EVENTS_COUNT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &str) -> guest::KeyValue {
        guest::KeyValue { key: key.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn values_are_what_their_json_says() {
        let mut size = Size::default();
        let mut of = |json: &str| value(json.to_owned(), &mut size);
        assert_eq!(of("true"), Value::from(true));
        assert_eq!(of("7"), Value::from(7));
        assert_eq!(of("0.5"), Value::from(0.5));
        assert_eq!(of("\"word\""), Value::from("word"));
        assert_eq!(of("[1,2]"), Value::from("[1,2]"));
        assert_eq!(of("no json"), Value::from("no json"));
    }

    #[test]
    fn a_guest_cannot_take_the_name_of_another_app_or_fill_a_span() {
        let mut size = Size::default();
        let mut given = vec![pair("wisp.app", "\"other\""), pair("key", &"x".repeat(MAX_VALUE_BYTES * 2))];
        given.extend((0..MAX_ATTRIBUTES_COUNT).map(|number| pair(&number.to_string(), "1")));
        let (own, dropped) = own_attributes(given, &mut size);
        assert_eq!(own.len(), MAX_ATTRIBUTES_COUNT);
        assert_eq!(dropped, 2);
        assert!(own.iter().all(|pair| !pair.key.as_str().starts_with("wisp.")));
        assert!(size.0 < MAX_VALUE_BYTES + MAX_ATTRIBUTES_COUNT * 4, "{}", size.0);
    }

    #[test]
    fn a_strange_clock_is_no_panic() {
        assert_eq!(time(Datetime { seconds: u64::MAX, nanoseconds: u32::MAX }), SystemTime::UNIX_EPOCH);
    }
}
