//! The HTTP API: one function per route, declared once with its OpenAPI description.
//!
//! Every handler names what it needs of the caller in its type: [`Anybody`], [`Signed`],
//! [`Operator`], or [`In`] a team with a scope. There is no other way to the team's id, so no
//! handler can forget to ask. What the caller may do is checked before anything is looked for.

mod apps;
mod data;
mod idempotency;
mod pages;
mod people;
mod releases;
mod resources;
mod server;
mod sign_in;

use std::{
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Query, RawPathParams, Request},
    middleware,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::{
    IntoParams, IntoResponses, Modify, OpenApi,
    openapi::{
        Content, Object, RefOr, Required, ResponseBuilder, Type,
        path::{ParameterBuilder, ParameterIn},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    access::{Caller, Scope},
    control::{Control, check_scope},
    error::{Error, Result},
    model::{ErrorAnswer, ErrorBody, Page},
    names::{AppName, TeamId, TeamName, UserId, UserName},
    state::{AppRow, Keyed},
};

/// Largest JSON body. The largest thing in one is a value of a variable.
const MAX_BODY_BYTES: usize = 1 << 20;

/// How many items a page has, unless it is said.
const DEFAULT_PAGE_COUNT: usize = 50;

/// How many items a page has at most.
const MAX_PAGE_COUNT: usize = 500;

/// What the API knows.
type Shared = Arc<Control>;

/// The address a request comes from. Whoever serves the router puts it into the request's
/// extensions; the audit log names it.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The API and the pages of the control plane.
pub fn router(control: Arc<Control>) -> Router {
    let (router, mut document) = routes_of().split_for_parts();
    Finish.modify(&mut document);
    let router = router
        .fallback(async || Error::NotFound { noun: "page" })
        .method_not_allowed_fallback(async || Error::Method)
        .layer(middleware::from_fn_with_state(Arc::clone(&control), idempotency::answer_once))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(axum::Extension(server::Document::new(&document)));
    router.with_state(control)
}

/// The OpenAPI document of [`router`].
pub fn openapi() -> utoipa::openapi::OpenApi {
    let mut document = routes_of().into_openapi();
    Finish.modify(&mut document);
    document
}

fn routes_of() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(server::health))
        .routes(routes!(server::version))
        .routes(routes!(server::document))
        .routes(routes!(server::whoami))
        .routes(routes!(server::audit))
        .routes(routes!(server::list_garbage, server::remove_garbage))
        .routes(routes!(sign_in::sign_in))
        .routes(routes!(sign_in::begin_device))
        .routes(routes!(sign_in::finish_device))
        .routes(routes!(pages::sign_in_page, pages::submit_sign_in))
        .routes(routes!(pages::device_page, pages::submit_device))
        .routes(routes!(people::list_users, people::invite_user))
        .routes(routes!(people::remove_user))
        .routes(routes!(people::own_link))
        .routes(routes!(people::list_teams, people::create_team))
        .routes(routes!(people::get_team, people::remove_team))
        .routes(routes!(people::list_members))
        .routes(routes!(people::set_role, people::remove_member))
        .routes(routes!(people::invite_member))
        .routes(routes!(people::list_tokens, people::create_token))
        .routes(routes!(people::remove_token))
        .routes(routes!(people::list_team_tokens, people::create_team_token))
        .routes(routes!(people::remove_team_token))
        .routes(routes!(people::team_audit))
        .routes(routes!(apps::list_apps, apps::create_app))
        .routes(routes!(apps::get_app, apps::remove_app))
        .routes(routes!(apps::list_variables, apps::change_variables))
        .routes(routes!(apps::change_secrets))
        .routes(routes!(apps::list_domains, apps::add_domain))
        .routes(routes!(apps::remove_domain))
        .routes(routes!(apps::verify_domain))
        .routes(routes!(apps::logs))
        .routes(routes!(apps::team_usage))
        .routes(routes!(apps::usage))
        .routes(routes!(releases::make_plan))
        .routes(routes!(releases::list_releases, releases::create_release))
        .routes(routes!(releases::get_release))
        .routes(routes!(releases::rollback))
        .routes(routes!(releases::list_operations))
        .routes(routes!(releases::get_operation))
        .routes(routes!(resources::list_resources, resources::create_resource))
        .routes(routes!(resources::get_resource, resources::change_resource, resources::remove_resource))
        .routes(routes!(resources::export, resources::import))
        .routes(routes!(resources::list_links))
        .routes(routes!(resources::set_link, resources::remove_link))
        .routes(routes!(data::list_keys))
        .routes(routes!(data::get_key, data::set_key, data::remove_key))
        .routes(routes!(data::query))
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Wisp",
    description = "Teams, apps, releases and resources of a Wisp cloud. Every refusal has the body \
                   `{\"error\": {\"code\", \"message\", \"hint\"}}`. Lists have pages: send `next` as `after`. \
                   A POST with an `Idempotency-Key` is carried out once, however often it is sent.",
    version = "1",
    license(name = "Apache-2.0 WITH LLVM-exception"),
    contact()
))]
struct Document;

/// Adds what is the same for every route.
struct Finish;

impl Modify for Finish {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let key = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some("Carry it out once, however often it is sent with this key within a day"))
            .schema(Some(Object::with_type(Type::String)))
            .build();
        for path in document.paths.paths.values_mut() {
            // Keys belong to a token: what is for everybody has none.
            let posted = path.post.as_mut().filter(|operation| operation.security.is_none());
            if let Some(operation) = posted {
                operation.parameters.get_or_insert_default().push(key.clone());
            }
        }
        let bearer =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("A token: `wisp_…`")).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
        document.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    }
}

/// What every route may answer instead.
struct Refused;

impl IntoResponses for Refused {
    fn responses() -> std::collections::BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let content = Content::new(Some(utoipa::openapi::Ref::from_schema_name("ErrorAnswer")));
        let response = ResponseBuilder::new()
            .description("Refused, or not there")
            .content("application/json", content)
            .build();
        [("4XX".to_owned(), RefOr::T(response))].into()
    }
}

/// Nobody in particular: what is here is for everybody.
struct Anybody {
    from: String,
    /// Who it is, if they have a token that holds.
    caller: Option<Caller>,
}

/// The client of a request, as far as one can be told from another: an IPv4 address, or a
/// network of IPv6, since whoever has one has all of its addresses.
struct Network(String);

/// Somebody with a token that holds.
struct Signed(Caller);

/// A person who works with their own tokens.
struct Person {
    caller: Caller,
    id: UserId,
    name: UserName,
}

/// Somebody who operates the server.
struct Operator {
    caller: Caller,
    id: UserId,
}

/// Somebody in the team of the address, who may do `S` there.
struct In<S> {
    caller: Caller,
    team: TeamId,
    name: TeamName,
    scopes: crate::access::Scopes,
    /// The idempotency key of the request.
    keyed: Option<Keyed>,
    scope: PhantomData<S>,
}

/// A scope as a type.
trait Needs: Send + 'static {
    const SCOPE: Scope;
}

macro_rules! needs {
    ($($name:ident),*) => {
        mod scope {
            $(pub(super) struct $name;
            impl super::Needs for $name {
                const SCOPE: super::Scope = super::Scope::$name;
            })*
        }
    };
}

needs!(AppsRead, AppsDeploy, SecretsWrite, LogsRead, DataRead, DataWrite, ResourcesWrite, TeamAdmin);

/// A JSON body.
struct Json<T>(T);

/// What comes after `?`.
struct Asked<T>(T);

/// A place in an address: what is no name is not there either.
struct At<T>(T);

/// Which part of a list is wanted.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct PageQuery {
    /// How many items at most, up to 500 [default: 50].
    limit: Option<usize>,
    /// Go on after this: `next` of the page before.
    after: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the team is read where it is checked, by `In`")]
struct InTeam {
    /// The team's name.
    team: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the team is read where it is checked, by `In`")]
struct InApp {
    /// The team's name.
    team: String,
    /// The app's name.
    app: String,
}

impl PageQuery {
    fn limit(&self) -> Result<usize> {
        match self.limit {
            None => Ok(DEFAULT_PAGE_COUNT),
            Some(limit @ 1..=MAX_PAGE_COUNT) => Ok(limit),
            Some(_) => Err(Error::invalid(format!("`limit` is a number from 1 to {MAX_PAGE_COUNT}"))),
        }
    }

    /// Where to go on in a list that is ordered by number, the last first.
    fn before(&self) -> Result<Option<u64>> {
        let number = self.after.as_deref().map(str::parse::<u64>).transpose();
        number.map_err(|_| Error::invalid("`after` is the `next` of the page before"))
    }
}

/// A page of what was read with a limit of one more than are wanted.
fn page<T>(mut items: Vec<T>, limit: usize, key: impl Fn(&T) -> String) -> Page<T> {
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| has_more).map(key);
    Page { items, next }
}

/// A page of a list that is bounded, was read whole, and is in the order of its keys.
fn part<T>(items: Vec<T>, query: &PageQuery, key: impl Fn(&T) -> String) -> Result<Page<T>> {
    let limit = query.limit()?;
    let rest = items.into_iter().filter(|item| query.after.as_ref().is_none_or(|after| key(item) > *after));
    Ok(page(rest.take(limit + 1).collect(), limit, &key))
}

impl<S> In<S> {
    /// An app of the team.
    async fn app(&self, control: &Control, name: &str) -> Result<AppRow> {
        let name = AppName::new(name).map_err(|_| Error::NotFound { noun: "app" })?;
        control.state.app(self.team, name).await
    }

    /// Refuses whoever lacks a second scope.
    fn also(&self, scope: Scope) -> Result<()> {
        check_scope(&self.caller, self.scopes, scope)
    }
}

impl FromRequestParts<Shared> for Anybody {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, control: &Shared) -> Result<Self> {
        let from = peer(parts);
        let caller = match bearer(&parts.headers) {
            Some(secret) => Some(control.authenticate(secret, &from).await?),
            None => None,
        };
        Ok(Self { from, caller })
    }
}

impl FromRequestParts<Shared> for Network {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self> {
        let peer = parts.extensions.get::<Peer>();
        Ok(Self(match peer.map(|Peer(address)| address.ip().to_canonical()) {
            Some(IpAddr::V4(address)) => address.to_string(),
            Some(IpAddr::V6(address)) => {
                let [a, b, c, d, ..] = address.segments();
                format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
            }
            None => "unknown".to_owned(),
        }))
    }
}

impl FromRequestParts<Shared> for Signed {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, control: &Shared) -> Result<Self> {
        let secret = bearer(&parts.headers).ok_or(Error::Unauthenticated)?;
        Ok(Self(control.authenticate(secret, &peer(parts)).await?))
    }
}

impl FromRequestParts<Shared> for Person {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, control: &Shared) -> Result<Self> {
        let Signed(caller) = Signed::from_request_parts(parts, control).await?;
        let forbidden = Error::Forbidden { scope: Scope::UserAdmin.as_str(), is_role: false };
        match caller.user.clone() {
            Some((id, name)) if caller.team.is_none() && caller.scopes.contains(Scope::UserAdmin) => {
                Ok(Self { caller, id, name })
            }
            _ => Err(forbidden),
        }
    }
}

impl FromRequestParts<Shared> for Operator {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, control: &Shared) -> Result<Self> {
        let Signed(caller) = Signed::from_request_parts(parts, control).await?;
        let has_scope = caller.scopes.contains(Scope::ServerAdmin);
        match caller.user.clone() {
            Some((id, _)) if caller.is_operator && caller.team.is_none() && has_scope => {
                Ok(Self { caller, id })
            }
            _ => Err(Error::Forbidden { scope: Scope::ServerAdmin.as_str(), is_role: !caller.is_operator }),
        }
    }
}

impl<S: Needs> FromRequestParts<Shared> for In<S> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, control: &Shared) -> Result<Self> {
        let Signed(caller) = Signed::from_request_parts(parts, control).await?;
        let not_found = || Error::NotFound { noun: "team" };
        let params = RawPathParams::from_request_parts(parts, control).await.map_err(|_| not_found())?;
        let name = params.iter().find(|(key, _)| *key == "team").map(|(_, value)| value);
        let name = name.and_then(|name| TeamName::new(name).ok()).ok_or_else(not_found)?;
        let (team, scopes) = control.reach(&caller, &name).await?.ok_or_else(not_found)?;
        check_scope(&caller, scopes, S::SCOPE)?;
        let keyed = parts.extensions.get::<Keyed>().cloned();
        Ok(Self { caller, team, name, scopes, keyed, scope: PhantomData })
    }
}

impl<T: DeserializeOwned> FromRequest<Shared> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, control: &Shared) -> Result<Self> {
        let bytes =
            bytes::Bytes::from_request(request, control).await.map_err(|rejection| {
                match rejection.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge { limit_bytes: MAX_BODY_BYTES },
                    _ => Error::invalid("the body cannot be read"),
                }
            })?;
        parse_body(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned> FromRequestParts<Shared> for Asked<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, control: &Shared) -> Result<Self> {
        let query = Query::<T>::from_request_parts(parts, control).await;
        query.map(|Query(value)| Self(value)).map_err(|rejection| Error::invalid(rejection.body_text()))
    }
}

impl<T: DeserializeOwned + Send> FromRequestParts<Shared> for At<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, control: &Shared) -> Result<Self> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, control).await;
        path.map(|axum::extract::Path(value)| Self(value)).map_err(|_| Error::NotFound { noun: "page" })
    }
}

/// Reads a JSON body. An empty one is as good as `{}`.
fn parse_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| Error::invalid(format!("the body is wrong: {error}")))
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        let message = match status.is_server_error() && !matches!(self, Self::Platform(_) | Self::Stopping) {
            true => {
                tracing::error!(error = %self, "a request failed");
                // What went wrong inside is for the operator.
                "the control plane failed".to_owned()
            }
            false => self.to_string(),
        };
        let body =
            ErrorAnswer { error: ErrorBody { code: self.code().to_owned(), message, hint: self.hint() } };
        let mut response = (status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        match self {
            Self::Unauthenticated => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::TooManyAttempts { retry_after } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)));
            }
            Self::KeyBusy | Self::Stopping => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim())
}

fn peer(parts: &Parts) -> String {
    parts
        .extensions
        .get::<Peer>()
        .map_or_else(|| "unknown".to_owned(), |Peer(address)| address.ip().to_string())
}

/// Reads API bodies of every shape, for those who look for one that makes it panic.
#[doc(hidden)]
pub fn parse_any_body(bytes: &[u8]) {
    drop(parse_body::<sign_in::SignIn>(bytes));
    drop(parse_body::<people::NewTokenBody>(bytes));
    drop(parse_body::<apps::VariablesChange>(bytes));
    drop(parse_body::<releases::NewReleaseBody>(bytes));
    drop(parse_body::<resources::NewResourceBody>(bytes));
    drop(parse_body::<data::QueryBody>(bytes));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a failed unwrap is a failed test")]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pages_together_are_the_list(names in prop::collection::btree_set("[a-z]{1,4}", 0..40), limit in 1_usize..9) {
            let (mut seen, mut after) = (Vec::new(), None::<String>);
            loop {
                let rest = names.iter().filter(|name| after.as_ref().is_none_or(|after| *name > after));
                let got = page(rest.take(limit + 1).cloned().collect(), limit, String::clone);
                prop_assert!(got.items.len() <= limit);
                seen.extend(got.items);
                match got.next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
            prop_assert_eq!(seen, names.into_iter().collect::<Vec<_>>());
        }
    }
}
