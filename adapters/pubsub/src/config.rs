//! Configuration of a Pub/Sub source: [`PubsubConfig`].

use std::ops::RangeInclusive;
use std::time::Duration;

use onceward::{Error, OwnHeaders};

use crate::connection::endpoint::PubsubEndpoint;
use crate::error;

/// Configuration of a [`PubsubConsumer`](crate::PubsubConsumer).
///
/// ```
/// # use onceward_pubsub::PubsubConfig;
/// let mut config = PubsubConfig::new("orders");
/// config.endpoint.project = Some("shop".into());
/// config.subscription.ordered = true;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PubsubConfig {
    /// Address of Pub/Sub, project and credentials.
    pub endpoint: PubsubEndpoint,
    /// The subscription and how it is consumed.
    pub subscription: PubsubSubscriptionConfig,
}

impl PubsubConfig {
    /// The subscription `name` (`projects/PROJECT/subscriptions/NAME`, or `NAME` in the endpoint's project), with default
    /// options.
    pub fn new(name: impl Into<String>) -> Self {
        Self { endpoint: PubsubEndpoint::default(), subscription: PubsubSubscriptionConfig::new(name) }
    }

    /// Validates the values.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the problem and the fix.
    pub fn check(&self) -> Result<(), Error> {
        self.endpoint.check()?;
        self.subscription.check()
    }
}

/// A subscription and how it is consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PubsubSubscriptionConfig {
    /// The subscription's name. It must exist, and deliver by pull.
    pub name: String,
    /// The subscription has message ordering enabled: messages of one ordering key are delivered in order. Default
    /// false. The value is compared with the subscription where that can be read.
    pub ordered: bool,
    /// The ack deadline of received messages; from 10s to 10m in whole seconds, default 30s. It is extended while a
    /// message is held, so it only bounds how long messages of a crashed worker wait.
    pub ack_deadline: Duration,
    /// The most messages held at once, between their receipt and their settlement; from 1 to 100000,
    /// default 1000.
    pub max_outstanding_messages: u32,
    /// The most bytes held at once; at least 1B, default 100MiB. A larger message is received alone.
    pub max_outstanding_bytes: u64,
    /// After this long without a message the connection is replaced, since the client library does not notice one that
    /// died silently; from 1s to 1h, default 2m. Without effect for a client of the caller.
    pub reconnect_after: Duration,
    /// Whose `onceward-` headers are trusted: the same as the pipeline's. By default no sender's; the id of a dead letter
    /// or an outbox message is then the one that Pub/Sub assigned.
    pub own_headers: OwnHeaders,
    /// The timeout of a confirmed ack, and of the release of messages when the consumer is closed; 100 ms to 1 min,
    /// default 4 s. It should be shorter than the pipeline's store timeout.
    pub call_timeout: Duration,
}

impl PubsubSubscriptionConfig {
    /// The range of [`ack_deadline`](Self::ack_deadline).
    pub const ACK_DEADLINE: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(600);
    /// The default of [`ack_deadline`](Self::ack_deadline).
    pub const DEFAULT_ACK_DEADLINE: Duration = Duration::from_secs(30);
    /// The range of [`max_outstanding_messages`](Self::max_outstanding_messages).
    pub const MAX_OUTSTANDING_MESSAGES: RangeInclusive<u32> = 1..=100_000;
    /// The default of [`max_outstanding_messages`](Self::max_outstanding_messages).
    pub const DEFAULT_MAX_OUTSTANDING_MESSAGES: u32 = 1_000;
    /// The range of [`max_outstanding_bytes`](Self::max_outstanding_bytes).
    pub const MAX_OUTSTANDING_BYTES: RangeInclusive<u64> = 1..=u64::MAX;
    /// The default of [`max_outstanding_bytes`](Self::max_outstanding_bytes).
    pub const DEFAULT_MAX_OUTSTANDING_BYTES: u64 = 100 << 20;
    /// The range of [`reconnect_after`](Self::reconnect_after).
    pub const RECONNECT_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
    /// The default of [`reconnect_after`](Self::reconnect_after).
    pub const DEFAULT_RECONNECT_AFTER: Duration = Duration::from_secs(120);
    /// The range of [`call_timeout`](Self::call_timeout).
    pub const CALL_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

    /// The subscription `name`, with default options.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ordered: false,
            ack_deadline: Self::DEFAULT_ACK_DEADLINE,
            max_outstanding_messages: Self::DEFAULT_MAX_OUTSTANDING_MESSAGES,
            max_outstanding_bytes: Self::DEFAULT_MAX_OUTSTANDING_BYTES,
            reconnect_after: Self::DEFAULT_RECONNECT_AFTER,
            own_headers: OwnHeaders::default(),
            call_timeout: Duration::from_secs(4),
        }
    }

    /// Validates the values.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the problem and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |what: &'static str| Err(error::config("consume a Pub/Sub subscription", what));
        if self.name.is_empty() {
            return invalid("it has no name; write projects/PROJECT/subscriptions/NAME");
        }
        if !Self::ACK_DEADLINE.contains(&self.ack_deadline) || self.ack_deadline.subsec_nanos() > 0 {
            return invalid("ack_deadline must be 10 s to 10 min, in whole seconds");
        }
        if !Self::MAX_OUTSTANDING_MESSAGES.contains(&self.max_outstanding_messages) {
            return invalid("max_outstanding_messages must be 1 to 100000");
        }
        if !Self::MAX_OUTSTANDING_BYTES.contains(&self.max_outstanding_bytes) {
            return invalid("max_outstanding_bytes must be at least 1");
        }
        if !Self::RECONNECT_AFTER.contains(&self.reconnect_after) {
            return invalid("reconnect_after must be 1 s to 1 h");
        }
        if !Self::CALL_TIMEOUT.contains(&self.call_timeout) {
            return invalid("call_timeout must be 100 ms to 1 min");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_values_are_refused() {
        for invalidate in [
            (|subscription| subscription.name.clear()) as fn(&mut PubsubSubscriptionConfig),
            |subscription| subscription.ack_deadline = Duration::from_secs(9),
            |subscription| subscription.ack_deadline = Duration::from_millis(10_500),
            |subscription| subscription.ack_deadline = Duration::from_secs(601),
            |subscription| subscription.max_outstanding_messages = 0,
            |subscription| subscription.max_outstanding_bytes = 0,
            |subscription| subscription.reconnect_after = Duration::ZERO,
            |subscription| subscription.call_timeout = Duration::ZERO,
        ] {
            let mut subscription = PubsubSubscriptionConfig::new("orders");
            assert!(subscription.check().is_ok());
            invalidate(&mut subscription);
            assert!(subscription.check().is_err(), "{subscription:?}");
        }
    }
}
