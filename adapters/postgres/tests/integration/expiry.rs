//! Tests of the removal of expired rows during concurrent claims, by one cleaner among many workers. Figures: the bench's
//! part `expiry`.

use std::sync::Arc;
use std::time::Duration;

use onceward::adapter::Expiring;
use onceward_test_servers::postgres::Postgres;

use crate::rows::{expire, store_in, workers_for};

#[tokio::test(flavor = "multi_thread")]
async fn of_many_workers_one_removes_what_has_expired_and_nothing_else() {
    const ROWS: u64 = 5_000;
    let server = tokio::task::spawn_blocking(Postgres::shared).await.unwrap();
    let store = store_in(server, "expiry_many").await;
    let numbers = Arc::default();
    let before = workers_for(&store, &numbers, Duration::from_millis(500)).await;
    assert!(!before.is_empty());
    let live: u64 = server.sql("SELECT count(*) FROM expiry_many.keys").parse().unwrap();
    expire(server, "expiry_many", ROWS);
    let lag = store.expiry_lag().await.unwrap();
    assert!(lag >= Duration::from_secs(60), "{lag:?}");

    // A cleaner whose transaction is open: no other cleaner removes anything meanwhile.
    server.sql("CREATE TABLE expiry_many.held (n int)");
    let mut cleaner =
        <sqlx::PgConnection as sqlx::Connection>::connect(&server.url("postgres")).await.unwrap();
    let mut open = sqlx::Connection::begin(&mut cleaner).await.unwrap();
    sqlx::query("SELECT 1 FROM expiry_many.meta WHERE name = 'purge' FOR UPDATE")
        .execute(&mut *open)
        .await
        .unwrap();
    assert_eq!(store.purge(100).await.unwrap(), 0);
    open.rollback().await.unwrap();

    let mut purging = Vec::new();
    for _ in 0..4 {
        let store = store_in(server, "expiry_many").await;
        purging.push(tokio::spawn(async move {
            let mut removed = 0;
            while store.expiry_lag().await.unwrap() > Duration::ZERO {
                removed += store.purge(200).await.unwrap();
            }
            removed
        }));
    }
    let mut removed = 0;
    for purging in purging {
        removed += purging.await.unwrap();
    }
    assert_eq!(removed, ROWS);
    assert_eq!(server.sql("SELECT count(*) FROM expiry_many.keys").parse::<u64>().unwrap(), live);
    assert_eq!(store.expiry_lag().await.unwrap(), Duration::ZERO);
}
