//! The idempotency key and the scope it belongs to: [`Scope`], [`Key`], [`Fingerprint`].

mod canonical;
mod error;
mod fingerprint;
mod format;
pub(crate) mod json;
pub(crate) mod names;
#[cfg(test)]
mod tests;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

pub(crate) use canonical::memory as canonical_memory;
pub use error::KeyError;
pub(crate) use fingerprint::payload_hash;
pub use fingerprint::{Fingerprint, Fingerprinting};
pub(crate) use format::first_half;
pub use format::{KEY_FORMAT, MAX_KEY_BYTES};

/// The consumer that keys belong to: a service or handler, with the tenant if there is one.
/// Two scopes process the same message once *each*.
///
/// 1 to 128 bytes of printable ASCII without spaces. It comes from trusted configuration, never from a message alone.
///
/// ```
/// # use onceward::Scope;
/// assert!(Scope::parse("billing").is_ok());
/// assert!(Scope::parse("").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(Arc<str>);

impl Scope {
    /// Checks and takes a scope.
    ///
    /// # Errors
    /// A sentence naming what is wrong with `text`.
    pub fn parse(text: &str) -> Result<Self, crate::Error> {
        let wrong =
            |what: &'static str| Err(crate::Error::new(crate::ErrorKind::Config, "use this scope", what));
        if text.is_empty() {
            return wrong("it is empty; name the consumer the keys belong to, for example \"billing\"");
        }
        if text.len() > 128 {
            return wrong("it is longer than 128 bytes");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong("it holds a space, a control or a non-ASCII character");
        }
        Ok(Self(text.into()))
    }

    /// The scope as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({})", self.0)
    }
}

/// The idempotency key as stores see it: 128 bits of BLAKE3 over (format version, scope, source kind and name,
/// length-prefixed parts). Header "42" and message id "42" differ, and so do `("a:b", "c")` and `("a", "b:c")`.
///
/// Printed as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key([u8; 16]);

impl Hash for Key {
    /// As a number, which hashers take at once, and bytes only with their length.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.0));
    }
}

impl Key {
    /// A key from its 16 bytes, as a store gives them back.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The key of a message whose own key belongs to another one: of this key and the payload. Payloads that mean the same
    /// have the same.
    pub(crate) fn of_payload(self, payload: &[u8]) -> Self {
        let context = blake3::derive_key("onceward 2026 key of a mismatch", &self.0);
        Self(first_half(blake3::keyed_hash(&context, fingerprint::payload_hash(payload).as_bytes())))
    }

    /// Reads the 32 hexadecimal digits that `Display` writes.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 32];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.pad(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}
