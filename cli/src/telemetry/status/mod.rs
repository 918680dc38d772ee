//! Status page of a run or a relay: `/status`, its style and script, and its figures as JSON, `/status.json`.
//!
//! Without a token in the configuration no request changes anything; with one, [`Actions`] redrive and purge letters.

mod actions;
mod figures;
mod history;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

pub(super) use actions::{ACTION_LIFE, Actions, request_at};
pub(crate) use figures::{LiveStatus, PipelineFigures};
pub(super) use history::RateHistory;

use super::watched::Watched;

/// The headers of each response: the page loads its own style, script and figures, and nothing else; it is shown in no other page,
/// and no other page reads it.
const HEADERS: [(HeaderName, &str); 6] = [
    (CACHE_CONTROL, "no-store"),
    (
        hyper::header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    (hyper::header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (hyper::header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The response to a GET of `path`; `None` for a path of others. `has_actions`: letters can be redriven and purged.
pub(super) fn respond(
    path: &str,
    watched: &Watched,
    history: &RateHistory,
    has_actions: bool,
) -> Option<Response<Full<Bytes>>> {
    let (content_type, body) = match path {
        "/" | "/status" => ("text/html; charset=utf-8", Bytes::from_static(include_bytes!("page.html"))),
        "/status.css" => ("text/css; charset=utf-8", Bytes::from_static(include_bytes!("page.css"))),
        "/status.js" => ("text/javascript; charset=utf-8", Bytes::from_static(include_bytes!("page.js"))),
        "/status.json" => match serde_json::to_vec(&LiveStatus::of(watched, history, has_actions)) {
            Ok(figures) => ("application/json", figures.into()),
            Err(_) => return Some(failed()),
        },
        _ => return None,
    };
    Some(with_headers(content_type, body))
}

fn with_headers(content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

fn failed() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"encoding the figures failed\n")));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
