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
        waiting.items.push((tag, settlement));
        if let Some(delivery) = delivery {
            waiting.spans.push(tracing::info_span!(target: TRACE_TARGET, parent: delivery, "settle"));
        }
        if waiting.items.len() == 1 {
            self.arrived.notify_one();
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
}
