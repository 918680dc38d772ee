//! Metrics and health endpoints of a run or a relay: `/metrics`, `/health/live` and `/health/ready`, if `telemetry.listen`
//! is set.

#[cfg(feature = "telemetry")]
mod connections;
#[cfg(feature = "telemetry")]
mod metrics;
#[cfg(feature = "telemetry")]
mod readiness;
#[cfg(feature = "telemetry")]
mod server;
mod watched;

use std::sync::Arc;

use crate::config::Config;
use crate::exit::Failure;

pub(crate) use watched::Watched;

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
