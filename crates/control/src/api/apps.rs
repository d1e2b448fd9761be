//! Apps and what belongs to each: variables, secrets, domains, logs.

use std::collections::BTreeMap;

use axum::{
    Json as Answer,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{StatusCode, header};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use wisp_manifest::id::VariableName;

use super::{
    Asked, At, In, InApp, InTeam, Json, Operator, PageQuery, Refused, Shared, page, part,
    scope::{AppsDeploy, AppsRead, LogsRead, SecretsWrite},
};
use crate::{
    access::Caller,
    control::Control,
    credential,
    deploy::Work,
    error::{Error, Result},
    model::{AppDetails, AppSummary, Domain, DomainInstructions, Operation, Page, Variable},
    names::{AppId, AppName, Host},
    platform::{AppHealth, AppUsage, DomainProof, LogQuery, LogRecord},
    state::{Actor, AppRow, DomainRow, NewRelease, StoredVariable},
};

/// Largest value of a variable.
const MAX_VALUE_BYTES: usize = 64 << 10;

/// Variables of an app, and their values together: all are in memory for each version.
const MAX_VARIABLES_COUNT: usize = 500;

/// Most records of a log that are sent before what comes.
const MAX_RECORDS_COUNT: usize = 10_000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the team is read where it is checked, by `In`")]
pub(super) struct OfDomain {
    /// The team's name.
    team: String,
    /// The app's name.
    app: String,
    /// The domain.
    host: String,
}

/// Makes an app.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewApp {
    /// Its name.
    name: AppName,
}

/// Sets and removes variables.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VariablesChange {
    /// New values by name.
    #[serde(default)]
    set: BTreeMap<String, String>,
    /// Names that lose their value.
    #[serde(default)]
    remove: Vec<String>,
}

/// Adds a domain.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewDomain {
    /// The domain.
    host: Host,
}

/// What to show of a log.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// Only from this time on, in milliseconds since 1970.
    since_ms: Option<u64>,
    /// Only before this time, in milliseconds since 1970.
    until_ms: Option<u64>,
    /// Only lines with this text.
    contains: Option<String>,
    /// Only lines of this request.
    request: Option<String>,
    /// Only the last so many.
    last: Option<usize>,
    /// Go on with what comes.
    #[serde(default)]
    follow: bool,
}

/// A team's apps
#[utoipa::path(get, path = "/api/v1/teams/{team}/apps", tag = "apps", params(InTeam, PageQuery),
    responses((status = 200, body = Page<AppSummary>), Refused))]
pub(super) async fn list_apps(
    State(control): State<Shared>,
    team: In<AppsRead>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<AppSummary>>> {
    let limit = query.limit()?;
    let apps = control.state.apps(team.team, query.after, limit + 1).await?;
    let Page { items, next } = page(apps, limit, |app| app.key.name.to_string());
    Ok(Answer(Page { items: items.iter().map(|app| app_summary(&control, app)).collect(), next }))
}

/// What a team's apps used since the server started, and what they hold now
#[utoipa::path(get, path = "/api/v1/teams/{team}/usage", tag = "apps", params(InTeam, PageQuery),
    responses((status = 200, body = Page<AppUsage>), Refused))]
pub(super) async fn team_usage(
    State(control): State<Shared>,
    team: In<AppsRead>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<AppUsage>>> {
    let limit = query.limit()?;
    let apps = control.state.apps(team.team, query.after, limit + 1).await?;
    let Page { items, next } = page(apps, limit, |app| app.key.name.to_string());
    let keys: Vec<_> = items.into_iter().map(|app| app.key).collect();
    Ok(Answer(Page { items: control.platform.measure(&keys).await?, next }))
}

/// What all apps used since the server started, and what they hold now
#[utoipa::path(get, path = "/api/v1/usage", tag = "server", params(PageQuery),
    responses((status = 200, body = Page<AppUsage>), Refused))]
pub(super) async fn usage(
    State(control): State<Shared>,
    _operator: Operator,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<AppUsage>>> {
    let limit = query.limit()?;
    let after = match &query.after {
        None => AppId(0),
        Some(after) => AppId(after.parse().map_err(|_| Error::invalid("`after` is not of this list"))?),
    };
    let keys = control.state.all_apps(after, limit + 1).await?;
    let Page { items, next } = page(keys, limit, |key| key.id.0.to_string());
    Ok(Answer(Page { items: control.platform.measure(&items).await?, next }))
}

/// Make an app that has no release yet
#[utoipa::path(post, path = "/api/v1/teams/{team}/apps", tag = "apps", params(InTeam), request_body = NewApp,
    responses((status = 201, body = AppSummary), Refused))]
pub(super) async fn create_app(
    State(control): State<Shared>,
    team: In<AppsDeploy>,
    Json(body): Json<NewApp>,
) -> Result<(StatusCode, Answer<AppSummary>)> {
    let limit = control.policy_of(&team.name).quotas().apps;
    let actor = Actor::from(&team.caller);
    let app = control.state.create_app(actor, team.team, team.name, body.name, limit).await?;
    Ok((StatusCode::CREATED, Answer(app_summary(&control, &app))))
}

/// An app with what belongs to it
#[utoipa::path(get, path = "/api/v1/teams/{team}/apps/{app}", tag = "apps", params(InApp),
    responses((status = 200, body = AppDetails), Refused))]
pub(super) async fn get_app(
    State(control): State<Shared>,
    team: In<AppsRead>,
    At(path): At<InApp>,
) -> Result<Answer<AppDetails>> {
    let app = team.app(&control, &path.app).await?;
    let image = match app.current {
        Some(number) => Some(control.state.release(app.key.id, number).await?.image),
        None => None,
    };
    let health = match app.current {
        Some(_) => control.platform.health(&app.key).await?,
        None => AppHealth { state: "stopped".to_owned(), message: Some("nothing is deployed".to_owned()) },
    };
    let certificate = match app.current {
        Some(_) => control.platform.certificate(&control.host_of(&app.key.team, &app.key.name)?).await?,
        None => None,
    };
    let rows = control.state.domains(app.key.id).await?;
    Ok(Answer(AppDetails {
        image,
        health,
        certificate,
        links: control.state.links(app.key.clone()).await?,
        domains: domains(&control, &app, rows).await?,
        operation: control.state.running(app.key.id).await?,
        app: app_summary(&control, &app),
    }))
}

/// Remove an app; its resources stay
#[utoipa::path(delete, path = "/api/v1/teams/{team}/apps/{app}", tag = "apps", params(InApp),
    responses((status = 202, body = Operation), Refused))]
pub(super) async fn remove_app(
    State(control): State<Shared>,
    team: In<AppsDeploy>,
    At(path): At<InApp>,
) -> Result<(StatusCode, Answer<Operation>)> {
    let app = team.app(&control, &path.app).await?;
    let operation = control.begin(&team.caller, team.keyed, app.key, Work::Remove).await?;
    Ok((StatusCode::ACCEPTED, Answer(operation)))
}

/// The variables that somebody set; values of secrets are never shown
#[utoipa::path(get, path = "/api/v1/teams/{team}/apps/{app}/variables", tag = "variables",
    params(InApp, PageQuery), responses((status = 200, body = Page<Variable>), Refused))]
pub(super) async fn list_variables(
    State(control): State<Shared>,
    team: In<AppsRead>,
    At(path): At<InApp>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<Variable>>> {
    let app = team.app(&control, &path.app).await?;
    let variables = control.state.variables(app.configuration).await?;
    let items = variables.into_iter().map(|variable| Variable {
        value: match variable.is_secret {
            true => None,
            false => String::from_utf8(variable.value).ok(),
        },
        name: variable.name,
        is_secret: variable.is_secret,
    });
    Ok(Answer(part(items.collect(), &query, |variable: &Variable| variable.name.clone())?))
}

/// Change variables
///
/// If the app has a release, this makes another one with the same image. There is no
/// operation if it has none yet.
#[utoipa::path(patch, path = "/api/v1/teams/{team}/apps/{app}/variables", tag = "variables", params(InApp),
    request_body = VariablesChange, responses((status = 202, body = Operation), (status = 204), Refused))]
pub(super) async fn change_variables(
    State(control): State<Shared>,
    team: In<AppsDeploy>,
    At(path): At<InApp>,
    Json(body): Json<VariablesChange>,
) -> Result<Response> {
    let app = team.app(&control, &path.app).await?;
    change(&control, &team.caller, app, body, false).await
}

/// Change secrets: variables that nobody can read
///
/// If the app has a release, this makes another one with the same image. There is no
/// operation if it has none yet.
#[utoipa::path(patch, path = "/api/v1/teams/{team}/apps/{app}/secrets", tag = "variables", params(InApp),
    request_body = VariablesChange, responses((status = 202, body = Operation), (status = 204), Refused))]
pub(super) async fn change_secrets(
    State(control): State<Shared>,
    team: In<SecretsWrite>,
    At(path): At<InApp>,
    Json(body): Json<VariablesChange>,
) -> Result<Response> {
    let app = team.app(&control, &path.app).await?;
    change(&control, &team.caller, app, body, true).await
}

/// The domains of an app
#[utoipa::path(get, path = "/api/v1/teams/{team}/apps/{app}/domains", tag = "domains",
    params(InApp, PageQuery), responses((status = 200, body = Page<Domain>), Refused))]
pub(super) async fn list_domains(
    State(control): State<Shared>,
    team: In<AppsRead>,
    At(path): At<InApp>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<Domain>>> {
    let app = team.app(&control, &path.app).await?;
    let rows = control.state.domains(app.key.id).await?;
    let Page { items, next } = part(rows, &query, |row: &DomainRow| row.host.to_string())?;
    Ok(Answer(Page { items: domains(&control, &app, items).await?, next }))
}

/// Add a domain; it leads to the app once it is verified
#[utoipa::path(post, path = "/api/v1/teams/{team}/apps/{app}/domains", tag = "domains", params(InApp),
    request_body = NewDomain, responses((status = 201, body = Domain), Refused))]
pub(super) async fn add_domain(
    State(control): State<Shared>,
    team: In<AppsDeploy>,
    At(path): At<InApp>,
    Json(body): Json<NewDomain>,
) -> Result<(StatusCode, Answer<Domain>)> {
    let app = team.app(&control, &path.app).await?;
    let own = &control.settings.domain;
    let host = body.host;
    let is_below = host.as_str().strip_suffix(own.as_str()).is_some_and(|rest| rest.ends_with('.'));
    if host.as_str() == own || is_below {
        return Err(Error::invalid(format!("what is below `{own}` is this server's own")));
    }
    let txt_value = format!("wisp-{}", credential::random_hex()?);
    let limit = control.policy_of(&team.name).quotas().domains;
    let actor = Actor::from(&team.caller);
    control.state.add_domain(actor, app.key.clone(), host.clone(), txt_value, limit).await?;
    let added = find_domain(&control, &app, &host).await?;
    Ok((StatusCode::CREATED, Answer(added)))
}

/// Take a domain away from an app
#[utoipa::path(delete, path = "/api/v1/teams/{team}/apps/{app}/domains/{host}", tag = "domains",
    params(OfDomain), responses((status = 204), Refused))]
pub(super) async fn remove_domain(
    State(control): State<Shared>,
    team: In<AppsDeploy>,
    At(path): At<OfDomain>,
) -> Result<StatusCode> {
    let app = team.app(&control, &path.app).await?;
    let host = host(&path.host)?;
    let was_verified = control.state.remove_domain(Actor::from(&team.caller), app.key.clone(), host).await?;
    if was_verified {
        control.refresh(app.key).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Look into DNS whether a domain is the app's
#[utoipa::path(post, path = "/api/v1/teams/{team}/apps/{app}/domains/{host}/verify", tag = "domains",
    params(OfDomain), responses((status = 200, body = Domain), Refused))]
pub(super) async fn verify_domain(
    State(control): State<Shared>,
    team: In<AppsDeploy>,
    At(path): At<OfDomain>,
) -> Result<Answer<Domain>> {
    let app = team.app(&control, &path.app).await?;
    let host = host(&path.host)?;
    let found = find_domain(&control, &app, &host).await?;
    let proof = DomainProof {
        host: host.clone(),
        targets: vec![found.proof.cname.clone()],
        txt_name: found.proof.txt_name.clone(),
        txt_value: found.proof.txt_value.clone(),
    };
    if !control.platform.proves_domain(&proof).await? {
        return Err(Error::Conflict {
            message: format!("DNS does not say that `{host}` is this app's"),
            hint: Some(format!(
                "let a CNAME of `{host}` lead to `{}`, or a TXT record of `{}` say `{}`",
                found.proof.cname, found.proof.txt_name, found.proof.txt_value
            )),
        });
    }
    let actor = Actor::from(&team.caller);
    let before = control.state.verify_domain(actor, app.key.clone(), host.clone()).await?;
    // Whoever had it loses it first: a host leads to one app.
    if let Some(before) = before {
        let before = control.state.app_by_id(before).await?;
        control.refresh(before.key).await?;
    }
    control.refresh(app.key.clone()).await?;
    Ok(Answer(find_domain(&control, &app, &host).await?))
}

/// An app's log, a JSON record in each line
#[utoipa::path(get, path = "/api/v1/teams/{team}/apps/{app}/logs", tag = "logs", params(InApp, LogsQuery),
    responses((status = 200, body = LogRecord, content_type = "application/x-ndjson"), Refused))]
pub(super) async fn logs(
    State(control): State<Shared>,
    team: In<LogsRead>,
    At(path): At<InApp>,
    Asked(query): Asked<LogsQuery>,
) -> Result<Response> {
    let app = team.app(&control, &path.app).await?;
    let query = LogQuery {
        since_ms: query.since_ms,
        until_ms: query.until_ms,
        contains: query.contains,
        request: query.request,
        last: Some(query.last.unwrap_or(MAX_RECORDS_COUNT).min(MAX_RECORDS_COUNT)),
        follow: query.follow,
    };
    let records = control.platform.logs(&app.key, &query).await?;
    let lines = records.map_err(std::io::Error::other).and_then(async |record| {
        let mut line = serde_json::to_vec(&record).map_err(std::io::Error::other)?;
        line.push(b'\n');
        Ok(Bytes::from(line))
    });
    let body = Body::from_stream(lines.boxed());
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// An app as lists say it.
fn app_summary(control: &Control, app: &AppRow) -> AppSummary {
    AppSummary {
        name: app.key.name.clone(),
        team: app.key.team.clone(),
        release: app.current,
        url: control.url_of(&app.key.team, &app.key.name),
        created_ms: app.created_ms,
    }
}

/// The variables that an app has after a change.
pub(in crate::api) async fn changed_variables(
    control: &Control,
    app: &AppRow,
    set: &BTreeMap<String, String>,
    remove: &[String],
    is_secret: bool,
) -> Result<Vec<StoredVariable>> {
    let mut variables = control.state.variables(app.configuration).await?;
    for name in set.keys().chain(remove) {
        VariableName::new(name).map_err(|error| Error::invalid(format!("variable `{name}`: {error}")))?;
        let found = variables.iter().find(|variable| variable.name == *name);
        if found.is_some_and(|variable| variable.is_secret && !is_secret) {
            return Err(Error::Conflict {
                message: format!("`{name}` is a secret"),
                hint: Some("change it with `wisp secrets`".to_owned()),
            });
        }
    }
    for name in remove {
        if set.contains_key(name) {
            return Err(Error::invalid(format!("`{name}` cannot be set and removed")));
        }
        if !variables.iter().any(|variable| variable.name == *name) {
            return Err(Error::NotFound { noun: "variable" });
        }
    }
    variables.retain(|variable| !remove.contains(&variable.name) && !set.contains_key(&variable.name));
    for (name, value) in set {
        if value.len() > MAX_VALUE_BYTES {
            return Err(Error::invalid(format!(
                "the value of `{name}` has more than {MAX_VALUE_BYTES} bytes"
            )));
        }
        variables.push(control.store_variable(app.key.team_id, name, value, is_secret).await?);
    }
    if variables.len() > MAX_VARIABLES_COUNT {
        let limit = u64::try_from(MAX_VARIABLES_COUNT).unwrap_or(u64::MAX);
        return Err(Error::Quota { what: "number of variables", limit });
    }
    Ok(variables)
}

async fn change(
    control: &Shared,
    caller: &Caller,
    app: AppRow,
    body: VariablesChange,
    is_secret: bool,
) -> Result<Response> {
    let variables = changed_variables(control, &app, &body.set, &body.remove, is_secret).await?;
    let names: Vec<String> = body
        .set
        .keys()
        .map(|name| format!("set {name}"))
        .chain(body.remove.iter().map(|name| format!("remove {name}")))
        .collect();
    if names.is_empty() {
        return Err(Error::invalid("`set` or `remove` names the variables to change"));
    }
    let detail = names.join(", ");
    let Some(current) = app.current else {
        control.state.set_variables(Actor::from(caller), app.key, variables, detail).await?;
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let current = control.state.release(app.key.id, current).await?;
    let description = current.description.unwrap_or_default();
    let is_declared = |name: &&String| {
        description.variables.iter().any(|variable| variable.name == **name && variable.is_secret)
    };
    if let Some(name) = body.set.keys().find(is_declared).filter(|_| !is_secret) {
        return Err(Error::Conflict {
            message: format!("the manifest calls `{name}` a secret"),
            hint: Some("set it with `wisp secrets`".to_owned()),
        });
    }
    let release = NewRelease {
        image: current.image,
        description,
        note: Some(detail.clone()),
        variables: Some(variables),
    };
    let operation = control.begin(caller, None, app.key, Work::Configure(release, detail)).await?;
    Ok((StatusCode::ACCEPTED, Answer(operation)).into_response())
}

async fn find_domain(control: &Control, app: &AppRow, host: &Host) -> Result<Domain> {
    let rows = control.state.domains(app.key.id).await?;
    let row = rows.into_iter().find(|row| row.host == *host);
    domain(control, app, row.ok_or(Error::NotFound { noun: "domain" })?).await
}

async fn domains(control: &Control, app: &AppRow, rows: Vec<DomainRow>) -> Result<Vec<Domain>> {
    let mut domains = Vec::with_capacity(rows.len());
    for row in rows {
        domains.push(domain(control, app, row).await?);
    }
    Ok(domains)
}

async fn domain(control: &Control, app: &AppRow, row: DomainRow) -> Result<Domain> {
    let certificate = match row.is_verified {
        true => control.platform.certificate(&row.host).await?,
        false => None,
    };
    Ok(Domain {
        certificate,
        proof: DomainInstructions {
            cname: control.host_of(&app.key.team, &app.key.name)?,
            // A name that is too long with the label before it can still be shown by a CNAME.
            txt_name: host_label(&row.host),
            txt_value: row.txt_value,
        },
        host: row.host,
        is_verified: row.is_verified,
        created_ms: row.created_ms,
    })
}

fn host_label(host: &Host) -> String {
    format!("_wisp.{host}")
}

fn host(text: &str) -> Result<Host> {
    Host::new(&text.to_ascii_lowercase()).map_err(|_| Error::NotFound { noun: "domain" })
}
