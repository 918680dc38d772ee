//! Orders from a RabbitMQ queue, keys in Redis: duplicates are acked, an order that can never be charged becomes a dead
//! letter.
//!
//! ```sh
//! docker compose up --wait rabbitmq redis
//! cargo run -p onceward-examples --bin rabbitmq_redis -- amqp://guest:guest@127.0.0.1:5672/%2f redis://127.0.0.1:6379
//! ```
//!
//! It prints
//!
//! ```text
//! charge 4711
//! charge 4712
//! received=4 handled=2 duplicates=1 dead-lettered=1
//! ```

use std::sync::Arc;

use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use onceward::{
    DeadLetters, Handled, HandlerError, KeySource, Message, Pipeline, PipelineConfig, Scope, handler_fn,
};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqPublisher};
use onceward_redis::{RedisConfig, RedisStore};

type Error = Box<dyn std::error::Error>;

async fn charge(_app: (), message: Message) -> Handled {
    let order = String::from_utf8_lossy(message.payload());
    if order.parse::<u64>().is_err() {
        return Err(HandlerError::permanent("the order has no number"));
    }
    println!("charge {order}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let amqp = arguments.next().unwrap_or("amqp://guest:guest@127.0.0.1:5672/%2f".into());
    let redis = arguments.next().unwrap_or("redis://127.0.0.1:6379".into());
    publish_orders(&amqp).await?;

    let orders = RabbitmqConsumer::open(RabbitmqConfig::new(&amqp, "orders")).await?;
    let letters = RabbitmqPublisher::open(RabbitmqEndpoint::new(&amqp)).await?;
    let store = RedisStore::open(RedisConfig::new(&redis))?;
    let pipeline = Pipeline::builder(Scope::parse("billing")?, orders, Arc::new(store))
        .keys([KeySource::Header("idempotency-key".into()), KeySource::MessageId])
        .dead_letters(DeadLetters::new(Arc::new(letters), "orders.dead"))
        // A service runs until its shutdown token is cancelled; this one ends when the queue is empty.
        .config(PipelineConfig { until_idle: true, ..PipelineConfig::default() })
        .handler(handler_fn((), charge))?;
    let summary = pipeline.run(Default::default()).await?;

    let (received, handled) = (summary.received(), summary.handled());
    let (duplicates, dead) = (summary.duplicates(), summary.dead_lettered());
    println!("received={received} handled={handled} duplicates={duplicates} dead-lettered={dead}");
    Ok(())
}

/// The producer: it sends 4711 twice, because its first confirm was lost.
async fn publish_orders(url: &str) -> Result<(), Error> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    for queue in ["orders", "orders.dead"] {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.into(), durable, Default::default()).await?;
    }
    for order in ["4711", "4711", "4712", "unreadable"] {
        let properties = BasicProperties::default().with_message_id(order.into());
        let options = BasicPublishOptions::default();
        channel
            .basic_publish("".into(), "orders".into(), options, order.as_bytes(), properties)
            .await?
            .await?;
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}
