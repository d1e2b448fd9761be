//! What stands before the apps: it sees each request first, and each one's end.
//!
//! A platform answers some requests itself: those to its own host name, challenges of a
//! certificate authority, what should have come by `https`, what comes too often. A
//! server without a [`Front`] and an [`Observer`] pays nothing for either.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use hyper::body::Incoming;

use super::{
    apps::host_name,
    body::{BodyError, ResponseBody},
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
}

/// Rounds after which a shuffled number tells nothing of what it was.
const SHUFFLE_ROUNDS_COUNT: u8 = 4;

/// The lower half of a number.
const LOW_HALF: u64 = u32::MAX as u64;

/// Names a request. Requests carry it in their extensions if there is an [`Observer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(u64);

/// A body with the record of its request, which is handed in when it ends.
pub(super) struct Observed {
    body: ResponseBody,
    observer: Arc<dyn Observer>,
    start: Instant,
    /// `None` once it was handed in.
    access: Option<Access>,
}

/// A request whose end somebody wants to know.
pub(super) struct Observation {
    observer: Arc<dyn Observer>,
    start: Instant,
    access: Access,
}

impl RequestId {
    /// A number that no other request of this process has, and hardly one of another.
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Another one in each process, so that a restart repeats no id.
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(shuffled(NEXT.fetch_add(1, Ordering::Relaxed), &KEY))
    }
}

/// A number in the place of another: no two have the same, and without the key nobody can tell
/// how far apart two were. A count would tell each app how often all others are asked. (A
/// Feistel network, whose function is the standard library's keyed hash.)
fn shuffled(number: u64, key: &RandomState) -> u64 {
    let (mut left, mut right) = (number >> 32, number & LOW_HALF);
    for round in 0..SHUFFLE_ROUNDS_COUNT {
        (left, right) = (right, left ^ (key.hash_one((round, right)) & LOW_HALF));
    }
    left << 32 | right
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

impl Observation {
    /// Begins to observe a request.
    pub(super) fn new(
        observer: Arc<dyn Observer>,
        request: &mut Request<Incoming>,
        arrival: Arrival,
    ) -> Self {
        let id = RequestId::next();
        request.extensions_mut().insert(id);
        let host = host_name(request.uri(), request.headers())
            .and_then(|host| std::str::from_utf8(host).ok())
            .map(Box::from);
        Self {
            observer,
            start: Instant::now(),
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
            },
        }
    }

    /// Follows the response to its end.
    pub(super) fn follow(mut self, response: Response<ResponseBody>) -> Response<ResponseBody> {
        self.access.status = response.status();
        let id = HeaderValue::try_from(self.access.id.to_string());
        let (observer, start, access) = (self.observer, self.start, Some(self.access));
        let mut response =
            response.map(|body| ResponseBody::Observed(Box::new(Observed { body, observer, start, access })));
        if let Ok(id) = id {
            response.headers_mut().entry(REQUEST_ID).or_insert(id);
        }
        response
    }
}

impl Observed {
    fn finish(&mut self, is_complete: bool) {
        if let Some(mut access) = self.access.take() {
            access.duration = self.start.elapsed();
            access.is_complete = is_complete;
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_differ_and_tell_no_distance() {
        let key = RandomState::new();
        let ids: Vec<u64> = (0..10_000).map(|number| shuffled(number, &key)).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        let distances: HashSet<u64> = ids.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        assert!(distances.len() > 9_990, "{}", distances.len());
        assert_ne!(shuffled(1, &key), shuffled(1, &RandomState::new()));
    }
}
