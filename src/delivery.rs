//! One hand-over of a message by a broker: [`Delivery`], its [`Tag`], and how it may be settled.

use std::time::Duration;

use crate::message::Message;
pub use crate::tag::Tag;

/// One hand-over of a message by a broker. The same message may be delivered many times.
///
/// It is a plain value: its receiver settles it through [`Acker::settle`](crate::adapter::Acker::settle), by its tag. A
/// pipeline makes a receipt of each tag, so that a delivery is settled exactly once, and abandoned if it is dropped.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Names the delivery in settlements.
    pub tag: Tag,
}

/// How a delivery ends.
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
    /// It was not processed (shutdown, a dropped pipeline): give it back at once.
    Abandon,
}
