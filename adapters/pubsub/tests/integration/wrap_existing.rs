//! The example: the number of changed lines, and its behaviour on a real server.
#[path = "../../examples/wrap_existing.rs"]
#[allow(unused)]
mod example;
use crate::support;

use std::sync::Arc;
use std::time::Duration;

use example::App;
use google_cloud_pubsub::client::Subscriber;
use google_cloud_pubsub::model::Message;
use onceward::{Deduplicator, MemoryStore, OnceConfig, Scope};
use onceward_test_servers::wrapping::assert_small_change;
use serde_json::json;

use crate::support::Place;

#[test]
fn wrapping_the_loop_changes_at_most_ten_lines() {
    assert_small_change(include_str!("../../examples/wrap_existing.rs"));
}

/// A subscription with the orders 0 to 9, each of them sent twice with the same key.
async fn orders() -> Place {
    let place = Place::create("wrapped", &json!({}));
    let message = |number: i32| {
        let message = Message::new().set_data(format!("order {number}"));
        message.set_attributes([("idempotency-key", number.to_string())])
    };
    place.publish((0..10).chain(0..10).map(message)).await;
    place
}

async fn client(place: &Place) -> Subscriber {
    support::endpoint(place.server).subscriber().await.unwrap()
}

/// Waits until all is acked, and answers what was charged.
async fn charged(place: &Place, app: &App) -> Vec<String> {
    support::until(Duration::from_secs(60), "the subscription is empty", || place.is_empty()).await;
    let mut charged = app.charged.lock().unwrap().clone();
    charged.sort();
    charged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plain_loop_charges_duplicates_twice_and_the_wrapped_ones_once() {
    let once: Vec<_> = (0..10).map(|number| format!("order {number}")).collect();
    let twice: Vec<_> = once.iter().flat_map(|order| [order.clone(), order.clone()]).collect();

    let (place, app) = (orders().await, App::default());
    let plain = tokio::spawn({
        let (app, client, name) = (app.clone(), client(&place).await, place.subscription.clone());
        async move { example::before::consume(app, client, &name).await }
    });
    assert_eq!(charged(&place, &app).await, twice);
    plain.abort();

    let (place, app) = (orders().await, App::default());
    let store = Arc::new(MemoryStore::new());
    let deduplicator =
        Deduplicator::new(Scope::parse("billing").unwrap(), store, OnceConfig::default()).unwrap();
    let wrapped = tokio::spawn({
        let (app, client, name) = (app.clone(), client(&place).await, place.subscription.clone());
        async move { example::after::consume(app, client, &name, deduplicator).await }
    });
    assert_eq!(charged(&place, &app).await, once);
    wrapped.abort();

    let (place, app) = (orders().await, App::default());
    let shutdown = tokio_util::sync::CancellationToken::new();
    let pipeline = tokio::spawn({
        let (app, client, name) = (app.clone(), client(&place).await, place.subscription.clone());
        let (shutdown, store) = (shutdown.clone(), Arc::new(MemoryStore::new()));
        async move { example::with_pipeline::consume(app, client, &name, store, shutdown).await }
    });
    assert_eq!(charged(&place, &app).await, once);
    shutdown.cancel();
    pipeline.await.unwrap().unwrap();
}
