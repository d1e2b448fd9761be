//! What must not be forgotten: one SQLite database.
//!
//! Everything outside this folder speaks to [`State`] in typed ids and structs; SQL is only
//! here, so that another database can stand behind the same functions.
//!
//! One thread writes. It takes what is waiting, runs each as a savepoint of one transaction,
//! and commits once: while the disk syncs one batch, the next gathers. Nobody hears that
//! something is written before it is on the disk. Readers have connections of their own and
//! never wait for the writer (WAL).

mod apps;
mod domains;
mod operations;
mod people;
mod records;
mod resources;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{
    access::Caller,
    error::{Error, Result},
    names::{TeamId, TokenId},
};

pub(crate) use self::{
    apps::{AppRow, DeploymentParts, NewRelease, StoredVariable},
    domains::DomainRow,
    operations::{Keyed, NewOperation, OperationRow, StoredChange},
    people::{NewInvitation, NewTokenRow, SignedIn},
    records::Remembered,
    resources::Needed,
};

/// Every schema there was, in order. Files are never edited once they landed.
const MIGRATIONS: [&str; 3] = [
    include_str!("migrations/0001_first.sql"),
    include_str!("migrations/0002_device_origins.sql"),
    include_str!("migrations/0003_audit_places.sql"),
];

/// Marks a file as Wisp's: `wisp` in ASCII.
const APPLICATION_ID: i32 = 0x7769_7370;

/// Writes that may wait for the writer. More wait for a place.
const MAX_WAITING_WRITES_COUNT: usize = 1_024;

/// Writes in one transaction: enough to make syncing cheap, few enough to answer soon.
const MAX_BATCH_COUNT: usize = 128;

/// Readers at once. Each has a connection with a cache of some MiB.
const MAX_READERS_COUNT: usize = 8;

/// How long a connection waits for a lock that only another process can hold, such as the
/// server that this one takes over from.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Statements that a connection keeps prepared: about all there are.
const STATEMENTS_COUNT: usize = 128;

/// Entries of the audit log that are kept of a team: years of a busy one.
const KEPT_AUDIT_COUNT: i64 = 100_000;

/// After how many entries the log is swept, so that not every write looks for old ones.
const AUDIT_SWEEP_INTERVAL: i64 = 1_024;

/// A write: runs in a transaction, and answers after the commit.
type Job = Box<dyn FnOnce(&Connection) -> Answer + Send>;

/// Tells who asked what came of it.
type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;

/// What must not be forgotten.
pub(crate) struct State {
    jobs: mpsc::Sender<Job>,
    readers: Arc<Readers>,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    places: Arc<Semaphore>,
}

/// Who does something, for the audit log.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    pub(crate) name: String,
    pub(crate) token: Option<TokenId>,
    pub(crate) from: String,
}

impl State {
    /// Opens the file, makes it if it is not there, and brings it up to date.
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        let owned = path.to_owned();
        let writer = blocking(move || open_writer(&owned)).await?;
        let (jobs, waiting) = mpsc::channel(MAX_WAITING_WRITES_COUNT);
        thread::Builder::new()
            .name("wisp-state".to_owned())
            .spawn(move || write_all(writer, waiting))
            .map_err(|error| Error::State(error.to_string()))?;
        let readers = Readers {
            path: path.to_owned(),
            idle: Mutex::default(),
            places: Arc::new(Semaphore::new(MAX_READERS_COUNT)),
        };
        Ok(Self { jobs, readers: Arc::new(readers) })
    }

    /// Writes a copy of everything, as of now, to a file that is not there yet.
    pub(crate) async fn copy_to(&self, path: &Path) -> Result<()> {
        let path = path.to_str().ok_or_else(|| Error::invalid("the path is not UTF-8"))?.to_owned();
        self.read_plainly(move |db| {
            db.execute("VACUUM INTO ?1", [path])?;
            Ok(())
        })
        .await
    }

    /// Changes something. When this returns, it is on the disk.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |db| {
            let result = in_savepoint(db, work);
            Box::new(move |committed| {
                let answer = match committed {
                    Ok(()) => result,
                    Err(message) => Err(Error::State(message)),
                };
                // Whoever asked may have gone away; it is written all the same.
                drop(sender.send(answer));
            })
        });
        self.jobs.send(job).await.map_err(|_| Error::Stopping)?;
        receiver.await.map_err(|_| Error::State("the write was not made".to_owned()))?
    }

    /// Reads something, all of it as of one moment.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.read_plainly(move |db| {
            let moment = db.unchecked_transaction()?;
            work(&moment)
        })
        .await
    }

    async fn read_plainly<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = Arc::clone(&self.readers.places).acquire_owned().await.map_err(|_| Error::Stopping)?;
        let readers = Arc::clone(&self.readers);
        blocking(move || {
            let _place = place;
            let db = readers.take()?;
            let result = work(&db);
            readers.give_back(db);
            result
        })
        .await
    }
}

impl Readers {
    fn take(&self) -> Result<Connection> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(db) => Ok(db),
            None => connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY),
        }
    }

    fn give_back(&self, db: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(db);
    }
}

impl Actor {
    /// The control plane itself.
    pub(crate) fn itself() -> Self {
        Self { name: "wisp".to_owned(), token: None, from: "server".to_owned() }
    }
}

impl From<&Caller> for Actor {
    fn from(caller: &Caller) -> Self {
        Self { name: caller.name(), token: Some(caller.token.clone()), from: caller.from.clone() }
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// As SQLite keeps numbers.
fn sql_int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Runs what blocks on a thread where that hurts nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::State(error.to_string()))?
}

/// Writes until nobody can ask any more.
fn write_all(mut db: Connection, mut waiting: mpsc::Receiver<Job>) {
    while let Some(first) = waiting.blocking_recv() {
        let mut answers = Vec::new();
        let result = write_batch(&mut db, first, &mut waiting, &mut answers);
        if let Err(error) = &result {
            tracing::error!(%error, "the state cannot be written");
        }
        for answer in answers {
            answer(result.as_ref().copied().map_err(ToString::to_string));
        }
    }
}

fn write_batch(
    db: &mut Connection,
    first: Job,
    waiting: &mut mpsc::Receiver<Job>,
    answers: &mut Vec<Answer>,
) -> rusqlite::Result<()> {
    let transaction = match db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate) {
        Ok(transaction) => transaction,
        Err(error) => {
            // The job is told by being dropped with its channel.
            drop(first);
            return Err(error);
        }
    };
    answers.push(first(&transaction));
    while answers.len() < MAX_BATCH_COUNT {
        match waiting.try_recv() {
            Ok(job) => answers.push(job(&transaction)),
            Err(_) => break,
        }
    }
    transaction.commit()
}

fn in_savepoint<T>(db: &Connection, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    db.execute_batch("SAVEPOINT job")?;
    let result = work(db);
    db.execute_batch(match &result {
        Ok(_) => "RELEASE job",
        Err(_) => "ROLLBACK TO job; RELEASE job",
    })?;
    result
}

fn open_writer(path: &Path) -> Result<Connection> {
    let unusable =
        |error: &dyn std::fmt::Display| Error::Open { path: path.to_owned(), message: error.to_string() };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| unusable(&error))?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut db = connect(path, flags).map_err(|error| unusable(&error))?;
    let prepare = |db: &Connection| -> rusqlite::Result<()> {
        db.pragma_update(None, "journal_mode", "WAL")?;
        // Nothing that was acknowledged is lost in a power cut.
        db.pragma_update(None, "synchronous", "FULL")
    };
    prepare(&db).map_err(|error| unusable(&error))?;
    migrate(&mut db, path)?;
    Ok(db)
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let db = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.pragma_update(None, "foreign_keys", true)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_COUNT);
    Ok(db)
}

/// Brings the schema up to date, all of it or not at all.
fn migrate(db: &mut Connection, path: &Path) -> Result<()> {
    let transaction = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let number = |name: &str| transaction.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let found = number("user_version")?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(Error::Newer { found, known });
    }
    let is_ours = number("application_id")? == i64::from(APPLICATION_ID);
    let is_empty: bool =
        transaction.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))?;
    if !is_ours && !is_empty {
        return Err(Error::Open { path: path.to_owned(), message: "it is another program's".to_owned() });
    }
    let done = usize::try_from(found).unwrap_or_default();
    for migration in MIGRATIONS.iter().skip(done) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.commit()?;
    Ok(())
}

/// Appends to the audit log, in the transaction of what it is about.
fn record(
    db: &Connection,
    actor: &Actor,
    team: Option<TeamId>,
    action: &str,
    subject: &str,
    detail: Option<&str>,
) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO audit (at_ms, team_id, who, token_id, origin, action, subject, detail, place)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
                 (SELECT coalesce(max(place), 0) + 1 FROM audit WHERE team_id IS ?2))",
    )?
    .execute(rusqlite::params![
        sql_int(now_ms()),
        team.map(|team| sql_int(team.0)),
        actor.name,
        actor.token.as_ref().map(TokenId::as_str),
        actor.from,
        action,
        subject,
        detail,
    ])?;
    let number = db.last_insert_rowid();
    if number % AUDIT_SWEEP_INTERVAL == 0 {
        db.prepare_cached(
            "DELETE FROM audit WHERE team_id IS ?1 AND place <=
             (SELECT place FROM audit WHERE team_id IS ?1 ORDER BY place DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute(rusqlite::params![team.map(|team| sql_int(team.0)), KEPT_AUDIT_COUNT])?;
    }
    Ok(())
}

/// What a row holds that only this program writes: if it does not fit, the file was altered.
fn stored<T, E: std::fmt::Display>(value: Result<T, E>) -> rusqlite::Result<T> {
    value.map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.to_string().into())
    })
}

/// The same for what is read by a function that gives nothing for what it does not know.
fn known<T>(value: Option<T>) -> rusqlite::Result<T> {
    stored(value.ok_or("a word that this version does not know"))
}

/// A number that SQLite keeps with a sign.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// Whether a statement failed because something of that name is there.
fn is_taken(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error().map(|error| error.extended_code),
        Some(rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE | rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a failed unwrap is a failed test")]

    use super::*;

    async fn open() -> (tempfile::TempDir, State) {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(&folder.path().join("state.db")).await.unwrap();
        (folder, state)
    }

    /// Notes something, or fails after having noted it.
    async fn note(state: &State, subject: usize, fails: bool) -> Result<()> {
        state
            .write(move |db| {
                record(db, &Actor::itself(), None, "test", &subject.to_string(), None)?;
                match fails {
                    true => Err(Error::invalid("on purpose")),
                    false => Ok(()),
                }
            })
            .await
    }

    async fn noted(state: &State) -> Vec<usize> {
        let entries = state.audit(None, None, 10_000).await.unwrap();
        let mut subjects: Vec<usize> =
            entries.into_iter().map(|entry| entry.subject.parse().unwrap()).collect();
        subjects.sort_unstable();
        subjects
    }

    #[tokio::test]
    async fn writes_of_one_batch_fail_alone() {
        let (folder, state) = open().await;
        let writes = (0..500).map(|subject| note(&state, subject, subject % 3 == 0));
        let results = futures::future::join_all(writes).await;
        for (subject, result) in results.iter().enumerate() {
            assert_eq!(result.is_ok(), subject % 3 != 0);
        }
        let expected: Vec<usize> = (0..500).filter(|subject| subject % 3 != 0).collect();
        assert_eq!(noted(&state).await, expected);
        // What was acknowledged is there for whoever opens the file, although nobody closed it.
        let other = State::open(&folder.path().join("state.db")).await.unwrap();
        assert_eq!(noted(&other).await, expected);
    }

    #[tokio::test]
    async fn readers_see_one_moment() {
        let (_folder, state) = open().await;
        note(&state, 1, false).await.unwrap();
        let count = |db: &Connection| -> Result<i64> {
            Ok(db.query_row("SELECT count(*) FROM audit", [], |row| row.get(0))?)
        };
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        let reader = state.read(move |db| {
            let first = count(db)?;
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
            Ok((first, count(db)?))
        });
        let writer = async {
            tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
            note(&state, 2, false).await.unwrap();
            go_on.send(()).unwrap();
        };
        let (read, ()) = futures::future::join(reader, writer).await;
        assert_eq!(read.unwrap(), (1, 1));
        assert_eq!(noted(&state).await, [1, 2]);
    }
}
