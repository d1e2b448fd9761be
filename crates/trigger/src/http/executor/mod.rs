//! How a component is called: one module per kind of handler.

mod handler;
mod inbound_http;
mod incoming_handler;
mod wagi;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use wasmtime::{
    PoolConcurrencyLimitError, Store,
    component::{Instance as ComponentInstance, Linker, types::ComponentItem},
};
use wisp_capability::{Host, outbound_http::LocalDepth};
use wisp_engine::{InstanceLimits, MappedImage, Rewinder, Usage};
use wisp_manifest::model::{Executor, Reuse};

use super::{
    body::{GuestFailed, Reply, RequestBody, whole},
    component::Component,
    reuse::{Instance, ReusePool},
};
use crate::Error;

/// The handler that a component exports, linked.
pub(super) enum Entry {
    /// `wasi:http/incoming-handler@0.2`.
    IncomingHandler(incoming_handler::Entry),
    /// `wasi:http/handler@0.3`.
    Handler(handler::Entry),
    /// `fermyon:spin/inbound-http`.
    InboundHttp(inbound_http::Entry),
    /// `wasi:cli/run`, called as WAGI.
    Wagi(wagi::Entry),
}

/// Why a guest gave no (complete) response.
#[derive(Debug)]
pub(super) enum Failure {
    /// It trapped, or something it was given could not be made.
    Trapped(wasmtime::Error),
    /// The pool had no instance left.
    Busy,
    /// It ran out of time.
    TimedOut(Duration),
    /// It used up its CPU time.
    CpuTime(Duration),
    /// It trapped after it was refused memory beyond its limit.
    Memory(usize, wasmtime::Error),
    /// It trapped after it was refused table elements beyond its limit.
    Tables(usize, wasmtime::Error),
    /// Its response is larger than this many bytes.
    ResponseSize(u64),
    /// Its response has more than this many bytes of headers.
    ResponseHeaders(usize),
}

impl From<wasmtime::Error> for Failure {
    fn from(error: wasmtime::Error) -> Self {
        if error.is::<PoolConcurrencyLimitError>() { Self::Busy } else { Self::Trapped(error) }
    }
}

impl Failure {
    pub(super) fn kind(&self) -> GuestFailed {
        match self {
            Self::Trapped(_) => GuestFailed::Failed,
            Self::Busy => GuestFailed::Busy,
            Self::TimedOut(_) => GuestFailed::TimedOut,
            Self::CpuTime(_) => GuestFailed::CpuTime,
            Self::Memory(..) | Self::Tables(..) => GuestFailed::Memory,
            Self::ResponseSize(_) | Self::ResponseHeaders(_) => GuestFailed::ResponseSize,
        }
    }

    /// A guest that is refused memory traps in a way of its own: says why.
    pub(super) fn explain(self, usage: &Usage, limits: &InstanceLimits) -> Self {
        match self {
            Self::Trapped(error) if usage.memory_refused() => Self::Memory(limits.memory_bytes, error),
            Self::Trapped(error) if usage.table_refused() => Self::Tables(limits.table_elements_count, error),
            other => other,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Trapped(_) => "WISP-E0410",
            Self::Busy => "WISP-E0411",
            Self::TimedOut(_) => "WISP-E0412",
            Self::CpuTime(_) => "WISP-E0415",
            Self::Memory(..) => "WISP-E0416",
            Self::Tables(..) => "WISP-E0417",
            Self::ResponseSize(_) => "WISP-E0418",
            Self::ResponseHeaders(_) => "WISP-E0419",
        }
    }

    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Trapped(_) | Self::Busy => return None,
            Self::TimedOut(_) => "raise `request_timeout` in the component's limits, or answer sooner",
            Self::CpuTime(_) => "raise `cpu_time` in the component's limits, or compute less",
            Self::Memory(..) => "raise `memory_bytes` in the component's limits, or use less memory",
            Self::Tables(..) => "raise `table_elements` in the component's limits",
            Self::ResponseHeaders(_) => "put what is so long into the response's body",
            Self::ResponseSize(_) => "raise `response_body_bytes` in the component's limits, or send less",
        })
    }

    pub(super) fn log(&self, component: &Arc<str>) {
        let code = self.code();
        let hint = self.hint();
        match self {
            // The debug form carries the guest's backtrace, one frame a line.
            Self::Trapped(error) => {
                tracing::error!(%component, code, "the component trapped: {error:?}");
            }
            Self::Busy => tracing::warn!(%component, code, "no instance was free"),
            Self::TimedOut(limit) => {
                tracing::error!(
                    %component, code, hint,
                    "the component was ended after its request timeout of {limit:?}"
                );
            }
            Self::CpuTime(limit) => {
                tracing::error!(%component, code, hint, "the component was ended after {limit:?} of CPU time");
            }
            Self::Memory(limit, error) => {
                tracing::error!(
                    %component, code, hint,
                    "the component trapped after it was refused memory beyond {limit} bytes: {error:?}"
                );
            }
            Self::Tables(limit, error) => {
                tracing::error!(
                    %component, code, hint,
                    "the component trapped after it was refused more than {limit} table elements: {error:?}"
                );
            }
            Self::ResponseHeaders(limit) => {
                tracing::error!(%component, code, hint, "the response has more than {limit} bytes of headers");
            }
            Self::ResponseSize(limit) => {
                tracing::error!(%component, code, hint, "the response is larger than {limit} bytes");
            }
        }
    }
}

/// How often an instance is rewound whose guest does not give its handles back.
///
/// JavaScript and Python leave that to a garbage collector which does not run before
/// the request ends. What such a handle stood for is gone with the request's host
/// state; its number stays taken. Nothing can be reached by it but the request's own
/// resources of the same type, and a guest that was rewound does not know it; but
/// numbers that are taken are memory, hence the bound.
const MAX_REWINDS_WITH_HANDLES_COUNT: u32 = 100;

/// What an export has to do with HTTP.
enum HandlerKind {
    IncomingHandler,
    Handler,
    InboundHttp,
    Unsupported,
}

fn handler_kind(export: &str) -> Option<HandlerKind> {
    let (interface, version) = export.split_once('@').unwrap_or((export, ""));
    match interface {
        "wasi:http/incoming-handler" if version.starts_with("0.2.") && !version.contains('-') => {
            Some(HandlerKind::IncomingHandler)
        }
        "wasi:http/handler" if version.starts_with("0.3.") && !version.contains('-') => {
            Some(HandlerKind::Handler)
        }
        "fermyon:spin/inbound-http" => Some(HandlerKind::InboundHttp),
        "wasi:http/incoming-handler" | "wasi:http/handler" => Some(HandlerKind::Unsupported),
        _ => None,
    }
}

impl Entry {
    /// Finds the handler and links the component.
    pub(super) fn link(
        linker: &Linker<Host>,
        id: &str,
        image: &MappedImage,
        executor: &Executor,
        reuse: Option<Reuse>,
    ) -> Result<Self, Error> {
        let component = &image.component;
        let can_rewind = image.memory.as_ref().is_some_and(|memory| memory.can_rewind());
        let id = || id.to_owned();
        let component_type = component.component_type();
        let exports: Vec<String> = component_type
            .exports(linker.engine())
            .filter(|(_, item)| {
                matches!(item.ty, ComponentItem::ComponentInstance(_) | ComponentItem::ComponentFunc(_))
            })
            .map(|(name, _)| name.to_owned())
            .filter(|name| name != Rewinder::EXPORT)
            .collect();
        let link_error =
            |error: wasmtime::Error| Error::Link { component: id(), message: format!("{error:#}") };
        let pre = || linker.instantiate_pre(component).map_err(link_error);

        if let Executor::Wagi(settings) = executor {
            if !exports.iter().any(|name| name.starts_with("wasi:cli/run@0.2")) {
                return Err(Error::NoHandler { component: id(), exports });
            }
            return wagi::Entry::new(pre()?, settings).map(Self::Wagi).map_err(link_error);
        }

        let mut handlers: Vec<(String, HandlerKind)> =
            exports.iter().filter_map(|name| Some((name.clone(), handler_kind(name)?))).collect();
        if handlers.len() > 1 {
            let handlers = handlers.into_iter().map(|(name, _)| name).collect();
            return Err(Error::SeveralHandlers { component: id(), handlers });
        }
        let Some((name, kind)) = handlers.pop() else {
            return Err(Error::NoHandler { component: id(), exports });
        };
        match kind {
            HandlerKind::IncomingHandler => incoming_handler::Entry::new(pre()?, reuse, can_rewind)
                .map(Self::IncomingHandler)
                .map_err(link_error),
            HandlerKind::Handler => {
                handler::Entry::new(pre()?, reuse, can_rewind).map(Self::Handler).map_err(link_error)
            }
            HandlerKind::InboundHttp => {
                inbound_http::Entry::new(pre()?, can_rewind).map(Self::InboundHttp).map_err(link_error)
            }
            HandlerKind::Unsupported => Err(Error::UnsupportedHandler { component: id(), handler: name }),
        }
    }

    /// Runs the guest to its end. Its response goes to `reply` as soon as it is
    /// there, which is usually before the end.
    pub(super) async fn serve(
        &self,
        component: &Component,
        request: http::Request<RequestBody>,
        reply: Reply,
    ) -> Result<(), Failure> {
        match self {
            Self::IncomingHandler(entry) => entry.serve(component, request, reply).await,
            Self::Handler(entry) => entry.serve(component, request, reply).await,
            Self::InboundHttp(entry) => entry.serve(component, request, reply).await,
            // The largest of these by far would have all others allocate as much.
            Self::Wagi(entry) => Box::pin(entry.serve(component, request, reply)).await,
        }
    }

    /// Drops reusable instances that were idle for too long.
    pub(super) fn sweep(&self) -> Option<Duration> {
        match self {
            Self::IncomingHandler(entry) => sweep(entry.pool.as_ref()),
            Self::Handler(entry) => sweep(entry.pool.as_ref()),
            Self::InboundHttp(entry) => sweep(entry.pool.as_ref()),
            Self::Wagi(_) => None,
        }
    }
}

fn sweep<P>(pool: Option<&ReusePool<P>>) -> Option<Duration> {
    let pool = pool?;
    pool.sweep();
    Some(pool.idle_timeout())
}

/// An instance for the next request: one that waits for it, else a new one.
async fn instance<P>(
    pool: Option<&ReusePool<P>>,
    component: &Component,
    request: &http::Extensions,
    reply: &Reply,
    instantiate: impl AsyncFnOnce(&mut Store<Host>) -> wasmtime::Result<(P, ComponentInstance)>,
) -> wasmtime::Result<Instance<P>> {
    let depth = request.get::<LocalDepth>().copied();
    if let Some(mut instance) = pool.and_then(ReusePool::take) {
        instance.store.set_epoch_deadline(1);
        let host = instance.store.data_mut();
        host.limiter.begin(Some(reply.ledger()));
        host.begin_request();
        host.set_local_depth(depth.unwrap_or_default());
        return Ok(instance);
    }
    let start = Instant::now();
    let mut host = component.host();
    if let Some(depth) = depth {
        host.set_local_depth(depth);
    }
    let mut store = component.store(host, reply);
    // Large, and of no use to requests that find an instance.
    let instantiation = Box::pin(component.instantiate(instantiate(&mut store)));
    let (instantiated, memory) = instantiation.await;
    let (proxy, instance) = instantiated?;
    if let Some(memory) = &memory {
        memory.begin(&mut store, &instance).await?;
    }
    let rewinder = match memory {
        // The first for a while is not kept.
        Some(memory)
            if pool.is_some_and(|pool| pool.rewinds() && pool.is_wanted(0))
                && store.data().holds_nothing() =>
        {
            Some(Rewinder::new(&mut store, &instance, memory, component.flavor())?)
        }
        _ => None,
    };
    let took = start.elapsed();
    reply.usage().set_instantiate(took);
    if let Some(trace) = reply.trace() {
        trace.scope().note("instantiate", SystemTime::now() - took);
    }
    Ok(Instance { store, proxy, served_count: 0, rewinder })
}

/// Keeps an instance that has answered its request for the next one: as it is if its
/// author said so, else rewound.
async fn keep<P>(pool: &ReusePool<P>, component: &Component, mut instance: Instance<P>) {
    if pool.rewinds() {
        let Some(rewinder) = &mut instance.rewinder else { return };
        let store = &mut instance.store;
        let leaves_handles = !store.data().holds_nothing();
        if !pool.is_wanted(instance.served_count)
            || (leaves_handles && instance.served_count >= MAX_REWINDS_WITH_HANDLES_COUNT)
        {
            return;
        }
        // The memory and the tables stay as large as they are, and so do the accounts.
        let limiter = std::mem::take(&mut store.data_mut().limiter);
        *store.data_mut() = component.host();
        store.data_mut().limiter = limiter;
        if !rewinder.rewind(store).await {
            return;
        }
    }
    pool.put(instance);
}
