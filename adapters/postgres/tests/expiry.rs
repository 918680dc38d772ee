//! Expired rows are removed beside claims that go on, by one cleaner among many workers. With figures on request:
//! `ONCEWARD_EXPIRY_ROWS=10000000 cargo test --release -p onceward-postgres --test expiry -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Entropy};
use onceward::{Key, Scope, Store};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;
use tokio_util::sync::CancellationToken;

const TTL: Duration = Duration::from_secs(3_600);

fn scope() -> Scope {
    Scope::parse("expiry").unwrap()
}

async fn store_in(server: &Postgres, schema: &str) -> PgStore {
    PgStore::connect(PgConfig::from_url(&server.url("postgres")).unwrap().schema(schema)).await.unwrap()
}

/// Completed rows that have expired, a microsecond apart, ending a minute ago.
fn expire(server: &Postgres, schema: &str, rows: u64) {
    const CHUNK: u64 = 500_000;
    for from in (0..rows).step_by(CHUNK as usize) {
        let to = (from + CHUNK).min(rows);
        server.sql(&format!(
            "INSERT INTO {schema}.keys (scope, key, state, started, owner, fence, attempts, lost, generation, lease_until, \
             first_at, written_at, ttl, expires_at) \
             SELECT 1, decode(md5('old ' || n), 'hex'), 4, false, decode(md5(n::text), 'hex'), 1, 1, 0, 0, 0, 1, 1, 1, \
             (extract(epoch FROM now()) * 1000000)::bigint - 60000000 - {rows} + n \
             FROM generate_series({from}, {to} - 1) AS n"
        ));
    }
}

/// Claims and completes batches of new keys at a steady pace; answers how long each claim took.
async fn work(
    store: PgStore,
    worker: u64,
    numbers: Arc<AtomicU64>,
    stop: CancellationToken,
) -> Vec<Duration> {
    const BATCH: usize = 50;
    const PACE: Duration = Duration::from_millis(50);
    let (scope, mut entropy, mut took) = (scope(), Entropy::system(), Vec::new());
    let terms = ClaimTerms { lease: Duration::from_secs(60), ttl: TTL, max_attempts: 5 };
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.is_cancelled() {
        pace.tick().await;
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let request = |n| ClaimRequest {
            key: Key::of(&scope, format!("{worker} {number} {n}")).unwrap(),
            owner: entropy.token(),
            fingerprint: None,
            generation: 0,
        };
        let batch: Vec<_> = (0..BATCH).map(request).collect();
        let began = Instant::now();
        let claims = store.claim(&scope, &terms, &batch).await;
        took.push(began.elapsed());
        let completion = |claim: Result<Claim, _>| match claim.unwrap() {
            Claim::Claimed(claimed) => CompleteRequest {
                lease: claimed.lease,
                result: None,
                fingerprint: None,
                generation: 0,
                ttl: TTL,
            },
            other => panic!("{other:?}"),
        };
        let completions: Vec<_> = claims.into_iter().map(completion).collect();
        for done in store.complete(&scope, &completions).await {
            done.unwrap();
        }
    }
    took
}

async fn workers_for(store: &PgStore, numbers: &Arc<AtomicU64>, time: Duration) -> Vec<Duration> {
    let stop = CancellationToken::new();
    let workers: Vec<_> = (0..4)
        .map(|worker| tokio::spawn(work(store.clone(), worker, Arc::clone(numbers), stop.clone())))
        .collect();
    tokio::time::sleep(time).await;
    stop.cancel();
    let mut took = Vec::new();
    for worker in workers {
        took.extend(worker.await.unwrap());
    }
    took
}

fn percentile(took: &mut [Duration], percent: usize) -> Duration {
    took.sort_unstable();
    took[(took.len() - 1) * percent / 100]
}

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

    // A cleaner whose transaction is open: nobody else removes anything meanwhile.
    server.sql("CREATE TABLE expiry_many.held (n int)");
    let mut cleaner =
        <sqlx::PgConnection as sqlx::Connection>::connect(&server.url("postgres")).await.unwrap();
    let mut open = sqlx::Connection::begin(&mut cleaner).await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 7))")
        .bind("onceward purge \"expiry_many\"")
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

/// Removes batches until told to stop, and answers how many rows that were. The pause is a part of the time a batch took.
async fn clean(store: PgStore, pause: f64, stop: CancellationToken) -> (u64, Duration) {
    const BATCH: u32 = 500;
    let (mut removed, began) = (0, Instant::now());
    while !stop.is_cancelled() {
        let began = Instant::now();
        let now = store.purge(BATCH).await.unwrap();
        removed += now;
        if now < u64::from(BATCH) {
            break;
        }
        tokio::time::sleep(began.elapsed().mul_f64(pause)).await;
    }
    (removed, began.elapsed())
}

/// Claims at a steady pace, in turns without a cleaner, with one that pauses for as long as it works, and with one that does
/// not pause, as the pipeline's; until all that had expired is gone, or the turns are over.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures for minutes; run it alone, see above"]
async fn claims_beside_the_expiry_of_many_rows() {
    let number = |name: &str, usual: u64| {
        std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(usual)
    };
    let rows = number("ONCEWARD_EXPIRY_ROWS", 300_000);
    let turn = Duration::from_secs(number("ONCEWARD_EXPIRY_TURN", 5));
    let turns = number("ONCEWARD_EXPIRY_TURNS", 3);

    let server = tokio::task::spawn_blocking(|| Postgres::start_with(&["max_wal_size=4GB"])).await.unwrap();
    let store = store_in(&server, "expiry").await;
    let numbers = Arc::default();
    workers_for(&store, &numbers, Duration::from_secs(1)).await;
    let began = Instant::now();
    expire(&server, "expiry", rows);
    server.sql("VACUUM ANALYZE expiry.keys");
    println!("{rows} rows inserted in {:?}", began.elapsed());

    let mut kinds =
        [("no cleaner", None), ("a cleaner that pauses", Some(1.0)), ("a cleaner that does not", Some(0.0))]
            .map(|(name, pause)| (name, pause, Vec::new(), 0, Duration::ZERO));
    'turns: for _ in 0..turns {
        for (_, pause, took, removed, cleaning) in &mut kinds {
            let stop = CancellationToken::new();
            let cleaner = pause.map(|pause| tokio::spawn(clean(store.clone(), pause, stop.clone())));
            took.extend(workers_for(&store, &numbers, turn).await);
            stop.cancel();
            if let Some(cleaner) = cleaner {
                let (now, long) = cleaner.await.unwrap();
                (*removed, *cleaning) = (*removed + now, *cleaning + long);
            }
            if store.expiry_lag().await.unwrap() == Duration::ZERO {
                break 'turns;
            }
        }
    }
    for (name, _, took, removed, cleaning) in &mut kinds {
        let [p50, p95, p99, max] = [50, 95, 99, 100].map(|percent| percentile(took, percent));
        let rate = *removed as f64 / cleaning.as_secs_f64().max(0.001);
        println!(
            "{name}: {} claims of 50, p50 {p50:?} p95 {p95:?} p99 {p99:?} max {max:?}; {removed} removed, {rate:.0}/s",
            took.len()
        );
    }
    println!("size {}", server.sql("SELECT pg_size_pretty(pg_total_relation_size('expiry.keys'))"));
    assert!(kinds.iter().any(|(.., removed, _)| *removed > 0));
}
