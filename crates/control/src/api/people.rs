//! Users, teams, members and tokens.

use axum::{Json as Answer, extract::State};
use http::StatusCode;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    Asked, At, In, InTeam, Json, Operator, PageQuery, Person, Refused, Shared, Signed, page,
    scope::{AppsRead, TeamAdmin},
};
use crate::{
    access::{Caller, Role, Scope, Scopes},
    control::{Control, TokenOwner},
    credential,
    error::{Error, Result},
    model::{AuditEntry, Invitation, Member, NewToken, Page, Team, Token, User},
    names::{Label, TeamName, TokenId, UserName},
    state::{Actor, NewInvitation, SignedIn, now_ms},
};

/// How long an invitation works.
const INVITATION_LIFE_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// How long a link to sign in oneself works.
const OWN_LINK_LIFE_MS: u64 = 15 * 60 * 1_000;

/// How long a token holds, unless it is said.
const DEFAULT_TOKEN_LIFE_SECONDS: u64 = 90 * 24 * 60 * 60;

/// How long a token may hold: who needs more has forgotten it by then.
const MAX_TOKEN_LIFE_SECONDS: u64 = 5 * 365 * 24 * 60 * 60;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfUser {
    /// The person's name.
    user: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the team is read where it is checked, by `In`")]
pub(super) struct OfMember {
    /// The team's name.
    team: String,
    /// The person's name.
    user: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfToken {
    /// The token's id.
    token: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the team is read where it is checked, by `In`")]
pub(super) struct OfTeamToken {
    /// The team's name.
    team: String,
    /// The token's id.
    token: String,
}

/// Invites somebody to the server.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewUser {
    /// Whether they operate the server.
    #[serde(default)]
    is_operator: bool,
    /// Somebody who is known already and lost all their tokens.
    user: Option<UserName>,
}

/// Makes a team.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTeam {
    /// Its name.
    name: TeamName,
    /// Who owns it; you, unless it is said.
    owner: Option<UserName>,
}

/// What somebody is in a team.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRole {
    /// The role.
    role: Role,
}

/// Makes a token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTokenBody {
    /// What to call it.
    name: Label,
    /// What it may be used for.
    scopes: Vec<Scope>,
    /// For how long it holds [default: 90 days].
    expires_in_seconds: Option<u64>,
    /// The only team it is for.
    team: Option<TeamName>,
}

/// Makes a token of a team.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTeamTokenBody {
    /// What to call it.
    name: Label,
    /// What it may be used for.
    scopes: Vec<Scope>,
    /// For how long it holds [default: 90 days].
    expires_in_seconds: Option<u64>,
}

/// The people of this server
#[utoipa::path(get, path = "/api/v1/users", tag = "people", params(PageQuery),
    responses((status = 200, body = Page<User>), Refused))]
pub(super) async fn list_users(
    State(control): State<Shared>,
    _operator: Operator,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<User>>> {
    let limit = query.limit()?;
    let users = control.state.users(query.after, limit + 1).await?;
    Ok(Answer(page(users, limit, |user| user.name.to_string())))
}

/// Invite somebody to the server, or let somebody in again
#[utoipa::path(post, path = "/api/v1/users", tag = "people", request_body = NewUser,
    responses((status = 201, body = Invitation), Refused))]
pub(super) async fn invite_user(
    State(control): State<Shared>,
    operator: Operator,
    Json(body): Json<NewUser>,
) -> Result<(StatusCode, Answer<Invitation>)> {
    let user = match body.user {
        Some(name) => Some(control.state.user(name).await?),
        None => None,
    };
    let invitation = |hash, expires_ms| NewInvitation {
        hash,
        user,
        team: None,
        role: Role::Viewer,
        is_operator: body.is_operator && user.is_none(),
        expires_ms,
    };
    invite(&control, &operator.caller, invitation).await
}

/// A link that signs you in elsewhere, such as in a browser
#[utoipa::path(post, path = "/api/v1/sign-in-link", tag = "sign-in",
    responses((status = 201, body = Invitation), Refused))]
pub(super) async fn own_link(
    State(control): State<Shared>,
    person: Person,
) -> Result<(StatusCode, Answer<Invitation>)> {
    let invitation = |hash, _| NewInvitation {
        hash,
        user: Some(person.id),
        team: None,
        role: Role::Viewer,
        is_operator: false,
        expires_ms: now_ms().saturating_add(OWN_LINK_LIFE_MS),
    };
    invite(&control, &person.caller, invitation).await
}

/// Remove a person and their tokens
#[utoipa::path(delete, path = "/api/v1/users/{user}", tag = "people", params(OfUser),
    responses((status = 204), Refused))]
pub(super) async fn remove_user(
    State(control): State<Shared>,
    operator: Operator,
    At(path): At<OfUser>,
) -> Result<StatusCode> {
    let name = UserName::new(&path.user).map_err(|_| Error::NotFound { noun: "user" })?;
    control.state.remove_user(Actor::from(&operator.caller), name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Your teams; all teams for who operates the server
#[utoipa::path(get, path = "/api/v1/teams", tag = "teams", params(PageQuery),
    responses((status = 200, body = Page<Team>), Refused))]
pub(super) async fn list_teams(
    State(control): State<Shared>,
    Signed(caller): Signed,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<Team>>> {
    let limit = query.limit()?;
    if let Some((_, only)) = &caller.team {
        let is_seen = control.reach(&caller, only).await?.is_some() && query.after.is_none();
        let only = Team { name: only.clone(), created_ms: 0, role: caller_role(&caller) };
        return Ok(Answer(Page { items: is_seen.then_some(only).into_iter().collect(), next: None }));
    }
    let Some((user, _)) = &caller.user else { return Err(Error::Unauthenticated) };
    let sees_all = caller.is_operator && caller.scopes.contains(Scope::ServerAdmin);
    let teams = control.state.teams(*user, sees_all, query.after, limit + 1).await?;
    Ok(Answer(page(teams, limit, |team| team.name.to_string())))
}

/// Make a team
#[utoipa::path(post, path = "/api/v1/teams", tag = "teams", request_body = NewTeam,
    responses((status = 201, body = Team), Refused))]
pub(super) async fn create_team(
    State(control): State<Shared>,
    operator: Operator,
    Json(body): Json<NewTeam>,
) -> Result<(StatusCode, Answer<Team>)> {
    let owner = match body.owner {
        Some(name) => control.state.user(name).await?,
        None => operator.id,
    };
    let role = (owner == operator.id).then_some(Role::Owner);
    let maker = control.data_key_maker();
    let actor = Actor::from(&operator.caller);
    control.state.create_team(actor, body.name.clone(), Some(owner), maker).await?;
    // Whatever a team of this name left behind, should it not have been removed with it.
    control.platform.forget_team(&body.name).await?;
    let team = Team { name: body.name, created_ms: now_ms(), role };
    Ok((StatusCode::CREATED, Answer(team)))
}

/// A team
#[utoipa::path(get, path = "/api/v1/teams/{team}", tag = "teams", params(InTeam),
    responses((status = 200, body = Team), Refused))]
pub(super) async fn get_team(State(control): State<Shared>, team: In<AppsRead>) -> Result<Answer<Team>> {
    let created_ms = control.state.team_created_ms(team.team).await?;
    let role = match &team.caller.user {
        Some((user, _)) => control.state.team_of_user(*user, team.name.clone()).await?.map(|(_, role)| role),
        None => Some(team.caller.token_role),
    };
    Ok(Answer(Team { name: team.name, created_ms, role }))
}

/// Remove a team that has no apps and no resources
#[utoipa::path(delete, path = "/api/v1/teams/{team}", tag = "teams", params(InTeam),
    responses((status = 204), Refused))]
pub(super) async fn remove_team(State(control): State<Shared>, team: In<TeamAdmin>) -> Result<StatusCode> {
    control.state.remove_team(Actor::from(&team.caller), team.team, team.name.clone()).await?;
    control.platform.forget_team(&team.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who belongs to a team
#[utoipa::path(get, path = "/api/v1/teams/{team}/members", tag = "teams", params(InTeam, PageQuery),
    responses((status = 200, body = Page<Member>), Refused))]
pub(super) async fn list_members(
    State(control): State<Shared>,
    team: In<AppsRead>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<Member>>> {
    let limit = query.limit()?;
    let members = control.state.members(team.team, query.after, limit + 1).await?;
    Ok(Answer(page(members, limit, |member| member.user.to_string())))
}

/// Give a member another role
#[utoipa::path(put, path = "/api/v1/teams/{team}/members/{user}", tag = "teams", params(OfMember),
    request_body = NewRole, responses((status = 200, body = Member), Refused))]
pub(super) async fn set_role(
    State(control): State<Shared>,
    team: In<TeamAdmin>,
    At(path): At<OfMember>,
    Json(body): Json<NewRole>,
) -> Result<Answer<Member>> {
    let user = member(&path.user)?;
    let actor = Actor::from(&team.caller);
    Ok(Answer(control.state.set_role(actor, team.team, user, body.role).await?))
}

/// Take somebody out of a team
#[utoipa::path(delete, path = "/api/v1/teams/{team}/members/{user}", tag = "teams", params(OfMember),
    responses((status = 204), Refused))]
pub(super) async fn remove_member(
    State(control): State<Shared>,
    team: In<TeamAdmin>,
    At(path): At<OfMember>,
) -> Result<StatusCode> {
    let user = member(&path.user)?;
    control.state.remove_member(Actor::from(&team.caller), team.team, user).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Invite somebody to a team by a link that works once
#[utoipa::path(post, path = "/api/v1/teams/{team}/invitations", tag = "teams", params(InTeam),
    request_body = NewRole, responses((status = 201, body = Invitation), Refused))]
pub(super) async fn invite_member(
    State(control): State<Shared>,
    team: In<TeamAdmin>,
    Json(body): Json<NewRole>,
) -> Result<(StatusCode, Answer<Invitation>)> {
    let invitation = |hash, expires_ms| NewInvitation {
        hash,
        user: None,
        team: Some(team.team),
        role: body.role,
        is_operator: false,
        expires_ms,
    };
    invite(&control, &team.caller, invitation).await
}

/// Your tokens
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", params(PageQuery),
    responses((status = 200, body = Page<Token>), Refused))]
pub(super) async fn list_tokens(
    State(control): State<Shared>,
    person: Person,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<Token>>> {
    let limit = query.limit()?;
    let tokens = control.state.tokens(Some(person.id), None, query.after, limit + 1).await?;
    Ok(Answer(page(tokens, limit, |token| token.id.to_string())))
}

/// Make a token that stands for you
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", request_body = NewTokenBody,
    responses((status = 201, body = NewToken), Refused))]
pub(super) async fn create_token(
    State(control): State<Shared>,
    person: Person,
    Json(body): Json<NewTokenBody>,
) -> Result<(StatusCode, Answer<NewToken>)> {
    let scopes: Scopes = body.scopes.iter().copied().collect();
    check_within(scopes, person.caller.scopes)?;
    let team = match body.team {
        Some(name) => {
            let reached = control.reach(&person.caller, &name).await?;
            let (id, _) = reached.ok_or(Error::NotFound { noun: "team" })?;
            Some((id, name))
        }
        None => None,
    };
    let owner =
        TokenOwner { user: Some(SignedIn { user: person.id, name: person.name }), team, role: Role::Owner };
    let expires_ms = Some(expiry(body.expires_in_seconds)?);
    let token = control.issue(Actor::from(&person.caller), owner, body.name, scopes, expires_ms).await?;
    Ok((StatusCode::CREATED, Answer(token)))
}

/// End one of your tokens
#[utoipa::path(delete, path = "/api/v1/tokens/{token}", tag = "tokens", params(OfToken),
    responses((status = 204), Refused))]
pub(super) async fn remove_token(
    State(control): State<Shared>,
    person: Person,
    At(path): At<OfToken>,
) -> Result<StatusCode> {
    let id = token(&path.token)?;
    control.state.remove_token(Actor::from(&person.caller), id, Some(person.id), None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tokens for a team, its own and its members'
#[utoipa::path(get, path = "/api/v1/teams/{team}/tokens", tag = "tokens", params(InTeam, PageQuery),
    responses((status = 200, body = Page<Token>), Refused))]
pub(super) async fn list_team_tokens(
    State(control): State<Shared>,
    team: In<TeamAdmin>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<Token>>> {
    let limit = query.limit()?;
    let tokens = control.state.tokens(None, Some(team.team), query.after, limit + 1).await?;
    Ok(Answer(page(tokens, limit, |token| token.id.to_string())))
}

/// Make a token that stands for the team, for a pipeline
#[utoipa::path(post, path = "/api/v1/teams/{team}/tokens", tag = "tokens", params(InTeam),
    request_body = NewTeamTokenBody, responses((status = 201, body = NewToken), Refused))]
pub(super) async fn create_team_token(
    State(control): State<Shared>,
    team: In<TeamAdmin>,
    Json(body): Json<NewTeamTokenBody>,
) -> Result<(StatusCode, Answer<NewToken>)> {
    let scopes: Scopes = body.scopes.iter().copied().collect();
    check_within(scopes, team.scopes)?;
    let owner = TokenOwner { user: None, team: Some((team.team, team.name)), role: Role::Owner };
    let expires_ms = Some(expiry(body.expires_in_seconds)?);
    let token = control.issue(Actor::from(&team.caller), owner, body.name, scopes, expires_ms).await?;
    Ok((StatusCode::CREATED, Answer(token)))
}

/// End a token for a team
#[utoipa::path(delete, path = "/api/v1/teams/{team}/tokens/{token}", tag = "tokens", params(OfTeamToken),
    responses((status = 204), Refused))]
pub(super) async fn remove_team_token(
    State(control): State<Shared>,
    team: In<TeamAdmin>,
    At(path): At<OfTeamToken>,
) -> Result<StatusCode> {
    let id = token(&path.token)?;
    control.state.remove_token(Actor::from(&team.caller), id, None, Some(team.team)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What was done in a team, the last first
#[utoipa::path(get, path = "/api/v1/teams/{team}/audit", tag = "teams", params(InTeam, PageQuery),
    responses((status = 200, body = Page<AuditEntry>), Refused))]
pub(super) async fn team_audit(
    State(control): State<Shared>,
    team: In<TeamAdmin>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer<Page<AuditEntry>>> {
    let limit = query.limit()?;
    let entries = control.state.audit(Some(team.team), query.before()?, limit + 1).await?;
    Ok(Answer(page(entries, limit, |entry| entry.number.to_string())))
}

async fn invite(
    control: &Control,
    caller: &Caller,
    invitation: impl FnOnce([u8; 32], u64) -> NewInvitation,
) -> Result<(StatusCode, Answer<Invitation>)> {
    let code = credential::random_hex()?;
    let usual_ms = now_ms().saturating_add(INVITATION_LIFE_MS);
    let invitation = invitation(credential::hash(&code), usual_ms);
    let expires_ms = invitation.expires_ms;
    control.state.invite(Actor::from(caller), invitation).await?;
    Ok((StatusCode::CREATED, Answer(Invitation { link: control.link(&code), expires_ms })))
}

/// Nobody gives a token what they do not have.
fn check_within(scopes: Scopes, own: Scopes) -> Result<()> {
    match scopes.iter().find(|scope| !own.contains(*scope)) {
        Some(scope) => Err(Error::Forbidden { scope: scope.as_str(), is_role: false }),
        None => Ok(()),
    }
}

fn expiry(seconds: Option<u64>) -> Result<u64> {
    match seconds.unwrap_or(DEFAULT_TOKEN_LIFE_SECONDS) {
        seconds @ 1..=MAX_TOKEN_LIFE_SECONDS => Ok(now_ms().saturating_add(seconds * 1_000)),
        _ => Err(Error::invalid(format!(
            "`expires_in_seconds` is a number from 1 to {MAX_TOKEN_LIFE_SECONDS} (five years)"
        ))),
    }
}

fn caller_role(caller: &Caller) -> Option<Role> {
    caller.user.is_none().then_some(caller.token_role)
}

fn member(name: &str) -> Result<UserName> {
    UserName::new(name).map_err(|_| Error::NotFound { noun: "member" })
}

fn token(id: &str) -> Result<TokenId> {
    TokenId::new(id).map_err(|_| Error::NotFound { noun: "token" })
}
