//! Behaviour of the memory broker: [`Habits`].

use std::time::Duration;

/// How the broker behaves. Chances are per delivery or per settlement, from 0 to 1.
#[derive(Clone, Debug)]
pub struct Habits {
    /// The source ends when everything is delivered.
    pub finite: bool,
    /// The broker can wait before it delivers again.
    pub delayed_retry: bool,
    /// Partitions, at least 1. With more than one, each consumer's deliveries of a partition have an epoch of their own,
    /// partitions can be paused, and they can leave: see [`MemoryBroker::leave`](super::MemoryBroker::leave).
    pub partitions: u32,
    /// Unsettled deliveries are redelivered after this long, unless they are extended.
    pub visibility: Option<Duration>,
    /// Deliveries in one batch.
    pub batch: usize,
    /// The chance that a delivery is made twice.
    pub duplicate: f64,
    /// The chance that a settlement is applied but reported as failed.
    pub settle_reply_lost: f64,
    /// The chance that a settlement fails and is not applied.
    pub settle_fails: f64,
    /// The chance, at each receive, that the consumer's connection breaks: its unsettled deliveries are redelivered,
    /// and old tags are void.
    pub disconnect: f64,
    /// Decides all chances.
    pub seed: u64,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            finite: false,
            delayed_retry: false,
            partitions: 1,
            visibility: None,
            batch: 256,
            duplicate: 0.0,
            settle_reply_lost: 0.0,
            settle_fails: 0.0,
            disconnect: 0.0,
            seed: 0,
        }
    }
}
