//! Configuration of a RabbitMQ source: [`RabbitmqConfig`].

use std::ops::RangeInclusive;
use std::time::Duration;

use onceward::{Error, OwnHeaders};

use crate::connection::endpoint::RabbitmqEndpoint;
use crate::delay_queues::delay_steps::SUFFIX_BYTES;
use crate::error;

/// Configuration of a [`RabbitmqConsumer`](crate::RabbitmqConsumer).
///
/// ```
/// # use onceward_rabbitmq::RabbitmqConfig;
/// let mut config = RabbitmqConfig::new("amqps://user:password@rabbit.example:5671/%2f", "orders");
/// config.queue.prefetch = 200;
/// config.endpoint.ca_file = None;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RabbitmqConfig {
    /// Address, credentials and connection limits.
    pub endpoint: RabbitmqEndpoint,
    /// The queue and how it is consumed.
    pub queue: RabbitmqQueueConfig,
}

impl RabbitmqConfig {
    /// The queue `queue` of the broker at `url`, with default options.
    pub fn new(url: impl Into<String>, queue: impl Into<String>) -> Self {
        Self { endpoint: RabbitmqEndpoint::new(url), queue: RabbitmqQueueConfig::new(queue) }
    }

    /// Validates the values and their combination.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the problem and the fix.
    pub fn check(&self) -> Result<(), Error> {
        self.endpoint.check()?;
        self.queue.check()
    }
}

/// A queue, how it is consumed, and facts about it that AMQP does not report but the guarantees depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RabbitmqQueueConfig {
    /// The name of the queue, 1 to 255 bytes. It must exist.
    pub name: String,
    /// The most unacknowledged messages, from 1 to 65535; default 500. They are held in memory: this many of the largest
    /// messages must fit. Very small values are slow on quorum queues.
    pub prefetch: u16,
    /// True for a queue with `x-single-active-consumer`: only then does the broker keep the order across workers.
    /// Default false.
    pub single_active_consumer: bool,
    /// The broker's `consumer_timeout`, after which it closes a channel with an unacknowledged delivery; default 30m,
    /// which is RabbitMQ's default. `None`: the timeout is disabled.
    pub ack_timeout: Option<Duration>,
    /// The queue's `delivery-limit`: after this many returns the broker drops or dead-letters a message. Default
    /// `None`: unknown. Quorum queues have 20 by default since RabbitMQ 4.0.
    pub delivery_limit: Option<u32>,
    /// The shortest retry delay that is spent in a delay queue on the broker; from 100ms to 1d. `None` (default): all
    /// delays are spent in this process with the message unacknowledged, which the ack timeout must allow.
    ///
    /// The queues are declared as `NAME.wait.DELAYms`, quorum, one for each delay in use (rounded up by at most half,
    /// at most 43 h). The user needs the rights to configure and write them, and RabbitMQ must be 3.10 or later. A
    /// delayed message loses its place in the queue.
    pub wait_queues_from: Option<Duration>,
    /// Whose `onceward-` headers are trusted, and the secret that seals copies in delay queues: the same as the
    /// pipeline's. By default no sender's; exchange, routing key, user id and expiration are then those of the last
    /// delivery, which has none of them after a delay or a redrive.
    pub own_headers: OwnHeaders,
    /// How long an acknowledgement waits behind an unsettled message, so that one frame can acknowledge many. It delays
    /// nothing else. 0 to 1 s; default 5 ms.
    pub ack_delay: Duration,
}

impl RabbitmqQueueConfig {
    /// The range of [`prefetch`](Self::prefetch).
    pub const PREFETCH: RangeInclusive<u16> = 1..=65_535;
    /// The range of [`wait_queues_from`](Self::wait_queues_from).
    pub const WAIT_QUEUES_FROM: RangeInclusive<Duration> =
        Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
    /// The default of [`ack_timeout`](Self::ack_timeout).
    pub const DEFAULT_ACK_TIMEOUT: Duration = Duration::from_secs(30 * 60);

    /// The queue `name`, with default options.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            prefetch: 500,
            single_active_consumer: false,
            ack_timeout: Some(Self::DEFAULT_ACK_TIMEOUT),
            delivery_limit: None,
            wait_queues_from: None,
            own_headers: OwnHeaders::default(),
            ack_delay: Duration::from_millis(5),
        }
    }

    /// Validates the values and their combination.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the problem and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |what: &'static str| Err(error::config("consume a RabbitMQ queue", what));
        if self.name.is_empty() || self.name.len() > 255 {
            return invalid("the queue name must have 1 to 255 bytes");
        }
        if !Self::PREFETCH.contains(&self.prefetch) {
            return invalid("prefetch = 0 disables the limit, and memory would be unbounded; set 1 to 65535");
        }
        if self.ack_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return invalid("ack_timeout must be more than 0; set the broker's consumer_timeout, or none");
        }
        if self.delivery_limit == Some(0) {
            return invalid(
                "with a delivery limit of 0 the broker drops each requeued message; raise it on the queue",
            );
        }
        if let Some(shortest) = self.wait_queues_from {
            if self.single_active_consumer {
                return invalid(
                    "delay queues break the order that single_active_consumer keeps; set one of the two",
                );
            }
            if self.name.len() + SUFFIX_BYTES > 255 {
                return invalid(
                    "the names of its delay queues would exceed 255 bytes; shorten the queue name",
                );
            }
            if !Self::WAIT_QUEUES_FROM.contains(&shortest) {
                return invalid("wait_queues_from must be 100 ms to 1 d");
            }
        }
        if self.ack_delay > Duration::from_secs(1) {
            return invalid("ack_delay must be at most 1 s");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_values_are_refused() {
        let mut config = RabbitmqConfig::new("amqp://h", "orders");
        assert!(config.check().is_ok());
        config.endpoint.url = "http://h".into();
        assert!(config.check().is_err());
        for invalidate in [
            (|queue| queue.name.clear()) as fn(&mut RabbitmqQueueConfig),
            |queue| queue.name = "q".repeat(256),
            |queue| queue.prefetch = 0,
            |queue| queue.ack_timeout = Some(Duration::ZERO),
            |queue| queue.delivery_limit = Some(0),
            |queue| queue.ack_delay = Duration::from_secs(2),
            |queue| queue.wait_queues_from = Some(Duration::from_millis(99)),
            |queue| queue.wait_queues_from = Some(Duration::from_secs(24 * 3600 + 1)),
            |queue| {
                queue.wait_queues_from = Some(Duration::from_secs(1));
                queue.single_active_consumer = true;
            },
            |queue| {
                queue.wait_queues_from = Some(Duration::from_secs(1));
                queue.name = "q".repeat(250);
            },
        ] {
            let mut queue = RabbitmqQueueConfig::new("orders");
            assert!(queue.check().is_ok());
            invalidate(&mut queue);
            assert!(queue.check().is_err());
        }
    }
}
