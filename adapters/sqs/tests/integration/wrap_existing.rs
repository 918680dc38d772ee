//! The example: the number of changed lines, and its behaviour on a real server.
#[path = "../../examples/wrap_existing.rs"]
#[allow(unused)]
mod example;
use crate::support;

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::MessageAttributeValue;
use example::App;
use onceward::{Deduplicator, MemoryStore, OnceConfig, Scope};
use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::wrapping::assert_small_change;

#[test]
fn wrapping_the_loop_changes_at_most_ten_lines() {
    assert_small_change(include_str!("../../examples/wrap_existing.rs"));
}

/// A queue with the orders 0 to 9, each of them sent twice with the same key.
async fn orders(client: &Client) -> String {
    let url = support::create(client, "wrapped").await;
    for number in (0..10).chain(0..10) {
        let key = MessageAttributeValue::builder().data_type("String").string_value(number.to_string());
        let send = client.send_message().queue_url(&url).message_body(format!("order {number}"));
        send.message_attributes("idempotency-key", key.build().unwrap()).send().await.unwrap();
    }
    url
}

/// Waits until all is deleted, and answers what was charged.
async fn charged(client: &Client, url: &str, app: &App) -> Vec<String> {
    support::until(Duration::from_secs(60), "the queue is empty", async || {
        support::depth(client, url).await == (0, 0)
    })
    .await;
    let mut charged = app.charged.lock().unwrap().clone();
    charged.sort();
    charged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plain_loop_charges_duplicates_twice_and_the_wrapped_ones_once() {
    let once: Vec<_> = (0..10).map(|number| format!("order {number}")).collect();
    let twice: Vec<_> = once.iter().flat_map(|order| [order.clone(), order.clone()]).collect();
    let client = support::client(ElasticMq::shared().port());

    let (url, app) = (orders(&client).await, App::default());
    let plain = tokio::spawn({
        let (app, client, url) = (app.clone(), client.clone(), url.clone());
        async move { example::before::consume(app, client, &url).await }
    });
    assert_eq!(charged(&client, &url, &app).await, twice);
    plain.abort();

    let (url, app) = (orders(&client).await, App::default());
    let store = Arc::new(MemoryStore::new());
    let deduplicator =
        Deduplicator::new(Scope::parse("billing").unwrap(), store, OnceConfig::default()).unwrap();
    let wrapped = tokio::spawn({
        let (app, client, url) = (app.clone(), client.clone(), url.clone());
        async move { example::after::consume(app, client, &url, deduplicator).await }
    });
    assert_eq!(charged(&client, &url, &app).await, once);
    wrapped.abort();

    let (url, app) = (orders(&client).await, App::default());
    let shutdown = tokio_util::sync::CancellationToken::new();
    let pipeline = tokio::spawn({
        let (app, client, url, shutdown) = (app.clone(), client.clone(), url.clone(), shutdown.clone());
        let store = Arc::new(MemoryStore::new());
        async move { example::with_pipeline::consume(app, client, &url, store, shutdown).await }
    });
    assert_eq!(charged(&client, &url, &app).await, once);
    shutdown.cancel();
    pipeline.await.unwrap().unwrap();
}
