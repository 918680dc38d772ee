//! Orders from a Pub/Sub subscription with ordering keys, keys in Redis: the events of an order are handled one after the other,
//! also when the first of them fails at first.
//!
//! ```sh
//! docker compose up --wait pubsub redis
//! cargo run -p onceward-examples --bin pubsub_redis -- http://127.0.0.1:8085 redis://127.0.0.1:6379
//! ```
//!
//! It prints
//!
//! ```text
//! 4711 created: not yet
//! 4711 created
//! 4711 paid
//! received=3 handled=2 duplicates=1
//! ```

use std::sync::Arc;
use std::time::Duration;

use google_cloud_auth::credentials::anonymous;
use onceward::pipeline::config::Ordering;
use onceward::telemetry::Counter;
use onceward::{Handled, HandlerError, KeySource, Message, Pipeline, PipelineConfig, Scope, handler_fn};
use onceward_pubsub::google_cloud_pubsub::client::{SubscriptionAdmin, TopicAdmin};
use onceward_pubsub::google_cloud_pubsub::model;
use onceward_pubsub::{PubsubConfig, PubsubConsumer, PubsubCredentials, PubsubEndpoint};
use onceward_redis::{RedisConfig, RedisStore};
use tokio_util::sync::CancellationToken;

type Error = Box<dyn std::error::Error>;

const TOPIC: &str = "projects/onceward/topics/orders";
const SUBSCRIPTION: &str = "projects/onceward/subscriptions/orders";

async fn charge(_app: (), message: Message) -> Handled {
    let event = String::from_utf8_lossy(message.payload());
    if event.ends_with("created") && message.attempt() == 1 {
        println!("{event}: not yet");
        return Err(HandlerError::retry("not yet"));
    }
    println!("{event}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let mut endpoint = PubsubEndpoint::default();
    endpoint.url = Some(arguments.next().unwrap_or("http://127.0.0.1:8085".into()));
    endpoint.credentials = PubsubCredentials::Anonymous;
    let redis = arguments.next().unwrap_or("redis://127.0.0.1:6379".into());
    publish_orders(&endpoint).await?;

    let mut config = PubsubConfig::new(SUBSCRIPTION);
    config.endpoint = endpoint;
    config.subscription.ordered = true;
    let orders = PubsubConsumer::open(config).await?;
    let store = RedisStore::open(RedisConfig::new(&redis))?;
    let pipeline = Pipeline::builder(Scope::parse("billing")?, orders, Arc::new(store))
        .keys([KeySource::Header("idempotency-key".into())])
        .park_exhausted()
        .config(PipelineConfig { ordering: Ordering::BrokerKey, ..PipelineConfig::default() })
        .handler(handler_fn((), charge))?;
    let (counters, shutdown) = (pipeline.counters(), CancellationToken::new());
    let running = tokio::spawn(pipeline.run(shutdown.clone()));
    // A service runs until it is stopped; this one ends with the third message, since Pub/Sub does not report an empty
    // subscription.
    while counters.get(Counter::Handled) + counters.get(Counter::Duplicates) < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    shutdown.cancel();
    let summary = running.await??;

    let (received, handled) = (summary.received(), summary.handled());
    println!("received={received} handled={handled} duplicates={}", summary.duplicates());
    Ok(())
}

/// The producer: it publishes the first event twice, because it did not see the first confirmation.
async fn publish_orders(endpoint: &PubsubEndpoint) -> Result<(), Error> {
    // First: it installs the TLS provider that Google's clients need.
    let publisher = endpoint.publisher().await?.publisher(TOPIC).build();
    let url = endpoint.url.as_deref().ok_or("no endpoint")?;
    let anonymous = anonymous::Builder::new().build();
    let topics = TopicAdmin::builder().with_endpoint(url).with_credentials(anonymous.clone());
    let topics = topics.build().await?;
    if topics.get_topic().set_topic(TOPIC).send().await.is_err() {
        topics.create_topic().set_name(TOPIC).send().await?;
    }
    let subscriptions = SubscriptionAdmin::builder().with_endpoint(url).with_credentials(anonymous);
    let subscriptions = subscriptions.build().await?;
    if subscriptions.get_subscription().set_subscription(SUBSCRIPTION).send().await.is_err() {
        let create = subscriptions.create_subscription().set_name(SUBSCRIPTION).set_topic(TOPIC);
        create.set_enable_message_ordering(true).send().await?;
    }

    for event in ["4711 created", "4711 created", "4711 paid"] {
        let message = model::Message::new().set_data(event).set_ordering_key("4711");
        publisher.publish(message.set_attributes([("idempotency-key", event)])).await?;
    }
    Ok(())
}
