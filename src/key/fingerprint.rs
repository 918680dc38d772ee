//! Hashes of the payload that distinguish copies of a message from other messages under the same key: [`Fingerprint`],
//! [`Fingerprinting`].

use std::fmt;
use std::sync::LazyLock;

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};

use super::format::first_half;
use super::{canonical, json};

/// 128 bits of BLAKE3 over a payload: distinguishes a copy from another message that has the same key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// The fingerprint of the bytes of `payload`.
    pub fn of(payload: &[u8]) -> Self {
        Self(first_half(blake3::hash(payload)))
    }

    /// The fingerprint of what the JSON object or array `payload` means: whitespace, the order of members, escapes and the
    /// notation of numbers do not matter. Of any other payload: that of its bytes. It is what a pipeline uses by default.
    ///
    /// Of its bytes as well where the JSON is not clear: members that are named twice, more than 128 levels. Numbers
    /// keep all their digits, so that large ids that differ stay apart; `1`, `1.0` and `1e0` are one.
    ///
    /// ```
    /// use onceward::Fingerprint;
    /// let sent = Fingerprint::of_json(br#"{"id":1,"name":"Zo\u00eb"}"#);
    /// assert_eq!(sent, Fingerprint::of_json("{\"name\": \"Zoë\", \"id\": 1.0}".as_bytes()));
    /// assert_ne!(sent, Fingerprint::of_json(br#"{"id":2,"name":"Zo\u00eb"}"#));
    /// assert_eq!(Fingerprint::of_json(b"pay 7"), Fingerprint::of(b"pay 7"));
    /// ```
    pub fn of_json(payload: &[u8]) -> Self {
        let canonical = canonical::with_document(payload, |form| Self(first_half(hash(&CANONICAL, form))));
        canonical.unwrap_or_else(|| Self::of(payload))
    }

    /// A fingerprint from its 16 bytes, as a store gives them back.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({:032x})", u128::from_be_bytes(self.0))
    }
}

/// The hash of a payload as the key source `payload-hash` takes it: of what a JSON object or array means, of the bytes of
/// anything else. See [`Fingerprint::of_json`].
pub(crate) fn payload_hash(payload: &[u8]) -> blake3::Hash {
    canonical::with_document(payload, |form| hash(&CANONICAL, form)).unwrap_or_else(|| blake3::hash(payload))
}

/// Hashes in a context differ from those of the same bytes in another: BLAKE3's mode for deriving keys. The context itself is
/// hashed once, not for each message.
static CANONICAL: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("onceward 2026 canonical json"));
static SELECTED: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("onceward 2026 selected json"));

fn hash(context: &ContextKey, bytes: &[u8]) -> blake3::Hash {
    blake3::Hasher::new_from_context_key(context).update(bytes).finalize()
}

/// The part of a payload that is compared with that of earlier messages under the same key. A difference means another
/// message: see [`OnMismatch`](crate::pipeline::config::OnMismatch).
///
/// All consumers of a scope must use the same: fingerprints of two kinds never match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fingerprinting {
    /// The value of a JSON object or array, the bytes of anything else: [`Fingerprint::of_json`].
    #[default]
    Json,
    /// The bytes.
    Bytes,
    /// The values at these JSON pointers, where the payload is JSON; the bytes of anything else. A value that is not there
    /// is compared as such. For producers whose body differs from try to try, by the time at which it is sent, say.
    Pointers(Vec<String>),
    /// Nothing.
    Off,
}

impl Fingerprinting {
    /// The fingerprint of `payload`; `None`: nothing is compared.
    ///
    /// ```
    /// use onceward::Fingerprinting;
    /// let selected = Fingerprinting::Pointers(vec!["/id".into(), "/lines".into()]);
    /// let first = selected.of(br#"{"id":1,"lines":[1],"sent_at":"12:00:01"}"#);
    /// assert_eq!(first, selected.of(br#"{"sent_at":"12:00:09","lines":[ 1 ],"id":1}"#));
    /// assert_ne!(first, selected.of(br#"{"id":1,"lines":[2],"sent_at":"12:00:01"}"#));
    /// assert_eq!(Fingerprinting::Off.of(b"anything"), None);
    /// ```
    pub fn of(&self, payload: &[u8]) -> Option<Fingerprint> {
        match self {
            Self::Json => Some(Fingerprint::of_json(payload)),
            Self::Bytes => Some(Fingerprint::of(payload)),
            Self::Pointers(pointers) => {
                Some(selected(payload, pointers).unwrap_or_else(|| Fingerprint::of(payload)))
            }
            Self::Off => None,
        }
    }

    /// True if payloads are brought into the canonical form of JSON for it.
    pub(crate) const fn reads_json(&self) -> bool {
        matches!(self, Self::Json | Self::Pointers(_))
    }

    /// The error in its pointers, if there is one.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let Self::Pointers(pointers) = self else { return None };
        if pointers.is_empty() {
            return Some("fingerprint has no JSON pointers; name at least one, or say Off");
        }
        let sound = |pointer: &String| pointer.starts_with('/') && json::is_pointer(pointer);
        (!pointers.iter().all(sound)).then_some(
            "a JSON pointer of fingerprint is invalid; it starts with \"/\" and escapes \"~\" as \"~0\" and \"/\" as \"~1\"",
        )
    }
}

/// `None` if the payload is not JSON, or a value has no canonical form.
fn selected(payload: &[u8], pointers: &[String]) -> Option<Fingerprint> {
    let mut hasher = blake3::Hasher::new_from_context_key(&SELECTED);
    for pointer in pointers {
        match json::value_at(payload, pointer).ok()? {
            None => hasher.update(&[0]),
            Some(value) => canonical::with_value(value.as_bytes(), |form| {
                hasher.update(&[1]).update(&(form.len() as u64).to_le_bytes()).update(form);
            })
            .map(|()| &mut hasher)?,
        };
    }
    Some(Fingerprint(first_half(hasher.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selected_values_are_told_apart_by_place_presence_and_type() {
        let selected = Fingerprinting::Pointers(vec!["/a".into(), "/b".into()]);
        let texts = [
            r#"{"a":1,"b":2}"#,
            r#"{"a":2,"b":1}"#,
            r#"{"a":1}"#,
            r#"{"b":1}"#,
            r#"{"a":null,"b":1}"#,
            r#"{"a":"1","b":2}"#,
            "{}",
            "not json",
        ];
        let prints: std::collections::HashSet<_> =
            texts.iter().map(|text| selected.of(text.as_bytes())).collect();
        assert_eq!(prints.len(), texts.len());
        let same = [r#"{"a":1,"b":{"x":1,"y":2},"c":3}"#, r#"{"b": {"y":2,"x":1.0}, "a": 1}"#];
        assert_eq!(selected.of(same[0].as_bytes()), selected.of(same[1].as_bytes()));
    }

    #[test]
    fn a_text_that_is_the_canonical_form_of_another_has_another_fingerprint_as_bytes() {
        assert_ne!(Fingerprint::of(b"{}"), Fingerprint::of_json(b"{}"));
        assert_eq!(Fingerprint::of(b"{"), Fingerprint::of_json(b"{"));
    }

    #[test]
    fn pointers_that_select_nothing_are_refused() {
        let pointers =
            |texts: &[&str]| Fingerprinting::Pointers(texts.iter().map(|text| (*text).into()).collect());
        for bad in [&[][..], &["a"], &["/a", ""], &["/a~2"]] {
            assert!(pointers(bad).fault().is_some(), "{bad:?}");
        }
        assert_eq!(pointers(&["/a", "/b~1c/0"]).fault(), None);
        assert_eq!(Fingerprinting::Json.fault(), None);
    }
}
