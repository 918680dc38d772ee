//! Says why a subscription ended: [`log`], [`of_borrowed`].

use std::time::Duration;

use onceward::{Error, ErrorKind};

use crate::config::QueueConfig;

/// Logs the loss of a subscription; false if whether it matters is known only after the attempt to subscribe again.
///
/// `timeout` is the broker's `consumer_timeout`, if it was over, and `learned` that it was not known before. With `planned`
/// the channel was given up by us.
pub(crate) fn log(
    config: &QueueConfig,
    cause: Option<&Error>,
    timeout: Option<Duration>,
    learned: bool,
    planned: bool,
) -> bool {
    let queue = &config.name;
    match (cause, timeout) {
        _ if planned => tracing::debug!(queue, "subscribing again"),
        (Some(error), Some(timeout)) if learned => tracing::warn!(
            queue, ?error, consumer_timeout = ?timeout, ack_timeout = ?config.ack_timeout,
            "the broker closed the channel because a message was held longer than its consumer_timeout; all that was received \
             is redelivered once. From now on messages are given back in time. Raise consumer_timeout, or write its value as \
             ack_timeout; long retries can wait in the broker with wait_queues_from"
        ),
        (Some(error), Some(_)) => {
            tracing::info!(
                queue,
                ?error,
                "the broker's consumer_timeout was over before messages were given back"
            );
        }
        (Some(error), None) => tracing::warn!(queue, ?error, "the channel was lost; subscribing again"),
        (None, _) => {
            tracing::info!(queue, "the broker ended the subscription; subscribing again");
            return false;
        }
    }
    true
}

/// The error of a source whose channel is not ours.
pub(crate) fn of_borrowed(queue: &str, cause: Option<Error>) -> Error {
    let what = "the channel or the subscription ended, and the channel is not ours to reopen; build the consumer from a \
                connection factory to have that done";
    let error = Error::new(ErrorKind::Unsupported, format!("receive from queue {queue}"), what);
    match cause {
        Some(cause) => error.with_source(cause),
        None => error,
    }
}
