//! Tests as they are written.

use std::{
    fmt,
    marker::PhantomData,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use indexmap::IndexMap;
use schemars::JsonSchema;
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

/// What a file of tests says.
#[derive(Debug)]
pub(super) struct TestFile {
    pub(super) secrets: Secrets,
    pub(super) tests: Vec<Test>,
    pub(super) components: Vec<TestComponent>,
}

/// What is left out of recordings, beside what always is, and what is not.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets {
    /// Names of headers, parameters and fields, in lower case.
    pub(super) leave_out: Vec<String>,
    pub(super) keep: Vec<String>,
}

/// What a test's world is like when it begins.
#[derive(Clone, Debug, Default)]
pub(super) struct Setup {
    /// Time since 1970.
    pub(super) clock: Option<Duration>,
    /// Where random numbers begin.
    pub(super) seed: u64,
    pub(super) variables: IndexMap<String, String>,
    /// Calls that no line of the test answers are answered from the recording.
    pub(super) is_recorded: bool,
}

/// A component with tests.
#[derive(Clone, Debug)]
pub(super) struct TestComponent {
    pub(super) line: usize,
    /// Its file, as it was written: relative to the folder of tests.
    pub(super) source: PathBuf,
    /// The commands that build it, and where they run.
    pub(super) build: Option<(Vec<String>, Option<PathBuf>)>,
    pub(super) setup: Setup,
}

/// A test, ready to run.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) line: usize,
    pub(super) name: String,
    pub(super) setup: Setup,
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
    /// For what is no text.
    Bytes(Vec<u8>),
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
    /// How long the answer takes, on the test's clock.
    pub(super) delay: Duration,
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
    /// The calls that were made, in order: method and URL with `*`.
    pub(super) outbound: Option<(usize, Vec<(Method, String)>)>,
    /// What components wrote.
    pub(super) stdout: Option<(usize, Matcher)>,
    pub(super) stderr: Option<(usize, Matcher)>,
}

/// A statement and the rows that it is expected to return.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) line: usize,
    pub(super) database: String,
    pub(super) query: String,
    pub(super) rows: Vec<Vec<serde_json::Value>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Tests")]
struct RawFile {
    /// What is left out of recordings beside what always is, and what is not.
    #[serde(default)]
    recording: RawRecording,
    /// Tests: requests and what is expected of their answers.
    #[serde(default)]
    #[schemars(with = "Vec<RawTest>")]
    test: Vec<Spanned<RawTest>>,
    /// Components with tests.
    #[serde(default)]
    #[schemars(with = "Vec<RawComponent>")]
    component: Vec<Spanned<RawComponent>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Recording")]
struct RawRecording {
    /// Names of headers, parameters and fields whose values are secret too.
    #[serde(default)]
    leave_out: Vec<String>,
    /// Names that look secret and are not.
    #[serde(default)]
    keep: Vec<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Component")]
struct RawComponent {
    /// The component's file, relative to this one.
    source: PathBuf,
    /// How `wisp test --build` makes it.
    build: Option<RawBuild>,
    /// What time it is when a test begins; a date, a time and an offset without quotes.
    #[schemars(with = "Option<String>")]
    clock: Option<Spanned<Datetime>>,
    /// Where random numbers begin.
    #[serde(default)]
    seed: u64,
    /// Values of the app's variables.
    #[serde(default)]
    variables: IndexMap<String, String>,
    /// Calls that no `expect` answers are answered from the recording.
    #[serde(default)]
    recorded: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Build")]
struct RawBuild {
    /// One command, or several in order.
    command: OneOrMany,
    /// Where they run, relative to this file.
    workdir: Option<PathBuf>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Test")]
struct RawTest {
    /// What the test is called.
    name: String,
    /// What time it is when the test begins; a date, a time and an offset without quotes.
    #[schemars(with = "Option<String>")]
    clock: Option<Spanned<Datetime>>,
    /// Where random numbers begin.
    #[serde(default)]
    seed: u64,
    /// Values of the app's variables.
    #[serde(default)]
    variables: IndexMap<String, String>,
    /// Calls that no `[[test.outbound]]` answers are answered from the recording.
    #[serde(default)]
    recorded: bool,
    /// What is in key-value stores when the test begins: store, key, value.
    #[serde(default)]
    key_values: IndexMap<String, IndexMap<String, String>>,
    /// Statements that are run when the test begins, by database.
    #[serde(default)]
    sql: IndexMap<String, Vec<String>>,
    /// Calls that the app may make, and their answers.
    #[serde(default)]
    #[schemars(with = "Vec<RawOutbound>")]
    outbound: Vec<Spanned<RawOutbound>>,
    /// The only request; several have a `[[test.step]]` each.
    #[schemars(with = "Option<Short<RawRequest>>")]
    request: Option<Spanned<Short<RawRequest>>>,
    /// What is expected of the answer to `request`.
    expect: Option<RawExpect>,
    /// Requests in order, each with what is expected of its answer.
    #[serde(default)]
    step: Vec<RawStep>,
    /// What is expected after the last answer.
    then: Option<RawThen>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Step")]
struct RawStep {
    /// How far the clock goes on first: `250ms`, `90s`, `5m`, `2h`, `1d`.
    #[schemars(with = "Option<String>")]
    wait: Option<Spanned<String>>,
    /// A method and a path, such as `GET /`, or a table.
    #[schemars(with = "Short<RawRequest>")]
    request: Spanned<Short<RawRequest>>,
    /// What is expected of the answer.
    expect: Option<RawExpect>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Request")]
struct RawRequest {
    /// `GET` if there is none.
    method: Option<String>,
    /// Path and query.
    path: Option<String>,
    /// Headers by name.
    #[serde(default)]
    headers: IndexMap<String, String>,
    /// The body as text.
    body: Option<String>,
    /// A body that is no text.
    base64: Option<String>,
    /// A body of JSON, with its content type.
    json: Option<serde_json::Value>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Expect")]
struct RawExpect {
    /// The status.
    #[schemars(with = "Option<u16>")]
    status: Option<Spanned<u16>>,
    /// Headers by name.
    #[serde(default)]
    #[schemars(with = "IndexMap<String, Short<RawMatcher>>")]
    headers: IndexMap<String, Spanned<Short<RawMatcher>>>,
    /// The body.
    #[schemars(with = "Option<Short<RawMatcher>>")]
    body: Option<Spanned<Short<RawMatcher>>>,
    /// Values in a body of JSON by path, such as `items[0].name`; `$` is all of it.
    #[serde(default)]
    #[schemars(with = "IndexMap<String, serde_json::Value>")]
    json: IndexMap<String, Spanned<serde_json::Value>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Matcher")]
struct RawMatcher {
    /// It is this text.
    equals: Option<String>,
    /// It is these bytes.
    base64: Option<String>,
    /// It contains this text, or all of these.
    contains: Option<OneOrMany>,
    /// It matches this regular expression.
    matches: Option<String>,
    /// It is not there.
    #[serde(default)]
    absent: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Outbound")]
struct RawOutbound {
    /// A method and a URL, with `*` for anything.
    #[schemars(with = "String")]
    request: Spanned<String>,
    /// What is expected of the request.
    expect: Option<RawExpect>,
    /// The answer; an empty one with the status 200 if there is none.
    response: Option<RawResponse>,
    /// No server answers.
    #[serde(default)]
    unreachable: bool,
    /// The manifest does not allow the call.
    #[serde(default)]
    refused: bool,
    /// How long the answer takes: `250ms`, `90s`, `5m`, `2h`, `1d`.
    #[schemars(with = "Option<String>")]
    delay: Option<Spanned<String>>,
    /// How often the call is made; at least once if there is no number.
    times: Option<usize>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Response")]
struct RawResponse {
    /// The status; 200 if there is none.
    #[schemars(with = "Option<u16>")]
    status: Option<Spanned<u16>>,
    /// Headers by name.
    #[serde(default)]
    headers: IndexMap<String, String>,
    /// The body as text.
    body: Option<String>,
    /// A body that is no text.
    base64: Option<String>,
    /// A body of JSON, with its content type.
    json: Option<serde_json::Value>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Then")]
struct RawThen {
    /// Values in key-value stores: store, key, value.
    #[serde(default)]
    #[schemars(with = "IndexMap<String, IndexMap<String, Short<RawMatcher>>>")]
    key_values: IndexMap<String, IndexMap<String, Spanned<Short<RawMatcher>>>>,
    /// Rows in databases.
    #[serde(default)]
    #[schemars(with = "Vec<RawQuery>")]
    sql: Vec<Spanned<RawQuery>>,
    /// The calls that were made, all of them and in this order: methods and URLs, with `*` for anything.
    #[schemars(with = "Option<Vec<String>>")]
    outbound: Option<Spanned<Vec<String>>>,
    /// What components wrote to standard output.
    #[schemars(with = "Option<Short<RawMatcher>>")]
    stdout: Option<Spanned<Short<RawMatcher>>>,
    /// What components wrote to standard error.
    #[schemars(with = "Option<Short<RawMatcher>>")]
    stderr: Option<Spanned<Short<RawMatcher>>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Query")]
struct RawQuery {
    /// Its label; `default` if there is none.
    database: Option<String>,
    /// A statement.
    query: String,
    /// The rows that it returns.
    rows: Vec<Vec<serde_json::Value>>,
}

/// A text that stands for a table, or the table.
#[derive(JsonSchema)]
#[schemars(untagged)]
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

/// The JSON schema of a file of tests, for editors.
pub(super) fn schema() -> serde_json::Value {
    wisp_manifest::schema_of::<RawFile>()
}

/// Reads a file of tests.
///
/// # Errors
/// [`Error::TestFile`] with the line that is wrong.
pub(super) fn parse(path: &Path, text: &str) -> Result<TestFile, Error> {
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
    let lower = |names: Vec<String>| names.iter().map(|name| name.to_ascii_lowercase()).collect();
    let tests = file.test.into_iter().map(|raw| test(text, raw)).collect::<Result<_, _>>();
    let components = file.component.into_iter().map(|raw| component(text, raw)).collect::<Result<_, _>>();
    Ok(TestFile {
        secrets: Secrets { leave_out: lower(file.recording.leave_out), keep: lower(file.recording.keep) },
        tests: tests.map_err(refused)?,
        components: components.map_err(refused)?,
    })
}

fn component(text: &str, raw: Spanned<RawComponent>) -> Result<TestComponent, Wrong> {
    let start = raw.span().start;
    let RawComponent { source, build, clock, seed, variables, recorded } = raw.into_inner();
    Ok(TestComponent {
        line: line_at(text, start),
        source,
        build: build.map(|build| (build.command.into_list(), build.workdir)),
        setup: Setup { clock: clock_of(clock)?, seed, variables, is_recorded: recorded },
    })
}

fn clock_of(raw: Option<Spanned<Datetime>>) -> Result<Option<Duration>, Wrong> {
    let Some(clock) = raw else { return Ok(None) };
    let unix = to_unix(clock.get_ref()).ok_or_else(|| {
        Wrong::new(clock.span().start, "`clock` needs a date, a time and an offset")
            .hint("write it without quotes: `clock = 2026-02-01T12:00:00Z`")
    })?;
    Ok(Some(unix))
}

fn test(text: &str, raw: Spanned<RawTest>) -> Result<Test, Wrong> {
    let start = raw.span().start;
    let raw = raw.into_inner();
    let clock = clock_of(raw.clock)?;
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
        setup: Setup { clock, seed: raw.seed, variables: raw.variables, is_recorded: raw.recorded },
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
    let (mut headers, body) = content(raw.headers, raw.body, raw.base64, raw.json).map_err(wrong)?;
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
    base64: Option<String>,
    json: Option<serde_json::Value>,
) -> Result<(HeaderMap, Bytes), String> {
    let mut headers = HeaderMap::new();
    for (name, value) in raw_headers {
        let header = HeaderName::try_from(&name).map_err(|_| format!("`{name}` is no name for a header"))?;
        let value = HeaderValue::try_from(&value).map_err(|_| format!("the value of `{name}` is none"))?;
        headers.append(header, value);
    }
    let body = match (body, base64, json) {
        (Some(body), None, None) => Bytes::from(body),
        (None, Some(base64), None) => Bytes::from(decoded(&base64)?),
        (None, None, Some(json)) => {
            headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
            Bytes::from(json.to_string())
        }
        (None, None, None) => Bytes::new(),
        _ => return Err("only one of `body`, `base64` and `json` can be the body".into()),
    };
    Ok((headers, body))
}

fn decoded(base64: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(base64).map_err(|error| format!("`{base64}` is no base64: {error}"))
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
    let RawMatcher { equals, base64, contains, matches, absent } = raw;
    let wrong = |message: String| Wrong::new(offset, message);
    match (equals, base64, contains, matches, absent) {
        (Some(text), None, None, None, false) => Ok(Matcher::Equals(text)),
        (None, Some(base64), None, None, false) => Ok(Matcher::Bytes(decoded(&base64).map_err(wrong)?)),
        (None, None, Some(contains), None, false) => Ok(Matcher::Contains(contains.into_list())),
        (None, None, None, Some(pattern), false) => regex::Regex::new(&pattern)
            .map(Matcher::Matches)
            .map_err(|error| wrong(format!("`{pattern}` is no regular expression: {error}"))),
        (None, None, None, None, true) => Ok(Matcher::Absent),
        _ => Err(wrong(
            "exactly one of `equals`, `base64`, `contains`, `matches` and `absent` is expected".into(),
        )),
    }
}

fn outbound_of(text: &str, raw: Spanned<RawOutbound>) -> Result<Outbound, Wrong> {
    let start = raw.span().start;
    let raw = raw.into_inner();
    let offset = raw.request.span().start;
    let line = raw.request.into_inner();
    let (method, url) = call_of(&line).map_err(|message| {
        Wrong::new(offset, message).hint("write a method and a URL: `GET https://api.example.com/rates`")
    })?;
    let delay = raw.delay.map(duration).transpose()?.unwrap_or_default();
    let answer = match (raw.response, raw.unreachable, raw.refused) {
        (Some(response), false, false) => {
            let (headers, body) = content(response.headers, response.body, response.base64, response.json)
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
        url,
        expect: expect_of(text, raw.expect.unwrap_or_default())?,
        answer,
        delay,
        times: raw.times,
    })
}

/// Method and URL of a call to elsewhere.
pub(super) fn call_of(line: &str) -> Result<(Method, String), String> {
    let no_call = || format!("`{line}` is no request to elsewhere");
    let (method, url) = line.split_once(' ').ok_or_else(no_call)?;
    if !url.contains("://") {
        return Err(no_call());
    }
    Ok((method.parse().map_err(|_| no_call())?, url.trim().to_owned()))
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
    if let Some(calls) = raw.outbound {
        let offset = calls.span().start;
        let made = calls.into_inner().iter().map(|line| call_of(line)).collect::<Result<_, _>>();
        let made = made.map_err(|message| {
            Wrong::new(offset, message)
                .hint("write methods and URLs: `[\"GET https://api.example.com/rates\"]`")
        })?;
        then.outbound = Some((line_at(text, offset), made));
    }
    for (raw, kept) in [(raw.stdout, &mut then.stdout), (raw.stderr, &mut then.stderr)] {
        if let Some(matcher) = raw {
            let line = line_at(text, matcher.span().start);
            *kept = Some((line, matcher_of(matcher)?));
        }
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
        let file = parse(
            Path::new("a.toml"),
            r#"
            [recording]
            leave_out = ["X-Session"]

            [[component]]
            source = "checks.wasm"
            recorded = true
            seed = 7
            [component.build]
            command = "make"

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
            delay = "30s"
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
            outbound = ["POST https://api.example.com/*"]
            stdout = { contains = "done" }
            "#,
        )
        .unwrap();
        let test = &file.tests[0];
        assert_eq!(test.setup.clock, Some(Duration::from_secs(1_769_943_600)));
        assert_eq!(test.steps[0].request.uri, "http://shop.example/a?b=c");
        assert_eq!(test.steps[0].request.body, "[1]");
        assert_eq!(test.steps[1].wait, Some(Duration::from_secs(7_200)));
        assert_eq!((test.outbound[0].times, test.then.key_values.len()), (Some(2), 2));
        assert_eq!(test.outbound[0].delay, Duration::from_secs(30));
        assert_eq!(test.then.outbound.as_ref().unwrap().1.len(), 1);
        assert!(test.then.stdout.is_some() && test.then.stderr.is_none());
        let component = &file.components[0];
        assert_eq!((component.line, component.setup.seed, component.setup.is_recorded), (5, 7, true));
        assert_eq!(component.build.as_ref().unwrap().0, ["make"]);
        assert_eq!(file.secrets.leave_out, ["x-session"]);
    }
}
