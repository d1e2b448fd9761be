//! Outbound HTTP: `wasi:http` 0.2 and 0.3, and `fermyon:spin/http`.
//!
//! The interfaces of `wasi:http` are Wasmtime's; they hand every request to
//! [`Hooks::send_request`]. From there:
//!
//! 1. A request for `http://ID.spin.internal` or `http://self.alt`, or without a
//!    host, stays in the process and goes to the app's trigger, see
//!    [`LocalDispatch`].
//! 2. Any other is checked against the component's `allowed_outbound_hosts`
//!    ([`outbound`]); a refusal is `HTTP-request-denied`.
//! 3. A connection that waits in the pool is taken, or one is opened: the name
//!    is resolved, the addresses are checked against blocked networks, and
//!    those addresses are connected to. TLS and HTTP/2 are agreed on there.
//! 4. The request is sent, its body as the guest writes it; the response's body
//!    is read as the guest reads it, and then the connection waits for another.
//!
//! Timeouts are the guest's, or ten minutes for each step. Bodies are never
//! gathered here; hyper's windows bound what is between guest and network.

mod body;
mod buffered;
mod client;
mod connect;
mod local;
mod pool;
mod relative;
mod script;
mod tls;

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::component::Linker;
use wasmtime_wasi_http::{
    Error as HttpError, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpHooks,
};
use wisp_manifest::allowed_hosts::{SELF_HOST, chained_component};
use wisp_telemetry::trace::{ActiveSpan, Scope, SpanKind};

pub use client::{Client, DEFAULT_TIMEOUT, HTTP2_PRIOR_KNOWLEDGE_VARIABLE, Settings};
pub use local::{LocalDepth, LocalDispatch, LocalSlot, LocalTarget, MAX_LOCAL_DEPTH_COUNT};
pub use script::{Script, Scripted};
pub use tls::ClientTls;

use crate::outbound::{self, Destination};
use crate::{Error, Flavor, Grants, Host, VirtualWorld};
use client::{RequestSent, Sender};
use tls::ComponentTls;

/// How much of a destination a trace tells, in bytes. Longer ones exist in attacks only.
const MAX_TOLD_BYTES: usize = 2 << 10;

/// The host of a component's own app.
const SELF_AUTHORITY: &str = SELF_HOST;

/// Registers HTTP for guests: 0.2 and the buffered interface always, 0.3 where
/// it can run.
pub(crate) fn add_to_linker(linker: &mut Linker<Host>, flavor: Flavor) -> wasmtime::Result<()> {
    relative::add_to_linker(linker, flavor)?;
    buffered::add_to_linker(linker)
}

/// How a component's outbound HTTP requests are sent. Cheap to clone.
#[derive(Clone)]
pub struct Grant {
    inner: Arc<Inner>,
}

struct Inner {
    /// Tells this component's connections from all others'.
    number: u64,
    client: Arc<Client>,
    tls: ComponentTls,
    local: LocalSlot,
    /// May answer in the place of the network.
    world: VirtualWorld,
}

impl Grant {
    /// For `component`, through the process's client.
    pub fn new(component: &str, client: &Arc<Client>, local: LocalSlot) -> Self {
        Self::in_world(component, client, local, VirtualWorld::default())
    }

    /// The same, but the script of a virtual world answers in the place of the network, if
    /// it has one.
    pub fn in_world(component: &str, client: &Arc<Client>, local: LocalSlot, world: VirtualWorld) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let inner = Inner { number, client: client.clone(), tls: client.tls_of(component), local, world };
        Self { inner: Arc::new(inner) }
    }
}

impl Default for Grant {
    /// With default settings, and without other components.
    fn default() -> Self {
        static CLIENT: LazyLock<Arc<Client>> = LazyLock::new(Arc::default);
        Self::new("", &CLIENT, LocalSlot::default())
    }
}

/// The per-instance side of outbound HTTP, called by `wasmtime-wasi-http`.
pub struct Hooks {
    grants: Arc<Grants>,
    depth: LocalDepth,
    /// Requests that were sent since the guest's own began.
    requests_count: u32,
    /// Those to the network that are under way; made by the first of them.
    open: Option<Arc<Semaphore>>,
}

impl Hooks {
    pub(crate) fn new(grants: &Arc<Grants>) -> Self {
        Self { grants: grants.clone(), depth: LocalDepth::default(), requests_count: 0, open: None }
    }

    /// The instance serves another request.
    pub(crate) fn begin(&mut self) {
        self.requests_count = 0;
    }

    /// Counts a request, and says what it needs to be sent.
    pub(super) fn begin_request(&mut self) -> Result<Sending, HttpError> {
        let Grants { outbound, outbound_http, limits, .. } = &*self.grants;
        let limit_count = limits.outbound_requests_count;
        if self.requests_count >= limit_count {
            let component = outbound.component().clone();
            outbound.log(&Error::OutboundRequests { component, limit_count });
            return Err(HttpError::HttpRequestDenied);
        }
        self.requests_count += 1;
        let open = self.open.get_or_insert_with(|| {
            let count = usize::try_from(limits.outbound_connections_count).unwrap_or(usize::MAX);
            Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
        });
        Ok(Sending {
            outbound: outbound.clone(),
            grant: outbound_http.clone(),
            depth: self.depth,
            open: open.clone(),
            open_limit_count: limits.outbound_connections_count,
            scope: Scope::current(),
        })
    }

    /// An instance that serves several requests at once is as deep as the
    /// deepest of them: a circle is found early rather than never.
    pub(crate) fn set_depth(&mut self, depth: LocalDepth) {
        self.depth = self.depth.max(depth);
    }
}

/// What a request needs to be sent.
pub(super) struct Sending {
    outbound: outbound::Grant,
    grant: Grant,
    depth: LocalDepth,
    open: Arc<Semaphore>,
    open_limit_count: u32,
    /// On whose behalf it is sent, if anybody wants to know.
    scope: Option<Scope>,
}

impl Sending {
    /// A place among the requests under way.
    fn open(&self) -> Result<OwnedSemaphorePermit, HttpError> {
        self.open.clone().try_acquire_owned().map_err(|_| {
            let component = self.outbound.component().clone();
            let limit_count = self.open_limit_count;
            self.outbound.log(&Error::OutboundConnections { component, limit_count });
            HttpError::ConnectionLimitReached
        })
    }
}

/// Whether a header is about the connection and so none of the guest's.
///
/// `Host` is not: guests read it from incoming requests. On outgoing requests
/// it is replaced by the host of the URI.
fn is_forbidden_header(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || *name == header::PROXY_AUTHENTICATE
        || *name == header::PROXY_AUTHORIZATION
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        is_forbidden_header(name)
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        static FILTER: LazyLock<ForbiddenHeaderFilter> = LazyLock::new(|| Arc::new(is_forbidden_header));
        FILTER.clone()
    }

    fn set_host_header(&mut self) -> bool {
        // The client does, once it knows the protocol.
        false
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _response_read: Box<dyn Future<Output = Result<(), HttpError>> + Send>,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, RequestSent), HttpError>> + Send> {
        match self.begin_request() {
            Ok(sending) => Box::new(send(sending, request, options.unwrap_or_default())),
            Err(error) => Box::new(std::future::ready(Err(error))),
        }
    }
}

/// Sends a component's request to wherever it leads, as a part of the trace of the request
/// that it is sent for.
async fn send(
    sending: Sending,
    mut request: Request<WasiBody>,
    options: RequestOptions,
) -> Result<(Response<WasiBody>, RequestSent), HttpError> {
    // Without a scope nobody wants to know of it.
    let Some(scope) = sending.scope.clone() else { return send_untold(sending, request, options).await };
    let mut span = begin_span(&scope, &request);
    scope.inject(span.as_ref(), request.headers_mut());
    if let Some(id) = scope.request() {
        // Another component of the app works for the same request.
        request.extensions_mut().insert(id);
    }
    let sent = send_untold(sending, request, options).await;
    if let Some(span) = &mut span {
        match &sent {
            Ok((response, _)) => {
                span.set("http.response.status_code", i64::from(response.status().as_u16()));
                if response.status().is_client_error() || response.status().is_server_error() {
                    span.fail(response.status().as_u16().to_string());
                }
            }
            Err(error) => span.fail(error_name(error)),
        }
    }
    if let Some(span) = span {
        span.end();
    }
    sent
}

/// The name of an error's kind, without what is particular.
fn error_name(error: &HttpError) -> String {
    let name = format!("{error:?}");
    name.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
}

/// A request that a guest sends, as a part of its own request's trace.
fn begin_span(scope: &Scope, request: &Request<WasiBody>) -> Option<ActiveSpan> {
    let method = match *request.method() {
        http::Method::GET => "GET",
        http::Method::POST => "POST",
        http::Method::PUT => "PUT",
        http::Method::DELETE => "DELETE",
        http::Method::PATCH => "PATCH",
        http::Method::HEAD => "HEAD",
        http::Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    };
    let mut span = scope.begin(SpanKind::Client, method)?;
    let uri = request.uri();
    span.set("http.request.method", method);
    if let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) {
        let port = uri.port_u16().or_else(|| outbound::default_port(scheme));
        span.set("server.address", shortened(host));
        if let Some(port) = port {
            span.set("server.port", i64::from(port));
        }
        // What follows a `?` is not told: people put secrets there. Nor is a user.
        let authority = uri.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        span.set("url.full", shortened(&format!("{scheme}://{authority}{}", uri.path())));
    }
    Some(span)
}

/// As much of a guest's text as is told.
fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TOLD_BYTES)].to_owned()
}

async fn send_untold(
    sending: Sending,
    request: Request<WasiBody>,
    options: RequestOptions,
) -> Result<(Response<WasiBody>, RequestSent), HttpError> {
    let Sending { outbound, grant, depth, .. } = &sending;
    let destination = destination_of(&request)?;
    if let Some(target) = local_target(&destination.host) {
        check_local(outbound, &destination.scheme, &target)?;
        let Some(depth) = depth.deeper() else {
            let component = outbound.component().clone();
            outbound.log(&Error::LocalCallDepth { component, limit_count: MAX_LOCAL_DEPTH_COUNT });
            return Err(HttpError::LoopDetected);
        };
        return grant.send_local(target, request, options, depth).await;
    }
    if outbound.check(&destination).is_err() {
        if let Some(script) = &grant.inner.world.http {
            script.refused(outbound.component(), request.method(), request.uri());
        }
        return Err(HttpError::HttpRequestDenied);
    }
    let place = sending.open()?;
    let Inner { number, client, tls, world, .. } = &*grant.inner;
    let sender = Sender { client: *number, outbound, tls };
    if let Some(script) = &world.http {
        let pass_on = |request, options| client.send(sender, destination, request, options);
        return script::answer(&**script, world, outbound.component(), request, options, pass_on).await;
    }
    let (response, request_sent) = client.send(sender, destination, request, options).await?;
    let response = response.map(|body| {
        let place = (!body.is_end_stream()).then_some(place);
        WithPlace { body, place }.boxed_unsync()
    });
    Ok((response, request_sent))
}

/// A response's body that keeps a place among the requests under way, until its end.
struct WithPlace {
    body: WasiBody,
    place: Option<OwnedSemaphorePermit>,
}

impl Body for WithPlace {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.place = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn destination_of(request: &Request<WasiBody>) -> Result<Destination, HttpError> {
    let uri = request.uri();
    let scheme = uri.scheme_str().ok_or(HttpError::HttpRequestUriInvalid)?;
    let authority = uri.authority().ok_or(HttpError::HttpRequestUriInvalid)?;
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    // A user name would let two readers see two different hosts.
    if host.is_empty() || authority.as_str().contains('@') {
        return Err(HttpError::HttpRequestUriInvalid);
    }
    let port = match authority.port() {
        Some(port) => port.as_u16(),
        None => outbound::default_port(scheme).ok_or(HttpError::HttpProtocolError)?,
    };
    Ok(Destination { scheme: scheme.to_owned(), host: host.to_ascii_lowercase(), port })
}

fn local_target(host: &str) -> Option<LocalTarget> {
    if host == SELF_AUTHORITY {
        return Some(LocalTarget::Route);
    }
    chained_component(host).map(|component| LocalTarget::Component(component.to_string()))
}

fn check_local(outbound: &outbound::Grant, scheme: &str, target: &LocalTarget) -> Result<(), HttpError> {
    let component = match target {
        LocalTarget::Component(component) => Some(component.as_str()),
        LocalTarget::Route => None,
    };
    outbound.check_local(scheme, component).map_err(|_| HttpError::HttpRequestDenied)
}

impl Grant {
    /// Hands a request to the app's trigger.
    async fn send_local(
        &self,
        target: LocalTarget,
        mut request: Request<WasiBody>,
        options: RequestOptions,
        depth: LocalDepth,
    ) -> Result<(Response<WasiBody>, RequestSent), HttpError> {
        let dispatch = self.inner.local.get().ok_or(HttpError::DestinationUnavailable)?;
        request.extensions_mut().insert(depth);
        let first_byte_timeout = client::bounded(options.first_byte_timeout);
        let response = tokio::time::timeout(first_byte_timeout, local::run(dispatch, target, request))
            .await
            .map_err(|_| HttpError::ConnectionReadTimeout)??;
        Ok((response, Box::new(std::future::ready(Ok(())))))
    }
}
