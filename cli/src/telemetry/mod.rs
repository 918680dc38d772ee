//! What is told of a run, or of a relay, while it goes on: `/metrics`, `/health/live` and `/health/ready`, where `telemetry.listen` asks
//! for them.

#[cfg(feature = "telemetry")]
mod metrics;
#[cfg(feature = "telemetry")]
mod server;

use std::sync::{Arc, OnceLock};

use onceward::outbox::RelayCounts;
use onceward::telemetry::Counters;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::exit::Failure;

/// What the endpoints look at.
#[derive(Debug)]
#[cfg_attr(not(feature = "telemetry"), allow(dead_code, reason = "nobody looks"))]
pub(crate) struct Watched {
    scope: String,
    work: Work,
    draining: CancellationToken,
}

/// Who is watched: what counts is there once it has started.
#[derive(Debug)]
#[cfg_attr(not(feature = "telemetry"), allow(dead_code, reason = "nobody looks"))]
pub(crate) enum Work {
    /// A pipeline.
    Run(OnceLock<Arc<Counters>>),
    /// A relay of the outbox.
    Relay(OnceLock<Arc<RelayCounts>>),
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
    pub(crate) fn run(scope: &str, draining: CancellationToken) -> Arc<Self> {
        Arc::new(Self { scope: scope.to_owned(), work: Work::Run(OnceLock::new()), draining })
    }

    /// As [`run`](Self::run), of a relay.
    pub(crate) fn relay(scope: &str, draining: CancellationToken) -> Arc<Self> {
        Arc::new(Self { scope: scope.to_owned(), work: Work::Relay(OnceLock::new()), draining })
    }

    /// Says that the pipeline is there, and what it counts.
    pub(crate) fn started(&self, counters: Arc<Counters>) {
        if let Work::Run(work) = &self.work {
            // A run starts once.
            let _ = work.set(counters);
        }
    }

    /// Says that the relay is there, and what it counts.
    pub(crate) fn relays(&self, counts: Arc<RelayCounts>) {
        if let Work::Relay(work) = &self.work {
            // A relay starts once.
            let _ = work.set(counts);
        }
    }

    #[cfg(feature = "telemetry")]
    fn readiness(&self) -> Readiness {
        if self.draining.is_cancelled() {
            return Readiness::Draining;
        }
        let answers = match &self.work {
            Work::Run(work) => work.get().map(|counters| counters.is_store_up()),
            Work::Relay(work) => work.get().map(|counts| counts.is_outbox_up()),
        };
        match answers {
            None => Readiness::Starting,
            Some(true) => Readiness::Ready,
            Some(false) => Readiness::StoreDown,
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
