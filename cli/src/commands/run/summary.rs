//! The line of counters at the end of a run. Scripts parse it: names and order are a contract.

use onceward::Summary;
use onceward::telemetry::Counter;

/// `received=… handled=… duplicates=… retried=… dead-lettered=…`, then those of the following that are not 0, in this
/// order: `given-back`, `parked`, `rejected`, `mismatch-acked`, `unprotected`, `observed-duplicates`,
/// `suspected-double-effects`, `letters-dropped`, `abandoned`.
///
/// The first five count deliveries, except `retried`, which counts runs; `abandoned` counts runs stopped at the drain
/// deadline.
pub(super) fn line(summary: &Summary) -> String {
    let count = |counter| summary.counters().get(counter);
    let abandoned = u64::try_from(summary.abandoned_runs()).unwrap_or(u64::MAX);
    let always = [
        ("received", summary.received()),
        ("handled", summary.handled()),
        ("duplicates", summary.duplicates()),
        ("retried", summary.retried()),
        ("dead-lettered", summary.dead_lettered()),
    ];
    let exceptional = [
        ("given-back", summary.given_back()),
        ("parked", summary.parked()),
        ("rejected", count(Counter::Rejected)),
        ("mismatch-acked", count(Counter::MismatchAcked)),
        ("unprotected", count(Counter::Unprotected)),
        ("observed-duplicates", count(Counter::ObservedDuplicates)),
        ("suspected-double-effects", count(Counter::SuspectedDoubleEffects)),
        ("letters-dropped", count(Counter::LettersDropped)),
        ("abandoned", abandoned),
    ];
    let shown = always.into_iter().chain(exceptional.into_iter().filter(|(_, count)| *count > 0));
    shown.map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
}
