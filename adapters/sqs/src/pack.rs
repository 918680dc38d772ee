//! Headers within SQS's limit of ten attributes: those beyond it, and those that SQS would refuse, go into one.

use aws_sdk_sqs::types::MessageAttributeValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::form;

/// The attribute with [`Outgoing::id`](onceward::Outgoing::id), where the message has no id of our own as well.
pub(crate) const ID: &str = "onceward-id";
/// The attribute with the headers that have none of their own.
pub(crate) const PACKED: &str = "onceward-headers";
/// The attribute that says that the body is base64: SQS takes no empty body and no bytes that are not text.
pub(crate) const ENCODING: &str = "onceward-encoding";

/// The body of an empty payload.
const EMPTY: &str = "-";

/// Headers that are sent in one attribute, as a JSON array of arrays: name, value, and for a value in base64 that word, and the
/// type of an attribute that had no room.
#[derive(Default)]
pub(crate) struct Packed(Vec<Value>);

impl Packed {
    pub(crate) fn add(&mut self, name: &str, value: &[u8]) {
        self.0.push(match std::str::from_utf8(value) {
            Ok(text) => json!([name, text]),
            Err(_) => json!([name, STANDARD.encode(value), "base64"]),
        });
    }

    /// As [`add`](Self::add), in place of a header of that name.
    pub(crate) fn replace(&mut self, name: &str, value: &[u8]) {
        self.0.retain(|header| header[0] != name);
        self.add(name, value);
    }

    pub(crate) fn add_typed(&mut self, name: &str, value: &MessageAttributeValue) {
        let bytes = form::bytes(value);
        self.0.push(json!([name, STANDARD.encode(bytes), "base64", value.data_type]));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The attribute's value; `None` if there is nothing in it.
    pub(crate) fn into_text(self) -> Option<String> {
        (!self.is_empty()).then(|| ascii(&Value::Array(self.0)))
    }
}

/// A header that was packed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) value: Bytes,
    /// The type of the attribute that it was.
    pub(crate) data_type: Option<String>,
}

/// Reads packed headers; `None` if they are not.
pub(crate) fn unpack(packed: &[u8]) -> Option<Vec<Header>> {
    let Ok(Value::Array(all)) = serde_json::from_slice(packed) else { return None };
    all.iter()
        .map(|header| {
            let (name, value) = (header.get(0)?.as_str()?, header.get(1)?.as_str()?);
            let value = match header.get(2) {
                None => Bytes::copy_from_slice(value.as_bytes()),
                Some(_) => STANDARD.decode(value).ok()?.into(),
            };
            let data_type = header.get(3).and_then(Value::as_str).map(str::to_owned);
            Some(Header { name: name.to_owned(), value, data_type })
        })
        .collect()
}

/// The text of a header that can be an attribute of its own.
pub(crate) fn plain<'v>(name: &str, value: &'v [u8]) -> Option<&'v str> {
    let text = std::str::from_utf8(value).ok()?;
    (!text.is_empty() && text.chars().all(is_allowed) && is_name(name)).then_some(text)
}

/// A body as SQS takes it, and whether it is base64.
pub(crate) fn body(payload: &[u8]) -> (String, bool) {
    match std::str::from_utf8(payload) {
        Ok(text) if !text.is_empty() && text.chars().all(is_allowed) => (text.to_owned(), false),
        // No base64 is this, and no body may be empty.
        _ if payload.is_empty() => (EMPTY.to_owned(), true),
        _ => (STANDARD.encode(payload), true),
    }
}

/// The payload of a body that is said to be base64; `None` if it is not.
pub(crate) fn payload(body: &[u8]) -> Option<Bytes> {
    if body == EMPTY.as_bytes() {
        return Some(Bytes::new());
    }
    STANDARD.decode(body).ok().map(Bytes::from)
}

/// JSON in ASCII: control characters are escaped by JSON itself, others here.
fn ascii(value: &Value) -> String {
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

/// The characters that SQS takes: those of XML 1.0.
fn is_allowed(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// What SQS takes as the name of an attribute, more narrowly than its own rules.
fn is_name(name: &str) -> bool {
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
    fn every_header_is_found_again_whatever_its_name_and_bytes() {
        let headers: [(&str, &[u8]); 5] = [
            ("name", b"again"),
            ("odd name \u{1f600}", b"\xff\x00"),
            ("empty", b""),
            ("control", b"\x01"),
            ("AWS.mine", "\u{e4}".as_bytes()),
        ];
        let mut packed = Packed::default();
        assert!(packed.is_empty());
        headers.iter().for_each(|(name, value)| packed.add(name, value));
        packed.add_typed("number", &form::value("Number", b"17").unwrap());
        packed.replace("name", b"anew");
        let text = packed.into_text().unwrap();
        assert!(text.chars().all(|character| matches!(character, ' '..='~')), "{text}");
        let found = unpack(text.as_bytes()).unwrap();
        let found: Vec<_> = found.iter().map(|header| (header.name.as_str(), &header.value[..])).collect();
        assert_eq!(found, [&headers[1..], &[("number", b"17"), ("name", b"anew")]].concat());
    }

    #[test]
    fn only_what_sqs_takes_is_plain() {
        assert_eq!(plain("tenant", b"a"), Some("a"));
        for (name, value) in [
            ("tenant", &b""[..]),
            ("tenant", b"\xff"),
            ("tenant", b"\x01"),
            ("odd name", b"a"),
            ("AWS.x", b"a"),
        ] {
            assert_eq!(plain(name, value), None, "{name} {value:?}");
        }
    }

    #[test]
    fn every_payload_is_found_again() {
        for bytes in [&b""[..], b"text", b"\xff\x00", b"\x01", "\u{e4}".as_bytes(), "\u{fffe}".as_bytes()] {
            let (body, encoded) = body(bytes);
            assert!(!body.is_empty());
            let found = if encoded { payload(body.as_bytes()).unwrap() } else { Bytes::from(body) };
            assert_eq!(found, bytes);
        }
        assert_eq!(body(b"text"), ("text".to_owned(), false));
        assert_eq!(payload(b"not base64!"), None);
    }
}
