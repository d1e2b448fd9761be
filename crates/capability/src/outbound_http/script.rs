//! Answers from a script, in the place of the network: for tests of apps.

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

use super::client::RequestSent;

/// The largest request that is gathered for a script.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Answers requests of components in the place of the network. They were checked
/// against the allow-list already.
pub trait Script: Send + Sync {
    /// The answer to a request, if the script has one; without one, the guest is told
    /// that the destination cannot be reached.
    fn answer(&self, component: &str, request: Request<Bytes>) -> Option<Response<Bytes>>;

    /// A request was not allowed and so never sent.
    fn refused(&self, component: &str, method: &Method, uri: &Uri);
}

pub(super) async fn answer(
    script: &dyn Script,
    component: &str,
    request: Request<WasiBody>,
) -> Result<(Response<WasiBody>, RequestSent), HttpError> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
    let body = body.map_err(|_| HttpError::HttpRequestBodySize(None))?.to_bytes();
    let response = script.answer(component, Request::from_parts(parts, body));
    let response = response.ok_or(HttpError::DestinationUnavailable)?;
    let response = response.map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync());
    Ok((response, Box::new(std::future::ready(Ok(())))))
}
