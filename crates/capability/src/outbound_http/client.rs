//! Sending one request over the network.

use std::collections::HashSet;
use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use http_body_util::BodyExt;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::runtime::Handle;
use tokio::time::timeout;
use wasmtime_wasi_http::{Error as HttpError, RequestOptions, WasiBody};

use super::body::{RequestBody, ResponseBody};
use super::connect::connect;
use super::pool::{Connection, Key, Lease, Pool, drive};
use super::tls::{ClientTls, ComponentTls, TlsSettings};
use crate::Error;
use crate::outbound::{self, Destination, Limit, Permit};

/// How long a guest waits for the connection, for the first byte, and between
/// two pieces of the response, each, when it does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// The longest time that a guest can ask for. Beyond it, clocks overflow.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long a request waits for the room of a connection that was closed for it.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(1);

/// How many connections from the pool may turn out to be closed before a new
/// one is opened.
const REUSE_ATTEMPTS_COUNT: usize = 4;

/// How many bytes of response headers HTTP/2 servers may send; HTTP/1.1 has
/// hyper's bound of about 400 KiB and 100 fields.
const RESPONSE_HEADERS_BYTES: u32 = 128 * 1024;

/// How much of one HTTP/2 response is buffered here while its guest does not
/// read. Enough to keep a fast line busy over a continent.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Names hosts that speak HTTP/2 without TLS: `host:port`, separated by commas.
pub const HTTP2_PRIOR_KNOWLEDGE_VARIABLE: &str = "SPIN_OUTBOUND_H2C_PRIOR_KNOWLEDGE";

/// Settings of outbound HTTP, for all components.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether connections serve more than one request.
    pub connection_pooling: bool,
    /// How many connections are open at most.
    pub max_connections_count: Option<usize>,
    /// TLS towards some hosts, for some components.
    pub client_tls: Vec<ClientTls>,
    /// Value of the variable [`HTTP2_PRIOR_KNOWLEDGE_VARIABLE`].
    pub http2_prior_knowledge: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connection_pooling: true,
            max_connections_count: None,
            client_tls: Vec::new(),
            http2_prior_knowledge: None,
        }
    }
}

/// What all components' requests share: one per process.
pub struct Client {
    /// Unset where connections are not reused.
    is_pooling: bool,
    pool: Arc<Pool>,
    limit: Option<Limit>,
    tls: TlsSettings,
    http2_prior_knowledge: HashSet<(String, u16)>,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            is_pooling: true,
            pool: Pool::new(),
            limit: None,
            tls: TlsSettings::default(),
            http2_prior_knowledge: HashSet::new(),
        }
    }
}

impl Client {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// [`Error::TlsFile`], [`Error::TlsSettings`] and
    /// [`Error::EnvironmentVariable`].
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let prior_knowledge = settings.http2_prior_knowledge.as_deref().unwrap_or_default();
        Ok(Self {
            is_pooling: settings.connection_pooling,
            pool: Pool::new(),
            limit: settings
                .max_connections_count
                .map(|count| Limit::new("max_connections of [outbound_http]", count)),
            tls: TlsSettings::new(&settings.client_tls)?,
            http2_prior_knowledge: parse_prior_knowledge(prior_knowledge)?,
        })
    }

    /// The TLS settings of one component.
    pub(super) fn tls_of(&self, component: &str) -> ComponentTls {
        self.tls.of_component(component)
    }

    /// Sends a request to a destination that was checked against the allow-list.
    pub(super) async fn send(
        &self,
        sender: Sender<'_>,
        destination: Destination,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<(Response<WasiBody>, RequestSent), HttpError> {
        let connect_timeout = bounded(options.connect_timeout);
        let first_byte_timeout = bounded(options.first_byte_timeout);
        let runtime = Handle::try_current().map_err(|_| HttpError::InternalError(None))?;
        let key = Key {
            client: sender.client,
            runtime: runtime.id(),
            is_tls: destination.scheme == "https",
            host: destination.host.clone(),
            port: destination.port,
        };

        let (parts, body) = request.into_parts();
        let (body, mut request_end) = RequestBody::new(body);
        let mut request = Request::from_parts(parts, body);
        let target = Target::of(&request)?;
        let mut attempts = 0;
        let (response, connection) = loop {
            let mut reused = None;
            if self.is_pooling && attempts < REUSE_ATTEMPTS_COUNT {
                reused = self.pool.take(&key).await;
                attempts += 1;
            }
            let is_reused = reused.is_some();
            let mut connection = match reused {
                Some(connection) => connection,
                None => timeout(connect_timeout, self.open(&sender, &destination, &key))
                    .await
                    .map_err(|_| HttpError::ConnectionTimeout)??,
            };
            let sent = match &mut connection {
                Connection::Http1(sender) => {
                    target.write_http1(&mut request);
                    timeout(first_byte_timeout, sender.try_send_request(request)).await
                }
                Connection::Http2(sender, _) => {
                    target.write_http2(&mut request);
                    timeout(first_byte_timeout, sender.try_send_request(request)).await
                }
            };
            match sent {
                Ok(Ok(response)) => break (response, connection),
                Ok(Err(mut refused)) => {
                    if let Some(unsent) = refused.take_message()
                        && is_reused
                    {
                        // The server closed it meanwhile; nothing was sent.
                        request = unsent;
                        continue;
                    }
                    let broken_off = request_end.as_mut().and_then(|end| end.result.try_recv().ok());
                    return Err(match broken_off {
                        Some(Err(error)) => error,
                        _ => network_error(refused.error()),
                    });
                }
                Err(_) => return Err(HttpError::ConnectionReadTimeout),
            }
        };

        let is_done = request_end.as_ref().map(|end| end.is_done.clone());
        let lease = Lease::new(connection, self.is_pooling.then(|| (self.pool.clone(), key)), is_done);
        let between_bytes = bounded(options.between_bytes_timeout);
        let response =
            response.map(|incoming| ResponseBody::new(incoming, between_bytes, lease).boxed_unsync());
        let request_sent: RequestSent = match request_end {
            None => Box::new(std::future::ready(Ok(()))),
            Some(end) => Box::new(async move {
                // Never told: the server answered without reading to the end.
                end.result.await.unwrap_or(Ok(()))
            }),
        };
        Ok((response, request_sent))
    }

    /// Opens a connection and lets its driver run.
    async fn open(
        &self,
        sender: &Sender<'_>,
        destination: &Destination,
        key: &Key,
    ) -> Result<Connection, HttpError> {
        let permit = self.permit(sender.outbound).await?;
        let transport = connect(sender.outbound, sender.tls, destination).await?;
        let is_http2 = transport.has_agreed_on_http2()
            || (destination.scheme == "http" && self.has_prior_knowledge(destination));
        let transport = TokioIo::new(transport);
        let failed = |error: hyper::Error| network_error(&error);
        if is_http2 {
            let (requests, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_header_list_size(RESPONSE_HEADERS_BYTES)
                .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
                .handshake(transport)
                .await
                .map_err(failed)?;
            tokio::spawn(drive(connection, self.pool.clone(), key.clone(), permit));
            if self.is_pooling {
                Ok(self.pool.share(key.clone(), requests))
            } else {
                Ok(Connection::alone(requests))
            }
        } else {
            let (requests, connection) = http1::handshake(transport).await.map_err(failed)?;
            tokio::spawn(drive(connection, self.pool.clone(), key.clone(), permit));
            Ok(Connection::Http1(requests))
        }
    }

    /// The right to one more connection. At a bound, a connection that waits in
    /// the pool has to make room.
    async fn permit(&self, outbound: &outbound::Grant) -> Result<Permit, HttpError> {
        let limit = self.limit.as_ref();
        if let Some(permit) = outbound.try_permit(limit) {
            return Ok(permit);
        }
        if self.pool.evict_one()
            && let Ok(Some(permit)) = timeout(EVICTION_TIMEOUT, outbound.next_permit(limit)).await
        {
            return Ok(permit);
        }
        outbound.permit(limit).map_err(|_| HttpError::ConnectionLimitReached)
    }

    fn has_prior_knowledge(&self, destination: &Destination) -> bool {
        !self.http2_prior_knowledge.is_empty()
            && self.http2_prior_knowledge.contains(&(destination.host.clone(), destination.port))
    }

    #[cfg(test)]
    pub(super) fn idle_count(&self) -> usize {
        self.pool.idle_count()
    }
}

/// Who sends.
#[derive(Clone, Copy)]
pub(super) struct Sender<'a> {
    /// Number of the component's grant.
    pub(super) client: u64,
    pub(super) outbound: &'a outbound::Grant,
    pub(super) tls: &'a ComponentTls,
}

/// Becomes ready when a request was sent to its end, or why not.
pub(super) type RequestSent = Box<dyn Future<Output = Result<(), HttpError>> + Send>;

/// A request's URI, in the forms of the two protocols.
struct Target {
    absolute: Uri,
    path: Uri,
    host: HeaderValue,
}

impl Target {
    fn of(request: &Request<RequestBody>) -> Result<Self, HttpError> {
        if request.method() == Method::CONNECT {
            // Would make a tunnel through the destination to somewhere else.
            return Err(HttpError::HttpRequestMethodInvalid);
        }
        let absolute = request.uri().clone();
        let path = absolute.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('?') { format!("/{path}") } else { path.to_owned() };
        let path = Uri::try_from(path).map_err(|_| HttpError::HttpRequestUriInvalid)?;
        let authority = absolute.authority().ok_or(HttpError::HttpRequestUriInvalid)?.as_str();
        let usual_port = if absolute.scheme_str() == Some("https") { ":443" } else { ":80" };
        let host = authority.strip_suffix(usual_port).unwrap_or(authority);
        let host = HeaderValue::from_str(host).map_err(|_| HttpError::HttpRequestUriInvalid)?;
        Ok(Self { absolute, path, host })
    }

    fn write_http1(&self, request: &mut Request<RequestBody>) {
        *request.uri_mut() = self.path.clone();
        *request.version_mut() = Version::HTTP_11;
        // Whatever the guest wrote: the permission was for the URI's host.
        request.headers_mut().insert(HOST, self.host.clone());
    }

    fn write_http2(&self, request: &mut Request<RequestBody>) {
        *request.uri_mut() = self.absolute.clone();
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(HOST);
    }
}

pub(super) fn bounded(timeout: Option<Duration>) -> Duration {
    timeout.unwrap_or(DEFAULT_TIMEOUT).min(MAX_TIMEOUT)
}

/// What a guest is told about a failure of the network or the server.
pub(super) fn network_error(error: &hyper::Error) -> HttpError {
    if error.is_timeout() {
        return HttpError::ConnectionReadTimeout;
    }
    if error.is_parse_too_large() {
        return HttpError::HttpResponseHeaderSectionSize(None);
    }
    if error.is_parse() {
        return HttpError::HttpProtocolError;
    }
    if error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || error.is_body_write_aborted()
    {
        return HttpError::ConnectionTerminated;
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<io::Error>() {
            return match cause.kind() {
                io::ErrorKind::TimedOut => HttpError::ConnectionReadTimeout,
                _ => HttpError::ConnectionTerminated,
            };
        }
        source = cause.source();
    }
    HttpError::HttpProtocolError
}

fn parse_prior_knowledge(value: &str) -> Result<HashSet<(String, u16)>, Error> {
    let entries = value.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let parsed = entries.map(|entry| {
        let (host, port) = entry.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some((host.to_ascii_lowercase(), port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
    });
    parsed.collect::<Option<_>>().ok_or_else(|| Error::EnvironmentVariable {
        variable: HTTP2_PRIOR_KNOWLEDGE_VARIABLE,
        value: value.into(),
        cause: "it is no list of `host:port`, separated by commas",
    })
}
