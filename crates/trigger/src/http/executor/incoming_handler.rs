//! `wasi:http/incoming-handler@0.2`: most of today's guests.

use http::uri;
use wasmtime::component::InstancePre;
use wasmtime_wasi_http::{
    WasiHttpView as _,
    p2::bindings::{Proxy, ProxyPre, http::types::Scheme},
};
use wisp_capability::Host;
use wisp_manifest::model::Reuse;

use super::{Component, Failure, Reply, RequestBody, ReusePool, instance};

pub(in crate::http) struct Entry {
    pre: ProxyPre<Host>,
    pub(super) reuse: Option<ReusePool<Proxy>>,
}

impl Entry {
    pub(super) fn new(pre: InstancePre<Host>, reuse: Option<Reuse>) -> wasmtime::Result<Self> {
        Ok(Self { pre: ProxyPre::new(pre)?, reuse: reuse.map(ReusePool::new) })
    }

    pub(super) async fn serve(
        &self,
        component: &Component,
        request: http::Request<RequestBody>,
        reply: Reply,
    ) -> Result<(), Failure> {
        let mut instance =
            instance(self.reuse.as_ref(), component, request.extensions(), &reply, async |store| {
                self.pre.instantiate_async(store).await
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
        if let Some(pool) = &self.reuse {
            pool.put(instance);
        }
        Ok(())
    }
}
