//! The few pages for people: signing in by a link, and confirming the code of a machine.
//!
//! Who has signed in has a session in a cookie that only these pages look at, and that other
//! sites cannot make a browser send (`SameSite=Strict`). A session has no scopes: it can say
//! who somebody is, and nothing else.

use axum::{
    extract::State,
    response::{Html, IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{Anybody, Asked, Refused, Shared};
use crate::{
    access::{Caller, Role, Scopes},
    control::{Control, TokenOwner},
    credential,
    error::{Error, Result},
    names::{Label, TeamName, UserId, UserName},
    state::{Actor, now_ms},
};

/// How long a session holds.
const SESSION_LIFE_MS: u64 = 8 * 60 * 60 * 1_000;

/// Name of the cookie.
const COOKIE: &str = "wisp_session";

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LinkQuery {
    /// The code of the link.
    code: Option<String>,
}

/// What the page of a link sends.
#[derive(ToSchema)]
pub(super) struct SignInForm {
    code: String,
    user: String,
    team: String,
}

/// What the page for codes sends.
#[derive(ToSchema)]
pub(super) struct DeviceForm {
    code: String,
    /// `yes` once the person has seen what they confirm.
    confirm: String,
}

/// The page of a one-time link
#[utoipa::path(get, path = "/sign-in", tag = "pages", security(()), params(LinkQuery),
    responses((status = 200, content_type = "text/html"), Refused))]
pub(super) async fn sign_in_page(Asked(query): Asked<LinkQuery>) -> Response {
    let code = escape(&query.code.unwrap_or_default());
    page(
        "Sign in",
        &format!(
            "<form method=post><input type=hidden name=code value=\"{code}\">\
             <label>Your name, if you are new here <input name=user autofocus maxlength=39></label>\
             <label>A first team, if the server is new <input name=team maxlength=39></label>\
             <button>Sign in</button></form>\
             <p>Or from a terminal: <code>wisp login --link LINK</code></p>"
        ),
        StatusCode::OK,
    )
}

/// Use a one-time link
#[utoipa::path(post, path = "/sign-in", tag = "pages", security(()),
    request_body(content = SignInForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, content_type = "text/html"), Refused))]
pub(super) async fn submit_sign_in(
    State(control): State<Shared>,
    anybody: Anybody,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let form =
        SignInForm { code: field(&body, "code"), user: field(&body, "user"), team: field(&body, "team") };
    match use_link(&control, &anybody, &headers, form).await {
        Ok(response) => response,
        Err(error) => refuse(&error),
    }
}

/// The page on which a code is typed
#[utoipa::path(get, path = "/device", tag = "pages", security(()),
    responses((status = 200, content_type = "text/html"), Refused))]
pub(super) async fn device_page(State(control): State<Shared>, headers: HeaderMap) -> Response {
    match session(&control, &headers, "unknown").await {
        Ok(Some((_, name))) => page(
            "Confirm a sign-in",
            &format!(
                "<p>You are <b>{name}</b>. Type the code that the other machine shows.</p>\
                 <form method=post><label>Code <input name=code autofocus autocomplete=off \
                 placeholder=\"XXXX-XXXX\" maxlength=20></label><button>Go on</button></form>"
            ),
            StatusCode::OK,
        ),
        Ok(None) => {
            page("Confirm a sign-in", "<p>Sign in first, with your one-time link.</p>", StatusCode::OK)
        }
        Err(error) => refuse(&error),
    }
}

/// Confirm a code
#[utoipa::path(post, path = "/device", tag = "pages", security(()),
    request_body(content = DeviceForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, content_type = "text/html"), Refused))]
pub(super) async fn submit_device(
    State(control): State<Shared>,
    anybody: Anybody,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let form = DeviceForm { code: field(&body, "code"), confirm: field(&body, "confirm") };
    match confirm(&control, &anybody, &headers, form).await {
        Ok(response) => response,
        Err(error) => refuse(&error),
    }
}

async fn use_link(
    control: &Shared,
    anybody: &Anybody,
    headers: &HeaderMap,
    form: SignInForm,
) -> Result<Response> {
    check_origin(control, headers)?;
    let given = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let user = given(form.user).map(|name| UserName::new(&name)).transpose()?;
    let team = given(form.team).map(|name| TeamName::new(&name)).transpose()?;
    let present = session(control, headers, &anybody.from).await?.map(|(id, _)| id);
    let maker = control.data_key_maker();
    let hash = credential::hash(&form.code);
    let signed_in = control.state.accept(anybody.from.clone(), hash, present, user, team, maker).await?;
    let name = signed_in.name.clone();
    let actor = Actor { name: name.to_string(), token: None, from: anybody.from.clone() };
    let owner = TokenOwner { user: Some(signed_in), team: None, role: Role::Viewer };
    let expires_ms = Some(now_ms().saturating_add(SESSION_LIFE_MS));
    let token = control.issue(actor, owner, Label::new("browser")?, Scopes::NONE, expires_ms).await?;
    let secure = if control.settings.public_url.starts_with("https:") { "; Secure" } else { "" };
    let cookie = format!(
        "{COOKIE}={}; HttpOnly; SameSite=Strict; Path=/; Max-Age={}{secure}",
        token.secret,
        SESSION_LIFE_MS / 1_000
    );
    let url = escape(control.settings.public_url.trim_end_matches('/'));
    let mut response = page(
        "Signed in",
        &format!(
            "<p>You are <b>{name}</b>.</p><p>In a terminal: <code>wisp login {url}</code>, then \
             <a href=\"/device\">type its code</a>.</p>"
        ),
        StatusCode::OK,
    );
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

async fn confirm(
    control: &Shared,
    anybody: &Anybody,
    headers: &HeaderMap,
    form: DeviceForm,
) -> Result<Response> {
    check_origin(control, headers)?;
    let session = session(control, headers, &anybody.from).await?;
    let (user, name) = session.ok_or(Error::Unauthenticated)?;
    control.count_attempt(user)?;
    let code = credential::normal_code(&form.code);
    let hash = credential::hash(&code);
    if form.confirm != "yes" {
        let machine = escape(&control.state.device_name(hash).await?);
        return Ok(page(
            "Confirm a sign-in",
            &format!(
                "<p>Let <b>{machine}</b> act as <b>{name}</b>? Only if it is yours and shows \
                 <code>{code}</code>.</p><form method=post><input type=hidden name=code value=\"{code}\">\
                 <button name=confirm value=yes>Yes, it is mine</button></form>"
            ),
            StatusCode::OK,
        ));
    }
    let actor = Actor { name: name.to_string(), token: None, from: anybody.from.clone() };
    control.state.confirm_device(actor, hash, user).await?;
    Ok(page("Confirmed", "<p>Go back to your terminal.</p>", StatusCode::OK))
}

/// Who a browser belongs to.
async fn session(control: &Control, headers: &HeaderMap, from: &str) -> Result<Option<(UserId, UserName)>> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let secret = cookies
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then_some(value));
    let Some(secret) = secret else { return Ok(None) };
    match control.authenticate(secret, from).await {
        Ok(Caller { user, .. }) => Ok(user),
        Err(Error::Unauthenticated) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A form that another site sent is none of ours.
fn check_origin(control: &Control, headers: &HeaderMap) -> Result<()> {
    let Some(origin) = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok()) else {
        return Ok(());
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let own = control.settings.public_url.trim_end_matches('/');
    let is_own = origin == own || origin.split_once("://").is_some_and(|(_, of_origin)| of_origin == host);
    match is_own {
        true => Ok(()),
        false => Err(Error::invalid("this form comes from another site")),
    }
}

/// A field of a form; empty if it is not there.
fn field(body: &[u8], wanted: &str) -> String {
    let mut fields = url::form_urlencoded::parse(body);
    fields.find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

fn refuse(error: &Error) -> Response {
    let hint = error.hint().map(|hint| format!("<p>{}</p>", escape(&hint))).unwrap_or_default();
    let status = error.status();
    let message = match status.is_server_error() {
        true => {
            tracing::error!(%error, "a page failed");
            "the control plane failed".to_owned()
        }
        false => escape(&error.to_string()),
    };
    page("That did not work", &format!("<p>{message} ({})</p>{hint}", error.code()), status)
}

fn page(title: &str, body: &str, status: StatusCode) -> Response {
    let text = format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width\"><title>{title} - Wisp</title>\
         <style>body{{font:16px/1.5 sans-serif;max-width:32rem;margin:4rem auto;padding:0 1rem}}\
         label{{display:block;margin:1rem 0}}input{{display:block;font:inherit;width:100%}}</style>\
         <h1>{title}</h1>{body}</html>"
    );
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
        ),
    ];
    (status, headers, Html(text)).into_response()
}

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut escaped, character| {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
        escaped
    })
}
