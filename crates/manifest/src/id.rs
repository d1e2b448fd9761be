//! Names as types, so that a component's id is never taken for a variable's.
//!
//! Each is an `Arc<str>` inside: a clone costs one increment, and a name can
//! be kept by a request, a log line and a metric at once.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The longest name that a manifest may give to anything.
///
/// Names end up in file names, metric labels and host names; 128 bytes fit
/// into each of these and are twice what anybody has been seen to use.
pub const MAX_NAME_BYTES: usize = 128;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The name has no characters.
    #[error("a name must not be empty")]
    Empty,
    /// The name is longer than [`MAX_NAME_BYTES`].
    #[error("a name has at most {MAX_NAME_BYTES} bytes, this one has {length_bytes}")]
    TooLong {
        /// How long it is.
        length_bytes: usize,
    },
    /// Two separators in a row, or one at an end.
    #[error("`{separator}` must stand between two words")]
    EmptyWord {
        /// The separator of this kind of name.
        separator: char,
    },
    /// A word that starts with something else than a letter.
    #[error("a word starts with a letter, not with `{found}`")]
    WordStart {
        /// What it starts with.
        found: char,
    },
    /// A character that does not belong into this kind of name.
    #[error("`{found}` is not allowed, only {allowed}")]
    Character {
        /// The offending character.
        found: char,
        /// What may stand in such a name.
        allowed: &'static str,
    },
    /// A word that mixes upper and lower case.
    #[error("a word is all lower case or all upper case, unlike `{word}`")]
    MixedCase {
        /// The offending word.
        word: String,
    },
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The shared text itself, for those who keep it.
            pub fn as_arc(&self) -> &Arc<str> {
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

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        /// Lets a map keyed by this type be asked with a `&str`.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type! {
    /// Name of a component: words of letters and digits with `-` between them.
    ComponentId
}
name_type! {
    /// Name of a trigger; any text up to [`MAX_NAME_BYTES`], unique in the app.
    TriggerId
}
name_type! {
    /// Name of an app variable, or of a component's variable: lower-case words
    /// with `_` between them.
    VariableName
}
name_type! {
    /// The name that a manifest gives to a key-value store or database it
    /// wants. Version 1 had no rules for it, so that these are few.
    Label
}

impl ComponentId {
    /// Checks and takes a component's id.
    ///
    /// # Errors
    /// When it is not made of words with `-` between them.
    pub fn new(id: &str) -> Result<Self, InvalidName> {
        check_words(id, '-', "letters, digits and `-`")?;
        Ok(Self(id.into()))
    }
}

impl TriggerId {
    /// Checks and takes a trigger's id.
    ///
    /// # Errors
    /// When it is empty, too long, or has control characters.
    pub fn new(id: &str) -> Result<Self, InvalidName> {
        check_length(id)?;
        match id.chars().find(|found| found.is_control()) {
            Some(found) => Err(InvalidName::Character { found, allowed: "characters that can be printed" }),
            None => Ok(Self(id.into())),
        }
    }
}

impl VariableName {
    /// Checks and takes a variable's name.
    ///
    /// # Errors
    /// When it is not made of lower-case words with `_` between them.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        const ALLOWED: &str = "lower-case letters, digits and `_`";
        check_words(name, '_', ALLOWED)?;
        match name.chars().find(char::is_ascii_uppercase) {
            Some(found) => Err(InvalidName::Character { found, allowed: ALLOWED }),
            None => Ok(Self(name.into())),
        }
    }
}

impl Label {
    /// Checks and takes a label.
    ///
    /// # Errors
    /// When it does not start with a letter or digit, or has anything in it
    /// but letters, digits, `-`, `_` and `.`.
    pub fn new(label: &str) -> Result<Self, InvalidName> {
        check_length(label)?;
        let is_plain = |character: char| character.is_ascii_alphanumeric();
        let is_allowed = |character: char| is_plain(character) || "-_.".contains(character);
        let first = label.chars().next().filter(|first| !is_plain(*first));
        match first.or_else(|| label.chars().find(|found| !is_allowed(*found))) {
            Some(found) => Err(InvalidName::Character {
                found,
                allowed: "letters, digits, and between them `-`, `_` and `.`",
            }),
            None => Ok(Self(label.into())),
        }
    }
}

fn check_length(name: &str) -> Result<(), InvalidName> {
    match name.len() {
        0 => Err(InvalidName::Empty),
        length_bytes if length_bytes > MAX_NAME_BYTES => Err(InvalidName::TooLong { length_bytes }),
        _ => Ok(()),
    }
}

/// Words of ASCII letters and digits: each starts with a letter and has one
/// case throughout, which is what WebAssembly interface names require.
fn check_words(name: &str, separator: char, allowed: &'static str) -> Result<(), InvalidName> {
    check_length(name)?;
    for word in name.split(separator) {
        let Some(first) = word.chars().next() else {
            return Err(InvalidName::EmptyWord { separator });
        };
        if let Some(found) = word.chars().find(|found| !found.is_ascii_alphanumeric()) {
            return Err(InvalidName::Character { found, allowed });
        }
        if !first.is_ascii_alphabetic() {
            return Err(InvalidName::WordStart { found: first });
        }
        let (upper, lower) =
            (|found: char| found.is_ascii_uppercase(), |found: char| found.is_ascii_lowercase());
        if word.chars().any(upper) && word.chars().any(lower) {
            return Err(InvalidName::MixedCase { word: word.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use super::*;

    #[test]
    fn component_ids_are_words_with_hyphens() {
        for good in ["a", "hello", "hello-world", "h2-O2", "API-v2", "x1y2"] {
            assert!(ComponentId::new(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", InvalidName::Empty),
            ("-a", InvalidName::EmptyWord { separator: '-' }),
            ("a--b", InvalidName::EmptyWord { separator: '-' }),
            ("2a", InvalidName::WordStart { found: '2' }),
            ("aB", InvalidName::MixedCase { word: "aB".into() }),
            ("a_b", InvalidName::Character { found: '_', allowed: "letters, digits and `-`" }),
            ("a.b", InvalidName::Character { found: '.', allowed: "letters, digits and `-`" }),
        ] {
            assert_eq!(ComponentId::new(bad), Err(why), "{bad}");
        }
        assert_eq!(
            ComponentId::new(&"a".repeat(MAX_NAME_BYTES + 1)),
            Err(InvalidName::TooLong { length_bytes: MAX_NAME_BYTES + 1 })
        );
    }

    #[test]
    fn variable_names_are_lower_case_words_with_underscores() {
        for good in ["a", "api_key", "a1_b2"] {
            assert!(VariableName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "API_KEY", "a__b", "_a", "a_", "a-b", "4x", "a!b", "a_1"] {
            assert!(VariableName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_are_nearly_free() {
        for good in ["default", "user-data", "user_data", "DEFAULT", "cache-2", "2", "a.b_c"] {
            assert!(Label::new(good).is_ok(), "{good}");
        }
        for bad in ["", "user data", "-a", ".", "../a", "a/b", "é"] {
            assert!(Label::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn trigger_ids_are_free_text() {
        assert!(TriggerId::new("any thing/goes").is_ok());
        assert!(TriggerId::new("").is_err());
        assert!(TriggerId::new("a\nb").is_err());
    }
}
