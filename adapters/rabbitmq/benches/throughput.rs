//! A raw loop (consume, one cumulative acknowledgement per 100) against the pipeline with the memory store, on the same
//! broker, in turns. What counts is the ratio.
//!
//! ```sh
//! cargo bench -p onceward-rabbitmq --bench throughput -- [messages [rounds]] [--json]
//! ```
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use onceward::{Handled, KeySource, MemoryStore, Message, Pipeline, PipelineConfig, Scope, handler_fn};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer};
use onceward_test_servers::figures::Figures;
use onceward_test_servers::rabbitmq::RabbitMq;

const PREFETCH: u16 = 1000;
const PAYLOAD_BYTES: usize = 256;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let figures = Figures::of("rabbitmq");
    let (messages, rounds) = (figures.messages(100_000), figures.rounds(3));
    let broker = RabbitMq::start();
    for kind in ["classic", "quorum"] {
        declare(&broker, kind).await;
        let (mut raws, mut pipelines) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            fill(&broker, kind, messages).await;
            raws.push(per_second(messages, raw(&broker, kind, messages).await));
            fill(&broker, kind, messages).await;
            pipelines.push(per_second(messages, pipeline(&broker, kind, messages).await));
        }
        figures.report(kind, messages, ("raw", &raws), &[("pipeline", &pipelines)]);
    }
}

fn per_second(messages: usize, took: Duration) -> f64 {
    messages as f64 / took.as_secs_f64()
}

async fn channel(broker: &RabbitMq) -> (Connection, Channel) {
    let connection = Connection::connect(&broker.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

async fn declare(broker: &RabbitMq, kind: &str) {
    let (_connection, channel) = channel(broker).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(kind.into(), options, arguments).await.unwrap();
}

/// Publishes, persistent and confirmed, each message with an id of its own.
async fn fill(broker: &RabbitMq, queue: &str, messages: usize) {
    let (_connection, channel) = channel(broker).await;
    channel.confirm_select(Default::default()).await.unwrap();
    let payload = [b'x'; PAYLOAD_BYTES];
    let run = fastrand::u64(..);
    let mut confirms = Vec::new();
    for number in 0..messages {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(format!("{run:x}-{number}").into());
        let sent = channel.basic_publish(
            "".into(),
            queue.into(),
            BasicPublishOptions::default(),
            &payload,
            properties,
        );
        confirms.push(sent.await.unwrap());
        if confirms.len() == 2000 {
            for confirm in confirms.drain(..) {
                assert!(confirm.await.unwrap().is_ack());
            }
        }
    }
    for confirm in confirms {
        assert!(confirm.await.unwrap().is_ack());
    }
}

async fn raw(broker: &RabbitMq, queue: &str, messages: usize) -> Duration {
    let (connection, channel) = channel(broker).await;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.unwrap();
    let started = Instant::now();
    let options = BasicConsumeOptions::default();
    let mut stream =
        channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.unwrap();
    for number in 1..=messages {
        let delivery = stream.next().await.unwrap().unwrap();
        assert_eq!(std::hint::black_box(&delivery.data).len(), PAYLOAD_BYTES);
        if number % 100 == 0 || number == messages {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await.unwrap();
        }
    }
    let took = started.elapsed();
    connection.close(200, "OK".into()).await.unwrap();
    took
}

async fn pipeline(broker: &RabbitMq, queue: &str, messages: usize) -> Duration {
    async fn handle(_: (), message: Message) -> Handled {
        assert_eq!(std::hint::black_box(message.payload()).len(), PAYLOAD_BYTES);
        Ok(())
    }
    let mut config = RabbitmqConfig::new(broker.url(), queue);
    config.queue.prefetch = PREFETCH;
    let started = Instant::now();
    let consumer = RabbitmqConsumer::open(config).await.unwrap();
    let pipeline = Pipeline::builder(Scope::parse("bench").unwrap(), consumer, Arc::new(MemoryStore::new()))
        .keys([KeySource::MessageId])
        .config(PipelineConfig { concurrency: 512, ..PipelineConfig::default() })
        .park_exhausted()
        .handler(handler_fn((), handle))
        .unwrap();
    let counters = pipeline.counters();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(pipeline.run(shutdown.clone()));
    while counters.get(onceward::telemetry::Counter::Handled) < messages as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = started.elapsed();
    shutdown.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!((summary.handled(), summary.received()), (messages as u64, messages as u64));
    let left = broker.depth(queue);
    assert_eq!(left, (0, 0), "not everything was acknowledged");
    took
}
