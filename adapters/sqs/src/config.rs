//! Configuration of an SQS source: [`SqsConfig`].

use std::ops::RangeInclusive;
use std::time::Duration;

use onceward::{Error, OwnHeaders};

use crate::connection::endpoint::SqsEndpoint;
use crate::error;

/// The longest visibility of a delivery in SQS, extensions included.
pub(crate) const LONGEST_VISIBILITY: Duration = Duration::from_secs(12 * 3600);

/// Configuration of an [`SqsConsumer`](crate::SqsConsumer).
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
    /// Region and address of SQS.
    pub endpoint: SqsEndpoint,
    /// The queue and how it is consumed.
    pub queue: SqsQueueConfig,
}

impl SqsConfig {
    /// The queue at `url`, with default options.
    pub fn new(url: impl Into<String>) -> Self {
        Self { endpoint: SqsEndpoint::default(), queue: SqsQueueConfig::new(url) }
    }

    /// Validates the values.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the problem and the fix.
    pub fn check(&self) -> Result<(), Error> {
        self.endpoint.check()?;
        self.queue.check()
    }
}

/// A queue and how it is consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqsQueueConfig {
    /// The URL of the queue. It must exist. A name that ends in `.fifo` is that of a FIFO queue.
    pub url: String,
    /// The visibility timeout of received messages; from 1s to 12h in whole seconds, default 30s. It is extended while a
    /// message is held, so it only bounds how long messages of a crashed worker stay invisible.
    pub visibility: Duration,
    /// How long a receive waits for messages (long polling); 0 to 20 s in whole seconds, default 20 s.
    pub wait: Duration,
    /// The most concurrent receives, from 1 to 64; default 4. Only as many are used as return full batches.
    pub pollers: usize,
    /// Removes the envelope that SNS puts around a message; a message without one is malformed then. Default false.
    pub unwrap_sns: bool,
    /// Whose `onceward-` headers are trusted: the same as the pipeline's. By default no sender's; the id of a dead
    /// letter or an outbox message is then the one that SQS assigned.
    pub own_headers: OwnHeaders,
    /// The timeout of a delete or a visibility change, repeats included; 100 ms to 1 min, default 4 s. It should be
    /// shorter than the pipeline's store timeout, so that entries of a batch fail individually.
    pub call_timeout: Duration,
}

impl SqsQueueConfig {
    /// The range of [`visibility`](Self::visibility).
    pub const VISIBILITY: RangeInclusive<Duration> = Duration::from_secs(1)..=LONGEST_VISIBILITY;
    /// The default of [`visibility`](Self::visibility).
    pub const DEFAULT_VISIBILITY: Duration = Duration::from_secs(30);
    /// The range of [`pollers`](Self::pollers).
    pub const POLLERS: RangeInclusive<usize> = 1..=64;
    /// The default of [`pollers`](Self::pollers).
    pub const DEFAULT_POLLERS: usize = 4;
    /// The range of [`call_timeout`](Self::call_timeout).
    pub const CALL_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

    /// The queue at `url`, with default options.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            visibility: Self::DEFAULT_VISIBILITY,
            wait: Duration::from_secs(20),
            pollers: Self::DEFAULT_POLLERS,
            unwrap_sns: false,
            own_headers: OwnHeaders::default(),
            call_timeout: Duration::from_secs(4),
        }
    }

    /// True for a FIFO queue.
    pub fn is_fifo(&self) -> bool {
        self.url.ends_with(".fifo")
    }

    /// Validates the values.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the problem and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |what: &'static str| Err(error::config("consume an SQS queue", what));
        if !(self.url.starts_with("https://") || self.url.starts_with("http://")) {
            return invalid("the queue must be a URL, as shown by the console and GetQueueUrl");
        }
        let is_whole = |duration: Duration| duration.subsec_nanos() == 0;
        if !Self::VISIBILITY.contains(&self.visibility) || !is_whole(self.visibility) {
            return invalid("visibility must be 1 s to 12 h, in whole seconds");
        }
        if self.wait > Duration::from_secs(20) || !is_whole(self.wait) {
            return invalid("wait must be 0 to 20 s, in whole seconds");
        }
        if !Self::POLLERS.contains(&self.pollers) {
            return invalid("pollers must be 1 to 64");
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
            (|queue| queue.url = "orders".into()) as fn(&mut SqsQueueConfig),
            |queue| queue.visibility = Duration::ZERO,
            |queue| queue.visibility = Duration::from_millis(1500),
            |queue| queue.visibility = Duration::from_secs(12 * 3600 + 1),
            |queue| queue.wait = Duration::from_secs(21),
            |queue| queue.pollers = 0,
            |queue| queue.call_timeout = Duration::ZERO,
        ] {
            let mut queue = SqsQueueConfig::new("http://127.0.0.1/queue/orders");
            assert!(queue.check().is_ok() && !queue.is_fifo());
            invalidate(&mut queue);
            assert!(queue.check().is_err(), "{queue:?}");
        }
    }
}
