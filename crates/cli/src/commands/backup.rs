//! `wisp backup` and `wisp restore`: all that a server keeps, in one file, and back.

use std::path::PathBuf;

use clap::Args;
use wisp_server::{DataDirectory, Flags, Settings};

use crate::{error::Error, output};

/// Write everything that a server keeps to one file, while it runs.
///
/// State, images, stores and databases, certificates and keys. Whatever the server acknowledged
/// before the backup began is in it. Keep the file where only the operator reads it: the keys
/// are in it, too.
#[derive(Args)]
pub(crate) struct Backup {
    /// The backup, which must not be there yet.
    file: PathBuf,

    #[command(flatten)]
    place: Place,
}

/// Make a data directory of a backup.
///
/// The data directory must be empty or not there. The server that is started on it then has
/// every app, with its data, as of the backup.
#[derive(Args)]
pub(crate) struct Restore {
    /// The backup.
    file: PathBuf,

    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
struct Place {
    /// The file of settings [default: `wisp.toml`, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The server's data directory [default: `wisp-data` in the user's data folder].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Place {
    fn data_dir(&self) -> Result<PathBuf, Error> {
        let flags =
            Flags { config: self.config.clone(), data_dir: self.data_dir.clone(), ..Flags::default() };
        Ok(Settings::read(flags)?.data_dir.value)
    }
}

impl Backup {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let data_dir = self.place.data_dir()?;
        if !data_dir.is_dir() {
            let cause = std::io::ErrorKind::NotFound.into();
            return Err(wisp_server::Error::DataDirectory { path: data_dir, cause }.into());
        }
        let report = wisp_server::backup(&DataDirectory::open(&data_dir)?, &self.file)?;
        output::note(&format!("backed up {report} to {}", self.file.display()));
        Ok(())
    }
}

impl Restore {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let data_dir = self.place.data_dir()?;
        let report = wisp_server::restore(&self.file, &data_dir)?;
        output::note(&format!("restored {report} to {}", data_dir.display()));
        Ok(())
    }
}
