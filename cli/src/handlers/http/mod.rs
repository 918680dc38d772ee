//! HTTP handler, one POST per message: [`HttpHandler`].

mod answer;
mod headers;
mod trace;

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use onceward::{Cancellation, Error, ErrorKind, Handler, HandlerError, Message, Scope};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, Url};

use super::meaning::{Meaning, Statuses};

/// The most bytes of a discarded response that are read so that its connection can be reused.
const DRAIN_LIMIT: usize = 64 * 1024;

/// The time limit for reading a discarded response.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// The default lifetime of an idle connection. A request on a connection that the server closes at the same moment is lost
/// with an unknown outcome, and many servers (Node.js, uvicorn, Apache) close theirs after 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(4);

/// The options of an [`HttpHandler`]. `Debug` omits the URL, which may contain secrets.
#[derive(Clone)]
pub struct HttpOptions {
    /// The scope, sent as `Onceward-Scope`.
    pub scope: Scope,
    /// The URL, `http` or `https`, with `user:password@` for Basic authentication.
    pub url: String,
    /// Headers of every request, such as `Authorization`. They replace headers of the message.
    pub headers: Vec<(String, String)>,
    /// The time limit of a request, including its response.
    pub timeout: Duration,
    /// The time limit for opening a connection; at most three quarters of `timeout`, so that an unreachable server is
    /// distinguished from one that does not respond.
    pub connect_timeout: Duration,
    /// The lifetime of an idle connection; zero opens a connection for each message.
    pub keep_alive: Duration,
    /// The meanings of statuses that differ from the default.
    pub statuses: Statuses,
    /// The most idle connections: as many as messages are handled concurrently.
    pub idle_connections: usize,
    /// Keeps the body of a 2xx response as the result, up to this many bytes; `None` discards it.
    pub keep_body: Option<usize>,
}

impl HttpOptions {
    /// 30 s for an exchange, 10 s for a connection, 16 idle connections kept for 4 s, the default statuses, no result.
    pub fn new(scope: Scope, url: impl Into<String>) -> Self {
        Self {
            scope,
            url: url.into(),
            headers: Vec::new(),
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            keep_alive: KEEP_ALIVE,
            statuses: Statuses::default(),
            idle_connections: 16,
            keep_body: None,
        }
    }
}

impl fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpOptions")
            .field("scope", &self.scope)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("keep_alive", &self.keep_alive)
            .field("statuses", &self.statuses)
            .field("idle_connections", &self.idle_connections)
            .field("keep_body", &self.keep_body)
            .finish_non_exhaustive()
    }
}

/// Installs *ring* as the crypto provider of this program. To be called first in `main`; a second call changes nothing. With
/// two providers rustls panics at the first use of TLS.
pub fn install_tls_provider() {
    // An error means that a provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Sends the payload of each message in a POST request.
///
/// | response | the message |
/// |---|---|
/// | 2xx | is completed |
/// | 429, 503 | waits, and uses no attempt; `Retry-After` is honoured, up to an hour |
/// | 502, 504 | the same; a gateway got no response from its server, so the outcome counts as unknown |
/// | no connection: refused, no such host, a failed handshake, no file descriptors | waits, and uses no attempt |
/// | 408, 425, other 5xx | is retried, after `Retry-After` if present |
/// | 409 | is retried after `Retry-After`, or a second: the server is processing the key |
/// | other 4xx, 3xx | is dead-lettered; redirects are not followed. If a token in the configuration can expire, set `status = { 401 = "unavailable" }` |
/// | no response to a request that may have arrived | is retried; its outcome counts as unknown |
///
/// The meaning of a status can be [changed](HttpOptions::statuses).
///
/// Request headers: `Idempotency-Key`, `Onceward-Scope`, `Onceward-Attempt`, `Onceward-Fence`, `Onceward-Message-Id`,
/// `Onceward-Token` (the claim's: a capability, with which the server may complete it in a store with transactions, so use `https`
/// beyond the own host), trace context, `Content-Type` (that of the message, or else JSON if the payload is JSON), and the
/// message's own as `Onceward-Header-*`. Only a server that checks the key or the fence can reject a request that
/// arrives twice. Connections are HTTP/1.1, pooled, and go straight to the server: proxies in the environment are not
/// used. Certificates are checked against those of the operating system.
#[derive(Clone)]
pub struct HttpHandler {
    scope: Scope,
    url: Url,
    target: String,
    client: Client,
    fixed: HeaderMap,
    connect_timeout: Duration,
    statuses: Statuses,
    keep_body: Option<usize>,
}

impl HttpHandler {
    /// A handler with these options. It does not connect; see [`check`](Self::check).
    ///
    /// # Errors
    /// [`onceward::Error`] if the URL cannot be used, no certificates are found for `https`, or
    /// [`install_tls_provider`] was not called.
    pub fn new(options: HttpOptions) -> Result<Self, Error> {
        let HttpOptions { scope, url, headers, timeout, keep_alive, statuses, keep_body, .. } = options;
        let url = parse(&url)?;
        let fixed = fixed(&headers)?;
        let connect_timeout = options.connect_timeout.min(timeout * 3 / 4);
        let idle_connections = if keep_alive.is_zero() { 0 } else { options.idle_connections };
        let operation = "prepare the HTTP handler's client";
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let what = "no TLS provider is installed; call `install_tls_provider` first";
            return Err(Error::new(ErrorKind::Internal, operation, what));
        }
        let mut builder = Client::builder()
            .user_agent(concat!("onceward/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .timeout(timeout)
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(keep_alive)
            .pool_max_idle_per_host(idle_connections);
        if url.scheme() == "http" {
            // Certificates are not used: a system without any must not stop the handler.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|cause| {
            let what = "the TLS setup failed; check that the CA certificates of the system are installed";
            Error::new(ErrorKind::Config, operation, what).with_source(cause)
        })?;
        let target = target(&url);
        Ok(Self { scope, url, target, client, fixed, connect_timeout, statuses, keep_body })
    }

    /// Opens and closes a connection, without a request.
    ///
    /// # Errors
    /// The server does not accept the connection.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again.
    pub async fn check(&self) -> Result<(), Error> {
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = self.url.port_or_known_default().unwrap_or(80);
        let cannot = |kind, what: String| Error::new(kind, "connect to the handler", what);
        match tokio::time::timeout(self.connect_timeout, tokio::net::TcpStream::connect((host, port))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(cause)) => {
                let what = format!("{} cannot be reached; is the service running?", self.target);
                Err(cannot(ErrorKind::Unavailable, what).with_source(cause))
            }
            Err(_) => {
                let what = format!("{} did not accept within {:?}", self.target, self.connect_timeout);
                Err(cannot(ErrorKind::Timeout, what))
            }
        }
    }

    /// The error of a failed request. Nothing was sent if no connection was opened, or a kept one was closed; otherwise the
    /// request may have arrived.
    fn unanswered(&self, cause: reqwest::Error) -> HandlerError {
        let (no_connection, unusable, late) = (cause.is_connect(), cause.is_builder(), cause.is_timeout());
        let unsent = is_unsent(&cause);
        let cause = HandlerError::from(cause.without_url());
        let target = &self.target;
        if no_connection {
            return HandlerError::unavailable(format!("cannot connect to {target}: {cause}"));
        }
        if unusable {
            return HandlerError::retry(format!("the request cannot be made: {cause}"));
        }
        if unsent {
            return HandlerError::unavailable(format!(
                "{target} closed the connection before the request was sent: {cause}"
            ));
        }
        let what = if late { "did not answer in time" } else { "did not answer the request" };
        let error = HandlerError::retry(format!("{target} {what}: {cause}")).outcome_unknown();
        if late { error.timed_out() } else { error }
    }

    /// The body of a success. The effect has happened: a failure to read the body must not change that.
    async fn result(&self, mut response: Response, cancellation: &Cancellation) -> Option<Bytes> {
        let Some(limit) = self.keep_body else {
            let _ = tokio::time::timeout(DRAIN_TIME, read(&mut response, DRAIN_LIMIT)).await;
            return None;
        };
        let body = tokio::select! {
            biased;
            body = read(&mut response, limit) => body,
            () = cancellation.cancelled() => Body::Broken,
        };
        match body {
            Body::Whole(body) => Some(body.into()),
            Body::Longer(_) => {
                tracing::warn!(
                    limit_bytes = limit,
                    "response body exceeds the result limit; result discarded"
                );
                None
            }
            Body::Broken => {
                tracing::warn!("response body incomplete; result discarded");
                None
            }
        }
    }
}

impl fmt::Debug for HttpHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpHandler").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Handler for HttpHandler {
    type Output = Option<Bytes>;

    async fn handle(&self, message: Message) -> Result<Option<Bytes>, HandlerError> {
        let cancellation = message.cancellation();
        if cancellation.is_cancelled() {
            return Err(HandlerError::unavailable("cancelled before the request was sent"));
        }
        let mut headers = headers::headers(&self.scope, &message);
        headers::give_way(&mut headers, &self.fixed);
        headers.extend(self.fixed.clone());
        let request = self.client.post(self.url.clone()).headers(headers).body(message.payload().clone());
        let answered = tokio::select! {
            biased;
            answered = request.send() => answered,
            () = cancellation.cancelled() => {
                let text = format!("the run was cancelled before {} answered", self.target);
                return Err(HandlerError::retry(text).outcome_unknown());
            }
        };
        let mut response = answered.map_err(|cause| self.unanswered(cause))?;
        let meaning = self.statuses.meaning(response.status().as_u16());
        if matches!(meaning, Some(Meaning::Done)) || (meaning.is_none() && response.status().is_success()) {
            return Ok(self.result(response, &cancellation).await);
        }
        let body = match tokio::time::timeout(DRAIN_TIME, read(&mut response, DRAIN_LIMIT)).await {
            Ok(Body::Whole(body) | Body::Longer(body)) => body,
            Ok(Body::Broken) | Err(_) => Vec::new(),
        };
        Err(answer::failure(meaning, response.status(), response.headers(), &body, SystemTime::now()))
    }
}

/// True if the request was never written to a connection, which the client reports as cancelled.
fn is_unsent(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        next = error.source();
    }
    false
}

enum Body {
    Whole(Vec<u8>),
    /// Its beginning.
    Longer(Vec<u8>),
    Broken,
}

async fn read(response: &mut Response, limit: usize) -> Body {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = limit - body.len();
                body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                if chunk.len() > room {
                    return Body::Longer(body);
                }
            }
            Ok(None) => return Body::Whole(body),
            Err(_) => return Body::Broken,
        }
    }
}

/// Parses the URL. Errors never quote it: it may contain secrets.
fn parse(text: &str) -> Result<Url, Error> {
    let wrong = |what: String| Error::new(ErrorKind::Config, "use the HTTP handler's `url`", what);
    let example = "give one like \"http://127.0.0.1:8080/orders\"";
    let url = Url::parse(text).map_err(|cause| wrong(format!("{cause}; {example}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong(format!("its scheme is neither http nor https; {example}")));
    }
    if url.fragment().is_some() {
        return Err(wrong("it has a fragment (#…), which is never sent; remove it".to_owned()));
    }
    Ok(url)
}

/// Parses the headers of every request. Errors never quote them: they are mostly secrets.
fn fixed(headers: &[(String, String)]) -> Result<HeaderMap, Error> {
    let wrong = || {
        let what =
            "one of them cannot be sent; write names of letters, digits and `-`, and values on one line";
        Error::new(ErrorKind::Config, "use the HTTP handler's `headers`", what)
    };
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::try_from(name.as_str()).map_err(|_| wrong())?;
        let mut value = HeaderValue::try_from(value.as_str()).map_err(|_| wrong())?;
        value.set_sensitive(true);
        map.append(name, value);
    }
    Ok(map)
}

/// Scheme, host and port: paths of webhooks are secrets as often as queries are.
fn target(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
}
