//! Opens channels and subscribes, as often as it takes: [`open`], [`reopen`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::ShortString;
use lapin::{Channel, Connection};
use onceward::telemetry::SourceHealth;
use onceward::{Error, ErrorKind};
use tokio::time::Instant;

use crate::config::QueueConfig;
use crate::connection::{Connect, Connected};
use crate::mended::Mended;
use crate::{error, probe};

/// Pauses between attempts grow from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(3);
/// How long the broker may take to answer a request on a connection that is open.
pub(crate) const REPLY_LIMIT: Duration = Duration::from_secs(10);
/// The same on a connection that may be about to fail: a new one is the better choice soon.
const FORMER_LIMIT: Duration = Duration::from_secs(2);
/// How long closing may take: what is not closed by then is given back by the broker on its own.
pub(crate) const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Attempts that go on failing are logged at most once in these times.
const FIRST_SILENCE: Duration = Duration::from_secs(30);
const LAST_SILENCE: Duration = Duration::from_secs(10 * 60);

/// A subscription.
pub(crate) struct Link {
    /// `None` on a channel of the user's.
    pub(crate) connection: Option<Connection>,
    pub(crate) channel: Channel,
    pub(crate) stream: lapin::Consumer,
    pub(crate) mended: Arc<Mended>,
    /// For questions about the queue, asked as long as the link lasts; `None` if the broker allows no other channel.
    pub(crate) gauge: Option<Channel>,
    /// The stream has ended, with an error or without, behind what was taken from it.
    pub(crate) ended: Option<Option<lapin::Error>>,
}

/// Subscribes on a connection that is open, or on a new one.
pub(crate) async fn open(
    connect: &dyn Connect,
    queue: &QueueConfig,
    former: Option<Connected>,
) -> Result<Link, Error> {
    let (Connected { connection, mended }, limit) = match former {
        Some(former) if former.connection.status().connected() => (former, FORMER_LIMIT),
        _ => (connect.connect().await?, REPLY_LIMIT),
    };
    let operation = || format!("consume queue {}", queue.name);
    let subscribe = async {
        let channel = connection.create_channel().await?;
        mended.subscribes(channel.id(), queue.prefetch);
        channel.basic_qos(queue.prefetch, BasicQosOptions { global: false }).await?;
        let stream = subscribe(&channel, queue).await?;
        Ok((channel, stream, connection.create_channel().await.ok()))
    };
    match tokio::time::timeout(limit, subscribe).await {
        Ok(Ok((channel, stream, gauge))) => {
            Ok(Link { connection: Some(connection), channel, stream, mended, gauge, ended: None })
        }
        Ok(Err(error)) if probe::refuses_stream(&error) => Err(probe::is_a_stream(&queue.name)),
        Ok(Err(error)) => Err(error::amqp(operation(), error)),
        Err(_) => Err(error::timeout(operation(), format!("the broker did not answer within {limit:?}"))),
    }
}

/// Subscribes on an open channel.
pub(crate) async fn subscribe(channel: &Channel, queue: &QueueConfig) -> lapin::Result<lapin::Consumer> {
    let name = ShortString::try_new(queue.name.as_str())
        .map_err(|_| lapin::Error::from(std::io::Error::other("the queue's name is too long")))?;
    let options = BasicConsumeOptions::default();
    channel.basic_consume(name, ShortString::default(), options, probe::arguments()).await
}

/// A subscription that ends sooner, with nothing delivered, is short-lived.
pub(crate) const SHORT_LIFE: Duration = Duration::from_secs(10);

/// As [`open`], until it succeeds; with a pause before the first attempt if the last `short_lives` subscriptions, more than one,
/// were [short-lived](SHORT_LIFE): a broker comes back, a queue is declared again, rights are given back. What only a
/// person can repair is logged as an error. The first failure is logged unless the loss was; later ones at growing intervals.
pub(crate) async fn reopen(
    connect: Arc<dyn Connect>,
    queue: QueueConfig,
    mut former: Option<Connected>,
    health: Arc<SourceHealth>,
    mut is_logged: bool,
    short_lives: u32,
) -> Link {
    let mut pause = FIRST_PAUSE;
    // A message that ends each connection on which it arrives would otherwise be fetched without a pause, for ever.
    if let Some(first) = pause_after(short_lives) {
        pause = first;
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
    let mut silence = FIRST_SILENCE;
    let mut logged_at = Instant::now();
    for attempt in 0_u32.. {
        let error = match open(&*connect, &queue, former.take()).await {
            Ok(link) => {
                tracing::info!(queue = queue.name, attempt, "consuming again");
                return link;
            }
            Err(error) => error,
        };
        health.set_down(format!("{error:?}"));
        let must_act = !error.is_retryable();
        if is_logged && logged_at.elapsed() < silence {
            tracing::debug!(queue = queue.name, attempt, ?error, "cannot consume; trying again");
        } else {
            if is_logged {
                silence = (silence * 2).min(LAST_SILENCE);
            }
            (is_logged, logged_at) = (true, Instant::now());
            if must_act && error.kind() != ErrorKind::Config {
                tracing::error!(
                    queue = queue.name,
                    attempt,
                    ?error,
                    "cannot consume; trying again, but the cause must be repaired"
                );
            } else {
                tracing::warn!(queue = queue.name, attempt, ?error, "cannot consume; trying again");
            }
        }
        // Half of it is random, so that many workers do not come back at the same moment.
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    std::future::pending().await
}

/// The pause before the first attempt after so many short-lived subscriptions; the first of them costs none.
fn pause_after(short_lives: u32) -> Option<Duration> {
    (short_lives > 1)
        .then(|| FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(short_lives - 1)).min(LAST_PAUSE))
}

/// Gives back what was taken ahead: by the channel's end if it is ours, message by message if it is not. The other channel of
/// the link lasts until the connection is closed: the library would close it at the same time, and fail.
pub(crate) async fn close(mut link: Link) -> lapin::Result<()> {
    if let Some(connection) = link.connection {
        link.channel.close(200, "OK".into()).await?;
        return connection.close(200, "OK".into()).await;
    }
    link.channel.basic_cancel(link.stream.tag(), Default::default()).await?;
    while let Some(Some(Ok(delivery))) = link.stream.next().now_or_never() {
        delivery.nack(BasicNackOptions { multiple: false, requeue: true }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscriptions_that_end_at_once_are_opened_again_at_growing_intervals() {
        let millis = |lives| pause_after(lives).map(|pause| pause.as_millis());
        assert_eq!([0, 1, 2, 3, 4].map(millis), [None, None, Some(200), Some(400), Some(800)]);
        assert_eq!(millis(u32::MAX), Some(LAST_PAUSE.as_millis()));
    }
}
