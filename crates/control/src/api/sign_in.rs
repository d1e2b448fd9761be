//! The ways in, for programs. The pages for people are in `pages`.

use axum::{Json as Answer, extract::State};
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Anybody, Json, Network, Refused, Shared};
use crate::{
    access::{Role, Scopes},
    control::{Control, TokenOwner},
    credential,
    error::{Error, Result},
    model::{DeviceSignIn, NewToken},
    names::{Label, TeamName, UserName},
    state::{Actor, SignedIn, now_ms},
};

/// How long the token of a sign-in holds.
const SIGN_IN_LIFE_MS: u64 = 90 * 24 * 60 * 60 * 1_000;

/// How long a code may wait for its confirmation: long enough to find the page, short enough
/// that guessing it is hopeless.
const DEVICE_LIFE_MS: u64 = 15 * 60 * 1_000;

/// How often a client asks whether the code was confirmed.
const POLL_INTERVAL_SECONDS: u64 = 2;

/// The longest name of a machine that is shown on the page.
const MAX_DEVICE_NAME_BYTES: usize = 100;

/// Signs in by a link.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SignIn {
    /// The `code` of the link.
    code: String,
    /// What to be called, for who is new here.
    user: Option<UserName>,
    /// A team to make at once, for the first operator.
    team: Option<TeamName>,
    /// What to call the token.
    name: Option<Label>,
}

/// Begins a sign-in by code.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BeginDevice {
    /// What the machine is called, for the person who confirms.
    name: Option<String>,
}

/// Asks whether a sign-in was confirmed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FinishDevice {
    /// What `POST /api/v1/device` gave.
    device_code: String,
}

/// Sign in by a one-time link
#[utoipa::path(post, path = "/api/v1/sign-in", tag = "sign-in", security(()), request_body = SignIn,
    responses((status = 201, body = NewToken), Refused))]
pub(super) async fn sign_in(
    State(control): State<Shared>,
    anybody: Anybody,
    Json(body): Json<SignIn>,
) -> Result<(StatusCode, Answer<NewToken>)> {
    let present = anybody.caller.and_then(|caller| caller.user).map(|(id, _)| id);
    let hash = credential::hash(&body.code);
    let from = anybody.from.clone();
    let maker = control.data_key_maker();
    let signed_in = control.state.accept(from, hash, present, body.user, body.team, maker).await?;
    let name = body.name.map_or_else(|| Label::new("sign-in"), Ok)?;
    let token = token_for(&control, signed_in, name, anybody.from).await?;
    Ok((StatusCode::CREATED, Answer(token)))
}

/// Begin a sign-in that a person confirms on a page
#[utoipa::path(post, path = "/api/v1/device", tag = "sign-in", security(()), request_body = BeginDevice,
    responses((status = 201, body = DeviceSignIn), Refused))]
pub(super) async fn begin_device(
    State(control): State<Shared>,
    Network(network): Network,
    Json(body): Json<BeginDevice>,
) -> Result<(StatusCode, Answer<DeviceSignIn>)> {
    let name = body.name.unwrap_or_else(|| "a machine".to_owned());
    if name.len() > MAX_DEVICE_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "`name` has at most {MAX_DEVICE_NAME_BYTES} bytes, none of control"
        )));
    }
    let device_code = credential::random_hex()?;
    let user_code = credential::random_code()?;
    let expires_ms = now_ms().saturating_add(DEVICE_LIFE_MS);
    control
        .state
        .begin_device(network, credential::hash(&device_code), credential::hash(&user_code), name, expires_ms)
        .await?;
    let page = format!("{}/device", control.settings.public_url.trim_end_matches('/'));
    let interval_seconds = POLL_INTERVAL_SECONDS;
    let answer = DeviceSignIn { device_code, user_code, page, interval_seconds, expires_ms };
    Ok((StatusCode::CREATED, Answer(answer)))
}

/// Ask whether the sign-in was confirmed
///
/// `WISP-E0913` until it was; then the token, once.
#[utoipa::path(post, path = "/api/v1/device/token", tag = "sign-in", security(()), request_body = FinishDevice,
    responses((status = 201, body = NewToken), Refused))]
pub(super) async fn finish_device(
    State(control): State<Shared>,
    anybody: Anybody,
    Json(body): Json<FinishDevice>,
) -> Result<(StatusCode, Answer<NewToken>)> {
    let signed_in = control.state.finish_device(credential::hash(&body.device_code)).await?;
    let token = token_for(&control, signed_in, Label::new("sign-in")?, anybody.from).await?;
    Ok((StatusCode::CREATED, Answer(token)))
}

/// The token of somebody who just signed in: it may do all that they may.
async fn token_for(control: &Control, user: SignedIn, name: Label, from: String) -> Result<NewToken> {
    let actor = Actor { name: user.name.to_string(), token: None, from };
    let owner = TokenOwner { user: Some(user), team: None, role: Role::Owner };
    let expires_ms = Some(now_ms().saturating_add(SIGN_IN_LIFE_MS));
    control.issue(actor, owner, name, Scopes::all(), expires_ms).await
}
