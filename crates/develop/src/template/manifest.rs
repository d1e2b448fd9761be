//! `metadata/spin-template.toml`.

use std::collections::HashMap;

use indexmap::IndexMap;
use serde::Deserialize;

use super::Purpose;
use crate::Error;

/// What a template says about itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    manifest_version: String,
    pub(super) id: String,
    pub(super) description: Option<String>,
    /// Of older templates; has no meaning any more.
    #[serde(default, rename = "trigger_type")]
    _trigger_type: Option<toml::Value>,
    #[serde(default)]
    pub(super) tags: Vec<String>,
    #[serde(default)]
    pub(super) new_application: Variant,
    pub(super) add_component: Option<Variant>,
    #[serde(default)]
    pub(super) parameters: IndexMap<String, Parameter>,
    #[serde(default)]
    pub(super) outputs: IndexMap<String, Output>,
    /// Filters in WebAssembly: Spin has given them up, and so they are refused.
    custom_filters: Option<toml::Value>,
}

/// What is different when a template makes an app, or adds to one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Variant {
    pub(super) supported: Option<bool>,
    #[serde(default)]
    pub(super) skip_files: Vec<String>,
    #[serde(default)]
    pub(super) skip_parameters: Vec<String>,
    /// Files whose text goes into the manifest, by what they are.
    #[serde(default)]
    pub(super) snippets: IndexMap<String, String>,
    #[serde(default)]
    pub(super) conditions: HashMap<String, Conditional>,
}

/// What is left out if the manifest has something already.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Conditional {
    pub(super) condition: Condition,
    #[serde(default)]
    pub(super) skip_files: Vec<String>,
    #[serde(default)]
    pub(super) skip_parameters: Vec<String>,
    #[serde(default)]
    pub(super) skip_snippets: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Condition {
    /// A key of the manifest, with dots between its parts.
    pub(super) manifest_entry_exists: String,
}

/// Something else that a template makes.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Output {
    CreateDir {
        path: String,
        #[serde(default)]
        at: Place,
    },
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    #[default]
    Component,
    Manifest,
}

/// Something that a template wants to know.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    #[serde(rename = "type")]
    data_type: String,
    /// What to ask a person.
    pub prompt: String,
    /// The value if nobody says otherwise.
    pub default: Option<String>,
    /// What the value must look like, a regular expression.
    pub pattern: Option<String>,
    /// The values that there are to choose from.
    pub allowed_values: Option<Vec<String>>,
}

/// A parameter with its name.
#[derive(Clone, Copy, Debug)]
pub struct Question<'template> {
    /// The parameter's name.
    pub name: &'template str,
    /// What is known about it.
    pub parameter: &'template Parameter,
}

impl Metadata {
    pub(super) fn parse(template: &str, text: &str) -> Result<Self, Error> {
        let refused = |message: String| Error::Template { template: format!("`{template}`"), message };
        let metadata: Self =
            toml_edit::de::from_str(text).map_err(|error| refused(error.message().to_owned()))?;
        if metadata.manifest_version != "1" {
            let version = &metadata.manifest_version;
            return Err(refused(format!("there is no version `{version}` of the format, only `1`")));
        }
        if metadata.custom_filters.is_some() {
            return Err(refused("`custom_filters` are not supported".into()));
        }
        for (name, parameter) in &metadata.parameters {
            if parameter.data_type != "string" {
                return Err(refused(format!("`{name}` is of the unknown type `{}`", parameter.data_type)));
            }
            if let Some(pattern) = &parameter.pattern
                && let Err(error) = regex::Regex::new(pattern)
            {
                return Err(refused(format!("the pattern of `{name}` cannot be read: {error}")));
            }
        }
        Ok(metadata)
    }

    pub(super) fn variant(&self, purpose: Purpose) -> Option<&Variant> {
        match purpose {
            Purpose::New => Some(&self.new_application),
            Purpose::Add => self.add_component.as_ref(),
        }
    }
}

impl Question<'_> {
    /// Whether a value will do.
    ///
    /// # Errors
    /// [`Error::Value`] says why not.
    pub fn check(&self, value: &str) -> Result<(), Error> {
        let wrong = |reason: String| Error::Value {
            parameter: self.name.to_owned(),
            value: value.to_owned(),
            reason,
        };
        if let Some(allowed) = &self.parameter.allowed_values
            && !allowed.iter().any(|known| known == value)
        {
            return Err(wrong(format!("it can be {}", crate::error::list(allowed))));
        }
        if let Some(pattern) = &self.parameter.pattern
            && !regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(value))
        {
            return Err(wrong(format!("it must look like `{pattern}`")));
        }
        Ok(())
    }
}
