//! Flushes settlements to the broker, in batches, and repeats those that failed.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::dispatch::Event;
use super::gather::bounded;
use super::shared::Shared;
use crate::consumer::{Acker, Settled};
use crate::delivery::{SettleQueue, Settlement, Tag};
use crate::failpoints::{self, Step};
use crate::telemetry::Counter;

/// Flushes until `finish` fires and the queue is empty. After `finish`, a settlement that fails is tried a few times
/// more and then left: the broker delivers the message again, and its key is known.
pub(crate) async fn flush_all<R>(
    shared: Arc<Shared<R>>,
    queue: Arc<SettleQueue>,
    acker: Arc<dyn Acker>,
    finish: CancellationToken,
) {
    loop {
        let batch = tokio::select! {
            biased;
            batch = queue.next() => batch,
            () = finish.cancelled() => {
                let rest = queue.take();
                if rest.is_empty() {
                    return;
                }
                rest
            }
        };
        let count = batch.len();
        flush(&shared, &*acker, batch, &finish).await;
        shared.tell(Event::Flushed(count));
    }
}

const LAST_TRIES: u32 = 3;

async fn flush<R>(
    shared: &Shared<R>,
    acker: &dyn Acker,
    mut batch: Vec<(Tag, Settlement)>,
    finish: &CancellationToken,
) {
    if shared.capabilities.heartbeat.is_some() {
        shared.heartbeat.let_go(batch.iter().map(|(tag, _)| *tag));
    }
    let mut tries = 0;
    loop {
        failpoints::hit(Step::AckSent);
        let limit = shared.config.store_timeout;
        let answers = bounded(limit, "settle deliveries", batch.len(), acker.settle(&batch)).await;
        failpoints::hit(Step::AckApplied);
        let mut open = Vec::new();
        for (item, answer) in batch.into_iter().zip(answers) {
            match answer {
                Ok(Settled::Done) => {}
                Ok(Settled::TooLate) => shared.count(Counter::SettledTooLate, 1),
                Err(error) if error.is_retryable() => {
                    shared.count(Counter::SettleErrors, 1);
                    tracing::debug!(?error, tag = ?item.0, "a settlement is repeated");
                    open.push(item);
                }
                Err(error) => {
                    shared.count(Counter::SettleErrors, 1);
                    tracing::warn!(?error, tag = ?item.0, "a delivery was not settled; the broker will deliver it again");
                }
            }
        }
        if open.is_empty() || (finish.is_cancelled() && tries >= LAST_TRIES) {
            return;
        }
        batch = open;
        let pause = shared.pause(Duration::from_millis(50), tries, Duration::from_secs(2));
        tries += 1;
        tokio::time::sleep(pause).await;
    }
}
