//! A loop over a queue as many have it, and the same loop with each effect once: at most 10 lines changed.
//!
//! ```sh
//! cargo run -p onceward-sqs --example wrap_existing_sqs -- https://sqs.eu-west-1.amazonaws.com/123456789012/orders
//! ```
//!
//! The loop stays the user's: their client, messages one by one, their deletes. `with_pipeline` below gives it up for
//! concurrency, visibility that is kept, retries with backoff, dead letters and batched deletes.
#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, unreachable_pub, dead_code)]

use std::sync::{Arc, Mutex};

use aws_sdk_sqs::types::Message;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the application works with.
#[derive(Clone, Default)]
pub struct App {
    pub charged: Arc<Mutex<Vec<String>>>,
}

/// The effect that must happen once.
pub async fn charge(app: &App, message: &Message) -> Result<(), Error> {
    let order = message.body().unwrap_or_default().to_owned();
    println!("charging {order}");
    app.charged.lock().map_err(|_| "the list is poisoned")?.push(order);
    Ok(())
}

/// What many have: a copy of a message has its effect again.
pub mod before {
    use aws_sdk_sqs::Client;

    use super::{App, Error, charge};

    pub async fn consume(app: App, sqs: Client, url: &str) -> Result<(), Error> {
        loop {
            let receive = sqs.receive_message().queue_url(url).wait_time_seconds(20);
            let receive = receive.max_number_of_messages(10).message_attribute_names("All");
            for message in receive.send().await?.messages.unwrap_or_default() {
                match charge(&app, &message).await {
                    Ok(_) => {
                        let handle = message.receipt_handle().unwrap_or_default();
                        sqs.delete_message().queue_url(url).receipt_handle(handle).send().await?;
                    }
                    // It is redelivered after its visibility timeout.
                    Err(error) => eprintln!("not charged: {error}"),
                }
            }
        }
    }
}

/// The same loop, each effect once.
pub mod after {
    use aws_sdk_sqs::Client;
    use onceward::{Deduplicator, Key, Scope};

    use super::{App, Error, charge};

    pub async fn consume(app: App, sqs: Client, url: &str, once: Deduplicator) -> Result<(), Error> {
        let scope = Scope::parse("billing")?;
        loop {
            let receive = sqs.receive_message().queue_url(url).wait_time_seconds(20);
            let receive = receive.max_number_of_messages(10).message_attribute_names("All");
            for message in receive.send().await?.messages.unwrap_or_default() {
                let attribute = message.message_attributes().and_then(|all| all.get("idempotency-key"));
                let id = attribute.and_then(|key| key.string_value()).or(message.message_id());
                let key = Key::of(&scope, id.unwrap_or_default())?;
                match once.once(&key, async |_| charge(&app, &message).await).await {
                    Ok(outcome) if outcome.may_ack() => {
                        let handle = message.receipt_handle().unwrap_or_default();
                        sqs.delete_message().queue_url(url).receipt_handle(handle).send().await?;
                    }
                    // It is redelivered after its visibility timeout.
                    error => eprintln!("not charged: {error:?}"),
                }
            }
        }
    }
}

/// Without a loop of one's own.
pub mod with_pipeline {
    use aws_sdk_sqs::Client;
    use onceward::{Handled, HandlerError, KeySource, Message, Pipeline, Scope, SharedStore, handler_fn};
    use onceward_sqs::{SqsConsumer, SqsQueueConfig};

    use super::{App, Error};

    async fn charge(app: App, message: Message) -> Handled {
        let order = String::from_utf8(message.payload().to_vec())?;
        println!("charging {order}");
        app.charged.lock().map_err(|_| HandlerError::permanent("the list is poisoned"))?.push(order);
        Ok(())
    }

    pub async fn consume(
        app: App,
        sqs: Client,
        url: &str,
        store: impl SharedStore,
        shutdown: tokio_util::sync::CancellationToken,
    ) -> Result<(), Error> {
        let orders = SqsConsumer::from_client(sqs, SqsQueueConfig::new(url)).await?;
        let pipeline = Pipeline::builder(Scope::parse("billing")?, orders, store)
            .keys([KeySource::Header("idempotency-key".into()), KeySource::MessageId])
            .park_exhausted()
            .handler(handler_fn(app, charge))?;
        pipeline.run(shutdown).await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    use onceward::{Deduplicator, MemoryStore, OnceConfig, Scope};

    let url = std::env::args().nth(1).ok_or("give the queue's URL as the argument")?;
    // What a program has already will do as well.
    let sqs = onceward_sqs::SqsEndpoint::default().client().await;
    // Of use in one process only; onceward-redis, -postgres and -sqlite have stores that last.
    let store = Arc::new(MemoryStore::new());
    let once = Deduplicator::new(Scope::parse("billing")?, store, OnceConfig::default())?;
    println!("send messages with an attribute idempotency-key; the same key twice is charged once");
    after::consume(App::default(), sqs, &url, once).await
}
