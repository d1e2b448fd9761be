//! `wasi:http/handler@0.3`: guests with asynchronous functions and streams.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use wasmtime::component::InstancePre;
use wasmtime_wasi_http::{
    WasiHttpView as _,
    p3::{
        Request,
        bindings::{Service, ServiceIndices},
    },
};
use wisp_capability::Host;
use wisp_engine::Slice;
use wisp_manifest::model::Reuse;

use super::{
    super::{draft::Draft, quiet::Quiet},
    Component, Failure, Reply, RequestBody, ReusePool, instance, keep,
};

pub(in crate::http) struct Entry {
    pre: InstancePre<Host>,
    indices: ServiceIndices,
    pub(super) pool: Option<ReusePool<Service>>,
}

impl Entry {
    pub(super) fn new(
        pre: InstancePre<Host>,
        reuse: Option<Reuse>,
        can_rewind: bool,
    ) -> wasmtime::Result<Self> {
        Ok(Self { indices: ServiceIndices::new(&pre)?, pre, pool: ReusePool::new(reuse, can_rewind) })
    }

    /// Its response is given away as soon as the guest waits for something.
    pub(super) async fn serve(
        &self,
        component: &Component,
        request: http::Request<RequestBody>,
        reply: Reply,
    ) -> Result<(), Failure> {
        let desk = Desk::default();
        let quiet = Quiet::default();
        let mut run = std::pin::pin!(self.run(component, request, &reply, &desk));
        std::future::poll_fn(|context| {
            let polled = quiet.poll(context, || !Slice::is_used_up(), |context| run.as_mut().poll(context));
            if !matches!(polled, Poll::Ready(Err(_)))
                && let Some(draft) = desk.lock().take()
            {
                reply.set(Ok(draft.finish()));
            }
            polled
        })
        .await
    }

    async fn run(
        &self,
        component: &Component,
        request: http::Request<RequestBody>,
        reply: &Reply,
        desk: &Desk,
    ) -> Result<(), Failure> {
        let mut instance =
            instance(self.pool.as_ref(), component, request.extensions(), reply, async |store| {
                let instance = self.pre.instantiate_async(&mut *store).await?;
                Ok((self.indices.load(store, &instance)?, instance))
            })
            .await?;
        let (request, sent) = Request::from_http(instance.store.data_mut().http().hooks, request);
        let service = &instance.proxy;
        instance
            .store
            .run_concurrent(async |accessor| -> wasmtime::Result<()> {
                match service.handle(accessor, request).await? {
                    Ok(response) => {
                        let response = accessor.with(|store| response.into_http(store, sent))?;
                        *desk.lock() = Some(Draft::new(response));
                    }
                    Err(code) => reply.set(Err(format!("{code:?}"))),
                }
                // The body may still be written, and the guest may have more to
                // do after that: stay until all of its tasks have exited.
                std::future::poll_fn(|context| {
                    if let Some(draft) = &mut *desk.lock() {
                        draft.take_in();
                    }
                    accessor.poll_no_interesting_tasks(context)
                })
                .await;
                Ok(())
            })
            .await??;
        if let Some(pool) = &self.pool {
            keep(pool, component, instance).await;
        }
        Ok(())
    }
}

/// Where the response lies while the guest is run.
#[derive(Default)]
struct Desk(Mutex<Option<Draft>>);

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Option<Draft>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
