//! A connection and channel with publisher confirms, shared by the publisher and the delay queues: [`ConfirmChannel`].

use std::sync::Arc;
use std::time::Duration;

use lapin::Connection;
use onceward::{Error, ErrorKind};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::connection::connector::AmqpConnector;
use crate::error;
use crate::publish::batch::{BatchSender, SentBatch};
use crate::publish::confirms::{OPERATION, open_channel, publish_error};
use crate::publish::publishing::Publishings;
use crate::publish::refusals::RefusalMemory;

/// The interval at which a blocked connection is checked.
const BLOCKED_POLL: Duration = Duration::from_millis(50);

/// A connection of its own with a confirming channel, reopened as needed. Batches are published one by one: returned
/// messages could not be assigned to their batch otherwise.
pub(crate) struct ConfirmChannel {
    connect: Arc<dyn AmqpConnector>,
    /// The timeout of a batch, including the wait for the previous batch, connecting, and a blocked broker.
    pub(crate) limit: Duration,
    /// Taken out while a batch is in flight, so that an abandoned batch leaves no confirms behind for the next.
    open: Mutex<Option<ReusableChannel>>,
    refusals: RefusalMemory,
}

struct ReusableChannel {
    connection: Connection,
    /// `None`: the channel was abandoned with its unread confirms, or the broker closed it.
    channel: Option<lapin::Channel>,
}

/// The connection that a batch is built for.
pub(crate) struct PublishContext<'a> {
    pub(crate) connection: &'a Connection,
    /// The largest frame in bytes.
    pub(crate) frame_max: usize,
}

impl ConfirmChannel {
    /// Connects.
    pub(crate) async fn open(connect: Arc<dyn AmqpConnector>, limit: Duration) -> Result<Self, Error> {
        let open = ReusableChannel::reuse_or_open(&*connect, None).await?;
        Ok(Self { connect, limit, open: Mutex::new(Some(open)), refusals: RefusalMemory::default() })
    }

    /// Builds and publishes a batch of `count` messages; one result for each, in order. The channel is kept only if it
    /// worked to the end: a failed connection reports to waiting calls before its own state changes.
    ///
    /// # Cancel safety
    /// A dropped call may or may not have published any message of the batch.
    pub(crate) async fn publish(
        &self,
        count: usize,
        make: impl AsyncFnOnce(PublishContext<'_>) -> Publishings,
    ) -> Vec<Result<(), Error>> {
        let all = |error: &Error| (0..count).map(|_| Err(error.clone())).collect();
        let timed_out = |why: &str| {
            let limit = self.limit;
            error::timeout(
                OPERATION,
                format!("no confirm within {limit:?}: {why}; it will be repeated with the same id"),
            )
        };
        let deadline = Instant::now() + self.limit;
        let Ok(mut slot) = tokio::time::timeout_at(deadline, self.open.lock()).await else {
            return all(&timed_out("earlier batches are still in flight"));
        };
        let open = match tokio::time::timeout_at(
            deadline,
            ReusableChannel::reuse_or_open(&*self.connect, slot.take()),
        )
        .await
        {
            Ok(Ok(open)) => open,
            Ok(Err(error)) => return all(&error),
            Err(_) => return all(&timed_out("the broker cannot be reached")),
        };
        // A blocked connection writes nothing; messages would accumulate in memory and be repeated anyway.
        while open.connection.status().blocked() && open.connection.status().connected() {
            if Instant::now() + BLOCKED_POLL >= deadline {
                *slot = Some(open);
                return all(&blocked_error());
            }
            tokio::time::sleep(BLOCKED_POLL).await;
        }
        let ReusableChannel { connection, channel } = open;
        let frame_max = match connection.configuration().frame_max() {
            0 => usize::MAX,
            bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
        };
        let made = make(PublishContext { connection: &connection, frame_max });
        let publishings = match tokio::time::timeout_at(deadline, made).await {
            Ok(publishings) => publishings,
            Err(_) => return all(&timed_out("the broker did not answer")),
        };
        // A queue of the batch could not be declared because the connection failed: no channel would open.
        let failed = publishings
            .iter()
            .find_map(|made| made.as_ref().err().filter(|error| error::is_of_connection(error)).cloned());
        let mut sender = BatchSender::new(&connection, channel, &self.refusals, &publishings);
        let in_time = failed.is_none() && tokio::time::timeout_at(deadline, sender.run()).await.is_ok();
        let SentBatch { channel, connection_failed, results } = sender.end();
        let is_blocked = connection.status().blocked();
        let is_sound = !connection_failed && failed.is_none() && connection.status().connected();
        if is_sound && (in_time || is_blocked) {
            // The channel of a batch that timed out is dropped, with its unread confirms.
            *slot = Some(ReusableChannel { connection, channel: channel.filter(|_| in_time) });
        }
        let missing = || match &failed {
            Some(error) => error.clone(),
            None if is_blocked => blocked_error(),
            None => timed_out("the broker did not confirm it"),
        };
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(missing()))).collect()
    }
}

fn blocked_error() -> Error {
    let what = "the broker blocks publishers because of a memory or disk alarm";
    Error::new(ErrorKind::Throttled, OPERATION, what)
}

impl ReusableChannel {
    /// Returns the previous state if it is open, or a new connection.
    async fn reuse_or_open(connect: &dyn AmqpConnector, previous: Option<Self>) -> Result<Self, Error> {
        match previous {
            Some(Self { connection, channel }) if connection.status().connected() => {
                let channel = channel.filter(|channel| channel.status().connected());
                Ok(Self { connection, channel })
            }
            _ => {
                let connection = connect.connect().await?.connection;
                let channel = Some(open_channel(&connection).await.map_err(publish_error)?);
                Ok(Self { connection, channel })
            }
        }
    }
}
