//! File descriptors: one a connection, and every default is too low.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the limit on open descriptors to what this process may set, and says
/// what it is then; `None` is no limit.
///
/// Failing is no error: the limit stays what it was.
pub fn raise_descriptor_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum,
        Err(_) => before,
    }
}
