//! Plans, releases and operations.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use axum::{Json as Answer, extract::State};
use http::StatusCode;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    Asked, At, In, InApp, Json, PageQuery, Refused, Shared,
    apps::changed_variables,
    page,
    scope::{AppsDeploy, AppsRead},
};
use crate::{
    access::Scope,
    deploy::Work,
    error::{Error, Result},
    model::{Operation, Page, Plan, Progress, Release, ReleaseState},
    names::{Digest, OperationId, ReleaseNumber},
    state::NewRelease,
};

/// How long an answer about an operation may wait for news. Proxies give up after a minute.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The longest note.
const MAX_NOTE_BYTES: usize = 1_000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the team is read where it is checked, by `In`")]
pub(super) struct OfRelease {
    /// The team's name.
    team: String,
    /// The app's name.
    app: String,
    /// The release's number.
    release: u64,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the team is read where it is checked, by `In`")]
pub(super) struct OfOperation {
    /// The team's name.
    team: String,
    /// The operation's id.
    operation: String,
}

/// Asks what a release would change.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanBody {
    /// The image, pushed to `TEAM/APP` before.
    image: Digest,
    /// Values that variables would get.
    #[serde(default)]
    variables: BTreeMap<String, String>,
}

/// Makes a release.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewReleaseBody {
    /// The image, pushed to `TEAM/APP` before.
    image: Digest,
    /// Values that variables get.
    #[serde(default)]
    variables: BTreeMap<String, String>,
    /// Keys of the plan's `approvals` that are agreed to.
    #[serde(default)]
    approve: Vec<String>,
    /// What to say about it.
    note: Option<String>,
}

/// Goes back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RollbackBody {
    /// To which release; the one before, unless it is said.
    release: Option<ReleaseNumber>,
}

/// How to ask for an operation.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// Wait so long for news if it still runs, at most 30,000.
    #[serde(default)]
    wait_ms: u64,
    /// Wait only if it stands at these many steps begun or ended, as the answer before said
    /// by its steps.
    seen: Option<u64>,
}

/// What a release of an image would change, and what the policy says
#[utoipa::path(post, path = "/api/v1/teams/{team}/apps/{app}/plans", tag = "releases", params(InApp),
    request_body = PlanBody, responses((status = 200, body = Plan), Refused))]
pub(super) async fn make_plan(
    State(control): State<Shared>,
    team: In<AppsDeploy>,
    At(path): At<InApp>,
    Json(body): Json<PlanBody>,
) -> Result<Answer<Plan>> {
    let app = team.app(&control, &path.app).await?;
    let given: HashMap<_, _> = body.variables.into_iter().collect();
    let (plan, _) = control.plan(&app, &body.image, &given).await?;
    Ok(Answer(plan))
}

/// The releases of an app, the last first
#[utoipa::path(get, path = "/api/v1/teams/{team}/apps/{app}/releases", tag = "releases",
    params(InApp, PageQuery), responses((status = 200, body = Page<Release>), Refused))]
pub(super) async fn list_releases(
    State(control): State<Shared>,
    team: In<AppsRead>,
    At(path): At<InApp>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<Release>>> {
    let limit = query.limit()?;
    let before = query.before()?.map(ReleaseNumber);
    let app = team.app(&control, &path.app).await?;
    let releases = control.state.releases(app.key.id, before, limit + 1).await?;
    Ok(Answer(page(releases, limit, |release| release.number.to_string())))
}

/// Make a release and bring it to serve
#[utoipa::path(post, path = "/api/v1/teams/{team}/apps/{app}/releases", tag = "releases", params(InApp),
    request_body = NewReleaseBody, responses((status = 202, body = Operation), Refused))]
pub(super) async fn create_release(
    State(control): State<Shared>,
    team: In<AppsDeploy>,
    At(path): At<InApp>,
    Json(body): Json<NewReleaseBody>,
) -> Result<(StatusCode, Answer<Operation>)> {
    let app = team.app(&control, &path.app).await?;
    if body.note.as_ref().is_some_and(|note| note.len() > MAX_NOTE_BYTES) {
        return Err(Error::invalid(format!("`note` has at most {MAX_NOTE_BYTES} bytes")));
    }
    let given: HashMap<_, _> = body.variables.clone().into_iter().collect();
    let (plan, description) = control.plan(&app, &body.image, &given).await?;
    if !plan.refused.is_empty() {
        return Err(Error::Refused(plan.refused));
    }
    if !plan.missing_variables.is_empty() {
        return Err(Error::Conflict {
            message: format!("these variables have no value: {}", plan.missing_variables.join(", ")),
            hint: Some("set them with `wisp variables set` or `wisp secrets set`".to_owned()),
        });
    }
    let approved: HashSet<&str> = body.approve.iter().map(String::as_str).collect();
    let open: Vec<String> = plan
        .approvals
        .into_iter()
        .filter(|approval| !approved.contains(approval.key.as_str()))
        .map(|approval| format!("{} (`{}`)", approval.reason, approval.key))
        .collect();
    if !open.is_empty() {
        return Err(Error::ApprovalNeeded(open));
    }
    let variables = match body.variables.is_empty() {
        true => None,
        false => {
            let is_secret = |name: &String| {
                description.variables.iter().any(|variable| variable.name == *name && variable.is_secret)
            };
            if body.variables.keys().any(is_secret) {
                team.also(Scope::SecretsWrite)?;
                return Err(Error::invalid(
                    "variables that the manifest calls secret are set with `PATCH …/secrets`",
                ));
            }
            Some(changed_variables(&control, &app, &body.variables, &[], false).await?)
        }
    };
    let release = NewRelease { image: body.image, description, note: body.note, variables };
    let operation = control.begin(&team.caller, team.keyed, app.key, Work::Deploy(release)).await?;
    Ok((StatusCode::ACCEPTED, Answer(operation)))
}

/// A release with what it asks for
#[utoipa::path(get, path = "/api/v1/teams/{team}/apps/{app}/releases/{release}", tag = "releases",
    params(OfRelease), responses((status = 200, body = Release), Refused))]
pub(super) async fn get_release(
    State(control): State<Shared>,
    team: In<AppsRead>,
    At(path): At<OfRelease>,
) -> Result<Answer<Release>> {
    let app = team.app(&control, &path.app).await?;
    Ok(Answer(control.state.release(app.key.id, ReleaseNumber(path.release)).await?))
}

/// Go back to an earlier release, with the variables it had
#[utoipa::path(post, path = "/api/v1/teams/{team}/apps/{app}/rollback", tag = "releases", params(InApp),
    request_body = RollbackBody, responses((status = 202, body = Operation), Refused))]
pub(super) async fn rollback(
    State(control): State<Shared>,
    team: In<AppsDeploy>,
    At(path): At<InApp>,
    Json(body): Json<RollbackBody>,
) -> Result<(StatusCode, Answer<Operation>)> {
    let app = team.app(&control, &path.app).await?;
    let Some(current) = app.current else {
        return Err(Error::Conflict {
            message: "the app has no release yet".to_owned(),
            hint: Some("deploy it with `wisp deploy`".to_owned()),
        });
    };
    let number = match body.release {
        Some(number) => number,
        None => control.state.release_before(app.key.id, current).await?,
    };
    let release = control.state.release(app.key.id, number).await?;
    if release.state != ReleaseState::Ready {
        return Err(Error::Conflict {
            message: format!("release {number} never served"),
            hint: Some("choose one that did: `wisp releases` lists them".to_owned()),
        });
    }
    if release.is_current {
        return Err(Error::Conflict { message: format!("release {number} serves already"), hint: None });
    }
    let operation = control.begin(&team.caller, team.keyed, app.key, Work::Rollback(number)).await?;
    Ok((StatusCode::ACCEPTED, Answer(operation)))
}

/// The last operations of an app, the last first
#[utoipa::path(get, path = "/api/v1/teams/{team}/apps/{app}/operations", tag = "operations",
    params(InApp, PageQuery), responses((status = 200, body = Page<Operation>), Refused))]
pub(super) async fn list_operations(
    State(control): State<Shared>,
    team: In<AppsRead>,
    At(path): At<InApp>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<Operation>>> {
    let limit = query.limit()?;
    let app = team.app(&control, &path.app).await?;
    let after = match &query.after {
        Some(after) => {
            let wrong = || Error::invalid("`after` is the `next` of the page before");
            let (created_ms, id) = after.split_once('/').ok_or_else(wrong)?;
            let created_ms = created_ms.parse().map_err(|_| wrong())?;
            Some((created_ms, OperationId::new(id).map_err(|_| wrong())?))
        }
        None => None,
    };
    let rows = control.state.operations(app.key.id, after, limit + 1).await?;
    let Page { items, next } = page(rows, limit, |row| format!("{}/{}", row.created_ms, row.id));
    let items = items.into_iter().map(|row| control.operation_view(&team.name, row)).collect();
    Ok(Answer(Page { items, next }))
}

/// How far an operation has come; waits for news if asked to
#[utoipa::path(get, path = "/api/v1/teams/{team}/operations/{operation}", tag = "operations",
    params(OfOperation, WaitQuery), responses((status = 200, body = Operation), Refused))]
pub(super) async fn get_operation(
    State(control): State<Shared>,
    team: In<AppsRead>,
    At(path): At<OfOperation>,
    Asked(query): Asked<WaitQuery>,
) -> Result<Answer<Operation>> {
    let id = OperationId::new(&path.operation).map_err(|_| Error::NotFound { noun: "operation" })?;
    // Before the state is read, so that nothing happens unseen in between.
    let watch = control.watch(&id);
    let mut row = control.state.operation(team.team, id.clone()).await?;
    let news = |steps: &[crate::model::Step]| {
        steps
            .iter()
            .map(|step| match step.progress {
                Progress::Waiting => 0,
                Progress::Running => 1,
                Progress::Done | Progress::Failed => 2,
            })
            .sum::<u64>()
    };
    let is_old = query.seen.is_none_or(|seen| seen >= news(&row.steps));
    if let Some(mut watch) = watch
        && query.wait_ms > 0
        && row.progress == Progress::Running
        && is_old
    {
        let wait = Duration::from_millis(query.wait_ms).min(MAX_WAIT);
        drop(tokio::time::timeout(wait, watch.changed()).await);
        row = control.state.operation(team.team, id).await?;
    }
    Ok(Answer(control.operation_view(&team.name, row)))
}
