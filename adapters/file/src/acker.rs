//! Settles lines: acks advance the saved offset, retries schedule a redelivery.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::Error;
use onceward::adapter::{Acker, Settled, Settlement, Tag};
use tokio::time::Instant;

use crate::progress::ProgressHandle;

/// The acker of a [`FileConsumer`](crate::FileConsumer).
///
/// Before `settle` returns, the offset before which every line is settled is saved, once for the whole batch. If that fails,
/// the acks of the batch fail with the error, and may be repeated.
pub(crate) struct FileAcker {
    pub(crate) shared: Arc<ProgressHandle>,
}

#[async_trait]
impl Acker for FileAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        let (noted, wake) = {
            let mut progress = self.shared.lock();
            let now = Instant::now();
            let noted: Vec<_> =
                batch.iter().map(|(tag, settlement)| progress.settle(*tag, *settlement, now)).collect();
            (noted, progress.unsettled() == 0 || !progress.has_no_pending_redelivery())
        };
        if wake {
            self.shared.changed.notify_one();
        }
        let saved = self.shared.save().await;
        noted
            .into_iter()
            .zip(batch)
            .map(|(noted, (_, settlement))| match (&saved, noted, settlement) {
                (Err(error), Settled::Done, Settlement::Ack | Settlement::Reject) => Err(error.clone()),
                _ => Ok(noted),
            })
            .collect()
    }
}
