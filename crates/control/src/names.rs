//! Names and ids as types, so that a team's name is never taken for an app's.
//!
//! Names are what people choose; ids are what the state gives and never gives again.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// The longest name of a team, an app or a user: with two of them and a domain a host name
/// stays far below the 253 bytes that DNS allows, and each is one label of at most 63.
pub const MAX_NAME_BYTES: usize = 39;

/// The longest name of a resource, a token or a label. Labels come from manifests, which
/// allow as much.
pub const MAX_LABEL_BYTES: usize = wisp_manifest::id::MAX_NAME_BYTES;

/// The longest host name of DNS, without its last dot (RFC 1035).
pub const MAX_HOST_BYTES: usize = 253;

/// Hexadecimal digits of a random id: 128 bits, so that none can be guessed or met twice.
const ID_DIGITS_COUNT: usize = 32;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a name of a team, an app or a user.
    #[error(
        "`{0}` is no name: use 1 to {MAX_NAME_BYTES} lower-case letters, digits and `-`, the first a letter, the last no `-`"
    )]
    Name(String),
    /// Not a name of a resource, a token or a label.
    #[error(
        "`{0}` is no label: use 1 to {MAX_LABEL_BYTES} letters, digits, `-`, `_` and `.`, the first a letter or digit"
    )]
    Label(String),
    /// Not a host name.
    #[error(
        "`{0}` is no host name: use words of letters, digits and `-` with dots between them, `*` nowhere"
    )]
    Host(String),
    /// Not a digest.
    #[error("`{0}` is no digest: use `sha256:` and 64 hexadecimal digits in lower case")]
    Digest(String),
    /// Not an id that was given out.
    #[error("`{0}` is no id")]
    Id(String),
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $check:path, $wrong:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes a text.
            ///
            /// # Errors
            /// When it does not follow the rule that the error spells out.
            pub fn new(text: &str) -> Result<Self, InvalidName> {
                match $check(text) {
                    true => Ok(Self(text.into())),
                    false => Err($wrong(shortened(text))),
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(&text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, formatter)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                <String as utoipa::PartialSchema>::schema()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, formatter)
            }
        }
    };
}

text_type! {
    /// Name of a team.
    TeamName, is_name, InvalidName::Name
}
text_type! {
    /// Name of an app, unique in its team.
    AppName, is_name, InvalidName::Name
}
text_type! {
    /// Name of a person.
    UserName, is_name, InvalidName::Name
}
text_type! {
    /// The name that a manifest gives to a resource it wants; also the name of a resource in
    /// its team, and of a token among those of its owner.
    Label, is_label, InvalidName::Label
}
text_type! {
    /// A host name in lower case.
    Host, is_host, InvalidName::Host
}
text_type! {
    /// Digest of an image's manifest: `sha256:…`.
    Digest, is_digest, InvalidName::Digest
}
text_type! {
    /// A resource: names its files, outlives its name.
    ResourceId, is_random_id, InvalidName::Id
}
text_type! {
    /// Long work that somebody asked for.
    OperationId, is_random_id, InvalidName::Id
}
text_type! {
    /// A credential, without what is secret of it.
    TokenId, is_random_id, InvalidName::Id
}

number_type! {
    /// A team. Never given again, also not after the team is gone.
    TeamId
}
number_type! {
    /// A person.
    UserId
}
number_type! {
    /// An app.
    AppId
}
number_type! {
    /// Variables and secrets of a release, immutable.
    ConfigurationId
}
number_type! {
    /// The number of a release in its app: 1, 2, 3 …
    ReleaseNumber
}
number_type! {
    /// A place in the stream of changes that nodes follow.
    ChangeNumber
}

impl ResourceId {
    /// One that nobody has.
    pub(crate) fn random() -> Result<Self, crate::Error> {
        Ok(Self(crate::credential::random_hex()?.into()))
    }
}

impl OperationId {
    /// One that nobody has.
    pub(crate) fn random() -> Result<Self, crate::Error> {
        Ok(Self(crate::credential::random_hex()?.into()))
    }
}

impl TokenId {
    /// One that nobody has.
    pub(crate) fn random() -> Result<Self, crate::Error> {
        Ok(Self(crate::credential::random_hex()?.into()))
    }
}

fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= MAX_NAME_BYTES
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.bytes().all(is_inner)
}

fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=MAX_LABEL_BYTES).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(is_inner)
}

fn is_host(text: &str) -> bool {
    const MAX_WORD_BYTES: usize = 63;
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= MAX_HOST_BYTES
        && text.contains('.')
        && text.split('.').all(|word| {
            (1..=MAX_WORD_BYTES).contains(&word.len())
                && word.bytes().all(is_inner)
                && !word.starts_with('-')
                && !word.ends_with('-')
        })
        // An address is no name: nobody can prove to own it by DNS.
        && text.parse::<std::net::IpAddr>().is_err()
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| digits.len() == 64 && is_lower_hex(digits))
}

fn is_random_id(text: &str) -> bool {
    text.len() == ID_DIGITS_COUNT && is_lower_hex(text)
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

/// What a message says of a text that may be anything.
fn shortened(text: &str) -> String {
    const MAX_SHOWN_CHARACTERS: usize = 64;
    text.chars().take(MAX_SHOWN_CHARACTERS).filter(|character| !character.is_control()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a failed unwrap is a failed test")]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_are_labels_of_dns(text in "\\PC{0,50}") {
            if let Ok(name) = TeamName::new(&text) {
                let host = format!("{name}.{name}.localhost");
                prop_assert!(Host::new(&host).is_ok());
                prop_assert_eq!(name.as_str(), text);
            }
        }

        #[test]
        fn what_the_grammar_says_is_a_name(text in "[a-z]([a-z0-9-]{0,37}[a-z0-9])?") {
            prop_assert!(AppName::new(&text).is_ok());
            for wrong in [format!("{text}-"), format!("-{text}"), format!("{text}A")] {
                prop_assert!(AppName::new(&wrong).is_err());
            }
        }

        #[test]
        fn a_label_never_leaves_a_folder(text in "\\PC{0,20}") {
            if let Ok(label) = Label::new(&text) {
                prop_assert_eq!(std::path::Path::new("a").join(label.as_str()).components().count(), 2);
            }
        }

        #[test]
        fn messages_about_names_are_short(text in "\\PC{0,400}") {
            if let Err(error) = Host::new(&text) {
                prop_assert!(error.to_string().chars().count() < 256);
            }
        }
    }

    #[test]
    fn hosts_are_names_and_no_addresses() {
        assert!(Host::new("shop.example").is_ok());
        for wrong in ["localhost", "127.0.0.1", "*.example", "a..b", "-a.b", "A.b", "a.b.", ""] {
            assert!(Host::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_checked_when_read() {
        assert!(serde_json::from_str::<TeamName>("\"Shop\"").is_err());
        assert_eq!(serde_json::from_str::<TeamName>("\"shop\"").unwrap().as_str(), "shop");
    }
}
