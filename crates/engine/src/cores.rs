//! How many threads are worth having.

use std::{sync::OnceLock, thread};

/// How many cores this process may use, as it was when first asked: finding out reads
/// files, which a load of a component would notice.
pub fn cores_count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}
