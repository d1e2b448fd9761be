//! A component with tests of the guest `rust-sdk7`, for `wisp test`.
//!
//! Those whose names begin with `bug:` expect what is not so, each in one way, as a test
//! would that has caught a bug. The one about the clock passes for an app that says good
//! night at night.

wit_bindgen::generate!({ world: "wisp:test/test", path: "../../wit/deps/wisp-test@0.1.0" });

use exports::wisp::test::tests::Guest;
use serde_json::Value as Json;
use wisp::test::app::{self, Request, Response};
use wisp::test::outbound::{self, Answer, ExpectedCall, Outcome};
use wisp::test::sqlite::Value;
use wisp::test::{clock, key_value, logs, sqlite, variables};

struct Tests;

type Test = fn() -> Result<(), String>;

const TESTS: &[(&str, Test)] = &[
    ("everything is as it should be", everything),
    ("a time-out takes no time", time_out),
    ("requests of its own reach the app", own_requests),
    ("random numbers are the same in every run", random),
    ("bug: a wrong status", wrong_status),
    ("bug: a missing header", missing_header),
    ("bug: an unexpected call", unexpected_call),
    ("bug: a call that never comes", call_that_never_comes),
    ("bug: a key that is not written", key_not_written),
    ("bug: an answer that depends on the clock", clock_dependent),
    ("bug: a failed assertion", failed_assertion),
    ("bug: a request to elsewhere", request_to_elsewhere),
    ("bug: a store that is not there", no_such_store),
];

impl Guest for Tests {
    fn names() -> Vec<String> {
        TESTS.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    fn run(name: String) -> Result<(), String> {
        let (_, test) = TESTS.iter().find(|(known, _)| *known == name).ok_or("there is no such test")?;
        test()
    }
}

export!(Tests);

fn get(path: &str) -> Response {
    let request = Request { method: "GET".into(), path: path.into(), headers: Vec::new(), body: Vec::new() };
    app::send(&request).expect("a whole answer")
}

fn json(path: &str) -> Json {
    serde_json::from_slice(&get(path).body).expect("JSON")
}

fn header<'a>(response: &'a Response, wanted: &str) -> Option<&'a str> {
    response.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what} is different\n  expected: {expected:?}\n  found:    {found:?}"))
}

fn expect(method: &str, url: &str, body: &str, delay_ms: u64) {
    outbound::expect(&ExpectedCall {
        method: method.into(),
        url: url.into(),
        answer: Answer::Response(app::Response {
            status: 201,
            headers: vec![("x-id".into(), "7".into())],
            body: body.into(),
        }),
        delay_ms,
        times: Some(1),
    });
}

fn everything() -> Result<(), String> {
    println!("the test writes this");
    same("the status", get("/").status, 200)?;
    variables::set("greeting", "hello");
    same("the variable", json("/variable?name=greeting"), serde_json::json!({ "ok": "hello" }))?;
    variables::set("greeting", "goodbye");
    same("the variable", json("/variable?name=greeting"), serde_json::json!({ "ok": "goodbye" }))?;

    key_value::set("default", "count", b"41");
    json("/kv/set?store=default&key=other&value=x");
    same("the key", key_value::get("default", "other"), Some(b"x".to_vec()))?;
    same("the keys", key_value::keys("default"), vec!["count".to_owned(), "other".to_owned()])?;
    key_value::delete("default", "count");
    same("the key", key_value::get("default", "count"), None)?;

    sqlite::execute("default", "CREATE TABLE visits (page TEXT, count INTEGER)", &[]);
    json("/sqlite?db=default&sql=INSERT%20INTO%20visits%20VALUES%20('tea',1)");
    let rows =
        sqlite::execute("default", "SELECT page, count FROM visits WHERE count = ?", &[Value::Integer(1)]);
    if !matches!(&rows[..], [row] if matches!(&row[..], [Value::Text(page), Value::Integer(1)] if page == "tea"))
    {
        return Err(format!("other rows: {rows:?}"));
    }

    expect("POST", "https://api.example/orders*", "ordered", 0);
    let answered = json("/fetch?url=https://api.example/orders?fast&method=POST&body=tea&header=x-from:shop");
    same("the answer", &answered["ok"]["body"], &Json::from("ordered"))?;
    let calls = outbound::calls();
    let [call] = &calls[..] else { return Err(format!("{} calls", calls.len())) };
    same("the call", (call.method.as_str(), call.url.as_str()), ("POST", "https://api.example/orders?fast"))?;
    same("its body", call.body.as_slice(), b"tea")?;
    same("its outcome", call.outcome, Outcome::Answered)?;
    if !call.headers.contains(&("x-from".into(), "shop".into())) {
        return Err("the call has no header `x-from`".into());
    }

    get("/stdout?line=written");
    same("standard output", logs::stdout(), "written\n".to_owned())?;
    same("standard error", logs::stderr(), String::new())?;

    clock::set_ms(1_000);
    clock::advance_ms(500);
    same("the time", clock::now_ms(), 1_500)
}

fn time_out() -> Result<(), String> {
    // An answer that takes longer than the component waits, and a component that sleeps.
    let before = clock::now_ms();
    expect("GET", "https://api.example/slow", "too late", 60 * 60 * 1_000);
    let answered = json("/fetch?url=https://api.example/slow");
    if answered["error"].is_null() {
        return Err(format!("no time-out: {answered}"));
    }
    same("the time that it took", clock::now_ms() - before, 10 * 60 * 1_000)?;
    same("the status", get("/sleep?ms=86400000").status, 200)?;
    same("the time of both", clock::now_ms() - before, 10 * 60 * 1_000 + 86_400_000)
}

fn own_requests() -> Result<(), String> {
    same("the status", ask("http://self.alt/status?code=207")?, 207)
}

/// Asks by way of `wasi:http`; gives the status.
fn ask(url: &str) -> Result<u16, String> {
    wstd::runtime::block_on(async {
        let request = wstd::http::Request::get(url).body(wstd::http::Body::empty());
        let request = request.map_err(|error| error.to_string())?;
        let response = wstd::http::Client::new().send(request).await;
        response.map(|response| response.status().as_u16()).map_err(|error| format!("{error:#}"))
    })
}

fn random() -> Result<(), String> {
    // The seeds of hash maps are random.
    let seed = || {
        use std::hash::{BuildHasher, Hasher, RandomState};
        RandomState::new().build_hasher().finish()
    };
    same("the seed", seed(), EXPECTED_SEED)
}

/// What the first random numbers of a test make of a hash map's seed.
const EXPECTED_SEED: u64 = 4_694_619_291_197_367_670;

fn wrong_status() -> Result<(), String> {
    same("the status", get("/no-such-path").status, 201)
}

fn missing_header() -> Result<(), String> {
    let response = get("/");
    match header(&response, "cache-control") {
        Some(_) => Ok(()),
        None => Err("the answer has no header `cache-control`".into()),
    }
}

fn unexpected_call() -> Result<(), String> {
    get("/fetch?url=https://api.example/stock");
    Ok(())
}

fn call_that_never_comes() -> Result<(), String> {
    expect("GET", "https://api.example/stock", "", 0);
    Ok(())
}

fn key_not_written() -> Result<(), String> {
    get("/kv/set?store=default&key=cuont&value=1");
    match key_value::get("default", "count") {
        Some(_) => Ok(()),
        None => Err(format!("the key `count` is not written, but {:?} are", key_value::keys("default"))),
    }
}

fn clock_dependent() -> Result<(), String> {
    // The first of February 2026, 23 o'clock.
    clock::set_ms(1_769_986_800_000);
    let body = get("/").body;
    same("the greeting at night", String::from_utf8_lossy(&body).as_ref(), "good night\n")
}

fn failed_assertion() -> Result<(), String> {
    assert_eq!(get("/").status, 418, "the app is no teapot");
    Ok(())
}

fn request_to_elsewhere() -> Result<(), String> {
    // Whatever comes of it.
    drop(ask("http://api.example/"));
    Ok(())
}

fn no_such_store() -> Result<(), String> {
    key_value::get("no-such-store", "key");
    Ok(())
}
