//! Metrics, health endpoints and status page of a run or a relay: `/metrics`, `/health/live`, `/health/ready` and `/status`, if
//! `telemetry.listen` is set.

#[cfg(feature = "otlp")]
mod collector;
#[cfg(feature = "telemetry")]
mod connections;
#[cfg(feature = "telemetry")]
mod instruments;
mod logins;
#[cfg(feature = "telemetry")]
mod metrics;
mod observers;
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
#[cfg(feature = "otlp")]
mod traces;
mod watched;

use std::sync::Arc;

use onceward::Message;
use onceward::telemetry::Observer;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Config, Lookup};
use crate::exit::Failure;

pub(crate) use logins::{HEADERS, URLS};
#[cfg(feature = "telemetry")]
pub(crate) use status::{LiveStatus, PipelineFigures};
pub(crate) use watched::{MessageSource, Watched};

/// Starts the endpoints in the background, if `telemetry.listen` is set. They run until the program ends.
///
/// # Errors
/// The address cannot be bound.
pub(crate) async fn listen(config: &Config, watched: &Arc<Watched>) -> Result<(), Failure> {
    #[cfg(feature = "telemetry")]
    if let Some(address) = config.telemetry.listen {
        return server::start(config, address, Arc::clone(watched)).await;
    }
    let _ = (config, watched);
    Ok(())
}

/// The observer of the pipeline, if anything shows what it measures; `command` is that of the command itself.
pub(crate) fn observer(
    config: &Config,
    watched: &Watched,
    command: Option<Arc<dyn Observer>>,
) -> Option<Arc<dyn Observer>> {
    let mut observers: Vec<_> = command.into_iter().collect();
    #[cfg(feature = "telemetry")]
    if config.telemetry.listen.is_some() || traces_are_on() {
        observers.push(Arc::clone(&watched.instruments) as Arc<dyn Observer>);
        observers.push(Arc::clone(&watched.letters) as Arc<dyn Observer>);
    }
    let _ = (config, watched);
    match observers.len() {
        0 | 1 => observers.pop(),
        _ => Some(Arc::new(observers::Observers(observers))),
    }
}

/// Turns traces on if the configuration or the environment names a collector; before logging starts.
///
/// # Errors
/// The exporter cannot be made of these values.
pub(crate) fn start_traces(config: &Config, env: Lookup<'_>) -> Result<(), Failure> {
    #[cfg(feature = "otlp")]
    traces::start(config, env)?;
    let _ = (config, env);
    Ok(())
}

/// True if deliveries have spans.
pub(crate) fn traces_are_on() -> bool {
    #[cfg(feature = "otlp")]
    return traces::is_on();
    #[cfg(not(feature = "otlp"))]
    false
}

/// The layer of a logger that exports the spans of deliveries; `None` if traces are off.
pub(crate) fn trace_layer<S>() -> Option<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    #[cfg(feature = "otlp")]
    return traces::layer();
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
    return traces::within_current_span(message);
    #[cfg(not(feature = "otlp"))]
    message
}

/// Exports what has not been exported yet, at the end of the program.
pub(crate) async fn finish(at_once: bool) {
    #[cfg(feature = "otlp")]
    traces::finish(at_once).await;
    #[cfg(not(feature = "otlp"))]
    let _ = at_once;
}
