//! Manifests and runtime configurations that are fine, and what they mean.

#![allow(clippy::unwrap_used, clippy::panic, clippy::allow_attributes, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use wisp_manifest::model::{
    Dependency, DependencySource, Executor, FileMount, HttpRoute, HttpTarget, InheritConfiguration,
    Inheritable, Limits, Reuse, Source, TriggerKind,
};
use wisp_manifest::runtime_config::{Directory, KeyValueBackend, SqliteBackend, VariablesProvider};
use wisp_manifest::{App, RuntimeConfig};

/// The seeds of the fuzz targets are complete: each key is in one of them.
fn seed(name: &str) -> String {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    std::fs::read_to_string(seeds.join(name)).unwrap()
}

fn parse(text: &str, profile: Option<&str>) -> App {
    match App::parse(Path::new("apps/shop/spin.toml"), text, profile) {
        Ok(checked) => {
            assert!(checked.warnings.is_empty(), "{}", checked.warnings);
            checked.value
        }
        Err(problems) => panic!("{}", problems.render(false, 100)),
    }
}

fn minimal(rest: &str) -> App {
    parse(&format!("spin_manifest_version = 2\napplication.name = \"shop\"\n{rest}"), None)
}

#[test]
fn everything_at_once() {
    let app = parse(&seed("manifest/full.toml"), None);
    assert_eq!(&*app.name, "shop");
    assert_eq!(app.version.as_deref(), Some("1.2.3"));
    assert_eq!(app.directory, Path::new("apps/shop"));
    assert_eq!(app.targets.len(), 3);
    assert!(app.variables["api_key"].required && app.variables["api_key"].secret);
    assert_eq!(app.variables["redis_host"].default.as_deref(), Some("localhost"));
    assert!(app.tools.contains_key("other") && !app.tools.contains_key("wisp"));

    let ids: Vec<&str> = app.triggers.iter().map(|trigger| trigger.id.as_str()).collect();
    let expected = [
        "cart-http-trigger",
        "legacy",
        "http-trigger1",
        "auth-http-trigger",
        "cart-redis-trigger",
        "cart-cron-trigger",
    ];
    assert_eq!(ids, expected);
    assert_eq!(app.trigger_types().into_iter().collect::<Vec<_>>(), ["http", "redis", "cron"]);

    let http: Vec<_> = app.http_triggers().map(|(_, http)| http).collect();
    assert!(matches!(&http[0].route, HttpRoute::Pattern(route) if route.as_str() == "/cart/..."));
    let [middleware] = http[0].middleware.as_slice() else { panic!("one middleware") };
    assert_eq!(middleware.inherit, Some(InheritConfiguration::Some(vec![Inheritable::Variables])));
    let HttpTarget::Component { component, executor: Executor::Wagi(wagi) } = &http[1].target else {
        panic!("a command")
    };
    assert_eq!((component.as_str(), wagi.argv.as_str()), ("legacy-component", "x"));
    assert_eq!(wagi.entrypoint, "_start");
    let HttpTarget::Static(response) = &http[2].target else { panic!("a static response") };
    assert_eq!(response.headers, [("content-type".to_owned(), "text/plain".to_owned())]);
    assert_eq!(http[3].route, HttpRoute::Private);
    let TriggerKind::Redis(redis) = &app.triggers[4].kind else { panic!("a redis trigger") };
    assert_eq!(redis.address.source(), "redis://{{ redis_host }}:6379");
    let TriggerKind::Other(cron) = &app.triggers[5].kind else { panic!("another trigger") };
    assert_eq!(cron.table["cron_expression"], "* * * * * *");
    assert_eq!(cron.components["b"].len(), 2);

    let names = |trigger_type| -> Vec<&str> {
        let components = app.components_for(trigger_type);
        components.iter().map(|component| component.id.as_str()).collect()
    };
    assert_eq!(names("http"), ["cart", "auth", "legacy-component"]);
    assert_eq!(names("redis"), ["cart"]);
    assert_eq!(names("cron"), ["cart", "auth", "inline-component1"]);
    assert_eq!(names("mqtt"), [""; 0]);

    let cart = &app.components["cart"];
    assert_eq!(cart.source, Source::Path("cart.wasm".into()));
    assert_eq!(cart.environment["MODE"], "fast");
    assert_eq!(cart.files[0], FileMount::Pattern("static/**/*".to_owned()));
    assert_eq!(cart.variables["key"].source(), "k-{{ api_key }}");
    assert_eq!(cart.allowed_outbound_hosts.len(), 3);
    assert_eq!(cart.key_value_stores[1].as_str(), "user-data");
    assert_eq!(cart.build.as_ref().unwrap().commands, ["a", "b"]);
    assert_eq!(cart.wisp.reuse, Some(Reuse { max_requests: 16, idle_timeout: Duration::from_millis(500) }));
    assert_eq!(
        cart.wisp.limits,
        Limits {
            memory_bytes: Some(67_108_864),
            request_timeout: Some(Duration::from_secs(30)),
            max_concurrent_requests: Some(8),
            ..Limits::default()
        }
    );
    assert_eq!(app.components["auth"].wisp.reuse, Some(Reuse::default()));
    let dependencies: Vec<String> = cart.dependencies.keys().map(ToString::to_string).collect();
    let expected = ["example:math/add@1.0.0", "example:text", "plain", "example:url/x", "example:own/y"];
    assert_eq!(dependencies, expected);
    assert!(matches!(app.components["packaged"].source, Source::Registry(_)));
}

#[test]
fn profiles_replace_and_merge() {
    let app = parse(&seed("manifest/full.toml"), Some("debug"));
    assert_eq!(app.profile.as_deref(), Some("debug"));
    let cart = &app.components["cart"];
    assert_eq!(cart.source, Source::Path("cart-debug.wasm".into()));
    assert_eq!(cart.environment["MODE"], "slow");
    let build = cart.build.as_ref().unwrap();
    assert_eq!(build.commands, ["c"]);
    assert_eq!(build.workdir.as_deref(), Some(Path::new("cart")));
    assert_eq!(cart.dependencies.len(), 5);
    let replaced = cart.dependencies.iter().find(|(name, _)| name.to_string() == "example:text");
    let expected = DependencySource::Path("text.wasm".into());
    assert!(matches!(replaced, Some((_, Dependency { source, .. })) if *source == expected));
}

#[test]
fn version_one_means_the_same_in_version_two() {
    let app = parse(&seed("manifest/version-1.toml"), None);
    let (id, http) = app.http_triggers().next().unwrap();
    assert_eq!(id.as_str(), "my-component-http-trigger");
    let HttpRoute::Pattern(route) = &http.route else { panic!("a route") };
    assert_eq!(route.as_str(), "/api/x/...");
    let component = &app.components["my-component"];
    assert_eq!(component.variables["key"].source(), "{{ secret }}");
    let hosts: Vec<&str> = component.allowed_outbound_hosts.iter().map(|host| host.source()).collect();
    let expected = [
        "redis://*:*",
        "mysql://*:*",
        "postgres://*:*",
        "http://*:*",
        "https://*:*",
        "http://example.com:8080",
        "https://example.com:8080",
    ];
    assert_eq!(hosts, expected);
    assert_eq!(component.build.as_ref().unwrap().commands, ["make"]);

    // The version may also be called as it was at first.
    let text = "spin_version = \"1\"\nname = \"n\"\nversion = \"1\"\n\
                trigger = { type = \"redis\", address = \"redis://localhost\" }\n\
                [[component]]\nid = \"a\"\nsource = \"a.wasm\"\ntrigger = { channel = \"c\" }\n";
    let app = parse(text, None);
    assert!(matches!(&app.triggers[0].kind, TriggerKind::Redis(redis)
        if redis.address.source() == "redis://localhost" && redis.channel.source() == "c"));
}

#[test]
fn names_are_made_for_triggers_and_components_without_one() {
    let app = minimal(
        r#"
        [[trigger.http]]
        route = "/1"
        component = "a"
        [[trigger.http]]
        route = "/2"
        component = "a"
        [[trigger.http]]
        id = "http-trigger2"
        route = "/3"
        component = { source = "b.wasm" }
        [[trigger.http]]
        route = "/4"
        component = { source = "c.wasm" }
        [component.a]
        source = "a.wasm"
        [component.http-trigger2-component]
        source = "d.wasm"
        "#,
    );
    let made: Vec<(&str, &str)> = app
        .triggers
        .iter()
        .map(|trigger| (trigger.id.as_str(), trigger.kind.components()[0].as_str()))
        .collect();
    let expected = [
        ("a-http-trigger", "a"),
        ("http-trigger1", "a"),
        ("http-trigger2", "inline-component1"),
        ("http-trigger3", "http-trigger3-component"),
    ];
    assert_eq!(made, expected);
}

#[test]
fn executors_and_reuse_have_defaults() {
    let app = minimal(
        r#"
        [[trigger.http]]
        route = "/1"
        component = "a"
        executor = { type = "spin" }
        [[trigger.http]]
        route = "/2"
        component = "b"
        executor = { type = "wagi" }
        [component.a]
        source = "a.wasm"
        tool.wisp.reuse = false
        tool.wisp.spin_headers = false
        [component.b]
        source = "b.wasm"
        tool.wisp.reuse = { max_requests = 3 }
        "#,
    );
    let executors: Vec<&Executor> = app
        .http_triggers()
        .filter_map(|(_, http)| match &http.target {
            HttpTarget::Component { executor, .. } => Some(executor),
            HttpTarget::Static(_) => None,
        })
        .collect();
    assert_eq!(executors[0], &Executor::Http);
    assert!(matches!(executors[1], Executor::Wagi(wagi) if wagi.argv == "${SCRIPT_NAME} ${ARGS}"));
    assert_eq!(app.components["a"].wisp.reuse, None);
    assert!(app.components["a"].wisp.omits_spin_headers && !app.components["b"].wisp.omits_spin_headers);
    assert_eq!(
        app.components["b"].wisp.reuse,
        Some(Reuse { max_requests: 3, idle_timeout: Reuse::DEFAULT_IDLE_TIMEOUT })
    );
}

#[test]
fn a_component_alone_is_an_app() {
    let app = App::for_component_file(Path::new("target/my_app.wasm"));
    assert_eq!(&*app.name, "my-app");
    assert_eq!(app.directory, PathBuf::from("target"));
    let component = app.components_for("http")[0];
    assert_eq!(component.source, Source::Path("my_app.wasm".into()));
    let app = App::for_component_file(Path::new("12.wasm"));
    assert_eq!((&*app.name, app.directory.as_path()), ("main", Path::new(".")));
}

#[test]
fn runtime_configuration() {
    let text = seed("runtime_config/full.toml");
    let checked = RuntimeConfig::parse(Path::new("conf/runtime-config.toml"), &text).unwrap();
    // The deprecated key is in it.
    assert_eq!(checked.warnings.iter().count(), 1);
    let config = checked.value;
    assert_eq!(config.directory, Path::new("conf"));
    assert_eq!(config.state_directory, Directory::Path(".state".into()));
    assert_eq!(config.log_directory, Directory::None);
    assert_eq!(config.max_instance_memory_bytes, Some(134_217_728));
    assert_eq!(config.key_value_stores.len(), 4);
    let KeyValueBackend::Redis { url } = &config.key_value_stores["cache"] else { panic!("a redis store") };
    assert_eq!(url.reveal(), "redis://user:password@localhost:6379");
    assert!(matches!(
        config.sqlite_databases["default"],
        SqliteBackend::Embedded { path: None, allow_attach_file: true }
    ));
    let kinds: Vec<&str> = config
        .variables_providers
        .iter()
        .map(|provider| match provider {
            VariablesProvider::Static { .. } => "static",
            VariablesProvider::Environment { .. } => "env",
            VariablesProvider::Vault { .. } => "vault",
            VariablesProvider::AzureKeyVault { .. } => "azure_key_vault",
        })
        .collect();
    assert_eq!(kinds, ["static", "env", "vault", "azure_key_vault"]);
    assert!(!config.outbound_http.connection_pooling);
    assert_eq!(config.outbound_http.max_connections_count, Some(10));
    assert!(config.outbound_networking.blocked_networks.blocks("1.2.3.4".parse().unwrap()));
    assert_eq!(config.outbound_networking.max_total_connections_count, Some(40));
    assert_eq!(config.client_tls[0].hosts, ["example.com", "*.example.org"]);
    let debug = format!("{config:?}");
    assert!(!debug.contains("user:password"), "{debug}");
}

#[test]
fn runtime_configuration_pools_connections_unless_told_otherwise() {
    for text in ["", "[outbound_http]\nmax_connections = 3\n"] {
        let checked = RuntimeConfig::parse(Path::new("runtime-config.toml"), text).unwrap();
        assert!(checked.value.outbound_http.connection_pooling);
    }
}

/// Whatever is in a text, it is read or refused: never a panic, and a refusal
/// always has an error in it.
mod properties {
    use proptest::prelude::*;

    use super::*;

    fn toml_value() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("1".to_owned()),
            Just("true".to_owned()),
            Just("\"a\"".to_owned()),
            Just("\"{{ a }}\"".to_owned()),
            Just("'http://a'".to_owned()),
            Just("\"\"\"\n{{\"\"\"".to_owned()),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            let keys = "source|component|route|private|id|type|url|path|limits|reuse|a|wisp";
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3)
                    .prop_map(|items| format!("[{}]", items.join(", "))),
                prop::collection::btree_map(keys, inner, 0..3).prop_map(|entries| {
                    let entries: Vec<String> =
                        entries.iter().map(|(key, value)| format!("{key} = {value}")).collect();
                    format!("{{ {} }}", entries.join(", "))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn manifests(
            version in prop_oneof![Just("2"), Just("1"), Just("\"1\"")],
            entries in prop::collection::btree_map(
                "(application|component\\.a|component\\.b|trigger|variables)(\\.(name|source|http|tool|profile|dependencies|build|files|a|environment|allowed_outbound_hosts|redis|cron))?",
                toml_value(),
                0..8,
            ),
        ) {
            let mut text = format!("spin_manifest_version = {version}\n");
            for (key, value) in entries {
                text.push_str(&format!("{key} = {value}\n"));
            }
            match App::parse(Path::new("spin.toml"), &text, None) {
                Ok(checked) => prop_assert!(!checked.warnings.has_errors()),
                Err(problems) => {
                    prop_assert!(problems.has_errors());
                    prop_assert!(problems.render(false, 60).contains("error[WISP-E01"));
                }
            }
        }
    }
}
