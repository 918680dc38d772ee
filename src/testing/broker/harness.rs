//! The broker under test: [`BrokerHarness`], and its implementation for the memory broker.

use std::time::Duration;

use async_trait::async_trait;

use crate::consumer::Consumer;
use crate::message::Message;
use crate::testing::{Habits, MemoryBroker, MemoryConsumer};

/// A broker under test. Each value has a queue, topic or file of its own, empty at first.
#[async_trait]
pub trait BrokerHarness: Send + Sync {
    /// The consumer.
    type Consumer: Consumer;

    /// Publishes one message for each payload, in order, and returns once they can be delivered. A payload is
    /// a short line of text.
    async fn publish(&self, payloads: &[String]);

    /// Opens a consumer of what was published. A second call, after the first consumer was closed, goes on where that
    /// one stopped. At most one consumer is open at any moment.
    async fn open(&self) -> Self::Consumer;

    /// How long a message may take to come.
    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }

    /// How long nothing must come until the source counts as silent.
    fn quiet(&self) -> Duration {
        Duration::from_millis(300)
    }
}

/// The harness of [`MemoryBroker`].
#[derive(Debug)]
pub struct MemoryBrokerHarness {
    broker: MemoryBroker,
}

impl MemoryBrokerHarness {
    /// A broker without faults.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self::with(Habits::default())
    }

    /// A broker with these habits.
    pub fn with(habits: Habits) -> Self {
        Self { broker: MemoryBroker::new(habits) }
    }
}

#[async_trait]
impl BrokerHarness for MemoryBrokerHarness {
    type Consumer = MemoryConsumer;

    async fn publish(&self, payloads: &[String]) {
        payloads.iter().for_each(|payload| self.broker.publish(Message::builder(payload.clone())));
    }

    async fn open(&self) -> MemoryConsumer {
        // The consumer before may have been dropped with deliveries in flight, as a connection that breaks.
        self.broker.disconnect();
        self.broker.consumer()
    }
}
