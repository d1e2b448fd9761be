//! `fermyon:spin/inbound-http`: guests of Spin 1, which see whole requests and
//! answer with whole responses.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use wasmtime::component::InstancePre;
use wisp_capability::Host;

use super::{Component, Failure, Reply, RequestBody, ReusePool, instance, keep, whole};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "wisp:host/inbound-http",
        exports: { default: async },
    });
}

use bindings::{
    InboundHttp, InboundHttpIndices, exports::fermyon::spin::inbound_http as guest,
    fermyon::spin::http_types as types,
};

/// The largest request body that is buffered. A Spin 1 guest has the whole of it
/// in its memory, twice while it is copied.
const MAX_BUFFERED_BODY_BYTES: usize = 64 << 20;

pub(in crate::http) struct Entry {
    pre: InstancePre<Host>,
    indices: InboundHttpIndices,
    pub(super) pool: Option<ReusePool<InboundHttp>>,
}

impl Entry {
    pub(super) fn new(pre: InstancePre<Host>, can_rewind: bool) -> wasmtime::Result<Self> {
        Ok(Self { indices: InboundHttpIndices::new(&pre)?, pre, pool: ReusePool::new(None, can_rewind) })
    }

    pub(super) async fn serve(
        &self,
        component: &Component,
        request: http::Request<RequestBody>,
        reply: Reply,
    ) -> Result<(), Failure> {
        let (parts, body) = request.into_parts();
        let Some(method) = guest_method(&parts.method) else {
            reply.set(Ok(empty(StatusCode::METHOD_NOT_ALLOWED)));
            return Ok(());
        };
        let body = match Limited::new(body, MAX_BUFFERED_BODY_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => {
                reply.set(Ok(empty(StatusCode::PAYLOAD_TOO_LARGE)));
                return Ok(());
            }
        };
        let request = types::Request {
            method,
            uri: parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
            headers: parts
                .headers
                .iter()
                .map(|(name, value)| {
                    (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                })
                .collect(),
            params: Vec::new(),
            body: Some(body.to_vec()),
        };
        let mut instance =
            instance(self.pool.as_ref(), component, &parts.extensions, &reply, async |store| {
                let instance = self.pre.instantiate_async(&mut *store).await?;
                Ok((self.indices.load(store, &instance)?, instance))
            })
            .await?;
        let handler: &guest::Guest = instance.proxy.fermyon_spin_inbound_http();
        let response = handler.call_handle_request(&mut instance.store, &request).await?;
        reply.set(into_http(response).map_err(|message| format!("the response is invalid: {message}")));
        if let Some(pool) = &self.pool {
            keep(pool, component, instance).await;
        }
        Ok(())
    }
}

fn guest_method(method: &Method) -> Option<types::Method> {
    Some(match *method {
        Method::GET => types::Method::Get,
        Method::POST => types::Method::Post,
        Method::PUT => types::Method::Put,
        Method::DELETE => types::Method::Delete,
        Method::PATCH => types::Method::Patch,
        Method::HEAD => types::Method::Head,
        Method::OPTIONS => types::Method::Options,
        _ => return None,
    })
}

fn empty(status: StatusCode) -> http::Response<wasmtime_wasi_http::WasiBody> {
    let mut response = http::Response::new(whole(Bytes::new()));
    *response.status_mut() = status;
    response
}

fn into_http(response: types::Response) -> Result<http::Response<wasmtime_wasi_http::WasiBody>, String> {
    let mut converted = http::Response::new(whole(response.body.unwrap_or_default().into()));
    *converted.status_mut() = StatusCode::from_u16(response.status).map_err(|error| error.to_string())?;
    for (name, value) in response.headers.unwrap_or_default() {
        let name = HeaderName::try_from(name).map_err(|error| error.to_string())?;
        let value = HeaderValue::try_from(value).map_err(|error| error.to_string())?;
        converted.headers_mut().append(name, value);
    }
    Ok(converted)
}
