//! Requests that never leave the process: to other components of the app.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

/// How many components may have called each other to bring a request about.
/// Deeper than any sensible chain, and few enough that a circle of components
/// does not take up all instances before it is found.
pub const MAX_LOCAL_DEPTH_COUNT: u8 = 16;

/// How much of an answer waits here while the guest that asks does not read.
/// As much as a socket would hold: guests that send all of a request before
/// they read any of its answer work over a network, so they should here.
const BUFFERED_BYTES: u32 = 256 * 1024;

/// In how many pieces it may be.
const BUFFERED_FRAMES_COUNT: usize = 64;

/// Whom a request within the app is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTarget {
    /// The component with this id: `http://ID.spin.internal/…`.
    Component(String),
    /// Whichever component the app's own routes lead to: `http://self.alt/…`.
    Route,
}

/// How many components have called each other to bring a request about. In the
/// extensions of a request that [`LocalDispatch`] gets; a trigger hands it on
/// with [`Host::set_local_depth`](crate::Host::set_local_depth).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalDepth(u8);

/// Runs requests within the app: the HTTP trigger.
pub trait LocalDispatch: Send + Sync {
    /// Answers a request that was checked against the allow-list already. Its
    /// extensions hold a [`LocalDepth`].
    fn dispatch(
        &self,
        target: LocalTarget,
        request: Request<WasiBody>,
    ) -> BoxFuture<'static, Result<Response<WasiBody>, HttpError>>;
}

/// Where an app's trigger makes itself known to the app's components.
///
/// Components are set up before the trigger that runs them, and the trigger
/// owns them: so it is told later, and held weakly. Another one may take its place, which
/// answers the same.
#[derive(Clone, Default)]
pub struct LocalSlot {
    dispatch: Arc<RwLock<Option<Weak<dyn LocalDispatch>>>>,
}

impl LocalSlot {
    /// Makes the trigger known.
    pub fn set(&self, dispatch: Weak<dyn LocalDispatch>) {
        *self.dispatch.write().unwrap_or_else(PoisonError::into_inner) = Some(dispatch);
    }

    pub(super) fn get(&self) -> Option<Arc<dyn LocalDispatch>> {
        let dispatch = self.dispatch.read().unwrap_or_else(PoisonError::into_inner);
        dispatch.as_ref().and_then(Weak::upgrade)
    }
}

impl LocalDepth {
    /// One call further, unless that is too far.
    pub(super) fn deeper(self) -> Option<Self> {
        (self.0 < MAX_LOCAL_DEPTH_COUNT).then_some(Self(self.0 + 1))
    }
}

/// Runs a request within the app, in a task of its own.
///
/// Wasmtime does not let one guest run while another one is being polled, and
/// that is where the guest that asks waits for this. So neither the answer nor
/// its body is polled here; both arrive over channels.
pub(super) async fn run(
    dispatch: Arc<dyn LocalDispatch>,
    target: LocalTarget,
    request: Request<WasiBody>,
) -> Result<Response<WasiBody>, HttpError> {
    let (answer, answered) = oneshot::channel();
    let (frames, received) = mpsc::channel(BUFFERED_FRAMES_COUNT);
    let is_over = Arc::new(AtomicBool::new(false));
    let is_over_there = is_over.clone();
    let task = tokio::spawn(async move {
        match dispatch.dispatch(target, request).await {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                let size = body.size_hint();
                let is_empty = body.is_end_stream();
                is_over_there.store(is_empty, Ordering::Release);
                if answer.send(Ok((parts, size, is_empty))).is_ok() {
                    forward(body, &frames, &is_over_there).await;
                }
            }
            Err(error) => {
                is_over_there.store(true, Ordering::Release);
                // Nobody to tell if the guest that asked is gone.
                drop(answer.send(Err(error)));
            }
        }
    });
    let task = AbortUnlessOver { task: task.abort_handle(), is_over };
    let (parts, size, is_empty) = answered.await.map_err(|_| HttpError::InternalError(None))??;
    let body = LocalBody { frames: received, size, is_empty, _task: task };
    Ok(Response::from_parts(parts, body.boxed_unsync()))
}

/// Reads a body to its end; whoever receives it sets the pace.
async fn forward(mut body: WasiBody, frames: &mpsc::Sender<Waiting>, is_over: &AtomicBool) {
    let room = Arc::new(Semaphore::new(usize::try_from(BUFFERED_BYTES).unwrap_or(usize::MAX)));
    while let Some(frame) = body.frame().await {
        if frame.is_err() || body.is_end_stream() {
            is_over.store(true, Ordering::Release);
        }
        let length = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
        let length = u32::try_from(length).unwrap_or(u32::MAX).min(BUFFERED_BYTES);
        let Ok(place) = room.clone().acquire_many_owned(length).await else { return };
        if frames.send(Waiting { frame, _place: place }).await.is_err() {
            return;
        }
    }
    is_over.store(true, Ordering::Release);
}

/// A piece of a body, and its part of [`BUFFERED_BYTES`].
struct Waiting {
    frame: Result<Frame<Bytes>, HttpError>,
    _place: OwnedSemaphorePermit,
}

/// A body that another task reads from the guest that writes it.
struct LocalBody {
    frames: mpsc::Receiver<Waiting>,
    /// What is still to come.
    size: SizeHint,
    is_empty: bool,
    _task: AbortUnlessOver,
}

/// Ends the answering guest if the asking one loses interest before the end.
struct AbortUnlessOver {
    task: AbortHandle,
    is_over: Arc<AtomicBool>,
}

impl Drop for AbortUnlessOver {
    fn drop(&mut self) {
        if !self.is_over.load(Ordering::Acquire) {
            self.task.abort();
        }
    }
}

impl Body for LocalBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let frame = std::task::ready!(self.frames.poll_recv(context)).map(|waiting| waiting.frame);
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Some(size) = self.size.exact()
        {
            let read = u64::try_from(data.len()).unwrap_or(u64::MAX);
            self.size = SizeHint::with_exact(size.saturating_sub(read));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

impl fmt::Display for LocalTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Component(component) => formatter.write_str(component),
            Self::Route => formatter.write_str("self"),
        }
    }
}
