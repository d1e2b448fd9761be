//! SQL databases.
//!
//! For: what guests see as `fermyon:spin/sqlite` and `spin:sqlite`, in every
//! version, over SQLite files (or memory) below the state directory.
//!
//! Not for: deciding which component may use which database. The caller does that
//! by building a [`Grant`] of the labels that the manifest lists.
//!
//! Life of a connection: a guest opens a label and holds a handle; the first
//! statement opens SQLite's connection, which belongs to this handle alone;
//! statements run on tokio's threads for blocking work; when the handle or the instance
//! ends, an open transaction is undone and the connection closed.
//! Connections are not used again: temporary tables, settings and
//! `last_insert_rowid()` of one request must not be seen by another, and
//! opening one costs less than one disk flush.
//!
//! # What a guest's SQL may do to the host
//! `guard.rs` says what is refused, `connection.rs` how statements are
//! bounded in time, memory and threads.

mod connection;
pub(crate) mod file;
mod guard;
mod host;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use indexmap::IndexMap;
use rusqlite::OpenFlags;
use tokio::sync::Semaphore;
use wasmtime::component::{ComponentType, Lift, Lower};

pub(crate) use self::host::{State, add_to_linker};
use crate::Error;
use crate::resource::{Resource, Resources};

/// Most bytes that one statement returns. The host holds them while the guest
/// copies them. The same number as Spin's.
pub const RESULT_MAX_BYTES: usize = 128 << 20;

/// Most connections that one instance holds at a time. Each has a page cache of
/// up to 2 MiB; a request that needs more than a few is rare.
pub const CONNECTIONS_MAX_COUNT: usize = 32;

/// Longest SQL statement. Generous for statements with their data in them; data
/// belongs into parameters.
pub const STATEMENT_MAX_BYTES: usize = 16 << 20;

/// How long one statement may run. A request that needs longer than this for
/// one statement is almost certainly runaway; time in which the guest does not
/// read the rows of a stream does not count.
pub const STATEMENT_MAX_MS: u64 = 30_000;

/// Statements that run at the same time, for all guests. Each holds a thread.
const STATEMENTS_MAX_COUNT: usize = 48;

/// The same for connections within a transaction. Apart, so that those who wait
/// for a transaction's end cannot keep it from ending.
const STATEMENTS_IN_TRANSACTION_MAX_COUNT: usize = 16;

/// The file name of the database that every app may have, below the state
/// directory.
const DEFAULT_FILE_NAME: &str = "sqlite_db.db";

/// The label of that database.
const DEFAULT_LABEL: &str = "default";

/// Where a database's data lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseConfig {
    /// `type = "spin"`: an SQLite file, or memory if there is no path.
    Spin {
        /// The database file.
        path: Option<PathBuf>,
        /// Whether guests may open any file on this machine as a database.
        allow_attach_file: bool,
    },
    /// A database that a platform keeps; see [`resource`](crate::resource).
    Resource(Resource),
    /// A backend that this version does not have.
    Other {
        /// The `type` of the runtime configuration.
        backend: String,
    },
}

/// The databases of an app by label.
pub struct Databases {
    configs: IndexMap<String, DatabaseConfig>,
    threads: Arc<Threads>,
    resources: Arc<Resources>,
    opened: Mutex<Opened>,
}

/// Those databases that are open.
#[derive(Default)]
struct Opened {
    files: BTreeMap<PathBuf, Arc<Database>>,
    by_label: BTreeMap<String, Link>,
}

/// The databases that a component may use, by label.
#[derive(Clone, Default)]
pub struct Grant {
    by_label: BTreeMap<String, Link>,
}

/// A database and how a label may use it.
#[derive(Clone)]
struct Link {
    database: Arc<Database>,
    allow_attach_file: bool,
}

/// One database.
pub(crate) struct Database {
    location: Location,
    /// Keeps a database in memory from vanishing, and a file's write-ahead log
    /// from being folded into the file whenever the last guest leaves.
    anchor: Mutex<rusqlite::Connection>,
    /// How large it may become.
    pages_max_count: u64,
    /// Held by the connection that writes. SQLite would let writers poll for
    /// their turn; here they queue up, in order and without a thread.
    write_turn: Arc<Semaphore>,
    threads: Arc<Threads>,
}

/// Where SQLite finds a database.
enum Location {
    File(PathBuf),
    /// The name of a database in memory, as a URI.
    Memory(String),
}

/// Bounds on the threads that run statements, for all databases of a process.
pub struct Threads {
    statements: Arc<Semaphore>,
    statements_in_transaction: Arc<Semaphore>,
}

/// A value of SQL.
#[derive(Clone, Debug, PartialEq, ComponentType, Lift, Lower)]
#[component(variant)]
pub enum Value {
    /// A whole number.
    #[component(name = "integer")]
    Integer(i64),
    /// A number.
    #[component(name = "real")]
    Real(f64),
    /// Text.
    #[component(name = "text")]
    Text(String),
    /// Bytes.
    #[component(name = "blob")]
    Blob(Vec<u8>),
    /// Nothing.
    #[component(name = "null")]
    Null,
}

/// A row of a result.
#[derive(Clone, Debug, PartialEq, ComponentType, Lift, Lower)]
#[component(record)]
pub(crate) struct Row {
    values: Vec<Value>,
}

/// A result as a whole.
#[derive(Clone, Debug, Default, PartialEq, ComponentType, Lift, Lower)]
#[component(record)]
pub(crate) struct QueryResult {
    columns: Vec<String>,
    rows: Vec<Row>,
}

/// A result for people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The names of its columns.
    pub columns: Vec<String>,
    /// Its rows.
    pub rows: Vec<Vec<Value>>,
    /// How many rows the statement changed.
    pub changes_count: u64,
}

/// Why a call failed, as guests see it; the same in all versions.
#[derive(Clone, Debug, PartialEq, ComponentType, Lift, Lower)]
#[component(variant)]
pub(crate) enum SqlError {
    #[component(name = "no-such-database")]
    NoSuchDatabase,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "invalid-connection")]
    InvalidConnection,
    #[component(name = "database-full")]
    DatabaseFull,
    #[component(name = "io")]
    Io(String),
}

impl Databases {
    /// Every configured database, and `default` if it is not configured: `sqlite_db.db`
    /// in the state directory, or memory without one. Nothing is opened yet.
    pub fn new(
        state_dir: Option<&Path>,
        configs: &IndexMap<String, DatabaseConfig>,
        threads: Arc<Threads>,
    ) -> Self {
        let mut configs = configs.clone();
        configs.entry(DEFAULT_LABEL.to_owned()).or_insert_with(|| DatabaseConfig::Spin {
            path: state_dir.map(|dir| dir.join(DEFAULT_FILE_NAME)),
            allow_attach_file: false,
        });
        Self { configs, threads, resources: Arc::default(), opened: Mutex::default() }
    }

    /// Those that a platform keeps, by the labels of their links, and no others.
    pub fn linked(resources: &Arc<Resources>, links: &IndexMap<String, Resource>) -> Self {
        let configs = links
            .iter()
            .map(|(label, resource)| (label.clone(), DatabaseConfig::Resource(resource.clone())))
            .collect();
        Self { configs, threads: Arc::default(), resources: resources.clone(), opened: Mutex::default() }
    }

    /// The same, and opens all of them.
    ///
    /// # Errors
    /// A file that cannot be opened; a backend that this version lacks.
    pub fn open(state_dir: Option<&Path>, configs: &IndexMap<String, DatabaseConfig>) -> Result<Self, Error> {
        let databases = Self::new(state_dir, configs, Arc::default());
        for label in databases.configs.keys() {
            databases.link(label)?;
        }
        Ok(databases)
    }

    /// The databases for a component whose manifest lists these labels.
    ///
    /// # Errors
    /// A label that is not configured.
    pub fn grant<L: AsRef<str>>(&self, labels: &[L]) -> Result<Grant, Error> {
        let mut grant = Grant::default();
        for label in labels {
            let label = label.as_ref();
            grant.by_label.insert(label.to_owned(), self.link(label)?);
        }
        Ok(grant)
    }

    /// Executes statements before any guest runs, as `--sqlite` asks. They are
    /// the operator's: nothing is refused. Blocks until they are done.
    ///
    /// # Errors
    /// A label that is not configured; a statement that fails, or a transaction that is
    /// not ended.
    pub fn execute(&self, label: &str, statements: &str) -> Result<(), Error> {
        let failed = |cause: String| Error::SqliteExecute { label: label.to_owned(), cause };
        let database = self.link(label)?.database;
        let anchor = database.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let result = anchor.execute_batch(statements).map_err(|cause| failed(cause.to_string()));
        if anchor.is_autocommit() {
            return result;
        }
        // The anchor lives as long as the process, a transaction in it would too.
        anchor.execute_batch("ROLLBACK").map_err(|cause| failed(cause.to_string()))?;
        result.and_then(|()| Err(failed("a transaction is not ended with COMMIT".into())))
    }

    /// The rows that a statement returns, as a test wants to know them after guests ran.
    /// Blocks until they are there.
    ///
    /// # Errors
    /// A label that is not configured; a statement that fails.
    pub fn query(&self, label: &str, statement: &str) -> Result<Vec<Vec<Value>>, Error> {
        let failed = |cause: rusqlite::Error| Error::SqliteExecute {
            label: label.to_owned(),
            cause: cause.to_string(),
        };
        let database = self.link(label)?.database;
        let anchor = database.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut statement = anchor.prepare(statement).map_err(failed)?;
        let columns_count = statement.column_count();
        let mut rows = statement.query([]).map_err(failed)?;
        let mut values = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let row: Result<Vec<Value>, SqlError> =
                (0..columns_count).map(|column| connection::value(row, column)).collect();
            values.push(row.map_err(|cause| Error::SqliteExecute {
                label: label.to_owned(),
                cause: format!("{cause:?}"),
            })?);
        }
        Ok(values)
    }

    /// Runs one statement as a guest would, for a test; gives the rows that it returns.
    ///
    /// # Errors
    /// A label that is not configured; a statement that fails.
    pub async fn run(
        &self,
        label: &str,
        statement: String,
        parameters: Vec<Value>,
    ) -> Result<Vec<Vec<Value>>, Error> {
        let database = self.link(label)?.database;
        query(database, statement, parameters).await.map(|table| table.rows)
    }

    fn link(&self, label: &str) -> Result<Link, Error> {
        let Some(config) = self.configs.get(label) else {
            let mut known: Vec<String> = self.configs.keys().cloned().collect();
            known.sort();
            return Err(Error::SqliteDatabaseUnknown { label: label.to_owned(), known });
        };
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.open(label, config, &self.threads, &self.resources)
    }
}

impl Opened {
    fn open(
        &mut self,
        label: &str,
        config: &DatabaseConfig,
        threads: &Arc<Threads>,
        resources: &Resources,
    ) -> Result<Link, Error> {
        if let Some(link) = self.by_label.get(label) {
            return Ok(link.clone());
        }
        let (path, allow_attach_file) = match config {
            DatabaseConfig::Spin { path, allow_attach_file } => (path, *allow_attach_file),
            DatabaseConfig::Resource(resource) => {
                let link = Link { database: resources.database(resource, label)?, allow_attach_file: false };
                self.by_label.insert(label.to_owned(), link.clone());
                return Ok(link);
            }
            DatabaseConfig::Other { backend } => {
                return Err(Error::SqliteBackendUnsupported {
                    label: label.to_owned(),
                    backend: backend.clone(),
                });
            }
        };
        let failed = |cause: String| Error::SqliteOpen {
            label: label.to_owned(),
            path: path.clone().unwrap_or_else(|| "memory".into()),
            cause,
        };
        let location = match path {
            None => Location::new_memory(),
            Some(path) => Location::File(file::create(path).map_err(|cause| failed(cause.to_string()))?),
        };
        let known = match &location {
            Location::File(path) => self.files.get(path).cloned(),
            Location::Memory(_) => None,
        };
        let database = match known {
            Some(database) => database,
            None => {
                let database = Database::open(location, file::DATABASE_MAX_BYTES, threads.clone())
                    .map_err(|cause| failed(cause.to_string()))?;
                let database = Arc::new(database);
                if let Location::File(path) = &database.location {
                    self.files.insert(path.clone(), database.clone());
                }
                database
            }
        };
        let link = Link { database, allow_attach_file };
        self.by_label.insert(label.to_owned(), link.clone());
        Ok(link)
    }
}

impl Default for Threads {
    fn default() -> Self {
        Self {
            statements: Arc::new(Semaphore::new(STATEMENTS_MAX_COUNT)),
            statements_in_transaction: Arc::new(Semaphore::new(STATEMENTS_IN_TRANSACTION_MAX_COUNT)),
        }
    }
}

impl Grant {
    /// The labels that the component may open, in ascending order.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.by_label.keys().map(String::as_str)
    }
}

impl Location {
    /// A new, empty database in memory.
    fn new_memory() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // A name that starts with a slash is shared by the connections of the
        // process.
        Self::Memory(format!("file:/wisp-{}?vfs=memdb", NEXT.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Database {
    fn open(location: Location, max_bytes: u64, threads: Arc<Threads>) -> rusqlite::Result<Self> {
        let anchor = open(&location, OpenFlags::empty())?;
        if let Location::File(_) = location {
            file::set_write_ahead(&anchor)?;
        }
        let pages_max_count = file::set_durable(&anchor, max_bytes)?;
        let write_turn = Arc::new(Semaphore::new(1));
        Ok(Self { location, anchor: Mutex::new(anchor), pages_max_count, write_turn, threads })
    }

    /// A connection of its own. Costs some 50 microseconds.
    fn connect(&self, may_create_attached: bool) -> rusqlite::Result<rusqlite::Connection> {
        let flags = if may_create_attached { OpenFlags::SQLITE_OPEN_CREATE } else { OpenFlags::empty() };
        let connection = open(&self.location, flags)?;
        file::set_durable_with(&connection, self.pages_max_count)?;
        Ok(connection)
    }
}

fn open(location: &Location, flags: OpenFlags) -> rusqlite::Result<rusqlite::Connection> {
    match location {
        Location::File(path) => file::open_with(path, flags),
        Location::Memory(uri) => {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX
                | OpenFlags::SQLITE_OPEN_URI;
            rusqlite::Connection::open_with_flags(uri, flags)
        }
    }
}

/// Opens the file of a database that a platform keeps.
pub(crate) fn open_file(
    path: &Path,
    max_bytes: u64,
    threads: &Arc<Threads>,
) -> rusqlite::Result<Arc<Database>> {
    Database::open(Location::File(path.to_owned()), max_bytes, threads.clone()).map(Arc::new)
}

/// A connection for statements that somebody sends whom we do not trust.
pub(crate) fn connect(database: &Database) -> rusqlite::Result<rusqlite::Connection> {
    let mut connection = database.connect(false)?;
    let clock = Arc::new(guard::Clock::new());
    guard::restrict(&mut connection, false, &Arc::default(), &clock)?;
    clock.start(1);
    Ok(connection)
}

/// Runs one statement as a guest would.
pub(crate) async fn query(
    database: Arc<Database>,
    statement: String,
    parameters: Vec<Value>,
) -> Result<Table, Error> {
    let connection = connection::Connection::new(Link { database, allow_attach_file: false });
    match connection.execute(statement, parameters).await {
        Ok(QueryResult { columns, rows }) => Ok(Table {
            columns,
            rows: rows.into_iter().map(|row| row.values).collect(),
            changes_count: connection.changes_count(),
        }),
        Err(cause) => {
            let cause = match cause {
                SqlError::Io(cause) => cause,
                SqlError::DatabaseFull => "the database is full".into(),
                SqlError::NoSuchDatabase | SqlError::AccessDenied | SqlError::InvalidConnection => {
                    "the database cannot be used".into()
                }
            };
            Err(Error::SqliteExecute { label: "resource".into(), cause })
        }
    }
}

/// Whether a statement changes nothing.
pub(crate) fn is_readonly(database: &Database, statement: &str) -> Result<bool, Error> {
    let failed =
        |cause: rusqlite::Error| Error::SqliteExecute { label: "resource".into(), cause: cause.to_string() };
    let connection = connect(database).map_err(failed)?;
    let prepared = connection.prepare(statement).map_err(failed)?;
    Ok(prepared.readonly())
}
