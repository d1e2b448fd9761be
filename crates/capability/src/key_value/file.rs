//! Key-value stores in an SQLite file.
//!
//! The file is the one Spin uses: one table `spin_key_value` whose rows are
//! (store, key, value). Several stores may share a file.
//!
//! # Writing
//! A change must be on disk before it is acknowledged, and a disk flush costs a
//! hundred microseconds on a good day. So each file has one *writer* thread with a queue.
//! While one transaction is being flushed, changes of other requests gather in
//! the queue; the next transaction takes all of them, is flushed once, and
//! then all of them are acknowledged. One request alone waits for one flush, a
//! thousand requests together also wait for about one.
//!
//! A change that fails undoes itself (it runs within a savepoint, or is a
//! single statement, which SQLite undoes by itself) and the others of its
//! transaction go on.
//!
//! # Reading
//! The file has a write-ahead log, in which readers see the last transaction
//! that is complete and never wait. A point read takes a few microseconds,
//! less than handing it to another thread would, so it runs where it is called, on
//! a connection from a small pool. What may take long goes to tokio's
//! threads for blocking work: values over [`INLINE_VALUE_MAX_BYTES`], listings,
//! long lists of keys.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{KeyAndValue, PAGE_MAX_COUNT, RESULT_MAX_BYTES, Store, StoreError, Swap, add, check_result};
use crate::sqlite::file;

/// Changes that wait for the writer. Above that, callers wait before they may
/// queue. Ten full transactions: enough to never let the writer idle.
const QUEUE_MAX_COUNT: usize = 4_096;

/// Bytes of all changes that are queued or being written: one call of the
/// largest size there is. Bounds what the host holds in memory for guests that
/// write faster than the disk.
const QUEUE_MAX_BYTES: usize = RESULT_MAX_BYTES;

/// Changes in one transaction. Some 5 ms of work, so that the first one in it
/// does not wait much longer than alone.
const TRANSACTION_MAX_COUNT: usize = 512;

/// Bytes of changes in one transaction, for the same reason; a single change
/// may be larger.
const TRANSACTION_MAX_BYTES: usize = 16 << 20;

/// Connections for reading that are kept open between reads. As many as
/// threads that read at the same time on a usual machine; more are opened when
/// needed and closed again.
const READERS_MAX_COUNT: usize = 16;

/// Listings and large reads at the same time; others wait. Each holds a thread.
const SLOW_READS_MAX_COUNT: usize = 16;

/// Values up to this size are read on the calling thread: 64 KiB are copied in
/// some ten microseconds.
const INLINE_VALUE_MAX_BYTES: usize = 64 << 10;

/// Lists up to this many keys are read on the calling thread.
const INLINE_KEYS_MAX_COUNT: usize = 16;

/// Prepared statements that a connection keeps; more than this file has.
const STATEMENTS_MAX_COUNT: usize = 16;

/// What a change costs in the queue beside its key and value.
const CHANGE_OVERHEAD_BYTES: usize = 128;

const CREATE: &str = "CREATE TABLE IF NOT EXISTS spin_key_value (
    store TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (store, key)
)";
/// `octet_length` reads the row's header, not the value.
const GET: &str = "SELECT octet_length(value), CASE WHEN octet_length(value) <= ?3 THEN value END
    FROM spin_key_value WHERE store = ?1 AND key = ?2";
const EXISTS: &str = "SELECT 1 FROM spin_key_value WHERE store = ?1 AND key = ?2";
const KEYS: &str = "SELECT key FROM spin_key_value WHERE store = ?1 ORDER BY key LIMIT ?2";
const KEYS_AFTER: &str = "SELECT key FROM spin_key_value WHERE store = ?1 AND key > ?3 ORDER BY key LIMIT ?2";
const SET: &str = "INSERT INTO spin_key_value (store, key, value) VALUES (?1, ?2, ?3)
    ON CONFLICT (store, key) DO UPDATE SET value = excluded.value";
const DELETE: &str = "DELETE FROM spin_key_value WHERE store = ?1 AND key = ?2";

/// One database file: its writer and its readers.
pub(crate) struct Database {
    path: PathBuf,
    readers: Mutex<Vec<Connection>>,
    slow_reads: Arc<Semaphore>,
    queue: Option<mpsc::Sender<Job>>,
    queue_bytes: Arc<Semaphore>,
    writer: Option<JoinHandle<()>>,
    written: Arc<Written>,
}

/// What a writer has done so far: how much its transactions gather.
#[derive(Default)]
struct Written {
    changes_count: AtomicU64,
    transactions_count: AtomicU64,
}

/// One of the stores in a database file.
pub(super) struct FileStore {
    database: Arc<Database>,
    name: Arc<str>,
}

/// A change that waits for the writer, and who waits for it.
struct Job {
    store: Arc<str>,
    change: Change,
    size_bytes: usize,
    answer: oneshot::Sender<Result<Outcome, StoreError>>,
    _queue_bytes: OwnedSemaphorePermit,
}

enum Change {
    Set { key: String, value: Vec<u8> },
    Delete { key: String },
    SetMany { entries: Vec<(String, Vec<u8>)> },
    DeleteMany { keys: Vec<String> },
    Increment { key: String, delta: i64 },
    Swap { key: String, expected: Option<Vec<u8>>, value: Vec<u8> },
}

enum Outcome {
    Done,
    Sum(i64),
    Conflict(Option<Vec<u8>>),
}

/// A value as a reader found it.
enum Found {
    Nothing,
    Value(Vec<u8>),
    /// Not read, because it is larger than asked for.
    Large,
}

/// Whether a file that somebody brings has the one table, and nothing that would run when
/// the table is used.
pub(super) fn check(connection: &Connection) -> rusqlite::Result<()> {
    connection.prepare("SELECT store, key, value FROM spin_key_value")?;
    let others = "SELECT count(*) FROM sqlite_schema WHERE type IN ('trigger', 'view')";
    match connection.query_row(others, [], |row| row.get::<_, i64>(0))? {
        0 => Ok(()),
        _ => Err(rusqlite::Error::InvalidQuery),
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(cause: rusqlite::Error) -> Self {
        Self(cause.to_string())
    }
}

impl Database {
    /// Opens a file that exists (see [`file::create`]) and starts its writer.
    pub(super) fn open(path: &Path, max_bytes: u64) -> Result<Arc<Self>, Box<dyn std::error::Error>> {
        let connection = file::open(path)?;
        file::set_write_ahead(&connection)?;
        file::set_durable(&connection, max_bytes)?;
        connection.execute_batch(CREATE)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX_COUNT);

        let (queue, jobs) = mpsc::channel(QUEUE_MAX_COUNT);
        let written = Arc::new(Written::default());
        let writer = std::thread::Builder::new().name("key-value writer".into()).spawn({
            let written = written.clone();
            move || write(&connection, jobs, &written)
        })?;
        let database = Self {
            path: path.to_owned(),
            readers: Mutex::default(),
            slow_reads: Arc::new(Semaphore::new(SLOW_READS_MAX_COUNT)),
            queue: Some(queue),
            queue_bytes: Arc::new(Semaphore::new(QUEUE_MAX_BYTES)),
            writer: Some(writer),
            written,
        };
        let first_reader = database.open_reader()?;
        database.keep_reader(first_reader);
        Ok(Arc::new(database))
    }

    fn open_reader(&self) -> rusqlite::Result<Connection> {
        let connection = file::open(&self.path)?;
        connection.execute_batch("PRAGMA query_only = ON")?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX_COUNT);
        Ok(connection)
    }

    fn keep_reader(&self, reader: Connection) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS_MAX_COUNT {
            readers.push(reader);
        }
    }

    /// Reads on this thread.
    fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let reader = match idle {
            Some(reader) => reader,
            None => self.open_reader()?,
        };
        let result = read(&reader);
        // A failed read may leave its transaction open.
        if reader.is_autocommit() {
            self.keep_reader(reader);
        }
        result
    }

    /// Reads on a thread for blocking work.
    async fn read_slowly<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        // The semaphore is never closed; without a permit we would only be slower.
        let permit = self.slow_reads.clone().acquire_owned().await.ok();
        let database = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            database.read(read)
        });
        task.await.unwrap_or_else(|cause| Err(StoreError(format!("the read failed: {cause}"))))
    }

    async fn change(&self, store: &Arc<str>, change: Change) -> Result<Outcome, StoreError> {
        let stopped = || StoreError("the key-value store is closed".into());
        let size_bytes = change.size_bytes().min(QUEUE_MAX_BYTES);
        let permits = u32::try_from(size_bytes).unwrap_or(u32::MAX);
        let queue_bytes =
            self.queue_bytes.clone().acquire_many_owned(permits).await.map_err(|_| stopped())?;
        let (answer, answered) = oneshot::channel();
        let job = Job { store: store.clone(), change, size_bytes, answer, _queue_bytes: queue_bytes };
        let queue = self.queue.as_ref().ok_or_else(stopped)?;
        queue.send(job).await.map_err(|_| stopped())?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl Drop for Database {
    /// Lets the writer finish what is queued and closes the file, so that
    /// SQLite moves the write-ahead log into it and a copy of the file alone
    /// is complete.
    fn drop(&mut self) {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        tracing::debug!(
            path = %self.path.display(),
            changes = self.written.changes_count.load(Ordering::Relaxed),
            transactions = self.written.transactions_count.load(Ordering::Relaxed),
            "key-value file closed"
        );
    }
}

impl Change {
    fn size_bytes(&self) -> usize {
        CHANGE_OVERHEAD_BYTES
            + match self {
                Self::Set { key, value } => key.len() + value.len(),
                Self::Delete { key } | Self::Increment { key, .. } => key.len(),
                Self::SetMany { entries } => entries.iter().map(|(key, value)| key.len() + value.len()).sum(),
                Self::DeleteMany { keys } => keys.iter().map(String::len).sum(),
                Self::Swap { key, expected, value } => {
                    key.len() + value.len() + expected.as_ref().map_or(0, Vec::len)
                }
            }
    }

    /// Makes the change within the transaction that is open.
    fn apply(&self, connection: &Connection, store: &str) -> Result<Outcome, StoreError> {
        match self {
            Self::Set { key, value } => set(connection, store, key, value)?,
            Self::Delete { key } => delete(connection, store, key)?,
            Self::SetMany { entries } => all_or_none(connection, || {
                entries.iter().try_for_each(|(key, value)| set(connection, store, key, value))
            })?,
            Self::DeleteMany { keys } => {
                all_or_none(connection, || keys.iter().try_for_each(|key| delete(connection, store, key)))?
            }
            Self::Increment { key, delta } => {
                let sum = add(current(connection, store, key)?.as_deref(), *delta)?;
                set(connection, store, key, &sum.to_le_bytes())?;
                return Ok(Outcome::Sum(sum));
            }
            Self::Swap { key, expected, value } => {
                let current = current(connection, store, key)?;
                if current != *expected {
                    return Ok(Outcome::Conflict(current));
                }
                set(connection, store, key, value)?;
            }
        }
        Ok(Outcome::Done)
    }
}

/// The writer thread: gathers what is queued into transactions until the queue
/// is closed and empty.
fn write(connection: &Connection, mut jobs: mpsc::Receiver<Job>, written: &Written) {
    // A job that did not fit into the transaction before.
    let mut left_over = None;
    while let Some(first) = left_over.take().or_else(|| jobs.blocking_recv()) {
        let mut total_bytes = first.size_bytes;
        let mut batch = vec![first];
        while batch.len() < TRANSACTION_MAX_COUNT {
            let Ok(job) = jobs.try_recv() else { break };
            if total_bytes + job.size_bytes > TRANSACTION_MAX_BYTES {
                left_over = Some(job);
                break;
            }
            total_bytes += job.size_bytes;
            batch.push(job);
        }
        // Counted before anyone is answered, so that a caller who has its
        // answer finds its change counted.
        written.changes_count.fetch_add(batch.len() as u64, Ordering::Relaxed);
        written.transactions_count.fetch_add(1, Ordering::Relaxed);
        match commit(connection, &batch) {
            Ok(outcomes) => {
                for (job, outcome) in batch.into_iter().zip(outcomes) {
                    // Nobody waits any more if the guest is gone.
                    let _ = job.answer.send(outcome);
                }
            }
            Err(cause) => {
                tracing::error!(%cause, changes = batch.len(), "key-value transaction failed");
                for job in batch {
                    let _ = job.answer.send(Err(cause.clone()));
                }
            }
        }
    }
}

/// Makes all changes in one transaction and waits until it is on disk. An
/// outcome is an error if that change alone failed.
fn commit(connection: &Connection, batch: &[Job]) -> Result<Vec<Result<Outcome, StoreError>>, StoreError> {
    let transaction = ActiveTransaction::begin(connection)?;
    let mut outcomes = Vec::with_capacity(batch.len());
    for job in batch {
        let outcome = job.change.apply(connection, &job.store);
        // After some errors (disk full, disk broken) SQLite has undone the
        // whole transaction.
        if connection.is_autocommit() {
            let cause = outcome.err().map_or_else(|| "it was undone".into(), |cause| cause.0);
            return Err(StoreError(cause));
        }
        outcomes.push(outcome);
    }
    transaction.commit()?;
    Ok(outcomes)
}

/// An open transaction, undone when dropped. (`rusqlite::Transaction` does not keep
/// its statements prepared.)
struct ActiveTransaction<'c> {
    connection: &'c Connection,
}

impl<'c> ActiveTransaction<'c> {
    fn begin(connection: &'c Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self { connection })
    }

    fn commit(self) -> rusqlite::Result<()> {
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }
}

impl Drop for ActiveTransaction<'_> {
    fn drop(&mut self) {
        if !self.connection.is_autocommit() {
            // If even that fails, the next BEGIN fails and says why.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }
}

fn set(connection: &Connection, store: &str, key: &str, value: &[u8]) -> Result<(), StoreError> {
    connection.prepare_cached(SET)?.execute(params![store, key, value])?;
    Ok(())
}

fn delete(connection: &Connection, store: &str, key: &str) -> Result<(), StoreError> {
    connection.prepare_cached(DELETE)?.execute(params![store, key])?;
    Ok(())
}

fn all_or_none(
    connection: &Connection,
    changes: impl FnOnce() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    connection.prepare_cached("SAVEPOINT change")?.execute([])?;
    let result = changes();
    if connection.is_autocommit() {
        return result;
    }
    if result.is_err() {
        connection.prepare_cached("ROLLBACK TO change")?.execute([])?;
    }
    connection.prepare_cached("RELEASE change")?.execute([])?;
    result
}

/// Reads one value, if it has at most `limit_bytes`.
fn find(connection: &Connection, store: &str, key: &str, limit_bytes: usize) -> Result<Found, StoreError> {
    let limit = i64::try_from(limit_bytes).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(GET)?;
    let mut rows = statement.query(params![store, key, limit])?;
    let Some(row) = rows.next()? else { return Ok(Found::Nothing) };
    if row.get::<_, i64>(0)? > limit {
        return Ok(Found::Large);
    }
    // Other programs may have stored text.
    match row.get_ref(1)? {
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => Ok(Found::Value(bytes.to_vec())),
        other => Err(StoreError(format!("the value has the SQLite type {}, not BLOB", other.data_type()))),
    }
}

/// The value of a key, however large it may be.
fn current(connection: &Connection, store: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
    match find(connection, store, key, RESULT_MAX_BYTES)? {
        Found::Nothing => Ok(None),
        Found::Value(value) => Ok(Some(value)),
        Found::Large => Err(StoreError(format!("the value exceeds the limit of {RESULT_MAX_BYTES} bytes"))),
    }
}

/// The values of keys as of one moment; `None` if one is larger than allowed.
fn find_many(
    connection: &Connection,
    store: &str,
    keys: &[String],
    limit_bytes: usize,
) -> Result<Option<Vec<KeyAndValue>>, StoreError> {
    connection.prepare_cached("BEGIN")?.execute([])?;
    let result = (|| {
        let mut entries = Vec::with_capacity(keys.len());
        let mut total_bytes = 0;
        for key in keys {
            let value = match find(connection, store, key, limit_bytes)? {
                Found::Nothing => None,
                Found::Value(value) => Some(value),
                Found::Large => return Ok(None),
            };
            total_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            check_result(total_bytes)?;
            entries.push((key.clone(), value));
        }
        Ok(Some(entries))
    })();
    connection.prepare_cached("COMMIT")?.execute([])?;
    result
}

fn keys_after(connection: &Connection, store: &str, after: Option<&str>) -> Result<Vec<String>, StoreError> {
    let limit = i64::try_from(PAGE_MAX_COUNT).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(if after.is_some() { KEYS_AFTER } else { KEYS })?;
    let mut rows = match after {
        Some(after) => statement.query(params![store, limit, after])?,
        None => statement.query(params![store, limit])?,
    };
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        keys.push(row.get(0)?);
    }
    Ok(keys)
}

impl FileStore {
    pub(super) fn new(database: Arc<Database>, name: &str) -> Self {
        Self { database, name: name.into() }
    }

    async fn change(&self, change: Change) -> Result<(), StoreError> {
        self.database.change(&self.name, change).await.map(|_| ())
    }
}

impl Store for FileStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>, StoreError>> {
        async move {
            let found = self.database.read(|reader| find(reader, &self.name, key, INLINE_VALUE_MAX_BYTES))?;
            match found {
                Found::Nothing => Ok(None),
                Found::Value(value) => Ok(Some(value)),
                Found::Large => {
                    let (store, key) = (self.name.clone(), key.to_owned());
                    self.database.read_slowly(move |reader| current(reader, &store, &key)).await
                }
            }
        }
        .boxed()
    }

    fn set(&self, key: String, value: Vec<u8>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.change(Change::Set { key, value }).boxed()
    }

    fn delete(&self, key: String) -> BoxFuture<'_, Result<(), StoreError>> {
        self.change(Change::Delete { key }).boxed()
    }

    fn exists<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StoreError>> {
        let exists = self.database.read(|reader| {
            let found = reader.prepare_cached(EXISTS)?.query_row(params![&*self.name, key], |_| Ok(()));
            Ok(found.optional()?.is_some())
        });
        futures::future::ready(exists).boxed()
    }

    fn keys(&self, after: Option<String>) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let store = self.name.clone();
        self.database.read_slowly(move |reader| keys_after(reader, &store, after.as_deref())).boxed()
    }

    fn get_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<Vec<KeyAndValue>, StoreError>> {
        async move {
            if keys.len() <= INLINE_KEYS_MAX_COUNT {
                let found = self
                    .database
                    .read(|reader| find_many(reader, &self.name, &keys, INLINE_VALUE_MAX_BYTES))?;
                if let Some(entries) = found {
                    return Ok(entries);
                }
            }
            let store = self.name.clone();
            self.database
                .read_slowly(move |reader| {
                    find_many(reader, &store, &keys, RESULT_MAX_BYTES)?.ok_or_else(|| {
                        StoreError(format!("a value exceeds the limit of {RESULT_MAX_BYTES} bytes"))
                    })
                })
                .await
        }
        .boxed()
    }

    fn set_many(&self, entries: Vec<(String, Vec<u8>)>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.change(Change::SetMany { entries }).boxed()
    }

    fn delete_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.change(Change::DeleteMany { keys }).boxed()
    }

    fn increment(&self, key: String, delta: i64) -> BoxFuture<'_, Result<i64, StoreError>> {
        async move {
            match self.database.change(&self.name, Change::Increment { key, delta }).await? {
                Outcome::Sum(sum) => Ok(sum),
                Outcome::Done | Outcome::Conflict(_) => Err(StoreError("the store gave no sum".into())),
            }
        }
        .boxed()
    }

    fn swap(
        &self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
    ) -> BoxFuture<'_, Result<Swap, StoreError>> {
        async move {
            match self.database.change(&self.name, Change::Swap { key, expected, value }).await? {
                Outcome::Conflict(current) => Ok(Swap::Conflict(current)),
                Outcome::Done | Outcome::Sum(_) => Ok(Swap::Done),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::print_stdout,
        reason = "tests; a child process reports by printing"
    )]

    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use tempfile::TempDir;

    use super::*;

    /// The directory in which [`crash_child`] works.
    const CRASH_DIRECTORY: &str = "WISP_TEST_CRASH_DIRECTORY";

    fn open(directory: &Path) -> Arc<Database> {
        Database::open(&file::create(&directory.join("state/key_value.db")).unwrap(), u64::MAX).unwrap()
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    /// Waits until changes of these sizes wait for the writer, or are in its
    /// hands.
    async fn all_queued(database: &Database, sizes_bytes: impl Iterator<Item = usize>) {
        let all_bytes: usize = sizes_bytes.map(|bytes| bytes + CHANGE_OVERHEAD_BYTES).sum();
        while database.queue_bytes.available_permits() > QUEUE_MAX_BYTES - all_bytes {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn changes_that_come_together_share_a_transaction() {
        let directory = TempDir::new().unwrap();
        let database = open(directory.path());
        let store = Arc::new(FileStore::new(database.clone(), "default"));
        runtime().block_on(async {
            // Nothing is committed while another connection writes, so all of
            // these are queued by then.
            let blocker = file::open(&database.path).unwrap();
            blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
            let writes: Vec<_> = (0..300)
                .map(|index| {
                    let store = store.clone();
                    tokio::spawn(async move { store.set(format!("key {index}"), vec![7; 100]).await })
                })
                .collect();
            all_queued(&database, (0..300).map(|index| 100 + format!("key {index}").len())).await;
            blocker.execute_batch("ROLLBACK").unwrap();
            for write in writes {
                write.await.unwrap().unwrap();
            }
            assert_eq!(store.keys(None).await.unwrap().len(), 300);
        });
        assert_eq!(database.written.changes_count.load(Ordering::Relaxed), 300);
        let transactions_count = database.written.transactions_count.load(Ordering::Relaxed);
        assert!(transactions_count <= 12, "{transactions_count} transactions");
    }

    #[test]
    fn increments_of_many_requests_all_count() {
        let directory = TempDir::new().unwrap();
        let store = Arc::new(FileStore::new(open(directory.path()), "default"));
        runtime().block_on(async {
            let tasks: Vec<_> = (0..20)
                .map(|_| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        for _ in 0..25 {
                            store.increment("hits".into(), 2).await.unwrap();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(store.get("hits").await.unwrap(), Some(1000_i64.to_le_bytes().to_vec()));
        });
    }

    #[test]
    fn swaps_of_many_requests_lose_nothing() {
        let directory = TempDir::new().unwrap();
        let store = Arc::new(FileStore::new(open(directory.path()), "default"));
        runtime().block_on(async {
            let tasks: Vec<_> = (0..10_u8)
                .map(|task| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        let mut current = store.get("list").await.unwrap();
                        loop {
                            let mut next = current.clone().unwrap_or_default();
                            next.push(task);
                            match store.swap("list".into(), current, next).await.unwrap() {
                                Swap::Done => break,
                                Swap::Conflict(other) => current = other,
                            }
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let mut list = store.get("list").await.unwrap().unwrap();
            list.sort_unstable();
            assert_eq!(list, (0..10).collect::<Vec<_>>());
        });
    }

    #[test]
    fn a_failed_change_leaves_the_others_of_its_transaction() {
        let directory = TempDir::new().unwrap();
        let database = open(directory.path());
        let store = FileStore::new(database.clone(), "default");
        runtime().block_on(async {
            store.set("text".into(), b"no number".to_vec()).await.unwrap();
            let blocker = file::open(&database.path).unwrap();
            blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
            let unblock = async {
                all_queued(&database, [6, 4, 5].into_iter()).await;
                blocker.execute_batch("ROLLBACK").unwrap();
            };
            let (first, failed, last, ()) = tokio::join!(
                store.set("first".into(), vec![1]),
                store.increment("text".into(), 1),
                store.set("last".into(), vec![2]),
                unblock,
            );
            first.unwrap();
            assert!(failed.unwrap_err().0.contains("9 bytes"));
            last.unwrap();
            assert_eq!(store.keys(None).await.unwrap(), ["first", "last", "text"]);
        });
    }

    #[test]
    fn large_values_and_other_stores_in_the_file() {
        let directory = TempDir::new().unwrap();
        let database = open(directory.path());
        let (one, two) = (FileStore::new(database.clone(), "one"), FileStore::new(database, "two"));
        runtime().block_on(async {
            let large = vec![9; INLINE_VALUE_MAX_BYTES + 1];
            one.set("key".into(), large.clone()).await.unwrap();
            two.set("key".into(), vec![]).await.unwrap();
            assert_eq!(one.get("key").await.unwrap(), Some(large.clone()));
            assert_eq!(two.get("key").await.unwrap(), Some(vec![]));
            let many = one.get_many(vec!["none".into(), "key".into()]).await.unwrap();
            assert_eq!(many, [("none".to_owned(), None), ("key".to_owned(), Some(large))]);
            one.delete("key".into()).await.unwrap();
            assert!(!one.exists("key").await.unwrap());
            assert!(two.exists("key").await.unwrap());
        });
    }

    #[test]
    fn a_file_that_another_program_wrote_is_served() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("other.db");
        let other = Connection::open(&path).unwrap();
        other.execute_batch(CREATE).unwrap();
        other
            .execute_batch(
                "INSERT INTO spin_key_value VALUES ('default', 'a', x'0102'), ('default', 'b', 'text')",
            )
            .unwrap();
        drop(other);
        let store =
            FileStore::new(Database::open(&file::create(&path).unwrap(), u64::MAX).unwrap(), "default");
        runtime().block_on(async {
            assert_eq!(store.get("a").await.unwrap(), Some(vec![1, 2]));
            assert_eq!(store.get("b").await.unwrap(), Some(b"text".to_vec()));
        });
    }

    #[test]
    fn closing_leaves_everything_in_the_one_file() {
        let directory = TempDir::new().unwrap();
        let database = open(directory.path());
        let path = database.path.clone();
        runtime().block_on(FileStore::new(database, "default").set("key".into(), vec![1])).unwrap();
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["key_value.db"]);
    }

    #[test]
    fn acknowledged_changes_survive_kill() {
        let directory = TempDir::new().unwrap();
        let mut acknowledged = Vec::new();
        for round in 0..5_usize {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "key_value::file::tests::crash_child", "--ignored", "--nocapture"])
                .env(CRASH_DIRECTORY, directory.path())
                .env("WISP_TEST_CRASH_ROUND", round.to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let moment = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            let mut lines_left = 20 + moment.subsec_nanos() as usize % 300;
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            // What it printed before it died counts, even if it is read later.
            for line in lines.map_while(Result::ok) {
                acknowledged.extend(line.strip_prefix("set ").map(str::to_owned));
                lines_left = lines_left.saturating_sub(1);
                if lines_left == 0 {
                    child.kill().unwrap();
                }
            }
            assert!(!child.wait().unwrap().success());
            let store = FileStore::new(open(directory.path()), "default");
            runtime().block_on(async {
                for key in &acknowledged {
                    assert_eq!(store.get(key).await.unwrap().as_deref(), Some(key.as_bytes()), "{key}");
                }
            });
        }
        assert!(acknowledged.len() >= 100, "only {} were acknowledged", acknowledged.len());
    }

    #[test]
    #[ignore = "not a test: the child process of `acknowledged_changes_survive_kill`; runs until it is killed"]
    fn crash_child() {
        let directory = std::env::var_os(CRASH_DIRECTORY).unwrap();
        let round = std::env::var("WISP_TEST_CRASH_ROUND").unwrap();
        let store = Arc::new(FileStore::new(open(Path::new(&directory)), "default"));
        runtime().block_on(async {
            let tasks: Vec<_> = (0..8)
                .map(|task| {
                    let (store, round) = (store.clone(), round.clone());
                    tokio::spawn(async move {
                        for index in 0_u64.. {
                            let key = format!("{round} {task} {index}");
                            store.set(key.clone(), key.clone().into_bytes()).await.unwrap();
                            println!("set {key}");
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
    }
}
