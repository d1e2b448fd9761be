//! Locked apps: what comes back is the app that went in, and what is wrong is refused.

#![allow(clippy::unwrap_used, clippy::panic, clippy::allow_attributes, reason = "tests")]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};
use wisp_manifest::locked::{ContentRef, LOCKED_FILE_NAME, LockedFile};
use wisp_manifest::{App, LockedApp};

fn parse(path: &Path, text: &str, profile: Option<&str>) -> App {
    match App::parse(path, text, profile) {
        Ok(checked) => checked.value,
        Err(problems) => panic!("{}", problems.render(false, 100)),
    }
}

/// Through JSON and back.
fn round_trip(app: &App) -> App {
    let path = app.directory.join(LOCKED_FILE_NAME);
    let json = LockedApp::new(app).to_json();
    let locked = LockedApp::parse(&path, &json).unwrap();
    assert_eq!(locked.to_json(), json, "reading and writing changes nothing");
    match locked.check(&path) {
        Ok(checked) => checked.value,
        Err(problems) => panic!("{}\n{}", problems.render(false, 100), String::from_utf8_lossy(&json)),
    }
}

/// An app as text. Tables that have no order are sorted.
fn shown(app: &App) -> String {
    let mut app = app.clone();
    // What it was read from says nothing about it.
    app.file = PathBuf::new();
    app.variables.sort_keys();
    app.trigger_settings.sort_keys();
    app.tools.sort_keys();
    for component in app.components.values_mut() {
        component.variables.sort_keys();
        component.environment.sort_keys();
        component.tools.sort_keys();
        component.dependencies.sort_by(|one, _, other, _| one.to_string().cmp(&other.to_string()));
    }
    for trigger in &mut app.triggers {
        if let wisp_manifest::model::TriggerKind::Http(http) = &mut trigger.kind
            && let wisp_manifest::model::HttpTarget::Static(response) = &mut http.target
        {
            response.headers.sort();
        }
    }
    // What only says that a type of trigger is used.
    app.trigger_settings.retain(|_, settings| !settings.is_empty());
    format!("{app:#?}")
}

/// All manifests of the repository.
fn manifests() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found =
        vec![root.join("fuzz/seeds/manifest/full.toml"), root.join("fuzz/seeds/manifest/version-1.toml")];
    for folder in ["examples", "guests"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let manifest = entry.unwrap().path().join("spin.toml");
            found.extend(manifest.exists().then_some(manifest));
        }
    }
    found.sort();
    found
}

#[test]
fn every_manifest_of_the_repository_comes_back() {
    let manifests = manifests();
    assert!(manifests.len() > 5, "{manifests:?}");
    for path in manifests {
        let text = std::fs::read_to_string(&path).unwrap();
        let app = parse(&path, &text, None);
        assert_eq!(shown(&round_trip(&app)), shown(&app), "{}", path.display());
    }
}

#[test]
fn a_profile_is_remembered_and_not_applied_again() {
    let path = manifests().into_iter().find(|path| path.ends_with("full.toml")).unwrap();
    let app = parse(&path, &std::fs::read_to_string(&path).unwrap(), Some("debug"));
    let back = round_trip(&app);
    assert_eq!(back.profile.as_deref(), Some("debug"));
    assert_eq!(shown(&back), shown(&app));
}

#[test]
fn the_form_is_that_of_spin() {
    let text = r#"
        spin_manifest_version = 2
        [application]
        name = "shop"
        version = "1.0"
        [variables]
        key = { required = true, secret = true }
        [[trigger.http]]
        route = "/..."
        component = "a"
        [component.a]
        source = "a.wasm"
        environment = { MODE = "fast" }
        variables = { key = "{{ key }}" }
        allowed_outbound_hosts = ["http://b.spin.internal"]
        key_value_stores = ["default"]
        sqlite_databases = ["default"]
        [component.a.tool.wisp]
        reuse = true
        spin_headers = false
        [[trigger.http]]
        route = "/b"
        component = "b"
        [component.b]
        source = "b.wasm"
    "#;
    let locked = LockedApp::new(&parse(Path::new("spin.toml"), text, None));
    let json: Value = serde_json::from_slice(&locked.to_json()).unwrap();
    let expected = json!({
        "spin_lock_version": 1,
        "must_understand": ["component_host_requirements"],
        "metadata": { "name": "shop", "version": "1.0", "triggers": { "http": {} } },
        "variables": { "key": { "secret": true } },
        "triggers": [
            {
                "id": "a-http-trigger",
                "trigger_type": "http",
                "trigger_config": { "component": "a", "executor": { "type": "http" }, "route": "/..." },
            },
            {
                "id": "b-http-trigger",
                "trigger_type": "http",
                "trigger_config": { "component": "b", "executor": { "type": "http" }, "route": "/b" },
            },
        ],
        "components": [
            {
                "id": "a",
                "metadata": {
                    "allowed_outbound_hosts": ["http://b.spin.internal"],
                    "key_value_stores": ["default"],
                    "databases": ["default"],
                    "wisp": {
                        "settings": {
                            "reuse": { "max_requests": 128, "idle_timeout": "1s" },
                            "spin_headers": false,
                        }
                    },
                },
                "source": { "content_type": "application/wasm", "source": "a.wasm" },
                "env": { "MODE": "fast" },
                "config": { "key": "{{ key }}" },
                "host_requirements": { "local_service_chaining": "required" },
            },
            { "id": "b", "source": { "content_type": "application/wasm", "source": "b.wasm" } },
        ],
    });
    assert_eq!(json, expected);
}

#[test]
fn what_spin_writes_is_read() {
    // With nulls, an unknown key, and a single trigger's settings as they used to be.
    let json = json!({
        "spin_lock_version": 0,
        "metadata": {
            "name": "shop",
            "origin": "file:///somewhere/spin.toml",
            "trigger": { "type": "redis", "address": "redis://localhost" },
        },
        "future": true,
        "triggers": [
            {
                "id": "one",
                "trigger_type": "redis",
                "trigger_config": { "channel": "c", "component": "a", "address": null },
            },
            {
                "id": "two",
                "trigger_type": "http",
                "trigger_config": { "route": { "private": true }, "component": "a", "executor": null },
            },
        ],
        "components": [{
            "id": "a",
            "metadata": {
                "description": null,
                "allowed_http_hosts": [],
                "build": { "command": "make", "workdir": null, "watch": [], "future": {} },
            },
            "source": { "content_type": "application/wasm", "source": "file:///apps/a%20b.wasm" },
            "files": [{ "source": "file:///apps/assets", "path": "/" }],
            "dependencies": {
                "test:math/add": {
                    "source": { "content_type": "application/wasm", "source": "add.wasm" },
                    "export": null,
                    "inherit": { "Some": ["environment"] },
                },
            },
            "host_requirements": { "something": "optional" },
        }],
    });
    let path = Path::new("x/spin.lock");
    let app = LockedApp::parse(path, json.to_string().as_bytes()).unwrap().check(path).unwrap().value;
    let component = &app.components["a"];
    assert_eq!(component.source, wisp_manifest::model::Source::Path("/apps/a b.wasm".into()));
    assert_eq!(component.files.len(), 1);
    assert_eq!(component.build.as_ref().unwrap().commands, ["make"]);
    assert_eq!(component.dependencies.len(), 1);
    assert_eq!(app.triggers.len(), 2);
    assert_eq!(app.directory, Path::new("x"));
}

#[test]
fn content_by_digest_is_found_by_its_digest() {
    let app = parse(
        Path::new("spin.toml"),
        "spin_manifest_version = 2\napplication.name = \"a\"\n\
         [[trigger.http]]\nroute = \"/...\"\ncomponent = \"a\"\n\
         [component.a]\nsource = \"a.wasm\"\nfiles = [\"*.txt\"]\nexclude_files = [\"b.txt\"]\n",
        None,
    );
    let digest = format!("sha256:{}", "0".repeat(64));
    let mut locked = LockedApp::new(&app);
    let content = ContentRef { digest: Some(digest.clone()), ..ContentRef::default() };
    locked.components[0].source.content = content.clone();
    let inline = ContentRef { inline: Some(b"short".to_vec()), ..content };
    locked.components[0].set_files(vec![LockedFile { content: inline, path: "a.txt".into() }]);
    let json: Value = serde_json::from_slice(&locked.to_json()).unwrap();
    assert_eq!(
        json["components"][0],
        json!({
            "id": "a",
            "source": { "content_type": "application/wasm", "digest": digest },
            "files": [{ "inline": "c2hvcnQ", "digest": digest, "path": "a.txt" }],
        })
    );
    let app = locked.check(Path::new("spin.lock")).unwrap().value;
    assert_eq!(app.components["a"].source, wisp_manifest::model::Source::Path(digest.into()));
    assert!(app.components["a"].exclude_files.is_empty());
}

/// A locked app that is fine but for what is put in it.
fn with(pointer: &str, value: Value) -> Value {
    let mut json = json!({
        "spin_lock_version": 1,
        "must_understand": [],
        "metadata": { "name": "a", "wisp": {} },
        "host_requirements": {},
        "variables": {},
        "triggers": [
            { "id": "t", "trigger_type": "http", "trigger_config": { "route": "/", "component": "a" } },
        ],
        "components": [{
            "id": "a",
            "metadata": { "wisp": {} },
            "source": { "content_type": "application/wasm", "source": "a.wasm" },
            "files": [{ "path": "/", "source": "files" }],
            "trigger_dependencies": {},
            "host_requirements": {},
        }],
    });
    *json.pointer_mut(pointer).unwrap() = value;
    json
}

#[test]
fn middleware_is_found_at_a_trigger_and_at_its_component() {
    let dependency = json!({
        "source": { "content_type": "application/wasm", "source": "b.wasm" },
        "inherit": { "Some": ["variables"] },
    });
    let roles = json!({ "middleware": [dependency] });
    for pointer in ["/components/0/trigger_dependencies", "/triggers/0"] {
        let mut json = with("/components/0/trigger_dependencies", json!({}));
        match json.pointer_mut(pointer).unwrap() {
            Value::Object(trigger) if pointer == "/triggers/0" => {
                trigger.insert("trigger_dependencies".to_owned(), roles.clone());
            }
            value => *value = roles.clone(),
        }
        let path = Path::new("spin.lock");
        let app = LockedApp::parse(path, json.to_string().as_bytes()).unwrap().check(path).unwrap().value;
        let (_, http) = app.http_triggers().next().unwrap();
        let [middleware] = http.middleware.as_slice() else { panic!("one, with {pointer}") };
        assert_eq!(
            middleware.source,
            wisp_manifest::model::DependencySource::Path("b.wasm".into()),
            "{pointer}"
        );
    }
}

#[test]
fn what_is_wrong_is_refused_with_a_code() {
    for (pointer, value, code) in [
        ("/spin_lock_version", json!(2), "WISP-E0125"),
        ("/spin_lock_version", json!("1"), "WISP-E0101"),
        ("/must_understand", json!(["host_requirements", "quantum_state"]), "WISP-E0125"),
        ("/host_requirements", json!({ "quantum_state": "required" }), "WISP-E0125"),
        ("/components/0/host_requirements", json!({ "quantum_state": "required" }), "WISP-E0125"),
        ("/components", json!({}), "WISP-E0101"),
        ("/components/0/id", json!("Not-kebab_case"), "WISP-E0107"),
        ("/components/0/source", json!({ "content_type": "application/wasm" }), "WISP-E0106"),
        ("/components/0/source/source", json!("ftp://a/b"), "WISP-E0106"),
        ("/components/0/source/source", json!("component:a"), "WISP-E0106"),
        ("/components/0/source/source", json!("https://a.example/b.wasm"), "WISP-E0106"),
        ("/components/0/source/source", json!(""), "WISP-E0106"),
        ("/components/0/files/0/path", json!("/../up"), "WISP-E0106"),
        ("/components/0/files/0/source", json!("package:a:b@1.0.0"), "WISP-E0106"),
        ("/components/0/metadata/wisp", json!({ "settings": { "reus": true } }), "WISP-E0102"),
        ("/metadata", json!({}), "WISP-E0103"),
        ("/metadata/name", json!(3), "WISP-E0104"),
        ("/metadata/wisp", json!({ "settings": { "limits": { "memory_bytes": -1 } } }), "WISP-E0106"),
        ("/triggers/0/trigger_config", json!([]), "WISP-E0106"),
        ("/triggers/0/trigger_config/component", json!("b"), "WISP-E0109"),
        ("/triggers/0/trigger_config/route", json!("/a/.../b"), "WISP-E0113"),
        ("/variables", json!({ "Bad": {} }), "WISP-E0107"),
    ] {
        let json = with(pointer, value.clone()).to_string();
        let path = Path::new("spin.lock");
        let checked = LockedApp::parse(path, json.as_bytes()).and_then(|locked| locked.check(path));
        let Err(problems) = checked else { panic!("{pointer} = {value} is taken") };
        let codes: Vec<&str> = problems.iter().map(|problem| problem.code()).collect();
        assert!(codes.contains(&code), "{pointer} = {value}: {codes:?}\n{}", problems.render(false, 100));
        // There is no text to point into.
        assert!(!problems.render(false, 100).contains("-->"), "{}", problems.render(false, 100));
    }
    for json in ["", "[]", "{", "null", "\u{0}", "{\"spin_lock_version\":1}"] {
        let problems = LockedApp::parse(Path::new("spin.lock"), json.as_bytes()).unwrap_err();
        assert_eq!(problems.iter().next().unwrap().code(), "WISP-E0101");
    }
}

#[test]
fn a_locked_app_with_everything_in_it_is_read_and_comes_back() {
    let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/locked/full.json");
    let path = Path::new("spin.lock");
    let app = LockedApp::parse(path, &std::fs::read(seed).unwrap()).unwrap().check(path);
    let app = app.unwrap_or_else(|problems| panic!("{}", problems.render(false, 100))).value;
    assert_eq!(app.components.len(), 2);
    assert_eq!(app.triggers.len(), 5);
    assert_eq!(app.wisp.probe.as_deref(), Some("/health"));
    let mut back = round_trip(&app);
    back.directory = app.directory.clone();
    assert_eq!(shown(&back), shown(&app));
}

#[test]
fn a_folder_with_a_locked_app_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(LOCKED_FILE_NAME);
    std::fs::write(&path, with("/metadata/name", json!("from the lock")).to_string()).unwrap();
    assert_eq!(&*App::read(folder.path(), None).unwrap().value.name, "from the lock");
    assert_eq!(&*App::read_file(&path, None).unwrap().value.name, "from the lock");
    let problems = App::read(folder.path(), Some("debug")).unwrap_err();
    assert_eq!(problems.iter().next().unwrap().code(), "WISP-E0117");
    // A manifest is what people write, so it is what counts.
    std::fs::write(
        folder.path().join("spin.toml"),
        "spin_manifest_version = 2\napplication.name = \"from the manifest\"\n",
    )
    .unwrap();
    assert_eq!(&*App::read(folder.path(), None).unwrap().value.name, "from the manifest");
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,12}", Just("\"\\\u{7f}\n\t\u{0}'''".to_owned()), Just("a: b #{{".to_owned())]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any_text(), inner, 0..4)
                .prop_map(|entries| entries.into_iter().collect()),
        ]
    })
}

proptest! {
    /// Whatever stands in a free text comes back, whatever it looks like in TOML.
    #[test]
    fn texts_come_back(name in any_text(), value in any_text(), description in any_text()) {
        let json = json!({
            "spin_lock_version": 0,
            "metadata": { "name": name, "description": description },
            "variables": { "v": { "default": value, "description": description } },
            "triggers": [],
            "components": [{
                "id": "a",
                "source": { "content_type": "application/wasm", "source": "a.wasm" },
                "env": { "A": value.replace('\0', "") },
            }],
        });
        let path = Path::new("spin.lock");
        let app = LockedApp::parse(path, json.to_string().as_bytes()).unwrap().check(path).unwrap().value;
        prop_assert_eq!(&*app.name, name.as_str());
        prop_assert_eq!(app.description.as_deref(), Some(description.as_str()));
        prop_assert_eq!(app.variables["v"].default.as_deref(), Some(value.as_str()));
        prop_assert_eq!(&app.components["a"].environment["A"], &value.replace('\0', ""));
    }

    /// Settings of triggers and tools that nobody knows come back, but for nulls.
    #[test]
    fn free_tables_come_back(
        settings in prop::collection::btree_map("[a-z]{1,6}", any_text().prop_map(Value::from), 0..5)
    ) {
        let mut settings: serde_json::Map<String, Value> = settings.into_iter().collect();
        settings.remove("id");
        settings.insert("list".into(), json!([1, 2.5, true, { "deep": ["x"] }]));
        let json = json!({
            "spin_lock_version": 0,
            "metadata": { "name": "a", "wisp": { "tools": { "other": settings } } },
            "triggers": [{ "id": "t", "trigger_type": "cron job", "trigger_config": settings }],
            "components": [],
        });
        let path = Path::new("spin.lock");
        let app = LockedApp::parse(path, json.to_string().as_bytes()).unwrap().check(path);
        // `component` and `components` mean something.
        prop_assume!(!json["triggers"][0]["trigger_config"].as_object().unwrap().keys()
            .any(|key| key.starts_with("component")));
        let app = app.unwrap().value;
        prop_assert_eq!(&app.tools["other"], &settings);
        let wisp_manifest::model::TriggerKind::Other(other) = &app.triggers[0].kind else { panic!() };
        prop_assert_eq!(&other.table, &settings);
    }

    /// Nothing makes it panic, and what is refused says why.
    #[test]
    fn anything_is_read_or_refused(
        value in any_json(),
        pointer in prop::sample::select(vec![
            "/metadata", "/host_requirements", "/variables", "/triggers/0/trigger_config", "/triggers/0/id",
            "/triggers/0/trigger_type", "/components/0/metadata", "/components/0/metadata/wisp",
            "/components/0/source/source", "/components/0/files/0", "/components/0/id", "/metadata/wisp",
        ]),
    ) {
        let json = with(pointer, value).to_string();
        let path = Path::new("spin.lock");
        match LockedApp::parse(path, json.as_bytes()).and_then(|locked| locked.check(path)) {
            Ok(checked) => {
                prop_assert!(!checked.warnings.has_errors());
                // What was read can be said again.
                let again = LockedApp::new(&checked.value);
                prop_assert!(again.check(path).is_ok(), "{}", String::from_utf8_lossy(&again.to_json()));
            }
            Err(problems) => prop_assert!(problems.render(false, 80).contains("error[WISP-E01")),
        }
    }
}
