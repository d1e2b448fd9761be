//! Where everything lies in the data directory.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use crate::Error;

/// Only the server's user may look into the data directory.
const FOLDER_MODE: u32 = 0o700;

/// The data directory: all that a server keeps.
#[derive(Clone, Debug)]
pub struct DataDirectory {
    path: PathBuf,
}

impl DataDirectory {
    /// Opens the folder; makes it, and what is to be in it, if it is absent.
    ///
    /// # Errors
    /// [`Error::DataDirectory`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |cause: io::Error| Error::DataDirectory { path: path.to_owned(), cause };
        let make = |path: &Path| fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path);
        make(path).map_err(failed)?;
        // Whole, since images are known by their files' names.
        let directory = Self { path: path.canonicalize().map_err(failed)? };
        for folder in [
            directory.blobs(),
            directory.images(),
            directory.releases(),
            directory.stores(),
            directory.logs(),
            directory.keys(),
            directory.scratch(),
        ] {
            make(&folder).map_err(failed)?;
        }
        fs::File::open(&directory.path).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(directory)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The control plane's state.
    pub fn state(&self) -> PathBuf {
        self.path.join("state.db")
    }

    /// What the registry knows of its blobs.
    pub fn registry(&self) -> PathBuf {
        self.path.join("registry.db")
    }

    /// Blobs by digest.
    pub fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    /// Compiled images.
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// Unpacked images, a folder each, by digest.
    pub fn releases(&self) -> PathBuf {
        self.path.join("releases")
    }

    /// Key-value stores and databases, by resource.
    pub fn stores(&self) -> PathBuf {
        self.path.join("stores")
    }

    /// Logs, a folder for each app.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Who asked for what, of all hosts.
    pub fn access_log(&self) -> PathBuf {
        self.path.join("access")
    }

    /// Keys.
    pub fn keys(&self) -> PathBuf {
        self.path.join("keys")
    }

    /// The key that signs compiled images.
    pub fn image_key(&self) -> PathBuf {
        self.keys().join("images.ed25519")
    }

    /// Where files are put together before they are moved to their places. What is in it
    /// when a server starts is left over from one that was killed.
    pub fn scratch(&self) -> PathBuf {
        self.path.join("scratch")
    }

    /// Where a server that takes over asks for the sockets.
    pub fn handover(&self) -> PathBuf {
        self.path.join("handover.sock")
    }

    /// Drops what an earlier server left half done.
    pub(crate) fn sweep_scratch(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.scratch())? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        Ok(())
    }
}
