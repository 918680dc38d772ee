//! Shared test support: queues on a real broker, raw AMQP, and polling until a condition holds.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod hostile;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use onceward::Outgoing;
use onceward::adapter::{Consumer, Delivery};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer};
use onceward_test_servers::rabbitmq::RabbitMq;

/// The kinds of queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Classic,
    Quorum,
}

/// A plain connection for what the tests do beside the code under test.
pub struct Admin {
    pub connection: Connection,
    pub channel: Channel,
}

impl Admin {
    pub async fn connect(broker: &RabbitMq) -> Self {
        log();
        let connection = Connection::connect(&broker.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(Default::default()).await.unwrap();
        Self { connection, channel }
    }

    pub async fn declare(&self, queue: &str, kind: Kind) {
        self.declare_with(queue, kind, &[]).await;
    }

    pub async fn declare_with(&self, queue: &str, kind: Kind, arguments: &[(&str, AMQPValue)]) {
        let mut table = FieldTable::default();
        if kind == Kind::Quorum {
            table.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        }
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(queue.into(), options, table).await.unwrap();
    }

    pub async fn delete(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), Default::default()).await.unwrap();
    }

    /// Publishes, persistent and confirmed; the message id is the payload.
    pub async fn publish(&self, queue: &str, payloads: impl IntoIterator<Item = String>) {
        let mut confirms = Vec::new();
        for payload in payloads {
            let properties =
                BasicProperties::default().with_delivery_mode(2).with_message_id(payload.as_str().into());
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let sent =
                self.channel.basic_publish("".into(), queue.into(), options, payload.as_bytes(), properties);
            confirms.push(sent.await.unwrap());
        }
        for confirm in confirms {
            assert!(matches!(confirm.await.unwrap(), lapin::Confirmation::Ack(None)));
        }
    }

    /// Takes all messages of a queue.
    pub async fn drain(&self, queue: &str) -> Vec<lapin::message::Delivery> {
        let mut taken = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(message) = self.channel.basic_get(queue.into(), options).await.unwrap() {
            taken.push(message.delivery);
        }
        taken
    }
}

/// Shows what the code under test logs, with `RUST_LOG` as its filter.
pub fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

/// A name that no other test of this process uses.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A declared queue of its own and a consumer of it.
pub async fn consumer_of(broker: &RabbitMq, admin: &Admin, kind: Kind) -> (String, RabbitmqConsumer) {
    let queue = unique("queue");
    admin.declare(&queue, kind).await;
    let consumer = RabbitmqConsumer::open(RabbitmqConfig::new(broker.url(), &queue)).await.unwrap();
    (queue, consumer)
}

/// The next `count` deliveries, within 20 s.
pub async fn take(consumer: &mut RabbitmqConsumer, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let received = tokio::time::timeout(Duration::from_secs(60), consumer.receive()).await;
        let received = received.unwrap_or_else(|_| panic!("nothing more came after {}", deliveries.len()));
        deliveries.extend(received.unwrap().unwrap());
    }
    deliveries
}

pub fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.payload().to_vec()).unwrap()
}

/// Waits until `so`, asking every 20 ms, for at most `limit`.
pub async fn until(limit: Duration, what: &str, mut so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + limit;
    while !so().await {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The broker of all tests of this process.
pub async fn shared() -> &'static RabbitMq {
    tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap()
}

/// A message with its id as payload.
pub fn outgoing(destination: &str, id: &str) -> Outgoing {
    Outgoing {
        destination: destination.to_owned(),
        id: id.to_owned(),
        payload: id.to_owned().into(),
        ..Outgoing::default()
    }
}
