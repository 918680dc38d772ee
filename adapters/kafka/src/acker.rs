//! Settles deliveries: what is acked moves its partition's watermark, what is to be retried comes again in place.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::{Acker, Error, Settled, Settlement, Tag};

use crate::shared::Shared;

/// The acker of a [`KafkaConsumer`](crate::KafkaConsumer). Offsets are committed by the poll thread, soon after; a
/// settlement for a partition that was taken away is too late.
pub(crate) struct KafkaAcker {
    pub(crate) shared: Arc<Shared>,
}

#[async_trait]
impl Acker for KafkaAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        self.shared.settle(batch).into_iter().map(Ok).collect()
    }
}
