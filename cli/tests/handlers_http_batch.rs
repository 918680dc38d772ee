//! The HTTP handler with several messages in a request: results for each, and whom a failure concerns.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used)]

mod handlers_support;
#[path = "handlers_support/server.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod server;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use handlers_support::{message_with_key, scope};
use onceward::{Handler as _, HandlerError, Verdict};
use onceward_cli::handlers::{HttpHandler, HttpOptions, install_tls_provider};
use serde_json::{Value, json};
use server::{Reply, Request, Server};

type Answer = Result<Option<Bytes>, HandlerError>;

fn handler(server: &Server, batch: u32) -> HttpHandler {
    install_tls_provider();
    let mut options = HttpOptions::new(scope(), server.url());
    options.timeout = Duration::from_millis(800);
    options.batch = batch;
    options.keep_body = Some(1024);
    HttpHandler::new(options).unwrap()
}

async fn all<const N: usize>(handler: &HttpHandler, texts: [&str; N]) -> [Answer; N] {
    let runs = texts.map(|text| async move {
        let (_run, message) = message_with_key(text);
        tokio::time::timeout(Duration::from_secs(20), handler.handle(message))
            .await
            .expect("the handler returns")
    });
    join_all(runs).await.try_into().unwrap()
}

fn messages(request: &Request) -> Vec<Value> {
    serde_json::from_slice(&request.body).unwrap()
}

fn verdict(answer: &Answer) -> (Verdict, bool) {
    let error = answer.as_ref().unwrap_err();
    (error.verdict(), error.is_outcome_unknown())
}

/// Results by what the payloads say, in reverse order.
fn results(request: &Request) -> Reply {
    let results = messages(request).into_iter().rev().filter_map(|message| {
        let id = &message["id"];
        match message["payload"].as_str().unwrap() {
            "refused" => Some(json!({"id": id, "ok": false, "error": "no order", "retry": false})),
            "later" => Some(json!({"id": id, "ok": false, "error": "closed", "retry_after_ms": 60_000})),
            "away" => Some(json!({"id": id, "ok": false, "error": "no bank", "unavailable": true})),
            "wrong" => Some(json!({"id": id, "ok": "yes"})),
            "omitted" => None,
            text => Some(json!({"id": id, "ok": true, "result": text})),
        }
    });
    let results: Vec<_> = results.collect();
    Reply::status("200 OK", "", &Value::from(results).to_string())
}

/// The payloads of each request so far.
fn sent(server: &Server) -> Vec<Vec<String>> {
    let requests = server.seen.requests.lock().unwrap();
    let payload = |message: &Value| message["payload"].as_str().unwrap().to_owned();
    requests.iter().map(|request| messages(request).iter().map(payload).collect()).collect()
}

const IN_DOUBT: (Verdict, bool) = (Verdict::Unavailable, true);

#[tokio::test]
async fn messages_that_are_ready_together_share_a_request_and_each_has_its_result() {
    let server = Server::start(results).await;
    let handler = handler(&server, 50);
    let [first, refused, later, away, wrong, omitted, last] =
        all(&handler, ["1", "refused", "later", "away", "wrong", "omitted", "2"]).await;
    assert_eq!((first.unwrap().unwrap(), last.unwrap().unwrap()), ("\"1\"".into(), "\"2\"".into()));
    assert_eq!(verdict(&refused), (Verdict::Permanent, false));
    assert_eq!(refused.unwrap_err().text(), "no order");
    assert_eq!(verdict(&later), (Verdict::RetryAfter(Duration::from_secs(60)), false));
    assert_eq!(verdict(&away), (Verdict::Unavailable, false));
    for answer in [&wrong, &omitted] {
        assert_eq!(verdict(answer), (Verdict::Retry, true), "{answer:?}");
    }
    assert!(wrong.unwrap_err().text().contains("is no answer"));
    assert!(omitted.unwrap_err().text().contains("no result for this message"));

    let requests = server.seen.requests.lock().unwrap();
    assert_eq!(requests.len(), 1);
    let headers = &requests[0].headers;
    assert_eq!((&*headers["onceward-batch"], &*headers["onceward-scope"]), ("7", "billing"));
    assert_eq!(headers["content-type"], "application/json");
    let sent = messages(&requests[0]);
    assert_eq!((sent.len(), &sent[0]["id"], &sent[0]["payload"]), (7, &json!(1), &json!("1")));
    assert!(sent[0]["key"].is_string() && sent[0]["token"].is_string() && sent[0]["scope"] == "billing");
}

#[tokio::test]
async fn a_request_holds_no_more_than_it_may() {
    let server = Server::start(results).await;
    let handler = handler(&server, 3);
    assert!(all(&handler, ["1", "2", "3", "4", "5", "6", "7"]).await.iter().all(Result::is_ok));
    let long = "x".repeat(700_000);
    assert!(all(&handler, [&*long; 2]).await.iter().all(Result::is_ok));
    let requests = server.seen.requests.lock().unwrap();
    let mut sizes: Vec<_> = requests.iter().map(|request| messages(request).len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 1, 1, 3, 3]);
}

#[tokio::test]
async fn an_empty_response_completes_all() {
    for status in ["204 No Content", "200 OK"] {
        let server = Server::always(status, "", "").await;
        assert!(all(&handler(&server, 9), ["1", "2", "3"]).await.iter().all(Result::is_ok));
    }
}

#[tokio::test]
async fn a_failure_of_several_uses_no_attempt_and_each_is_sent_alone_next() {
    for (status, alone, is_unknown) in [
        ("500 Internal Server Error", Verdict::Retry, true),
        ("422 Unprocessable Content", Verdict::Permanent, true),
        ("413 Content Too Large", Verdict::Permanent, false),
        ("401 Unauthorized", Verdict::Permanent, false),
    ] {
        let server = Server::start(move |request| {
            let poisoned = messages(request).iter().any(|message| message["payload"] == "poison");
            if poisoned { Reply::status(status, "", "broken") } else { results(request) }
        })
        .await;
        let handler = handler(&server, 50);
        for answer in all(&handler, ["1", "poison", "2"]).await {
            assert_eq!(verdict(&answer), (Verdict::Unavailable, is_unknown), "{status}: {answer:?}");
            let text = answer.unwrap_err().text().to_owned();
            assert!(text.starts_with("one of 3 messages") && text.ends_with("broken"), "{text}");
        }
        let [first, poison, second, new] = all(&handler, ["1", "poison", "2", "3"]).await;
        assert_eq!(verdict(&poison), (alone, false));
        assert!(first.is_ok() && second.is_ok() && new.is_ok());
        // The others are completed; what fails alone again stays alone.
        let before = sent(&server).len();
        if alone == Verdict::Retry {
            let [first, poison, second] = all(&handler, ["1", "poison", "2"]).await;
            assert_eq!(verdict(&poison), (alone, false));
            assert!(first.is_ok() && second.is_ok());
            assert_eq!(sent(&server).len(), before + 2);
        } else {
            assert!(all(&handler, ["1", "2"]).await.iter().all(Result::is_ok));
            assert_eq!(sent(&server).len(), before + 1);
        }
    }
}

#[tokio::test]
async fn an_unavailable_server_is_unavailable_for_all() {
    let server = Server::always("503 Service Unavailable", "Retry-After: 7\r\n", "").await;
    for answer in all(&handler(&server, 50), ["1", "2"]).await {
        assert_eq!(verdict(&answer), (Verdict::Unavailable, false));
        assert_eq!(answer.unwrap_err().delay(), Some(Duration::from_secs(7)));
    }
}

#[tokio::test]
async fn an_outage_does_not_make_a_suspect_innocent() {
    for status in ["500 Internal Server Error", "502 Bad Gateway", "504 Gateway Timeout"] {
        let count = AtomicUsize::new(0);
        let server = Server::start(move |request| match count.fetch_add(1, SeqCst) {
            0 => Reply::status(status, "", ""),
            1 | 2 => Reply::status("503 Service Unavailable", "", ""),
            _ => results(request),
        })
        .await;
        let handler = handler(&server, 50);
        for answer in all(&handler, ["1", "2"]).await {
            assert_eq!(verdict(&answer), IN_DOUBT, "{status}: {answer:?}");
        }
        for answer in all(&handler, ["1", "2"]).await {
            assert_eq!(verdict(&answer), (Verdict::Unavailable, false), "{status}: {answer:?}");
        }
        assert!(all(&handler, ["1", "2"]).await.iter().all(Result::is_ok));
        let sizes: Vec<_> = sent(&server).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 1, 1, 1], "{status}");
        assert!(all(&handler, ["1", "2"]).await.iter().all(Result::is_ok));
        assert_eq!(sent(&server).len(), 6, "{status}: together again");
    }
}

/// Results for the numbers that the request has, by this function of them.
async fn numbered(results: fn(Vec<u64>) -> Value) -> Server {
    Server::start(move |request| {
        let ids = messages(request).iter().map(|message| message["id"].as_u64().unwrap()).collect();
        Reply::status("200 OK", "", &results(ids).to_string())
    })
    .await
}

#[tokio::test]
async fn results_that_belong_to_no_message_make_all_of_them_doubtful() {
    let from_zero = |ids: Vec<u64>| ids.iter().map(|id| json!({"id": id - 1, "ok": true})).collect();
    let one_more = |ids: Vec<u64>| (ids[0]..=77).map(|id| json!({"id": id, "ok": true})).collect();
    let unnumbered = |ids: Vec<u64>| ids.iter().map(|_| json!({"ok": true})).collect();
    let two = |ids: Vec<u64>| {
        let both = |id: &u64| [json!({"id": id, "ok": true}), json!({"id": id, "ok": false})];
        ids.iter().flat_map(both).collect()
    };
    let wrongs: [fn(Vec<u64>) -> Value; 4] = [from_zero, one_more, unnumbered, two];
    for (at, results) in wrongs.into_iter().enumerate() {
        let server = numbered(results).await;
        let handler = handler(&server, 50);
        for answer in all(&handler, ["1", "2", "3"]).await {
            assert_eq!(verdict(&answer), IN_DOUBT, "{at}: {answer:?}");
            assert!(answer.unwrap_err().text().contains("no result in the response can be trusted"));
        }
        let [alone] = all(&handler, ["1"]).await;
        assert_eq!(verdict(&alone), (Verdict::Retry, true), "{at}: {alone:?}");
    }
    let server =
        numbered(|ids| ids.iter().chain(&ids).map(|id| json!({"id": id, "ok": true})).collect()).await;
    assert!(all(&handler(&server, 50), ["1", "2"]).await.iter().all(Result::is_ok), "the same one twice");
}

#[tokio::test]
async fn a_response_may_hold_as_many_results_as_are_kept() {
    let server = Server::start(|request| {
        let result = "x".repeat(1_000_000);
        let results =
            messages(request).into_iter().map(|one| json!({"id": one["id"], "ok": true, "result": result}));
        Reply::status("200 OK", "", &Value::from_iter(results).to_string())
    })
    .await;
    let mut options = HttpOptions::new(scope(), server.url());
    (options.batch, options.keep_body) = (50, Some(1 << 20));
    install_tls_provider();
    let handler = HttpHandler::new(options).unwrap();
    assert!(all(&handler, ["1", "2", "3", "4", "5", "6"]).await.iter().all(Result::is_ok));
    assert_eq!(sent(&server).len(), 1);
}

#[tokio::test]
async fn a_response_without_results_leaves_all_in_doubt() {
    for body in ["done", "{}", "[1", "[{\"id\":1,\"ok\":true}"] {
        let server = Server::always("200 OK", "", body).await;
        let handler = handler(&server, 50);
        for answer in all(&handler, ["1", "2"]).await {
            assert_eq!(verdict(&answer), (Verdict::Unavailable, true), "{body}: {answer:?}");
        }
        let [alone] = all(&handler, ["1"]).await;
        assert_eq!(verdict(&alone), (Verdict::Retry, true), "{body}: {alone:?}");
        assert!(alone.unwrap_err().text().contains("no JSON array of results"));
    }
}

#[tokio::test]
async fn a_request_without_a_response_leaves_all_in_doubt() {
    let server = Server::start(|_| Reply::Never).await;
    let handler = handler(&server, 50);
    for answer in all(&handler, ["1", "2"]).await {
        assert_eq!(verdict(&answer), (Verdict::Unavailable, true), "{answer:?}");
        assert!(answer.unwrap_err().is_timed_out());
    }
    let [alone] = all(&handler, ["1"]).await;
    assert_eq!(verdict(&alone), (Verdict::Retry, true));
}

#[tokio::test]
async fn a_cancelled_message_leaves_the_request_to_the_others() {
    let server = Server::start(|request| match results(request) {
        // The rest comes a little after the request has arrived.
        Reply::Raw(bytes) => {
            let (head, body) = bytes.split_once("\r\n\r\n").unwrap();
            Reply::Slow(format!("{head}\r\n\r\n"), body.to_owned())
        }
        other => other,
    })
    .await;
    let handler = self::handler(&server, 50);
    let (run, cancelled) = message_with_key("cancelled");
    let ([first, second], cancelled, ()) =
        tokio::join!(all(&handler, ["1", "2"]), handler.handle(cancelled), async {
            server.seen.arrived.notified().await;
            run.cancel();
        });
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(verdict(&cancelled), (Verdict::Retry, true), "{cancelled:?}");
    assert!(all(&handler, ["1", "cancelled"]).await.iter().all(Result::is_ok));
    assert_eq!(sent(&server).len(), 3, "it may be why the others waited, and is sent alone");

    let server = Server::start(|_| Reply::Never).await;
    let handler = self::handler(&server, 50);
    let (run, message) = message_with_key("1");
    let (other, others) = message_with_key("2");
    let (first, second, ()) = tokio::join!(handler.handle(message), handler.handle(others), async {
        server.seen.arrived.notified().await;
        run.cancel();
        other.cancel();
    });
    assert_eq!((verdict(&first), verdict(&second)), ((Verdict::Retry, true), (Verdict::Retry, true)));
    server.seen.closed.notified().await;
}
