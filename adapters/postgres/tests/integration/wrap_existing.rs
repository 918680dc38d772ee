//! The example: the number of changed lines, and its behaviour on a real server.
#[path = "../../examples/wrap_existing.rs"]
#[allow(unused)]
mod example;

use example::Order;
use onceward_postgres::{PgOptions, PgStore};
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::wrapping::assert_small_change;
use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};

#[test]
fn wrapping_the_loop_changes_at_most_ten_lines() {
    assert_small_change(include_str!("../../examples/wrap_existing.rs"));
}

/// Hands over the orders 0 to 9, each of them twice; all are acked.
async fn deliver(orders: mpsc::Sender<Order>) {
    for number in 0..20 {
        let id = format!("order {}", number % 10);
        let (acked, told) = oneshot::channel();
        orders.send(Order { payload: id.clone(), id, acked }).await.unwrap();
        assert!(told.await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plain_loop_charges_duplicates_twice_and_the_wrapped_one_once() {
    let server = Postgres::start();
    server.sql("CREATE TABLE charges (payload text NOT NULL)");
    let pool = PgPool::connect(&server.url("postgres")).await.unwrap();
    let counted = "SELECT count(*) || ' of ' || count(DISTINCT payload) FROM charges";

    let (orders, received) = mpsc::channel(1);
    let plain = tokio::spawn(example::before::consume(pool.clone(), received));
    deliver(orders).await;
    plain.await.unwrap().unwrap();
    assert_eq!(server.sql(counted), "20 of 10");

    server.sql("TRUNCATE charges");
    let (orders, received) = mpsc::channel(1);
    let store = PgStore::from_client(pool.clone(), PgOptions::default()).await.unwrap();
    let wrapped = tokio::spawn(example::after::consume(pool.clone(), received, store.into()));
    deliver(orders).await;
    wrapped.await.unwrap().unwrap();
    assert_eq!(server.sql(counted), "10 of 10");
    // Effect and completion were one transaction.
    let together = "SELECT count(*) FROM charges c JOIN onceward.keys k ON k.xmin = c.xmin AND k.state = 4";
    assert_eq!(server.sql(together), "10");
}
