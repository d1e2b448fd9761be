//! Health from facts.
//!
//! Nothing is asked and nothing is run to find out how apps are: what happens to them
//! (read, compiled, verified, linked, loaded, requests that ended well or not) has left
//! marks in their entries, and a report reads those. `GET /health` over 100,000 apps is
//! one walk over the table.
//!
//! The report is JSON: counts first, then what is wrong with which app, then every app
//! with one word.
//!
//! | word | meaning |
//! | --- | --- |
//! | `registered` | nothing is known yet; it will be prepared |
//! | `ready` | prepared: it can be mapped at once |
//! | `mapped` | mapped |
//! | `warm` | mapped and used within the last minute |
//! | `unhealthy` | its newest version cannot be served, or its requests fail |

use std::{
    sync::PoisonError,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::{
    Error, Node,
    entry::{Content, Entry, Fact},
    metrics::Counts,
};

/// How many failed requests in a row make an app unhealthy.
const FAILED_IN_A_ROW_COUNT: u32 = 5;

/// For how long after its last request an app is called warm, in seconds.
const WARM_S: u32 = 60;

/// How many apps a report tells what is wrong with; of more, it says only that they are
/// unhealthy.
const EXPLAINED_COUNT: usize = 1_000;

/// How much of a reason is told.
const REASON_BYTES: usize = 2_000;

/// How an app is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Registered,
    Ready,
    Mapped,
    Warm,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Ready => "ready",
            Self::Mapped => "mapped",
            Self::Warm => "warm",
        }
    }
}

impl Node {
    fn state_of_entry(&self, entry: &Entry) -> State {
        if !entry.has(Fact::Mapped) {
            return if entry.has(Fact::Prepared) { State::Ready } else { State::Registered };
        }
        let age_s = self.now_s().saturating_sub(entry.last_used_s());
        if age_s <= WARM_S { State::Warm } else { State::Mapped }
    }

    /// How an app is, in one word.
    pub(crate) fn state_word(&self, entry: &Entry) -> &'static str {
        if is_healthy(entry) { self.state_of_entry(entry).word() } else { "unhealthy" }
    }

    /// How many apps are how.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.table.for_each(|entry| {
            counts.count(entry, self.state_of_entry(entry) == State::Warm, is_healthy(entry));
        });
        counts
    }

    /// How all apps are.
    pub(crate) fn health(&self) -> String {
        let mut counts = Counts::default();
        let mut unhealthy: Vec<Value> = Vec::new();
        // A host name of usual length and a word.
        let mut apps = String::with_capacity(self.table.count().saturating_mul(48));
        self.table.for_each(|entry| {
            let state = self.state_of_entry(entry);
            let is_healthy = is_healthy(entry);
            counts.count(entry, state == State::Warm, is_healthy);
            if !is_healthy && unhealthy.len() < EXPLAINED_COUNT {
                unhealthy.push(self.explain(entry));
            }
            // A host's name has nothing that needs escaping.
            apps.push_str(if apps.is_empty() { "\"" } else { ",\"" });
            apps.push_str(entry.host.as_str());
            apps.push_str("\":\"");
            apps.push_str(if is_healthy { state.word() } else { "unhealthy" });
            apps.push('"');
        });
        let rejected: Vec<Value> = self
            .rejected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(name, error)| json!({ "name": name, "code": error.code(), "reason": error.to_string() }))
            .collect();
        let mapped = self.runtime.mapped();
        let summary = json!({
            "status": if counts.unhealthy == 0 && rejected.is_empty() { "ok" } else { "unhealthy" },
            "counts": {
                "registered": counts.registered,
                "prepared": counts.prepared,
                "mapped": counts.mapped,
                "warm": counts.warm,
                "unhealthy": counts.unhealthy,
                "rejected": rejected.len(),
                "to_prepare": self.to_prepare.count(),
            },
            "images": { "mapped": mapped.images_count, "bytes": mapped.image_bytes },
            "change": self.newest_change(),
            "unhealthy": unhealthy,
            "rejected": rejected,
        });
        let mut report = summary.to_string();
        // The one long part is not made of values but written.
        report.pop();
        report.push_str(",\"apps\":{");
        report.push_str(&apps);
        report.push_str("}}\n");
        report
    }

    /// What is known about one app, as JSON.
    ///
    /// # Errors
    /// [`Error::NoApp`].
    pub fn facts(&self, host: &str) -> Result<Value, Error> {
        let entry = self.table.get(host).ok_or_else(|| Error::NoApp { host: host.to_owned() })?;
        let mut facts = json!({
            "host": host,
            "state": self.state_of_entry(&entry).word(),
            "healthy": is_healthy(&entry),
            "facts": {
                "registered": true,
                "manifest_ok": entry.has(Fact::ManifestOk),
                // A pass finds out all three or none.
                "compiled": entry.has(Fact::Prepared),
                "image_verified": entry.has(Fact::Prepared),
                "links_resolve": entry.has(Fact::Prepared),
                "probed": entry.has(Fact::Probed),
            },
            "can_roll_back": entry.has(Fact::HasPrevious),
        });
        let outcomes = entry.known_outcomes();
        facts["requests"] = json!({
            "answered": outcomes.map_or(0, |outcomes| outcomes.answered_count()),
            "failed": outcomes.map_or(0, |outcomes| outcomes.failed_count()),
            "failed_in_a_row": outcomes.map_or(0, |outcomes| outcomes.failed_in_a_row_count()),
        });
        let state = entry.state();
        facts["change"] = state.number.into();
        facts["rolled_back"] = state.left.is_some().into();
        match self.content(&entry, &state) {
            Content::Folder(folder) => facts["folder"] = folder.display().to_string().into(),
            Content::Release(release) => facts["release"] = release.to_string().into(),
        }
        drop(state);
        if let Some(version) = entry.version() {
            facts["version"] = json!({
                "change": version.number,
                "name": version.http.name(),
            });
            match version.content() {
                Content::Folder(folder) => facts["version"]["folder"] = folder.display().to_string().into(),
                Content::Release(release) => facts["version"]["release"] = release.to_string().into(),
            }
        }
        if !is_healthy(&entry) {
            facts["problem"] = self.explain(&entry);
        }
        Ok(facts)
    }

    /// What is wrong with an app.
    fn explain(&self, entry: &Entry) -> Value {
        let still_serves = entry.has(Fact::Mapped);
        if let Some(problem) = &entry.state().problem {
            let end = problem.message.floor_char_boundary(REASON_BYTES);
            return json!({
                "host": entry.host.as_str(),
                "code": problem.code,
                "reason": &problem.message[..end],
                "since_unix_s": unix_s(problem.since),
                "serves_version_before": still_serves,
            });
        }
        let count = entry.known_outcomes().map_or(0, |outcomes| outcomes.failed_in_a_row_count());
        let error = Error::Failing { host: entry.host.to_string(), count };
        json!({ "host": entry.host.as_str(), "code": error.code(), "reason": error.to_string() })
    }
}

/// Whether an app is well, as far as is known.
fn is_healthy(entry: &Entry) -> bool {
    !entry.has(Fact::Broken)
        && entry
            .known_outcomes()
            .is_none_or(|outcomes| outcomes.failed_in_a_row_count() < FAILED_IN_A_ROW_COUNT)
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
