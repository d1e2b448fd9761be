//! Names that apps are reached by.

use std::{fmt, sync::Arc};

use crate::Error;

/// The longest name of a host (RFC 1035).
pub const MAX_HOST_NAME_BYTES: usize = 253;

/// The name of a host: lower case, without a port.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

impl HostName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`Error::HostName`] if no request could ever name this host.
    pub fn new(name: &str) -> Result<Self, Error> {
        let refused = |reason| Err(Error::HostName { name: name.chars().take(80).collect(), reason });
        if name.is_empty() {
            return refused("it is empty");
        }
        if name.len() > MAX_HOST_NAME_BYTES {
            return refused("it is longer than 253 bytes");
        }
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return refused("it has upper-case letters");
        }
        if name.contains(':') {
            return refused("it has a port");
        }
        let is_of_host = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_')
        };
        if !name.bytes().all(is_of_host) {
            return refused("only letters, digits, `-`, `_` and `.` make a host name");
        }
        if name.split('.').any(str::is_empty) {
            return refused("there is nothing before, after or between its dots");
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A name as a client wrote it, in lower case; `None` if it is longer than any name.
/// Allocates nothing.
pub(crate) fn lower_case<'buffer>(
    name: &[u8],
    buffer: &'buffer mut [u8; MAX_HOST_NAME_BYTES],
) -> Option<&'buffer str> {
    // A dot at the end makes the name absolute; it is the same host.
    let name = name.strip_suffix(b".").unwrap_or(name);
    let lower = buffer.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    std::str::from_utf8(lower).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn names_that_no_request_has_are_refused() {
        for name in ["a", "a.example", "localhost", "127.0.0.1", "x_y.example", "1-2.a"] {
            assert_eq!(HostName::new(name).unwrap().as_str(), name);
        }
        let long = "a".repeat(254);
        for name in ["", "A.example", "a:80", "a..b", ".a", "a.", "a b", "ä.example", "a/b", &long] {
            assert_eq!(HostName::new(name).unwrap_err().code(), "WISP-E0708", "{name}");
        }
    }

    #[test]
    fn a_name_from_a_client_is_put_into_lower_case() {
        let mut buffer = [0; MAX_HOST_NAME_BYTES];
        assert_eq!(lower_case(b"WWW.Example", &mut buffer), Some("www.example"));
        assert_eq!(lower_case(b"a.example.", &mut buffer), Some("a.example"));
        assert_eq!(lower_case(b"\xff", &mut buffer), None);
        assert_eq!(lower_case(&[b'a'; 300], &mut buffer), None);
    }
}
