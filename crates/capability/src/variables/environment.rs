//! Values from the process's environment and from a `.env` file.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::Path;

use futures::future::{BoxFuture, FutureExt, ready};
use wisp_manifest::id::VariableName;

use super::{MAX_FILE_BYTES, Provider, Value};
use crate::Error;

/// What the names of environment variables start with unless the operator says
/// otherwise: `api_key` is read from `SPIN_VARIABLE_API_KEY`.
pub const DEFAULT_PREFIX: &str = "SPIN_VARIABLE";

/// The `.env` file that is looked for in every app's directory.
pub(super) const DEFAULT_DOTENV_FILE: &str = ".env";

/// The environment, with a `.env` file for those names that it does not have.
///
/// Both are read once, here: the environment of a process cannot change from
/// outside, and a file that were read at another time than the environment
/// would be a mixture of two moments.
pub struct Environment {
    prefix: String,
    environment: HashMap<String, OsString>,
    file: HashMap<String, Value>,
}

impl Environment {
    /// The environment of this process. A `.env` file that does not exist is the
    /// same as an empty one.
    ///
    /// # Errors
    /// When the file is there and cannot be read or understood.
    pub fn new(prefix: Option<&str>, dotenv_path: Option<&Path>) -> Result<Self, Error> {
        Self::with_environment(prefix, dotenv_path, std::env::vars_os())
    }

    /// The same with an environment of the caller's.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_environment(
        prefix: Option<&str>,
        dotenv_path: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Error> {
        let prefix = format!("{}_", prefix.unwrap_or(DEFAULT_PREFIX));
        let ours = |name: &str| name.starts_with(&prefix);
        let environment = environment
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| ours(name))
            .collect();
        let mut file = dotenv_path.map(read_dotenv).transpose()?.unwrap_or_default();
        file.retain(|name, _| ours(name));
        Ok(Self { environment, file, prefix })
    }

    fn value(&self, name: &VariableName) -> Result<Option<Value>, Error> {
        let key = format!("{}{}", self.prefix, name.as_str().to_ascii_uppercase());
        match self.environment.get(&key) {
            Some(value) => match value.to_str() {
                Some(text) => Ok(Some(text.into())),
                None => Err(Error::VariableProvider {
                    name: name.to_string(),
                    provider: self.name().to_owned(),
                    cause: format!("the value of `{key}` is not UTF-8"),
                }),
            },
            None => Ok(self.file.get(&key).cloned()),
        }
    }
}

impl Provider for Environment {
    fn name(&self) -> &str {
        "environment"
    }

    fn is_constant(&self) -> bool {
        true
    }

    fn get<'a>(&'a self, name: &'a VariableName) -> BoxFuture<'a, Result<Option<Value>, Error>> {
        ready(self.value(name)).boxed()
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Environment").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

fn read_dotenv(path: &Path) -> Result<HashMap<String, Value>, Error> {
    let fail = |cause: String| Error::VariableFile { path: path.to_owned(), cause };
    let text = match read_text(path) {
        Ok(text) => text,
        Err(ReadError::Missing) => return Ok(HashMap::new()),
        Err(error) => return Err(fail(error.to_string())),
    };
    dotenvy::from_read_iter(text.as_bytes())
        .map(|entry| match entry {
            Ok((name, value)) => Ok((name, value.into())),
            // The error's own text quotes the line, and with it a value.
            Err(dotenvy::Error::LineParse(part, _)) => {
                let mut lines = (1..).zip(text.lines()).filter(|(_, line)| line.contains(part.trim()));
                let place = match (lines.next(), lines.next()) {
                    (Some((number, _)), None) => format!("line {number}"),
                    _ => "a line".to_owned(),
                };
                Err(fail(format!("{place} is not `NAME=VALUE`; a value with spaces needs quotes")))
            }
            Err(_) => Err(fail("it is not a list of `NAME=VALUE` lines".into())),
        })
        .collect()
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("there is no such file")]
    Missing,
    #[error("it has more than {MAX_FILE_BYTES} bytes")]
    TooLarge,
    #[error("it is not UTF-8 text")]
    NotText,
    #[error("{0}")]
    System(std::io::Error),
}

/// A whole file as text, at most [`MAX_FILE_BYTES`] of it.
pub(super) fn read_text(path: &Path) -> Result<String, ReadError> {
    let system = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => ReadError::Missing,
        _ => ReadError::System(error),
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(system)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(system)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ReadError::TooLarge);
    }
    String::from_utf8(bytes).map_err(|_| ReadError::NotText)
}
