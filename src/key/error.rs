//! Reasons why no key can be derived from a message: [`KeyError`].

use std::fmt;

use super::format::MAX_KEY_BYTES;

/// Why a message has no idempotency key. The policy `on_missing_key` decides what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// None of the sources is present, or each one found is empty or partial.
    Missing,
    /// A part is longer than [`MAX_KEY_BYTES`].
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The payload is not JSON.
    NotJson {
        /// The parser's error, without the payload.
        what: String,
    },
    /// The pointer meets an object or an array, which is no identity.
    NotScalar,
    /// There is a value, and another reader of the message could take another one for it: a name that occurs twice, a
    /// number in another notation, JSON that only some parsers accept.
    Ambiguous {
        /// The source, in the notation of the configuration.
        source: String,
        /// What can be read in two ways, without the content.
        what: String,
    },
    /// A text handed to a tool cannot be a value of this source.
    OtherForm {
        /// What can.
        wanted: &'static str,
    },
}

impl KeyError {
    /// True if a value is present and cannot be a key; false if no value is present. No weaker source takes the place
    /// of such a value, and the policy `hash` does not: the effect would read what the key does not contain, and happen
    /// once for each payload around the same value.
    pub fn is_unusable(&self) -> bool {
        matches!(self, Self::TooLong { .. } | Self::NotScalar | Self::Ambiguous { .. })
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "no idempotency key: every source is absent, empty or partial"),
            Self::TooLong { bytes } => {
                write!(f, "the idempotency key has {bytes} bytes; {MAX_KEY_BYTES} are allowed")
            }
            Self::NotJson { what } => write!(f, "the payload is not valid JSON: {what}"),
            Self::NotScalar => {
                write!(
                    f,
                    "the JSON pointer meets an object or an array; a key is a string, an integer or a boolean"
                )
            }
            Self::Ambiguous { source, what } => write!(f, "the key at {source} is ambiguous: {what}"),
            Self::OtherForm { wanted } => write!(f, "this is no key of the source; give {wanted}"),
        }
    }
}

impl std::error::Error for KeyError {}
