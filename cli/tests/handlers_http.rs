//! Checks the HTTP handler against a small server: the requests it sends, the meaning of answers, and what is known
//! when no answer comes.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used)]

mod handlers_support;
#[path = "handlers_support/server.rs"]
#[allow(missing_docs, unreachable_pub)]
mod server;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use handlers_support::{FENCE, KEY, TOKEN, claimed, scope};
use onceward::{Handler as _, HandlerError, Message, MessageBuilder, Verdict};
use onceward_cli::handlers::{HttpHandler, HttpOptions, Meaning, Statuses, install_tls_provider};
use server::{Reply, Request, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn options(url: impl Into<String>) -> HttpOptions {
    install_tls_provider();
    HttpOptions::new(scope(), url)
}

fn handler(server: &Server) -> HttpHandler {
    HttpHandler::new(options(server.url())).unwrap()
}

async fn post(handler: &HttpHandler, message: MessageBuilder) -> Result<Option<Bytes>, HandlerError> {
    let (_run, message) = claimed(message);
    tokio::time::timeout(Duration::from_secs(20), handler.handle(message)).await.expect("the handler returns")
}

async fn post_to(server: &Server) -> Result<Option<Bytes>, HandlerError> {
    post(&handler(server), Message::builder("x")).await
}

fn last(server: &Server) -> Request {
    server.seen.requests.lock().unwrap().pop().expect("a request has arrived")
}

#[tokio::test]
async fn a_request_says_everything_about_its_message() {
    let server = Server::always("200 OK", "", "").await;
    let payload: Vec<u8> = (0..1024 * 1024_u32).map(|at| (at % 251) as u8).collect();
    let message = Message::builder(payload.clone())
        .header("Content-Type", "application/json")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("Host", "evil.example")
        .header("customer", "42")
        .header("raw", &b"\xff\0"[..]);
    post(&handler(&server), message).await.unwrap();
    let request = last(&server);
    assert_eq!(request.line, "POST /orders HTTP/1.1");
    for (name, value) in [
        ("host", server.address.to_string().as_str()),
        ("idempotency-key", KEY),
        ("onceward-token", TOKEN),
        ("onceward-scope", "billing"),
        ("onceward-attempt", "2"),
        ("onceward-fence", &FENCE.to_string()),
        ("content-type", "application/json"),
        ("content-length", "1048576"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("onceward-header-host", "evil.example"),
        ("onceward-header-customer", "42"),
        ("onceward-header-raw-base64", "/wA="),
        ("user-agent", concat!("onceward/", env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(request.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(request.body == payload, "{} bytes arrived", request.body.len());
}

#[tokio::test]
async fn answers_decide() {
    for (status, headers, verdict) in [
        ("400 Bad Request", "Retry-After: 7\r\n", Verdict::Permanent),
        ("404 Not Found", "", Verdict::Permanent),
        ("409 Conflict", "", Verdict::RetryAfter(Duration::from_secs(1))),
        ("409 Conflict", "Retry-After: 7\r\n", Verdict::RetryAfter(Duration::from_secs(7))),
        ("425 Too Early", "", Verdict::Retry),
        ("429 Too Many Requests", "Retry-After: 7\r\n", Verdict::Unavailable),
        ("500 Internal Server Error", "", Verdict::Retry),
        ("503 Service Unavailable", "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n", Verdict::Unavailable),
    ] {
        let server = Server::always(status, headers, "no\r\nmore").await;
        let error = post_to(&server).await.unwrap_err();
        assert_eq!((error.verdict(), error.is_outcome_unknown()), (verdict, false), "{status}");
        assert_eq!(error.text(), format!("the handler answered {status}: no"));
    }
    for status in ["200 OK", "201 Created", "202 Accepted", "204 No Content", "299 Odd"] {
        assert_eq!(post_to(&Server::always(status, "", "").await).await.unwrap(), None, "{status}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::always("200 OK", "", "").await;
    for status in
        ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
    {
        let location = format!("Location: {}?token=s3cret\r\n", other.url());
        let server = Server::always(status, &location, "").await;
        let error = post_to(&server).await.unwrap_err();
        assert_eq!(error.verdict(), Verdict::Permanent, "{status}");
        assert!(error.text().contains(&other.url()) && !error.text().contains("s3cret"), "{error}");
    }
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn without_a_connection_nothing_has_happened() {
    let server = Server::always("200 OK", "", "").await;
    let handler = handler(&server);
    handler.check().await.unwrap();
    drop(server);
    let error = post(&handler, Message::builder("x")).await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false), "{error}");
    assert!(error.text().contains("cannot connect to http://127.0.0.1"), "{error}");
    let check = handler.check().await.unwrap_err();
    assert!(check.is_retryable() && check.to_string().contains("cannot be reached"), "{check}");
}

#[tokio::test]
async fn without_an_answer_the_outcome_is_unknown() {
    let lost = Server::start(|_| Reply::Last(String::new())).await;
    let half = Server::start(|_| Reply::Last("HTTP/1.1 200 OK\r\nContent-".into())).await;
    let gateway = Server::always("504 Gateway Timeout", "", "").await;
    for (server, verdict) in [(lost, Verdict::Retry), (half, Verdict::Retry), (gateway, Verdict::Unavailable)]
    {
        let error = post_to(&server).await.unwrap_err();
        assert_eq!((error.verdict(), error.is_outcome_unknown()), (verdict, true), "{error}");
        assert_eq!(server.seen.requests.lock().unwrap().len(), 1, "the client must not repeat it by itself");
    }
}

#[tokio::test]
async fn a_used_connection_that_breaks_does_not_make_the_client_repeat_a_request() {
    let server = Server::start(|request| match request.body.as_slice() {
        b"break" => Reply::Last(String::new()),
        _ => Reply::status("200 OK", "", ""),
    })
    .await;
    let handler = handler(&server);
    post(&handler, Message::builder("x")).await.unwrap();
    let error = post(&handler, Message::builder("break")).await.unwrap_err();
    assert!(error.is_outcome_unknown(), "{error}");
    assert_eq!((server.seen.requests.lock().unwrap().len(), server.connections()), (2, 1));
}

#[tokio::test]
async fn a_connection_closed_between_messages_costs_nobody_an_attempt() {
    let server = Server::start(|_| Reply::Last("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into())).await;
    let handler = handler(&server);
    for _ in 0..5 {
        post(&handler, Message::builder("x")).await.unwrap();
        server.seen.closed.notified().await;
        // The close is on its way on loopback; the client sees it when its connection task runs.
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_left_after_the_timeout() {
    let server = Server::start(|_| Reply::Never).await;
    let mut options = options(server.url());
    options.timeout = Duration::from_millis(200);
    let begun = Instant::now();
    let error = post(&HttpHandler::new(options).unwrap(), Message::builder("x")).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true), "{error}");
    assert!(error.text().contains("did not answer in time"), "{error}");
}

#[tokio::test]
async fn a_cancelled_run_closes_its_connection() {
    let server = Server::start(|_| Reply::Never).await;
    let handler = handler(&server);
    let (run, message) = claimed(Message::builder("x"));
    let handled = tokio::spawn(async move { handler.handle(message).await });
    server.seen.arrived.notified().await;
    run.cancel();
    let handled = tokio::time::timeout(Duration::from_secs(10), handled).await.expect("it returns at once");
    let error = handled.unwrap().unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true), "{error}");
    tokio::time::timeout(Duration::from_secs(10), server.seen.closed.notified()).await.expect("it is closed");
}

#[tokio::test]
async fn connections_are_used_again_whatever_the_answer() {
    let server = Server::start(|request| {
        let status = if request.body == b"refuse" { "422 Unprocessable Content" } else { "200 OK" };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: 60000\r\n\r\n");
        Reply::Slow(head, "x".repeat(60_000))
    })
    .await;
    let handler = handler(&server);
    for number in 0..50 {
        let body = if number % 2 == 0 { "refuse" } else { "take" };
        assert_eq!(post(&handler, Message::builder(body)).await.is_ok(), body == "take");
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn many_messages_are_sent_at_once() {
    let server = Server::always("200 OK", "", "").await;
    let handler = Arc::new(handler(&server));
    for _ in 0..3 {
        let posts = (0..8).map(|_| {
            let handler = Arc::clone(&handler);
            tokio::spawn(async move { post(&handler, Message::builder("x")).await })
        });
        for posted in posts.collect::<Vec<_>>() {
            posted.await.unwrap().unwrap();
        }
    }
    assert_eq!(server.seen.requests.lock().unwrap().len(), 24);
    assert!(server.connections() <= 8, "{} connections", server.connections());
}

#[tokio::test]
async fn a_body_is_kept_whole_or_not_at_all_and_never_undoes_a_success() {
    let keeping = |server: &Server, keep_body| {
        let mut options = options(server.url());
        options.keep_body = keep_body;
        HttpHandler::new(options).unwrap()
    };
    let ten = Server::always("200 OK", "", "0123456789").await;
    let kept = |limit| {
        let handler = keeping(&ten, limit);
        async move { post(&handler, Message::builder("x")).await.unwrap() }
    };
    assert_eq!(kept(None).await, None);
    assert_eq!(kept(Some(9)).await, None);
    assert_eq!(kept(Some(10)).await.unwrap(), "0123456789");

    let broken =
        Server::start(|_| Reply::Last("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n012".into())).await;
    assert_eq!(post(&keeping(&broken, Some(10)), Message::builder("x")).await.unwrap(), None);

    // A body that never ends holds neither the message nor the memory.
    let endless =
        Server::start(|_| Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n012".into()))
            .await;
    let begun = Instant::now();
    assert_eq!(post(&keeping(&endless, None), Message::builder("x")).await.unwrap(), None);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn secrets_of_the_url_reach_the_server_only() {
    let server = Server::always("500 Internal Server Error", "", "").await;
    let url = format!("http://user:s3cret@{}/s3cret?token=s3cret", server.address);
    let options = options(url);
    let debug = format!("{options:?}");
    let handler = HttpHandler::new(options).unwrap();
    let answered = post(&handler, Message::builder("x")).await.unwrap_err();
    let request = last(&server);
    assert_eq!(request.headers["authorization"], "Basic dXNlcjpzM2NyZXQ=");
    assert_eq!(request.line, "POST /s3cret?token=s3cret HTTP/1.1");
    drop(server);
    let refused = post(&handler, Message::builder("x")).await.unwrap_err();
    let check = handler.check().await.unwrap_err();
    let said = format!("{debug} {handler:?} {answered:?} {refused:?} {check:?}");
    assert!(!said.contains("s3cret"), "{said}");
}

#[tokio::test]
async fn tls_has_one_provider_and_fails_as_a_connection() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let no_tls = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        // Until the client has closed: what it sent unread could reset the connection before.
        while !matches!(connection.read(&mut [0; 1024]).await, Ok(0) | Err(_)) {}
    };
    let handler = HttpHandler::new(options(url)).unwrap();
    let (posted, ()) = tokio::join!(post(&handler, Message::builder("x")), no_tls);
    let error = posted.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false), "{error}");
    assert!(error.text().contains("cannot connect to https://127.0.0.1"), "{error}");
    assert!(error.text().contains("corrupt message"), "the handshake itself failed: {error}");
}

#[test]
fn a_url_that_cannot_be_used_is_refused_without_being_quoted() {
    for (url, why) in [
        ("127.0.0.1:8080/s3cret", "give one like"),
        ("ftp://127.0.0.1/s3cret", "neither http nor https"),
        ("http://", "give one like"),
        ("http://127.0.0.1/#s3cret", "fragment"),
    ] {
        let error = HttpHandler::new(options(url)).unwrap_err();
        assert!(error.to_string().contains(why) && !error.is_retryable(), "{url}: {error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}

#[tokio::test]
async fn configured_headers_replace_those_of_the_message() {
    let server = Server::always("200 OK", "", "").await;
    let headers = [("Authorization", "Bearer hunter2canary"), ("content-type", "application/vnd.shop+json")];
    let mut options = options(server.url());
    options.headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    assert!(!format!("{options:?}").contains("hunter2canary"));
    let handler = HttpHandler::new(options.clone()).unwrap();
    post(&handler, Message::builder("{}").content_type("text/plain")).await.unwrap();
    let request = last(&server);
    assert_eq!(request.headers["authorization"], "Bearer hunter2canary");
    assert_eq!(request.headers["content-type"], "application/vnd.shop+json");
    assert_eq!(request.headers["idempotency-key"], KEY);

    options.headers = vec![("X-Token".to_owned(), "hunter2canary\n".to_owned())];
    let error = HttpHandler::new(options).unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2canary"), "{error:?}");
}

#[tokio::test]
async fn statuses_can_be_given_another_meaning() {
    let verdict = async |status: &str, meanings: &[(&str, Meaning)]| {
        let server = Server::always(status, "", "").await;
        let mut options = options(server.url());
        options.statuses = Statuses::new(meanings.iter().copied()).unwrap();
        post(&HttpHandler::new(options).unwrap(), Message::builder("x"))
            .await
            .err()
            .map(|error| error.verdict())
    };
    let meanings = [("404", Meaning::Done), ("4xx", Meaning::Unavailable), ("503", Meaning::Retry)];
    assert_eq!(verdict("404 Not Found", &meanings).await, None);
    assert_eq!(verdict("401 Unauthorized", &meanings).await, Some(Verdict::Unavailable));
    assert_eq!(verdict("503 Service Unavailable", &meanings).await, Some(Verdict::Retry));
    assert_eq!(verdict("502 Bad Gateway", &meanings).await, Some(Verdict::Unavailable));
    assert_eq!(verdict("202 Accepted", &[("202", Meaning::Retry)]).await, Some(Verdict::Retry));
}

#[tokio::test]
async fn a_host_without_a_name_is_unavailable() {
    let handler = HttpHandler::new(options("http://no-such-host.invalid/")).unwrap();
    let error = post(&handler, Message::builder("x")).await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_accept_in_time_is_unavailable() {
    // Its queue of connections is full: the kernel answers no further one.
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let listener = std::net::TcpListener::from(listener);
    let address = listener.local_addr().unwrap();
    let _first = std::net::TcpStream::connect(address).unwrap();
    let mut options = options(format!("http://{address}/"));
    options.timeout = Duration::from_secs(2);
    let error = post(&HttpHandler::new(options).unwrap(), Message::builder("x")).await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false), "{error}");
}

#[tokio::test]
async fn an_idle_connection_is_kept_for_a_limited_time() {
    let server = Server::always("200 OK", "", "").await;
    let mut options = options(server.url());
    options.keep_alive = Duration::ZERO;
    let handler = HttpHandler::new(options).unwrap();
    for _ in 0..3 {
        post(&handler, Message::builder("x")).await.unwrap();
    }
    assert_eq!(server.connections(), 3);
}
