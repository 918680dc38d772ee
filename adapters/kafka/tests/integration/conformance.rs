//! The broker suite against a real Kafka, from config and from the user's own client configuration and context.

use std::time::Duration;

use async_trait::async_trait;
use onceward::testing::broker::BrokerHarness;
use onceward_kafka::{KafkaConsumer, TopicConfig};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;

use crate::support::{Topic, until};

/// How the consumer is built.
#[derive(Clone, Copy)]
enum By {
    Config,
    Client(&'static str),
}

struct KafkaHarness {
    topic: Topic,
    by: By,
}

impl KafkaHarness {
    async fn new(by: By) -> Self {
        Self { topic: Topic::new(1).await, by }
    }
}

/// A context of the user's.
struct Own;

impl ClientContext for Own {}

#[async_trait]
impl BrokerHarness for KafkaHarness {
    type Consumer = KafkaConsumer;

    async fn publish(&self, payloads: &[String]) {
        for payload in payloads {
            self.topic.send(0, None, Some(payload)).await;
        }
    }

    /// Waits for the partition: silence of a consumer without one would prove nothing.
    async fn open(&self) -> KafkaConsumer {
        let By::Client(strategy) = self.by else { return self.topic.open().await };
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.topic.bootstrap)
            .set("group.id", &self.topic.group)
            .set("partition.assignment.strategy", strategy);
        let topics = TopicConfig::new([&self.topic.name]);
        let consumer = KafkaConsumer::from_client(client, Own, topics).await.unwrap();
        until("partitions are assigned", || consumer.assigned_partitions() > 0).await;
        consumer
    }

    /// From an assignment to its first record.
    fn quiet(&self) -> Duration {
        Duration::from_secs(2)
    }
}

mod cooperative_by_config {
    use super::*;
    onceward::broker_conformance!(KafkaHarness::new(By::Config).await);
}

mod eager_by_client_config {
    use super::*;
    onceward::broker_conformance!(KafkaHarness::new(By::Client("range")).await);
}
