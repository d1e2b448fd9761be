//! The world around a test: a clock, and a network that knows its lines.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use toml::value::{Datetime, Offset};
use wisp_capability::{VirtualWorld, outbound_http::Script, wasi::WallClock};

use super::{
    Failure, check,
    file::{Answer, Outbound, Test},
};

/// What time it is where a test does not say.
pub(super) const DEFAULT_CLOCK: &str = "2020-01-01T00:00:00Z";

/// The same, since 1970.
const DEFAULT_CLOCK_S: u64 = 1_577_836_800;

/// Calls that are kept of one test, to tell about. A component in a loop makes more.
const MAX_CALLS_COUNT: usize = 1_000;

/// The world of one test.
pub(super) struct World {
    clock: Arc<Clock>,
    network: Arc<Network>,
}

/// A clock that stands still.
pub(super) struct Clock {
    now_ns: AtomicU64,
    was_read: AtomicBool,
}

/// Answers calls as the test says, and remembers what it could not.
struct Network {
    lines: Vec<Line>,
    calls: Mutex<Vec<Call>>,
}

/// A call that the test expects.
struct Line {
    outbound: Outbound,
    count: AtomicUsize,
}

/// A call that went wrong.
enum Call {
    Unexpected { component: String, call: String },
    NotAllowed { component: String, call: String, entry: String },
    Different(Vec<Failure>),
}

impl World {
    pub(super) fn new(test: &Test) -> Self {
        let now = test.clock.unwrap_or(Duration::from_secs(DEFAULT_CLOCK_S));
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let lines = test
            .outbound
            .iter()
            .map(|outbound| Line { outbound: outbound.clone(), count: AtomicUsize::new(0) });
        Self {
            clock: Arc::new(Clock { now_ns: AtomicU64::new(now_ns), was_read: AtomicBool::new(false) }),
            network: Arc::new(Network { lines: lines.collect(), calls: Mutex::default() }),
        }
    }

    pub(super) fn virtual_world(&self) -> VirtualWorld {
        VirtualWorld { clock: Some(self.clock.clone()), http: Some(self.network.clone()) }
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What components did on the network that the test does not expect, and what they
    /// did not do that it does.
    pub(super) fn failures(&self, test: &Test) -> Vec<Failure> {
        let mut failures = Vec::new();
        for call in self.network.calls.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            match call {
                Call::Unexpected { component, call } => failures.push(Failure {
                    line: test.line,
                    message: format!(
                        "component `{component}` called `{call}`, which the test does not expect"
                    ),
                    hint: Some(format!(
                        "if it may, add `[[test.outbound]]` with `request = \"{call}\"` and a `response`"
                    )),
                }),
                Call::NotAllowed { component, call, entry } => failures.push(Failure {
                    line: test.line,
                    message: format!(
                        "component `{component}` called `{call}`, which its manifest does not allow"
                    ),
                    hint: Some(format!(
                        "add \"{entry}\" to its `allowed_outbound_hosts`, or expect it with \
                         `[[test.outbound]]`, `request = \"{call}\"` and `refused = true`"
                    )),
                }),
                Call::Different(different) => failures.extend(different),
            }
        }
        for Line { outbound, count } in &self.network.lines {
            let count = count.load(Ordering::Relaxed);
            let name = format!("`{} {}`", outbound.method, outbound.url);
            let message = match outbound.times {
                None if count == 0 => format!("no component called {name}"),
                Some(times) if times != count => {
                    format!("{name} was called {}, but {} expected", times_of(count), times_of(times))
                }
                _ => continue,
            };
            failures.push(Failure { line: outbound.line, message, hint: None });
        }
        failures
    }
}

fn times_of(count: usize) -> String {
    match count {
        0 => "never".into(),
        1 => "once".into(),
        _ => format!("{count} times"),
    }
}

impl Clock {
    pub(super) fn advance(&self, by: Duration) {
        self.now_ns.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn was_read(&self) -> bool {
        self.was_read.load(Ordering::Relaxed)
    }
}

impl WallClock for Clock {
    fn now(&self) -> Duration {
        self.was_read.store(true, Ordering::Relaxed);
        Duration::from_nanos(self.now_ns.load(Ordering::Relaxed))
    }
}

impl Network {
    fn find(&self, method: &Method, uri: &Uri, is_refused: bool) -> Option<&Line> {
        let url = uri.to_string();
        let fits = |line: &&Line| {
            let outbound = &line.outbound;
            outbound.method == *method
                && matches!(outbound.answer, Answer::Refused) == is_refused
                && fits(&outbound.url, &url)
        };
        // One that is not used up goes first, so that the same call may get one answer
        // after the other.
        let is_left =
            |line: &&Line| line.outbound.times.is_none_or(|times| line.count.load(Ordering::Relaxed) < times);
        self.lines.iter().filter(fits).find(is_left).or_else(|| self.lines.iter().rfind(fits))
    }

    fn remember(&self, call: Call) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.len() < MAX_CALLS_COUNT {
            calls.push(call);
        }
    }
}

impl Script for Network {
    fn answer(&self, component: &str, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let call = format!("{} {}", request.method(), request.uri());
        let Some(line) = self.find(request.method(), request.uri(), false) else {
            self.remember(Call::Unexpected { component: component.to_owned(), call });
            return None;
        };
        line.count.fetch_add(1, Ordering::Relaxed);
        let different = check::outbound(&call, &line.outbound.expect, &request);
        if !different.is_empty() {
            self.remember(Call::Different(different));
        }
        match &line.outbound.answer {
            Answer::Response(response) => Some(response.clone()),
            Answer::Unreachable | Answer::Refused => None,
        }
    }

    fn refused(&self, component: &str, method: &Method, uri: &Uri) {
        match self.find(method, uri, true) {
            Some(line) => {
                line.count.fetch_add(1, Ordering::Relaxed);
            }
            None => {
                let origin =
                    (uri.scheme_str().unwrap_or("https"), uri.authority().map_or("", |host| host.as_str()));
                self.remember(Call::NotAllowed {
                    component: component.to_owned(),
                    call: format!("{method} {uri}"),
                    entry: format!("{}://{}", origin.0, origin.1),
                });
            }
        }
    }
}

/// Whether a URL is what a pattern with `*` says.
fn fits(pattern: &str, url: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(rest) = parts.next().and_then(|first| url.strip_prefix(first)) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        // A URI without a path is shown with one.
        return rest.is_empty() || rest == "/";
    };
    let mut rest = rest;
    for part in middle {
        match rest.find(part) {
            Some(start) => rest = &rest[start + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The time since 1970 of a date with time and offset.
pub(super) fn to_unix(datetime: &Datetime) -> Option<Duration> {
    let (date, time, offset) = (datetime.date?, datetime.time?, datetime.offset?);
    // Days since 1970 by the calendar's rules, with years that begin in March: then the
    // day that some years have more is the last one.
    let (year, month, day) = (i64::from(date.year), i64::from(date.month), i64::from(date.day));
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let seconds = days * 86_400
        + i64::from(time.hour) * 3_600
        + (i64::from(time.minute) - minutes) * 60
        + i64::from(time.second.unwrap_or(0));
    Some(Duration::new(u64::try_from(seconds).ok()?, time.nanosecond.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn dates_are_seconds_since_1970() {
        let unix = |text: &str| to_unix(&text.parse().unwrap());
        assert_eq!(unix("1970-01-01T00:00:00Z"), Some(Duration::ZERO));
        assert_eq!(unix(DEFAULT_CLOCK), Some(Duration::from_secs(DEFAULT_CLOCK_S)));
        assert_eq!(unix("2024-02-29T23:59:59.5Z"), Some(Duration::from_millis(1_709_251_199_500)));
        assert_eq!(unix("2026-02-01T12:00:00+01:00"), Some(Duration::from_secs(1_769_943_600)));
        assert_eq!(unix("2000-03-01T00:00:00Z"), Some(Duration::from_secs(951_868_800)));
        assert_eq!(unix("1969-12-31T00:00:00Z"), None);
        assert_eq!(unix("2026-02-01"), None);
    }

    #[test]
    fn a_star_is_anything() {
        assert!(fits("https://a.example/x", "https://a.example/x"));
        assert!(fits("https://a.example", "https://a.example/"));
        assert!(!fits("https://a.example", "https://a.example/x"));
        assert!(fits("https://a.example/*", "https://a.example/x?y=z"));
        assert!(fits("https://*/x?*", "https://a.example/x?y=z"));
        assert!(!fits("https://*/y", "https://a.example/x"));
        assert!(fits("*/a/*/c", "http://h/a/b/c"));
    }
}
