//! Reports why a subscription ended: [`log_disconnect`], [`borrowed_channel_error`].

use std::time::Duration;

use onceward::{Error, ErrorKind};

use crate::config::RabbitmqQueueConfig;

/// Logs the end of a subscription; returns false if only the next attempt to subscribe shows whether it matters.
///
/// `timeout` is the broker's `consumer_timeout` if it expired, `learned` that it was not known before, and `planned`
/// that the channel was closed by us.
pub(crate) fn log_disconnect(
    config: &RabbitmqQueueConfig,
    cause: Option<&Error>,
    timeout: Option<Duration>,
    learned: bool,
    planned: bool,
) -> bool {
    let queue = &config.name;
    match (cause, timeout) {
        _ if planned => tracing::debug!(queue, "resubscribing"),
        (Some(error), Some(timeout)) if learned => tracing::warn!(
            queue, ?error, consumer_timeout = ?timeout, ack_timeout = ?config.ack_timeout,
            "channel closed by the broker: a message was held longer than consumer_timeout; received messages are \
             redelivered once. From now on messages are requeued in time. Raise consumer_timeout, or set ack_timeout to its \
             value; wait_queues_from delays long retries on the broker"
        ),
        (Some(error), Some(_)) => {
            tracing::info!(
                queue,
                ?error,
                "consumer_timeout of the broker expired before messages were requeued"
            );
        }
        (Some(error), None) => tracing::warn!(queue, ?error, "channel lost; resubscribing"),
        (None, _) => {
            tracing::info!(queue, "subscription cancelled by the broker; resubscribing");
            return false;
        }
    }
    true
}

/// The error of a consumer on a channel of the caller.
pub(crate) fn borrowed_channel_error(queue: &str, cause: Option<Error>) -> Error {
    let what = "the channel or the subscription was closed, and a channel of the caller cannot be reopened; use \
                RabbitmqConsumer::from_client for automatic reconnection";
    let error = Error::new(ErrorKind::Unsupported, format!("receive from queue {queue}"), what);
    match cause {
        Some(cause) => error.with_source(cause),
        None => error,
    }
}
