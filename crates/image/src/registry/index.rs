//! What the registry knows besides the blobs: who has which, tags, uploads, and what
//! refers to what.
//!
//! [`Index`] is the boundary behind which another database may stand one day;
//! [`SqliteIndex`] is the one there is. Its methods wait, so they are called on
//! threads that may.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use crate::format::Descriptor;
use crate::{Digest, Error};

/// How long a statement waits for another process that writes.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// How often "somebody asked for this" is written down. Much more often than garbage
/// is collected, much less often than blobs are asked for.
const TOUCH_PAUSE: Duration = Duration::from_secs(10 * 60);

/// What this version writes; `PRAGMA user_version`.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE blobs (
    repository TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    -- When it was pushed or asked for last, in seconds.
    touched INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)
) WITHOUT ROWID;
CREATE INDEX blobs_by_digest ON blobs (digest);
CREATE TABLE manifests (
    repository TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    artifact_type TEXT,
    subject TEXT,
    annotations TEXT NOT NULL,
    touched INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)
) WITHOUT ROWID;
CREATE INDEX manifests_by_digest ON manifests (digest);
CREATE INDEX manifests_by_subject ON manifests (repository, subject, digest) WHERE subject IS NOT NULL;
-- What a manifest names: blobs, or other manifests.
CREATE TABLE contents (
    repository TEXT NOT NULL,
    manifest TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (repository, manifest, digest),
    FOREIGN KEY (repository, manifest) REFERENCES manifests (repository, digest) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX contents_by_digest ON contents (repository, digest);
CREATE TABLE tags (
    repository TEXT NOT NULL,
    tag TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (repository, tag),
    FOREIGN KEY (repository, digest) REFERENCES manifests (repository, digest) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX tags_by_digest ON tags (repository, digest);
CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    repository TEXT NOT NULL,
    began INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX uploads_by_repository ON uploads (repository);
";

/// What is known about a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestRow {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What it is.
    pub media_type: String,
    /// What it is good for.
    pub artifact_type: Option<String>,
    /// The manifest that it is about.
    pub subject: Option<Digest>,
    /// What else it says about itself.
    pub annotations: BTreeMap<String, String>,
    /// What it names, and what of that must be there.
    pub contents: Vec<Digest>,
}

/// Why a manifest was not taken.
#[derive(Debug)]
pub enum PutManifest {
    /// It was.
    Done,
    /// It names what the repository does not have.
    Missing(Vec<Digest>),
}

/// What became of something that is to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone.
    Done,
    /// It was not there.
    NotThere,
    /// Something else needs it.
    InUse,
}

/// What is garbage, and what is not although nothing in the index names it.
#[derive(Clone, Debug)]
pub struct GarbageRules {
    /// How long something must be nobody's.
    pub age: Duration,
    /// How long an upload may take.
    pub upload_age: Duration,
    /// The same for manifests that no tag names; `None` keeps all of them.
    pub untagged_age: Option<Duration>,
    /// Manifests that stay, with their repositories.
    pub kept: Arc<HashSet<(String, Digest)>>,
    /// Who has repositories: the first parts of their names. `None` is everybody.
    pub owners: Option<Arc<HashSet<String>>>,
}

/// What is garbage.
#[derive(Clone, Debug, Default)]
pub struct Garbage {
    /// Repositories of nobody.
    pub repositories: Vec<String>,
    /// Manifests that no tag and no other manifest names.
    pub manifests: Vec<(String, Digest)>,
    /// Blobs that no manifest of their repository names.
    pub blobs: Vec<(String, Digest)>,
    /// Uploads that nobody went on with.
    pub uploads: Vec<String>,
}

/// What the registry knows besides the blobs.
pub trait Index: Send + Sync + 'static {
    /// The size of a blob, if the repository has it. That somebody asked is noted: it
    /// is not garbage for a while.
    ///
    /// # Errors
    /// [`Error::Index`], as all methods.
    fn blob(&self, repository: &str, digest: &Digest) -> Result<Option<u64>, Error>;

    /// Notes that a repository has a blob, which is durable already.
    fn put_blob(&self, repository: &str, digest: &Digest, size: u64) -> Result<(), Error>;

    /// Takes a blob away from a repository.
    fn delete_blob(&self, repository: &str, digest: &Digest) -> Result<Deleted, Error>;

    /// What is known about a manifest. That somebody asked is noted, as for blobs.
    fn manifest(&self, repository: &str, digest: &Digest) -> Result<Option<ManifestRow>, Error>;

    /// The manifest that a tag is given to.
    fn tagged(&self, repository: &str, tag: &str) -> Result<Option<Digest>, Error>;

    /// Notes a manifest, whose bytes are durable already, and gives it a tag. What it
    /// names is not garbage from then on.
    fn put_manifest(
        &self,
        repository: &str,
        manifest: &ManifestRow,
        tag: Option<&str>,
    ) -> Result<PutManifest, Error>;

    /// Takes a manifest and its tags away.
    fn delete_manifest(&self, repository: &str, digest: &Digest) -> Result<Deleted, Error>;

    /// Takes a tag away.
    fn delete_tag(&self, repository: &str, tag: &str) -> Result<Deleted, Error>;

    /// Tags behind `after`, in order. `None`: there is no such repository.
    fn tags(&self, repository: &str, after: &str, limit: usize) -> Result<Option<Vec<String>>, Error>;

    /// The manifests that are about another one, behind `after`, in order.
    fn referrers(
        &self,
        repository: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Descriptor>, Error>;

    /// Notes an upload. `false`: the repository, or all together, have too many.
    fn begin_upload(&self, repository: &str, id: &str, limits: (usize, usize)) -> Result<bool, Error>;

    /// Whether there is an upload.
    fn has_upload(&self, repository: &str, id: &str) -> Result<bool, Error>;

    /// The uploads of a repository.
    fn uploads(&self, repository: &str) -> Result<Vec<String>, Error>;

    /// Forgets an upload.
    fn end_upload(&self, id: &str) -> Result<(), Error>;

    /// Removes all repositories whose names begin with `OWNER/`, with everything in them;
    /// their content is garbage then.
    fn delete_repositories(&self, owner: &str) -> Result<(), Error>;

    /// What is garbage by these rules, and takes it away unless `dry_run`.
    fn take_garbage(&self, rules: &GarbageRules, dry_run: bool) -> Result<Garbage, Error>;

    /// How many repositories have this content, as a blob or as a manifest.
    fn owners_count(&self, digest: &Digest) -> Result<usize, Error>;
}

/// An [`Index`] in an SQLite database.
pub struct SqliteIndex {
    connection: Mutex<Connection>,
}

impl SqliteIndex {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::set_up(Connection::open(path)?)
    }

    fn set_up(mut connection: Connection) -> Result<Self, Error> {
        connection.busy_timeout(BUSY_LIMIT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // What was acknowledged survives a power cut.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 {
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        transaction.commit()?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A transaction that panicked was rolled back when it was dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<T>(&self, action: impl FnOnce(&Transaction<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let mut connection = self.connection();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = action(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }
}

impl Index for SqliteIndex {
    fn blob(&self, repository: &str, digest: &Digest) -> Result<Option<u64>, Error> {
        let connection = self.connection();
        let found: Option<(i64, i64)> = connection
            .prepare_cached("SELECT size, touched FROM blobs WHERE repository = ?1 AND digest = ?2")?
            .query_row(params![repository, text(digest)], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((size, touched)) = found else { return Ok(None) };
        if touched + seconds(TOUCH_PAUSE) < now() {
            touch(&connection, "blobs", repository, digest)?;
        }
        Ok(Some(unsigned(size)))
    }

    fn put_blob(&self, repository: &str, digest: &Digest, size: u64) -> Result<(), Error> {
        let connection = self.connection();
        connection
            .prepare_cached(
                "INSERT INTO blobs (repository, digest, size, touched) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (repository, digest) DO UPDATE SET touched = excluded.touched",
            )?
            .execute(params![repository, text(digest), signed(size), now()])?;
        Ok(())
    }

    fn delete_blob(&self, repository: &str, digest: &Digest) -> Result<Deleted, Error> {
        self.write(|transaction| {
            let is_named: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM contents WHERE repository = ?1 AND digest = ?2)",
                params![repository, text(digest)],
                |row| row.get(0),
            )?;
            let deleted = match is_named {
                true => 0,
                false => transaction.execute(
                    "DELETE FROM blobs WHERE repository = ?1 AND digest = ?2",
                    params![repository, text(digest)],
                )?,
            };
            Ok(match (is_named, deleted) {
                (true, _) => Deleted::InUse,
                (false, 0) => Deleted::NotThere,
                (false, _) => Deleted::Done,
            })
        })
    }

    fn manifest(&self, repository: &str, digest: &Digest) -> Result<Option<ManifestRow>, Error> {
        let connection = self.connection();
        let found = connection
            .prepare_cached(
                "SELECT size, media_type, artifact_type, subject, annotations, touched FROM manifests
                 WHERE repository = ?1 AND digest = ?2",
            )?
            .query_row(params![repository, text(digest)], |row| {
                let (subject, annotations): (Option<String>, String) = (row.get(3)?, row.get(4)?);
                let touched: i64 = row.get(5)?;
                let manifest = ManifestRow {
                    digest: *digest,
                    size: unsigned(row.get(0)?),
                    media_type: row.get(1)?,
                    artifact_type: row.get(2)?,
                    subject: subject.as_deref().and_then(Digest::parse),
                    annotations: serde_json::from_str(&annotations).unwrap_or_default(),
                    contents: Vec::new(),
                };
                Ok((manifest, touched))
            })
            .optional()?;
        let Some((mut manifest, touched)) = found else { return Ok(None) };
        if touched + seconds(TOUCH_PAUSE) < now() {
            touch(&connection, "manifests", repository, digest)?;
        }
        let mut statement = connection
            .prepare_cached("SELECT digest FROM contents WHERE repository = ?1 AND manifest = ?2")?;
        let contents =
            statement.query_map(params![repository, text(digest)], |row| row.get::<_, String>(0))?;
        for content in contents {
            manifest.contents.extend(Digest::parse(&content?));
        }
        Ok(Some(manifest))
    }

    fn tagged(&self, repository: &str, tag: &str) -> Result<Option<Digest>, Error> {
        let connection = self.connection();
        let found: Option<String> = connection
            .prepare_cached("SELECT digest FROM tags WHERE repository = ?1 AND tag = ?2")?
            .query_row(params![repository, tag], |row| row.get(0))
            .optional()?;
        Ok(found.as_deref().and_then(Digest::parse))
    }

    fn put_manifest(
        &self,
        repository: &str,
        manifest: &ManifestRow,
        tag: Option<&str>,
    ) -> Result<PutManifest, Error> {
        self.write(|transaction| {
            let mut missing = Vec::new();
            for content in &manifest.contents {
                let is_there: bool = transaction
                    .prepare_cached(
                        "SELECT EXISTS (SELECT 1 FROM blobs WHERE repository = ?1 AND digest = ?2)
                             OR EXISTS (SELECT 1 FROM manifests WHERE repository = ?1 AND digest = ?2)",
                    )?
                    .query_row(params![repository, text(content)], |row| row.get(0))?;
                if !is_there {
                    missing.push(*content);
                }
            }
            if !missing.is_empty() {
                return Ok(PutManifest::Missing(missing));
            }
            let annotations = serde_json::to_string(&manifest.annotations).unwrap_or_default();
            transaction.execute(
                "INSERT INTO manifests
                     (repository, digest, size, media_type, artifact_type, subject, annotations, touched)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (repository, digest) DO UPDATE
                 SET media_type = excluded.media_type, touched = excluded.touched",
                params![
                    repository,
                    text(&manifest.digest),
                    signed(manifest.size),
                    manifest.media_type,
                    manifest.artifact_type,
                    manifest.subject.as_ref().map(text),
                    annotations,
                    now(),
                ],
            )?;
            for content in &manifest.contents {
                transaction
                    .prepare_cached(
                        "INSERT OR IGNORE INTO contents (repository, manifest, digest) VALUES (?1, ?2, ?3)",
                    )?
                    .execute(params![repository, text(&manifest.digest), text(content)])?;
            }
            if let Some(tag) = tag {
                transaction.execute(
                    "INSERT INTO tags (repository, tag, digest) VALUES (?1, ?2, ?3)
                     ON CONFLICT (repository, tag) DO UPDATE SET digest = excluded.digest",
                    params![repository, tag, text(&manifest.digest)],
                )?;
            }
            Ok(PutManifest::Done)
        })
    }

    fn delete_manifest(&self, repository: &str, digest: &Digest) -> Result<Deleted, Error> {
        self.write(|transaction| {
            let deleted = transaction.execute(
                "DELETE FROM manifests WHERE repository = ?1 AND digest = ?2",
                params![repository, text(digest)],
            )?;
            Ok(if deleted == 0 { Deleted::NotThere } else { Deleted::Done })
        })
    }

    fn delete_tag(&self, repository: &str, tag: &str) -> Result<Deleted, Error> {
        let deleted = self
            .connection()
            .execute("DELETE FROM tags WHERE repository = ?1 AND tag = ?2", params![repository, tag])?;
        Ok(if deleted == 0 { Deleted::NotThere } else { Deleted::Done })
    }

    fn tags(&self, repository: &str, after: &str, limit: usize) -> Result<Option<Vec<String>>, Error> {
        let connection = self.connection();
        let exists: bool = connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM manifests WHERE repository = ?1)
                     OR EXISTS (SELECT 1 FROM blobs WHERE repository = ?1)",
            )?
            .query_row([repository], |row| row.get(0))?;
        if !exists {
            return Ok(None);
        }
        let mut statement = connection.prepare_cached(
            "SELECT tag FROM tags WHERE repository = ?1 AND tag > ?2 ORDER BY tag LIMIT ?3",
        )?;
        let tags = statement.query_map(params![repository, after, signed(limit as u64)], |row| row.get(0))?;
        Ok(Some(tags.collect::<Result<_, _>>()?))
    }

    fn referrers(
        &self,
        repository: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Descriptor>, Error> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(
            "SELECT digest, size, media_type, artifact_type, annotations FROM manifests
             WHERE repository = ?1 AND subject = ?2 AND digest > ?3
                 AND (?4 IS NULL OR artifact_type = ?4)
             ORDER BY digest LIMIT ?5",
        )?;
        let rows = statement.query_map(
            params![repository, text(subject), after, artifact_type, signed(limit as u64)],
            |row| {
                let (digest, annotations): (String, String) = (row.get(0)?, row.get(4)?);
                let digest = Digest::parse(&digest).unwrap_or(*subject);
                let mut descriptor =
                    Descriptor::new(&row.get::<_, String>(2)?, digest, unsigned(row.get(1)?));
                descriptor.artifact_type = row.get(3)?;
                descriptor.annotations = serde_json::from_str(&annotations).unwrap_or_default();
                Ok(descriptor)
            },
        )?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn begin_upload(&self, repository: &str, id: &str, limits: (usize, usize)) -> Result<bool, Error> {
        let (of_repository, of_all) = limits;
        self.write(|transaction| {
            let count = |filter: &str| {
                transaction.query_row(
                    &format!("SELECT count(*) FROM uploads WHERE ?1 = ?1 {filter}"),
                    [repository],
                    |row| row.get::<_, i64>(0).map(unsigned),
                )
            };
            let is_full =
                count("AND repository = ?1")? >= of_repository as u64 || count("")? >= of_all as u64;
            if !is_full {
                transaction.execute(
                    "INSERT INTO uploads (id, repository, began) VALUES (?1, ?2, ?3)",
                    params![id, repository, now()],
                )?;
            }
            Ok(!is_full)
        })
    }

    fn has_upload(&self, repository: &str, id: &str) -> Result<bool, Error> {
        let connection = self.connection();
        let found = connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM uploads WHERE id = ?1 AND repository = ?2)")?
            .query_row([id, repository], |row| row.get(0))?;
        Ok(found)
    }

    fn uploads(&self, repository: &str) -> Result<Vec<String>, Error> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached("SELECT id FROM uploads WHERE repository = ?1")?;
        let found = statement.query_map([repository], |row| row.get(0))?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    fn end_upload(&self, id: &str) -> Result<(), Error> {
        self.connection().execute("DELETE FROM uploads WHERE id = ?1", [id])?;
        Ok(())
    }

    fn delete_repositories(&self, owner: &str) -> Result<(), Error> {
        self.write(|transaction| {
            for table in ["manifests", "blobs", "uploads"] {
                // `0` comes after `/`, so these are all that begin with `OWNER/`.
                transaction.execute(
                    &format!("DELETE FROM {table} WHERE repository > ?1 || '/' AND repository < ?1 || '0'"),
                    [owner],
                )?;
            }
            Ok(())
        })
    }

    fn take_garbage(&self, rules: &GarbageRules, dry_run: bool) -> Result<Garbage, Error> {
        let GarbageRules { age, upload_age, untagged_age, kept, owners } = rules;
        let before = |age: Duration| now().saturating_sub(seconds(age));
        let pairs = |transaction: &Transaction<'_>, query: &str, before: i64| {
            let mut statement = transaction.prepare(query)?;
            let rows = statement
                .query_map([before], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            let mut found = Vec::new();
            for row in rows {
                let (repository, digest) = row?;
                found.extend(Digest::parse(&digest).map(|digest| (repository, digest)));
            }
            Ok::<_, Error>(found)
        };
        let mut connection = self.connection();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut garbage = Garbage::default();
        if let Some(owners) = owners {
            garbage.repositories = of_nobody(&transaction, owners, before(*age))?;
            for repository in &garbage.repositories {
                for (table, gone) in [("manifests", &mut garbage.manifests), ("blobs", &mut garbage.blobs)] {
                    let mut statement = transaction
                        .prepare(&format!("DELETE FROM {table} WHERE repository = ?1 RETURNING digest"))?;
                    let rows = statement.query_map([repository], |row| row.get::<_, String>(0))?;
                    for digest in rows {
                        let digest = Digest::parse(&digest?);
                        gone.extend(digest.map(|digest| (repository.clone(), digest)));
                    }
                }
                transaction.execute("DELETE FROM uploads WHERE repository = ?1", [repository])?;
            }
        }
        if let Some(untagged_age) = *untagged_age {
            // What refers to another manifest is kept with it. One that goes may have
            // been all that named another, so this goes on until nothing is found.
            loop {
                let mut found = pairs(
                    &transaction,
                    "SELECT repository, digest FROM manifests AS one WHERE touched <= ?1
                     AND NOT EXISTS (SELECT 1 FROM tags
                         WHERE tags.repository = one.repository AND tags.digest = one.digest)
                     AND NOT EXISTS (SELECT 1 FROM contents
                         WHERE contents.repository = one.repository AND contents.digest = one.digest)
                     AND NOT EXISTS (SELECT 1 FROM manifests AS other
                         WHERE other.repository = one.repository AND other.digest = one.subject)",
                    before(untagged_age),
                )?;
                found.retain(|manifest| !kept.contains(manifest));
                if found.is_empty() {
                    break;
                }
                for (repository, digest) in &found {
                    transaction.execute(
                        "DELETE FROM manifests WHERE repository = ?1 AND digest = ?2",
                        params![repository, text(digest)],
                    )?;
                }
                garbage.manifests.extend(found);
            }
        }
        let blobs = pairs(
            &transaction,
            "SELECT repository, digest FROM blobs WHERE touched <= ?1
             AND NOT EXISTS (SELECT 1 FROM contents
                 WHERE contents.repository = blobs.repository AND contents.digest = blobs.digest)",
            before(*age),
        )?;
        for (repository, digest) in &blobs {
            transaction.execute(
                "DELETE FROM blobs WHERE repository = ?1 AND digest = ?2",
                params![repository, text(digest)],
            )?;
        }
        garbage.blobs.extend(blobs);
        let began_before = before(*upload_age);
        garbage.uploads = transaction
            .prepare("SELECT id FROM uploads WHERE began <= ?1")?
            .query_map([began_before], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        transaction.execute("DELETE FROM uploads WHERE began <= ?1", [began_before])?;
        // What would go was found by letting it go.
        if dry_run {
            transaction.rollback()?
        } else {
            transaction.commit()?
        }
        Ok(garbage)
    }

    fn owners_count(&self, digest: &Digest) -> Result<usize, Error> {
        let connection = self.connection();
        let found: i64 = connection
            .prepare_cached(
                "SELECT (SELECT count(*) FROM blobs WHERE digest = ?1)
                     + (SELECT count(*) FROM manifests WHERE digest = ?1)",
            )?
            .query_row([text(digest)], |row| row.get(0))?;
        Ok(usize::try_from(found).unwrap_or(0))
    }
}

/// Repositories whose owner there is not, and that nobody has touched lately: somebody may
/// just have become an owner.
fn of_nobody(
    transaction: &Transaction<'_>,
    owners: &HashSet<String>,
    before: i64,
) -> Result<Vec<String>, Error> {
    let mut statement = transaction.prepare(
        "SELECT repository FROM
             (SELECT repository, touched FROM manifests UNION ALL SELECT repository, touched FROM blobs
              UNION ALL SELECT repository, began FROM uploads)
         GROUP BY repository HAVING max(touched) <= ?1",
    )?;
    let rows = statement.query_map([before], |row| row.get::<_, String>(0))?;
    let mut found = Vec::new();
    for repository in rows {
        let repository = repository?;
        let owner = repository.split('/').next().unwrap_or_default();
        if !owners.contains(owner) {
            found.push(repository);
        }
    }
    Ok(found)
}

fn touch(
    connection: &Connection,
    table: &'static str,
    repository: &str,
    digest: &Digest,
) -> Result<(), Error> {
    connection
        .prepare_cached(&format!("UPDATE {table} SET touched = ?3 WHERE repository = ?1 AND digest = ?2"))?
        .execute(params![repository, text(digest), now()])?;
    Ok(())
}

fn text(digest: &Digest) -> String {
    digest.to_string()
}

/// The time in seconds.
fn now() -> i64 {
    seconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn seconds(duration: Duration) -> i64 {
    signed(duration.as_secs())
}

/// SQLite has signed numbers only.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
