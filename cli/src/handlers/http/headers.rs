//! Request headers of a message for an HTTP handler.

use onceward::{Message, Scope};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::trace;
use crate::handlers::headers::{HeaderBudget, base64};
use crate::handlers::token::claim_token;

const PREFIX: &str = "onceward-header-";

/// For all headers of ours and some of the message's.
const ROOM: usize = 12;

/// The suffix of the name of a value in Base64.
const MARKER: &str = "-base64";

/// `Idempotency-Key` and `Onceward-Token` (where there is a claim), `Onceward-Scope`, `Onceward-Attempt`, `Onceward-Fence`,
/// `Onceward-Message-Id` (where there is one), `Content-Type` (the message's; without one `application/json` if the payload
/// is that, else `application/octet-stream`), trace context under its own name if it is that (W3C Trace Context), so that the
/// receiver's tracing finds it, and the message's own headers as `Onceward-Header-<Name>`, with
/// `-` for every character a header name cannot hold.
///
/// A value that is not printable ASCII, or begins or ends with a space, comes in Base64 under the same name with
/// `-Base64` behind it; and so does each value whose own name ends with that, or it could be taken for one of these. At most 64 headers, 4 KiB each and 8 KiB together are passed, because servers refuse requests
/// with more; how many were left out is in `Onceward-Headers-Skipped`.
pub(super) fn headers(scope: &Scope, message: &Message) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(ROOM);
    let mut set = |name: &'static str, value: String| {
        if let Ok(mut value) = HeaderValue::try_from(value) {
            value.set_sensitive(name == "onceward-token");
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    if let Some(key) = message.key() {
        set("idempotency-key", key.to_string());
    }
    if let Some(token) = claim_token(message) {
        set("onceward-token", token);
    }
    set("onceward-scope", scope.to_string());
    set("onceward-attempt", message.attempt().to_string());
    set("onceward-fence", message.fence().to_string());
    let mut budget = HeaderBudget { count: 64, name: 128, value: 4 * 1024, total: 8 * 1024, skipped: 0 };
    if let Some(id) = message.id().filter(|id| budget.could_hold(id.len())) {
        let encoded = || Some(("onceward-message-id-base64", HeaderValue::try_from(base64(id)).ok()?));
        if let Some((name, value)) = text(id).map(|id| ("onceward-message-id", id)).or_else(encoded) {
            headers.insert(name, value);
        }
    }
    let stated = message.content_type().map(str::as_bytes).filter(|stated| !stated.is_empty());
    let stated = stated.and_then(text).filter(|stated| budget.take("content-type", stated.len()));
    headers.insert(CONTENT_TYPE, stated.unwrap_or_else(|| guessed(message.payload())));
    let trace = trace::of(message);
    for (name, value) in message.headers() {
        if name.len() > budget.name || !budget.could_hold(value.len()) {
            budget.skip();
            continue;
        }
        let own = [(trace::PARENT, trace.parent), (trace::STATE, trace.state)]
            .into_iter()
            .find(|(own, found)| found.is_some() && name.eq_ignore_ascii_case(own));
        if let Some((own, _)) = own {
            match text(value).filter(|_| !headers.contains_key(own) && budget.take(own, value.len())) {
                Some(value) => drop(headers.insert(own, value)),
                None => budget.skip(),
            }
        } else if name.eq_ignore_ascii_case(CONTENT_TYPE.as_str()) && headers[CONTENT_TYPE] == value.as_ref()
        {
            // Already passed under its own name.
        } else {
            pass(&mut headers, &mut budget, name, value);
        }
    }
    if budget.skipped > 0 {
        headers.insert("onceward-headers-skipped", HeaderValue::from(budget.skipped));
    }
    headers
}

/// Removes from `headers` those that the operator has fixed: the header itself, the same in or without Base64, and
/// those that describe it.
pub(super) fn give_way(headers: &mut HeaderMap, fixed: &HeaderMap) {
    for name in fixed.keys() {
        headers.remove(name);
        let plain = name.as_str().strip_suffix(MARKER).unwrap_or(name.as_str());
        if plain.starts_with(PREFIX) {
            headers.remove(plain);
            headers.remove(format!("{plain}{MARKER}"));
        }
        if name == trace::PARENT {
            headers.remove(trace::STATE);
        }
    }
}

/// The content type of a payload without one: JSON if it parses as JSON.
fn guessed(payload: &[u8]) -> HeaderValue {
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(payload).is_ok();
    HeaderValue::from_static(if is_json { "application/json" } else { "application/octet-stream" })
}

fn pass(headers: &mut HeaderMap, budget: &mut HeaderBudget, name: &str, value: &[u8]) {
    let mut name = normalised(name);
    // Some servers do not distinguish `-` and `_`.
    let poses = name.replace('_', "-").ends_with(MARKER);
    let plain = text(value).filter(|_| !poses);
    let value = plain.or_else(|| {
        name.push_str(MARKER);
        HeaderValue::try_from(base64(value)).ok()
    });
    let fits = value.filter(|value| !name.is_empty() && budget.take(&name, value.len()));
    let named = fits.and_then(|value| Some((HeaderName::try_from(format!("{PREFIX}{name}")).ok()?, value)));
    match named {
        Some((name, mut value)) => {
            value.set_sensitive(true);
            headers.append(name, value);
        }
        None => budget.skip(),
    }
}

fn normalised(name: &str) -> String {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    name.chars().map(|c| if token(c) { c.to_ascii_lowercase() } else { '-' }).collect()
}

/// The value unchanged, if every server will read it unchanged.
fn text(value: &[u8]) -> Option<HeaderValue> {
    let printable = value.iter().all(|byte| (b' '..=b'~').contains(byte));
    let trimmed = value.trim_ascii().len() == value.len();
    if printable && trimmed { HeaderValue::from_bytes(value).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(message: &Message) -> HeaderMap {
        headers(&Scope::parse("billing").unwrap(), message)
    }

    #[test]
    fn own_headers_are_passed_under_a_prefix_and_cannot_pose_as_ours() {
        let message = Message::builder("")
            .header("Onceward-Fence", "999")
            .header("idempotency-key", "forged")
            .header("Host", "evil")
            .header("a b\r\nc", "1")
            .build();
        let headers = of(&message);
        assert_eq!(headers["onceward-fence"], "0");
        assert!(!headers.contains_key("idempotency-key") && !headers.contains_key("host"));
        assert_eq!(headers["onceward-header-onceward-fence"], "999");
        assert_eq!(headers["onceward-header-idempotency-key"], "forged");
        assert_eq!(headers["onceward-header-a-b--c"], "1");
    }

    #[test]
    fn values_no_server_would_read_alike_come_in_base64() {
        let message = Message::builder("")
            .header("crlf", "a\r\nHost: evil")
            .header("raw", &b"\xff"[..])
            .header("umlaut", "ü")
            .header("space", " a ")
            .header("empty", "")
            .build();
        let headers = of(&message);
        assert_eq!(headers["onceward-header-crlf-base64"], "YQ0KSG9zdDogZXZpbA==");
        assert_eq!(headers["onceward-header-raw-base64"], "/w==");
        assert_eq!(headers["onceward-header-umlaut-base64"], "w7w=");
        assert_eq!(headers["onceward-header-space-base64"], "IGEg");
        assert_eq!(headers["onceward-header-empty"], "");
        assert!(!headers.contains_key("onceward-headers-skipped"));
    }

    #[test]
    fn a_producer_cannot_pose_as_our_base64() {
        let message = Message::builder("")
            .header("x-base64", "Zm9yZ2Vk")
            .header("X.Base64", "a")
            .header("y-base64", &b"\xff"[..])
            .build();
        let headers = of(&message);
        assert!(!headers.contains_key("onceward-header-x-base64"));
        assert_eq!(headers["onceward-header-x-base64-base64"], base64(b"Zm9yZ2Vk"));
        assert_eq!(headers["onceward-header-x.base64"], "a", "no server takes this for ours");
        assert_eq!(headers["onceward-header-y-base64-base64"], "/w==");
        for (name, passed) in [("x base64", "x-base64-base64"), ("x_Base64", "x_base64-base64")] {
            let odd = of(&Message::builder("").header(name, "a").build());
            assert_eq!(odd[format!("{PREFIX}{passed}")], "YQ==", "its name becomes ours");
        }
    }

    #[test]
    fn what_is_no_trace_context_keeps_the_prefix() {
        let message = Message::builder("").header("traceparent", "evil").header("tracestate", "a=1").build();
        let headers = of(&message);
        assert!(!headers.contains_key("traceparent") && !headers.contains_key("tracestate"));
        assert_eq!(headers["onceward-header-traceparent"], "evil");
        assert_eq!(headers["onceward-header-tracestate"], "a=1");
    }

    #[test]
    fn what_the_operator_fixed_is_not_said_twice() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let message = Message::builder("{}")
            .header("tenant", &b"\xff"[..])
            .header("tenant", "mallory")
            .header("content-type", "text/html")
            .header("traceparent", parent)
            .header("tracestate", "a=1")
            .header("other", "1")
            .build();
        let mut headers = of(&message);
        let mut fixed = HeaderMap::new();
        for name in ["content-type", "traceparent", "onceward-header-tenant"] {
            fixed.insert(name, HeaderValue::from_static("fixed"));
        }
        give_way(&mut headers, &fixed);
        for name in
            fixed.keys().map(HeaderName::as_str).chain(["tracestate", "onceward-header-tenant-base64"])
        {
            assert!(!headers.contains_key(name), "{name}");
        }
        assert_eq!(headers["onceward-header-other"], "1");
    }

    #[test]
    fn content_type_and_trace_context_keep_their_names() {
        let message = Message::builder("")
            .header("Content-Type", "application/json")
            .header("content-type", "text/plain")
            .header("TraceParent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .build();
        let headers = of(&message);
        assert_eq!(headers.get_all("content-type").iter().collect::<Vec<_>>(), ["application/json"]);
        assert_eq!(headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert_eq!(headers["onceward-header-content-type"], "text/plain");
        assert!(!headers.contains_key("onceward-headers-skipped"));
        assert_eq!(of(&Message::builder("").build())["content-type"], "application/octet-stream");
        let odd = Message::builder("").header("content-type", "a\nb").build();
        assert_eq!(of(&odd)["content-type"], "application/octet-stream");
        assert_eq!(of(&odd)["onceward-header-content-type-base64"], "YQpi");
    }

    #[test]
    fn the_brokers_content_type_is_passed_and_json_is_recognised_without_one() {
        let stated =
            Message::builder("{}").content_type("application/cloudevents+json; charset=utf-8").build();
        assert_eq!(of(&stated)["content-type"], "application/cloudevents+json; charset=utf-8");
        for (payload, content_type) in [
            ("{\"id\":1}", "application/json"),
            (" [1, 2]\n", "application/json"),
            ("{\"id\":1", "application/octet-stream"),
            ("hello", "application/octet-stream"),
        ] {
            assert_eq!(of(&Message::builder(payload).build())["content-type"], content_type, "{payload}");
        }
    }

    #[test]
    fn the_message_id_is_passed() {
        assert_eq!(of(&Message::builder("").message_id("m 1").build())["onceward-message-id"], "m 1");
        let raw = of(&Message::builder("").message_id(b"\xff").build());
        assert_eq!(raw["onceward-message-id-base64"], "/w==");
        assert!(
            !of(&Message::builder("").message_id([b'x'; 5000]).build()).contains_key("onceward-message-id")
        );
    }

    #[test]
    fn a_header_bomb_is_bounded() {
        let mut builder = Message::builder("").header("huge", vec![b'x'; 5000]).header("", "nameless");
        for number in 0..10_000 {
            builder = builder.header(format!("h{number}"), "x");
        }
        let headers = of(&builder.build());
        assert_eq!(headers.keys().filter(|name| name.as_str().starts_with(PREFIX)).count(), 64);
        assert_eq!(headers["onceward-headers-skipped"], (10_002 - 64).to_string());
    }
}
