//! Publishing of messages, confirmed by the broker: [`Publisher`].

mod gathered;

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Error;
use crate::message::Native;

pub use gathered::GatheredPublisher;

/// A message to be sent: a dead letter, a retry, an outbox row, a bridged message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// Queue, exchange/routing key, topic, queue URL or file path, as the adapter understands it.
    pub destination: String,
    /// The message id, for consumers downstream: the producer's, or one of ours that is the same across repeated publishes
    /// of one message. Empty: the message has none.
    pub id: String,
    /// Our own id of a letter or a bridged message, the same across repeated publishes. It is sent in the header
    /// `onceward-id`, beside the message id and never instead of it. Empty: none.
    pub own_id: String,
    /// The ordering key, if there is one.
    pub order_key: Option<Bytes>,
    /// Headers, in order.
    pub headers: Vec<(String, Bytes)>,
    /// The payload.
    pub payload: Bytes,
    /// There is no payload at all, as in a Kafka tombstone. Brokers without such messages send an empty one.
    pub null_payload: bool,
    /// When the message was made, if that is to stay; otherwise the broker's time.
    pub timestamp: Option<SystemTime>,
    /// The message in the form of the broker it came from. A publisher of the same broker sends its headers and properties
    /// unchanged; of `headers` it then adds those that start with `onceward-` and those that the native form lacks, and
    /// those of which [`replaces_native`](Self::replaces_native) is true instead of the native ones.
    pub native: Option<Native>,
}

/// Sends messages, confirmed.
#[async_trait]
pub trait Publisher: Send + Sync + 'static {
    /// Sends a batch; one result for each item, in order. `Ok` means that the broker has confirmed it durably;
    /// a message that was returned as unroutable is an error.
    ///
    /// # Errors
    /// An error means *unknown*: the message may have arrived. Repeating it gives a copy with the same
    /// [`Outgoing::id`] and [`Outgoing::own_id`]. [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge) means that the message
    /// can never fit as it is.
    ///
    /// # Cancel safety
    /// A dropped call may or may not have sent any of the batch.
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>>;
}
