//! Whether threads that ask for nothing get nothing.
//!
//! Guests compute on threads that run where nobody else wants a core. Usually there is
//! one; but on a machine whose other processes take all there is, such threads would
//! stand still. [`Observer`] looks at them now and then, and sees.

use std::time::{Duration, Instant};

/// How long threads with something to do may have no time to speak of. A guest that
/// stands still for so long has cost its client less than other things might.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Which part of an interval is no time to speak of.
const LITTLE: u32 = 8;

/// How long it is believed that there is nothing to be had, at first and at last: each
/// time that it turns out to be still so, a guest stands still.
const MIN_BELIEF: Duration = Duration::from_secs(1);
const MAX_BELIEF: Duration = Duration::from_secs(64);

/// What is to be seen of a thread at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    /// Counts up when it begins to do something, and when it has done it; so it is odd
    /// meanwhile.
    pub(super) turn: u64,
    /// CPU time that it had.
    pub(super) cpu: Duration,
}

/// Looks at threads.
pub(super) struct Observer {
    before: Option<(Instant, Vec<Sight>, bool)>,
    /// Until when it is believed that they starve.
    until: Option<Instant>,
    /// How long it was believed the last time, and since when it is not.
    belief: Duration,
    since: Option<Instant>,
}

impl Observer {
    pub(super) fn new() -> Self {
        Self { before: None, until: None, belief: Duration::ZERO, since: None }
    }

    /// Looks at the threads, `has_more` if something waits for them; whether they starve.
    pub(super) fn look(&mut self, now: Instant, sights: Vec<Sight>, has_more: bool) -> bool {
        if let Some(until) = self.until {
            if now < until {
                return true;
            }
            // They do nothing now: what they did before says nothing.
            self.until = None;
            self.before = None;
            self.since = Some(now);
            return false;
        }
        let last = self.before.replace((now, sights, has_more));
        let (Some((at, before, had_more)), Some((_, sights, _))) = (last, &self.before) else {
            return false;
        };
        let little = now.saturating_duration_since(at) / LITTLE;
        let pairs = || before.iter().zip(sights);
        let got = |before: &Sight, now: &Sight| now.cpu.saturating_sub(before.cpu);
        let stands_still = pairs()
            .any(|(before, now)| now.turn % 2 == 1 && now.turn == before.turn && got(before, now) < little);
        let nobody_comes = had_more
            && has_more
            && pairs().all(|(before, now)| now.turn == before.turn)
            && pairs().map(|(before, now)| got(before, now)).sum::<Duration>() < little;
        if !stands_still && !nobody_comes {
            return false;
        }
        let lasted = self.since.map(|since| now.saturating_duration_since(since));
        // Whoever had enough for so long does not starve all the time.
        self.belief = match lasted {
            Some(lasted) if lasted < MAX_BELIEF => (self.belief * 2).min(MAX_BELIEF),
            _ => MIN_BELIEF,
        };
        self.until = Some(now + self.belief);
        true
    }

    /// Nobody has anything to do: what comes next is another matter.
    pub(super) fn rest(&mut self) {
        self.before = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at one thread every interval; what it did and got in each, and whether more
    /// waited then.
    fn looks(steps: &[(u64, u64, bool)]) -> Vec<bool> {
        let (mut observer, start) = (Observer::new(), Instant::now());
        let (mut turn, mut cpu, mut now) = (0, Duration::ZERO, start);
        let look = |(turns, cpu_ms, has_more): &(u64, u64, bool)| {
            turn += turns;
            cpu += Duration::from_millis(*cpu_ms);
            now += LOOK_INTERVAL;
            observer.look(now, vec![Sight { turn, cpu }], *has_more)
        };
        steps.iter().map(look).collect()
    }

    #[test]
    fn who_stands_still_in_the_middle_starves() {
        assert_eq!(looks(&[(1, 1, false), (0, 0, false), (0, 0, false)]), [false, true, true]);
        assert_eq!(looks(&[(1, 1, false), (0, 9, false), (0, 9, false)]), [false; 3], "it computes");
        assert_eq!(looks(&[(2, 1, false), (0, 0, false), (0, 0, false)]), [false; 3], "it waits");
        assert_eq!(looks(&[(1, 1, false), (2, 0, false), (2, 0, false)]), [false; 3], "it goes on");
    }

    #[test]
    fn who_does_not_come_to_what_waits_starves() {
        assert_eq!(looks(&[(0, 0, true), (0, 0, true)]), [false, true]);
        assert_eq!(looks(&[(0, 0, true), (0, 0, false), (0, 0, true)]), [false; 3], "nothing waited");
        assert_eq!(looks(&[(0, 0, true), (2, 0, true), (2, 0, true)]), [false; 3], "somebody came");
    }

    #[test]
    fn what_is_still_so_is_believed_for_longer() {
        let (mut observer, mut now) = (Observer::new(), Instant::now());
        let mut starved = Vec::new();
        for turn in 0..9 {
            // Stuck from now on; then believed for a while; then tried again.
            let mut since = None;
            loop {
                now += LOOK_INTERVAL;
                let sights = vec![Sight { turn: 2 * turn + 1, cpu: Duration::ZERO }];
                match (observer.look(now, sights, true), since) {
                    (true, None) => since = Some(now),
                    (false, Some(since)) => {
                        starved.push((now - since).as_secs());
                        break;
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(starved, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
    }
}
