//! Keys as text, for tools: [`KeyText`].

use super::{KeyExtractor, KeySource, json_part, part};
use crate::key::{Key, KeyError, json};

/// One value of a key, as a person or an earlier table has it.
///
/// Only a [`KeySource::JsonPointer`] distinguishes the variants, since there `"42"` and `42` are different keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyText<'a> {
    /// Of a type that is not known: a text, or the integer or boolean that it reads as.
    Untyped(&'a str),
    /// A text.
    Text(&'a str),
    /// An integer, with the very digits it has in the messages, or a boolean.
    Literal(&'a str),
}

/// Eight values that may each be of two types. A composite of more is not asked for without types.
const MOST_READINGS: usize = 256;

impl KeyExtractor {
    /// The keys that the source number `index` gives for `values`, the likeliest first; more than one only where
    /// [`KeyText::Untyped`] leaves the type of a JSON value open. One value for each part of a composite.
    ///
    /// A position is written `INCARNATION:PARTITION:OFFSET`, a payload hash as 64 hexadecimal digits.
    ///
    /// ```
    /// use onceward::{KeyExtractor, KeySource, KeyText, Message, Scope};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let scope = Scope::parse("billing")?;
    /// let keys = KeyExtractor::new(&scope, vec![KeySource::JsonPointer("/id".into())]);
    /// let readings = keys.keys_from_text(0, &[KeyText::Untyped("42")])?;
    /// assert_eq!(readings[0], keys.key_of(&Message::builder(r#"{"id":"42"}"#).build())?);
    /// assert_eq!(readings[1], keys.key_of(&Message::builder(r#"{"id":42}"#).build())?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`KeyError`] if there is no such source, or a value is empty, oversize or of another form.
    pub fn keys_from_text(&self, index: usize, values: &[KeyText<'_>]) -> Result<Vec<Key>, KeyError> {
        let source = self.sources().nth(index).ok_or(KeyError::Missing)?;
        let mut leaves = Vec::new();
        flatten(source, &mut leaves);
        if leaves.len() != values.len() {
            return Err(KeyError::OtherForm { wanted: "as many values as the source has parts" });
        }
        let mut readings = vec![Vec::new()];
        for (leaf, value) in leaves.into_iter().zip(values) {
            let texts = texts(leaf, *value)?;
            if readings.len() * texts.len() > MOST_READINGS {
                return Err(KeyError::OtherForm {
                    wanted: "values whose types are given, since there are so many",
                });
            }
            readings = readings
                .iter()
                .flat_map(|reading: &Vec<u8>| {
                    texts.iter().map(move |text| [reading.as_slice(), text].concat())
                })
                .collect();
        }
        readings.iter().map(|parts| self.hash_encoded(index, parts)).collect()
    }
}

fn flatten<'a>(source: &'a KeySource, leaves: &mut Vec<&'a KeySource>) {
    match source {
        KeySource::Composite(parts) => parts.iter().for_each(|source| flatten(source, leaves)),
        leaf => leaves.push(leaf),
    }
}

/// The encodings that `value` may have as a part of a key, as [`KeySource::collect`] writes them.
fn texts(source: &KeySource, value: KeyText<'_>) -> Result<Vec<Vec<u8>>, KeyError> {
    let (KeyText::Untyped(text) | KeyText::Text(text) | KeyText::Literal(text)) = value;
    if text.is_empty() {
        return Err(KeyError::Missing);
    }
    let encoded = |value: &[u8]| {
        let mut into = Vec::with_capacity(value.len() + 8);
        part(&mut into, value).map(|()| into)
    };
    let tagged = |tag: &[u8]| {
        let mut into = Vec::with_capacity(text.len() + 9);
        json_part(&mut into, &[tag, text.as_bytes()].concat()).map(|()| into)
    };
    match source {
        KeySource::JsonPointer(_) if text.contains('\0') => {
            Err(KeyError::OtherForm { wanted: "a text without NUL characters" })
        }
        KeySource::JsonPointer(_) => match (value, literal_tag(text)) {
            (KeyText::Text(_), _) | (KeyText::Untyped(_), None) => Ok(vec![tagged(b"s")?]),
            (KeyText::Untyped(_), Some(tag)) => Ok(vec![tagged(b"s")?, tagged(tag)?]),
            (KeyText::Literal(_), Some(tag)) => Ok(vec![tagged(tag)?]),
            (KeyText::Literal(_), None) => {
                Err(KeyError::OtherForm { wanted: "a JSON integer, true or false" })
            }
        },
        KeySource::Position => {
            let wanted = KeyError::OtherForm { wanted: "a position as INCARNATION:PARTITION:OFFSET" };
            let mut numbers = text.rsplitn(3, ':');
            let (offset, partition, incarnation) = (numbers.next(), numbers.next(), numbers.next());
            let offset = offset.and_then(|offset| offset.parse::<u64>().ok());
            let partition = partition.and_then(|partition| partition.parse::<u32>().ok());
            let (Some(offset), Some(partition), Some(incarnation)) = (offset, partition, incarnation) else {
                return Err(wanted);
            };
            let mut into = encoded(incarnation.as_bytes())?;
            into.extend_from_slice(&partition.to_le_bytes());
            into.extend_from_slice(&offset.to_le_bytes());
            Ok(vec![into])
        }
        KeySource::PayloadHash => {
            let wanted = KeyError::OtherForm { wanted: "a payload hash as 64 hexadecimal digits" };
            let hash = blake3::Hash::from_hex(text).map_err(|_| wanted)?;
            Ok(vec![encoded(hash.as_bytes())?])
        }
        KeySource::Header(_) | KeySource::MessageId | KeySource::Given | KeySource::Composite(_) => {
            Ok(vec![encoded(text.as_bytes())?])
        }
    }
}

/// The kind of JSON value that `text` is, if it is an integer or a boolean as messages have it.
fn literal_tag(text: &str) -> Option<&'static [u8]> {
    match text {
        "true" | "false" => Some(b"b"),
        _ => json::is_plain_integer(text).then_some(b"n"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::key::Scope;
    use crate::message::{Message, Position};

    fn extractor(source: KeySource) -> KeyExtractor {
        KeyExtractor::new(&Scope::parse("billing").unwrap(), vec![source])
    }

    fn json(pointer: &str) -> KeySource {
        KeySource::JsonPointer(pointer.into())
    }

    #[test]
    fn text_and_message_give_the_same_key_whatever_the_source() {
        let message = Message::builder(r#"{"id":"a-1","big":123456789012345678901,"yes":true}"#)
            .header("h", "a-1")
            .message_id("a-1")
            .position(Position { incarnation: Arc::from("1:2"), partition: 3, offset: 4 })
            .build();
        let hash = crate::key::payload_hash(message.payload()).to_hex();
        for (source, values) in [
            (KeySource::Header("h".into()), vec!["a-1"]),
            (KeySource::MessageId, vec!["a-1"]),
            (json("/id"), vec!["a-1"]),
            (KeySource::Position, vec!["1:2:3:4"]),
            (KeySource::PayloadHash, vec![hash.as_str()]),
            (KeySource::Composite(vec![json("/id"), KeySource::MessageId]), vec!["a-1", "a-1"]),
        ] {
            let keys = extractor(source.clone());
            let values: Vec<_> = values.into_iter().map(KeyText::Untyped).collect();
            assert_eq!(
                keys.keys_from_text(0, &values),
                Ok(vec![keys.key_of(&message).unwrap()]),
                "{source:?}"
            );
        }
        let (number, boolean) = (extractor(json("/big")), extractor(json("/yes")));
        for (keys, text) in [(number, "123456789012345678901"), (boolean, "true")] {
            let key = keys.key_of(&message).unwrap();
            assert_eq!(keys.keys_from_text(0, &[KeyText::Literal(text)]), Ok(vec![key]));
            let text_too = keys.keys_from_text(0, &[KeyText::Text(text)]).unwrap();
            assert_eq!(keys.keys_from_text(0, &[KeyText::Untyped(text)]), Ok(vec![text_too[0], key]));
        }
    }

    #[test]
    fn what_cannot_be_such_a_key_is_refused() {
        for (source, value) in [
            (json("/id"), KeyText::Literal("a-1")),
            (json("/id"), KeyText::Literal(" 1")),
            (json("/id"), KeyText::Literal("1.0")),
            (json("/id"), KeyText::Literal("1e0")),
            (json("/id"), KeyText::Literal("-0")),
            (json("/id"), KeyText::Literal("01")),
            (json("/id"), KeyText::Text("a\0")),
            (json("/id"), KeyText::Untyped("")),
            (KeySource::Position, KeyText::Untyped("1:2")),
            (KeySource::Position, KeyText::Untyped("1:x:2")),
            (KeySource::PayloadHash, KeyText::Untyped("00ff")),
            (KeySource::Composite(vec![json("/a"), json("/b")]), KeyText::Untyped("1")),
        ] {
            assert!(extractor(source.clone()).keys_from_text(0, &[value]).is_err(), "{source:?} {value:?}");
        }
        let wide = extractor(KeySource::Composite(vec![json("/a"); 9]));
        assert!(wide.keys_from_text(0, &[KeyText::Untyped("1"); 9]).is_err());
        assert_eq!(wide.keys_from_text(0, &[KeyText::Literal("1"); 9]).map(|keys| keys.len()), Ok(1));
    }
}
