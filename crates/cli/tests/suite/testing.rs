//! `wisp test`: tests of apps, in files and in components, and that they can fail.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Instant,
};

use crate::{
    develop::{COPIED, Desk, clock_program, times_hidden, unwrapped},
    harness::{Output, Upstream, guests_dir, have},
};

/// `wisp test --watch`, which ends with this.
struct Watching {
    child: Child,
    stdout: Output,
    stderr: Output,
}

impl Watching {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = Output::of(child.stdout.take().unwrap());
        let stderr = Output::of(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It may have ended by itself, which its output tells.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A manifest of the guest `rust-sdk7`, with what its tests need.
fn probe_manifest(more: &str) -> String {
    let manifest = COPIED.replace("executor = { type = \"wagi\" }\n", "").replace(
        "source = \"copied.wasm\"\n",
        "source = \"copied.wasm\"\nkey_value_stores = [\"default\", \"other\"]\n\
         sqlite_databases = [\"default\"]\n\
         allowed_outbound_hosts = [\"https://api.example\", \"http://127.0.0.1:*\"]\n\
         variables = { greeting = \"{{ greeting }}\" }\n",
    );
    format!("{manifest}\n[variables]\ngreeting = {{ required = true, secret = true }}\n{more}")
}

/// A desk with an app of the guest `rust-sdk7`.
fn probe() -> Desk {
    let desk = Desk::new();
    desk.write("app/spin.toml", probe_manifest(""));
    fs::copy(guests_dir().join("rust-sdk7.wasm"), desk.path("app/copied.wasm")).unwrap();
    desk
}

/// Runs an app's tests, of which at least one fails; without what is different each time.
#[track_caller]
fn failing_tests(desk: &Desk, arguments: &[&str]) -> String {
    let arguments: Vec<_> = ["test"].iter().chain(arguments).copied().collect();
    times_hidden(&desk.refused("app", &arguments, 1))
}

#[test]
fn tests_catch_a_wrong_status_a_missing_header_and_a_wrong_body() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    desk.write("app/copied.wasm", clock_program("hello", "hello"));
    desk.write(
        "app/tests/answers.toml",
        r#"[[test]]
name = "all is well"
request = "GET /"
expect = { status = 200, headers = { content-type = "text/plain" }, body = "hello\n" }

[[test]]
name = "a wrong status"
request = "POST /orders"
expect = { status = 201 }

[[test]]
name = "a missing header"
request = "GET /"
expect = { headers = { cache-control = "no-store" } }

[[test]]
name = "a wrong body"
request = "GET /"
expect.body = { contains = "hullo" }

[[test]]
name = "no JSON"
request = "GET /"
expect.json = { "user.name" = "Ada" }
"#,
    );
    insta::assert_snapshot!(failing_tests(&desk, &["--jobs", "2"]));
    let passed = desk.done("app", &["test", "--filter", "all is well", "--junit", "results.xml"]);
    assert_eq!(passed.stdout, "ok    answers.toml: all is well\n");
    assert!(desk.read("app/results.xml").contains("tests=\"1\" failures=\"0\""));
    let report = desk.wisp("app", &["test", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!((&report["passed_count"], &report["failed_count"]), (&1.into(), &4.into()));
    assert_eq!(report["tests"][1]["failures"][0]["line"], 9);
    let listed = desk.done("app", &["test", "--list"]).stdout;
    assert!(listed.starts_with("answers.toml:1: all is well\n"), "{listed}");
}

#[test]
fn tests_catch_an_answer_that_depends_on_the_clock() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    // The bug: it is always day.
    desk.write("app/copied.wasm", clock_program("good day", "good day"));
    desk.write(
        "app/tests/hours.toml",
        r#"[[test]]
name = "at night"
clock = 2026-02-01T23:00:00Z
request = "GET /"
expect.body = "good night\n"

[[test]]
name = "by day, then at night"

[[test.step]]
request = "GET /"
expect.body = "good day\n"

[[test.step]]
wait = "20h"
request = "GET /"
expect.body = "good night\n"
"#,
    );
    insta::assert_snapshot!(failing_tests(&desk, &[]));
    desk.write("app/copied.wasm", clock_program("good day", "good night"));
    desk.done("app", &["test"]);
}

#[test]
fn tests_catch_calls_and_writes() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let desk = probe();
    let good = r#"[[test]]
name = "everything is as it should be"
variables = { greeting = "hello" }
key_values = { other = { count = "41" } }
sql = { default = ["CREATE TABLE visits (page TEXT, count INTEGER)"] }

[[test.outbound]]
request = "POST https://api.example/orders*"
expect = { body = "tea", headers = { x-from = "shop" } }
response = { status = 201, headers = { x-id = "7" }, body = "ordered" }
times = 1

[[test.step]]
request = "GET /fetch?url=https://api.example/orders?fast&method=POST&body=tea&header=x-from:shop"
expect.json = { "ok.status" = 201, "ok.body" = "ordered" }

[[test.step]]
request = "GET /variable?name=greeting"
expect.json = { ok = "hello" }

[[test.step]]
request = "GET /kv/set?store=other&key=count&value=42"

[[test.step]]
request = "GET /sqlite?db=default&sql=INSERT%20INTO%20visits%20VALUES%20('tea',1)"

[test.then]
key_values = { other = { count = "42", more = { absent = true } } }
sql = [{ query = "SELECT page, count FROM visits", rows = [["tea", 1]] }]
"#;
    desk.write("app/tests/good.toml", good);
    let passed = desk.done("app", &["test"]);
    assert_eq!(passed.stdout, "ok    good.toml: everything is as it should be\n");
    desk.write(
        "app/tests/bad.toml",
        r#"[[test]]
name = "an unexpected call"
variables = { greeting = "" }
request = "GET /fetch?url=https://api.example/stock"

[[test]]
name = "a call that is not allowed"
variables = { greeting = "" }
request = "GET /fetch?url=https://elsewhere.example/"

[[test]]
name = "a call that never comes"
variables = { greeting = "" }
request = "GET /"
[[test.outbound]]
request = "GET https://api.example/stock"

[[test]]
name = "a key that is not written"
variables = { greeting = "" }
request = "GET /kv/set?store=default&key=cuont&value=1"
then.key_values = { default = { count = "1" } }

[[test]]
name = "a row that is not there"
variables = { greeting = "" }
sql = { default = ["CREATE TABLE visits (page TEXT)"] }
request = "GET /"
then.sql = [{ query = "SELECT count(*) FROM visits", rows = [[1]] }]

[[test]]
name = "a component that fails"
variables = { greeting = "" }
request = "GET /stderr?line=before"
then.key_values = { default = { x = "1" } }

[[test]]
name = "a variable without a value"
request = "GET /"
"#,
    );
    insta::assert_snapshot!(failing_tests(&desk, &["--filter", "bad.toml"]));
}

#[test]
fn tests_say_what_is_wrong_with_themselves() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    insta::assert_snapshot!(failing_tests(&desk, &[]));
    desk.write(
        "app/tests/a.toml",
        "[[test]]\nname = \"a\"\nrequest = \"GET /\"\nexpects = { status = 200 }\n",
    );
    insta::assert_snapshot!(failing_tests(&desk, &[]));
}

/// Runs the tests of a component against the guest `rust-sdk7`: those that should pass do,
/// and gives what the others say.
fn component_tests(guest: &str) -> Option<String> {
    if !have(&["rust-sdk7", guest]) {
        return None;
    }
    let desk = probe();
    desk.write(
        "app/tests/checks.toml",
        "# Tests in a component.\n[[component]]\nsource = \"checks.wasm\"\nvariables = { greeting = \"\" }\n",
    );
    fs::copy(guests_dir().join(guest).with_extension("wasm"), desk.path("app/tests/checks.wasm")).unwrap();
    let listed = desk.done("app", &["test", "--list"]).stdout;
    let (bugs, good): (Vec<_>, Vec<_>) = listed.lines().partition(|line| line.contains("bug:"));
    assert!(!bugs.is_empty() && !good.is_empty(), "{listed}");
    for line in good {
        let name = line.strip_prefix("checks.toml:2: ").unwrap();
        let passed = desk.done("app", &["test", "--filter", name]);
        assert_eq!(passed.stdout, format!("ok    checks.toml: {name}\n"));
    }
    let text = failing_tests(&desk, &["--filter", "bug:"]);
    assert_eq!(text.matches("\nFAIL ").count() + 1, bugs.len(), "{text}");
    Some(addresses_hidden(&text))
}

/// A text without frames of a backtrace, and without lines of sources.
fn addresses_hidden(text: &str) -> String {
    let is_frame = |line: &str| {
        line.trim_start().split_once(": ").is_some_and(|(number, rest)| {
            number.parse::<u32>().is_ok() && rest.trim_start().starts_with("0x")
        })
    };
    let is_place = |line: &str| line.contains("panicked at");
    let kept: Vec<_> = text.lines().filter(|line| !is_frame(line) && !is_place(line)).collect();
    format!("{}\n", kept.join("\n"))
}

#[test]
fn components_with_tests_catch_each_bug() {
    if let Some(text) = component_tests("rust-tests") {
        insta::assert_snapshot!(text);
    }
}

#[test]
fn components_with_tests_catch_an_answer_that_depends_on_the_clock() {
    if !have(&["rust-tests"]) {
        return;
    }
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    desk.write("app/tests/checks.toml", "[[component]]\nsource = \"checks.wasm\"\n");
    fs::copy(guests_dir().join("rust-tests.wasm"), desk.path("app/tests/checks.wasm")).unwrap();
    // The bug: it is always day.
    desk.write("app/copied.wasm", clock_program("good day", "good day"));
    let arguments = ["--filter", "depends on the clock"];
    insta::assert_snapshot!(failing_tests(&desk, &arguments));
    desk.write("app/copied.wasm", clock_program("good day", "good night"));
    desk.done("app", &["test", "--filter", "depends on the clock"]);
}

#[test]
fn a_trap_in_a_test_shows_where_it_happened() {
    if !have(&["rust-sdk7", "rust-tests"]) {
        return;
    }
    let desk = probe();
    desk.write(
        "app/tests/checks.toml",
        "[[component]]\nsource = \"../checks.wasm\"\nvariables.greeting = \"\"\n",
    );
    fs::copy(guests_dir().join("rust-tests.wasm"), desk.path("app/checks.wasm")).unwrap();
    let text = failing_tests(&desk, &["--filter", "a failed assertion"]);
    assert!(text.contains("failed_assertion"), "{text}");
    assert!(text.contains("the app is no teapot"), "{text}");
    let results = desk.wisp("app", &["test", "--filter", "a failed assertion", "--junit", "results.xml"]);
    assert_eq!(results.status.code(), Some(1));
    assert!(desk.read("app/results.xml").contains("<system-out>"), "{}", desk.read("app/results.xml"));
}

#[test]
fn components_with_tests_in_python_catch_bugs() {
    if let Some(text) = component_tests("python-tests") {
        assert!(text.contains("the status is 404, not 201"), "{text}");
        assert!(text.contains("AssertionError: no header cache-control, only ["), "{text}");
    }
}

#[test]
fn a_component_without_tests_is_refused() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    desk.write("app/copied.wasm", clock_program("hello", "hello"));
    desk.write("app/tests/no.wasm", "(component)");
    desk.write(
        "app/tests/checks.toml",
        "[[component]]\nsource = \"missing.wasm\"\n\n[[component]]\nsource = \"../copied.wasm\"\n\n\
         [[component]]\nsource = \"no.wasm\"\n",
    );
    insta::assert_snapshot!(failing_tests(&desk, &[]));
    insta::assert_snapshot!(failing_tests(&desk, &["--list"]));
    // What `[component.build]` says is done first.
    desk.write(
        "app/tests/checks.toml",
        "[[component]]\nsource = \"made.wasm\"\n[component.build]\ncommand = \"exit 3\"\n",
    );
    desk.write("app/spin.toml", COPIED.replace("cp source.wasm copied.wasm", "true"));
    let text = unwrapped(&failing_tests(&desk, &["--build"]));
    assert!(text.contains("component `made.wasm` was not built: `exit 3` ended with code 3"), "{text}");
}

#[test]
fn the_interface_of_components_with_tests_is_printed() {
    let desk = Desk::new();
    let wit = desk.done(".", &["test", "--wit"]).stdout;
    assert!(wit.contains("package wisp:test@0.1.0;"), "{wit}");
    for line in wit.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn who_sleeps_in_a_test_wakes_up_at_once() {
    if !have(&["rust-sdk5", "rust-sdk7"]) {
        return;
    }
    for guest in ["rust-sdk5", "rust-sdk7"] {
        let desk = probe();
        fs::copy(guests_dir().join(guest).with_extension("wasm"), desk.path("app/copied.wasm")).unwrap();
        desk.write(
            "app/tests/time.toml",
            r#"[[test]]
name = "a day"
variables = { greeting = "" }
request = "GET /sleep?ms=86400000"
expect.status = 200

[[test]]
name = "an answer that comes late"
variables = { greeting = "" }
request = "GET /fetch?url=https://api.example/slow"
expect.json = { "ok.body" = "at last" }
[[test.outbound]]
request = "GET https://api.example/slow"
response = { body = "at last" }
delay = "9m"

[[test]]
name = "an answer that comes too late"
variables = { greeting = "" }
request = "GET /fetch?url=https://api.example/slow"
expect.body = { contains = "error" }
[[test.outbound]]
request = "GET https://api.example/slow"
response = { body = "at last" }
delay = "11m"
"#,
        );
        let start = Instant::now();
        desk.done("app", &["test", "--jobs", "1"]);
        assert!(start.elapsed().as_secs() < 60, "{guest} took {:?}", start.elapsed());
    }
}

#[test]
fn tests_compare_logs_and_the_order_of_calls() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let desk = probe();
    let steps = r#"variables = { greeting = "" }

[[test.outbound]]
request = "GET https://api.example/*"
response = { base64 = "AP8=", headers = { content-type = "image/png" } }

[[test.step]]
request = "GET /fetch?url=https://api.example/one"
expect.json = { "$" = { ok = { status = 200, body = { hex = "00ff" }, headers = [["content-type", "image/png"]] } } }

[[test.step]]
request = "GET /fetch?url=https://api.example/two"

[[test.step]]
request = "GET /stderr?line=something"

[[test.step]]
request = "GET /headers"
expect.body = "one\ntwo\nthree\n"
"#;
    desk.write(
        "app/tests/logs.toml",
        format!(
            r#"[[test]]
name = "all of it"
{steps}
[test.then]
outbound = ["GET https://api.example/two", "GET https://api.example/one"]
stderr = {{ contains = "else" }}
stdout = {{ absent = true }}
"#
        ),
    );
    insta::assert_snapshot!(failing_tests(&desk, &[]));
    let text = desk.read("app/tests/logs.toml");
    let text = text
        .replace("two\", \"GET https://api.example/one\"]", "one\", \"GET https://api.example/two\"]")
        .replace("contains = \"else\"", "equals = \"something\\n\"")
        .replace("expect.body = \"one\\ntwo\\nthree\\n\"\n", "")
        .replace(", headers = [[\"content-type\", \"image/png\"]]", "")
        .replace(
            "{ \"$\" = { ok = { status = 200, body = { hex = \"00ff\" } } } }",
            "{ \"ok.body.hex\" = \"00ff\" }",
        );
    desk.write("app/tests/logs.toml", text);
    desk.done("app", &["test"]);
}

#[test]
fn the_first_failure_can_be_the_last() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    desk.write("app/copied.wasm", clock_program("hello", "hello"));
    let test = |name: &str, status: u16| {
        format!("[[test]]\nname = \"{name}\"\nrequest = \"GET /\"\nexpect.status = {status}\n\n")
    };
    let tests: String = [test("one", 200), test("two", 404), test("three", 200)].concat();
    desk.write("app/tests/a.toml", tests);
    let arguments = ["--jobs", "1", "--fail-fast", "--junit", "results.xml"];
    insta::assert_snapshot!(failing_tests(&desk, &arguments));
    assert!(desk.read("app/results.xml").contains("name=\"three\"><skipped/>"));
    let report = desk.wisp("app", &["test", "--jobs", "1", "--fail-fast", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!(report["not_run"][0]["name"], "three");
    let listed = desk.done("app", &["test", "--list", "--format", "json"]).stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed[2]["name"], &listed[2]["line"]), (&"three".into(), &11.into()));
}

#[test]
fn what_never_ends_is_ended() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    let endless = "(module (memory (export \"memory\") 1) (func (export \"_start\") (loop br 0)))";
    desk.write("app/copied.wasm", wat::parse_str(endless).unwrap());
    desk.write("app/tests/a.toml", "[[test]]\nname = \"an endless app\"\nrequest = \"GET /\"\n");
    desk.write("app/tests/b.toml", "[[component]]\nsource = \"b.wasm\"\n");
    desk.write("app/tests/b.wasm", wat::parse_str(ENDLESS_TEST).unwrap());
    insta::assert_snapshot!(failing_tests(&desk, &["--limit", "100ms"]));
}

/// A component with one test, `an endless test`.
const ENDLESS_TEST: &str = r#"(component
    (core module $module
        (memory (export "memory") 1)
        (data (i32.const 0) "\10\00\00\00\01\00\00\00")
        (data (i32.const 16) "\20\00\00\00\0f\00\00\00")
        (data (i32.const 32) "an endless test")
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 64))
        (func (export "names") (result i32) (i32.const 0))
        (func (export "run") (param i32 i32) (result i32) (loop br 0) (unreachable)))
    (core instance $instance (instantiate $module))
    (func $names (result (list string))
        (canon lift (core func $instance "names") (memory (core memory $instance "memory"))))
    (func $run (param "name" string) (result (result (error string)))
        (canon lift (core func $instance "run")
            (memory (core memory $instance "memory")) (realloc (core func $instance "realloc"))))
    (instance $tests (export "names" (func $names)) (export "run" (func $run)))
    (export "wisp:test/tests@0.1.0" (instance $tests)))"#;

#[test]
fn tests_run_again_after_each_edit() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    desk.write("app/source.wasm", clock_program("hello", "hello"));
    let test =
        "[[test]]\nname = \"it greets\"\nrequest = \"GET /\"\nexpect.body = { contains = \"hello\" }\n";
    desk.write("app/tests/a.toml", test);
    let running = Watching::start(desk.command("app", &["test", "--watch"]));
    running.stderr.wait_for_text("1 passed, 0 failed");
    running.stderr.wait_for_text("waiting for an edit");
    desk.write("app/source.wasm", clock_program("good day", "good day"));
    running.stderr.wait_for_text("0 passed, 1 failed");
    desk.write(
        "app/tests/a.toml",
        test.replace("hello\"", "good day\"").replace("greets", "wishes a good day"),
    );
    running.stdout.wait_for_text("ok    a.toml: it wishes a good day");
}

#[test]
fn calls_are_recorded_once_and_replayed_since() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let desk = probe();
    let upstream = Upstream::start();
    let test = |name: &str, path: &str| {
        let url = upstream.url(path);
        format!(
            "[[test]]\nname = \"{name}\"\nrecorded = true\nvariables = {{ greeting = \"s3cret-value\" }}\n\
             [[test.step]]\n\
             request = \"GET /fetch?url={url}&header=authorization:hunter2&header=x-visitor:hunter3&header=x-is:s3cret-value\"\n\
             expect.body = {{ contains = \"{path}\" }}\n\n"
        )
    };
    let tests = [test("stock", "/stock?of=tea"), test("orders", "/orders")].concat();
    let file = format!("[recording]\nleave_out = [\"x-visitor\"]\n\n{tests}");
    desk.write("app/tests/shop.toml", &file);
    // Nothing is recorded yet.
    let text = unwrapped(&failing_tests(&desk, &[]));
    assert!(text.contains("but the recording has no calls of this test"), "{text}");
    assert_eq!(upstream.accepted_count(), 0);

    let recorded = desk.done("app", &["test", "--record"]);
    assert!(recorded.stderr.contains("recorded in tests/recorded/shop.toml"), "{}", recorded.stderr);
    let accepted_count = upstream.accepted_count();
    assert!(accepted_count > 0);
    let recording = desk.read("app/tests/recorded/shop.toml");
    for secret in ["hunter2", "hunter3", "s3cret-value"] {
        assert!(!recording.contains(secret), "{recording}");
    }
    assert!(recording.contains("/stock?of=tea"), "{recording}");

    desk.done("app", &["test"]);
    assert_eq!(upstream.accepted_count(), accepted_count);

    // One that is called no more, one that is new, and one that is called too often.
    let again = format!("[[test.step]]\nrequest = \"GET /fetch?url={}\"\n", upstream.url("/orders"));
    let url = upstream.url("/stock?of=tea");
    desk.write("app/tests/shop.toml", file.replace(&url, &upstream.url("/stock?of=coffee")) + &again);
    let text = failing_tests(&desk, &[]);
    insta::assert_snapshot!(text.replace(&upstream.address.to_string(), "127.0.0.1:[PORT]"));
    let unused = file
        .replace(&format!("/fetch?url={url}&"), "/status?code=200&")
        .replace("contains = \"/stock?of=tea\"", "absent = true");
    desk.write("app/tests/shop.toml", unused);
    let stale = desk.done("app", &["test", "--filter", "stock"]).stdout;
    assert!(stale.contains("was not called"), "{stale}");

    // Recording one test leaves the other's calls as they are.
    desk.write("app/tests/shop.toml", &file);
    desk.done("app", &["test", "--record", "--filter", "orders"]);
    desk.done("app", &["test"]);
}
