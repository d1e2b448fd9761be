//! What is told of a request when it is over: a span, a record, a measurement.
//!
//! A request has a [`Trace`] if something is exported or somebody records requests under
//! an id; else nothing of this happens. It begins when it is known who answers, and ends
//! with the request's bill.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, Method, StatusCode, Uri, Version, header, request};
use wisp_engine::Usage;
use wisp_telemetry::{
    export::{Export, LogEntry, LogSource, Severity},
    trace::{
        FinishedSpan, KeyValue, Propagated, RequestId, Scope, SpanContext, SpanKind, TRACEPARENT,
        begin_request,
    },
};

use super::{
    account::{Outcome, Record, wait},
    body::Reply,
    shape::Connection,
};

/// The longest path that is told, in bytes.
const MAX_PATH_BYTES: usize = 2 << 10;

/// The longest name of a client's program that is told, in bytes.
const MAX_USER_AGENT_BYTES: usize = 256;

/// What is told of a request when it is over.
pub(super) struct Trace {
    scope: Scope,
    /// `None` if nothing is exported.
    told: Option<Box<Told>>,
}

/// What is known of a request at its beginning.
struct Told {
    export: &'static Export,
    parent: Option<SpanContext>,
    trace_state: Option<HeaderValue>,
    start: SystemTime,
    began: Instant,
    method: Method,
    uri: Uri,
    version: Version,
    route: Option<HeaderValue>,
    client: HeaderValue,
    user_agent: Option<HeaderValue>,
    release: Option<u64>,
}

/// Who wants to know what a request used, and finds it here once it began. In the
/// extensions of requests that are observed.
#[derive(Clone)]
pub(super) struct Watch {
    pub(super) id: RequestId,
    pub(super) reply: Arc<OnceLock<Reply>>,
}

/// Who answers a request.
pub(super) struct Answering<'answer> {
    /// The app, by the name that its operator knows it by.
    pub(super) app: &'answer Arc<str>,
    /// The component; empty where none runs.
    pub(super) component: &'answer Arc<str>,
    pub(super) release: Option<u64>,
    pub(super) route: Option<&'answer HeaderValue>,
}

impl Trace {
    /// Begins with a request whose URI is absolute. From here on its `traceparent` is its
    /// own place in the trace, which is what the guest sees.
    pub(super) fn begin(
        who: &Answering<'_>,
        parts: &mut request::Parts,
        uri: &Uri,
        connection: &Connection,
    ) -> Option<Box<Self>> {
        let export = wisp_telemetry::export();
        let watched = parts.extensions.get::<Watch>().map(|watch| watch.id);
        let request = watched.or_else(|| parts.extensions.get::<RequestId>().copied());
        if export.is_none() && request.is_none() {
            return None;
        }
        let propagated = if export.is_some() || parts.headers.contains_key(TRACEPARENT) {
            Propagated::of(&parts.headers)
        } else {
            Propagated::default()
        };
        let parent = propagated.parent;
        let context = export.map_or(parent, |export| begin_request(export, &propagated));
        if export.is_some_and(Export::exports_traces)
            && let Some(context) = context
        {
            parts.headers.insert(TRACEPARENT, context.header());
        }
        let told = export.map(|export| {
            Box::new(Told {
                export,
                parent: parent.filter(|_| export.exports_traces()),
                trace_state: propagated.trace_state().cloned(),
                start: SystemTime::now(),
                began: Instant::now(),
                method: parts.method.clone(),
                uri: uri.clone(),
                version: parts.version,
                route: who.route.cloned(),
                client: connection.client.clone(),
                user_agent: parts.headers.get(header::USER_AGENT).cloned(),
                release: who.release,
            })
        });
        let scope = Scope::new(who.app.clone(), who.component.clone(), request, context, propagated);
        Some(Box::new(Self { scope, told }))
    }

    /// On whose behalf things happen until the end.
    pub(super) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Tells of a request that a guest answered, or should have.
    pub(super) fn end(&self, status: u16, record: &Record, usage: &Usage) {
        self.tell(status, Some((record, usage)));
    }

    /// Tells of a request that no guest saw.
    pub(super) fn end_without_guest(&self, status: StatusCode) {
        self.tell(status.as_u16(), None);
    }

    fn tell(&self, status: u16, used: Option<(&Record, &Usage)>) {
        let Some(told) = &self.told else { return };
        let duration = told.began.elapsed();
        let export = told.export;
        let error = error_of(status, used.map(|(record, _)| record.outcome));
        let shared = self.shared(told, status, error);
        export.request(duration, &shared);
        let context = self.scope.context();
        let is_kept = export.exports_traces() && context.is_some_and(|context| context.is_sampled);
        if !is_kept && !export.exports_logs() {
            return;
        }
        let mut attributes = shared;
        self.add_details(told, used, &mut attributes);
        if export.exports_logs() {
            let path = path_of(&told.uri);
            let text = format!("{} {path} {status} {:.1} ms", told.method, duration.as_secs_f64() * 1_000.0);
            export.log(LogEntry {
                source: LogSource::Request,
                time: told.start + duration,
                severity: if error.is_some() { Severity::Error } else { Severity::Info },
                text,
                attributes: attributes.clone(),
                context,
            });
        }
        if let Some(context) = context.filter(|_| is_kept) {
            let method = method_name(&told.method);
            let name = match &told.route {
                Some(route) => format!("{method} {}", text_of(route)).into(),
                None => method.into(),
            };
            export.span(FinishedSpan {
                context,
                parent: told.parent.map(|parent| parent.span_id),
                parent_is_remote: told.parent.is_some(),
                kind: SpanKind::Server,
                name,
                start: told.start,
                end: told.start + duration,
                attributes,
                error: error.map(Into::into),
                trace_state: told.trace_state.clone(),
            });
        }
    }

    /// What all requests of one kind have in common: the attributes of metrics.
    fn shared(&self, told: &Told, status: u16, error: Option<&'static str>) -> Vec<KeyValue> {
        let scheme = if told.uri.scheme_str() == Some("https") { "https" } else { "http" };
        // Room for what a record says beside that.
        let mut attributes = Vec::with_capacity(28);
        attributes.push(KeyValue::new("wisp.app", self.scope.app().clone()));
        if !self.scope.component().is_empty() {
            attributes.push(KeyValue::new("wisp.component", self.scope.component().clone()));
        }
        attributes.push(KeyValue::new("http.request.method", method_name(&told.method)));
        attributes.push(KeyValue::new("url.scheme", scheme));
        attributes.push(KeyValue::new("network.protocol.version", version_name(told.version)));
        if status != 0 {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        if let Some(route) = &told.route {
            attributes.push(KeyValue::new("http.route", text_of(route)));
        }
        if let Some(error) = error {
            attributes.push(KeyValue::new("error.type", error));
        }
        attributes
    }

    fn add_details(&self, told: &Told, used: Option<(&Record, &Usage)>, attributes: &mut Vec<KeyValue>) {
        let mut add = |name: &'static str, value: wisp_telemetry::trace::Value| {
            attributes.push(KeyValue::new(name, value));
        };
        if let Some((team, _)) = self.scope.app().split_once('/') {
            add("wisp.team", team.to_owned().into());
        }
        if let Some(release) = told.release {
            add("wisp.release", number(release));
        }
        if let Some(request) = self.scope.request() {
            add("wisp.request", request.to_string().into());
        }
        // What follows a `?` is not told: people put secrets there.
        add("url.path", path_of(&told.uri).to_owned().into());
        if let Some(host) = told.uri.host() {
            add("server.address", host.to_owned().into());
        }
        if let Some(port) = told.uri.port_u16() {
            add("server.port", i64::from(port).into());
        }
        if method_name(&told.method) == "_OTHER" {
            add("http.request.method_original", told.method.to_string().into());
        }
        let client = text_of(&told.client);
        if let Some((address, port)) = client.rsplit_once(':') {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            add("client.address", address.to_owned().into());
            if let Ok(port) = port.parse::<i64>() {
                add("client.port", port.into());
            }
        }
        if let Some(agent) = &told.user_agent {
            let mut agent = text_of(agent);
            agent.truncate(agent.floor_char_boundary(MAX_USER_AGENT_BYTES));
            add("user_agent.original", agent.into());
        }
        let Some((record, usage)) = used else { return };
        add("http.request.body.size", number(usage.request_bytes()));
        add("http.response.body.size", number(record.response_bytes));
        add("wisp.outcome", record.outcome.name().into());
        add("wisp.cpu_ns", nanoseconds(usage.cpu()));
        add("wisp.instantiate_ns", nanoseconds(usage.instantiate()));
        add("wisp.wait_ns", nanoseconds(wait(record.total, usage)));
        add("wisp.queue_ns", nanoseconds(usage.queue()));
        add("wisp.peak_memory_bytes", number(usage.peak_memory_bytes()));
    }
}

/// What went wrong, in one of few words: on the server's side only.
fn error_of(status: u16, outcome: Option<Outcome>) -> Option<&'static str> {
    match outcome {
        None | Some(Outcome::Answered | Outcome::Cancelled) => match status {
            500 => Some("500"),
            502 => Some("502"),
            503 => Some("503"),
            504 => Some("504"),
            other if other > 500 => Some("5xx"),
            _ => None,
        },
        Some(outcome) => Some(outcome.name()),
    }
}

/// The conventions know nine methods; what else clients think of is one.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}

fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

fn path_of(uri: &Uri) -> &str {
    let path = uri.path();
    &path[..path.floor_char_boundary(MAX_PATH_BYTES)]
}

fn text_of(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn number(value: u64) -> wisp_telemetry::trace::Value {
    i64::try_from(value).unwrap_or(i64::MAX).into()
}

fn nanoseconds(duration: Duration) -> wisp_telemetry::trace::Value {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_the_servers_and_has_one_of_few_names() {
        assert_eq!(error_of(404, Some(Outcome::Answered)), None);
        assert_eq!(error_of(500, Some(Outcome::Answered)), Some("500"));
        assert_eq!(error_of(599, None), Some("5xx"));
        assert_eq!(error_of(504, Some(Outcome::CpuTime)), Some("cpu_time"));
        assert_eq!(error_of(0, Some(Outcome::Cancelled)), None);
    }
}
