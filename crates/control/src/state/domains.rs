//! Domains of apps.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Actor, State, is_taken, now_ms, record, sql_int, stored, unsigned};
use crate::{
    error::{Error, Result},
    names::{AppId, Host},
    platform::AppKey,
};

/// A domain as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct DomainRow {
    pub(crate) host: Host,
    pub(crate) txt_value: String,
    pub(crate) is_verified: bool,
    pub(crate) created_ms: u64,
}

impl State {
    /// Notes that an app's team says a domain is theirs.
    pub(crate) async fn add_domain(
        &self,
        actor: Actor,
        app: AppKey,
        host: Host,
        txt_value: String,
        max_count: u64,
    ) -> Result<()> {
        self.write(move |db| {
            let held: i64 =
                db.query_row("SELECT count(*) FROM domains WHERE app_id = ?1", [sql_int(app.id.0)], |row| {
                    row.get(0)
                })?;
            if unsigned(held) >= max_count {
                return Err(Error::Quota { what: "number of domains", limit: max_count });
            }
            let added = db.execute(
                "INSERT INTO domains (app_id, host, txt_value, created_ms) VALUES (?1, ?2, ?3, ?4)",
                params![sql_int(app.id.0), host.as_str(), txt_value, sql_int(now_ms())],
            );
            match added {
                Ok(_) => {}
                Err(error) if is_taken(&error) => return Err(Error::Exists { noun: "domain" }),
                Err(error) => return Err(error.into()),
            }
            record(db, &actor, Some(app.team_id), "domain.add", app.name.as_str(), Some(host.as_str()))
        })
        .await
    }

    /// The domains of an app, in order.
    pub(crate) async fn domains(&self, app: AppId) -> Result<Vec<DomainRow>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT host, txt_value, verified_ms IS NOT NULL, created_ms FROM domains
                 WHERE app_id = ?1 ORDER BY host",
            )?;
            let rows = statement.query_map([sql_int(app.0)], |row| {
                Ok(DomainRow {
                    host: stored(Host::new(&row.get::<_, String>(0)?))?,
                    txt_value: row.get(1)?,
                    is_verified: row.get(2)?,
                    created_ms: unsigned(row.get(3)?),
                })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Notes that DNS says the domain is this app's. Whoever had it has it no more: returns
    /// which app that was.
    pub(crate) async fn verify_domain(&self, actor: Actor, app: AppKey, host: Host) -> Result<Option<AppId>> {
        self.write(move |db| {
            let before: Option<i64> = db
                .query_row(
                    "UPDATE domains SET verified_ms = NULL
                     WHERE host = ?1 AND verified_ms IS NOT NULL AND app_id <> ?2 RETURNING app_id",
                    params![host.as_str(), sql_int(app.id.0)],
                    |row| row.get(0),
                )
                .optional()?;
            let verified = db.execute(
                "UPDATE domains SET verified_ms = ?3 WHERE app_id = ?1 AND host = ?2",
                params![sql_int(app.id.0), host.as_str(), sql_int(now_ms())],
            )?;
            if verified == 0 {
                return Err(Error::NotFound { noun: "domain" });
            }
            let subject = app.name.as_str();
            record(db, &actor, Some(app.team_id), "domain.verify", subject, Some(host.as_str()))?;
            Ok(before.map(|id| AppId(unsigned(id))))
        })
        .await
    }

    /// Takes a domain away from an app. Returns whether it led there.
    pub(crate) async fn remove_domain(&self, actor: Actor, app: AppKey, host: Host) -> Result<bool> {
        self.write(move |db| {
            let removed: Option<bool> = db
                .query_row(
                    "DELETE FROM domains WHERE app_id = ?1 AND host = ?2 RETURNING verified_ms IS NOT NULL",
                    params![sql_int(app.id.0), host.as_str()],
                    |row| row.get(0),
                )
                .optional()?;
            let was_verified = removed.ok_or(Error::NotFound { noun: "domain" })?;
            let subject = app.name.as_str();
            record(db, &actor, Some(app.team_id), "domain.remove", subject, Some(host.as_str()))?;
            Ok(was_verified)
        })
        .await
    }

    /// Whether an app has this domain, and has shown that it is theirs.
    pub(crate) async fn has_domain(&self, host: Host) -> Result<bool> {
        self.read(move |db| {
            let has = db
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM domains WHERE host = ?1 AND verified_ms IS NOT NULL)",
                )?
                .query_row([host.as_str()], |row| row.get(0))?;
            Ok(has)
        })
        .await
    }
}

/// The domains that lead to an app.
pub(super) fn verified(db: &Connection, app: AppId) -> Result<Vec<Host>> {
    let mut statement = db.prepare_cached(
        "SELECT host FROM domains WHERE app_id = ?1 AND verified_ms IS NOT NULL ORDER BY host",
    )?;
    let rows = statement.query_map([sql_int(app.0)], |row| stored(Host::new(&row.get::<_, String>(0)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
