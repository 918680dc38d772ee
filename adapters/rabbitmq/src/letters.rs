//! Reads a queue of dead letters once, message by message: [`RabbitmqLetters`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::types::ShortString;
use lapin::{Channel, Connection};
use onceward::adapter::{Acker, Capabilities, Consumer, Delivery, Settled, Settlement, Tag};
use onceward::{Error, ErrorKind, Message, OwnHeaders};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::connection::connector::AmqpConnector;
use crate::connection::endpoint::RabbitmqEndpoint;
use crate::inspect::query_queue;
use crate::sanitize::defects::Defects;
use crate::settle::in_flight::delivery_count;
use crate::subscription::stream_check::{is_not_implemented, stream_error};
use crate::subscription::{CLOSE_LIMIT, REPLY_LIMIT};
use crate::{error, message};

/// The most messages of one batch, and about how many bytes.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How many deliveries are left to a message for the redrive that follows.
const RESERVE: u32 = 3;
/// An empty queue is asked again after this time: the broker may be about to return the messages of a reader that was killed.
const EMPTY_PAUSE: Duration = Duration::from_millis(500);

type Got = lapin::Result<Option<BasicGetMessage>>;

/// Delivers the messages of a queue, each once, with `basic.get`, until it is empty; for tools that look through dead letters.
///
/// Nothing is prefetched, so that memory does not grow with the queue. Messages that are not acknowledged stay with the channel
/// until [`close`](Consumer::close); then the broker returns them to their places, marked as redelivered. A quorum queue
/// counts that as a delivery, and at its delivery limit drops a message that is returned. Reading fails before that.
pub struct RabbitmqLetters {
    queue: Arc<str>,
    own_headers: OwnHeaders,
    /// At most this many deliveries of one message; 0 for no limit.
    delivery_limit: u32,
    connection: Connection,
    channel: Channel,
    defects: Arc<Defects>,
    /// The queue was empty, and is asked once more then.
    again_at: Option<Instant>,
    /// It was empty twice in succession.
    is_empty: bool,
    /// The request in flight: a dropped call must not lose its reply.
    getting: Option<JoinHandle<Got>>,
    batch: Vec<Delivery>,
}

impl RabbitmqLetters {
    /// Connects, and looks whether there is a queue `queue`. `delivery_limit` is the queue's `x-delivery-limit`; 0 for none.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the queue does not exist or is a stream, [`ErrorKind::Denied`] if the broker refuses,
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] if it cannot be reached.
    pub async fn open(
        endpoint: RabbitmqEndpoint,
        queue: &str,
        own_headers: OwnHeaders,
        delivery_limit: u32,
    ) -> Result<Self, Error> {
        endpoint.check()?;
        let opened = endpoint.connect().await?;
        query_queue(&opened.connection, queue).await?;
        let channel = opened.connection.create_channel().await;
        let channel = channel.map_err(|error| error::classify(format!("read queue {queue}"), error))?;
        Ok(Self {
            queue: queue.into(),
            own_headers,
            delivery_limit,
            connection: opened.connection,
            channel,
            defects: opened.defects,
            again_at: None,
            is_empty: false,
            getting: None,
            batch: Vec::new(),
        })
    }

    fn operation(&self) -> String {
        format!("read queue {}", self.queue)
    }

    /// The next message; `None` if the queue is empty.
    ///
    /// # Cancel safety
    /// A dropped call loses no message.
    async fn get(&mut self) -> Result<Option<BasicGetMessage>, Error> {
        let getting = self.getting.get_or_insert_with(|| {
            let (channel, queue) = (self.channel.clone(), Arc::clone(&self.queue));
            tokio::spawn(async move {
                let name = ShortString::try_new(&*queue)
                    .map_err(|_| lapin::Error::from(std::io::Error::other("the queue's name is too long")))?;
                channel.basic_get(name, BasicGetOptions { no_ack: false }).await
            })
        });
        let joined = tokio::time::timeout(REPLY_LIMIT, getting).await;
        let late = || format!("no answer from the broker within {REPLY_LIMIT:?}");
        let joined = joined.map_err(|_| error::timeout(self.operation(), late()))?;
        self.getting = None;
        let got = joined.map_err(|error| {
            Error::new(ErrorKind::Internal, self.operation(), "the task that reads it panicked")
                .with_source(error)
        })?;
        got.map_err(|error| match is_not_implemented(&error) {
            true => stream_error(&self.queue),
            false => error::classify(self.operation(), error),
        })
    }

    /// Refuses a message that the broker would soon drop instead of returning it.
    fn check_deliveries(&self, message: &Message) -> Result<(), Error> {
        let deliveries = delivery_count(message);
        if self.delivery_limit == 0 || deliveries.saturating_add(RESERVE) < self.delivery_limit {
            return Ok(());
        }
        let what = format!(
            "a message has been delivered {deliveries} times, and a quorum queue drops it at its delivery limit; set a \
             delivery-limit of -1 on the queue by a policy, and then dead_letter_delivery_limit = 0 in [source.rabbitmq]"
        );
        Err(error::config(self.operation(), what))
    }
}

#[async_trait]
impl Consumer for RabbitmqLetters {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.finite = true;
        capabilities
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(LettersAcker { channel: self.channel.clone(), queue: Arc::clone(&self.queue) })
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        let mut bytes = 0;
        while self.batch.len() < BATCH && bytes < BATCH_BYTES {
            if self.is_empty || (self.again_at.is_some() && !self.batch.is_empty()) {
                break;
            }
            if let Some(at) = self.again_at {
                tokio::time::sleep_until(at).await;
            }
            let Some(got) = self.get().await? else {
                self.is_empty = self.again_at.is_some();
                self.again_at = Some(Instant::now() + EMPTY_PAUSE);
                continue;
            };
            self.again_at = None;
            let number = got.delivery.delivery_tag;
            let defect = self.defects.take(self.channel.id(), number);
            let message =
                message::to_message(got.delivery, Arc::clone(&self.queue), defect, &self.own_headers);
            self.check_deliveries(&message)?;
            bytes += message.payload().len();
            self.batch.push(Delivery { message, tag: Tag { epoch: 0, number } });
        }
        Ok(if self.batch.is_empty() { None } else { Some(std::mem::take(&mut self.batch)) })
    }

    /// Closes the connection: acknowledgements are processed, and the other messages return to the queue.
    async fn close(&mut self) -> Result<(), Error> {
        let closing = async {
            self.channel.close(200, "OK".into()).await?;
            self.connection.close(200, "OK".into()).await
        };
        match tokio::time::timeout(CLOSE_LIMIT, closing).await {
            Ok(closed) => closed.map_err(|error| error::classify(self.operation(), error)),
            Err(_) => Err(error::timeout(self.operation(), format!("not closed within {CLOSE_LIMIT:?}"))),
        }
    }
}

impl fmt::Debug for RabbitmqLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitmqLetters").field("queue", &self.queue).finish_non_exhaustive()
    }
}

struct LettersAcker {
    channel: Channel,
    queue: Arc<str>,
}

#[async_trait]
impl Acker for LettersAcker {
    /// A message that is not acknowledged stays with the channel: returned at once, it would be read again.
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        let mut answers = Vec::with_capacity(batch.len());
        for (tag, settlement) in batch {
            answers.push(match settlement {
                Settlement::Ack => {
                    let acked = self.channel.basic_ack(tag.number, BasicAckOptions { multiple: false }).await;
                    acked.map(|()| Settled::Done).map_err(|error| {
                        error::classify(format!("delete messages of queue {}", self.queue), error)
                    })
                }
                _ => Ok(Settled::Done),
            });
        }
        answers
    }
}
