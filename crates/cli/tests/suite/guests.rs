//! Every guest is served unmodified, from its own folder.

use serde_json::{Value, json};

use crate::harness::{App, Running, guest, guests_dir};

/// A copy of the folder that the guest's toolchain made.
fn app_folder(name: &str) -> App {
    let folder = guests_dir().join("apps").join(name);
    let manifest = std::fs::read_to_string(folder.join("spin.toml")).unwrap();
    let wasm = format!("{name}.wasm");
    let app = App::new(&manifest).file(&wasm, std::fs::read(folder.join(&wasm)).unwrap());
    assert_eq!(
        std::fs::read_to_string(app.path("spin.toml")).unwrap(),
        manifest,
        "the manifest is as it was"
    );
    app
}

fn serve(name: &str) -> Option<Running> {
    guest(name)?;
    let app = app_folder(name).start();
    let address = app.address();
    app.stdout.wait_for_text("(wildcard)");
    assert_eq!(
        app.stdout.text(),
        format!("Serving http://{address}\nAvailable Routes:\n  {name}: http://{address} (wildcard)\n")
    );
    Some(app)
}

/// A guest that greets and sends bodies back.
fn greets(name: &str, greeting: &str) {
    let Some(app) = serve(name) else { return };
    assert_eq!(app.get("/").expect(), greeting, "{name}");
    let echoed = app.request("POST", "/echo", &[("content-type", "text/plain")], b"what a guest is told");
    assert_eq!(echoed.expect(), "what a guest is told", "{name}");
}

/// A guest that shows what it sees.
fn sees_requests(name: &str) {
    let Some(app) = serve(name) else { return };
    let seen = app.request("PUT", "/echo-request?a=b", &[("x-mine", "yes")], b"text").json();
    let uri = seen["uri"].as_str().unwrap();
    assert!(uri.ends_with("/echo-request?a=b"), "{name}: {uri}");
    let method = seen["method"].as_str().unwrap().to_uppercase();
    assert!(method.ends_with("PUT"), "{name}: {method}");
    let headers = match &seen["headers"] {
        Value::Object(headers) => headers.clone().into_iter().collect(),
        Value::Array(pairs) => pairs
            .iter()
            .map(|pair| (pair[0].as_str().unwrap().to_owned(), pair[1].clone()))
            .collect::<Vec<_>>(),
        other => panic!("{name}: {other}"),
    };
    for (header, value) in
        [("x-mine", "yes"), ("spin-matched-route", "/..."), ("spin-path-info", "/echo-request")]
    {
        assert!(headers.contains(&(header.to_owned(), json!(value))), "{name}: {header} in {headers:?}");
    }
}

#[test]
fn a_guest_may_do_without_the_headers_of_spin() {
    let name = "rust-sdk6";
    if guest(name).is_none() {
        return;
    }
    let app = App::of(name, &format!("[component.{name}.tool.wisp]\nspin_headers = false")).start();
    let sent = [("x-mine", "yes"), ("spin-client-addr", "1.2.3.4:5"), ("Spin-Else", "no")];
    let seen = app.request("GET", "/echo-request", &sent, b"").json();
    let names = seen["headers"].to_string();
    assert!(names.contains("x-mine") && !names.contains("spin-"), "{names}");
}

macro_rules! guests {
    ($($test:ident: $name:literal greets $greeting:literal;)*) => {
        $(
            #[test]
            fn $test() {
                greets($name, $greeting);
            }
        )*
    };
}

guests! {
    rust_sdk5: "rust-sdk5" greets "Hello from a probe\n";
    rust_sdk6: "rust-sdk6" greets "Hello from a probe\n";
    rust_sdk7: "rust-sdk7" greets "Hello from a probe\n";
    rust_v1_component: "rust-v1" greets "Hello from a probe\n";
    rust_v1_module: "rust-v1-module" greets "Hello from a probe\n";
    rust_wstd: "rust-wstd" greets "Hello from plain wasi:http, you asked for /\n";
    javascript: "js" greets "Hello, world!\n";
    python_sdk3: "python-sdk3" greets "Hello from Python, SDK 3\n";
    python_sdk4: "python-sdk4" greets "Hello from Python, SDK 4\n";
    python_sdk5: "python-sdk5" greets "Hello from Python, SDK 5\n";
}

#[test]
fn rust_hello_p2() {
    let Some(app) = serve("hello-p2") else { return };
    assert!(app.get("/").expect().to_lowercase().contains("hello"));
}

#[test]
fn rust_hello_p3() {
    let Some(app) = serve("hello-p3") else { return };
    assert!(app.get("/").expect().to_lowercase().contains("hello"));
}

#[test]
fn rust_wit() {
    let Some(app) = serve("rust-wit") else { return };
    assert_eq!(app.get("/").expect(), "Hello from a probe\n");
}

#[test]
fn requests_are_seen_by_each_language() {
    for name in
        ["js", "python-sdk3", "python-sdk4", "python-sdk5", "rust-sdk5", "rust-sdk6", "rust-sdk7", "rust-v1"]
    {
        sees_requests(name);
    }
}

#[test]
fn python_reaches_the_host() {
    for name in ["python-sdk3", "python-sdk4", "python-sdk5"] {
        let Some(app) = serve(name) else { continue };
        assert_eq!(app.ok("/kv", &[("key", "a"), ("value", "kept")]), "kept", "{name}");
        assert_eq!(app.ok("/variable", &[("name", "greeting")]), "good morning", "{name}");
        let undefined = app.error("/variable", &[("name", "no_such")]);
        assert!(undefined.contains("ndefined"), "{name}: {undefined}");
    }
}

#[test]
fn failing_scripts_answer_500() {
    for name in ["js", "python-sdk3", "python-sdk4", "python-sdk5"] {
        let Some(app) = serve(name) else { continue };
        assert_eq!(app.get("/trap").status, 500, "{name}");
        assert_eq!(app.get("/").status, 200, "{name}: it goes on");
    }
}

/// The variables that a CGI program of ours printed.
fn variable<'text>(text: &'text str, name: &str) -> Option<&'text str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

#[test]
fn commands_of_both_previews_run_as_wagi() {
    for name in ["rust-wagi-p1", "rust-wagi-p2"] {
        let Some(app) = serve(name) else { continue };
        let address = app.address();
        let response =
            app.request("POST", "/some/path?one=1&two=2", &[("x-mine", "yes"), ("proxy", "evil")], b"a body");
        assert_eq!(response.header("content-type"), Some("text/plain"), "{name}");
        assert_eq!(response.header("x-wagi"), Some("yes"), "{name}");
        let text = response.expect();
        for (variable_name, value) in [
            ("REQUEST_METHOD", "POST"),
            ("PATH_INFO", "/some/path"),
            ("QUERY_STRING", "one=1&two=2"),
            ("CONTENT_LENGTH", "6"),
            ("SERVER_NAME", "127.0.0.1"),
            ("SERVER_PORT", &address.port().to_string()),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("REMOTE_ADDR", "127.0.0.1"),
            ("HTTP_X_MINE", "yes"),
            ("HTTP_HOST", &address.to_string()),
            ("X_FULL_URL", &format!("http://{address}/some/path?one=1&two=2")),
            ("X_MATCHED_ROUTE", "/..."),
            ("COLOR", "green"),
        ] {
            assert_eq!(variable(&text, variable_name), Some(value), "{name}: {variable_name} in\n{text}");
        }
        assert_eq!(variable(&text, "HTTP_PROXY"), None, "{name}: a client cannot set a proxy");
        assert!(text.ends_with("body of 6 bytes: a body\n"), "{name}: {text}");
        assert!(text.contains("argument 1: one=1\nargument 2: two=2\n"), "{name}: {text}");

        let teapot = app.get("/?status=418");
        assert_eq!(teapot.status, 418, "{name}");
        assert_eq!(teapot.header("status"), None, "{name}: a CGI header is for the server");
        assert_eq!(app.get("/?trap").status, 500, "{name}: what was printed before a trap is no answer");
        assert_eq!(app.get("/?nothing").status, 500, "{name}");
        assert_eq!(app.get("/?exit=3").status, 200, "{name}: what was printed is the answer");
    }
}

#[test]
fn c_and_go_run_as_wagi() {
    for (name, greeting) in [("c-wagi", "Hello from C\n"), ("go-wagi", "Hello from Go\n")] {
        let Some(app) = serve(name) else { continue };
        let text = app.request("POST", "/there?x=1", &[], b"and this is the body").expect();
        assert!(text.starts_with(greeting), "{name}: {text}");
        assert!(text.contains("method: POST\npath: /there\nquery: x=1\n"), "{name}: {text}");
        assert!(text.ends_with("and this is the body"), "{name}: {text}");
        app.stderr.wait_for_text(&format!("[{name}] a line for the log"));
    }
}

#[test]
fn arguments_of_wagi_are_the_manifests() {
    if guest("rust-wagi-p2").is_none() {
        return;
    }
    let app = App::new(
        r#"
        spin_manifest_version = 2
        [application]
        name = "arguments"
        [[trigger.http]]
        route = "/cgi/..."
        component = "program"
        executor = { type = "wagi", argv = "test ${SCRIPT_NAME} ${ARGS} done" }
        [component.program]
        source = "{rust-wagi-p2}"
        "#,
    )
    .start();
    let text = app.get("/cgi/x?a=1&b=2").expect();
    let arguments: Vec<_> = text.lines().filter(|line| line.starts_with("argument ")).collect();
    assert_eq!(
        arguments,
        ["argument 0: test", "argument 1: /cgi", "argument 2: a=1", "argument 3: b=2", "argument 4: done"]
    );
}

#[test]
fn a_bare_component_is_an_app() {
    let Some(wasm) = guest("rust-wstd") else { return };
    let app = App::new("").arguments(["-f".into(), wasm.into_os_string()]).start();
    assert_eq!(app.get("/anything").expect(), "Hello from plain wasi:http, you asked for /anything\n");
}

#[test]
fn a_manifest_can_be_named_by_file_and_by_folder() {
    if guest("rust-wstd").is_none() {
        return;
    }
    for from in ["app", "app/spin.toml"] {
        let inner = std::fs::read_to_string(App::of("rust-wstd", "").path("spin.toml")).unwrap();
        let app = App::new("").file("app/spin.toml", inner).arguments(["--from", from]).start();
        assert_eq!(app.get("/").status, 200, "{from}");
    }
}

#[test]
fn a_manifest_of_version_1_is_served() {
    if guest("rust-v1").is_none() {
        return;
    }
    let app = App::new(
        r#"
        spin_manifest_version = "1"
        name = "old"
        version = "1.0.0"
        trigger = { type = "http", base = "/" }
        [variables]
        greeting = { default = "hi" }
        [[component]]
        id = "probe"
        source = "{rust-v1}"
        key_value_stores = ["default"]
        [component.trigger]
        route = "/old/..."
        [component.config]
        greeting = "{{ greeting }} there"
        "#,
    )
    .start();
    assert_eq!(app.ok("/old/variable", &[("name", "greeting")]), "hi there");
    assert_eq!(app.ok("/old/kv/set", &[("key", "k"), ("value", "v")]), true);
}

#[test]
fn routes_can_be_printed_as_json() {
    if guest("rust-wstd").is_none() {
        return;
    }
    let app = App::new(
        r#"
        spin_manifest_version = 2
        [application]
        name = "listed"
        [[trigger.http]]
        route = "/a/..."
        component = "hello"
        [[trigger.http]]
        route = "/b"
        component = "hello"
        [[trigger.http]]
        route = { private = true }
        component = "hidden"
        [component.hello]
        source = "{rust-wstd}"
        [component.hidden]
        source = "{rust-wstd}"
        "#,
    )
    .arguments(["--format", "json"])
    .start();
    let url = format!("http://{}", app.address());
    let printed: Value = serde_json::from_str(&app.stdout.text()).unwrap();
    let mut routes = printed["routes"].as_array().unwrap().clone();
    routes.sort_by_key(|route| route["route"].to_string());
    assert_eq!(printed["app"], "listed");
    assert_eq!(printed["url"], url);
    assert_eq!(
        Value::from(routes),
        json!([
            { "component": "hello", "route": "/a/...", "url": format!("{url}/a"), "wildcard": true },
            { "component": "hello", "route": "/b", "url": format!("{url}/b"), "wildcard": false },
        ])
    );
}

#[test]
fn one_component_of_several_can_be_served() {
    if guest("rust-wstd").is_none() {
        return;
    }
    let app = App::of_each(&["rust-wstd", "rust-sdk7"], "").arguments(["-c", "rust-wstd"]).start();
    assert_eq!(app.get("/rust-wstd/x").status, 200);
    assert_eq!(app.get("/rust-sdk7/").status, 404);
}
