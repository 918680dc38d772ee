//! A queue of the broker that the tests of this process share, and its producers.

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use onceward::{Outgoing, Publisher};
use onceward_rabbitmq::{RabbitmqEndpoint, RabbitmqPublisher, RabbitmqQueueStatus};
use onceward_test_servers::rabbitmq::RabbitMq;
use tokio::runtime::Runtime;

use crate::pair::Waiting;

/// A durable queue of its own for one test.
pub(crate) struct Queue<'a> {
    pub(crate) broker: &'a RabbitMq,
    pub(crate) name: String,
}

impl Queue<'static> {
    /// Declares `name` on the broker that the tests share, with such arguments.
    pub(crate) fn declare(name: &str, arguments: &[(&str, AMQPValue)]) -> Self {
        Self::declare_on(RabbitMq::shared(), name, arguments)
    }
}

impl<'a> Queue<'a> {
    /// As [`declare`](Queue::declare), on another broker.
    pub(crate) fn declare_on(broker: &'a RabbitMq, name: &str, arguments: &[(&str, AMQPValue)]) -> Self {
        let queue = Self { broker, name: name.to_owned() };
        let mut table = FieldTable::default();
        for (argument, value) in arguments {
            table.insert((*argument).into(), value.clone());
        }
        runtime().block_on(async {
            let connected = Connection::connect(&queue.broker.url(), ConnectionProperties::default()).await;
            let channel = connected.expect("a connection").create_channel().await.expect("a channel");
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            channel.queue_declare(name.into(), options, table).await.expect("a queue");
        });
        queue
    }

    /// Deletes it on the broker.
    pub(crate) fn delete(&self) {
        runtime().block_on(async {
            let connected = Connection::connect(&self.broker.url(), ConnectionProperties::default()).await;
            let channel = connected.expect("a connection").create_channel().await.expect("a channel");
            let options = QueueDeleteOptions::default();
            channel.queue_delete(self.name.as_str().into(), options).await.expect("it is deleted");
        });
    }

    pub(crate) fn message(&self, line: &str) -> Outgoing {
        Outgoing {
            destination: self.name.clone(),
            payload: line.as_bytes().to_vec().into(),
            ..Outgoing::default()
        }
    }

    /// Publishes messages; all are confirmed.
    pub(crate) fn publish_all(&self, messages: &[Outgoing]) {
        runtime().block_on(async {
            let publisher =
                RabbitmqPublisher::open(RabbitmqEndpoint::new(self.broker.url())).await.expect("a publisher");
            for batch in messages.chunks(500) {
                for published in publisher.publish(batch).await {
                    published.expect("a confirm");
                }
            }
        });
    }

    /// The message id and payload of every message; all stay in the queue.
    pub(super) fn look(&self) -> Vec<(String, Vec<u8>)> {
        runtime().block_on(async {
            let connected = Connection::connect(&self.broker.url(), ConnectionProperties::default()).await;
            let connection = connected.expect("a connection");
            let channel = connection.create_channel().await.expect("a channel");
            let mut found = Vec::new();
            let get = BasicGetOptions::default();
            while let Some(message) =
                channel.basic_get(self.name.as_str().into(), get).await.expect("a message or none")
            {
                let id = message.properties.message_id().as_ref().map(ToString::to_string);
                found.push((id.unwrap_or_default(), message.data.clone()));
            }
            // What was not acknowledged goes back.
            connection.close(200, "seen".into()).await.expect("it closes");
            found
        })
    }

    /// Whether its first message has been delivered before. It stays in the queue.
    pub(super) fn was_delivered(&self) -> bool {
        runtime().block_on(async {
            let connected = Connection::connect(&self.broker.url(), ConnectionProperties::default()).await;
            let connection = connected.expect("a connection");
            let channel = connection.create_channel().await.expect("a channel");
            let got = channel.basic_get(self.name.as_str().into(), BasicGetOptions::default()).await;
            let redelivered = got.expect("an answer").expect("a message").redelivered;
            connection.close(200, "seen".into()).await.expect("it closes");
            redelivered
        })
    }

    /// Moves all messages to another queue, unchanged, as an operator at a console does.
    pub(crate) fn move_all_to(&self, to: &Queue<'_>) {
        runtime().block_on(async {
            let connected = Connection::connect(&self.broker.url(), ConnectionProperties::default()).await;
            let channel = connected.expect("a connection").create_channel().await.expect("a channel");
            channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
            let get = BasicGetOptions::default();
            while let Some(message) =
                channel.basic_get(self.name.as_str().into(), get).await.expect("a message or none")
            {
                let (data, properties) = (&message.data, message.properties.clone());
                let options = BasicPublishOptions::default();
                let sent =
                    channel.basic_publish("".into(), to.name.as_str().into(), options, data, properties);
                sent.await.expect("it is sent").await.expect("a confirm");
                message.ack(BasicAckOptions::default()).await.expect("it is taken");
            }
        });
    }

    /// Messages ready for delivery, asked for in a quick way.
    pub(super) fn ready(&self) -> usize {
        usize::try_from(self.facts().ready).expect("a small number")
    }

    /// Programs that have subscribed.
    pub(crate) fn consumers(&self) -> u32 {
        self.facts().consumers
    }

    fn facts(&self) -> RabbitmqQueueStatus {
        let endpoint = RabbitmqEndpoint::new(self.broker.url());
        runtime().block_on(endpoint.queue_status(&self.name)).expect("the queue is there")
    }

    /// (ready, unacknowledged) messages.
    pub(crate) fn depth(&self) -> (u64, u64) {
        self.broker.depth(&self.name)
    }
}

impl Waiting for Queue<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn publish(&self, lines: &[String]) {
        self.publish_all(&lines.iter().map(|line| self.message(line)).collect::<Vec<_>>());
    }

    fn is_empty(&self) -> bool {
        self.depth() == (0, 0)
    }
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}
