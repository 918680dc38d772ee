//! The OpenTelemetry collector: its address, its login, and the client that sends to it: [`Collector`].

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use onceward::adapter::is_local_host;
use onceward::telemetry::RateLimited;
use onceward_plugin::sentence;
use opentelemetry_http::{HttpClient, HttpError};
use reqwest::Url;
use tokio::runtime::Handle;

use super::logins::{HEADERS, URLS};
use crate::config::{Config, Lookup};
use crate::exit::{Exit, Failure};

/// The time limit of a request, unless `OTEL_EXPORTER_OTLP_TIMEOUT` is shorter.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// The variables with the protocol. This program has one.
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// The variables with the compression, which this program has not.
const COMPRESSIONS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"];

/// The variables with the time limit of a request, in milliseconds.
const TIMEOUTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];

/// Where traces go. It is resolved here and not by the exporter, whose errors quote the URL with its login.
pub(super) struct Collector {
    /// With the login, which the client sends as Basic authentication.
    url: Url,
    /// The time limit of a request.
    timeout: Duration,
}

impl Collector {
    /// The collector that the environment or the configuration names; `None` if traces are off.
    ///
    /// # Errors
    /// The URL is not usable, or would expose a login.
    pub(super) fn find(config: &Config, env: Lookup<'_>) -> Result<Option<Self>, Failure> {
        let set = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        let is_off = set("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
            || set("OTEL_TRACES_EXPORTER").is_some_and(|value| value.trim() == "none");
        let of_variables = || URLS.into_iter().find_map(|name| set(name).map(|url| (name, url)));
        let of_config =
            || config.telemetry.otlp.as_ref().map(|url| ("telemetry.otlp", url.expose().to_owned()));
        let Some((name, text)) = of_variables().or_else(of_config).filter(|_| !is_off) else {
            return Ok(None);
        };
        let url = Url::parse(text.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(mut url) = url else {
            let what = format!("{name} is not a URL of a collector");
            return Err(refused(&what, "write a URL such as http://127.0.0.1:4318"));
        };
        if exposes_login(&url, HEADERS.into_iter().any(|name| set(name).is_some())) {
            let what = "the collector is on another host and would get a login without TLS";
            return Err(refused(what, "use https, or a collector on this host"));
        }
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| set(name).map(|value| (name, value)))
        };
        if let Some((name, _)) = first(PROTOCOLS).filter(|(_, protocol)| protocol.trim() != "http/protobuf") {
            let what = format!("{name} asks for a protocol that this program does not have");
            return Err(refused(
                &what,
                "write http/protobuf, and the URL of the collector's HTTP port, often 4318",
            ));
        }
        if let Some((name, _)) = first(COMPRESSIONS).filter(|(_, compression)| compression.trim() != "none") {
            let what = format!("{name} asks for compression, which this program does not have");
            return Err(refused(&what, "write none, or leave it out"));
        }
        let timeout =
            first(TIMEOUTS).and_then(|(_, text)| text.trim().parse().ok()).map(Duration::from_millis);
        let timeout = timeout.map_or(REQUEST_TIME, |timeout| timeout.min(REQUEST_TIME));
        // The first is used as it is.
        if name != URLS[0] {
            url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
        }
        Ok(Some(Self { url, timeout }))
    }

    /// The URL without its login.
    pub(super) fn public_url(&self) -> String {
        let mut url = self.url.clone();
        // Both are possible in a URL that has a host.
        let _ = (url.set_username(""), url.set_password(None));
        url.into()
    }

    /// The program's HTTP client.
    ///
    /// # Errors
    /// TLS is not available.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("onceward/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(self.timeout);
        if self.url.scheme() == "http" {
            // Certificates are not used: a system without any must not stop the export.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| {
            refused(&format!("the HTTP client cannot be set up ({error})"), "check the system's certificates")
        })?;
        Ok(Client {
            client,
            url: self.url.clone(),
            runtime: Handle::current(),
            lines: RateLimited::default(),
        })
    }
}

/// The sentence about traces that cannot be exported.
pub(super) fn refused(what: &str, fix: &str) -> Failure {
    Failure::new(Exit::Config, format!("cannot export traces: {what}; {fix}"))
}

/// True if a login would leave this host without TLS.
fn exposes_login(url: &Url, has_headers: bool) -> bool {
    let has_login = has_headers || !url.username().is_empty() || url.password().is_some();
    has_login && url.scheme() == "http" && !url.host_str().is_some_and(is_local_host)
}

/// The program's HTTP client, on its runtime: the exporter calls it from a thread of its own.
pub(super) struct Client {
    client: reqwest::Client,
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
    /// Logs a failed request, which the exporter repeats or drops without a line.
    fn log(&self, cause: &str) {
        if let Some(suppressed) = self.lines.allow("") {
            tracing::warn!(
                cause,
                suppressed,
                "spans not exported: the collector did not take them; the exporter may send them again"
            );
        }
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
        let (status, headers) = sent.await?.inspect_err(|error| self.log(&sentence(error)))?;
        if !status.is_success() {
            self.log(&status.to_string());
        }
        let mut response = Response::builder().status(status).body(Bytes::new())?;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leaves_this_host_over_tls_only() {
        for (url, has_headers, exposes) in [
            ("http://collector:4318", false, false),
            ("http://collector:4318", true, true),
            ("http://u:p@collector:4318", false, true),
            ("https://u:p@collector:4318", true, false),
            ("http://u:p@127.0.0.1:4318", true, false),
        ] {
            assert_eq!(exposes_login(&Url::parse(url).unwrap(), has_headers), exposes, "{url} {has_headers}");
        }
    }
}
