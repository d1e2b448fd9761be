//! Who answers a request: the platform itself, or an app; and what is kept of it.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use axum::Router;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tower::ServiceExt as _;
use wisp_control::{LogRecord, Peer};
use wisp_ingress::{AccessLog, Door, Line, RateLimits, TooMany};
use wisp_node::Node;
use wisp_trigger::http::{Access, Arrival, Decision, Front, Observer, Service, ServiceBody, host_name};

use crate::{LogStore, log_store::now_ms};

/// How much of a request's address is kept in a record.
const TARGET_BYTES: usize = 2 << 10;

/// Stands before the apps.
pub(crate) struct Entrance {
    /// The host of the platform itself.
    pub(crate) domain: String,
    pub(crate) door: Door,
    pub(crate) rates: Arc<RateLimits>,
    pub(crate) api: Arc<Api>,
}

/// The API and the registry, on threads of their own: those of connections run guests.
pub(crate) struct Api {
    pub(crate) router: Router,
    pub(crate) runtime: tokio::runtime::Handle,
}

/// Keeps a record of each request to an app.
pub(crate) struct Records {
    pub(crate) node: Arc<Node>,
    pub(crate) logs: Arc<LogStore>,
    pub(crate) access_log: AccessLog,
}

impl Front for Entrance {
    fn decide(&self, request: &Request<Incoming>, arrival: &Arrival) -> Decision {
        let host = host_name(request.uri(), request.headers());
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        if let Some(answer) = self.door.answer(arrival.is_tls, host, path) {
            return Decision::Answer(Box::new(answer));
        }
        let is_own = host.is_some_and(|host| {
            let host = host.strip_suffix(b".").unwrap_or(host);
            host.eq_ignore_ascii_case(self.domain.as_bytes()) || is_address(host)
        });
        if is_own {
            return Decision::Service(self.api.clone());
        }
        match host.map(|host| self.take(host)) {
            Some(Err(too_many)) => Decision::Answer(Box::new(too_many.response())),
            _ => Decision::App,
        }
    }
}

impl Entrance {
    /// Counts a request to a host for its app and its team.
    fn take(&self, host: &[u8]) -> Result<(), TooMany> {
        let Ok(text) = std::str::from_utf8(host) else { return Ok(()) };
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            self.rates.take(&text.to_ascii_lowercase())
        } else {
            self.rates.take(text)
        }
    }
}

/// Whether a host is an address: no app has one.
fn is_address(host: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(host) else { return false };
    let text = text.trim_start_matches('[').trim_end_matches(']');
    // Names of hosts begin with letters mostly, and are never parsed.
    text.starts_with(|first: char| first.is_ascii_hexdigit() || first == ':')
        && std::net::IpAddr::from_str(text).is_ok()
}

impl Service for Api {
    fn call(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        arrival: Arrival,
    ) -> BoxFuture<'static, Response<ServiceBody>> {
        let router = self.router.clone();
        request.extensions_mut().insert(Peer(arrival.client));
        // What was begun is brought to its end, also when the client goes away.
        let answering = self.runtime.spawn(router.oneshot(request.map(axum::body::Body::new)));
        Box::pin(async move {
            match answering.await {
                Ok(Ok(response)) => response.map(|body| body.map_err(Into::into).boxed_unsync()),
                Ok(Err(never)) => match never {},
                Err(error) => {
                    tracing::error!("a request to the API ended early: {error}");
                    failure()
                }
            }
        })
    }
}

fn failure() -> Response<ServiceBody> {
    let body = Full::new(Bytes::from_static(b"the server failed\n"));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

impl Observer for Records {
    fn observe(&self, access: Access) {
        self.access_log.write(Line {
            time: std::time::SystemTime::now(),
            request_id: access.id.to_string(),
            client: access.arrival.client.ip(),
            is_tls: access.arrival.is_tls,
            host: access.host.clone(),
            method: access.method.clone(),
            path: access.uri.path().to_owned(),
            status: access.status.as_u16(),
            response_bytes: access.response_bytes,
            duration: access.duration,
            cpu: access.used.as_ref().map(|used| used.cpu),
            trace_id: access.trace_id.map(|trace| trace.to_string()),
            is_complete: access.is_complete,
        });
        let Some(app) = access.host.as_deref().and_then(|host| self.node.app_at(host)) else { return };
        self.logs.add(&app, record_of(&access));
    }
}

/// What an app's log says of a request.
fn record_of(access: &Access) -> LogRecord {
    // What follows a `?` is not kept: people put secrets there.
    let target = access.uri.path();
    let target = &target[..target.floor_char_boundary(TARGET_BYTES)];
    let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let mut fields = serde_json::Map::new();
    let mut set = |name: &str, value: serde_json::Value| drop(fields.insert(name.into(), value));
    set("method", access.method.as_str().into());
    set("path", target.into());
    set("status", access.status.as_u16().into());
    set("duration_us", us(access.duration).into());
    set("response_bytes", access.response_bytes.into());
    set("client", access.arrival.client.ip().to_string().into());
    if !access.is_complete {
        set("is_complete", false.into());
    }
    let status = access.status.as_u16();
    let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
    let mut text = format!("{} {target} {status} {:.1} ms", access.method, ms(access.duration));
    if let Some(used) = &access.used {
        if let Some(outcome) = used.outcome {
            set("outcome", outcome.name().into());
        }
        set("cpu_us", us(used.cpu).into());
        set("instantiate_us", us(used.instantiate).into());
        set("wait_us", us(used.wait).into());
        set("queue_us", us(used.queue).into());
        set("peak_memory_bytes", used.peak_memory_bytes.into());
        set("request_bytes", used.request_bytes.into());
        text.push_str(&format!(", {:.1} ms CPU", ms(used.cpu)));
    }
    LogRecord {
        at_ms: now_ms(),
        stream: "request".into(),
        component: access.used.as_ref().map(|used| used.component.to_string()),
        request: Some(access.id.to_string()),
        trace: access.trace_id.map(|trace| trace.to_string()),
        text,
        fields,
    }
}
