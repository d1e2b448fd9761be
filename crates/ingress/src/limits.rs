//! How many requests a second a team and an app may have.
//!
//! A limit is a bucket of tokens that fills steadily: a request takes one. Each is one
//! number that threads exchange without a lock (the *theoretical arrival time* of the
//! generic cell rate algorithm). A request finds the buckets of its host in a
//! [table](crate::table) that its thread remembers.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::{Error, HostName, table::Table};

/// Hosts that have limits, at some 200 bytes each. More than a node serves.
pub const MAX_LIMITED_HOSTS_COUNT: usize = 1_000_000;

/// The code of the answer to a request that comes too early.
const CODE: &str = "WISP-E1014";

/// How many requests may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many in a second, steadily.
    pub requests_per_s: NonZeroU32,
    /// So many at once after a quiet time.
    pub burst_count: NonZeroU32,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The app's.
    App,
    /// The team's, which its apps share.
    Team,
}

/// A request came too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany {
    /// Whose limit it is.
    pub whose: Whose,
    /// After this it may come again.
    pub retry_after: Duration,
}

/// The limits of all hosts.
pub struct RateLimits {
    start: Instant,
    hosts: Table<Buckets>,
    /// Buckets that some host uses, by team, and by team and app.
    known: Mutex<HashMap<Owner, Weak<Bucket>>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Owner {
    team: Box<str>,
    app: Option<Box<str>>,
}

/// The buckets of a host.
struct Buckets {
    app: Arc<Bucket>,
    team: Arc<Bucket>,
}

/// A bucket of tokens. Without a rate it is never empty.
#[derive(Default)]
struct Bucket {
    /// When it will be full again, in nanoseconds since the start.
    full_at_ns: AtomicU64,
    /// How long a token takes to arrive; 0 without a rate.
    interval_ns: AtomicU64,
    /// How long it takes to fill.
    depth_ns: AtomicU64,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self::new()
    }
}

impl RateLimits {
    /// Without any.
    pub fn new() -> Self {
        Self { start: Instant::now(), hosts: Table::new(usize::MAX), known: Mutex::default() }
    }

    /// Says whose a host is. Its requests count for the app and the team, which keep
    /// their rates.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn assign(&self, host: &HostName, team: &str, app: &str) -> Result<(), Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_LIMITED_HOSTS_COUNT {
            known.retain(|_, bucket| bucket.strong_count() > 0);
        }
        if known.len() >= MAX_LIMITED_HOSTS_COUNT || self.hosts.count() >= MAX_LIMITED_HOSTS_COUNT {
            return Err(Error::TooMany { what: "hosts", max_count: MAX_LIMITED_HOSTS_COUNT });
        }
        let team_bucket = bucket(&mut known, team, None);
        let app_bucket = bucket(&mut known, team, Some(app));
        self.hosts.insert(host.as_str(), Buckets { app: app_bucket, team: team_bucket });
        Ok(())
    }

    /// A host has no limits any more.
    pub fn remove(&self, host: &HostName) {
        self.hosts.remove(host.as_str());
    }

    /// Sets the rate of an app that has a host; `None` is without end.
    pub fn set_app_rate(&self, team: &str, app: &str, rate: Option<Rate>) {
        self.set(team, Some(app), rate);
    }

    /// Sets the rate of a team of which an app has a host; `None` is without end.
    pub fn set_team_rate(&self, team: &str, rate: Option<Rate>) {
        self.set(team, None, rate);
    }

    fn set(&self, team: &str, app: Option<&str>, rate: Option<Rate>) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = Owner { team: team.into(), app: app.map(Box::from) };
        if let Some(bucket) = known.get(&owner).and_then(Weak::upgrade) {
            bucket.set(rate);
        }
    }

    /// Counts a request to a host, written in lower case. Takes no lock if this thread
    /// has seen the host before.
    ///
    /// # Errors
    /// [`TooMany`]: it is to be refused.
    pub fn take(&self, host: &str) -> Result<(), TooMany> {
        let now = || u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.hosts.with(host, |buckets| buckets.take(now)).unwrap_or(Ok(()))
    }
}

/// The bucket of a team or an app. While nobody holds it, it is full, and another.
fn bucket(known: &mut HashMap<Owner, Weak<Bucket>>, team: &str, app: Option<&str>) -> Arc<Bucket> {
    let owner = Owner { team: team.into(), app: app.map(Box::from) };
    if let Some(bucket) = known.get(&owner).and_then(Weak::upgrade) {
        return bucket;
    }
    let bucket = Arc::new(Bucket::default());
    known.insert(owner, Arc::downgrade(&bucket));
    bucket
}

impl Buckets {
    fn take(&self, now_ns: impl FnOnce() -> u64) -> Result<(), TooMany> {
        if self.app.is_endless() && self.team.is_endless() {
            return Ok(());
        }
        let now_ns = now_ns();
        let too_many = |whose, wait_ns| TooMany { whose, retry_after: Duration::from_nanos(wait_ns) };
        self.app.take(now_ns).map_err(|wait_ns| too_many(Whose::App, wait_ns))?;
        self.team.take(now_ns).map_err(|wait_ns| {
            self.app.give_back();
            too_many(Whose::Team, wait_ns)
        })
    }
}

impl Bucket {
    fn set(&self, rate: Option<Rate>) {
        let interval_ns = rate.map_or(0, |rate| 1_000_000_000 / u64::from(rate.requests_per_s.get()));
        let burst_count = rate.map_or(0, |rate| u64::from(rate.burst_count.get()));
        self.depth_ns.store(interval_ns.saturating_mul(burst_count), Ordering::Relaxed);
        if self.interval_ns.swap(interval_ns, Ordering::Relaxed) != interval_ns {
            // What was used at the old rate does not count at the new one.
            self.full_at_ns.store(0, Ordering::Relaxed);
        }
    }

    fn is_endless(&self) -> bool {
        self.interval_ns.load(Ordering::Relaxed) == 0
    }

    /// Takes a token, or says in how many nanoseconds there will be one.
    fn take(&self, now_ns: u64) -> Result<(), u64> {
        let interval_ns = self.interval_ns.load(Ordering::Relaxed);
        if interval_ns == 0 {
            return Ok(());
        }
        let depth_ns = self.depth_ns.load(Ordering::Relaxed).max(interval_ns);
        let mut full_at_ns = self.full_at_ns.load(Ordering::Relaxed);
        loop {
            let next_ns = full_at_ns.max(now_ns).saturating_add(interval_ns);
            if next_ns > now_ns.saturating_add(depth_ns) {
                return Err(next_ns - now_ns - depth_ns);
            }
            match self.full_at_ns.compare_exchange_weak(
                full_at_ns,
                next_ns,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(other) => full_at_ns = other,
            }
        }
    }

    fn give_back(&self) {
        let interval_ns = self.interval_ns.load(Ordering::Relaxed);
        self.full_at_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at_ns| {
                Some(full_at_ns.saturating_sub(interval_ns))
            })
            .ok();
    }
}

impl TooMany {
    /// The answer to the client.
    pub fn response(&self) -> Response<Bytes> {
        let whose = match self.whose {
            Whose::App => "app",
            Whose::Team => "team",
        };
        let text = format!("{CODE}: this {whose} has more requests than it may\n");
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        let headers = response.headers_mut();
        let wait_s = self.retry_after.as_millis().div_ceil(1_000).max(1);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(u64::try_from(wait_s).unwrap_or(u64::MAX)));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn rate(requests_per_s: u32, burst_count: u32) -> Option<Rate> {
        Some(Rate {
            requests_per_s: NonZeroU32::new(requests_per_s).unwrap(),
            burst_count: NonZeroU32::new(burst_count).unwrap(),
        })
    }

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let bucket = Bucket::default();
        bucket.take(0).unwrap();
        bucket.set(rate(10, 5));
        for _ in 0..5 {
            bucket.take(SECOND_NS).unwrap();
        }
        assert_eq!(bucket.take(SECOND_NS), Err(SECOND_NS / 10));
        assert_eq!(bucket.take(SECOND_NS + SECOND_NS / 20), Err(SECOND_NS / 20));
        bucket.take(SECOND_NS + SECOND_NS / 10).unwrap();
        assert!(bucket.take(SECOND_NS + SECOND_NS / 10).is_err());
        // However long it was quiet, the burst is no larger.
        for _ in 0..5 {
            bucket.take(100 * SECOND_NS).unwrap();
        }
        assert!(bucket.take(100 * SECOND_NS).is_err());
        bucket.set(rate(1_000, 1));
        bucket.take(100 * SECOND_NS).unwrap();
        assert_eq!(bucket.take(100 * SECOND_NS), Err(SECOND_NS / 1_000));
        bucket.set(None);
        bucket.take(0).unwrap();
    }

    #[test]
    fn apps_have_limits_of_their_own_and_share_their_teams() {
        let limits = RateLimits::new();
        limits.take("a.one.example").unwrap();
        limits.assign(&host("a.one.example"), "one", "a").unwrap();
        limits.assign(&host("shop.example"), "one", "a").unwrap();
        limits.assign(&host("b.one.example"), "one", "b").unwrap();
        limits.assign(&host("a.two.example"), "two", "a").unwrap();
        // One token an hour, so that the test's own time does not matter.
        limits.set_app_rate(
            "one",
            "a",
            Some(Rate { burst_count: 2.try_into().unwrap(), ..rate(1, 1).unwrap() }),
        );
        limits.set_team_rate("one", rate(1, 3));
        limits.take("a.one.example").unwrap();
        limits.take("shop.example").unwrap();
        let refused = limits.take("a.one.example").unwrap_err();
        assert_eq!(refused.whose, Whose::App);
        limits.take("b.one.example").unwrap();
        assert_eq!(limits.take("b.one.example").unwrap_err().whose, Whose::Team);
        for _ in 0..100 {
            limits.take("a.two.example").unwrap();
        }
        let response = refused.response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert!(response.body().starts_with(b"WISP-E1014: "));
        limits.remove(&host("b.one.example"));
        limits.take("b.one.example").unwrap();
    }

    #[test]
    fn what_a_team_refuses_does_not_count_for_the_app() {
        let buckets = Buckets { app: Arc::default(), team: Arc::default() };
        buckets.app.set(rate(1, 2));
        buckets.team.set(rate(1, 1));
        buckets.take(|| 0).unwrap();
        for _ in 0..10 {
            assert_eq!(buckets.take(|| 0).unwrap_err().whose, Whose::Team);
        }
        buckets.team.set(None);
        buckets.take(|| 0).unwrap();
        assert_eq!(buckets.take(|| 0).unwrap_err().whose, Whose::App);
    }

    #[test]
    fn threads_together_get_no_more_than_one() {
        let bucket = Bucket::default();
        bucket.set(rate(1, 1_000));
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1_000).filter(|_| bucket.take(0).is_ok()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1_000);
    }
}
