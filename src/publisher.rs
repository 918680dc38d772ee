//! Sends messages and returns once the broker has confirmed them: [`Publisher`].

mod gathered;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Error;

pub use gathered::GatheredPublisher;

/// A message to be sent: a dead letter, a retry, an outbox row, a bridged message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// Queue, exchange/routing key, topic, queue URL or file path, as the adapter understands it.
    pub destination: String,
    /// The idempotency key for consumers downstream: the same across repeated publishes of one message.
    pub id: String,
    /// The ordering key, if there is one.
    pub order_key: Option<Bytes>,
    /// Headers, in order.
    pub headers: Vec<(String, Bytes)>,
    /// The payload.
    pub payload: Bytes,
}

/// Sends messages, confirmed.
#[async_trait]
pub trait Publisher: Send + Sync + 'static {
    /// Sends a batch; one result for each item, in order. `Ok` means that the broker has confirmed it durably;
    /// a message that was returned as unroutable is an error.
    ///
    /// # Errors
    /// An error means *unknown*: the message may have arrived. Repeating it gives a copy with the same
    /// [`Outgoing::id`].
    ///
    /// # Cancel safety
    /// A dropped call may or may not have sent any of the batch.
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>>;
}
