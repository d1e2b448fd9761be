//! A component that answers HTTP requests.

use std::{any::Any, sync::Arc, task::Poll, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body::{Body as _, Frame};
use tokio_util::task::TaskTracker;
use wasmtime::{Store, component::Linker};
use wasmtime_wasi_http::WasiBody;
use wisp_capability::{Grants, Host};
use wisp_engine::{
    Digest, Engine, Flavor, InstanceLimits, LentMemory, Limiter, LoadedComponent, MappedImage, OneThread,
    Pulse, preempt,
};
use wisp_manifest::{
    id::ComponentId,
    model::{Executor, Reuse},
};

use super::{
    account::{Account, Outcome, Totals},
    admission::{Full, Gate, RETRY_AFTER_S},
    body::{Ended, GuestFailed, GuestFuture, Reply, RequestBody, ResponseBody, RunningBody},
    commons::Commons,
    executor::{Entry, Failure},
    guest::Guest,
    trace::{Trace, Watch},
};
use crate::Error;

/// Tells clients what their request took, where the operator wants that.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The largest header block of a response. Common proxies take a tenth of it.
const MAX_RESPONSE_HEADER_BYTES: usize = 128 << 10;

/// What bounds the requests of one component.
#[derive(Clone, Copy, Debug)]
pub struct ComponentLimits {
    /// Memory and tables of one instance.
    pub instance: InstanceLimits,
    /// CPU time of one request.
    pub cpu_time: Duration,
    /// The longest time from a request's start to its response's end.
    pub request_timeout: Duration,
    /// Requests that run at once; more wait.
    pub max_concurrent_requests_count: Option<usize>,
    /// The largest request body.
    pub max_request_body_bytes: u64,
    /// The largest response body.
    pub max_response_body_bytes: u64,
    /// Open handles: resources of the host, and of the component itself.
    pub max_handles_count: usize,
}

impl Default for ComponentLimits {
    fn default() -> Self {
        Self {
            instance: InstanceLimits::default(),
            cpu_time: Duration::MAX,
            request_timeout: Duration::MAX,
            max_concurrent_requests_count: None,
            max_request_body_bytes: u64::MAX,
            max_response_body_bytes: u64::MAX,
            max_handles_count: usize::MAX,
        }
    }
}

/// What a component needs to be served.
pub struct ComponentSpec {
    /// Its code.
    pub loaded: LoadedComponent,
    /// What it may reach.
    pub grants: Arc<Grants>,
    /// How it is called.
    pub executor: Executor,
    /// Whether an instance may serve more than one request.
    pub reuse: Option<Reuse>,
    /// Whether its requests come without the `spin-*` headers.
    pub omits_spin_headers: bool,
    /// What bounds its requests.
    pub limits: ComponentLimits,
    /// What has to exist for as long as a request may run.
    pub kept: Arc<dyn Any + Send + Sync>,
}

/// A linked component: from here an instance is microseconds away.
pub(super) struct Component {
    pub(super) grants: Arc<Grants>,
    pub(super) commons: Arc<Commons>,
    pub(super) account: Arc<Account>,
    pub(super) totals: Arc<Totals>,
    pub(super) pulse: Pulse,
    entry: Entry,
    executor: Executor,
    reuse: Option<Reuse>,
    /// Whether requests are given to it without the `spin-*` headers. A command's
    /// environment is made of them.
    pub(super) omits_spin_headers: bool,
    limits: ComponentLimits,
    gate: Arc<Gate>,
    tracker: TaskTracker,
    /// The image stays mapped, and known to be, until the last request has ended.
    image: Arc<MappedImage>,
    kept: Arc<dyn Any + Send + Sync>,
}

impl Component {
    pub(super) fn new(
        engine: &Engine,
        linker: &Linker<Host>,
        id: &ComponentId,
        spec: ComponentSpec,
        (commons, account): (&Arc<Commons>, &Arc<Account>),
        tracker: TaskTracker,
    ) -> Result<Self, Error> {
        let entry = Entry::link(linker, id.as_str(), &spec.loaded, &spec.executor, spec.reuse)?;
        Ok(Self {
            pulse: engine.pulse().clone(),
            entry,
            omits_spin_headers: spec.omits_spin_headers && spec.executor == Executor::Http,
            executor: spec.executor,
            reuse: spec.reuse,
            gate: Gate::new(
                commons.admission.clone(),
                account.clone(),
                spec.limits.max_concurrent_requests_count,
            ),
            limits: spec.limits,
            grants: spec.grants,
            commons: commons.clone(),
            account: account.clone(),
            totals: account.totals(id),
            tracker,
            image: spec.loaded.image,
            kept: spec.kept,
        })
    }

    /// The same component with other code of the same source. Both count towards the same
    /// limits.
    pub(super) fn with_code(
        &self,
        linker: &Linker<Host>,
        id: &ComponentId,
        loaded: LoadedComponent,
    ) -> Result<Self, Error> {
        Ok(Self {
            grants: self.grants.clone(),
            commons: self.commons.clone(),
            account: self.account.clone(),
            totals: self.totals.clone(),
            pulse: self.pulse.clone(),
            entry: Entry::link(linker, id.as_str(), &loaded, &self.executor, self.reuse)?,
            executor: self.executor.clone(),
            reuse: self.reuse,
            omits_spin_headers: self.omits_spin_headers,
            limits: self.limits,
            gate: self.gate.clone(),
            tracker: self.tracker.clone(),
            image: loaded.image,
            kept: self.kept.clone(),
        })
    }

    /// The digest of what its code was made of.
    pub(super) fn source(&self) -> &Digest {
        &self.image.digest
    }

    /// What the host keeps for one request's instance.
    pub(super) fn host(&self) -> Host {
        self.limited(Host::new(self.grants.clone()))
    }

    /// The same for a host that is made in another way.
    pub(super) fn limited(&self, mut host: Host) -> Host {
        host.set_max_handles(self.limits.max_handles_count);
        host
    }

    /// A store for a fresh instance, with every limit in force.
    pub(super) fn store(&self, host: Host, reply: &Reply) -> Store<Host> {
        let mut store = Store::new(self.image.component.engine(), host);
        store.data_mut().limiter = Limiter::new(self.limits.instance, Some(reply.ledger()))
            .with_extra(self.image.extra_memory_bytes());
        store.set_max_component_handles(self.limits.max_handles_count);
        store.limiter(|host| &mut host.limiter);
        preempt(&mut store);
        store
    }

    /// Which engine its instances run on.
    pub(super) fn flavor(&self) -> Flavor {
        self.image.kind.flavor
    }

    /// Runs an instantiation where it finds the component's memory, and answers with
    /// the memory that it took if that is one of ours.
    pub(super) async fn instantiate<T>(
        &self,
        instantiation: impl Future<Output = T>,
    ) -> (T, Option<LentMemory>) {
        match &self.image.memory {
            None => (instantiation.await, None),
            Some(memory) => memory.scope(instantiation).await,
        }
    }

    /// Whether a request may go on after so much CPU time; logs it if not.
    pub(super) fn check_cpu(&self, used_ns: u64) -> Result<(), GuestFailed> {
        let limit = self.limits.cpu_time;
        if Duration::from_nanos(used_ns) < limit {
            return Ok(());
        }
        let failure = Failure::CpuTime(limit);
        failure.log(&self.grants.component);
        Err(failure.kind())
    }

    /// Counts CPU time for the app's share while the request goes on.
    pub(super) fn count_cpu(&self, cpu_ns: u64) {
        self.commons.shares.count(&self.account, &self.totals, cpu_ns);
    }

    /// Whether a response may be this long; logs it if not.
    pub(super) fn allows_response(&self, bytes: u64) -> bool {
        let max_bytes = self.limits.max_response_body_bytes;
        if bytes > max_bytes {
            Failure::ResponseSize(max_bytes).log(&self.grants.component);
        }
        bytes <= max_bytes
    }

    /// The largest request body.
    pub(super) fn max_request_body_bytes(&self) -> u64 {
        self.limits.max_request_body_bytes
    }

    /// Drops reusable instances that have been idle for too long; tells how often
    /// that is worth doing.
    pub(super) fn sweep(&self) -> Option<Duration> {
        self.entry.sweep()
    }

    /// Answers a request. Infallible: what goes wrong becomes a status.
    /// What it has to tell, `trace` tells.
    pub(super) async fn answer(
        self: &Arc<Self>,
        mut request: http::Request<RequestBody>,
        trace: Option<Box<Trace>>,
    ) -> http::Response<ResponseBody> {
        let permit = match self.gate.admit().await {
            Ok(permit) => permit,
            Err(Full) => {
                self.totals.refuse();
                let response = self.refuse();
                if let Some(trace) = trace {
                    trace.end_without_guest(response.status());
                }
                return response;
            }
        };
        let is_bodiless_method = request.method() == http::Method::HEAD;
        let reply = Reply::new(self, trace);
        if let Some(watch) = request.extensions().get::<Watch>() {
            // A request is answered once.
            drop(watch.reply.set(reply.clone()));
        }
        request.body_mut().count(&reply, self.limits.max_request_body_bytes);
        let guest = {
            let reply = reply.clone();
            async move {
                let _place = permit;
                reply.component().run(request, &reply).await
            }
        };
        let future: GuestFuture = match reply.trace() {
            None => Box::pin(guest),
            Some(trace) => Box::pin(trace.scope().wrap(guest)),
        };
        let mut guest = Guest::new(&reply, future);

        let mut outcome = None;
        let response = std::future::poll_fn(|context| {
            if let Poll::Ready(ended) = guest.poll(context) {
                outcome = Some(ended);
            }
            match reply.take() {
                Some(response) => Poll::Ready(Some(response)),
                None if outcome.is_some() => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await;

        let mut response = match (response, outcome) {
            (Some(Ok(response)), None | Some(Ok(()))) => {
                guest.set_status(response.status());
                let server_timing = self.server_timing(&guest);
                let is_bodiless = is_bodiless_method || has_no_body(response.status());
                let mut response = self.with_body(response, guest, is_bodiless);
                if let Some(timing) = server_timing {
                    response.headers_mut().append(SERVER_TIMING, timing);
                }
                return response;
            }
            (Some(Ok(_)) | None, Some(Err(failed))) => match failed {
                GuestFailed::TimedOut | GuestFailed::CpuTime => status(StatusCode::GATEWAY_TIMEOUT),
                GuestFailed::Failed | GuestFailed::Memory | GuestFailed::ResponseSize => {
                    status(StatusCode::INTERNAL_SERVER_ERROR)
                }
                GuestFailed::Busy => self.refuse(),
            },
            (Some(Err(message)), _) => {
                tracing::error!(component = %self.grants.component, "the component answered with an error: {message}");
                guest.set_outcome(Outcome::Failed);
                status(StatusCode::INTERNAL_SERVER_ERROR)
            }
            (None, Some(Ok(())) | None) => {
                tracing::error!(component = %self.grants.component, "the component ended without a response");
                guest.set_outcome(Outcome::Failed);
                status(StatusCode::INTERNAL_SERVER_ERROR)
            }
        };
        guest.set_status(response.status());
        if let Some(timing) = self.server_timing(&guest) {
            response.headers_mut().append(SERVER_TIMING, timing);
        }
        response
    }

    /// Joins a guest's response with the guest, unless there is nothing more to come.
    fn with_body(
        &self,
        response: http::Response<WasiBody>,
        mut guest: Guest,
        is_bodiless: bool,
    ) -> http::Response<ResponseBody> {
        if header_bytes(response.headers()) > MAX_RESPONSE_HEADER_BYTES {
            Failure::ResponseHeaders(MAX_RESPONSE_HEADER_BYTES).log(&self.grants.component);
            guest.set_outcome(Outcome::ResponseSize);
            return status(StatusCode::INTERNAL_SERVER_ERROR);
        }
        let content_length = content_length(response.headers());
        let length =
            if is_bodiless { Some(0) } else { response.body().size_hint().exact().or(content_length) };
        if length.is_some_and(|length| !self.allows_response(length)) {
            guest.set_outcome(Outcome::ResponseSize);
            return status(StatusCode::INTERNAL_SERVER_ERROR);
        }
        let (parts, body) = response.into_parts();
        let (ahead, body) = if !guest.is_ended() {
            (Vec::new(), body)
        } else if is_bodiless {
            if body.size_hint().exact().is_some() {
                return http::Response::from_parts(parts, ResponseBody::Finished(body));
            }
            (Vec::new(), body)
        } else {
            // Nobody is left who could add to it. What is known to its last byte needs
            // no pieces: hyper says how long it is.
            match Ended::look(body) {
                Ended::Whole(bytes) if content_length.is_none_or(|length| length == bytes.len() as u64) => {
                    if !guest.add_response_bytes(bytes.len() as u64) {
                        return status(StatusCode::INTERNAL_SERVER_ERROR);
                    }
                    return http::Response::from_parts(parts, ResponseBody::full(bytes));
                }
                Ended::Whole(bytes) => (vec![Ok(Frame::data(bytes))], WasiBody::default()),
                Ended::Rest(ahead, body) => (ahead, body),
            }
        };
        let mut body = RunningBody::new(guest, (ahead, body), length, self.tracker.clone());
        if length == Some(0) {
            body.detach();
            return http::Response::from_parts(parts, ResponseBody::Empty);
        }
        http::Response::from_parts(parts, ResponseBody::Running(body))
    }

    fn server_timing(&self, guest: &Guest) -> Option<HeaderValue> {
        if self.commons.settings.server_timing { guest.server_timing() } else { None }
    }

    /// Runs a guest to its end, under the time limit; logs what goes wrong.
    async fn run(&self, request: http::Request<RequestBody>, reply: &Reply) -> Result<(), GuestFailed> {
        let mut serve = std::pin::pin!(self.entry.serve(self, request, reply.clone()));
        let mut run = OneThread::default();
        let limit = self.limits.request_timeout;
        let mut timeout = None;
        let result = std::future::poll_fn(|context| {
            if let Poll::Ready(result) = run.poll(serve.as_mut(), context) {
                return Poll::Ready(result);
            }
            // Armed only when there is something to wait for, so that a guest that answers
            // at once costs no timer.
            let timeout = timeout.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
            timeout.as_mut().poll(context).map(|()| Err(Failure::TimedOut(limit)))
        })
        .await;
        result.map_err(|failure| {
            let failure = failure.explain(reply.usage(), &self.limits.instance);
            if !reply.is_abandoned() {
                failure.log(&self.grants.component);
            }
            failure.kind()
        })
    }

    fn refuse(&self) -> http::Response<ResponseBody> {
        tracing::debug!(component = %self.grants.component, "no instance became free in time");
        let mut response = status(StatusCode::SERVICE_UNAVAILABLE);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        response
    }
}

/// An empty response.
pub(super) fn status(code: StatusCode) -> http::Response<ResponseBody> {
    let mut response = http::Response::new(ResponseBody::Empty);
    *response.status_mut() = code;
    response
}

fn has_no_body(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// Length of a header block, with what separates its fields.
fn header_bytes(headers: &http::HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// The length that a message declares for its body.
pub(super) fn content_length(headers: &http::HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
