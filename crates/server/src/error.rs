//! Why the cloud in one process cannot do something.

use std::path::PathBuf;

/// Why the cloud in one process cannot do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data directory cannot be used.
    #[error("the data directory `{path}` cannot be used: {cause}", path = path.display())]
    DataDirectory {
        /// The folder, or what is in it.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A component does not compile.
    #[error("{message}")]
    Compile {
        /// The compiler's code.
        code: String,
        /// What it said.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Compiling took more than it may.
    #[error("a component cannot be compiled: that takes more than {what}")]
    CompileLimit {
        /// More than what.
        what: String,
    },
    /// The process that compiles does not start or ends without a word.
    #[error("the process that compiles components does not work: {cause}")]
    CompileProcess {
        /// Why.
        cause: std::io::Error,
    },
    /// The file of settings cannot be read.
    #[error("the settings `{path}` cannot be read: {cause}", path = path.display())]
    SettingsFile {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// The file of settings is not understood.
    #[error("the settings `{path}` are not understood: {message}", path = path.display())]
    SettingsSyntax {
        /// The file.
        path: PathBuf,
        /// The line, and what is wrong with it.
        message: String,
    },
    /// A setting has a value that cannot be.
    #[error("the setting `{setting}` ({origin}) cannot be: {message}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// Where it came from.
        origin: String,
        /// What is wrong with it.
        message: String,
    },
    /// Another server uses the data directory.
    #[error("another server uses the data directory `{path}`", path = path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Another server uses the data directory, and does not let go of it.
    #[error("the server that uses the data directory `{path}` does not hand over", path = path.display())]
    NotHandedOver {
        /// The folder.
        path: PathBuf,
    },
    /// A backup cannot be written.
    #[error("`{path}` cannot be backed up: {cause}", path = path.display())]
    Backup {
        /// The backup, or what cannot be read for it.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A backup cannot be restored.
    #[error("`{path}` cannot be restored: {message}", path = path.display())]
    Restore {
        /// The backup.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// An image is none that can be run.
    #[error("`{digest}` is no image")]
    NoImage {
        /// Its digest.
        digest: String,
    },
    /// Something ended that should not.
    #[error("the server cannot go on: {cause}")]
    Stopped {
        /// Why.
        cause: std::io::Error,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] wisp_engine::Error),
    /// The node.
    #[error(transparent)]
    Node(#[from] wisp_node::Error),
    /// The listener.
    #[error(transparent)]
    Trigger(#[from] wisp_trigger::Error),
    /// The registry, or an image.
    #[error(transparent)]
    Image(#[from] wisp_image::Error),
    /// The control plane.
    #[error(transparent)]
    Control(#[from] wisp_control::Error),
    /// Certificates.
    #[error(transparent)]
    Ingress(#[from] wisp_ingress::Error),
}

impl Error {
    /// The stable code of this error.
    pub fn code(&self) -> &str {
        match self {
            Self::DataDirectory { .. } => "WISP-E1101",
            Self::Compile { code, .. } => code,
            Self::CompileLimit { .. } => "WISP-E1102",
            Self::CompileProcess { .. } => "WISP-E1103",
            Self::SettingsFile { .. } => "WISP-E1104",
            Self::SettingsSyntax { .. } => "WISP-E1105",
            Self::Setting { .. } => "WISP-E1106",
            Self::Backup { .. } => "WISP-E1112",
            Self::Restore { .. } => "WISP-E1113",
            Self::InUse { .. } => "WISP-E1115",
            Self::NotHandedOver { .. } => "WISP-E1118",
            Self::Stopped { .. } => "WISP-E1116",
            Self::NoImage { .. } => "WISP-E1117",
            Self::Engine(error) => error.code(),
            Self::Node(error) => error.code(),
            Self::Trigger(error) => error.code(),
            Self::Image(error) => error.code(),
            Self::Control(error) => error.code(),
            Self::Ingress(error) => error.code(),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::DataDirectory { .. } => {
                Some("name a folder that the server's user can write with `--data-dir`".into())
            }
            Self::Compile { hint, .. } => hint.clone(),
            Self::CompileLimit { .. } => Some(
                "make the component smaller, its functions above all, or ask the operator to raise \
                 `compile.*` in `wisp.toml`"
                    .into(),
            ),
            Self::CompileProcess { .. } => {
                Some("check the limits on processes (`ulimit -u`) and the free memory".into())
            }
            Self::SettingsFile { .. } => Some("check the path and its permissions".into()),
            Self::SettingsSyntax { .. } | Self::Setting { .. } => {
                Some("`wisp server --print-config` shows all settings as they may be written".into())
            }
            Self::Backup { .. } => {
                Some("name a new file where there is room, and run it as the server's user".into())
            }
            Self::Restore { .. } => Some(
                "restore a whole file that `wisp backup` made, into a data directory that is empty".into(),
            ),
            Self::InUse { .. } => Some(
                "start with `--take-over` to go on in its place without a gap, stop it first, or name another \
                 folder with `--data-dir`"
                    .into(),
            ),
            Self::NotHandedOver { .. } => Some("stop it, then start this one".into()),
            Self::NoImage { .. } => Some("pack the app with `wisp deploy` or `spin registry push`".into()),
            Self::Stopped { .. } => Some("check the limits on threads and descriptors (`ulimit -a`)".into()),
            Self::Engine(error) => error.hint(),
            Self::Node(error) => error.hint(),
            Self::Trigger(error) => error.hint(),
            Self::Image(error) => error.hint(),
            Self::Control(error) => error.hint(),
            Self::Ingress(error) => error.hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{fs, path::Path};

    /// The codes that the crate's sources name.
    fn codes() -> Vec<String> {
        let mut codes = Vec::new();
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            for piece in text.split("\"WISP-E11").skip(1) {
                if let Some(digits) = piece.get(..2).filter(|_| piece[2..].starts_with('"')) {
                    codes.push(format!("WISP-E11{digits}"));
                }
            }
        }
        codes
    }

    #[test]
    fn every_code_is_documented() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
        let docs = fs::read_to_string(path).unwrap();
        let codes = codes();
        assert!(codes.len() > 15, "{codes:?}");
        for code in codes {
            assert!(docs.contains(&format!("`{code}`")), "{code} is not in docs/errors.md");
        }
    }
}
