//! What is told of a run while it goes on: `/metrics`, `/health/live` and `/health/ready`, where `telemetry.listen` asks
//! for them.

#[cfg(feature = "telemetry")]
mod metrics;
#[cfg(feature = "telemetry")]
mod server;

use std::sync::{Arc, OnceLock};

use onceward::telemetry::Counters;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::exit::Failure;

/// What the endpoints look at.
#[derive(Debug)]
#[cfg_attr(not(feature = "telemetry"), allow(dead_code, reason = "nobody looks"))]
pub(crate) struct Watched {
    scope: String,
    counters: OnceLock<Arc<Counters>>,
    draining: CancellationToken,
}

/// Whether messages are taken, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "telemetry"), allow(dead_code, reason = "nobody asks"))]
pub(crate) enum Readiness {
    /// They are.
    Ready,
    /// The store was not reached yet.
    Starting,
    /// The store has stopped answering.
    StoreDown,
    /// A signal has come.
    Draining,
}

impl Watched {
    /// A run that is starting, and drains once `draining` fires.
    pub(crate) fn new(scope: &str, draining: CancellationToken) -> Arc<Self> {
        Arc::new(Self { scope: scope.to_owned(), counters: OnceLock::new(), draining })
    }

    /// Says that the pipeline is there, and what it counts.
    pub(crate) fn started(&self, counters: Arc<Counters>) {
        // A run starts once.
        let _ = self.counters.set(counters);
    }

    #[cfg(feature = "telemetry")]
    fn readiness(&self) -> Readiness {
        match self.counters.get() {
            _ if self.draining.is_cancelled() => Readiness::Draining,
            None => Readiness::Starting,
            Some(counters) if counters.is_store_up() => Readiness::Ready,
            Some(_) => Readiness::StoreDown,
        }
    }
}

/// Begins to listen where `telemetry.listen` says so; it goes on in the background until the program ends.
///
/// # Errors
/// One sentence, if the address cannot be listened on.
pub(crate) async fn listen(config: &Config, watched: &Arc<Watched>) -> Result<(), Failure> {
    #[cfg(feature = "telemetry")]
    if let Some(address) = config.telemetry.listen {
        return server::start(config, address, Arc::clone(watched)).await;
    }
    let _ = (config, watched);
    Ok(())
}
