//! A loop over a queue as many have it, and the same loop with each effect once: at most 10 lines changed.
//!
//! ```sh
//! cargo run -p onceward-rabbitmq --example wrap_existing_rabbitmq -- amqp://guest:guest@127.0.0.1:5672/%2f
//! ```
//!
//! The loop stays the user's: messages one by one, their channel, their acknowledgements. `with_pipeline` below gives
//! it up for concurrency, retries with backoff, dead letters and reconnection.
#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, unreachable_pub, dead_code)]

use std::sync::{Arc, Mutex};

use lapin::message::Delivery;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the application works with.
#[derive(Clone, Default)]
pub struct App {
    pub charged: Arc<Mutex<Vec<String>>>,
}

/// The effect that must happen once.
pub async fn charge(app: &App, delivery: &Delivery) -> Result<(), Error> {
    let order = String::from_utf8(delivery.data.clone())?;
    println!("charging {order}");
    app.charged.lock().map_err(|_| "the list is poisoned")?.push(order);
    Ok(())
}

/// What many have: a copy of a message has its effect again.
pub mod before {
    use futures_util::StreamExt;
    use lapin::Channel;
    use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions};
    use lapin::types::FieldTable;

    use super::{App, Error, charge};

    pub async fn consume(app: App, channel: Channel, queue: &str) -> Result<(), Error> {
        let options = BasicConsumeOptions::default();
        let mut orders =
            channel.basic_consume(queue.into(), "billing".into(), options, FieldTable::default()).await?;
        while let Some(delivery) = orders.next().await {
            let delivery = delivery?;
            match charge(&app, &delivery).await {
                Ok(_) => delivery.ack(BasicAckOptions::default()).await?,
                Err(error) => {
                    eprintln!("not charged: {error}");
                    delivery.nack(BasicNackOptions { requeue: true, ..Default::default() }).await?
                }
            };
        }
        Ok(())
    }
}

/// The same loop, each effect once.
pub mod after {
    use futures_util::StreamExt;
    use lapin::Channel;
    use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions};
    use lapin::types::FieldTable;
    use onceward::{Deduplicator, Key, Scope};

    use super::{App, Error, charge};

    pub async fn consume(app: App, channel: Channel, queue: &str, once: Deduplicator) -> Result<(), Error> {
        let scope = Scope::parse("billing")?;
        let options = BasicConsumeOptions::default();
        let mut orders =
            channel.basic_consume(queue.into(), "billing".into(), options, FieldTable::default()).await?;
        while let Some(delivery) = orders.next().await {
            let delivery = delivery?;
            let id = delivery.properties.message_id().as_ref().map_or("", |id| id.as_str());
            let key = Key::of(&scope, id).or_else(|_| Key::of(&scope, &delivery.data))?;
            match once.once(&key, async |_| charge(&app, &delivery).await).await {
                Ok(outcome) if outcome.may_ack() => delivery.ack(BasicAckOptions::default()).await?,
                error => {
                    eprintln!("not charged: {error:?}");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    delivery.nack(BasicNackOptions { requeue: true, ..Default::default() }).await?
                }
            };
        }
        Ok(())
    }
}

/// Without a loop of one's own.
pub mod with_pipeline {
    use std::sync::Arc;

    use lapin::{Connection, ConnectionProperties};
    use onceward::{Handled, HandlerError, KeySource, Message, Pipeline, Scope, SharedStore, handler_fn};
    use onceward_rabbitmq::{RabbitmqClient, RabbitmqConsumer, RabbitmqQueueConfig};

    use super::{App, Error};

    async fn charge(app: App, message: Message) -> Handled {
        let order = String::from_utf8(message.payload().to_vec())?;
        println!("charging {order}");
        app.charged.lock().map_err(|_| HandlerError::permanent("the list is poisoned"))?.push(order);
        Ok(())
    }

    pub async fn consume(
        app: App,
        url: String,
        queue: &str,
        store: impl SharedStore,
        shutdown: tokio_util::sync::CancellationToken,
    ) -> Result<(), Error> {
        let url: Arc<str> = url.into();
        let connect = move || {
            let url = Arc::clone(&url);
            async move { Connection::connect(&url, ConnectionProperties::default()).await }
        };
        let orders =
            RabbitmqConsumer::from_client(RabbitmqClient::new(connect), RabbitmqQueueConfig::new(queue))
                .await?;
        let pipeline = Pipeline::builder(Scope::parse("billing")?, orders, store)
            .keys([KeySource::MessageId])
            .park_exhausted()
            .handler(handler_fn(app, charge))?;
        pipeline.run(shutdown).await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    use lapin::{Connection, ConnectionProperties};
    use onceward::{Deduplicator, MemoryStore, OnceConfig, Scope};

    let url = std::env::args().nth(1).ok_or("give the broker's URL as the argument")?;
    let channel = Connection::connect(&url, ConnectionProperties::default()).await?.create_channel().await?;
    channel.queue_declare("orders".into(), Default::default(), Default::default()).await?;
    // Of use in one process only; onceward-redis, -postgres and -sqlite have stores that last.
    let store = Arc::new(MemoryStore::new());
    let once = Deduplicator::new(Scope::parse("billing")?, store, OnceConfig::default())?;
    println!("publish to the queue orders, with a message id; the same id twice is charged once");
    after::consume(App::default(), channel, "orders", once).await
}
