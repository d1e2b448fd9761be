//! Stores and databases that a platform keeps: resources.
//!
//! A resource is a file of its own. Apps are linked to it by labels, several of them
//! possibly, and it outlives all of them. So the files that are open belong to the
//! process and not to an app: whoever is linked to a file shares its writer, its turn
//! to write, and its bound. It is opened when the first app wants it and closed when
//! the last one lets go.
//!
//! People look into resources, too: [`Resources::store`] and [`Resources::query`] are
//! for them, under the same limits as guests.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use crate::{
    Error,
    key_value::{self, Checked},
    sqlite::{self, Table, Value},
};

/// How long copying a resource waits for its turn.
const COPY_BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// Migrations of one release, at most: one a day for years.
pub const MIGRATIONS_MAX_COUNT: usize = 1_000;

/// Where the names of migrations are recorded that were applied.
const MIGRATIONS_TABLE: &str = "CREATE TABLE IF NOT EXISTS wisp_migrations (
    name TEXT PRIMARY KEY NOT NULL,
    digest TEXT NOT NULL,
    applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) WITHOUT ROWID";

/// A store or database in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The file.
    pub path: PathBuf,
    /// How large it may become.
    pub max_bytes: u64,
}

/// A change of a database's tables that comes with a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Its file's name; migrations are applied in the order of names.
    pub name: String,
    /// Statements.
    pub sql: String,
    /// The digest of the statements: what was applied must not change afterwards.
    pub digest: String,
}

/// The resources of a process that are open.
#[derive(Default)]
pub struct Resources {
    stores: Mutex<BTreeMap<PathBuf, Weak<key_value::FileDatabase>>>,
    databases: Mutex<BTreeMap<PathBuf, Weak<sqlite::Database>>>,
    threads: Arc<sqlite::Threads>,
}

impl Resources {
    /// A key-value store, for people. Opens the file, which is made if it is absent.
    ///
    /// # Errors
    /// [`Error::KeyValueOpen`].
    pub fn store(&self, resource: &Resource) -> Result<Checked, Error> {
        Ok(Checked::new(self.key_value(resource, "resource")?))
    }

    /// Runs one statement, for people. What guests may not do, they may not either.
    ///
    /// # Errors
    /// [`Error::SqliteOpen`], or [`Error::SqliteExecute`] with what SQLite says.
    pub async fn query(
        &self,
        resource: &Resource,
        statement: String,
        parameters: Vec<Value>,
    ) -> Result<Table, Error> {
        let database = self.database(resource, "resource")?;
        sqlite::query(database, statement, parameters).await
    }

    /// The same for a statement that changes nothing; another one is refused.
    ///
    /// # Errors
    /// As [`Resources::query`], and [`Error::SqliteReadOnly`].
    pub async fn query_only(
        &self,
        resource: &Resource,
        statement: String,
        parameters: Vec<Value>,
    ) -> Result<Table, Error> {
        let database = self.database(resource, "resource")?;
        if !sqlite::is_readonly(&database, &statement)? {
            return Err(Error::SqliteReadOnly);
        }
        sqlite::query(database, statement, parameters).await
    }

    /// Replaces all of a resource by what is in a file, as one transaction: others see all
    /// of it or nothing. Blocks.
    ///
    /// # Errors
    /// [`Error::SqliteOpen`] if the file is damaged, none of ours, or too large.
    pub fn replace(&self, resource: &Resource, from: &Path, is_key_value: bool) -> Result<(), Error> {
        let failed = |cause: String| Error::SqliteOpen {
            label: "resource".into(),
            path: resource.path.clone(),
            cause,
        };
        let sql = |cause: rusqlite::Error| failed(cause.to_string());
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let source = Connection::open_with_flags(from, flags).map_err(sql)?;
        // Written by a stranger: nothing in it is run, and all of it is looked at.
        source.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA query_only = ON").map_err(sql)?;
        let verdict: String =
            source.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(sql)?;
        if verdict != "ok" {
            return Err(failed(format!("the data is damaged: {verdict}")));
        }
        let number = |pragma: &str| {
            let number = source.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
            number.map(|number| u64::try_from(number).unwrap_or(u64::MAX)).map_err(sql)
        };
        let size_bytes = number("page_count")?.saturating_mul(number("page_size")?);
        if size_bytes > resource.max_bytes {
            return Err(failed(format!(
                "the data has {size_bytes} bytes, the quota is {}",
                resource.max_bytes
            )));
        }
        if is_key_value {
            key_value::check_file(&source).map_err(|cause| failed(cause.to_string()))?;
        }
        let path = sqlite::file::create(&resource.path).map_err(|cause| failed(cause.to_string()))?;
        let mut target = sqlite::file::open(&path).map_err(sql)?;
        target.busy_timeout(COPY_BUSY_TIMEOUT).map_err(sql)?;
        sqlite::file::set_write_ahead(&target).map_err(sql)?;
        sqlite::file::set_durable(&target, resource.max_bytes).map_err(sql)?;
        let backup = rusqlite::backup::Backup::new(&source, &mut target).map_err(sql)?;
        match backup.step(-1).map_err(sql)? {
            rusqlite::backup::StepResult::Done => Ok(()),
            _ => Err(failed("others use it; try again".into())),
        }
    }

    /// Applies those migrations that were not applied yet, in their order: all of them
    /// or none. Returns their names. Blocks.
    ///
    /// # Errors
    /// [`Error::SqliteOpen`]; [`Error::SqliteExecute`] with the migration that fails,
    /// or that is not what it was when it was applied.
    pub fn migrate(&self, resource: &Resource, migrations: &[Migration]) -> Result<Vec<String>, Error> {
        let database = self.database(resource, "default")?;
        let failed = |cause: String| Error::SqliteExecute { label: "default".into(), cause };
        if migrations.len() > MIGRATIONS_MAX_COUNT {
            return Err(failed(format!("there are more than {MIGRATIONS_MAX_COUNT} migrations")));
        }
        let connection = sqlite::connect(&database).map_err(|cause| failed(cause.to_string()))?;
        let within = |name: &str, cause: rusqlite::Error| failed(format!("migration `{name}`: {cause}"));
        connection.execute_batch("BEGIN IMMEDIATE").map_err(|cause| failed(cause.to_string()))?;
        // A failure drops the connection, which undoes all of it.
        connection.execute_batch(MIGRATIONS_TABLE).map_err(|cause| failed(cause.to_string()))?;
        let mut applied = Vec::new();
        for Migration { name, sql, digest } in migrations {
            let known: Option<String> = connection
                .query_row("SELECT digest FROM wisp_migrations WHERE name = ?1", [name], |row| row.get(0))
                .optional()
                .map_err(|cause| within(name, cause))?;
            match known {
                Some(known) if known == *digest => continue,
                Some(_) => {
                    return Err(failed(format!(
                        "migration `{name}` was applied before and is not the same any more"
                    )));
                }
                None => {}
            }
            connection.execute_batch(sql).map_err(|cause| within(name, cause))?;
            if connection.is_autocommit() {
                return Err(failed(format!("migration `{name}` ends the transaction that it is part of")));
            }
            connection
                .execute("INSERT INTO wisp_migrations (name, digest) VALUES (?1, ?2)", [name, digest])
                .map_err(|cause| within(name, cause))?;
            applied.push(name.clone());
        }
        connection.execute_batch("COMMIT").map_err(|cause| failed(cause.to_string()))?;
        Ok(applied)
    }

    /// Writes a copy of a resource, as of one moment, to a file that must not exist.
    /// Others go on to read and write meanwhile. Blocks.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn copy(from: &Path, to: &Path) -> Result<(), Error> {
        let failed = |cause: rusqlite::Error| Error::SqliteOpen {
            label: "resource".into(),
            path: from.to_owned(),
            cause: cause.to_string(),
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(from, flags).map_err(failed)?;
        connection.busy_timeout(COPY_BUSY_TIMEOUT).map_err(failed)?;
        connection.execute("VACUUM INTO ?1", [to.to_string_lossy()]).map_err(failed)?;
        Ok(())
    }

    /// Whether anybody has the file open.
    pub fn is_open(&self, path: &Path) -> bool {
        fn has<T>(open: &Mutex<BTreeMap<PathBuf, Weak<T>>>, path: &Path) -> bool {
            let open = open.lock().unwrap_or_else(PoisonError::into_inner);
            open.get(path).is_some_and(|known| known.strong_count() > 0)
        }
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        has(&self.stores, &path) || has(&self.databases, &path)
    }

    pub(crate) fn key_value(
        &self,
        resource: &Resource,
        label: &str,
    ) -> Result<Arc<dyn key_value::Store>, Error> {
        let failed = |cause: String| Error::KeyValueOpen {
            label: label.to_owned(),
            path: resource.path.clone(),
            cause,
        };
        let database = open(&self.stores, &resource.path, |path| {
            key_value::open_file(path, resource.max_bytes).map_err(|cause| cause.to_string())
        })
        .map_err(failed)?;
        Ok(key_value::store_in(database))
    }

    pub(crate) fn database(&self, resource: &Resource, label: &str) -> Result<Arc<sqlite::Database>, Error> {
        let failed =
            |cause: String| Error::SqliteOpen { label: label.to_owned(), path: resource.path.clone(), cause };
        open(&self.databases, &resource.path, |path| {
            sqlite::open_file(path, resource.max_bytes, &self.threads).map_err(|cause| cause.to_string())
        })
        .map_err(failed)
    }
}

/// The open file of a path; opened if it is not.
fn open<T>(
    known: &Mutex<BTreeMap<PathBuf, Weak<T>>>,
    path: &Path,
    open: impl FnOnce(&Path) -> Result<Arc<T>, String>,
) -> Result<Arc<T>, String> {
    let path = sqlite::file::create(path).map_err(|cause| cause.to_string())?;
    // Held while it is opened: one file has one writer.
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(opened) = known.get(&path).and_then(Weak::upgrade) {
        return Ok(opened);
    }
    let opened = open(&path)?;
    known.retain(|_, known| known.strong_count() > 0);
    known.insert(path, Arc::downgrade(&opened));
    Ok(opened)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn resource(folder: &Path, name: &str) -> Resource {
        Resource { path: folder.join(name), max_bytes: 1 << 20 }
    }

    fn migration(name: &str, sql: &str) -> Migration {
        Migration { name: name.into(), sql: sql.into(), digest: sql.len().to_string() }
    }

    #[tokio::test]
    async fn whoever_is_linked_to_a_store_sees_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let resources = Resources::default();
        let resource = resource(folder.path(), "store.db");
        let (one, other) = (resources.store(&resource).unwrap(), resources.store(&resource).unwrap());
        one.set("a".into(), b"1".to_vec()).await.unwrap();
        assert_eq!(other.get("a").await.unwrap().as_deref(), Some(&b"1"[..]));
        assert!(resources.is_open(&resource.path));
        drop((one, other));
        assert!(!resources.is_open(&resource.path));
    }

    #[tokio::test]
    async fn a_store_that_is_full_says_so_and_keeps_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let resources = Resources::default();
        let store = resources.store(&resource(folder.path(), "store.db")).unwrap();
        store.set("a".into(), b"1".to_vec()).await.unwrap();
        let full = store.set("b".into(), vec![1; 2 << 20]).await.unwrap_err();
        assert!(full.0.contains("full"), "{full}");
        assert_eq!(store.get("a").await.unwrap().as_deref(), Some(&b"1"[..]));
    }

    #[tokio::test]
    async fn migrations_are_applied_once_in_order_and_all_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let resources = Resources::default();
        let database = resource(folder.path(), "database.db");
        let first = migration("1.sql", "CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1)");
        assert_eq!(resources.migrate(&database, std::slice::from_ref(&first)).unwrap(), ["1.sql"]);
        assert_eq!(resources.migrate(&database, std::slice::from_ref(&first)).unwrap(), [] as [&str; 0]);
        let second = migration("2.sql", "ALTER TABLE t ADD COLUMN b TEXT");
        let broken = migration("3.sql", "INSERT INTO nowhere VALUES (1)");
        let error = resources.migrate(&database, &[first.clone(), second.clone(), broken]).unwrap_err();
        assert!(error.to_string().contains("3.sql"), "{error}");
        let columns = |table: Table| table.columns;
        let selected = resources.query(&database, "SELECT * FROM t".into(), Vec::new()).await;
        assert_eq!(columns(selected.unwrap()), ["a"], "nothing of it was applied");
        let ends = migration("2.sql", "COMMIT");
        assert!(resources.migrate(&database, &[first.clone(), ends]).is_err());
        let changed = migration("1.sql", "CREATE TABLE other (a INTEGER)");
        assert!(resources.migrate(&database, &[changed]).is_err());
        assert_eq!(resources.migrate(&database, &[first, second]).unwrap(), ["2.sql"]);
        let escaping = migration("4.sql", "ATTACH 'elsewhere.db' AS e");
        assert!(resources.migrate(&database, &[escaping]).is_err());
    }

    #[tokio::test]
    async fn what_is_imported_takes_the_place_of_all_for_those_who_have_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let resources = Resources::default();
        let (one, other) = (resource(folder.path(), "one.db"), resource(folder.path(), "other.db"));
        let (from, to) = (resources.store(&one).unwrap(), resources.store(&other).unwrap());
        from.set("a".into(), b"new".to_vec()).await.unwrap();
        to.set("b".into(), b"old".to_vec()).await.unwrap();
        let exported = folder.path().join("exported.db");
        Resources::copy(&one.path, &exported).unwrap();
        resources.replace(&other, &exported, true).unwrap();
        assert_eq!(to.keys(None).await.unwrap(), ["a"]);
        to.set("c".into(), b"later".to_vec()).await.unwrap();
        assert_eq!(to.keys(None).await.unwrap(), ["a", "c"]);
        std::fs::write(&exported, "nonsense".repeat(1_000)).unwrap();
        assert!(resources.replace(&other, &exported, true).is_err());
        let database = resource(folder.path(), "database.db");
        resources.query(&database, "CREATE TABLE t (a)".into(), Vec::new()).await.unwrap();
        assert!(
            resources.query_only(&database, "INSERT INTO t VALUES (1)".into(), Vec::new()).await.is_err()
        );
        assert_eq!(
            resources.query_only(&database, "SELECT * FROM t".into(), Vec::new()).await.unwrap().columns,
            ["a"]
        );
        let copy = folder.path().join("database-copy.db");
        Resources::copy(&database.path, &copy).unwrap();
        assert!(resources.replace(&other, &copy, true).is_err(), "it is no key-value store");
        assert_eq!(to.keys(None).await.unwrap(), ["a", "c"], "nothing of it was taken");
    }

    #[tokio::test]
    async fn a_copy_has_what_was_there_when_it_was_made() {
        let folder = tempfile::tempdir().unwrap();
        let resources = Resources::default();
        let original = resource(folder.path(), "store.db");
        let store = resources.store(&original).unwrap();
        store.set("a".into(), b"1".to_vec()).await.unwrap();
        let copy = resource(folder.path(), "copy.db");
        Resources::copy(&original.path, &copy.path).unwrap();
        store.set("a".into(), b"2".to_vec()).await.unwrap();
        let copied = resources.store(&copy).unwrap();
        assert_eq!(copied.get("a").await.unwrap().as_deref(), Some(&b"1"[..]));
    }
}
