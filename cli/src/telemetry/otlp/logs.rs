//! Log lines, as records of OpenTelemetry: [`layer`].

use std::sync::OnceLock;
use std::time::Duration;

use onceward::telemetry::TRACE_TARGET;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{LogExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::logs::SdkLoggerProvider;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::collector::{Collector, refused_settings};
use super::last;
use super::resource::resource;
use super::signal::Signal;
use crate::config::{Config, Lookup};
use crate::exit::Failure;

/// The exporters themselves and the libraries that they send with. A line about an export must not lead to another export.
const OF_THE_EXPORT: [&str; 9] = [
    "onceward_cli::telemetry::otlp",
    "opentelemetry",
    "reqwest",
    "hyper",
    "h2",
    "rustls",
    "tower",
    "want",
    "mio",
];

/// Set once log lines are exported, and only then.
static PROVIDER: OnceLock<SdkLoggerProvider> = OnceLock::new();

/// Turns the export of log lines on if the environment asks for it.
///
/// # Errors
/// The exporter cannot be made of these values.
pub(super) fn start(config: &Config, env: Lookup<'_>) -> Result<(), Failure> {
    let Some(collector) = Collector::find(Signal::Logs, config, env)? else { return Ok(()) };
    let exporter = LogExporter::builder()
        .with_http()
        .with_http_client(collector.client()?)
        .with_endpoint(collector.public_url())
        .build()
        .map_err(|_| refused_settings(Signal::Logs))?;
    let provider =
        SdkLoggerProvider::builder().with_resource(resource(env)).with_batch_exporter(exporter).build();
    // A second start in one process, as in tests, keeps the first.
    let _ = PROVIDER.set(provider);
    Ok(())
}

/// The layer that exports lines; `None` if they are not exported.
pub(crate) fn layer<S>() -> Option<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let bridge = OpenTelemetryTracingBridge::new(PROVIDER.get()?);
    Some(bridge.with_filter(filter_fn(is_exported)).boxed())
}

/// Details of libraries stay on standard error: any of them may be about the export.
fn is_exported(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let is_of = |library: &str| {
        target.strip_prefix(library).is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', ':']))
    };
    let is_detail = *metadata.level() > Level::INFO && !target.starts_with("onceward");
    target != TRACE_TARGET && !is_detail && !OF_THE_EXPORT.into_iter().any(is_of)
}

/// Exports the last lines.
pub(super) async fn finish(limit: Duration) {
    if let Some(provider) = PROVIDER.get() {
        last::shut_down(Signal::Logs, move || provider.shutdown_with_timeout(limit)).await;
    }
}
