//! Opening SQLite database files so that what is acknowledged stays.
//!
//! Shared by the key-value stores and the SQL databases: both keep their data
//! in files of SQLite with a write-ahead log, where readers never wait for the
//! writer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// How long a statement waits for a lock that another connection holds. As long
/// as SQLite's tools and drivers commonly wait: longer than any sane
/// transaction, shorter than the patience of a person.
pub(crate) const BUSY_TIMEOUT_MS: u64 = 5_000;

/// How large one database may become: 64 GiB. One store of one app must not
/// fill the disk that all of them share.
pub(crate) const DATABASE_MAX_BYTES: u64 = 64 << 30;

/// The file of a database, created with its directory if it is not there, and
/// written to disk so that a power cut does not take the directory away again.
///
/// Returns the file's one true name, so that two ways of writing a path find
/// the same database.
pub(crate) fn create(path: &Path) -> std::io::Result<PathBuf> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.is_dir() {
        create_directories(parent)?;
    }
    std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    sync_directory(parent)?;
    path.canonicalize()
}

fn create_directories(directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for ancestor in directory.ancestors().skip(1) {
        let ancestor = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
        // Directories above may belong to others and refuse to be opened; they
        // were there before us.
        if sync_directory(ancestor).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn sync_directory(directory: &Path) -> std::io::Result<()> {
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_directory: &Path) -> std::io::Result<()> {
    Ok(())
}

/// A connection to an existing database file.
pub(crate) fn open(path: &Path) -> rusqlite::Result<Connection> {
    open_with(path, OpenFlags::empty())
}

/// The same with more flags, which hold for attached files too.
pub(crate) fn open_with(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    // The path is absolute (see `create`), so SQLite never takes it for a URI.
    let flags = flags | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_millis(BUSY_TIMEOUT_MS))?;
    Ok(connection)
}

/// Turns the write-ahead log on. It is a property of the file and stays on, so
/// only the first connection of a process needs to say so.
pub(crate) fn set_write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
}

/// Makes commits durable and the database bounded; returns the bound in pages.
pub(crate) fn set_durable(connection: &Connection, max_bytes: u64) -> rusqlite::Result<u64> {
    let page_bytes: u32 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    let pages_count = max_bytes.min(DATABASE_MAX_BYTES) / u64::from(page_bytes.max(512));
    set_durable_with(connection, pages_count)?;
    Ok(pages_count)
}

/// The same for one connection of many, when the bound is known.
pub(crate) fn set_durable_with(connection: &Connection, pages_count: u64) -> rusqlite::Result<()> {
    // There a plain fsync stops at the drive's cache.
    #[cfg(target_os = "macos")]
    connection.execute_batch("PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON")?;
    connection
        .execute_batch(&format!("PRAGMA synchronous = FULL; PRAGMA main.max_page_count = {pages_count}"))
}
