//! Figures of the store on a real server of its own: `cargo bench -p onceward-postgres`. Ratios within one run hold; absolute
//! figures are those of a disk.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::time::{Duration, Instant};

use onceward::store::{
    Claim, ClaimRequest, ClaimTerms, Commit, CompleteRequest, Completion, Entropy, KeyState,
    TransactionalStore,
};
use onceward::{Key, Scope, Store};
use onceward_postgres::{PgConfig, PgStore, PgTx, Together};
use onceward_test_servers::postgres::Postgres;

const TTL: Duration = Duration::from_secs(3_600);

/// Claims `size` new keys, and answers what completes them.
async fn claims(store: &PgStore, scope: &Scope, name: &str, size: usize) -> Vec<CompleteRequest> {
    let terms = ClaimTerms { lease: Duration::from_secs(600), ttl: TTL, max_attempts: 5 };
    let mut entropy = Entropy::system();
    let request = |n| ClaimRequest {
        key: Key::of(scope, format!("{name} {n}")).unwrap(),
        owner: entropy.token(),
        fingerprint: None,
        generation: 0,
    };
    let requests: Vec<_> = (0..size).map(request).collect();
    let completion = |claim: Result<Claim, _>| match claim.unwrap() {
        Claim::Claimed(claimed) => {
            CompleteRequest { lease: claimed.lease, result: None, fingerprint: None, generation: 0, ttl: TTL }
        }
        other => panic!("{other:?}"),
    };
    store.claim(scope, &terms, &requests).await.into_iter().map(completion).collect()
}

/// Claims and completes `batches` batches of `size` keys, one after the other, and answers how many keys a second.
async fn claim_and_complete(store: &PgStore, name: &str, batches: usize, size: usize) -> f64 {
    let scope = Scope::parse(name).unwrap();
    let began = Instant::now();
    for batch in 0..batches {
        let completions = claims(store, &scope, &batch.to_string(), size).await;
        for done in store.complete(&scope, &completions).await {
            assert_eq!(done.unwrap(), Completion::Completed);
        }
    }
    let count = batches * size;
    assert_eq!(store.stats(&scope).await.unwrap().get(KeyState::Completed), count as u64);
    count as f64 / began.elapsed().as_secs_f64()
}

const INSERT: &str = "INSERT INTO effects (n, payload) VALUES ($1, $2)";
const PAYLOAD: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// One effect in the application's own transaction, without a store.
async fn plain(pool: &sqlx::PgPool, n: i64) {
    let mut tx = pool.begin().await.unwrap();
    sqlx::query(INSERT).bind(n).bind(PAYLOAD).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

/// The same in a transaction that completes a claim, which was taken beforehand in its batch.
async fn inbox(store: &PgStore, scope: &Scope, request: &CompleteRequest, n: i64) {
    let mut open = store.begin().await.unwrap();
    let mut tx = store.lend(&mut open);
    sqlx::query(INSERT).bind(n).bind(PAYLOAD).execute(&mut *tx).await.unwrap();
    assert_eq!(store.commit(open, scope, request).await.unwrap(), Commit::Committed);
}

/// The times of transactions without and with the inbox, which take turns, so that both see the same disk.
async fn in_turns(
    pool: sqlx::PgPool,
    store: PgStore,
    scope: Scope,
    requests: Vec<CompleteRequest>,
) -> (Vec<Duration>, Vec<Duration>) {
    let mut times = (Vec::new(), Vec::new());
    for (n, request) in (0_i64..).zip(&requests) {
        let began = Instant::now();
        plain(&pool, n).await;
        let between = Instant::now();
        inbox(&store, &scope, request, n).await;
        times.0.push(between - began);
        times.1.push(between.elapsed());
    }
    times
}

/// The same, many in one transaction.
async fn together(store: &PgStore, scope: &Scope, requests: &[CompleteRequest], size: usize) {
    for part in requests.chunks(size) {
        let effects = store.commit_together(scope, part, async |n, mut tx: PgTx<'_>| {
            sqlx::query(INSERT).bind(i64::try_from(n).unwrap()).bind(PAYLOAD).execute(&mut *tx).await?;
            Ok(())
        });
        for effect in effects.await.unwrap() {
            assert!(matches!(effect, Together::Committed), "{effect:?}");
        }
    }
}

/// Handler transactions with and without inbox.
async fn transactions(server: &Postgres, store: &PgStore, workers: usize) {
    const EACH: usize = 1_000;
    let scope = Scope::parse("transactions").unwrap();
    let options = sqlx::postgres::PgPoolOptions::new().max_connections(8).test_before_acquire(false);
    let pool = options.connect(&server.url("postgres")).await.unwrap();
    let mut tasks = Vec::new();
    for worker in 0..workers {
        let claimed = claims(store, &scope, &format!("{workers} {worker}"), EACH).await;
        tasks.push(tokio::spawn(in_turns(pool.clone(), store.clone(), scope.clone(), claimed)));
    }
    let times = futures_util::future::try_join_all(tasks).await.unwrap();
    let (without, with): (Vec<_>, Vec<_>) = times.into_iter().unzip();
    let median = |times: Vec<Vec<Duration>>| {
        let mut times = times.concat();
        times.sort();
        times[times.len() / 2]
    };
    let (without, with) = (median(without), median(with));
    let more = 100.0 * (with.as_secs_f64() / without.as_secs_f64() - 1.0);
    println!(
        "{workers} handlers at once: median {without:?} a transaction, {with:?} with the inbox, {more:+.1} %"
    );
}

/// The same effects, fifty in one transaction.
async fn fifty(store: &PgStore) {
    let scope = Scope::parse("fifty").unwrap();
    let claimed = claims(store, &scope, "fifty", 1_000).await;
    let began = Instant::now();
    together(store, &scope, &claimed, 50).await;
    println!("fifty effects in one transaction: {:.0} effects/s", 1_000.0 / began.elapsed().as_secs_f64());
}

#[tokio::main]
async fn main() {
    let server = Postgres::start();
    let store = PgStore::connect(PgConfig::from_url(&server.url("postgres")).unwrap()).await.unwrap();
    let single = claim_and_complete(&store, "single", 500, 1).await;
    println!("one by one, one in flight: {single:.0} claim + complete/s");
    for size in [100, 256, 1_000] {
        let name = format!("batch-{size}");
        let rate = claim_and_complete(&store, &name, 50_000 / size, size).await;
        println!("batches of {size}, one in flight: {rate:.0} claim + complete/s");
    }
    let (one, two) = tokio::join!(
        claim_and_complete(&store, "two-a", 100, 256),
        claim_and_complete(&store, "two-b", 100, 256)
    );
    println!("batches of 256, two in flight: {:.0} claim + complete/s", one + two);
    server.sql("CREATE TABLE effects (n bigint NOT NULL, payload text NOT NULL)");
    for workers in [1, 8] {
        transactions(&server, &store, workers).await;
    }
    fifty(&store).await;
    server.sql("VACUUM FULL onceward.keys");
    let bytes = "SELECT pg_total_relation_size('onceward.keys') / count(*) FROM onceward.keys";
    println!("bytes a completed key, indexes included, after VACUUM FULL: {}", server.sql(bytes));
}
