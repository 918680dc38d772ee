//! What did not reach the collector: failed exports, and spans that were dropped.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use super::signal::Signal;
use super::{logs, metrics, traces};
use crate::telemetry::family::{MetricFamilies, MetricKind, MetricValue};

/// Of this process, in the order of [`Signal::ALL`].
static FAILED_EXPORTS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

static DROPPED_SPANS: AtomicU64 = AtomicU64::new(0);

/// Counts a request that the collector did not take.
pub(super) fn export_failed(signal: Signal) {
    FAILED_EXPORTS[signal as usize].fetch_add(1, Ordering::Relaxed);
}

pub(super) fn spans_dropped(count: usize) {
    DROPPED_SPANS.fetch_add(count as u64, Ordering::Relaxed);
}

/// Adds the counts of the signals that are exported.
pub(in crate::telemetry) fn read(families: &mut MetricFamilies) {
    let exported = Signal::ALL.into_iter().filter(|signal| match signal {
        Signal::Traces => traces::is_on(),
        Signal::Metrics => metrics::is_on(),
        Signal::Logs => logs::is_on(),
    });
    let samples = exported.map(|signal| {
        let count = FAILED_EXPORTS[signal as usize].load(Ordering::Relaxed);
        (vec![("signal", Cow::Borrowed(signal.name()))], MetricValue::Whole(count))
    });
    let help = "Requests that the OpenTelemetry collector did not take.";
    families.add("export_failures", help, MetricKind::Counter, samples);
    if traces::is_on() {
        let help = "Spans that were not exported: too many waited, or the collector did not take them.";
        families.counter("spans_dropped", help, DROPPED_SPANS.load(Ordering::Relaxed));
    }
}
