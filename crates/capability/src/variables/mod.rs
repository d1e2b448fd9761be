//! Variables: values that an app declares and an operator sets.
//!
//! For: what guests read through `fermyon:spin/config`, `fermyon:spin/variables`,
//! `spin:variables` and `wasi:config`; and for filling in the templates of a
//! manifest, such as those in `allowed_outbound_hosts`.
//!
//! Not for: environment variables that a guest sees (see [`wasi`](crate::wasi)), and
//! not for checking a manifest's templates: `wisp-manifest` has done that.
//!
//! Two kinds of names must be kept apart. The *app's* variables are declared in
//! `[variables]` and get their values from [`Provider`]s. A *component's*
//! variables are templates over the app's, and are all that a guest can ask
//! for.
//!
//! Life of a [`Resolver`]: made once per app from its declarations and the
//! [`Providers`]; it asks for every variable then, so that one without a value
//! stops the start and not a request. A [`Grant`] is made from it per component. Values that
//! cannot change any more are worked out at these two points, and a guest's
//! call is then a lookup in a map; only values of providers that can change
//! their mind are asked for again at each call.
//!
//! Values are secrets as far as this module is concerned: a [`Value`] does not
//! show its text in `Debug`, has no `Display`, and no error quotes it.

mod environment;
mod flag;
mod host;
mod providers;
mod resolver;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use wisp_manifest::id::{MAX_NAME_BYTES, VariableName};
use zeroize::Zeroizing;

pub use environment::{DEFAULT_PREFIX, Environment};
pub use flag::parse_flag;
pub(crate) use host::add_to_linker;
pub use providers::{Provider, ProviderConfig, Providers, StaticValues};
pub use resolver::{AppValues, Resolver};

use crate::Error;
use resolver::ComponentValue;

/// The largest file that values are read from: a `.env` file or one that
/// `--variable` names.
///
/// It is also the most that a filled-in template may have, so a larger value
/// could not be used.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// How much of a name from a guest is repeated in an error.
const SHOWN_NAME_CHARACTERS: usize = 64;

/// The value of a variable, to be kept out of logs and messages. It is overwritten when the
/// last one who has it drops it.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Arc<Zeroizing<String>>);

/// What a component may read.
///
/// The default is no variables at all.
#[derive(Clone, Default)]
pub struct Grant {
    component: Arc<str>,
    values: Arc<IndexMap<VariableName, ComponentValue>>,
    resolver: Arc<Resolver>,
}

impl Value {
    /// The text. Whoever calls this answers for where it goes.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self(Arc::new(Zeroizing::new(text)))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(hidden)")
    }
}

impl Grant {
    /// The variables of a component: its templates over the app's variables.
    ///
    /// # Errors
    /// When a template names a variable that the app does not declare, when its
    /// result is too long, or when a provider fails.
    pub async fn new(
        component: impl Into<Arc<str>>,
        templates: &IndexMap<VariableName, wisp_manifest::template::Template>,
        resolver: Arc<Resolver>,
    ) -> Result<Self, Error> {
        let mut values = IndexMap::with_capacity(templates.len());
        for (name, template) in templates {
            values.insert(name.clone(), resolver.component_value(template).await?);
        }
        Ok(Self { component: component.into(), values: Arc::new(values), resolver })
    }

    /// The value of one of the component's variables.
    ///
    /// # Errors
    /// [`Error::VariableName`] and [`Error::VariableUndefined`] when there is no such
    /// variable, anything else when there is one and its value cannot be had.
    pub async fn get(&self, name: &str) -> Result<Value, Error> {
        // A guest's text can be as large as its memory; do not even hash that.
        if name.len() > MAX_NAME_BYTES {
            return Err(self.no_such_variable(name));
        }
        match self.values.get(name) {
            Some(ComponentValue::Constant(value)) => Ok(value.clone()),
            Some(ComponentValue::Template(template)) => {
                self.resolver.resolve_template(template).await.map(Value::from)
            }
            None => Err(self.no_such_variable(name)),
        }
    }

    /// All of the component's variables with their values, in the order of the
    /// manifest.
    ///
    /// # Errors
    /// When one of the values cannot be had.
    pub async fn get_all(&self) -> Result<Vec<(VariableName, Value)>, Error> {
        let mut all = Vec::with_capacity(self.values.len());
        for name in self.values.keys() {
            all.push((name.clone(), self.get(name.as_str()).await?));
        }
        Ok(all)
    }

    /// What the templates of this component's app are filled in with.
    pub fn resolver(&self) -> &Arc<Resolver> {
        &self.resolver
    }

    fn no_such_variable(&self, name: &str) -> Error {
        let shown = name.chars().take(SHOWN_NAME_CHARACTERS).collect();
        match VariableName::new(name) {
            Ok(_) => Error::VariableUndefined { name: shown, component: Some(self.component.clone()) },
            Err(cause) => Error::VariableName { name: shown, cause: cause.to_string() },
        }
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.values.keys()).finish()
    }
}
