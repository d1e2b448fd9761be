//! The manifest: whether it can be read, and whether it is of today.

use std::path::Path;

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value};
use wisp_manifest::{App, allowed_hosts::translate_allowed_http_hosts};

use super::{Findings, Fix};
use crate::wasm::{Capability, Wasm};

/// Destinations that components of version 1 could reach unasked.
const UNGUARDED: [(Capability, &str); 3] = [
    (Capability::Redis, "redis://*:*"),
    (Capability::Mysql, "mysql://*:*"),
    (Capability::Postgres, "postgres://*:*"),
];

/// Reads the manifest; what can be read is looked at further.
pub(super) fn examine(path: &Path, text: &str, findings: &mut Findings) -> Option<App> {
    let app = match App::parse(path, text, None) {
        Ok(checked) => {
            if !checked.warnings.is_empty() {
                let what =
                    format!("the manifest has warnings:\n{}", checked.warnings.render(false, 80).trim_end());
                findings.problem(false, what, "each says what to do".into(), None);
            }
            checked.value
        }
        Err(problems) => {
            let what = format!("the manifest cannot be used:\n{}", problems.render(false, 80).trim_end());
            findings.problem(true, what, "each says what to do".into(), None);
            return None;
        }
    };
    if is_version_1(text) {
        let fix = to_version_2(path, text).map(|text| Fix::Rewrite { path: path.to_owned(), text });
        let what = "the manifest is of version 1, which has no new features any more".into();
        findings.problem(false, what, "write it in version 2".into(), fix);
    } else {
        findings.fine.push("the manifest is of version 2 and in order".into());
    }
    Some(app)
}

fn is_version_1(text: &str) -> bool {
    let Ok(document) = text.parse::<DocumentMut>() else { return false };
    let version = document.get("spin_manifest_version").or_else(|| document.get("spin_version"));
    version.is_some_and(|version| version.as_integer() == Some(1) || version.as_str() == Some("1"))
}

/// The same app in version 2; `None` if that would not be the same.
fn to_version_2(path: &Path, text: &str) -> Option<String> {
    let old: DocumentMut = text.parse().ok()?;
    let mut new = DocumentMut::new();
    new.insert("spin_manifest_version", toml_edit::value(2));
    let mut application = Table::new();
    for key in ["name", "version", "description", "authors"] {
        if let Some(item) = old.get(key) {
            application.insert(key, item.clone());
        }
    }
    let app_trigger = old.get("trigger")?.as_table_like()?;
    let trigger_type = app_trigger.get("type")?.as_str()?.to_owned();
    let base = app_trigger.get("base").and_then(Item::as_str).unwrap_or("/").trim_end_matches('/').to_owned();
    let mut shared = Table::new();
    for (key, item) in app_trigger.iter().filter(|(key, _)| !["type", "base"].contains(key)) {
        shared.insert(key, item.clone());
    }
    if !shared.is_empty() {
        let mut types = Table::new();
        types.set_implicit(true);
        types.insert(&trigger_type, Item::Table(shared));
        application.insert("trigger", Item::Table(types));
    }
    new.insert("application", Item::Table(application));
    if let Some(variables) = old.get("variables") {
        new.insert("variables", variables.clone());
    }

    let mut triggers = ArrayOfTables::new();
    let mut components = Table::new();
    components.set_implicit(true);
    for component in old.get("component")?.as_array_of_tables()? {
        let id = component.get("id")?.as_str()?.replace('_', "-").to_lowercase();
        let mut trigger = Table::new();
        trigger.insert("component", toml_edit::value(&id));
        for (key, item) in component.get("trigger")?.as_table_like()?.iter() {
            let item = match (key, item.as_str()) {
                ("route", Some(route)) => {
                    toml_edit::value(format!("{base}/{}", route.trim_start_matches('/')))
                }
                _ => inline(item),
            };
            trigger.insert(key, item);
        }
        triggers.push(trigger);
        components.insert(&id, Item::Table(translate_component(path, component)?));
    }
    let mut trigger_types = Table::new();
    trigger_types.set_implicit(true);
    trigger_types.insert(&trigger_type, Item::ArrayOfTables(triggers));
    new.insert("trigger", Item::Table(trigger_types));
    new.insert("component", Item::Table(components));
    let text = format!("{}\n", new.to_string().trim());
    App::parse(path, &text, None).ok().map(|_| text)
}

fn translate_component(manifest: &Path, old: &Table) -> Option<Table> {
    let mut new = Table::new();
    let mut hosts = Vec::new();
    for (key, item) in old.iter() {
        match key {
            "id" | "trigger" => {}
            "config" => drop(new.insert("variables", item.clone())),
            "allowed_outbound_hosts" => {
                hosts.extend(item.as_array()?.iter().filter_map(|host| host.as_str().map(str::to_owned)));
            }
            "allowed_http_hosts" => {
                let old: Vec<_> = item.as_array()?.iter().filter_map(Value::as_str).collect();
                hosts.extend(translate_allowed_http_hosts(old, false).ok()?);
            }
            _ => drop(new.insert(key, item.clone())),
        }
    }
    // What it could reach without asking, if it does.
    if let Some(source) = old.get("source").and_then(Item::as_str)
        && let Ok(wasm) = Wasm::read(&manifest.with_file_name("").join(source))
    {
        let used: Vec<_> = wasm.capabilities().into_iter().map(|(capability, _)| capability).collect();
        let unguarded = UNGUARDED.iter().filter(|(capability, _)| used.contains(capability));
        hosts.extend(unguarded.map(|(_, host)| (*host).to_owned()));
    }
    if !hosts.is_empty() {
        new.insert("allowed_outbound_hosts", toml_edit::value(hosts.into_iter().collect::<Array>()));
    }
    // Tables last, or what follows would belong to them.
    let (tables, values): (Vec<_>, Vec<_>) =
        new.iter().map(|(key, item)| (key.to_owned(), item.clone())).partition(|(_, item)| item.is_table());
    let mut sorted = Table::new();
    for (key, mut item) in values.into_iter().chain(tables) {
        if let Item::Table(table) = &mut item {
            table.decor_mut().set_prefix("\n");
        }
        sorted.insert(&key, item);
    }
    Some(sorted)
}

/// A table as a value, so that it can stand among others.
fn inline(item: &Item) -> Item {
    match item {
        Item::Table(table) => {
            let pairs =
                table.iter().filter_map(|(key, item)| Some((key.to_owned(), item.as_value()?.clone())));
            toml_edit::value(pairs.collect::<InlineTable>())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn version_1_becomes_version_2() {
        let text = r#"spin_manifest_version = "1"
authors = ["Ada"]
name = "shop"
version = "1.0.0"
trigger = { type = "http", base = "/shop" }

[variables]
key = { default = "v" }

[[component]]
id = "Cart_Page"
source = "cart.wasm"
allowed_http_hosts = ["api.example.com"]
[component.config]
key = "{{ key }}"
[component.trigger]
route = "/cart/..."
executor = { type = "wagi" }
[component.build]
command = "make"
"#;
        let translated = to_version_2(Path::new("spin.toml"), text).unwrap();
        insta::assert_snapshot!(translated, @r#"
        spin_manifest_version = 2

        [application]
        name = "shop"
        version = "1.0.0"
        authors = ["Ada"]

        [variables]
        key = { default = "v" }

        [[trigger.http]]
        component = "cart-page"
        route = "/shop/cart/..."
        executor = { type = "wagi" }

        [component.cart-page]
        source = "cart.wasm"
        allowed_outbound_hosts = ["http://api.example.com", "https://api.example.com"]

        [component.cart-page.variables]
        key = "{{ key }}"

        [component.cart-page.build]
        command = "make"
        "#);
        assert!(is_version_1(text) && !is_version_1(&translated));
    }
}
