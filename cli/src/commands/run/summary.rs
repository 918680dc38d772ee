//! The line that a finite run ends with. Scripts read it: names and order are a contract.

use onceward::Summary;
use onceward::telemetry::Counter;

/// `received=… handled=… duplicates=… retried=… dead-lettered=…`, always; then, only where they are not 0, in this
/// order: `given-back`, `parked`, `rejected`, `mismatch-acked`, `unprotected`, `observed-duplicates`,
/// `suspected-double-effects`, `letters-dropped`, `abandoned`.
///
/// The first five are deliveries, but for `retried`, which are runs; `abandoned` are runs cut at the drain deadline.
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
    let told = always.into_iter().chain(exceptional.into_iter().filter(|(_, count)| *count > 0));
    told.map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
}
