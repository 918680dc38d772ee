//! A handler that inserts one row: in the application's own transactions, in the inbox, singly and many in one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::store::{Commit, CompleteRequest, TransactionalStore};
use onceward::testing::MemoryBroker;
use onceward::{Handled, KeySource, Message, Pipeline, PipelineConfig, Scope, tx_handler};
use onceward_postgres::{EffectOutcome, PgStore, PgTx};
use onceward_test_servers::figures::Figures;
use onceward_test_servers::postgres::Postgres;
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::claims_for_commits;

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

/// Connections of the application's own; as the store's, they are not asked whether they live before each use.
async fn pool(server: &Postgres) -> PgPool {
    let options = PgPoolOptions::new().max_connections(8).test_before_acquire(false);
    options.connect(&server.url("postgres")).await.unwrap()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Effects per second of each way, in each turn.
fn rates<const N: usize>(count: usize, times: &[Vec<Duration>; N]) -> [Vec<f64>; N] {
    let rate = |time: &Duration| count as f64 / time.as_secs_f64();
    std::array::from_fn(|way| times[way].iter().map(rate).collect())
}

fn more(with: Duration, without: Duration) -> String {
    format!("{:+.1} %", 100.0 * (with.as_secs_f64() / without.as_secs_f64() - 1.0))
}

/// Handler transactions with and without inbox.
pub(crate) async fn transactions(figures: &Figures, server: &Postgres, store: &PgStore, workers: usize) {
    let each = figures.messages(4_000) / 2;
    let scope = Scope::parse("transactions").unwrap();
    let pool = pool(server).await;
    let mut tasks = Vec::new();
    for worker in 0..workers {
        let claimed = claims_for_commits(store, &scope, &format!("{workers} {worker}"), each).await;
        tasks.push(tokio::spawn(in_turns(pool.clone(), store.clone(), scope.clone(), claimed)));
    }
    let times = futures_util::future::try_join_all(tasks).await.unwrap();
    let (without, with): (Vec<_>, Vec<_>) = times.into_iter().unzip();
    let (without, with) = (without.concat(), with.concat());
    let all = more(with.iter().sum(), without.iter().sum());
    let (without, with) = (median(without), median(with));
    let rate = |time: Duration| [workers as f64 / time.as_secs_f64()];
    let part = format!("handler, {workers} at once, by the median");
    let base = ("own transaction", &rate(without)[..]);
    figures.record(&part, workers * each, base, &[("inbox", &rate(with))]);
    if figures.is_json() {
        return;
    }
    println!(
        "{workers} handlers at once: median {without:.2?} a transaction, {with:.2?} with the inbox, {}; all together {all}",
        more(with, without)
    );
}

/// So many effects share a transaction.
const BATCH: usize = 50;

/// Fifty effects in one transaction of the application's; each in a savepoint if they are to fail singly.
async fn plain_batch(pool: &PgPool, savepoints: bool) {
    let mut tx = pool.begin().await.unwrap();
    for n in 0..BATCH as i64 {
        if savepoints {
            sqlx::raw_sql("SAVEPOINT one").execute(&mut *tx).await.unwrap();
        }
        sqlx::query(INSERT).bind(n).bind(PAYLOAD).execute(&mut *tx).await.unwrap();
        if savepoints {
            sqlx::raw_sql("RELEASE SAVEPOINT one").execute(&mut *tx).await.unwrap();
        }
    }
    tx.commit().await.unwrap();
}

/// The same under claims, which are taken in their batch.
async fn inbox_batch(store: &PgStore, scope: &Scope, name: &str) {
    let requests = claims_for_commits(store, scope, name, BATCH).await;
    let effects = store.commit_together(scope, &requests, async |n, mut tx: PgTx<'_>| {
        sqlx::query(INSERT).bind(i64::try_from(n).unwrap()).bind(PAYLOAD).execute(&mut *tx).await?;
        Ok(())
    });
    for effect in effects.await.unwrap() {
        assert!(matches!(effect, EffectOutcome::Committed), "{effect:?}");
    }
}

/// Fifty effects in each of these ways, in turns; the inbox with its claims.
pub(crate) async fn batches(figures: &Figures, server: &Postgres, store: &PgStore) {
    let turns = figures.rounds(30);
    let (pool, scope) = (pool(server).await, Scope::parse("batches").unwrap());
    let mut times: [Vec<Duration>; 5] = Default::default();
    for turn in 0..turns {
        for (way, times) in times.iter_mut().enumerate() {
            let began = Instant::now();
            match way {
                0 => {
                    for n in 0..BATCH as i64 {
                        plain(&pool, n).await;
                    }
                }
                1 => plain_batch(&pool, false).await,
                2 => plain_batch(&pool, true).await,
                3 => {
                    let requests = claims_for_commits(store, &scope, &format!("singly {turn}"), BATCH).await;
                    for (n, request) in (0..).zip(&requests) {
                        inbox(store, &scope, request, n).await;
                    }
                }
                _ => inbox_batch(store, &scope, &format!("together {turn}")).await,
            }
            times.push(began.elapsed());
        }
    }
    let rates = rates(BATCH, &times);
    let variants = [
        ("one transaction, savepoints", &rates[2][..]),
        ("inbox", &rates[3]),
        ("inbox, one transaction, savepoints", &rates[4]),
    ];
    figures.record("batch", BATCH, ("own transaction", &rates[0]), &variants[1..]);
    figures.record("batch, one transaction", BATCH, ("one transaction", &rates[1]), &variants[..1]);
    figures.record("batch, savepoints", BATCH, variants[0], &variants[2..]);
    if figures.is_json() {
        return;
    }
    let [singly, fifty, isolated, inbox, shared] = times.map(median);
    println!("{BATCH} effects, one after the other, medians of {turns} turns, claims included:");
    println!("  each in the application's own transaction: {singly:.1?}");
    println!("  all in one of the application's: {fifty:.1?}; in savepoints: {isolated:.1?}");
    println!("  each in the inbox: {inbox:.1?}, {} over each in its own", more(inbox, singly));
    println!(
        "  all in one of the inbox, in savepoints: {shared:.1?}, {} over each in its own, {} over all in one in savepoints, \
         {} over all in one",
        more(shared, singly),
        more(shared, isolated),
        more(shared, fifty)
    );
}

async fn insert(_: (), _: Message, mut tx: PgTx<'_>) -> Handled {
    sqlx::query(INSERT).bind(1_i64).bind(PAYLOAD).execute(&mut *tx).await?;
    Ok(())
}

/// Messages through a pipeline, `concurrency` handlers at once.
async fn through_a_pipeline(
    store: &PgStore,
    scope: &str,
    count: usize,
    batch: usize,
    concurrency: usize,
) -> Duration {
    let broker = MemoryBroker::finite();
    (0..count).for_each(|n| broker.publish(Message::builder(format!("message {n}"))));
    let config = PipelineConfig { transaction_batch: batch, concurrency, ..PipelineConfig::default() };
    let pipeline =
        Pipeline::builder(Scope::parse(scope).unwrap(), broker.consumer(), Arc::new(store.clone()))
            .keys([KeySource::PayloadHash])
            .config(config)
            .park_exhausted()
            .transactional_handler(tx_handler(store, (), insert))
            .unwrap();
    let began = Instant::now();
    let summary = pipeline.run(Default::default()).await.unwrap();
    assert_eq!(summary.handled(), count as u64);
    began.elapsed()
}

/// Eight tasks that have effects alone, against pipelines whose handlers have as many connections, with as many handlers
/// at once and with more, which wait for a connection or share a transaction; in turns.
pub(crate) async fn pipelines(figures: &Figures, server: &Postgres, store: &PgStore) {
    let (count, turns) = (figures.messages(4_000), figures.rounds(5));
    let pool = pool(server).await;
    let mut times: [Vec<Duration>; 4] = Default::default();
    for turn in 0..turns {
        let began = Instant::now();
        let tasks = (0..8).map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for n in 0..(count / 8) as i64 {
                    plain(&pool, n).await;
                }
            })
        });
        futures_util::future::try_join_all(tasks).await.unwrap();
        times[0].push(began.elapsed());
        for (times, (batch, at_once)) in times[1..].iter_mut().zip([(1, 8), (1, 64), (BATCH, 8 * BATCH)]) {
            let scope = format!("{turn}-{batch}-{at_once}");
            times.push(through_a_pipeline(store, &scope, count, batch, at_once).await);
        }
    }
    let rates = rates(count, &times);
    let shared = format!("{BATCH} share a transaction");
    let variants = [("8 handlers", &rates[1][..]), ("64 handlers", &rates[2]), (shared.as_str(), &rates[3])];
    figures.record("pipeline", count, ("effects alone", &rates[0]), &variants);
    if figures.is_json() {
        return;
    }
    let [alone, singly, many, shared] = times.map(median);
    let rate = |time: Duration| count as f64 / time.as_secs_f64();
    println!("effects alone, 8 tasks: {:.0}/s", rate(alone));
    println!("pipeline, 8 handlers: {:.0}/s, {} time", rate(singly), more(singly, alone));
    println!("pipeline, 64 handlers: {:.0}/s, {} time", rate(many), more(many, alone));
    println!(
        "pipeline, 8 × {BATCH} sharing transactions: {:.0}/s, {} time",
        rate(shared),
        more(shared, alone)
    );
}
