//! Who uses more than a fair share of the CPU.
//!
//! Short requests run at once, on the thread of their connection. That is fair
//! only as long as nobody sends so many that others wait. So each app's CPU time
//! is kept as a sum that decays ([`MEMORY`]); an app that uses more than its
//! weight gives it of a machine that is busy, while others want some too, has its
//! requests start on the compute lane until it uses less.
//!
//! Counting costs a request one addition. Every [`GRAIN_NS`] of an app's CPU time
//! the shares are computed anew, so that the cost is bounded by the CPU time that
//! there is, not by the number of requests or apps.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::account::{Account, Totals};

/// How long use is remembered: a sum decays to about a third in this time.
/// Longer than a burst that nobody notices, shorter than anybody's patience.
const MEMORY: Duration = Duration::from_millis(100);

/// After how much CPU time of an app its share is computed anew.
const GRAIN_NS: u64 = 1_000_000;

/// From which part of the machine's CPU time on it counts as busy. Below, nobody
/// waits for anybody for long.
const BUSY: f64 = 0.5;

/// An app that uses less of one core is not counted among those that share.
const MIN_USE: f64 = 0.02;

/// One that uses less than this is forgotten. So much less than a grain weighs that an
/// app has time to add up what it uses.
const FORGOTTEN_USE: f64 = 0.001;

/// An app that is over its share is so until it uses less than this part of it:
/// it should not change lanes at every request.
const RETURN: f64 = 0.8;

/// The shares of apps that used CPU time recently.
pub(super) struct Shares {
    cores: f64,
    apps: Mutex<HashMap<u64, Use>>,
    /// How many there were when somebody last counted.
    apps_count: AtomicUsize,
}

struct Use {
    account: Arc<Account>,
    /// Decayed CPU time, in cores: what the app uses if it goes on like this.
    cores: f64,
    at: Instant,
}

impl Use {
    fn decay(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.at);
        self.cores *= (-age.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.at = now;
    }
}

impl Shares {
    pub(super) fn new(cores: usize) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "there are few cores")]
        Self { cores: cores.max(1) as f64, apps: Mutex::default(), apps_count: AtomicUsize::new(0) }
    }

    /// Counts CPU time of an app, on behalf of one of its components.
    pub(super) fn count(&self, account: &Arc<Account>, totals: &Totals, cpu_ns: u64) {
        if let Some(ns) = totals.collect_cpu_ns(cpu_ns, GRAIN_NS) {
            self.update(account, ns, Instant::now());
        }
    }

    /// Whether a request of the app should start on the compute lane.
    pub(super) fn is_over(&self, account: &Arc<Account>) -> bool {
        if !account.is_over_share.load(Ordering::Relaxed) {
            return false;
        }
        // It may have been quiet since: nobody else would find out.
        self.update(account, 0, Instant::now());
        account.is_over_share.load(Ordering::Relaxed)
    }

    /// Whether more than one app has used the CPU lately.
    pub(super) fn has_competition(&self) -> bool {
        self.apps_count.load(Ordering::Relaxed) > 1
    }

    fn update(&self, account: &Arc<Account>, ns: u64, now: Instant) {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        let own = apps.entry(account.number).or_insert_with(|| Use {
            account: account.clone(),
            cores: 0.0,
            at: now,
        });
        own.decay(now);
        own.cores += Duration::from_nanos(ns).as_secs_f64() / MEMORY.as_secs_f64();
        let own_cores = own.cores;
        apps.retain(|number, app| {
            app.decay(now);
            let stays = app.cores >= FORGOTTEN_USE || *number == account.number;
            if !stays {
                app.account.is_over_share.store(false, Ordering::Relaxed);
            }
            stays
        });
        let (mut count, mut used, mut weights) = (0, 0.0, 0.0);
        for app in apps.values().filter(|app| app.cores >= MIN_USE) {
            count += 1;
            used += app.cores;
            weights += f64::from(app.account.weight());
        }
        self.apps_count.store(count, Ordering::Relaxed);
        if own_cores < MIN_USE {
            account.is_over_share.store(false, Ordering::Relaxed);
            return;
        }
        let share = self.cores * f64::from(account.weight()) / weights;
        let is_contended = count > 1 && used > BUSY * self.cores;
        let bound = if account.is_over_share.load(Ordering::Relaxed) { share * RETURN } else { share };
        account.is_over_share.store(is_contended && own_cores > bound, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets apps use so many cores each for a second; tells who is over.
    fn after(cores: usize, uses: &[(u32, f64)]) -> Vec<bool> {
        let shares = Shares::new(cores);
        let accounts: Vec<_> = uses
            .iter()
            .map(|(weight, _)| {
                let account = Arc::new(Account::new("app".into()));
                account.set_weight(*weight);
                account
            })
            .collect();
        let start = Instant::now();
        for step in 0..1_000 {
            let now = start + Duration::from_millis(step);
            for (account, (_, cores)) in accounts.iter().zip(uses) {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
                shares.update(account, (cores * 1e6) as u64, now);
            }
        }
        accounts.iter().map(|account| account.is_over_share.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn who_uses_more_than_a_share_while_others_wait_is_over() {
        assert_eq!(after(2, &[(100, 0.5), (100, 1.5)]), [false, true]);
        assert_eq!(after(2, &[(100, 0.2), (100, 0.2)]), [false, false], "nobody waits");
        assert_eq!(after(2, &[(100, 2.0)]), [false], "nobody else is there");
        assert_eq!(after(2, &[(100, 0.001), (100, 1.9)]), [false, false], "nobody else to speak of");
    }

    #[test]
    fn shares_go_by_weight() {
        assert_eq!(after(2, &[(300, 1.3), (100, 0.7)]), [false, true]);
        assert_eq!(after(2, &[(100, 1.3), (100, 0.7)]), [true, false]);
    }
}
