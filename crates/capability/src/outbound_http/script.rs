//! Answers from a script, in the place of the network: for tests of apps.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use wasmtime_wasi_http::{Error as HttpError, RequestOptions, WasiBody};

use super::client::{self, RequestSent};
use crate::{VirtualWorld, virtual_world::Busy};

/// The largest request that is gathered for a script, and the largest response that is
/// gathered while it is passed on.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Answers requests of components in the place of the network. They were checked
/// against the allow-list already.
pub trait Script: Send + Sync {
    /// What becomes of a request.
    fn answer(&self, component: &str, request: &Request<Bytes>) -> Scripted;

    /// What came of a request that was passed on; nothing if it failed.
    fn passed_on(&self, component: &str, request: &Request<Bytes>, response: Option<&Response<Bytes>>);

    /// A request was not allowed and so never sent.
    fn refused(&self, component: &str, method: &Method, uri: &Uri);

    /// A component asked for something on the network that is no HTTP, such as `redis`, and
    /// got an error.
    fn unavailable(&self, component: &str, family: &str, place: &str);
}

/// What becomes of a request.
pub enum Scripted {
    /// It gets this response, after so much time.
    Response(Response<Bytes>, Duration),
    /// The guest is told, after so much time, that the destination cannot be reached.
    Unreachable(Duration),
    /// It is sent over the network, and the script is told what came of it.
    PassOn,
}

type Answer = Result<(Response<WasiBody>, RequestSent), HttpError>;

/// Has a script answer a request. `pass_on` sends it over the network.
pub(super) async fn answer<P: Future<Output = Answer>>(
    script: &dyn Script,
    world: &VirtualWorld,
    component: &str,
    request: Request<WasiBody>,
    options: RequestOptions,
    pass_on: impl FnOnce(Request<WasiBody>, RequestOptions) -> P,
) -> Answer {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
    let body = body.map_err(|_| HttpError::HttpRequestBodySize(None))?.to_bytes();
    let request = Request::from_parts(parts, body);
    let response = match script.answer(component, &request) {
        Scripted::Response(response, delay) => {
            sleep(world, delay, client::bounded(options.first_byte_timeout), || {
                HttpError::ConnectionReadTimeout
            })
            .await?;
            response
        }
        Scripted::Unreachable(delay) => {
            sleep(world, delay, client::bounded(options.connect_timeout), || HttpError::ConnectionTimeout)
                .await?;
            return Err(HttpError::DestinationUnavailable);
        }
        Scripted::PassOn => {
            let _busy: Option<Busy> = world.busy();
            let sent = pass_on(request.clone().map(whole), options).await;
            let gathered = match sent {
                Ok((response, _)) => gather(response).await,
                Err(error) => Err(error),
            };
            script.passed_on(component, &request, gathered.as_ref().ok());
            gathered?
        }
    };
    Ok((response.map(whole), Box::new(std::future::ready(Ok(())))))
}

/// Waits for an answer, for as long as the guest does.
async fn sleep(
    world: &VirtualWorld,
    delay: Duration,
    timeout: Duration,
    timed_out: impl FnOnce() -> HttpError,
) -> Result<(), HttpError> {
    let Some(time) = world.time.as_ref().filter(|_| !delay.is_zero()) else { return Ok(()) };
    time.sleep(delay.min(timeout)).await;
    if delay < timeout { Ok(()) } else { Err(timed_out()) }
}

async fn gather(response: Response<WasiBody>) -> Result<Response<Bytes>, HttpError> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
    let body = body.map_err(|_| HttpError::HttpResponseBodySize(None))?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

fn whole(body: Bytes) -> WasiBody {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}
