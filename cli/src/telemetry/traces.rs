//! Traces of deliveries, pushed to an OpenTelemetry collector over OTLP: [`start`], [`finish`].

use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use onceward::Message;
use onceward::adapter::is_local_host;
use onceward::telemetry::{TRACE_TARGET, delivery_span};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Config, Lookup};
use crate::exit::{Exit, Failure};

/// How long the last spans have to reach the collector at the end of the program.
const LAST_EXPORT: Duration = Duration::from_secs(5);

/// The time limit of a request, unless `OTEL_EXPORTER_OTLP_TIMEOUT` is shorter.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// Set once traces are on, and only then.
static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Turns traces on if the configuration or the standard variables name a collector: `telemetry.otlp`,
/// `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`. `OTEL_SDK_DISABLED=true` and
/// `OTEL_TRACES_EXPORTER=none` turn them off.
///
/// # Errors
/// The exporter cannot be made of these values.
pub(crate) fn start(config: &Config, env: Lookup<'_>) -> Result<(), Failure> {
    let set = |name: &str| env(name).filter(|value| !value.trim().is_empty());
    let is_off = set("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
        || set("OTEL_TRACES_EXPORTER").is_some_and(|value| value.trim() == "none");
    let named = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| set("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let configured = config.telemetry.otlp.as_ref().map(|url| url.expose().to_owned());
    let Some(url) = named.clone().or_else(|| configured.clone()).filter(|_| !is_off) else { return Ok(()) };
    let has_headers = HEADERS.into_iter().any(|name| set(name).is_some());
    if exposes_login(&url, has_headers) {
        let fix = "use https, or a collector on this host";
        let what = "the collector is on another host and would get a login without TLS";
        return Err(Failure::new(Exit::Config, format!("cannot export traces: {what}; {fix}")));
    }
    let cannot = |cause: &dyn StdError| {
        let fix = "check telemetry.otlp and the variables OTEL_EXPORTER_OTLP_*";
        Failure::new(Exit::Config, format!("cannot export traces ({cause}); {fix}"))
    };
    let client = Client::new(url.starts_with("https")).map_err(|error| cannot(&error))?;
    let mut exporter = SpanExporter::builder().with_http().with_http_client(client);
    if named.is_none() {
        exporter = exporter.with_endpoint(format!("{}/v1/traces", url.trim_end_matches('/')));
    }
    let exporter = exporter.build().map_err(|error| cannot(&error))?;
    let mut resource = Resource::builder();
    if set("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("onceward");
    }
    let provider =
        SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build();
    // A second start in one process, as in tests, keeps the first.
    let _ = PROVIDER.set(provider);
    Ok(())
}

/// The variables with headers of every request, which hold logins.
const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"];

/// True if a login would leave this host without TLS.
fn exposes_login(url: &str, has_headers: bool) -> bool {
    let Ok(url) = url::Url::parse(url) else { return false };
    let has_login = has_headers || !url.username().is_empty() || url.password().is_some();
    has_login && url.scheme() == "http" && !url.host_str().is_some_and(is_local_host)
}

/// True if deliveries have spans.
pub(crate) fn is_on() -> bool {
    PROVIDER.get().is_some()
}

/// The layer that turns the spans of deliveries, and no others, into those of OpenTelemetry.
pub(crate) fn layer<S>() -> Option<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let tracer = PROVIDER.get()?.tracer("onceward");
    let layer = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_level(false)
        .with_tracked_inactivity(false);
    Some(layer.with_filter(filter_fn(|metadata| metadata.target() == TRACE_TARGET)).boxed())
}

/// Exports the last spans.
pub(crate) async fn finish() {
    if let Some(provider) = PROVIDER.get() {
        let exported = tokio::task::spawn_blocking(|| provider.shutdown_with_timeout(LAST_EXPORT)).await;
        if !matches!(exported, Ok(Ok(()))) {
            tracing::warn!("last spans not exported: the collector did not take them in time");
        }
    }
}

/// The span of a delivery, in the trace that its headers name.
pub(super) fn span(system: &str, message: &Message) -> Span {
    if !is_on() {
        return Span::none();
    }
    let span = delivery_span(system, message);
    let parent = TraceContextPropagator::new().extract(&Headers(message));
    // An error means that the subscriber of a test has no layer for it.
    let _ = span.set_parent(parent);
    span
}

/// The message with the context of the current span in its headers, so that the handler's own spans are within it.
pub(crate) fn within_current_span(message: Message) -> Message {
    if !is_on() {
        return message;
    }
    let mut context = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut context);
    match context.remove("traceparent") {
        None => message,
        Some(parent) => {
            let state = context.remove("tracestate").filter(|state| !state.is_empty());
            message
                .with_header("traceparent", Some(parent.into()))
                .with_header("tracestate", state.map(Into::into))
        }
    }
}

/// Reads the context of a message.
struct Headers<'m>(&'m Message);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let mut values = self.0.headers().filter(|(name, _)| name.eq_ignore_ascii_case(key));
        values.next().and_then(|(_, value)| std::str::from_utf8(value).ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.headers().map(|(name, _)| name).collect()
    }
}

/// The program's HTTP client, on its runtime: the exporter calls it from a thread of its own.
#[derive(Debug)]
struct Client {
    client: reqwest::Client,
    runtime: Handle,
}

impl Client {
    fn new(has_tls: bool) -> Result<Self, reqwest::Error> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("onceward/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REQUEST_TIME);
        if !has_tls {
            // Certificates are not used: a system without any must not stop the export.
            builder = builder.tls_certs_only([]);
        }
        Ok(Self { client: builder.build()?, runtime: Handle::current() })
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (client, request) = (self.client.clone(), reqwest::Request::try_from(request)?);
        let sent = self.runtime.spawn(async move {
            let response = client.execute(request).await?;
            let status = response.status();
            // What a collector says beyond its status is not used.
            Ok::<_, reqwest::Error>((status, response.headers().clone()))
        });
        let (status, headers) = sent.await?.map_err(reqwest::Error::without_url)?;
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
            assert_eq!(exposes_login(url, has_headers), exposes, "{url} {has_headers}");
        }
    }
}
