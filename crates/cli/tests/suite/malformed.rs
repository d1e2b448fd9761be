//! What is malformed, and the message that it gets.
//!
//! Each test is a table of cases; the messages, all of them, are in `snapshots/`.
//! To accept a change of messages, run the tests with `INSTA_UPDATE=always` and
//! read the difference.

use std::{fmt::Write as _, fs, net::TcpListener};

use crate::harness::{App, Finished, guests_dir, have};

/// A manifest of one component, `hello`, whose code is `hello.wasm`.
const MANIFEST: &str = "spin_manifest_version = 2\n\
    [application]\n\
    name = \"hello\"\n\
    [[trigger.http]]\n\
    route = \"/...\"\n\
    component = \"hello\"\n\
    [component.hello]\n\
    source = \"hello.wasm\"\n";

/// Cases and their messages, as one text.
#[derive(Default)]
struct Table(String);

impl Table {
    /// Adds a case; paths that differ from run to run get names.
    fn add(&mut self, case: &str, app: &App, finished: &Finished) {
        let folder = fs::canonicalize(app.path("")).unwrap();
        let guests = guests_dir();
        // How long compiling took differs from run to run.
        let lines = finished.stderr.lines().filter(|line| !line.starts_with("info: compiled in "));
        let text = lines
            .collect::<Vec<_>>()
            .join("\n")
            .replace(&format!("{}/", folder.display()), "APP/")
            .replace(&folder.display().to_string(), "APP")
            .replace(&guests.display().to_string(), "GUESTS");
        assert_eq!(finished.stdout, "", "{case}: nothing is data");
        assert!(!text.contains("panicked"), "{case}: {text}");
        let code = finished.status.code().unwrap();
        writeln!(self.0, "# {case} (exit code {code})\n{}\n", text.trim_end()).unwrap();
    }

    fn refused(&mut self, case: &str, app: &App) {
        self.add(case, app, &app.refused());
    }
}

#[test]
fn manifests() {
    let mut table = Table::default();
    for (case, manifest) in [
        ("no TOML", "spin_manifest_version = 2\n[application\nname = \"a\"\n".to_owned()),
        ("empty", "\n".into()),
        ("no version", "[application]\nname = \"a\"\n".into()),
        ("a version that there is not", MANIFEST.replace("= 2", "= 7")),
        ("unknown keys", MANIFEST.replace("name =", "nmae = \"x\"\nname =").replace("source =", "sauce =")),
        ("a missing name", MANIFEST.replace("name = \"hello\"\n", "")),
        ("wrong types", MANIFEST.replace("\"/...\"", "7").replace("\"hello.wasm\"", "[1]")),
        ("a component that there is not", MANIFEST.replace("component = \"hello\"", "component = \"helo\"")),
        ("a name that is none", MANIFEST.replace("component.hello]", "component.Hello_World]")),
        ("routes that are none", MANIFEST.replace("\"/...\"", "\"/a/.../b\"")),
        ("a host that is none", format!("{MANIFEST}allowed_outbound_hosts = [\"example.com\", \"http://a/b\"]\n")),
        ("templates", format!("{MANIFEST}variables = {{ a = \"{{{{ b }}}}\", c = \"{{{{\" }}\n")),
        ("a variable with both", format!("{MANIFEST}[variables]\na = {{ default = \"1\", required = true }}\nb = {{}}\n")),
        (
            "a component and a response",
            MANIFEST.replace("component = \"hello\"\n", "component = \"hello\"\nstatic_response = {}\n"),
        ),
        ("many at once", "spin_manifest_version = 2\nx = 1\n[application]\n[[trigger.http]]\nroute = 1\n[component.A]\n".into()),
        ("no trigger", "spin_manifest_version = 2\n[application]\nname = \"a\"\n".into()),
        ("a trigger of another kind", "spin_manifest_version = 2\n[application]\nname = \"a\"\n[application.trigger.redis]\naddress = \"redis://localhost\"\n[[trigger.redis]]\nchannel = \"c\"\ncomponent = \"hello\"\n[component.hello]\nsource = \"hello.wasm\"\n".into()),
        ("a limit that is none", format!("{MANIFEST}[component.hello.tool.wisp]\nlimits = {{ request_timeout = \"soon\" }}\nreuse = {{ max_requests = 0 }}\n")),
    ] {
        table.refused(case, &App::new(&manifest));
    }
    insta::assert_snapshot!(table.0);
}

#[test]
fn places_of_manifests() {
    let mut table = Table::default();
    table.refused("no manifest", &App::new(""));
    table.refused("no such file", &App::new("").arguments(["-f", "nowhere/spin.toml"]));
    table.refused("no such component", &App::new("").arguments(["-f", "nowhere.wasm"]));
    table.refused("not UTF-8", &App::new("").file("spin.toml", b"name = \"\xff\"\n"));
    table.refused("no such profile", &App::new(MANIFEST).arguments(["--profile", "release"]));
    table.refused("no component of that name", &App::new(MANIFEST).arguments(["-c", "other"]));
    insta::assert_snapshot!(table.0);
}

/// A component in the text format.
fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[test]
fn components() {
    let mut table = Table::default();
    let two_handlers = component(
        r#"(component
            (instance $empty)
            (export "wasi:http/incoming-handler@0.2.0" (instance $empty))
            (export "fermyon:spin/inbound-http" (instance $empty)))"#,
    );
    let unknown_import = component(
        r#"(component
            (import "acme:rockets/launch@1.0.0" (instance (export "launch" (func))))
            (instance $empty)
            (export "wasi:http/incoming-handler@0.2.0" (instance $empty)))"#,
    );
    let wrong_type = component(
        r#"(component
            (import "wasi:cli/environment@0.2.0" (instance (export "get-environment" (func (result u64)))))
            (instance $empty)
            (export "wasi:http/incoming-handler@0.2.0" (instance $empty)))"#,
    );
    let empty_handler = component(
        r#"(component (instance $empty) (export "wasi:http/incoming-handler@0.2.0" (instance $empty)))"#,
    );
    let old_handler = component(
        r#"(component (instance $empty) (export "wasi:http/incoming-handler@0.2.0-rc-2023-11-10" (instance $empty)))"#,
    );
    let no_handler =
        component(r#"(component (instance $empty) (export "acme:rockets/pad" (instance $empty)))"#);
    let invalid = [&component("(module)")[..], &[10, 4, 1, 2, 0, 0]].concat();
    let cases: [(&str, &[u8]); 15] = [
        ("text", b"this is no program\n"),
        ("empty", b""),
        ("a page", b"<!DOCTYPE html><html>404 Not Found</html>"),
        ("a native program", b"\x7fELF\x02\x01\x01\0"),
        ("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ("WebAssembly text", b"(module)"),
        ("only the beginning", b"\0asm\x01\0\0\0\x01"),
        ("invalid", &invalid),
        (
            "a module with imports that nobody has",
            &component("(module (import \"env\" \"magic\" (func)) (func (export \"_start\")))"),
        ),
        ("two handlers", &two_handlers),
        ("an import that nobody has", &unknown_import),
        ("an import of another type", &wrong_type),
        ("a handler without a function", &empty_handler),
        ("a handler of 2023", &old_handler),
        ("no handler", &no_handler),
    ];
    for (case, bytes) in cases {
        table.refused(case, &App::new(MANIFEST).file("hello.wasm", bytes));
    }
    table.refused("a missing file", &App::new(MANIFEST));
    table.refused("a folder", &App::new(MANIFEST).file("hello.wasm/x", "y"));
    insta::assert_snapshot!(table.0);
}

#[test]
fn a_command_without_its_executor() {
    if !have(&["rust-wagi-p2"]) {
        return;
    }
    let mut table = Table::default();
    table.refused("a command without `executor`", &App::of("rust-wagi-p2", ""));
    insta::assert_snapshot!(table.0);
}

#[test]
fn several_errors_are_said_at_once() {
    let manifest = format!(
        "{MANIFEST}key_value_stores = [\"cache\"]\n\
         [[trigger.http]]\nroute = \"/other\"\ncomponent = \"other\"\n\
         [component.other]\nsource = \"other.wasm\"\n"
    );
    let mut table = Table::default();
    table.refused("two components", &App::new(&manifest).file("hello.wasm", "text").file("other.wasm", ""));
    insta::assert_snapshot!(table.0);
}

#[test]
fn runtime_configurations() {
    let mut table = Table::default();
    for (case, config) in [
        ("no TOML", "state_dir = \n"),
        ("unknown keys", "stat_dir = \"x\"\n[outbound_http]\npooling = true\n"),
        ("wrong types", "max_instance_memory = \"much\"\n"),
        ("a store of an unknown type", "[key_value_store.a]\ntype = \"paper\"\n"),
        (
            "a store that this version lacks",
            "[key_value_store.a]\ntype = \"redis\"\nurl = \"redis://localhost\"\n",
        ),
        (
            "a database that this version lacks",
            "[sqlite_database.a]\ntype = \"libsql\"\nurl = \"http://localhost\"\ntoken = \"t\"\n",
        ),
        (
            "a provider that this version lacks",
            "[[variables_provider]]\ntype = \"vault\"\nurl = \"http://localhost\"\ntoken = \"t\"\nmount = \"m\"\n",
        ),
        (
            "networks that are none",
            "[outbound_networking]\nblock_networks = [\"1.2.3.4/99\", \"everywhere\"]\n",
        ),
    ] {
        let app = App::new(MANIFEST)
            .file("hello.wasm", component("(component)"))
            .file("config.toml", config)
            .arguments(["--runtime-config-file", "config.toml"]);
        table.refused(case, &app);
    }
    table.refused("a missing file", &App::new(MANIFEST).arguments(["--runtime-config-file", "nowhere.toml"]));
    insta::assert_snapshot!(table.0);
}

#[test]
fn flags() {
    let mut table = Table::default();
    let cases: [(&str, &[&str]); 13] = [
        ("an address without a port", &["--listen", "127.0.0.1"]),
        ("a duration without a unit that there is", &["--request-timeout", "3 fortnights"]),
        ("a number out of bounds", &["--max-instances", "0"]),
        ("too small a buffer", &["--http1-max-buf-size", "100"]),
        ("an unknown format", &["--format", "xml"]),
        ("a certificate without a key", &["--tls-cert", "cert.pem"]),
        ("certificates that are none", &["--tls-cert", "junk.pem", "--tls-key", "junk.pem"]),
        ("certificates that are missing", &["--tls-cert", "nowhere.pem", "--tls-key", "nowhere.pem"]),
        ("a variable without a value", &["--variable", "name"]),
        ("a variable from a missing file", &["--variable", "@nowhere.toml"]),
        ("a pair that is none", &["--env", "NAME"]),
        ("flags that contradict", &["--quiet", "--follow", "hello"]),
        ("an unknown flag", &["--lissen", "127.0.0.1:0"]),
    ];
    for (case, arguments) in cases {
        let app = App::new(MANIFEST).file("junk.pem", "junk").file("hello.wasm", component("(component)"));
        table.refused(case, &app.arguments(arguments.iter().copied()));
    }
    insta::assert_snapshot!(table.0);
}

#[test]
fn a_port_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let manifest = "spin_manifest_version = 2\n[application]\nname = \"port\"\n\
                    [[trigger.http]]\nroute = \"/...\"\nstatic_response = {}\n";
    let listen = ["--listen".to_owned(), address.to_string()];
    let app = App::new(manifest).arguments(listen.clone());
    let refused = app.refused();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        refused.stderr,
        format!(
            "error[WISP-E0405]: cannot listen on {address}: Address already in use (os error 98)\n  \
             hint: another process listens there; choose another address with `--listen`, or use `--find-free-port`\n"
        )
    );
    let app = App::new(manifest).arguments(listen).arguments(["--find-free-port"]).start();
    assert!(app.address().port() > address.port(), "{}", app.address());
    assert_eq!(app.get("/").status, 200);
}

#[test]
fn a_clash_of_routes_is_a_warning() {
    let manifest = "spin_manifest_version = 2\n\
        [application]\n\
        name = \"clash\"\n\
        [[trigger.http]]\n\
        route = \"/same\"\n\
        static_response = { body = \"first\" }\n\
        [[trigger.http]]\n\
        route = \"/same/\"\n\
        static_response = { body = \"second\" }\n";
    let app = App::new(manifest).start();
    assert_eq!(app.get("/same").expect(), "second", "the last one wins");
    let folder = fs::canonicalize(app.path("")).unwrap();
    let stderr = app.stderr.clone();
    app.stop();
    let text = stderr.text_at_end().replace(&format!("{}/", folder.display()), "APP/");
    let (text, _stopping) = text.split_once("stopping;").unwrap();
    insta::assert_snapshot!(text);
}
