//! Failed exports and dropped spans of this process: [`failed_exports`], [`dropped_spans`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::signal::Signal;

/// In the order of [`Signal::ALL`].
static EXPORTED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

static FAILED_EXPORTS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

static DROPPED_SPANS: AtomicU64 = AtomicU64::new(0);

/// Notes that a signal is exported.
pub(super) fn mark_exported(signal: Signal) {
    EXPORTED[signal as usize].store(true, Ordering::Relaxed);
}

/// Counts a request that the collector did not take.
pub(super) fn export_failed(signal: Signal) {
    FAILED_EXPORTS[signal as usize].fetch_add(1, Ordering::Relaxed);
}

/// Counts spans that are not exported.
pub(super) fn spans_dropped(count: usize) {
    DROPPED_SPANS.fetch_add(count as u64, Ordering::Relaxed);
}

/// The signals that are exported, each with its failed requests.
pub(in crate::telemetry) fn failed_exports() -> Vec<(&'static str, u64)> {
    let exported =
        Signal::ALL.into_iter().filter(|signal| EXPORTED[*signal as usize].load(Ordering::Relaxed));
    exported.map(|signal| (signal.name(), FAILED_EXPORTS[signal as usize].load(Ordering::Relaxed))).collect()
}

/// Spans that were dropped, if spans are exported.
pub(in crate::telemetry) fn dropped_spans() -> Option<u64> {
    let is_exported = EXPORTED[Signal::Traces as usize].load(Ordering::Relaxed);
    is_exported.then(|| DROPPED_SPANS.load(Ordering::Relaxed))
}
