//! Apps, their variables and their releases.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Actor, State, is_taken, now_ms, record, sql_int, stored, unsigned};
use crate::{
    description::ImageDescription,
    error::{Error, Result},
    model::{Release, ReleaseState},
    names::{AppId, AppName, ConfigurationId, Digest, Host, ReleaseNumber, TeamId, TeamName},
    platform::{AppKey, LinkedResource, Repository},
};

/// An app.
#[derive(Clone, Debug)]
pub(crate) struct AppRow {
    pub(crate) key: AppKey,
    pub(crate) current: Option<ReleaseNumber>,
    pub(crate) configuration: ConfigurationId,
    pub(crate) created_ms: u64,
}

/// A variable as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct StoredVariable {
    pub(crate) name: String,
    /// UTF-8, or sealed.
    pub(crate) value: Vec<u8>,
    pub(crate) is_secret: bool,
}

/// A release to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewRelease {
    pub(crate) image: Digest,
    pub(crate) description: ImageDescription,
    pub(crate) note: Option<String>,
    /// All variables of the release, if they are others than the app's.
    pub(crate) variables: Option<Vec<StoredVariable>>,
}

/// What a deployment is made of, with secrets still sealed.
#[derive(Clone, Debug)]
pub(crate) struct DeploymentParts {
    pub(crate) app: AppKey,
    pub(crate) release: ReleaseNumber,
    pub(crate) image: Digest,
    pub(crate) configuration: ConfigurationId,
    pub(crate) variables: Vec<StoredVariable>,
    pub(crate) links: Vec<LinkedResource>,
    pub(crate) domains: Vec<Host>,
    pub(crate) description: ImageDescription,
}

const APP_COLUMNS: &str = "apps.id, apps.name, team_id, teams.name, current_release, configuration_id,
    apps.created_ms";

/// The first release of an app with the same variables: the ids of configurations are those of
/// all teams, and would tell how much the others do.
const FIRST_WITH_VARIABLES: &str = "(SELECT min(number) FROM releases AS first
    WHERE first.app_id = releases.app_id AND first.configuration_id = releases.configuration_id)";

impl State {
    /// Makes an app without a release.
    pub(crate) async fn create_app(
        &self,
        actor: Actor,
        team: TeamId,
        team_name: TeamName,
        name: AppName,
        max_count: u64,
    ) -> Result<AppRow> {
        self.write(move |db| {
            let held: i64 = db
                .prepare_cached("SELECT count(*) FROM apps WHERE team_id = ?1")?
                .query_row([sql_int(team.0)], |row| row.get(0))?;
            if unsigned(held) >= max_count {
                return Err(Error::Quota { what: "number of apps", limit: max_count });
            }
            let now = now_ms();
            let made = db.execute(
                "INSERT INTO apps (team_id, name, configuration_id, created_ms) VALUES (?1, ?2, 0, ?3)",
                params![sql_int(team.0), name.as_str(), sql_int(now)],
            );
            match made {
                Ok(_) => {}
                Err(error) if is_taken(&error) => return Err(Error::Exists { noun: "app" }),
                Err(error) => return Err(error.into()),
            }
            let id = AppId(unsigned(db.last_insert_rowid()));
            let configuration = insert_configuration(db, id, &[])?;
            db.execute(
                "UPDATE apps SET configuration_id = ?2 WHERE id = ?1",
                params![sql_int(id.0), sql_int(configuration.0)],
            )?;
            record(db, &actor, Some(team), "app.create", name.as_str(), None)?;
            let key = AppKey { id, name, team_id: team, team: team_name };
            Ok(AppRow { key, current: None, configuration, created_ms: now })
        })
        .await
    }

    /// An app by its name.
    pub(crate) async fn app(&self, team: TeamId, name: AppName) -> Result<AppRow> {
        self.read(move |db| {
            let found = db
                .prepare_cached(&format!(
                    "SELECT {APP_COLUMNS} FROM apps JOIN teams ON teams.id = team_id
                     WHERE team_id = ?1 AND apps.name = ?2 AND NOT is_going"
                ))?
                .query_row(params![sql_int(team.0), name.as_str()], app_row)
                .optional()?;
            found.ok_or(Error::NotFound { noun: "app" })
        })
        .await
    }

    /// An app by its id, also one that is being removed.
    pub(crate) async fn app_by_id(&self, id: AppId) -> Result<AppRow> {
        self.read(move |db| app_by_id(db, id)).await
    }

    /// A team's apps, in the order of their names.
    pub(crate) async fn apps(
        &self,
        team: TeamId,
        after: Option<String>,
        limit: usize,
    ) -> Result<Vec<AppRow>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(&format!(
                "SELECT {APP_COLUMNS} FROM apps JOIN teams ON teams.id = team_id
                 WHERE team_id = ?1 AND apps.name > ?2 AND NOT is_going ORDER BY apps.name LIMIT ?3"
            ))?;
            let rows = statement.query_map(
                params![sql_int(team.0), after.unwrap_or_default(), i64::try_from(limit).unwrap_or(i64::MAX)],
                app_row,
            )?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// The apps of all teams that come after one, in the order in which they were made.
    pub(crate) async fn all_apps(&self, after: AppId, limit: usize) -> Result<Vec<AppKey>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(&format!(
                "SELECT {APP_COLUMNS} FROM apps JOIN teams ON teams.id = team_id
                 WHERE apps.id > ?1 AND NOT is_going ORDER BY apps.id LIMIT ?2"
            ))?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![sql_int(after.0), limit], app_row)?;
            Ok(rows.map(|row| Ok(row?.key)).collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Every app of one team, or of all, that has a release.
    pub(crate) async fn apps_that_serve(&self, team: Option<TeamId>) -> Result<Vec<AppId>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT id FROM apps WHERE current_release IS NOT NULL AND NOT is_going
                 AND (?1 IS NULL OR team_id = ?1) ORDER BY id",
            )?;
            let rows = statement
                .query_map([team.map(|team| sql_int(team.0))], |row| Ok(AppId(unsigned(row.get(0)?))))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// The releases of an app, the last first.
    pub(crate) async fn releases(
        &self,
        app: AppId,
        before: Option<ReleaseNumber>,
        limit: usize,
    ) -> Result<Vec<Release>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(&format!(
                "SELECT number, image, {FIRST_WITH_VARIABLES}, state, releases.created_ms, created_by, note,
                        number = current_release
                 FROM releases JOIN apps ON apps.id = app_id
                 WHERE app_id = ?1 AND number < ?2 ORDER BY number DESC LIMIT ?3"
            ))?;
            let before = before.map_or(i64::MAX, |number| sql_int(number.0));
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![sql_int(app.0), before, limit], release)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// One release, with what it asks for.
    pub(crate) async fn release(&self, app: AppId, number: ReleaseNumber) -> Result<Release> {
        self.read(move |db| {
            let found = db
                .prepare_cached(&format!(
                    "SELECT number, image, {FIRST_WITH_VARIABLES}, state, releases.created_ms, created_by,
                            note, coalesce(number = current_release, 0), description
                     FROM releases JOIN apps ON apps.id = app_id WHERE app_id = ?1 AND number = ?2"
                ))?
                .query_row(params![sql_int(app.0), sql_int(number.0)], |row| {
                    let mut release = release(row)?;
                    release.description = Some(description(row, 8)?);
                    Ok(release)
                })
                .optional()?;
            found.ok_or(Error::NotFound { noun: "release" })
        })
        .await
    }

    /// The release that served before the one that serves.
    pub(crate) async fn release_before(&self, app: AppId, current: ReleaseNumber) -> Result<ReleaseNumber> {
        self.read(move |db| {
            let found: Option<i64> = db.query_row(
                "SELECT max(number) FROM releases WHERE app_id = ?1 AND number < ?2 AND state = 'ready'",
                params![sql_int(app.0), sql_int(current.0)],
                |row| row.get(0),
            )?;
            found.map(|number| ReleaseNumber(unsigned(number))).ok_or_else(|| Error::Conflict {
                message: "there is no earlier release to go back to".to_owned(),
                hint: Some("list them with `wisp releases`".to_owned()),
            })
        })
        .await
    }

    /// The variables of a configuration.
    pub(crate) async fn variables(&self, configuration: ConfigurationId) -> Result<Vec<StoredVariable>> {
        self.read(move |db| variables(db, configuration)).await
    }

    /// Gives an app without a release other variables to begin with.
    pub(crate) async fn set_variables(
        &self,
        actor: Actor,
        app: AppKey,
        variables: Vec<StoredVariable>,
        detail: String,
    ) -> Result<()> {
        self.write(move |db| {
            let configuration = insert_configuration(db, app.id, &variables)?;
            let changed = db.execute(
                "UPDATE apps SET configuration_id = ?2
                 WHERE id = ?1 AND current_release IS NULL AND NOT is_going
                 AND NOT EXISTS (SELECT 1 FROM operations WHERE app_id = ?1 AND progress = 'running')",
                params![sql_int(app.id.0), sql_int(configuration.0)],
            )?;
            if changed == 0 {
                return Err(super::operations::busy());
            }
            forget_configurations(db, app.id)?;
            record(db, &actor, Some(app.team_id), "variables.change", app.name.as_str(), Some(&detail))
        })
        .await
    }

    /// Whether there is an app of this name that answers: that one is only thought of is nobody's
    /// business.
    pub(crate) async fn has_app(&self, team: TeamName, app: AppName) -> Result<bool> {
        self.read(move |db| {
            let has = db
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM apps JOIN teams ON teams.id = team_id
                     WHERE teams.name = ?1 AND apps.name = ?2 AND NOT is_going
                     AND current_release IS NOT NULL)",
                )?
                .query_row([team.as_str(), app.as_str()], |row| row.get(0))?;
            Ok(has)
        })
        .await
    }

    /// Every image that a release is made of, but for these releases and those that failed: they
    /// will never serve.
    pub(crate) async fn images(
        &self,
        without: HashSet<(AppId, ReleaseNumber)>,
    ) -> Result<HashSet<(Repository, Digest)>> {
        self.read(move |db| {
            let mut statement = db.prepare(
                "SELECT teams.name, apps.name, image, app_id, number FROM releases
                 JOIN apps ON apps.id = app_id JOIN teams ON teams.id = team_id
                 WHERE state <> 'failed'",
            )?;
            let rows = statement.query_map([], |row| {
                let release = (AppId(unsigned(row.get(3)?)), ReleaseNumber(unsigned(row.get(4)?)));
                let repository = Repository {
                    team: stored(TeamName::new(&row.get::<_, String>(0)?))?,
                    app: stored(AppName::new(&row.get::<_, String>(1)?))?,
                };
                Ok((!without.contains(&release)).then_some((repository, digest(row, 2)?)))
            })?;
            rows.filter_map(|row| row.transpose()).map(|row| Ok(row?)).collect()
        })
        .await
    }

    /// Releases beyond those that are kept, of all apps. `kept_count` says how many of a team's
    /// apps are.
    pub(crate) async fn surplus_releases(
        &self,
        kept_count: impl Fn(&TeamName) -> u64 + Send + 'static,
    ) -> Result<Vec<(AppKey, ReleaseNumber)>> {
        self.read(move |db| {
            // Who has two has one to go back to, and that one is always kept.
            let mut statement = db.prepare(&format!(
                "SELECT {APP_COLUMNS} FROM apps JOIN teams ON teams.id = team_id
                 WHERE (SELECT count(*) FROM releases WHERE app_id = apps.id) > 2 ORDER BY apps.id"
            ))?;
            let apps = statement.query_map([], app_row)?;
            let mut found = Vec::new();
            for app in apps {
                let key = app?.key;
                let surplus = surplus(db, key.id, kept_count(&key.team))?;
                found.extend(surplus.into_iter().map(|number| (key.clone(), number)));
            }
            Ok(found)
        })
        .await
    }

    /// Forgets releases of an app beyond those that are kept, and says which.
    pub(crate) async fn forget_surplus(&self, app: AppId, kept_count: u64) -> Result<Vec<ReleaseNumber>> {
        self.write(move |db| forget_surplus(db, app, kept_count)).await
    }

    /// What a release of an app is made of.
    pub(crate) async fn deployment(&self, app: AppId, release: ReleaseNumber) -> Result<DeploymentParts> {
        self.read(move |db| deployment(db, app, release)).await
    }

    /// What every release that serves is made of, as of one moment.
    pub(crate) async fn current_deployments(&self) -> Result<Vec<DeploymentParts>> {
        self.read(|db| {
            let mut statement = db.prepare(
                "SELECT id, current_release FROM apps
                 WHERE current_release IS NOT NULL AND NOT is_going ORDER BY id",
            )?;
            let serving = statement.query_map([], |row| {
                Ok((AppId(unsigned(row.get(0)?)), ReleaseNumber(unsigned(row.get(1)?))))
            })?;
            serving
                .map(|row| {
                    let (app, release) = row?;
                    deployment(db, app, release)
                })
                .collect()
        })
        .await
    }

    /// What the release that serves is made of.
    pub(crate) async fn current_deployment(&self, app: AppId) -> Result<Option<DeploymentParts>> {
        self.read(move |db| match app_by_id(db, app)?.current {
            Some(release) => deployment(db, app, release).map(Some),
            None => Ok(None),
        })
        .await
    }
}

/// Makes a release, in the transaction that also makes its operation.
pub(super) fn insert_release(
    db: &Connection,
    actor: &Actor,
    app: &AppKey,
    release: &NewRelease,
) -> Result<ReleaseNumber> {
    let (number, configuration): (i64, i64) = db.query_row(
        "UPDATE apps SET last_release = last_release + 1 WHERE id = ?1
         RETURNING last_release, configuration_id",
        [sql_int(app.id.0)],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let configuration = match &release.variables {
        Some(variables) => sql_int(insert_configuration(db, app.id, variables)?.0),
        None => configuration,
    };
    let description =
        serde_json::to_string(&release.description).map_err(|error| Error::State(error.to_string()))?;
    db.prepare_cached(
        "INSERT INTO releases
         (app_id, number, image, configuration_id, state, description, note, created_ms, created_by)
         VALUES (?1, ?2, ?3, ?4, 'pending', ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        sql_int(app.id.0),
        number,
        release.image.as_str(),
        configuration,
        description,
        release.note,
        sql_int(now_ms()),
        actor.name,
    ])?;
    Ok(ReleaseNumber(unsigned(number)))
}

/// Lets a release serve, in the transaction that also tells the nodes.
pub(super) fn point_to(db: &Connection, app: AppId, release: Option<ReleaseNumber>) -> Result<()> {
    let Some(release) = release else {
        db.execute("UPDATE apps SET current_release = NULL WHERE id = ?1", [sql_int(app.0)])?;
        return Ok(());
    };
    db.prepare_cached(
        "UPDATE apps SET current_release = ?2, configuration_id =
             (SELECT configuration_id FROM releases WHERE app_id = ?1 AND number = ?2)
         WHERE id = ?1",
    )?
    .execute(params![sql_int(app.0), sql_int(release.0)])?;
    db.prepare_cached("UPDATE releases SET state = 'ready' WHERE app_id = ?1 AND number = ?2")?
        .execute(params![sql_int(app.0), sql_int(release.0)])?;
    Ok(())
}

/// Releases of an app beyond so many that served, and so many that failed; the last first. Not
/// among them are the one that serves and those that an operation is about.
fn surplus(db: &Connection, app: AppId, kept_count: u64) -> Result<Vec<ReleaseNumber>> {
    let mut statement = db.prepare_cached(
        "SELECT number FROM releases WHERE app_id = ?1 AND state = ?2
         AND number IS NOT (SELECT current_release FROM apps WHERE id = ?1)
         AND NOT EXISTS (SELECT 1 FROM operations WHERE operations.app_id = ?1 AND progress = 'running'
             AND number IN (release, json_extract(request, '$.previous')))
         ORDER BY number DESC LIMIT -1 OFFSET ?3",
    )?;
    let mut found = Vec::new();
    for state in ["ready", "failed"] {
        let rows = statement.query_map(params![sql_int(app.0), state, sql_int(kept_count)], |row| {
            Ok(ReleaseNumber(unsigned(row.get(0)?)))
        })?;
        for number in rows {
            found.push(number?);
        }
    }
    Ok(found)
}

/// Forgets releases of an app beyond those that are kept.
pub(super) fn forget_surplus(db: &Connection, app: AppId, kept_count: u64) -> Result<Vec<ReleaseNumber>> {
    let surplus = surplus(db, app, kept_count)?;
    for number in &surplus {
        db.prepare_cached("DELETE FROM releases WHERE app_id = ?1 AND number = ?2")?
            .execute(params![sql_int(app.0), sql_int(number.0)])?;
    }
    forget_configurations(db, app)?;
    Ok(surplus)
}

pub(super) fn app_by_id(db: &Connection, id: AppId) -> Result<AppRow> {
    let found = db
        .prepare_cached(&format!(
            "SELECT {APP_COLUMNS} FROM apps JOIN teams ON teams.id = team_id WHERE apps.id = ?1"
        ))?
        .query_row([sql_int(id.0)], app_row)
        .optional()?;
    found.ok_or(Error::NotFound { noun: "app" })
}

fn insert_configuration(
    db: &Connection,
    app: AppId,
    variables: &[StoredVariable],
) -> Result<ConfigurationId> {
    db.prepare_cached("INSERT INTO configurations (app_id, created_ms) VALUES (?1, ?2)")?
        .execute(params![sql_int(app.0), sql_int(now_ms())])?;
    let id = db.last_insert_rowid();
    let mut statement = db.prepare_cached(
        "INSERT INTO variables (configuration_id, name, value, is_secret) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for variable in variables {
        statement.execute(params![id, variable.name, variable.value, variable.is_secret])?;
    }
    Ok(ConfigurationId(unsigned(id)))
}

/// Forgets configurations that nothing refers to.
fn forget_configurations(db: &Connection, app: AppId) -> Result<()> {
    db.prepare_cached(
        "DELETE FROM configurations WHERE app_id = ?1
         AND id <> (SELECT configuration_id FROM apps WHERE id = ?1)
         AND id NOT IN (SELECT configuration_id FROM releases WHERE app_id = ?1)",
    )?
    .execute([sql_int(app.0)])?;
    Ok(())
}

fn variables(db: &Connection, configuration: ConfigurationId) -> Result<Vec<StoredVariable>> {
    let mut statement = db.prepare_cached(
        "SELECT name, value, is_secret FROM variables WHERE configuration_id = ?1 ORDER BY name",
    )?;
    let rows = statement.query_map([sql_int(configuration.0)], |row| {
        Ok(StoredVariable { name: row.get(0)?, value: row.get(1)?, is_secret: row.get(2)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn deployment(db: &Connection, app: AppId, release: ReleaseNumber) -> Result<DeploymentParts> {
    let key = app_by_id(db, app)?.key;
    let (image, configuration, description) = db
        .prepare_cached(
            "SELECT image, configuration_id, description FROM releases WHERE app_id = ?1 AND number = ?2",
        )?
        .query_row(params![sql_int(app.0), sql_int(release.0)], |row| {
            Ok((digest(row, 0)?, ConfigurationId(unsigned(row.get(1)?)), description(row, 2)?))
        })
        .optional()?
        .ok_or(Error::NotFound { noun: "release" })?;
    Ok(DeploymentParts {
        release,
        image,
        configuration,
        variables: variables(db, configuration)?,
        links: super::resources::linked(db, &key)?,
        domains: super::domains::verified(db, app)?,
        description,
        app: key,
    })
}

fn app_row(row: &Row<'_>) -> rusqlite::Result<AppRow> {
    Ok(AppRow {
        key: AppKey {
            id: AppId(unsigned(row.get(0)?)),
            name: stored(AppName::new(&row.get::<_, String>(1)?))?,
            team_id: TeamId(unsigned(row.get(2)?)),
            team: stored(TeamName::new(&row.get::<_, String>(3)?))?,
        },
        current: row.get::<_, Option<i64>>(4)?.map(|number| ReleaseNumber(unsigned(number))),
        configuration: ConfigurationId(unsigned(row.get(5)?)),
        created_ms: unsigned(row.get(6)?),
    })
}

fn release(row: &Row<'_>) -> rusqlite::Result<Release> {
    Ok(Release {
        number: ReleaseNumber(unsigned(row.get(0)?)),
        image: digest(row, 1)?,
        configuration: ReleaseNumber(unsigned(row.get(2)?)),
        state: match row.get::<_, String>(3)?.as_str() {
            "ready" => ReleaseState::Ready,
            "failed" => ReleaseState::Failed,
            _ => ReleaseState::Pending,
        },
        created_ms: unsigned(row.get(4)?),
        created_by: row.get(5)?,
        note: row.get(6)?,
        is_current: row.get::<_, Option<bool>>(7)?.unwrap_or(false),
        description: None,
    })
}

fn digest(row: &Row<'_>, index: usize) -> rusqlite::Result<Digest> {
    stored(Digest::new(&row.get::<_, String>(index)?))
}

fn description(row: &Row<'_>, index: usize) -> rusqlite::Result<ImageDescription> {
    stored(serde_json::from_str(&row.get::<_, String>(index)?))
}
