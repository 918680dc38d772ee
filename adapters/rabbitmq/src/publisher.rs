//! Publishes messages with publisher confirms: [`RabbitmqPublisher`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::{Error, Outgoing, OwnHeaders, Publisher};

use crate::connection::RabbitmqClient;
use crate::connection::connector::AmqpConnector;
use crate::connection::endpoint::RabbitmqEndpoint;
use crate::publish::confirm_channel::{ConfirmChannel, PublishContext};
use crate::publish::publishing::Publishing;

/// Publishes messages, persistent and confirmed by the broker. A message that no queue accepts is an error.
///
/// A destination is the name of a queue, or `exchange/routing-key`; the name of a queue with slashes is written with a
/// leading slash. A message from a [`RabbitmqConsumer`](crate::RabbitmqConsumer) is published unchanged, with its
/// header types and properties. Headers of a message from another broker become properties if their names are those
/// that the consumer gives to properties. [`Outgoing::id`] becomes the message id, [`Outgoing::own_id`] the header
/// `onceward-id`.
///
/// A message that the broker refuses (no such exchange, missing right, too large) fails alone.
///
/// The publisher has a connection of its own, since RabbitMQ blocks whole connections during a memory or disk alarm,
/// and reconnects by itself. Batches are published one by one: returned messages could not be assigned to their batch
/// otherwise.
pub struct RabbitmqPublisher {
    channel: ConfirmChannel,
    own: OwnHeaders,
}

impl RabbitmqPublisher {
    /// The default timeout of a batch, connecting and a blocked broker included.
    pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(8);

    /// Connects.
    ///
    /// # Errors
    /// `Config` if the endpoint's values are invalid, `Denied` if the broker refuses, `Unavailable` or `Timeout` if it
    /// cannot be reached.
    pub async fn open(endpoint: RabbitmqEndpoint) -> Result<Self, Error> {
        endpoint.check()?;
        Self::connect(Arc::new(endpoint)).await
    }

    /// Connects with the caller's client, which must not be shared with a consumer.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn from_client(client: RabbitmqClient) -> Result<Self, Error> {
        Self::connect(client.into_connector()).await
    }

    async fn connect(connect: Arc<dyn AmqpConnector>) -> Result<Self, Error> {
        let channel = ConfirmChannel::open(connect, Self::CONFIRM_TIMEOUT).await?;
        Ok(Self { channel, own: OwnHeaders::default() })
    }

    /// Seals exchange, routing key and user id in dead letters, so that they are trusted when the letter is redriven.
    /// The pipeline seals the rest. Only for dead letters of this broker's consumers.
    #[must_use]
    pub fn own_headers(mut self, own: OwnHeaders) -> Self {
        self.own = own;
        self
    }

    pub(crate) fn limit(&self) -> Duration {
        self.channel.limit
    }

    /// Sets the timeout of a batch, after which its outcome is unknown. It should be shorter than the pipeline's
    /// publish timeout, so that the error names the cause.
    #[must_use]
    pub fn confirm_timeout(mut self, limit: Duration) -> Self {
        self.channel.limit = limit;
        self
    }
}

impl fmt::Debug for RabbitmqPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitmqPublisher")
            .field("confirm_timeout", &self.channel.limit)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Publisher for RabbitmqPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        if batch.is_empty() {
            return Vec::new();
        }
        let build = async |context: PublishContext<'_>| {
            batch.iter().map(|outgoing| Publishing::new(outgoing, context.frame_max, &self.own)).collect()
        };
        self.channel.publish(batch.len(), build).await
    }
}
