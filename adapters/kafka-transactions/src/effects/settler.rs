//! Settles and counts processed deliveries: [`Settler`].

use std::sync::Arc;
use std::time::Duration;

use onceward::adapter::{Acker, Delivery, Settlement, Tag};
use tokio::time::Instant;

use crate::effects::partition_queues::PartitionQueues;
use crate::effects::partition_worker::RecordOutcome;
use crate::effects::summary::EffectsSummary;

/// Settles and counts processed deliveries.
pub(super) struct Settler {
    acker: Arc<dyn Acker>,
    pub(super) summary: EffectsSummary,
}

impl Settler {
    pub(super) fn new(acker: Arc<dyn Acker>) -> Self {
        Self { acker, summary: EffectsSummary::default() }
    }

    /// Settles a part, and ends it in the queues.
    pub(super) async fn settle_part(
        &mut self,
        queues: &mut PartitionQueues,
        outcomes: Vec<RecordOutcome>,
        part: Vec<Delivery>,
    ) {
        let epoch = part.first().map(|delivery| delivery.tag.epoch);
        let (mut settlements, mut abandoned) = (Vec::with_capacity(part.len()), Vec::new());
        for (outcome, delivery) in outcomes.into_iter().zip(part) {
            let count = match outcome {
                RecordOutcome::Committed => &mut self.summary.records,
                RecordOutcome::AlreadyCommitted => &mut self.summary.known,
                RecordOutcome::Duplicate => &mut self.summary.copies,
                RecordOutcome::Rejected => &mut self.summary.rejected,
                RecordOutcome::DeadLettered => &mut self.summary.dead_lettered,
                RecordOutcome::Abandoned => {
                    abandoned.push(delivery);
                    continue;
                }
            };
            *count += 1;
            settlements.push((delivery.tag, Settlement::Ack));
        }
        if let Some(epoch) = epoch {
            if !abandoned.is_empty() {
                abandoned.extend(queues.close(epoch));
            }
            queues.end_part(epoch, Instant::now());
        }
        self.settle(settlements, abandoned).await;
    }

    /// Gives back deliveries whose partition has another owner.
    pub(super) async fn give_back(&self, abandoned: Vec<Delivery>) {
        self.settle(Vec::new(), abandoned).await;
    }

    async fn settle(&self, mut settlements: Vec<(Tag, Settlement)>, abandoned: Vec<Delivery>) {
        let retry = Settlement::Retry { after: Duration::from_secs(1) };
        settlements.extend(abandoned.iter().map(|delivery| (delivery.tag, retry)));
        // A settlement may be too late: the position is in the database.
        let _ = self.acker.settle(&settlements).await;
    }
}
