//! Messages that wait for their next attempt: [`DelayedMessage`], [`RetryDelays`].

use std::time::Duration;

use onceward::Message;
use onceward::adapter::Tag;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::in_flight::DeliveryKey;
use crate::delay_queues::DelayQueues;

/// The longest delay: a handler may ask for more than the clock can represent.
const LONGEST_HOLD: Duration = Duration::from_secs(365 * 24 * 3600);

/// What delayed retries need: queues on the broker, and a channel for messages held in this process.
pub(crate) struct RetryDelays {
    pub(crate) queues: DelayQueues,
    /// Receives messages whose delay in this process has ended.
    pub(crate) redeliveries: UnboundedSender<(Tag, Message)>,
}

/// A message that waits for its next attempt.
pub(crate) struct DelayedMessage {
    pub(crate) key: DeliveryKey,
    pub(crate) message: Message,
    /// The delay.
    pub(crate) after: Duration,
}

impl DelayedMessage {
    /// When the delay ends, if it started at `started`.
    pub(crate) fn due(&self, started: Instant) -> Instant {
        started.checked_add(self.after).unwrap_or(started + LONGEST_HOLD)
    }
}
