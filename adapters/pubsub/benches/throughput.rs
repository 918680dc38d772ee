//! Compares, in turns on the same Pub/Sub server, a raw loop of the client library (receive a message, ack it) with the
//! pipeline with the memory store, both with so many messages outstanding. What counts is the ratio.
//!
//! The client sends acks every 100 ms, or as soon as 1,000 are pending. With 100 outstanding this interval is the limit, for
//! fewer messages; with 10,000 it is the processor. With exactly 1,000 the phase of the interval decides between the two.
//!
//! ```sh
//! cargo bench -p onceward-pubsub --bench throughput -- [messages [rounds]] [--json]
//! ```
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use google_cloud_auth::credentials::anonymous;
use google_cloud_pubsub::client::Subscriber;
use onceward::telemetry::Counter;
use onceward::{Handled, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn};
use onceward_pubsub::{PubsubConsumer, PubsubSubscriptionConfig};
use onceward_test_servers::figures::Figures;
use onceward_test_servers::pubsub::Pubsub;
use serde_json::json;
use tokio_util::sync::CancellationToken;

const PAYLOAD_BYTES: usize = 256;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let figures = Figures::of("pubsub");
    let (messages, rounds) = (figures.messages(50_000), figures.rounds(5));
    let server = Pubsub::start();
    let credentials = anonymous::Builder::new().build();
    let builder = Subscriber::builder().with_endpoint(server.endpoint()).with_credentials(credentials);
    let client = builder.build().await.unwrap();
    for (outstanding, messages) in [(100, messages / 10), (10_000, messages)] {
        let (mut raws, mut pipelines) = (Vec::new(), Vec::new());
        // The first round warms the server up.
        for round in 0..=rounds {
            let name = fill(&server, &format!("raw-{outstanding}-{round}"), messages);
            let raw = per_second(messages, raw(&server, &client, &name, messages, outstanding).await);
            let name = fill(&server, &format!("pipeline-{outstanding}-{round}"), messages);
            let pipeline =
                per_second(messages, pipeline(&server, &client, &name, messages, outstanding).await);
            if round > 0 {
                raws.push(raw);
                pipelines.push(pipeline);
            }
        }
        let part = format!("{outstanding} outstanding");
        figures.report(&part, messages, ("raw", &raws), &[("pipeline", &pipelines)]);
    }
}

fn per_second(messages: usize, took: Duration) -> f64 {
    messages as f64 / took.as_secs_f64()
}

/// Publishes to a new topic; returns the name of a subscription of it.
fn fill(server: &Pubsub, name: &str, messages: usize) -> String {
    let topic = server.topic(name);
    let subscription = server.subscription(name, &topic);
    // Base64: four characters are three bytes.
    let data = "eHh4".repeat(PAYLOAD_BYTES.div_ceil(3));
    server.publish(&topic, &vec![json!({ "data": data }); messages]);
    subscription
}

async fn raw(
    server: &Pubsub,
    client: &Subscriber,
    name: &str,
    messages: usize,
    outstanding: u32,
) -> Duration {
    let started = Instant::now();
    let handled = AtomicUsize::new(0);
    let mut stream = client.subscribe(name).set_max_outstanding_messages(outstanding).build();
    while handled.load(Ordering::Relaxed) < messages {
        let (message, handler) = stream.next().await.unwrap().unwrap();
        assert!(std::hint::black_box(&message.data).len() >= PAYLOAD_BYTES);
        handler.ack();
        handled.fetch_add(1, Ordering::Relaxed);
    }
    settled(server, name).await;
    started.elapsed()
}

async fn pipeline(
    server: &Pubsub,
    client: &Subscriber,
    name: &str,
    messages: usize,
    outstanding: u32,
) -> Duration {
    async fn handle(_: (), message: Message) -> Handled {
        assert!(std::hint::black_box(message.payload()).len() >= PAYLOAD_BYTES);
        Ok(())
    }
    let started = Instant::now();
    let mut subscription = PubsubSubscriptionConfig::new(name);
    subscription.max_outstanding_messages = outstanding;
    let consumer = PubsubConsumer::from_client(client.clone(), subscription).await.unwrap();
    let pipeline = Pipeline::builder(Scope::parse("bench").unwrap(), consumer, Arc::new(MemoryStore::new()))
        .keys([KeySource::MessageId])
        .park_exhausted()
        .handler(handler_fn((), handle))
        .unwrap();
    let counters = pipeline.counters();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(pipeline.run(shutdown.clone()));
    while counters.get(Counter::Handled) < messages as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // As in the raw loop, the last ack is part of it.
    settled(server, name).await;
    let took = started.elapsed();
    shutdown.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!((summary.handled(), summary.received()), (messages as u64, messages as u64));
    took
}

async fn settled(server: &Pubsub, name: &str) {
    while server.depth(name) != (0, 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
