//! A guest's connection and its statements.
//!
//! Statements run one after another on a thread for blocking work, of which
//! there are a bounded number for all guests. A statement that writes first
//! waits for the database's *write turn*, without a thread; it is given back when the
//! transaction ends. When nobody waits for a statement any more (the request
//! is over) it is stopped.
//!
//! # Streams
//! [`Connection::stream`] answers as soon as the first rows are there. The
//! thread then runs ahead of the guest by at most [`STREAM_AHEAD_MAX_BYTES`] and
//! waits. It must not wait forever, since it holds a thread and the
//! connection: when the guest wants to use the connection for something else,
//! or has not read for [`STREAM_STALL_MAX_MS`], the rest of the rows is
//! gathered in memory, up to [`RESULT_MAX_BYTES`]. Statements that write are never
//! streamed: they are done when the call returns.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::{Stream, stream};
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Batch, CachedStatement, ErrorCode, Statement, ToSql};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, mpsc, oneshot};

use super::file::BUSY_TIMEOUT_MS;
use super::guard::{self, Clock, Marks};
use super::{
    Link, QueryResult, RESULT_MAX_BYTES, Row, STATEMENT_MAX_BYTES, STATEMENT_MAX_MS, SqlError, Value,
};
use crate::data_span;

/// How far a statement runs ahead of the guest that reads its rows: enough
/// that neither waits for the other at each batch.
const STREAM_AHEAD_MAX_BYTES: usize = 256 << 10;

/// Rows are handed over in batches of about this size.
const STREAM_BATCH_BYTES: usize = 32 << 10;

/// After this time rows are handed over even if the batch is not full, so that the
/// first rows of a slow statement do not wait for the last.
const STREAM_BATCH_MS: u64 = 10;

/// How long a statement waits for a guest that does not read its rows. Long for
/// a guest that does something else meanwhile, short for the others that want the
/// thread.
const STREAM_STALL_MAX_MS: u64 = 2_000;

/// What a value or a row costs beside its content.
const VALUE_OVERHEAD_BYTES: usize = 32;

/// A guest's connection. Opened by its first statement.
#[derive(Clone)]
pub(super) struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    link: Link,
    slot: Arc<tokio::sync::Mutex<Slot>>,
    clock: Arc<Clock>,
    marks: Arc<Marks>,
    last_insert_rowid: AtomicI64,
    changes_count: AtomicU64,
    /// The stream that is being read, if any.
    flow: Mutex<Weak<Flow>>,
}

/// What a running statement needs for itself. Fields are dropped in this order: the
/// connection undoes its transaction before the next one may write.
#[derive(Default)]
struct Slot {
    connection: Option<rusqlite::Connection>,
    write_turn: Option<OwnedSemaphorePermit>,
    statements_count: u64,
}

/// A statement and what is to become of its rows.
struct Request {
    statement: String,
    parameters: Vec<Value>,
    may_stream: bool,
}

/// How a statement went, or goes on.
enum Started {
    /// It writes, and must not before it has the write turn.
    NeedsWriteTurn(OwnedMutexGuard<Slot>),
    Done(Result<QueryResult, SqlError>),
    Streaming {
        columns: Vec<String>,
        batches: mpsc::UnboundedReceiver<Batched>,
        flow: Arc<Flow>,
    },
}

/// Rows with their size, or why there are no more.
type Batched = Result<(Vec<Row>, usize), SqlError>;

/// A result whose rows come little by little.
pub(super) enum Streamed {
    Whole(QueryResult),
    Parts { columns: Vec<String>, rows: RowStream },
}

/// The guest's side of a stream. Dropping it stops the statement.
pub(super) struct RowStream {
    batches: mpsc::UnboundedReceiver<Batched>,
    flow: Arc<Flow>,
    _cancel: CancelOnDrop,
}

/// How much of a stream waits to be read.
#[derive(Default)]
struct Flow {
    state: Mutex<FlowState>,
    changed: Condvar,
}

#[derive(Default)]
struct FlowState {
    waiting_bytes: usize,
    /// The statement no longer waits for the guest.
    is_unthrottled: bool,
}

/// Stops a statement that nobody waits for.
struct CancelOnDrop {
    clock: Arc<Clock>,
    statement: u64,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.clock.cancel(self.statement);
    }
}

impl Connection {
    pub(super) fn new(link: Link) -> Self {
        let inner = Inner {
            link,
            slot: Arc::default(),
            clock: Arc::new(Clock::new()),
            marks: Arc::default(),
            last_insert_rowid: AtomicI64::new(0),
            changes_count: AtomicU64::new(0),
            flow: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Runs a statement to its end.
    pub(super) async fn execute(
        &self,
        statement: String,
        parameters: Vec<Value>,
    ) -> Result<QueryResult, SqlError> {
        match self.start(Request { statement, parameters, may_stream: false }).await? {
            Streamed::Whole(result) => Ok(result),
            Streamed::Parts { .. } => Err(SqlError::Io("the result came in parts".into())),
        }
    }

    /// Runs a statement and returns when the first rows are there.
    pub(super) async fn stream(
        &self,
        statement: String,
        parameters: Vec<Value>,
    ) -> Result<Streamed, SqlError> {
        self.start(Request { statement, parameters, may_stream: true }).await
    }

    /// The rowid that the last insert of this connection made; zero before.
    pub(super) fn last_insert_rowid(&self) -> i64 {
        self.inner.last_insert_rowid.load(Ordering::SeqCst)
    }

    /// How many rows the last statement of this connection changed.
    pub(super) fn changes_count(&self) -> u64 {
        self.inner.changes_count.load(Ordering::SeqCst)
    }

    async fn start(&self, request: Request) -> Result<Streamed, SqlError> {
        data_span::of("sqlite", "query", self.start_untold(request)).await
    }

    async fn start_untold(&self, request: Request) -> Result<Streamed, SqlError> {
        if request.statement.len() > STATEMENT_MAX_BYTES {
            return Err(SqlError::Io(format!(
                "the statement has {} bytes, the limit is {STATEMENT_MAX_BYTES}",
                request.statement.len()
            )));
        }
        let request = Arc::new(request);
        // A stream in progress holds the slot until its rows are read.
        if let Some(flow) = lock(&self.inner.flow).upgrade() {
            flow.unthrottle();
        }
        let mut slot = self.inner.slot.clone().lock_owned().await;
        loop {
            slot.statements_count += 1;
            let statement = slot.statements_count;
            let cancel = CancelOnDrop { clock: self.inner.clock.clone(), statement };
            let threads = &self.inner.link.database.threads;
            let is_in_transaction = slot.connection.as_ref().is_some_and(|open| !open.is_autocommit());
            let threads =
                if is_in_transaction { &threads.statements_in_transaction } else { &threads.statements };
            // The semaphore is never closed.
            let thread = threads.clone().acquire_owned().await.ok();
            let (started, start) = oneshot::channel();
            let (inner, job) = (self.inner.clone(), request.clone());
            tokio::task::spawn_blocking(move || run(inner, slot, statement, &job, started, thread));
            match start.await {
                Err(_) => return Err(SqlError::Io("the statement was given up".into())),
                Ok(Started::Done(result)) => return result.map(Streamed::Whole),
                Ok(Started::Streaming { columns, batches, flow }) => {
                    let rows = RowStream { batches, flow, _cancel: cancel };
                    return Ok(Streamed::Parts { columns, rows });
                }
                Ok(Started::NeedsWriteTurn(returned)) => {
                    slot = returned;
                    let turn = self.inner.link.database.write_turn.clone().acquire_owned();
                    let timeout = Duration::from_millis(BUSY_TIMEOUT_MS);
                    match tokio::time::timeout(timeout, turn).await {
                        Ok(Ok(turn)) => slot.write_turn = Some(turn),
                        // In SQLite's words, which programs look for.
                        Ok(Err(_)) | Err(_) => return Err(SqlError::Io("database is locked".into())),
                    }
                }
            }
        }
    }
}

/// Runs a statement on this thread and answers through `started`, as soon as it
/// is known how.
fn run(
    inner: Arc<Inner>,
    mut slot: OwnedMutexGuard<Slot>,
    statement: u64,
    request: &Request,
    started: oneshot::Sender<Started>,
    thread: Option<OwnedSemaphorePermit>,
) {
    inner.clock.start(statement);
    let mut started = Some(started);
    let ran = inner.run(&mut slot, request, &mut started);
    inner.settle(&mut slot);
    drop(thread);
    let Some(started) = started else { return };
    // Nobody listens if the request is over.
    let _ = match ran {
        Ok(None) => started.send(Started::NeedsWriteTurn(slot)),
        Ok(Some(result)) => {
            // Free before the guest can ask for it again.
            drop(slot);
            started.send(Started::Done(Ok(result)))
        }
        Err(cause) => {
            drop(slot);
            started.send(Started::Done(Err(cause)))
        }
    };
}

impl Inner {
    /// The result of a statement; nothing if it needs the write turn first.
    fn run(
        &self,
        slot: &mut Slot,
        request: &Request,
        started: &mut Option<oneshot::Sender<Started>>,
    ) -> Result<Option<QueryResult>, SqlError> {
        if self.clock.is_cancelled() {
            return Err(SqlError::Io("the statement was cancelled".into()));
        }
        let connection = match &mut slot.connection {
            Some(connection) => connection,
            none => {
                let allow_attach_file = self.link.allow_attach_file;
                let mut connection =
                    self.link.database.connect(allow_attach_file).map_err(|cause| self.error(cause))?;
                guard::restrict(&mut connection, allow_attach_file, &self.marks, &self.clock)
                    .map_err(|cause| self.error(cause))?;
                none.insert(connection)
            }
        };
        let mut prepared = prepare(connection, &request.statement).map_err(|cause| self.error(cause))?;
        let statement = match &mut prepared {
            Prepared::Cached(statement) => &mut **statement,
            Prepared::Once(statement) => statement,
            Prepared::Several => {
                return Err(SqlError::Io("only one statement can be executed at a time".into()));
            }
            Prepared::Nothing => return Ok(Some(QueryResult::default())),
        };
        let is_readonly = statement.readonly();
        if !is_readonly && slot.write_turn.is_none() {
            return Ok(None);
        }
        bind(statement, &request.parameters).map_err(|cause| self.error(cause))?;
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut output = Output::new(self, columns, request.may_stream && is_readonly, started);
        let columns_count = output.columns.len();
        let mut rows = statement.raw_query();
        let result = loop {
            match rows.next() {
                Ok(Some(row)) => {
                    let read: Result<Vec<_>, _> = (0..columns_count).map(|index| value(row, index)).collect();
                    if let Err(cause) = read.and_then(|values| output.push(Row { values })) {
                        break Err(cause);
                    }
                }
                Ok(None) => break Ok(()),
                Err(cause) => break Err(self.error(cause)),
            }
        };
        output.finish(result)
    }

    /// Brings what others see up to date after a statement.
    fn settle(&self, slot: &mut Slot) {
        let Some(connection) = &slot.connection else { return };
        self.last_insert_rowid.store(connection.last_insert_rowid(), Ordering::SeqCst);
        self.changes_count.store(connection.changes(), Ordering::SeqCst);
        if guard::limit_attached(connection, &self.marks).is_err() {
            // Unbounded memory is no option; the next statement opens anew.
            slot.connection = None;
        }
        if slot.connection.as_ref().is_none_or(rusqlite::Connection::is_autocommit) {
            slot.write_turn = None;
        }
    }

    /// What a guest sees of an error.
    fn error(&self, cause: rusqlite::Error) -> SqlError {
        match cause.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => SqlError::DatabaseFull,
            Some(ErrorCode::OperationInterrupted) if self.clock.is_over() => SqlError::Io(format!(
                "the statement was stopped because it ran longer than {STATEMENT_MAX_MS} ms"
            )),
            _ => SqlError::Io(cause.to_string()),
        }
    }
}

/// A statement that is ready to run.
enum Prepared<'c> {
    /// Kept for the next time.
    Cached(CachedStatement<'c>),
    Once(Statement<'c>),
    Several,
    Nothing,
}

fn prepare<'c>(connection: &'c rusqlite::Connection, sql: &str) -> rusqlite::Result<Prepared<'c>> {
    let body = sql.trim_end_matches(|c: char| c == ';' || c.is_ascii_whitespace());
    // `prepare_cached` calls itself for what follows a statement. A guest could
    // write statements enough to fill the stack, so only what is surely alone
    // takes that way.
    if !body.is_empty() && !body.contains(';') {
        return connection.prepare_cached(sql).map(Prepared::Cached);
    }
    let mut batch = Batch::new(connection, sql);
    let Some(statement) = batch.next()? else { return Ok(Prepared::Nothing) };
    Ok(match batch.next() {
        Ok(None) => Prepared::Once(statement),
        // Also if it fails, since it may name what the first would create.
        Ok(Some(_)) | Err(_) => Prepared::Several,
    })
}

fn bind(statement: &mut Statement<'_>, parameters: &[Value]) -> rusqlite::Result<()> {
    let expected = statement.parameter_count();
    if parameters.len() != expected {
        return Err(rusqlite::Error::InvalidParameterCount(parameters.len(), expected));
    }
    for (index, parameter) in parameters.iter().enumerate() {
        statement.raw_bind_parameter(index + 1, parameter)?;
    }
    Ok(())
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Real(number) => ValueRef::Real(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
            Self::Null => ValueRef::Null,
        }))
    }
}

pub(super) fn value(row: &rusqlite::Row<'_>, index: usize) -> Result<Value, SqlError> {
    let value = row.get_ref(index).map_err(|cause| SqlError::Io(cause.to_string()))?;
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Real(number) => Value::Real(number),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => {
                return Err(SqlError::Io(format!(
                    "the text in column {} is not valid UTF-8; select it with CAST(… AS BLOB)",
                    index + 1
                )));
            }
        },
    })
}

fn size_bytes(row: &Row) -> usize {
    let contents = row.values.iter().map(|value| match value {
        Value::Text(text) => text.len(),
        Value::Blob(bytes) => bytes.len(),
        Value::Integer(_) | Value::Real(_) | Value::Null => 0,
    });
    VALUE_OVERHEAD_BYTES + contents.map(|bytes| bytes + VALUE_OVERHEAD_BYTES).sum::<usize>()
}

/// Where the rows of a statement go: first into memory, and once they are more
/// than a batch, if that is allowed, to a guest that reads while we go on.
struct Output<'a> {
    inner: &'a Inner,
    may_stream: bool,
    started: &'a mut Option<oneshot::Sender<Started>>,
    columns: Vec<String>,
    rows: Vec<Row>,
    rows_bytes: usize,
    since: Instant,
    stream: Option<(mpsc::UnboundedSender<Batched>, Arc<Flow>)>,
}

impl<'a> Output<'a> {
    fn new(
        inner: &'a Inner,
        columns: Vec<String>,
        may_stream: bool,
        started: &'a mut Option<oneshot::Sender<Started>>,
    ) -> Self {
        let since = Instant::now();
        Self { inner, may_stream, started, columns, rows: Vec::new(), rows_bytes: 0, since, stream: None }
    }

    fn push(&mut self, row: Row) -> Result<(), SqlError> {
        self.rows_bytes += size_bytes(&row);
        self.rows.push(row);
        if !self.may_stream {
            return check_result(self.rows_bytes);
        }
        if self.rows_bytes < STREAM_BATCH_BYTES
            && self.since.elapsed() < Duration::from_millis(STREAM_BATCH_MS)
        {
            return Ok(());
        }
        self.hand_over()
    }

    fn hand_over(&mut self) -> Result<(), SqlError> {
        let (sender, flow) = match &self.stream {
            Some(stream) => stream,
            None => {
                let (sender, batches) = mpsc::unbounded_channel();
                let flow = Arc::new(Flow::default());
                *lock(&self.inner.flow) = Arc::downgrade(&flow);
                let columns = self.columns.clone();
                if let Some(started) = self.started.take() {
                    let _ = started.send(Started::Streaming { columns, batches, flow: flow.clone() });
                }
                self.stream.insert((sender, flow))
            }
        };
        let batch = (std::mem::take(&mut self.rows), std::mem::take(&mut self.rows_bytes));
        let waited = flow.add(batch.1)?;
        self.inner.clock.pause(waited);
        if sender.send(Ok(batch)).is_err() {
            return Err(SqlError::Io("the statement was cancelled".into()));
        }
        self.since = Instant::now();
        Ok(())
    }

    /// The whole result, if it was not streamed.
    fn finish(mut self, result: Result<(), SqlError>) -> Result<Option<QueryResult>, SqlError> {
        if self.stream.is_none() {
            return result.map(|()| Some(QueryResult { columns: self.columns, rows: self.rows }));
        }
        let result = result.and_then(|()| self.hand_over());
        if let (Err(cause), Some((sender, _))) = (result, &self.stream) {
            let _ = sender.send(Err(cause));
        }
        Ok(None)
    }
}

fn check_result(total_bytes: usize) -> Result<(), SqlError> {
    if total_bytes > RESULT_MAX_BYTES {
        return Err(SqlError::Io(format!("the result exceeds the limit of {RESULT_MAX_BYTES} bytes")));
    }
    Ok(())
}

impl Flow {
    /// Waits until the guest has read enough, adds a batch, and says how long
    /// it waited.
    fn add(&self, bytes: usize) -> Result<Duration, SqlError> {
        let since = Instant::now();
        let mut state = lock(&self.state);
        while !state.is_unthrottled && state.waiting_bytes >= STREAM_AHEAD_MAX_BYTES {
            let stall = Duration::from_millis(STREAM_STALL_MAX_MS);
            let (woken, timeout) =
                self.changed.wait_timeout(state, stall).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.is_unthrottled |= timeout.timed_out();
        }
        state.waiting_bytes += bytes;
        check_result(state.waiting_bytes)?;
        Ok(since.elapsed())
    }

    fn remove(&self, bytes: usize) {
        let mut state = lock(&self.state);
        state.waiting_bytes = state.waiting_bytes.saturating_sub(bytes);
        self.changed.notify_all();
    }

    fn unthrottle(&self) {
        lock(&self.state).is_unthrottled = true;
        self.changed.notify_all();
    }
}

/// Nothing panics between two changes that belong together, so what a poisoned
/// lock protects is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RowStream {
    /// The rows, a batch at a time.
    pub(super) fn pages(self) -> impl Stream<Item = Result<Vec<Row>, SqlError>> + Send + 'static {
        stream::unfold(self, |mut rows| async move {
            let batch = rows.batches.recv().await?;
            let batch = batch.map(|(batch, bytes)| {
                rows.flow.remove(bytes);
                batch
            });
            Some((batch, rows))
        })
    }
}

impl Drop for RowStream {
    fn drop(&mut self) {
        // The statement may be waiting for us; it finds that it is cancelled.
        self.batches.close();
        self.flow.unthrottle();
    }
}
