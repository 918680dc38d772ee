//! Events per second in the last minute: [`RateHistory`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use onceward::telemetry::{Counter, Counters};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::telemetry::watched::{Watched, Work};

/// The seconds that are kept.
const SECONDS: usize = 60;

/// The seconds of which a rate is the mean.
const OF: usize = 10;

/// Counters at the last [`SECONDS`] ticks and one more, oldest first.
#[derive(Debug, Default)]
pub(in crate::telemetry) struct RateHistory(Mutex<VecDeque<Totals>>);

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    received: u64,
    handled: u64,
    duplicates: u64,
    failed: u64,
}

/// Events per second, the mean of the last ten seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rates {
    pub(crate) received: f64,
    pub(crate) handled: f64,
    pub(crate) duplicates: f64,
    pub(crate) failed: f64,
}

/// Events in each of the last seconds, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EachSecond {
    pub(crate) handled: Vec<u64>,
    pub(crate) duplicates: Vec<u64>,
}

impl RateHistory {
    /// Reads the counters once a second, until the runtime ends.
    pub(in crate::telemetry) async fn keep(self: Arc<Self>, watched: Arc<Watched>) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Work::Run(work) = &watched.work
                && let Some(counters) = work.get()
            {
                self.push(Totals::of(counters));
            }
        }
    }

    fn push(&self, now: Totals) {
        let mut totals = self.0.lock();
        if totals.len() > SECONDS {
            totals.pop_front();
        }
        totals.push_back(now);
    }

    pub(super) fn rates(&self) -> Rates {
        let totals = self.0.lock();
        let Some(last) = totals.back() else { return Rates::default() };
        let first = totals.len().saturating_sub(OF + 1);
        let seconds = totals.len() - 1 - first;
        #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
        let rate = |count: fn(&Totals) -> u64| match seconds {
            0 => 0.0,
            _ => count(last).saturating_sub(count(&totals[first])) as f64 / seconds as f64,
        };
        Rates {
            received: rate(|totals| totals.received),
            handled: rate(|totals| totals.handled),
            duplicates: rate(|totals| totals.duplicates),
            failed: rate(|totals| totals.failed),
        }
    }

    pub(super) fn each_second(&self) -> EachSecond {
        let totals: Vec<_> = self.0.lock().iter().copied().collect();
        let each = |count: fn(&Totals) -> u64| {
            totals.windows(2).map(|pair| count(&pair[1]).saturating_sub(count(&pair[0]))).collect()
        };
        EachSecond { handled: each(|totals| totals.handled), duplicates: each(|totals| totals.duplicates) }
    }
}

impl Totals {
    /// Duplicates are those that were suppressed, and those that observe mode has handled.
    fn of(counters: &Counters) -> Self {
        let sum = |all: &[Counter]| all.iter().map(|counter| counters.get(*counter)).sum();
        Self {
            received: counters.get(Counter::Received),
            handled: counters.get(Counter::Handled),
            duplicates: sum(&[Counter::Duplicates, Counter::DuplicatesOfDead, Counter::ObservedDuplicates]),
            failed: counters.get(Counter::RunsFailed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_kept_and_a_rate_is_that_of_ten_seconds() {
        let history = RateHistory::default();
        assert_eq!(history.rates(), Rates::default());
        for second in 0..100 {
            history.push(Totals { handled: second * second, ..Totals::default() });
        }
        let each = history.each_second();
        assert_eq!((each.handled.len(), each.handled[59], each.handled[0]), (60, 2 * 98 + 1, 2 * 39 + 1));
        let expected = f64::from(99 * 99 - 89 * 89) / 10.0;
        assert!((history.rates().handled - expected).abs() < 1e-9);
    }
}
