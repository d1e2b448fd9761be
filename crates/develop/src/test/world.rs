//! The world around a test: time, random numbers, and a network that knows its lines.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use toml::value::{Datetime, Offset};
use wisp_capability::{
    VirtualRandom, VirtualTime, VirtualWorld,
    outbound_http::{Script, Scripted},
    test_component::{Call, CallOutcome},
};

use wisp_node::TEST_COMPONENT_ID;

use super::{
    Failure, check,
    file::{Answer, Expect, Outbound, Setup},
    recording::{Exchange, Missing, Recording},
};

/// What time it is where a test does not say.
pub(super) const DEFAULT_CLOCK: &str = "2020-01-01T00:00:00Z";

/// The same, since 1970.
const DEFAULT_CLOCK_S: u64 = 1_577_836_800;

/// Calls that are kept of one test, to tell about. A component in a loop makes more.
const MAX_CALLS_COUNT: usize = 10_000;

/// How much of their bodies is kept; later ones are forgotten.
const MAX_CALLS_BYTES: usize = 64 << 20;

/// Calls that a test may expect.
const MAX_LINES_COUNT: usize = 10_000;

/// What went wrong on the network that is kept of one test: all of it is shown.
const MAX_WRONG_COUNT: usize = 100;

/// The world of one test.
pub(super) struct World {
    time: Arc<VirtualTime>,
    random: Arc<VirtualRandom>,
    network: Arc<Network>,
}

/// Answers calls as the test says, and remembers what it could not.
struct Network(Mutex<Wire>);

struct Wire {
    lines: Vec<Line>,
    recording: Recording,
    calls: Vec<Call>,
    calls_bytes: usize,
    wrong: Vec<Wrong>,
    /// What components asked for that no test has: who, what and where.
    unavailable: BTreeSet<(String, String, String)>,
}

/// A call that the test expects.
struct Line {
    outbound: Outbound,
    count: usize,
}

/// A call that went wrong.
enum Wrong {
    Unexpected {
        component: String,
        call: String,
    },
    NotRecorded {
        component: String,
        call: String,
        missing: Missing,
    },
    NotAllowed {
        component: String,
        call: String,
        entry: String,
    },
    /// The component with the test itself called elsewhere.
    OfTest {
        call: String,
    },
    Different(Vec<Failure>),
}

impl World {
    pub(super) fn new(setup: &Setup, outbound: &[Outbound], recording: Recording) -> Self {
        let now = setup.clock.unwrap_or(Duration::from_secs(DEFAULT_CLOCK_S));
        let lines = outbound.iter().map(|outbound| Line { outbound: outbound.clone(), count: 0 }).collect();
        Self {
            time: Arc::new(VirtualTime::new(now)),
            random: Arc::new(VirtualRandom::new(setup.seed)),
            network: Arc::new(Network(Mutex::new(Wire {
                lines,
                recording,
                calls: Vec::new(),
                calls_bytes: 0,
                wrong: Vec::new(),
                unavailable: BTreeSet::new(),
            }))),
        }
    }

    pub(super) fn virtual_world(&self) -> VirtualWorld {
        VirtualWorld {
            time: Some(self.time.clone()),
            random: Some(self.random.clone()),
            http: Some(self.network.clone()),
        }
    }

    pub(super) fn time(&self) -> &Arc<VirtualTime> {
        &self.time
    }

    /// Expects a call from now on.
    pub(super) fn expect(&self, outbound: Outbound) -> Result<(), String> {
        let mut wire = self.network.wire();
        if wire.lines.len() >= MAX_LINES_COUNT {
            return Err(format!("a test expects more than {MAX_LINES_COUNT} calls"));
        }
        wire.lines.push(Line { outbound, count: 0 });
        Ok(())
    }

    /// The calls so far, in order.
    pub(super) fn calls(&self) -> Vec<Call> {
        self.network.wire().calls.clone()
    }

    /// Calls of the recording that were not made.
    pub(super) fn stale(&self) -> Option<String> {
        self.network.wire().recording.stale()
    }

    /// What components asked for that no test has, in words.
    pub(super) fn unavailable(&self) -> Vec<String> {
        let wire = self.network.wire();
        let said = wire.unavailable.iter().map(|(component, family, place)| {
            format!(
                "component `{component}` asked for {family} at `{place}` and got an error: in a test there \
                 are no servers but those of `[[test.outbound]]`"
            )
        });
        said.collect()
    }

    /// What was recorded; whether that is all there was.
    pub(super) fn recorded(&self) -> (Vec<Exchange>, bool) {
        let recording = &self.network.wire().recording;
        match recording {
            Recording::Recorded { exchanges, .. } => (exchanges.clone(), !recording.is_full()),
            Recording::None | Recording::Replayed { .. } => (Vec::new(), true),
        }
    }

    /// What components did on the network that the test does not expect, and what they
    /// did not do that it does. `line` is the test's own; `is_component` if it is one that
    /// a component has.
    pub(super) fn failures(&self, line: usize, is_component: bool) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut wire = self.network.wire();
        for wrong in wire.wrong.drain(..) {
            let (message, hint) = match wrong {
                Wrong::Different(different) => {
                    failures.extend(different);
                    continue;
                }
                Wrong::Unexpected { component, call } => {
                    let hint = match is_component {
                        false => format!(
                            "if it may, add `[[test.outbound]]` with `request = \"{call}\"` and a `response`"
                        ),
                        true => "if it may, `expect` it with its answer before the request".into(),
                    };
                    let message =
                        format!("component `{component}` called `{call}`, which the test does not expect");
                    (message, hint)
                }
                Wrong::NotRecorded { component, call, missing: Missing { message, nearest } } => {
                    let nearest =
                        nearest.map(|nearest| format!("\n  nearest: {nearest}")).unwrap_or_default();
                    let message = format!("component `{component}` called `{call}`, but {message}{nearest}");
                    (message, "`wisp test --record` makes the call and records it".into())
                }
                Wrong::OfTest { call } => (
                    format!("the test itself called `{call}`"),
                    "requests of a test go to the app, at `http://self.alt/`, and nowhere else".into(),
                ),
                Wrong::NotAllowed { component, call, entry } => {
                    let expect = match is_component {
                        false => format!(
                            "expect it with `[[test.outbound]]`, `request = \"{call}\"` and `refused = true`"
                        ),
                        true => "`expect` it with the answer `refused`".into(),
                    };
                    let message =
                        format!("component `{component}` called `{call}`, which its manifest does not allow");
                    (message, format!("add \"{entry}\" to its `allowed_outbound_hosts`, or {expect}"))
                }
            };
            failures.push(Failure { line, message, hint: Some(hint) });
        }
        for Line { outbound, count } in &wire.lines {
            let name = format!("`{} {}`", outbound.method, outbound.url);
            let message = match outbound.times {
                None if *count == 0 => format!("no component called {name}"),
                Some(times) if times != *count => {
                    format!("{name} was called {}, but {} expected", times_of(*count), times_of(times))
                }
                _ => continue,
            };
            failures.push(Failure { line: outbound.line, message, hint: None });
        }
        failures
    }

    /// Whether the calls that got through were these, in this order.
    pub(super) fn calls_in_order(&self, line: usize, expected: &[(Method, String)]) -> Option<Failure> {
        let wire = self.network.wire();
        let name = |request: &Request<Bytes>| format!("{} {}", request.method(), request.uri());
        let is_same = wire.calls.len() == expected.len()
            && wire.calls.iter().zip(expected).all(|(call, (method, url))| {
                call.request.method() == method && fits(url, &call.request.uri().to_string())
            });
        if is_same {
            return None;
        }
        let list = |names: Vec<String>| match names.is_empty() {
            true => "\n    none".to_owned(),
            false => names.iter().map(|name| format!("\n    {name}")).collect(),
        };
        let message = format!(
            "the app made other calls\n  expected:{}\n  found:{}",
            list(expected.iter().map(|(method, url)| format!("{method} {url}")).collect()),
            list(wire.calls.iter().map(|call| name(&call.request)).collect())
        );
        Some(Failure { line, message, hint: None })
    }
}

fn times_of(count: usize) -> String {
    match count {
        0 => "never".into(),
        1 => "once".into(),
        _ => format!("{count} times"),
    }
}

impl Network {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    fn find(&mut self, method: &Method, uri: &Uri, is_refused: bool) -> Option<&mut Line> {
        let url = uri.to_string();
        let fits = |line: &Line| {
            let outbound = &line.outbound;
            outbound.method == *method
                && matches!(outbound.answer, Answer::Refused) == is_refused
                && fits(&outbound.url, &url)
        };
        // One that is not used up goes first, so that the same call may get one answer
        // after the other.
        let is_left = |line: &Line| line.outbound.times.is_none_or(|times| line.count < times);
        let found = self.lines.iter().position(|line| fits(line) && is_left(line));
        let found = found.or_else(|| self.lines.iter().rposition(fits))?;
        self.lines.get_mut(found)
    }

    /// Keeps a call, to be told about.
    fn keep(&mut self, component: &str, request: Request<Bytes>, outcome: CallOutcome) {
        if self.calls.len() >= MAX_CALLS_COUNT {
            return;
        }
        self.calls_bytes += request.body().len();
        let request = match self.calls_bytes > MAX_CALLS_BYTES {
            true => request.map(|_| Bytes::new()),
            false => request,
        };
        self.calls.push(Call { component: component.to_owned(), request, outcome });
    }

    fn wrong(&mut self, wrong: Wrong) {
        if self.wrong.len() < MAX_WRONG_COUNT {
            self.wrong.push(wrong);
        }
    }
}

impl Script for Network {
    fn answer(&self, component: &str, request: &Request<Bytes>) -> Scripted {
        let call = format!("{} {}", request.method(), request.uri());
        let mut wire = self.wire();
        if let Some(line) = wire.find(request.method(), request.uri(), false) {
            line.count += 1;
            let different = check::outbound(&call, &line.outbound.expect, request);
            let (answer, delay) = (line.outbound.answer.clone(), line.outbound.delay);
            if !different.is_empty() {
                wire.wrong(Wrong::Different(different));
            }
            let (outcome, scripted) = match answer {
                Answer::Response(response) => (CallOutcome::Answered, Scripted::Response(response, delay)),
                Answer::Unreachable | Answer::Refused => {
                    (CallOutcome::Unreachable, Scripted::Unreachable(delay))
                }
            };
            wire.keep(component, request.clone(), outcome);
            return scripted;
        }
        let component = component.to_owned();
        let (outcome, scripted) = match &mut wire.recording {
            // Kept when it is known how it ends.
            Recording::Recorded { .. } => return Scripted::PassOn,
            Recording::None => {
                wire.wrong(Wrong::Unexpected { component: component.clone(), call });
                (CallOutcome::Unexpected, Scripted::Unreachable(Duration::ZERO))
            }
            recording @ Recording::Replayed { .. } => match recording.replay(request) {
                Ok(Some(response)) => (CallOutcome::Answered, Scripted::Response(response, Duration::ZERO)),
                Ok(None) => (CallOutcome::Unreachable, Scripted::Unreachable(Duration::ZERO)),
                Err(missing) => {
                    wire.wrong(Wrong::NotRecorded { component: component.clone(), call, missing });
                    (CallOutcome::Unexpected, Scripted::Unreachable(Duration::ZERO))
                }
            },
        };
        wire.keep(&component, request.clone(), outcome);
        scripted
    }

    fn passed_on(&self, component: &str, request: &Request<Bytes>, response: Option<&Response<Bytes>>) {
        let outcome = match response {
            Some(_) => CallOutcome::Answered,
            None => CallOutcome::Unreachable,
        };
        let mut wire = self.wire();
        wire.recording.record(request, response);
        wire.keep(component, request.clone(), outcome);
    }

    fn refused(&self, component: &str, method: &Method, uri: &Uri) {
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        let mut wire = self.wire();
        if component == TEST_COMPONENT_ID {
            wire.wrong(Wrong::OfTest { call: format!("{method} {uri}") });
            return;
        }
        wire.keep(component, request, CallOutcome::Refused);
        if let Some(line) = wire.find(method, uri, true) {
            line.count += 1;
            return;
        }
        let origin = (uri.scheme_str().unwrap_or("https"), uri.authority().map_or("", |host| host.as_str()));
        wire.wrong(Wrong::NotAllowed {
            component: component.to_owned(),
            call: format!("{method} {uri}"),
            entry: format!("{}://{}", origin.0, origin.1),
        });
    }

    fn unavailable(&self, component: &str, family: &str, place: &str) {
        let mut wire = self.wire();
        if wire.unavailable.len() < MAX_WRONG_COUNT {
            wire.unavailable.insert((component.to_owned(), family.to_owned(), place.to_owned()));
        }
    }
}

impl Outbound {
    /// A call that a component with tests expects.
    pub(super) fn of_component(
        line: usize,
        call: wisp_capability::test_component::ExpectedCall,
    ) -> Result<Self, String> {
        use wisp_capability::test_component::ExpectedAnswer;

        if !call.url.contains("://") {
            return Err(format!("`{}` is no URL: it begins with `https://` or `http://`", call.url));
        }
        Ok(Self {
            line,
            method: call.method,
            url: call.url,
            expect: Expect::default(),
            answer: match call.answer {
                ExpectedAnswer::Response(response) => Answer::Response(response),
                ExpectedAnswer::Unreachable => Answer::Unreachable,
                ExpectedAnswer::Refused => Answer::Refused,
            },
            delay: call.delay,
            times: call.times,
        })
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
