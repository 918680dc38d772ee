//! Subscribes to a queue, and resubscribes with backoff: [`open_subscription`], [`resubscribe`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::ShortString;
use lapin::{Channel, Connection};
use onceward::telemetry::SourceHealth;
use onceward::{Error, ErrorKind};
use tokio::time::Instant;

use crate::config::RabbitmqQueueConfig;
use crate::connection::connector::{AmqpConnector, OpenConnection};
use crate::error;
use crate::sanitize::defects::Defects;

pub(crate) mod disconnect;
pub(crate) mod idle;
pub(crate) mod lag_monitor;
pub(crate) mod reconnecting;
pub(crate) mod stream_check;

/// The shortest and the longest pause between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(3);
/// The timeout of a request on an open connection.
pub(crate) const REPLY_LIMIT: Duration = Duration::from_secs(10);
/// The timeout of a request on a connection that may be about to fail: a new connection is soon the better choice.
const PREVIOUS_LIMIT: Duration = Duration::from_secs(2);
/// The timeout of closing; the broker requeues unsettled messages by itself.
pub(crate) const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// The shortest and the longest interval at which failing attempts are logged.
const FIRST_LOG_INTERVAL: Duration = Duration::from_secs(30);
const LAST_LOG_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// A subscription.
pub(crate) struct Subscription {
    /// `None` on a channel of the caller.
    pub(crate) connection: Option<Connection>,
    pub(crate) channel: Channel,
    pub(crate) stream: lapin::Consumer,
    pub(crate) defects: Arc<Defects>,
    /// A channel for queries about the queue; `None` if the broker allows no other channel.
    pub(crate) lag_channel: Option<Channel>,
    /// The end of the stream, behind the deliveries taken from it, with its error if there was one.
    pub(crate) ended: Option<Option<lapin::Error>>,
}

/// Subscribes on the previous connection if it is open, or on a new one.
pub(crate) async fn open_subscription(
    connect: &dyn AmqpConnector,
    queue: &RabbitmqQueueConfig,
    previous: Option<OpenConnection>,
) -> Result<Subscription, Error> {
    let (OpenConnection { connection, defects }, limit) = match previous {
        Some(previous) if previous.connection.status().connected() => (previous, PREVIOUS_LIMIT),
        _ => (connect.connect().await?, REPLY_LIMIT),
    };
    let operation = || format!("consume queue {}", queue.name);
    let subscribe = async {
        let channel = connection.create_channel().await?;
        defects.start_subscription(channel.id(), queue.prefetch);
        channel.basic_qos(queue.prefetch, BasicQosOptions { global: false }).await?;
        let stream = subscribe(&channel, queue).await?;
        Ok((channel, stream, connection.create_channel().await.ok()))
    };
    match tokio::time::timeout(limit, subscribe).await {
        Ok(Ok((channel, stream, lag_channel))) => Ok(Subscription {
            connection: Some(connection),
            channel,
            stream,
            defects,
            lag_channel,
            ended: None,
        }),
        Ok(Err(error)) if stream_check::is_stream_refusal(&error) => {
            Err(stream_check::stream_error(&queue.name))
        }
        Ok(Err(error)) => Err(error::classify(operation(), error)),
        Err(_) => Err(error::timeout(operation(), format!("no answer from the broker within {limit:?}"))),
    }
}

/// Subscribes on an open channel.
pub(crate) async fn subscribe(
    channel: &Channel,
    queue: &RabbitmqQueueConfig,
) -> lapin::Result<lapin::Consumer> {
    let name = ShortString::try_new(queue.name.as_str())
        .map_err(|_| lapin::Error::from(std::io::Error::other("the queue's name is too long")))?;
    let options = BasicConsumeOptions::default();
    channel.basic_consume(name, ShortString::default(), options, stream_check::consume_arguments()).await
}

/// A subscription that ends sooner, without a delivery, is short-lived.
pub(crate) const SHORT_LIFE: Duration = Duration::from_secs(10);

/// Subscribes as [`open_subscription`] does, and retries until it succeeds: a broker restarts, a queue is declared
/// again, rights are granted.
///
/// Pauses before the first attempt if more than one of the last `short_lives` subscriptions was
/// [short-lived](SHORT_LIFE). Errors that need an operator are logged as errors. The first failure is logged unless the
/// loss was (`is_logged`); later ones at growing intervals.
pub(crate) async fn resubscribe(
    connect: Arc<dyn AmqpConnector>,
    queue: RabbitmqQueueConfig,
    mut previous: Option<OpenConnection>,
    health: Arc<SourceHealth>,
    mut is_logged: bool,
    short_lives: u32,
) -> Subscription {
    let mut pause = FIRST_PAUSE;
    // A message that breaks each connection on which it arrives would otherwise be fetched without a pause, forever.
    if let Some(first) = resubscribe_pause(short_lives) {
        pause = first;
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
    let mut log_interval = FIRST_LOG_INTERVAL;
    let mut logged_at = Instant::now();
    for attempt in 0_u32.. {
        let error = match open_subscription(&*connect, &queue, previous.take()).await {
            Ok(subscription) => {
                tracing::info!(queue = queue.name, attempt, "subscription restored");
                return subscription;
            }
            Err(error) => error,
        };
        health.set_down(format!("{error:?}"));
        let must_act = !error.is_retryable();
        if is_logged && logged_at.elapsed() < log_interval {
            tracing::debug!(queue = queue.name, attempt, ?error, "subscribing failed; retrying");
        } else {
            if is_logged {
                log_interval = (log_interval * 2).min(LAST_LOG_INTERVAL);
            }
            (is_logged, logged_at) = (true, Instant::now());
            if must_act && error.kind() != ErrorKind::Config {
                tracing::error!(
                    queue = queue.name,
                    attempt,
                    ?error,
                    "subscribing failed; retrying, but the cause needs an operator"
                );
            } else {
                tracing::warn!(queue = queue.name, attempt, ?error, "subscribing failed; retrying");
            }
        }
        // Jitter, so that many workers do not reconnect at the same moment.
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    std::future::pending().await
}

/// The pause before the first attempt after so many short-lived subscriptions; none after the first.
fn resubscribe_pause(short_lives: u32) -> Option<Duration> {
    (short_lives > 1)
        .then(|| FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(short_lives - 1)).min(LAST_PAUSE))
}

/// Requeues buffered deliveries: by closing the channel if it is ours, message by message if it is not. The other
/// channel lasts until the connection is closed: closed twice, the library would fail.
pub(crate) async fn close_subscription(mut subscription: Subscription) -> lapin::Result<()> {
    if let Some(connection) = subscription.connection {
        subscription.channel.close(200, "OK".into()).await?;
        return connection.close(200, "OK".into()).await;
    }
    subscription.channel.basic_cancel(subscription.stream.tag(), Default::default()).await?;
    while let Some(Some(Ok(delivery))) = subscription.stream.next().now_or_never() {
        delivery.nack(BasicNackOptions { multiple: false, requeue: true }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_lived_subscriptions_are_repeated_at_growing_intervals() {
        let millis = |lives| resubscribe_pause(lives).map(|pause| pause.as_millis());
        assert_eq!([0, 1, 2, 3, 4].map(millis), [None, None, Some(200), Some(400), Some(800)]);
        assert_eq!(millis(u32::MAX), Some(LAST_PAUSE.as_millis()));
    }
}
