//! Calls to elsewhere that were made once and are answered from a file since.
//!
//! `wisp test --record` lets calls out that no line of a test answers, if the test says
//! `recorded = true`, and writes down what came of them: `tests/recorded/NAME.toml` for the
//! tests of `tests/NAME.toml`. Other runs answer from there. A call is the same if its
//! method, URL and body are; each recorded call answers once, in the order of the file.
//!
//! # What is left out
//!
//! A recording is kept with the sources of an app, so nothing secret may get into it:
//!
//! - values of headers, of parameters in URLs and forms, and of fields in JSON whose names
//!   look like secrets ([`SECRET_NAMES`]), or that the file of tests names;
//! - values of variables that the manifest calls secret, wherever they occur;
//! - values of secret headers of a request, wherever they occur in its response.
//!
//! Bodies that are no text are kept as they are.
//!
//! [`LEFT_OUT`] stands in their place. Calls are compared after that was done to both.

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::file::Secrets;
use crate::Error;

/// The folder of recordings, in the folder of tests.
const RECORDINGS_DIR_NAME: &str = "recorded";

/// The largest file of recordings that is read.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// How much of bodies one test may record: its file is read, and compared with, as a whole.
const MAX_TEST_BYTES: usize = 64 << 20;

/// How many calls one test may record.
const MAX_TEST_CALLS_COUNT: usize = 10_000;

/// Stands in the place of a secret.
const LEFT_OUT: &str = "LEFT-OUT";

/// The name of something secret contains one of these.
const SECRET_NAMES: [&str; 11] = [
    "authorization",
    "authenticate",
    "cookie",
    "credential",
    "apikey",
    "password",
    "passwd",
    "secret",
    "session",
    "signature",
    "token",
];

/// Or it ends with one of these.
const SECRET_ENDS: [&str; 4] = ["-key", "_key", "-auth", "jwt"];

/// Parameters of URLs and forms that are secret too; as a field of JSON they are something
/// else as a rule.
const SECRET_PARAMETERS: [&str; 2] = ["key", "sig"];

/// Shorter values of secret variables are not looked for: they are everywhere.
const MIN_SECRET_BYTES: usize = 4;

/// What people see first in a file of recordings.
const HEADING: &str = "# Written by `wisp test --record`. Secrets are left out by their names.\n\n";

/// A call and what came of it, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exchange {
    /// The name of the test that made it.
    pub(super) test: String,
    /// Method and URL.
    pub(super) request: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    request_headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_body: Option<String>,
    /// In the place of the body, if that is no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_base64: Option<String>,
    /// Nothing if no answer came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordingFile {
    #[serde(default)]
    exchange: Vec<Exchange>,
}

/// Knows what is secret.
#[derive(Clone, Debug, Default)]
pub(super) struct Censor {
    names: Secrets,
    values: Vec<String>,
}

/// The recording of one test.
pub(super) enum Recording {
    /// The test has none.
    None,
    /// Calls are answered from it. Each with whether it has answered.
    Replayed { path: PathBuf, exchanges: Vec<(Exchange, bool)>, censor: Censor },
    /// Calls go out and are written down.
    Recorded { test: String, exchanges: Vec<Exchange>, bytes: usize, censor: Censor },
}

/// Why a recording has no answer to a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// What is not as recorded.
    pub(super) message: String,
    /// The call in the recording that is most like it.
    pub(super) nearest: Option<String>,
}

impl Censor {
    /// With what a file of tests says, and values of secret variables.
    pub(super) fn new(names: &Secrets, values: impl IntoIterator<Item = String>) -> Self {
        let values = values.into_iter().filter(|value| value.len() >= MIN_SECRET_BYTES).collect();
        Self { names: names.clone(), values }
    }

    fn is_secret(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        if self.names.keep.contains(&name) {
            return false;
        }
        self.names.leave_out.contains(&name)
            || SECRET_NAMES.iter().any(|secret| name.contains(secret))
            || SECRET_ENDS.iter().any(|end| name.ends_with(end))
    }

    /// A text without values of secret variables.
    fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for value in &self.values {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), LEFT_OUT);
            }
        }
        text
    }

    /// `name=value&…` without values of secrets.
    fn pairs(&self, pairs: &str) -> String {
        let pairs = pairs.split('&').map(|pair| match pair.split_once('=') {
            Some((name, _)) if self.is_secret(name) || SECRET_PARAMETERS.contains(&name) => {
                format!("{name}={LEFT_OUT}")
            }
            _ => pair.to_owned(),
        });
        pairs.collect::<Vec<_>>().join("&")
    }

    fn call(&self, request: &Request<Bytes>) -> String {
        let url = request.uri().to_string();
        let url = match url.split_once('?') {
            Some((path, query)) => format!("{path}?{}", self.pairs(query)),
            None => url,
        };
        self.text(&format!("{} {url}", request.method()))
    }

    fn headers(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        let header = |(name, value): (&HeaderName, &HeaderValue)| {
            let value = match self.is_secret(name.as_str()) {
                true => LEFT_OUT.to_owned(),
                false => self.text(&String::from_utf8_lossy(value.as_bytes())),
            };
            (name.to_string(), value)
        };
        // About the connection, and so none of the answer's.
        let is_kept = |(name, _): &(&HeaderName, &HeaderValue)| {
            **name != header::CONTENT_LENGTH && **name != header::TRANSFER_ENCODING
        };
        headers.iter().filter(is_kept).map(header).collect()
    }

    /// A body as text, or else in base64; without secrets where it is text.
    fn body(&self, headers: &HeaderMap, body: &[u8]) -> (Option<String>, Option<String>) {
        if body.is_empty() {
            return (None, None);
        }
        let Ok(text) = std::str::from_utf8(body) else { return (None, Some(STANDARD.encode(body))) };
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let text = if kind.starts_with("application/x-www-form-urlencoded") {
            self.pairs(text)
        } else {
            // Written anew only where something was left out: it is as it was otherwise.
            let without = serde_json::from_str::<Json>(text).ok().and_then(|mut json| {
                let has_secrets = self.json(&mut json);
                has_secrets.then(|| json.to_string())
            });
            without.unwrap_or_else(|| text.to_owned())
        };
        (Some(self.text(&text)), None)
    }

    /// Takes secrets out of JSON; says whether there were any.
    fn json(&self, json: &mut Json) -> bool {
        let mut found = false;
        match json {
            Json::Object(fields) => {
                for (name, value) in fields {
                    if self.is_secret(name) && (value.is_string() || value.is_number()) {
                        *value = LEFT_OUT.into();
                        found = true;
                    } else {
                        found |= self.json(value);
                    }
                }
            }
            Json::Array(items) => {
                for item in items {
                    found |= self.json(item);
                }
            }
            _ => {}
        }
        found
    }

    /// The same, and values of secret headers are secret wherever they occur.
    fn with_values_of(&self, headers: &HeaderMap) -> Option<Self> {
        let secret = headers.iter().filter(|(name, _)| self.is_secret(name.as_str()));
        let mut values: Vec<String> = secret
            .filter_map(|(_, value)| value.to_str().ok())
            // Of `Bearer TOKEN`, both as a whole and the token.
            .flat_map(|value| [Some(value), value.split(' ').next_back()])
            .flatten()
            .filter(|value| value.len() >= MIN_SECRET_BYTES)
            .map(str::to_owned)
            .collect();
        if values.is_empty() {
            return None;
        }
        values.extend(self.values.iter().cloned());
        Some(Self { names: self.names.clone(), values })
    }

    fn exchange(&self, test: &str, request: &Request<Bytes>, response: Option<&Response<Bytes>>) -> Exchange {
        let (request_body, request_base64) = self.body(request.headers(), request.body());
        let mut exchange = Exchange {
            test: test.to_owned(),
            request: self.call(request),
            request_headers: self.headers(request.headers()),
            request_body,
            request_base64,
            ..Exchange::default()
        };
        if let Some(response) = response {
            // What a server says again of what it was told is as secret.
            let told = self.with_values_of(request.headers());
            let censor = told.as_ref().unwrap_or(self);
            exchange.status = Some(response.status().as_u16());
            exchange.headers = censor.headers(response.headers());
            (exchange.body, exchange.base64) = censor.body(response.headers(), response.body());
        }
        exchange
    }
}

impl Exchange {
    fn is_same_call(&self, other: &Self) -> bool {
        self.request == other.request
            && self.request_body == other.request_body
            && self.request_base64 == other.request_base64
    }

    /// The answer that was recorded; nothing if none came.
    fn response(&self) -> Option<Response<Bytes>> {
        let mut response = Response::new(match (&self.body, &self.base64) {
            (Some(body), _) => Bytes::from(body.clone()),
            (None, Some(base64)) => Bytes::from(STANDARD.decode(base64).unwrap_or_default()),
            (None, None) => Bytes::new(),
        });
        *response.status_mut() = self.status?.try_into().ok()?;
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                response.headers_mut().append(name, value);
            }
        }
        Some(response)
    }
}

impl Recording {
    /// The answer to a call: the outer one if the recording has it.
    pub(super) fn replay(&mut self, request: &Request<Bytes>) -> Result<Option<Response<Bytes>>, Missing> {
        let Self::Replayed { exchanges, censor, .. } = self else {
            return Err(Missing { message: "nothing is recorded".into(), nearest: None });
        };
        let call = censor.exchange("", request, None);
        let mut same_count = 0;
        for (exchange, was_used) in exchanges.iter_mut().filter(|(exchange, _)| exchange.is_same_call(&call))
        {
            same_count += 1;
            if !std::mem::replace(was_used, true) {
                return Ok(exchange.response());
            }
        }
        Err(missing(&call, exchanges, same_count))
    }

    /// Writes down a call that went out.
    pub(super) fn record(&mut self, request: &Request<Bytes>, response: Option<&Response<Bytes>>) {
        let Self::Recorded { test, exchanges, bytes, censor } = self else { return };
        *bytes += request.body().len() + response.map_or(0, |response| response.body().len());
        if exchanges.len() < MAX_TEST_CALLS_COUNT && *bytes <= MAX_TEST_BYTES {
            exchanges.push(censor.exchange(test, request, response));
        }
    }

    /// Calls that were recorded and not made any more; what is to be said of them.
    pub(super) fn stale(&self) -> Option<String> {
        let Self::Replayed { path, exchanges, .. } = self else { return None };
        let stale: Vec<_> = exchanges.iter().filter(|(_, was_used)| !was_used).collect();
        let (first, _) = stale.first()?;
        let more = match stale.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        Some(format!(
            "`{}`{more} is in the recording `{}`, but was not called; `wisp test --record` makes it anew",
            first.request,
            path.display()
        ))
    }

    /// Whether more was called than is recorded.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Recorded { exchanges, bytes, .. } => {
                *bytes > MAX_TEST_BYTES || exchanges.len() >= MAX_TEST_CALLS_COUNT
            }
            Self::None | Self::Replayed { .. } => false,
        }
    }
}

/// Why a call is not in a recording.
fn missing(call: &Exchange, exchanges: &[(Exchange, bool)], same_count: usize) -> Missing {
    if same_count > 0 {
        let times = if same_count == 1 { "once".to_owned() } else { format!("{same_count} times") };
        let message = format!("it is recorded {times}, and this is one time more");
        return Missing { message, nearest: None };
    }
    let nearest = exchanges.iter().map(|(exchange, _)| exchange).min_by_key(|exchange| {
        // A call that differs in its body only is nearer than any other.
        distance(&exchange.request, &call.request)
    });
    match nearest {
        None => Missing { message: "the recording has no calls of this test".into(), nearest: None },
        Some(nearest) if nearest.request == call.request => {
            let shown = |exchange: &Exchange| match (&exchange.request_body, &exchange.request_base64) {
                (Some(body), _) => format!("{:?}", super::check::shown(body)),
                (None, Some(base64)) => format!("{} in base64", super::check::shown(base64)),
                (None, None) => "none".into(),
            };
            Missing {
                message: format!(
                    "it is recorded with another body\n  recorded: {}\n  found:    {}",
                    shown(nearest),
                    shown(call)
                ),
                nearest: None,
            }
        }
        Some(nearest) => {
            Missing { message: "it is not recorded".into(), nearest: Some(nearest.request.clone()) }
        }
    }
}

/// How many characters have to change to make one text of another (Levenshtein), of as
/// much as is worth comparing.
fn distance(one: &str, other: &str) -> usize {
    const MAX_CHARS_COUNT: usize = 500;
    let other: Vec<char> = other.chars().take(MAX_CHARS_COUNT).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, character) in one.chars().take(MAX_CHARS_COUNT).enumerate() {
        let mut before = std::mem::replace(&mut row[0], line + 1);
        for (column, candidate) in other.iter().enumerate() {
            let replaced = before + usize::from(*candidate != character);
            before = row[column + 1];
            row[column + 1] = replaced.min(before + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

/// Where the calls of a file's tests are recorded.
pub(super) fn path_of(tests_dir: &Path, file: &Path) -> PathBuf {
    tests_dir.join(RECORDINGS_DIR_NAME).join(file)
}

/// Reads a recording; one that is not there is empty.
///
/// # Errors
/// [`Error::File`], [`Error::TestFile`].
pub(super) fn read(path: &Path) -> Result<Vec<Exchange>, Error> {
    let wrong = |line: usize, message: String| Error::TestFile {
        path: path.to_owned(),
        line,
        message,
        hint: Some("`wisp test --record` writes it anew".into()),
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            return Err(wrong(1, format!("the recording has more than {MAX_FILE_BYTES} bytes")));
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", path)(error)),
    }
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let file: RecordingFile = toml::from_str(&text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        wrong(crate::verify::line_at(&text, offset), error.message().to_owned())
    })?;
    Ok(file.exchange)
}

/// Writes the recording of a file's tests: what was recorded now, and what was before of
/// tests that `is_kept`. One without calls is removed.
///
/// # Errors
/// [`Error::File`], [`Error::TestFile`].
pub(super) fn write(
    path: &Path,
    recorded: Vec<Exchange>,
    is_kept: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    let mut exchanges = read(path)?;
    exchanges.retain(|exchange| is_kept(&exchange.test));
    exchanges.extend(recorded);
    if exchanges.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("remove", path)(error))
            }
            _ => Ok(()),
        };
    }
    let text = toml::to_string(&RecordingFile { exchange: exchanges })
        .map_err(|error| Error::file("write", path)(std::io::Error::other(error.to_string())))?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::file("make", folder))?;
    }
    let part = path.with_extension("part");
    fs::write(&part, format!("{HEADING}{text}")).map_err(Error::file("write", &part))?;
    fs::rename(&part, path).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn request(line: &str, headers: &[(&'static str, &'static str)], body: &[u8]) -> Request<Bytes> {
        let (method, url) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Bytes::copy_from_slice(body)).unwrap()
    }

    fn recorded(calls: &[(Request<Bytes>, Option<Response<Bytes>>)], censor: &Censor) -> Vec<Exchange> {
        let mut recording =
            Recording::Recorded { test: "t".into(), exchanges: Vec::new(), bytes: 0, censor: censor.clone() };
        for (request, response) in calls {
            recording.record(request, response.as_ref());
        }
        match recording {
            Recording::Recorded { exchanges, .. } => exchanges,
            _ => Vec::new(),
        }
    }

    fn replayed(exchanges: Vec<Exchange>, censor: &Censor) -> Recording {
        let exchanges = exchanges.into_iter().map(|exchange| (exchange, false)).collect();
        Recording::Replayed { path: "tests/recorded/a.toml".into(), exchanges, censor: censor.clone() }
    }

    #[test]
    fn what_is_recorded_is_answered_byte_by_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_of(folder.path(), Path::new("a.toml"));
        let censor = Censor::default();
        let binary: Vec<u8> = (0..=255).collect();
        let text = "three\n\"quotes\" ''' \\ and\ttabs\r\n";
        let call = request("POST https://a.example/x?y=z", &[("accept", "*/*")], &binary);
        let answers = [binary.as_slice(), text.as_bytes(), b""].map(|body| {
            let response = Response::builder().status(201).header("x-a", "1").header("x-a", "2");
            response.body(Bytes::copy_from_slice(body)).unwrap()
        });
        let mut calls: Vec<_> = answers.iter().map(|answer| (call.clone(), Some(answer.clone()))).collect();
        calls.push((call.clone(), None));
        write(&path, recorded(&calls, &censor), |_| true).unwrap();

        let mut recording = replayed(read(&path).unwrap(), &censor);
        for answer in &answers {
            let replayed = recording.replay(&call).unwrap().unwrap();
            assert_eq!((replayed.status(), replayed.body()), (answer.status(), answer.body()));
            assert_eq!(replayed.headers(), answer.headers());
        }
        assert!(recording.stale().is_some());
        assert_eq!(recording.replay(&call).unwrap().map(|response| response.status()), None);
        assert_eq!(recording.stale(), None);
        let more = recording.replay(&call).unwrap_err();
        assert_eq!(more.message, "it is recorded 4 times, and this is one time more");

        // What another test recorded stays, what no test makes any more goes.
        write(&path, Vec::new(), |test| test == "t").unwrap();
        assert_eq!(read(&path).unwrap().len(), 4);
        write(&path, Vec::new(), |_| false).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn secrets_are_left_out_and_calls_are_the_same_without_them() {
        let names = Secrets { leave_out: vec!["x-visitor".into()], keep: vec!["x-map-key".into()] };
        let censor = Censor::new(&names, ["s3cr3t-of-a-variable".to_owned(), "abc".to_owned()]);
        let call = |secret: &'static str, variable: &str| {
            request(
                &format!("POST https://a.example/of-{variable}?api_key={secret}&page=2"),
                &[("authorization", secret), ("x-visitor", secret), ("x-map-key", "qwerty")],
                format!("{{\"client\":{{\"password\":\"{secret}\"}},\"abc\":1}}").as_bytes(),
            )
        };
        let response = Response::builder()
            .header("set-cookie", "id=hunter2")
            .body(Bytes::from("{\"access_token\":\"hunter2\",\"for\":\"s3cr3t-of-a-variable\"}"))
            .unwrap();
        let exchanges = recorded(&[(call("hunter2", "s3cr3t-of-a-variable"), Some(response))], &censor);
        let text = toml::to_string(&RecordingFile { exchange: exchanges.clone() }).unwrap();
        assert!(!text.contains("hunter2") && !text.contains("s3cr3t"), "{text}");
        assert!(text.contains("qwerty") && text.contains("page=2") && text.contains("abc"), "{text}");
        let replayed = replayed(exchanges, &censor).replay(&call("another", "s3cr3t-of-a-variable"));
        let replayed = replayed.unwrap().unwrap();
        assert_eq!(replayed.headers()["set-cookie"], LEFT_OUT);
        assert_eq!(replayed.body(), &format!("{{\"access_token\":\"{LEFT_OUT}\",\"for\":\"{LEFT_OUT}\"}}"));
    }

    #[test]
    fn a_form_is_recorded_without_its_secrets() {
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let call = request("POST https://a.example/", &form, b"user=ada&client_secret=hunter2");
        let exchanges = recorded(&[(call, None)], &Censor::default());
        assert_eq!(exchanges[0].request_body.as_deref(), Some("user=ada&client_secret=LEFT-OUT"));
    }

    #[test]
    fn the_nearest_call_is_named_for_one_that_is_not_recorded() {
        let censor = Censor::default();
        let call = |line: &str, body: &str| (request(line, &[], body.as_bytes()), None);
        let exchanges = recorded(
            &[call("GET https://a.example/users/1", ""), call("POST https://a.example/orders", "tea")],
            &censor,
        );
        let mut recording = replayed(exchanges, &censor);
        let missing = recording.replay(&call("GET https://a.example/users/17", "").0).unwrap_err();
        assert_eq!(missing.nearest.as_deref(), Some("GET https://a.example/users/1"));
        let missing = recording.replay(&call("POST https://a.example/orders", "coffee").0).unwrap_err();
        assert_eq!(
            missing.message,
            "it is recorded with another body\n  recorded: \"tea\"\n  found:    \"coffee\""
        );
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
