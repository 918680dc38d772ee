//! Spans of the steps of a delivery, within the span of the delivery; none if that has none.

use tracing::field::Empty;
use tracing::{Span, info_span};

use super::work::{InFlight, Verdict};
use crate::active_claim::ActiveClaim;
use crate::telemetry::{Counter, TRACE_TARGET};

/// Makes a span within that of a delivery; `None` if that has none.
macro_rules! step {
    ($work:expr, $name:literal $(, $($field:tt)+)?) => {
        $work.receipt.span().map(|parent| {
            info_span!(target: TRACE_TARGET, parent: parent, $name $(, $($field)+)?)
        })
    };
}

/// A span for each of the deliveries of a store call; they end when they are dropped.
pub(super) fn claims<'w>(works: impl Iterator<Item = &'w InFlight>) -> Vec<Span> {
    works.filter_map(|work| step!(work, "claim")).collect()
}

/// As [`claims`], for completions.
pub(super) fn completions<'w>(works: impl Iterator<Item = &'w InFlight>) -> Vec<Span> {
    works.filter_map(|work| step!(work, "complete")).collect()
}

/// The span of a run.
pub(super) fn run(work: &InFlight, claim: &ActiveClaim) -> Option<Span> {
    step!(work, "handle", onceward.attempt = claim.attempt(), otel.status_code = Empty)
}

/// Notes that the run of this span has failed.
pub(super) fn note_failure(span: &Span) {
    span.record("otel.status_code", "ERROR");
}

/// Notes the key, which is a hash, once it is known.
pub(super) fn note_key(work: &InFlight) {
    if let (Some(span), Some(key)) = (work.receipt.span(), work.key()) {
        span.record("onceward.key", tracing::field::display(key));
    }
}

/// Notes how a delivery ended.
pub(super) fn note_end(work: &InFlight, verdict: Verdict) {
    let Some(span) = work.receipt.span() else { return };
    let outcome = match verdict {
        Verdict::Ack(counter) => counter.name(),
        Verdict::Reject => "rejected",
        Verdict::GiveBack { .. } | Verdict::Abandon => "given_back",
        Verdict::Again { .. } | Verdict::Parked { .. } | Verdict::StoreDown => return,
    };
    span.record("onceward.outcome", outcome);
    if matches!(verdict, Verdict::Reject | Verdict::Ack(Counter::DeadLettered | Counter::LettersDropped)) {
        span.record("otel.status_code", "ERROR");
    }
}
