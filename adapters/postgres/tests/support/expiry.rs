//! Expired rows, and workers that claim beside their removal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Entropy};
use onceward::{Key, Scope, Store};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;
use tokio_util::sync::CancellationToken;

/// Longer than anything that is measured beside them.
const TTL: Duration = Duration::from_secs(24 * 3_600);

fn scope() -> Scope {
    Scope::parse("expiry").unwrap()
}

/// The store in `schema`.
pub(crate) async fn store_in(server: &Postgres, schema: &str) -> PgStore {
    PgStore::open({
        let mut config = PgConfig::new(server.url("postgres"));
        config.options.schema = schema.into();
        config
    })
    .await
    .unwrap()
}

/// Completed rows that have expired, a microsecond apart, ending a minute ago.
pub(crate) fn expire(server: &Postgres, schema: &str, rows: u64) {
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
            Claim::Claimed(claimed) => CompleteRequest::new(claimed.lease, TTL),
            other => panic!("{other:?}"),
        };
        let completions: Vec<_> = claims.into_iter().map(completion).collect();
        for done in store.complete(&scope, &completions).await {
            done.unwrap();
        }
    }
    took
}

/// Four workers, for `time`; how long their claims took.
pub(crate) async fn workers_for(store: &PgStore, numbers: &Arc<AtomicU64>, time: Duration) -> Vec<Duration> {
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
