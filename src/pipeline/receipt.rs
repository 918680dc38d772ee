//! The duty to settle a delivery exactly once: [`Receipt`], and the queue of settlements to be flushed.

use parking_lot::Mutex;
use std::sync::Arc;

use tokio::sync::Notify;
use tracing::Span;

use crate::delivery::{Settlement, Tag};
use crate::telemetry::TRACE_TARGET;

/// The duty to settle one delivery, exactly once: settling takes the receipt, so that doing it twice does not compile.
/// Dropping it enqueues [`Settlement::Abandon`]: the broker delivers the message again.
#[must_use = "dropping a receipt gives the message back to the broker"]
#[derive(Debug)]
pub(crate) struct Receipt {
    tag: Tag,
    queue: Option<Arc<SettleQueue>>,
    /// The span of the delivery, until it is settled; `None` costs less than [`Span::none`].
    span: Option<Span>,
}

impl Receipt {
    /// Enqueues the settlement. It never waits; the settler flushes the queue in batches.
    pub(crate) fn settle(mut self, settlement: Settlement) {
        if let Some(queue) = self.queue.take() {
            queue.push(self.tag, settlement, self.span());
        }
    }

    /// Adds the settlement to a batch, which enqueues it with others.
    pub(crate) fn settle_in(mut self, batch: &mut SettleBatch, settlement: Settlement) {
        if let Some(queue) = self.queue.take() {
            batch.settlements.push(self.tag, settlement, self.span());
            // All receipts of a pipeline have one queue.
            batch.queue.get_or_insert(queue);
        }
    }

    pub(crate) fn set_span(&mut self, span: Option<Span>) {
        self.span = span;
    }

    /// The span of the delivery, if it has one.
    pub(crate) fn span(&self) -> Option<&Span> {
        self.span.as_ref()
    }

    /// The adapter's name for the delivery.
    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.push(self.tag, Settlement::Abandon, self.span());
        }
    }
}

/// Settlements, with the spans that end when the broker has them.
#[derive(Debug, Default)]
pub(crate) struct Settlements {
    pub(crate) items: Vec<(Tag, Settlement)>,
    pub(crate) spans: Vec<Span>,
}

impl Settlements {
    fn push(&mut self, tag: Tag, settlement: Settlement, delivery: Option<&Span>) {
        self.items.push((tag, settlement));
        if let Some(delivery) = delivery {
            self.spans.push(tracing::info_span!(target: TRACE_TARGET, parent: delivery, "settle"));
        }
    }
}

/// Settlements that enter the queue together, when this is dropped.
#[derive(Debug)]
pub(crate) struct SettleBatch {
    queue: Option<Arc<SettleQueue>>,
    settlements: Settlements,
}

impl SettleBatch {
    pub(crate) fn with_capacity(count: usize) -> Self {
        let settlements = Settlements { items: Vec::with_capacity(count), spans: Vec::new() };
        Self { queue: None, settlements }
    }
}

impl Drop for SettleBatch {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.append(std::mem::take(&mut self.settlements));
        }
    }
}

/// Where receipts leave their settlements and the pipeline's settle task takes them from, in batches.
/// It is bounded by the deliveries in flight: each leaves one entry.
#[derive(Debug, Default)]
pub(crate) struct SettleQueue {
    waiting: Mutex<Settlements>,
    arrived: Notify,
}

impl SettleQueue {
    /// An empty queue.
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A receipt for the delivery `tag`. Called once for each delivery.
    pub(crate) fn receipt(self: &Arc<Self>, tag: Tag) -> Receipt {
        Receipt { tag, queue: Some(Arc::clone(self)), span: None }
    }

    fn push(&self, tag: Tag, settlement: Settlement, delivery: Option<&Span>) {
        let mut waiting = self.waiting.lock();
        waiting.push(tag, settlement, delivery);
        if waiting.items.len() == 1 {
            self.arrived.notify_one();
        }
    }

    fn append(&self, mut batch: Settlements) {
        let mut waiting = self.waiting.lock();
        if waiting.items.is_empty() {
            *waiting = batch;
            self.arrived.notify_one();
        } else {
            waiting.items.append(&mut batch.items);
            waiting.spans.append(&mut batch.spans);
        }
    }

    /// Takes all settlements that wait; empty if no settlement does.
    pub(crate) fn take(&self) -> Settlements {
        std::mem::take(&mut self.waiting.lock())
    }

    /// Waits until there is at least one settlement and takes all of them.
    ///
    /// # Cancel safety
    /// A dropped call takes nothing.
    pub(crate) async fn next(&self) -> Settlements {
        loop {
            let taken = self.take();
            if !taken.items.is_empty() {
                return taken;
            }
            self.arrived.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_leaves_its_settlement_in_the_queue_and_a_dropped_one_is_abandoned() {
        let queue = SettleQueue::new();
        let [first, second] = [1, 2].map(|number| Tag { epoch: 7, number });
        let (settled, dropped) = (queue.receipt(first), queue.receipt(second));
        drop(dropped);
        settled.settle(Settlement::Ack);
        assert_eq!(queue.take().items, [(second, Settlement::Abandon), (first, Settlement::Ack)]);
        assert_eq!(queue.take().items, []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_enters_the_queue_behind_what_waits_when_it_is_dropped() {
        let queue = SettleQueue::new();
        let tags = [1, 2, 3].map(|number| Tag { epoch: 7, number });
        let [first, second, third] = tags.map(|tag| queue.receipt(tag));
        let mut batch = SettleBatch::with_capacity(2);
        second.settle_in(&mut batch, Settlement::Ack);
        first.settle(Settlement::Reject);
        third.settle_in(&mut batch, Settlement::Reject);
        assert_eq!(queue.take().items, [(tags[0], Settlement::Reject)]);
        let mut next = std::pin::pin!(queue.next());
        // The wake-up for what was taken here.
        assert!(futures_util::poll!(&mut next).is_pending() && futures_util::poll!(&mut next).is_pending());
        let settler = async { next.await.items };
        let settled = async { drop(batch) };
        let limit = std::time::Duration::from_secs(1);
        let (items, ()) = tokio::join!(tokio::time::timeout(limit, settler), settled);
        assert_eq!(
            items.unwrap(),
            [(tags[1], Settlement::Ack), (tags[2], Settlement::Reject)],
            "the settler is woken"
        );
        let mut batch = SettleBatch::with_capacity(0);
        let receipts = tags.map(|tag| queue.receipt(tag));
        for receipt in receipts {
            let settlement = Settlement::Retry { after: std::time::Duration::ZERO };
            receipt.settle_in(&mut batch, settlement);
        }
        queue.receipt(tags[0]).settle(Settlement::Ack);
        drop(batch);
        assert_eq!(queue.take().items.len(), 4);
        drop(SettleBatch::with_capacity(3));
        assert_eq!(queue.take().items, []);
    }
}
