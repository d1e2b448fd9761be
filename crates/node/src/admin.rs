//! The operator's listener.
//!
//! Plain HTTP/1.1 for whoever runs the node; it asks for no password and belongs on an
//! address that only they reach. It runs on the control thread: what it costs, no
//! request pays.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /health` | how all apps are, as JSON; see [`crate::health`] |
//! | `GET /apps/HOST` | what is known about one |
//! | `POST /apps/HOST/probe[?path=/PATH]` | sends it a request |
//! | `POST /apps/HOST/rollback` | back to the version before |
//! | `GET /metrics` | what is counted, in Prometheus' text format |
//! | `GET /usage` | what each app used and holds, as JSON: for `wisp top` |
//!
//! Errors are JSON as well: `{"error": {"code", "message", "hint"}}`.

use std::{
    convert::Infallible,
    net::{SocketAddr, TcpListener as StdTcpListener},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{Error, Node};

/// Connections of operators and their monitoring at once.
const MAX_CONNECTIONS_COUNT: usize = 64;

/// How long a client may take to send a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after the operating system had no descriptor for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The operator's listener, which has its address but does not answer yet.
pub struct Admin {
    listener: StdTcpListener,
    address: SocketAddr,
}

impl Admin {
    /// Takes the address.
    ///
    /// # Errors
    /// [`Error::Trigger`] if it cannot be listened on.
    pub fn bind(address: SocketAddr) -> Result<Self, Error> {
        let failed = |cause| Error::Trigger(wisp_trigger::Error::Listen { address, cause });
        let listener = StdTcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// The address that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers, on the node's own thread, for as long as the node exists.
    pub fn start(self, node: &Arc<Node>) {
        let handle = node.control().clone();
        let node = Arc::downgrade(node);
        handle.spawn(async move {
            let listener = match TcpListener::from_std(self.listener) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(code = "WISP-E0405", "the admin listener does not start: {error}");
                    return;
                }
            };
            let places = Arc::new(Semaphore::new(MAX_CONNECTIONS_COUNT));
            loop {
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::debug!("an admin connection cannot be accepted: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                let node = node.clone();
                tokio::spawn(async move {
                    let _place = place;
                    let service = service_fn(move |request: Request<Incoming>| {
                        let node = node.upgrade();
                        async move {
                            let response = match node {
                                Some(node) => answer(&node, &request).await,
                                None => text(StatusCode::SERVICE_UNAVAILABLE, "the node has ended\n".into()),
                            };
                            Ok::<_, Infallible>(response)
                        }
                    });
                    let serving = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADER_TIMEOUT)
                        .serve_connection(TokioIo::new(stream), service);
                    if let Err(error) = serving.await {
                        tracing::debug!("an admin connection ended early: {error}");
                    }
                });
            }
        });
    }
}

async fn answer(node: &Arc<Node>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    match (request.method(), path.as_slice()) {
        (&Method::GET, ["health"]) => json_text(StatusCode::OK, node.health()),
        (&Method::GET, ["metrics"]) => {
            let mut response = text(StatusCode::OK, node.metrics().to_text());
            let kind = HeaderValue::from_static(wisp_telemetry::metrics::CONTENT_TYPE);
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        (&Method::GET, ["usage"]) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let at_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            let items: Vec<_> = node.usage().iter().map(|usage| usage.to_json(at_ms)).collect();
            json_text(StatusCode::OK, format!("{}\n", json!({ "items": items })))
        }
        (&Method::GET, ["apps", host]) => match node.facts(host) {
            Ok(facts) => json_text(StatusCode::OK, format!("{facts}\n")),
            Err(error) => refused(&error),
        },
        (&Method::POST, ["apps", host, "rollback"]) => match node.roll_back(host) {
            Ok(took) => {
                let report = json!({ "host": host, "took_us": u64::try_from(took.as_micros()).unwrap_or(0) });
                json_text(StatusCode::OK, format!("{report}\n"))
            }
            Err(error) => refused(&error),
        },
        (&Method::POST, ["apps", host, "probe"]) => {
            let path = request.uri().query().and_then(|query| query.strip_prefix("path="));
            match node.probe(host, path).await {
                Ok(status) => {
                    let report = json!({ "host": host, "status": status.as_u16() });
                    json_text(StatusCode::OK, format!("{report}\n"))
                }
                Err(error) => refused(&error),
            }
        }
        (_, ["health" | "metrics" | "usage"] | ["apps", _] | ["apps", _, "rollback" | "probe"]) => {
            text(StatusCode::METHOD_NOT_ALLOWED, "use GET to ask and POST to act\n".into())
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /health, /metrics, /usage, /apps/HOST, /apps/HOST/probe and /apps/HOST/rollback\n"
                .into(),
        ),
    }
}

fn refused(error: &Error) -> Response<Full<Bytes>> {
    let status = match error {
        Error::NoApp { .. } => StatusCode::NOT_FOUND,
        Error::NoPrevious { .. } => StatusCode::CONFLICT,
        _ => StatusCode::BAD_GATEWAY,
    };
    let report = json!({
        "error": { "code": error.code(), "message": error.to_string(), "hint": error.hint() }
    });
    json_text(status, format!("{report}\n"))
}

fn json_text(status: StatusCode, json: String) -> Response<Full<Bytes>> {
    let mut response = text(status, json);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
