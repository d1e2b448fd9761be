//! Where values come from.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt, ready};
use indexmap::IndexMap;
use wisp_manifest::id::VariableName;

use super::environment::DEFAULT_DOTENV_FILE;
use super::{Environment, Value};
use crate::Error;

/// A source of values for the app's variables.
pub trait Provider: Send + Sync {
    /// What a person would call it, such as `environment`.
    fn name(&self) -> &str;

    /// Whether it gives the same answers for as long as the process runs. Such
    /// a provider is asked once for each variable, any other at every use.
    fn is_constant(&self) -> bool;

    /// The names of variables that it has values for, as far as it can tell
    /// without being asked for each. They serve to find misspelt ones.
    fn names(&self) -> Vec<&str> {
        Vec::new()
    }

    /// The value of a variable, `None` if this provider has none: the next one
    /// is asked then.
    ///
    /// # Errors
    /// When it cannot tell. The next one is not asked then, since a value that
    /// depends on which server is up would be worse than none.
    fn get<'a>(&'a self, name: &'a VariableName) -> BoxFuture<'a, Result<Option<Value>, Error>>;
}

/// A `[[variables_provider]]` table of the runtime configuration.
#[derive(Clone)]
pub enum ProviderConfig {
    /// `type = "static"`
    Static {
        /// Names and values.
        values: IndexMap<String, String>,
    },
    /// `type = "env"`
    Environment {
        /// What the names start with instead of [`DEFAULT_PREFIX`](super::DEFAULT_PREFIX).
        prefix: Option<String>,
        /// A `.env` file; relative to the app's directory unless absolute.
        dotenv_path: Option<PathBuf>,
    },
    /// `type = "vault"`
    Vault,
    /// `type = "azure_key_vault"`
    AzureKeyVault,
}

/// All sources of values, in the order in which they are asked; the first that
/// has a value wins.
#[derive(Clone, Default)]
pub struct Providers(Vec<Arc<dyn Provider>>);

/// Values that were given as such.
pub struct StaticValues {
    name: &'static str,
    values: HashMap<String, Value>,
}

impl Providers {
    /// No providers: every variable has its default.
    pub fn new() -> Self {
        Self::default()
    }

    /// The providers of an app that is served: the command line's values, then
    /// the tables of the runtime configuration in their order, then the
    /// environment with the `.env` file of the app's directory.
    ///
    /// # Errors
    /// When a table's kind is not available in this version, or a `.env` file
    /// is there and cannot be read.
    pub fn assemble(
        command_line: impl IntoIterator<Item = (VariableName, Value)>,
        configured: &[ProviderConfig],
        app_directory: &Path,
    ) -> Result<Self, Error> {
        let mut providers = Self::new().then(StaticValues::from_command_line(command_line));
        for config in configured {
            providers = match config {
                ProviderConfig::Static { values } => {
                    providers.then(StaticValues::from_runtime_config(values.clone()))
                }
                ProviderConfig::Environment { prefix, dotenv_path } => {
                    let dotenv_path = dotenv_path.as_ref().map(|path| app_directory.join(path));
                    providers.then(Environment::new(prefix.as_deref(), dotenv_path.as_deref())?)
                }
                ProviderConfig::Vault => {
                    return Err(Error::VariableProviderUnavailable { kind: "vault" });
                }
                ProviderConfig::AzureKeyVault => {
                    return Err(Error::VariableProviderUnavailable { kind: "azure_key_vault" });
                }
            };
        }
        Ok(providers.then(Environment::new(None, Some(&app_directory.join(DEFAULT_DOTENV_FILE)))?))
    }

    /// These providers and, after them, another one.
    #[must_use]
    pub fn then(mut self, provider: impl Provider + 'static) -> Self {
        self.0.push(Arc::new(provider));
        self
    }

    /// The providers in the order in which they are asked.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Provider> {
        self.0.iter().map(AsRef::as_ref)
    }
}

impl fmt::Debug for ProviderConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static { values } => {
                formatter.debug_struct("Static").field("names", &values.keys()).finish_non_exhaustive()
            }
            Self::Environment { prefix, dotenv_path } => formatter
                .debug_struct("Environment")
                .field("prefix", prefix)
                .field("dotenv_path", dotenv_path)
                .finish(),
            Self::Vault => formatter.write_str("Vault"),
            Self::AzureKeyVault => formatter.write_str("AzureKeyVault"),
        }
    }
}

impl fmt::Debug for Providers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.iter().map(Provider::name)).finish()
    }
}

impl StaticValues {
    /// Values of the command line. Of two for one name the later one counts.
    pub fn from_command_line(values: impl IntoIterator<Item = (VariableName, Value)>) -> Self {
        Self {
            name: "command line",
            values: values.into_iter().map(|(name, value)| (name.as_str().to_owned(), value)).collect(),
        }
    }

    /// Values of a `[[variables_provider]]` table with `type = "static"`.
    pub fn from_runtime_config(values: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            name: "runtime configuration",
            values: values.into_iter().map(|(name, value)| (name, value.into())).collect(),
        }
    }
}

impl Provider for StaticValues {
    fn name(&self) -> &str {
        self.name
    }

    fn is_constant(&self) -> bool {
        true
    }

    fn names(&self) -> Vec<&str> {
        self.values.keys().map(String::as_str).collect()
    }

    fn get<'a>(&'a self, name: &'a VariableName) -> BoxFuture<'a, Result<Option<Value>, Error>> {
        ready(Ok(self.values.get(name.as_str()).cloned())).boxed()
    }
}

impl fmt::Debug for StaticValues {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("StaticValues").field("names", &self.values.keys()).finish_non_exhaustive()
    }
}
