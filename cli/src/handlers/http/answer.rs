//! Meaning of an HTTP response for a message.

use std::time::{Duration, SystemTime};

use onceward::{HandlerError, Verdict};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};

use crate::handlers::meaning::Meaning;
use crate::handlers::text::printable;

/// The default delay of a retry for a key that the server is processing (status 409).
const CONFLICT_DELAY: Duration = Duration::from_secs(1);

/// The longest delay that a response may request.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(3600);

/// The most bytes of a body that are quoted.
const QUOTE_LIMIT: usize = 256;

/// The error of a response that does not complete the message; `meaning` is the configured meaning of its status, `body` the
/// beginning of its body.
pub(super) fn failure(
    meaning: Option<Meaning>,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
) -> HandlerError {
    let mut text = format!("the handler answered {status}");
    let first = body.trim_ascii().split(|byte| *byte == b'\n').next().unwrap_or_default();
    if !first.is_empty() {
        text = format!("{text}: {}", printable(first.trim_ascii_end(), QUOTE_LIMIT));
    }
    let wait = headers.get(RETRY_AFTER).and_then(|value| retry_after(value.as_bytes(), now));
    let status = status.as_u16();
    let error = match meaning.unwrap_or_else(|| default(status)) {
        // The caller completes the message.
        Meaning::Done | Meaning::Retry => match wait.or((status == 409).then_some(CONFLICT_DELAY)) {
            Some(wait) => HandlerError::retry_after(wait, text),
            None => HandlerError::retry(text),
        },
        Meaning::Unavailable => {
            let error = HandlerError::unavailable(text);
            match wait {
                Some(wait) => error.not_before(wait),
                None => error,
            }
        }
        Meaning::Permanent if (300..400).contains(&status) => HandlerError::permanent(format!(
            "{text}; redirects are not followed{}: set the handler's `url` to the final address",
            target(headers)
        )),
        Meaning::Permanent => HandlerError::permanent(text),
    };
    // A gateway got no response from its server: the effect may have happened there.
    if matches!(status, 502 | 504) && error.verdict() != Verdict::Permanent {
        error.outcome_unknown()
    } else {
        error
    }
}

fn default(status: u16) -> Meaning {
    match status {
        429 | 502..=504 => Meaning::Unavailable,
        408 | 409 | 425 | 500..=599 => Meaning::Retry,
        _ => Meaning::Permanent,
    }
}

/// The target of a redirect, without user, password and query.
fn target(headers: &HeaderMap) -> String {
    let location = headers.get(LOCATION).map_or(&b""[..], |value| value.as_bytes());
    let end = location.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(location.len());
    let shown = printable(&location[..end], QUOTE_LIMIT);
    let shown = match shown.split_once("//") {
        Some((scheme, rest)) => {
            let host_end = rest.find(['/', '\\']).unwrap_or(rest.len());
            let host = rest[..host_end].rfind('@').map_or(0, |at| at + 1);
            format!("{scheme}//{}", &rest[host..])
        }
        None => shown,
    };
    if shown.is_empty() { String::new() } else { format!(" (to {shown})") }
}

/// `Retry-After` in seconds or as an HTTP date. 0 and a past date mean the usual backoff.
fn retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_or(RETRY_AFTER_LIMIT, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).ok()?
    };
    (!wait.is_zero()).then_some(wait.min(RETRY_AFTER_LIMIT))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    const NOW: Duration = Duration::from_secs(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT

    fn of(status: u16, retry_after: Option<&'static str>) -> HandlerError {
        meaning(None, status, retry_after)
    }

    fn meaning(meaning: Option<Meaning>, status: u16, retry_after: Option<&'static str>) -> HandlerError {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(status).unwrap();
        failure(meaning, status, &headers, b"", SystemTime::UNIX_EPOCH + NOW)
    }

    #[test]
    fn each_status_has_its_verdict() {
        for status in [408, 425, 500, 501, 505, 599] {
            assert_eq!(of(status, None).verdict(), Verdict::Retry, "{status}");
        }
        for status in [429, 502, 503, 504] {
            assert_eq!(of(status, None).verdict(), Verdict::Unavailable, "{status}");
        }
        for status in [300, 301, 302, 304, 307, 308, 400, 401, 404, 410, 413, 415, 422, 431] {
            assert_eq!(of(status, Some("5")).verdict(), Verdict::Permanent, "{status}");
        }
        assert_eq!(of(409, None).verdict(), Verdict::RetryAfter(CONFLICT_DELAY));
        assert_eq!(of(409, Some("7")).verdict(), Verdict::RetryAfter(Duration::from_secs(7)));
    }

    #[test]
    fn a_configured_meaning_goes_before_the_default() {
        let of = |mean, status| meaning(Some(mean), status, None).verdict();
        assert_eq!(of(Meaning::Retry, 503), Verdict::Retry);
        assert_eq!(of(Meaning::Permanent, 500), Verdict::Permanent);
        assert_eq!(of(Meaning::Unavailable, 404), Verdict::Unavailable);
        assert_eq!(of(Meaning::Retry, 302), Verdict::Retry);
    }

    #[test]
    fn only_a_gateway_without_an_answer_leaves_the_outcome_open() {
        let open: Vec<_> = (300..600).filter(|status| of(*status, None).is_outcome_unknown()).collect();
        assert_eq!(open, [502, 504]);
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_date_and_bounded() {
        let after = |value| of(500, Some(value)).verdict();
        assert_eq!(after("120"), Verdict::RetryAfter(Duration::from_secs(120)));
        assert_eq!(after(" 5 "), Verdict::RetryAfter(Duration::from_secs(5)));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:37 GMT"), Verdict::RetryAfter(Duration::from_secs(60)));
        assert_eq!(after("99999999999999999999999999"), Verdict::RetryAfter(RETRY_AFTER_LIMIT));
        for nothing in ["0", "-1", "soon", "", "Sun, 06 Nov 1994 08:49:00 GMT"] {
            assert_eq!(after(nothing), Verdict::Retry, "{nothing:?}");
        }
        let unavailable = of(503, Some("120"));
        assert_eq!(unavailable.verdict(), Verdict::Unavailable);
        assert_eq!(unavailable.delay(), Some(Duration::from_secs(120)));
        assert_eq!(of(503, None).delay(), None);
    }

    #[test]
    fn the_text_quotes_the_beginning_of_the_body_and_hides_a_redirects_query() {
        let mut headers = HeaderMap::new();
        headers
            .insert(LOCATION, HeaderValue::from_static("https://user:s3cret@other.example/in?token=s3cret"));
        let error =
            failure(None, StatusCode::FOUND, &headers, b"\n <html>\x1b\nmore", SystemTime::UNIX_EPOCH);
        assert_eq!(
            error.text(),
            "the handler answered 302 Found: <html>\\u{1b}; redirects are not followed (to \
             https://other.example/in): set the handler's `url` to the final address"
        );
    }
}
