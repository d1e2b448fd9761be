//! The audit log, answers by idempotency key, and what `ingress` keeps here.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Actor, State, is_taken, now_ms, record, sql_int, stored, unsigned};
use crate::{
    credential::Hash,
    error::{Error, Result},
    model::AuditEntry,
    names::{OperationId, TeamId, TokenId},
};

/// How long answers are kept by their idempotency key: longer than any client tries again.
const KEPT_ANSWERS_MS: u64 = 24 * 60 * 60 * 1_000;

/// Answers that are forgotten at once, so that no request waits for a large sweep.
const SWEPT_ANSWERS_COUNT: u32 = 100;

/// In place of a status: the answer is an operation's id.
const OPERATION: u16 = 0;

/// What is known of an idempotency key.
pub(crate) enum Remembered {
    /// Nothing: the request is this one's to answer.
    New,
    /// It was answered. The answer is sealed.
    Answered { status: u16, answer: Vec<u8> },
    /// It began an operation, and the process ended before it was answered.
    Operation(OperationId),
    /// It was used for another request.
    Other,
    /// Its first request runs.
    Running,
}

impl State {
    /// The audit log of a team, or of what belongs to no team, the last first.
    pub(crate) async fn audit(
        &self,
        team: Option<TeamId>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<AuditEntry>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT place, at_ms, who, token_id, origin, action, subject, detail FROM audit
                 WHERE team_id IS ?1 AND place < ?2 ORDER BY place DESC LIMIT ?3",
            )?;
            let rows = statement.query_map(
                params![
                    team.map(|team| sql_int(team.0)),
                    before.map_or(i64::MAX, sql_int),
                    i64::try_from(limit).unwrap_or(i64::MAX)
                ],
                |row| {
                    let token: Option<String> = row.get(3)?;
                    Ok(AuditEntry {
                        number: unsigned(row.get(0)?),
                        at_ms: unsigned(row.get(1)?),
                        who: row.get(2)?,
                        token: stored(token.map(|token| TokenId::new(&token)).transpose())?,
                        from: row.get(4)?,
                        action: row.get(5)?,
                        subject: row.get(6)?,
                        detail: row.get(7)?,
                    })
                },
            )?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Notes in the audit log what was done outside the state.
    pub(crate) async fn note(
        &self,
        actor: Actor,
        team: impl Into<Option<TeamId>>,
        action: &'static str,
        subject: String,
    ) -> Result<()> {
        let team = team.into();
        self.write(move |db| record(db, &actor, team, action, &subject, None)).await
    }

    /// Takes an idempotency key for a request, or tells what came of it before.
    pub(crate) async fn remember(&self, caller: String, key: String, request: Hash) -> Result<Remembered> {
        self.write(move |db| {
            let now = now_ms();
            db.prepare_cached(
                "DELETE FROM idempotency WHERE (caller, key) IN
                 (SELECT caller, key FROM idempotency WHERE created_ms < ?1 LIMIT ?2)",
            )?
            .execute(params![sql_int(now.saturating_sub(KEPT_ANSWERS_MS)), SWEPT_ANSWERS_COUNT])?;
            let taken = db
                .prepare_cached(
                    "INSERT INTO idempotency (caller, key, request, created_ms) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![caller, key, request, sql_int(now)]);
            match taken {
                Ok(_) => return Ok(Remembered::New),
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(error.into()),
            }
            let found = db
                .query_row(
                    "SELECT request, status, answer FROM idempotency WHERE caller = ?1 AND key = ?2",
                    params![caller, key],
                    |row| {
                        let first: Vec<u8> = row.get(0)?;
                        let status: Option<u16> = row.get(1)?;
                        let answer: Option<Vec<u8>> = row.get(2)?;
                        Ok(match (status, answer) {
                            _ if first != request => Remembered::Other,
                            (Some(OPERATION), Some(id)) => {
                                let id = stored(String::from_utf8(id))?;
                                Remembered::Operation(stored(OperationId::new(&id))?)
                            }
                            (Some(status), Some(answer)) => Remembered::Answered { status, answer },
                            _ => Remembered::Running,
                        })
                    },
                )
                .optional()?;
            found.ok_or_else(|| Error::State("an idempotency key vanished".to_owned()))
        })
        .await
    }

    /// Keeps the answer to a request.
    pub(crate) async fn keep_answer(
        &self,
        caller: String,
        key: String,
        status: u16,
        answer: Vec<u8>,
    ) -> Result<()> {
        self.write(move |db| {
            db.prepare_cached(
                "UPDATE idempotency SET status = ?3, answer = ?4 WHERE caller = ?1 AND key = ?2",
            )?
            .execute(params![caller, key, status, answer])?;
            Ok(())
        })
        .await
    }

    /// Gives a key back: its request was not carried out.
    pub(crate) async fn forget_key(&self, caller: String, key: String) -> Result<()> {
        self.write(move |db| {
            db.execute("DELETE FROM idempotency WHERE caller = ?1 AND key = ?2", params![caller, key])?;
            Ok(())
        })
        .await
    }

    /// Gives back the keys of requests that ended with the process. Those that made something
    /// are found by what they made.
    pub(crate) async fn forget_running_keys(&self) -> Result<()> {
        self.write(|db| {
            db.execute("DELETE FROM idempotency WHERE status IS NULL", [])?;
            Ok(())
        })
        .await
    }

    /// What is kept under a name for `ingress`.
    pub(crate) async fn certificate(&self, name: String) -> Result<Option<Vec<u8>>> {
        self.read(move |db| {
            let value = db
                .prepare_cached("SELECT value FROM certificates WHERE name = ?1")?
                .query_row([name], |row| row.get(0))
                .optional()?;
            Ok(value)
        })
        .await
    }

    /// Every name that something is kept under for `ingress`.
    pub(crate) async fn certificates(&self) -> Result<Vec<String>> {
        self.read(|db| {
            let mut statement = db.prepare("SELECT name FROM certificates ORDER BY name")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Keeps something for `ingress`, or nothing any more.
    pub(crate) async fn set_certificate(&self, name: String, value: Option<Vec<u8>>) -> Result<()> {
        self.write(move |db| {
            match value {
                Some(value) => db.execute(
                    "INSERT INTO certificates (name, value, changed_ms) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET value = excluded.value, changed_ms = excluded.changed_ms",
                    params![name, value, sql_int(now_ms())],
                )?,
                None => db.execute("DELETE FROM certificates WHERE name = ?1", [name])?,
            };
            Ok(())
        })
        .await
    }
}

/// Lets a request find the operation that it began, in the transaction that begins it.
pub(super) fn answer_with_operation(
    db: &Connection,
    caller: &str,
    key: &str,
    operation: &OperationId,
) -> Result<()> {
    db.prepare_cached("UPDATE idempotency SET status = ?3, answer = ?4 WHERE caller = ?1 AND key = ?2")?
        .execute(params![caller, key, OPERATION, operation.as_str().as_bytes()])?;
    Ok(())
}
