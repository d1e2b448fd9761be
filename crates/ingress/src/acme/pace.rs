//! How often an authority is asked, so that it goes on answering.
//!
//! Authorities bound what one account may do: orders by the hour, certificates by domain
//! and by host in a week, failed checks by host in an hour. Ours are below those of
//! Let's Encrypt (300 orders in 3 hours, 50 certificates a domain and 5 equal ones a
//! week, 5 failures a host and hour). What we count is forgotten when the process ends;
//! certificates are not, so that a restart asks for nothing again.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, SystemTime},
};

use crate::{Error, HostName};

/// Orders in an hour, for all hosts.
pub const MAX_ORDERS_PER_HOUR_COUNT: usize = 80;

/// Orders in a week for hosts below one registered domain. Renewals do not count.
pub const MAX_ORDERS_PER_DOMAIN_AND_WEEK_COUNT: usize = 45;

/// Orders in a week for one host, renewals included.
pub const MAX_ORDERS_PER_HOST_AND_WEEK_COUNT: usize = 4;

/// The pause after the first failed check of a host. It grows by `PAUSE_FACTOR` with each
/// one that follows. With it, at most 3 checks fail in the first hour.
pub const FIRST_HOST_PAUSE: Duration = Duration::from_secs(60);

/// The longest pause after a failed check.
pub const MAX_HOST_PAUSE: Duration = Duration::from_secs(12 * 3600);

/// The pause after the authority could not be reached. Doubled each time.
pub const FIRST_AUTHORITY_PAUSE: Duration = Duration::from_secs(10);

/// The longest pause after the authority could not be reached.
pub const MAX_AUTHORITY_PAUSE: Duration = Duration::from_secs(1800);

/// The pause for a host after the authority said that we ask too often.
pub const TOO_OFTEN_PAUSE: Duration = Duration::from_secs(3600);

const PAUSE_FACTOR: u32 = 4;
const HOUR: Duration = Duration::from_secs(3600);
const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// Hosts and domains that are counted. Each has been accepted as ours.
const MAX_TRACKED_COUNT: usize = 100_000;

/// What was asked of an authority, and how it went.
#[derive(Default)]
pub(super) struct Pace {
    orders: VecDeque<SystemTime>,
    by_domain: HashMap<Box<str>, VecDeque<SystemTime>>,
    by_host: HashMap<HostName, HostPace>,
    authority: Pause,
}

#[derive(Default)]
struct HostPace {
    orders: VecDeque<SystemTime>,
    pause: Pause,
}

/// Failures in a row, and until when nothing is tried.
#[derive(Default)]
struct Pause {
    failures_count: u32,
    until: Option<SystemTime>,
}

impl Pause {
    fn rest(&self, now: SystemTime) -> Option<Duration> {
        self.until.and_then(|until| until.duration_since(now).ok()).filter(|rest| !rest.is_zero())
    }

    fn fail(&mut self, now: SystemTime, first: Duration, factor: u32, longest: Duration) {
        let pause = first.saturating_mul(factor.saturating_pow(self.failures_count)).min(longest);
        self.failures_count = self.failures_count.saturating_add(1);
        self.until = Some(now + pause);
    }
}

/// How long until one of the last `max_count` things is longer ago than `period`.
fn wait(
    times: &mut VecDeque<SystemTime>,
    now: SystemTime,
    period: Duration,
    max_count: usize,
) -> Option<Duration> {
    while times.front().is_some_and(|time| *time + period <= now) {
        times.pop_front();
    }
    let oldest = times.len().checked_sub(max_count).and_then(|index| times.get(index))?;
    (*oldest + period).duration_since(now).ok()
}

impl Pace {
    /// Whether a certificate for a host may be asked for now.
    pub(super) fn check(&mut self, host: &HostName, is_renewal: bool, now: SystemTime) -> Result<(), Error> {
        let paused = |wait, reason| Err(Error::Paused { host: host.clone(), wait, reason });
        if let Some(rest) = self.authority.rest(now) {
            return paused(rest, "the authority did not answer");
        }
        if let Some(of_host) = self.by_host.get_mut(host) {
            if let Some(rest) = of_host.pause.rest(now) {
                return paused(rest, "the last attempt failed");
            }
            if let Some(rest) = wait(&mut of_host.orders, now, WEEK, MAX_ORDERS_PER_HOST_AND_WEEK_COUNT) {
                return paused(rest, "enough were asked for this week");
            }
        }
        if let Some(rest) = wait(&mut self.orders, now, HOUR, MAX_ORDERS_PER_HOUR_COUNT) {
            return paused(rest, "enough were asked for in this hour");
        }
        if !is_renewal
            && let Some(orders) = self.by_domain.get_mut(host.registered_domain())
            && let Some(rest) = wait(orders, now, WEEK, MAX_ORDERS_PER_DOMAIN_AND_WEEK_COUNT)
        {
            return paused(rest, "enough were asked for its domain this week");
        }
        self.forget_old(now);
        if self.by_host.len() >= MAX_TRACKED_COUNT || self.by_domain.len() >= MAX_TRACKED_COUNT {
            return paused(HOUR, "more hosts than are counted");
        }
        Ok(())
    }

    /// The authority was asked.
    pub(super) fn ordered(&mut self, host: &HostName, is_renewal: bool, now: SystemTime) {
        self.authority = Pause::default();
        self.orders.push_back(now);
        self.by_host.entry(host.clone()).or_default().orders.push_back(now);
        if !is_renewal {
            self.by_domain.entry(host.registered_domain().into()).or_default().push_back(now);
        }
    }

    /// How often in a row a host failed.
    pub(super) fn failures_count(&self, host: &HostName) -> u32 {
        self.by_host.get(host).map_or(0, |of_host| of_host.pause.failures_count)
    }

    pub(super) fn succeeded(&mut self, host: &HostName) {
        if let Some(of_host) = self.by_host.get_mut(host) {
            of_host.pause = Pause::default();
        }
    }

    pub(super) fn host_failed(&mut self, host: &HostName, now: SystemTime) {
        let pause = &mut self.by_host.entry(host.clone()).or_default().pause;
        pause.fail(now, FIRST_HOST_PAUSE, PAUSE_FACTOR, MAX_HOST_PAUSE);
    }

    pub(super) fn too_often(&mut self, host: &HostName, now: SystemTime) {
        self.by_host.entry(host.clone()).or_default().pause.until = Some(now + TOO_OFTEN_PAUSE);
    }

    pub(super) fn authority_failed(&mut self, now: SystemTime) {
        self.authority.fail(now, FIRST_AUTHORITY_PAUSE, 2, MAX_AUTHORITY_PAUSE);
    }

    /// Drops what has no bearing any more, once there is much of it.
    fn forget_old(&mut self, now: SystemTime) {
        if self.by_host.len() < MAX_TRACKED_COUNT && self.by_domain.len() < MAX_TRACKED_COUNT {
            return;
        }
        let is_new = |times: &VecDeque<SystemTime>| times.back().is_some_and(|time| *time + WEEK > now);
        self.by_host.retain(|_, of_host| is_new(&of_host.orders) || of_host.pause.rest(now).is_some());
        self.by_domain.retain(|_, orders| is_new(orders));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

    use std::time::UNIX_EPOCH;

    use super::*;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    fn rest(result: Result<(), Error>) -> Duration {
        match result {
            Err(Error::Paused { wait, .. }) => wait,
            other => panic!("not paused: {other:?}"),
        }
    }

    const START: SystemTime = UNIX_EPOCH;

    #[test]
    fn pauses_grow_and_end() {
        let (one, other) = (host("one.example"), host("other.example"));
        let mut pace = Pace::default();
        pace.host_failed(&one, START);
        assert_eq!(rest(pace.check(&one, false, START)), FIRST_HOST_PAUSE);
        pace.check(&other, false, START).unwrap();
        pace.check(&one, false, START + FIRST_HOST_PAUSE).unwrap();
        pace.host_failed(&one, START);
        assert_eq!(rest(pace.check(&one, false, START)), FIRST_HOST_PAUSE * PAUSE_FACTOR);
        for _ in 0..100 {
            pace.host_failed(&one, START);
        }
        assert_eq!(rest(pace.check(&one, false, START)), MAX_HOST_PAUSE);
        pace.succeeded(&one);
        pace.check(&one, false, START).unwrap();

        pace.authority_failed(START);
        assert_eq!(rest(pace.check(&other, true, START)), FIRST_AUTHORITY_PAUSE);
        pace.authority_failed(START);
        assert_eq!(rest(pace.check(&other, true, START)), FIRST_AUTHORITY_PAUSE * 2);
        pace.ordered(&other, false, START);
        pace.check(&one, false, START).unwrap();
        pace.too_often(&one, START);
        assert_eq!(rest(pace.check(&one, false, START)), TOO_OFTEN_PAUSE);
    }

    #[test]
    fn orders_are_bounded_by_host_domain_and_hour() {
        let mut pace = Pace::default();
        let one = host("one.shop.example");
        for _ in 0..MAX_ORDERS_PER_HOST_AND_WEEK_COUNT {
            pace.check(&one, true, START).unwrap();
            pace.ordered(&one, true, START);
        }
        assert_eq!(rest(pace.check(&one, true, START + HOUR)), WEEK - HOUR);
        pace.check(&one, true, START + WEEK).unwrap();

        let mut pace = Pace::default();
        for index in 0..MAX_ORDERS_PER_DOMAIN_AND_WEEK_COUNT {
            let host = host(&format!("a{index}.shop.example"));
            pace.check(&host, false, START).unwrap();
            pace.ordered(&host, false, START);
        }
        assert_eq!(rest(pace.check(&host("b.shop.example"), false, START)), WEEK);
        pace.check(&host("a1.shop.example"), true, START).unwrap();
        pace.check(&host("b.other.example"), false, START).unwrap();

        let mut pace = Pace::default();
        for index in 0..MAX_ORDERS_PER_HOUR_COUNT {
            let host = host(&format!("shop{index}.example"));
            pace.check(&host, false, START).unwrap();
            pace.ordered(&host, false, START);
        }
        assert_eq!(rest(pace.check(&host("more.example"), true, START)), HOUR);
        pace.check(&host("more.example"), true, START + HOUR).unwrap();
    }
}
