//! Tokens, links and codes: what somebody knows and nobody else does.
//!
//! Only digests are kept. Each has 128 random bits or more, so that a plain SHA-256 is as good
//! as a slow hash; the exception is the code that people type, which is short, and is
//! protected by its short life and by the number of attempts.

use ring::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// What every token begins with, so that scanners for leaked secrets find them.
pub const TOKEN_PREFIX: &str = "wisp_";

/// Random bytes of a token: 160 bits.
const TOKEN_BYTES: usize = 20;

/// Random bytes of an id or a link.
const ID_BYTES: usize = 16;

/// Letters of the code that people type, without vowels and what looks alike: no words, no
/// mistakes.
const CODE_ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// Letters of the code: 20 to the power of 8 is 34 bits.
const CODE_LETTERS_COUNT: usize = 8;

/// A SHA-256 of something secret.
pub(crate) type Hash = [u8; 32];

/// A new token.
pub(crate) fn random_token() -> Result<String> {
    Ok(format!("{TOKEN_PREFIX}{}", hex::encode(random_bytes::<TOKEN_BYTES>()?)))
}

/// A new id: 32 hexadecimal digits.
pub(crate) fn random_hex() -> Result<String> {
    Ok(hex::encode(random_bytes::<ID_BYTES>()?))
}

/// A new code for people: `BCDF-GHJK`.
pub(crate) fn random_code() -> Result<String> {
    let mut code = String::with_capacity(CODE_LETTERS_COUNT + 1);
    while code.len() < CODE_LETTERS_COUNT + 1 {
        for byte in random_bytes::<ID_BYTES>()? {
            // 240 is the largest multiple of 20 in a byte: each letter is as likely.
            let Some(letter) = (byte < 240).then(|| CODE_ALPHABET.get(usize::from(byte) % 20)).flatten()
            else {
                continue;
            };
            if code.len() == CODE_LETTERS_COUNT / 2 {
                code.push('-');
            }
            if code.len() < CODE_LETTERS_COUNT + 1 {
                code.push(char::from(*letter));
            }
        }
    }
    Ok(code)
}

/// A code as somebody typed it, in the form in which it was shown.
pub(crate) fn normal_code(typed: &str) -> String {
    let letters: String =
        typed.chars().filter(char::is_ascii_alphabetic).take(CODE_LETTERS_COUNT + 1).collect();
    let letters = letters.to_ascii_uppercase();
    match letters.split_at_checked(CODE_LETTERS_COUNT / 2) {
        Some((one, other)) => format!("{one}-{other}"),
        None => letters,
    }
}

/// What is kept of a secret.
pub(crate) fn hash(secret: &str) -> Hash {
    Sha256::digest(secret.as_bytes()).into()
}

/// Bytes that nobody can foresee.
pub(crate) fn random_bytes<const LENGTH: usize>() -> Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn codes_survive_being_typed() {
        for _ in 0..100 {
            let code = random_code().unwrap();
            assert_eq!(code.len(), 9, "{code}");
            assert_eq!(normal_code(&code), code);
            assert_eq!(normal_code(&format!(" {} ", code.to_lowercase().replace('-', ""))), code);
        }
        assert_ne!(normal_code("BCDF-GHJKL"), "BCDF-GHJK");
    }
}
