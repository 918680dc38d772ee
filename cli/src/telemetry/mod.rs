//! Telemetry of a run or a relay: the endpoints `/metrics`, `/health/live` and `/health/ready` and the page `/status`, if
//! `telemetry.listen` is set; and traces, metrics and log lines that are pushed to a collector, if one is named.

#[cfg(feature = "telemetry")]
mod connections;
#[cfg(feature = "telemetry")]
mod exposition;
#[cfg(feature = "telemetry")]
mod family;
#[cfg(feature = "telemetry")]
mod instruments;
#[cfg_attr(not(feature = "telemetry"), allow(dead_code, reason = "used by the telemetry feature only"))]
mod letter_orders;
mod logins;
#[cfg(feature = "telemetry")]
mod metrics;
mod observers;
#[cfg(feature = "otlp")]
mod otlp;
#[cfg(feature = "telemetry")]
mod process;
#[cfg(feature = "telemetry")]
mod readiness;
#[cfg(feature = "telemetry")]
mod recent;
#[cfg(feature = "telemetry")]
mod server;
#[cfg(feature = "telemetry")]
mod status;
mod watched;

use std::sync::Arc;

use onceward::Message;
use onceward::telemetry::Observer;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Config, Lookup};
use crate::exit::Failure;

pub(crate) use letter_orders::{LetterActions, LetterOrder, LetterOutcome, LetterRequest};
pub(crate) use logins::{HEADERS, URLS};
#[cfg(feature = "telemetry")]
pub(crate) use status::{LiveStatus, PipelineFigures};
pub(crate) use watched::{MessageSource, SeenLetters, Watched};

/// Starts the endpoints, if `telemetry.listen` is set, and the push of metrics, if they have a collector; both run in the
/// background until the program ends. With a token in the configuration, `desk` redrives and purges letters.
///
/// # Errors
/// The address cannot be bound, or the token cannot be read.
pub(crate) async fn expose(
    config: &Config,
    watched: &Arc<Watched>,
    desk: Option<Arc<dyn LetterActions>>,
) -> Result<(), Failure> {
    #[cfg(feature = "otlp")]
    otlp::metrics::push_regularly(watched);
    #[cfg(feature = "telemetry")]
    if let Some(address) = config.telemetry.listen {
        return server::start(config, address, Arc::clone(watched), desk).await;
    }
    let _ = (config, watched, desk);
    Ok(())
}

/// True if anything shows metrics.
pub(crate) fn metrics_are_on(config: &Config) -> bool {
    #[cfg(feature = "otlp")]
    if otlp::metrics::is_on() {
        return true;
    }
    cfg!(feature = "telemetry") && config.telemetry.listen.is_some()
}

/// The observer of the pipeline, if anything shows what it measures; `command` is that of the command itself.
pub(crate) fn observer(
    config: &Config,
    watched: &Watched,
    command: Option<Arc<dyn Observer>>,
) -> Option<Arc<dyn Observer>> {
    let mut observers: Vec<_> = command.into_iter().collect();
    #[cfg(feature = "telemetry")]
    if metrics_are_on(config) || traces_are_on() {
        observers.push(Arc::clone(&watched.instruments) as Arc<dyn Observer>);
    }
    #[cfg(feature = "otlp")]
    if config.telemetry.keep_trace_context && traces_are_on() {
        observers.push(Arc::new(otlp::DuplicateLinks));
    }
    let _ = (config, watched);
    match observers.len() {
        0 | 1 => observers.pop(),
        _ => Some(Arc::new(observers::Observers(observers))),
    }
}

/// Prepares the export of what has a collector in the configuration or the environment; before logging starts.
///
/// # Errors
/// An exporter cannot be made of these values.
pub(crate) fn start_export(config: &Config, env: Lookup<'_>) -> Result<(), Failure> {
    #[cfg(feature = "otlp")]
    otlp::start(config, env)?;
    let _ = (config, env);
    Ok(())
}

/// Asks the collector of each signal that is exported to take an export of nothing: a sentence each, an error where it does not.
pub(crate) async fn probe_collectors(config: &Config, env: Lookup<'_>) -> Vec<Result<String, String>> {
    #[cfg(feature = "otlp")]
    return otlp::probe::probe(config, env).await;
    #[cfg(not(feature = "otlp"))]
    {
        let _ = (config, env);
        Vec::new()
    }
}

/// True if deliveries have spans.
pub(crate) fn traces_are_on() -> bool {
    #[cfg(feature = "otlp")]
    return otlp::traces::is_on();
    #[cfg(not(feature = "otlp"))]
    false
}

/// The layer of a logger that exports the spans of deliveries; `None` if traces are off.
pub(crate) fn trace_layer<S>() -> Option<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    #[cfg(feature = "otlp")]
    return otlp::traces::layer();
    #[cfg(not(feature = "otlp"))]
    None
}

/// The layer of a logger that exports its lines; `None` if they are not exported.
pub(crate) fn line_layer<S>() -> Option<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    #[cfg(feature = "otlp")]
    return otlp::logs::layer();
    #[cfg(not(feature = "otlp"))]
    None
}

/// The layer of a logger that keeps the last warnings for the status page; `None` in a build without it.
pub(crate) fn recent_layer<S: Subscriber>() -> Option<Box<dyn Layer<S> + Send + Sync>> {
    #[cfg(feature = "telemetry")]
    return Some(Box::new(recent::RecentLines));
    #[cfg(not(feature = "telemetry"))]
    None
}

/// The message with the trace context of the handler's span in its headers, if it has one.
pub(crate) fn within_current_span(message: Message) -> Message {
    #[cfg(feature = "otlp")]
    return otlp::traces::within_current_span(message);
    #[cfg(not(feature = "otlp"))]
    message
}

/// Exports what has not been exported yet, at the end of the program.
pub(crate) async fn finish(at_once: bool) {
    #[cfg(feature = "otlp")]
    otlp::finish(at_once).await;
    #[cfg(not(feature = "otlp"))]
    let _ = at_once;
}
