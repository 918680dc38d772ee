//! The lines a worker process reads and writes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use onceward::{HandlerError, Message, Scope};
use serde::{Deserialize, Serialize};
use serde_json::Value;
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
    content_type: Option<&'a str>,
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
        content_type: message.content_type(),
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

/// What a line of a worker's standard output is.
#[derive(Debug)]
pub(super) enum Said {
    /// Nothing but space.
    Nothing,
    /// `{"ready":true}`.
    Ready,
    /// The answer to the open request.
    Answer(Result<Option<Bytes>, HandlerError>),
    /// No answer, or one to an earlier request: it does no harm.
    Stray,
    /// Meant as an answer, and none that can be understood.
    Wrong(String),
}

/// All fields may be missing or of another type: that decides what the line is.
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
struct Answer<'a> {
    ok: bool,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<String>,
    retry: Option<bool>,
    retry_after_ms: Option<u64>,
    unavailable: Option<bool>,
}

/// Reads a line while request `id` is open; 0: none is. Its form may be loose where its meaning is plain: space around it, a
/// byte order mark, a carriage return, the id as text. A line that is no JSON object with `id` and `ok` is no answer.
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
        // A dictionary that was printed, or an answer with a mistake in it?
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

/// Whether `name` stands in quotes, of either kind, in what may be JSON.
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

/// What the worker said about the message.
fn outcome(answer: Answer<'_>) -> Result<Option<Bytes>, HandlerError> {
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
