//! Packs headers that exceed SQS's limit of ten attributes, or that SQS would reject, into one attribute:
//! [`PackedHeaders`].

use aws_sdk_sqs::types::MessageAttributeValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::format::attributes;

/// The attribute with [`Outgoing::id`](onceward::Outgoing::id), if the message has no id of our own as well.
pub(crate) const ID: &str = "onceward-id";
/// The attribute with the packed headers.
pub(crate) const PACKED: &str = "onceward-headers";
/// The attribute that marks a body as base64: SQS accepts neither an empty body nor bytes that are not text.
pub(crate) const ENCODING: &str = "onceward-encoding";

/// The body of an empty payload.
const EMPTY: &str = "-";

/// Headers in one attribute, as a JSON array of arrays: name, value, for a base64 value the word `base64`, and for a
/// packed attribute its type.
#[derive(Default)]
pub(crate) struct PackedHeaders(Vec<Value>);

impl PackedHeaders {
    pub(crate) fn add(&mut self, name: &str, value: &[u8]) {
        self.0.push(match std::str::from_utf8(value) {
            Ok(text) => json!([name, text]),
            Err(_) => json!([name, STANDARD.encode(value), "base64"]),
        });
    }

    /// As [`add`](Self::add), replacing headers of that name.
    pub(crate) fn replace(&mut self, name: &str, value: &[u8]) {
        self.0.retain(|header| header[0] != name);
        self.add(name, value);
    }

    pub(crate) fn add_typed(&mut self, name: &str, value: &MessageAttributeValue) {
        let bytes = attributes::to_bytes(value);
        self.0.push(json!([name, STANDARD.encode(bytes), "base64", value.data_type]));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of the attribute; `None` without headers.
    pub(crate) fn into_text(self) -> Option<String> {
        (!self.is_empty()).then(|| to_ascii_json(&Value::Array(self.0)))
    }
}

/// A packed header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PackedHeader {
    pub(crate) name: String,
    pub(crate) value: Bytes,
    /// The type of the packed attribute.
    pub(crate) data_type: Option<String>,
}

/// Parses packed headers; `None` if they are invalid.
pub(crate) fn unpack(packed: &[u8]) -> Option<Vec<PackedHeader>> {
    let Ok(Value::Array(all)) = serde_json::from_slice(packed) else { return None };
    all.iter()
        .map(|header| {
            let (name, value) = (header.get(0)?.as_str()?, header.get(1)?.as_str()?);
            let value = match header.get(2) {
                None => Bytes::copy_from_slice(value.as_bytes()),
                Some(_) => STANDARD.decode(value).ok()?.into(),
            };
            let data_type = header.get(3).and_then(Value::as_str).map(str::to_owned);
            Some(PackedHeader { name: name.to_owned(), value, data_type })
        })
        .collect()
}

/// The text of a header that can be an attribute of its own.
pub(crate) fn plain_text<'v>(name: &str, value: &'v [u8]) -> Option<&'v str> {
    let text = std::str::from_utf8(value).ok()?;
    (!text.is_empty() && text.chars().all(is_allowed_character) && is_attribute_name(name)).then_some(text)
}

/// Encodes a payload as a body that SQS accepts; true if it is base64.
pub(crate) fn encode_body(payload: &[u8]) -> (String, bool) {
    match std::str::from_utf8(payload) {
        Ok(text) if !text.is_empty() && text.chars().all(is_allowed_character) => (text.to_owned(), false),
        // Not valid base64, and a body must not be empty.
        _ if payload.is_empty() => (EMPTY.to_owned(), true),
        _ => (STANDARD.encode(payload), true),
    }
}

/// Decodes a body that is marked as base64; `None` if it is not.
pub(crate) fn decode_body(body: &[u8]) -> Option<Bytes> {
    if body == EMPTY.as_bytes() {
        return Some(Bytes::new());
    }
    STANDARD.decode(body).ok().map(Bytes::from)
}

/// Formats JSON as ASCII: JSON itself escapes control characters.
fn to_ascii_json(value: &Value) -> String {
    let mut text = String::new();
    for character in value.to_string().chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

/// The characters that SQS accepts: those of XML 1.0.
fn is_allowed_character(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// The attribute names that we send, a subset of those that SQS accepts.
fn is_attribute_name(name: &str) -> bool {
    let reserved =
        |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    (1..=256).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..")
        && !reserved("aws.")
        && !reserved("amazon.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_survives_packing() {
        let headers: [(&str, &[u8]); 5] = [
            ("name", b"again"),
            ("odd name \u{1f600}", b"\xff\x00"),
            ("empty", b""),
            ("control", b"\x01"),
            ("AWS.mine", "\u{e4}".as_bytes()),
        ];
        let mut packed = PackedHeaders::default();
        assert!(packed.is_empty());
        headers.iter().for_each(|(name, value)| packed.add(name, value));
        packed.add_typed("number", &attributes::build("Number", b"17").unwrap());
        packed.replace("name", b"replaced");
        let text = packed.into_text().unwrap();
        assert!(text.chars().all(|character| matches!(character, ' '..='~')), "{text}");
        let found = unpack(text.as_bytes()).unwrap();
        let found: Vec<_> = found.iter().map(|header| (header.name.as_str(), &header.value[..])).collect();
        assert_eq!(found, [&headers[1..], &[("number", b"17"), ("name", b"replaced")]].concat());
    }

    #[test]
    fn only_headers_that_sqs_accepts_are_plain() {
        assert_eq!(plain_text("tenant", b"a"), Some("a"));
        for (name, value) in [
            ("tenant", &b""[..]),
            ("tenant", b"\xff"),
            ("tenant", b"\x01"),
            ("odd name", b"a"),
            ("AWS.x", b"a"),
        ] {
            assert_eq!(plain_text(name, value), None, "{name} {value:?}");
        }
    }

    #[test]
    fn every_payload_survives_encoding() {
        for bytes in [&b""[..], b"text", b"\xff\x00", b"\x01", "\u{e4}".as_bytes(), "\u{fffe}".as_bytes()] {
            let (body, encoded) = encode_body(bytes);
            assert!(!body.is_empty());
            let found = if encoded { decode_body(body.as_bytes()).unwrap() } else { Bytes::from(body) };
            assert_eq!(found, bytes);
        }
        assert_eq!(encode_body(b"text"), ("text".to_owned(), false));
        assert_eq!(decode_body(b"not base64!"), None);
    }
}
