//! The lines a worker process reads and writes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use onceward::{HandlerError, Message, Scope};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::handlers::headers::base64;
use crate::handlers::text::printable;
use crate::handlers::token::claim_token;

/// What is kept of an error text, in bytes.
const ERROR_LIMIT: usize = 1024;

/// What is quoted of a line that is no answer, in bytes.
const QUOTE_LIMIT: usize = 120;

/// The longest wait a worker may ask for.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(3600);

/// Fields that JSON cannot hold as text come in Base64 under another name, and only then.
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
    message_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'a str>,
    headers: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers_base64: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

/// The request line for `message`, line end included. Of headers with the same name, the first is passed.
pub(super) fn request(id: u64, scope: &Scope, message: &Message) -> serde_json::Result<Vec<u8>> {
    let mut headers = BTreeMap::new();
    let mut headers_base64 = BTreeMap::new();
    for (name, value) in message.headers() {
        if headers.contains_key(name) || headers_base64.contains_key(name) {
            continue;
        }
        match std::str::from_utf8(value) {
            Ok(text) => drop(headers.insert(name, text)),
            Err(_) => drop(headers_base64.insert(name, base64(value))),
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
        message_id,
        message_id_base64,
        origin: message.origin(),
        headers,
        headers_base64,
        payload,
        payload_base64,
    };
    let mut line = serde_json::to_string(&request)?;
    // JSON leaves them as they are, but some line readers (that of Node.js) end a line at them.
    for (separator, escaped) in [('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")] {
        if line.contains(separator) {
            line = line.replace(separator, escaped);
        }
    }
    line.push('\n');
    Ok(line.into_bytes())
}

fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(base64(bytes))),
    }
}

#[derive(Deserialize)]
struct Answer<'a> {
    id: u64,
    ok: bool,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<String>,
    retry: Option<bool>,
    retry_after_ms: Option<u64>,
}

/// What the worker said about the message, or why the line is no answer to request `id`.
pub(super) fn answer(id: u64, line: &[u8]) -> Result<Result<Option<Bytes>, HandlerError>, String> {
    let quoted = || format!("{:?}", printable(line.trim_ascii_end(), QUOTE_LIMIT));
    let answer: Answer<'_> = serde_json::from_slice(line).map_err(|cause| {
        let cause = printable(cause.to_string().as_bytes(), QUOTE_LIMIT);
        format!(
            "wrote a line that is no answer ({cause}): {}; standard output is for answers only, diagnostics belong \
             on standard error",
            quoted()
        )
    })?;
    if answer.id != id {
        return Err(format!("answered request {} while request {id} was open", answer.id));
    }
    if answer.ok {
        return Ok(Ok(answer.result.map(|result| Bytes::copy_from_slice(result.get().as_bytes()))));
    }
    let text = printable(answer.error.as_deref().unwrap_or("failed without a text").as_bytes(), ERROR_LIMIT);
    let wait = answer.retry_after_ms.map(|ms| Duration::from_millis(ms).min(RETRY_AFTER_LIMIT));
    Ok(Err(match (answer.retry, wait) {
        (Some(false), _) => HandlerError::permanent(text),
        (_, Some(wait)) => HandlerError::retry_after(wait, text),
        (_, None) => HandlerError::retry(text),
    }))
}

#[cfg(test)]
mod tests {
    use onceward::Verdict;
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
    fn the_result_is_kept_as_the_json_it_was() {
        let kept = |line: &str| answer(7, line.as_bytes()).unwrap().unwrap();
        assert_eq!(kept(r#"{"id":7,"ok":true}"#), None);
        assert_eq!(kept(r#"{"id":7,"ok":true,"result":null}"#), None);
        assert_eq!(kept(r#"{"id":7,"ok":true,"result":{"a": 1.50}}"#).unwrap(), r#"{"a": 1.50}"#);
        assert_eq!(kept(r#"{"ok":true,"result":"x","id":7,"more":[]}"#).unwrap(), r#""x""#);
    }

    #[test]
    fn a_failure_says_what_shall_happen_next() {
        let verdict = |rest: &str| {
            let line = format!(r#"{{"id":7,"ok":false,"error":"no\u001b[2J"{rest}}}"#);
            let error = answer(7, line.as_bytes()).unwrap().unwrap_err();
            assert_eq!(error.text(), "no\\u{1b}[2J");
            error.verdict()
        };
        assert_eq!(verdict(""), Verdict::Retry);
        assert_eq!(verdict(r#","retry":true"#), Verdict::Retry);
        assert_eq!(verdict(r#","retry":false,"retry_after_ms":5"#), Verdict::Permanent);
        assert_eq!(verdict(r#","retry_after_ms":1500"#), Verdict::RetryAfter(Duration::from_millis(1500)));
        assert_eq!(
            verdict(&format!(r#","retry_after_ms":{}"#, u64::MAX)),
            Verdict::RetryAfter(RETRY_AFTER_LIMIT)
        );
    }

    #[test]
    fn what_is_no_answer_is_told_from_an_answer() {
        for line in ["", "\n", "debug", "[]", "null", r#"{"id":7}"#, r#"{"id":"7","ok":true}"#, "\u{fffd}"] {
            let why = answer(7, line.as_bytes()).unwrap_err();
            assert!(why.contains("standard error"), "{line:?}: {why}");
        }
        let why = answer(7, br#"{"id":6,"ok":true}"#).unwrap_err();
        assert_eq!(why, "answered request 6 while request 7 was open");
        for long in ["x".repeat(100_000), format!(r#"{{"id":"{}"}}"#, "x".repeat(100_000))] {
            assert!(answer(7, long.as_bytes()).unwrap_err().len() < 500);
        }
    }
}
