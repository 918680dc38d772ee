//! The state behind the endpoints: [`Watched`].

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use onceward::Error;
use onceward::outbox::RelayCounts;
use onceward::telemetry::Counters;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The most bytes of an error in a readiness reply.
pub(super) const LONGEST_REASON: usize = 300;

/// Where messages come from.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "telemetry"), allow(dead_code, reason = "read by the telemetry feature only"))]
pub(crate) struct MessageSource {
    /// The name of the adapter.
    pub(crate) adapter: &'static str,
    /// The name of the broker in OpenTelemetry's conventions for messaging.
    pub(crate) system: &'static str,
}

/// The state behind the endpoints.
#[derive(Debug)]
#[cfg_attr(not(feature = "telemetry"), allow(dead_code, reason = "read by the telemetry feature only"))]
pub(crate) struct Watched {
    pub(super) scope: String,
    pub(super) work: Work,
    /// What the pipeline measures.
    #[cfg(feature = "telemetry")]
    pub(super) instruments: Arc<super::instruments::Instruments>,
    /// The name of the source's adapter.
    pub(super) adapter: &'static str,
    pub(super) since: Instant,
    /// The part that the start waits for, and its last error.
    pub(super) waits_for: Mutex<Option<(&'static str, String)>>,
    /// `None` while they are unknown.
    pub(super) letters: Mutex<Option<SeenLetters>>,
    pub(super) draining: CancellationToken,
}

/// The dead letters as they were last observed.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "telemetry"), allow(dead_code, reason = "read by the telemetry feature only"))]
pub(crate) struct SeenLetters {
    pub(crate) depth: u64,
    /// When the message of the oldest letter died, where that can be known.
    pub(crate) oldest_died: Option<SystemTime>,
}

/// The observed process; its counters are set once it has started.
#[derive(Debug)]
#[cfg_attr(not(feature = "telemetry"), allow(dead_code, reason = "read by the telemetry feature only"))]
pub(crate) enum Work {
    /// A pipeline.
    Run(OnceLock<Arc<Counters>>),
    /// A relay of the outbox.
    Relay(OnceLock<Arc<RelayCounts>>),
}

impl Watched {
    /// The state of a run that is starting, reads from `source`, and drains once `draining` fires.
    pub(crate) fn run(scope: &str, source: MessageSource, draining: CancellationToken) -> Arc<Self> {
        Self::new(scope, source, Work::Run(OnceLock::new()), draining)
    }

    /// The state of a relay, as [`run`](Self::run).
    pub(crate) fn relay(scope: &str, draining: CancellationToken) -> Arc<Self> {
        Self::new(
            scope,
            MessageSource { adapter: "outbox", system: "outbox" },
            Work::Relay(OnceLock::new()),
            draining,
        )
    }

    fn new(scope: &str, source: MessageSource, work: Work, draining: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            scope: scope.to_owned(),
            work,
            #[cfg(feature = "telemetry")]
            instruments: Arc::new(super::instruments::Instruments::new(source.adapter, source.system)),
            adapter: source.adapter,
            since: Instant::now(),
            waits_for: Mutex::default(),
            letters: Mutex::default(),
            draining,
        })
    }

    /// Records that the start waits for `part`, such as "source", because of `error`.
    pub(crate) fn waits_for(&self, part: &'static str, error: &Error) {
        let reason = crate::handlers::text::printable(error.to_string().as_bytes(), LONGEST_REASON);
        *self.waits_for.lock() = Some((part, reason));
    }

    /// Records the dead letters as they were observed; `None` if that failed.
    pub(crate) fn see_letters(&self, letters: Option<SeenLetters>) {
        *self.letters.lock() = letters;
    }

    /// Records that the pipeline has started, with its counters.
    pub(crate) fn started(&self, counters: Arc<Counters>) {
        if let Work::Run(work) = &self.work {
            // A run starts once.
            let _ = work.set(counters);
        }
    }

    /// Records that the relay has started, with its counters.
    pub(crate) fn relay_started(&self, counts: Arc<RelayCounts>) {
        if let Work::Relay(work) = &self.work {
            // A relay starts once.
            let _ = work.set(counts);
        }
    }
}
