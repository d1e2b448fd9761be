//! Operations, their steps, and the stream of changes that they end in.

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    Actor, State,
    apps::{NewRelease, app_by_id, forget_surplus, insert_release, point_to},
    is_taken, known, now_ms, record, sql_int, stored, unsigned,
};
use crate::{
    error::{Error, Result},
    model::{ErrorBody, OperationKind, Progress, Step},
    names::{AppId, AppName, ChangeNumber, OperationId, ReleaseNumber, TeamId, TeamName},
    platform::AppKey,
};

/// Operations that are kept of an app.
const KEPT_OPERATIONS_COUNT: i64 = 200;

/// Changes about apps that are gone which are kept for nodes that were away. A node that was
/// away for longer begins anew.
const KEPT_REMOVALS_COUNT: i64 = 100_000;

/// An operation to begin.
pub(crate) struct NewOperation {
    pub(crate) id: OperationId,
    pub(crate) app: AppKey,
    pub(crate) kind: OperationKind,
    /// A release to make for it.
    pub(crate) new_release: Option<NewRelease>,
    /// The release to bring to serve, if it is there already.
    pub(crate) release: Option<ReleaseNumber>,
    pub(crate) steps: &'static [&'static str],
    /// The idempotency key of the request, so that it finds this operation again.
    pub(crate) keyed: Option<Keyed>,
    /// What it does, for the audit log.
    pub(crate) action: &'static str,
    pub(crate) detail: Option<String>,
}

/// A request with an idempotency key.
#[derive(Clone, Debug)]
pub(crate) struct Keyed {
    /// Whose key.
    pub(crate) caller: String,
    pub(crate) key: String,
}

/// An operation as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct OperationRow {
    pub(crate) id: OperationId,
    pub(crate) app: AppId,
    pub(crate) app_name: AppName,
    pub(crate) kind: OperationKind,
    pub(crate) release: Option<ReleaseNumber>,
    pub(crate) previous: Option<ReleaseNumber>,
    pub(crate) progress: Progress,
    pub(crate) steps: Vec<Step>,
    pub(crate) error: Option<ErrorBody>,
    pub(crate) created_ms: u64,
    pub(crate) ended_ms: Option<u64>,
    pub(crate) created_by: String,
}

/// A change as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct StoredChange {
    pub(crate) number: ChangeNumber,
    pub(crate) is_removal: bool,
    pub(crate) app: AppKey,
    pub(crate) release: Option<ReleaseNumber>,
}

const OPERATION_COLUMNS: &str = "id, app_id, app_name, kind, release, progress, error, created_ms,
    ended_ms, created_by, request";

impl State {
    /// Begins an operation, if no other of the app runs, and makes its release.
    pub(crate) async fn begin(&self, actor: Actor, operation: NewOperation) -> Result<Option<ReleaseNumber>> {
        self.write(move |db| {
            let app = &operation.app;
            let release = match &operation.new_release {
                Some(release) => Some(insert_release(db, &actor, app, release)?),
                None => operation.release,
            };
            // To go back to, if the machine does not take the new one.
            let previous: Option<i64> = db
                .prepare_cached("SELECT current_release FROM apps WHERE id = ?1")?
                .query_row([sql_int(app.id.0)], |row| row.get(0))
                .optional()?
                .flatten();
            let begun = db
                .prepare_cached(
                    "INSERT INTO operations
                     (id, team_id, app_id, app_name, kind, release, progress, request, created_ms, created_by)
                     SELECT ?1, ?2, ?3, ?4, ?5, ?6, 'running', ?7, ?8, ?9
                     FROM apps WHERE id = ?3 AND NOT is_going",
                )?
                .execute(params![
                    operation.id.as_str(),
                    sql_int(app.team_id.0),
                    sql_int(app.id.0),
                    app.name.as_str(),
                    word_of_kind(operation.kind),
                    release.map(|number| sql_int(number.0)),
                    serde_json::json!({ "previous": previous }).to_string(),
                    sql_int(now_ms()),
                    actor.name,
                ]);
            match begun {
                Ok(0) => return Err(Error::NotFound { noun: "app" }),
                Ok(_) => {}
                Err(error) if is_taken(&error) => return Err(busy()),
                Err(error) => return Err(error.into()),
            }
            let mut statement = db.prepare_cached(
                "INSERT INTO steps (operation_id, position, name, progress) VALUES (?1, ?2, ?3, 'waiting')",
            )?;
            for (position, name) in operation.steps.iter().enumerate() {
                statement.execute(params![operation.id.as_str(), sql_place(position), name])?;
            }
            if let Some(Keyed { caller, key }) = &operation.keyed {
                super::records::answer_with_operation(db, caller, key, &operation.id)?;
            }
            db.prepare_cached(
                "DELETE FROM operations WHERE app_id = ?1 AND progress <> 'running' AND id NOT IN
                 (SELECT id FROM operations WHERE app_id = ?1 ORDER BY created_ms DESC LIMIT ?2)",
            )?
            .execute(params![sql_int(app.id.0), KEPT_OPERATIONS_COUNT])?;
            if operation.kind == OperationKind::Remove {
                db.execute("UPDATE apps SET is_going = 1 WHERE id = ?1", [sql_int(app.id.0)])?;
            }
            let detail =
                operation.detail.clone().or_else(|| release.map(|number| format!("release {number}")));
            let subject = app.name.as_str();
            record(db, &actor, Some(app.team_id), operation.action, subject, detail.as_deref())?;
            Ok(release)
        })
        .await
    }

    /// An operation of a team.
    pub(crate) async fn operation(&self, team: TeamId, id: OperationId) -> Result<OperationRow> {
        self.read(move |db| {
            let found = db
                .prepare_cached(&format!(
                    "SELECT {OPERATION_COLUMNS} FROM operations WHERE id = ?1 AND team_id = ?2"
                ))?
                .query_row(params![id.as_str(), sql_int(team.0)], operation_row)
                .optional()?;
            with_steps(db, found.ok_or(Error::NotFound { noun: "operation" })?)
        })
        .await
    }

    /// An operation, and the name of its team.
    pub(crate) async fn operation_and_team(&self, id: OperationId) -> Result<(OperationRow, TeamName)> {
        self.read(move |db| {
            let found = db
                .prepare_cached(&format!("SELECT {OPERATION_COLUMNS} FROM operations WHERE id = ?1"))?
                .query_row([id.as_str()], operation_row)
                .optional()?;
            let row = with_steps(db, found.ok_or(Error::NotFound { noun: "operation" })?)?;
            let team: String = db.query_row(
                "SELECT name FROM teams WHERE id = (SELECT team_id FROM operations WHERE id = ?1)",
                [id.as_str()],
                |row| row.get(0),
            )?;
            Ok((row, stored(TeamName::new(&team))?))
        })
        .await
    }

    /// The last operations of an app, the last first, after one that was asked for then.
    pub(crate) async fn operations(
        &self,
        app: AppId,
        after: Option<(u64, OperationId)>,
        limit: usize,
    ) -> Result<Vec<OperationRow>> {
        self.read(move |db| {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let (created_ms, id) = match &after {
                Some((created_ms, id)) => (sql_int(*created_ms), id.as_str()),
                None => (i64::MAX, ""),
            };
            let mut statement = db.prepare_cached(&format!(
                "SELECT {OPERATION_COLUMNS} FROM operations
                 WHERE app_id = ?1 AND (created_ms < ?2 OR (created_ms = ?2 AND id > ?3))
                 ORDER BY created_ms DESC, id LIMIT ?4"
            ))?;
            let rows = statement.query_map(params![sql_int(app.0), created_ms, id, limit], operation_row)?;
            rows.map(|row| with_steps(db, row?)).collect()
        })
        .await
    }

    /// The operation of an app that runs.
    pub(crate) async fn running(&self, app: AppId) -> Result<Option<OperationId>> {
        self.read(move |db| {
            let id: Option<String> = db
                .query_row(
                    "SELECT id FROM operations WHERE app_id = ?1 AND progress = 'running'",
                    [sql_int(app.0)],
                    |row| row.get(0),
                )
                .optional()?;
            Ok(stored(id.map(|id| OperationId::new(&id)).transpose())?)
        })
        .await
    }

    /// All operations that run, or ran when the process ended.
    pub(crate) async fn all_running(&self) -> Result<Vec<OperationRow>> {
        self.read(|db| {
            let mut statement = db.prepare(&format!(
                "SELECT {OPERATION_COLUMNS} FROM operations WHERE progress = 'running' ORDER BY created_ms"
            ))?;
            let rows = statement.query_map([], operation_row)?;
            rows.map(|row| with_steps(db, row?)).collect()
        })
        .await
    }

    /// Says how far a step has come.
    pub(crate) async fn set_step(
        &self,
        id: OperationId,
        position: usize,
        progress: Progress,
        duration_us: Option<u64>,
        detail: Option<String>,
    ) -> Result<()> {
        self.write(move |db| set_step(db, &id, position, progress, duration_us, detail.as_deref())).await
    }

    /// Ends one step and begins the next, or one of both.
    pub(crate) async fn advance(
        &self,
        id: OperationId,
        finished: Option<(usize, u64, Option<String>)>,
        begun: Option<usize>,
    ) -> Result<()> {
        self.write(move |db| {
            if let Some((position, duration_us, detail)) = finished {
                set_step(db, &id, position, Progress::Done, Some(duration_us), detail.as_deref())?;
            }
            match begun {
                Some(position) => set_step(db, &id, position, Progress::Running, None, None),
                None => Ok(()),
            }
        })
        .await
    }

    /// Lets a release serve and tells the nodes: both, or neither.
    pub(crate) async fn swap(&self, app: AppKey, release: Option<ReleaseNumber>) -> Result<ChangeNumber> {
        self.write(move |db| {
            point_to(db, app.id, release)?;
            append_change(db, &app, release)
        })
        .await
    }

    /// Tells the nodes about the release that serves again, since what belongs to it has changed.
    pub(crate) async fn append_refresh(&self, app: AppKey) -> Result<Option<ChangeNumber>> {
        self.write(move |db| match app_by_id(db, app.id)?.current {
            Some(release) => append_change(db, &app, Some(release)).map(Some),
            None => Ok(None),
        })
        .await
    }

    /// Tells the nodes that an app serves no more.
    pub(crate) async fn append_removal(&self, app: AppKey) -> Result<ChangeNumber> {
        self.write(move |db| append_change(db, &app, None)).await
    }

    /// Keeps an app that was to be removed.
    pub(crate) async fn keep_app(&self, app: AppId) -> Result<()> {
        self.write(move |db| {
            db.execute("UPDATE apps SET is_going = 0 WHERE id = ?1", [sql_int(app.0)])?;
            Ok(())
        })
        .await
    }

    /// Ends an operation well. Of the releases before, so many are kept.
    pub(crate) async fn finish(&self, id: OperationId, app: AppId, kept_count: u64) -> Result<()> {
        self.write(move |db| {
            end(db, &id, Progress::Done, None)?;
            forget_surplus(db, app, kept_count).map(drop)
        })
        .await
    }

    /// Ends an operation that failed in a step; its release is never to serve. So many such
    /// releases are kept.
    pub(crate) async fn fail(
        &self,
        id: OperationId,
        app: AppId,
        release: Option<ReleaseNumber>,
        error: ErrorBody,
        kept_count: u64,
    ) -> Result<()> {
        self.write(move |db| {
            if let Some(release) = release {
                db.execute(
                    "UPDATE releases SET state = 'failed'
                     WHERE app_id = ?1 AND number = ?2 AND state = 'pending'",
                    params![sql_int(app.0), sql_int(release.0)],
                )?;
            }
            end(db, &id, Progress::Failed, Some(&error))?;
            forget_surplus(db, app, kept_count).map(drop)
        })
        .await
    }

    /// Removes an app and all that is only its own. Its resources stay.
    pub(crate) async fn erase_app(&self, id: OperationId, app: AppId) -> Result<()> {
        self.write(move |db| {
            // Configurations and releases refer to each other; both go with the app.
            db.execute("DELETE FROM releases WHERE app_id = ?1", [sql_int(app.0)])?;
            db.execute("DELETE FROM apps WHERE id = ?1", [sql_int(app.0)])?;
            end(db, &id, Progress::Done, None)
        })
        .await
    }

    /// Changes after a number, in order; and the last number there is.
    pub(crate) async fn changes(
        &self,
        after: ChangeNumber,
        limit: usize,
    ) -> Result<(Vec<StoredChange>, ChangeNumber)> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT number, kind, team_id, team_name, app_id, app_name, release FROM changes
                 WHERE number > ?1 ORDER BY number LIMIT ?2",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![sql_int(after.0), limit], |row| {
                Ok(StoredChange {
                    number: ChangeNumber(unsigned(row.get(0)?)),
                    is_removal: row.get::<_, String>(1)? == "remove",
                    app: AppKey {
                        id: AppId(unsigned(row.get(4)?)),
                        name: stored(AppName::new(&row.get::<_, String>(5)?))?,
                        team_id: TeamId(unsigned(row.get(2)?)),
                        team: stored(TeamName::new(&row.get::<_, String>(3)?))?,
                    },
                    release: row.get::<_, Option<i64>>(6)?.map(|number| ReleaseNumber(unsigned(number))),
                })
            })?;
            let changes = rows.collect::<rusqlite::Result<_>>()?;
            let last: Option<i64> = db.query_row("SELECT max(number) FROM changes", [], |row| row.get(0))?;
            Ok((changes, ChangeNumber(unsigned(last.unwrap_or_default()))))
        })
        .await
    }
}

/// A step's place, as SQLite keeps numbers.
fn sql_place(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

/// Only one operation of an app may run.
pub(super) fn busy() -> Error {
    Error::Conflict {
        message: "another operation of this app is running".to_owned(),
        hint: Some("wait until it has ended, then try again".to_owned()),
    }
}

/// Appends to the stream that nodes follow. What was said about the app before is no longer
/// worth knowing.
fn append_change(db: &Connection, app: &AppKey, release: Option<ReleaseNumber>) -> Result<ChangeNumber> {
    db.prepare_cached("DELETE FROM changes WHERE app_id = ?1")?.execute([sql_int(app.id.0)])?;
    db.prepare_cached(
        "INSERT INTO changes (kind, team_id, team_name, app_id, app_name, release)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        if release.is_some() { "put" } else { "remove" },
        sql_int(app.team_id.0),
        app.team.as_str(),
        sql_int(app.id.0),
        app.name.as_str(),
        release.map(|number| sql_int(number.0)),
    ])?;
    let number = db.last_insert_rowid();
    if release.is_none() {
        db.prepare_cached("DELETE FROM changes WHERE kind = 'remove' AND number < ?1")?
            .execute([number.saturating_sub(KEPT_REMOVALS_COUNT)])?;
    }
    Ok(ChangeNumber(unsigned(number)))
}

fn end(db: &Connection, id: &OperationId, progress: Progress, error: Option<&ErrorBody>) -> Result<()> {
    let error = error.and_then(|error| serde_json::to_string(error).ok());
    db.prepare_cached("UPDATE operations SET progress = ?2, error = ?3, ended_ms = ?4 WHERE id = ?1")?
        .execute(params![id.as_str(), word_of_progress(progress), error, sql_int(now_ms())])?;
    Ok(())
}

fn set_step(
    db: &Connection,
    id: &OperationId,
    position: usize,
    progress: Progress,
    duration_us: Option<u64>,
    detail: Option<&str>,
) -> Result<()> {
    db.prepare_cached(
        "UPDATE steps SET progress = ?3, duration_us = ?4, detail = ?5
         WHERE operation_id = ?1 AND position = ?2",
    )?
    .execute(params![
        id.as_str(),
        sql_place(position),
        word_of_progress(progress),
        duration_us.map(sql_int),
        detail
    ])?;
    Ok(())
}

fn with_steps(db: &Connection, mut operation: OperationRow) -> Result<OperationRow> {
    let mut statement = db.prepare_cached(
        "SELECT name, progress, duration_us, detail FROM steps WHERE operation_id = ?1 ORDER BY position",
    )?;
    let rows = statement.query_map([operation.id.as_str()], |row| {
        Ok(Step {
            name: row.get(0)?,
            progress: known(progress_of_word(&row.get::<_, String>(1)?))?,
            duration_us: row.get::<_, Option<i64>>(2)?.map(unsigned),
            detail: row.get(3)?,
        })
    })?;
    operation.steps = rows.collect::<rusqlite::Result<_>>()?;
    Ok(operation)
}

fn operation_row(row: &Row<'_>) -> rusqlite::Result<OperationRow> {
    let error: Option<String> = row.get(6)?;
    let request: serde_json::Value = stored(serde_json::from_str(&row.get::<_, String>(10)?))?;
    Ok(OperationRow {
        id: stored(OperationId::new(&row.get::<_, String>(0)?))?,
        app: AppId(unsigned(row.get(1)?)),
        app_name: stored(AppName::new(&row.get::<_, String>(2)?))?,
        kind: known(kind_of_word(&row.get::<_, String>(3)?))?,
        release: row.get::<_, Option<i64>>(4)?.map(|number| ReleaseNumber(unsigned(number))),
        previous: request.get("previous").and_then(serde_json::Value::as_u64).map(ReleaseNumber),
        progress: known(progress_of_word(&row.get::<_, String>(5)?))?,
        steps: Vec::new(),
        error: stored(error.map(|error| serde_json::from_str(&error)).transpose())?,
        created_ms: unsigned(row.get(7)?),
        ended_ms: row.get::<_, Option<i64>>(8)?.map(unsigned),
        created_by: row.get(9)?,
    })
}

const KINDS: [(OperationKind, &str); 4] = [
    (OperationKind::Deploy, "deploy"),
    (OperationKind::Configure, "configure"),
    (OperationKind::Rollback, "rollback"),
    (OperationKind::Remove, "remove"),
];

fn word_of_kind(kind: OperationKind) -> &'static str {
    KINDS.iter().find(|(one, _)| *one == kind).map_or("deploy", |(_, word)| word)
}

fn kind_of_word(word: &str) -> Option<OperationKind> {
    KINDS.iter().find(|(_, one)| *one == word).map(|(kind, _)| *kind)
}

const PROGRESSES: [(Progress, &str); 4] = [
    (Progress::Waiting, "waiting"),
    (Progress::Running, "running"),
    (Progress::Done, "done"),
    (Progress::Failed, "failed"),
];

fn word_of_progress(progress: Progress) -> &'static str {
    PROGRESSES.iter().find(|(one, _)| *one == progress).map_or("waiting", |(_, word)| word)
}

fn progress_of_word(word: &str) -> Option<Progress> {
    PROGRESSES.iter().find(|(_, one)| *one == word).map(|(progress, _)| *progress)
}
