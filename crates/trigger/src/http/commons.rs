//! What the apps of a node share: places, the compute lane, memory; and their
//! accounts.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use wisp_engine::Engine;

use super::{
    account::Account,
    admission::{Admission, AdmissionLimits},
    compute::ComputeThreads,
    share::Shares,
};
use crate::Error;

/// How the apps of a node share it.
#[derive(Clone, Copy, Debug)]
pub struct CommonsSettings {
    /// How many requests run and wait.
    pub admission: AdmissionLimits,
    /// Keep accounts, enforce limits on CPU time, share the CPU fairly. Only a
    /// measurement of what that costs has a reason to switch it off.
    pub accounting: bool,
    /// Move guests that need more than a moment to threads of their own. Only tests have a
    /// reason to switch it off: all of a test happens on one thread.
    pub compute_lane: bool,
    /// Tell clients in a `Server-Timing` header what their request took.
    pub server_timing: bool,
    /// Linear memory of all instances, beyond the first 16 MiB of each; each app
    /// may have at most as much as it leaves free.
    pub max_memory_bytes: u64,
}

impl Default for CommonsSettings {
    fn default() -> Self {
        Self {
            admission: AdmissionLimits::default(),
            accounting: true,
            compute_lane: true,
            server_timing: false,
            max_memory_bytes: u64::MAX,
        }
    }
}

/// What the apps of a node share.
pub struct Commons {
    pub(super) settings: CommonsSettings,
    pub(super) admission: Arc<Admission>,
    pub(super) shares: Shares,
    /// `None` without accounting, and where guests stay where they are.
    pub(super) compute: Option<ComputeThreads>,
    memory_bytes: AtomicU64,
    accounts: Mutex<HashMap<Arc<str>, Arc<Account>>>,
}

impl Commons {
    /// Starts what apps will share.
    ///
    /// # Errors
    /// [`Error::Start`] if the operating system refuses a thread.
    pub fn start(engine: &Engine, settings: CommonsSettings) -> Result<Arc<Self>, Error> {
        let cores = wisp_engine::cores_count();
        let compute = match settings.accounting && settings.compute_lane {
            true => Some(
                ComputeThreads::start(cores, engine.pulse().clone())
                    .map_err(|cause| Error::Start { cause })?,
            ),
            false => None,
        };
        Ok(Arc::new(Self {
            settings,
            admission: Arc::new(Admission::new(settings.admission)),
            shares: Shares::new(cores),
            compute,
            memory_bytes: AtomicU64::new(0),
            accounts: Mutex::default(),
        }))
    }

    /// The account of an app, by the name that its operator knows it by. All
    /// versions of an app have the same.
    pub fn account(&self, name: &str) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(name) {
            return account.clone();
        }
        let name: Arc<str> = name.into();
        let account = Arc::new(Account::new(name.clone()));
        accounts.insert(name, account.clone());
        account
    }

    /// The account of an app, if it ever had one.
    pub fn known_account(&self, name: &str) -> Option<Arc<Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Forgets an app that is gone, and its sums.
    pub fn forget(&self, name: &str) {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// All accounts, by name.
    pub fn accounts(&self) -> Vec<Arc<Account>> {
        let mut accounts: Vec<_> =
            self.accounts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        accounts.sort_by(|one, other| one.name().cmp(other.name()));
        accounts
    }

    /// Requests that have a place now.
    pub fn running_count(&self) -> usize {
        self.admission.running_count()
    }

    /// Requests that wait for a place now.
    pub fn waiting_count(&self) -> usize {
        self.admission.waiting_count()
    }

    /// Guests on the compute lane that wait for their turn.
    pub fn queued_count(&self) -> usize {
        self.compute.as_ref().map_or(0, |threads| threads.lane().queued_count())
    }

    /// Memory of all instances, beyond the first 16 MiB of each.
    pub fn reserved_memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// Takes memory for an app, if it leaves as much free as it has.
    pub(super) fn reserve_memory(&self, account: &Account, bytes: u64) -> bool {
        let total = self.memory_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let of_app = account.memory_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let free = self.settings.max_memory_bytes.checked_sub(total);
        if free.is_some_and(|free| !self.settings.admission.is_shared || of_app <= free) {
            return true;
        }
        self.release_memory(account, bytes);
        false
    }

    pub(super) fn release_memory(&self, account: &Account, bytes: u64) {
        account.memory_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.memory_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
