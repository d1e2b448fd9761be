//! A component that answers HTTP requests.

use std::{any::Any, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode, header};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use wasmtime::{Store, component::Linker};
use wisp_capability::{Grants, Host};
use wisp_engine::{Engine, Limiter, LoadedComponent, MappedImage};
use wisp_manifest::model::{Executor, Reuse};

use super::{
    admission::{Admission, Full, RETRY_AFTER_S},
    body::{GuestFailed, GuestFuture, Reply, RequestBody, ResponseBody, RunningBody},
    executor::{Entry, Failure},
};
use crate::Error;

/// What bounds the requests of one component.
#[derive(Clone, Copy, Debug, Default)]
pub struct ComponentLimits {
    /// The largest linear memory of one instance; `None` is what 32 bits reach.
    pub max_memory_bytes: Option<usize>,
    /// The longest time from a request's start to its response's end.
    pub request_timeout: Option<Duration>,
    /// Requests that run at once; more wait.
    pub max_concurrent_requests_count: Option<usize>,
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
    /// What bounds its requests.
    pub limits: ComponentLimits,
    /// What has to exist for as long as a request may run.
    pub kept: Arc<dyn Any + Send + Sync>,
}

/// A linked component: from here an instance is microseconds away.
pub(super) struct Component {
    pub(super) grants: Arc<Grants>,
    engine: wasmtime::Engine,
    entry: Entry,
    limits: ComponentLimits,
    admission: Arc<Admission>,
    own_places: Option<Arc<Semaphore>>,
    tracker: TaskTracker,
    /// The image stays mapped, and known to be, until the last request has ended.
    image: Arc<MappedImage>,
    _kept: Arc<dyn Any + Send + Sync>,
}

impl Component {
    pub(super) fn new(
        engine: &Engine,
        linker: &Linker<Host>,
        spec: ComponentSpec,
        admission: Arc<Admission>,
        tracker: TaskTracker,
    ) -> Result<Self, Error> {
        let id = &spec.grants.component;
        let entry = Entry::link(linker, id, &spec.loaded.component, &spec.executor, spec.reuse)?;
        Ok(Self {
            engine: engine.wasmtime(spec.loaded.flavor).clone(),
            entry,
            own_places: spec
                .limits
                .max_concurrent_requests_count
                .map(|count| Arc::new(Semaphore::new(count))),
            limits: spec.limits,
            grants: spec.grants,
            admission,
            tracker,
            image: spec.loaded.image,
            _kept: spec.kept,
        })
    }

    /// A store for a fresh instance, with every limit in force.
    pub(super) fn store(&self, host: Host) -> Store<Host> {
        let mut store = Store::new(&self.engine, host);
        if let Some(max_memory_bytes) = self.limits.max_memory_bytes {
            store.data_mut().limiter = Limiter::new(max_memory_bytes);
        }
        store.limiter(|host| &mut host.limiter);
        store.epoch_deadline_async_yield_and_update(1);
        store.set_epoch_deadline(1);
        store
    }

    /// Runs an instantiation where it finds the component's memory.
    pub(super) async fn instantiate<T>(&self, instantiation: impl Future<Output = T>) -> T {
        match &self.image.memory {
            None => instantiation.await,
            Some(memory) => memory.scope(instantiation).await,
        }
    }

    /// Drops reusable instances that have been idle for too long; tells how often
    /// that is worth doing.
    pub(super) fn sweep(&self) -> Option<Duration> {
        self.entry.sweep()
    }

    /// Answers a request. Infallible: what goes wrong becomes a status.
    pub(super) async fn answer(
        self: &Arc<Self>,
        request: http::Request<RequestBody>,
    ) -> http::Response<ResponseBody> {
        let own_permit = match &self.own_places {
            None => None,
            Some(places) => match tokio::time::timeout(
                super::AdmissionLimits::default().max_wait,
                places.clone().acquire_owned(),
            )
            .await
            {
                Ok(Ok(permit)) => Some(permit),
                _ => return self.refuse(),
            },
        };
        let permit = match self.admission.admit().await {
            Ok(permit) => permit,
            Err(Full) => return self.refuse(),
        };
        let is_bodiless_method = request.method() == http::Method::HEAD;
        let reply = Reply::default();
        let mut guest: GuestFuture = {
            let component = self.clone();
            let reply = reply.clone();
            Box::pin(async move {
                let _places = (permit, own_permit);
                component.run(request, reply).await
            })
        };

        let mut outcome = None;
        let response = std::future::poll_fn(|context| {
            if let std::task::Poll::Ready(ended) = guest.as_mut().poll(context) {
                outcome = Some(ended);
            }
            match reply.take() {
                Some(response) => std::task::Poll::Ready(Some(response)),
                None if outcome.is_some() => std::task::Poll::Ready(None),
                None => std::task::Poll::Pending,
            }
        })
        .await;

        match (response, outcome) {
            (Some(Ok(response)), None) => {
                let content_length = content_length(response.headers());
                let is_bodiless = is_bodiless_method || has_no_body(response.status());
                let (parts, body) = response.into_parts();
                let mut body = RunningBody::new(guest, body, content_length, self.tracker.clone());
                if is_bodiless || content_length == Some(0) {
                    body.detach();
                    http::Response::from_parts(parts, ResponseBody::Empty)
                } else {
                    http::Response::from_parts(parts, ResponseBody::Running(body))
                }
            }
            (Some(Ok(response)), Some(Ok(()))) => response.map(ResponseBody::Finished),
            (Some(Ok(_)) | None, Some(Err(failed))) => match failed {
                GuestFailed::Trapped => status(StatusCode::INTERNAL_SERVER_ERROR),
                GuestFailed::TimedOut => status(StatusCode::GATEWAY_TIMEOUT),
                GuestFailed::Busy => self.refuse(),
            },
            (Some(Err(message)), _) => {
                tracing::error!(component = %self.grants.component, "the component answered with an error: {message}");
                status(StatusCode::INTERNAL_SERVER_ERROR)
            }
            (None, Some(Ok(())) | None) => {
                tracing::error!(component = %self.grants.component, "the component ended without a response");
                status(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }

    /// Runs a guest to its end, under the time limit; logs what goes wrong.
    async fn run(&self, request: http::Request<RequestBody>, reply: Reply) -> Result<(), GuestFailed> {
        let serve = self.entry.serve(self, request, reply.clone());
        let result = match self.limits.request_timeout {
            None => serve.await,
            Some(limit) => match tokio::time::timeout(limit, serve).await {
                Ok(result) => result,
                Err(_) => Err(Failure::TimedOut(limit)),
            },
        };
        result.map_err(|failure| {
            failure.log(&self.grants.component);
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

/// The length that a message declares for its body.
pub(super) fn content_length(headers: &http::HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
