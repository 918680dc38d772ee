//! A loop over a subscription as many have it, and the same loop with each effect once: at most 10 lines changed.
//!
//! ```sh
//! cargo run -p onceward-pubsub --example wrap_existing_pubsub -- projects/shop/subscriptions/orders
//! ```
//!
//! The loop stays the user's: their client, messages one by one, their acks. `with_pipeline` below gives it up for
//! concurrency, retries with backoff, dead letters and acks that wait for a durable record.
#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, unreachable_pub, dead_code)]

use std::sync::{Arc, Mutex};

use google_cloud_pubsub::model::Message;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the application works with.
#[derive(Clone, Default)]
pub struct App {
    pub charged: Arc<Mutex<Vec<String>>>,
}

/// The effect that must happen once.
pub async fn charge(app: &App, message: &Message) -> Result<(), Error> {
    let order = String::from_utf8(message.data.to_vec())?;
    println!("charging {order}");
    app.charged.lock().map_err(|_| "the list is poisoned")?.push(order);
    Ok(())
}

/// What many have: a copy of a message has its effect again.
pub mod before {
    use google_cloud_pubsub::client::Subscriber;

    use super::{App, Error, charge};

    pub async fn consume(app: App, pubsub: Subscriber, name: &str) -> Result<(), Error> {
        let mut stream = pubsub.subscribe(name).build();
        while let Some((message, handle)) = stream.next().await.transpose()? {
            match charge(&app, &message).await {
                Ok(_) => handle.ack(),
                // It is redelivered.
                Err(error) => {
                    eprintln!("not charged: {error}");
                    handle.nack();
                }
            }
        }
        Ok(())
    }
}

/// The same loop, each effect once.
pub mod after {
    use google_cloud_pubsub::client::Subscriber;
    use onceward::{Deduplicator, Key, Scope};

    use super::{App, Error, charge};

    pub async fn consume(app: App, pubsub: Subscriber, name: &str, once: Deduplicator) -> Result<(), Error> {
        let scope = Scope::parse("billing")?;
        let mut stream = pubsub.subscribe(name).build();
        while let Some((message, handle)) = stream.next().await.transpose()? {
            let id = message.attributes.get("idempotency-key").unwrap_or(&message.message_id);
            let key = Key::of(&scope, id)?;
            match once.once(&key, async |_| charge(&app, &message).await).await {
                Ok(outcome) if outcome.may_ack() => handle.ack(),
                // It is redelivered.
                error => {
                    eprintln!("not charged: {error:?}");
                    handle.nack();
                }
            }
        }
        Ok(())
    }
}

/// Without a loop of one's own.
pub mod with_pipeline {
    use google_cloud_pubsub::client::Subscriber;
    use onceward::{Handled, HandlerError, KeySource, Message, Pipeline, Scope, SharedStore, handler_fn};
    use onceward_pubsub::{PubsubConsumer, PubsubSubscriptionConfig};

    use super::{App, Error};

    async fn charge(app: App, message: Message) -> Handled {
        let order = String::from_utf8(message.payload().to_vec())?;
        println!("charging {order}");
        app.charged.lock().map_err(|_| HandlerError::permanent("the list is poisoned"))?.push(order);
        Ok(())
    }

    pub async fn consume(
        app: App,
        pubsub: Subscriber,
        name: &str,
        store: impl SharedStore,
        shutdown: tokio_util::sync::CancellationToken,
    ) -> Result<(), Error> {
        let orders = PubsubConsumer::from_client(pubsub, PubsubSubscriptionConfig::new(name)).await?;
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

    let subscription = std::env::args().nth(1).ok_or("give the subscription's full name as the argument")?;
    // What a program has already will do as well.
    let pubsub = onceward_pubsub::PubsubEndpoint::default().subscriber().await?;
    // Of use in one process only; onceward-redis, -postgres and -sqlite have stores that last.
    let store = Arc::new(MemoryStore::new());
    let once = Deduplicator::new(Scope::parse("billing")?, store, OnceConfig::default())?;
    println!("publish messages with an attribute idempotency-key; the same key twice is charged once");
    after::consume(App::default(), pubsub, &subscription, once).await
}
