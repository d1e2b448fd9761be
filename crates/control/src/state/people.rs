//! Users, teams, members, tokens, and the ways in.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Actor, State, is_taken, known, now_ms, record, sql_int, stored, unsigned};
use crate::{
    access::{Role, Scopes},
    credential::Hash,
    error::{Error, Result},
    model::{Member, Team, Token, User},
    names::{Label, TeamId, TeamName, TokenId, UserId, UserName},
};

/// Tokens of one person or team. Nobody needs more, and each is looked at when listed.
pub(crate) const MAX_TOKENS_COUNT: u64 = 1_000;

/// Invitations that are open in one team.
const MAX_OPEN_COUNT: u64 = 1_000;

/// Sign-ins by code that one client has waiting: more than the machines of an office behind one
/// address begin in a quarter of an hour.
const MAX_DEVICES_OF_ORIGIN_COUNT: u64 = 50;

/// Sign-ins by code that wait on the server, at some 200 bytes each.
const MAX_DEVICES_COUNT: u64 = 5_000;

/// A token to be kept.
pub(crate) struct NewTokenRow {
    pub(crate) id: TokenId,
    pub(crate) hash: Hash,
    pub(crate) name: Label,
    pub(crate) user: Option<UserId>,
    pub(crate) team: Option<TeamId>,
    pub(crate) role: Role,
    pub(crate) scopes: Scopes,
    pub(crate) expires_ms: Option<u64>,
}

/// A token as it is found by its hash.
#[derive(Clone, Debug)]
pub(crate) struct TokenRow {
    pub(crate) id: TokenId,
    pub(crate) user: Option<(UserId, UserName)>,
    pub(crate) is_operator: bool,
    pub(crate) team: Option<(TeamId, TeamName)>,
    pub(crate) role: Role,
    pub(crate) scopes: Scopes,
    pub(crate) used_ms: Option<u64>,
}

/// Somebody who was let in by a link.
#[derive(Clone, Debug)]
pub(crate) struct SignedIn {
    pub(crate) user: UserId,
    pub(crate) name: UserName,
}

/// What a link lets somebody do.
pub(crate) struct NewInvitation {
    pub(crate) hash: Hash,
    pub(crate) user: Option<UserId>,
    pub(crate) team: Option<TeamId>,
    pub(crate) role: Role,
    pub(crate) is_operator: bool,
    pub(crate) expires_ms: u64,
}

/// An invitation as it is found.
struct InvitationRow {
    user: Option<UserId>,
    team: Option<TeamId>,
    role: Role,
    is_operator: bool,
}

impl State {
    /// Whether somebody has signed in ever.
    pub(crate) async fn has_users(&self) -> Result<bool> {
        self.read(|db| Ok(db.query_row("SELECT EXISTS (SELECT 1 FROM users)", [], |row| row.get(0))?)).await
    }

    /// Makes a team. `data_key` makes its wrapped key from its id.
    pub(crate) async fn create_team(
        &self,
        actor: Actor,
        name: TeamName,
        owner: Option<UserId>,
        data_key: impl FnOnce(TeamId) -> Result<Vec<u8>> + Send + 'static,
    ) -> Result<TeamId> {
        self.write(move |db| create_team(db, &actor, &name, owner, data_key)).await
    }

    /// Removes a team that has no apps and no resources.
    pub(crate) async fn remove_team(&self, actor: Actor, team: TeamId, name: TeamName) -> Result<()> {
        self.write(move |db| {
            let has = |table: &str| {
                db.query_row(
                    &format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE team_id = ?1)"),
                    [sql_int(team.0)],
                    |row| row.get::<_, bool>(0),
                )
            };
            if has("apps")? || has("resources")? {
                return Err(Error::Conflict {
                    message: "the team still has apps or resources".to_owned(),
                    hint: Some("remove them first; they hold data".to_owned()),
                });
            }
            db.execute("DELETE FROM teams WHERE id = ?1", [sql_int(team.0)])?;
            record(db, &actor, Some(team), "team.remove", name.as_str(), None)
        })
        .await
    }

    /// When a team was made.
    pub(crate) async fn team_created_ms(&self, team: TeamId) -> Result<u64> {
        self.read(move |db| {
            let found: Option<i64> = db
                .query_row("SELECT created_ms FROM teams WHERE id = ?1", [sql_int(team.0)], |row| row.get(0))
                .optional()?;
            found.map(unsigned).ok_or(Error::NotFound { noun: "team" })
        })
        .await
    }

    /// A team's id and what its data key is wrapped as.
    pub(crate) async fn data_key(&self, team: TeamId) -> Result<Vec<u8>> {
        self.read(move |db| {
            let key = db
                .query_row("SELECT data_key FROM teams WHERE id = ?1", [sql_int(team.0)], |row| row.get(0))
                .optional()?;
            key.ok_or(Error::NotFound { noun: "team" })
        })
        .await
    }

    /// A team and what somebody is in it. Whoever is nothing in it does not see it.
    pub(crate) async fn team_of_user(&self, user: UserId, name: TeamName) -> Result<Option<(TeamId, Role)>> {
        self.read(move |db| {
            let found = db
                .prepare_cached(
                    "SELECT teams.id, role FROM teams
                     JOIN memberships ON team_id = teams.id AND user_id = ?1
                     WHERE name = ?2",
                )?
                .query_row(params![sql_int(user.0), name.as_str()], |row| {
                    Ok((team_id(row, 0)?, role(row, 1)?))
                })
                .optional()?;
            Ok(found)
        })
        .await
    }

    /// The teams of a person, or all of them, in the order of their names, with what the
    /// person is in each.
    pub(crate) async fn teams(
        &self,
        user: UserId,
        all: bool,
        after: Option<String>,
        limit: usize,
    ) -> Result<Vec<Team>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT name, teams.created_ms, role FROM teams
                 LEFT JOIN memberships ON team_id = teams.id AND user_id = ?1
                 WHERE name > ?2 AND (?4 OR role IS NOT NULL)
                 ORDER BY name LIMIT ?3",
            )?;
            let rows = statement.query_map(
                params![sql_int(user.0), after.unwrap_or_default(), count(limit), all],
                |row| {
                    let found: Option<String> = row.get(2)?;
                    Ok(Team {
                        name: stored(TeamName::new(&row.get::<_, String>(0)?))?,
                        created_ms: unsigned(row.get(1)?),
                        role: found.as_deref().and_then(Role::parse),
                    })
                },
            )?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Members of a team, in the order of their names.
    pub(crate) async fn members(
        &self,
        team: TeamId,
        after: Option<String>,
        limit: usize,
    ) -> Result<Vec<Member>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT name, role FROM memberships JOIN users ON users.id = user_id
                 WHERE team_id = ?1 AND name > ?2 ORDER BY name LIMIT ?3",
            )?;
            let rows = statement
                .query_map(params![sql_int(team.0), after.unwrap_or_default(), count(limit)], |row| {
                    Ok(Member { user: user_name(row, 0)?, role: role(row, 1)? })
                })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Makes a member something else in the team.
    pub(crate) async fn set_role(
        &self,
        actor: Actor,
        team: TeamId,
        user: UserName,
        role: Role,
    ) -> Result<Member> {
        self.write(move |db| {
            let changed = db.execute(
                "UPDATE memberships SET role = ?3 WHERE team_id = ?1
                 AND user_id = (SELECT id FROM users WHERE name = ?2)",
                params![sql_int(team.0), user.as_str(), role.as_str()],
            )?;
            if changed == 0 {
                return Err(Error::NotFound { noun: "member" });
            }
            check_owners(db, team)?;
            record(db, &actor, Some(team), "member.change", user.as_str(), Some(role.as_str()))?;
            Ok(Member { user, role })
        })
        .await
    }

    /// Takes somebody out of a team, with the tokens they have for it alone.
    pub(crate) async fn remove_member(&self, actor: Actor, team: TeamId, user: UserName) -> Result<()> {
        self.write(move |db| {
            let id = user_id_of(db, &user)?;
            let removed = match id {
                Some(id) => db.execute(
                    "DELETE FROM memberships WHERE team_id = ?1 AND user_id = ?2",
                    params![sql_int(team.0), sql_int(id.0)],
                )?,
                None => 0,
            };
            let (Some(id), true) = (id, removed > 0) else {
                return Err(Error::NotFound { noun: "member" });
            };
            check_owners(db, team)?;
            db.execute(
                "DELETE FROM tokens WHERE team_id = ?1 AND user_id = ?2",
                params![sql_int(team.0), sql_int(id.0)],
            )?;
            record(db, &actor, Some(team), "member.remove", user.as_str(), None)
        })
        .await
    }

    /// All users, in the order of their names.
    pub(crate) async fn users(&self, after: Option<String>, limit: usize) -> Result<Vec<User>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT name, is_operator, created_ms FROM users WHERE name > ?1 ORDER BY name LIMIT ?2",
            )?;
            let rows = statement.query_map(params![after.unwrap_or_default(), count(limit)], |row| {
                Ok(User {
                    name: user_name(row, 0)?,
                    is_operator: row.get(1)?,
                    created_ms: unsigned(row.get(2)?),
                })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// The names of all teams.
    pub(crate) async fn team_names(&self) -> Result<HashSet<TeamName>> {
        self.read(|db| {
            let mut statement = db.prepare("SELECT name FROM teams")?;
            let rows = statement.query_map([], |row| stored(TeamName::new(&row.get::<_, String>(0)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// A user's id.
    pub(crate) async fn user(&self, name: UserName) -> Result<UserId> {
        self.read(move |db| user_id_of(db, &name)?.ok_or(Error::NotFound { noun: "user" })).await
    }

    /// Removes a user and all their tokens. The last operator stays, and who owns a team alone.
    pub(crate) async fn remove_user(&self, actor: Actor, name: UserName) -> Result<()> {
        self.write(move |db| {
            let id = user_id_of(db, &name)?.ok_or(Error::NotFound { noun: "user" })?;
            let mut teams = db.prepare("SELECT team_id FROM memberships WHERE user_id = ?1")?;
            let teams: Vec<TeamId> =
                teams.query_map([sql_int(id.0)], |row| team_id(row, 0))?.collect::<rusqlite::Result<_>>()?;
            db.execute("DELETE FROM users WHERE id = ?1", [sql_int(id.0)])?;
            teams.into_iter().try_for_each(|team| check_owners(db, team))?;
            let has_operator: bool =
                db.query_row("SELECT EXISTS (SELECT 1 FROM users WHERE is_operator)", [], |row| row.get(0))?;
            if !has_operator {
                return Err(Error::Conflict {
                    message: "the server needs an operator".to_owned(),
                    hint: Some("make somebody else one first".to_owned()),
                });
            }
            record(db, &actor, None, "user.remove", name.as_str(), None)
        })
        .await
    }

    /// Keeps a token.
    pub(crate) async fn create_token(&self, actor: Actor, token: NewTokenRow) -> Result<u64> {
        self.write(move |db| {
            let now = now_ms();
            let held: i64 = db.query_row(
                "SELECT count(*) FROM tokens WHERE user_id IS ?1 AND team_id IS ?2
                 AND coalesce(expires_ms > ?3, 1)",
                params![
                    token.user.map(|user| sql_int(user.0)),
                    token.team.map(|team| sql_int(team.0)),
                    sql_int(now)
                ],
                |row| row.get(0),
            )?;
            if unsigned(held) >= MAX_TOKENS_COUNT {
                return Err(Error::Quota { what: "number of tokens", limit: MAX_TOKENS_COUNT });
            }
            db.execute(
                "INSERT INTO tokens (id, hash, name, user_id, team_id, role, scopes, created_ms, expires_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    token.id.as_str(),
                    token.hash,
                    token.name.as_str(),
                    token.user.map(|user| sql_int(user.0)),
                    token.team.map(|team| sql_int(team.0)),
                    token.role.as_str(),
                    token.scopes.to_string(),
                    sql_int(now),
                    token.expires_ms.map(sql_int),
                ],
            )?;
            let scopes = token.scopes.to_string();
            record(db, &actor, token.team, "token.create", token.id.as_str(), Some(&scopes))?;
            Ok(now)
        })
        .await
    }

    /// The token with this hash, unless it has expired.
    pub(crate) async fn token(&self, hash: Hash) -> Result<Option<TokenRow>> {
        self.read(move |db| {
            let found = db
                .prepare_cached(
                    "SELECT tokens.id, user_id, users.name, coalesce(is_operator, 0), team_id, teams.name,
                            role, scopes, used_ms
                     FROM tokens
                     LEFT JOIN users ON users.id = user_id
                     LEFT JOIN teams ON teams.id = team_id
                     WHERE hash = ?1 AND coalesce(expires_ms > ?2, 1)",
                )?
                .query_row(params![hash, sql_int(now_ms())], |row| {
                    let user: Option<i64> = row.get(1)?;
                    let team: Option<i64> = row.get(4)?;
                    Ok(TokenRow {
                        id: token_id(row, 0)?,
                        user: match user {
                            Some(id) => Some((UserId(unsigned(id)), user_name(row, 2)?)),
                            None => None,
                        },
                        is_operator: row.get(3)?,
                        team: match team {
                            Some(id) => Some((
                                TeamId(unsigned(id)),
                                stored(TeamName::new(&row.get::<_, String>(5)?))?,
                            )),
                            None => None,
                        },
                        role: role(row, 6)?,
                        scopes: Scopes::parse(&row.get::<_, String>(7)?),
                        used_ms: row.get::<_, Option<i64>>(8)?.map(unsigned),
                    })
                })
                .optional()?;
            Ok(found)
        })
        .await
    }

    /// Remembers when a token was used.
    pub(crate) async fn touch_token(&self, id: TokenId) -> Result<()> {
        self.write(move |db| {
            db.prepare_cached("UPDATE tokens SET used_ms = ?2 WHERE id = ?1")?
                .execute(params![id.as_str(), sql_int(now_ms())])?;
            Ok(())
        })
        .await
    }

    /// Tokens of a person, or of a team and its members for that team alone.
    pub(crate) async fn tokens(
        &self,
        user: Option<UserId>,
        team: Option<TeamId>,
        after: Option<String>,
        limit: usize,
    ) -> Result<Vec<Token>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT tokens.id, tokens.name, teams.name, users.name, scopes, tokens.created_ms,
                        expires_ms, used_ms
                 FROM tokens
                 LEFT JOIN users ON users.id = user_id
                 LEFT JOIN teams ON teams.id = team_id
                 WHERE (?1 IS NULL OR user_id = ?1) AND (?2 IS NULL OR team_id = ?2) AND tokens.id > ?3
                 ORDER BY tokens.id LIMIT ?4",
            )?;
            let rows = statement.query_map(
                params![
                    user.map(|user| sql_int(user.0)),
                    team.map(|team| sql_int(team.0)),
                    after.unwrap_or_default(),
                    count(limit)
                ],
                |row| {
                    let team: Option<String> = row.get(2)?;
                    let user: Option<String> = row.get(3)?;
                    Ok(Token {
                        id: token_id(row, 0)?,
                        name: stored(Label::new(&row.get::<_, String>(1)?))?,
                        team: stored(team.map(|team| TeamName::new(&team)).transpose())?,
                        user: stored(user.map(|user| UserName::new(&user)).transpose())?,
                        scopes: Scopes::parse(&row.get::<_, String>(4)?).iter().collect(),
                        created_ms: unsigned(row.get(5)?),
                        expires_ms: row.get::<_, Option<i64>>(6)?.map(unsigned),
                        used_ms: row.get::<_, Option<i64>>(7)?.map(unsigned),
                    })
                },
            )?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Ends a token that belongs to this person, or to this team.
    pub(crate) async fn remove_token(
        &self,
        actor: Actor,
        id: TokenId,
        user: Option<UserId>,
        team: Option<TeamId>,
    ) -> Result<()> {
        self.write(move |db| {
            let removed = db.execute(
                "DELETE FROM tokens WHERE id = ?1 AND (?2 IS NULL OR user_id = ?2)
                 AND (?3 IS NULL OR team_id = ?3)",
                params![id.as_str(), user.map(|user| sql_int(user.0)), team.map(|team| sql_int(team.0))],
            )?;
            match removed {
                0 => Err(Error::NotFound { noun: "token" }),
                _ => record(db, &actor, team, "token.remove", id.as_str(), None),
            }
        })
        .await
    }

    /// Keeps a link that lets somebody in.
    pub(crate) async fn invite(&self, actor: Actor, invitation: NewInvitation) -> Result<()> {
        self.write(move |db| {
            db.execute("DELETE FROM invitations WHERE expires_ms <= ?1", [sql_int(now_ms())])?;
            let team = invitation.team.map(|team| sql_int(team.0));
            let open: i64 =
                db.query_row("SELECT count(*) FROM invitations WHERE team_id IS ?1", [team], |row| {
                    row.get(0)
                })?;
            if unsigned(open) >= MAX_OPEN_COUNT {
                return Err(Error::Quota { what: "number of open invitations", limit: MAX_OPEN_COUNT });
            }
            db.execute(
                "INSERT INTO invitations (hash, user_id, team_id, role, is_operator, expires_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    invitation.hash,
                    invitation.user.map(|user| sql_int(user.0)),
                    team,
                    invitation.role.as_str(),
                    invitation.is_operator,
                    sql_int(invitation.expires_ms),
                ],
            )?;
            record(db, &actor, invitation.team, "invitation.create", invitation.role.as_str(), None)
        })
        .await
    }

    /// Forgets links for operators that nobody has used, so that a new one is the only one.
    pub(crate) async fn forget_operator_invitations(&self) -> Result<()> {
        self.write(|db| {
            db.execute("DELETE FROM invitations WHERE is_operator AND user_id IS NULL", [])?;
            Ok(())
        })
        .await
    }

    /// Uses a link. `present` is who opens it, if they are signed in; `name` is what they want
    /// to be called otherwise. The link is used up only if all of it works.
    pub(crate) async fn accept(
        &self,
        from: String,
        hash: Hash,
        present: Option<UserId>,
        name: Option<UserName>,
        new_team: Option<TeamName>,
        data_key: impl FnOnce(TeamId) -> Result<Vec<u8>> + Send + 'static,
    ) -> Result<SignedIn> {
        self.write(move |db| {
            let found = db
                .query_row(
                    "DELETE FROM invitations WHERE hash = ?1 AND expires_ms > ?2
                     RETURNING user_id, team_id, role, is_operator",
                    params![hash, sql_int(now_ms())],
                    |row| {
                        Ok(InvitationRow {
                            user: row.get::<_, Option<i64>>(0)?.map(|id| UserId(unsigned(id))),
                            team: row.get::<_, Option<i64>>(1)?.map(|id| TeamId(unsigned(id))),
                            role: role(row, 2)?,
                            is_operator: row.get(3)?,
                        })
                    },
                )
                .optional()?;
            let invitation = found.ok_or(Error::CodeInvalid)?;
            let user = match invitation.user.or(present) {
                Some(user) => user,
                None => {
                    let name = name.ok_or_else(|| Error::invalid("choose a user name"))?;
                    create_user(db, &name, invitation.is_operator)?
                }
            };
            let name: UserName =
                db.query_row("SELECT name FROM users WHERE id = ?1", [sql_int(user.0)], |row| {
                    user_name(row, 0)
                })?;
            let actor = Actor { name: name.to_string(), token: None, from };
            if let Some(team) = invitation.team {
                // An invitation never takes anything away from somebody.
                db.execute(
                    "INSERT INTO memberships (team_id, user_id, role) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO NOTHING",
                    params![sql_int(team.0), sql_int(user.0), invitation.role.as_str()],
                )?;
                record(db, &actor, Some(team), "member.join", name.as_str(), Some(invitation.role.as_str()))?;
            }
            if let Some(team) = new_team.filter(|_| invitation.is_operator) {
                create_team(db, &actor, &team, Some(user), data_key)?;
            }
            record(db, &actor, None, "user.sign-in", name.as_str(), None)?;
            Ok(SignedIn { user, name })
        })
        .await
    }

    /// Begins a sign-in by code. Nobody is ever refused: where there is no room the oldest that
    /// nobody has confirmed goes, of the same client if that one has too many, else of the one
    /// that has most.
    pub(crate) async fn begin_device(
        &self,
        origin: String,
        device: Hash,
        code: Hash,
        name: String,
        expires_ms: u64,
    ) -> Result<()> {
        self.write(move |db| {
            db.execute("DELETE FROM device_sign_ins WHERE expires_ms <= ?1", [sql_int(now_ms())])?;
            let held: i64 = db
                .prepare_cached("SELECT count(*) FROM device_sign_ins WHERE origin = ?1 AND user_id IS NULL")?
                .query_row([&origin], |row| row.get(0))?;
            let all: i64 = db
                .prepare_cached("SELECT count(*) FROM device_sign_ins WHERE user_id IS NULL")?
                .query_row([], |row| row.get(0))?;
            let crowded = if unsigned(held) >= MAX_DEVICES_OF_ORIGIN_COUNT {
                Some(origin.clone())
            } else if unsigned(all) >= MAX_DEVICES_COUNT {
                let most = "SELECT origin FROM device_sign_ins WHERE user_id IS NULL
                            GROUP BY origin ORDER BY count(*) DESC LIMIT 1";
                db.prepare_cached(most)?.query_row([], |row| row.get(0)).optional()?
            } else {
                None
            };
            if let Some(crowded) = crowded {
                db.prepare_cached(
                    "DELETE FROM device_sign_ins WHERE device_hash =
                         (SELECT device_hash FROM device_sign_ins WHERE origin = ?1 AND user_id IS NULL
                          ORDER BY expires_ms LIMIT 1)",
                )?
                .execute([crowded])?;
            }
            db.prepare_cached(
                "INSERT INTO device_sign_ins (device_hash, code_hash, name, expires_ms, origin)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![device, code, name, sql_int(expires_ms), origin])?;
            Ok(())
        })
        .await
    }

    /// What a waiting sign-in calls itself.
    pub(crate) async fn device_name(&self, code: Hash) -> Result<String> {
        self.read(move |db| {
            let name = db
                .query_row(
                    "SELECT name FROM device_sign_ins
                     WHERE code_hash = ?1 AND expires_ms > ?2 AND user_id IS NULL",
                    params![code, sql_int(now_ms())],
                    |row| row.get(0),
                )
                .optional()?;
            name.ok_or(Error::CodeInvalid)
        })
        .await
    }

    /// Somebody who is signed in says that the code is theirs.
    pub(crate) async fn confirm_device(&self, actor: Actor, code: Hash, user: UserId) -> Result<()> {
        self.write(move |db| {
            let confirmed = db.execute(
                "UPDATE device_sign_ins SET user_id = ?2
                 WHERE code_hash = ?1 AND expires_ms > ?3 AND user_id IS NULL",
                params![code, sql_int(user.0), sql_int(now_ms())],
            )?;
            match confirmed {
                0 => Err(Error::CodeInvalid),
                _ => record(db, &actor, None, "device.confirm", &actor.name, None),
            }
        })
        .await
    }

    /// Who confirmed a sign-in; used up when it says so.
    pub(crate) async fn finish_device(&self, device: Hash) -> Result<SignedIn> {
        self.write(move |db| {
            let found = db
                .query_row(
                    "SELECT users.id, users.name FROM device_sign_ins
                     LEFT JOIN users ON users.id = user_id
                     WHERE device_hash = ?1 AND expires_ms > ?2",
                    params![device, sql_int(now_ms())],
                    |row| match row.get::<_, Option<i64>>(0)? {
                        Some(id) => {
                            Ok(Some(SignedIn { user: UserId(unsigned(id)), name: user_name(row, 1)? }))
                        }
                        None => Ok(None),
                    },
                )
                .optional()?;
            let signed_in = found.ok_or(Error::CodeInvalid)?.ok_or(Error::SignInPending)?;
            db.execute("DELETE FROM device_sign_ins WHERE device_hash = ?1", [device])?;
            Ok(signed_in)
        })
        .await
    }
}

fn create_user(db: &Connection, name: &UserName, is_operator: bool) -> Result<UserId> {
    let made = db.execute(
        "INSERT INTO users (name, is_operator, created_ms) VALUES (?1, ?2, ?3)",
        params![name.as_str(), is_operator, sql_int(now_ms())],
    );
    match made {
        Ok(_) => Ok(UserId(unsigned(db.last_insert_rowid()))),
        Err(error) if is_taken(&error) => Err(Error::Exists { noun: "user" }),
        Err(error) => Err(error.into()),
    }
}

fn create_team(
    db: &Connection,
    actor: &Actor,
    name: &TeamName,
    owner: Option<UserId>,
    data_key: impl FnOnce(TeamId) -> Result<Vec<u8>>,
) -> Result<TeamId> {
    let made = db.execute(
        "INSERT INTO teams (name, data_key, created_ms) VALUES (?1, x'', ?2)",
        params![name.as_str(), sql_int(now_ms())],
    );
    match made {
        Ok(_) => {}
        Err(error) if is_taken(&error) => return Err(Error::Exists { noun: "team" }),
        Err(error) => return Err(error.into()),
    }
    let team = TeamId(unsigned(db.last_insert_rowid()));
    db.execute("UPDATE teams SET data_key = ?2 WHERE id = ?1", params![sql_int(team.0), data_key(team)?])?;
    if let Some(owner) = owner {
        db.execute(
            "INSERT INTO memberships (team_id, user_id, role) VALUES (?1, ?2, 'owner')",
            params![sql_int(team.0), sql_int(owner.0)],
        )?;
    }
    record(db, actor, Some(team), "team.create", name.as_str(), None)?;
    Ok(team)
}

/// A team that nobody owns could never be changed again.
fn check_owners(db: &Connection, team: TeamId) -> Result<()> {
    let has_owner: bool = db.query_row(
        "SELECT EXISTS (SELECT 1 FROM memberships WHERE team_id = ?1 AND role = 'owner')",
        [sql_int(team.0)],
        |row| row.get(0),
    )?;
    match has_owner {
        true => Ok(()),
        false => Err(Error::Conflict {
            message: "a team needs an owner".to_owned(),
            hint: Some("make somebody else an owner first".to_owned()),
        }),
    }
}

fn user_id_of(db: &Connection, name: &UserName) -> Result<Option<UserId>> {
    let id = db
        .prepare_cached("SELECT id FROM users WHERE name = ?1")?
        .query_row([name.as_str()], |row| row.get(0))
        .optional()?;
    Ok(id.map(|id| UserId(unsigned(id))))
}

fn team_id(row: &Row<'_>, index: usize) -> rusqlite::Result<TeamId> {
    Ok(TeamId(unsigned(row.get(index)?)))
}

fn token_id(row: &Row<'_>, index: usize) -> rusqlite::Result<TokenId> {
    stored(TokenId::new(&row.get::<_, String>(index)?))
}

fn user_name(row: &Row<'_>, index: usize) -> rusqlite::Result<UserName> {
    stored(UserName::new(&row.get::<_, String>(index)?))
}

fn role(row: &Row<'_>, index: usize) -> rusqlite::Result<Role> {
    known(Role::parse(&row.get::<_, String>(index)?))
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
