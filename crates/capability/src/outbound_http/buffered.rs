//! `fermyon:spin/http`: requests with whole bodies, for guests of old SDKs.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use wasmtime::component::{HasSelf, Linker};
use wasmtime_wasi_http::{Error as HttpError, RequestOptions};

use super::{SELF_AUTHORITY, is_forbidden_header, send};
use crate::Host;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "wisp:host/outbound-http",
        imports: { default: async | trappable },
    });
}

use bindings::fermyon::spin::http as interface;
use bindings::fermyon::spin::http_types::{
    HttpError as Refusal, Method as GuestMethod, Request as GuestRequest, Response as GuestResponse,
};

/// How many bytes of a response's body are taken in: the interface has it all
/// in memory, twice.
const MAX_BODY_BYTES: usize = 128 * 1024 * 1024;

pub(super) fn add_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    interface::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)
}

impl bindings::fermyon::spin::http_types::Host for Host {}

impl interface::Host for Host {
    async fn send_request(
        &mut self,
        request: GuestRequest,
    ) -> wasmtime::Result<Result<GuestResponse, Refusal>> {
        let request = match to_http(request) {
            Ok(request) => request,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let sent = match self.http_hooks.begin_request() {
            Ok(sending) => send(sending, request, RequestOptions::default()).await,
            Err(error) => Err(error),
        };
        let response = match sent {
            // The rest of the request is sent while the response is read.
            Ok((response, _request_sent)) => response,
            Err(error) => return Ok(Err(refusal(&error))),
        };
        let (parts, body) = response.into_parts();
        let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                tracing::debug!("response of a buffered request broke off: {error}");
                return Ok(Err(Refusal::RuntimeError));
            }
        };
        let headers =
            parts.headers.iter().filter(|(name, _)| !is_forbidden_header(name)).map(|(name, value)| {
                (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            });
        Ok(Ok(GuestResponse {
            status: parts.status.as_u16(),
            headers: Some(headers.collect()),
            body: Some(body.into()),
        }))
    }
}

fn to_http(request: GuestRequest) -> Result<Request<wasmtime_wasi_http::WasiBody>, Refusal> {
    // A path without a host means the component's own app.
    let uri = if request.uri.starts_with('/') {
        format!("http://{SELF_AUTHORITY}{}", request.uri)
    } else {
        request.uri
    };
    let uri = Uri::try_from(uri).map_err(|_| Refusal::InvalidUrl)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(Refusal::InvalidUrl);
    }
    let method = match request.method {
        GuestMethod::Get => Method::GET,
        GuestMethod::Post => Method::POST,
        GuestMethod::Put => Method::PUT,
        GuestMethod::Delete => Method::DELETE,
        GuestMethod::Patch => Method::PATCH,
        GuestMethod::Head => Method::HEAD,
        GuestMethod::Options => Method::OPTIONS,
    };
    let body = Full::new(Bytes::from(request.body.unwrap_or_default()));
    let body = body.map_err(|never| match never {}).boxed_unsync();
    let mut built = Request::new(body);
    *built.method_mut() = method;
    *built.uri_mut() = uri;
    for (name, value) in request.headers {
        let name = HeaderName::try_from(name).map_err(|_| Refusal::RequestError)?;
        let value = HeaderValue::try_from(value).map_err(|_| Refusal::RequestError)?;
        // The body is here as a whole, so its length is known better.
        if !is_forbidden_header(&name) && name != http::header::CONTENT_LENGTH {
            built.headers_mut().append(name, value);
        }
    }
    Ok(built)
}

fn refusal(error: &HttpError) -> Refusal {
    match error {
        HttpError::HttpRequestDenied | HttpError::DestinationIpProhibited => Refusal::DestinationNotAllowed,
        HttpError::HttpRequestUriInvalid => Refusal::InvalidUrl,
        HttpError::ConnectionLimitReached => Refusal::TooManyRequests,
        _ => Refusal::RequestError,
    }
}
