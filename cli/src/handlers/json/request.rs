//! A message as JSON, on one line.

use std::collections::BTreeMap;
use std::io;

use base64::display::Base64Display;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD};
use onceward::{Message, Scope};
use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;

use crate::handlers::token::claim_token;

/// From this many bytes on, text that JSON escapes would more than double (mostly control characters, six bytes each) is
/// passed in Base64.
const LONG: usize = 64 << 10;

/// A field that JSON cannot hold as text, or only with escapes many times as long, is passed in Base64 under another name.
#[derive(Serialize)]
struct JsonRequest<'a> {
    id: u64,
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    scope: &'a str,
    attempt: u32,
    fence: u64,
    generation: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id_base64: Option<Base64<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'a str>,
    headers: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers_base64: BTreeMap<&'a str, Base64<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<Base64<'a>>,
}

/// Encodes while writing, without a copy.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::<GeneralPurpose>::new(self.0, &STANDARD))
    }
}

/// Compact JSON that also escapes the characters at which some line readers (that of Node.js) end a line.
struct OneLine;

impl Formatter for OneLine {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        let mut rest = text;
        while let Some(at) = rest.find(['\u{2028}', '\u{2029}']) {
            let (plain, separator) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            writer.write_all(if separator.starts_with('\u{2028}') { b"\\u2028" } else { b"\\u2029" })?;
            rest = &separator['\u{2028}'.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// The request for `message` with the line end.
#[cfg(any(test, fuzzing))]
pub(in crate::handlers) fn request(id: u64, scope: &Scope, message: &Message) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::new();
    write(&mut line, id, scope, message)?;
    line.push(b'\n');
    Ok(line)
}

/// Appends the request for `message`, without a line end: at most about twice as long as its content. Of headers with the same
/// name the first is passed. After an error `line` is as it was.
///
/// # Errors
/// None that is known; what cannot be written as JSON comes in Base64.
pub(in crate::handlers) fn write(
    line: &mut Vec<u8>,
    id: u64,
    scope: &Scope,
    message: &Message,
) -> serde_json::Result<()> {
    let mut headers = BTreeMap::new();
    let mut headers_base64 = BTreeMap::new();
    for (name, value) in message.headers() {
        if headers.contains_key(name) || headers_base64.contains_key(name) {
            continue;
        }
        match text_or_base64(value) {
            (Some(text), _) => drop(headers.insert(name, text)),
            (None, encoded) => headers_base64.extend(encoded.map(|encoded| (name, encoded))),
        }
    }
    let (payload, payload_base64) = text_or_base64(message.payload());
    let (message_id, message_id_base64) = message.id().map_or((None, None), text_or_base64);
    let request = JsonRequest {
        id,
        key: message.key().map(|key| key.to_string()),
        token: claim_token(message),
        scope: scope.as_str(),
        attempt: message.attempt(),
        fence: message.fence(),
        generation: message.generation(),
        content_type: message.content_type(),
        message_id,
        message_id_base64,
        origin: message.origin(),
        headers,
        headers_base64,
        payload,
        payload_base64,
    };
    // A line of one message that grows by doubling would take twice as much.
    let payload = match request.payload {
        Some(text) => escaped(text),
        None => message.payload().len().div_ceil(3) * 4,
    };
    let beside = message.size() - message.payload().len();
    let before = line.len();
    match before {
        0 => line.reserve_exact(payload + beside + 1024),
        _ => line.reserve(payload + beside + 1024),
    }
    let written = request.serialize(&mut serde_json::Serializer::with_formatter(&mut *line, OneLine));
    if written.is_err() {
        line.truncate(before);
    }
    written
}

fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<Base64<'_>>) {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() < LONG || escaped(text) <= 2 * bytes.len() => (Some(text), None),
        _ => (None, Some(Base64(bytes))),
    }
}

/// The length of `text` as JSON in bytes, without the quotes.
fn escaped(text: &str) -> usize {
    let separators = text.matches(['\u{2028}', '\u{2029}']).count();
    let of_byte = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..=0x1f => 6,
        _ => 1,
    };
    // Six bytes instead of three.
    text.bytes().map(of_byte).sum::<usize>() + 3 * separators
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use serde_json::{Value, json};

    use super::*;

    fn request_of(message: &Message) -> Value {
        let line = request(7, &Scope::parse("billing").unwrap(), message).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert!(line.ends_with(b"\n"));
        assert!(!String::from_utf8_lossy(&line).contains('\u{2028}'));
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn a_request_is_one_line_whatever_the_payload_holds() {
        let message =
            Message::builder("a\nb\0\"\u{2028}").header("h", "1").header("h", "2").message_id("m").build();
        assert_eq!(
            request_of(&message),
            json!({
                "id": 7, "key": null, "scope": "billing", "attempt": 1, "fence": 0, "generation": 0,
                "message_id": "m", "headers": {"h": "1"}, "payload": "a\nb\0\"\u{2028}",
            })
        );
    }

    #[test]
    fn bytes_that_are_no_text_come_in_base64() {
        let message = Message::builder(&b"\xff\n"[..]).header("h", &b"\xfe"[..]).message_id(b"\xfd").build();
        let request = request_of(&message);
        assert_eq!(request["payload_base64"], "/wo=");
        assert_eq!(request["headers_base64"], json!({"h": "/g=="}));
        assert_eq!(request["message_id_base64"], "/Q==");
        assert!(request.get("payload").is_none() && request.get("message_id").is_none());
    }

    #[test]
    fn a_request_is_at_most_about_twice_as_long_as_its_payload_and_is_written_without_copies() {
        let texts = ["\u{1}", "\"", "\\", "\n", "\u{2028}", "x", "é", "\u{1}x", "\u{7f}", "{\"a\":\"b\"},"];
        for text in texts {
            for bytes in [100, LONG - 10, LONG + 10, 10 * LONG] {
                let payload = text.repeat(bytes / text.len() + 1);
                let message = Message::builder(payload.clone()).header("h", payload.clone()).build();
                let line = request(7, &Scope::parse("billing").unwrap(), &message).unwrap();
                let request: Value = serde_json::from_slice(&line).unwrap();
                let decoded = |text: &Value, encoded: &Value| match (text.as_str(), encoded.as_str()) {
                    (Some(text), None) => text.to_owned(),
                    (None, Some(encoded)) => String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap(),
                    other => panic!("{other:?}"),
                };
                assert_eq!(decoded(&request["payload"], &request["payload_base64"]), payload, "{text:?}");
                assert_eq!(
                    decoded(&request["headers"]["h"], &request["headers_base64"]["h"]),
                    payload,
                    "{text:?}"
                );
                // Short ones are sent as before.
                assert!(bytes >= LONG - 10 || request["payload"].is_string(), "{text:?}");
                assert!(text.starts_with('\u{1}') || request["payload"].is_string(), "{text:?} is text");
                if bytes > LONG {
                    assert!(
                        line.len() <= 4 * payload.len() + 1024,
                        "{text:?}: {} of {}",
                        line.len(),
                        payload.len()
                    );
                }
            }
        }
        let message = Message::builder("\u{1}\"x".repeat(LONG)).build();
        let line = request(7, &Scope::parse("billing").unwrap(), &message).unwrap();
        assert!(line.capacity() <= line.len() + 2048, "{} for {}", line.capacity(), line.len());
    }
}
