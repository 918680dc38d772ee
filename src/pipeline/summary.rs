//! The counts of a run that has ended: [`Summary`].

use std::sync::Arc;

use crate::telemetry::{Counter, Counters};

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Summary {
    pub(crate) counters: Arc<Counters>,
    pub(crate) abandoned_runs: usize,
    pub(crate) parked: u64,
}

impl Summary {
    /// Everything that was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Deliveries received.
    pub fn received(&self) -> u64 {
        self.counters.get(Counter::Received)
    }

    /// Deliveries acked after their own run.
    pub fn handled(&self) -> u64 {
        self.counters.get(Counter::Handled)
    }

    /// Deliveries acked as duplicates, of completed or of dead keys.
    pub fn duplicates(&self) -> u64 {
        self.counters.get(Counter::Duplicates) + self.counters.get(Counter::DuplicatesOfDead)
    }

    /// Runs that failed and were repeated.
    pub fn retried(&self) -> u64 {
        self.counters.get(Counter::Retried)
    }

    /// Deliveries acked after their dead letter was confirmed.
    pub fn dead_lettered(&self) -> u64 {
        self.counters.get(Counter::DeadLettered)
    }

    /// Deliveries that were returned to the source.
    pub fn given_back(&self) -> u64 {
        self.counters.get(Counter::GivenBack)
    }

    /// Messages that failed for good and that a policy keeps in the source.
    pub fn parked(&self) -> u64 {
        self.parked
    }

    /// Runs that were still going when the drain deadline had passed: they were asked to stop, and dropped if they did not.
    /// What did not succeed even so is not acked.
    pub fn abandoned_runs(&self) -> usize {
        self.abandoned_runs
    }
}
