//! A loop over topics as many have it, and the same loop with each effect once: at most 10 lines changed.
//!
//! ```sh
//! cargo run -p onceward-kafka --example wrap_existing -- 127.0.0.1:9092
//! ```
//!
//! The loop stays the user's: records one by one, their consumer, their commits. `with_pipeline` below gives it up for
//! parallel keys, retries with backoff, dead letters, and commits that never go past what is incomplete.
#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, unreachable_pub, dead_code)]

use std::sync::{Arc, Mutex};

use rdkafka::message::{BorrowedMessage, Headers, Message};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the application works with.
#[derive(Clone, Default)]
pub struct App {
    pub charged: Arc<Mutex<Vec<String>>>,
}

/// What the producer says makes two records the same order.
pub fn order_id<'a>(record: &'a BorrowedMessage<'_>) -> Option<&'a [u8]> {
    record.headers()?.iter().find(|header| header.key == "order-id")?.value
}

/// The effect that must happen once.
pub async fn charge(app: &App, record: &BorrowedMessage<'_>) -> Result<(), Error> {
    let order = String::from_utf8(record.payload().unwrap_or_default().to_vec())?;
    println!("charging {order}");
    app.charged.lock().map_err(|_| "the list is poisoned")?.push(order);
    Ok(())
}

/// What many have: a copy of a record has its effect again.
pub mod before {
    use std::time::Duration;

    use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
    use rdkafka::{Message, Offset};

    use super::{App, Error, charge};

    pub async fn consume(app: App, orders: StreamConsumer) -> Result<(), Error> {
        loop {
            let record = orders.recv().await?;
            match charge(&app, &record).await {
                Ok(_) => orders.commit_message(&record, CommitMode::Async)?,
                Err(error) => {
                    eprintln!("not charged: {error}");
                    let again = Offset::Offset(record.offset());
                    orders.seek(record.topic(), record.partition(), again, Duration::from_secs(5))?;
                }
            };
        }
    }
}

/// The same loop, each effect once.
pub mod after {
    use std::time::Duration;

    use onceward::{Deduplicator, Key, Scope};
    use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
    use rdkafka::{Message, Offset};

    use super::{App, Error, charge, order_id};

    pub async fn consume(app: App, orders: StreamConsumer, once: Deduplicator) -> Result<(), Error> {
        let scope = Scope::parse("billing")?;
        loop {
            let record = orders.recv().await?;
            let key = Key::of(&scope, order_id(&record).ok_or("a record without an order id")?)?;
            match once.once(&key, async |_| charge(&app, &record).await).await {
                Ok(outcome) if outcome.may_ack() => orders.commit_message(&record, CommitMode::Async)?,
                error => {
                    eprintln!("not charged: {error:?}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let again = Offset::Offset(record.offset());
                    orders.seek(record.topic(), record.partition(), again, Duration::from_secs(5))?;
                }
            };
        }
    }
}

/// Without a loop of one's own.
pub mod with_pipeline {
    use onceward::pipeline::config::Ordering;
    use onceward::{
        Handled, HandlerError, KeySource, Message, Pipeline, PipelineConfig, Scope, SharedStore, handler_fn,
    };
    use onceward_kafka::{KafkaConsumer, TopicConfig};
    use rdkafka::ClientConfig;
    use rdkafka::consumer::DefaultConsumerContext;

    use super::{App, Error};

    async fn charge(app: App, message: Message) -> Handled {
        let order = String::from_utf8(message.payload().to_vec())?;
        println!("charging {order}");
        app.charged.lock().map_err(|_| HandlerError::permanent("the list is poisoned"))?.push(order);
        Ok(())
    }

    pub async fn consume(
        app: App,
        client: ClientConfig,
        topic: &str,
        store: impl SharedStore,
        shutdown: tokio_util::sync::CancellationToken,
    ) -> Result<(), Error> {
        let topics = TopicConfig::new([topic]);
        let orders = KafkaConsumer::from_client(client, DefaultConsumerContext, topics).await?;
        let pipeline = Pipeline::builder(Scope::parse("billing")?, orders, store)
            .keys([KeySource::Header("order-id".into())])
            .config(PipelineConfig { ordering: Ordering::BrokerKey, ..PipelineConfig::default() })
            .park_exhausted()
            .handler(handler_fn(app, charge))?;
        pipeline.run(shutdown).await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    use onceward::{Deduplicator, MemoryStore, OnceConfig, Scope};
    use rdkafka::ClientConfig;
    use rdkafka::consumer::{Consumer, StreamConsumer};

    let brokers = std::env::args().nth(1).ok_or("give host:port of a broker as the argument")?;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers).set("group.id", "billing").set("enable.auto.commit", "false");
    let orders: StreamConsumer = client.create()?;
    orders.subscribe(&["orders"])?;
    // Of use in one process only; onceward-redis, -postgres and -sqlite have stores that last.
    let store = Arc::new(MemoryStore::new());
    let once = Deduplicator::new(Scope::parse("billing")?, store, OnceConfig::default())?;
    println!("publish to the topic orders, with a header order-id; the same id twice is charged once");
    after::consume(App::default(), orders, once).await
}
