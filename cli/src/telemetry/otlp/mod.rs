//! Traces, metrics and log lines, pushed to an OpenTelemetry collector by OTLP over HTTP: [`start`], [`finish`].
//!
//! ```text
//! spans ──▶ SDK's batches ─┐
//! lines ──▶ SDK's batches ─┼─▶ client ─▶ collector of the signal
//! families ──▶ points ─────┘
//! ```

mod client;
mod collector;
mod headers;
mod last;
mod links;
pub(super) mod logs;
pub(super) mod losses;
pub(super) mod metrics;
mod points;
pub(super) mod probe;
mod resource;
mod signal;
mod spans;
pub(super) mod traces;

use std::time::Duration;

pub(super) use links::DuplicateLinks;

use crate::config::{Config, Lookup};
use crate::exit::Failure;

/// How long the last spans, values and lines have to reach the collector at the end of the program. With what a shutdown takes
/// beyond its drain, it is within the 5 s that the grace period of a platform should have for both.
const LAST_EXPORT: Duration = Duration::from_secs(2);

/// As [`LAST_EXPORT`], for a program that is to end at once.
const HASTY_EXPORT: Duration = Duration::from_millis(200);

/// Turns on what the configuration or the standard variables name a collector for: `telemetry.otlp`,
/// `OTEL_EXPORTER_OTLP_ENDPOINT`, or that of a signal.
///
/// # Errors
/// An exporter cannot be made of these values.
pub(super) fn start(config: &Config, env: Lookup<'_>) -> Result<(), Failure> {
    traces::start(config, env)?;
    metrics::start(config, env)?;
    logs::start(config, env)
}

/// Exports what is left. `at_once`: a second signal or a deadline ended the program.
pub(super) async fn finish(at_once: bool) {
    let limit = if at_once { HASTY_EXPORT } else { LAST_EXPORT };
    tokio::join!(traces::finish(limit), metrics::finish(limit), logs::finish(limit));
}
