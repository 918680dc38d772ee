//! Line protocol of worker processes: requests and answers as JSON.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use base64::display::Base64Display;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD};
use bytes::Bytes;
use onceward::{HandlerError, Message, Scope};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use serde_json::ser::Formatter;
use serde_json::value::RawValue;

use crate::handlers::text::printable;
use crate::handlers::token::claim_token;

/// The most bytes of an error text that are kept.
const ERROR_LIMIT: usize = 1024;

/// The most bytes of an invalid line that are quoted.
const QUOTE_LIMIT: usize = 120;

/// The longest delay that a worker may request.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(3600);

/// From this many bytes on, text that JSON escapes would more than double (mostly control characters, six bytes each) is
/// passed in Base64.
const LONG: usize = 64 << 10;

/// A field that JSON cannot hold as text, or only with escapes many times as long, is passed in Base64 under another name.
#[derive(Serialize)]
struct Request<'a> {
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

/// The request line for `message`, including the line end: at most about twice as long as its content. Of headers with the
/// same name the first is passed.
pub(super) fn request(id: u64, scope: &Scope, message: &Message) -> serde_json::Result<Vec<u8>> {
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
    let request = Request {
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
    // A line that grows by doubling would take twice as much.
    let payload = match request.payload {
        Some(text) => escaped(text),
        None => message.payload().len().div_ceil(3) * 4,
    };
    let beside = message.size() - message.payload().len();
    let mut line = Vec::with_capacity(payload + beside + 1024);
    request.serialize(&mut serde_json::Serializer::with_formatter(&mut line, OneLine))?;
    line.push(b'\n');
    Ok(line)
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

/// A line of the standard output of a worker.
#[derive(Debug)]
pub(super) enum Said {
    /// White space only.
    Nothing,
    /// `{"ready":true}`.
    Ready,
    /// The answer to the open request.
    Answer(Result<Option<Bytes>, HandlerError>),
    /// Not an answer, or one to an earlier request: it is ignored.
    Stray,
    /// An invalid answer, and why.
    Wrong(String),
}

/// All fields may be missing or of another type, which decides what the line is.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    ok: Option<&'a RawValue>,
    #[serde(default)]
    ready: Option<Value>,
}

#[derive(Deserialize)]
struct WorkerAnswer<'a> {
    ok: bool,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<String>,
    retry: Option<bool>,
    retry_after_ms: Option<u64>,
    unavailable: Option<bool>,
}

/// Parses a line while request `id` is open; 0 means none. It tolerates surrounding white space, a byte order mark, a carriage
/// return, and the id as text. A line that is not a JSON object with `id` and `ok` is not an answer.
pub(super) fn said(id: u64, line: &[u8]) -> Said {
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii();
    if line.is_empty() {
        return Said::Nothing;
    }
    if !line.starts_with(b"{") {
        return Said::Stray;
    }
    let fields: Fields<'_> = match serde_json::from_slice(line) {
        Ok(fields) => fields,
        // Distinguishes a printed dictionary from an invalid answer.
        Err(cause) if names(line, "id") && names(line, "ok") => return Said::Wrong(mistake(line, &cause)),
        Err(_) => return Said::Stray,
    };
    let answered = fields.id.and_then(|of| of.get().trim_matches('"').parse::<u64>().ok());
    match (answered, fields.ok) {
        (None, None) if fields.ready == Some(Value::Bool(true)) => Said::Ready,
        (Some(answered), _) if answered < id => Said::Stray,
        (Some(answered), Some(_)) if answered > id => {
            Said::Wrong(format!("answered request {answered} while request {id} was open"))
        }
        (Some(answered), ok) if answered == id && id > 0 => match serde_json::from_slice(line) {
            Ok(answer) if ok.is_some() => Said::Answer(outcome(answer)),
            Ok(_) => Said::Wrong(wrong(line, "without `ok`")),
            Err(cause) => Said::Wrong(mistake(line, &cause)),
        },
        (None, Some(_)) if id > 0 => Said::Wrong(wrong(line, "without the request's `id`")),
        _ => Said::Stray,
    }
}

/// True if `name` occurs in quotes of either kind.
fn names(line: &[u8], name: &str) -> bool {
    let quoted = [format!("\"{name}\""), format!("'{name}'")];
    quoted.iter().any(|quoted| line.windows(quoted.len()).any(|window| window == quoted.as_bytes()))
}

fn mistake(line: &[u8], cause: &serde_json::Error) -> String {
    wrong(line, &printable(cause.to_string().as_bytes(), QUOTE_LIMIT))
}

fn wrong(line: &[u8], why: &str) -> String {
    format!(
        "wrote a line that is no answer ({why}): {:?}; standard output is for answers only, diagnostics belong on \
         standard error",
        printable(line, QUOTE_LIMIT)
    )
}

/// The result in the answer of a worker.
fn outcome(answer: WorkerAnswer<'_>) -> Result<Option<Bytes>, HandlerError> {
    if answer.ok {
        return Ok(answer.result.map(|result| Bytes::copy_from_slice(result.get().as_bytes())));
    }
    let text = printable(answer.error.as_deref().unwrap_or("failed without a text").as_bytes(), ERROR_LIMIT);
    let wait = answer.retry_after_ms.map(|ms| Duration::from_millis(ms).min(RETRY_AFTER_LIMIT));
    Err(match (answer.unavailable, answer.retry, wait) {
        (Some(true), _, None) => HandlerError::unavailable(text),
        (Some(true), _, Some(wait)) => HandlerError::unavailable(text).not_before(wait),
        (_, Some(false), _) => HandlerError::permanent(text),
        (_, _, Some(wait)) => HandlerError::retry_after(wait, text),
        (_, _, None) => HandlerError::retry(text),
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use onceward::Verdict;
    use serde_json::json;

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

    fn answer(line: &str) -> Result<Option<Bytes>, HandlerError> {
        match said(7, line.as_bytes()) {
            Said::Answer(answer) => answer,
            other => panic!("{line:?} is {other:?}"),
        }
    }

    #[test]
    fn the_result_is_kept_as_the_json_it_was() {
        let kept = |line: &str| answer(line).unwrap();
        assert_eq!(kept(r#"{"id":7,"ok":true}"#), None);
        assert_eq!(kept(r#"{"id":7,"ok":true,"result":null}"#), None);
        assert_eq!(kept(r#"{"id":7,"ok":true,"result":{"a": 1.50}}"#).unwrap(), r#"{"a": 1.50}"#);
        assert_eq!(kept(r#"{"ok":true,"result":"x","id":7,"more":[]}"#).unwrap(), r#""x""#);
    }

    #[test]
    fn a_failure_says_what_shall_happen_next() {
        let failed = |rest: &str| {
            let error = answer(&format!(r#"{{"id":7,"ok":false,"error":"no\u001b[2J"{rest}}}"#)).unwrap_err();
            assert_eq!(error.text(), "no\\u{1b}[2J");
            error
        };
        let verdict = |rest: &str| failed(rest).verdict();
        assert_eq!(verdict(""), Verdict::Retry);
        assert_eq!(verdict(r#","retry":true"#), Verdict::Retry);
        assert_eq!(verdict(r#","retry":false,"retry_after_ms":5"#), Verdict::Permanent);
        assert_eq!(verdict(r#","retry_after_ms":1500"#), Verdict::RetryAfter(Duration::from_millis(1500)));
        assert_eq!(
            verdict(&format!(r#","retry_after_ms":{}"#, u64::MAX)),
            Verdict::RetryAfter(RETRY_AFTER_LIMIT)
        );
        let unavailable = failed(r#","unavailable":true,"retry_after_ms":1500"#);
        assert_eq!(unavailable.verdict(), Verdict::Unavailable);
        assert_eq!(unavailable.delay(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn an_answer_in_a_loose_form_is_an_answer() {
        for line in [
            "{\"id\":7,\"ok\":true}  \r\n",
            "\t {\"id\" : 7, \"ok\" : true}\n",
            "\u{feff}{\"id\":7,\"ok\":true}\n",
            "{\"id\":\"7\",\"ok\":true}\n",
            "{\"id\":7,\"ok\":true,\"error\":null,\"retry\":null}\n",
        ] {
            assert_eq!(answer(line).unwrap(), None, "{line:?}");
        }
        for blank in ["\n", "\r\n", "  \n", "\u{feff}\n"] {
            assert!(matches!(said(7, blank.as_bytes()), Said::Nothing), "{blank:?}");
        }
        for ready in ["{\"ready\":true}\n", " {\"ready\": true, \"version\": 3}\r\n"] {
            assert!(matches!(said(0, ready.as_bytes()), Said::Ready), "{ready:?}");
            assert!(matches!(said(7, ready.as_bytes()), Said::Ready), "{ready:?}");
        }
    }

    #[test]
    fn what_is_no_answer_is_ignored() {
        for stray in [
            "debug",
            "[]",
            "null",
            "{'a': 1}",
            "{\"level\":\"info\",\"msg\":\"x\"}",
            "{\"id\":\"abc\",\"msg\":\"x\"}",
            "{\"id\":6,\"ok\":true}",
            "{\"ready\":false}",
            "\u{fffd}",
        ] {
            assert!(matches!(said(7, stray.as_bytes()), Said::Stray), "{stray:?}");
        }
        assert!(matches!(said(0, b"{\"id\":0,\"ok\":true}"), Said::Stray));
    }

    #[test]
    fn an_answer_that_cannot_be_understood_is_told_from_that() {
        let wrong = |line: &str| match said(7, line.as_bytes()) {
            Said::Wrong(why) => why,
            other => panic!("{line:?} is {other:?}"),
        };
        for line in [
            r#"{"id":7}"#,
            r#"{"id":7,"ok":"yes"}"#,
            r#"{"ok":true}"#,
            r#"{"id":7,"ok":true,"result":NaN}"#,
            "{'id': 7, 'ok': True}",
        ] {
            let why = wrong(line);
            assert!(why.contains("standard error"), "{line:?}: {why}");
        }
        assert_eq!(wrong(r#"{"id":8,"ok":true}"#), "answered request 8 while request 7 was open");
        let long = format!(r#"{{"id":7,"ok":"{}"}}"#, "x".repeat(100_000));
        assert!(wrong(&long).len() < 500);
    }
}
