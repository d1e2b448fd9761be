//! Names of hosts.

use std::{borrow::Borrow, fmt, str::FromStr};

use crate::Error;

/// The longest name (RFC 1035).
const MAX_NAME_BYTES: usize = 253;

/// The longest part between two dots.
const MAX_LABEL_BYTES: usize = 63;

/// The name of a host in lower case, without a final dot: what certificates are for.
/// Addresses are none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Box<str>);

impl HostName {
    /// Checks a name and writes it as it is compared.
    ///
    /// # Errors
    /// [`Error::HostName`].
    pub fn new(name: &str) -> Result<Self, Error> {
        let refuse = |reason| Err(Error::HostName { name: shorten(name), reason });
        let bare = name.strip_suffix('.').unwrap_or(name);
        if bare.is_empty() {
            return refuse("it is empty");
        }
        if bare.len() > MAX_NAME_BYTES {
            return refuse("it is longer than 253 characters");
        }
        for label in bare.split('.') {
            if label.is_empty() {
                return refuse("it has two dots in a row, or begins with one");
            }
            if label.len() > MAX_LABEL_BYTES {
                return refuse("a part of it is longer than 63 characters");
            }
            if label.starts_with('-') || label.ends_with('-') {
                return refuse("a part of it begins or ends with `-`");
            }
            if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
                return refuse("a part of it has characters other than `a` to `z`, `0` to `9` and `-`");
            }
        }
        // No top-level domain is a number, and an address is no name.
        if bare.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit())) {
            return refuse("it is an address");
        }
        Ok(Self(bare.to_ascii_lowercase().into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `parent` or below it.
    pub fn is_within(&self, parent: &str) -> bool {
        self.0.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// The domain that was registered for it, or a good guess: the last two parts, or
    /// three where the second is one of those short ones below which countries register
    /// (`co.uk`, `com.br`). Too coarse a guess only makes us slower.
    pub(crate) fn registered_domain(&self) -> &str {
        let mut dots = self.0.rmatch_indices('.').map(|(at, _)| at);
        let (Some(last), Some(second)) = (dots.next(), dots.next()) else { return &self.0 };
        let is_short = last - second - 1 <= 3 && self.0.len() - last - 1 == 2;
        match (is_short, dots.next()) {
            (true, Some(third)) => &self.0[third + 1..],
            (true, None) => &self.0,
            (false, _) => &self.0[second + 1..],
        }
    }
}

/// As much of what somebody sent as a message should repeat.
fn shorten(name: &str) -> String {
    name.chars().take(MAX_NAME_BYTES).flat_map(char::escape_default).collect()
}

impl fmt::Display for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl AsRef<str> for HostName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn names_are_checked_and_written_in_lower_case() {
        assert_eq!(HostName::new("Shop.Example.").unwrap().as_str(), "shop.example");
        for wrong in
            ["", ".", "a..b", ".a", "-a.b", "a-.b", "a_b.c", "127.0.0.1", "[::1]", "a b", "é.example"]
        {
            assert!(HostName::new(wrong).is_err(), "{wrong}");
        }
        assert!(HostName::new(&"a".repeat(64)).is_err());
        assert!(HostName::new(&["a"; 127].join(".")).is_ok());
        assert!(HostName::new(&["a"; 128].join(".")).is_err());
    }

    #[test]
    fn a_name_is_within_its_parents_only() {
        let host = HostName::new("a.shop.example").unwrap();
        assert!(host.is_within("shop.example") && host.is_within("a.shop.example"));
        assert!(!host.is_within("op.example") && !host.is_within("b.a.shop.example"));
    }

    #[test]
    fn the_registered_domain_is_guessed() {
        let domain = |name: &str| HostName::new(name).unwrap().registered_domain().to_owned();
        assert_eq!(domain("localhost"), "localhost");
        assert_eq!(domain("shop.example"), "shop.example");
        assert_eq!(domain("a.b.shop.example"), "shop.example");
        assert_eq!(domain("www.shop.co.uk"), "shop.co.uk");
        assert_eq!(domain("shop.co.uk"), "shop.co.uk");
    }
}
