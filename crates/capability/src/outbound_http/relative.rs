//! Requests without a host: they are for the component's own app.
//!
//! `wasi:http` lets a guest leave out scheme, host and path; Wasmtime makes a
//! URI of what there is and fails without a host. So the two functions that
//! send a request are registered here, fill in what is missing, and hand over
//! to Wasmtime's.

use http::uri::{Authority, PathAndQuery, Scheme};
use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime_wasi_http::p2::bindings::http::outgoing_handler::Host as _;
use wasmtime_wasi_http::p2::bindings::http::types as p2;
use wasmtime_wasi_http::p2::types::{HostFutureIncomingResponse, HostOutgoingRequest};
use wasmtime_wasi_http::p3::bindings::http::client::HostWithStore as _;
use wasmtime_wasi_http::p3::bindings::http::types as p3;
use wasmtime_wasi_http::{WasiHttp, WasiHttpView};

use super::SELF_AUTHORITY;
use crate::{Flavor, Host};

/// The version of the older interface that Wasmtime implements; it serves all
/// of 0.2.
const OUTGOING_HANDLER: &str = "wasi:http/outgoing-handler@0.2.12";

/// The newer interface.
const CLIENT: &str = "wasi:http/client@0.3.0";

/// Registers all of `wasi:http` that guests import.
pub(super) fn add_to_linker(linker: &mut Linker<Host>, flavor: Flavor) -> wasmtime::Result<()> {
    let options = wasmtime_wasi_http::p2::bindings::LinkOptions::default();
    p2::add_to_linker::<Host, WasiHttp>(linker, &(&options).into(), Host::http)?;
    linker
        .instance(OUTGOING_HANDLER)?
        .func_wrap("handle", |mut store: StoreContextMut<'_, Host>, arguments| {
            Ok((handle(store.data_mut(), arguments)?,))
        })?;
    if flavor.is_concurrent() {
        p3::add_to_linker::<Host, WasiHttp>(linker, Host::http)?;
        linker.instance(CLIENT)?.func_wrap_concurrent("send", |store, (request,)| {
            Box::pin(async move { Ok((send(store, request).await?,)) })
        })?;
    }
    Ok(())
}

/// What the older interface's `handle` takes.
type HandleArguments = (Resource<HostOutgoingRequest>, Option<Resource<p2::RequestOptions>>);

fn handle(
    host: &mut Host,
    (request, options): HandleArguments,
) -> wasmtime::Result<Result<Resource<HostFutureIncomingResponse>, p2::ErrorCode>> {
    let mut view = host.http();
    let incomplete = view.table.get_mut(&request)?;
    // Some SDKs put `:443` where there is no host.
    if incomplete
        .authority
        .as_deref()
        .is_none_or(|authority| authority.is_empty() || authority.starts_with(':'))
    {
        incomplete.authority = Some(SELF_AUTHORITY.into());
        incomplete.scheme = Some(p2::Scheme::Http);
    }
    if incomplete.path_with_query.as_deref().is_none_or(str::is_empty) {
        incomplete.path_with_query = Some("/".into());
    }
    match view.handle(request, options) {
        Ok(response) => Ok(Ok(response)),
        // An error that is no code is a trap.
        Err(error) => error.downcast().map(Err),
    }
}

async fn send(
    store: &Accessor<Host>,
    request: Resource<p3::Request>,
) -> wasmtime::Result<Result<Resource<p3::Response>, p3::ErrorCode>> {
    store.with(|mut access| {
        let incomplete = access.get().http().table.get_mut(&request)?;
        if incomplete.authority.as_ref().is_none_or(|authority| authority.host().is_empty()) {
            incomplete.authority = Some(Authority::from_static(SELF_AUTHORITY));
            incomplete.scheme = Some(Scheme::HTTP);
        }
        incomplete.path_with_query.get_or_insert(PathAndQuery::from_static("/"));
        wasmtime::error::Ok(())
    })?;
    match WasiHttp::send(&store.with_getter::<WasiHttp>(Host::http), request).await {
        Ok(response) => Ok(Ok(response)),
        Err(error) => error.downcast().map(Err),
    }
}
