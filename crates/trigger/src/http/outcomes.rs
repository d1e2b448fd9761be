//! How an app's requests ended lately.

use std::sync::atomic::{AtomicU32, Ordering};

use http::StatusCode;

/// Counts how the requests of an app ended: facts about its health that cost nothing
/// to have. They belong to the app and not to one of its versions.
#[derive(Debug, Default)]
pub struct Outcomes {
    answered_count: AtomicU32,
    failed_count: AtomicU32,
    failed_in_a_row_count: AtomicU32,
}

impl Outcomes {
    /// Requests that were answered, however.
    pub fn answered_count(&self) -> u32 {
        self.answered_count.load(Ordering::Relaxed)
    }

    /// Those of them that were answered with a status of 500 or above.
    pub fn failed_count(&self) -> u32 {
        self.failed_count.load(Ordering::Relaxed)
    }

    /// How many failed since the last one that did not.
    pub fn failed_in_a_row_count(&self) -> u32 {
        self.failed_in_a_row_count.load(Ordering::Relaxed)
    }

    /// Forgets what was: another version answers from now on.
    pub fn reset(&self) {
        self.failed_in_a_row_count.store(0, Ordering::Relaxed);
    }

    pub(super) fn count(&self, status: StatusCode) {
        self.answered_count.fetch_add(1, Ordering::Relaxed);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            // Too many requests: that says nothing about the app.
        } else if status.is_server_error() {
            self.failed_count.fetch_add(1, Ordering::Relaxed);
            self.failed_in_a_row_count.fetch_add(1, Ordering::Relaxed);
        } else if self.failed_in_a_row_count.load(Ordering::Relaxed) != 0 {
            // Written only when it changes: all threads share the line.
            self.failed_in_a_row_count.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_ends_a_row_of_failures() {
        let outcomes = Outcomes::default();
        for status in [200, 500, 503, 504, 502] {
            outcomes.count(StatusCode::from_u16(status).unwrap_or_default());
        }
        assert_eq!(outcomes.answered_count(), 5);
        assert_eq!(outcomes.failed_count(), 3);
        assert_eq!(outcomes.failed_in_a_row_count(), 3);
        outcomes.count(StatusCode::NOT_FOUND);
        assert_eq!(outcomes.failed_in_a_row_count(), 0);
    }
}
