//! What an image asks for, with the lines of its manifest that ask.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};
use utoipa::ToSchema;
use wisp_manifest::{
    App, Diagnostics, MANIFEST_FILE_NAME,
    model::{HttpRoute, Limits, TriggerKind},
};

/// What an image is and asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageDescription {
    /// The app's name in the manifest: free text.
    pub name: String,
    /// The app's version in the manifest: free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its components.
    pub components: Vec<ComponentDescription>,
    /// Its triggers.
    pub triggers: Vec<TriggerDescription>,
    /// Its variables.
    pub variables: Vec<VariableDescription>,
    /// The path that shows whether a new release works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<String>,
    /// How many SQL migrations the image carries.
    #[serde(default)]
    pub migrations_count: u64,
}

/// What a component asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ComponentDescription {
    /// Its name.
    pub id: String,
    /// Destinations, as they are written: they may have places for variables.
    pub outbound: Vec<Asked>,
    /// Labels of key-value stores.
    pub key_value_stores: Vec<Asked>,
    /// Labels of SQLite databases.
    pub sqlite_databases: Vec<Asked>,
    /// Models.
    pub ai_models: Vec<Asked>,
    /// Limits that it sets itself, by name; each a number in the unit of the name.
    pub limits: BTreeMap<String, u64>,
}

/// Something that a manifest asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Asked {
    /// What.
    pub value: String,
    /// The line of the manifest, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// What starts a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TriggerDescription {
    /// Its type: `http`, `redis` …
    pub kind: String,
    /// The route of an HTTP trigger that is reached from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The line of the manifest, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// A variable of the app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VariableDescription {
    /// Its name.
    pub name: String,
    /// Whether it must be set before the app can run.
    pub is_required: bool,
    /// Whether its value is kept out of sight.
    pub is_secret: bool,
    /// Its value when nobody sets one; not told for secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Finds the lines of a manifest in which something stands.
struct Lines<'t> {
    text: &'t str,
    table: Option<DeTable<'t>>,
}

impl ImageDescription {
    /// What a manifest asks for.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn of_manifest(text: &str) -> Result<Self, Diagnostics> {
        let app = App::parse(Path::new(MANIFEST_FILE_NAME), text, None)?.value;
        Ok(Self::of_app(&app, text))
    }

    /// What a manifest that was read already asks for. `text` is only asked for lines.
    pub fn of_app(app: &App, text: &str) -> Self {
        let lines = Lines::new(text);
        Self {
            name: app.name.to_string(),
            version: app.version.clone(),
            description: app.description.clone(),
            components: app.components.values().map(|component| lines.component(component)).collect(),
            triggers: app.triggers.iter().map(|trigger| lines.trigger(&trigger.kind)).collect(),
            variables: app
                .variables
                .iter()
                .map(|(name, variable)| VariableDescription {
                    name: name.to_string(),
                    is_required: variable.required,
                    is_secret: variable.secret,
                    default: variable.default.clone().filter(|_| !variable.secret),
                    description: variable.description.clone(),
                })
                .collect(),
            probe: app.wisp.probe.clone(),
            migrations_count: 0,
        }
    }
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, table: DeTable::parse(text).ok().map(toml::Spanned::into_inner) }
    }

    fn component(&self, component: &wisp_manifest::model::Component) -> ComponentDescription {
        let id = component.id.as_str();
        let asked = |key: &str, value: &str| Asked {
            value: value.to_owned(),
            line: self.entry_of_component(id, key, value),
        };
        ComponentDescription {
            id: id.to_owned(),
            outbound: component
                .allowed_outbound_hosts
                .iter()
                .map(|host| asked("allowed_outbound_hosts", host.source()))
                .collect(),
            key_value_stores: component
                .key_value_stores
                .iter()
                .map(|label| asked("key_value_stores", label.as_str()))
                .collect(),
            sqlite_databases: component
                .sqlite_databases
                .iter()
                .map(|label| asked("sqlite_databases", label.as_str()))
                .collect(),
            ai_models: component.ai_models.iter().map(|model| asked("ai_models", model)).collect(),
            limits: limits(&component.wisp.limits),
        }
    }

    fn trigger(&self, kind: &TriggerKind) -> TriggerDescription {
        let route = match kind {
            TriggerKind::Http(http) => match &http.route {
                HttpRoute::Pattern(pattern) => Some(pattern.to_string()),
                HttpRoute::Private => None,
            },
            _ => None,
        };
        let line = self.table.as_ref().and_then(|table| {
            let triggers = table.get("trigger")?.get_ref();
            let of_type = match triggers.as_array() {
                Some(array) => array,
                None => triggers.as_table()?.get(kind.type_name())?.get_ref().as_array()?,
            };
            let is_it = |trigger: &&toml::Spanned<DeValue<'_>>| {
                let written = trigger.get_ref().as_table().and_then(|table| table.get("route"));
                written.and_then(|written| written.get_ref().as_str()) == route.as_deref()
            };
            let found = of_type.iter().find(is_it).or_else(|| of_type.first())?;
            Some(self.line_of(found.span().start))
        });
        TriggerDescription { kind: kind.type_name().to_owned(), route, line }
    }

    /// The line of an entry in an array of a component, or of the array if the entry is not
    /// written there as it is meant (older versions of the schema).
    fn entry_of_component(&self, id: &str, key: &str, value: &str) -> Option<u32> {
        let components = self.table.as_ref()?.get("component")?.get_ref();
        let component = match components.as_array() {
            Some(array) => array.iter().find_map(|component| {
                let component = component.get_ref().as_table()?;
                (component.get("id")?.get_ref().as_str()? == id).then_some(component)
            })?,
            None => components.as_table()?.get(id)?.get_ref().as_table()?,
        };
        let array = component.get(key).or_else(|| component.get("allowed_http_hosts"))?;
        let entry = array
            .get_ref()
            .as_array()
            .and_then(|entries| entries.iter().find(|entry| entry.get_ref().as_str() == Some(value)));
        Some(self.line_of(entry.unwrap_or(array).span().start))
    }

    fn line_of(&self, offset_bytes: usize) -> u32 {
        line_of(self.text, offset_bytes)
    }
}

/// The line, from 1, in which a byte stands.
pub(crate) fn line_of(text: &str, offset_bytes: usize) -> u32 {
    let before = text.as_bytes().get(..offset_bytes).unwrap_or(text.as_bytes());
    let breaks = before.iter().filter(|byte| **byte == b'\n').count();
    u32::try_from(breaks + 1).unwrap_or(u32::MAX)
}

/// Limits that are set, by name.
pub(crate) fn limits(limits: &Limits) -> BTreeMap<String, u64> {
    let of_time = |time: Option<std::time::Duration>| {
        time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    };
    [
        ("memory_bytes", limits.memory_bytes),
        ("table_elements", limits.table_elements.map(u64::from)),
        ("cpu_time_ms", of_time(limits.cpu_time)),
        ("request_timeout_ms", of_time(limits.request_timeout)),
        ("max_concurrent_requests", limits.max_concurrent_requests.map(u64::from)),
        ("request_body_bytes", limits.request_body_bytes),
        ("response_body_bytes", limits.response_body_bytes),
        ("max_handles", limits.max_handles.map(u64::from)),
        ("max_outbound_requests", limits.max_outbound_requests.map(u64::from)),
        ("max_outbound_connections", limits.max_outbound_connections.map(u64::from)),
        ("log_bytes", limits.log_bytes),
        ("log_bytes_per_second", limits.log_bytes_per_second),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a failed unwrap is a failed test")]

    use super::*;

    const MANIFEST: &str = r#"spin_manifest_version = 2
[application]
name = "shop"
version = "1.0.0"
[variables]
key = { required = true, secret = true }
[[trigger.http]]
route = "/..."
component = "shop"
[[trigger.http]]
route = "/pay"
component = "shop"
[component.shop]
source = "shop.wasm"
allowed_outbound_hosts = [
    "https://api.example.com",
    "https://{{ key }}.example.com",
]
key_value_stores = ["default", "carts"]
"#;

    #[test]
    fn lines_are_those_of_the_manifest() {
        let description = ImageDescription::of_manifest(MANIFEST).unwrap();
        let shop = &description.components[0];
        let line = |asked: &Asked| (asked.value.clone(), asked.line);
        assert_eq!(
            shop.outbound.iter().map(line).collect::<Vec<_>>(),
            [
                ("https://api.example.com".to_owned(), Some(16)),
                ("https://{{ key }}.example.com".to_owned(), Some(17))
            ]
        );
        assert_eq!(shop.key_value_stores[1].line, Some(19));
        assert_eq!(description.triggers[1].line, Some(10));
        assert_eq!(description.triggers[1].route.as_deref(), Some("/pay"));
        assert!(description.variables[0].is_required && description.variables[0].is_secret);
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        assert!(ImageDescription::of_manifest("x").is_err());
    }
}
