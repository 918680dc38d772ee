//! The broker conformance suite on a real RabbitMQ: classic and quorum queues, with our connections, with a client and
//! with a channel of the caller.

use async_trait::async_trait;
use lapin::{Connection, ConnectionProperties};
use onceward::testing::broker::BrokerHarness;
use onceward_rabbitmq::{RabbitmqClient, RabbitmqConfig, RabbitmqConsumer, RabbitmqQueueConfig};
use onceward_test_servers::rabbitmq::RabbitMq;

use crate::support::{Admin, Kind, unique};

/// The way in which the consumer gets its channel.
#[derive(Clone, Copy)]
enum By {
    Url,
    /// With wait queues for all delays that may have them.
    UrlWaiting,
    Connection,
    Channel,
}

struct RabbitHarness {
    queue: String,
    admin: Admin,
    by: By,
}

impl RabbitHarness {
    async fn new(kind: Kind, by: By) -> Self {
        let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
        let admin = Admin::connect(broker).await;
        let queue = unique("conformance");
        admin.declare(&queue, kind).await;
        Self { queue, admin, by }
    }
}

async fn connect() -> lapin::Result<Connection> {
    Connection::connect(&RabbitMq::shared().url(), ConnectionProperties::default()).await
}

#[async_trait]
impl BrokerHarness for RabbitHarness {
    type Consumer = RabbitmqConsumer;

    async fn publish(&self, payloads: &[String]) {
        self.admin.publish(&self.queue, payloads.iter().cloned()).await;
    }

    async fn open(&self) -> RabbitmqConsumer {
        let mut queue = RabbitmqQueueConfig::new(&self.queue);
        // One check takes 600 messages without settling any.
        queue.prefetch = 1000;
        let opened = match self.by {
            By::Url | By::UrlWaiting => {
                if matches!(self.by, By::UrlWaiting) {
                    queue.wait_queues_from = Some(std::time::Duration::from_millis(100));
                }
                let mut config = RabbitmqConfig::new(RabbitMq::shared().url(), &self.queue);
                config.queue = queue;
                RabbitmqConsumer::open(config).await
            }
            By::Connection => RabbitmqConsumer::from_client(RabbitmqClient::new(connect), queue).await,
            By::Channel => {
                let channel = connect().await.unwrap().create_channel().await.unwrap();
                RabbitmqConsumer::from_channel(channel, queue).await
            }
        };
        opened.unwrap()
    }
}

mod classic_by_url {
    use super::*;
    onceward::broker_conformance!(RabbitHarness::new(Kind::Classic, By::Url).await);
}

mod quorum_by_url {
    use super::*;
    onceward::broker_conformance!(RabbitHarness::new(Kind::Quorum, By::Url).await);
}

mod classic_by_connection {
    use super::*;
    onceward::broker_conformance!(RabbitHarness::new(Kind::Classic, By::Connection).await);
}

mod quorum_by_channel {
    use super::*;
    onceward::broker_conformance!(RabbitHarness::new(Kind::Quorum, By::Channel).await);
}

mod quorum_with_wait_queues {
    use super::*;
    onceward::broker_conformance!(RabbitHarness::new(Kind::Quorum, By::UrlWaiting).await);
}
