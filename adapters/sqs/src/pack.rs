//! Headers within SQS's limit of ten attributes: those beyond it, and those that SQS would refuse, go into one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

/// The attribute with [`Outgoing::id`](onceward::Outgoing::id).
pub(crate) const ID: &str = "onceward-id";
/// The attribute with the headers that have none of their own.
pub(crate) const PACKED: &str = "onceward-headers";
/// The attribute that says that the body is base64: SQS takes no empty body and no bytes that are not text.
pub(crate) const ENCODING: &str = "onceward-encoding";

/// The body of an empty payload.
const EMPTY: &str = "-";

/// Ten, less the three above.
const OWN_ATTRIBUTES: usize = 7;

/// Headers with an attribute each, and what becomes of the others.
pub(crate) struct Packed<'a> {
    pub(crate) own: Vec<(&'a str, &'a str)>,
    pub(crate) packed: Option<String>,
}

/// Divides headers.
pub(crate) fn pack(headers: &[(String, Bytes)]) -> Packed<'_> {
    let mut own: Vec<(&str, &str)> = Vec::new();
    let mut rest = Vec::new();
    for (name, value) in headers {
        let text = std::str::from_utf8(value).ok();
        match text.filter(|text| !text.is_empty() && text.chars().all(is_allowed)) {
            Some(text)
                if own.len() < OWN_ATTRIBUTES
                    && is_name(name)
                    // Metadata of ours is for us: the room is for the producer's headers.
                    && !name.starts_with(onceward::dead_letter::HEADER_PREFIX)
                    && own.iter().all(|(other, _)| other != name) =>
            {
                own.push((name, text));
            }
            _ => rest.push(match text {
                Some(text) => json!([name, text]),
                None => json!([name, STANDARD.encode(value), "base64"]),
            }),
        }
    }
    let packed = (!rest.is_empty()).then(|| ascii(&Value::Array(rest)));
    Packed { own, packed }
}

/// Reads packed headers; `None` if they are not.
pub(crate) fn unpack(packed: &[u8]) -> Option<Vec<(String, Bytes)>> {
    let Ok(Value::Array(all)) = serde_json::from_slice(packed) else { return None };
    all.iter()
        .map(|header| {
            let (name, value) = (header.get(0)?.as_str()?, header.get(1)?.as_str()?);
            let value = match header.get(2) {
                None => Bytes::copy_from_slice(value.as_bytes()),
                Some(_) => STANDARD.decode(value).ok()?.into(),
            };
            Some((name.to_owned(), value))
        })
        .collect()
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
        let mut headers: Vec<(String, Bytes)> =
            (0..20).map(|number| (format!("name-{number}"), Bytes::from(format!("{number}")))).collect();
        headers.push(("name-0".into(), Bytes::from_static(b"again")));
        headers.push(("odd name \u{1f600}".into(), Bytes::from_static(b"\xff\x00")));
        headers.push(("empty".into(), Bytes::new()));
        headers.push(("control".into(), Bytes::from_static(b"\x01")));
        headers.push(("AWS.mine".into(), Bytes::from_static("\u{e4}".as_bytes())));
        let Packed { own, packed } = pack(&headers);
        assert_eq!(own.len(), OWN_ATTRIBUTES);
        let packed = packed.unwrap();
        assert!(packed.chars().all(|character| matches!(character, ' '..='~')), "{packed}");
        let mut found: Vec<(String, Bytes)> = own
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Bytes::copy_from_slice(value.as_bytes())))
            .collect();
        found.extend(unpack(packed.as_bytes()).unwrap());
        headers.sort();
        found.sort();
        assert_eq!(found, headers);
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

    #[test]
    fn few_plain_headers_are_attributes_and_ours_are_packed() {
        let header = |name: &str| (name.to_owned(), Bytes::from_static(b"1"));
        assert!(pack(&[header("a"), header("b")]).packed.is_none());
        let ours = [header("onceward-key"), header("a")];
        let Packed { own, packed } = pack(&ours);
        assert_eq!((own, packed.unwrap()), (vec![("a", "1")], r#"[["onceward-key","1"]]"#.to_owned()));
    }
}
