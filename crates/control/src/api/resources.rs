//! Resources of a team and the links of apps to them.

use axum::{
    Json as Answer,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use futures::{StreamExt as _, TryStreamExt as _};
use http::{StatusCode, header};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    Asked, At, In, InApp, InTeam, Json, PageQuery, Refused, Shared, page, part,
    scope::{AppsRead, DataRead, DataWrite, ResourcesWrite},
};
use crate::{
    control::Control,
    error::{Error, Result},
    model::{Link, Page, ResourceSummary},
    names::{Label, TeamId},
    platform::{PlatformError, Resource, ResourceKind},
    state::Actor,
};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the team is read where it is checked, by `In`")]
pub(super) struct OfResource {
    /// The team's name.
    team: String,
    /// `key-value` or `sqlite`.
    kind: String,
    /// The resource's name.
    resource: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the team is read where it is checked, by `In`")]
pub(super) struct OfLink {
    /// The team's name.
    team: String,
    /// The app's name.
    app: String,
    /// `key-value` or `sqlite`.
    kind: String,
    /// The label of the manifest.
    label: String,
}

/// Which resources are wanted.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct KindQuery {
    /// Only those of this kind.
    kind: Option<ResourceKind>,
    /// How many items at most, up to 500 [default: 50].
    limit: Option<usize>,
    /// Go on after this: `next` of the page before.
    after: Option<String>,
}

/// Makes a resource.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewResourceBody {
    /// What it is.
    kind: ResourceKind,
    /// Its name.
    name: Label,
    /// How many bytes it may hold; what the policy says, unless it is less.
    quota_bytes: Option<u64>,
}

/// Changes a resource.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResourceChange {
    /// Its new name. Links stay.
    name: Option<Label>,
    /// Its new quota.
    quota_bytes: Option<u64>,
}

/// Links a label.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewLink {
    /// The name of the resource.
    resource: Label,
}

/// A team's resources
#[utoipa::path(get, path = "/api/v1/teams/{team}/resources", tag = "resources", params(InTeam, KindQuery),
    responses((status = 200, body = Page<ResourceSummary>), Refused))]
pub(super) async fn list_resources(
    State(control): State<Shared>,
    team: In<AppsRead>,
    Asked(query): Asked<KindQuery>,
) -> Result<Answer<Page<ResourceSummary>>> {
    let limit = PageQuery { limit: query.limit, after: None }.limit()?;
    let after = match &query.after {
        Some(after) => {
            let wrong = || Error::invalid("`after` is the `next` of the page before");
            let (kind, name) = after.split_once('/').ok_or_else(wrong)?;
            Some((ResourceKind::parse(kind).ok_or_else(wrong)?, name.to_owned()))
        }
        None => None,
    };
    let resources = control.state.resources(team.team, query.kind, after, limit + 1).await?;
    Ok(Answer(page(resources, limit, |resource| format!("{}/{}", resource.kind, resource.name))))
}

/// Make a resource
#[utoipa::path(post, path = "/api/v1/teams/{team}/resources", tag = "resources", params(InTeam),
    request_body = NewResourceBody, responses((status = 201, body = ResourceSummary), Refused))]
pub(super) async fn create_resource(
    State(control): State<Shared>,
    team: In<ResourcesWrite>,
    Json(body): Json<NewResourceBody>,
) -> Result<(StatusCode, Answer<ResourceSummary>)> {
    let policy = control.policy_of(&team.name);
    let quotas = policy.quotas();
    let quota_bytes = body.quota_bytes.unwrap_or_else(|| quotas.bytes_of(body.kind));
    check_quota(quota_bytes, quotas.bytes_of(body.kind))?;
    let (kind, name) = (body.kind, body.name);
    let actor = Actor::from(&team.caller);
    control
        .state
        .create_resource(actor, team.team, kind, name.clone(), quota_bytes, quotas.resources)
        .await?;
    let resource = control.state.resource(team.team, kind, name.clone()).await?;
    control.platform.provision(&resource).await?;
    let summary = control.state.resource_summary(team.team, kind, name).await?;
    Ok((StatusCode::CREATED, Answer(summary)))
}

/// A resource, with how much it holds
#[utoipa::path(get, path = "/api/v1/teams/{team}/resources/{kind}/{resource}", tag = "resources",
    params(OfResource), responses((status = 200, body = ResourceSummary), Refused))]
pub(super) async fn get_resource(
    State(control): State<Shared>,
    team: In<AppsRead>,
    At(path): At<OfResource>,
) -> Result<Answer<ResourceSummary>> {
    let resource = find(&control, team.team, &path).await?;
    let used_bytes = control.platform.usage(&resource).await?;
    let summary = control.state.resource_summary(team.team, resource.kind, resource.name).await?;
    Ok(Answer(ResourceSummary { used_bytes: Some(used_bytes), ..summary }))
}

/// Rename a resource, or give it another quota
#[utoipa::path(patch, path = "/api/v1/teams/{team}/resources/{kind}/{resource}", tag = "resources",
    params(OfResource), request_body = ResourceChange,
    responses((status = 200, body = ResourceSummary), Refused))]
pub(super) async fn change_resource(
    State(control): State<Shared>,
    team: In<ResourcesWrite>,
    At(path): At<OfResource>,
    Json(body): Json<ResourceChange>,
) -> Result<Answer<ResourceSummary>> {
    let resource = find(&control, team.team, &path).await?;
    if let Some(quota_bytes) = body.quota_bytes {
        let most = control.policy_of(&team.name).quotas().bytes_of(resource.kind);
        check_quota(quota_bytes, most)?;
    }
    let actor = Actor::from(&team.caller);
    let changed = control.state.change_resource(actor, resource, body.name, body.quota_bytes).await?;
    control.platform.provision(&changed).await?;
    let summary = control.state.resource_summary(team.team, changed.kind, changed.name).await?;
    for link in &summary.links {
        let app = control.state.app(team.team, link.app.clone()).await?;
        control.refresh(app.key).await?;
    }
    Ok(Answer(summary))
}

/// Remove a resource that no app has, and all its data
#[utoipa::path(delete, path = "/api/v1/teams/{team}/resources/{kind}/{resource}", tag = "resources",
    params(OfResource), responses((status = 204), Refused))]
pub(super) async fn remove_resource(
    State(control): State<Shared>,
    team: In<ResourcesWrite>,
    At(path): At<OfResource>,
) -> Result<StatusCode> {
    team.also(crate::access::Scope::DataWrite)?;
    let resource = find(&control, team.team, &path).await?;
    control.state.begin_removal(Actor::from(&team.caller), resource.clone()).await?;
    control.finish_removal(&resource).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All data of a resource
#[utoipa::path(get, path = "/api/v1/teams/{team}/resources/{kind}/{resource}/data", tag = "data",
    params(OfResource), responses((status = 200, content_type = "application/octet-stream"), Refused))]
pub(super) async fn export(
    State(control): State<Shared>,
    team: In<DataRead>,
    At(path): At<OfResource>,
) -> Result<Response> {
    let resource = find(&control, team.team, &path).await?;
    let data = control.platform.export(&resource).await?;
    let body = Body::from_stream(data.map_err(std::io::Error::other));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Replace all data of a resource with what was exported
#[utoipa::path(put, path = "/api/v1/teams/{team}/resources/{kind}/{resource}/data", tag = "data",
    params(OfResource), request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), Refused))]
pub(super) async fn import(
    State(control): State<Shared>,
    team: In<DataWrite>,
    At(path): At<OfResource>,
    body: axum::extract::Request,
) -> Result<StatusCode> {
    let resource = find(&control, team.team, &path).await?;
    // The platform knows the quota, and stops reading where it ends.
    let data = body.into_body().into_data_stream();
    let data =
        data.map_err(|error| PlatformError::failed("WISP-E0904", format!("the body broke off: {error}")));
    control.platform.import(&resource, data.boxed()).await?;
    control
        .state
        .note(Actor::from(&team.caller), team.team, "resource.import", resource.name.to_string())
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The labels of an app and what is behind them
#[utoipa::path(get, path = "/api/v1/teams/{team}/apps/{app}/links", tag = "resources",
    params(InApp, PageQuery), responses((status = 200, body = Page<Link>), Refused))]
pub(super) async fn list_links(
    State(control): State<Shared>,
    team: In<AppsRead>,
    At(path): At<InApp>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<Link>>> {
    let app = team.app(&control, &path.app).await?;
    let links = control.state.links(app.key).await?;
    Ok(Answer(part(links, &query, |link: &Link| format!("{}/{}", link.kind, link.label))?))
}

/// Put a resource behind a label, in place of the one that was there
#[utoipa::path(put, path = "/api/v1/teams/{team}/apps/{app}/links/{kind}/{label}", tag = "resources",
    params(OfLink), request_body = NewLink, responses((status = 200, body = Link), Refused))]
pub(super) async fn set_link(
    State(control): State<Shared>,
    team: In<ResourcesWrite>,
    At(path): At<OfLink>,
    Json(body): Json<NewLink>,
) -> Result<Answer<Link>> {
    let app = team.app(&control, &path.app).await?;
    let kind = kind(&path.kind)?;
    let label = Label::new(&path.label)?;
    let resource = control.state.resource(team.team, kind, body.resource).await?;
    if let Some((backend, place)) = control.policy_of(&team.name).backend(kind, label.as_str()) {
        return Err(Error::Conflict {
            message: format!("the label `{label}` is {backend}, by {place}"),
            hint: Some("give the store another label in the manifest".to_owned()),
        });
    }
    let link = Link { kind, label: label.clone(), resource: resource.name.clone() };
    control.state.set_link(Actor::from(&team.caller), app.key.clone(), label, resource).await?;
    control.refresh(app.key).await?;
    Ok(Answer(link))
}

/// Take a resource away from a label; its data stays
#[utoipa::path(delete, path = "/api/v1/teams/{team}/apps/{app}/links/{kind}/{label}", tag = "resources",
    params(OfLink), responses((status = 204), Refused))]
pub(super) async fn remove_link(
    State(control): State<Shared>,
    team: In<ResourcesWrite>,
    At(path): At<OfLink>,
) -> Result<StatusCode> {
    let app = team.app(&control, &path.app).await?;
    let kind = kind(&path.kind)?;
    let label = Label::new(&path.label).map_err(|_| Error::NotFound { noun: "link" })?;
    control.state.remove_link(Actor::from(&team.caller), app.key.clone(), kind, label).await?;
    control.refresh(app.key).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The resource of an address.
pub(super) async fn resource_of(
    control: &Control,
    team: TeamId,
    kind: ResourceKind,
    name: &str,
) -> Result<Resource> {
    let name = Label::new(name).map_err(|_| Error::NotFound { noun: kind.noun() })?;
    control.state.resource(team, kind, name).await
}

async fn find(control: &Control, team: TeamId, path: &OfResource) -> Result<Resource> {
    resource_of(control, team, kind(&path.kind)?, &path.resource).await
}

fn kind(text: &str) -> Result<ResourceKind> {
    ResourceKind::parse(text).ok_or(Error::NotFound { noun: "kind of resource" })
}

fn check_quota(quota_bytes: u64, most: u64) -> Result<()> {
    match quota_bytes <= most {
        true => Ok(()),
        false => Err(Error::Quota { what: "size of a resource in bytes", limit: most }),
    }
}
