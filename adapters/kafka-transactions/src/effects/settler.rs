//! Settles and counts processed deliveries: [`Settler`].

use std::sync::Arc;
use std::time::Duration;

use onceward::{Acker, Delivery, SettleQueue, Settlement};

use crate::effects::partition_queues::PartitionQueues;
use crate::effects::partition_worker::RecordOutcome;
use crate::effects::summary::EffectsSummary;

/// Settles and counts processed deliveries.
pub(super) struct Settler {
    acker: Arc<dyn Acker>,
    queue: Arc<SettleQueue>,
    pub(super) summary: EffectsSummary,
}

impl Settler {
    pub(super) fn new(acker: Arc<dyn Acker>, queue: Arc<SettleQueue>) -> Self {
        Self { acker, queue, summary: EffectsSummary::default() }
    }

    /// Settles a part, and ends it in the queues.
    pub(super) async fn settle_part(
        &mut self,
        queues: &mut PartitionQueues,
        ends: Vec<RecordOutcome>,
        part: Vec<Delivery>,
    ) {
        let epoch = part.first().map(|delivery| delivery.receipt.tag().epoch);
        let mut left = Vec::new();
        for (end, delivery) in ends.into_iter().zip(part) {
            let count = match end {
                RecordOutcome::Committed => &mut self.summary.records,
                RecordOutcome::AlreadyCommitted => &mut self.summary.known,
                RecordOutcome::Duplicate => &mut self.summary.copies,
                RecordOutcome::Rejected => &mut self.summary.rejected,
                RecordOutcome::DeadLettered => &mut self.summary.dead_lettered,
                RecordOutcome::Abandoned => {
                    left.push(delivery);
                    continue;
                }
            };
            *count += 1;
            delivery.receipt.settle(Settlement::Ack);
        }
        if let Some(epoch) = epoch {
            if !left.is_empty() {
                left.extend(queues.close(epoch));
            }
            queues.end_part(epoch);
        }
        self.give_back(left).await;
    }

    /// Gives back deliveries whose partition has another owner.
    pub(super) async fn give_back(&self, left: Vec<Delivery>) {
        for delivery in left {
            delivery.receipt.settle(Settlement::Retry { after: Duration::from_secs(1) });
        }
        // A settlement may be too late: the position is in the database.
        let _ = self.acker.settle(&self.queue.take()).await;
    }
}
