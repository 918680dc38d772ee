//! Traces of deliveries: [`span`], [`layer`].

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use onceward::Message;
use onceward::telemetry::{TRACE_TARGET, delivery_span};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::collector::{Collector, refused_settings};
use super::last;
use super::resource::resource;
use super::signal::Signal;
use super::spans;
use crate::config::{Config, Lookup};
use crate::exit::Failure;

/// Set once traces are on, and only then.
static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Turns traces on if the configuration or the environment names a collector of theirs.
///
/// # Errors
/// The exporter cannot be made of these values.
pub(super) fn start(config: &Config, env: Lookup<'_>) -> Result<(), Failure> {
    let Some(collector) = Collector::find(Signal::Traces, config, env)? else { return Ok(()) };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(collector.client()?)
        .with_endpoint(collector.public_url())
        .build()
        .map_err(|_| refused_settings(Signal::Traces))?;
    let provider = SdkTracerProvider::builder()
        .with_span_processor(spans::processor(exporter, env))
        .with_resource(resource(env))
        .build();
    // A second start in one process, as in tests, keeps the first.
    let _ = PROVIDER.set(provider);
    Ok(())
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
pub(super) async fn finish(limit: Duration) {
    if let Some(provider) = PROVIDER.get() {
        last::shut_down(Signal::Traces, move || provider.shutdown_with_timeout(limit)).await;
    }
}

/// The ids of the trace and of `span` in it, if it is exported.
pub(in crate::telemetry) fn ids_of(span: &Span) -> Option<(u128, u64)> {
    let context = span.context();
    let span = context.span();
    let ids = span.span_context();
    let as_numbers =
        || (u128::from_be_bytes(ids.trace_id().to_bytes()), u64::from_be_bytes(ids.span_id().to_bytes()));
    (ids.is_valid() && ids.is_sampled()).then(as_numbers)
}

/// The span of a delivery, in the trace that its headers name.
pub(in crate::telemetry) fn span(system: &str, message: &Message) -> Span {
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
