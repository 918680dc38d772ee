//! Publishes, confirmed, on a connection of its own: [`RabbitPublisher`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::Connection;
use onceward::{Error, Outgoing, OwnHeaders, Publisher};

use crate::connection::{Connect, Factory};
use crate::endpoint::Endpoint;
use crate::line::Line;
use crate::outgoing::Letter;

/// Publishes messages, persistent and confirmed by the broker. A message that no queue takes is an error.
///
/// A destination is the name of a queue, or `exchange/routing-key`; a queue whose name has slashes in it is written with
/// one in front. A message that [`RabbitConsumer`](crate::RabbitConsumer) delivered is sent as it came, with the types of
/// its headers and its properties. Of another broker's, the header names that the consumer gives to properties become these
/// properties. [`Outgoing::id`] becomes the message id, [`Outgoing::own_id`] the header `onceward-id`.
///
/// A message that the broker does not accept (no such exchange, no right, too large) fails alone.
///
/// It has a connection of its own, for RabbitMQ blocks publishing connections as a whole while it is short of memory or disk.
/// It connects again by itself. One batch is under way at a time: what a broker returns cannot be told apart otherwise.
pub struct RabbitPublisher {
    line: Line,
    own: OwnHeaders,
}

impl RabbitPublisher {
    /// How long a batch may take by default, connecting and a blocked broker included.
    pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(8);

    /// Connects.
    ///
    /// # Errors
    /// `Config` if the endpoint's values cannot be used, `Denied` if the broker refuses, `Unavailable` or `Timeout` if it
    /// cannot be reached.
    pub async fn open(endpoint: Endpoint) -> Result<Self, Error> {
        endpoint.check()?;
        Self::opened(Arc::new(endpoint)).await
    }

    /// Publishes on a connection that `factory` makes; it is called again whenever the connection is lost. Each connection
    /// should be new, not that of a consumer, and without automatic recovery.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn from_connection<F, Fut>(factory: F) -> Result<Self, Error>
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = lapin::Result<Connection>> + Send + 'static,
    {
        Self::opened(Arc::new(Factory(factory))).await
    }

    async fn opened(connect: Arc<dyn Connect>) -> Result<Self, Error> {
        let line = Line::open(connect, Self::CONFIRM_TIMEOUT).await?;
        Ok(Self { line, own: OwnHeaders::default() })
    }

    /// Seals what the broker said of a message in its dead letter (exchange, routing key, user id), so that it is believed when
    /// the letter is moved back. The pipeline seals the rest. Only for dead letters of this broker's consumers.
    #[must_use]
    pub fn own_headers(mut self, own: OwnHeaders) -> Self {
        self.own = own;
        self
    }

    /// Sets how long a batch may take until its outcome is called unknown. It should be less than the pipeline's publish
    /// timeout, so that the error says what was wrong.
    #[must_use]
    pub fn confirm_timeout(mut self, limit: Duration) -> Self {
        self.line.limit = limit;
        self
    }
}

#[async_trait]
impl Publisher for RabbitPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        if batch.is_empty() {
            return Vec::new();
        }
        let letters = async |terms: crate::line::Terms<'_>| {
            batch.iter().map(|outgoing| Letter::new(outgoing, terms.frame_max, &self.own)).collect()
        };
        self.line.publish(batch.len(), letters).await
    }
}
