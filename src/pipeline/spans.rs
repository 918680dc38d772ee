//! Spans of the steps of a delivery, within the span of the delivery; none if that has none.

use tracing::field::Empty;
use tracing::{Span, info_span};

use super::work::{InFlight, Verdict};
use crate::active_claim::ActiveClaim;
use crate::telemetry::{Counter, TRACE_TARGET};

/// Makes a span within `parent`, which may be none.
macro_rules! step {
    ($parent:expr, $name:literal $(, $($field:tt)+)?) => {{
        let parent: &Span = $parent;
        match parent.is_none() {
            true => Span::none(),
            false => info_span!(target: TRACE_TARGET, parent: parent, $name $(, $($field)+)?),
        }
    }};
}

/// A span for each of the deliveries of a store call; they end when they are dropped.
pub(super) fn claims<'w>(works: impl Iterator<Item = &'w InFlight>) -> Vec<Span> {
    works.map(|work| step!(work.receipt.span(), "claim")).filter(|span| !span.is_none()).collect()
}

/// As [`claims`], for completions.
pub(super) fn completions<'w>(works: impl Iterator<Item = &'w InFlight>) -> Vec<Span> {
    works.map(|work| step!(work.receipt.span(), "complete")).filter(|span| !span.is_none()).collect()
}

/// The span of a run.
pub(super) fn run(work: &InFlight, claim: &ActiveClaim) -> Span {
    step!(work.receipt.span(), "handle", onceward.attempt = claim.attempt(), otel.status_code = Empty)
}

/// Notes that the run whose span is the current one has failed.
pub(super) fn note_failure() {
    let span = Span::current();
    if span.metadata().is_some_and(|metadata| metadata.target() == TRACE_TARGET) {
        span.record("otel.status_code", "ERROR");
    }
}

/// Notes the key, which is a hash, once it is known.
pub(super) fn note_key(work: &InFlight) {
    let span = work.receipt.span();
    if let Some(key) = work.key().filter(|_| !span.is_none()) {
        span.record("onceward.key", tracing::field::display(key));
    }
}

/// Notes how a delivery ended.
pub(super) fn note_end(work: &InFlight, verdict: Verdict) {
    let span = work.receipt.span();
    if span.is_none() {
        return;
    }
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
