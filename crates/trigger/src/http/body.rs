//! Bodies that carry a running guest, or a limit, with them.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use tokio::time::{Instant, Sleep};
use tokio_util::task::TaskTracker;
use wasmtime_wasi_http::WasiBody;
use wisp_engine::{Ledger, Usage};
use wisp_telemetry::trace::TraceId;

use super::{
    HttpApp,
    account::{Outcome, wait},
    component::Component,
    front::{Observed, Used},
    guest::Guest,
    trace::Trace,
};

/// A guest that is handling a request, until it has nothing more to do.
pub(super) type GuestFuture = Pin<Box<dyn Future<Output = Result<(), GuestFailed>> + Send>>;

/// The guest ended in a way that makes its response worthless. Already logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GuestFailed {
    #[error("the component failed")]
    Failed,
    #[error("the component took too long")]
    TimedOut,
    #[error("the component used up its CPU time")]
    CpuTime,
    #[error("the component needs more memory than it may have")]
    Memory,
    #[error("the response is larger than it may be")]
    ResponseSize,
    #[error("no instance was free")]
    Busy,
}

impl GuestFailed {
    /// The same in the accounts.
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Failed => Outcome::Failed,
            Self::TimedOut => Outcome::TimedOut,
            Self::CpuTime => Outcome::CpuTime,
            Self::Memory => Outcome::Memory,
            Self::ResponseSize => Outcome::ResponseSize,
            Self::Busy => Outcome::Refused,
        }
    }
}

/// How long a guest may go on after its response was sent completely.
///
/// Spin lets it run without limit; a guest that is still busy after this long is
/// taken for a runaway and ended.
const AFTER_RESPONSE_LIMIT: Duration = Duration::from_secs(300);

/// Where a guest's response is put, and what its instance used. Shared by those
/// who run the guest and those who wait for its response.
#[derive(Clone)]
pub(super) struct Reply(Arc<Exchange>);

struct Exchange {
    response: Mutex<Option<GuestResponse>>,
    /// Who waits for a guest that is polled elsewhere.
    watcher: AtomicWaker,
    /// The guest has a slice elsewhere; it has answered during that.
    is_in_slice: AtomicBool,
    has_answered: AtomicBool,
    /// Nobody waits for the guest any more.
    is_abandoned: AtomicBool,
    usage: Usage,
    component: Arc<Component>,
    /// What is told of the request when it is over, if anything is.
    trace: Option<Box<Trace>>,
    /// How the request ended, as a place in [`Outcome::ALL`], once it has, and how long the
    /// guest waited until then.
    outcome: AtomicU8,
    wait_ns: AtomicU64,
}

/// There is no outcome yet.
const GOES_ON: u8 = u8::MAX;

/// What a guest answered, or why there will be no answer.
pub(super) type GuestResponse = Result<http::Response<WasiBody>, String>;

impl Reply {
    pub(super) fn new(component: &Arc<Component>, trace: Option<Box<Trace>>) -> Self {
        Self(Arc::new(Exchange {
            response: Mutex::default(),
            watcher: AtomicWaker::new(),
            is_in_slice: AtomicBool::new(false),
            has_answered: AtomicBool::new(false),
            is_abandoned: AtomicBool::new(false),
            usage: Usage::default(),
            component: component.clone(),
            trace,
            outcome: AtomicU8::new(GOES_ON),
            wait_ns: AtomicU64::new(0),
        }))
    }

    pub(super) fn set(&self, response: GuestResponse) {
        *self.0.response.lock().unwrap_or_else(PoisonError::into_inner) = Some(response);
        // It is the guest's thread that is here.
        if self.0.is_in_slice.load(Ordering::Relaxed) {
            self.0.has_answered.store(true, Ordering::Relaxed);
        } else {
            self.0.watcher.wake();
        }
    }

    /// The guest begins a slice elsewhere. Whoever waits is told of an answer when the slice
    /// is over: woken before, it would take the core from the guest, which as a rule has
    /// ended a moment later.
    pub(super) fn begin_slice(&self) {
        self.0.is_in_slice.store(true, Ordering::Relaxed);
    }

    /// The slice is over; whether the guest has answered during it.
    pub(super) fn end_slice(&self) -> bool {
        self.0.is_in_slice.store(false, Ordering::Relaxed);
        self.0.has_answered.swap(false, Ordering::Relaxed)
    }

    pub(super) fn take(&self) -> Option<GuestResponse> {
        self.0.response.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// From now on, whoever polls is told when something happens elsewhere.
    pub(super) fn watch(&self, context: &Context<'_>) {
        self.0.watcher.register(context.waker());
    }

    /// Something happened.
    pub(super) fn wake(&self) {
        self.0.watcher.wake();
    }

    /// Nobody waits any more: what goes wrong from now on is nobody's concern.
    pub(super) fn abandon(&self) {
        self.0.is_abandoned.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.0.is_abandoned.load(Ordering::Relaxed)
    }

    pub(super) fn usage(&self) -> &Usage {
        &self.0.usage
    }

    /// The component that is to answer.
    pub(super) fn component(&self) -> &Arc<Component> {
        &self.0.component
    }

    /// What is told of the request when it is over, if anything is.
    pub(super) fn trace(&self) -> Option<&Trace> {
        self.0.trace.as_deref()
    }

    /// Does something on behalf of the request.
    pub(super) fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.trace() {
            None => work(),
            Some(trace) => trace.scope().run(work),
        }
    }

    /// The trace that the request is part of.
    pub(super) fn trace_id(&self) -> Option<TraceId> {
        self.trace()?.scope().context().map(|context| context.trace_id)
    }

    /// The request is over.
    pub(super) fn set_end(&self, outcome: Outcome, wait: Duration) {
        let wait_ns = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.0.wait_ns.store(wait_ns, Ordering::Relaxed);
        self.0.outcome.store(outcome as u8, Ordering::Release);
    }

    /// What the request used so far; it took this long.
    pub(super) fn used(&self, total: Duration) -> Used {
        let Exchange { usage, component, outcome, wait_ns, .. } = &*self.0;
        let outcome = Outcome::ALL.get(usize::from(outcome.load(Ordering::Acquire))).copied();
        Used {
            component: component.grants.component.clone(),
            outcome,
            cpu: usage.cpu(),
            instantiate: usage.instantiate(),
            wait: match outcome {
                Some(_) => Duration::from_nanos(wait_ns.load(Ordering::Relaxed)),
                None => wait(total, usage),
            },
            queue: usage.queue(),
            peak_memory_bytes: usage.peak_memory_bytes(),
            request_bytes: usage.request_bytes(),
        }
    }

    /// For the instance that serves this request.
    pub(super) fn ledger(&self) -> Arc<dyn Ledger> {
        self.0.clone()
    }
}

impl Ledger for Exchange {
    fn usage(&self) -> &Usage {
        &self.usage
    }

    fn reserve_memory(&self, bytes: u64) -> bool {
        self.component.commons.reserve_memory(&self.component.account, bytes)
    }

    fn release_memory(&self, bytes: u64) {
        self.component.commons.release_memory(&self.component.account, bytes);
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
    /// What a service of the platform produces.
    Service(UnsyncBoxBody<Bytes, BodyError>),
    /// One of the others, whose end is observed.
    Observed(Box<Observed>),
}

impl ResponseBody {
    pub(super) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }

    /// Keeps the version of the app that answers until it has answered: whoever waits
    /// for that looks at who has it.
    pub(super) fn keep(&mut self, app: Arc<HttpApp>) {
        if let Self::Running(body) = self {
            body.kept = Some(app);
        }
    }

    /// For callers inside the process.
    pub(super) fn into_wasi(self) -> WasiBody {
        self.map_err(|error| match error {
            BodyError::Guest(_) | BodyError::Service(_) => wasmtime_wasi_http::Error::HttpResponseIncomplete,
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
    #[error("{0}")]
    Service(Box<dyn std::error::Error + Send + Sync>),
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
            Self::Service(body) => Pin::new(body).poll_frame(context),
            Self::Observed(body) => body.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Service(body) => body.is_end_stream(),
            Self::Observed(body) => body.is_end_stream(),
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Finished(body) => body.is_end_stream(),
            // Ending here would drop a guest that still has something to do.
            Self::Running(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Service(body) => body.size_hint(),
            Self::Observed(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Finished(body) => body.size_hint(),
            Self::Running(body) => body.size_hint(),
        }
    }
}

/// What a guest's body yields.
pub(super) type WasiFrame = Result<Frame<Bytes>, wasmtime_wasi_http::Error>;

/// A body whose guest has ended: all of it, if that is there in one piece; else it goes
/// on behind the frames that were read.
pub(super) enum Ended {
    Whole(Bytes),
    Rest(Vec<WasiFrame>, WasiBody),
}

impl Ended {
    /// Looks at what is there.
    pub(super) fn look(mut body: WasiBody) -> Self {
        // Whoever polls the rest says whom to wake.
        let context = &mut Context::from_waker(Waker::noop());
        let mut next = || Pin::new(&mut body).poll_frame(context);
        let first = match next() {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => data,
                Err(frame) => return Self::Rest(vec![Ok(frame)], body),
            },
            Poll::Ready(Some(Err(error))) => return Self::Rest(vec![Err(error)], body),
            Poll::Ready(None) => return Self::Whole(Bytes::new()),
            Poll::Pending => return Self::Rest(Vec::new(), body),
        };
        match next() {
            Poll::Ready(None) => Self::Whole(first),
            Poll::Ready(Some(second)) => Self::Rest(vec![second, Ok(Frame::data(first))], body),
            Poll::Pending => Self::Rest(vec![Ok(Frame::data(first))], body),
        }
    }
}

/// A response body whose guest is polled along with it.
///
/// Dropping it before its end cancels the guest: the client went away. Once the
/// client has all it will get, the guest is detached and may finish its work.
pub(super) struct RunningBody {
    /// `None` when it was detached.
    guest: Option<Guest>,
    /// Frames that were read before there was somebody to take them, the last first.
    ahead: Vec<WasiFrame>,
    body: Option<WasiBody>,
    /// How much is still to come of a body whose length is declared or known.
    remaining_bytes: Option<u64>,
    tracker: TaskTracker,
    /// The app, until its response was sent completely.
    kept: Option<Arc<HttpApp>>,
}

impl RunningBody {
    pub(super) fn new(
        guest: Guest,
        (ahead, body): (Vec<WasiFrame>, WasiBody),
        length_bytes: Option<u64>,
        tracker: TaskTracker,
    ) -> Self {
        let (guest, body, remaining_bytes) = (Some(guest), Some(body), length_bytes);
        Self { guest, ahead, body, remaining_bytes, tracker, kept: None }
    }

    /// The client needs nothing more: lets the guest finish, reading and dropping
    /// whatever it still sends so that it does not wait forever.
    pub(super) fn detach(&mut self) {
        if self.guest.as_ref().is_none_or(Guest::is_ended) {
            return;
        }
        let rest = Self {
            guest: self.guest.take(),
            ahead: Vec::new(),
            body: self.body.take(),
            remaining_bytes: None,
            tracker: self.tracker.clone(),
            kept: None,
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
                Some(guest) => guest.poll(context),
                None => Poll::Ready(Ok(())),
            }
        })
        .await
        .ok();
        self.guest = None;
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) if self.ahead.is_empty() => body.size_hint(),
            _ => SizeHint::default(),
        }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(guest) = &mut self.guest
            && let Poll::Ready(Err(failed)) = guest.poll(context)
        {
            self.guest = None;
            self.body = None;
            return Poll::Ready(Some(Err(failed.into())));
        }
        let frame = match (self.ahead.pop(), &mut self.body) {
            (Some(frame), _) => Some(frame),
            (None, Some(body)) => ready!(Pin::new(body).poll_frame(context)),
            (None, None) => None,
        };
        match frame {
            Some(Ok(frame)) => {
                let length_bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                if let Some(remaining) = &mut self.remaining_bytes {
                    *remaining = remaining.saturating_sub(length_bytes);
                }
                if let Some(guest) = &mut self.guest
                    && !guest.add_response_bytes(length_bytes)
                {
                    self.guest = None;
                    self.body = None;
                    return Poll::Ready(Some(Err(GuestFailed::ResponseSize.into())));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
            None => {
                self.body = None;
                if let Some(guest) = &mut self.guest
                    && let Err(failed) = ready!(guest.settle(context))
                {
                    self.guest = None;
                    return Poll::Ready(Some(Err(failed.into())));
                }
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
    /// Where its bytes are counted, once it is known who takes them.
    reply: Option<Reply>,
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
        Self {
            body: RequestSource::Network(body),
            reply: None,
            remaining_bytes: max_bytes,
            stall_timeout,
            stalled: None,
        }
    }

    pub(super) fn local(body: WasiBody) -> Self {
        Self {
            body: RequestSource::Local(body),
            reply: None,
            remaining_bytes: u64::MAX,
            stall_timeout: Duration::MAX,
            stalled: None,
        }
    }

    /// Bounds it further, and has its bytes counted.
    pub(super) fn count(&mut self, reply: &Reply, max_bytes: u64) {
        self.remaining_bytes = self.remaining_bytes.min(max_bytes);
        self.reply = Some(reply.clone());
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
                if let Some(reply) = &this.reply {
                    reply.usage().add_request_bytes(length_bytes);
                }
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
