//! The example `wrap_existing`: the number of changed lines, and its behaviour on a real broker.
#[path = "../../examples/wrap_existing.rs"]
#[allow(unused)]
mod example;
use std::sync::Arc;

use crate::support::Topic;
use example::App;
use onceward::{Deduplicator, MemoryStore, OnceConfig, Scope};
use onceward_test_servers::wrapping::assert_small_change;
use rdkafka::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::{Header, OwnedHeaders};

#[test]
fn wrapping_the_loop_changes_at_most_ten_lines() {
    assert_small_change(include_str!("../../examples/wrap_existing.rs"));
}

/// A topic with the orders 0 to 9, each of them twice, and how its group is joined.
async fn orders() -> (Topic, ClientConfig) {
    let topic = Topic::new(1).await;
    for number in 0..20 {
        let order = format!("order {}", number % 10);
        let headers = OwnedHeaders::new().insert(Header { key: "order-id", value: Some(&order) });
        topic.send_with(0, None, Some(&order), headers).await;
    }
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &topic.bootstrap)
        .set("group.id", &topic.group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false");
    (topic, client)
}

fn subscribed(topic: &Topic, client: &ClientConfig) -> StreamConsumer {
    let orders: StreamConsumer = client.create().unwrap();
    orders.subscribe(&[&topic.name]).unwrap();
    orders
}

/// Waits until all is committed, and answers what was charged.
async fn charged(topic: &Topic, app: &App) -> Vec<String> {
    topic.wait_committed(&[20]).await;
    let mut charged = app.charged.lock().unwrap().clone();
    charged.sort();
    charged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plain_loop_charges_duplicates_twice_and_the_wrapped_ones_once() {
    let once: Vec<_> = (0..10).map(|number| format!("order {number}")).collect();
    let twice: Vec<_> = once.iter().flat_map(|order| [order.clone(), order.clone()]).collect();

    let ((topic, client), app) = (orders().await, App::default());
    let plain = tokio::spawn(example::before::consume(app.clone(), subscribed(&topic, &client)));
    assert_eq!(charged(&topic, &app).await, twice);
    plain.abort();

    let ((topic, client), app) = (orders().await, App::default());
    let store = Arc::new(MemoryStore::new());
    let deduplicator =
        Deduplicator::new(Scope::parse("billing").unwrap(), store, OnceConfig::default()).unwrap();
    let orders_of = subscribed(&topic, &client);
    let wrapped = tokio::spawn(example::after::consume(app.clone(), orders_of, deduplicator));
    assert_eq!(charged(&topic, &app).await, once);
    wrapped.abort();

    let ((topic, client), app) = (orders().await, App::default());
    let shutdown = tokio_util::sync::CancellationToken::new();
    let pipeline = tokio::spawn({
        let (app, name, shutdown) = (app.clone(), topic.name.clone(), shutdown.clone());
        let store = Arc::new(MemoryStore::new());
        async move { example::with_pipeline::consume(app, client, &name, store, shutdown).await }
    });
    assert_eq!(charged(&topic, &app).await, once);
    shutdown.cancel();
    pipeline.await.unwrap().unwrap();
}
