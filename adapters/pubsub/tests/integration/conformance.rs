//! The broker conformance suite on a real server: subscriptions without and with order, and with exactly-once delivery.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use google_cloud_pubsub::model::Message;
use onceward::Error;
use onceward::adapter::{Acker, Capabilities, Consumer, Delivery};
use onceward::testing::broker::BrokerHarness;
use onceward_pubsub::PubsubConsumer;
use serde_json::json;

use crate::support::Place;

/// A subscription of its own on a server that the tests share.
struct PubsubHarness {
    place: Place,
    ordered: bool,
}

impl PubsubHarness {
    fn new(name: &str, ordered: bool, exactly_once: bool) -> Self {
        let properties = json!({"enableMessageOrdering": ordered, "enableExactlyOnceDelivery": exactly_once});
        Self { place: Place::create(name, &properties), ordered }
    }
}

/// A consumer whose messages each have an ordering key of their own: between keys Pub/Sub keeps no order.
struct AcrossKeys(PubsubConsumer);

#[async_trait]
impl Consumer for AcrossKeys {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.0.capabilities();
        capabilities.ordered = false;
        capabilities
    }

    fn acker(&self) -> Arc<dyn Acker> {
        self.0.acker()
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        self.0.receive().await
    }

    async fn is_idle(&mut self) -> Option<bool> {
        self.0.is_idle().await
    }

    async fn close(&mut self) -> Result<(), Error> {
        self.0.close().await
    }
}

#[async_trait]
impl BrokerHarness for PubsubHarness {
    type Consumer = AcrossKeys;

    /// A key for each message: the server delivers no more of a key while one of it is held, and the suite takes more than
    /// one batch before it settles. Order within keys is shown by `tests/pipeline.rs`.
    async fn publish(&self, payloads: &[String]) {
        let message = |(number, payload): (usize, &String)| {
            let message = Message::new().set_data(payload.clone());
            if self.ordered { message.set_ordering_key(format!("key-{number}")) } else { message }
        };
        self.place.publish(payloads.iter().enumerate().map(message)).await;
    }

    async fn open(&self) -> AcrossKeys {
        let mut config = self.place.config();
        config.subscription.ordered = self.ordered;
        config.subscription.call_timeout = Duration::from_secs(20);
        AcrossKeys(PubsubConsumer::open(config).await.unwrap())
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(120)
    }

    fn quiet(&self) -> Duration {
        Duration::from_millis(700)
    }
}

mod plain {
    use super::*;
    onceward::broker_conformance!(PubsubHarness::new("plain", false, false));
}

mod ordered {
    use super::*;
    onceward::broker_conformance!(PubsubHarness::new("ordered", true, false));
}

mod exactly_once {
    use super::*;
    onceward::broker_conformance!(PubsubHarness::new("exactly-once", false, true));
}
