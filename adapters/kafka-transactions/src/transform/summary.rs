//! The counts of a run of a transform: [`TransformSummary`].

use crate::transform::batch::TransformedBatch;

/// The counts of a run of a [`KafkaTransform`](crate::KafkaTransform).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransformSummary {
    /// Consumed records whose transaction was committed.
    pub records: u64,
    /// Records produced for them, without dead letters.
    pub produced: u64,
    /// Records produced to the dead-letter topic instead.
    pub dead_lettered: u64,
    /// Transactions committed.
    pub transactions: u64,
    /// Aborted transactions; their records ran again.
    pub aborted: u64,
    /// Unanswered commits; the group's offset showed their outcome.
    pub unknown: u64,
}

impl TransformSummary {
    /// Counts a committed batch.
    pub(super) fn count(&mut self, batch: &TransformedBatch) {
        self.transactions += 1;
        self.records += batch.records.len() as u64;
        for own in &batch.produced {
            let count = if own.is_dead { &mut self.dead_lettered } else { &mut self.produced };
            *count += own.outgoing.len() as u64;
        }
    }
}
