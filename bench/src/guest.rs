//! The guests that are measured.
//!
//! Their sources are with the other guests of the project and are built by its
//! chore `cargo xtask guests`, each by its own language's toolchain.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::peer;

/// What the hello worlds answer, and the native server with them.
pub(crate) const BODY: &str = "Hello, world!\n";

/// A guest that benches use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Guest {
    /// Rust, WASI 0.2, without an SDK (wstd).
    RustP2,
    /// Rust, WASI 0.3, Spin SDK 7.
    RustP3,
    /// JavaScript, WASI 0.2, an engine of its own inside.
    JavaScript,
    /// Python, Spin SDK 3.4, WASI 0.2, an interpreter inside.
    Python,
    /// Python, Spin SDK 4, a release candidate of WASI 0.3.
    PythonSdk4,
    /// Python, Spin SDK 5, WASI 0.3.
    PythonSdk5,
    /// Answers its number; the smallest.
    Tiny,
    /// Takes what it can get.
    Attacker,
}

impl Guest {
    /// What figures and `--only` call it.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::RustP2 => "rust_p2",
            Self::RustP3 => "rust_p3",
            Self::JavaScript => "js",
            Self::Python => "python",
            Self::PythonSdk4 => "python_sdk4",
            Self::PythonSdk5 => "python_sdk5",
            Self::Tiny => "tiny",
            Self::Attacker => "attacker",
        }
    }

    /// What tables call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::RustP2 => "Rust, WASI 0.2",
            Self::RustP3 => "Rust, WASI 0.3",
            Self::JavaScript => "JavaScript, WASI 0.2",
            Self::Python => "Python, SDK 3.4, WASI 0.2",
            Self::PythonSdk4 => "Python, SDK 4, WASI 0.3-rc",
            Self::PythonSdk5 => "Python, SDK 5, WASI 0.3",
            Self::Tiny => "tiny, WASI 0.2",
            Self::Attacker => "attacker",
        }
    }

    /// What the chore that builds it calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RustP2 => "hello-p2",
            Self::RustP3 => "hello-p3",
            Self::JavaScript => "js",
            Self::Python => "python-hello",
            Self::PythonSdk4 => "python-sdk4",
            Self::PythonSdk5 => "python-sdk5",
            Self::Tiny => "tiny",
            Self::Attacker => "attacker",
        }
    }

    /// What it answers to a request for `/`.
    pub(crate) fn body(self) -> &'static str {
        match self {
            Self::RustP2 | Self::RustP3 | Self::JavaScript | Self::Python => BODY,
            Self::PythonSdk4 => "Hello from Python, SDK 4\n",
            Self::PythonSdk5 => "Hello from Python, SDK 5\n",
            Self::Tiny => "0000000000",
            Self::Attacker => "",
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
