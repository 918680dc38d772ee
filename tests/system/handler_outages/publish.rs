//! `[handler.publish]` whose target is unavailable: a Kafka topic that is missing, or a broker that is stopped.

use onceward_test_servers::kafka::Kafka;
use onceward_test_support::process::Running;
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::Value;

use super::{Away, ORDERS, RECORD_LIMIT, completed, ids};
use crate::kafka::topic::Topic;
use crate::pair::scene;

/// The topic that it publishes to is missing or, with a broker of its own, that broker is stopped.
pub(super) struct Publish {
    topic: String,
    own: Option<Kafka>,
}

impl Publish {
    pub(super) fn to_a_missing_topic(broker: &str) -> Self {
        Self { topic: format!("away-publish-{broker}-target"), own: None }
    }

    pub(super) fn to_a_stopped_broker() -> Self {
        Self { topic: "away-publish-target".to_owned(), own: Some(Kafka::start()) }
    }

    fn broker(&self) -> &Kafka {
        self.own.as_ref().unwrap_or_else(|| Kafka::shared())
    }

    fn topic(&self) -> Topic<'_> {
        Topic::named(self.broker(), &self.topic, 1)
    }

    fn create(&self) {
        Topic::create_with_record_limit(self.broker(), &self.topic, 1, RECORD_LIMIT);
    }
}

impl Away for Publish {
    fn prepare(&mut self, setup: Setup) -> (Scene, Running) {
        self.create();
        let setup = setup
            .without("handler")
            .set("handler.publish.kafka.brokers", vec![self.broker().bootstrap()])
            .set("handler.publish.kafka.topic", self.topic.as_str());
        let scene = scene(&setup);
        let running = scene.run();
        (scene, running)
    }

    fn leave(&mut self, _scene: &Scene) {
        match &mut self.own {
            Some(broker) => broker.stop(),
            None => self.topic().delete(),
        }
    }

    fn come_back(&mut self, _scene: &Scene) {
        match &mut self.own {
            Some(broker) => broker.start_again(),
            None => self.create(),
        }
    }

    fn nothing_happened(&self, scene: &Scene) -> bool {
        completed(scene).is_empty()
    }

    fn is_done(&self, scene: &Scene) -> bool {
        if completed(scene).len() < ORDERS {
            return false;
        }
        let records = self.topic().records();
        let orders = records.iter().map(|record| serde_json::from_slice::<Value>(&record.payload));
        let mut arrived: Vec<_> = orders
            .map(|order| order.expect("an order is JSON")["id"].as_str().expect("an id").to_owned())
            .collect();
        arrived.sort_unstable();
        assert_eq!(arrived, ids(), "records in the topic after the outage");
        true
    }
}
