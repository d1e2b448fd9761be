//! Tests as they are written.

use std::{fmt, marker::PhantomData, path::Path, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use indexmap::IndexMap;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use toml::{Spanned, value::Datetime};

use super::world::to_unix;
use crate::{Error, verify::line_at};

/// The host that requests are for, unless they say another.
const DEFAULT_HOST: &str = "localhost";

/// Tests of one file. All are in memory, and each is a load of the app.
const MAX_TESTS_COUNT: usize = 10_000;

/// A test, ready to run.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) line: usize,
    pub(super) name: String,
    /// Time since 1970.
    pub(super) clock: Option<Duration>,
    pub(super) variables: IndexMap<String, String>,
    pub(super) key_values: IndexMap<String, IndexMap<String, String>>,
    pub(super) sql: IndexMap<String, Vec<String>>,
    pub(super) outbound: Vec<Outbound>,
    pub(super) steps: Vec<Step>,
    pub(super) then: Then,
}

/// A request and what is expected of its answer.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) wait: Option<Duration>,
    pub(super) request: Request,
    pub(super) expect: Expect,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) line: usize,
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What is expected of a request or response. Lines are those of the keys' values.
#[derive(Clone, Debug, Default)]
pub(super) struct Expect {
    pub(super) status: Option<(usize, StatusCode)>,
    pub(super) headers: Vec<(usize, HeaderName, Matcher)>,
    pub(super) body: Option<(usize, Matcher)>,
    pub(super) json: Vec<(usize, String, serde_json::Value)>,
}

/// What a text is expected to be.
#[derive(Clone, Debug)]
pub(super) enum Matcher {
    Equals(String),
    Contains(Vec<String>),
    Matches(regex::Regex),
    Absent,
}

/// A call that a component may make, and its answer.
#[derive(Clone, Debug)]
pub(super) struct Outbound {
    pub(super) line: usize,
    pub(super) method: Method,
    /// With `*` for anything.
    pub(super) url: String,
    pub(super) expect: Expect,
    pub(super) answer: Answer,
    pub(super) times: Option<usize>,
}

#[derive(Clone, Debug)]
pub(super) enum Answer {
    Response(http::Response<Bytes>),
    /// It is answered as if the server were not there.
    Unreachable,
    /// The manifest does not allow it.
    Refused,
}

/// What is expected after the last answer.
#[derive(Debug, Default)]
pub(super) struct Then {
    /// Label, key, what its value is.
    pub(super) key_values: Vec<(usize, String, String, Matcher)>,
    pub(super) sql: Vec<Query>,
}

/// A statement and the rows that it is expected to return.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) line: usize,
    pub(super) database: String,
    pub(super) query: String,
    pub(super) rows: Vec<Vec<serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    test: Vec<Spanned<RawTest>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTest {
    name: String,
    clock: Option<Spanned<Datetime>>,
    #[serde(default)]
    variables: IndexMap<String, String>,
    #[serde(default)]
    key_values: IndexMap<String, IndexMap<String, String>>,
    #[serde(default)]
    sql: IndexMap<String, Vec<String>>,
    #[serde(default)]
    outbound: Vec<Spanned<RawOutbound>>,
    request: Option<Spanned<Short<RawRequest>>>,
    expect: Option<RawExpect>,
    #[serde(default)]
    step: Vec<RawStep>,
    then: Option<RawThen>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    wait: Option<Spanned<String>>,
    request: Spanned<Short<RawRequest>>,
    expect: Option<RawExpect>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRequest {
    method: Option<String>,
    path: Option<String>,
    #[serde(default)]
    headers: IndexMap<String, String>,
    body: Option<String>,
    json: Option<serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpect {
    status: Option<Spanned<u16>>,
    #[serde(default)]
    headers: IndexMap<String, Spanned<Short<RawMatcher>>>,
    body: Option<Spanned<Short<RawMatcher>>>,
    #[serde(default)]
    json: IndexMap<String, Spanned<serde_json::Value>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMatcher {
    equals: Option<String>,
    contains: Option<OneOrMany>,
    matches: Option<String>,
    #[serde(default)]
    absent: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOutbound {
    request: Spanned<String>,
    expect: Option<RawExpect>,
    response: Option<RawResponse>,
    #[serde(default)]
    unreachable: bool,
    #[serde(default)]
    refused: bool,
    times: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawResponse {
    status: Option<Spanned<u16>>,
    #[serde(default)]
    headers: IndexMap<String, String>,
    body: Option<String>,
    json: Option<serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawThen {
    #[serde(default)]
    key_values: IndexMap<String, IndexMap<String, Spanned<Short<RawMatcher>>>>,
    #[serde(default)]
    sql: Vec<Spanned<RawQuery>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQuery {
    database: Option<String>,
    query: String,
    rows: Vec<Vec<serde_json::Value>>,
}

/// A text that stands for a table, or the table.
enum Short<T> {
    Text(String),
    Table(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Short<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShortVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ShortVisitor<T> {
            type Value = Short<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text or a table")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Short::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Short::Table)
            }
        }

        deserializer.deserialize_any(ShortVisitor(PhantomData))
    }
}

/// Something wrong in a file, at a place of its text.
struct Wrong {
    offset: usize,
    message: String,
    hint: Option<String>,
}

impl Wrong {
    fn new(offset: usize, message: impl Into<String>) -> Self {
        Self { offset, message: message.into(), hint: None }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// Reads the tests of a file.
///
/// # Errors
/// [`Error::TestFile`] with the line that is wrong.
pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<Test>, Error> {
    let refused = |wrong: Wrong| Error::TestFile {
        path: path.to_owned(),
        line: line_at(text, wrong.offset),
        message: wrong.message,
        hint: wrong.hint,
    };
    let file: RawFile = toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        refused(Wrong::new(offset, error.message()).hint("docs/testing.md has all that a test can say"))
    })?;
    if file.test.len() > MAX_TESTS_COUNT {
        return Err(refused(Wrong::new(
            0,
            format!("there are more than {MAX_TESTS_COUNT} tests in one file"),
        )));
    }
    file.test.into_iter().map(|raw| test(text, raw).map_err(refused)).collect()
}

fn test(text: &str, raw: Spanned<RawTest>) -> Result<Test, Wrong> {
    let start = raw.span().start;
    let raw = raw.into_inner();
    let clock = match raw.clock {
        None => None,
        Some(clock) => {
            let offset = clock.span().start;
            let unix = to_unix(clock.get_ref()).ok_or_else(|| {
                Wrong::new(offset, "`clock` needs a date, a time and an offset")
                    .hint("write it without quotes: `clock = 2026-02-01T12:00:00Z`")
            })?;
            Some(unix)
        }
    };
    let mut steps = Vec::new();
    match (raw.request, raw.step.is_empty()) {
        (Some(request), true) => steps.push(Step {
            wait: None,
            request: request_of(text, request)?,
            expect: expect_of(text, raw.expect.unwrap_or_default())?,
        }),
        (None, false) => {
            for step in raw.step {
                let wait = step.wait.map(duration).transpose()?;
                let request = request_of(text, step.request)?;
                steps.push(Step { wait, request, expect: expect_of(text, step.expect.unwrap_or_default())? });
            }
        }
        (Some(_), false) => {
            return Err(Wrong::new(start, format!("test `{}` has both `request` and steps", raw.name))
                .hint("make the request the first `[[test.step]]`"));
        }
        (None, true) => {
            return Err(Wrong::new(start, format!("test `{}` sends no request", raw.name))
                .hint("add `request = \"GET /\"`"));
        }
    }
    let outbound = raw.outbound.into_iter().map(|outbound| outbound_of(text, outbound));
    Ok(Test {
        line: line_at(text, start),
        name: raw.name,
        clock,
        variables: raw.variables,
        key_values: raw.key_values,
        sql: raw.sql,
        outbound: outbound.collect::<Result<_, _>>()?,
        steps,
        then: then_of(text, raw.then.unwrap_or_default())?,
    })
}

fn request_of(text: &str, raw: Spanned<Short<RawRequest>>) -> Result<Request, Wrong> {
    let offset = raw.span().start;
    let wrong = |message: String| Wrong::new(offset, message);
    let raw = match raw.into_inner() {
        Short::Table(table) => table,
        Short::Text(line) => {
            let (method, path) = line.split_once(' ').ok_or_else(|| {
                wrong(format!("`{line}` is no request")).hint("write a method and a path: `GET /`")
            })?;
            RawRequest {
                method: Some(method.into()),
                path: Some(path.trim().into()),
                ..RawRequest::default()
            }
        }
    };
    let (mut headers, body) = content(raw.headers, raw.body, raw.json).map_err(wrong)?;
    let method = raw.method.unwrap_or_else(|| "GET".into());
    let method = method.parse().map_err(|_| wrong(format!("`{method}` is no method")))?;
    let path = raw.path.unwrap_or_else(|| "/".into());
    if !path.starts_with('/') {
        return Err(wrong(format!("the path `{path}` does not begin with `/`")));
    }
    // The host is part of the URI; a header that says the same would only repeat it.
    let host = headers.remove(header::HOST);
    let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(DEFAULT_HOST);
    let uri = format!("http://{host}{path}").parse().map_err(|_| wrong(format!("`{path}` is no path")))?;
    Ok(Request { line: line_at(text, offset), method, uri, headers, body })
}

/// Headers and body of a request or response.
fn content(
    raw_headers: IndexMap<String, String>,
    body: Option<String>,
    json: Option<serde_json::Value>,
) -> Result<(HeaderMap, Bytes), String> {
    let mut headers = HeaderMap::new();
    for (name, value) in raw_headers {
        let header = HeaderName::try_from(&name).map_err(|_| format!("`{name}` is no name for a header"))?;
        let value = HeaderValue::try_from(&value).map_err(|_| format!("the value of `{name}` is none"))?;
        headers.append(header, value);
    }
    let body = match (body, json) {
        (Some(_), Some(_)) => return Err("there is both a `body` and `json`".into()),
        (Some(body), None) => Bytes::from(body),
        (None, Some(json)) => {
            headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
            Bytes::from(json.to_string())
        }
        (None, None) => Bytes::new(),
    };
    Ok((headers, body))
}

fn expect_of(text: &str, raw: RawExpect) -> Result<Expect, Wrong> {
    let mut expect = Expect::default();
    if let Some(status) = raw.status {
        let offset = status.span().start;
        let status = StatusCode::from_u16(*status.get_ref())
            .map_err(|_| Wrong::new(offset, format!("`{}` is no status", status.get_ref())))?;
        expect.status = Some((line_at(text, offset), status));
    }
    for (name, matcher) in raw.headers {
        let offset = matcher.span().start;
        let header = HeaderName::try_from(&name)
            .map_err(|_| Wrong::new(offset, format!("`{name}` is no name for a header")))?;
        expect.headers.push((line_at(text, offset), header, matcher_of(matcher)?));
    }
    if let Some(body) = raw.body {
        expect.body = Some((line_at(text, body.span().start), matcher_of(body)?));
    }
    for (path, value) in raw.json {
        expect.json.push((line_at(text, value.span().start), path, value.into_inner()));
    }
    Ok(expect)
}

fn matcher_of(raw: Spanned<Short<RawMatcher>>) -> Result<Matcher, Wrong> {
    let offset = raw.span().start;
    let raw = match raw.into_inner() {
        Short::Text(text) => return Ok(Matcher::Equals(text)),
        Short::Table(table) => table,
    };
    match raw {
        RawMatcher { equals: Some(text), contains: None, matches: None, absent: false } => {
            Ok(Matcher::Equals(text))
        }
        RawMatcher { equals: None, contains: Some(contains), matches: None, absent: false } => {
            Ok(Matcher::Contains(match contains {
                OneOrMany::One(text) => vec![text],
                OneOrMany::Many(texts) => texts,
            }))
        }
        RawMatcher { equals: None, contains: None, matches: Some(pattern), absent: false } => {
            regex::Regex::new(&pattern)
                .map(Matcher::Matches)
                .map_err(|error| Wrong::new(offset, format!("`{pattern}` is no regular expression: {error}")))
        }
        RawMatcher { equals: None, contains: None, matches: None, absent: true } => Ok(Matcher::Absent),
        _ => {
            Err(Wrong::new(offset, "exactly one of `equals`, `contains`, `matches` and `absent` is expected"))
        }
    }
}

fn outbound_of(text: &str, raw: Spanned<RawOutbound>) -> Result<Outbound, Wrong> {
    let start = raw.span().start;
    let raw = raw.into_inner();
    let offset = raw.request.span().start;
    let line = raw.request.into_inner();
    let no_call = || {
        Wrong::new(offset, format!("`{line}` is no request to elsewhere"))
            .hint("write a method and a URL: `GET https://api.example.com/rates`")
    };
    let (method, url) = line.split_once(' ').ok_or_else(no_call)?;
    let method = method.parse().map_err(|_| no_call())?;
    if !url.contains("://") {
        return Err(no_call());
    }
    let answer = match (raw.response, raw.unreachable, raw.refused) {
        (Some(response), false, false) => {
            let (headers, body) = content(response.headers, response.body, response.json)
                .map_err(|message| Wrong::new(start, message))?;
            let mut built = http::Response::new(body);
            if let Some(status) = response.status {
                *built.status_mut() = StatusCode::from_u16(*status.get_ref()).map_err(|_| {
                    Wrong::new(status.span().start, format!("`{}` is no status", status.get_ref()))
                })?;
            }
            *built.headers_mut() = headers;
            Answer::Response(built)
        }
        (None, true, false) => Answer::Unreachable,
        (None, false, true) => Answer::Refused,
        (None, false, false) => Answer::Response(http::Response::new(Bytes::new())),
        _ => {
            let message = "only one of `response`, `unreachable` and `refused` can be the answer";
            return Err(Wrong::new(start, message));
        }
    };
    Ok(Outbound {
        line: line_at(text, offset),
        method,
        url: url.trim().to_owned(),
        expect: expect_of(text, raw.expect.unwrap_or_default())?,
        answer,
        times: raw.times,
    })
}

fn then_of(text: &str, raw: RawThen) -> Result<Then, Wrong> {
    let mut then = Then::default();
    for (label, keys) in raw.key_values {
        for (key, matcher) in keys {
            let line = line_at(text, matcher.span().start);
            then.key_values.push((line, label.clone(), key, matcher_of(matcher)?));
        }
    }
    for query in raw.sql {
        let line = line_at(text, query.span().start);
        let RawQuery { database, query, rows } = query.into_inner();
        then.sql.push(Query { line, database: database.unwrap_or_else(|| "default".into()), query, rows });
    }
    Ok(then)
}

/// `90s`, `5m`, `2h`, `1d`, `250ms`.
fn duration(raw: Spanned<String>) -> Result<Duration, Wrong> {
    let text = raw.get_ref();
    let digits_end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let seconds = match unit {
        "ms" => return Ok(Duration::from_millis(number.parse().unwrap_or(0))),
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3_600),
        "d" => Some(86_400),
        _ => None,
    };
    let duration = seconds.and_then(|seconds: u64| seconds.checked_mul(number.parse().ok()?));
    duration.map(Duration::from_secs).ok_or_else(|| {
        Wrong::new(raw.span().start, format!("`{text}` is no duration"))
            .hint("write a number and a unit: `250ms`, `90s`, `5m`, `2h`, `1d`")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn wrong(text: &str) -> (usize, String) {
        match parse(Path::new("a.toml"), text).unwrap_err() {
            Error::TestFile { line, message, .. } => (line, message),
            other => (0, other.to_string()),
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let start = "[[test]]\nname = \"a\"\n";
        for (text, line, message) in [
            ("[[tests]]\n", 1, "unknown field `tests`"),
            ("[[test]]\nrequest = \"GET /\"\n", 1, "missing field `name`"),
            (start, 1, "test `a` sends no request"),
            (&format!("{start}request = \"GET\"\n"), 3, "`GET` is no request"),
            (&format!("{start}request = \"GET x\"\n"), 3, "the path `x` does not begin with `/`"),
            (&format!("{start}request = {{ pth = \"/\" }}\n"), 3, "unknown field `pth`"),
            (&format!("{start}request = \"GET /\"\nclock = 2026-01-01\n"), 4, "`clock` needs a date"),
            (&format!("{start}request = \"GET /\"\nexpect = {{ status = 20 }}\n"), 4, "`20` is no status"),
            (
                &format!("{start}request = \"GET /\"\nexpect.body = {{ matches = \"(\" }}\n"),
                4,
                "`(` is no regular",
            ),
            (&format!("{start}request = \"GET /\"\nexpect.body = {{ }}\n"), 4, "exactly one of"),
            (
                &format!("{start}[[test.step]]\nrequest = \"GET /\"\nwait = \"soon\"\n"),
                5,
                "`soon` is no duration",
            ),
            (
                &format!("{start}request = \"GET /\"\n[[test.outbound]]\nrequest = \"GET /a\"\n"),
                5,
                "`GET /a` is no",
            ),
        ] {
            let (found_line, found) = wrong(text);
            assert!(found.starts_with(message), "{text}: {found}");
            assert_eq!(found_line, line, "{text}: {found}");
        }
    }

    #[test]
    fn everything_can_be_said() {
        let tests = parse(
            Path::new("a.toml"),
            r#"
            [[test]]
            name = "all"
            clock = 2026-02-01T12:00:00+01:00
            variables = { key = "v" }
            key_values = { default = { a = "1" } }
            sql = { default = ["CREATE TABLE t (x)"] }

            [[test.outbound]]
            request = "POST https://api.example.com/*"
            expect = { json = { "items[0]" = 1 } }
            response = { status = 201, json = { ok = true } }
            times = 2

            [[test.step]]
            request = { method = "POST", path = "/a?b=c", headers = { host = "shop.example" }, json = [1] }
            expect = { status = 200, headers = { x-a = { absent = true } }, body = { contains = ["a", "b"] } }

            [[test.step]]
            wait = "2h"
            request = "GET /"

            [test.then]
            key_values = { default = { a = "2", b = { absent = true } } }
            sql = [{ query = "SELECT 1", rows = [[1]] }]
            "#,
        )
        .unwrap();
        let test = &tests[0];
        assert_eq!(test.clock, Some(Duration::from_secs(1_769_943_600)));
        assert_eq!(test.steps[0].request.uri, "http://shop.example/a?b=c");
        assert_eq!(test.steps[0].request.body, "[1]");
        assert_eq!(test.steps[1].wait, Some(Duration::from_secs(7_200)));
        assert_eq!((test.outbound[0].times, test.then.key_values.len()), (Some(2), 2));
    }
}
