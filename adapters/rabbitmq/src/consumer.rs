//! Delivers the messages of a queue: [`RabbitConsumer`].

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use lapin::{Channel, Connection};
use onceward::telemetry::SourceHealth;
use onceward::{Acker, Capabilities, Consumer, Delivery, Error, ErrorKind, Message, Tag};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::acker::{RabbitAcker, Waiting};
use crate::config::{QueueConfig, RabbitConfig};
use crate::connection::{Connect, Connected, Factory};
use crate::gauge::Gauge;
use crate::keeper::Keeper;
use crate::link::{self, CLOSE_LIMIT, Link, REPLY_LIMIT};
use crate::wait::WaitRoom;
use crate::{depth, error, loss, message, probe};

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
    link: Option<Link>,
    /// Since when there is a link, and how many before it were short-lived, one after the other.
    attached_at: Instant,
    short_lives: u32,
    /// Counts what waits in the queue, as long as the link lasts.
    gauge: Option<Gauge>,
    keeper: Keeper,
    health: Arc<SourceHealth>,
    /// Messages that waited in this process for their next attempt; at most as many as are unacknowledged.
    again: mpsc::UnboundedReceiver<(Tag, Message)>,
    /// A first delivery that looks like a stream's, until that is known.
    suspect: Option<lapin::message::Delivery>,
    /// Goes on while `receive` is not called.
    reopening: Option<JoinHandle<Link>>,
}

/// What comes next: a message that waited in this process, or something from the broker.
#[allow(clippy::large_enum_variant, reason = "it is matched where it is made")]
enum Next {
    Again((Tag, Message)),
    Stream(Option<lapin::Result<lapin::message::Delivery>>),
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
        let stream = subscribed.map_err(|error| match probe::refuses_stream(&error) {
            true => probe::is_a_stream(&queue.name),
            false => error::amqp(format!("consume queue {}", queue.name), error),
        })?;
        let link =
            Link { connection: None, channel, stream, mended: Arc::default(), gauge: None, ended: None };
        Ok(Self::new(Source::Borrowed, queue, link, None))
    }

    async fn reopened(connect: Arc<dyn Connect>, queue: QueueConfig) -> Result<Self, Error> {
        // First: the subscription takes messages, which an error afterwards would give back, at the cost of a delivery each.
        let room = match queue.wait_queues_from {
            Some(shortest) => Some(WaitRoom::open(Arc::clone(&connect), &queue, shortest).await?),
            None => None,
        };
        let link = link::open(&*connect, &queue, None).await?;
        Ok(Self::new(Source::Reopened(connect), queue, link, room))
    }

    fn new(source: Source, queue: QueueConfig, link: Link, room: Option<WaitRoom>) -> Self {
        let (sender, again) = mpsc::unbounded_channel();
        let waiting = room.map(|room| Waiting { room, again: sender });
        let acker = RabbitAcker::new(queue.prefetch, queue.ack_delay, waiting);
        let keeper = Keeper::start(&acker, &queue, matches!(source, Source::Reopened(_)));
        let mut consumer = Self {
            source,
            origin: queue.name.as_str().into(),
            acker,
            again,
            link: None,
            attached_at: Instant::now(),
            short_lives: 0,
            gauge: None,
            keeper,
            health: Arc::default(),
            suspect: None,
            reopening: None,
            queue,
        };
        consumer.attach(link);
        consumer
    }

    fn attach(&mut self, link: Link) {
        self.acker.attach(link.channel.clone(), matches!(self.source, Source::Reopened(_)));
        self.keeper.attention.took(0, true);
        self.gauge = link.gauge.clone().map(|channel| Gauge::start(channel, &self.queue, &self.health));
        self.link = Some(link);
        self.attached_at = Instant::now();
        self.health.set_up();
    }

    /// The subscription ended: starts another, or says that this cannot be.
    fn lost(&mut self, cause: Option<lapin::Error>) -> Result<(), Error> {
        let planned = self.acker.is_given_back();
        let timeout = cause.as_ref().and_then(error::consumer_timeout);
        // What the broker gives us back after its timeout is recognised: the pipeline has it once.
        self.acker.detach(timeout.is_none());
        self.gauge = None;
        self.suspect = None;
        let former = self.link.take();
        // A connection that failed says so to its channels before its own state does.
        let alive = cause.as_ref().is_none_or(lapin::Error::is_amqp_soft_error);
        let cause = cause.map(|error| error::amqp(format!("receive from queue {}", self.queue.name), error));
        let Source::Reopened(connect) = &self.source else {
            self.health.set_down("the channel or the subscription ended");
            return Err(loss::of_borrowed(&self.queue.name, cause));
        };
        let learned = timeout.filter(|timeout| self.keeper.learn(*timeout));
        let is_logged = loss::log(&self.queue, cause.as_ref(), timeout, learned.is_some(), planned);
        if !planned {
            self.health.set_lag(None);
            let reason =
                cause.map_or("the broker ended the subscription".to_owned(), |error| format!("{error:?}"));
            self.health.set_down(reason);
        }
        let former = former
            .filter(|_| alive)
            .and_then(|link| Some(Connected { connection: link.connection?, mended: link.mended }));
        let was_of_use = self.acker.has_delivered() || self.attached_at.elapsed() >= link::SHORT_LIFE;
        self.short_lives = match was_of_use || planned {
            true => 0,
            false => self.short_lives.saturating_add(1),
        };
        self.reopening = Some(tokio::spawn(link::reopen(
            Arc::clone(connect),
            self.queue.clone(),
            former,
            Arc::clone(&self.health),
            is_logged,
            self.short_lives,
        )));
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

    /// What is there from `first` on; empty if the pipeline has it all already.
    fn batch(&self, first: lapin::message::Delivery, link: &mut Link) -> Vec<Delivery> {
        // The broker's clock for a delivery runs since it was sent.
        let since = self.keeper.attention.since();
        let (mut taken, mut is_empty) = (vec![first], false);
        while taken.len() < BATCH && link.ended.is_none() {
            match link.stream.next().now_or_never() {
                Some(Some(Ok(delivery))) => taken.push(delivery),
                // For the next call: the stream says it once.
                Some(Some(Err(error))) => link.ended = Some(Some(error)),
                Some(None) => link.ended = Some(None),
                None => {
                    is_empty = true;
                    break;
                }
            }
        }
        self.keeper.attention.took(taken.len(), is_empty);
        self.health.received();
        link.mended.took(taken.len());
        let epoch = self.acker.delivered(&mut taken, since);
        let of = |delivery: lapin::message::Delivery| {
            let tag = Tag { epoch, number: delivery.delivery_tag };
            let mended = link.mended.take(link.channel.id(), delivery.delivery_tag);
            let message = message::from(delivery, Arc::clone(&self.origin), mended, &self.queue.own_headers);
            self.acker.keep(tag, &message, since);
            Delivery { message, tag }
        };
        taken.into_iter().map(of).collect()
    }

    /// Asks what a suspect is; a dropped call leaves it where it was.
    async fn clear(&mut self) -> Result<Option<lapin::message::Delivery>, Error> {
        let is_stream = match &self.source {
            Source::Reopened(connect) => probe::is_stream(Arc::clone(connect), &self.queue.name).await?,
            // There is no other connection to ask on; a stream delivers everything for the first time.
            Source::Borrowed => self.suspect.as_ref().is_some_and(|delivery| !delivery.redelivered),
        };
        if is_stream {
            let error = probe::is_a_stream(&self.queue.name);
            self.health.set_down(error.to_string());
            return Err(error);
        }
        Ok(self.suspect.take())
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.delayed_retry = self.queue.wait_queues_from.is_some();
        capabilities.ordered = self.queue.single_active_consumer;
        capabilities.ack_timeout = self.keeper.timeout();
        capabilities.delivery_limit = self.queue.delivery_limit;
        capabilities
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(self.acker.clone())
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        loop {
            if self.suspect.is_some()
                && let Some(first) = self.clear().await?
                && let Some(mut link) = self.link.take()
            {
                let batch = self.batch(first, &mut link);
                self.link = Some(link);
                if !batch.is_empty() {
                    return Ok(Some(batch));
                }
            }
            let Some(link) = &mut self.link else {
                self.reattach().await?;
                continue;
            };
            if self.acker.is_given_back() {
                // What the library still has of that channel is the broker's again.
                self.lost(None)?;
                continue;
            }
            if let Some(cause) = link.ended.take() {
                self.lost(cause)?;
                continue;
            }
            let next = match self.again.try_recv() {
                Ok(again) => Next::Again(again),
                Err(_) => match link.stream.next().now_or_never() {
                    Some(next) => Next::Stream(next),
                    None => {
                        let _receiving = self.keeper.attention.receiving();
                        tokio::select! {
                            biased;
                            Some(again) = self.again.recv(), if self.acker.wait_room().is_some() => Next::Again(again),
                            next = link.stream.next() => Next::Stream(next),
                        }
                    }
                },
            };
            let next = match next {
                Next::Again((tag, message)) => {
                    // What waited on a channel that is gone was delivered again by the broker.
                    if self.acker.is_current(tag) {
                        return Ok(Some(vec![Delivery { message, tag }]));
                    }
                    continue;
                }
                Next::Stream(next) => next,
            };
            match next {
                Some(Ok(first)) if probe::is_suspect(&first) => self.suspect = Some(first),
                Some(Ok(first)) => {
                    let Some(mut link) = self.link.take() else { continue };
                    let batch = self.batch(first, &mut link);
                    self.link = Some(link);
                    if !batch.is_empty() {
                        return Ok(Some(batch));
                    }
                }
                Some(Err(error)) => self.lost(Some(error))?,
                None => self.lost(None)?,
            }
        }
    }

    /// Asks for the length of the queue and of its wait queues.
    async fn is_idle(&mut self) -> Option<bool> {
        if self.acker.holds_some() {
            return Some(false);
        }
        let connection = self.link.as_ref()?.connection.as_ref()?;
        let empty = depth::is_empty(connection, &self.queue.name, self.acker.wait_room());
        tokio::time::timeout(REPLY_LIMIT, empty).await.ok()?
    }

    fn health(&self) -> Option<Arc<SourceHealth>> {
        Some(Arc::clone(&self.health))
    }

    async fn close(&mut self) -> Result<(), Error> {
        if let Some(reopening) = self.reopening.take() {
            reopening.abort();
        }
        self.gauge = None;
        let Some(link) = self.link.take() else { return Ok(()) };
        let closed = end(&self.acker, link).await;
        let operation = || format!("close the consumer of queue {}", self.queue.name);
        match closed {
            Some(closed) => closed.map_err(|error| error::amqp(operation(), error)),
            None => Err(error::timeout(
                operation(),
                format!(
                    "the broker did not answer within {CLOSE_LIMIT:?}; it gives the messages back by itself"
                ),
            )),
        }
    }
}

/// Sends the acknowledgements that wait, then closes. `None`: not in time, as on a half-open connection, where each step
/// would wait until it is known to be dead.
async fn end(acker: &RabbitAcker, link: Link) -> Option<lapin::Result<()>> {
    let closing = async {
        acker.flush().await;
        acker.detach(true);
        link::close(link).await
    };
    let closed = tokio::time::timeout(CLOSE_LIMIT, closing).await;
    acker.detach(true);
    closed.ok()
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
            Ok(runtime) => drop(runtime.spawn(async move { end(&acker, link).await })),
            Err(_) => drop(acker.detach(true)),
        }
    }
}
