//! A POST with an `Idempotency-Key` is carried out once, however often it is sent.

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, StatusCode, header};
use sha2::{Digest as _, Sha256};

use super::{MAX_BODY_BYTES, Shared, bearer};
use crate::{
    credential,
    error::{Error, Result},
    state::{Keyed, Remembered},
};

/// The header.
const HEADER: &str = "idempotency-key";

/// Longest key: any usual id fits.
const MAX_KEY_BYTES: usize = 128;

/// Largest answer to a POST: the rows of a query.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// What kept answers are sealed as.
const ANSWER: &str = "answer";

/// Header of an answer that was kept.
const REPLAYED: &str = "idempotency-replayed";

pub(super) async fn answer_once(State(control): State<Shared>, request: Request, next: Next) -> Response {
    let Some(key) = request.headers().get(HEADER).filter(|_| request.method() == Method::POST) else {
        return next.run(request).await;
    };
    let key = match key.to_str() {
        Ok(key) if (1..=MAX_KEY_BYTES).contains(&key.len()) => key.to_owned(),
        _ => {
            let message = format!("`Idempotency-Key` has 1 to {MAX_KEY_BYTES} visible ASCII characters");
            return Error::Invalid(message).into_response();
        }
    };
    answer_keyed(&control, key, request, next).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer_keyed(control: &Shared, key: String, request: Request, next: Next) -> Result<Response> {
    // Keys belong to a token: nobody learns what somebody else's key was answered with. Who
    // has no token that holds is answered as without a key.
    let Some(secret) = bearer(request.headers()) else { return Ok(next.run(request).await) };
    let Some(token) = control.state.token(credential::hash(secret)).await? else {
        return Err(Error::Unauthenticated);
    };
    let caller = token.id.to_string();
    let (parts, body) = request.into_parts();
    let body =
        to_bytes(body, MAX_BODY_BYTES).await.map_err(|_| Error::TooLarge { limit_bytes: MAX_BODY_BYTES })?;
    let mut digest = Sha256::new();
    digest.update(parts.uri.to_string());
    digest.update([0]);
    digest.update(&body);
    match control.state.remember(caller.clone(), key.clone(), digest.finalize().into()).await? {
        Remembered::New => {}
        Remembered::Other => return Err(Error::KeyReused),
        Remembered::Running => return Err(Error::KeyBusy),
        Remembered::Operation(id) => {
            let (row, team) = control.state.operation_and_team(id).await?;
            let answer = axum::Json(control.operation_view(&team, row));
            let mut response = (StatusCode::ACCEPTED, answer).into_response();
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
            return Ok(response);
        }
        Remembered::Answered { status, answer } => {
            let body = control.open_sealed(ANSWER, &answer)?;
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
            return Ok(response);
        }
    }
    let mut request = Request::from_parts(parts, Body::from(body));
    request.extensions_mut().insert(Keyed { caller: caller.clone(), key: key.clone() });
    let response = next.run(request).await;
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, MAX_ANSWER_BYTES).await else {
        control.state.forget_key(caller, key).await?;
        return Err(Error::State("an answer cannot be read".to_owned()));
    };
    // What failed may work the next time; only what was carried out, or is wrong for good, is kept.
    let is_final = parts.status.is_success()
        || matches!(parts.status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY);
    match is_final {
        true => {
            let sealed = control.seal(ANSWER, &body)?;
            control.state.keep_answer(caller, key, parts.status.as_u16(), sealed).await?;
        }
        false => control.state.forget_key(caller, key).await?,
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}
