//! What concerns the server as a whole.

use axum::{Extension, Json as Answer, extract::State, response::IntoResponse};
use http::{StatusCode, header};

use super::{Asked, Operator, PageQuery, Refused, Shared, Signed, page};
use crate::{
    access::{Scope, Scopes},
    error::Result,
    model::{AuditEntry, GarbageReport, Health, Page, Team, Version, Whoami},
    state::Actor,
};

/// Most teams that `whoami` names; the list of teams has pages.
const MAX_SHOWN_TEAMS_COUNT: usize = 100;

/// The OpenAPI document, as text.
#[derive(Clone)]
pub(super) struct Document(bytes::Bytes);

impl Document {
    pub(super) fn new(document: &utoipa::openapi::OpenApi) -> Self {
        Self(document.to_json().unwrap_or_default().into())
    }
}

/// Whether the server is well
#[utoipa::path(get, path = "/api/v1/health", tag = "server", security(()),
    responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(super) async fn health(State(control): State<Shared>) -> impl IntoResponse {
    let ailments = control.platform.ailments().await;
    for ailment in &ailments {
        tracing::warn!(ailment, "the server is not well");
    }
    let is_well = ailments.is_empty() && control.state.has_users().await.is_ok();
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Answer(Health { is_well }))
}

/// What the server is
#[utoipa::path(get, path = "/api/v1/version", tag = "server", security(()),
    responses((status = 200, body = Version)))]
pub(super) async fn version(State(control): State<Shared>) -> Answer<Version> {
    Answer(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: "v1".to_owned(),
        domain: control.settings.domain.clone(),
    })
}

/// This document
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "server", security(()),
    responses((status = 200, content_type = "application/json")))]
pub(super) async fn document(Extension(Document(text)): Extension<Document>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], text)
}

/// Who the token belongs to, and what it reaches
#[utoipa::path(get, path = "/api/v1/whoami", tag = "server", responses((status = 200, body = Whoami), Refused))]
pub(super) async fn whoami(State(control): State<Shared>, Signed(caller): Signed) -> Result<Answer<Whoami>> {
    let teams = match (&caller.user, &caller.team) {
        (Some((user, _)), None) => control.state.teams(*user, false, None, MAX_SHOWN_TEAMS_COUNT).await?,
        (Some((user, _)), Some((_, only))) => {
            let all = control.state.teams(*user, false, None, MAX_SHOWN_TEAMS_COUNT).await?;
            all.into_iter().filter(|team| team.name == *only).collect()
        }
        (None, Some((_, team))) => {
            vec![Team { name: team.clone(), created_ms: 0, role: Some(caller.token_role) }]
        }
        (None, None) => Vec::new(),
    };
    let may_operate: Scopes = match caller.is_operator {
        true => Scopes::all(),
        false => Scope::ALL.into_iter().filter(|scope| *scope != Scope::ServerAdmin).collect(),
    };
    Ok(Answer(Whoami {
        user: caller.user.map(|(_, name)| name),
        is_operator: caller.is_operator,
        token: caller.token,
        scopes: caller.scopes.and(may_operate).iter().collect(),
        teams,
    }))
}

/// What nobody needs any more: images of releases that are gone, and what was made of them
#[utoipa::path(get, path = "/api/v1/garbage", tag = "server",
    responses((status = 200, body = GarbageReport), Refused))]
pub(super) async fn list_garbage(
    State(control): State<Shared>,
    _operator: Operator,
) -> Result<Answer<GarbageReport>> {
    Ok(Answer(control.collect_garbage(true).await?))
}

/// Remove what nobody needs any more
///
/// The server does that every hour by itself. What was pushed, asked for or deployed within a
/// day stays.
#[utoipa::path(post, path = "/api/v1/garbage", tag = "server",
    responses((status = 200, body = GarbageReport), Refused))]
pub(super) async fn remove_garbage(
    State(control): State<Shared>,
    operator: Operator,
) -> Result<Answer<GarbageReport>> {
    let report = control.collect_garbage(false).await?;
    let subject = format!("{} bytes", report.bytes);
    control.state.note(Actor::from(&operator.caller), None, "garbage.remove", subject).await?;
    Ok(Answer(report))
}

/// What was done to what belongs to no team, the last first
#[utoipa::path(get, path = "/api/v1/audit", tag = "server", params(PageQuery),
    responses((status = 200, body = Page<AuditEntry>), Refused))]
pub(super) async fn audit(
    State(control): State<Shared>,
    _operator: Operator,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<AuditEntry>>> {
    let limit = query.limit()?;
    let entries = control.state.audit(None, query.before()?, limit + 1).await?;
    Ok(Answer(page(entries, limit, |entry| entry.number.to_string())))
}
