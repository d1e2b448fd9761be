//! The hello-world guests that are measured.
//!
//! Their sources are with the other guests of the project and are built by its
//! chore `cargo xtask guests`, each by its own language's toolchain.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::peer;

/// What every guest answers, and the native server with it.
pub(crate) const BODY: &str = "Hello, world!\n";

/// A guest that answers every request with [`BODY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Guest {
    /// Rust, WASI 0.2, without an SDK (wstd).
    RustP2,
    /// Rust, WASI 0.3, Spin SDK 7.
    RustP3,
    /// JavaScript, WASI 0.2, an engine of its own inside.
    JavaScript,
}

impl Guest {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: [Self; 3] = [Self::RustP2, Self::RustP3, Self::JavaScript];

    /// What figures and `--only` call it.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::RustP2 => "rust_p2",
            Self::RustP3 => "rust_p3",
            Self::JavaScript => "js",
        }
    }

    /// What tables call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::RustP2 => "Rust, WASI 0.2",
            Self::RustP3 => "Rust, WASI 0.3",
            Self::JavaScript => "JavaScript, WASI 0.2",
        }
    }

    /// What the chore that builds it calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RustP2 => "hello-p2",
            Self::RustP3 => "hello-p3",
            Self::JavaScript => "js",
        }
    }

    /// Its file in the folder of built guests.
    ///
    /// # Errors
    /// If it has not been built.
    pub(crate) fn file(self, folder: &Path) -> Result<PathBuf, Error> {
        let path = folder.join(self.name()).with_extension("wasm");
        if path.exists() {
            Ok(path)
        } else {
            Err(Error::Missing { path, hint: format!("build it with `cargo xtask guests {}`", self.name()) })
        }
    }
}

/// Builds the guests that are not built yet, and says in which folder they are.
pub(crate) fn build(guests: &[Guest]) -> Result<PathBuf, Error> {
    let mut command = Command::new(peer::cargo());
    command.args(["xtask", "guests"]).args(guests.iter().map(|guest| guest.name()));
    peer::run_to_end(&mut command)?;
    Ok(peer::target_folder()?.join("guests"))
}
