//! The app's variables and their values.

use std::collections::HashMap;
use std::fmt;

use indexmap::IndexMap;
use wisp_manifest::id::VariableName;
use wisp_manifest::model::Variable;
use wisp_manifest::template::{ExpandError, MAX_EXPANDED_BYTES, Template};

use super::{Providers, Value};
use crate::Error;

/// The values of an app's variables.
///
/// The default is an app without variables.
#[derive(Default)]
pub struct Resolver {
    variables: IndexMap<VariableName, AppValue>,
    providers: Providers,
}

/// Values of the app's variables at one moment.
#[derive(Debug)]
pub struct AppValues(HashMap<VariableName, Value>);

/// The value of one of the app's variables.
enum AppValue {
    /// It cannot change any more.
    Constant(Value),
    /// The providers are asked at each use.
    Asked {
        /// The value if none of them has one.
        default: Option<Value>,
    },
}

/// The value of one of a component's variables.
pub(super) enum ComponentValue {
    /// It cannot change any more.
    Constant(Value),
    /// It is filled in at each use.
    Template(Template),
}

impl Resolver {
    /// Asks for the values of all of an app's variables.
    ///
    /// # Errors
    /// When required variables have no value (all of them in one error), or
    /// when a provider fails.
    pub async fn new(
        declared: &IndexMap<VariableName, Variable>,
        providers: Providers,
    ) -> Result<Self, Error> {
        for (name, provider) in undeclared(declared, &providers) {
            tracing::warn!("the {provider} sets variable `{name}`, which the app does not declare");
        }
        let mut variables = IndexMap::with_capacity(declared.len());
        let mut missing = Vec::new();
        for (name, declaration) in declared {
            let default = declaration.default.as_deref().map(Value::from);
            let (found, is_constant) = ask(&providers, name).await?;
            let value = match (found.or_else(|| default.clone()), is_constant) {
                (None, _) => {
                    missing.push(name.to_string());
                    continue;
                }
                (Some(value), true) => AppValue::Constant(value),
                (Some(_), false) => AppValue::Asked { default },
            };
            variables.insert(name.clone(), value);
        }
        match missing.is_empty() {
            true => Ok(Self { variables, providers }),
            false => Err(Error::VariablesMissing { names: missing }),
        }
    }

    /// The value of one of the app's variables.
    ///
    /// # Errors
    /// When the app does not declare it, when a provider fails, or when it had
    /// a value at the start and has none any more.
    pub async fn get(&self, name: &VariableName) -> Result<Value, Error> {
        match self.variables.get(name) {
            Some(AppValue::Constant(value)) => Ok(value.clone()),
            Some(AppValue::Asked { default }) => ask(&self.providers, name)
                .await?
                .0
                .or_else(|| default.clone())
                .ok_or_else(|| Error::VariablesMissing { names: vec![name.to_string()] }),
            None => Err(Error::VariableUndefined { name: name.to_string(), component: None }),
        }
    }

    /// A template with the values of the app's variables in their places.
    ///
    /// # Errors
    /// When one of the variables has no value, or the result is longer than
    /// [`MAX_EXPANDED_BYTES`].
    pub async fn resolve_template(&self, template: &Template) -> Result<String, Error> {
        if let Some(literal) = template.as_literal() {
            return Ok(literal.to_owned());
        }
        let values = self.values_for([template]).await?;
        template.expand(|name| values.get(name)).map_err(|error| match error {
            ExpandError::Lookup { cause, .. } => cause,
            ExpandError::TooLong => {
                Error::VariableTooLong { what: format!("`{template}`"), limit_bytes: MAX_EXPANDED_BYTES }
            }
        })
    }

    /// The values of those of the app's variables that some templates need, for
    /// the functions of `wisp-manifest` that fill templates in.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn values_for(
        &self,
        templates: impl IntoIterator<Item = &Template>,
    ) -> Result<AppValues, Error> {
        let mut values = HashMap::new();
        for name in templates.into_iter().flat_map(Template::variables) {
            if !values.contains_key(name) {
                values.insert(name.clone(), self.get(name).await?);
            }
        }
        Ok(AppValues(values))
    }

    /// A component's variable, worked out as far as it can be.
    pub(super) async fn component_value(&self, template: &Template) -> Result<ComponentValue, Error> {
        let is_constant = template
            .variables()
            .all(|name| matches!(self.variables.get(name), Some(AppValue::Constant(_)) | None));
        // Filled in either way, so that a template that cannot be is found now.
        let value = self.resolve_template(template).await?;
        Ok(match is_constant {
            true => ComponentValue::Constant(value.into()),
            false => ComponentValue::Template(template.clone()),
        })
    }
}

impl AppValues {
    /// The value of a variable.
    ///
    /// # Errors
    /// When it is in none of the templates that the values were gathered for.
    pub fn get(&self, name: &VariableName) -> Result<&str, Error> {
        self.0
            .get(name)
            .map(Value::expose)
            .ok_or_else(|| Error::VariableUndefined { name: name.to_string(), component: None })
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Resolver")
            .field("variables", &self.variables.keys())
            .field("providers", &self.providers)
            .finish()
    }
}

/// Names that a provider has values for and the app does not know, with the
/// provider's name. They do no harm, and are likely misspelt.
pub(super) fn undeclared<'a>(
    declared: &IndexMap<VariableName, Variable>,
    providers: &'a Providers,
) -> Vec<(&'a str, &'a str)> {
    let mut undeclared = Vec::new();
    for provider in providers.iter() {
        let names = provider.names().into_iter().filter(|name| !declared.contains_key(*name));
        undeclared.extend(names.map(|name| (name, provider.name())));
    }
    undeclared.sort_unstable();
    undeclared
}

/// What the first provider that has a value says, and whether this can never
/// change: all that were asked up to there must be constant.
async fn ask(providers: &Providers, name: &VariableName) -> Result<(Option<Value>, bool), Error> {
    let mut is_constant = true;
    for provider in providers.iter() {
        is_constant &= provider.is_constant();
        if let Some(value) = provider.get(name).await? {
            return Ok((Some(value), is_constant));
        }
    }
    Ok((None, is_constant))
}
