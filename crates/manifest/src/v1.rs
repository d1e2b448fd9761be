//! Manifests of version 1, translated to version 2 as they are written: what
//! is wrong in them is found by the same checks, at its own place.

use crate::allowed_hosts::translate_allowed_http_hosts;
use crate::decode::{Any, At, Context, Decode, Entries, Required, Span, Value, table, to_free_table};
use crate::diagnostics::Rule;
use crate::id::ComponentId;
use crate::model::FreeTable;
use crate::raw;

table! {
    /// A manifest of version 1.
    closed struct Manifest {
        #[expect(dead_code, reason = "it is checked before the manifest is read")]
        spin_manifest_version: Option<Any>,
        #[expect(dead_code, reason = "it is checked before the manifest is read")]
        spin_version: Option<Any>,
        name: Required<At<String>>,
        version: Option<String>,
        description: Option<String>,
        authors: Option<Vec<String>>,
        trigger: Required<At<AppTrigger>>,
        variables: Option<Entries<raw::Variable>>,
        component: Option<Vec<At<Component>>>,
    }
}

/// The one type of trigger that all components have, and its settings.
#[derive(Clone, Debug, schemars::JsonSchema)]
pub(crate) struct AppTrigger {
    r#type: Required<At<String>>,
    base: Option<At<String>>,
    #[schemars(skip)]
    table: FreeTable,
}

table! {
    /// A component of version 1.
    closed struct Component {
        id: Required<At<String>>,
        source: Required<At<raw::Source>>,
        description: Option<String>,
        config: Option<Entries<String>>,
        environment: Option<Entries<String>>,
        files: Option<Vec<At<raw::FileMount>>>,
        exclude_files: Option<Vec<At<String>>>,
        allowed_http_hosts: Option<Vec<At<String>>>,
        allowed_outbound_hosts: Option<Vec<At<String>>>,
        key_value_stores: Option<Vec<At<String>>>,
        sqlite_databases: Option<Vec<At<String>>>,
        ai_models: Option<Vec<String>>,
        build: Option<raw::Build>,
        trigger: Required<At<ComponentTrigger>>,
    }
}

/// What starts a component. Which keys matter depends on the app's trigger.
#[derive(Clone, Debug, schemars::JsonSchema)]
pub(crate) struct ComponentTrigger {
    route: Option<At<raw::Route>>,
    executor: Option<At<raw::Executor>>,
    channel: Option<At<String>>,
    address: Option<At<String>>,
    #[schemars(skip)]
    table: FreeTable,
}

impl Decode for AppTrigger {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        let table = context.table(value)?;
        let mut rest = to_free_table(table);
        rest.remove("type");
        rest.remove("base");
        Some(Self {
            r#type: context.field(value, table, "type")?,
            base: context.field(value, table, "base")?,
            table: rest,
        })
    }
}

impl Decode for ComponentTrigger {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        let table = context.table(value)?;
        Some(Self {
            route: context.field(value, table, "route")?,
            executor: context.field(value, table, "executor")?,
            channel: context.field(value, table, "channel")?,
            address: context.field(value, table, "address")?,
            table: to_free_table(table),
        })
    }
}

/// Says the same in version 2.
pub(crate) fn translate(manifest: At<Manifest>, context: &mut Context) -> At<raw::Manifest> {
    let At { value: manifest, span } = manifest;
    let app_trigger = manifest.trigger.0.map(|trigger| trigger.value);
    let trigger_type =
        app_trigger.as_ref().and_then(|trigger| trigger.r#type.as_ref()).map(|kind| kind.value.as_str());
    let base = app_trigger.as_ref().and_then(|trigger| trigger.base.as_ref());

    let mut components: Vec<(At<String>, Option<At<raw::Component>>)> = Vec::new();
    let mut triggers = Vec::new();
    for component in manifest.component.unwrap_or_default() {
        let Some(id) = component.id.0.clone() else { continue };
        let id = At { value: component_id(&id.value), span: id.span };
        if let (Some(trigger), Some(trigger_type)) = (component.trigger.as_ref(), trigger_type) {
            let trigger_span = trigger.span;
            let trigger = translate_trigger(&id, trigger, trigger_type, base, context);
            triggers.extend(trigger.map(|value| At { value, span: trigger_span }));
        }
        let span = component.span;
        let translated = translate_component(component.value, context);
        components.push((id, Some(At { value: translated, span })));
    }

    let trigger_settings = match (trigger_type, &app_trigger) {
        (Some(trigger_type), Some(trigger)) if !trigger.table.is_empty() => {
            let name = At { value: trigger_type.to_owned(), span };
            let settings = At { value: raw::Free(trigger.table.clone()), span };
            Some(Entries(vec![(name, Some(settings))]))
        }
        _ => None,
    };
    let application = raw::Application {
        name: manifest.name,
        version: manifest.version,
        description: manifest.description,
        authors: manifest.authors,
        targets: None,
        trigger: trigger_settings,
        tool: None,
        is_damaged: false,
    };
    let manifest = raw::Manifest {
        spin_manifest_version: raw::VersionTwo,
        application: Required(Some(At { value: application, span })),
        variables: manifest.variables,
        trigger: Some(raw::Triggers(triggers)),
        component: Some(Entries(components)),
        is_damaged: manifest.is_damaged,
    };
    At { value: manifest, span }
}

/// Ids were free text in version 1; the usual ones differ from those of
/// version 2 only in their separator and case.
fn component_id(id: &str) -> String {
    match ComponentId::new(id) {
        Ok(_) => id.to_owned(),
        Err(_) => id.replace('_', "-").to_lowercase(),
    }
}

fn translate_trigger(
    component: &At<String>,
    trigger: &At<ComponentTrigger>,
    trigger_type: &str,
    base: Option<&At<String>>,
    context: &mut Context,
) -> Option<raw::Trigger> {
    let reference =
        At { value: raw::ComponentSpec::Reference(component.value.clone()), span: component.span };
    let required = |key: &str, context: &mut Context| {
        let rule = Rule::MissingKey {
            key: key.to_owned(),
            place: crate::diagnostics::Place("component.trigger".to_owned()),
        };
        context.error(trigger.span, rule);
    };
    match trigger_type {
        "http" => {
            if trigger.route.is_none() && !trigger.table.contains_key("route") {
                required("route", context);
            }
            let route = trigger.route.clone().map(|route| match (&route.value, base) {
                (raw::Route::Pattern(pattern), Some(base)) => {
                    let joined =
                        format!("{}/{}", base.value.trim_end_matches('/'), pattern.trim_start_matches('/'));
                    At { value: raw::Route::Pattern(joined), span: route.span }
                }
                _ => route,
            });
            Some(raw::Trigger::Http(raw::HttpTrigger {
                id: None,
                component: Some(reference),
                static_response: None,
                route: Required(route),
                executor: trigger.executor.clone(),
                dependencies: None,
                is_damaged: false,
            }))
        }
        "redis" => {
            if trigger.channel.is_none() && !trigger.table.contains_key("channel") {
                required("channel", context);
            }
            Some(raw::Trigger::Redis(raw::RedisTrigger {
                id: None,
                component: Required(Some(reference)),
                channel: Required(trigger.channel.clone()),
                address: trigger.address.clone(),
                is_damaged: false,
            }))
        }
        _ => Some(raw::Trigger::Other(raw::OtherTrigger {
            trigger_type: trigger_type.to_owned(),
            id: None,
            component: Some(reference),
            components: None,
            table: trigger.table.clone(),
        })),
    }
}

fn translate_component(component: Component, context: &mut Context) -> raw::Component {
    let start_of_table = Span::default();
    let mut hosts = component.allowed_outbound_hosts.unwrap_or_default();
    // Databases were not guarded in version 1.
    let databases = translate_allowed_http_hosts([], true).unwrap_or_default();
    hosts.extend(databases.into_iter().map(|value| At { value, span: start_of_table }));
    for host in component.allowed_http_hosts.unwrap_or_default() {
        match translate_allowed_http_hosts([host.value.as_str()], false) {
            Ok(entries) => {
                hosts.extend(entries.into_iter().map(|value| At { value, span: host.span }));
            }
            Err(reason) => context.error(host.span, Rule::AllowedHost { reason }),
        }
    }
    raw::Component {
        source: component.source,
        description: component.description,
        variables: component.config,
        environment: component.environment,
        files: component.files,
        exclude_files: component.exclude_files,
        allowed_outbound_hosts: Some(hosts),
        allowed_http_hosts: None,
        key_value_stores: component.key_value_stores,
        sqlite_databases: component.sqlite_databases,
        ai_models: component.ai_models,
        targets: None,
        build: component.build,
        tool: None,
        dependencies_inherit_configuration: None,
        dependencies: None,
        profile: None,
        is_damaged: component.is_damaged,
    }
}
