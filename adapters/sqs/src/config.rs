//! What an SQS source consumes and how: [`SqsConfig`].

use std::time::Duration;

use onceward::{Error, OwnHeaders};

use crate::endpoint::Endpoint;
use crate::error;

/// The longest visibility that SQS grants a delivery, extensions included.
pub(crate) const LONGEST_VISIBILITY: Duration = Duration::from_secs(12 * 3600);

/// What an [`SqsConsumer`](crate::SqsConsumer) consumes and how.
///
/// ```
/// # use onceward_sqs::SqsConfig;
/// let mut config = SqsConfig::new("https://sqs.eu-west-1.amazonaws.com/123456789012/orders");
/// config.queue.pollers = 8;
/// config.endpoint.region = Some("eu-west-1".into());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqsConfig {
    /// Where SQS is.
    pub endpoint: Endpoint,
    /// The queue, and how it is consumed.
    pub queue: QueueConfig,
}

impl SqsConfig {
    /// The queue at `url`, with the defaults of [`Endpoint`] and [`QueueConfig`].
    pub fn new(url: impl Into<String>) -> Self {
        Self { endpoint: Endpoint::default(), queue: QueueConfig::new(url) }
    }

    /// Checks that the values can be used.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming what is wrong and the fix.
    pub fn check(&self) -> Result<(), Error> {
        self.endpoint.check()?;
        self.queue.check()
    }
}

/// A queue and how it is consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueConfig {
    /// The URL of the queue. It must exist. A name that ends in `.fifo` is a FIFO queue's.
    pub url: String,
    /// For how long a received message stays ours without a word; 1 s to 12 h in whole seconds, default 30 s. It is
    /// extended as long as the message is held, so it bounds only how long a dead worker's messages wait.
    pub visibility: Duration,
    /// How long a receive waits for messages; 0 to 20 s in whole seconds, default 20 s.
    pub wait: Duration,
    /// The most receives at a time, from 1 to 64; default 4. As many are used as find full batches.
    pub pollers: usize,
    /// Takes the message out of the envelope that SNS puts around it; a message without one is malformed then.
    /// Default false.
    pub unwrap_sns: bool,
    /// Whose `onceward-` headers are believed: the same as the pipeline's. By default nobody's: then the id of a letter or of
    /// an outbox message is that which SQS gave it.
    pub own_headers: OwnHeaders,
    /// How long a delete or a change of visibility may take, repeats included; 100 ms to 1 min, default 4 s. It should be
    /// less than the pipeline's store timeout, so that items of a batch fail singly.
    pub call_timeout: Duration,
}

impl QueueConfig {
    /// The queue at `url`, with the defaults.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            visibility: Duration::from_secs(30),
            wait: Duration::from_secs(20),
            pollers: 4,
            unwrap_sns: false,
            own_headers: OwnHeaders::default(),
            call_timeout: Duration::from_secs(4),
        }
    }

    /// True for a FIFO queue.
    pub fn is_fifo(&self) -> bool {
        self.url.ends_with(".fifo")
    }

    /// Checks that the values can be used.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming what is wrong and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |what: &'static str| Err(error::config("consume an SQS queue", what));
        if !(self.url.starts_with("https://") || self.url.starts_with("http://")) {
            return wrong("the queue is named by its URL, as the console and GetQueueUrl show it");
        }
        let whole = |duration: Duration| duration.subsec_nanos() == 0;
        if self.visibility.is_zero() || self.visibility > LONGEST_VISIBILITY || !whole(self.visibility) {
            return wrong("visibility must be 1 s to 12 h, in whole seconds");
        }
        if self.wait > Duration::from_secs(20) || !whole(self.wait) {
            return wrong("wait must be 0 to 20 s, in whole seconds");
        }
        if !(1..=64).contains(&self.pollers) {
            return wrong("pollers must be 1 to 64");
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&self.call_timeout) {
            return wrong("call_timeout must be 100 ms to 1 min");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_cannot_be_used_are_refused() {
        for spoil in [
            (|queue| queue.url = "orders".into()) as fn(&mut QueueConfig),
            |queue| queue.visibility = Duration::ZERO,
            |queue| queue.visibility = Duration::from_millis(1500),
            |queue| queue.visibility = Duration::from_secs(12 * 3600 + 1),
            |queue| queue.wait = Duration::from_secs(21),
            |queue| queue.pollers = 0,
            |queue| queue.call_timeout = Duration::ZERO,
        ] {
            let mut queue = QueueConfig::new("http://127.0.0.1/queue/orders");
            assert!(queue.check().is_ok() && !queue.is_fifo());
            spoil(&mut queue);
            assert!(queue.check().is_err(), "{queue:?}");
        }
    }
}
