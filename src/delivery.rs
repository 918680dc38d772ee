//! One hand-over of a message by a broker, and the duty to settle it once: [`Delivery`], [`Receipt`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::message::Message;

/// One hand-over of a message by a broker. The same message may come in many deliveries.
#[derive(Debug)]
pub struct Delivery {
    /// What was delivered.
    pub message: Message,
    /// The duty to settle it.
    pub receipt: Receipt,
}

/// The adapter's own name for a delivery. `epoch` tells channels, assignments or handles apart: a tag of an old epoch
/// settles nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// Channel epoch, assignment generation and the like.
    pub epoch: u64,
    /// Delivery tag, offset, slot of a receipt handle.
    pub number: u64,
}

/// What the broker shall be told of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlement {
    /// The message is done with: ack, delete, commit.
    Ack,
    /// Deliver it again, not before `after` where the broker can wait.
    Retry {
        /// The delay.
        after: Duration,
    },
    /// Refuse it in the broker's way: a broker with a dead-letter rule of its own applies it, another drops the message.
    Reject,
    /// The receipt was dropped unsettled (shutdown, a dropped pipeline): give it back at once.
    Abandon,
}

/// The duty to settle one delivery, exactly once: settling takes the receipt, so that doing it twice does not compile.
/// Dropping it enqueues [`Settlement::Abandon`]: the broker delivers the message again.
///
/// ```compile_fail
/// # use onceward::{Receipt, Settlement};
/// fn twice(receipt: Receipt) {
///     receipt.settle(Settlement::Ack);
///     receipt.settle(Settlement::Ack);
/// }
/// ```
#[must_use = "dropping a receipt gives the message back to the broker"]
#[derive(Debug)]
pub struct Receipt {
    tag: Tag,
    queue: Option<Arc<SettleQueue>>,
}

impl Receipt {
    /// Enqueues what the broker shall be told. It never waits; the acker flushes the queue in batches.
    pub fn settle(mut self, settlement: Settlement) {
        if let Some(queue) = self.queue.take() {
            queue.push(self.tag, settlement);
        }
    }

    /// The adapter's name for the delivery.
    pub fn tag(&self) -> Tag {
        self.tag
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.push(self.tag, Settlement::Abandon);
        }
    }
}

/// Where receipts leave their settlements and the pipeline's settle task takes them from, in batches.
/// It is bounded by the deliveries in flight: each leaves one entry.
#[derive(Debug, Default)]
pub struct SettleQueue {
    waiting: Mutex<Vec<(Tag, Settlement)>>,
    arrived: Notify,
}

impl SettleQueue {
    /// An empty queue.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A receipt for the delivery `tag`. Adapters call this once for each delivery.
    pub fn receipt(self: &Arc<Self>, tag: Tag) -> Receipt {
        Receipt { tag, queue: Some(Arc::clone(self)) }
    }

    fn push(&self, tag: Tag, settlement: Settlement) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push((tag, settlement));
        if waiting.len() == 1 {
            self.arrived.notify_one();
        }
    }

    /// Takes all settlements that wait; empty if there are none.
    pub fn take(&self) -> Vec<(Tag, Settlement)> {
        std::mem::take(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until there is at least one settlement and takes all of them.
    ///
    /// # Cancel safety
    /// A dropped call takes nothing.
    pub async fn next(&self) -> Vec<(Tag, Settlement)> {
        loop {
            let taken = self.take();
            if !taken.is_empty() {
                return taken;
            }
            self.arrived.notified().await;
        }
    }
}
