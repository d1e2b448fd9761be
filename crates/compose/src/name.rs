//! Names of imports and exports.

use std::fmt;

use semver::Version;

/// The name of an import or export, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternName {
    /// The package: `namespace:name`. None for a plain name.
    pub package: Option<String>,
    /// The interface, or the whole of a plain name.
    pub interface: String,
    /// The package's version.
    pub version: Option<Version>,
}

impl ExternName {
    /// Takes a name apart. What is no name of an interface counts as plain.
    pub fn parse(name: &str) -> Self {
        let plain = || Self { package: None, interface: name.to_owned(), version: None };
        let (path, version) = match name.split_once('@') {
            None => (name, None),
            Some((path, version)) => match Version::parse(version) {
                Ok(version) => (path, Some(version)),
                Err(_) => return plain(),
            },
        };
        match path.split_once('/') {
            Some((package, interface)) if package.contains(':') => {
                Self { package: Some(package.to_owned()), interface: interface.to_owned(), version }
            }
            _ => plain(),
        }
    }

    /// Whether an export of the one name can be what an import of the other asks for:
    /// the same interface, in a compatible version.
    pub fn fits(&self, other: &Self) -> bool {
        self.package == other.package
            && self.interface == other.interface
            && match (&self.version, &other.version) {
                (None, None) => true,
                (Some(one), Some(other)) => is_compatible(one, other),
                _ => false,
            }
    }

    /// Package and interface without the version.
    pub fn unversioned(&self) -> String {
        match &self.package {
            Some(package) => format!("{package}/{}", self.interface),
            None => self.interface.clone(),
        }
    }
}

impl fmt::Display for ExternName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.unversioned())?;
        match &self.version {
            Some(version) => write!(formatter, "@{version}"),
            None => Ok(()),
        }
    }
}

/// Whether two versions promise the same: as the component model has it, by the leftmost
/// number that is not zero. Candidates are compatible with nothing but themselves.
pub fn is_compatible(one: &Version, other: &Version) -> bool {
    if !one.pre.is_empty() || !other.pre.is_empty() {
        return one == other;
    }
    match (one.major, one.minor) {
        (0, 0) => (other.major, other.minor, other.patch) == (0, 0, one.patch),
        (0, minor) => (other.major, other.minor) == (0, minor),
        (major, _) => other.major == major,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let name = ExternName::parse("a:b/c@1.2.3");
        assert_eq!(name.package.as_deref(), Some("a:b"));
        assert_eq!(name.interface, "c");
        assert_eq!(name.to_string(), "a:b/c@1.2.3");
        assert_eq!(ExternName::parse("a:b/c").unversioned(), "a:b/c");
        assert_eq!(ExternName::parse("plain").package, None);
        assert_eq!(ExternName::parse("a:b/c@x").interface, "a:b/c@x");
    }

    #[test]
    fn versions_are_compatible_by_their_first_number() {
        let compatible = |one: &str, other: &str| {
            ExternName::parse(&format!("a:b/c@{one}")).fits(&ExternName::parse(&format!("a:b/c@{other}")))
        };
        assert!(compatible("1.2.0", "1.9.1"));
        assert!(compatible("0.2.0", "0.2.6"));
        assert!(!compatible("0.2.0", "0.3.0"));
        assert!(!compatible("0.0.1", "0.0.2"));
        assert!(!compatible("1.0.0", "2.0.0"));
        assert!(!compatible("0.2.0-draft2", "0.2.0"));
        assert!(compatible("0.2.0-draft2", "0.2.0-draft2"));
        assert!(!ExternName::parse("a:b/c").fits(&ExternName::parse("a:b/c@1.0.0")));
    }
}
