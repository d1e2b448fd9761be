//! Where in a trace something happens: contexts, spans, and the request on whose behalf
//! it happens.
//!
//! Nothing here is done for a request unless somebody asked for it: a trace is exported
//! ([`crate::export()`]), or the request is recorded under an id.
//!
//! # Life of a scope
//!
//! Who takes a request in makes a [`Scope`] of it and wraps the request's future
//! ([`Scope::wrap`]): whatever that future calls, on whichever thread it is polled, finds
//! the scope by [`Scope::current`]. So host functions, log streams and messages need not
//! be told whose they are.

use std::{
    borrow::Cow,
    cell::RefCell,
    fmt,
    hash::{BuildHasher as _, RandomState},
    pin::Pin,
    str::FromStr as _,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::SystemTime,
};

use http::{HeaderMap, HeaderName, HeaderValue};
pub use opentelemetry::{
    KeyValue, Value,
    trace::{SpanId, SpanKind, TraceId},
};
use opentelemetry::{
    TraceFlags,
    trace::{SpanContext as OtelContext, Status, TraceState},
};

use crate::export::{Export, export};

/// The header by which a trace goes on: <https://www.w3.org/TR/trace-context/>.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What the tracing systems on the way have to tell each other.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Values that travel along with a request: <https://www.w3.org/TR/baggage/>.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// The longest `tracestate` that goes on, in bytes: what its specification asks of everybody.
const MAX_TRACESTATE_BYTES: usize = 512;

/// The longest `baggage` that goes on, in bytes: what its specification asks of everybody.
const MAX_BAGGAGE_BYTES: usize = 8192;

/// Spans and records that one request's guest may report itself. Far more than a person
/// can look at, and few enough that one request cannot fill the queue.
pub const MAX_GUEST_REPORTS_COUNT: u32 = 256;

/// Spans of what the host does for one request. More would say no more to a person, and a
/// guest that reads a store in a loop must not fill the queue.
pub const MAX_SPANS_COUNT: u32 = 512;

/// Spans of its own that a guest may have begun and not ended, one inside the other.
const MAX_OPEN_GUEST_SPANS_COUNT: usize = 64;

/// Rounds after which a shuffled number tells nothing of what it was.
const SHUFFLE_ROUNDS_COUNT: u8 = 4;

/// The lower half of a number.
const LOW_HALF: u64 = u32::MAX as u64;

/// Names a request among all of this process. Its client and its log are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(u64);

/// A place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span in it.
    pub span_id: SpanId,
    /// Whether the trace is kept.
    pub is_sampled: bool,
}

/// The request on whose behalf something happens. Cheap to clone.
#[derive(Clone)]
pub struct Scope(Arc<Inner>);

struct Inner {
    app: Arc<str>,
    component: Arc<str>,
    request: Option<RequestId>,
    /// The request's span, or the client's where no traces are exported.
    context: Option<SpanContext>,
    trace_state: Option<HeaderValue>,
    baggage: Option<HeaderValue>,
    /// Spans of the guest's own that have begun and not ended, the innermost last.
    guest_spans: Mutex<Vec<SpanContext>>,
    guest_reports_count: AtomicU32,
    spans_count: AtomicU32,
}

/// What goes on with a request, as its headers say it.
#[derive(Clone, Debug, Default)]
pub struct Propagated {
    /// The client's place in its trace.
    pub parent: Option<SpanContext>,
    trace_state: Option<HeaderValue>,
    baggage: Option<HeaderValue>,
}

/// Who wrote something: what a line of a log needs of a scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The request.
    pub request: Option<RequestId>,
    /// The place in its trace.
    pub context: Option<SpanContext>,
}

/// A span that has begun. It ends when it is dropped: as a failure, unless
/// [`ActiveSpan::end`] was called.
pub struct ActiveSpan {
    context: SpanContext,
    /// `None` if the trace is not kept.
    span: Option<Box<FinishedSpan>>,
}

/// A span with everything that is known of it.
pub struct FinishedSpan {
    /// Its place.
    pub context: SpanContext,
    /// The span that it is part of.
    pub parent: Option<SpanId>,
    /// That one is somebody else's.
    pub parent_is_remote: bool,
    /// What it stands for.
    pub kind: SpanKind,
    /// What it is called: few different names.
    pub name: Cow<'static, str>,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What else is known.
    pub attributes: Vec<KeyValue>,
    /// What went wrong, if something did.
    pub error: Option<Cow<'static, str>>,
    /// What the tracing systems on the way said.
    pub trace_state: Option<HeaderValue>,
}

/// A future that runs in a scope.
pub struct Scoped<F> {
    /// `None` while it is the thread's current one.
    scope: Option<Scope>,
    /// `None` once it was dropped, in its scope.
    future: Option<Pin<Box<F>>>,
}

/// Puts back what was the thread's current scope.
struct Entered<'scoped> {
    scope: &'scoped mut Option<Scope>,
    previous: Option<Scope>,
}

thread_local! {
    static CURRENT: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

impl RequestId {
    /// A number that no other request of this process has, and hardly one of another.
    #[expect(clippy::new_without_default, reason = "each is another one: there is no usual value")]
    pub fn new() -> Self {
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

impl SpanContext {
    /// Reads a `traceparent` of this version of the specification, or of a later one as
    /// far as this one knows it.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() < 55 || [bytes[2], bytes[35], bytes[52]] != *b"---" {
            return None;
        }
        let lower_hex = |from: usize, to: usize| {
            let digits = text.get(from..to)?;
            let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            digits.bytes().all(is_hex).then_some(digits)
        };
        match lower_hex(0, 2)? {
            "ff" => return None,
            "00" if bytes.len() != 55 => return None,
            _ if bytes.len() > 55 && bytes[55] != b'-' => return None,
            _ => {}
        }
        let trace_id = TraceId::from_hex(lower_hex(3, 35)?).ok()?;
        let span_id = SpanId::from_hex(lower_hex(36, 52)?).ok()?;
        let flags = u8::from_str_radix(lower_hex(53, 55)?, 16).ok()?;
        let is_valid = trace_id != TraceId::INVALID && span_id != SpanId::INVALID;
        is_valid.then_some(Self { trace_id, span_id, is_sampled: flags & 1 == 1 })
    }

    /// The value of a `traceparent` that names this place.
    pub fn header(&self) -> HeaderValue {
        let text = format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, u8::from(self.is_sampled));
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Another place in the same trace.
    pub fn child(&self) -> Self {
        Self { span_id: crate::export::new_span_id(), ..*self }
    }

    pub(crate) fn to_otel(self, trace_state: Option<&HeaderValue>, is_remote: bool) -> OtelContext {
        let flags = if self.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let state =
            trace_state.and_then(|state| TraceState::from_str(state.to_str().ok()?).ok()).unwrap_or_default();
        OtelContext::new(self.trace_id, self.span_id, flags, is_remote, state)
    }
}

impl Propagated {
    /// What a client's headers say. What is not as its specification wants it does not go
    /// on; a `tracestate` goes on only with a `traceparent`.
    pub fn of(headers: &HeaderMap) -> Self {
        let parent =
            headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).and_then(SpanContext::parse);
        let short = |name: HeaderName, max_bytes: usize| {
            headers.get(name).filter(|value| value.len() <= max_bytes).cloned()
        };
        Self {
            parent,
            trace_state: parent.and_then(|_| short(TRACESTATE, MAX_TRACESTATE_BYTES)),
            baggage: short(BAGGAGE, MAX_BAGGAGE_BYTES),
        }
    }

    /// What the tracing systems on the way said.
    pub fn trace_state(&self) -> Option<&HeaderValue> {
        self.trace_state.as_ref()
    }
}

impl Scope {
    /// The scope of a request of a component: `context` is its own place in its trace.
    pub fn new(
        app: Arc<str>,
        component: Arc<str>,
        request: Option<RequestId>,
        context: Option<SpanContext>,
        propagated: Propagated,
    ) -> Self {
        let Propagated { trace_state, baggage, .. } = propagated;
        Self(Arc::new(Inner {
            app,
            component,
            request,
            context,
            trace_state,
            baggage,
            guest_spans: Mutex::default(),
            guest_reports_count: AtomicU32::new(0),
            spans_count: AtomicU32::new(0),
        }))
    }

    /// The scope that this thread is in.
    pub fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// What a line needs of the scope that this thread is in.
    pub fn origin() -> Origin {
        CURRENT.with_borrow(|scope| scope.as_ref().map(Self::to_origin).unwrap_or_default())
    }

    /// Does something in this scope.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut scope = Some(self.clone());
        let _entered = Entered::enter(&mut scope);
        work()
    }

    /// Runs a future in this scope.
    pub fn wrap<F>(&self, future: F) -> Scoped<F> {
        Scoped { scope: Some(self.clone()), future: Some(Box::pin(future)) }
    }

    /// The app, by the name that its operator knows it by.
    pub fn app(&self) -> &Arc<str> {
        &self.0.app
    }

    /// The component.
    pub fn component(&self) -> &Arc<str> {
        &self.0.component
    }

    /// The request.
    pub fn request(&self) -> Option<RequestId> {
        self.0.request
    }

    /// The request's place in its trace, if it is part of one.
    pub fn context(&self) -> Option<SpanContext> {
        self.0.context
    }

    fn to_origin(&self) -> Origin {
        Origin { request: self.0.request, context: self.0.context }
    }

    /// The innermost place: a span of the guest's own, or the request's.
    fn innermost(&self) -> Option<SpanContext> {
        let spans = self.0.guest_spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.last().copied().or(self.0.context)
    }

    /// Begins a part of the request; `None` if no traces are exported. After
    /// [`MAX_SPANS_COUNT`] of them the trace goes on, and they are not told.
    pub fn begin(&self, kind: SpanKind, name: impl Into<Cow<'static, str>>) -> Option<ActiveSpan> {
        export().filter(|export| export.exports_traces())?;
        let parent = self.innermost()?;
        let context = parent.child();
        let is_told = parent.is_sampled && below(&self.0.spans_count, MAX_SPANS_COUNT);
        let span = is_told.then(|| {
            let now = SystemTime::now();
            Box::new(FinishedSpan {
                context,
                parent: Some(parent.span_id),
                parent_is_remote: false,
                kind,
                name: name.into(),
                start: now,
                end: now,
                attributes: vec![
                    KeyValue::new("wisp.app", self.0.app.clone()),
                    KeyValue::new("wisp.component", self.0.component.clone()),
                ],
                error: None,
                trace_state: self.0.trace_state.clone(),
            })
        });
        Some(ActiveSpan { context, span })
    }

    /// A part of the request that is over.
    pub fn note(&self, name: &'static str, start: SystemTime) {
        if let Some(mut span) = self.begin(SpanKind::Internal, name) {
            if let Some(span) = &mut span.span {
                span.start = start;
            }
            span.end();
        }
    }

    /// Lets the trace go on in a request that the guest sends, unless the guest says
    /// itself where it goes on.
    pub fn inject(&self, span: Option<&ActiveSpan>, headers: &mut HeaderMap) {
        let context = span.map(|span| span.context).or_else(|| self.innermost());
        if let Some(context) = context
            && !headers.contains_key(TRACEPARENT)
        {
            headers.insert(TRACEPARENT, context.header());
            if let Some(state) = &self.0.trace_state {
                headers.entry(TRACESTATE).or_insert_with(|| state.clone());
            }
        }
        if let Some(baggage) = &self.0.baggage {
            headers.entry(BAGGAGE).or_insert_with(|| baggage.clone());
        }
    }

    /// The guest has begun a span of its own: what the host does for it is part of that.
    pub fn begin_guest_span(&self, context: SpanContext) {
        let mut spans = self.0.guest_spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.len() < MAX_OPEN_GUEST_SPANS_COUNT {
            spans.push(context);
        }
    }

    /// The guest has ended a span of its own.
    pub fn end_guest_span(&self, context: SpanContext) {
        let mut spans = self.0.guest_spans.lock().unwrap_or_else(PoisonError::into_inner);
        // The innermost one, mostly.
        if let Some(place) = spans.iter().rposition(|span| span.span_id == context.span_id) {
            spans.remove(place);
        }
    }

    /// Whether the guest may report one more span or record in this request.
    pub fn may_report(&self) -> bool {
        below(&self.0.guest_reports_count, MAX_GUEST_REPORTS_COUNT)
    }
}

/// Counts one more, unless that is too many.
fn below(count: &AtomicU32, max_count: u32) -> bool {
    let one_more = |count: u32| (count < max_count).then_some(count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
}

impl ActiveSpan {
    /// Its place.
    pub fn context(&self) -> SpanContext {
        self.context
    }

    /// Adds something that is known of it.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.span {
            span.attributes.push(KeyValue::new(name, value));
        }
    }

    /// Something went wrong: `kind` is one of few words.
    pub fn fail(&mut self, kind: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.span {
            let kind = kind.into();
            span.attributes.push(KeyValue::new("error.type", kind.clone()));
            span.error = Some(kind);
        }
    }

    /// It is over.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        if let (Some(mut span), Some(export)) = (self.span.take(), export()) {
            span.end = SystemTime::now();
            export.span(*span);
        }
    }
}

impl Drop for ActiveSpan {
    fn drop(&mut self) {
        if self.span.is_some() {
            self.fail("cancelled");
            self.finish();
        }
    }
}

impl FinishedSpan {
    pub(crate) fn status(&self) -> Status {
        match &self.error {
            None => Status::Unset,
            Some(error) => Status::error(error.clone()),
        }
    }
}

impl<'scoped> Entered<'scoped> {
    fn enter(scope: &'scoped mut Option<Scope>) -> Self {
        let previous = CURRENT.replace(scope.take());
        Self { scope, previous }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        *self.scope = CURRENT.replace(self.previous.take());
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Both parts may be moved: the future itself is pinned in its box.
        let this = self.get_mut();
        let _entered = Entered::enter(&mut this.scope);
        match &mut this.future {
            Some(future) => future.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for Scoped<F> {
    fn drop(&mut self) {
        // A guest's last words are written when it is dropped.
        let _entered = Entered::enter(&mut self.scope);
        self.future = None;
    }
}

/// Begins the trace of a request, or goes on with the client's: its own place.
pub fn begin_request(export: &Export, propagated: &Propagated) -> Option<SpanContext> {
    if export.exports_traces() { Some(export.sample(propagated.parent)) } else { propagated.parent }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn scope(headers: &HeaderMap) -> Scope {
        let propagated = Propagated::of(headers);
        Scope::new("shop".into(), "cart".into(), None, propagated.parent, propagated)
    }

    #[test]
    fn a_traceparent_is_read_as_its_specification_says() {
        let context = SpanContext::parse(PARENT).unwrap();
        assert!(context.is_sampled);
        assert_eq!(context.header(), PARENT);
        let read = |text: &str| SpanContext::parse(text).is_some();
        assert!(read("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"));
        assert!(read("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes"));
        for wrong in [
            "",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.x",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01ä",
        ] {
            assert!(!read(wrong), "{wrong}");
        }
    }

    #[test]
    fn what_the_guest_says_itself_is_not_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(PARENT));
        headers.insert(TRACESTATE, HeaderValue::from_static("a=1"));
        headers.insert(BAGGAGE, HeaderValue::from_static("user=7"));
        let scope = scope(&headers);
        let mut sent = HeaderMap::new();
        scope.inject(None, &mut sent);
        assert_eq!(sent, headers);
        let mut own = HeaderMap::new();
        own.insert(TRACEPARENT, HeaderValue::from_static("mine"));
        scope.inject(None, &mut own);
        assert_eq!(own[TRACEPARENT], "mine");
        assert!(!own.contains_key(TRACESTATE), "it belongs to the other `traceparent`");
    }

    #[test]
    fn headers_that_are_too_long_do_not_go_on() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(PARENT));
        headers.insert(TRACESTATE, HeaderValue::try_from("a".repeat(513)).unwrap());
        headers.insert(BAGGAGE, HeaderValue::try_from("a".repeat(8193)).unwrap());
        let mut sent = HeaderMap::new();
        scope(&headers).inject(None, &mut sent);
        assert_eq!(sent.len(), 1);
    }

    #[test]
    fn a_future_is_polled_and_dropped_in_its_scope() {
        struct OnDrop(Arc<Mutex<Vec<Option<SpanContext>>>>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.lock().unwrap().push(Scope::origin().context);
            }
        }
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(PARENT));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let on_drop = OnDrop(seen.clone());
        let seen_there = seen.clone();
        let mut future = scope(&headers).wrap(async move {
            let _on_drop = on_drop;
            seen_there.lock().unwrap().push(Scope::origin().context);
            std::future::pending::<()>().await;
        });
        let polled = Pin::new(&mut future).poll(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(polled.is_pending());
        assert_eq!(Scope::origin(), Origin::default());
        drop(future);
        let context = SpanContext::parse(PARENT);
        assert_eq!(*seen.lock().unwrap(), [context, context]);
    }

    #[test]
    fn what_the_host_does_is_part_of_the_guests_innermost_span() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(PARENT));
        let scope = scope(&headers);
        let outer = scope.context().unwrap();
        let (one, two) = (outer.child(), outer.child());
        scope.begin_guest_span(one);
        scope.begin_guest_span(two);
        assert_eq!(scope.innermost(), Some(two));
        scope.end_guest_span(one);
        assert_eq!(scope.innermost(), Some(two));
        scope.end_guest_span(two);
        assert_eq!(scope.innermost(), Some(outer));
    }

    #[test]
    fn a_guest_reports_so_much_and_no_more() {
        let scope = scope(&HeaderMap::new());
        let count = (0..MAX_GUEST_REPORTS_COUNT * 2).filter(|_| scope.may_report()).count();
        assert_eq!(count, MAX_GUEST_REPORTS_COUNT as usize);
    }

    #[test]
    fn ids_differ_and_tell_no_distance() {
        let key = RandomState::new();
        let ids: Vec<u64> = (0..10_000).map(|number| shuffled(number, &key)).collect();
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len());
        let distances: std::collections::HashSet<u64> =
            ids.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        assert!(distances.len() > 9_990, "{}", distances.len());
        assert_ne!(shuffled(1, &key), shuffled(1, &RandomState::new()));
    }
}
