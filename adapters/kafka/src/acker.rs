//! Settles deliveries: what is acked moves its partition's watermark, what is to be retried comes again in place.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::{Acker, Error, Settled, Settlement, Tag};

use crate::retry::Waiting;
use crate::shared::Shared;

/// The acker of a [`KafkaConsumer`](crate::KafkaConsumer). Offsets are committed by the poll thread, soon after; a
/// settlement for a partition that was taken away is too late.
pub(crate) struct KafkaAcker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) waiting: Option<Arc<Waiting>>,
}

impl KafkaAcker {
    /// `batch`, with what has a confirmed copy in a retry topic settled by that.
    async fn copied(&self, waiting: &Waiting, batch: &[(Tag, Settlement)]) -> Option<Vec<(Tag, Settlement)>> {
        let (indexes, copies): (Vec<_>, Vec<_>) = self.shared.copies(batch, waiting).into_iter().unzip();
        if copies.is_empty() {
            return None;
        }
        let mut batch = batch.to_vec();
        for (index, confirmed) in indexes.into_iter().zip(waiting.put(&copies).await) {
            if confirmed {
                batch[index].1 = Settlement::Ack;
            }
        }
        Some(batch)
    }
}

#[async_trait]
impl Acker for KafkaAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        let copied = match &self.waiting {
            Some(waiting) => self.copied(waiting, batch).await,
            None => None,
        };
        self.shared.settle(copied.as_deref().unwrap_or(batch)).into_iter().map(Ok).collect()
    }
}
