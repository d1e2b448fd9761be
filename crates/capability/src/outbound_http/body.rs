//! Bodies on their way between guest and network.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

use super::client::network_error;
use super::pool::Lease;

/// How much of a body that is not sent is taken from a guest, in bytes: a guest that ends
/// its body with nothing in it needs none.
const MAX_DISCARDED_BYTES: usize = 64 * 1024;

/// A request's body as hyper sends it. Tells when it was sent to its end, or
/// why its guest broke it off: hyper hands such an error back only as text.
pub(super) struct RequestBody {
    body: WasiBody,
    /// Unset for a body that was empty from the start.
    watched: Option<Watched>,
    /// Whether any of it was asked for.
    is_begun: bool,
}

struct Watched {
    is_done: Arc<AtomicBool>,
    /// Unset once told.
    end: Option<oneshot::Sender<Result<(), HttpError>>>,
}

/// Learns what became of a [`RequestBody`].
pub(super) struct RequestEnd {
    /// Set once the connection has no more to do with the body.
    pub(super) is_done: Arc<AtomicBool>,
    pub(super) result: oneshot::Receiver<Result<(), HttpError>>,
}

/// Stands for an error that went through [`RequestBody::finished`].
#[derive(Debug)]
pub(super) struct BrokenOff;

impl fmt::Display for BrokenOff {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the guest broke its request body off")
    }
}

impl std::error::Error for BrokenOff {}

impl RequestBody {
    /// There is no end to learn of if the body is empty.
    pub(super) fn new(body: WasiBody) -> (Self, Option<RequestEnd>) {
        if body.is_end_stream() {
            return (Self { body, watched: None, is_begun: false }, None);
        }
        let is_done = Arc::new(AtomicBool::new(false));
        let (end, result) = oneshot::channel();
        let watched = Watched { is_done: is_done.clone(), end: Some(end) };
        (Self { body, watched: Some(watched), is_begun: false }, Some(RequestEnd { is_done, result }))
    }

    fn finish(&mut self, result: Result<(), HttpError>) {
        let Some(watched) = &mut self.watched else { return };
        watched.is_done.store(true, Ordering::Release);
        if let Some(end) = watched.end.take() {
            // Nobody listens any more when the response was dropped.
            drop(end.send(result));
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        // Not every body is sent to its end: one of unknown length is not sent
        // at all with a `GET`, and the connection is as good as before.
        let Some(watched) = &self.watched else { return };
        watched.is_done.store(true, Ordering::Release);
        if !self.is_begun
            && let Ok(runtime) = Handle::try_current()
        {
            let nothing = Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync();
            runtime.spawn(discard(std::mem::replace(&mut self.body, nothing)));
        }
    }
}

/// Takes what a guest writes into a body that is not sent. The guest may not even have
/// ended it when the response is there, and has done nothing wrong: a stream that is
/// closed under its hands would look to it like a lost connection.
async fn discard(mut body: WasiBody) {
    let mut taken_bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        taken_bytes += frame.data_ref().map_or(0, Bytes::len);
        if taken_bytes > MAX_DISCARDED_BYTES {
            break;
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.is_begun = true;
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                if self.body.is_end_stream() {
                    // hyper may not ask again.
                    self.finish(Ok(()));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.finish(Err(error));
                Poll::Ready(Some(Err(BrokenOff)))
            }
            Poll::Ready(None) => {
                self.finish(Ok(()));
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body as the guest reads it: bounded in the time between two
/// pieces, and giving its connection back at its end.
pub(super) struct ResponseBody {
    incoming: Incoming,
    between_bytes: Duration,
    /// Runs while the network is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    /// Given back at the end; dropped, which closes it, before.
    lease: Option<Lease>,
}

impl ResponseBody {
    pub(super) fn new(incoming: Incoming, between_bytes: Duration, lease: Lease) -> Self {
        let mut body = Self { incoming, between_bytes, timer: None, lease: Some(lease) };
        if body.incoming.is_end_stream() {
            body.give_back();
        }
        body
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.timer = None;
                if self.incoming.is_end_stream() {
                    self.give_back();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.lease = None;
                let error = match network_error(&error) {
                    // The headers were there: it is the body that is cut off.
                    HttpError::ConnectionTerminated => HttpError::HttpResponseIncomplete,
                    other => other,
                };
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.give_back();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let between_bytes = self.between_bytes;
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(between_bytes)));
                std::task::ready!(timer.as_mut().poll(context));
                self.lease = None;
                Poll::Ready(Some(Err(HttpError::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

fn sleep(duration: Duration) -> Sleep {
    tokio::time::sleep_until(Instant::now() + duration.min(super::client::MAX_TIMEOUT))
}
