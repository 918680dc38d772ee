//! The server of the HTTP handler: [`HttpEndpoint`].

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use onceward::{Cancellation, Error, ErrorKind, HandlerError, Scope};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Request, Response, StatusCode, Url};

use super::options::HttpOptions;
use super::{answer, headers};
use crate::handlers::meaning::{Meaning, Statuses};

/// The most bytes of a discarded response that are read so that its connection can be reused.
const DRAIN_LIMIT: usize = 64 * 1024;

/// The time limit for reading a discarded response.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Where requests are sent, and how their responses are understood.
pub(super) struct HttpEndpoint {
    pub(super) scope: Scope,
    url: Url,
    pub(super) target: String,
    client: Client,
    fixed: HeaderMap,
    connect_timeout: Duration,
    statuses: Statuses,
    keep_body: Option<usize>,
}

/// Takes the login out of the URL; it becomes a header, unless that is fixed otherwise.
fn take_login(client: &Client, url: Url, fixed: HeaderMap) -> Result<(Url, HeaderMap), reqwest::Error> {
    let request = client.post(url).build()?;
    let mut headers = request.headers().clone();
    fixed.keys().for_each(|name| drop(headers.remove(name)));
    headers.extend(fixed);
    Ok((request.url().clone(), headers))
}

impl HttpEndpoint {
    /// See [`HttpHandler::new`](super::HttpHandler::new).
    pub(super) fn new(options: HttpOptions) -> Result<Self, Error> {
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
        let (url, fixed) = take_login(&client, url, fixed).map_err(|cause| {
            let what = "a request cannot be made";
            Error::new(ErrorKind::Config, operation, what).with_source(cause.without_url())
        })?;
        Ok(Self { scope, url, target, client, fixed, connect_timeout, statuses, keep_body })
    }

    /// See [`HttpHandler::check`](super::HttpHandler::check).
    pub(super) async fn check(&self) -> Result<(), Error> {
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

    /// Sends a request. An error says whether it may have arrived.
    pub(super) async fn post(&self, mut headers: HeaderMap, body: Bytes) -> Result<Response, HandlerError> {
        if !self.fixed.is_empty() {
            headers::give_way(&mut headers, &self.fixed);
            headers.extend(self.fixed.clone());
        }
        // Its builder would copy the headers one by one.
        let mut request = Request::new(Method::POST, self.url.clone());
        *request.headers_mut() = headers;
        *request.body_mut() = Some(body.into());
        self.client.execute(request).await.map_err(|cause| self.unanswered(cause))
    }

    /// True if a response with this status completes the message.
    pub(super) fn is_done(&self, status: StatusCode) -> bool {
        match self.statuses.meaning(status.as_u16()) {
            Some(meaning) => meaning == Meaning::Done,
            None => status.is_success(),
        }
    }

    /// The error of a response that does not complete the message.
    pub(super) async fn failure(&self, mut response: Response) -> HandlerError {
        let body = match tokio::time::timeout(DRAIN_TIME, read(&mut response, DRAIN_LIMIT)).await {
            Ok(ResponseBody::Whole(body) | ResponseBody::Longer(body)) => body,
            Ok(ResponseBody::Broken) | Err(_) => Vec::new(),
        };
        let meaning = self.statuses.meaning(response.status().as_u16());
        answer::failure(meaning, response.status(), response.headers(), &body, SystemTime::now())
    }

    /// The error of a request that was cancelled before it was answered.
    pub(super) fn cancelled(&self) -> HandlerError {
        let text = format!("the run was cancelled before {} answered", self.target);
        HandlerError::retry(text).outcome_unknown()
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

    /// The result of a message in a batch, or `None` if it is not kept or too large.
    pub(super) fn fitting(&self, result: Option<Bytes>) -> Option<Bytes> {
        let (limit, result) = (self.keep_body?, result?);
        if result.len() > limit {
            let bytes = result.len();
            tracing::warn!(bytes, limit_bytes = limit, "result exceeds the limit; result discarded");
            return None;
        }
        Some(result)
    }

    /// The most bytes of so many results that are kept.
    pub(super) fn kept_bytes(&self, results: u64) -> usize {
        let results = usize::try_from(results).unwrap_or(usize::MAX);
        self.keep_body.map_or(0, |limit| limit.saturating_mul(results))
    }

    /// The body of a success. The effect has happened: a failure to read the body must not change that.
    pub(super) async fn result(&self, mut response: Response, cancellation: &Cancellation) -> Option<Bytes> {
        let Some(limit) = self.keep_body else {
            let _ = tokio::time::timeout(DRAIN_TIME, read(&mut response, DRAIN_LIMIT)).await;
            return None;
        };
        let body = tokio::select! {
            biased;
            body = read(&mut response, limit) => body,
            () = cancellation.cancelled() => ResponseBody::Broken,
        };
        match body {
            ResponseBody::Whole(body) => Some(body.into()),
            ResponseBody::Longer(_) => {
                tracing::warn!(
                    limit_bytes = limit,
                    "response body exceeds the result limit; result discarded"
                );
                None
            }
            ResponseBody::Broken => {
                tracing::warn!("response body incomplete; result discarded");
                None
            }
        }
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

/// The body of a response.
pub(super) enum ResponseBody {
    Whole(Vec<u8>),
    /// Its beginning.
    Longer(Vec<u8>),
    Broken,
}

/// Reads the body of a response, up to a limit.
///
/// # Cancel safety
/// A dropped call loses what it has read.
pub(super) async fn read(response: &mut Response, limit: usize) -> ResponseBody {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = limit - body.len();
                body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                if chunk.len() > room {
                    return ResponseBody::Longer(body);
                }
            }
            Ok(None) => return ResponseBody::Whole(body),
            Err(_) => return ResponseBody::Broken,
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
