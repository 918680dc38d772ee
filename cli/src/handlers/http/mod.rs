//! HTTP handler, a POST for each message or for several: [`HttpHandler`].

mod answer;
mod batch;
mod endpoint;
mod headers;
mod options;
mod trace;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use onceward::{Error, Handler, HandlerError, Message};

use batch::HttpBatches;
use endpoint::HttpEndpoint;
pub use options::HttpOptions;

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
/// arrives twice.
///
/// With a [batch](HttpOptions::batch) a request has a JSON array of messages, in the form in which
/// [worker processes](crate::handlers::WorkerHandler) get them, and a 2xx response an array with a result for each of them,
/// or no body if all are done. Any other response is about all messages. If it is a failure, one of them may be the cause: none
/// uses an attempt, and each is sent alone next.
///
/// Connections are HTTP/1.1, pooled, and go straight to the server: proxies in the environment are not
/// used. Certificates are checked against those of the operating system.
#[derive(Clone)]
pub struct HttpHandler {
    endpoint: Arc<HttpEndpoint>,
    /// `None`: each message has a request of its own.
    batches: Option<Arc<HttpBatches>>,
}

impl HttpHandler {
    /// A handler with these options. It does not connect; see [`check`](Self::check).
    ///
    /// # Errors
    /// [`onceward::Error`] if the URL cannot be used, no certificates are found for `https`, or
    /// [`install_tls_provider`] was not called.
    pub fn new(options: HttpOptions) -> Result<Self, Error> {
        let batch = options.batch as usize;
        let endpoint = Arc::new(HttpEndpoint::new(options)?);
        let batches = (batch > 1).then(|| Arc::new(HttpBatches::new(batch, Arc::clone(&endpoint))));
        Ok(Self { endpoint, batches })
    }

    /// Opens and closes a connection, without a request.
    ///
    /// # Errors
    /// The server does not accept the connection.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again.
    pub async fn check(&self) -> Result<(), Error> {
        self.endpoint.check().await
    }
}

impl fmt::Debug for HttpHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpHandler").field("target", &self.endpoint.target).finish_non_exhaustive()
    }
}

impl Handler for HttpHandler {
    type Output = Option<Bytes>;

    async fn handle(&self, message: Message) -> Result<Option<Bytes>, HandlerError> {
        let cancellation = message.cancellation();
        if cancellation.is_cancelled() {
            return Err(HandlerError::unavailable("cancelled before the request was sent"));
        }
        if let Some(batches) = &self.batches {
            return batches.send(message).await;
        }
        let endpoint = &self.endpoint;
        let headers = headers::headers(&endpoint.scope, &message);
        let response = tokio::select! {
            biased;
            answered = endpoint.post(headers, message.payload().clone()) => answered?,
            () = cancellation.cancelled() => return Err(endpoint.cancelled()),
        };
        if endpoint.is_done(response.status()) {
            return Ok(endpoint.result(response, &cancellation).await);
        }
        Err(endpoint.failure(response).await)
    }
}
