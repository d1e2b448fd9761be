//! `wasi:http/incoming-handler@0.2`: most of today's guests.

use http::uri;
use wasmtime::component::InstancePre;
use wasmtime_wasi_http::{
    WasiHttpView as _,
    p2::bindings::{Proxy, ProxyIndices, http::types::Scheme},
};
use wisp_capability::Host;
use wisp_manifest::model::Reuse;

use super::{Component, Failure, Reply, RequestBody, ReusePool, instance, keep};

pub(in crate::http) struct Entry {
    pre: InstancePre<Host>,
    indices: ProxyIndices,
    pub(super) pool: Option<ReusePool<Proxy>>,
}

impl Entry {
    pub(super) fn new(
        pre: InstancePre<Host>,
        reuse: Option<Reuse>,
        can_rewind: bool,
    ) -> wasmtime::Result<Self> {
        Ok(Self { indices: ProxyIndices::new(&pre)?, pre, pool: ReusePool::new(reuse, can_rewind) })
    }

    pub(super) async fn serve(
        &self,
        component: &Component,
        request: http::Request<RequestBody>,
        reply: Reply,
    ) -> Result<(), Failure> {
        let mut instance =
            instance(self.pool.as_ref(), component, request.extensions(), &reply, async |store| {
                let instance = self.pre.instantiate_async(&mut *store).await?;
                Ok((self.indices.load(store, &instance)?, instance))
            })
            .await?;
        let store = &mut instance.store;
        let scheme = match request.uri().scheme() {
            Some(scheme) if *scheme == uri::Scheme::HTTPS => Scheme::Https,
            _ => Scheme::Http,
        };
        let request = store.data_mut().http().new_incoming_request(scheme, request)?;
        let responder = store.data_mut().http().new_response_outparam_from_callback(move |response| {
            reply.set(response.map_err(|code| format!("{code:?}")));
        })?;
        instance.proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, responder).await?;
        if let Some(pool) = &self.pool {
            keep(pool, component, instance).await;
        }
        Ok(())
    }
}
