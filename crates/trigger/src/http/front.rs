//! What stands before the apps: it sees each request first, and each one's end.
//!
//! A platform answers some requests itself: those to its own host name, challenges of a
//! certificate authority, what should have come by `https`, what comes too often. A
//! server without a [`Front`] and an [`Observer`] pays nothing for either.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use wisp_telemetry::trace::{RequestId, TraceId};

use super::{
    account::Outcome,
    apps::host_name,
    body::{BodyError, Reply, ResponseBody},
    trace::Watch,
};

/// The header by which a client learns the id of its request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The client's address.
    pub client: SocketAddr,
    /// It came by `https`.
    pub is_tls: bool,
}

/// Stands before the apps.
pub trait Front: Send + Sync + 'static {
    /// Says who answers a request. Called once a request, by every worker: it neither
    /// blocks nor waits for another app.
    fn decide(&self, request: &Request<Incoming>, arrival: &Arrival) -> Decision;
}

/// Who answers a request.
pub enum Decision {
    /// The app that is found for it.
    App,
    /// A service of the platform.
    Service(Arc<dyn Service>),
    /// This is the answer.
    Answer(Box<Response<Bytes>>),
}

/// Answers requests in the place of an app.
pub trait Service: Send + Sync + 'static {
    /// Answers one. The future is polled by the connection's own task, so it must not
    /// block or compute for long; it is dropped when the client goes away.
    fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
        arrival: Arrival,
    ) -> BoxFuture<'static, Response<ServiceBody>>;
}

/// The body of a service's response.
pub type ServiceBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Is told how requests ended.
pub trait Observer: Send + Sync + 'static {
    /// A response was sent completely, or its client went away. Called by every worker:
    /// it neither blocks nor waits.
    fn observe(&self, access: Access);
}

/// A request and its response.
#[derive(Clone, Debug)]
pub struct Access {
    /// Names the request among all of this process. The client is told.
    pub id: RequestId,
    /// Where it came in.
    pub arrival: Arrival,
    /// The host as the client wrote it, without a port.
    pub host: Option<Box<str>>,
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub uri: Uri,
    /// The status of the response.
    pub status: StatusCode,
    /// Bytes of the response's body that were handed to the connection.
    pub response_bytes: u64,
    /// From the end of the request's header to the end of the response.
    pub duration: Duration,
    /// The response was sent to its end.
    pub is_complete: bool,
    /// The trace that it is part of, if it is part of one.
    pub trace_id: Option<TraceId>,
    /// What its guest used, if it met one.
    pub used: Option<Used>,
}

/// What a request used. A guest that goes on after its response is not at its end yet.
#[derive(Clone, Debug)]
pub struct Used {
    /// The component.
    pub component: Arc<str>,
    /// How it ended, if it has.
    pub outcome: Option<Outcome>,
    /// CPU time of the guest and the host functions that it called.
    pub cpu: Duration,
    /// Time to make the instance; zero for one that was there.
    pub instantiate: Duration,
    /// Time that the guest waited for host calls, or for its client.
    pub wait: Duration,
    /// Time that the guest could have run while others had their turn.
    pub queue: Duration,
    /// The most linear memory that the instance had.
    pub peak_memory_bytes: u64,
    /// Bytes of the request's body that the guest took.
    pub request_bytes: u64,
}

/// A body with the record of its request, which is handed in when it ends.
pub(super) struct Observed {
    body: ResponseBody,
    observer: Arc<dyn Observer>,
    start: Instant,
    /// Where the guest is found, if the request met one.
    reply: Arc<OnceLock<Reply>>,
    /// `None` once it was handed in.
    access: Option<Access>,
}

/// A request whose end somebody wants to know.
pub(super) struct Observation {
    observer: Arc<dyn Observer>,
    start: Instant,
    reply: Arc<OnceLock<Reply>>,
    access: Access,
}

impl Observation {
    /// Begins to observe a request.
    pub(super) fn new(
        observer: Arc<dyn Observer>,
        request: &mut Request<Incoming>,
        arrival: Arrival,
    ) -> Self {
        let id = RequestId::new();
        let reply = Arc::new(OnceLock::new());
        request.extensions_mut().insert(Watch { id, reply: reply.clone() });
        let host = host_name(request.uri(), request.headers())
            .and_then(|host| std::str::from_utf8(host).ok())
            .map(Box::from);
        Self {
            observer,
            start: Instant::now(),
            reply,
            access: Access {
                id,
                arrival,
                host,
                method: request.method().clone(),
                uri: request.uri().clone(),
                status: StatusCode::OK,
                response_bytes: 0,
                duration: Duration::ZERO,
                is_complete: false,
                trace_id: None,
                used: None,
            },
        }
    }

    /// Follows the response to its end.
    pub(super) fn follow(mut self, response: Response<ResponseBody>) -> Response<ResponseBody> {
        self.access.status = response.status();
        let id = HeaderValue::try_from(self.access.id.to_string());
        let Self { observer, start, reply, access } = self;
        let mut response = response.map(|body| {
            let access = Some(access);
            ResponseBody::Observed(Box::new(Observed { body, observer, start, reply, access }))
        });
        if let Ok(id) = id {
            response.headers_mut().entry(REQUEST_ID).or_insert(id);
        }
        response
    }
}

impl Observed {
    fn finish(&mut self, is_complete: bool) {
        if let Some(mut access) = self.access.take() {
            // The guest goes with its response, unless it has more to do: its bill is made.
            self.body = ResponseBody::Empty;
            access.duration = self.start.elapsed();
            access.is_complete = is_complete;
            if let Some(reply) = self.reply.get() {
                access.trace_id = reply.trace_id();
                access.used = Some(reply.used(access.duration));
            }
            self.observer.observe(access);
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(access), Some(data)) = (&mut self.access, frame.data_ref()) {
                    access.response_bytes += data.len() as u64;
                }
            }
            Poll::Ready(Some(Err(_))) => self.finish(false),
            Poll::Ready(None) => self.finish(true),
            Poll::Pending => {}
        }
        polled
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        // A body that says that nothing follows is not asked again.
        let is_complete = self.body.is_end_stream();
        self.finish(is_complete);
    }
}

/// Gives a request to a service.
pub(super) async fn serve(
    service: Arc<dyn Service>,
    request: Request<Incoming>,
    arrival: Arrival,
) -> Response<ResponseBody> {
    service
        .call(request, arrival)
        .await
        .map(|body| ResponseBody::Service(body.map_err(BodyError::Service).boxed_unsync()))
}
