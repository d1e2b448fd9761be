//! What a release would change, in words, and what the operator says to it.

use std::collections::BTreeSet;

use wisp_manifest::{allowed_hosts::AllowedHost, id::VariableName, template::Template};

use crate::{
    description::{Asked, ComponentDescription, ImageDescription},
    model::Approval,
    platform::ResourceKind,
    policy::{Capability, TeamPolicy},
};

/// Name of the manifest in messages.
const MANIFEST: &str = wisp_manifest::MANIFEST_FILE_NAME;

/// Something that an app can do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ability {
    kind: AbilityKind,
    what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum AbilityKind {
    Trigger,
    Of(Capability),
}

/// What the operator's policy says to an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What is refused, naming the manifest's line and the policy's.
    pub(crate) refused: Vec<String>,
    /// What somebody has to agree to.
    pub(crate) approvals: Vec<Approval>,
}

/// What an app can do after a release and could not before, and the other way round.
pub(crate) fn differences(current: Option<&ImageDescription>, next: &ImageDescription) -> Vec<String> {
    let before = current.map(abilities).unwrap_or_default();
    let after = abilities(next);
    let now = if current.is_some() { "now also " } else { "" };
    let mut changes: Vec<String> =
        after.difference(&before).map(|ability| format!("{now}{}", ability.words())).collect();
    changes.extend(before.difference(&after).map(|ability| format!("no longer {}", ability.words())));
    // What the app could do all along, a component may get to do now.
    if let Some(current) = current {
        for component in &next.components {
            let own_before = current
                .components
                .iter()
                .find(|before| before.id == component.id)
                .map(of_component)
                .unwrap_or_default();
            let own = of_component(component);
            let gained = own.difference(&own_before).filter(|ability| before.contains(ability));
            changes.extend(
                gained.map(|ability| format!("component {} now also {}", component.id, ability.words())),
            );
        }
    }
    changes
}

/// What the policy says to an image. `value` gives the values that variables will have.
pub(crate) fn judge(
    policy: &TeamPolicy,
    current: Option<&ImageDescription>,
    next: &ImageDescription,
    mut value: impl FnMut(&str) -> Option<String>,
) -> Verdict {
    let mut refused = Vec::new();
    for trigger in &next.triggers {
        if let Some(place) = policy.refuses_trigger(&trigger.kind) {
            let where_asked = at(trigger.line);
            refused.push(format!("trigger `{}`{where_asked} is not allowed by {place}", trigger.kind));
        }
    }
    for component in &next.components {
        for (capability, asked) in asked(component) {
            let what = noun(capability, &asked.value);
            let refused_label =
                capability.resource().and_then(|kind| policy.refuses_label(kind, &asked.value));
            if let Some((backend, place)) = refused_label {
                refused.push(format!(
                    "{what} of component `{}`{} is of type `{backend}` by {place}, which this server does not have",
                    component.id,
                    at(asked.line),
                ));
            } else if let Some(place) = policy.refuses(capability) {
                refused.push(format!(
                    "{what} of component `{}`{} is not allowed by {place}",
                    component.id,
                    at(asked.line),
                ));
            } else if capability == Capability::Outbound
                && let Some(host) = resolved(&asked.value, &mut value)
                && let Some(place) = policy.refuses_destination(&host)
            {
                refused.push(format!(
                    "destination `{}` of component `{}`{} is not allowed by {place}",
                    asked.value,
                    component.id,
                    at(asked.line),
                ));
            }
        }
    }
    let before = current.map(abilities).unwrap_or_default();
    let approvals = abilities(next)
        .difference(&before)
        .filter_map(|ability| match ability.kind {
            AbilityKind::Of(capability) if policy.needs_approval(capability) => Some(Approval {
                key: format!("{} {}", capability.as_str(), ability.what),
                reason: format!("the app {}", ability.words()),
            }),
            _ => None,
        })
        .collect();
    Verdict { refused, approvals }
}

/// What the policy has put behind the labels that an app uses, in words.
pub(crate) fn backends(policy: &TeamPolicy, next: &ImageDescription) -> Vec<String> {
    let of_kind = |kind: ResourceKind| {
        labels(next, kind).into_iter().filter_map(move |label| {
            let (words, place) = policy.backend(kind, label)?;
            Some(format!("{} `{label}` is {words}, by {place}", kind.noun()))
        })
    };
    ResourceKind::ALL.into_iter().flat_map(of_kind).collect()
}

/// The labels of a kind that an app uses, in order.
pub(crate) fn labels(description: &ImageDescription, kind: ResourceKind) -> BTreeSet<&str> {
    description
        .components
        .iter()
        .flat_map(|component| match kind {
            ResourceKind::KeyValue => &component.key_value_stores,
            ResourceKind::Sqlite => &component.sqlite_databases,
        })
        .map(|asked| asked.value.as_str())
        .collect()
}

/// A destination with its variables filled in. One that cannot be, or that comes out as none,
/// is nothing that could be reached.
fn resolved(template: &str, value: &mut impl FnMut(&str) -> Option<String>) -> Option<AllowedHost> {
    let expanded =
        Template::parse(template).ok()?.expand(|name: &VariableName| value(name.as_str()).ok_or(())).ok()?;
    AllowedHost::parse(&expanded).ok()
}

fn asked(component: &ComponentDescription) -> impl Iterator<Item = (Capability, &Asked)> {
    let with = |capability| move |asked| (capability, asked);
    component
        .outbound
        .iter()
        .map(with(Capability::Outbound))
        .chain(component.key_value_stores.iter().map(with(Capability::KeyValue)))
        .chain(component.sqlite_databases.iter().map(with(Capability::Sqlite)))
        .chain(component.ai_models.iter().map(with(Capability::AiModels)))
}

fn of_component(component: &ComponentDescription) -> BTreeSet<Ability> {
    asked(component)
        .filter(|(capability, asked)| {
            // Reaching oneself is not worth a word.
            *capability != Capability::Outbound
                || !AllowedHost::parse(&asked.value).is_ok_and(|host| host.is_own_app())
        })
        .map(|(capability, asked)| Ability { kind: AbilityKind::Of(capability), what: asked.value.clone() })
        .collect()
}

fn abilities(description: &ImageDescription) -> BTreeSet<Ability> {
    let triggers = description
        .triggers
        .iter()
        .filter(|trigger| trigger.kind != "http")
        .map(|trigger| Ability { kind: AbilityKind::Trigger, what: trigger.kind.clone() });
    triggers.chain(description.components.iter().flat_map(of_component)).collect()
}

fn noun(capability: Capability, what: &str) -> String {
    match capability {
        Capability::Outbound => format!("destination `{what}`"),
        Capability::KeyValue => format!("key-value store `{what}`"),
        Capability::Sqlite => format!("sqlite database `{what}`"),
        Capability::AiModels => format!("model `{what}`"),
    }
}

fn at(line: Option<u32>) -> String {
    match line {
        Some(line) => format!(" ({MANIFEST}:{line})"),
        None => format!(" ({MANIFEST})"),
    }
}

impl Ability {
    fn words(&self) -> String {
        let what = &self.what;
        match self.kind {
            AbilityKind::Trigger => format!("is started by trigger {what}"),
            AbilityKind::Of(Capability::Outbound) => format!("reaches {what}"),
            AbilityKind::Of(Capability::KeyValue) => format!("uses key-value store {what}"),
            AbilityKind::Of(Capability::Sqlite) => format!("uses sqlite database {what}"),
            AbilityKind::Of(Capability::AiModels) => format!("uses model {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a failed unwrap is a failed test")]

    use std::path::Path;

    use super::*;
    use crate::{names::TeamName, policy::Policy};

    fn image(hosts: &[&str], databases: &[&str]) -> ImageDescription {
        let asked = |values: &[&str]| {
            let asked = |(index, value): (usize, &&str)| Asked {
                value: (*value).to_owned(),
                line: u32::try_from(index + 10).ok(),
            };
            values.iter().enumerate().map(asked).collect()
        };
        ImageDescription {
            components: vec![ComponentDescription {
                id: "shop".to_owned(),
                outbound: asked(hosts),
                sqlite_databases: asked(databases),
                ..ComponentDescription::default()
            }],
            ..ImageDescription::default()
        }
    }

    #[test]
    fn differences_are_words() {
        let (old, new) = (image(&[], &["default"]), image(&["https://api.stripe.com", "http://self"], &[]));
        assert_eq!(
            differences(Some(&old), &new),
            ["now also reaches https://api.stripe.com", "no longer uses sqlite database default"]
        );
        assert_eq!(differences(None, &new), ["reaches https://api.stripe.com"]);
        assert!(differences(Some(&new), &new).is_empty());
        let mut two = old.clone();
        two.components.push(ComponentDescription { id: "pay".to_owned(), ..old.components[0].clone() });
        assert_eq!(differences(Some(&old), &two), ["component pay now also uses sqlite database default"]);
    }

    #[test]
    fn a_refusal_names_both_lines() {
        let text = "[default]\noutbound = [\"https://*.example.com\"]\ncapabilities = [\"outbound\"]\napprove = [\"outbound\"]\n";
        let policy = Policy::parse(Path::new("policy.toml"), text).unwrap();
        let policy = policy.of(&TeamName::new("shop").unwrap());
        let next = image(&["https://evil.example", "https://{{ name }}.example.com"], &["default"]);
        let verdict = judge(policy, None, &next, |_| Some("evil.example/".to_owned()));
        assert_eq!(
            verdict.refused,
            [
                "destination `https://evil.example` of component `shop` (spin.toml:10) is not allowed by \
                 `[default.outbound]` (policy.toml:2)",
                "sqlite database `default` of component `shop` (spin.toml:10) is not allowed by \
                 `[default.capabilities]` (policy.toml:3)",
            ]
        );
        assert_eq!(verdict.approvals.len(), 2);
        assert_eq!(verdict.approvals[0].key, "outbound https://evil.example");
        let text = "[default.backends.sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://db.example\"\ntoken = \"t\"\n\
                    [default.backends.sqlite_database.facts]\ntype = \"spin\"\npath = \"/srv/facts.db\"\n";
        let backed = Policy::parse(Path::new("policy.toml"), text).unwrap();
        let backed = backed.of(&TeamName::new("shop").unwrap());
        let asks = image(&[], &["default", "facts", "own"]);
        assert_eq!(
            judge(backed, None, &asks, |_| None).refused,
            ["sqlite database `default` of component `shop` (spin.toml:10) is of type `libsql` by \
              `[default.backends.sqlite_database.default]` (policy.toml:1), which this server does not have"]
        );
        assert_eq!(
            backends(backed, &asks)[1],
            "sqlite database `facts` is the operator's file `/srv/facts.db`, by \
             `[default.backends.sqlite_database.facts]` (policy.toml:5)"
        );
        let fine =
            judge(policy, None, &image(&["https://{{ name }}.example.com"], &[]), |_| Some("a".to_owned()));
        assert!(fine.refused.is_empty());
        let elsewhere =
            judge(policy, None, &image(&["https://{{ name }}"], &[]), |_| Some("evil.example".to_owned()));
        assert_eq!(elsewhere.refused.len(), 1);
    }
}
