//! Components made of components: dependencies and middleware, in other languages than
//! what they serve, and what they may reach.

use std::{fs, path::Path};

use serde_json::Value;

use crate::harness::{App, Apps, Cloud, Running, START_LIMIT, finish, guest, have, wisp};

/// An app in JavaScript whose dependency in Rust asks for everything. `inherit` is a key
/// of the dependency.
fn asking(inherit: &str) -> App {
    App::new(&format!(
        "spin_manifest_version = 2\n\
         [application]\n\
         name = \"asking\"\n\
         [variables]\n\
         greeting = {{ default = \"good morning\" }}\n\
         [[trigger.http]]\n\
         route = \"/...\"\n\
         component = \"js-asks\"\n\
         [component.js-asks]\n\
         source = \"{{js-asks}}\"\n\
         environment = {{ COLOR = \"green\" }}\n\
         variables = {{ greeting = \"{{{{ greeting }}}}\" }}\n\
         key_value_stores = [\"default\"]\n\
         sqlite_databases = [\"default\"]\n\
         ai_models = [\"llama2-chat\"]\n\
         allowed_outbound_hosts = [\"*://*:*\"]\n\
         files = [{{ source = \"assets\", destination = \"/\" }}]\n\
         [component.js-asks.dependencies]\n\
         \"wisp:composed/asker\" = {{ path = \"{{asker}}\"{inherit} }}\n"
    ))
    .file("assets/note.txt", "a note")
}

/// What can be asked for, and the permission that it takes.
const QUESTIONS: [(&str, &str); 13] = [
    ("key-value", "key_value_stores"),
    ("sqlite", "sqlite_databases"),
    ("variables", "variables"),
    ("llm", "ai_models"),
    ("http", "allowed_outbound_hosts"),
    ("redis", "allowed_outbound_hosts"),
    ("postgres", "allowed_outbound_hosts"),
    ("mysql", "allowed_outbound_hosts"),
    ("mqtt", "allowed_outbound_hosts"),
    ("tcp", "allowed_outbound_hosts"),
    ("udp", "allowed_outbound_hosts"),
    ("environment", "environment"),
    ("files", "files"),
];

fn ask(running: &Running, what: &str) -> String {
    let answer = running.get(&format!("/ask?what={what}"));
    assert_eq!(answer.status, 200, "{what}");
    answer.text()
}

/// Whether an answer says that access is denied, in the words of its interface.
fn is_denied(what: &str, answer: &str) -> bool {
    match what {
        "key-value" | "sqlite" => answer == "error: Error::AccessDenied",
        "http" => answer == "error: ErrorCode::HttpRequestDenied",
        "tcp" | "udp" => answer == "error: PermissionDenied",
        // There is no error for these: what is not there is not there.
        "environment" => answer == "error: NotPresent",
        "files" => answer.starts_with("error: "),
        _ => answer.contains("access denied: this component does not inherit"),
    }
}

#[test]
fn what_is_not_inherited_is_denied_and_nothing_else() {
    if !have(&["js-asks", "asker"]) {
        return;
    }
    // The same guests, but for what they inherit: so a denial is the adapter's.
    let all = asking(", inherit_configuration = true").start();
    let with_all: Vec<String> = QUESTIONS.iter().map(|(what, _)| ask(&all, what)).collect();
    for ((what, _), answer) in QUESTIONS.iter().zip(&with_all) {
        assert!(!is_denied(what, answer), "{what}: {answer}");
    }
    for (what, answer) in [
        ("key-value", "ok: ()"),
        ("sqlite", "ok: ()"),
        ("variables", "ok: \"good morning\""),
        ("http", "ok: ()"),
        ("udp", "ok: ()"),
        ("environment", "ok: \"green\""),
        ("files", "ok: \"a note\""),
        ("clock", "ok: true"),
    ] {
        assert_eq!(ask(&all, what), answer, "{what}");
    }
    drop(all);

    for inherit in ["", ", inherit_configuration = false"] {
        let none = asking(inherit).start();
        for (what, _) in QUESTIONS {
            let answer = ask(&none, what);
            assert!(is_denied(what, &answer), "{what}: {answer}");
        }
        assert_eq!(ask(&none, "clock"), "ok: true");
        // Names of hosts are looked up for nobody; here nobody is even asked.
        assert!(ask(&none, "dns").starts_with("error: "));
    }
}

#[test]
fn each_permission_opens_what_it_says() {
    if !have(&["js-asks", "asker"]) {
        return;
    }
    // One half, then the other: each is open once and closed once.
    for permissions in [
        &["ai_models", "environment", "key_value_stores"][..],
        &["allowed_outbound_hosts", "files", "sqlite_databases", "variables"],
    ] {
        let running = asking(&format!(", inherit_configuration = {permissions:?}")).start();
        for (what, needed) in QUESTIONS {
            let answer = ask(&running, what);
            let is_open = permissions.contains(&needed);
            assert_eq!(is_denied(what, &answer), !is_open, "{permissions:?}: {what}: {answer}");
        }
    }
}

#[test]
fn instances_of_dependencies_are_as_new_for_every_request() {
    if !have(&["js-asks", "asker"]) {
        return;
    }
    let running = asking("").start();
    for _ in 0..5 {
        assert_eq!(running.get("/count").text(), "1");
    }
}

/// An app with two gates in Rust in front of a component.
fn gated(component: &str, middleware: &str) -> App {
    App::new(&format!(
        "spin_manifest_version = 2\n\
         [application]\n\
         name = \"gated\"\n\
         [variables]\n\
         greeting = {{ default = \"good morning\" }}\n\
         [[trigger.http]]\n\
         route = \"/...\"\n\
         component = \"inner\"\n\
         dependencies.middleware = [{middleware}]\n\
         [[trigger.http]]\n\
         route = \"/open/...\"\n\
         component = \"inner\"\n\
         [component.inner]\n\
         source = \"{{{component}}}\"\n\
         environment = {{ COLOR = \"green\" }}\n\
         variables = {{ greeting = \"{{{{ greeting }}}}\" }}\n\
         key_value_stores = [\"default\"]\n\
         [component.gate]\n\
         source = \"{{gate}}\"\n"
    ))
}

#[test]
fn middleware_stands_in_front_of_a_component_in_another_language() {
    for component in ["python-sdk5", "rust-sdk7", "rust-sdk6"] {
        if !have(&[component, "gate"]) {
            continue;
        }
        let running = gated(component, "{ component = \"gate\" }, { path = \"{gate}\" }").start();
        let through = running.get("/");
        assert_eq!(through.status, 200, "{component}: {}", through.text());
        assert!(through.text().contains("Hello"), "{}", through.text());
        assert_eq!(through.headers_named("x-gate"), ["passed", "passed"], "{component}");
        // The body passes through, too.
        let echo = running.request("POST", "/echo", &[], b"as it was");
        assert_eq!(echo.text(), "as it was", "{component}");
        // The same component by another trigger, without middleware.
        let open = running.get("/open/");
        assert_eq!(open.headers_named("x-gate"), Vec::<&str>::new());
        assert!(running.stdout.text().contains("inner-v2"), "{}", running.stdout.text());
        // It may reach nothing of what the component may reach; every instance is new.
        for _ in 0..3 {
            let own = running.get("/gate");
            assert_eq!((own.header("x-color"), own.header("x-count")), (Some("none"), Some("1")));
        }
        if component == "python-sdk5" {
            let stored = running.get("/kv?key=one&value=two").json();
            assert_eq!(stored["ok"], "two", "the component itself keeps what it may reach");
        }
    }
}

#[test]
fn middleware_of_wasi_0_2_hands_requests_on() {
    for component in ["js", "rust-sdk5"] {
        if !have(&[component, "gate-p2"]) {
            continue;
        }
        let app = App::of(component, "").arguments(["--follow", component]);
        let text = fs::read_to_string(app.path("spin.toml")).unwrap();
        let gate = guest("gate-p2").unwrap();
        let middleware =
            format!("dependencies.middleware = [{{ path = \"{}\" }}]\n[component", gate.display());
        let running = app.file("spin.toml", text.replacen("[component", &middleware, 1)).start();
        assert!(running.get("/").expect().contains("Hello"), "{component}");
        running.stdout.wait_for_text("the gate saw /");
        let echo = running.request("POST", "/echo", &[], b"as it was");
        assert_eq!(echo.text(), "as it was", "{component}");
    }
}

#[test]
fn middleware_may_inherit() {
    if !have(&["rust-sdk7", "gate"]) {
        return;
    }
    let inherits = "{ component = \"gate\", inherit_configuration = [\"environment\"] }";
    let running = gated("rust-sdk7", inherits).start();
    assert_eq!(running.get("/gate").header("x-color"), Some("green"));
}

/// A component in Rust whose dependency is a whole handler, in another language.
fn handing_on(handler: &str, settings: &str) -> App {
    App::new(&format!(
        "spin_manifest_version = 2\n\
         [application]\n\
         name = \"handing-on\"\n\
         [variables]\n\
         greeting = {{ default = \"good morning\" }}\n\
         [[trigger.http]]\n\
         route = \"/...\"\n\
         component = \"outer\"\n\
         [component.outer]\n\
         source = \"{{gate}}\"\n\
         environment = {{ COLOR = \"green\" }}\n\
         variables = {{ greeting = \"{{{{ greeting }}}}\" }}\n\
         key_value_stores = [\"default\"]\n\
         sqlite_databases = [\"default\"]\n\
         allowed_outbound_hosts = [\"*://*:*\"]\n\
         {settings}\n\
         [component.outer.dependencies]\n\
         \"wasi:http/handler@0.3.0\" = {{ component = \"inner\" }}\n\
         [component.inner]\n\
         source = \"{{{handler}}}\"\n"
    ))
}

#[test]
fn a_dependency_in_python_is_denied_what_it_does_not_inherit() {
    if !have(&["python-sdk5", "gate"]) {
        return;
    }
    let variable = |settings: &str| {
        let running = handing_on("python-sdk5", settings).start();
        assert_eq!(running.get("/").headers_named("x-gate"), ["passed"]);
        running.get("/variable?name=greeting").json()
    };
    assert_eq!(variable("dependencies_inherit_configuration = true")["ok"], "good morning");
    let denied = variable("");
    assert!(denied["error"].as_str().unwrap().contains("access denied"), "{denied}");
}

#[test]
fn asynchronous_interfaces_are_denied_too() {
    if !have(&["rust-sdk7", "gate"]) {
        return;
    }
    let questions: [(&str, &[(&str, &str)]); 4] = [
        ("/kv/open", &[("store", "default")]),
        ("/sqlite", &[("db", "default"), ("sql", "select 1")]),
        ("/variable", &[("name", "greeting")]),
        ("/fetch", &[("url", "http://127.0.0.1:1/")]),
    ];
    let answers = |settings: &str| -> Vec<Value> {
        let running = handing_on("rust-sdk7", settings).start();
        questions
            .iter()
            .map(|(path, query)| running.get(&crate::harness::query(path, query)).json())
            .collect()
    };
    let inherited = answers("dependencies_inherit_configuration = true");
    for answer in &inherited[..3] {
        assert!(answer.get("ok").is_some(), "{answer}");
    }
    let denied = answers("");
    for (answer, words) in
        denied.iter().zip(["AccessDenied", "AccessDenied", "access denied", "HttpRequestDenied"])
    {
        let error = answer["error"].as_str().unwrap_or_else(|| panic!("{answer}"));
        assert!(
            error
                .replace(['-', '_', ' '], "")
                .to_lowercase()
                .contains(&words.replace(' ', "").to_lowercase()),
            "{error}"
        );
        assert!(!inherited.contains(answer), "{answer}");
    }
}

#[test]
fn what_cannot_be_composed_is_said_with_its_line() {
    if !have(&["js-asks", "asker", "gate", "rust-sdk5"]) {
        return;
    }
    let manifest = |more: &str| {
        App::new(&format!(
            "spin_manifest_version = 2\n\
             [application]\n\
             name = \"wrong\"\n\
             [[trigger.http]]\n\
             route = \"/...\"\n\
             component = \"a\"\n\
             {more}"
        ))
    };
    let source = "[component.a]\nsource = \"{js-asks}\"\n[component.a.dependencies]\n";
    for (more, code, words) in [
        (format!("{source}\"other:thing\" = {{ path = \"{{asker}}\" }}\n"), "WISP-E1302", "spin.toml:10: "),
        (format!("{source}\"wisp:composed\" = {{ path = \"{{gate}}\" }}\n"), "WISP-E1303", "spin.toml:10: "),
        (format!("{source}\"wisp:composed\" = {{ path = \"none.wasm\" }}\n"), "WISP-E1313", "none.wasm"),
        (
            "dependencies.middleware = [{ path = \"{gate}\" }]\n[component.a]\nsource = \"{rust-sdk5}\"\n"
                .to_owned(),
            "WISP-E1306",
            "spin.toml:7: ",
        ),
        (
            "dependencies.middleware = [{ path = \"{asker}\" }]\n[component.a]\nsource = \"{gate}\"\n"
                .to_owned(),
            "WISP-E1305",
            "spin.toml:7: ",
        ),
        (format!("{source}\"wisp:composed\" = {{ component = \"a\" }}\n"), "WISP-E1314", "depends on itself"),
    ] {
        let refused = manifest(&more).refused();
        assert!(refused.stderr.contains(code) && refused.stderr.contains(words), "{}", refused.stderr);
    }
}

#[test]
fn an_image_holds_what_was_composed_or_its_parts() {
    let (Some(main), Some(asker)) = (guest("js-asks"), guest("asker")) else { return };
    let folder = tempfile::Builder::new().prefix("wisp-suite-").tempdir().unwrap();
    let apps = Apps::new();
    let text = fs::read_to_string(asking("").path("spin.toml")).unwrap();
    let text = text.replace("files = [{ source = \"assets\", destination = \"/\" }]\n", "");
    let text =
        text.replace(main.to_str().unwrap(), "main.wasm").replace(asker.to_str().unwrap(), "asker.wasm");
    fs::copy(&main, folder.path().join("main.wasm")).unwrap();
    fs::copy(&asker, folder.path().join("asker.wasm")).unwrap();
    fs::write(folder.path().join("spin.toml"), text).unwrap();

    // As Spin packs an app that it does not compose: served as it is.
    let app = wisp_manifest::App::read(folder.path(), None).unwrap().value;
    let image = wisp_image::pack(&app, &wisp_image::PackOptions::default()).unwrap();
    let blobs = wisp_image::Blobs::open(&folder.path().join("blobs")).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        image.put(&blobs).await.unwrap();
        wisp_image::unpack(&blobs, &image.digest, &apps.path("versions").join("v1")).await.unwrap();
        // As a cloud unpacks it: composed at once.
        let folder = apps.path("versions").join("v2");
        let compose = wisp_node::composition::compose_folder;
        wisp_image::unpack_with(&blobs, &image.digest, &folder, compose).await.unwrap();
    });
    let lock =
        |version: &str| fs::read_to_string(apps.path("versions").join(version).join("spin.lock")).unwrap();
    assert!(lock("v1").contains("wisp:composed/asker") && !lock("v2").contains("wisp:composed/asker"));
    assert_eq!(fs::read_dir(apps.path("versions/v2/components")).unwrap().count(), 1);
    apps.link("parts.example", "v1");
    apps.link("whole.example", "v2");
    let serving = apps.serve(&[]);
    for host in ["parts.example", "whole.example"] {
        let answer = serving.get(host, "/ask?what=key-value");
        assert_eq!(answer.text(), "error: Error::AccessDenied", "{host}");
    }
}

#[test]
fn a_deploy_composes_first() {
    let (Some(main), Some(asker)) = (guest("js-asks"), guest("asker")) else { return };
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "team");
    let name = "asks";
    let manifest = format!(
        "spin_manifest_version = 2\n[application]\nname = \"asks\"\n[[trigger.http]]\nroute = \"/...\"\n\
         component = \"a\"\n[component.a]\nsource = \"{}\"\n[component.a.dependencies]\n\
         \"wisp:composed/asker\" = {{ path = \"{}\" }}\n",
        main.display(),
        asker.display(),
    );
    let folder = cloud.app(name, &manifest);
    person.deploy(&folder, &[]);
    let answer = running.get(&person.host(name), "/ask?what=redis");
    assert!(answer.text().contains("access denied"), "{}", answer.text());
}

#[test]
fn a_build_writes_down_what_dependencies_offer_and_checks_targets() {
    let (Some(main), Some(asker)) = (guest("js-asks"), guest("asker")) else { return };
    let folder = tempfile::Builder::new().prefix("wisp-suite-").tempdir().unwrap();
    let build = |targets: &str, more: &[&str]| {
        let text = format!(
            "spin_manifest_version = 2\n[application]\nname = \"asks\"\ntargets = [{targets}]\n\
             [[trigger.http]]\nroute = \"/...\"\ncomponent = \"a\"\n\
             [component.a]\nsource = \"own/a.wasm\"\n\
             [component.a.build]\ncommand = \"test -s spin-dependencies.wit && cp '{}' a.wasm\"\nworkdir = \"own\"\n\
             [component.a.dependencies]\n\"wisp:composed/asker\" = {{ path = \"{}\" }}\n",
            main.display(),
            asker.display(),
        );
        fs::create_dir_all(folder.path().join("own")).unwrap();
        fs::write(folder.path().join("spin.toml"), text).unwrap();
        let mut command = wisp();
        command.arg("build").args(more).current_dir(folder.path());
        command.env("WISP_CACHE_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("suite-cache"));
        finish(command)
    };
    let built = build("\"wisp\", \"spin-up:4.1\"", &[]);
    assert!(built.status.success(), "within {START_LIMIT:?}: {}", built.stderr);
    let wit = fs::read_to_string(folder.path().join("own/spin-dependencies.wit")).unwrap();
    for words in
        ["package root:component;", "import wisp:composed/asker@1.0.0;", "ask: func(what: string) -> string;"]
    {
        assert!(wit.contains(words), "{wit}");
    }
    assert!(!wit.contains("fermyon:spin"), "only what is offered: {wit}");

    fs::write(
        folder.path().join("mine.toml"),
        "[triggers.redis]\nworlds = [\"spin:up/redis-trigger@4.1.0\"]\n",
    )
    .unwrap();
    let refused = build("{ path = \"mine.toml\" }", &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refused.stderr.contains("WISP-E1311") && refused.stderr.contains("mine.toml"),
        "{}",
        refused.stderr
    );
    let skipped = build("{ path = \"mine.toml\" }", &["--skip-target-checks"]);
    assert!(skipped.status.success(), "{}", skipped.stderr);
}

#[test]
fn what_a_component_is_composed_of_is_shown() {
    if !have(&["js-asks", "asker", "python-sdk5", "gate"]) {
        return;
    }
    let app = App::new(
        "spin_manifest_version = 2\n\
         [application]\n\
         name = \"shown\"\n\
         [[trigger.http]]\n\
         route = \"/...\"\n\
         component = \"front\"\n\
         dependencies.middleware = [{ component = \"sign-in\" }, { path = \"{gate}\" }]\n\
         [component.front]\n\
         source = \"{python-sdk5}\"\n\
         [component.js-asks]\n\
         source = \"{js-asks}\"\n\
         [component.js-asks.dependencies]\n\
         \"wisp:composed/asker\" = { path = \"{asker}\", inherit_configuration = [\"key_value_stores\", \"files\"] }\n\
         [component.sign-in]\n\
         source = \"{gate}\"\n",
    );
    let inspected = |arguments: &[&str]| {
        let mut command = wisp();
        command.args(["inspect", "--no-compile"]).args(arguments).current_dir(app.path(""));
        command.env("HOME", app.path("")).env("COLUMNS", "80");
        let finished = finish(command);
        assert!(finished.status.success(), "{}", finished.stderr);
        finished.stdout
    };
    let text = inspected(&[]);
    // Paths of guests are of this machine.
    let composed: Vec<&str> =
        text.lines().filter(|line| !line.contains(".wasm") && !line.starts_with("      from ")).collect();
    let composed = composed.join("\n");
    let expected = "  composed of\n    wisp:composed/asker\n      inherits  files, key_value_stores\n      \
                    denied    ai_models, allowed_outbound_hosts, environment,\n                \
                    sqlite_databases, variables\n";
    assert!(composed.contains(expected), "{composed}");
    let (_, behind) = text.split_once("  behind, for /...\n").unwrap();
    let (first, second) = behind.split_once("    middleware 2\n").unwrap();
    assert!(first.contains("      from      component `sign-in`\n"), "{behind}");
    assert!(first.contains("      inherits  nothing\n"), "{behind}");
    assert!(second.contains("gate.wasm\n"), "{behind}");

    let report: Value = serde_json::from_str(&inspected(&["--format", "json"])).unwrap();
    let of = |id: &str| {
        let components = report.as_array().unwrap();
        components.iter().find(|component| component["component"] == id).unwrap()
    };
    let dependency = &of("js-asks")["dependencies"][0];
    assert_eq!(dependency["imports"], "wisp:composed/asker");
    assert_eq!(dependency["from"], "file");
    assert_eq!(dependency["inherits"], serde_json::json!(["files", "key_value_stores"]));
    let chain = &of("front")["middleware"][0];
    assert_eq!((&chain["route"], &chain["layers"][0]["component"]), (&"/...".into(), &"sign-in".into()));
    assert_eq!(of("sign-in").get("dependencies"), None);
}

#[test]
fn composed_components_that_nobody_uses_are_removed() {
    if !have(&["js-asks", "asker"]) {
        return;
    }
    let app = asking("");
    let composed = app.path("cache/images/composed");
    fs::create_dir_all(&composed).unwrap();
    let of_age = |name: &str, days: u64| {
        let path = composed.join(name);
        fs::write(&path, name).unwrap();
        let age = std::time::Duration::from_secs(days * 24 * 60 * 60);
        fs::File::open(&path).unwrap().set_modified(std::time::SystemTime::now() - age).unwrap();
        path
    };
    let (old, young) = (of_age("old.wasm", 31), of_age("young.wasm", 29));
    // It is composed and packed, and there is nobody to push to.
    let mut push = wisp();
    push.args(["registry", "push", "localhost:9/a/b:1"]).current_dir(app.path(""));
    push.env("HOME", app.path("")).env("WISP_CACHE_DIR", app.path("cache"));
    let finished = finish(push);
    assert!(finished.stderr.contains("error[WISP-E0814]"), "{}", finished.stderr);
    assert!(!old.exists() && young.exists());
    assert_eq!(fs::read_dir(&composed).unwrap().count(), 2, "the young one, and what was composed");
}
