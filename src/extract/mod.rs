//! Derives the idempotency key of a message from its headers, position or payload: [`KeyExtractor`].

mod parts;
mod text;

use std::fmt;

use self::parts::{json_part, part, tagged};
use crate::key::{KEY_FORMAT, Key, KeyError, Scope, first_half, json, names, payload_hash};
use crate::message::Message;

pub use text::KeyText;

/// One place an idempotency key can come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeySource {
    /// The value of a header, by its exact name. [Ambiguous](KeyError::Ambiguous) if another header has the same name, or one
    /// that differs in letter case or punctuation only, and another value: handlers are given one of them.
    Header(String),
    /// The broker's or producer's message id that survives redelivery.
    MessageId,
    /// A JSON pointer (RFC 6901) into the payload; the value there must be a string, an integer or a boolean.
    ///
    /// A string is compared byte by byte: no blanks are dropped, no Unicode normalisation is done. An integer is
    /// `-?(0|[1-9][0-9]*)` of any length and keeps its digits; `7` and `"7"` are different keys. `null` is no value.
    ///
    /// [Ambiguous](KeyError::Ambiguous), so no key, is what parsers read differently: a name on the pointer's path that its
    /// object repeats, in whatever escapes or letter case; numbers such as `7.0`, `7e0` and `-0`; strings with a NUL
    /// character or half of a surrogate pair; and a payload that begins as a JSON document and is not valid.
    JsonPointer(String),
    /// The position of the message in its source: source incarnation, partition, offset. Catches redeliveries only.
    Position,
    /// The payload itself: payloads that are the same are the same message. JSON objects and arrays are the same if they
    /// mean the same, see [`Fingerprint::of_json`](crate::Fingerprint::of_json); anything else if it is byte-equal.
    PayloadHash,
    /// All of these parts together; a missing one makes the whole missing.
    Composite(Vec<KeySource>),
    /// A value handed over by the calling program ([`Key::of`]); never found in a message.
    Given,
}

impl KeySource {
    /// Reads the notation of the configuration: `header:NAME`, `message-id`, `json:/pointer`, `position`,
    /// `payload-hash`.
    ///
    /// # Errors
    /// A sentence naming the accepted forms.
    ///
    /// ```
    /// # use onceward::KeySource;
    /// assert_eq!(KeySource::parse("json:/order/id"), Ok(KeySource::JsonPointer("/order/id".into())));
    /// assert!(KeySource::parse("json:order").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "message-id" => return Ok(Self::MessageId),
            "position" => return Ok(Self::Position),
            "payload-hash" => return Ok(Self::PayloadHash),
            _ => {}
        }
        if let Some(name) = text.strip_prefix("header:") {
            return if name.is_empty() {
                Err("\"header:\" needs a name, for example \"header:idempotency-key\"".into())
            } else {
                Ok(Self::Header(name.into()))
            };
        }
        if let Some(pointer) = text.strip_prefix("json:") {
            return if pointer.starts_with('/') && json::is_pointer(pointer) {
                Ok(Self::JsonPointer(pointer.into()))
            } else {
                Err("a JSON pointer starts with \"/\" and escapes \"~\" as \"~0\" and \"/\" as \"~1\", \
                     for example \"json:/order/id\""
                    .into())
            };
        }
        Err("a key source is one of \"header:NAME\", \"message-id\", \"json:/pointer\", \"position\", \
             \"payload-hash\", or a list of these"
            .into())
    }

    /// True for pointers that differ in letter case only. A list of both means that either spelling may come.
    fn is_spelling_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::JsonPointer(one), Self::JsonPointer(other)) => {
                names::likeness(one.as_bytes(), other) != names::Likeness::Other
            }
            _ => false,
        }
    }

    /// True if the payload is read to find it.
    pub(crate) fn reads_payload(&self) -> bool {
        match self {
            Self::JsonPointer(_) | Self::PayloadHash => true,
            Self::Composite(parts) => parts.iter().any(Self::reads_payload),
            Self::Header(_) | Self::MessageId | Self::Position | Self::Given => false,
        }
    }

    /// True if the payload is hashed for it.
    fn hashes_payload(&self) -> bool {
        match self {
            Self::PayloadHash => true,
            Self::Composite(parts) => parts.iter().any(Self::hashes_payload),
            _ => false,
        }
    }

    /// Kind and name, as they are hashed into the key.
    fn describe(&self, into: &mut Vec<u8>) {
        match self {
            Self::Header(name) => tagged(into, b"header", name.as_bytes()),
            Self::MessageId => tagged(into, b"message-id", b""),
            Self::JsonPointer(pointer) => tagged(into, b"json", pointer.as_bytes()),
            Self::Position => tagged(into, b"position", b""),
            // Until JSON was hashed by what it means, the kind was "payload-hash": such keys are others.
            Self::PayloadHash => tagged(into, b"payload-hash-2", b""),
            Self::Given => tagged(into, b"given", b""),
            Self::Composite(parts) => {
                tagged(into, b"composite", &(parts.len() as u64).to_le_bytes());
                for part in parts {
                    part.describe(into);
                }
            }
        }
    }

    /// Appends the length-prefixed parts found in `message`.
    fn collect(&self, message: &Message, into: &mut Vec<u8>) -> Result<(), KeyError> {
        match self {
            Self::Header(name) => part(into, header(message, name)?),
            Self::MessageId => message.id().map_or(Err(KeyError::Missing), |id| part(into, id)),
            Self::JsonPointer(pointer) => {
                let value = json::scalar_at(message.payload(), pointer)?;
                json_part(into, &value)
            }
            Self::Position => {
                let position = message.position().ok_or(KeyError::Missing)?;
                part(into, position.incarnation.as_bytes())?;
                into.extend_from_slice(&position.partition.to_le_bytes());
                into.extend_from_slice(&position.offset.to_le_bytes());
                Ok(())
            }
            Self::PayloadHash => part(into, payload_hash(message.payload()).as_bytes()),
            Self::Composite(parts) if parts.is_empty() => Err(KeyError::Missing),
            Self::Composite(parts) => parts.iter().try_for_each(|source| source.collect(message, into)),
            Self::Given => Err(KeyError::Missing),
        }
    }
}

impl fmt::Display for KeySource {
    /// The notation of the configuration; a composite as the list of its parts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::MessageId => f.write_str("message-id"),
            Self::JsonPointer(pointer) => write!(f, "json:{pointer}"),
            Self::Position => f.write_str("position"),
            Self::PayloadHash => f.write_str("payload-hash"),
            Self::Given => f.write_str("given"),
            Self::Composite(parts) => {
                f.write_str("[")?;
                for (index, part) in parts.iter().enumerate() {
                    write!(f, "{}{part}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
        }
    }
}

/// The value of a header, if every reader of the message finds the same one.
fn header<'m>(message: &'m Message, name: &str) -> Result<&'m [u8], KeyError> {
    let value = message.header(name).ok_or(KeyError::Missing)?;
    let contradicts = |(other, its): (&str, &bytes::Bytes)| its != value && names::same_header(other, name);
    if message.headers().any(contradicts) {
        return Err(KeyError::Ambiguous {
            source: format!("header:{name}"),
            what: "the header occurs again, in the same or another letter case or punctuation, with another value".into(),
        });
    }
    Ok(value)
}

/// Derives the [`Key`] of each message from the first of its sources that is present.
///
/// ```
/// use onceward::{Key, KeyExtractor, KeySource, Message, Scope};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let scope = Scope::parse("billing")?;
/// let keys = KeyExtractor::new(&scope, vec![KeySource::Header("idempotency-key".into()), KeySource::MessageId]);
/// let first = Message::builder("pay 7").header("idempotency-key", "a-1").build();
/// let copy = Message::builder("pay 7").header("idempotency-key", "a-1").message_id("other").build();
/// assert_eq!(keys.key_of(&first)?, keys.key_of(&copy)?);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct KeyExtractor {
    scope: Scope,
    secret: Option<[u8; 32]>,
    sources: Vec<(KeySource, [u8; 32])>,
}

impl KeyExtractor {
    /// An extractor for `scope` that tries `sources` in order.
    pub fn new(scope: &Scope, sources: Vec<KeySource>) -> Self {
        let mut extractor = Self { scope: scope.clone(), secret: None, sources: Vec::new() };
        extractor.sources = sources.into_iter().map(|source| extractor.prepare(source)).collect();
        extractor
    }

    /// Mixes a secret into every key, so that a key cannot be computed in advance without it. All consumers of a scope
    /// must use the same secret; changing it forgets all keys.
    #[must_use]
    pub fn with_secret(mut self, secret: &[u8]) -> Self {
        self.secret = Some(blake3::derive_key("onceward 2026 key secret", secret));
        self.sources =
            std::mem::take(&mut self.sources).into_iter().map(|(source, _)| self.prepare(source)).collect();
        self
    }

    /// An extractor of the same scope and secret that tries other sources.
    pub(crate) fn with_sources(&self, sources: Vec<KeySource>) -> Self {
        let sources = sources.into_iter().map(|source| self.prepare(source)).collect();
        Self { scope: self.scope.clone(), secret: self.secret, sources }
    }

    /// The scope.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The sources, in the order they are tried.
    pub fn sources(&self) -> impl Iterator<Item = &KeySource> {
        self.sources.iter().map(|(source, _)| source)
    }

    /// True if payloads are hashed for a source.
    pub(crate) fn hashes_payload(&self) -> bool {
        self.sources().any(KeySource::hashes_payload)
    }

    /// The context key of a source: what is the same for all its messages is hashed once, here.
    fn prepare(&self, source: KeySource) -> (KeySource, [u8; 32]) {
        let mut text = vec![KEY_FORMAT];
        tagged(&mut text, b"scope", self.scope.as_str().as_bytes());
        source.describe(&mut text);
        let context = match &self.secret {
            None => blake3::derive_key("onceward 2026 key context", &text),
            Some(secret) => *blake3::keyed_hash(secret, &text).as_bytes(),
        };
        (source, context)
    }

    /// The key of `message`, from the first source that is present.
    ///
    /// # Errors
    /// [`KeyError`] if no source is present, or the first one that is present [cannot be used](KeyError::is_unusable): the
    /// sources behind it do not take its place. A malformed payload is reported in preference to a merely missing source.
    pub fn key_of(&self, message: &Message) -> Result<Key, KeyError> {
        self.key_and_source(message).map(|(key, _)| key)
    }

    /// The key of `message`, and the number of the source it was taken from, in the order of [`sources`](Self::sources)
    /// from 0.
    ///
    /// # Errors
    /// As [`key_of`](Self::key_of).
    pub fn key_and_source(&self, message: &Message) -> Result<(Key, usize), KeyError> {
        self.key_and_source_in(message, &mut Vec::with_capacity(64))
    }

    /// As [`key_and_source`](Self::key_and_source); `parts` is room for what is hashed.
    pub(crate) fn key_and_source_in(
        &self,
        message: &Message,
        parts: &mut Vec<u8>,
    ) -> Result<(Key, usize), KeyError> {
        let mut worst = KeyError::Missing;
        let mut unusable: Option<&KeySource> = None;
        for (index, (source, context)) in self.sources.iter().enumerate() {
            if unusable.is_some_and(|before| !source.is_spelling_of(before)) {
                continue;
            }
            parts.clear();
            match source.collect(message, parts) {
                Ok(()) => {
                    let key = Key::from_bytes(first_half(blake3::keyed_hash(context, parts)));
                    return Ok((key, index));
                }
                Err(KeyError::Missing) => {}
                Err(error) if unusable.is_none() => {
                    unusable = error.is_unusable().then_some(source);
                    worst = error;
                }
                Err(_) => {}
            }
        }
        Err(worst)
    }

    /// The key that the source number `index` gives for `values`, for tools that are handed a key as text.
    ///
    /// # Errors
    /// [`KeyError`] if there is no such source or a value is empty or oversize.
    pub fn hash_parts(&self, index: usize, values: &[&[u8]]) -> Result<Key, KeyError> {
        let mut parts = Vec::with_capacity(64);
        values.iter().try_for_each(|value| part(&mut parts, value))?;
        self.hash_encoded(index, &parts)
    }

    /// The key of length-prefixed parts.
    pub(super) fn hash_encoded(&self, index: usize, parts: &[u8]) -> Result<Key, KeyError> {
        let (_, context) = self.sources.get(index).ok_or(KeyError::Missing)?;
        Ok(Key::from_bytes(first_half(blake3::keyed_hash(context, parts))))
    }

    /// The key for a message without one, by its payload: the policy `on_missing_key = "hash"`.
    pub fn fallback(&self, message: &Message) -> Key {
        let (_, context) = self.prepare(KeySource::PayloadHash);
        let mut parts = Vec::with_capacity(40);
        // A BLAKE3 hash is 32 bytes: neither empty nor oversize.
        let _ = part(&mut parts, payload_hash(message.payload()).as_bytes());
        Key::from_bytes(first_half(blake3::keyed_hash(&context, &parts)))
    }
}

impl fmt::Debug for KeyExtractor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyExtractor")
            .field("scope", &self.scope)
            .field("sources", &self.sources().collect::<Vec<_>>())
            .field("secret", &self.secret.map(|_| "set"))
            .finish()
    }
}

impl Key {
    /// The key of `scope` for an identifier that the program itself chooses, for use with
    /// [`once`](crate::Deduplicator::once).
    ///
    /// # Errors
    /// [`KeyError`] if `value` is empty or longer than [`MAX_KEY_BYTES`](crate::key::MAX_KEY_BYTES).
    pub fn of(scope: &Scope, value: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        let extractor = KeyExtractor::new(scope, vec![KeySource::Given]);
        extractor.hash_parts(0, &[value.as_ref()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::MAX_KEY_BYTES;

    #[test]
    fn the_longest_value_is_as_long_wherever_it_stands() {
        let scope = Scope::parse("billing").unwrap();
        for source in [KeySource::Header("k".into()), KeySource::JsonPointer("/k".into())] {
            let keys = KeyExtractor::new(&scope, vec![source]);
            let key_of = |bytes: usize| {
                let value = "k".repeat(bytes);
                let payload = format!(r#"{{"k":"{value}"}}"#);
                keys.key_of(&Message::builder(payload).header("k", value).build())
            };
            assert!(key_of(MAX_KEY_BYTES).is_ok());
            assert_eq!(key_of(MAX_KEY_BYTES + 1), Err(KeyError::TooLong { bytes: MAX_KEY_BYTES + 1 }));
        }
    }
}
