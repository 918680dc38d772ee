//! Opens channels and subscribes, as often as it takes: [`open`], [`reopen`].

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection};
use onceward::{Error, ErrorKind};

use crate::config::QueueConfig;
use crate::connection::{Connect, Connected};
use crate::error;
use crate::screen::Mended;

/// Pauses between attempts grow from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(3);
/// How long the broker may take to answer a request on a connection that is open.
pub(crate) const REPLY_LIMIT: Duration = Duration::from_secs(10);
/// The same on a connection that may be about to fail: a new one is the better choice soon.
const FORMER_LIMIT: Duration = Duration::from_secs(2);
/// Every so many attempts that fail, one is logged as a warning.
const WARN_EVERY: u32 = 10;

/// A subscription.
pub(crate) struct Link {
    /// `None` on a channel of the user's.
    pub(crate) connection: Option<Connection>,
    pub(crate) channel: Channel,
    pub(crate) stream: lapin::Consumer,
    pub(crate) mended: Arc<Mended>,
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
        mended.forget(channel.id());
        channel.basic_qos(queue.prefetch, BasicQosOptions { global: false }).await?;
        let stream = subscribe(&channel, queue).await?;
        Ok((channel, stream))
    };
    match tokio::time::timeout(limit, subscribe).await {
        Ok(Ok((channel, stream))) => {
            Ok(Link { connection: Some(connection), channel, stream, mended, ended: None })
        }
        Ok(Err(error)) => Err(error::amqp(operation(), error)),
        Err(_) => Err(error::timeout(operation(), format!("the broker did not answer within {limit:?}"))),
    }
}

/// Subscribes on an open channel.
pub(crate) async fn subscribe(channel: &Channel, queue: &QueueConfig) -> lapin::Result<lapin::Consumer> {
    let name = ShortString::try_new(queue.name.as_str())
        .map_err(|_| lapin::Error::from(std::io::Error::other("the queue's name is too long")))?;
    let options = BasicConsumeOptions::default();
    channel.basic_consume(name, ShortString::default(), options, FieldTable::default()).await
}

/// As [`open`], until it succeeds: a broker comes back, a queue is declared again, rights are given back. What only a
/// person can mend is logged as an error.
pub(crate) async fn reopen(
    connect: Arc<dyn Connect>,
    queue: QueueConfig,
    mut former: Option<Connected>,
) -> Link {
    let mut pause = FIRST_PAUSE;
    for attempt in 0_u32.. {
        let error = match open(&*connect, &queue, former.take()).await {
            Ok(link) => {
                tracing::info!(queue = queue.name, attempt, "consuming again");
                return link;
            }
            Err(error) => error,
        };
        let must_act = !error.is_retryable() && error.kind() != ErrorKind::Config;
        match (attempt % WARN_EVERY, must_act) {
            (0, true) => {
                tracing::error!(
                    queue = queue.name,
                    attempt,
                    ?error,
                    "cannot consume; trying again, but somebody must act"
                );
            }
            (0, false) => tracing::warn!(queue = queue.name, attempt, ?error, "cannot consume; trying again"),
            _ => tracing::debug!(queue = queue.name, attempt, ?error, "cannot consume; trying again"),
        }
        // Half of it is random, so that many workers do not come back at the same moment.
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    std::future::pending().await
}
