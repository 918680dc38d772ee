//! Sends requests to the collector for an exporter: [`Client`].

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use onceward::telemetry::RateLimited;
use onceward_plugin::sentence;
use opentelemetry_http::{HttpClient, HttpError};
use reqwest::Url;
use tokio::runtime::Handle;

use super::losses;
use super::signal::Signal;

/// The program's HTTP client, on its runtime: exporters call it from threads of their own.
pub(super) struct Client {
    signal: Signal,
    client: reqwest::Client,
    /// With the login, which the client sends as Basic authentication.
    url: Url,
    runtime: Handle,
    lines: RateLimited,
}

impl fmt::Debug for Client {
    /// Without the URL, which may have a login.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client on the current runtime.
    pub(super) fn new(signal: Signal, client: reqwest::Client, url: Url) -> Self {
        losses::mark_exported(signal);
        Self { signal, client, url, runtime: Handle::current(), lines: RateLimited::default() }
    }

    /// Sends an export of nothing, which collectors take; the cause if this one does not.
    pub(super) async fn probe(&self, headers: HeaderMap) -> Result<(), String> {
        let sent = self.client.post(self.url.clone()).headers(headers).send().await;
        let response = sent.map_err(|error| sentence(&error.without_url()))?;
        if response.status().is_success() { Ok(()) } else { Err(response.status().to_string()) }
    }

    /// Counts and logs a failed request, which the exporter repeats or drops without a line.
    fn failed(&self, cause: &str) {
        losses::export_failed(self.signal);
        let Some(suppressed) = self.lines.allow("") else { return };
        let (things, next) = (self.signal.things(), self.signal.after_failure());
        tracing::warn!(cause, suppressed, "{things} not exported: the collector did not take them; {next}");
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let request = self.client.post(self.url.clone()).headers(parts.headers).body(body);
        let sent = self.runtime.spawn(async move {
            let response = request.send().await.map_err(reqwest::Error::without_url)?;
            // What a collector says beyond its status and its headers is not used.
            Ok::<_, reqwest::Error>((response.status(), response.headers().clone()))
        });
        // The error's own text is the same for a refused connection, an unknown name and a certificate.
        let (status, headers) = sent.await?.inspect_err(|error| self.failed(&sentence(error)))?;
        if !status.is_success() {
            self.failed(&status.to_string());
        }
        let mut response = Response::builder().status(status).body(Bytes::new())?;
        *response.headers_mut() = headers;
        Ok(response)
    }
}
