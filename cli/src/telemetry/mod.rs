//! What is told of a run, or of a relay, while it goes on: `/metrics`, `/health/live` and `/health/ready`, where
//! `telemetry.listen` asks for them.

#[cfg(feature = "telemetry")]
mod connections;
#[cfg(feature = "telemetry")]
mod metrics;
#[cfg(feature = "telemetry")]
mod readiness;
#[cfg(feature = "telemetry")]
mod server;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use onceward::Error;
use onceward::outbox::RelayCounts;
use onceward::telemetry::Counters;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::exit::Failure;

/// How much of an error is shown, in bytes.
const LONGEST_REASON: usize = 300;

/// What the endpoints look at.
#[derive(Debug)]
#[cfg_attr(not(feature = "telemetry"), allow(dead_code, reason = "nobody looks"))]
pub(crate) struct Watched {
    scope: String,
    work: Work,
    /// What the start waits for, and why.
    waits_for: Mutex<Option<(&'static str, String)>>,
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

impl Watched {
    /// A run that is starting, and drains once `draining` fires.
    pub(crate) fn run(scope: &str, draining: CancellationToken) -> Arc<Self> {
        Self::of(scope, Work::Run(OnceLock::new()), draining)
    }

    /// As [`run`](Self::run), of a relay.
    pub(crate) fn relay(scope: &str, draining: CancellationToken) -> Arc<Self> {
        Self::of(scope, Work::Relay(OnceLock::new()), draining)
    }

    fn of(scope: &str, work: Work, draining: CancellationToken) -> Arc<Self> {
        Arc::new(Self { scope: scope.to_owned(), work, waits_for: Mutex::default(), draining })
    }

    /// Says that the start waits for `part`, such as "source", because of `error`.
    pub(crate) fn waits_for(&self, part: &'static str, error: &Error) {
        let reason = crate::handlers::text::printable(error.to_string().as_bytes(), LONGEST_REASON);
        *self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = Some((part, reason));
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
