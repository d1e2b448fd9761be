//! Bodies that carry a running guest, or a limit, with them.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use tokio::time::{Instant, Sleep};
use tokio_util::task::TaskTracker;
use wasmtime_wasi_http::WasiBody;

/// A guest that is handling a request, until it has nothing more to do.
pub(super) type GuestFuture = Pin<Box<dyn Future<Output = Result<(), GuestFailed>> + Send>>;

/// The guest ended in a way that makes its response worthless. Already logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GuestFailed {
    #[error("the component failed")]
    Trapped,
    #[error("the component took too long")]
    TimedOut,
    #[error("no instance was free")]
    Busy,
}

/// How long a guest may go on after its response was sent completely.
///
/// Spin lets it run without limit; a guest that is still busy after this long is
/// taken for a runaway and ended.
const AFTER_RESPONSE_LIMIT: Duration = Duration::from_secs(300);

/// Where a guest's response is put while the guest is polled.
#[derive(Clone, Default)]
pub(super) struct Reply(Arc<Mutex<Option<GuestResponse>>>);

/// What a guest answered, or why there will be no answer.
pub(super) type GuestResponse = Result<http::Response<WasiBody>, String>;

impl Reply {
    pub(super) fn set(&self, response: GuestResponse) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(response);
    }

    pub(super) fn take(&self) -> Option<GuestResponse> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that is all there.
pub(super) fn whole(bytes: Bytes) -> WasiBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// The body of a response.
pub(super) enum ResponseBody {
    /// Nothing.
    Empty,
    /// Bytes that are there already.
    Full(Option<Bytes>),
    /// What a guest that has ended left behind.
    Finished(WasiBody),
    /// What a guest that is still running produces.
    Running(RunningBody),
}

impl ResponseBody {
    pub(super) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }

    /// For callers inside the process.
    pub(super) fn into_wasi(self) -> WasiBody {
        self.map_err(|error| match error {
            BodyError::Guest(_) => wasmtime_wasi_http::Error::HttpResponseIncomplete,
            BodyError::Wasi(error) => error,
        })
        .boxed_unsync()
    }
}

/// Why a response ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error(transparent)]
    Guest(#[from] GuestFailed),
    #[error(transparent)]
    Wasi(#[from] wasmtime_wasi_http::Error),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Finished(body) => Pin::new(body).poll_frame(context).map_err(BodyError::from),
            Self::Running(body) => body.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Finished(body) => body.is_end_stream(),
            // Ending here would drop a guest that still has something to do.
            Self::Running(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Finished(body) => body.size_hint(),
            Self::Running(body) => body.body.as_ref().map_or_else(SizeHint::default, Body::size_hint),
        }
    }
}

/// A response body whose guest is polled along with it.
///
/// Dropping it before its end cancels the guest: the client went away. Once the
/// client has all it will get, the guest is detached and may finish its work.
pub(super) struct RunningBody {
    guest: Option<GuestFuture>,
    body: Option<WasiBody>,
    /// How much of a declared `content-length` is still to come.
    remaining_bytes: Option<u64>,
    tracker: TaskTracker,
}

impl RunningBody {
    pub(super) fn new(
        guest: GuestFuture,
        body: WasiBody,
        content_length: Option<u64>,
        tracker: TaskTracker,
    ) -> Self {
        Self { guest: Some(guest), body: Some(body), remaining_bytes: content_length, tracker }
    }

    /// The client needs nothing more: lets the guest finish, reading and dropping
    /// whatever it still sends so that it does not wait forever.
    pub(super) fn detach(&mut self) {
        if self.guest.is_none() {
            return;
        }
        let rest = Self {
            guest: self.guest.take(),
            body: self.body.take(),
            remaining_bytes: None,
            tracker: self.tracker.clone(),
        };
        self.tracker.spawn(async move {
            let finished = tokio::time::timeout(AFTER_RESPONSE_LIMIT, rest.finish()).await;
            if finished.is_err() {
                tracing::warn!("a component was ended: it kept running long after its response was sent");
            }
        });
    }

    async fn finish(mut self) {
        std::future::poll_fn(|context| {
            if let Some(body) = &mut self.body {
                while let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(context) {
                    if !matches!(frame, Some(Ok(_))) {
                        self.body = None;
                        break;
                    }
                }
            }
            match &mut self.guest {
                Some(guest) => guest.as_mut().poll(context),
                None => Poll::Ready(Ok(())),
            }
        })
        .await
        .ok();
        self.guest = None;
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(guest) = &mut self.guest
            && let Poll::Ready(outcome) = guest.as_mut().poll(context)
        {
            self.guest = None;
            if let Err(failed) = outcome {
                self.body = None;
                return Poll::Ready(Some(Err(failed.into())));
            }
        }
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        match ready!(Pin::new(body).poll_frame(context)) {
            Some(Ok(frame)) => {
                if let (Some(remaining), Some(data)) = (&mut self.remaining_bytes, frame.data_ref()) {
                    *remaining = remaining.saturating_sub(data.len() as u64);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
            None => {
                self.body = None;
                self.detach();
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for RunningBody {
    fn drop(&mut self) {
        // With a declared length, hyper stops reading after the last byte and
        // drops the body: that is an end, not a client that went away.
        if self.remaining_bytes == Some(0) {
            self.detach();
        }
    }
}

/// The body of a request: bounded in size, and in how long it may stall.
pub(super) struct RequestBody {
    body: RequestSource,
    remaining_bytes: u64,
    stall_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

enum RequestSource {
    Network(hyper::body::Incoming),
    Local(WasiBody),
}

impl RequestBody {
    pub(super) fn network(body: hyper::body::Incoming, max_bytes: u64, stall_timeout: Duration) -> Self {
        Self { body: RequestSource::Network(body), remaining_bytes: max_bytes, stall_timeout, stalled: None }
    }

    pub(super) fn local(body: WasiBody) -> Self {
        Self {
            body: RequestSource::Local(body),
            remaining_bytes: u64::MAX,
            stall_timeout: Duration::MAX,
            stalled: None,
        }
    }

    fn poll_source(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, wasmtime_wasi_http::Error>>> {
        match &mut self.body {
            RequestSource::Network(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            RequestSource::Local(body) => Pin::new(body).poll_frame(context),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        match this.poll_source(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.stalled = None;
                let length_bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                match this.remaining_bytes.checked_sub(length_bytes) {
                    Some(remaining) => this.remaining_bytes = remaining,
                    None => {
                        return Poll::Ready(Some(Err(wasmtime_wasi_http::Error::HttpRequestBodySize(None))));
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending if this.stall_timeout == Duration::MAX => Poll::Pending,
            Poll::Pending => {
                // Armed only when there is something to wait for, so that a body
                // that is all there costs no timer.
                let stalled = this.stalled.get_or_insert_with(|| {
                    Box::pin(tokio::time::sleep_until(Instant::now() + this.stall_timeout))
                });
                ready!(stalled.as_mut().poll(context));
                Poll::Ready(Some(Err(wasmtime_wasi_http::Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            RequestSource::Network(body) => body.is_end_stream(),
            RequestSource::Local(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            RequestSource::Network(body) => body.size_hint(),
            RequestSource::Local(body) => body.size_hint(),
        }
    }
}
