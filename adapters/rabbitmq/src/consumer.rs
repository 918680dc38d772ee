//! Delivers the messages of a queue: [`RabbitConsumer`].

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicNackOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection};
use onceward::{Acker, Capabilities, Consumer, Delivery, Error, ErrorKind, Message, SettleQueue, Tag};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::acker::{RabbitAcker, Waiting};
use crate::config::{QueueConfig, RabbitConfig};
use crate::connection::{Connect, Connected, Factory};
use crate::error;
use crate::link::{self, Link, REPLY_LIMIT};
use crate::message;
use crate::wait::{Kept, WaitRoom};

/// The most deliveries of one batch.
const BATCH: usize = 256;

/// The messages of a queue.
///
/// From a [`RabbitConfig`] or a connection factory it comes back by itself: after a lost connection, a closed channel, a
/// cancelled subscription, a queue that was deleted and declared again. What was delivered before is delivered again then,
/// and acknowledgements for the old deliveries go nowhere, so that they hit no other message.
///
/// It never declares a queue, and consumes one that is exclusive, or missing, as soon as that changes.
pub struct RabbitConsumer {
    source: Source,
    queue: QueueConfig,
    origin: Arc<str>,
    acker: RabbitAcker,
    settle_queue: Arc<SettleQueue>,
    link: Option<Link>,
    /// Messages that waited in this process for their next attempt; at most as many as are unacknowledged.
    again: mpsc::UnboundedReceiver<(Tag, Message)>,
    /// Goes on while `receive` is not called.
    reopening: Option<JoinHandle<Link>>,
}

enum Source {
    Reopened(Arc<dyn Connect>),
    Borrowed,
}

impl RabbitConsumer {
    /// Connects and subscribes.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if values cannot be used or there is no such queue, [`ErrorKind::Denied`] if the broker
    /// refuses the credentials or rights are missing, [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] if it cannot be
    /// reached.
    pub async fn open(config: RabbitConfig) -> Result<Self, Error> {
        config.check()?;
        Self::reopened(Arc::new(config.endpoint), config.queue).await
    }

    /// Subscribes on a connection that `factory` makes; it is called again whenever the connection is lost. Each
    /// connection should be new and without automatic recovery: this consumer closes and replaces it.
    ///
    /// Messages with a message id or header name that is not UTF-8, or with headers nested hundreds deep, end such a
    /// connection, or the process: what [`open`](Self::open) does about them needs a connection of its own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn from_connection<F, Fut>(factory: F, queue: QueueConfig) -> Result<Self, Error>
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = lapin::Result<Connection>> + Send + 'static,
    {
        queue.check()?;
        Self::reopened(Arc::new(Factory(factory)), queue).await
    }

    /// Subscribes on a channel of the caller's, which others may use too. Its prefetch stays as the caller set it, and
    /// every acknowledgement is a frame of its own. When the channel dies, [`receive`](Consumer::receive) ends with an
    /// error of the kind [`ErrorKind::Unsupported`]: this consumer cannot open another.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn from_channel(channel: Channel, queue: QueueConfig) -> Result<Self, Error> {
        queue.check()?;
        if queue.wait_queues_from.is_some() {
            let what =
                "wait queues need a connection of their own; build the consumer from a connection factory";
            return Err(error::config(format!("consume queue {}", queue.name), what));
        }
        let subscribed = link::subscribe(&channel, &queue).await;
        let stream =
            subscribed.map_err(|error| error::amqp(format!("consume queue {}", queue.name), error))?;
        let link = Link { connection: None, channel, stream, mended: Arc::default(), ended: None };
        Ok(Self::new(Source::Borrowed, queue, link, None))
    }

    async fn reopened(connect: Arc<dyn Connect>, queue: QueueConfig) -> Result<Self, Error> {
        let link = link::open(&*connect, &queue, None).await?;
        let room = match queue.wait_queues_from {
            Some(shortest) => Some(WaitRoom::open(Arc::clone(&connect), &queue.name, shortest).await?),
            None => None,
        };
        Ok(Self::new(Source::Reopened(connect), queue, link, room))
    }

    fn new(source: Source, queue: QueueConfig, link: Link, room: Option<WaitRoom>) -> Self {
        let (sender, again) = mpsc::unbounded_channel();
        let waiting = room.map(|room| Waiting { room, again: sender });
        let mut consumer = Self {
            source,
            origin: queue.name.as_str().into(),
            acker: RabbitAcker::new(queue.prefetch, queue.ack_delay, waiting),
            again,
            settle_queue: SettleQueue::new(),
            link: None,
            reopening: None,
            queue,
        };
        consumer.attach(link);
        consumer
    }

    fn attach(&mut self, link: Link) {
        self.acker.attach(link.channel.clone(), matches!(self.source, Source::Reopened(_)));
        self.link = Some(link);
    }

    /// The subscription ended: starts another, or says that this cannot be.
    fn lost(&mut self, cause: Option<lapin::Error>) -> Result<(), Error> {
        self.acker.detach();
        let former = self.link.take();
        // A connection that failed says so to its channels before its own state does.
        let alive = cause.as_ref().is_none_or(lapin::Error::is_amqp_soft_error);
        let cause = cause.map(|error| error::amqp(format!("receive from queue {}", self.queue.name), error));
        let Source::Reopened(connect) = &self.source else {
            let what = "the channel or the subscription ended, and the channel is not ours to reopen; \
                        build the consumer from a connection factory to have that done";
            let error =
                Error::new(ErrorKind::Unsupported, format!("receive from queue {}", self.queue.name), what);
            return Err(match cause {
                Some(cause) => error.with_source(cause),
                None => error,
            });
        };
        match cause {
            Some(error) => {
                tracing::warn!(queue = self.queue.name, ?error, "the channel was lost; subscribing again")
            }
            None => tracing::warn!(
                queue = self.queue.name,
                "the broker ended the subscription; subscribing again"
            ),
        }
        let former = former
            .filter(|_| alive)
            .and_then(|link| Some(Connected { connection: link.connection?, mended: link.mended }));
        self.reopening = Some(tokio::spawn(link::reopen(Arc::clone(connect), self.queue.clone(), former)));
        Ok(())
    }

    async fn reattach(&mut self) -> Result<(), Error> {
        let Some(reopening) = &mut self.reopening else { return self.lost(None) };
        let reopened = reopening.await;
        self.reopening = None;
        match reopened {
            Ok(link) => self.attach(link),
            // The runtime ends, or a factory of the user's panicked: the next call tries again.
            Err(error) => {
                let operation = format!("subscribe to queue {} again", self.queue.name);
                return Err(
                    Error::new(ErrorKind::Unavailable, operation, "the attempt was ended").with_source(error)
                );
            }
        }
        Ok(())
    }

    fn batch(&self, first: lapin::message::Delivery, link: &mut Link) -> Vec<Delivery> {
        let mut taken = vec![first];
        while taken.len() < BATCH
            && let Some(next) = link.stream.next().now_or_never()
        {
            match next {
                Some(Ok(delivery)) => taken.push(delivery),
                // For the next call: the stream says it once.
                Some(Err(error)) => link.ended = Some(Some(error)),
                None => link.ended = Some(None),
            }
            if link.ended.is_some() {
                break;
            }
        }
        let epoch = self.acker.delivered(taken.iter().map(|delivery| delivery.delivery_tag));
        let keeps = self.acker.wait_room().is_some();
        let of = |delivery: lapin::message::Delivery| {
            let tag = Tag { epoch, number: delivery.delivery_tag };
            let mended = link.mended.take(link.channel.id(), delivery.delivery_tag);
            let envelope = keeps.then(|| {
                (delivery.exchange.clone(), delivery.routing_key.clone(), delivery.properties.clone())
            });
            let message = message::from(delivery, Arc::clone(&self.origin), mended);
            if let Some((exchange, routing_key, properties)) = envelope {
                let kept = Kept { exchange, routing_key, properties, message: message.clone() };
                self.acker.keep(tag.number, kept);
            }
            Delivery { message, receipt: self.settle_queue.receipt(tag) }
        };
        taken.into_iter().map(of).collect()
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.delayed_retry = self.queue.wait_queues_from.is_some();
        capabilities.ordered = self.queue.single_active_consumer;
        capabilities.ack_timeout = self.queue.ack_timeout;
        capabilities.delivery_limit = self.queue.delivery_limit;
        capabilities
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(self.acker.clone())
    }

    fn settle_queue(&self) -> Arc<SettleQueue> {
        Arc::clone(&self.settle_queue)
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        loop {
            let Some(link) = &mut self.link else {
                self.reattach().await?;
                continue;
            };
            if let Some(cause) = link.ended.take() {
                self.lost(cause)?;
                continue;
            }
            let next = tokio::select! {
                biased;
                Some((tag, message)) = self.again.recv(), if self.acker.wait_room().is_some() => {
                    // What waited on a channel that is gone was delivered again by the broker.
                    if self.acker.is_current(tag) {
                        let receipt = self.settle_queue.receipt(tag);
                        return Ok(Some(vec![Delivery { message, receipt }]));
                    }
                    continue;
                }
                next = link.stream.next() => next,
            };
            match next {
                Some(Ok(first)) => {
                    let Some(mut link) = self.link.take() else { continue };
                    let batch = self.batch(first, &mut link);
                    self.link = Some(link);
                    return Ok(Some(batch));
                }
                Some(Err(error)) => self.lost(Some(error))?,
                None => self.lost(None)?,
            }
        }
    }

    /// Asks for the length of the queue and of its wait queues on a channel of its own, which dies if there is no such queue.
    async fn is_idle(&mut self) -> Option<bool> {
        if self.acker.holds_some() {
            return Some(false);
        }
        let wait_queues = self.acker.wait_room().map(WaitRoom::queues).unwrap_or_default();
        let connection = self.link.as_ref()?.connection.as_ref()?;
        let ask = async {
            let channel = connection.create_channel().await.ok()?;
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let mut messages = 0;
            // The queue last: what leaves a wait queue meanwhile is in it by then.
            for name in wait_queues.iter().chain([&self.queue.name]) {
                let name = ShortString::try_new(name.as_str()).ok()?;
                let queue = channel.queue_declare(name, options, FieldTable::default()).await.ok()?;
                messages += queue.message_count();
            }
            let _ = channel.close(200, "OK".into()).await;
            Some(messages == 0)
        };
        tokio::time::timeout(REPLY_LIMIT, ask).await.ok()?
    }

    async fn close(&mut self) -> Result<(), Error> {
        if let Some(reopening) = self.reopening.take() {
            reopening.abort();
        }
        let Some(link) = self.link.take() else { return Ok(()) };
        self.acker.flush().await;
        self.acker.detach();
        let closed = tokio::time::timeout(REPLY_LIMIT, close(link)).await;
        let operation = || format!("close the consumer of queue {}", self.queue.name);
        match closed {
            Ok(closed) => closed.map_err(|error| error::amqp(operation(), error)),
            Err(_) => Err(error::timeout(
                operation(),
                "the broker did not answer; it gives the messages back by itself",
            )),
        }
    }
}

/// Gives back what was taken ahead: by the channel's end if it is ours, message by message if it is not.
async fn close(mut link: Link) -> lapin::Result<()> {
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

impl Drop for RabbitConsumer {
    /// As when the process dies, except that acknowledgements that wait are still sent.
    fn drop(&mut self) {
        if let Some(reopening) = self.reopening.take() {
            reopening.abort();
        }
        let Some(link) = self.link.take() else { return };
        let acker = self.acker.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    acker.flush().await;
                    acker.detach();
                    let _ = close(link).await;
                });
            }
            Err(_) => drop(acker.detach()),
        }
    }
}
