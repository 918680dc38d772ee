//! What a RabbitMQ source consumes and how: [`RabbitConfig`].

use std::time::Duration;

use onceward::{Error, OwnHeaders};

use crate::endpoint::Endpoint;
use crate::error;
use crate::wait::SUFFIX_BYTES;

/// What a [`RabbitConsumer`](crate::RabbitConsumer) consumes and how.
///
/// ```
/// # use onceward_rabbitmq::RabbitConfig;
/// let mut config = RabbitConfig::new("amqps://user:password@rabbit.example:5671/%2f", "orders");
/// config.queue.prefetch = 200;
/// config.endpoint.ca_file = None;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RabbitConfig {
    /// The broker.
    pub endpoint: Endpoint,
    /// The queue, and what is known of it.
    pub queue: QueueConfig,
}

impl RabbitConfig {
    /// The queue `queue` of the broker at `url`, with the defaults of [`Endpoint`] and [`QueueConfig`].
    pub fn new(url: impl Into<String>, queue: impl Into<String>) -> Self {
        Self { endpoint: Endpoint::new(url), queue: QueueConfig::new(queue) }
    }

    /// Checks that the values can be used and go together.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming what is wrong and the fix.
    pub fn check(&self) -> Result<(), Error> {
        self.endpoint.check()?;
        self.queue.check()
    }
}

/// A queue, how it is consumed, and what cannot be asked of the broker over AMQP but must be known to keep the promises.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueConfig {
    /// The name of the queue. It must exist.
    pub name: String,
    /// How many unacknowledged messages the broker may have with us, from 1 to 65,535; default 500. They are held in
    /// memory: this many of the largest messages must fit. Very small values are slow on quorum queues.
    pub prefetch: u16,
    /// True for a queue with `x-single-active-consumer`: only then does the broker keep the order across workers.
    pub single_active_consumer: bool,
    /// After this long the broker closes a channel with an unacknowledged delivery (`consumer_timeout`); default 30 min, as
    /// RabbitMQ's. `None`: it was turned off.
    pub ack_timeout: Option<Duration>,
    /// The queue's `delivery-limit`: the broker drops or dead-letters a message after so many returns. Quorum queues have
    /// 20 by default since RabbitMQ 4.0.
    pub delivery_limit: Option<u32>,
    /// Lets messages that failed wait for their next attempt in queues of the broker's, if the delay is at least this long;
    /// 100 ms to 1 d. `None` (default): all wait in this process, unacknowledged, which the ack timeout must allow.
    ///
    /// The queues are declared as `NAME.wait.DELAYms`, quorum, one for each delay that occurs (rounded up, by half at most,
    /// and 43 h at most); the user needs the rights to configure and write them and RabbitMQ must be 3.10 or later. A
    /// message loses its place in the queue.
    pub wait_queues_from: Option<Duration>,
    /// Whose `onceward-` headers are believed, and what copies in wait queues are sealed with: the same as the pipeline's. By
    /// default nobody's: then exchange, routing key, user id and expiration are those of the last delivery, which after a wait
    /// or a redrive has none of them.
    pub own_headers: OwnHeaders,
    /// How long an acknowledgement that stands behind a message still being handled waits, so that one frame may speak for
    /// many. It delays nothing else. 0 to 1 s, default 5 ms.
    pub ack_delay: Duration,
}

impl QueueConfig {
    /// The queue `name`, with the defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            prefetch: 500,
            single_active_consumer: false,
            ack_timeout: Some(Duration::from_secs(30 * 60)),
            delivery_limit: None,
            wait_queues_from: None,
            own_headers: OwnHeaders::default(),
            ack_delay: Duration::from_millis(5),
        }
    }

    /// Checks that the values can be used.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming what is wrong and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |what: &'static str| Err(error::config("consume a RabbitMQ queue", what));
        if self.name.is_empty() || self.name.len() > 255 {
            return wrong("the queue's name must have 1 to 255 bytes");
        }
        if self.prefetch == 0 {
            return wrong("prefetch = 0 means no limit to RabbitMQ, and so none to memory; give 1 to 65535");
        }
        if self.ack_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return wrong("an ack timeout of 0 cannot be kept; give the broker's consumer_timeout, or none");
        }
        if self.delivery_limit == Some(0) {
            return wrong(
                "a delivery limit of 0 loses each message that is given back; raise it on the queue",
            );
        }
        if let Some(shortest) = self.wait_queues_from {
            if self.single_active_consumer {
                return wrong(
                    "wait queues give up the order that single_active_consumer is there to keep; choose one of the two",
                );
            }
            if self.name.len() + SUFFIX_BYTES > 255 {
                return wrong(
                    "the names of its wait queues would be longer than 255 bytes; shorten the queue's",
                );
            }
            if !(Duration::from_millis(100)..=Duration::from_secs(24 * 3600)).contains(&shortest) {
                return wrong(
                    "wait_queues_from must be from 100 ms to 1 d; shorter delays are not worth the way",
                );
            }
        }
        if self.ack_delay > Duration::from_secs(1) {
            return wrong("ack_delay must be 1 s at most");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_cannot_be_used_are_refused() {
        let mut config = RabbitConfig::new("amqp://h", "orders");
        assert!(config.check().is_ok());
        config.endpoint.url = "http://h".into();
        assert!(config.check().is_err());
        for spoil in [
            (|queue| queue.name.clear()) as fn(&mut QueueConfig),
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
            let mut queue = QueueConfig::new("orders");
            assert!(queue.check().is_ok());
            spoil(&mut queue);
            assert!(queue.check().is_err());
        }
    }
}
