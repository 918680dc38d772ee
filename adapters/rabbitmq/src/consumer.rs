//! Delivers the messages of a queue: [`RabbitmqConsumer`].

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use lapin::Channel;
#[cfg(doc)]
use onceward::ErrorKind;
use onceward::adapter::{Acker, Capabilities, Consumer, Delivery, Tag};
use onceward::telemetry::SourceHealth;
use onceward::{Error, Message};
use tokio::sync::mpsc;

use crate::acker::RabbitmqAcker;
use crate::config::{RabbitmqConfig, RabbitmqQueueConfig};
use crate::connection::RabbitmqClient;
use crate::connection::connector::AmqpConnector;
use crate::delay_queues::DelayQueues;
use crate::settle::ack_timeout::AckTimeoutGuard;
use crate::settle::retry_delays::RetryDelays;
use crate::subscription::reconnecting::ReconnectingSubscription;
use crate::subscription::{self, CLOSE_LIMIT, REPLY_LIMIT, Subscription, idle, stream_check};
use crate::{error, message};

/// The most deliveries in one batch.
const BATCH: usize = 256;

/// Consumes a queue.
///
/// With [`open`](Self::open) or [`from_client`](Self::from_client) it reconnects and resubscribes by itself: after a
/// lost connection, a closed channel, a cancelled subscription, or a queue that was deleted and declared again.
/// Unsettled messages are redelivered then; acknowledgements for the old deliveries are discarded, so that they cannot
/// acknowledge other messages.
///
/// It never declares a queue. While a queue is exclusive or missing, it keeps trying to subscribe.
pub struct RabbitmqConsumer {
    queue: RabbitmqQueueConfig,
    origin: Arc<str>,
    acker: RabbitmqAcker,
    subscription: ReconnectingSubscription,
    ack_timeout: AckTimeoutGuard,
    health: Arc<SourceHealth>,
    /// Messages whose retry delay in this process has ended; at most as many as are unacknowledged.
    redeliveries: mpsc::UnboundedReceiver<(Tag, Message)>,
    /// A first delivery that may be from a stream, until this is known.
    suspect: Option<lapin::message::Delivery>,
}

/// The next event: a message whose retry delay ended, or an event from the broker.
#[allow(clippy::large_enum_variant, reason = "it is matched where it is created")]
enum NextDelivery {
    Retried((Tag, Message)),
    Broker(Option<lapin::Result<lapin::message::Delivery>>),
}

impl RabbitmqConsumer {
    /// Connects and subscribes.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if values are invalid or the queue does not exist, [`ErrorKind::Denied`] if the broker
    /// refuses the credentials or rights are missing, [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] if it cannot
    /// be reached.
    pub async fn open(config: RabbitmqConfig) -> Result<Self, Error> {
        config.check()?;
        Self::subscribe(Arc::new(config.endpoint), config.queue).await
    }

    /// Connects with the caller's client and subscribes.
    ///
    /// Such connections are not sanitised: a message with a message id or header name that is not UTF-8, or with headers
    /// nested hundreds of levels deep, closes the connection or aborts the process. [`open`](Self::open) handles them.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn from_client(client: RabbitmqClient, queue: RabbitmqQueueConfig) -> Result<Self, Error> {
        queue.check()?;
        Self::subscribe(client.into_connector(), queue).await
    }

    /// Subscribes on a channel of the caller, which others may use too. Its prefetch is not changed, and every
    /// acknowledgement is a frame of its own. When the channel is closed, [`receive`](Consumer::receive) fails with
    /// [`ErrorKind::Unsupported`]: this consumer cannot open another one. For the same reason it cannot report whether the
    /// queue is idle, and a pipeline with `until_idle` is refused.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn from_channel(channel: Channel, queue: RabbitmqQueueConfig) -> Result<Self, Error> {
        queue.check()?;
        if queue.wait_queues_from.is_some() {
            let what = "delay queues need a connection of their own; use RabbitmqConsumer::from_client";
            return Err(error::config(format!("consume queue {}", queue.name), what));
        }
        let subscribed = subscription::subscribe(&channel, &queue).await;
        let stream = subscribed.map_err(|error| match stream_check::is_stream_refusal(&error) {
            true => stream_check::stream_error(&queue.name),
            false => error::classify(format!("consume queue {}", queue.name), error),
        })?;
        let subscription = Subscription {
            connection: None,
            channel,
            stream,
            defects: Arc::default(),
            lag_channel: None,
            ended: None,
        };
        Ok(Self::new(None, queue, subscription, None))
    }

    async fn subscribe(connector: Arc<dyn AmqpConnector>, queue: RabbitmqQueueConfig) -> Result<Self, Error> {
        // First the delay queues: an error after subscribing would requeue the received messages, each at the cost of a
        // delivery.
        let queues = match queue.wait_queues_from {
            Some(shortest) => Some(DelayQueues::open(Arc::clone(&connector), &queue, shortest).await?),
            None => None,
        };
        let subscription = subscription::open_subscription(&*connector, &queue, None).await?;
        Ok(Self::new(Some(connector), queue, subscription, queues))
    }

    fn new(
        connector: Option<Arc<dyn AmqpConnector>>,
        queue: RabbitmqQueueConfig,
        first: Subscription,
        queues: Option<DelayQueues>,
    ) -> Self {
        let (sender, redeliveries) = mpsc::unbounded_channel();
        let delays = queues.map(|queues| RetryDelays { queues, redeliveries: sender });
        let acker = RabbitmqAcker::new(queue.prefetch, queue.ack_delay, delays);
        let ack_timeout = AckTimeoutGuard::start(&acker, &queue, connector.is_some());
        let health = Arc::<SourceHealth>::default();
        let mut subscription =
            ReconnectingSubscription::new(connector, queue.clone(), acker.clone(), Arc::clone(&health));
        subscription.attach(first, &ack_timeout);
        Self {
            origin: queue.name.as_str().into(),
            acker,
            redeliveries,
            subscription,
            ack_timeout,
            health,
            suspect: None,
            queue,
        }
    }

    /// Starts to resubscribe after the subscription ended, or fails if the channel belongs to the caller.
    fn resubscribe(&mut self, cause: Option<lapin::Error>) -> Result<(), Error> {
        self.suspect = None;
        self.subscription.replace(cause, &self.ack_timeout)
    }

    /// Collects `first` and the deliveries that are buffered; empty if the pipeline has them all already.
    fn collect_batch(&mut self, first: lapin::message::Delivery) -> Vec<Delivery> {
        let Some(subscription) = &mut self.subscription.current else { return Vec::new() };
        // The ack timeout of a delivery starts when the broker sends it.
        let since = self.ack_timeout.buffer_age.received_since();
        let (mut taken, mut is_empty) = (vec![first], false);
        while taken.len() < BATCH && subscription.ended.is_none() {
            match subscription.stream.next().now_or_never() {
                Some(Some(Ok(delivery))) => taken.push(delivery),
                // Kept for the next call: the stream reports it once.
                Some(Some(Err(error))) => subscription.ended = Some(Some(error)),
                Some(None) => subscription.ended = Some(None),
                None => {
                    is_empty = true;
                    break;
                }
            }
        }
        self.ack_timeout.buffer_age.add_taken(taken.len(), is_empty);
        self.health.received();
        subscription.defects.add_taken(taken.len());
        let epoch = self.acker.delivered(&mut taken, since);
        let to_delivery = |delivery: lapin::message::Delivery| {
            let tag = Tag { epoch, number: delivery.delivery_tag };
            let defects = subscription.defects.take(subscription.channel.id(), delivery.delivery_tag);
            let message =
                message::to_message(delivery, Arc::clone(&self.origin), defects, &self.queue.own_headers);
            self.acker.add_unsettled(tag, &message, since);
            Delivery { message, tag }
        };
        taken.into_iter().map(to_delivery).collect()
    }

    /// Waits for the next event; `None` if the subscription was replaced or is being replaced.
    ///
    /// # Cancel safety
    /// A dropped call loses no event.
    async fn next_event(&mut self) -> Result<Option<NextDelivery>, Error> {
        let Some(subscription) = &mut self.subscription.current else {
            self.subscription.wait_for_replacement(&self.ack_timeout).await?;
            return Ok(None);
        };
        if self.acker.is_released() {
            // Deliveries that the library has buffered on that channel were requeued.
            self.resubscribe(None)?;
            return Ok(None);
        }
        if let Some(cause) = subscription.ended.take() {
            self.resubscribe(cause)?;
            return Ok(None);
        }
        if let Ok(retried) = self.redeliveries.try_recv() {
            return Ok(Some(NextDelivery::Retried(retried)));
        }
        if let Some(next) = subscription.stream.next().now_or_never() {
            return Ok(Some(NextDelivery::Broker(next)));
        }
        let _receiving = self.ack_timeout.buffer_age.receiving();
        let next = tokio::select! {
            biased;
            Some(retried) = self.redeliveries.recv(), if self.acker.delay_queues().is_some() => {
                NextDelivery::Retried(retried)
            }
            next = subscription.stream.next() => NextDelivery::Broker(next),
        };
        Ok(Some(next))
    }

    /// Checks whether the suspect is from a stream.
    ///
    /// # Cancel safety
    /// A dropped call leaves the suspect in place.
    async fn check_suspect(&mut self) -> Result<Option<lapin::message::Delivery>, Error> {
        let is_stream = match self.subscription.connector() {
            Some(connector) => stream_check::is_stream(Arc::clone(connector), &self.queue.name).await?,
            // There is no other connection to query on; a stream delivers everything for the first time.
            None => self.suspect.as_ref().is_some_and(|delivery| !delivery.redelivered),
        };
        if is_stream {
            let error = stream_check::stream_error(&self.queue.name);
            self.health.set_down(error.to_string());
            return Err(error);
        }
        Ok(self.suspect.take())
    }
}

#[async_trait]
impl Consumer for RabbitmqConsumer {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.delayed_retry = self.queue.wait_queues_from.is_some();
        // A channel of the caller's is busy with the subscription; queues are queried on others.
        capabilities.reports_idle = self.subscription.connector().is_some();
        capabilities.ordered = self.queue.single_active_consumer;
        capabilities.ack_timeout = self.ack_timeout.timeout();
        capabilities.delivery_limit = self.queue.delivery_limit;
        capabilities
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(self.acker.clone())
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        loop {
            if self.suspect.is_some()
                && let Some(first) = self.check_suspect().await?
            {
                let batch = self.collect_batch(first);
                if !batch.is_empty() {
                    return Ok(Some(batch));
                }
            }
            match self.next_event().await? {
                Some(NextDelivery::Retried((tag, message))) if self.acker.is_current(tag) => {
                    return Ok(Some(vec![Delivery { message, tag }]));
                }
                // The broker redelivers messages of a closed channel.
                Some(NextDelivery::Retried(_)) | None => {}
                Some(NextDelivery::Broker(Some(Ok(first)))) if stream_check::may_be_from_stream(&first) => {
                    self.suspect = Some(first);
                }
                Some(NextDelivery::Broker(Some(Ok(first)))) => {
                    let batch = self.collect_batch(first);
                    if !batch.is_empty() {
                        return Ok(Some(batch));
                    }
                }
                Some(NextDelivery::Broker(Some(Err(error)))) => self.resubscribe(Some(error))?,
                Some(NextDelivery::Broker(None)) => self.resubscribe(None)?,
            }
        }
    }

    /// Queries the length of the queue and of its delay queues.
    async fn is_idle(&mut self) -> Option<bool> {
        if self.acker.has_delayed() {
            return Some(false);
        }
        let connection = self.subscription.current.as_ref()?.connection.as_ref()?;
        let empty = idle::is_empty(connection, &self.queue.name, self.acker.delay_queues());
        tokio::time::timeout(REPLY_LIMIT, empty).await.ok()?
    }

    fn health(&self) -> Option<Arc<SourceHealth>> {
        Some(Arc::clone(&self.health))
    }

    async fn close(&mut self) -> Result<(), Error> {
        let Some(subscription) = self.subscription.take_for_close() else { return Ok(()) };
        let closed = flush_and_close(&self.acker, subscription).await;
        let operation = || format!("close the consumer of queue {}", self.queue.name);
        match closed {
            Some(closed) => closed.map_err(|error| error::classify(operation(), error)),
            None => Err(error::timeout(
                operation(),
                format!(
                    "no answer from the broker within {CLOSE_LIMIT:?}; it requeues the messages by itself"
                ),
            )),
        }
    }
}

/// Sends waiting acknowledgements, then closes. `None`: not finished in time, as on a half-open connection, where each
/// step would wait until the connection is known to be dead.
async fn flush_and_close(acker: &RabbitmqAcker, subscription: Subscription) -> Option<lapin::Result<()>> {
    let closing = async {
        acker.flush().await;
        acker.detach(true);
        subscription::close_subscription(subscription).await
    };
    let closed = tokio::time::timeout(CLOSE_LIMIT, closing).await;
    acker.detach(true);
    closed.ok()
}

impl fmt::Debug for RabbitmqConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitmqConsumer").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Drop for RabbitmqConsumer {
    /// Behaves like a crash of the process, except that waiting acknowledgements are still sent.
    fn drop(&mut self) {
        let Some(subscription) = self.subscription.take_for_close() else { return };
        let acker = self.acker.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { flush_and_close(&acker, subscription).await })),
            Err(_) => drop(acker.detach(true)),
        }
    }
}
