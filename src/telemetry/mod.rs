//! Counters and measurements of a pipeline, under names that dashboards can rely on: [`Counters`], [`Observer`].

mod distribution;
mod gauges;
mod handler;
#[cfg(feature = "metrics")]
mod metrics_bridge;
mod observer;
mod rate;
mod sighting;
mod source;
mod span;

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

pub use distribution::{Distribution, DistributionCounts};
pub use gauges::{IntakePause, IntakePauses, Limits};
pub use handler::{HandlerOutage, HandlerState};
#[cfg(feature = "metrics")]
pub use metrics_bridge::MetricsObserver;
pub use observer::{Measure, Observer};
pub use rate::RateLimited;
pub use sighting::{KeySighting, KnownAs, LetterSighting};
pub use source::{SourceHealth, SourceState};
pub use span::{TRACE_TARGET, delivery_span};

macro_rules! counters {
    ($(#[doc = $doc:literal] $variant:ident => $name:literal;)*) => {
        /// One thing that is counted. The name is the metric's, without its `onceward_` and `_total`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(usize)]
        pub enum Counter { $(#[doc = $doc] $variant,)* }

        impl Counter {
            /// All counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The metric's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for people who read the metric.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $doc.trim_ascii(),)* }
            }
        }
    };
}

counters! {
    /// Deliveries taken from the source.
    Received => "received";
    /// Deliveries acked after their own handler run was completed.
    Handled => "handled";
    /// Deliveries acked because the effect of their key had happened already.
    Duplicates => "duplicates";
    /// Deliveries acked after a confirmed dead letter.
    DeadLettered => "dead_lettered";
    /// Deliveries acked because their key is dead already.
    DuplicatesOfDead => "duplicates_of_dead";
    /// Deliveries returned to the source: delayed retries, parked or abandoned messages.
    GivenBack => "given_back";
    /// Deliveries refused by the policy on missing keys.
    Rejected => "rejected";
    /// Deliveries acked by the policy on mismatches.
    MismatchAcked => "mismatch_acked";
    /// Handler runs that failed and will be repeated.
    Retried => "retried";
    /// Handler runs that ended in an error, a panic or a timeout.
    RunsFailed => "runs_failed";
    /// Handler runs that panicked.
    Panics => "panics";
    /// Handler runs that were ended by their timeout.
    Timeouts => "timeouts";
    /// Claims answered with in progress elsewhere.
    InProgress => "in_progress";
    /// Keys that came with another payload.
    Mismatches => "mismatches";
    /// Deliveries without a usable key.
    MissingKeys => "missing_keys";
    /// Completions that found no record and inserted one.
    ClaimLost => "claim_lost";
    /// Effects that may have happened twice.
    SuspectedDoubleEffects => "suspected_double_effects";
    /// Leases lost, or about to end unrenewed, while the handler ran.
    LeasesLost => "leases_lost";
    /// Completions, failures or transactions refused because a newer claim holds the key.
    Fenced => "fenced";
    /// Runs without a claim, allowed by a policy.
    Unprotected => "unprotected";
    /// Duplicates that were detected and run nevertheless, in observe mode.
    ObservedDuplicates => "observed_duplicates";
    /// Store calls that failed.
    StoreErrors => "store_errors";
    /// Settlements that the broker refused as too late.
    SettledTooLate => "settled_too_late";
    /// Settlements that failed and were repeated.
    SettleErrors => "settle_errors";
    /// Dead-letter publishes that failed.
    DeadLetterErrors => "dead_letter_errors";
    /// Replies confirmed by the broker: results of completed messages, sent to where the messages ask for them.
    Replies => "replies";
    /// Replies that failed and are sent again.
    ReplyErrors => "reply_errors";
    /// Deliveries acked without their reply: there is no such address, the broker refused it twice, or their run has no record and the one try failed.
    RepliesUndeliverable => "replies_undeliverable";
    /// Receives that failed.
    ReceiveErrors => "receive_errors";
    /// Messages whose attempts are used up and which a policy keeps in the source.
    Parked => "parked";
    /// Expired records removed from the store.
    Purged => "purged";
    /// Handler runs that found what they need unavailable; they used no attempt.
    Unavailable => "unavailable";
    /// Claims that took over the expired claim of a run that may have started.
    Takeovers => "takeovers";
    /// Dead letters that cannot be sent as they are: too large for their destination, or refused too often.
    LettersRefused => "letters_refused";
    /// Deliveries acked although their dead letter cannot be sent, by the policy on refused letters.
    LettersDropped => "letters_dropped";
    /// Transactions that were certainly rolled back because they met another one; they are repeated at once.
    Conflicts => "conflicts";
    /// Deliveries whose headers mark them as dead letters or retries of this scope, and are not believed.
    OwnHeadersIgnored => "own_headers_ignored";
}

#[derive(Debug)]
struct Counts([AtomicU64; Counter::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// The counters of one pipeline, and its gauges. Reading is free of locks.
#[derive(Debug, Default)]
pub struct Counters {
    counts: Counts,
    in_flight: AtomicU64,
    in_flight_bytes: AtomicU64,
    waiting: AtomicU64,
    blocked_lanes: AtomicU64,
    handler: Mutex<HandlerState>,
    store_up: AtomicU64,
    expiry_lag_ms: AtomicU64,
    gauges: gauges::Gauges,
    source: OnceLock<Arc<SourceHealth>>,
    key_sources: OnceLock<Box<[(String, AtomicU64)]>>,
}

impl Counters {
    /// The possible ends of a delivery; it ends in one of them.
    pub const ENDS: &'static [Counter] = &[
        Counter::Handled,
        Counter::Duplicates,
        Counter::DuplicatesOfDead,
        Counter::DeadLettered,
        Counter::MismatchAcked,
        Counter::Rejected,
        Counter::GivenBack,
        Counter::LettersDropped,
    ];

    /// How often `counter` was counted since the pipeline was built.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts.0[counter as usize].load(Ordering::Relaxed)
    }

    /// Deliveries that ended: acked for any reason, refused or returned to the source. Once a pipeline has ended, it
    /// equals [`Counter::Received`].
    pub fn ended(&self) -> u64 {
        Self::ENDS.iter().map(|end| self.get(*end)).sum()
    }

    /// Deliveries taken and not yet settled.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Bytes of these deliveries.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes.load(Ordering::Relaxed)
    }

    /// Of the deliveries in flight, those that cannot run: they wait for a retry, behind another message of their order key
    /// or key, for a claim of another process, or for the store.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Order keys or partitions whose first message waits, with others behind it, when that was last looked at.
    pub fn blocked_lanes(&self) -> u64 {
        self.blocked_lanes.load(Ordering::Relaxed)
    }

    /// Whether the handler works, as far as its runs show. While it is down intake pauses.
    pub fn handler_state(&self) -> HandlerState {
        self.handler.lock().clone()
    }

    /// True while the last claims were answered. Intake pauses otherwise.
    pub fn is_store_up(&self) -> bool {
        self.store_up.load(Ordering::Relaxed) == 1
    }

    /// How long ago the oldest record expired that the store has not removed yet, when that was last looked at; zero for
    /// stores that expire by themselves.
    pub fn expiry_lag(&self) -> Duration {
        Duration::from_millis(self.expiry_lag_ms.load(Ordering::Relaxed))
    }

    /// How the source fares, if its adapter reports it and the pipeline has started.
    pub fn source(&self) -> Option<&Arc<SourceHealth>> {
        self.source.get()
    }

    /// How many keys were taken from each source, by its name in the configuration and in the order in which the sources are
    /// tried; empty until the pipeline has started. Redriven messages bring their keys and are not counted.
    pub fn key_sources(&self) -> Vec<(String, u64)> {
        let sources = self.key_sources.get().map_or(&[][..], |sources| sources);
        sources.iter().map(|(name, count)| (name.clone(), count.load(Ordering::Relaxed))).collect()
    }

    pub(crate) fn set_key_sources(&self, names: impl Iterator<Item = String>) {
        // A pipeline has one key extractor.
        let _ = self.key_sources.set(names.map(|name| (name, AtomicU64::new(0))).collect());
    }

    pub(crate) fn count_key_source(&self, index: usize, found: u64) {
        if let Some((_, count)) = self.key_sources.get().and_then(|sources| sources.get(index)) {
            count.fetch_add(found, Ordering::Relaxed);
        }
    }

    pub(crate) fn set_source(&self, health: Arc<SourceHealth>) {
        // A pipeline has one source.
        let _ = self.source.set(health);
    }

    pub(crate) fn add(&self, counter: Counter, count: u64) {
        if count > 0 {
            self.counts.0[counter as usize].fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(crate) fn set_in_flight(&self, messages: usize, bytes: usize) {
        self.in_flight.store(messages as u64, Ordering::Relaxed);
        self.in_flight_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_waiting(&self, messages: usize) {
        self.waiting.store(messages as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_blocked_lanes(&self, lanes: usize) {
        self.blocked_lanes.store(lanes as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_handler_state(&self, state: HandlerState) {
        *self.handler.lock() = state;
    }

    pub(crate) fn set_expiry_lag(&self, lag: Duration) {
        self.expiry_lag_ms.store(u64::try_from(lag.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn set_store_up(&self, up: bool) {
        self.store_up.store(u64::from(up), Ordering::Relaxed);
    }

    /// Deliveries that are being claimed, wait for a slot, or are handled.
    pub fn running(&self) -> u64 {
        self.gauges.running()
    }

    /// True while the circuit breaker of the handler is open: single messages probe the handler.
    pub fn is_breaker_open(&self) -> bool {
        self.gauges.is_breaker_open()
    }

    /// Why no more messages are taken from the source. Limits of what is in flight are reached whenever messages come
    /// faster than they are handled.
    pub fn paused(&self) -> IntakePauses {
        self.gauges.paused()
    }

    /// How long ago the oldest delivery was received that is not settled; `None` if nothing is in flight.
    pub fn oldest_unsettled(&self) -> Option<Duration> {
        self.gauges.oldest_unsettled()
    }

    /// The limits of the pipeline, once it has started.
    pub fn limits(&self) -> Option<Limits> {
        self.gauges.limits()
    }

    pub(crate) fn set_running(&self, runs: usize) {
        self.gauges.set_running(runs);
    }

    pub(crate) fn set_concurrency(&self, handlers: usize) {
        self.gauges.set_concurrency(handlers);
    }

    pub(crate) fn set_breaker_open(&self, open: bool) {
        self.gauges.set_breaker_open(open);
    }

    pub(crate) fn set_paused(&self, pauses: IntakePauses) {
        self.gauges.set_paused(pauses);
    }

    pub(crate) fn set_oldest_unsettled(&self, received: Option<Instant>) {
        self.gauges.set_oldest_unsettled(received);
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        self.gauges.set_limits(limits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_metric_names_with_a_help_text() {
        let names: std::collections::HashSet<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), Counter::ALL.len());
        for counter in Counter::ALL {
            assert!(counter.name().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
            assert!(counter.help().ends_with('.') && !counter.help().starts_with(' '), "{counter:?}");
        }
    }
}
