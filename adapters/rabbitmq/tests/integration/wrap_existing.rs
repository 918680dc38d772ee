//! The example: the number of changed lines, and its behaviour on a real broker.
#[path = "../../examples/wrap_existing.rs"]
#[allow(unused)]
mod example;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Admin, Kind, unique, until};
use example::App;
use onceward::{Deduplicator, MemoryStore, OnceConfig, Scope};
use onceward_test_servers::rabbitmq::RabbitMq;
use onceward_test_servers::wrapping::assert_small_change;

#[test]
fn wrapping_the_loop_changes_at_most_ten_lines() {
    assert_small_change(include_str!("../../examples/wrap_existing.rs"));
}

/// A queue with the orders 0 to 9, each of them twice.
async fn orders() -> (&'static RabbitMq, Admin, String) {
    let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
    let admin = Admin::connect(broker).await;
    let queue = unique("orders");
    admin.declare(&queue, Kind::Classic).await;
    admin.publish(&queue, (0..20).map(|number| format!("order {}", number % 10))).await;
    (broker, admin, queue)
}

/// Waits until all is acked, and answers what was charged.
async fn charged(broker: &RabbitMq, queue: &str, app: &App) -> Vec<String> {
    until(Duration::from_secs(60), "the queue is empty", async || broker.depth(queue) == (0, 0)).await;
    let mut charged = app.charged.lock().unwrap().clone();
    charged.sort();
    charged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plain_loop_charges_duplicates_twice_and_the_wrapped_ones_once() {
    let once: Vec<_> = (0..10).map(|number| format!("order {number}")).collect();
    let twice: Vec<_> = once.iter().flat_map(|order| [order.clone(), order.clone()]).collect();

    let (broker, admin, queue) = orders().await;
    let app = App::default();
    let channel = admin.connection.create_channel().await.unwrap();
    let plain = tokio::spawn({
        let (app, queue) = (app.clone(), queue.clone());
        async move { example::before::consume(app, channel, &queue).await }
    });
    assert_eq!(charged(broker, &queue, &app).await, twice);
    plain.abort();

    let (broker, admin, queue) = orders().await;
    let app = App::default();
    let channel = admin.connection.create_channel().await.unwrap();
    let store = Arc::new(MemoryStore::new());
    let deduplicator =
        Deduplicator::new(Scope::parse("billing").unwrap(), store, OnceConfig::default()).unwrap();
    let wrapped = tokio::spawn({
        let (app, queue) = (app.clone(), queue.clone());
        async move { example::after::consume(app, channel, &queue, deduplicator).await }
    });
    assert_eq!(charged(broker, &queue, &app).await, once);
    wrapped.abort();

    let (broker, _admin, queue) = orders().await;
    let (app, shutdown) = (App::default(), tokio_util::sync::CancellationToken::new());
    let pipeline = tokio::spawn({
        let (app, queue, shutdown) = (app.clone(), queue.clone(), shutdown.clone());
        let store = Arc::new(MemoryStore::new());
        async move { example::with_pipeline::consume(app, broker.url(), &queue, store, shutdown).await }
    });
    assert_eq!(charged(broker, &queue, &app).await, once);
    shutdown.cancel();
    pipeline.await.unwrap().unwrap();
}
