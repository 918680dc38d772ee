//! The sources of values that keys and lanes are made of.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

/// One value that a key or lane is taken from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyPart {
    /// `header:NAME`: a header of the message.
    Header(String),
    /// `message-id`: the identity that the producer gave the message.
    MessageId,
    /// `json:/a/b`: a JSON pointer (RFC 6901) into the payload, to a text, an integer or a boolean.
    Json(String),
    /// `position`: the position of the message in its source, incarnation included. Catches redeliveries only.
    Position,
    /// `payload-hash`: a hash of the payload. Two messages that mean different things must differ in it.
    PayloadHash,
}

impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::MessageId => f.write_str("message-id"),
            Self::Json(pointer) => write!(f, "json:{pointer}"),
            Self::Position => f.write_str("position"),
            Self::PayloadHash => f.write_str("payload-hash"),
        }
    }
}

/// Why a text names no part of a message; the text itself is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAKeyPart {
    /// None of the known kinds.
    UnknownKind,
    /// `header:` without a usable name.
    BadHeader,
    /// `json:` without a pointer to a field.
    BadPointer,
}

impl fmt::Display for NotAKeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownKind => {
                "names no part of a message; \
                 write header:NAME, message-id, json:/POINTER, position or payload-hash"
            }
            Self::BadHeader => "names no header; write header:NAME without spaces, such as header:idempotency-key",
            Self::BadPointer => {
                "is not a JSON pointer to a field; write json:/order/id, with ~1 for / and ~0 for ~ inside a name"
            }
        })
    }
}

impl std::error::Error for NotAKeyPart {}

impl FromStr for KeyPart {
    type Err = NotAKeyPart;

    fn from_str(text: &str) -> Result<Self, NotAKeyPart> {
        if let Some(name) = text.strip_prefix("header:") {
            let usable = !name.is_empty() && name.chars().all(|c| !c.is_whitespace() && !c.is_control());
            return usable.then(|| Self::Header(name.to_owned())).ok_or(NotAKeyPart::BadHeader);
        }
        if let Some(pointer) = text.strip_prefix("json:") {
            let escapes_are_whole = pointer.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
            let usable = pointer.starts_with('/') && escapes_are_whole;
            return usable.then(|| Self::Json(pointer.to_owned())).ok_or(NotAKeyPart::BadPointer);
        }
        match text {
            "message-id" => Ok(Self::MessageId),
            "position" => Ok(Self::Position),
            "payload-hash" => Ok(Self::PayloadHash),
            _ => Err(NotAKeyPart::UnknownKind),
        }
    }
}

impl Serialize for KeyPart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyPart {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// One part, or a composite of several that must all be present.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// A single part.
    Part(KeyPart),
    /// Several parts together; never empty.
    Composite(Vec<KeyPart>),
}

impl KeySource {
    /// Its parts, one or more, in order.
    pub fn parts(&self) -> &[KeyPart] {
        match self {
            Self::Part(part) => std::slice::from_ref(part),
            Self::Composite(parts) => parts,
        }
    }
}

impl Serialize for KeySource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Part(part) => part.serialize(serializer),
            Self::Composite(parts) => parts.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for KeySource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeySourceVisitor)
    }
}

struct KeySourceVisitor;

impl<'de> Visitor<'de> for KeySourceVisitor {
    type Value = KeySource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"text such as "header:idempotency-key", or a list of such texts for a composite"#)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<KeySource, E> {
        text.parse().map(KeySource::Part).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<KeySource, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = seq.next_element()? {
            parts.push(part);
        }
        if parts.is_empty() {
            return Err(de::Error::custom("is a composite of nothing; name at least one part in it"));
        }
        Ok(KeySource::Composite(parts))
    }
}

impl JsonSchema for KeySource {
    fn schema_name() -> Cow<'static, str> {
        "KeySource".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let part = json_schema!({
            "type": "string",
            "pattern": "^(header:\\S+|json:/.*|message-id|position|payload-hash)$",
        });
        json_schema!({
            "description": "A part of the message, or a list of parts that together are a composite.",
            "anyOf": [part, { "type": "array", "items": part, "minItems": 1 }],
        })
    }
}

/// What keeps messages in one lane: the broker's own key, or values of the message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OrderBy {
    /// `broker`: the record key or message group of the broker.
    Broker,
    /// Values of the message, as in `[key] from`.
    Source(KeySource),
}

impl Serialize for OrderBy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Broker => serializer.serialize_str("broker"),
            Self::Source(source) => source.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for OrderBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OrderByVisitor)
    }
}

struct OrderByVisitor;

impl<'de> Visitor<'de> for OrderByVisitor {
    type Value = OrderBy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#""broker", text such as "header:customer", or a list of such texts"#)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<OrderBy, E> {
        match text {
            "broker" => Ok(OrderBy::Broker),
            _ => text.parse().map(|part| OrderBy::Source(KeySource::Part(part))).map_err(|_| {
                E::custom("names nothing to keep order by; write broker, header:NAME or json:/POINTER")
            }),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<OrderBy, A::Error> {
        KeySourceVisitor.visit_seq(seq).map(OrderBy::Source)
    }
}

impl JsonSchema for OrderBy {
    fn schema_name() -> Cow<'static, str> {
        "OrderBy".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What keeps messages in one lane: the broker's own key, or values of the message.",
            "anyOf": [{ "const": "broker" }, generator.subschema_for::<KeySource>()],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_part_reads_and_prints_alike() {
        for text in [
            "header:idempotency-key",
            "message-id",
            "json:/order/id",
            "json:/a~1b/~0",
            "position",
            "payload-hash",
        ] {
            assert_eq!(text.parse::<KeyPart>().map(|part| part.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn a_part_that_could_never_be_found_is_refused() {
        for (text, why) in [
            ("header:", NotAKeyPart::BadHeader),
            ("header:a b", NotAKeyPart::BadHeader),
            ("json:", NotAKeyPart::BadPointer),
            ("json:order/id", NotAKeyPart::BadPointer),
            ("json:/a~2", NotAKeyPart::BadPointer),
            ("json:/a~", NotAKeyPart::BadPointer),
            ("messageid", NotAKeyPart::UnknownKind),
            ("", NotAKeyPart::UnknownKind),
        ] {
            assert_eq!(text.parse::<KeyPart>(), Err(why), "{text:?}");
        }
    }
}
