//! Answers for messages as JSON: what a line, or an item of a response, means.

use std::time::Duration;

use bytes::Bytes;
use onceward::HandlerError;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::handlers::text::printable;

/// The most bytes of an error text that are kept.
const ERROR_LIMIT: usize = 1024;

/// The most bytes of an invalid line that are quoted.
const QUOTE_LIMIT: usize = 120;

/// The longest delay that an answer may request.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(3600);

/// A line of the standard output of a worker.
#[derive(Debug)]
pub(in crate::handlers) enum Said {
    /// White space only.
    Nothing,
    /// `{"ready":true}`.
    Ready,
    /// The answer to an open request.
    Answer(u64, Result<Option<Bytes>, HandlerError>),
    /// Not an answer, or one to a request that is answered: it is ignored.
    Stray,
    /// An invalid answer, to this request if it names an open one, and what is wrong: "is no answer …".
    Wrong(Option<u64>, String),
}

/// What is known of a number in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::handlers) enum RequestState {
    /// It was sent, and waits for its answer.
    Open,
    /// It has ended.
    Past,
    /// It was not sent.
    Unknown,
}

/// All fields may be missing or of another type, which decides what the line is.
#[derive(Deserialize)]
struct AnswerFields<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    ok: Option<&'a RawValue>,
    #[serde(default)]
    ready: Option<Value>,
}

#[derive(Deserialize)]
struct JsonAnswer<'a> {
    ok: bool,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<String>,
    retry: Option<bool>,
    retry_after_ms: Option<u64>,
    unavailable: Option<bool>,
}

/// Parses a line, or an item of an array; `state` says what is known of a number, and `is_any_open` whether any request waits for
/// its answer. It tolerates surrounding white space, a byte order mark, a carriage return, and the id as text. What is not a JSON
/// object with `id` and `ok` is not an answer.
pub(in crate::handlers) fn said(
    line: &[u8],
    is_any_open: bool,
    state: impl FnOnce(u64) -> RequestState,
) -> Said {
    let line = trimmed(line);
    if line.is_empty() {
        return Said::Nothing;
    }
    if !line.starts_with(b"{") {
        return Said::Stray;
    }
    let fields: AnswerFields<'_> = match serde_json::from_slice(line) {
        Ok(fields) => fields,
        // Distinguishes a printed dictionary from an invalid answer.
        Err(cause) if names(line, "id") && names(line, "ok") => {
            return Said::Wrong(None, mistake(line, &cause));
        }
        Err(_) => return Said::Stray,
    };
    let answered = fields.id.and_then(|of| of.get().trim_matches('"').parse::<u64>().ok());
    let Some(answered) = answered else {
        return match fields.ok {
            None if fields.ready == Some(Value::Bool(true)) => Said::Ready,
            Some(_) if is_any_open => Said::Wrong(None, wrong(line, "without the request's `id`")),
            _ => Said::Stray,
        };
    };
    match (state(answered), fields.ok) {
        (RequestState::Open, Some(_)) => match serde_json::from_slice(line) {
            Ok(answer) => Said::Answer(answered, outcome(answer)),
            Err(cause) => Said::Wrong(Some(answered), mistake(line, &cause)),
        },
        (RequestState::Open, None) => Said::Wrong(Some(answered), wrong(line, "without `ok`")),
        (RequestState::Unknown, Some(_)) if is_any_open => {
            Said::Wrong(None, format!("answers request {answered}, which was not sent"))
        }
        _ => Said::Stray,
    }
}

/// Without surrounding white space and a byte order mark.
pub(in crate::handlers) fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii()
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
    format!("is no answer ({why}): {:?}", printable(line, QUOTE_LIMIT))
}

/// The result in an answer.
fn outcome(answer: JsonAnswer<'_>) -> Result<Option<Bytes>, HandlerError> {
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

    use super::*;

    /// While request 7 is open, and after those before it.
    fn said_at_7(line: &str) -> Said {
        said(line.as_bytes(), true, |id| match id {
            7 => RequestState::Open,
            ..7 => RequestState::Past,
            _ => RequestState::Unknown,
        })
    }

    /// Before the first request.
    fn said_at_first(line: &str) -> Said {
        said(line.as_bytes(), false, |_| RequestState::Unknown)
    }

    fn answer(line: &str) -> Result<Option<Bytes>, HandlerError> {
        match said_at_7(line) {
            Said::Answer(7, answer) => answer,
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
            assert!(matches!(said_at_7(blank), Said::Nothing), "{blank:?}");
        }
        for ready in ["{\"ready\":true}\n", " {\"ready\": true, \"version\": 3}\r\n"] {
            assert!(matches!(said_at_first(ready), Said::Ready), "{ready:?}");
            assert!(matches!(said_at_7(ready), Said::Ready), "{ready:?}");
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
            assert!(matches!(said_at_7(stray), Said::Stray), "{stray:?}");
        }
        assert!(matches!(said_at_first("{\"id\":0,\"ok\":true}"), Said::Stray));
    }

    #[test]
    fn an_answer_that_cannot_be_understood_is_told_from_that() {
        let wrong = |line: &str| match said_at_7(line) {
            Said::Wrong(_, why) => why,
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
            assert!(why.starts_with("is no answer ("), "{line:?}: {why}");
        }
        assert_eq!(wrong(r#"{"id":8,"ok":true}"#), "answers request 8, which was not sent");
        let long = format!(r#"{{"id":7,"ok":"{}"}}"#, "x".repeat(100_000));
        assert!(wrong(&long).len() < 500);
    }
}
