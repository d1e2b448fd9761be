//! What a guest's SQL may not do.
//!
//! SQL is a program that runs in the host. A guest that we do not trust could
//! read and write files (`ATTACH`, `VACUUM INTO`, extensions), change settings
//! that others depend on (`PRAGMA`), or take the memory, the disk and the time
//! of all (large values, endless recursion, huge results). SQLite asks an
//! *authorizer* about everything a statement does while it is being prepared; ours answers here.
//! The limits below are SQLite's own, and [`Clock`] stops what takes too long.
//!
//! Three answers: *allow*; *ignore*, which makes a `PRAGMA` do nothing (for
//! settings that programs commonly tune and that Wisp decides: the statement
//! succeeds, as it did on Spin, and has no effect); *deny*, which makes the statement
//! fail with `not authorized`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, ffi};

use super::file::BUSY_TIMEOUT_MS;
use super::{STATEMENT_MAX_BYTES, STATEMENT_MAX_MS};

/// Largest text, blob or row. Half of what a result may have, so that one value
/// always fits into one.
const VALUE_MAX_BYTES: i32 = 64 << 20;

/// Databases that one connection may attach: temporary ones, in memory.
/// `VACUUM` needs one.
const ATTACHED_MAX_COUNT: i32 = 4;

/// Largest temporary database, and largest attached one if it is in memory.
const TEMPORARY_MAX_BYTES: u64 = 64 << 20;

/// How deep triggers may call triggers. A tenth of what SQLite allows: each
/// level costs stack and memory of the host.
const TRIGGER_DEPTH_MAX_COUNT: i32 = 100;

/// Virtual-machine steps between two looks at the clock: some 20 microseconds.
const STEPS_PER_LOOK_COUNT: i32 = 1_000;

/// Pragmas whose every use concerns only the guest's own connection and
/// database.
const ALLOWED_PRAGMAS: &[&str] = &[
    "analysis_limit",
    "application_id",
    "auto_vacuum",
    "automatic_index",
    "case_sensitive_like",
    "cell_size_check",
    "collation_list",
    "compile_options",
    "count_changes",
    "data_version",
    "defer_foreign_keys",
    "empty_result_callbacks",
    "encoding",
    "foreign_key_check",
    "foreign_key_list",
    "foreign_keys",
    "freelist_count",
    "full_column_names",
    "function_list",
    "ignore_check_constraints",
    "incremental_vacuum",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "legacy_alter_table",
    "module_list",
    "optimize",
    "page_count",
    "pragma_list",
    "query_only",
    "quick_check",
    "read_uncommitted",
    "recursive_triggers",
    "reverse_unordered_selects",
    "secure_delete",
    "short_column_names",
    "shrink_memory",
    "stats",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
];

/// Pragmas that may be asked for; setting them is ignored, because they decide
/// about durability, memory or time, which the host answers for, or concern
/// everyone's connections.
const READABLE_PRAGMAS: &[&str] = &[
    "busy_timeout",
    "cache_size",
    "cache_spill",
    "checkpoint_fullfsync",
    "default_cache_size",
    "fullfsync",
    "hard_heap_limit",
    "journal_mode",
    "journal_size_limit",
    "locking_mode",
    "max_page_count",
    "mmap_size",
    "page_size",
    "schema_version",
    "soft_heap_limit",
    "synchronous",
    "temp_store",
    "threads",
    "trusted_schema",
    "wal_autocheckpoint",
    "wal_checkpoint",
];

/// Pragmas that do nothing: this one would tell where the host keeps its files.
const IGNORED_PRAGMAS: &[&str] = &["database_list"];

/// What the authorizer and the host tell each other.
#[derive(Default)]
pub(super) struct Marks {
    /// The host itself prepares a statement; nothing is refused.
    is_host: AtomicBool,
    /// A statement that attaches a database was prepared.
    has_attached: AtomicBool,
}

/// Stops statements that are no longer wanted or run too long.
///
/// The statements of a connection have ascending numbers, one runs at a time.
pub(super) struct Clock {
    start: Instant,
    /// Number of the statement that runs.
    running: AtomicU64,
    /// All statements up to this number are no longer wanted.
    cancelled: AtomicU64,
    /// When the running statement must end, since `start`.
    deadline_ms: AtomicU64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            running: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            deadline_ms: AtomicU64::new(0),
        }
    }

    /// A statement starts.
    pub(super) fn start(&self, statement: u64) {
        self.deadline_ms.store(self.now_ms() + STATEMENT_MAX_MS, Ordering::Relaxed);
        self.running.store(statement, Ordering::SeqCst);
    }

    /// The running statement waited for its guest, which does not count.
    pub(super) fn pause(&self, waited: Duration) {
        let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX / 2);
        self.deadline_ms.fetch_add(waited_ms, Ordering::Relaxed);
    }

    /// Nobody waits for this statement any more.
    pub(super) fn cancel(&self, statement: u64) {
        self.cancelled.fetch_max(statement, Ordering::SeqCst);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst) >= self.running.load(Ordering::SeqCst)
    }

    pub(super) fn is_over(&self) -> bool {
        self.now_ms() >= self.deadline_ms.load(Ordering::Relaxed)
    }

    fn must_stop(&self) -> bool {
        self.is_cancelled() || self.is_over()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Makes a fresh connection fit for a guest's SQL.
pub(super) fn restrict(
    connection: &mut Connection,
    allow_attach_file: bool,
    marks: &Arc<Marks>,
    clock: &Arc<Clock>,
) -> rusqlite::Result<()> {
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_MAX_BYTES)?;
    let statement_bytes = i32::try_from(STATEMENT_MAX_BYTES).unwrap_or(i32::MAX);
    connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, statement_bytes)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, ATTACHED_MAX_COUNT)?;
    connection.set_limit(Limit::SQLITE_LIMIT_TRIGGER_DEPTH, TRIGGER_DEPTH_MAX_COUNT)?;
    connection.set_limit(Limit::SQLITE_LIMIT_WORKER_THREADS, 0)?;
    // Writing SQLite's own tables, and the old door for pointers as text.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, false)?;
    limit_temporary(connection, "temp")?;

    connection.progress_handler(STEPS_PER_LOOK_COUNT, {
        let clock = clock.clone();
        Some(move || clock.must_stop())
    })?;
    connection.busy_handler({
        let clock = clock.clone();
        let mut waiting_since = Instant::now();
        Some(move |tries: i32| {
            if tries == 0 {
                waiting_since = Instant::now();
            }
            if clock.must_stop() || waiting_since.elapsed() >= Duration::from_millis(BUSY_TIMEOUT_MS) {
                return false;
            }
            // Only other processes, and readers of a database in memory, get
            // here: our writers queue up before.
            std::thread::sleep(Duration::from_millis(1 << tries.clamp(0, 4)));
            true
        })
    })?;
    connection.authorizer({
        let marks = marks.clone();
        Some(move |context: rusqlite::hooks::AuthContext<'_>| {
            if marks.is_host.load(Ordering::SeqCst) {
                return Authorization::Allow;
            }
            if is_attach(&context.action) {
                marks.has_attached.store(true, Ordering::SeqCst);
            }
            decide(&context.action, allow_attach_file)
        })
    })
}

/// Bounds what a statement may have attached. To be called after each.
pub(super) fn limit_attached(connection: &Connection, marks: &Marks) -> rusqlite::Result<()> {
    if !marks.has_attached.swap(false, Ordering::SeqCst) {
        return Ok(());
    }
    marks.is_host.store(true, Ordering::SeqCst);
    let result = (2..2 + usize::try_from(ATTACHED_MAX_COUNT).unwrap_or(0)).try_for_each(|index| {
        match connection.db_name(index) {
            Ok(name) => limit_temporary(connection, &name),
            // There is none at this index.
            Err(_) => Ok(()),
        }
    });
    marks.is_host.store(false, Ordering::SeqCst);
    result
}

fn limit_temporary(connection: &Connection, name: &str) -> rusqlite::Result<()> {
    // Smaller pages make this smaller still; larger ones a guest cannot ask
    // for.
    let pages = TEMPORARY_MAX_BYTES / 4096;
    let name = name.replace('"', "\"\"");
    connection.query_row(&format!("PRAGMA \"{name}\".max_page_count = {pages}"), [], |_| Ok(()))
}

fn is_attach(action: &AuthAction<'_>) -> bool {
    match action {
        AuthAction::Attach { .. } => true,
        // The file's name is computed while the statement runs.
        AuthAction::Unknown { code, .. } => *code == ffi::SQLITE_ATTACH,
        _ => false,
    }
}

fn decide(action: &AuthAction<'_>, allow_attach_file: bool) -> Authorization {
    match action {
        // `VACUUM INTO` attaches its file too. A name of `file:…` would be a
        // URI, hence only these two.
        AuthAction::Attach { filename } if filename.is_empty() || *filename == ":memory:" => {
            Authorization::Allow
        }
        _ if is_attach(action) && allow_attach_file => Authorization::Allow,
        AuthAction::Attach { .. } | AuthAction::Unknown { .. } => Authorization::Deny,
        AuthAction::Pragma { pragma_name, pragma_value } => decide_pragma(pragma_name, *pragma_value),
        AuthAction::Function { function_name }
            if ["load_extension", "fts3_tokenizer"]
                .iter()
                .any(|name| function_name.eq_ignore_ascii_case(name)) =>
        {
            Authorization::Deny
        }
        _ => Authorization::Allow,
    }
}

fn decide_pragma(name: &str, value: Option<&str>) -> Authorization {
    let is_in = |names: &[&str]| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    if is_in(ALLOWED_PRAGMAS) {
        return Authorization::Allow;
    }
    if is_in(READABLE_PRAGMAS) {
        // What is so already may be asked for: many programs begin with it and
        // look at the answer.
        let is_already = name.eq_ignore_ascii_case("journal_mode")
            && value.is_some_and(|value| value.eq_ignore_ascii_case("wal"));
        return if value.is_none() || is_already { Authorization::Allow } else { Authorization::Ignore };
    }
    if is_in(IGNORED_PRAGMAS) { Authorization::Ignore } else { Authorization::Deny }
}
