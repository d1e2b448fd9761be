//! What is in key-value stores and databases, for people.

use axum::{
    Json as Answer,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{StatusCode, header};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    Asked, At, In, Json, PageQuery, Refused, Shared, page,
    resources::resource_of,
    scope::{DataRead, DataWrite},
};
use crate::{
    access::Scope,
    error::{Error, Result},
    model::Page,
    platform::{MAX_KEY_BYTES, ResourceKind, SqlAnswer, SqlStatement},
    state::Actor,
};

/// Longest SQL statement.
const MAX_STATEMENT_BYTES: usize = 100 << 10;

/// Parameters of a statement.
const MAX_PARAMETERS_COUNT: usize = 1_000;

/// Rows that come back, unless fewer are wanted.
const MAX_ROWS_COUNT: usize = 10_000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the team is read where it is checked, by `In`")]
pub(super) struct OfStore {
    /// The team's name.
    team: String,
    /// The resource's name.
    resource: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the team is read where it is checked, by `In`")]
pub(super) struct OfKey {
    /// The team's name.
    team: String,
    /// The resource's name.
    resource: String,
    /// The key.
    key: String,
}

/// Which keys are wanted.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct KeysQuery {
    /// Only keys that begin so.
    #[serde(default)]
    prefix: String,
    /// How many items at most, up to 500 [default: 50].
    limit: Option<usize>,
    /// Go on after this: `next` of the page before.
    after: Option<String>,
}

/// Runs an SQL statement.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct QueryBody {
    /// The statement.
    statement: String,
    /// Values of its parameters: null, booleans, numbers and texts.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    parameters: Vec<serde_json::Value>,
    /// Whether it may change anything. This needs `data:write`.
    #[serde(default)]
    may_write: bool,
    /// How many rows may come back.
    max_rows: Option<usize>,
}

/// The keys of a key-value store, in order
#[utoipa::path(get, path = "/api/v1/teams/{team}/key-value/{resource}/keys", tag = "data",
    params(OfStore, KeysQuery), responses((status = 200, body = Page<String>), Refused))]
pub(super) async fn list_keys(
    State(control): State<Shared>,
    team: In<DataRead>,
    At(path): At<OfStore>,
    Asked(query): Asked<KeysQuery>,
) -> Result<Answer<Page<String>>> {
    let limit = PageQuery { limit: query.limit, after: None }.limit()?;
    let store = resource_of(&control, team.team, ResourceKind::KeyValue, &path.resource).await?;
    let after = query.after.as_deref();
    let keys = control.platform.key_value_list(&store, &query.prefix, after, limit + 1).await?;
    Ok(Answer(page(keys, limit, String::clone)))
}

/// The value of a key
#[utoipa::path(get, path = "/api/v1/teams/{team}/key-value/{resource}/keys/{key}", tag = "data", params(OfKey),
    responses((status = 200, content_type = "application/octet-stream"), Refused))]
pub(super) async fn get_key(
    State(control): State<Shared>,
    team: In<DataRead>,
    At(path): At<OfKey>,
) -> Result<Response> {
    let store = resource_of(&control, team.team, ResourceKind::KeyValue, &path.resource).await?;
    let value = control.platform.key_value_get(&store, &path.key).await?;
    let value = value.ok_or(Error::NotFound { noun: "key" })?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], value).into_response())
}

/// Set a key to the body
#[utoipa::path(put, path = "/api/v1/teams/{team}/key-value/{resource}/keys/{key}", tag = "data", params(OfKey),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), Refused))]
pub(super) async fn set_key(
    State(control): State<Shared>,
    team: In<DataWrite>,
    At(path): At<OfKey>,
    value: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<StatusCode> {
    let store = resource_of(&control, team.team, ResourceKind::KeyValue, &path.resource).await?;
    let value = value.map_err(|_| Error::TooLarge { limit_bytes: super::MAX_BODY_BYTES })?;
    if !(1..=MAX_KEY_BYTES).contains(&path.key.len()) {
        return Err(Error::invalid(format!("a key has 1 to {MAX_KEY_BYTES} bytes here")));
    }
    control.platform.key_value_set(&store, &path.key, value).await?;
    let subject = format!("{} key {}", store.name, path.key);
    control.state.note(Actor::from(&team.caller), team.team, "key.set", subject).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove a key, if it is there
#[utoipa::path(delete, path = "/api/v1/teams/{team}/key-value/{resource}/keys/{key}", tag = "data",
    params(OfKey), responses((status = 204), Refused))]
pub(super) async fn remove_key(
    State(control): State<Shared>,
    team: In<DataWrite>,
    At(path): At<OfKey>,
) -> Result<StatusCode> {
    let store = resource_of(&control, team.team, ResourceKind::KeyValue, &path.resource).await?;
    control.platform.key_value_delete(&store, &path.key).await?;
    let subject = format!("{} key {}", store.name, path.key);
    control.state.note(Actor::from(&team.caller), team.team, "key.remove", subject).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Run an SQL statement
#[utoipa::path(post, path = "/api/v1/teams/{team}/sqlite/{resource}/query", tag = "data", params(OfStore),
    request_body = QueryBody, responses((status = 200, body = SqlAnswer), Refused))]
pub(super) async fn query(
    State(control): State<Shared>,
    team: In<DataRead>,
    At(path): At<OfStore>,
    Json(body): Json<QueryBody>,
) -> Result<Answer<SqlAnswer>> {
    if body.may_write {
        team.also(Scope::DataWrite)?;
    }
    if body.statement.len() > MAX_STATEMENT_BYTES || body.parameters.len() > MAX_PARAMETERS_COUNT {
        return Err(Error::invalid(format!(
            "a statement has at most {MAX_STATEMENT_BYTES} bytes and {MAX_PARAMETERS_COUNT} parameters"
        )));
    }
    let database = resource_of(&control, team.team, ResourceKind::Sqlite, &path.resource).await?;
    let statement = SqlStatement {
        text: body.statement,
        parameters: body.parameters,
        may_write: body.may_write,
        max_rows: body.max_rows.unwrap_or(MAX_ROWS_COUNT).min(MAX_ROWS_COUNT),
    };
    let answer = control.platform.sql(&database, &statement).await?;
    if statement.may_write {
        let actor = Actor::from(&team.caller);
        control.state.note(actor, team.team, "database.write", database.name.to_string()).await?;
    }
    Ok(Answer(answer))
}
