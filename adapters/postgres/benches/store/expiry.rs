//! Claims at a steady pace beside the removal of many expired rows, until all of them are removed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::adapter::Expiring;
use onceward_postgres::PgStore;
use onceward_test_servers::postgres::Postgres;
use tokio_util::sync::CancellationToken;

use crate::number;
use crate::rows::{expire, store_in, workers_for};

/// Removes expired rows until it is stopped or none remain; returns how many it removed, and in what time.
async fn clean(store: PgStore, stop: CancellationToken) -> (u64, Duration) {
    const BATCH: u32 = 500;
    let (mut removed, began) = (0, Instant::now());
    while !stop.is_cancelled() {
        let now = store.purge(BATCH).await.unwrap();
        removed += now;
        if now < u64::from(BATCH) {
            break;
        }
    }
    (removed, began.elapsed())
}

/// In turns without a cleaner and with one, which removes without a pause, as the pipeline's.
pub(crate) async fn measure() {
    let rows = number("ONCEWARD_EXPIRY_ROWS", 10_000_000);
    let turn = Duration::from_secs(number("ONCEWARD_EXPIRY_TURN", 30));
    let server = Postgres::start_with(&["max_wal_size=4GB"]);
    let store = store_in(&server, "expiry").await;
    let numbers = Arc::default();
    workers_for(&store, &numbers, Duration::from_secs(1)).await;
    let began = Instant::now();
    expire(&server, "expiry", rows);
    server.sql("VACUUM ANALYZE expiry.keys");
    println!("{rows} expired rows inserted in {:.0?}", began.elapsed());
    let (mut without, mut beside) = (Vec::new(), Vec::new());
    let (mut removed, mut cleaning) = (0, Duration::ZERO);
    while removed < rows {
        without.extend(workers_for(&store, &numbers, turn).await);
        let stop = CancellationToken::new();
        let cleaner = tokio::spawn(clean(store.clone(), stop.clone()));
        beside.extend(workers_for(&store, &numbers, turn).await);
        stop.cancel();
        let (now, long) = cleaner.await.unwrap();
        assert!(now > 0, "{} rows are left and none is removed", rows - removed);
        (removed, cleaning) = (removed + now, cleaning + long);
    }
    for (name, took) in [("no cleaner", &mut without), ("beside a cleaner", &mut beside)] {
        took.sort_unstable();
        let [p50, p95, p99] = [50, 95, 99].map(|percent| took[(took.len() - 1) * percent / 100]);
        println!("{name}: {} claims of 50, p50 {p50:.1?} p95 {p95:.1?} p99 {p99:.1?}", took.len());
    }
    let p99 = |took: &[Duration]| took[(took.len() - 1) * 99 / 100].as_secs_f64();
    println!("p99 beside a cleaner: {:.2} of that without", p99(&beside) / p99(&without));
    println!("{removed} rows removed, all, {:.0}/s", removed as f64 / cleaning.as_secs_f64());
    assert_eq!(store.expiry_lag().await.unwrap(), Duration::ZERO);
}
