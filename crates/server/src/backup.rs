//! All that a server keeps, in one file, and back.
//!
//! A backup is made beside a server that runs, from its data directory. Databases are
//! copied by SQLite, each as of one moment; all other files never change once they are
//! there. The state comes first and what it speaks of afterwards: whatever was
//! acknowledged before the backup began is in it, with everything that it needs.
//!
//! The file is a `tar`: `wisp-backup.json` first, `complete` last, between them the data
//! directory without what can be made again: unpacked images, logs, what is half done.
//!
//! Restoring needs a data directory that is empty or not there. All is unpacked beside
//! it, synced and renamed: it is there whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wisp_capability::resource::Resources;

use crate::{DataDirectory, Error, log_store::now_ms};

/// The first entry.
const HEADER_NAME: &str = "wisp-backup.json";

/// The last one.
const END_NAME: &str = "complete";

/// The form of backups.
const FORMAT: u32 = 1;

/// The longest header that is read.
const HEADER_BYTES: u64 = 64 << 10;

/// Folders and files that are not in a backup: they are made again, or are of one process.
const LEFT_OUT: [&str; 5] = ["releases", "logs", "access", "scratch", "lock"];

/// What a backup says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHeader {
    /// The form.
    pub format: u32,
    /// When it was begun, in milliseconds since 1970.
    pub created_ms: u64,
    /// The version of Wisp that made it.
    pub version: String,
}

/// What a backup, or a restoration, did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackupReport {
    /// How many files.
    pub files_count: u64,
    /// Their sizes together.
    pub bytes: u64,
    /// When the backup was begun.
    pub created_ms: u64,
}

/// Writes everything in a data directory to a file, which must not be there yet. Blocks.
///
/// # Errors
/// [`Error::Backup`] and [`Error::DataDirectory`].
pub fn backup(directory: &DataDirectory, to: &Path) -> Result<BackupReport, Error> {
    let failed = |cause: io::Error| Error::Backup { path: to.to_owned(), cause };
    if to.exists() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let folder = to.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".wisp-backup-").tempfile_in(folder).map_err(failed)?;
    let header =
        BackupHeader { format: FORMAT, created_ms: now_ms(), version: env!("CARGO_PKG_VERSION").into() };
    let scratch =
        tempfile::Builder::new().prefix("backup-").tempdir_in(directory.scratch()).map_err(failed)?;
    let mut writer = BackupWriter {
        tar: tar::Builder::new(file.as_file().try_clone().map_err(failed)?),
        copy: scratch.path().join("copy.db"),
        report: BackupReport { files_count: 0, bytes: 0, created_ms: header.created_ms },
    };
    let json = serde_json::to_vec_pretty(&header).map_err(|error| failed(error.into()))?;
    writer.bytes(HEADER_NAME, &json).map_err(failed)?;
    let root = directory.path();
    // What the state speaks of is there when the state is copied, and stays.
    let mut first = vec![directory.state(), directory.registry()];
    first.retain(|path| path.exists());
    for path in &first {
        writer.database(root, path)?;
    }
    let mut rest = Vec::new();
    collect(root, root, &mut rest).map_err(failed)?;
    rest.retain(|path| !first.contains(path));
    rest.sort();
    let (databases, files): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|path| path.extension().is_some_and(|extension| extension == "db"));
    for path in databases {
        writer.database(root, &path)?;
    }
    for path in files {
        writer.file(root, &path).map_err(failed)?;
    }
    writer.bytes(END_NAME, b"").map_err(failed)?;
    let BackupWriter { tar, report, .. } = writer;
    tar.into_inner().and_then(|file| file.sync_all()).map_err(failed)?;
    file.persist_noclobber(to).map_err(|error| failed(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(report)
}

/// Makes a data directory of a backup. Blocks.
///
/// # Errors
/// [`Error::Restore`] if the file is no whole backup, or the data directory is not empty.
pub fn restore(from: &Path, data_dir: &Path) -> Result<BackupReport, Error> {
    let failed = |message: String| Error::Restore { path: from.to_owned(), message };
    let io = |error: io::Error| failed(error.to_string());
    let is_empty = match fs::read_dir(data_dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(io(error)),
    };
    if !is_empty {
        return Err(failed(format!("`{}` is not empty", data_dir.display())));
    }
    let parent = data_dir.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(io)?;
    let made = tempfile::Builder::new().prefix(".wisp-restore-").tempdir_in(parent).map_err(io)?;
    let mut archive = tar::Archive::new(io::BufReader::new(File::open(from).map_err(io)?));
    let mut header: Option<BackupHeader> = None;
    let mut is_complete = false;
    let mut report = BackupReport { files_count: 0, bytes: 0, created_ms: 0 };
    for entry in archive.entries().map_err(io)? {
        let mut entry = entry.map_err(io)?;
        let path = entry.path().map_err(io)?.into_owned();
        match &header {
            None if path == Path::new(HEADER_NAME) => {
                let mut json = Vec::new();
                entry.take(HEADER_BYTES).read_to_end(&mut json).map_err(io)?;
                let read: BackupHeader =
                    serde_json::from_slice(&json).map_err(|error| failed(error.to_string()))?;
                if read.format != FORMAT {
                    return Err(failed(format!(
                        "it has form {}, made by Wisp {}; this version reads form {FORMAT}",
                        read.format, read.version
                    )));
                }
                report.created_ms = read.created_ms;
                header = Some(read);
                continue;
            }
            None => return Err(failed("it is no backup".into())),
            Some(_) => {}
        }
        if path == Path::new(END_NAME) {
            is_complete = true;
            break;
        }
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(failed(format!("it has a file at `{}`", path.display())));
        }
        let target = made.path().join(&path);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        let mut file = File::create_new(&target).map_err(io)?;
        // Keys are for their owner only; nothing else needs more.
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(io)?;
        report.bytes += io::copy(&mut entry, &mut file).map_err(io)?;
        report.files_count += 1;
        file.sync_all().map_err(io)?;
    }
    if !is_complete {
        return Err(failed("it ends too early".into()));
    }
    if data_dir.exists() {
        fs::remove_dir(data_dir).map_err(io)?;
    }
    fs::rename(made.path(), data_dir).map_err(io)?;
    // It is not temporary any more.
    let _ = made.keep();
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(io)?;
    DataDirectory::open(data_dir)?;
    Ok(report)
}

struct BackupWriter {
    tar: tar::Builder<File>,
    /// Where databases are copied to first.
    copy: PathBuf,
    report: BackupReport,
}

impl BackupWriter {
    fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        self.tar.append_data(&mut header, name, bytes)
    }

    fn database(&mut self, root: &Path, path: &Path) -> Result<(), Error> {
        let failed = |cause: io::Error| Error::Backup { path: path.to_owned(), cause };
        let copied = Resources::copy(path, &self.copy);
        if copied.is_err() && !path.exists() {
            // It was destroyed meanwhile.
            return Ok(());
        }
        copied.map_err(|error| failed(io::Error::other(error.to_string())))?;
        let mut copy = File::open(&self.copy).map_err(failed)?;
        self.append(root, path, &mut copy).map_err(failed)?;
        fs::remove_file(&self.copy).map_err(failed)
    }

    fn file(&mut self, root: &Path, path: &Path) -> io::Result<()> {
        match File::open(path) {
            Ok(mut file) => self.append(root, path, &mut file),
            // Uploads, and what nobody needs any more, come and go.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn append(&mut self, root: &Path, path: &Path, file: &mut File) -> io::Result<()> {
        let size_bytes = file.metadata()?.len();
        let mut header = tar::Header::new_gnu();
        header.set_size(size_bytes);
        header.set_mode(0o600);
        let name = path.strip_prefix(root).unwrap_or(path);
        self.tar.append_data(&mut header, name, file.take(size_bytes))?;
        self.report.files_count += 1;
        self.report.bytes += size_bytes;
        Ok(())
    }
}

/// All files below a folder that belong into a backup.
fn collect(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if folder == root && LEFT_OUT.contains(&name.as_str()) {
            continue;
        }
        let kind = entry.file_type()?;
        let is_of_database = name.ends_with("-wal") || name.ends_with("-shm");
        // A dot and a hash are how files are called that are being written.
        let is_unfinished = name.starts_with('.') || name.contains('#');
        if kind.is_dir() {
            collect(root, &path, found)?;
        } else if kind.is_file() && !is_of_database && !is_unfinished {
            found.push(path);
        }
    }
    Ok(())
}

impl std::fmt::Display for BackupReport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} files, {} MiB", self.files_count, self.bytes.div_ceil(1 << 20))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use wisp_capability::resource::Resource;

    use super::*;

    #[tokio::test]
    async fn what_was_there_when_a_backup_began_is_there_after_it_was_restored() {
        let folder = tempfile::tempdir().unwrap();
        let directory = DataDirectory::open(&folder.path().join("data")).unwrap();
        let resources = Resources::default();
        let resource = Resource { path: directory.stores().join("a.db"), max_bytes: 1 << 20 };
        let store = resources.store(&resource).unwrap();
        store.set("key".into(), b"value".to_vec()).await.unwrap();
        fs::create_dir(directory.blobs().join("sha256")).unwrap();
        fs::write(directory.blobs().join("sha256/abc"), "blob").unwrap();
        fs::write(directory.keys().join("images.ed25519"), "key").unwrap();
        fs::write(directory.logs().join("left-out"), "log").unwrap();
        let file = folder.path().join("backup.tar");
        let report = backup(&directory, &file).unwrap();
        assert_eq!(report.files_count, 3);
        assert_eq!(backup(&directory, &file).unwrap_err().code(), "WISP-E1112", "nothing is overwritten");
        assert_eq!(restore(&file, directory.path()).unwrap_err().code(), "WISP-E1113", "nor is a server");

        let other = folder.path().join("other");
        assert_eq!(restore(&file, &other).unwrap(), report);
        let other = DataDirectory::open(&other).unwrap();
        let resource = Resource { path: other.stores().join("a.db"), ..resource };
        let store = resources.store(&resource).unwrap();
        assert_eq!(store.get("key").await.unwrap().as_deref(), Some(&b"value"[..]));
        assert_eq!(fs::read(other.blobs().join("sha256/abc")).unwrap(), b"blob");
        let mode = fs::metadata(other.keys().join("images.ed25519")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(other.logs()).unwrap().count(), 0);

        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() - 2_048]).unwrap();
        let cut = folder.path().join("cut");
        assert_eq!(restore(&file, &cut).unwrap_err().code(), "WISP-E1113");
        assert!(!cut.exists(), "nothing of it is there");
        fs::write(&file, "nonsense".repeat(1_000)).unwrap();
        assert!(restore(&file, &cut).is_err());
    }
}
