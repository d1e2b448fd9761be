//! What was expected against what there is, in words.

use std::{borrow::Cow, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use serde_json::Value as Json;
use wisp_capability::sqlite::Value as SqlValue;
use wisp_manifest::{
    App,
    model::{HttpRoute, TriggerKind},
};
use wisp_node::AppState;

use super::{
    Failure, difference,
    file::{Expect, Matcher, Query, Step, Test},
};

/// How much of a text is shown in a message.
const MAX_SHOWN_CHARS: usize = 400;

/// How many keys of a store are named in a message.
const MAX_LISTED_COUNT: usize = 10;

/// Compares an answer with what a step expects of it. `name` is the request's.
pub(super) fn response(name: &str, step: &Step, response: &Response<Bytes>, app: &App) -> Vec<Failure> {
    let expect = &step.expect;
    let mut failures = Vec::new();
    match expect.status {
        Some((line, expected)) if expected != response.status() => failures.push(Failure {
            line,
            message: format!(
                "the answer to {name} has the status {}, but {} was expected",
                shown_status(response.status()),
                shown_status(expected)
            ),
            hint: status_hint(response.status(), app),
        }),
        // Nobody expects a failure without saying so.
        None if response.status().is_server_error() => failures.push(Failure {
            line: step.request.line,
            message: format!("the answer to {name} has the status {}", shown_status(response.status())),
            hint: status_hint(response.status(), app),
        }),
        _ => {}
    }
    let what = format!("the answer to {name}");
    failures.extend(headers(&what, expect, response.headers()));
    failures.extend(body(&what, expect, response.body()));
    failures
}

/// Compares a request that a component sent with what a test expects of it.
pub(super) fn outbound(call: &str, expect: &Expect, request: &Request<Bytes>) -> Vec<Failure> {
    let what = format!("the request `{call}` of a component");
    let mut failures = headers(&what, expect, request.headers());
    failures.extend(body(&what, expect, request.body()));
    failures
}

/// Compares stores and databases with what a test expects of them at its end.
pub(super) async fn state(test: &Test, state: &Arc<AppState>) -> Vec<Failure> {
    let mut failures = Vec::new();
    for (line, label, key, matcher) in &test.then.key_values {
        let failed = |message: String, hint: Option<String>| Failure { line: *line, message, hint };
        let what = format!("the key `{key}` of the store `{label}`");
        match state.stores().get(label, key).await {
            Err(error) => failures.push(failed(error.to_string(), error.hint())),
            Ok(None) if matches!(matcher, Matcher::Absent) => {}
            Ok(None) => {
                let there = state.stores().keys(label).await.unwrap_or_default();
                let hint = match there.is_empty() {
                    true => "no component set it, or one deleted it again; the store is empty".to_owned(),
                    false => format!("the store has {}", listed(&there)),
                };
                failures.push(failed(format!("{what} was not written"), Some(hint)));
            }
            Ok(Some(value)) => {
                failures.extend(differs(&what, matcher, &value).map(|message| failed(message, None)));
            }
        }
    }
    for query in &test.then.sql {
        failures.extend(rows(query, state));
    }
    failures
}

/// Compares what components wrote with what a test expects of it.
pub(super) fn written(what: &str, line: usize, matcher: &Matcher, text: &str) -> Option<Failure> {
    if matches!(matcher, Matcher::Absent) && text.is_empty() {
        return None;
    }
    differs(what, matcher, text.as_bytes()).map(|message| Failure { line, message, hint: None })
}

/// Some names of many.
fn listed(names: &[String]) -> String {
    let mut text: Vec<_> =
        names.iter().take(MAX_LISTED_COUNT).map(|name| format!("`{}`", shown(name))).collect();
    if names.len() > MAX_LISTED_COUNT {
        text.push(format!("{} more", names.len() - MAX_LISTED_COUNT));
    }
    text.join(", ")
}

fn rows(query: &Query, state: &AppState) -> Option<Failure> {
    let Query { line, database, query, rows } = query;
    let failed = |message: String| Some(Failure { line: *line, message, hint: None });
    let found = match state.databases().query(database, query) {
        Ok(found) => found,
        Err(error) => return failed(format!("the database `{database}` cannot say: {error}")),
    };
    let found: Vec<Vec<Json>> = found.iter().map(|row| row.iter().map(json_of).collect()).collect();
    let is_same = found.len() == rows.len()
        && found.iter().zip(rows).all(|(found, expected)| {
            found.len() == expected.len() && found.iter().zip(expected).all(|(one, other)| same(one, other))
        });
    if is_same {
        return None;
    }
    failed(format!(
        "`{query}` in the database `{database}` returns other rows\n  expected: {}\n  found:    {}",
        shown(&Json::from(rows.clone()).to_string()),
        shown(&Json::from(found).to_string())
    ))
}

fn json_of(value: &SqlValue) -> Json {
    match value {
        SqlValue::Integer(number) => (*number).into(),
        SqlValue::Real(number) => (*number).into(),
        SqlValue::Text(text) => text.as_str().into(),
        SqlValue::Blob(bytes) => hex::encode(bytes).into(),
        SqlValue::Null => Json::Null,
    }
}

fn headers(what: &str, expect: &Expect, headers: &HeaderMap) -> Vec<Failure> {
    let mut failures = Vec::new();
    for (line, name, matcher) in &expect.headers {
        let failed = |message: String, hint: Option<String>| Failure { line: *line, message, hint };
        let values: Vec<_> =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        match (&values[..], matcher) {
            ([], Matcher::Absent) => {}
            ([], _) => {
                let there: Vec<_> = headers.keys().map(|name| format!("`{name}`")).collect();
                let there = if there.is_empty() { "none at all".into() } else { there.join(", ") };
                let hint = Some(format!("it has {there}"));
                failures.push(failed(format!("{what} has no header `{name}`"), hint));
            }
            (values, matcher) => {
                let value = values.join(", ");
                let what = format!("the header `{name}` of {what}");
                failures
                    .extend(differs(&what, matcher, value.as_bytes()).map(|message| failed(message, None)));
            }
        }
    }
    failures
}

fn body(what: &str, expect: &Expect, body: &Bytes) -> Vec<Failure> {
    let mut failures = Vec::new();
    let text = String::from_utf8_lossy(body);
    if let Some((line, matcher)) = &expect.body {
        let is_absent = matches!(matcher, Matcher::Absent) && body.is_empty();
        let message = (!is_absent).then(|| differs(&format!("the body of {what}"), matcher, body)).flatten();
        failures.extend(message.map(|message| Failure { line: *line, message, hint: None }));
    }
    if expect.json.is_empty() {
        return failures;
    }
    let json: Json = match serde_json::from_str(&text) {
        Ok(json) => json,
        Err(error) => {
            failures.push(Failure {
                line: expect.json.first().map_or(0, |(line, ..)| *line),
                message: format!("the body of {what} is no JSON: {error}\n  found: {}", shown(&text)),
                hint: None,
            });
            return failures;
        }
    };
    for (line, path, expected) in &expect.json {
        let failed = |message: String| Failure { line: *line, message, hint: None };
        match at(&json, path) {
            None => failures.push(failed(format!(
                "the JSON in the body of {what} has nothing at `{path}`\n  found: {}",
                shown(&text)
            ))),
            Some(found) if !same(found, expected) => failures.push(failed(format!(
                "the JSON in the body of {what} is different at `{path}`{}",
                difference::of_json(path, expected, found)
            ))),
            Some(_) => {}
        }
    }
    failures
}

/// How something differs from what is expected of it, if it does.
fn differs(what: &str, matcher: &Matcher, bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    match matcher {
        Matcher::Equals(expected) if expected.as_bytes() == bytes => None,
        Matcher::Equals(expected) => {
            Some(format!("{what} is different{}", difference::of_texts(expected, &text)))
        }
        Matcher::Bytes(expected) if *expected == bytes => None,
        Matcher::Bytes(expected) => Some(format!(
            "{what} is different\n  expected: {} ({} bytes)\n  found:    {} ({} bytes)",
            shown(&STANDARD.encode(expected)),
            expected.len(),
            shown(&STANDARD.encode(bytes)),
            bytes.len()
        )),
        Matcher::Contains(parts) => {
            let missing = parts.iter().find(|part| !text.contains(part.as_str()))?;
            Some(format!("{what} does not contain {}\n  found: {}", quoted(missing), quoted(&text)))
        }
        Matcher::Matches(pattern) if pattern.is_match(&text) => None,
        Matcher::Matches(pattern) => {
            Some(format!("{what} does not match `{pattern}`\n  found: {}", quoted(&text)))
        }
        Matcher::Absent => Some(format!("{what} is there, but should not be\n  found: {}", quoted(&text))),
    }
}

/// The value at a path such as `items[0].name`; `$` is all of it.
fn at<'json>(json: &'json Json, path: &str) -> Option<&'json Json> {
    let path = path.strip_prefix('$').unwrap_or(path);
    let mut found = json;
    for part in path.split(['.', '[']).filter(|part| !part.is_empty()) {
        found = match part.strip_suffix(']') {
            Some(index) => found.get(index.parse::<usize>().ok()?)?,
            None => found.get(part)?,
        };
    }
    Some(found)
}

/// Whether two values of JSON are the same; 1 and 1.0 are.
pub(super) fn same(one: &Json, other: &Json) -> bool {
    match (one, other) {
        (Json::Number(one), Json::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Json::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Json::Object(one), Json::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
        }
        (one, other) => one == other,
    }
}

fn shown_status(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} ({reason})", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

fn status_hint(found: StatusCode, app: &App) -> Option<String> {
    match found {
        StatusCode::NOT_FOUND => {
            let routes: Vec<_> = app
                .triggers
                .iter()
                .filter_map(|trigger| match &trigger.kind {
                    TriggerKind::Http(http) => match &http.route {
                        HttpRoute::Pattern(pattern) => Some(format!("`{}`", pattern.as_str())),
                        HttpRoute::Private => None,
                    },
                    _ => None,
                })
                .collect();
            Some(format!("the app's routes are {}", routes.join(", ")))
        }
        StatusCode::INTERNAL_SERVER_ERROR => {
            Some("usually the component failed; what it wrote to its log is below".into())
        }
        StatusCode::METHOD_NOT_ALLOWED => Some("the component does not take this method".into()),
        _ => None,
    }
}

pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", shown(text))
}

/// A text that fits into a message.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        None => text.into(),
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_into_json() {
        let json = serde_json::json!({ "items": [{ "name": "a" }, { "name": "b" }], "n": 1 });
        assert_eq!(at(&json, "items[1].name"), Some(&"b".into()));
        assert_eq!(at(&json, "$.n"), Some(&1.into()));
        assert_eq!(at(&json, "$"), Some(&json));
        assert_eq!(at(&json, "items[2]"), None);
        assert_eq!(at(&json, "items.name"), None);
        assert!(same(&1.into(), &serde_json::json!(1.0)) && !same(&1.into(), &"1".into()));
    }

    #[test]
    fn long_texts_are_cut_in_messages() {
        let text = "ä".repeat(1_000);
        assert_eq!(shown(&text).chars().count(), MAX_SHOWN_CHARS + "… (2000 bytes)".chars().count());
        assert_eq!(shown("short"), "short");
    }
}
